"""Random problems through every public function, against dense twins: `make soak`.

    python -m tests.soak [--minutes 15] [--seed 0] [--choices "dim=3, n=2, ..."]

A problem is a few choices, and numbers from a seed; several seeds share the shapes of one
compilation. What fails is made simpler, one choice at a time, for as long as it fails, and
printed as the options that repeat it. Before that: thousands of calls that may not grow, and
a hundred runs of the batched programs that may not hang; `--minutes 0` is these alone.
"""

import argparse
import dataclasses
import gc
import itertools
import os
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import lowrank_jax as lrj
from tests import draws, reference

SEEDS = 8  # problems of one shape


@dataclasses.dataclass(frozen=True)
class Choices:
    """What a problem is.

    Attributes:
      dim: the number of coordinates.
      n: the number of steps.
      dependent: how many of them repeat or add up others, or are zero.
      condition: the exponent of two of the others' condition; 0 for steps along coordinates.
      rank: of the Hessian.
      structure: of a point, see `tree`.
      double: the dtype, float64 or float32.
      size: the exponent of two of the points' and steps' scale.
      curvature: that of the Hessian's.
      seed: of the numbers.
    """

    dim: int
    n: int
    dependent: int
    condition: int
    rank: int
    structure: str
    double: bool
    size: int
    curvature: int
    seed: int

    @classmethod
    def drawn(cls, rng):
        dim = int(rng.integers(1, 33))
        n = int(rng.integers(1, 13) if rng.random() < 0.75 else rng.integers(13, 41))
        most = min(dim, 12)
        return cls(
            dim,
            n,
            int(rng.integers(0, n) if rng.random() < 0.5 else 0),
            int(rng.integers(0, 9)),
            int(rng.integers(0, most + 1)),
            str(rng.choice(["array", "dict", "leaves", "scalars"])),
            bool(rng.random() < 0.5),
            int(rng.integers(-12, 13)),
            int(rng.integers(-12, 13)),
            0,
        )

    def simpler(self):
        """Choices with one of these made simpler."""
        for name, simplest in (
            ("structure", "array"),
            ("size", 0),
            ("curvature", 0),
            ("dependent", 0),
            ("condition", 1),
            ("rank", 1),
            ("n", 1),
            ("dim", 2),
            ("double", True),
        ):
            now = getattr(self, name)
            half = (now + simplest) // 2 if isinstance(now, int) else simplest
            for value in dict.fromkeys([simplest, half]):
                found = dataclasses.replace(self, **{name: value})
                if value != now and found.dependent < found.n and found.rank <= found.dim:
                    yield found


def tree(rows, structure):
    """Rows of numbers as rows of a point's structure, in raveled order."""
    lead, dim = rows.shape[:-1], rows.shape[-1]
    if structure == "array":
        return rows
    if structure == "dict":
        half = dim // 2
        return {"a": rows[..., :half], "b": (rows[..., half:].reshape(*lead, -1, 1),)}
    if structure == "scalars":
        return [rows[..., i] for i in range(dim)]
    return [rows[..., i : i + 1].reshape(*lead, 1, 1) for i in range(dim)]


class Problem:
    """A quadratic `x^T A x / 2 + b^T x`, steps and slopes, and what all is compared by."""

    def __init__(self, c):
        rng = np.random.default_rng([c.seed, c.dim, c.n, c.rank])
        self.choices, self.rng = c, rng
        self.dtype = np.float64 if c.double else np.float32
        self.eps = float(np.finfo(self.dtype).eps)
        self.norm = 2.0**c.curvature
        self.a = (
            self.norm / 3 * draws.symmetric(rng, c.dim, c.rank)
            if c.rank
            else np.zeros((c.dim,) * 2)
        )
        self.a = self.a.astype(self.dtype).astype(float)
        self.b, self.x = rng.normal(size=(2, c.dim)).astype(self.dtype)
        self.x = np.ldexp(self.x, c.size).astype(self.dtype)
        self.b = np.ldexp(self.b, c.size + c.curvature).astype(self.dtype)
        independent = c.n - c.dependent
        s = draws.steps_of_condition(rng, independent, c.dim, 2.0**c.condition, "geometric")
        if c.condition == 0:
            s = np.eye(c.dim)[np.arange(independent) % c.dim]
        more = rng.integers(-1, 2, size=(c.dependent, independent)) @ s
        s = np.ldexp(np.concatenate([s, more])[rng.permutation(c.n)], c.size)
        self.s = s.astype(self.dtype)
        self.y = (self.s.astype(float) @ self.a).astype(self.dtype)
        self.rank = min(independent, c.dim)
        self.key = jax.random.key(c.seed)
        self.arguments = self.a.astype(self.dtype), self.b

    def tree(self, rows):
        return tree(np.asarray(rows, self.dtype), self.choices.structure)

    def flat(self, v):
        return np.asarray(ravel_pytree(v)[0], float)

    def rows(self, rows):
        return np.stack(
            [self.flat(jax.tree.map(lambda x, i=i: x[i], rows)) for i in range(length(rows))]
        )

    def normal(self, *shape):
        return self.rng.normal(size=(*shape, self.choices.dim)).astype(self.dtype)

    def pairs(self):
        return lrj.SecantPairs(self.tree(self.s), self.tree(self.y))


