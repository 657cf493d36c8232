"""What a fit takes where vectors are long: one device, several, several processes.

Memory is that of compiled programs, `memory_analysis`, in units of the pairs that a device holds;
`tests/device_checks.py` compiles them again. What fits is run too.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lowrank_jax as lrj
from benchmarks import measure
from benchmarks.options import Options

N = 8
DEVICES, PROCESSES, READERS = 8, 4, 2
PARAMETERS, POD = 1e11, 1024  # what the arithmetic is for


def scale(options: Options) -> dict:
    """All of it, each in processes of its own."""
    one, many = (10**6, 10**5) if options.quick else (10**8, 10**7)
    many = DEVICES * (many // DEVICES)
    return {
        "one device": measured_alone(one),
        f"{DEVICES} devices": _run(_several_devices(), "devices", many),
        f"{PROCESSES} processes": processes(many),
        "arithmetic": _run(_several_devices(), "arithmetic", many),
    }


def measured_alone(dim: int) -> dict:
    """A fit to N pairs of `dim` in a fresh process, if the memory that it will take is there."""
    needed = sum(memory_of_fit(dim, np.float32).values())
    there = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = {"dim": dim, "pairs": N, "memory_analysis": needed, "memory_there": there}
    if needed > 0.9 * there:
        return found | {"run": False}
    return found | {"run": True} | _run({}, "alone", dim)


def memory_of_fit(dim: int, dtype: np.dtype, mesh: jax.sharding.Mesh | None = None) -> dict:
    """Bytes that a device holds: the pairs, the factors, and what the program needs beside them."""
    sharding = mesh and NamedSharding(mesh, P(None, "d"))
    rows = jax.ShapeDtypeStruct((N, dim), dtype, sharding=sharding)
    found = jax.jit(lrj.fit).lower(lrj.SecantPairs(rows, rows)).compile().memory_analysis()
    return {
        "pairs": found.argument_size_in_bytes,
        "factors": found.output_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
    }


def arithmetic(dim: int) -> dict:
    """The memory of a device in gigabytes for `PARAMETERS` on `POD` devices, and how it is known.

    Each number that a device holds of a vector of the fit takes part in it alike: the units, bytes
    over those of the pairs, do not depend on D once N x N matrices are small beside it.
    """
    mesh, found = _mesh(DEVICES), {}
    for dtype in (jnp.float32, jnp.bfloat16):
        size = jnp.dtype(dtype).itemsize
        of = memory_of_fit(dim, dtype, mesh)
        units = {name: value / of["pairs"] for name, value in of.items()}
        pairs = 2 * N * PARAMETERS / POD * size / 1e9
        gigabytes = {name: unit * pairs for name, unit in units.items()}
        total = sum(gigabytes.values())
        found[jnp.dtype(dtype).name] = {
            "units": units,
            "gigabytes": gigabytes | {"vector": pairs / 2 / N, "all": total},
        }
    return {"parameters": PARAMETERS, "devices": POD, "pairs": N, "dtypes": found}


def processes(dim: int) -> dict:
    """A fit by several processes, its operator written by all of them and read by fewer."""
    with tempfile.TemporaryDirectory() as folder:
        written = _together(PROCESSES, "write", dim, folder)
        read = _together(READERS, "read", dim, folder)
    return {"dim": dim, "write": written, f"read by {READERS}": read}


# In processes of their own.


def _alone(dim):
    steps, diffs = _pairs(dim)
    found = _timed(steps, diffs)
    return found | {"peak_bytes": measure.held_bytes()}


def _devices(dim):
    sharding = NamedSharding(_mesh(DEVICES), P(None, "d"))
    steps, diffs = (jax.device_put(x, sharding) for x in _pairs(dim))
    return {"dim": dim} | _timed(steps, diffs)


def _process(task, dim, folder):
    import orbax.checkpoint as ocp

    mesh = _mesh(jax.process_count())
    rows, small = NamedSharding(mesh, P(None, "d")), NamedSharding(mesh, P())
    vector = jax.jit(partial(_vector, dim), out_shardings=NamedSharding(mesh, P("d")))()
    began = time.perf_counter()
    with ocp.StandardCheckpointer() as checkpointer:
        if task == "write":
            pairs = jax.jit(partial(_random_pairs, dim), out_shardings=rows)()
            found = _timed(*pairs)
            h = jax.jit(lambda s, y: lrj.fit((s, y)))(*pairs)
            began = time.perf_counter()
            checkpointer.save(Path(folder) / "hessian", h)
            checkpointer.wait_until_finished()
        else:
            k = 2 * N
            h = lrj.SymmetricLowRank(
                jax.ShapeDtypeStruct((k, dim), np.float32, sharding=rows),
                jax.ShapeDtypeStruct((k, k), np.float32, sharding=small),
            )
            h, found = checkpointer.restore(Path(folder) / "hessian", h), {}
    seconds = time.perf_counter() - began
    product = jnp.linalg.norm(jax.jit(lambda h, v: h @ v)(h, vector))
    return found | {"checkpoint_seconds": seconds, "norm of H v": float(product)}


def _timed(steps, diffs):
    call = measure.compiled(lambda s, y: lrj.fit((s, y)), steps, diffs)
    times = measure.interleaved({"fit": call}, rounds=3, seconds=0)["fit"]
    return {"compile_seconds": call.compile_seconds, "seconds": float(np.median(times))}


def _random_pairs(dim):
    """Slopes of a quadratic with a diagonal Hessian at random steps."""
    steps = jax.random.normal(jax.random.key(0), (N, dim))
    return steps, steps * jnp.cos(jnp.arange(dim, dtype=steps.dtype))[None, :]


def _pairs(dim):
    return jax.jit(partial(_random_pairs, dim))()


def _vector(dim):
    return jnp.sin(jnp.arange(dim, dtype=jnp.float32))


def _mesh(count):
    return jax.make_mesh((count,), ("d",), (AxisType.Auto,))


TASKS = {"alone": _alone, "devices": _devices, "arithmetic": arithmetic}


def _several_devices():
    flags = os.environ.get("XLA_FLAGS", "")
    return {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={DEVICES}"}


def _command(task, dim, *more):
    return [sys.executable, "-m", "benchmarks.scale", task, str(dim), *map(str, more)]


def _run(environment, task, dim):
    run = subprocess.run(
        _command(task, dim),
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


def _together(count, task, dim, folder):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    runs = [
        subprocess.Popen(_command(task, dim, folder, address, count, i), stdout=subprocess.PIPE)
        for i in range(count)
    ]
    try:
        said = [run.communicate(timeout=600)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
    if any(run.returncode for run in runs):
        raise RuntimeError(f"{task}: a process has failed")
    return json.loads(said[0].splitlines()[-1])


def main() -> None:
    """One process of this benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    parser.add_argument("dim", type=int)
    parser.add_argument("others", nargs="*", help="folder, address, count and index")
    given = parser.parse_args()
    if given.others:
        folder, address, count, index = given.others
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, int(count), int(index))
        found = _process(given.task, given.dim, folder)
    else:
        found = TASKS[given.task](given.dim)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
