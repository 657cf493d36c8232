"""Pytrees as vectors and rows: shapes, dtypes, shardings, and the same numbers in fewer leaves.

A set of n vectors is a pytree whose leaves have a leading axis n: the rows of an
(n, D) matrix that is never formed.
"""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from lowrank_jax._core.types import Rows, Vector


def length(rows: Rows) -> int:
    """The number n of rows."""
    return jax.tree.leaves(rows)[0].shape[0]


def row(rows: Rows) -> Vector:
    """The shapes, dtypes and explicit shardings of one row, as `jax.ShapeDtypeStruct`s."""

    def leaf_row(x):
        sharding = explicit_sharding(x, *jax.typeof(x).sharding.spec[1:])
        return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=sharding)

    return jax.tree.map(leaf_row, rows)


def size(v: Vector) -> int:
    """The number of entries of a vector."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(v))


def identity(v: Vector) -> Rows:
    """The unit vectors of the space of v, as many rows as it has entries."""
    leaves, tree = jax.tree.flatten(v)
    ends = list(itertools.accumulate(math.prod(leaf.shape) for leaf in leaves))
    eye = np.eye(size(v))
    blocks = np.split(eye, ends[:-1], axis=1)

    def leaf_rows(block, leaf):
        block = block.reshape(-1 if block.size else len(eye), *leaf.shape)
        return _placed_like(jnp.asarray(block, leaf.dtype), leaf, 1)

    return jax.tree.unflatten(tree, list(map(leaf_rows, blocks, leaves)))


def wider(*dtypes: Any) -> jnp.dtype:
    """The dtype that JAX promotes these to, also where implicit promotion is forbidden.

    NumPy's double precision counts as single where JAX has no other.
    """
    with jax.numpy_dtype_promotion("standard"):
        return jax.dtypes.canonicalize_dtype(functools.reduce(jnp.promote_types, dtypes))


def common_dtype(tree: Any) -> jnp.dtype:
    """The dtype to which the leaves promote."""
    return wider(*[leaf.dtype for leaf in jax.tree.leaves(tree)])


def compute_dtype(tree: Any) -> jnp.dtype:
    """The leaves' common dtype, float32 at least: small matrices have it."""
    return wider(common_dtype(tree), jnp.float32)


def resolution(tree: Any) -> float:
    """The machine epsilon of the least precise leaf."""
    return max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(tree))


def widen(tree: Any) -> Any:
    """All leaves in the dtype that is computed in."""
    dtype = compute_dtype(tree)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def concatenate(*sets: Rows) -> Rows:
    """The rows of several sets as one, in the dtypes to which their leaves promote."""

    def leaf_concatenated(*leaves):
        dtype = wider(*[leaf.dtype for leaf in leaves])
        return jnp.concatenate([leaf.astype(dtype) for leaf in leaves])

    return jax.tree.map(leaf_concatenated, *sets)


