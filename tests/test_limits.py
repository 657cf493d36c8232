"""At the limits: ten million numbers a step, and batches of factorizations on a busy machine."""

import os
import subprocess
import sys

import pytest

MEMORY = """
import re
import jax, jax.numpy as jnp
import lowrank_jax as lrj

def peak():  # in bytes, of this process alone: `getrusage` tells that of its parent too
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read()).group(1))

n, dim = 8, 10**7
small = jnp.ones((n, 8))
lrj.fit(lrj.SecantPairs(small, small))
before = peak()
steps = jax.random.normal(jax.random.key(0), (n, dim), jnp.float32)
scale = jnp.linspace(0, 2, dim)
pairs = lrj.SecantPairs(steps, steps * scale)
h = lrj.fit(pairs)
error = jnp.linalg.norm(h @ steps[0] - pairs.grad_diffs[0]) / jnp.linalg.norm(pairs.grad_diffs[0])
assert error < 2e-6, error
used = (peak() - before) / (2 * steps.nbytes)
assert 1 < used < 6, used
print(used)
"""

CONCURRENCY = """
import threading
import jax, jax.numpy as jnp, numpy as np
import lowrank_jax as lrj

def loss(x):
    return jnp.sum(jnp.cos(x)) + jnp.sum(x**4) / 2

fit = jax.jit(jax.vmap(lrj.secant_hessian(loss)))
eigh = jax.jit(jax.vmap(lambda h: h.eigh()))
solve = jax.jit(jax.vmap(lambda h, v: h.solve(v, 3.0)))

def curvature(clouds, v):
    h = jax.block_until_ready(fit(clouds))
    pairs = jax.block_until_ready(eigh(h))
    return h, pairs, jax.block_until_ready(solve(h, v))

def load():
    x = np.ones((400, 400))
    while not done.is_set():
        x = x @ x / 400

rng = np.random.default_rng(0)
clouds, v = rng.normal(size=(64, 8, 24)), rng.normal(size=(64, 24))
clouds[1::3, 1:] = clouds[1::3, :1]  # lanes that need the second way to a basis
done = threading.Event()
threads = [threading.Thread(target=load, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
first = curvature(clouds, v)
for _ in range(100):
    again = curvature(clouds, v)
done.set()
jax.tree.map(np.testing.assert_array_equal, again, first)
"""


@pytest.mark.parametrize("program", [MEMORY, CONCURRENCY], ids=["memory", "concurrency"])
def test_passes_in_a_process_of_its_own(program):
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "JAX_ENABLE_X64": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
