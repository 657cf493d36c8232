"""How long the steps of gradient differences are, beside the best ones, on fifty problems.

Each problem is a gradient as a user has it, at a point, and exact products in float64. The rule was
fixed on those that are not held out; the others were written afterwards.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lowrank_jax as lrj
from benchmarks import problems
from benchmarks.options import Options


class Problem(NamedTuple):
    """A gradient at a point, `gradient(x)`, and exact Hessian products `exact(x, v)` in float64."""

    x: np.ndarray
    gradient: Callable
    exact: Callable


def of_loss(loss: Callable, x: Any, point: Any = np.float32, gradient: Any = None) -> Problem:
    """A loss that computes in the dtype of its argument, in dtypes of point and gradient."""
    x = np.asarray(x).astype(point)
    computed = point if gradient is None else gradient

    def grad(y):
        return jax.grad(loss)(jnp.asarray(y).astype(computed))

    def exact(v):
        wide = jnp.asarray(x, np.float64)
        return jax.jvp(jax.grad(loss), (wide,), (jnp.asarray(v, np.float64),))[1]

    return Problem(x, jax.jit(grad), jax.jit(exact))


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def _in(x, dtype):
    return jnp.asarray(x, dtype)


def quadratic(size=1.0, curvature=1.0, slope=0.0, shift=0.0, dim=30, **dtypes):
    """At a point of that size, with a gradient of that slope and a spread of curvature of 1e4."""
    q = np.linalg.qr(_normal(0, dim, dim))[0]
    h = curvature * (q * np.geomspace(1, 1e-4, dim) * np.sign(_normal(1, dim))) @ q.T
    x, g = size * _normal(2, dim) + shift, slope * _normal(3, dim)

    def loss(y):
        d = y - _in(shift, y.dtype)
        return d @ (_in(h, y.dtype) @ d) / 2 + _in(g, y.dtype) @ d

    return of_loss(loss, x, **dtypes)


def rosenbrock(unit=1.0, weight=100.0, dim=20, **dtypes):
    """In coordinates of that unit."""

    def loss(y):
        z = y / _in(unit, y.dtype)
        return jnp.sum(_in(weight, y.dtype) * (z[1:] - z[:-1] ** 2) ** 2 + (1 - z[:-1]) ** 2)

    return of_loss(loss, unit * (1 + 0.3 * _normal(0, dim)), **dtypes)


def log_sum_exp(steep=1.0, shift=0.0, dim=30, **dtypes):
    """Of 60 linear functions, the origin at `shift`."""
    a, b = _normal(0, 60, dim), _normal(1, 60)

    def loss(y):
        return jax.nn.logsumexp(
            _in(steep * a, y.dtype) @ (y - _in(shift, y.dtype)) + _in(b, y.dtype)
        )

    return of_loss(loss, shift + _normal(2, dim), **dtypes)


def cosines(frequency=3.0, shift=0.0, dim=12, constant=0.0, **dtypes):
    """Coupled cosines around `shift`, and a constant."""

    def loss(y):
        z = y - _in(shift, y.dtype)
        both = jnp.cos(_in(frequency, y.dtype) * z) * jnp.roll(z, 1)
        return jnp.sum(both) + _in(constant, y.dtype)

    return of_loss(loss, shift + _normal(0, dim), **dtypes)


def _digits(count, dtype):
    images, labels = problems.digits()
    return images[:count].astype(dtype), labels[:count]


def _cross_entropy(scores, labels):
    picked = jnp.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(scores, axis=1) - picked)


def softmax_regression(size=0.1, count=300, **dtypes):
    """Of the digits."""

    def loss(y):
        images, labels = _digits(count, y.dtype)
        return _cross_entropy(images @ y.reshape(64, 10), labels)

    return of_loss(loss, size * _normal(0, 640), **dtypes)


def network(activation=jnp.tanh, widths=(64, 16, 10), trained=0, bias=0.0, count=300, **dtypes):
    """Dense layers on the digits, biases `bias` times normal, after so many steps of descent."""
    shapes = list(itertools.pairwise(widths))
    parts = [
        part
        for i, (a, b) in enumerate(shapes)
        for part in (_normal(i, a, b) * (2 / a) ** 0.5, bias * _normal(50 + i, b))
    ]
    ends = np.cumsum([p.size for p in parts])[:-1]

    def loss(y):
        z, labels = _digits(count, y.dtype)
        split = jnp.split(y, ends)
        for i, (a, b) in enumerate(shapes):
            affine = z @ split[2 * i].reshape(a, b)
            z = affine + jnp.broadcast_to(split[2 * i + 1], affine.shape)
            z = activation(z) if i < len(shapes) - 1 else z
        return _cross_entropy(z, labels)

    return of_loss(
        loss, _descended(loss, np.concatenate([p.ravel() for p in parts]), trained), **dtypes
    )


def _descended(loss, x, steps, rate=0.3):
    def step(x, _):
        return x - _in(rate, x.dtype) * jax.grad(loss)(x), None

    run = jax.jit(lambda x: jax.lax.scan(step, x, length=steps)[0])
    return np.asarray(run(jnp.asarray(x, jnp.float32))) if steps else x


def attention(count=64, **dtypes):
    """The transformer of `problems.attention_point`, untrained."""
    point = problems.attention_point(steps=0, count=count)
    images, labels = point.data

    def loss(y):
        return point.loss(y, images.astype(y.dtype), labels)

    return of_loss(loss, np.asarray(point.x), **dtypes)


def convolutions(trained=30, count=100, **dtypes):
    """Two small convolutions with ReLU and a dense layer, trained."""
    shapes = [(4, 1, 3, 3), (8, 4, 3, 3), (512, 10)]
    parts = [_normal(i, *s) * (2 / np.prod(s[1:])) ** 0.5 for i, s in enumerate(shapes[:2])]
    parts.append(_normal(2, 512, 10) * 0.05)
    ends = np.cumsum([p.size for p in parts])[:-1]

    def loss(y):
        images, labels = _digits(count, y.dtype)
        z = images.reshape(-1, 1, 8, 8)
        split = [p.reshape(s) for p, s in zip(jnp.split(y, ends), shapes, strict=True)]
        for kernel in split[:2]:
            z = jax.nn.relu(jax.lax.conv(z, kernel, (1, 1), "SAME"))
        return _cross_entropy(z.reshape(len(images), -1) @ split[2], labels)

    x = np.concatenate([p.ravel() for p in parts])
    return of_loss(loss, _descended(loss, x, trained, 0.05), **dtypes)


def lennard_jones(shift=0.0, spread=0.02, **dtypes):
    """Thirteen atoms near their minimum, that far from the origin."""
    golden = (1 + 5**0.5) / 2
    ring = np.array([[0, s, t * golden] for s in (1, -1) for t in (1, -1)])
    shell = np.concatenate([ring, ring[:, [1, 2, 0]], ring[:, [2, 0, 1]]])
    atoms = np.concatenate([1.09 * shell / np.linalg.norm(shell[0]), np.zeros((1, 3))])
    first, second = np.triu_indices(13, 1)

    def loss(y):
        y = y.reshape(13, 3)
        sixth = jnp.sum((y[first] - y[second]) ** 2, axis=1) ** -3
        return jnp.sum(4 * (sixth**2 - sixth))

    offset = shift * np.array([50.0, -80.0, 120.0])
    return of_loss(loss, (atoms + offset + spread * _normal(0, 13, 3)).ravel(), **dtypes)


def logistic(units=(1e-2, 1e2), dim=31, count=200, **dtypes):
    """A posterior of logistic regression whose features have units of their own."""
    features = _normal(0, count, dim) * np.geomspace(*units, dim)
    signs = np.sign(_normal(1, count))

    def loss(y):
        margins = _in(features * signs[:, None], y.dtype) @ y
        return jnp.sum(jax.nn.softplus(-margins)) + jnp.sum(y * y) / 20

    return of_loss(loss, 0.1 * _normal(2, dim) / np.geomspace(*units, dim), **dtypes)


def rollout(length=60, dim=8, **dtypes):
    """The end of a path of coupled pendulums, steered by their accelerations."""

    def loss(y):
        dt = _in(0.05, y.dtype)

        def step(state, _):
            angle, speed = state
            force = -jnp.sin(angle) + (jnp.roll(angle, 1) - angle) / 2 + y
            speed = speed + dt * force
            return (angle + dt * speed, speed), None

        start = jnp.linspace(-1, 1, dim, dtype=y.dtype)
        (angle, speed), _ = jax.lax.scan(step, (start, 0 * start), length=length)
        return jnp.sum(angle**2) + jnp.sum(speed**2)

    return of_loss(loss, _normal(0, dim), **dtypes)


def polynomial(unit=1.0, dim=25, **dtypes):
    """A quartic with two minima in each coordinate, and neighbours coupled."""

    def loss(y):
        z = y / _in(unit, y.dtype)
        return jnp.sum(z**4 - 16 * z**2 + 5 * z) / 2 + jnp.sum(z[1:] * z[:-1])

    return of_loss(loss, unit * 2 * _normal(0, dim), **dtypes)


def exponentials(dim=16, **dtypes):
    """Rates from 0.1 to 3 in a least-squares fit of decays."""
    t, rates = np.linspace(0, 4, 50), np.geomspace(0.1, 3, dim)
    seen = np.exp(-np.outer(t, rates)) @ _normal(1, dim)

    def loss(y):
        decays = jnp.exp(-_in(np.outer(t, rates), y.dtype) * (1 + y[None, :] ** 2))
        return jnp.sum((jnp.sum(decays, axis=1) - _in(seen, y.dtype)) ** 2)

    return of_loss(loss, 0.5 * _normal(2, dim), **dtypes)


def student(outlier=0.0, dim=20, count=80, **dtypes):
    """Regression with heavy tails, and perhaps one coordinate far from the others."""
    a, b = _normal(0, count, dim), _normal(1, count)
    x = _normal(2, dim)
    x[0] += outlier

    def loss(y):
        shifted = y - _in(np.eye(dim)[0] * outlier, y.dtype)
        return jnp.sum(jnp.log1p((_in(a, y.dtype) @ shifted - _in(b, y.dtype)) ** 2))

    return of_loss(loss, x, **dtypes)


def factors(rows=12, rank=3, **dtypes):
    """A matrix as a product of two, where the scale of one is 100 times that of the other."""
    target = _normal(0, rows, rank) @ _normal(1, rank, rows)
    x = np.concatenate([10 * _normal(2, rows * rank), 0.1 * _normal(3, rank * rows)])

    def loss(y):
        left, right = y[: rows * rank].reshape(rows, rank), y[rows * rank :].reshape(rank, rows)
        return jnp.sum((left @ right - _in(target, y.dtype)) ** 2) / 2

    return of_loss(loss, x, **dtypes)


def noisy(problem: Problem, noise: float) -> Problem:
    """Its gradient on the host with normal noise of that size, relative to its largest entry."""
    draws = np.random.default_rng(0)
    size = noise * np.max(np.abs(problem.gradient(problem.x)))

    def gradient(x):
        return np.asarray(problem.gradient(x)) + size * draws.normal(size=x.shape)

    return problem._replace(gradient=gradient)


def at_origin(problem: Problem) -> Problem:
    """The same gradient seen from its point: x is zero."""
    x, gradient = problem.x, problem.gradient
    return problem._replace(x=0 * x, gradient=lambda y: gradient(y + x))


DOUBLE, MIXED, HALF = (
    {"point": np.float64},
    {"point": np.float64, "gradient": np.float32},
    {"point": np.float32, "gradient": jnp.bfloat16},
)
PROBLEMS = {
    "quadratic": quadratic,
    "quadratic, small x": partial(quadratic, size=1e-6),
    "quadratic, large x": partial(quadratic, size=1e6),
    "quadratic, small H": partial(quadratic, curvature=1e-6),
    "quadratic, large slope": partial(quadratic, slope=1e3),
    "quadratic, double, shift": partial(quadratic, shift=1e6, **DOUBLE),
    "quadratic, shift": partial(quadratic, shift=1e2),
    "rosenbrock": rosenbrock,
    "rosenbrock, double": partial(rosenbrock, **DOUBLE),
    "rosenbrock, small unit": partial(rosenbrock, unit=1e-3),
    "rosenbrock, mixed": partial(rosenbrock, **MIXED),
    "log-sum-exp": log_sum_exp,
    "log-sum-exp, steep": partial(log_sum_exp, steep=10.0),
    "log-sum-exp, double": partial(log_sum_exp, **DOUBLE),
    "log-sum-exp, shift": partial(log_sum_exp, shift=1e2),
    "cosines": cosines,
    "cosines, fast": partial(cosines, frequency=100.0),
    "cosines, shift": partial(cosines, shift=1e3),
    "cosines, double, shift": partial(cosines, shift=1e6, **DOUBLE),
    "softmax": softmax_regression,
    "softmax, half": partial(softmax_regression, **HALF),
    "softmax, mixed": partial(softmax_regression, **MIXED),
    "tanh network": network,
    "tanh network, trained": partial(network, trained=200),
    "tanh network, double": partial(network, **DOUBLE),
    "gelu network": partial(network, activation=jax.nn.gelu),
    "relu network, trained": partial(network, activation=jax.nn.relu, trained=200),
    "relu network, biases": partial(network, activation=jax.nn.relu, bias=0.3),
    "transformer": attention,
    "cnn, trained": convolutions,
    "lennard-jones": lennard_jones,
    "lennard-jones, far": partial(lennard_jones, shift=1.0),
    "lennard-jones, far, double": partial(lennard_jones, shift=1.0, **DOUBLE),
    "logistic": logistic,
    "logistic, double": partial(logistic, **DOUBLE),
    "rollout": rollout,
    "rollout, double": partial(rollout, **DOUBLE),
    "noise 1e-6": lambda: noisy(log_sum_exp(**DOUBLE), 1e-6),
    "noise 1e-4": lambda: noisy(lennard_jones(**DOUBLE), 1e-4),
    "noise 1e-2": lambda: noisy(cosines(**DOUBLE), 1e-2),
    "cosines at the origin": lambda: at_origin(cosines()),
}

# Written after the rule was fixed.
HELD_OUT = {
    "styblinski": lambda: polynomial(),
    "styblinski, large unit": lambda: polynomial(unit=1e4),
    "styblinski, double, small unit": lambda: polynomial(unit=1e-5, **DOUBLE),
    "exponentials": lambda: exponentials(),
    "exponentials, mixed": lambda: exponentials(**MIXED),
    "exponentials, half": lambda: exponentials(**HALF),
    "student": lambda: student(),
    "student, double, outlier": lambda: student(outlier=1e5, **DOUBLE),
    "factors": lambda: factors(),
    "factors, double": lambda: factors(**DOUBLE),
    "swish network, trained": partial(network, activation=jax.nn.swish, trained=100, bias=0.1),
    "wide softplus network": partial(network, activation=jax.nn.softplus, widths=(64, 40, 20, 10)),
    "rollout, long": partial(rollout, length=200),
    "constant 1e6": partial(cosines, constant=1e6),
    "noise 1e-3": lambda: noisy(student(**DOUBLE), 1e-3),
    "exponentials at the origin, double": lambda: at_origin(exponentials(**DOUBLE)),
}
PROBLEMS |= HELD_OUT


def directions(problem: Problem) -> dict[str, np.ndarray]:
    """A random unit vector, and one along the eigenvalue of largest magnitude or near it."""
    draws = np.random.default_rng(7)
    random, v = draws.normal(size=(2, problem.x.size))
    for _ in range(40):
        v = np.asarray(problem.exact(np.asarray(problem.exact(v / np.linalg.norm(v)))))
    return {
        name: (u / np.linalg.norm(u)).astype(problem.x.dtype)
        for name, u in (("random", random), ("leading", v))
    }


def study(name: str, problem: Problem) -> list[dict]:
    """Along each direction: the pair that the library measures, beside those of fixed steps."""
    found = []
    for direction, v in directions(problem).items():
        counts = []

        def gradient(x, counts=counts):
            counts.append(1)
            return problem.gradient(x)

        at = lrj.lowrank_hessian_from_gradient(
            gradient, 1, passes=1, start=v[None], solver=lambda pairs: pairs
        )
        pairs = at(problem.x, key=jax.random.key(0))
        error = _error(problem, np.asarray(pairs.steps)[0], np.asarray(pairs.grad_diffs)[0])
        best = min(_error_of_step(problem, v, h) for h in _decades(problem.x, v))
        found.append(
            {
                "problem": name,
                "direction": direction,
                "error": error,
                "best": best,
                "estimate": float(pairs.rounding[0]),
                "extra": len(counts) - 2,  # one at x and one for the pair
            }
        )
    return found


def _error(problem, s, y):
    truth = np.asarray(problem.exact(s.astype(float)))
    return float(np.linalg.norm(y.astype(float) - truth) / np.linalg.norm(truth))


def _decades(x, v):
    """Ten and more, those that x is too coarse for left out."""
    size = np.linalg.norm(x.astype(float)) or 1.0
    lengths = size * 10.0 ** np.arange(-13, 3)
    return [h for h in lengths if np.linalg.norm(_step(x, v, h) / h - v) < 0.5]


def _step(x, v, h):
    return (x + (h * v.astype(float))).astype(x.dtype).astype(float) - x


def _error_of_step(problem, v, h):
    x, s = problem.x, _step(problem.x, v, h)
    ahead = (x + s).astype(x.dtype)
    pair = (np.asarray(problem.gradient(y)).astype(float) for y in (ahead, x))
    error = _error(problem, s, np.subtract(*pair))
    return error if np.isfinite(error) else np.inf


def summary(found: list[dict]) -> dict[str, float]:
    """Quantiles of the error over the best, how the estimate does, and what it costs."""
    error, best, estimate, extra = (
        np.array([each[key] for each in found]) for key in ("error", "best", "estimate", "extra")
    )
    ratio = error / best
    return {
        "median": float(np.median(ratio)),
        "90 %": float(np.quantile(ratio, 0.9)),
        "worst": float(np.max(ratio)),
        "estimate within 3x": float(np.mean((estimate < 3 * error) & (error < 3 * estimate))),
        "above 10 % and not flagged": int(np.sum((error > 0.1) & (estimate < 0.03))),
        "most gradients more": int(np.max(extra)),
        "gradients more": float(np.mean(extra)),
    }


def steps(options: Options) -> dict:
    """The table: what each problem and each kind of direction gives. Needs double precision."""
    jax.config.update("jax_enable_x64", True)
    names = list(PROBLEMS)[:: 8 if options.quick else 1]
    found = [each for name in names for each in study(name, PROBLEMS[name]())]
    cases = {
        f"{direction}, {kind}": summary(
            [e for e in found if e["direction"] == direction and (e["problem"] in HELD_OUT) == held]
        )
        for direction in ("random", "leading")
        for kind, held in (("fixed on these", False), ("held out", True))
        if any((e["problem"] in HELD_OUT) == held for e in found)
    }
    return {"summaries": cases, "problems": found}
