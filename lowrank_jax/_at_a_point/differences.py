"""Products and pairs from differences of gradients, `(g(x + h v) - g(x)) / h`."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._at_a_point import errors, krylov, steps
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

    By default the length of the step is measured along v, where noise and truncation are balanced,
    whatever the scales of x, f and H. That takes nine gradients more, twice
    as many with `central`; where nothing is traced often fewer. The difference is divided by the
    step that was really taken, `(x + h v) - x`.

    Args:
      loss: a scalar function, differentiated once, in argument `argnums`.
      argnums: that argument, or a tuple; x and v are then tuples.
      step: the length |h v| of the step instead of a measured one. A traced one that is not
        above 0 gives NaN, and so does one that x is too coarse for.
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

        def gradient(y):
            return at(y, *args)[2]

        if step is not None:
            h = _given(x, step)
        elif central:
            h = _measured(_central_slope(gradient, x), x, _direction(v)[0], power=2)
        else:
            h = _measured(_slope(gradient, x, gradient(x)), x, _direction(v)[0], power=1)
        ahead = _moved(x, v, h)
        behind = _moved(x, v, -h) if central else x
        return _quotient(ahead, gradient(ahead), behind, gradient(behind), v)

    return product


class Options(NamedTuple):
    """Which steps are taken and how they are measured, see `probe_pairs`; made by `checked`.

    Where `found` is above 0, which may be traced, it is the length of all steps, as `step` is, and
    the error of the pairs is not estimated; otherwise the length is measured.
    """

    probes: int
    passes: int
    batch_size: int | None
    start: Rows | None
    step: Scalar | None
    progress: bool
    found: jax.Array | float = 0.0


def most_gradients(options: Options) -> int:
    """How many gradients the pairs take at most, the one at the point among them."""
    search = (
        0 if options.step is not None else steps.LADDER + (len(steps.ZOOM) + 1) * options.passes
    )
    return 1 + options.probes * options.passes + search


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
    value: Scalar = 0.0,
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
      value: that of the loss at x; one that is not finite makes the pairs NaN.
    """
    probes, batch_size = options.probes, options.batch_size
    traced = programs.traced(x, grad, key, options.start, options.step, options.found)
    given = None if options.step is None else _given(x, options.step)
    eps = structure.resolution((x, grad))
    grad = structure.cast_like(grad, x)
    x, grad = xla.vary_like((x, grad), x, grad)
    packed = _packed(x)

    def on_the_host(pairs, offset, h):
        at_once = gradients is not None and batch_size not in (None, 1)
        size = min(batch_size, probes) if at_once else None
        for i in range(0, probes, size or 1):
            i = offset + min(i, probes - (size or 1))  # the last ones may be taken again
            ahead, points = _ahead(packed, pairs.steps, i, size, h, x)
            grads = gradients(points) if at_once else gradient(points)
            pairs = _put(pairs, i, packed, grad, ahead, grads, h, value)
            count(size or 1)
        return pairs

    def in_one_program(pairs, offset, h):
        ahead = xla.once(krylov.ahead(packed, pairs.steps, offset, probes, h))  # see `_put`
        grads = xla.map_rows(gradient, structure.unpack(ahead, x), batch_size)
        return _put(pairs, offset, packed, grad, ahead, grads, h, value)

    measure = in_one_program if traced else on_the_host

    def of_pass(pairs, offset, memory):  # with a length that is measured along its first step
        if given is not None:
            return measure(pairs, offset, given), memory
        slope, v = _slope(gradient, x, grad, count), krylov.row(pairs.steps, offset, x)
        first, known = offset == 0, options.found > 0
        before = _before(memory.length, (offset == probes) & jnp.logical_not(known))
        last = partial(errors.opposite, *lax.stop_gradient((x, pairs.steps)), offset, probes)
        h, check = steps.measured(
            slope, x, v, eps=eps, before=before, first=first, known=known, last=last
        )
        pairs = measure(pairs, offset, h)
        return pairs, errors.noted(memory, lax.stop_gradient(pairs), offset, probes, h, check)

    memory = (
        None if given is not None else errors.nothing(x, probes * options.passes, options.found)
    )
    state = krylov.begin(x, probes, options.passes, options.start), memory
    passes: Any = krylov.scan if traced else krylov.loop
    pairs, memory = passes(of_pass, state, probes, key)
    return krylov.unpacked(_finished(pairs, given, memory, probes), x)


