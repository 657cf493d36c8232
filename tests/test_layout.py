"""The house: imports go strictly downward, private packages stay inside, the face is explicit."""

import ast
from pathlib import Path

import pytest

import lowrank_jax as lrj
from tests.mutants import MUTANTS

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "lowrank_jax"
FLOORS = (
    {"_core.programs", "_core.types"},
    {"_core.checks", "_core.losses", "_core.structure", "_core.xla"},
    {"_core.tall"},
    {"_core.scaling"},
    {"_core.spectral"},
    {"_core.orthonormal"},
    {"_operators.rectangular", "_operators.reduced"},
    {"_operators.shifted"},
    {"_operators.diagonal"},
    {"_operators.symmetric"},
    {"_clouds.pairs", "_clouds.whitened"},
    {"_clouds.fit"},
    {"_clouds.hessian", "_clouds.selection"},
    {"_clouds.diagnosis"},
    {
        "_at_a_point.implicit",
        "_at_a_point.jacobian",
        "_at_a_point.krylov",
        "_at_a_point.lanczos",
        "_at_a_point.products",
        "_at_a_point.ritz",
        "_at_a_point.steps",
    },
    {
        "_at_a_point.comparison",
        "_at_a_point.eigenpair",
        "_at_a_point.errors",
        "_at_a_point.estimates",
        "_at_a_point.probes",
        "_at_a_point.triplet",
    },
    {"_at_a_point.differences"},
    {"_at_a_point.expansion"},
    {"_at_a_point.hessian"},
    {"_models.cur", "_models.trust_region"},
    {"_models.cross", "_models.quadratic"},
    {"_training.batches", "_training.direction"},
    {"history", "interop", "plot"},
    {"optim"},
    {""},  # the library itself
)
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
PACKAGES = {name.split(".")[0] for name in FLOOR if "." in name}
EXTRAS = {"equinox", "lineax", "matplotlib", "tqdm"}
MOST_LINES = 300  # of code


def module_name(path):
    """The dotted name of a file below the library."""
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(LIBRARY.rglob("*.py"))}


def imports(path):
    """(module of the library, its name here, or None; names taken out of it) for each import."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                head, _, rest = alias.name.partition(".")
                if head == "lowrank_jax":
                    yield rest, alias.asname, ()
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            head, _, rest = node.module.partition(".")
            if head != "lowrank_jax":
                continue
            for alias in node.names:
                inner = f"{rest}.{alias.name}" if rest else alias.name
                if inner in FILES:
                    yield inner, alias.asname or alias.name, ()
                else:
                    yield rest, None, (alias.name,)


def code_lines(text):
    """How many lines are neither blank nor part of a docstring."""
    documented = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                documented |= set(range(value.lineno, value.end_lineno + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(bool(line.strip()) and number not in documented for number, line in lines)


def test_every_file_has_its_floor():
    assert set(FILES) == set(FLOOR) | PACKAGES


def test_imports_go_strictly_downward():
    for name in FLOOR:
        for other, *_ in imports(FILES[name]):
            assert FLOOR[other] < FLOOR[name], f"{name} imports {other}"


def test_packages_hold_a_docstring_alone():
    for name in PACKAGES:
        (docstring,) = ast.parse(FILES[name].read_text()).body
        assert isinstance(docstring, ast.Expr), name


def test_only_optional_extras_are_imported_within_functions():
    for name, path in FILES.items():
        tree = ast.parse(path.read_text())
        inner = set(ast.walk(tree)) - set(tree.body)
        inner = [node for node in inner if isinstance(node, (ast.Import, ast.ImportFrom))]
        found = {getattr(node, "module", None) or node.names[0].name for node in inner}
        assert found <= EXTRAS, name


def test_names_with_an_underscore_stay_in_their_module():
    for name, path in FILES.items():
        found = list(imports(path))
        assert not [n for *_, names in found for n in names if n.startswith("_")], name
        modules = {local for _, local, _ in found if local}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                private = node.value.id in modules and node.attr.startswith("_")
                assert not private, f"{name} uses {node.value.id}.{node.attr}"


@pytest.mark.parametrize("folder", ["benchmarks", "notebooks"])
def test_only_tests_import_private_packages(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for name, _, names in imports(path):
            assert not name.startswith("_"), f"{path.name} imports {name}"
            assert not [n for n in names if n.startswith("_")], path.name


def test_public_modules_are_the_optimisers_their_history_interop_and_plot():
    public = {name for name in FILES if not name.startswith("_")}
    assert public == {"", "history", "interop", "optim", "plot"}


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_a_file_can_be_read_in_one_sitting(name):
    assert code_lines(FILES[name].read_text()) <= MOST_LINES


def test_every_public_name_is_exported_and_documented():
    functions = (
        lrj.history.init,
        lrj.history.push,
        lrj.history.pairs,
        lrj.interop.lineax_operator,
        lrj.optim.scale_by_secant,
        lrj.optim.secant_newton,
        lrj.optim.precondition_top_curvature,
        lrj.plot.spectrum,
        lrj.plot.landscape,
    )
    plain = ("Diagnosis", "EigenpairInfo", "Estimate", "Estimates", "HvpComparison", "RitzPairs")
    plain += ("history", "interop", "optim", "plot")
    named = tuple(getattr(lrj, name) for name in lrj.__all__ if name not in plain)
    assert all(">>>" in public.__doc__ for public in (*named, *functions))
    assert sorted(lrj.__all__) == lrj.__all__


def test_every_module_of_the_engine_room_has_a_mutant():
    """All but the names of types: see `mutants.py`."""
    broken = {mutant.module for mutant in MUTANTS}
    assert {name for name in FILES if name.startswith("_core.")} - broken == {"_core.types"}
