"""The README's examples print what the README says that they print."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parent.parent / "README.md"
NUMBER = re.compile(r"-?\d+\.\d*(?:e-?\d+)?")


EXAMPLE = re.compile(r"```python\n((?:(?!```).)*)```\n\n```text\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize(
    ("code", "expected"),
    EXAMPLE.findall(README.read_text()),
    ids=["one minute", "devices", "libraries"],
)
def test_an_example_prints_its_output(code, expected):
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "JAX_ENABLE_X64": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    words = [re.sub(r"\s+", "", NUMBER.sub("x", t)) for t in (run.stdout, expected)]
    assert words[0] == words[1]
    found, printed = ([float(x) for x in NUMBER.findall(t)] for t in (run.stdout, expected))
    np.testing.assert_allclose(found, printed, rtol=2e-2, atol=1e-5)