_packed = jax.jit(structure.pack_vector)


@partial(jax.jit, static_argnums=3)
def _ahead(packed, steps, i, count, h, x):
    """Points ahead, packed and in the structure of x; there one point alone for a count of None."""
    rows = krylov.ahead(packed, steps, i, count or 1, h)
    points = structure.unpack(rows, x)
    return rows, structure.row_of(points) if count is None else points


@jax.jit
def _given(x, step):
    h = jnp.asarray(step, structure.compute_dtype(x))
    return jnp.where((h > 0) & (h < jnp.inf), h, jnp.nan)


def _measured(slope, x, v, power):
    return steps.measured(slope, x, v, power=power)[0]


def _slope(gradient, x, grad, count=lambda n: None):
    """The difference of gradients for a step from x."""

    def slope(s):
        count(1)
        return _less(gradient(_plus(x, s)), grad, x)

    return slope


def _central_slope(gradient, x):
    def slope(s):
        return _half(_less(gradient(_plus(x, s)), gradient(_behind(x, s)), x))

    return slope


@jax.jit
def _plus(x, s):
    return jax.tree.map(jnp.add, x, s)


@jax.jit
def _behind(x, s):
    return jax.tree.map(jnp.subtract, x, s)


@jax.jit
def _half(v):
    return jax.tree.map(lambda leaf: leaf / 2, v)


@jax.jit
def _less(grad, other, x):
    return structure.cast_like(tall.minus(grad, other), x)


@jax.jit
def _before(length, second):
    """What the zoom of a pass begins with: the length before, or a sixteenth of it.

    The second pass turns from random to leading directions. The noise of the gradients is as it
    was, truncation is more: the best step is 2^2 to 2^8 times shorter.
    """
    return length * jnp.where(second, 1 / 16, 1).astype(length.dtype)


@partial(jax.jit, static_argnums=3, donate_argnums=0)
def _finished(pairs, given, memory, probes):
    """The pairs as long as they were taken, with their errors where these were measured."""
    if memory is None:
        lengths, rounding = jnp.full(structure.length(pairs.steps), given), None
    else:
        lengths, rounding = memory.lengths, errors.rounding(memory, pairs, probes)
        rounding, pairs = xla.once((rounding, pairs))  # scaled in place, once nothing reads them
    return SecantPairs(*(tall.scale(lengths, rows) for rows in pairs[:2]), rounding)


@partial(jax.jit, donate_argnums=0)
def _put(pairs, i, x, grad, ahead, grads, h, value):
    """The pairs with `(ahead - x) / h`, both packed, and `(grads - grad) / h` from the i-th on.

    The step is the one really taken, near the unit vector that was asked for: of a quadratic
    the pair is exact however x is rounded. A step that x is too coarse for gives NaN.
    """

    def row(leaf, like):
        return leaf[None] if leaf.ndim == like.ndim else leaf

    def quotient(new, old):
        new = jax.tree.map(row, new, old)
        wide = tall.minus(new, jax.tree.map(lambda leaf: leaf[None], old))
        return structure.cast_like(jax.tree.map(lambda d: d / h.astype(d.dtype), wide), old)

    taken, grad_diffs = quotient(ahead, x), structure.pack(quotient(grads, grad))
    asked = krylov.rows(pairs.steps, i, structure.length(taken))
    still = jax.tree.map(lambda t, a: jnp.where(t == 0, a, jnp.zeros_like(a)), taken, asked)
    resolved = _squares(still) < 1 - structure.resolution(x) ** 0.5
    bad = scaling.nan_unless(resolved & jnp.isfinite(value), structure.compute_dtype(x))
    # Where the steps wait for `bad` too, all is read before it is written: XLA copies nothing.
    taken, grad_diffs = (tall.scale(bad, rows) for rows in (taken, grad_diffs))
    taken = krylov.write(pairs.steps, i, taken)
    return SecantPairs(taken, krylov.write(pairs.grad_diffs, i, grad_diffs))


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
    """The gradient field, with errors for what does not fit x."""

    def gradient(y):
        grad = checks.vector(grad_fn(y), "grad_fn(x)")
        checks.like(grad, "grad_fn(x)", x, "x")
        return grad

    return gradient
