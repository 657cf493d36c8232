"""Differences of gradients, `(g(x + h v) - g(x)) / h`, and the length of their steps."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._at_a_point import krylov
from lowrank_jax._at_a_point.products import point_and_vector
from lowrank_jax._clouds.pairs import SecantPairs
from lowrank_jax._core import checks, losses, programs, scaling, structure, tall, xla
from lowrank_jax._core.types import Argnums, Gradient, Loss, Product, Rows, Scalar, Vector


def gradient_difference(
    loss: Loss,
    argnums: Argnums = 0,
    *,
    step: Scalar | None = None,
    central: bool = False,
) -> Product:
    """Makes Hessian-vector products from gradients alone, `H v ~ (g(x + h v) - g(x)) / h`.

    Two gradients and no second derivative: for losses whose Hessian-vector
    product does not exist or costs too much. With `central`, the difference is
    `(g(x + h v) - g(x - h v)) / 2h`.

    The default step is `sqrt(eps) |x|`, or `eps^(1/3) |x|` for a central difference, with
    1 for |x| at the origin. It is a heuristic that takes |x| for the scale on which the
    gradient changes. The difference is divided by the step that was really taken,
    `(x + h v) - x`.

    Args:
      loss: a scalar function, differentiated once, in argument `argnums`.
      argnums: that argument, or a tuple; x and v are then tuples.
      step: the length |h v| of the step instead of the default, for points whose
        norm says nothing of their scale (a cluster far from the origin). A traced one
        that is not above 0 gives NaN, and so does one that x is too coarse for.
      central: take the difference on both sides: error O(h^2) instead of O(h).

    Returns:
      `product(x, v, *args)`: nearly H v, of the structure, shapes and dtypes of x; 0 at v = 0.

    Raises:
      TypeError: for leaves that are not real floating-point arrays, or such a value of the loss.
      ValueError: where v does not fit x, the loss is not scalar, or `step` is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> product = gradient_difference(lambda x: jnp.sum(x**2))
      >>> bool(jnp.allclose(product(jnp.ones(3), jnp.arange(3.0)), 2 * jnp.arange(3.0), rtol=1e-3))
      True
    """
    if step is not None:
        checks.positive(step, "step")
    checks.flag(central, "central")
    at = losses.value_and_gradient(loss, argnums, False)

    def product(x, v, *args):
        x, v = point_and_vector(x, v, "v")
        h = step_length(x, step, central)
        ahead = _moved(x, v, h)
        behind = _moved(x, v, -h) if central else x
        return _quotient(ahead, at(ahead, *args)[2], behind, at(behind, *args)[2], v)

    return product


@partial(jax.jit, static_argnums=2)
def step_length(x: Vector, step: Scalar | None = None, central: bool = False) -> jax.Array:
    """The length of a gradient difference's step at x: the one given, or a constant.

    The relative error of a one-sided difference is h |H'| / |H| of truncation and
    noise / (h |H|) of the gradients' rounding. |x| is the one scale that is known: let H
    change by as much as itself over |x|, and the gradient be rounded as that of a point
    within eps |x| of x is, by eps |H| |x|. Then h / |x| + eps |x| / h is least at
    sqrt(eps) |x|; for a central difference (h / |x|)^2 + eps |x| / h at eps^(1/3) |x|.
    A gradient that is larger than |H| |x|, by a factor c, has c times that noise: the best
    step is sqrt(c) times as long, and the error of this one sqrt(c) / 2 times the least.
    """
    if step is not None:
        h = jnp.asarray(step, structure.compute_dtype(x))
        return jnp.where((h > 0) & (h < jnp.inf), h, jnp.nan)
    size = lax.stop_gradient(scaling.norm(x))
    return structure.resolution(x) ** (1 / 3 if central else 1 / 2) * jnp.where(size == 0, 1, size)


class Options(NamedTuple):
    """Which steps are taken and how they are measured, see `probe_pairs`; made by `checked`."""

    probes: int
    passes: int
    batch_size: int | None
    start: Rows | None
    step: Scalar | None
    progress: bool


def checked(options: Options) -> Options:
    """The options themselves.

    Raises:
      TypeError, ValueError: for wrong ones.
    """
    krylov.check(options.probes, options.passes, options.batch_size, options.progress)
    if options.step is not None:
        checks.positive(options.step, "step")
    return options


def difference_pairs(
    gradient: Gradient,
    x: Vector,
    grad: Vector,
    key: jax.Array,
    options: Options,
    gradients: Callable[[Rows], Rows] | None = None,
    count: Callable = lambda n: None,
) -> SecantPairs:
    """The pairs of a gradient field along the steps of passes, from one gradient for each.

    Args:
      gradient: the field, at one point.
      x: the point.
      grad: the gradient there; whether it is traced decides between a loop on the host
        and one program.
      key: one random key.
      options: which steps, and how they are measured.
      gradients: the field at several points at once, for a loop on the host that is to do so.
      count: what is told how many gradients were taken, on the host.
    """
    probes, h = options.probes, step_length(x, options.step)

    def one_by_one(pairs, offset, memory):
        for i in range(offset, offset + probes):
            ahead = _ahead(x, pairs.steps, i, None, h)
            pairs = _put(pairs, i, x, grad, ahead, gradient(ahead), h)
            count(1)
        return pairs, memory

    def several(pairs, offset, memory):
        size = min(options.batch_size, probes)
        for i in range(0, probes, size):
            i = offset + min(i, probes - size)  # the last ones may be taken again
            ahead = _ahead(x, pairs.steps, i, size, h)
            pairs = _put(pairs, i, x, grad, ahead, gradients(ahead), h)
            count(size)
        return pairs, memory

    def in_one_program(pairs, offset, memory):
        ahead = _ahead(x, pairs.steps, offset, probes, h)
        grads = xla.map_rows(gradient, ahead, options.batch_size)
        return _put(pairs, offset, x, grad, ahead, grads, h), memory

    state: Any = krylov.begin(x, probes, options.passes, options.start, key), ()
    if programs.traced(x, grad, key, options.start, h):
        state = krylov.scan(in_one_program, state, probes)
    elif gradients is None or options.batch_size in (None, 1):
        state = krylov.loop(one_by_one, state, probes)
    else:
        state = krylov.loop(several, state, probes)
    return krylov.unpacked(state[0], x)


@partial(jax.jit, static_argnums=3)
def _ahead(x, steps, i, count, h):
    """`x + h s` for that many steps from the i-th on; one point alone for None."""
    rows = krylov.read(steps, i, 1 if count is None else count, x)
    points = jax.vmap(lambda v: tall.axpy(x, h, v))(rows)
    return jax.tree.map(lambda p: p[0], points) if count is None else points


@partial(jax.jit, donate_argnums=0)
def _put(pairs, i, x, grad, ahead, grads, h):
    """The pairs with `(ahead - x) / h` and `(grads - grad) / h` from the i-th on.

    The step is the one really taken, near the unit vector that was asked for: of a quadratic
    the pair is exact however x is rounded. A step that x is too coarse for gives NaN.
    """

    def row(leaf, like):
        return leaf[None] if leaf.ndim == like.ndim else leaf

    def quotient(new, old):
        new = jax.tree.map(row, new, old)
        wide = tall.minus(new, jax.tree.map(lambda leaf: leaf[None], old))
        return structure.cast_like(jax.tree.map(lambda d: d / h.astype(d.dtype), wide), x)

    taken, grad_diffs = structure.pack(quotient(ahead, x)), structure.pack(quotient(grads, grad))
    asked = krylov.rows(pairs.steps, i, structure.length(taken))
    still = jax.tree.map(lambda t, a: jnp.where(t == 0, a, jnp.zeros_like(a)), taken, asked)
    resolved = _squares(still) < 1 - structure.resolution(x) ** 0.5
    bad = scaling.nan_unless(resolved, structure.compute_dtype(x))
    steps = krylov.write(pairs.steps, i, taken)
    return SecantPairs(steps, krylov.write(pairs.grad_diffs, i, tall.scale(bad, grad_diffs)))


def _squares(rows):
    wide = structure.widen(rows)
    sums = jax.tree.map(lambda x: jnp.sum(x * x, axis=tuple(range(1, x.ndim))), wide)
    return functools.reduce(jnp.add, jax.tree.leaves(sums))


@jax.jit
def _moved(x, v, h):
    return tall.axpy(x, h, _direction(v)[0])


def _direction(v):
    size = scaling.norm(v)
    return tall.times(1 / jnp.where(size == 0, 1, size), v), size


@jax.jit
def _quotient(ahead, grad_ahead, behind, grad_behind, v):
    """The difference of two gradients, over the step between the points, times |v|; 0 at v = 0."""
    unit, size = _direction(v)
    taken = tall.dot(jax.tree.map(jnp.subtract, ahead, behind), unit)
    slope = jnp.where(size == 0, 0, size / jnp.where(size == 0, 1, taken))
    return tall.times(slope, tall.axpy(grad_ahead, -jnp.ones_like(slope), grad_behind))


def checked_gradient(grad_fn, x):
    """The gradient field, with errors for what does not fit x, in the dtypes of x."""

    def gradient(y):
        grad = checks.vector(grad_fn(y), "grad_fn(x)")
        checks.like(grad, "grad_fn(x)", x, "x")
        return structure.cast_like(grad, x)

    return gradient
