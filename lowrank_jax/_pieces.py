"""Passes over tall matrices, piece by piece.

A chain of products along the long axis reads and writes that axis once for each link. Cut into
pieces that fit the cache, the chain runs through piece by piece and memory is read once for all of
it; a tall product `A B^T` alone is four times as fast. This holds for the threads of one
CPU. Elsewhere, and where the rows may be sharded, the whole is one piece: a loop over a sharded
axis would gather it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

SIZE = 2**18  # numbers in a piece of one operand: 1 MiB of float32


def total(f: Callable, small: Any, *rows: Any) -> Any:
    """The sum of `f(small, *pieces)` over all leaves and pieces.

    Args:
      f: of arrays with a leading axis, a sum over all their other axes; no closure over traced
        values.
      small: what else f takes, a pytree.
      *rows: pytrees of one structure, each leaf with a leading axis.
    """
    return _total(f, small, rows) if _cut(rows) else _whole_total(f, small, rows)


def known(value: Any, f: Callable, small: Any, *rows: Any) -> Any:
    """The value of `total(f, small, *rows)` where it is known already, with its derivatives."""
    return _known(f, value, small, rows)


def written(f: Callable, small: Any, *rows: Any) -> Any:
    """The rows that `f(small, *pieces)` computes, entry by entry along all axes but the first."""
    return _written(f, small, rows) if _cut(rows) else _whole_written(f, small, rows)


def _cut(rows):
    return any(_width(leaves) for leaves in _leaves(rows))


def _leaves(rows):
    return list(zip(*map(jax.tree.leaves, rows), strict=True))


def _width(leaves):
    """How much of the long axis a piece takes; 0 for all of it."""
    size = leaves[0].size // max(len(leaves[0]), 1)
    width = SIZE // max(1, *map(len, leaves))
    alone = jax.default_backend() == "cpu" and jax.device_count() == 1
    return width if alone and 0 < 2 * width < size else 0


def _whole_total(f, small, rows):
    terms = [f(small, *leaves) for leaves in _leaves(rows)]
    return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), terms)


def _whole_written(f, small, rows):
    return jax.tree.map(lambda *leaves: f(small, *leaves), *rows)


# Loops are for the values alone: derivatives are those of the whole.


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _total(f, small, rows):
    def leaf_total(_, *leaves):
        width = _width(leaves)
        if not width:
            return f(small, *leaves)
        leaves = [x.reshape(len(x), -1) for x in leaves]
        count, rest = divmod(leaves[0].shape[1], width)

        def add(i, sofar):
            pieces = [lax.dynamic_slice_in_dim(x, rest + i * width, width, 1) for x in leaves]
            return jax.tree.map(jnp.add, sofar, f(small, *pieces))

        # Two at once: the threads share a product of small result badly.
        return lax.fori_loop(0, count, add, f(small, *[x[:, :rest] for x in leaves]), unroll=2)

    return _whole_total(leaf_total, small, rows)


@_total.defjvp
def _total_jvp(f, primals, tangents):
    return jax.jvp(functools.partial(_whole_total, f), primals, tangents)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _known(f, value, small, rows):
    del small, rows
    return value


@_known.defjvp
def _known_jvp(f, primals, tangents):
    return jax.jvp(functools.partial(_whole_total, f), primals[1:], tangents[1:])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _written(f, small, rows):
    def leaf_written(_, *leaves):
        width = _width(leaves)
        if not width:
            return f(small, *leaves)
        shape = leaves[0].shape[1:]
        leaves = [x.reshape(len(x), -1) for x in leaves]
        size = leaves[0].shape[1]
        first = f(small, *[x[:, :width] for x in leaves])

        def write(i, written):  # the last piece overlaps the one before
            pieces = [lax.dynamic_slice_in_dim(x, i * width, width, 1) for x in leaves]
            return lax.dynamic_update_slice_in_dim(written, f(small, *pieces), i * width, 1)

        out = lax.empty((len(first), size), first.dtype)
        return lax.fori_loop(0, -(-size // width), write, out).reshape(-1, *shape)

    return _whole_written(leaf_written, small, rows)


@_written.defjvp
def _written_jvp(f, primals, tangents):
    return jax.jvp(functools.partial(_whole_written, f), primals, tangents)
