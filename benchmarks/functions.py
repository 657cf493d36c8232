"""Iterations and gradients on standard functions, from their standard starts, beside L-BFGS.

    python -m benchmarks.run --problems functions

Most functions are those of More, Garbow and Hillstrom, sums of squares `|r(x)|^2`. Every other
one, the second of each two in the list, was held back until the rules of `secant_newton` were
fixed. Both optimisers have the line search of `optax.lbfgs` and as many pairs; a function is solved
where the gradient is 1e-5 of the first one, in float64. On forty quadratics of condition 1e4 in 100
dimensions, it is 1e-8: from one to the next the ratio varies by 0.03.

Source: More, Garbow and Hillstrom, Testing unconstrained optimization software, ACM Transactions
on Mathematical Software 7 (1981).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.options import Options
from lowrank_jax import optim


class Function(NamedTuple):
    """A function of one vector, and its standard start."""

    value: Callable
    start: np.ndarray


def _squares(residuals):
    def value(x):
        r = residuals(x)
        return jnp.sum((jnp.stack(r) if isinstance(r, (list, tuple)) else r) ** 2)

    return value


def rosenbrock(x):
    return jnp.concatenate([10 * (x[1::2] - x[::2] ** 2), 1 - x[::2]])


def freudenstein_roth(x):
    a, b = x
    return [-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b]


def beale(x):
    i = jnp.arange(1.0, 4)
    return jnp.array([1.5, 2.25, 2.625]) - x[0] * (1 - x[1] ** i)


def jennrich_sampson(x):
    i = jnp.arange(1.0, 11)
    return 2 + 2 * i - jnp.exp(i * x[0]) - jnp.exp(i * x[1])


def helical_valley(x):
    turn = jnp.arctan2(x[1], x[0]) / (2 * jnp.pi)
    return [10 * (x[2] - 10 * turn), 10 * (jnp.hypot(x[0], x[1]) - 1), x[2]]


BARD = (0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39)


def bard(x):
    u = jnp.arange(1.0, 16)
    v, w = 16 - u, jnp.minimum(u, 16 - u)
    return jnp.array(BARD) - (x[0] + u / (v * x[1] + w * x[2]))


GAUSSIAN = (0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521, 0.3989)


def gaussian(x):
    t = (8 - jnp.arange(1.0, 16)) / 2
    y = jnp.array(GAUSSIAN + GAUSSIAN[-2::-1])
    return x[0] * jnp.exp(-x[1] * (t - x[2]) ** 2 / 2) - y


def box(x):
    t = 0.1 * jnp.arange(1.0, 11)
    decay = jnp.exp(-t) - jnp.exp(-10 * t)
    return jnp.exp(-t * x[0]) - jnp.exp(-t * x[1]) - x[2] * decay


def powell_singular(x):
    a, b, c, d = x[::4], x[1::4], x[2::4], x[3::4]
    parts = a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2
    return jnp.concatenate(parts)


def wood(x):
    a, b, c, d = x
    parts = 10 * (b - a**2), 1 - a, 90**0.5 * (d - c**2), 1 - c
    return [*parts, 10**0.5 * (b + d - 2), (b - d) / 10**0.5]


KOWALIK = (0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246)
DELAYS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625)


def kowalik_osborne(x):
    u = jnp.array(DELAYS)
    return jnp.array(KOWALIK) - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


def brown_dennis(x):
    t = jnp.arange(1.0, 21) / 5
    return (x[0] + t * x[1] - jnp.exp(t)) ** 2 + (x[2] + x[3] * jnp.sin(t) - jnp.cos(t)) ** 2


def biggs(x):
    t = jnp.arange(1.0, 14) / 10
    y = jnp.exp(-t) - 5 * jnp.exp(-10 * t) + 3 * jnp.exp(-4 * t)
    rises = x[2] * jnp.exp(-t * x[0]) - x[3] * jnp.exp(-t * x[1]) + x[5] * jnp.exp(-t * x[4])
    return rises - y


def watson(x):
    t = (jnp.arange(1.0, 30) / 29)[:, None]
    j = jnp.arange(float(len(x)))[None, :]
    slope = jnp.sum(j[:, 1:] * x[None, 1:] * t ** (j[:, 1:] - 1), axis=1)
    r = slope - jnp.sum(x[None, :] * t**j, axis=1) ** 2 - 1
    return jnp.concatenate([r, x[:1], (x[1] - x[0] ** 2 - 1)[None]])


def penalty(x):
    return jnp.append(1e-5**0.5 * (x - 1), jnp.vdot(x, x) - 0.25)


def variably_dimensioned(x):
    tilt = jnp.vdot(jnp.arange(1.0, len(x) + 1), x - 1)
    return jnp.concatenate([x - 1, tilt[None], tilt[None] ** 2])


def trigonometric(x):
    i = jnp.arange(1.0, len(x) + 1)
    return len(x) - jnp.sum(jnp.cos(x)) + i * (1 - jnp.cos(x)) - jnp.sin(x)


def brown_almost_linear(x):
    return jnp.append(x[:-1] + jnp.sum(x) - (len(x) + 1), jnp.prod(x) - 1)


def discrete_boundary(x):
    h = 1 / (len(x) + 1)
    t = h * jnp.arange(1.0, len(x) + 1)
    beside = jnp.pad(x, 1)
    return 2 * x - beside[:-2] - beside[2:] + h**2 * (x + t + 1) ** 3 / 2


def discrete_integral(x):
    h = 1 / (len(x) + 1)
    t = h * jnp.arange(1.0, len(x) + 1)
    cubes = (x + t + 1) ** 3
    before = jnp.cumsum(t * cubes)
    after = jnp.sum((1 - t) * cubes) - jnp.cumsum((1 - t) * cubes)
    return x + h / 2 * ((1 - t) * before + t * after)


def broyden_tridiagonal(x):
    beside = jnp.pad(x, 1)
    return (3 - 2 * x) * x - beside[:-2] - 2 * beside[2:] + 1


def broyden_banded(x):
    padded = jnp.pad(x * (1 + x), (5, 1))
    band = sum(padded[k : k + len(x)] for k in (0, 1, 2, 3, 4, 6))
    return x * (2 + 5 * x**2) + 1 - band


def chained_rosenbrock(x):
    return jnp.concatenate([10 * (x[1:] - x[:-1] ** 2), 1 - x[:-1]])


def himmelblau(x):
    return [x[0] ** 2 + x[1] - 11, x[0] + x[1] ** 2 - 7]


def dixon_price(x):
    i = jnp.arange(2.0, len(x) + 1)
    return jnp.append(i**0.5 * (2 * x[1:] ** 2 - x[:-1]), x[0] - 1)


def _log_sum_exp(x):
    a = np.random.default_rng(0).normal(size=(100, len(x)))
    return jnp.log(jnp.sum(jnp.exp(jnp.asarray(a) @ x))) + jnp.vdot(x, x) / 100


def _logistic(x):
    a = np.random.default_rng(1).normal(size=(200, len(x))) * np.geomspace(3, 0.03, len(x))
    signs = np.sign(a @ np.ones(len(x)) + np.random.default_rng(2).normal(size=200))
    return jnp.mean(jnp.logaddexp(0, -jnp.asarray(signs[:, None] * a) @ x)) + 1e-5 * jnp.vdot(x, x)


def _zakharov(x):
    tilt = jnp.vdot(jnp.arange(1.0, len(x) + 1), x) / 2
    return jnp.vdot(x, x) + tilt**2 + tilt**4


def _repeated(*values, n):
    return np.tile(np.array(values, float), n // len(values))


def _grid(n):
    return np.arange(1.0, n + 1) / (n + 1)


FUNCTIONS = {
    "Rosenbrock": Function(_squares(rosenbrock), np.array([-1.2, 1.0])),
    "Freudenstein and Roth": Function(_squares(freudenstein_roth), np.array([0.5, -2.0])),
    "Beale": Function(_squares(beale), np.array([1.0, 1.0])),
    "Jennrich and Sampson": Function(_squares(jennrich_sampson), np.array([0.3, 0.4])),
    "helical valley": Function(_squares(helical_valley), np.array([-1.0, 0.0, 0.0])),
    "Bard": Function(_squares(bard), np.ones(3)),
    "Gaussian": Function(_squares(gaussian), np.array([0.4, 1.0, 0.0])),
    "Box": Function(_squares(box), np.array([0.0, 10.0, 20.0])),
    "Powell singular": Function(_squares(powell_singular), _repeated(3, -1, 0, 1, n=4)),
    "Wood": Function(_squares(wood), np.array([-3.0, -1.0, -3.0, -1.0])),
    "Kowalik and Osborne": Function(_squares(kowalik_osborne), np.array([0.25, 0.39, 0.415, 0.39])),
    "Brown and Dennis": Function(_squares(brown_dennis), np.array([25.0, 5.0, -5.0, -1.0])),
    "Biggs": Function(_squares(biggs), np.array([1.0, 2, 1, 1, 1, 1])),
    "Watson": Function(_squares(watson), np.zeros(6)),
    "extended Rosenbrock, 100": Function(_squares(rosenbrock), _repeated(-1.2, 1, n=100)),
    "extended Powell, 100": Function(_squares(powell_singular), _repeated(3, -1, 0, 1, n=100)),
    "penalty": Function(_squares(penalty), np.arange(1.0, 11)),
    "variably dimensioned": Function(_squares(variably_dimensioned), 1 - np.arange(1.0, 11) / 10),
    "trigonometric, 50": Function(_squares(trigonometric), np.full(50, 1 / 50)),
    "Brown almost linear": Function(_squares(brown_almost_linear), np.full(10, 0.5)),
    "discrete boundary, 50": Function(_squares(discrete_boundary), _grid(50) * (_grid(50) - 1)),
    "discrete integral, 50": Function(_squares(discrete_integral), _grid(50) * (_grid(50) - 1)),
    "Broyden tridiagonal, 100": Function(_squares(broyden_tridiagonal), -np.ones(100)),
    "Broyden banded, 100": Function(_squares(broyden_banded), -np.ones(100)),
    "chained Rosenbrock, 50": Function(_squares(chained_rosenbrock), _repeated(-1.2, 1, n=50)),
    "Himmelblau": Function(_squares(himmelblau), np.array([1.0, 1.0])),
    "Dixon and Price, 20": Function(_squares(dixon_price), np.ones(20)),
    "log-sum-exp, 50": Function(_log_sum_exp, np.full(50, 0.5)),
    "logistic, 30": Function(_logistic, np.zeros(30)),
    "Zakharov, 20": Function(_zakharov, np.full(20, 0.5)),
}


MEMORIES, MOST = (20, 10), 2000
METHODS = {
    "optax.lbfgs": lambda memory_size: optax.lbfgs(memory_size=memory_size),
    "secant_newton": lambda memory_size: optim.secant_newton(memory_size=memory_size),
}


def minimise(value: Callable, opt, tol: float, start: jax.Array, *data) -> tuple:
    """The iterations, the gradients, and the last gradient over the first one."""

    def loss(x):
        return value(x, *data)

    first = jnp.linalg.norm(jax.grad(loss)(start))

    def going(carry):
        _, state, steps, _ = carry
        size = jnp.linalg.norm(optax.tree_utils.tree_get(state, "grad"))
        return (steps < MOST) & ((steps == 0) | (size > tol * first))

    def step(carry):
        x, state, steps, gradients = carry
        found, grad = optax.value_and_grad_from_state(loss)(x, state=state)
        updates, state = opt.update(grad, state, x, value=found, grad=grad, value_fn=loss)
        info = optax.tree_utils.tree_get(state, "info")
        x = optax.apply_updates(x, updates)
        return x, state, steps + 1, gradients + info.num_linesearch_steps

    x, _, steps, gradients = jax.lax.while_loop(going, step, (start, opt.init(start), 0, 1))
    return steps, gradients, jnp.linalg.norm(jax.grad(loss)(x)) / first


def _entry(found, tol):
    steps, gradients, left = map(float, found)
    return {"iterations": steps, "gradients": gradients, "solved": left <= tol}


def quadratics(memory: int, count: int, dim: int = 100, condition: float = 1e4) -> dict:
    """The same on quadratics whose eigenvalues are even, or drawn, on a logarithmic axis."""
    runs = {
        name: jax.jit(partial(minimise, lambda x, a: 0.5 * x @ (a @ x), make(memory), 1e-8))
        for name, make in METHODS.items()
    }
    random, found = np.random.default_rng(0), {}
    for k in range(count):
        drawn = condition ** -random.uniform(size=dim - 2)
        inner = drawn if k % 2 else np.geomspace(1, 1 / condition, dim)[1:-1]
        values = np.concatenate([[1], inner, [1 / condition]])
        basis = np.linalg.qr(random.standard_normal((dim, dim)))[0]
        start, a = jnp.asarray(random.standard_normal(dim)), jnp.asarray((basis * values) @ basis.T)
        found[f"quadratic {k}"] = {n: _entry(run(start, a), 1e-8) for n, run in runs.items()}
    return found


def summary(found: dict) -> dict:
    """Medians over what both solved of iterations and gradients over L-BFGS's."""
    both = [of for of in found.values() if all(entry["solved"] for entry in of.values())]

    def ratio(key):
        ratios = [of["secant_newton"][key] / of["optax.lbfgs"][key] for of in both]
        return float(np.median(ratios))

    solved = {name: sum(of[name]["solved"] for of in found.values()) for name in METHODS}
    return {"iterations": ratio("iterations"), "gradients": ratio("gradients"), "solved": solved}