def length(rows):
    return len(jax.tree.leaves(rows)[0])


def loss(x, a, b):
    x = ravel_pytree(x)[0]
    return x @ (a @ x) / 2 + b @ x


# Each check yields what was found, the truth, and the error allowed beside the scale given.


def check_pairs(p):
    points, grads, at, slope = (
        p.normal(p.choices.n + 1),
        p.normal(p.choices.n + 1),
        p.normal(),
        p.normal(),
    )
    trees = p.tree(points), p.tree(grads)
    exact, slopes = points.astype(float), grads.astype(float)
    for pairs, s, y in (
        (lrj.successive(*trees), np.diff(exact, axis=0), np.diff(slopes, axis=0)),
        (lrj.anchored(*trees, p.tree(at), p.tree(slope)), exact - at, slopes - slope),
        (lrj.centered(*trees), exact - exact.mean(0), slopes - slopes.mean(0)),
    ):
        yield p.rows(pairs.steps), s, 8 * p.eps, np.linalg.norm(exact)
        yield p.rows(pairs.grad_diffs), y, 8 * p.eps, np.linalg.norm(slopes)
    first = lrj.from_first(*trees)
    both = lrj.concatenate(first, first)
    yield (
        p.rows(both.steps),
        np.tile(exact[1:] - exact[0], (2, 1)),
        8 * p.eps,
        np.linalg.norm(exact),
    )


def check_fit(p):
    pairs, steps, slopes = p.pairs(), p.s.astype(float), p.y.astype(float)
    tolerance, scale = 500 * p.eps * p.choices.n * 2.0**p.choices.condition, p.norm
    least = lrj.fit(pairs, extrapolate=0)
    yield dense(least), reference.fit(steps, slopes, 0, rank=p.rank), tolerance, scale
    weights = p.rng.uniform(0.5, 2, size=p.choices.n).astype(p.dtype)
    d = p.tree(p.norm * p.normal())
    for h in (
        lrj.fit(pairs),
        lrj.fit(pairs, weights=weights),
        lrj.fit(pairs, base=0.5 * p.norm),
        lrj.fit(pairs, base=d),
        lrj.fit(pairs, base=least),
        lrj.fit(pairs, extrapolate=0.5, rtol=1e-3),
    ):
        missed = (steps @ dense(h) - slopes) / 2.0**p.choices.size
        yield missed, 0 * missed, 20 * tolerance, scale
        yield dense(h), dense(h).T, 0, scale
    report = lrj.diagnose(least, pairs, extrapolate=0)
    yield report.rank, p.rank, 0, 1
    yield report.finite, True, 0, 1
    if p.choices.rank:
        yield report.secant_residual, 0, 20 * tolerance, 1 / max(p.eps, seen_of(p))
    for chosen in (
        lrj.choose_extrapolation(pairs),
        lrj.choose_rtol(pairs),
        lrj.choose_shift(pairs),
    ):
        yield jnp.isfinite(chosen), True, 0, 1


def seen_of(p):
    """How much of A the steps see, relative to |A|."""
    return np.linalg.norm(p.s.astype(float) @ p.a) / np.linalg.norm(p.s.astype(float)) / p.norm


def dense(h):
    return np.asarray(h.to_dense(), float)


def operator(p):
    k = p.choices.n
    factors, core = p.normal(k), np.ldexp(draws.symmetric(p.rng, k), p.choices.curvature)
    core = core.astype(p.dtype)
    exact = reference.low_rank(factors.astype(float), core.astype(float))
    return lrj.SymmetricLowRank(p.tree(factors), core), exact


