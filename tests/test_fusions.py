"""How large programs are: counts of fused kernels, in a process with ordinary optimisation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOM = 1.15
MEASURED = {  # with 32 factors, in one array; on JAX 0.12, and nearly the same on 0.10
    "product": 2,
    "eigh": 57,
    "solve": 60,
    "solve, one number a coordinate": 79,
    "logdet": 53,
    "inverse": 65,
    "positive_part": 60,
    "truncate": 59,
    "sample": 80,
}


@pytest.fixture(scope="module")
def counts():
    run = subprocess.run(
        [sys.executable, "tests/fusion_counts.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_ENABLE_X64": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", MEASURED)
def test_programs_are_not_larger_than_they_were(counts, name):
    assert counts[f"{name}, 32, None"] <= ROOM * MEASURED[name]


@pytest.mark.parametrize("name", ["product", "eigh", "solve", "logdet"])
def test_nothing_is_unrolled_over_factors(counts, name):
    """Above 32 sums of many rows are loops."""
    assert counts[f"{name}, 34, None"] <= counts[f"{name}, 32, None"] + 40
    assert counts[f"{name}, 600, None"] <= counts[f"{name}, 34, None"]


@pytest.mark.parametrize("name", ["product", "eigh", "solve", "logdet", "positive_part"])
def test_a_leaf_costs_two_operations_at_most(counts, name):
    few, many = counts[f"{name}, 32, 20"], counts[f"{name}, 32, 40"]
    assert many - few <= 2 * 20
    assert few <= counts[f"{name}, 32, None"] + 2 * 20


@pytest.mark.parametrize(("name", "measured"), [("fit", 79), ("diagnose", 278)])
def test_of_clouds_programs_are_not_larger_than_they_were(counts, name, measured):
    assert counts[name] <= ROOM * measured
