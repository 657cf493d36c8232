"""From points and gradients to secant pairs.

A secant pair (s, y) is a step between two points and the difference of the
gradients there; a Hessian H that is constant between them gives `y = H s`.
Each pairing below takes n points, a pytree whose leaves have a leading axis n,
and the gradients at them, and says which differences are formed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._core import checks, losses, scaling, structure, tall, xla
from lowrank_jax._core.types import Argnums, Loss, Rows, Vector


class SecantPairs(NamedTuple):
    """Steps `s_i` and the gradient differences `y_i ~ H s_i` along them.

    Attributes:
      steps: a pytree whose leaves have a leading axis n.
      grad_diffs: the same structure and shapes.
      rounding: (n,), the relative rounding error of each pair, or None where it is
        unknown. A gradient computed at x is off by about eps |g| and is the
        gradient of some point within eps |x|, so with c the largest |y_j| / |s_j|,

            rounding_i = eps (|x| / |s_i| + |g| / (c |s_i|)).

        Near 1 the pair carries nothing but noise; it is infinite for points that
        rounding cannot tell apart, whose zero step no fit uses. Nor does a fit without `rtol`
        use combinations of unit steps that are no longer than half of it, as points on a line
        leave of all steps but one.

    Example:
      >>> import jax.numpy as jnp
      >>> pairs = SecantPairs(jnp.eye(2), jnp.diag(jnp.array([3.0, -1.0])))
      >>> pairs.steps.shape
      (2, 2)
    """

    steps: Rows
    grad_diffs: Rows
    rounding: jax.Array | None = None


def centered(points: Rows, grads: Rows) -> SecantPairs:
    """Pairs by steps from the mean of the cloud, `s_i = x_i - mean(x)`, `y_i = g_i - mean(g)`.

    The n pairs sum to zero: n points give n - 1 independent ones. All points
    play the same part, so their order does not matter.

    The first point is subtracted before the mean is taken: the mean of points far from
    the origin would be rounded to their own resolution. A point that is the mean to
    within rounding, as the centre of a symmetric stencil is, has a step of exactly zero.

    Args:
      points: n points, a pytree whose leaves have a leading axis n.
      grads: the gradients there, of the same structure.

    Raises:
      TypeError: for leaves that are not real floating-point arrays.
      ValueError: for no points, or structures or shapes that differ.

    Example:
      >>> import jax.numpy as jnp
      >>> points = jnp.array([[1.0, 0.0], [3.0, 0.0]])
      >>> centered(points, 2 * points).steps
      Array([[-1.,  0.],
             [ 1.,  0.]], dtype=float32)
    """
    return _centered(*_cloud(points, grads))


def from_first(points: Rows, grads: Rows) -> SecantPairs:
    """Pairs by steps from the cloud's own first point, `s_i = x_i - x_0` for i = 1 .. n - 1.

    Args:
      points: n points, a pytree whose leaves have a leading axis n.
      grads: the gradients there, of the same structure.

    Raises:
      TypeError: for leaves that are not real floating-point arrays.
      ValueError: for no points, or structures or shapes that differ.

    Example:
      >>> import jax.numpy as jnp
      >>> points = jnp.array([[1.0, 0.0], [3.0, 0.0]])
      >>> from_first(points, 2 * points).grad_diffs
      Array([[4., 0.]], dtype=float32)
    """
    points, grads = _cloud(points, grads)
    return _anchored(_rest(points), _rest(grads), _first(points), _first(grads))


def anchored(points: Rows, grads: Rows, anchor: Vector, anchor_grad: Vector) -> SecantPairs:
    """Pairs by steps from a given point with a given gradient, `s_i = x_i - a`, `y_i = g_i - g_a`.

    Anchored at zero with zero gradient the pairs are the points and gradients
    themselves, and the equations are `H x_i = g_i`.

    Args:
      points: n points, a pytree whose leaves have a leading axis n.
      grads: the gradients there, of the same structure.
      anchor: one point, without the leading axis; taken in the dtypes of the points.
      anchor_grad: the gradient there.

    Raises:
      TypeError: for leaves that are not real floating-point arrays.
      ValueError: for no points, or structures or shapes that differ.

    Example:
      >>> import jax.numpy as jnp
      >>> points = jnp.array([[1.0, 0.0], [3.0, 0.0]])
      >>> anchored(points, 2 * points, jnp.ones(2), 2 * jnp.ones(2)).steps
      Array([[ 0., -1.],
             [ 2., -1.]], dtype=float32)
    """
    points, grads = _cloud(points, grads)
    anchor, anchor_grad = (
        checks.vector(anchor, "anchor"),
        checks.vector(anchor_grad, "anchor_grad"),
    )
    checks.like(anchor, "anchor", points, "one of points", pattern_lead=1)
    checks.like(anchor_grad, "anchor_grad", points, "one of points", pattern_lead=1)
    anchor, anchor_grad = structure.cast_like((anchor, anchor_grad), (points, grads))
    return _anchored(points, grads, anchor, anchor_grad)


def successive(points: Rows, grads: Rows) -> SecantPairs:
    """Pairs by the steps of a trajectory, `s_k = x_{k+1} - x_k`, `y_k = g_{k+1} - g_k`.

    Args:
      points: n points in their order, a pytree whose leaves have a leading axis n.
      grads: the gradients there, of the same structure.

    Raises:
      TypeError: for leaves that are not real floating-point arrays.
      ValueError: for no points, or structures or shapes that differ.

    Example:
      >>> import jax.numpy as jnp
      >>> points = jnp.array([[0.0], [1.0], [3.0]])
      >>> successive(points, 2 * points).steps
      Array([[1.],
             [2.]], dtype=float32)
    """
    return _successive(*_cloud(points, grads))


def concatenate(*pairs: SecantPairs | tuple[Rows, Rows]) -> SecantPairs:
    """Joins all pairs of several sets to one set, in their order.

    Where only some of them know their rounding, the others count as rounded to their dtype.

    Raises:
      TypeError: for leaves that are not real floating-point arrays.
      ValueError: for no sets, or sets of different structure.

    Example:
      >>> import jax.numpy as jnp
      >>> pairs = SecantPairs(jnp.ones((2, 3)), jnp.ones((2, 3)))
      >>> concatenate(pairs, pairs).steps.shape
      (4, 3)
    """
    if not pairs:
        raise ValueError("concatenate must be given at least one set of pairs, got none")
    sets = [check(each)[0] for each in pairs]
    for each in sets:
        checks.like(
            each.steps, "each set's steps", sets[0].steps, "the first set", lead=1, pattern_lead=1
        )
    steps, grad_diffs = structure.concatenate(*[(each.steps, each.grad_diffs) for each in sets])
    if all(each.rounding is None for each in sets):
        return SecantPairs(steps, grad_diffs)
    return SecantPairs(steps, grad_diffs, structure.concatenate(*map(rounding, sets)))


def secant_pairs(
    loss: Loss,
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    pairing: Callable[[Rows, Rows], SecantPairs] = centered,
    batch_size: int | None = None,
) -> Callable:
    """Makes a function of points that takes their gradients and pairs them.

    Args:
      loss: a scalar function; it is differentiated once, in argument `argnums`.
      argnums: the argument that is a stack of points, or a tuple of such
        arguments; the others are shared by all points.
      has_aux: the loss returns `(value, aux)`.
      pairing: a function of `(points, grads)`: `centered`, `from_first`, `anchored`, `successive`.
      batch_size: how many gradients are computed at once, as in `jax.lax.map`;
        None computes all at once by `jax.vmap`.

    Returns:
      A function of the loss's arguments, in their order, with n points in place of
      one. It returns `SecantPairs`, or `(SecantPairs, aux)` with aux stacked over points.

    Raises:
      TypeError: for points that are not real floating-point arrays, or such a value of the loss.
      ValueError: for no points, leading axes that differ, or a loss that is not scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> pairs = secant_pairs(lambda x: jnp.sum(x**2))(jnp.eye(3))
      >>> bool(jnp.allclose(pairs.grad_diffs, 2 * pairs.steps))
      True
    """
    checks.function(pairing, "pairing")
    if batch_size is not None:
        checks.count(batch_size, "batch_size", 1)

    def pairs_of_points(*args):
        points, _, grads, aux = evaluate(loss, argnums, args, has_aux, batch_size)
        pairs = pairing(points, grads)
        if not isinstance(pairs, SecantPairs):
            raise TypeError(f"pairing must return SecantPairs, got {type(pairs).__name__}")
        return (pairs, aux) if has_aux else pairs

    return pairs_of_points


def evaluate(
    loss: Loss, argnums: Argnums, args: tuple, has_aux: bool, batch_size: int | None
) -> tuple[Rows, jax.Array, Rows, Any]:
    """The points among a loss's arguments; its values, gradients and aux (or None) at each."""
    points, rest = losses.split(argnums, args)
    points, _ = checks.rows(points, "points")
    at_point = jax.value_and_grad(losses.at(loss, argnums, rest, has_aux=has_aux), has_aux=has_aux)
    out, grads = xla.map_rows(at_point, points, batch_size)
    values, aux = out if has_aux else (out, None)
    return points, values, grads, aux