def check_symmetric(p):
    h, a = operator(p)
    dim, k = p.choices.dim, p.choices.n
    norm, tolerance = np.linalg.norm(a), 100 * p.eps * (dim + k)
    terms = np.linalg.norm(p.rows(h.factors)) ** 2 * np.linalg.norm(h.core)
    u, v = p.normal(2)
    values = np.linalg.eigvalsh(a)
    yield h.to_dense(), a, p.eps * 20 * k, terms
    yield p.flat(h @ p.tree(v)), a @ v, p.eps * 20 * k, terms * np.linalg.norm(v)
    yield h.bilinear(p.tree(u), p.tree(v)), u @ a @ v, p.eps * 50 * k, terms * dim
    yield h.trace(), np.trace(a), p.eps * 20 * dim, terms
    yield h.frobenius_norm(), norm, tolerance, terms
    yield p.flat(h.diagonal()), np.diag(a), p.eps * 20 * k, terms
    largest = values[np.argsort(-np.abs(values))][:k]
    yield np.sort(np.abs(h.eigenvalues()))[::-1][: len(largest)], np.abs(largest), tolerance, terms
    s, rows = h.eigh()
    q = p.rows(rows)
    yield q.T * np.asarray(s) @ q, a, tolerance, terms
    yield sum(map(int, h.inertia())), dim, 0, 1
    yield (h + h / 2 - 2 * h).to_dense(), -a / 2, tolerance, terms
    yield h.map_spectrum(jnp.abs).to_dense(), matrix_abs(a), 10 * tolerance, terms
    yield h.positive_part().to_dense(), (a + matrix_abs(a)) / 2, 10 * tolerance, terms
    rank = (k + 1) // 2
    missed = np.linalg.norm(dense(h.truncate(rank)) - a)
    rest = np.sort(np.abs(values))[: max(dim - rank, 0)]
    yield missed, np.linalg.norm(rest), tolerance, terms


def matrix_abs(a):
    w, v = np.linalg.eigh(a)
    return (v * np.abs(w)) @ v.T


def check_shifted(p):
    h, a = operator(p)
    least = -np.linalg.eigvalsh(a)[0] + np.linalg.norm(a, 2) + 1e-3 * p.norm
    vector = (least * p.rng.uniform(1, 4, size=p.choices.dim)).astype(p.dtype)
    v = p.normal()
    for damping, d in ((p.dtype(least), p.dtype(least)), (p.tree(vector), vector)):
        both = a + np.diag(np.broadcast_to(d, p.choices.dim).astype(float))
        inverse = np.linalg.inv(both)
        size, condition = np.linalg.norm(inverse, 2), np.linalg.cond(both)
        tolerance = 200 * p.eps * (p.choices.dim + p.choices.n) * condition
        stored = max(size, np.max(1 / d))  # an inverse is kept as 1 / d and factors
        yield p.flat(h.solve(p.tree(v), damping)), inverse @ v, tolerance, size * np.linalg.norm(v)
        logs = np.linalg.slogdet(both)[1]
        yield h.logdet(damping), logs, tolerance, max(1, abs(logs))
        yield h.inverse(damping).to_dense(), inverse, tolerance, stored
        operators = h.plus_diagonal(damping), h.inverse(damping).inverse()
        for one in operators:
            yield one.to_dense(), both, tolerance, stored * np.linalg.norm(both, 2) ** 2
        one = operators[0]
        yield p.flat(one @ p.tree(v)), both @ v, tolerance, np.linalg.norm(both) * np.linalg.norm(v)
        yield one.trace(), np.trace(both), tolerance, np.trace(np.abs(both))
        z, drawn = (p.flat(x.sample(p.key)) for x in (one * 0 + eye_like(h, p.dtype), one))
        yield drawn @ both @ drawn, z @ z, tolerance, z @ z
        solver = lrj.interop.lineax_solver()
        if p.choices.structure == "array":
            found = lineax.linear_solve(lrj.interop.lineax_operator(one), jnp.asarray(v), solver)
            yield found.value, inverse @ v, tolerance, size * np.linalg.norm(v)


def eye_like(h, dtype):
    return lrj.DiagonalPlusLowRank(jnp.ones((), dtype), 0 * h)


