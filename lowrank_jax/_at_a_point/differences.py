"""Differences of gradients, `(g(x + h v) - g(x)) / h`, the length of their steps, and their error.

The k pairs (s_i, y_i) of a pass, s_i of length h, are checked by one more gradient, a step to the
other side of x from all of them: were the pairs right, it would be g(x) minus their sum,

    error = | g(x - c sum s_i) - g(x) + c sum y_i | / (h c (1 + k / 2)),

with c = 1, and 2 for a single pair, to whose opposite all that is odd in the step is nothing. At a
kink that one of the steps crosses the check, on the other side, does not share in the jump. For
normal noise the quotient is 0.9 to 1.4 of the error of a pair, and for truncation, of which the
check has k times as much, 2 to 4 times; a jump in one pair alone counts 2 / (2 + k), or more where
`S Y^T` contradicts its transpose. The steps are those that are really taken, and so is their sum:
how x is rounded drops out.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._at_a_point import krylov, steps
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
    given = None if options.step is None else _given(x, options.step)
    eps = structure.resolution((x, grad))
    grad = structure.cast_like(grad, x)

    def with_length(measure):
        """Finds the length of a pass's steps along its first one, and how well it does."""

        def of_pass(pairs, offset, memory):
            if given is not None:
                return measure(pairs, offset, given), memory
            slope, v = _slope(gradient, x, grad, count), krylov.row(pairs.steps, offset, x)
            first, known = offset == 0, options.found > 0
            before = _before(memory.length, (offset == probes) & jnp.logical_not(known))
            last = partial(_opposite, *lax.stop_gradient((x, pairs.steps)), offset, probes)
            h, check = steps.measured(
                slope, x, v, eps=eps, before=before, first=first, known=known, last=last
            )
            pairs = measure(pairs, offset, h)
            return pairs, _noted(memory, lax.stop_gradient(pairs), offset, probes, h, check)

        return of_pass

    def one_by_one(pairs, offset, h):
        for i in range(offset, offset + probes):
            ahead = _ahead(x, pairs.steps, i, None, h)
            pairs = _put(pairs, i, x, grad, ahead, gradient(ahead), h, value)
            count(1)
        return pairs

    def several(pairs, offset, h):
        size = min(batch_size, probes)
        for i in range(0, probes, size):
            i = offset + min(i, probes - size)  # the last ones may be taken again
            ahead = _ahead(x, pairs.steps, i, size, h)
            pairs = _put(pairs, i, x, grad, ahead, gradients(ahead), h, value)
            count(size)
        return pairs

    def in_one_program(pairs, offset, h):
        ahead = _ahead(x, pairs.steps, offset, probes, h)
        grads = xla.map_rows(gradient, ahead, batch_size)
        return _put(pairs, offset, x, grad, ahead, grads, h, value)

    memory: Any = (
        None
        if options.step is not None
        else _nothing_known(x, probes * options.passes, options.found)
    )
    done: Any
    state = krylov.begin(x, probes, options.passes, options.start), memory
    if programs.traced(x, grad, key, options.start, options.step, options.found):
        done = krylov.scan(with_length(in_one_program), state, probes, key)
    elif gradients is None or batch_size in (None, 1):
        done = krylov.loop(with_length(one_by_one), state, probes, key)
    else:
        done = krylov.loop(with_length(several), state, probes, key)
    pairs, memory = done
    return krylov.unpacked(_finished(pairs, given, memory, probes), x)


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


class _Lengths(NamedTuple):
    """The last length of a step that was measured, and of each pair what was.

    Its length, its error, and its slope, as it is and as far as it is not error.
    """

    length: jax.Array
    lengths: jax.Array
    errors: jax.Array
    slopes: jax.Array
    credible: jax.Array


@partial(jax.jit, static_argnums=1)
def _nothing_known(x, count, found):
    dtype = structure.compute_dtype(x)
    length = jnp.where(found > 0, found, 1).astype(dtype)
    return _Lengths(length, jnp.ones(count, dtype), *3 * [jnp.zeros(count, dtype)])


def _weight(probes):
    """Of each step of a pass in the step of its check."""
    return 2 if probes == 1 else 1


