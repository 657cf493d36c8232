"""Probes in passes: which steps are taken from a point, and where what is measured along them goes.

In each pass b steps are taken and measured, `y = H s`. The steps of the first
pass are random; those of a further pass are what the measurements of the pass before add
to the span of all steps so far. The pairs of p passes so belong to a block Krylov space,

    span(S) = span(X, H X, .. , H^(p-1) X),    X the b first steps,

which closes in on the eigenvectors of largest magnitude, and every measured pair is kept.

The pairs are two blocks of rows, packed, allocated once and written in place: by a loop on the
host, whose pieces are programs of their own, or by a `scan`. The directions of a pass come from
the grad_diffs of the pass before; those of the first one from the last rows, where
`begin` puts what the caller starts with. Rows of zeros there stand for random directions, which
are drawn when they are needed: drawing all at once would take as long as some of the gradients.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from lowrank_jax._clouds.pairs import SecantPairs
from lowrank_jax._core import checks, programs, scaling, structure, tall, xla
from lowrank_jax._core.types import Rows, Vector

MOST_SQUARE = 4  # of combinations that are orthonormal at once: longer ones magnify rounding


def check(probes: int, passes: int, batch_size: int | None, progress: bool) -> None:
    """The options of all that takes probes in passes.

    Raises:
      TypeError, ValueError: for wrong ones.
    """
    checks.count(probes, "probes", 1)
    checks.count(passes, "passes", 1)
    if batch_size is not None:
        checks.count(batch_size, "batch_size", 1)
    checks.flag(progress, "progress")


def begin(x: Vector, probes: int, passes: int, start: Rows | None) -> SecantPairs:
    """Room for the pairs.

    Raises:
      TypeError, ValueError: for a start that does not fit x.
    """
    if start is not None:
        start, count = checks.rows(start, "start")
        if count != probes:
            raise ValueError(f"start must have a leading axis of probes, {probes}, got {count}")
        checks.like(start, "start", x, "x", lead=1)
    shardings = tuple(map(_sharding_of_rows, jax.tree.leaves(x)))
    return _begin(x, start, probes * passes, shardings)


@partial(jax.jit, static_argnums=(2, 3))
def _begin(x, start, count, shardings):
    def placed(rows):  # as x, which only lends its shape and so would not pass its sharding on
        leaves, tree = jax.tree.flatten(rows)
        leaves = [
            leaf if place is None else lax.with_sharding_constraint(leaf, place)
            for leaf, place in zip(leaves, shardings, strict=True)
        ]
        return structure.pack(jax.tree.unflatten(tree, leaves))

    steps, grad_diffs = (placed(structure.zeros(x, count)) for _ in range(2))
    if start is not None:
        first = structure.pack(structure.cast_like(start, x))
        grad_diffs = write(grad_diffs, count - structure.length(first), first)
    return SecantPairs(steps, grad_diffs)


def _sharding_of_rows(leaf):
    """That of rows like a leaf on several devices; None where there is one, or JAX knows."""
    sharding = getattr(leaf, "sharding", None)
    if jax.device_count() == 1 or isinstance(leaf, jax.core.Tracer):
        return None
    if not isinstance(sharding, NamedSharding) or sharding.mesh.explicit_axes:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


@partial(jax.jit, static_argnums=2, donate_argnums=0)
def choose(pairs: SecantPairs, offset: jax.Array, probes: int, key: jax.Array) -> SecantPairs:
    """The pairs with the directions of the pass that begins at `offset` for its steps."""
    steps, grad_diffs, _ = pairs
    before = rows(grad_diffs, (offset - probes) % structure.length(steps), probes)
    key = jnp.where(offset == 0, key, jax.random.fold_in(key, offset))
    chosen = _new_directions(before, steps, offset, key)
    return SecantPairs(write(steps, offset, chosen), grad_diffs)


def rows(packed: Rows, offset: jax.Array, count: int) -> Rows:
    """That many rows."""
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, offset, count, 0), packed)


def read(packed: Rows, offset: jax.Array, count: int, x: Vector) -> Rows:
    """That many rows, in the structure of x."""
    return structure.unpack(rows(packed, offset, count), x)


def ahead(packed: Vector, steps: Rows, i: jax.Array, count: int, h: jax.Array) -> Rows:
    """`x + h s` for that many steps from the i-th on, x and all else packed."""
    return jax.vmap(lambda v: tall.axpy(packed, h, v))(rows(steps, i, count))


def write(packed: Rows, offset: jax.Array, new: Rows) -> Rows:
    """The rows with new ones in place of some."""
    return jax.tree.map(
        lambda old, some: lax.dynamic_update_slice_in_dim(old, some, offset, 0), packed, new
    )


@jax.jit
def unpacked(pairs: SecantPairs, x: Vector) -> SecantPairs:
    """The pairs in the structure of x."""
    steps, grad_diffs = (structure.unpack(packed, x) for packed in pairs[:2])
    return SecantPairs(steps, grad_diffs, pairs.rounding)


def loop(measure: Callable, state: tuple, probes: int, key: jax.Array) -> tuple | None:
    """All passes on the host.

    Args:
      measure: `measure(pairs, offset, memory)`, the pairs with the steps of one pass measured,
        and what the next pass is to know; None where what was measured is traced.
      state: the pairs, as from `begin`, and what the first pass is to know.
      probes: how many a pass.
      key: for random directions.
    """
    for offset in range(0, structure.length(state[0].steps), probes):
        state = measure(choose(state[0], offset, probes, key), offset, state[1])
        if state is None:
            return None
    return state


def scan(measure: Callable, state: tuple, probes: int, key: jax.Array) -> tuple:
    """All passes as one loop of a program; otherwise as `loop`."""

    def body(state, offset):
        pairs, memory = state
        return measure(choose(pairs, offset, probes, key), offset, memory), None

    return lax.scan(body, state, jnp.arange(0, structure.length(state[0].steps), probes))[0]


def checked_product(product: Callable, x: Vector, args: tuple) -> Callable:
    """The product at a point with these arguments, with errors for what does not fit x."""

    def at(x, v):
        y = checks.vector(product(x, v, *args), "product(x, v)")
        checks.like(y, "product(x, v)", x, "x")
        return structure.cast_like(y, x)

    return at


def multiply(
    product: Callable,
    x: Vector,
    given: Vector,
    pairs: SecantPairs,
    offset: int,
    count: int,
    done: Callable = lambda: None,
) -> SecantPairs | None:
    """The pairs with products of that many steps, one at a time on the host.

    None, as soon as a product is traced. `done` is called after each.
    """
    for i in range(offset, offset + count):
        v = row(pairs.steps, i, x)
        y = product(as_given(x, given), as_given(v, given))
        done()
        if programs.traced(y):
            return None
        pairs = SecantPairs(pairs.steps, _put(pairs.grad_diffs, i, y))
    return pairs


@jax.jit
def row(packed: Rows, i: jax.Array, x: Vector) -> Vector:
    """One row, in the structure of x."""
    return jax.tree.map(lambda one: one[0], read(packed, i, 1, x))


@partial(jax.jit, donate_argnums=0)
def _put(grad_diffs, i, y):
    return write(grad_diffs, i, structure.pack(jax.tree.map(lambda leaf: leaf[None], y)))


def as_given(tree: Vector, given: Vector) -> Vector:
    """Vectors with NumPy arrays, its own copies, in place of leaves that were given as such."""

    def leaf_as_given(leaf, pattern):
        return np.array(leaf) if isinstance(pattern, (np.ndarray, np.generic)) else leaf

    return jax.tree.map(leaf_as_given, tree, given)


@contextlib.contextmanager
def counter(total: int, progress: bool, what: str) -> Iterator[Callable]:
    """What is to be called after each of measurement, with the number of those done."""
    if not progress:
        yield lambda done=1: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=what) as bar:
        yield bar.update
        bar.total = bar.n  # a search for the step may end early
        bar.refresh()


def _new_directions(before: Rows, steps: Rows, offset: jax.Array, key: jax.Array) -> Rows:
    """Orthonormal rows: what rows add to the span of the first `offset` steps, or random ones.

    Two rounds of: zero rows replaced by random ones, unit length, projected, orthonormalised. What
    the first one leaves little of keeps rounding errors along the steps, which its unit length in
    the second one magnifies; where it leaves much of every row, it is the last. A row that is short
    in the second one as well was nothing but rounding and becomes zero; where there is one, there
    are two rounds more. A row that is zero then has found no room. (The steps are orthonormal to
    within the rounding of the points.)
    """
    count = structure.length(before)
    before, known = structure.widen((before, steps))
    dtype = structure.compute_dtype(known)
    taken = (jnp.arange(structure.length(known)) < offset).astype(dtype)
    least = jnp.array([0, 1 / 4, 0, 1 / 4], dtype)  # that a round leaves of a row, in squares
    key, taken, least = xla.vary_like((key, taken, least), known)
    # A square that the Gram matrix of unit rows tells from its rounding.
    short = 16 * count * float(jnp.finfo(dtype).eps)

    def filled(found, gone):
        # Once for all packed leaves: forty draws would take forty times as long to compile.
        drawn = structure.uniform(key, structure.row(found), count)
        return jax.tree.map(jnp.add, found, tall.scale(gone.astype(dtype), drawn))

    def round_(least, state):
        found, gone, _ = state
        found = lax.cond(jnp.any(gone), filled, lambda found, _: found, found, gone)
        unit = scaling.reciprocal(scaling.norms(found))
        inside = xla.blockwise_sum(_inside, unit, found, known) * taken[None, :]
        inner = xla.blockwise_sum(_outside_gram, (unit, inside), found, known)
        combine = _gram_schmidt(inner, short, least)
        found = xla.blockwise_map(_outside_combined, (unit, inside, combine), found, known)
        squares = jnp.sum(combine * combine, axis=1)
        return found, squares == 0, jnp.any((squares == 0) | (squares > MOST_SQUARE))

    def unless_done(state, least):
        return lax.cond(state[-1], partial(round_, least), lambda state: state, state), None

    gone = scaling.max_abs(before) == 0
    start = before, gone, xla.vary_like(jnp.array(True), gone)
    (found, _, _), _ = lax.scan(unless_done, start, least)
    return structure.cast_like(found, steps)


def _inside(unit, rows, known):
    return tall.gram(tall.scale(unit, rows), known)


def _outside(small, rows, known):
    unit, inside = small
    return jax.tree.map(jnp.subtract, tall.scale(unit, rows), tall.combine(inside, known))


def _outside_gram(small, rows, known):
    rows = _outside(small, rows, known)
    return tall.gram(rows, rows)


def _outside_combined(small, rows, known):
    return tall.combine(small[2], _outside(small[:2], rows, known))


def _gram_schmidt(inner: jax.Array, short: float, least: jax.Array) -> jax.Array:
    """The lower triangular T that makes rows of Gram matrix G orthonormal, `T G T^T = I`.

    A row of which less than `short` is left outside the span of those before it, in squares, is
    divided by the root of `short`; one of which less than `least` is left becomes zero.
    """
    count, order = len(inner), jnp.arange(len(inner))

    def take(i, rows):  # [T G | T]
        pivot = rows[i, i]
        size = jnp.where(pivot < least, 0, lax.rsqrt(jnp.maximum(pivot, short)))
        row = size * rows[i]
        along = jnp.where(order > i, row[:count], 0)
        return jnp.where((order == i)[:, None], row[None, :], rows - along[:, None] * row[None, :])

    start = jnp.concatenate([inner, jnp.eye(count, dtype=inner.dtype)], axis=1)
    return lax.fori_loop(0, count, take, start)[:, count:]