def check(pairs: SecantPairs | tuple[Rows, Rows]) -> tuple[SecantPairs, int]:
    """The pairs as arrays, a plain tuple (steps, grad_diffs) made `SecantPairs`; their number.

    Raises:
      TypeError: for anything else, or leaves that are not real floating-point arrays.
      ValueError: for no leaves, or steps and gradient differences of different structure.
    """
    if type(pairs) is tuple and len(pairs) == 2:
        pairs = SecantPairs(*pairs)
    if not isinstance(pairs, SecantPairs):
        found = f"a tuple of {len(pairs)}" if type(pairs) is tuple else type(pairs).__name__
        raise TypeError(f"pairs must be SecantPairs or a tuple (steps, grad_diffs), got {found}")
    steps, n = checks.rows(pairs.steps, "pairs.steps")
    grad_diffs, _ = checks.rows(pairs.grad_diffs, "pairs.grad_diffs")
    checks.like(grad_diffs, "pairs.grad_diffs", steps, "pairs.steps")
    if pairs.rounding is not None:
        checks.array(pairs.rounding, "pairs.rounding", (n,))
    steps, grad_diffs = structure.reshard((steps, grad_diffs))
    return SecantPairs(steps, grad_diffs, pairs.rounding), n


def rounding(pairs: SecantPairs) -> jax.Array:
    """Each pair's relative rounding error, (n,); that of the dtype where it is unknown."""
    if pairs.rounding is not None:
        return jnp.asarray(pairs.rounding)
    dtype = structure.compute_dtype(pairs.steps)
    return jnp.full(structure.length(pairs.steps), structure.resolution(pairs.steps), dtype)