@partial(jax.jit, static_argnums=3)
def _opposite(x, steps, offset, probes, h):
    """Minus the sum of the steps of a pass, as they are taken with length h."""
    taken = jax.tree.map(lambda a, x: a - x[None], _ahead(x, steps, offset, probes, h), x)
    total = jax.tree.map(lambda t, x: jnp.sum(t, axis=0).astype(x.dtype), taken, x)
    return jax.tree.map(lambda t: -_weight(probes) * t, total)


@partial(jax.jit, static_argnums=3)
def _noted(memory, pairs, offset, probes, h, check):
    """With the error of a pass, by how far its pairs are off the quotient of their check.

    And with the slopes. What of one is credible is its part that is not along the difference, which
    is the jump where one pair alone has one, or the root of its square less that of twice the
    error, whichever is less.
    """
    weight = _weight(probes)
    grad_diffs = krylov.rows(pairs.grad_diffs, offset, probes)
    check = structure.pack(jax.tree.map(lambda leaf: leaf[None], check))
    total = jax.tree.map(lambda y: weight * jnp.sum(structure.widen(y), axis=0)[None], grad_diffs)
    off = tall.minus(total, check)
    missed, slopes = scaling.norms(off)[0], scaling.norms(grad_diffs)
    off = tall.times(scaling.reciprocal(missed), off)
    cosines = tall.gram(grad_diffs, off)[:, 0] * scaling.reciprocal(slopes)
    error = missed / (weight * (1 + probes / 2))
    error = jnp.where(jnp.isnan(error), jnp.inf, error)
    along = jnp.clip(cosines, 0, scaling.ratio(missed, slopes))
    across = jnp.maximum(1 + (along - 2 * cosines) * along, 0)
    without = jnp.maximum(1 - jnp.square(2 * scaling.ratio(error, slopes)), 0)
    credible = slopes * jnp.sqrt(jnp.minimum(across, without))

    def put(values, some):
        some = jnp.broadcast_to(some, probes).astype(values.dtype)
        return lax.dynamic_update_slice_in_dim(values, some, offset, 0)

    some = h, error, slopes, credible
    return _Lengths(h.astype(error.dtype), *map(put, memory[1:], some))


@partial(jax.jit, static_argnums=3)
def _finished(pairs, given, memory, probes):
    """The pairs as long as they were taken; the errors beside the largest slope."""
    rows, rounding = pairs[:2], None
    lengths = jnp.full(structure.length(pairs.steps), given) if memory is None else memory.lengths
    if memory is not None:
        # What of the errors contradicts symmetry, and is little in the sum of a pass.
        products = tall.gram(*rows)
        contradictions = scaling.norms((products - products.T) / 2)
        contradictions = jnp.max(contradictions.reshape(-1, probes), axis=1)
        errors = jnp.maximum(memory.errors, jnp.repeat(contradictions, probes))
        # Beside slopes that are mostly error all errors would look small.
        largest = jnp.max(memory.credible)
        largest = jnp.where(largest > 0, largest, jnp.max(memory.slopes) / 8)
        # Where two steps agree to the last bit, the last bit is what is left to doubt.
        rounding = jnp.maximum(scaling.ratio(errors, largest), structure.resolution(rows))
        rounding = lax.stop_gradient(rounding)
    return SecantPairs(*(tall.scale(lengths, each) for each in rows), rounding)


@partial(jax.jit, static_argnums=3)
def _ahead(x, steps, i, count, h):
    """`x + h s` for that many steps from the i-th on; one point alone for None."""
    rows = krylov.read(steps, i, 1 if count is None else count, x)
    points = jax.vmap(lambda v: tall.axpy(x, h, v))(rows)
    return jax.tree.map(lambda p: p[0], points) if count is None else points


@partial(jax.jit, donate_argnums=0)
def _put(pairs, i, x, grad, ahead, grads, h, value):
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
    bad = scaling.nan_unless(resolved & jnp.isfinite(value), structure.compute_dtype(x))
    taken = krylov.write(pairs.steps, i, taken)
    return SecantPairs(taken, krylov.write(pairs.grad_diffs, i, tall.scale(bad, grad_diffs)))


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
