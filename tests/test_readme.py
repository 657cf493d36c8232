"""The README's example prints what the README says that it prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

README = Path(__file__).parent.parent / "README.md"
NUMBER = re.compile(r"-?\d+\.\d*(?:e-?\d+)?")


def test_the_example_prints_its_output():
    text = README.read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    expected = re.search(r"```text\n(.*?)```", text, re.DOTALL).group(1)
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "JAX_ENABLE_X64": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    words = [re.sub(r"\s+", "", NUMBER.sub("x", t)) for t in (run.stdout, expected)]
    assert words[0] == words[1]
    found, printed = ([float(x) for x in NUMBER.findall(t)] for t in (run.stdout, expected))
    np.testing.assert_allclose(found, printed, rtol=2e-2, atol=1e-5)
