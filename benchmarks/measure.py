"""Time and memory of calls that take turns.

Alternatives are compared in one process, one call of each after the other, round after round:
what else the machine does then meets all of them. Compilation and the first call are not in the
times; medians and quartiles are given.
"""

import json
import math
import os
import platform
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

MOST_ROUNDS = 200
PACKAGES = (
    "jax",
    "jaxlib",
    "numpy",
    "scipy",
    "optax",
    "matfree",
    "sella",
    "blackjax",
    "flax",
    "equinox",
)


class Call(NamedTuple):
    """Something to time: `function(*args)`.

    Attributes:
      function: compiled, where it is JAX's.
      args: its arguments.
      compile_seconds: tracing and compilation; None where nothing is compiled.
      memory: bytes of `arguments`, `output` and `temporary` arrays, as the compiler says.
      share: the part of the whole work that one call does; times are divided by it.
    """

    function: Callable
    args: tuple = ()
    compile_seconds: float | None = None
    memory: dict[str, int] | None = None
    share: float = 1

    def run(self) -> Any:
        """The result, when it is there."""
        return jax.block_until_ready(self.function(*self.args))


def compiled(function: Callable, *args: Any, clock: Callable = time.perf_counter) -> Call:
    """The function compiled for these arguments."""
    began = clock()
    executable = jax.jit(function).lower(*args).compile()
    seconds = clock() - began
    found = executable.memory_analysis()
    memory = found and {
        "arguments": found.argument_size_in_bytes,
        "output": found.output_size_in_bytes,
        "temporary": found.temp_size_in_bytes,
    }
    return Call(executable, args, seconds, memory)


def interleaved(
    calls: dict[str, Call],
    rounds: int = 7,
    seconds: float = 3.0,
    clock: Callable = time.perf_counter,
) -> dict[str, list[float]]:
    """The times of each call, in rounds: at least that many, and more until `seconds` are over.

    Every call runs once before, unmeasured. A result is given back after the clock is read.
    """
    for call in calls.values():
        call.run()
    times = {name: [] for name in calls}
    began = clock()
    for done in range(MOST_ROUNDS):
        if done >= rounds and clock() - began >= seconds:
            break
        for name, call in calls.items():
            start = clock()
            result = call.run()
            times[name].append((clock() - start) / call.share)
            del result
    return times


def compare(
    calls: dict[str, Call],
    unit: str,
    rounds: int = 7,
    seconds: float = 3.0,
    clock: Callable = time.perf_counter,
) -> dict[str, dict]:
    """What the results hold of calls that took turns.

    Args:
      calls: by name.
      unit: the name of the call whose time is the unit of `times_<unit>`, if it is among them.
      rounds: as in `interleaved`, like the others.
      seconds: how long the rounds go on at least.
      clock: the time in seconds.
    """
    times = interleaved(calls, rounds, seconds, clock)
    medians = {name: float(np.median(found)) for name, found in times.items()}

    def entry(name):
        call = calls[name]
        found = {
            "seconds": medians[name],
            "quartiles": [float(q) for q in np.quantile(times[name], [0.25, 0.75])],
            "fastest": min(times[name]),
            "rounds": len(times[name]),
        }
        if unit in medians:
            found[f"times_{unit}"] = medians[name] / medians[unit]
        if call.compile_seconds is not None:
            found["compile_seconds"] = call.compile_seconds
        if call.memory is not None:
            found["memory_bytes"] = call.memory
        if call.share != 1:
            found["share_measured"] = call.share
        return found

    return {name: entry(name) for name in calls}


def peak_bytes(function: Callable, *args: Any) -> int | None:
    """The most memory that a fresh process has held once `function(*args)` is done; Linux only."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_after, function, args).result()


def _peak_after(function, args):
    jax.block_until_ready(function(*args))
    return held_bytes()


def held_bytes() -> int | None:
    """The most memory that this process has held; Linux only."""
    status = Path("/proc/self/status")  # `ru_maxrss` would begin with that of the parent process
    if not status.exists():
        return None
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1])


def environment() -> dict:
    """Where the figures come from."""
    return {
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "blas_threads": _blas_threads(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
    }


def _blas_threads():
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return None
    found = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    return max(found, default=None)


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def text(found: dict) -> str:
    """JSON with the numbers of a list in one line, null for those that are not finite."""
    written = json.dumps(_finite(found), indent=1, allow_nan=False)
    return re.sub(r"\n\s+(?=(?:[-\d\]]|null))", " ", written) + "\n"


def _finite(found):
    if isinstance(found, dict):
        return {key: _finite(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_finite(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found