def check_rectangular(p):
    k, m = p.choices.n, p.choices.dim + 3
    left, core, right = p.rng.normal(size=(k, m)), p.rng.normal(size=(k, k)), p.normal(k)
    left, core = left.astype(p.dtype), core.astype(p.dtype)
    a = lrj.LowRank(left, core, p.tree(right))
    exact = left.astype(float).T @ core @ right
    terms = np.linalg.norm(left) * np.linalg.norm(core) * np.linalg.norm(right)
    tolerance, v, w = 100 * p.eps * (k + m), p.normal(), p.rng.normal(size=m).astype(p.dtype)
    yield a.to_dense(), exact, tolerance, terms
    yield a @ p.tree(v), exact @ v, tolerance, terms * np.linalg.norm(v)
    yield p.flat(a.T @ w), w @ exact, tolerance, terms * np.linalg.norm(w)
    yield a.frobenius_norm(), np.linalg.norm(exact), tolerance, terms
    yield (a - a / 4 + a).to_dense(), 1.75 * exact, tolerance, terms
    u, s, vt = a.svd()
    yield np.asarray(u, float).T * np.asarray(s) @ p.rows(vt), exact, tolerance, terms
    rank = (k + 1) // 2
    rest = np.linalg.svd(exact)[1][rank:]
    missed = np.linalg.norm(np.asarray(a.truncate(rank).to_dense(), float) - exact)
    yield missed, np.linalg.norm(rest), tolerance, terms
    yield (a @ a.T).to_dense(), exact @ exact.T, tolerance, terms**2


def numpy_gradient(p):
    a, b = p.arguments

    def gradient(x):
        return p.tree(a @ p.flat(x).astype(p.dtype) + b)

    return gradient


