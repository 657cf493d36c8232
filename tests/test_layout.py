"""The house: imports go strictly downward, private modules stay inside, the face is explicit."""

import ast
from pathlib import Path

import lowrank_jax as lrj

ROOT = Path(__file__).parent.parent
FLOORS = (
    {"_checks", "_losses", "_pieces", "_spectral"},
    {"_rows"},
    {"_frames"},
    {"batches", "pairs", "products", "rectangular", "symmetric"},
    {"history", "jacobian", "leading", "probe", "secant", "skeleton"},
    {"_descent", "hessian", "quality"},
    {"optim", "quadratic"},
    {"__init__"},
)
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}


def imported_modules(path):
    """The modules of the library that a file imports, by name."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "lowrank_jax":
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module.removeprefix("lowrank_jax.")]
        elif isinstance(node, ast.Import):
            names = [alias.name.removeprefix("lowrank_jax.") for alias in node.names]
        yield from (name for name in names if name in FLOOR or name.startswith("_"))


def test_imports_go_strictly_downward():
    files = list((ROOT / "lowrank_jax").glob("*.py"))
    assert {path.stem for path in files} == set(FLOOR)
    for path in files:
        for name in imported_modules(path):
            assert FLOOR[name] < FLOOR[path.stem], f"{path.stem} imports {name}"


def test_only_tests_import_private_modules():
    for folder in ("benchmarks", "notebooks"):
        for path in (ROOT / folder).glob("*.py"):
            private = [name for name in imported_modules(path) if name.startswith("_")]
            assert set(private) <= {"__future__"}, path


def test_every_public_name_is_exported_and_documented():
    functions = (
        lrj.history.init,
        lrj.history.push,
        lrj.history.pairs,
        lrj.optim.scale_by_secant,
        lrj.optim.secant_newton,
        lrj.optim.precondition_top_curvature,
    )
    plain = ("Diagnosis", "HvpComparison", "history", "optim")
    named = tuple(getattr(lrj, name) for name in lrj.__all__ if name not in plain)
    assert all(">>>" in public.__doc__ for public in (*named, *functions))
    assert sorted(lrj.__all__) == lrj.__all__
