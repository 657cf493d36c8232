"""What is written in a certain way for XLA's sake: passes in pieces, and loops over batches.

A chain of products along the long axis writes and reads that axis once for each link. Cut into
pieces, it runs through piece by piece. On a CPU they fit the cache, memory is read once for all of
the chain, and a tall product `A B^T` alone is four times as fast. Elsewhere links would take the
memory of the rows again and again; of larger pieces they take little, and a product alone, which
has none, stays whole. Where the rows may be sharded, the whole is one piece: a loop over a sharded
axis would gather it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._core.types import Rows

PIECE_SIZE = 2**18  # numbers in a piece of one operand: 1 MiB of float32, on a CPU
LARGE_PIECE_SIZE = 2**24  # elsewhere, where each piece is several kernels: 64 MiB


def blockwise_sum(
    f: Callable, small: Any, *rows: Rows, chain: bool = True, longest: int | None = None
) -> Any:
    """The sum of `f(small, *pieces)` over all leaves and pieces.

    Args:
      f: of arrays with a leading axis, a sum over all their other axes; no closure over traced
        values.
      small: what else f takes, a pytree.
      *rows: pytrees of one structure, each leaf with a leading axis.
      chain: whether f computes rows on the way, which would take memory.
      longest: how much of the long axis a piece takes at most.
    """
    cut = _cut(rows, longest) and (chain or _on_cpu())
    return _blockwise_sum(f, chain, longest, small, rows) if cut else _whole_sum(f, small, rows)


def with_derivative_of(value: Any, f: Callable, small: Any, *rows: Rows) -> Any:
    """A value that differs from `blockwise_sum(f, small, *rows)` by a constant, if at all.

    The sum is taken for derivatives alone.
    """
    return _with_derivative_of(f, value, small, rows)


def blockwise_map(f: Callable, small: Any, *rows: Rows) -> Rows:
    """The rows that `f(small, *pieces)` computes, entry by entry along all axes but the first."""
    return _blockwise_map(f, small, rows) if _cut(rows) else _whole_map(f, small, rows)


def _cut(rows, longest=None):
    return any(_width(leaves, longest) for leaves in _leaves(rows))


def _leaves(rows):
    return list(zip(*map(jax.tree.leaves, rows), strict=True))


def _width(leaves, longest=None):
    """How much of the long axis a piece takes; 0 for all of it."""
    size = leaves[0].size // max(len(leaves[0]), 1)
    width = (PIECE_SIZE if _on_cpu() else LARGE_PIECE_SIZE) // max(1, *map(len, leaves))
    width = min(width, longest or width)
    return width if jax.device_count() == 1 and 0 < 2 * width < size else 0


def _on_cpu():
    return jax.default_backend() == "cpu"


def _whole_sum(f, small, rows):
    terms = [f(small, *leaves) for leaves in _leaves(rows)]
    return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), terms)


def _whole_map(f, small, rows):
    return jax.tree.map(lambda *leaves: f(small, *leaves), *rows)


# Loops are for the values alone: derivatives are those of the whole. They need its links, and so
# the value of a chain comes with them; a product alone has none.


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _blockwise_sum(f, chain, longest, small, rows):
    def leaf_sum(_, *leaves):
        width = _width(leaves, longest)
        if not width:
            return f(small, *leaves)
        leaves = [x.reshape(len(x), -1) for x in leaves]
        count, rest = divmod(leaves[0].shape[1], width)

        def add(i, sofar):
            pieces = [lax.dynamic_slice_in_dim(x, rest + i * width, width, 1) for x in leaves]
            return jax.tree.map(jnp.add, sofar, f(small, *pieces))

        # Two at once: the threads share a product of small result badly.
        return lax.fori_loop(0, count, add, f(small, *[x[:, :rest] for x in leaves]), unroll=2)

    return _whole_sum(leaf_sum, small, rows)


@_blockwise_sum.defjvp
def _blockwise_sum_jvp(f, chain, longest, primals, tangents):
    value, tangent = jax.jvp(functools.partial(_whole_sum, f), primals, tangents)
    return value if chain else _blockwise_sum(f, chain, longest, *primals), tangent


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_derivative_of(f, value, small, rows):
    del small, rows
    return value


@_with_derivative_of.defjvp
def _with_derivative_of_jvp(f, primals, tangents):
    _, tangent = jax.jvp(functools.partial(_whole_sum, f), primals[1:], tangents[1:])
    return _with_derivative_of(f, *primals), tangent


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _blockwise_map(f, small, rows):
    def leaf_map(_, *leaves):
        width = _width(leaves)
        if not width:
            return f(small, *leaves)
        shape = leaves[0].shape[1:]
        leaves = [x.reshape(len(x), -1) for x in leaves]
        size = leaves[0].shape[1]
        first = jax.eval_shape(f, small, *[x[:, :width] for x in leaves])

        def write(i, written):  # the last piece overlaps the one before: slices stay within
            pieces = [lax.dynamic_slice_in_dim(x, i * width, width, 1) for x in leaves]
            return lax.dynamic_update_slice_in_dim(written, f(small, *pieces), i * width, 1)

        out = lax.empty((first.shape[0], size), first.dtype)
        return lax.fori_loop(0, -(-size // width), write, out).reshape(-1, *shape)

    return _whole_map(leaf_map, small, rows)


@_blockwise_map.defjvp
def _blockwise_map_jvp(f, primals, tangents):
    return jax.jvp(functools.partial(_whole_map, f), primals, tangents)


def map_rows(f: Callable, rows: Rows, batch_size: int | None) -> Any:
    """F of each row, stacked: that many rows at once, all of them for None."""
    if batch_size is None:
        return jax.vmap(f)(rows)
    if batch_size == 1:  # no batch of one: that would turn matrix products into batched ones
        return lax.map(f, rows)
    return lax.map(f, rows, batch_size=batch_size)


def vary_like(tree: Any, *others: Any) -> Any:
    """The tree itself; in a `shard_map` all of it varies over the devices, if any of the others do.

    What a loop carries must vary at its beginning as it does at its end, and a tangent as what it
    belongs to; a constant does not.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    varying = [jnp.sum(x) == 0 for x in jax.tree.leaves(others) if isinstance(x, jax.Array)]
    true = functools.reduce(jnp.logical_or, varying, jnp.array(True))
    return jax.tree.map(lambda x: jnp.where(true, x, x), tree)


def iterate(body: Callable, state: Any, *, until: Callable, most: int) -> Any:
    """`body(state)` again and again, until `until(state)`, at most so many times.

    The states of a batch whose turn is over stay as they are. On one device the loop ends with
    the last of them. On several it has `most` turns: members on one device need not know
    of those on others, which would make all devices wait for each other at every turn.
    """
    if jax.device_count() == 1:

        def unfinished(counted):
            return (counted[0] < most) & ~until(counted[1])

        return lax.while_loop(unfinished, lambda c: (c[0] + 1, body(c[1])), (0, state))[1]

    def turn(_, state):
        return jax.tree.map(lambda a, b: jnp.where(until(state), a, b), state, body(state))

    return lax.fori_loop(0, most, turn, state)


def once(x: Any) -> Any:
    """X, computed once and read from memory.

    XLA writes what is cheap anew into every kernel that reads it. Of a comparison of indices, which
    all small matrices share, LLVM makes a program as long as the matrix has entries. And on a GPU
    two kernels round the same sum differently: what is taken off twice must be the same number.
    """
    return lax.optimization_barrier(x)
