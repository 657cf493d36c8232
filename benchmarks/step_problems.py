"""Gradients as users have them: of several precisions, noisy, far from the origin.

The rule of `lowrank_jax._at_a_point.steps` was fixed on those that are not held out; these others
were written afterwards. It was changed once since, for noise that leaves no two rungs of the ladder
in agreement: on noisy gradients of functions that are not held out, but for what is done where a
quotient is zero, which one that is held out showed.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import problems


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


def powell(unit=1.0, dim=24, **dtypes):
    """Quartic valleys whose Hessian is nearly singular, in coordinates of that unit."""

    def loss(y):
        a, b, c, d = (y / _in(unit, y.dtype)).reshape(-1, 4).T
        quartics = (b - 2 * c) ** 4 + 10 * (a - d) ** 4
        return jnp.sum((a + 10 * b) ** 2 + 5 * (c - d) ** 2 + quartics)

    return of_loss(loss, unit * _normal(0, dim), **dtypes)


def dixon_price(dim=20, **dtypes):
    """Squares of differences of squares, weighted by their index."""

    def loss(y):
        weights = _in(np.arange(2.0, dim + 1), y.dtype)
        return (y[0] - 1) ** 2 + jnp.sum(weights * (2 * y[1:] ** 2 - y[:-1]) ** 2)

    return of_loss(loss, 0.5 + _normal(0, dim), **dtypes)


def mixture(dim=15, count=6, **dtypes):
    """The negative logarithm of a density of normal bumps of widths from 0.3 to 3."""
    centres, widths = 2 * _normal(0, count, dim), np.geomspace(0.3, 3, count)

    def loss(y):
        squares = jnp.sum((y[None, :] - _in(centres, y.dtype)) ** 2, axis=1)
        return -jax.nn.logsumexp(-squares / _in(2 * widths**2, y.dtype))

    return of_loss(loss, _normal(1, dim), **dtypes)


def poisson(dim=12, count=100, **dtypes):
    """Regression of counts, with rates from 1e-3 to 1e3."""
    a = _normal(0, count, dim)
    seen = np.random.default_rng(1).poisson(np.exp(a @ _normal(2, dim) / 2)).astype(float)

    def loss(y):
        z = _in(a, y.dtype) @ y
        return jnp.sum(jnp.exp(z) - _in(seen, y.dtype) * z)

    return of_loss(loss, 0.7 * _normal(3, dim), **dtypes)


def coarse_softmax(count=200, **dtypes):
    """Softmax regression of pixels from 0 to 16."""

    def loss(y):
        images, labels = _digits(count, y.dtype)
        return _cross_entropy(16 * images @ y.reshape(64, 10), labels)

    return of_loss(loss, 0.02 * _normal(5, 640), **dtypes)


def lorenz(length=80, **dtypes):
    """Where a path of the Lorenz equations ends, by its start and its three parameters."""

    def loss(y):
        def step(state, _):
            a, b, c = state
            slope = jnp.stack([y[3] * (b - a), a * (y[4] - c) - b, a * b - y[5] * c])
            return state + _in(0.01, y.dtype) * slope, None

        end, _ = jax.lax.scan(step, y[:3], length=length)
        return jnp.sum(end**2)

    return of_loss(loss, [1.0, -2.0, 20.0, 10.0, 28.0, 8 / 3], **dtypes)


def steps_of_tanh(shift=1e4, dim=20, **dtypes):
    """Least squares of sums of tanh, the origin far away."""
    a, b = _normal(0, 40, dim), _normal(1, 40)

    def loss(y):
        z = _in(a, y.dtype) @ (y - _in(shift, y.dtype)) / 4
        return jnp.sum((jnp.tanh(z) - _in(b, y.dtype)) ** 2)

    return of_loss(loss, shift + _normal(2, dim), **dtypes)


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

# Written after the rule was fixed.
HELD_OUT = {
    "quadratic, small x, large H": partial(quadratic, size=1e-5, curvature=1e5, slope=1e-2, dim=50),
    "quadratic, large x, small H, mixed": partial(quadratic, size=1e3, curvature=1e-3, **MIXED),
    "quadratic, double, shift 1e4": partial(quadratic, shift=1e4, slope=10.0, **DOUBLE),
    "powell": powell,
    "powell, large unit": partial(powell, unit=1e5),
    "dixon-price, double": partial(dixon_price, **DOUBLE),
    "mixture": mixture,
    "mixture, double": partial(mixture, **DOUBLE),
    "poisson": poisson,
    "coarse softmax": coarse_softmax,
    "coarse softmax, half": partial(coarse_softmax, **HALF),
    "deep tanh network, trained": partial(
        network, widths=(64, 12, 12, 12, 12, 10), trained=50, bias=0.2
    ),
    "deep gelu network, mixed": partial(
        network, activation=jax.nn.gelu, widths=(64, 20, 20, 10), bias=0.1, **MIXED
    ),
    "gelu network, half": partial(network, activation=jax.nn.gelu, **HALF),
    "wide relu network, trained": partial(
        network, activation=jax.nn.relu, widths=(64, 100, 10), trained=150, bias=0.1
    ),
    "lorenz": lorenz,
    "lorenz, double": partial(lorenz, **DOUBLE),
    "lennard-jones, compressed": partial(lennard_jones, spread=0.05),
    "lennard-jones, far, mixed": partial(lennard_jones, shift=0.3, spread=0.05, **MIXED),
    "logistic, small units": partial(logistic, units=(1e-4, 1e1), dim=25),
    "tanh, offset 1e4": steps_of_tanh,
    "noise 1e-5, lorenz": lambda: noisy(lorenz(**DOUBLE), 1e-5),
    "noise 1e-6, dixon-price": lambda: noisy(dixon_price(**DOUBLE), 1e-6),
    "noise 1e-2, mixture": lambda: noisy(mixture(**DOUBLE), 1e-2),
}
PROBLEMS |= HELD_OUT
