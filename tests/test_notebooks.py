"""Every notebook runs as a script, without a warning, and makes its figure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))
FIGURES = {
    "01_quickstart": "quickstart.png",
    "02_matrix_calculus": "matrix_calculus.png",
    "03_curvature_at_a_point": "curvature_at_a_point.png",
    "04_training": "training.png",
}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook):
    figure = notebook.parent / "figures" / FIGURES[notebook.stem]
    figure.unlink(missing_ok=True)
    run = subprocess.run(
        [sys.executable, "-W", "error", str(notebook), "--quick"],
        env={
            **os.environ,
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        },  # most of the time is compilation
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert figure.stat().st_size > 50_000
