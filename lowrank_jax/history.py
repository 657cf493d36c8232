"""The secant pairs of a trajectory, in a ring buffer of fixed size.

A training run computes points and gradients anyway. `push` makes the step between each two a
pair, in a state of fixed shapes: a pytree to carry through `jax.lax.scan`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._clouds.pairs import SecantPairs, rounded
from lowrank_jax._core import checks, scaling, structure, tall, xla
from lowrank_jax._core.types import Rows, Vector


class History(NamedTuple):
    """The last `memory_size` pairs of a trajectory and its last point.

    Attributes:
      steps: the ring of steps, leaves with a leading axis `memory_size`; unused rows are zero.
      grad_diffs: the ring of gradient differences; pair k is in row `k % memory_size`.
      norms: (memory_size, 2), of the larger point and the larger gradient of each pair; those that
        were given in a coarser dtype count for as much more as their rounding is larger.
      params: the last point.
      grads: the gradient there.
      last: (2,), their norms, counted likewise.
      points: how many different points were taken up, one more than pairs.
      skipped: how many pushes were left out, as they were not finite.
    """

    steps: Rows
    grad_diffs: Rows
    norms: jax.Array
    params: Vector
    grads: Vector
    last: jax.Array
    points: jax.Array
    skipped: jax.Array


def init(params: Vector, memory_size: int) -> History:
    """Returns an empty history for points like `params`.

    It takes the memory of `2 memory_size + 2` points.

    Args:
      params: a pytree; only its structure, shapes, dtypes and shardings matter, so that its leaves
        may be `jax.ShapeDtypeStruct`s. One without leaves, as optax makes them where all is
        masked, has a history without pairs.
      memory_size: how many pairs are kept.

    Raises:
      TypeError: for leaves that are not real floating-point arrays, or a memory size that is not a
        Python int.
      ValueError: for a memory size below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> pairs(init(jnp.ones(3), memory_size=2)).steps
      Array([[0., 0., 0.],
             [0., 0., 0.]], dtype=float32)
    """
    params = checks.form(params, "params")
    checks.count(memory_size, "memory_size", 1)

    def point():
        return jax.tree.map(jnp.zeros_like, params)

    def ring():
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (memory_size, *x.shape)), point())

    def count():
        return jnp.zeros((), jnp.int32)

    # Each array is its own, so that a history can be donated.
    dtype = structure.compute_dtype(params) if jax.tree.leaves(params) else jnp.float32
    norms = jnp.zeros((memory_size, 2), dtype)
    empty = History(
        ring(), ring(), norms, point(), point(), jnp.zeros_like(norms[0]), count(), count()
    )
    return xla.vary_like(empty, empty.params)


def push(history: History, params: Vector, grads: Vector) -> History:
    """Adds a point to the history: the step to it joins the pairs, the oldest one leaves.

    Both gradients of a pair should be of one loss. Where each is of a batch of its own, their
    difference is mostly the noise between the batches, which grows over the step as steps
    shrink: the Hessian that it seems to show is too large, indefinite, and another at every
    push. So push the new batch's gradient at the *old* point first: at an unchanged point a
    push forms no pair, and only the gradient is replaced.

        history = push(history, old_params, gradient(old_params, batch))
        history = push(history, params, gradient(params, batch))

    A point or gradient that is not finite (or whose difference is not) changes nothing but the
    count `skipped`; the next pair then spans two steps.

    Args:
      history: from `init` or `push`.
      params: the point.
      grads: the gradient there, of the same structure; taken in the dtypes of the history.

    Raises:
      TypeError: for leaves that are not real floating-point arrays, or anything but a `History`.
      ValueError: for structures or shapes that differ from the history's.

    Example:
      >>> import jax.numpy as jnp
      >>> history = init(jnp.ones(2), memory_size=3)
      >>> for x in ([1.0, 0.0], [3.0, 0.0], [3.0, 1.0]):
      ...     history = push(history, jnp.array(x), 2 * jnp.array(x))
      >>> pairs(history).grad_diffs
      Array([[0., 0.],
             [4., 2.],
             [0., 2.]], dtype=float32)
    """
    checks.instance(history, "history", History)
    for tree, name in ((params, "params"), (grads, "grads")):
        checks.like(checks.vector(tree, name), name, history.params, "the history")
    if not jax.tree.leaves(history.params):
        return history
    return _push(history, *map(checks.vector, (params, grads), ("params", "grads")))


@jax.jit
def _push(history, params, grads):
    pattern, old = history.params, (history.params, history.grads)
    given = tuple(structure.cast_like(tree, pattern) for tree in (params, grads))
    step, grad_diff = tall.minus(given, old)
    sizes = [jnp.max(scaling.max_abs(x)) for x in map(_one_row, (*given, step, grad_diff))]
    finite = jnp.all(jnp.isfinite(jnp.stack(sizes)))
    last = jnp.stack([_norm(*x) for x in zip(given, (params, grads), strict=True)])
    # What is left out is left out of derivatives too: 0 times NaN would be NaN.
    new = jax.tree.map(lambda x, y: jnp.where(finite, x, y), given, old)
    step, grad_diff = tall.minus(new, old)
    first = history.points == 0
    moved = finite & (first | (sizes[2] > 0))
    index = (history.points - 1) % len(history.norms)

    def write(ring, row):
        old = lax.dynamic_index_in_dim(ring, index, keepdims=False)
        row = jnp.where(moved & ~first, row.astype(old.dtype), old)
        return lax.dynamic_update_index_in_dim(ring, row, index, 0)

    return History(
        jax.tree.map(write, history.steps, step),
        jax.tree.map(write, history.grad_diffs, grad_diff),
        write(history.norms, jnp.maximum(last, history.last)),
        *new,
        jnp.where(finite, last, history.last),
        history.points + moved.astype(jnp.int32),
        history.skipped + (~finite).astype(jnp.int32),
    )


def _norm(kept, given):
    """The norm, times by how much the rounding of what was given is larger than of what is kept."""
    coarser = max(structure.resolution(given) / structure.resolution(kept), 1)
    return coarser * lax.stop_gradient(scaling.norm(kept)).astype(structure.compute_dtype(kept))


def _one_row(v):
    return jax.tree.map(lambda leaf: leaf[None], v)


def pairs(history: History) -> SecantPairs:
    """Pairs each earlier point with the last one, `memory_size` pairs, the longest way first.

    Pair k is the sum of all pairs from k on: on a trajectory whose gradients are all of one loss
    that is `x_last - x_k` and `g_last - g_k`. Successive steps span the same space, but those of
    a smooth trajectory are nearly parallel, and what is left of them after that is mostly noise.
    A history that is not full begins with zero pairs, which count for nothing: `fit` gives the
    operator of a shorter one.

    What a trajectory tells of the curvature is limited to where it goes. Of a full batch's smooth
    trajectory the largest eigenvalue of `fit(pairs(history))` is no estimate of the Hessian's: in
    training a small network, with 20 and 40 pairs, it was 1.0 to 2.6 times that with Adam or
    momentum, 1.6 to 3 times with plain gradient descent. Mini-batches, with both gradients of a
    pair from one batch, move in all directions: with the rtol of `choose_rtol` it was 0.8 to 1.2
    times that.

    Raises:
      TypeError: for anything but a `History`.
      ValueError: for one without leaves.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lowrank_jax import fit
      >>> gradient = jax.grad(lambda x: 2 * x[0] ** 2 - x[1] ** 2)
      >>> history = init(jnp.ones(3), memory_size=4)
      >>> for x in ([1.0, 0.0, 0.0], [1.0, 2.0, 0.0], [3.0, 3.0, 0.0]):
      ...     history = push(history, jnp.array(x), gradient(jnp.array(x)))
      >>> [round(float(s), 3) for s in fit(pairs(history)).truncate(2).eigenvalues()]
      [4.0, -2.0]
    """
    checks.instance(history, "history", History)
    checks.point(history.params, "history.params")
    return _pairs(history)


@jax.jit
def _pairs(history):
    ages = jnp.sort(age(history), descending=True)  # the rows of the result
    used = ages < history.points - 1
    later = used[:, None] & (age(history)[None, :] <= ages[:, None])
    later = later.astype(history.norms.dtype)
    steps, grad_diffs = (tall.combine(later, x) for x in (history.steps, history.grad_diffs))
    return rounded(steps, grad_diffs, steps, grad_diffs, *jnp.max(history.norms, axis=0))


def age(history: History) -> jax.Array:
    """Returns each row's age, (memory_size,): 0 for the newest pair; of unused rows too."""
    checks.instance(history, "history", History)
    memory_size = len(history.norms)
    return (history.points - 2 - jnp.arange(memory_size, dtype=jnp.int32)) % memory_size
