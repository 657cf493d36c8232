"""Every notebook runs as a script, without a warning, and makes its figure."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.quick import environment

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))


def bound_names(text):
    """The names that the statements of a notebook bind, but those within loops and functions."""
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                names = (n for n in ast.walk(target) if isinstance(n, ast.Name))
                yield from (n.id for n in names if isinstance(n.ctx, ast.Store) and n.id != "_")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_name_means_one_thing(notebook):
    """A reader who runs a cell again, or reads one alone, is not misled."""
    counts = Counter(bound_names(notebook.read_text()))
    assert not [name for name, count in counts.items() if count > 1]


@pytest.mark.study
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook):
    name = notebook.stem.partition("_")[2]
    figure = notebook.parent / "figures" / f"{name}.png"
    figure.unlink(missing_ok=True)
    run = subprocess.run(
        [sys.executable, "-W", "error", str(notebook), "--quick"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert figure.stat().st_size > 20_000
