"""How large programs are: counts of fused kernels, in a process with ordinary optimisation."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOM = 1.15
MEASURED = {  # on JAX 0.12, and nearly the same on 0.10; operators with 32 factors in one array
    "product, 32, None": 2,
    "eigh, 32, None": 57,
    "solve, 32, None": 60,
    "solve, one number a coordinate, 32, None": 79,
    "logdet, 32, None": 53,
    "inverse, 32, None": 65,
    "positive_part, 32, None": 60,
    "truncate, 32, None": 59,
    "sample, 32, None": 80,
    "fit": 79,
    "diagnose": 245,
}


def counted():
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


def test_programs_are_no_larger_than_they_were_and_grow_with_nothing():
    counts = counted()
    allowed = {name: ROOM * count for name, count in MEASURED.items()}
    for name in ("product", "eigh", "solve", "logdet"):  # above 32, sums of many rows are loops
        allowed[f"{name}, 34, None"] = counts[f"{name}, 32, None"] + 40
        allowed[f"{name}, 600, None"] = counts[f"{name}, 34, None"]
    for name in ("product", "eigh", "solve", "logdet", "positive_part"):
        for leaves, more_than in ((20, "None"), (40, "20")):  # a leaf costs two at most
            allowed[f"{name}, 32, {leaves}"] = counts[f"{name}, 32, {more_than}"] + 2 * 20
    too_large = {
        name: (counts[name], most) for name, most in allowed.items() if counts[name] > most
    }
    assert not too_large
