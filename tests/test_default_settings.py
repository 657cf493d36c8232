"""What runs with double precision off, in processes of their own: docstrings, float32 checks."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.quick import environment

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", ["lowrank_jax", "tests/float32_checks.py"])
def test_passes_with_double_precision_off(path):
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", path],
        cwd=ROOT,
        env=environment(JAX_ENABLE_X64="0"),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