def check_at_a_point(p):
    x, v = p.tree(p.x), p.normal()
    passes = 2
    probes = max(1, -(-max(p.choices.rank, 1) // passes))
    tolerance = 2e3 * p.eps * p.choices.dim
    product = lrj.hvp(loss)
    yield (
        p.flat(product(x, p.tree(v), *p.arguments)),
        p.a @ v,
        tolerance,
        p.norm * np.linalg.norm(v),
    )
    options = {"key": p.key}
    h, pairs = lrj.lowrank_from_product(product, probes, passes=passes, return_pairs=True)(
        x, *p.arguments, **options
    )
    # Products carry eps |A|, and least rank divides by the least curvature of A along the steps.
    yield dense(h) @ rows_of(p, pairs).T, p.a @ rows_of(p, pairs).T, 10 * tolerance, p.norm
    ritz = lrj.ritz_pairs(pairs)
    values = np.linalg.eigvalsh(p.a)
    gaps = np.min(np.abs(np.asarray(ritz.values)[:, None] - values[None]), axis=1)
    allowed = np.where(np.isfinite(ritz.residuals), ritz.residuals, np.inf)
    yield np.maximum(gaps - allowed, 0), 0 * gaps, tolerance, p.norm
    for source in (
        partial(lrj.lowrank_hessian(loss, probes, passes=passes), x, *p.arguments, **options),
        partial(
            lrj.lowrank_hessian_from_gradient(numpy_gradient(p), probes, passes=passes),
            x,
            **options,
        ),
    ):
        found = dense(source())
        along = rows_of(p, pairs)[:probes]  # the first pass is drawn, all others follow the data
        yield found @ along.T, p.a @ along.T, 3e3 * p.eps**0.5, p.norm
    value, vector, info = lrj.top_eigenpair(loss)(x, *p.arguments, **options)
    if p.choices.rank and bool(info.converged):
        yield p.a @ p.flat(vector), float(value) * p.flat(vector), 0.02, p.norm
    estimates = lrj.estimate(product, h, 4)(x, *p.arguments, **options)
    yield jnp.isfinite(estimates.trace().value), True, 0, 1
    exact = lrj.compare_hvp(loss, h, x, p.tree(p.normal(2)), *p.arguments)
    yield jnp.isnan(exact.relative_error).any(), False, 0, 1
    curvature = lrj.second_derivative(loss)(x, p.tree(v), p.tree(v), *p.arguments)
    yield curvature, v @ p.a @ v, tolerance, p.norm * (v @ v)
    difference = lrj.gradient_difference(loss)(x, p.tree(v), *p.arguments)
    yield p.flat(difference), p.a @ v, 1e3 * p.eps**0.5, p.norm * np.linalg.norm(v)


def rows_of(p, pairs):
    steps = p.rows(pairs.steps)
    sizes = np.linalg.norm(steps, axis=1, keepdims=True)
    return np.divide(steps, sizes, out=np.zeros_like(steps), where=sizes > 0)


def linear(x, a, b):
    return a @ ravel_pytree(x)[0] + b


def linear_in(x, inputs):
    return linear(x, *inputs)


def half_square(z, target):
    return jnp.sum((z - target) ** 2) / 2


def check_functions(p):
    x, dim = p.tree(p.x), p.choices.dim
    tolerance, v = 2e3 * p.eps * dim, p.normal()
    probes = min(dim, p.choices.rank + 1)
    jacobian = lrj.lowrank_jacobian(linear, probes)(x, *p.arguments, key=p.key)
    yield jacobian.to_dense(), p.a, 1e2 * tolerance, p.norm
    gauss_newton = lrj.gauss_newton_product(linear_in, half_square)
    found = p.flat(gauss_newton(x, p.tree(v), p.arguments, p.b))
    yield found, p.a @ p.a @ v, tolerance, p.norm**2 * np.linalg.norm(v)
    if p.choices.rank:
        sigma = lrj.singular_triplet(jnp.asarray(p.arguments[0]))[0]
        yield sigma, np.linalg.norm(p.a, 2), 0.02, p.norm
        rank = p.choices.rank
        yield lrj.cross(jnp.asarray(p.arguments[0]), rank).to_dense(), p.a, 1e3 * tolerance, p.norm
        index = np.arange(dim)
        yield (
            lrj.skeleton(jnp.asarray(p.arguments[0]), index, index).to_dense(),
            p.a,
            1e3 * tolerance,
            p.norm,
        )


def check_models(p):
    points = p.tree(p.x + p.s)
    model = lrj.quadratic_model(loss)(points, *p.arguments)
    at = lrj.quadratic_model_at(loss, 2)(p.tree(p.x), *p.arguments, key=p.key)
    radius = p.dtype(2.0**p.choices.size)
    for m in (model, at):
        step = m.trust_region_step(radius)
        yield max(np.linalg.norm(p.flat(step)) / radius - 1, 0), 0, 1e3 * p.eps, 1
        change, cauchy = m.predicted_change(step), m.predicted_change(m.cauchy_step())
        short = np.linalg.norm(p.flat(m.cauchy_step())) <= radius
        scale = abs(float(change)) + float(radius) * np.linalg.norm(p.flat(m.grad))
        yield max(float(change - cauchy), 0) if short else 0, 0, 1e3 * p.eps, scale
    d = p.dtype(2 * p.norm + 2 * np.linalg.norm(dense(at.hessian), 2))
    newton = p.flat(at.newton_step(d))
    slope = p.a @ p.x + p.b
    yield (
        (dense(at.hessian) + d * np.eye(len(newton))) @ newton,
        -slope,
        1e3 * p.eps**0.5,
        np.linalg.norm(slope),
    )


def check_training(p):
    x, n = p.tree(p.x), p.choices.n
    state = lrj.history.init(x, n)
    points = np.cumsum(p.s, axis=0) + p.x
    grads = points.astype(float) @ p.a + p.b
    for point, grad in zip(points, grads, strict=True):
        state = lrj.history.push(state, p.tree(point), p.tree(grad))
    pairs = lrj.history.pairs(state)
    yield np.sum(np.any(p.rows(pairs.steps) != 0, axis=1)) <= n, True, 0, 1
    yield jnp.all(jnp.isfinite(ravel_pytree(lrj.fit(pairs).core)[0])), True, 0, 1
    for transform in (lrj.optim.scale_by_secant(3), lrj.optim.secant_newton()):
        y, state = x, transform.init(x)
        for _ in range(3):
            value, grad = jax.value_and_grad(convex)(y, *p.arguments)
            more = {
                "value": value,
                "grad": grad,
                "value_fn": partial(convex, a=p.arguments[0], b=p.arguments[1]),
            }
            update, state = optax.with_extra_args_support(transform).update(grad, state, y, **more)
            y = optax.apply_updates(y, update)
        yield np.isfinite(p.flat(y)).all(), True, 0, 1
    batches = [(p.arguments[0] * k, p.arguments[1]) for k in (1, 3)]
    found = lrj.mean_gradient(scaled_loss, batches)(x)
    yield (
        p.flat(found),
        2 * p.a @ p.x + p.b,
        1e3 * p.eps,
        np.linalg.norm(p.a) * np.linalg.norm(p.x) + np.linalg.norm(p.b),
    )


def scaled_loss(x, batch):
    return loss(x, *batch)


def convex(x, a, b):
    x = ravel_pytree(x)[0]
    return jnp.sum((a @ x + b) ** 2) + jnp.sum(x * x)


CHECKS = (
    check_pairs,
    check_fit,
    check_symmetric,
    check_shifted,
    check_rectangular,
    check_at_a_point,
    check_functions,
    check_models,
    check_training,
)


def failures(check, c):
    """What one check finds wrong with one problem."""
    p = Problem(c)
    try:
        for i, (found, truth, tolerance, scale) in enumerate(check(p)):
            found, truth = np.asarray(found, float), np.asarray(truth, float)
            error = np.linalg.norm(np.ravel(found - truth))
            if not error <= tolerance * scale:
                yield f"{check.__name__} [{i}]: {error:.2g} > {tolerance:.2g} * {scale:.2g}"
    except Exception:
        yield f"{check.__name__}: {traceback.format_exc(limit=-3)}"


def shrunk(check, c):
    """The simplest choices near these that still fail, and how."""
    found = next(iter(failures(check, c)))
    for _ in range(12):
        for simpler in c.simpler():
            if (now := next(iter(failures(check, simpler)), None)) is not None:
                c, found = simpler, now
                break
        else:
            break
    return c, found


def problems(seed, until):
    """How many problems were tried until then, and how many of them failed."""
    rng, tried, failed = np.random.default_rng(seed), 0, 0
    while time.monotonic() < until:
        c = Choices.drawn(rng)
        for check, number in itertools.product(CHECKS, range(SEEDS)):
            if time.monotonic() > until:
                break
            tried += 1
            one = dataclasses.replace(
                c, seed=number, size=c.size + number, curvature=c.curvature - number
            )
            if next(iter(failures(check, one)), None) is not None:
                report(check, one)
                failed += 1
                break
        jax.clear_caches()
    return tried, failed


def report(check, c):
    simplest, found = shrunk(check, c)
    options = ", ".join(f"{k}={v}" for k, v in dataclasses.asdict(simplest).items())
    print(f"{found}\n  --choices '{options}'", flush=True)


def memory():
    """Bytes of this process that are in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def growth(calls):
    """By how much the memory grows over that many calls of programs that are compiled already."""
    p = Problem(Choices(12, 4, 0, 3, 3, "dict", False, 0, 0, 0))
    pairs, v, start = p.pairs(), p.tree(p.normal()), 0
    for i in range(calls):
        h = lrj.fit(pairs)
        h.solve(h @ v, 1.0)
        if i % 10 == 0:
            lrj.lowrank_hessian(loss, 2)(p.tree(p.x), *p.arguments, key=p.key)
        if i == calls // 5:
            start = memory()
    return memory() - start


def batched(runs):
    """Runs of the batched programs: a fit and its gradient, a system, eigenvalues."""
    rng = np.random.default_rng(0)
    s, y = rng.normal(size=(2, 1024, 8, 64)).astype(np.float32)
    fit = jax.jit(jax.vmap(lambda s, y: lrj.fit((s, y))))
    slope = jax.jit(
        jax.grad(lambda y: jnp.sum(jax.vmap(lambda s, y: lrj.fit((s, y)).trace())(s, y)))
    )
    solve = jax.jit(jax.vmap(lambda h, v: h.solve(v, 10.0)))
    values = jax.jit(jax.vmap(lambda h: h.eigenvalues()))
    for _ in range(runs):
        h = fit(s, y)
        jax.block_until_ready((slope(y), solve(h, s[:, 0]), values(h)))


def parsed(text):
    kinds = {field.name: field.type for field in dataclasses.fields(Choices)}
    found: dict[str, Any] = {}
    for part in text.split(","):
        name, value = part.strip().split("=")
        found[name] = value == "True" if kinds[name] is bool else kinds[name](value)
    return Choices(**found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--choices")
    parser.add_argument("--batched", type=int, help="runs of the batched programs, and no more")
    options = parser.parse_args()
    if options.batched:
        return batched(options.batched)
    jax.config.update("jax_enable_x64", True)
    if options.choices:
        found = [f for check in CHECKS for f in failures(check, parsed(options.choices))]
        print("\n".join(found) or "nothing fails")
        return bool(found)
    command = [sys.executable, "-m", "tests.soak", "--batched", "100"]
    subprocess.run(command, check=True, timeout=600)
    print("100 runs of the batched programs: none hangs")
    grown = growth(options.calls)
    print(f"{options.calls} calls: {grown / 2**20:.1f} MiB more in memory")
    start = time.monotonic()
    tried, failed = problems(options.seed, start + 60 * options.minutes)
    print(f"{tried} problems from seed {options.seed}: {failed} fail")
    return bool(failed) or grown > 2**24


if __name__ == "__main__":
    sys.exit(main())
