"""What an optimiser's own work costs beside that of `optax.lbfgs` with as many pairs.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.run --problems optimisers

The time to trace and compile one step with its line search, of a transformer of 29 leaves; and of a
step without line search in a scan, at a loss that costs next to nothing. The optimisers take
turns; medians.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.options import Options
from benchmarks.problems import transformer_point
from lowrank_jax import optim

MEMORY, REPEATS = 10, 15
SEARCHING = {
    "optax.lbfgs": lambda: optax.lbfgs(memory_size=MEMORY),
    "secant_newton": lambda: optim.secant_newton(memory_size=MEMORY),
}
PLAIN = {
    "optax.lbfgs": lambda: optax.lbfgs(0.5, memory_size=MEMORY, linesearch=None),
    "secant_newton": lambda: optim.secant_newton(0.5, memory_size=MEMORY),
}


def compile_seconds(make, point) -> float:
    """Of one step with its line search, from Python to a program."""
    opt = make()

    def step(x, state, *data):
        def loss(x):
            return point.loss(x, *data)

        value, grad = optax.value_and_grad_from_state(loss)(x, state=state)
        updates, state = opt.update(grad, state, x, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(x, updates), state

    state = opt.init(point.x)
    jax.clear_caches()
    began = time.perf_counter()
    jax.jit(step).lower(point.x, state, *point.data).compile()
    return time.perf_counter() - began


def scanned(make, dim: int, steps: int):
    """A compiled scan of steps at a quartic of that many parameters, and where it begins."""
    opt, x = make(), jnp.linspace(0.5, 1.5, dim, dtype=jnp.float32)

    @jax.jit
    def run(x, state):
        def step(carry, _):
            x, state = carry
            updates, state = opt.update(x**3 + 0.1 * x, state, x)
            return (optax.apply_updates(x, updates), state), None

        return jax.lax.scan(step, (x, state), length=steps)[0]

    carry = jax.block_until_ready(run(x, opt.init(x)))
    return run, carry


def step_seconds(dim: int, steps: int, repeats: int) -> dict:
    """Medians of the seconds that a step takes."""
    runs = {name: scanned(make, dim, steps) for name, make in PLAIN.items()}
    seconds = {name: [] for name in runs}
    for _ in range(repeats):
        for name, (run, carry) in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run(*carry))
            seconds[name].append((time.perf_counter() - began) / steps)
    return {name: float(np.median(of)) for name, of in seconds.items()}


def optimisers(options: Options) -> dict:
    """Compile times and times of steps; in a quick run one repeat of each."""
    repeats, point = 1 if options.quick else REPEATS, transformer_point()
    taken = {name: [] for name in SEARCHING}
    for _ in range(1 if options.quick else 3):
        for name, make in SEARCHING.items():
            taken[name].append(compile_seconds(make, point))
    found = {"compile": {name: float(np.median(of)) for name, of in taken.items()}}
    for dim, steps in ((100, 1000), (1_000_000, 10)):
        found[f"step, {dim} parameters"] = step_seconds(dim, steps, repeats)
    for name, of in found.items():
        of["ratio"] = of["secant_newton"] / of["optax.lbfgs"]
        print(f"  {name}: {of}", flush=True)
    return {"settings": {"memory_size": MEMORY, "repeats": repeats}, "seconds": found}