def functions(options: Options) -> dict:
    """All functions, both optimisers; in a quick run four of them and one memory."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)  # nothing is timed
    chosen = list(FUNCTIONS.items())[: 4 if options.quick else None]
    results = {}
    for memory in MEMORIES[: 1 if options.quick else None]:
        found = {}
        for name, function in chosen:
            start = jnp.asarray(function.start)
            runs = {
                method: jax.jit(partial(minimise, function.value, make(memory), 1e-5))
                for method, make in METHODS.items()
            }
            found[name] = {method: _entry(run(start), 1e-5) for method, run in runs.items()}
            print(f"  {memory} pairs, {name}: {found[name]}", flush=True)
        names = list(found)
        parts = {"seen": names[::2], "held back": names[1::2]}
        of_parts = {part: summary({n: found[n] for n in some}) for part, some in parts.items()}
        quadratic = quadratics(memory, 2 if options.quick else 40)
        of_parts |= {"all": summary(found), "quadratics": summary(quadratic)}
        print(f"  {memory} pairs: {of_parts}", flush=True)
        results[str(memory)] = {"summaries": of_parts, "functions": found, "quadratics": quadratic}
    settings = {"tolerance": 1e-5, "tolerance_of_quadratics": 1e-8, "most": MOST}
    return {"settings": settings, "memory_sizes": results}