def step_errors(pairs: SecantPairs) -> jax.Array | None:
    """How far off unit steps are, (n,), for what is only rounding in their combinations.

    `rounding` is a sum of two bounds, and an error of that kind is typically below 0.3 of one.
    """
    if pairs.rounding is None:
        return None
    dtype = structure.compute_dtype((pairs.steps, pairs.grad_diffs))
    error = lax.stop_gradient(jnp.asarray(pairs.rounding, dtype))
    return jnp.where(jnp.isfinite(error), error / 4, 0)


def _cloud(points, grads):
    points, n = checks.rows(points, "points")
    grads, _ = checks.rows(grads, "grads")
    checks.like(grads, "grads", points, "points")
    if n == 0:
        raise ValueError("points must hold at least one point, got a leading axis of 0")
    return structure.reshard((points, grads))


@jax.jit
def _centered(points, grads):
    n = structure.length(points)
    mean = jnp.full((n,), 1 / n, structure.compute_dtype((points, grads)))

    def from_mean(rows):
        near = _differences(rows, _first(rows))
        return _differences(near, tall.combine(mean, near))

    steps, grad_diffs = from_mean(points), from_mean(grads)
    steps = tall.scale(_resolved(steps, points), steps)
    return rounded(steps, grad_diffs, points, grads, _largest(points), _largest(grads))


@jax.jit
def _anchored(points, grads, anchor, anchor_grad):
    steps, grad_diffs = _differences(points, anchor), _differences(grads, anchor_grad)
    size = jnp.maximum(_largest(points), scaling.norm(anchor))
    grad_size = jnp.maximum(_largest(grads), scaling.norm(anchor_grad))
    return rounded(steps, grad_diffs, points, grads, size, grad_size)


@jax.jit
def _successive(points, grads):
    def forward(rows):
        return tall.minus(_rest(rows), jax.tree.map(lambda x: x[:-1], rows))

    steps, grad_diffs = forward(points), forward(grads)
    return rounded(steps, grad_diffs, points, grads, _largest(points), _largest(grads))


def rounded(steps, grad_diffs, points, grads, size, grad_size):
    """The pairs in the dtypes of the points, with their rounding.

    `size` and `grad_size` are the norms of the largest point and gradient that took part.
    """
    steps, grad_diffs = structure.cast_like(steps, points), structure.cast_like(grad_diffs, grads)
    eps = structure.resolution((steps, grad_diffs))
    dtype = structure.compute_dtype((steps, grad_diffs))
    sizes = (scaling.norms(steps), scaling.norms(grad_diffs), size, grad_size)
    step, grad_diff, size, grad_size = (x.astype(dtype) for x in sizes)
    used = step > 0
    step = jnp.where(used, step, 1)
    slope = jnp.max(jnp.where(used, grad_diff / step, 0), initial=0)
    flat = slope == 0
    equivalent = jnp.where(flat, jnp.inf, grad_size / jnp.where(flat, 1, slope))
    equivalent = jnp.where(grad_size == 0, 0, equivalent)
    lost = jnp.where(size + grad_size > 0, jnp.inf, 0)
    error = jnp.where(used, eps * (size + equivalent) / step, lost)
    return SecantPairs(steps, grad_diffs, lax.stop_gradient(error))


def _resolved(steps, points):
    """1 for a step with an entry of more than four roundings of the points' entries, else 0."""

    def leaf_resolved(s, x):
        noise = 4 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x), axis=0, keepdims=True)
        resolved = jnp.abs(s) > noise.astype(s.dtype)
        return jnp.any(resolved | jnp.isnan(s), axis=tuple(range(1, s.ndim)))

    found = jax.tree.leaves(jax.tree.map(leaf_resolved, steps, points))
    return functools.reduce(jnp.logical_or, found).astype(structure.compute_dtype(points))


def _largest(rows):
    return jnp.max(scaling.norms(rows), initial=0)


def _differences(rows, one):
    return tall.minus(rows, jax.tree.map(lambda a: a[None], one))


def _first(rows):
    return jax.tree.map(lambda x: x[0], rows)


def _rest(rows):
    return jax.tree.map(lambda x: x[1:], rows)