def cast_like(tree: Any, pattern: Any) -> Any:
    """The leaves of `tree` in the dtypes of `pattern`."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, pattern)


def matrix(rows: Rows) -> jax.Array:
    """The rows as one (n, D) matrix, whole on every device where axes are explicit."""
    leaves = [_placed(x, *[None] * x.ndim) for x in jax.tree.leaves(rows)]
    return jnp.concatenate([x.reshape(len(x), math.prod(x.shape[1:])) for x in leaves], axis=1)


def reshard(rows: Rows) -> Rows:
    """The rows with a part of each on every device, where explicit axes divide their number.

    Inner products of whole rows would move all of them to every device.
    """

    def leaf_resharded(x):
        lead, *spec = jax.typeof(x).sharding.spec
        if lead is None:
            return x
        parts = jax.typeof(x).sharding.mesh.shape
        count = math.prod(parts[axis] for axis in (lead if isinstance(lead, tuple) else (lead,)))
        fits = [s is None and size % count == 0 for s, size in zip(spec, x.shape[1:], strict=True)]
        if any(fits):
            spec[fits.index(True)] = lead
        return _placed(x, None, *spec)

    return jax.tree.map(leaf_resharded, rows)


def _placed(x, *spec):
    sharding = explicit_sharding(x, *spec)
    return x if sharding is None else jax.sharding.reshard(x, sharding)


def explicit_sharding(x, *spec):
    """The sharding of x, or with that spec on its mesh, where axes are explicit; else None."""
    sharding = jax.typeof(x).sharding
    if not sharding.mesh.explicit_axes:
        return None
    return sharding.update(spec=PartitionSpec(*spec)) if spec else sharding


def pack(rows: Rows) -> Rows:
    """The rows with all small leaves in one, so that many leaves do not make many operations.

    Where leaves differ in dtype, or may be sharded each in its own way, they stay as they are.
    """
    leaves = jax.tree.leaves(rows)
    small = _small([jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in leaves])
    if not any(small):
        return rows
    flat = [
        x.reshape(len(x), math.prod(x.shape[1:]))
        for x, packs in zip(leaves, small, strict=True)
        if packs
    ]
    # The barrier keeps the copy from being compiled into everything that reads it.
    packed = lax.optimization_barrier(jnp.concatenate(flat, axis=1))
    return [packed, *[x for x, packs in zip(leaves, small, strict=True) if not packs]]


def unpack(packed: Rows, v: Vector) -> Rows:
    """Packed rows, any number of them, each in the structure of the vector v."""
    leaves, tree = jax.tree.flatten(v)
    small = _small(leaves)
    if not any(small):
        return packed
    sizes = [math.prod(x.shape) for x, packs in zip(leaves, small, strict=True) if packs]
    parts, large = iter(_split(packed[0], tuple(sizes))), iter(packed[1:])
    rows = [next(parts if packs else large) for packs in small]
    shaped = [x.reshape(len(x), *like.shape) for x, like in zip(rows, leaves, strict=True)]
    return jax.tree.unflatten(tree, shaped)


def pack_vector(v: Vector) -> Vector:
    """One vector, packed as rows like it are."""
    return row_of(pack(jax.tree.map(lambda leaf: leaf[None], v)))


def unpack_vector(packed: Vector, v: Vector) -> Vector:
    """One packed vector in the structure of the vector v."""
    return row_of(unpack(jax.tree.map(lambda leaf: leaf[None], packed), v))


def row_of(rows: Rows, index: int = 0) -> Vector:
    """One of the rows."""
    return jax.tree.map(lambda leaf: leaf[index], rows)


def leading(rows: Rows, count: int) -> Rows:
    """The first rows, that many: rows of zeros follow where there are fewer."""

    def leaf_leading(x):
        missing = max(0, count - len(x))
        return jnp.pad(x[:count], [(0, missing)] + [(0, 0)] * (x.ndim - 1))

    return jax.tree.map(leaf_leading, rows)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _split(rows, sizes):
    """The parts of rows along their axis, of these sizes.

    A kernel that cuts out a part knows where it begins, and forty parts are forty kernels to
    compile. Told at run time, those of one size are one kernel. (JAX 0.12; 0.10 sees through it.)
    """
    starts = np.cumsum([0, *sizes[:-1]], dtype=np.int32)
    starts = lax.optimization_barrier(tuple(map(jnp.asarray, starts)))
    return [
        lax.dynamic_slice_in_dim(rows, start, size, 1, allow_negative_indices=False)
        for start, size in zip(starts, sizes, strict=True)
    ]


@_split.defjvp
def _split_jvp(sizes, primals, tangents):
    ends = np.cumsum(sizes)[:-1]  # whose transpose is one concatenation
    return _split(*primals, sizes), jnp.split(*tangents, ends, axis=1)


def _small(leaves):
    """Which leaves of a vector are packed."""
    small = [math.prod(x.shape) <= 2**16 for x in leaves]
    alone = jax.device_count() == 1 and len({x.dtype for x in leaves}) == 1
    return [alone and sum(small) > 1 and packs for packs in small]


def normal(key: jax.Array, v: Vector, shape: tuple[int, ...] = ()) -> Any:
    """Standard normal vectors like v, with the leading axes `shape`; a key of its own a leaf."""

    def draw(key, x):
        like = _sharding_like(x, len(shape))
        return jax.random.normal(key, (*shape, *x.shape), x.dtype, out_sharding=like)

    return _drawn(draw, key, v)


def uniform(key: jax.Array, v: Vector, n: int) -> Rows:
    """N rows like v of independent uniform numbers of mean 0 and variance 1.

    Random directions need not be normal, and random words are what takes the time. Of each there
    are four numbers, as it is rotated by bytes: their first bytes are independent, hence their
    signs; what they share counts a 256th.
    """

    def draw(key, x):
        like = _sharding_like(x, 1)
        words = jax.random.bits(key, (-(-n // 4), *x.shape), jnp.uint32, out_sharding=like)
        rotated = [words, *((words << i) | (words >> (32 - i)) for i in (8, 16, 24))]
        numbers = lax.bitcast_convert_type(jnp.concatenate(rotated)[:n], jnp.int32)
        return numbers.astype(x.dtype) * jnp.asarray(3**0.5 / 2**31, x.dtype)

    return _drawn(draw, key, v)


def _drawn(draw, key, v):
    leaves, tree = jax.tree.flatten(v)
    keys = [key] if len(leaves) == 1 else jax.random.split(key, len(leaves))
    return jax.tree.unflatten(tree, list(map(draw, keys, leaves)))


def _placed_like(rows, leaf, lead):
    sharding = _sharding_like(leaf, lead)
    return rows if sharding is None else jax.sharding.reshard(rows, sharding)


def _sharding_like(leaf, lead):
    """The sharding of rows like this leaf of a vector, where axes are explicit; else None."""
    like = leaf.sharding if isinstance(leaf, jax.ShapeDtypeStruct) else explicit_sharding(leaf)
    return like and like.update(spec=PartitionSpec(*[None] * lead, *like.spec))


def zeros(v: Vector, n: int) -> Rows:
    """N rows of zeros like v."""
    return jax.tree.map(lambda x: jnp.broadcast_to(jnp.zeros_like(x), (n, *x.shape)), v)
