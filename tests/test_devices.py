"""Several devices and several processes, on one machine: the same curvature, little traffic."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.quick import environment

ROOT = Path(__file__).parent.parent
ENVIRONMENT = environment(PYTHONPATH=str(ROOT))


def test_passes_on_eight_devices(request):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "tests/device_checks.py"]
    if request.config.getoption("--first-cases"):
        command.append("--first-cases")
    run = subprocess.run(
        command,
        cwd=ROOT,
        env=ENVIRONMENT | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("count", [2, 4])
def test_processes_that_each_hold_a_part_of_all_steps_agree_with_one(count):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "tests/process_check.py", f"localhost:{port}", str(count)]
    runs = [
        subprocess.Popen(
            [*command, str(i)],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(count)
    ]
    try:
        said = [run.communicate(timeout=200)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert all(run.returncode == 0 for run in runs), "\n".join(said)
