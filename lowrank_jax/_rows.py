"""Pytrees with a leading axis as tall matrices.

A set of n vectors is a pytree whose leaves have a leading axis n: the rows of an
(n, D) matrix that is never formed. All that is ever done along D is here, at
`Precision.HIGHEST`: above all inner products (`gram`) and small matrices times rows (`combine`).
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from lowrank_jax import _pieces


def length(rows: Any) -> int:
    """The number n of rows."""
    return jax.tree.leaves(rows)[0].shape[0]


def row(rows: Any) -> Any:
    """The shapes, dtypes and explicit shardings of one row, as `jax.ShapeDtypeStruct`s."""

    def leaf_row(x):
        sharding = _sharding(x, *jax.typeof(x).sharding.spec[1:])
        return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=sharding)

    return jax.tree.map(leaf_row, rows)


def size(v: Any) -> int:
    """The number of entries of a vector."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(v))


def identity(v: Any) -> Any:
    """The unit vectors of the space of v, as many rows as it has entries."""
    leaves, tree = jax.tree.flatten(v)
    ends = list(itertools.accumulate(math.prod(leaf.shape) for leaf in leaves))
    eye = np.eye(size(v))
    blocks = np.split(eye, ends[:-1], axis=1)
    rows = [
        jnp.asarray(block.reshape(-1 if block.size else len(eye), *leaf.shape), leaf.dtype)
        for block, leaf in zip(blocks, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, rows)


def wider(*dtypes: Any) -> jnp.dtype:
    """The dtype to which these promote, also where implicit promotion is forbidden."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


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


def joined(*sets: Any) -> Any:
    """The rows of several sets as one, in the dtypes to which their leaves promote."""

    def leaf_joined(*leaves):
        dtype = wider(*[leaf.dtype for leaf in leaves])
        return jnp.concatenate([leaf.astype(dtype) for leaf in leaves])

    return jax.tree.map(leaf_joined, *sets)


def cast_like(tree: Any, pattern: Any) -> Any:
    """The leaves of `tree` in the dtypes of `pattern`."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, pattern)


def matrix(rows: Any) -> jax.Array:
    """The rows as one (n, D) matrix, whole on every device where axes are explicit."""
    leaves = [_placed(x, *[None] * x.ndim) for x in jax.tree.leaves(rows)]
    return jnp.concatenate([x.reshape(len(x), math.prod(x.shape[1:])) for x in leaves], axis=1)


def spread(rows: Any) -> Any:
    """The rows with a part of each on every device, where explicit axes divide their number.

    Inner products of whole rows would move all of them to every device.
    """

    def leaf_spread(x):
        lead, *spec = jax.typeof(x).sharding.spec
        if lead is None:
            return x
        parts = jax.typeof(x).sharding.mesh.shape
        count = math.prod(parts[axis] for axis in (lead if isinstance(lead, tuple) else (lead,)))
        fits = [s is None and size % count == 0 for s, size in zip(spec, x.shape[1:], strict=True)]
        if any(fits):
            spec[fits.index(True)] = lead
        return _placed(x, None, *spec)

    return jax.tree.map(leaf_spread, rows)


def _placed(x, *spec):
    sharding = _sharding(x, *spec)
    return x if sharding is None else jax.sharding.reshard(x, sharding)


def _sharding(x, *spec):
    """The sharding of x, or with that spec on its mesh, where axes are explicit; else None."""
    sharding = jax.typeof(x).sharding
    if not sharding.mesh.explicit_axes:
        return None
    return sharding.update(spec=PartitionSpec(*spec)) if spec else sharding


def pack(rows: Any) -> Any:
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


def unpack(packed: Any, v: Any) -> Any:
    """Packed rows, any number of them, each in the structure of the vector v."""
    leaves, tree = jax.tree.flatten(v)
    small = _small(leaves)
    if not any(small):
        return packed
    sizes = [math.prod(x.shape) for x, packs in zip(leaves, small, strict=True) if packs]
    ends = list(itertools.accumulate(sizes))
    parts, large = iter(jnp.split(packed[0], ends[:-1], axis=1)), iter(packed[1:])
    rows = [next(parts if packs else large) for packs in small]
    shaped = [x.reshape(len(x), *like.shape) for x, like in zip(rows, leaves, strict=True)]
    return jax.tree.unflatten(tree, shaped)


def _small(leaves):
    """Which leaves of a vector are packed."""
    small = [math.prod(x.shape) <= 2**16 for x in leaves]
    alone = jax.device_count() == 1 and len({x.dtype for x in leaves}) == 1
    return [alone and sum(small) > 1 and packs for packs in small]


def gram(a: Any, b: Any) -> jax.Array:
    """Inner products `A B^T`: of n rows with m rows, (n, m), or with one vector, (n,)."""
    dtype = wider(compute_dtype(a), compute_dtype(b))
    a, b = (jax.tree.map(lambda leaf: leaf.astype(dtype), rows) for rows in (a, b))
    if jax.tree.leaves(a)[0].ndim == jax.tree.leaves(b)[0].ndim:
        return _pieces.total(_leaf_gram, None, pack(a), pack(b))
    return functools.reduce(jnp.add, jax.tree.leaves(jax.tree.map(_leaf_product, a, b)))


def _leaf_product(x, v):
    """`X v`; long sums in pieces, as a CPU's running sum of 1e7 products has an error of 1e-3."""
    if v.size > _pieces.SIZE:
        return _pieces.total(_leaf_gram, None, x, v[None])[:, 0]
    return _leaf_gram(None, x, v)


def _leaf_gram(_, x, y):
    point = x.ndim - 1
    axes = tuple(range(1, x.ndim)), tuple(range(y.ndim - point, y.ndim))
    everywhere = _sharding(x, *[None] * (1 + y.ndim - point))
    return jnp.tensordot(x, y, axes, precision=lax.Precision.HIGHEST, out_sharding=everywhere)


def dot(u: Any, v: Any) -> jax.Array:
    """The inner product of two vectors."""
    return gram(*(jax.tree.map(lambda leaf: leaf[None], x) for x in (u, v)))[0, 0]


def combine(coefficients: jax.Array, rows: Any, *, pairwise: bool = False) -> Any:
    """`T B`: a (k, n) matrix times n rows gives k rows, an (n,) vector gives one vector.

    Each leaf comes back in its own dtype. Where T makes orthonormal rows of ill-conditioned ones,
    terms cancel, and the rounding of a running sum of 64 is twice that of a pairwise one: the
    latter is taken above 32 rows where `pairwise` asks for it.
    """

    def leaf_combine(x):
        dtype = wider(x.dtype, coefficients.dtype)
        sum_over_n = _pairwise if pairwise and len(x) > 32 else _product
        return sum_over_n(coefficients.astype(dtype), x.astype(dtype)).astype(x.dtype)

    return jax.tree.map(leaf_combine, rows)


def _pairwise(t: jax.Array, x: jax.Array) -> jax.Array:
    if len(x) <= 4:
        return _product(t, x)
    half = len(x) // 2
    return _pairwise(t[:, :half], x[:half]) + _pairwise(t[:, half:], x[half:])


def _product(t: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tensordot(t, x, 1, precision=lax.Precision.HIGHEST)


def each(f: Callable, rows: Any, batch_size: int | None) -> Any:
    """F of each row, stacked: that many rows at once, all of them for None."""
    if batch_size is None:
        return jax.vmap(f)(rows)
    if batch_size == 1:  # no batch of one: that would turn matrix products into batched ones
        return lax.map(f, rows)
    return lax.map(f, rows, batch_size=batch_size)


def normal(key: jax.Array, v: Any, shape: tuple[int, ...] = ()) -> Any:
    """Standard normal vectors like v, with the leading axes `shape`; a key of its own a leaf."""

    def draw(key, x):
        like = x.sharding if isinstance(x, jax.ShapeDtypeStruct) else _sharding(x)
        if like is not None:
            like = like.update(spec=PartitionSpec(*[None] * len(shape), *like.spec))
        return jax.random.normal(key, (*shape, *x.shape), x.dtype, out_sharding=like)

    leaves, tree = jax.tree.flatten(v)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(tree, list(map(draw, keys, leaves)))


def zeros(v: Any, n: int) -> Any:
    """N rows of zeros like v."""
    return jax.tree.map(lambda x: jnp.broadcast_to(jnp.zeros_like(x), (n, *x.shape)), v)


def scale(factors: jax.Array, rows: Any) -> Any:
    """Row i times `factors[i]`, each leaf in its own dtype."""
    return jax.tree.map(
        lambda x: x * factors.reshape((-1,) + (1,) * (x.ndim - 1)).astype(x.dtype), rows
    )


def times(t: jax.Array, v: Any) -> Any:
    """`t v`, each leaf computed in the dtype of t, in its own dtype."""
    return jax.tree.map(lambda x: (t * x.astype(t.dtype)).astype(x.dtype), v)


def plus(v: Any, t: jax.Array, w: Any) -> Any:
    """`v + t w`, each leaf computed in the dtype of t, in the dtype of v."""

    def leaf_plus(x, y):
        return (x.astype(t.dtype) + t * y.astype(t.dtype)).astype(x.dtype)

    return jax.tree.map(leaf_plus, v, w)


def minus(v: Any, w: Any) -> Any:
    """`v - w`, each leaf in float32 at least: the difference of close numbers keeps its digits."""

    def leaf_minus(x, y):
        wide = wider(x.dtype, y.dtype, jnp.float32)
        return x.astype(wide) - y.astype(wide)

    return jax.tree.map(leaf_minus, v, w)


def finite(tree: Any) -> jax.Array:
    """Whether every entry is finite."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return functools.reduce(jnp.logical_and, leaves)


def reject(v: Any, basis: Any) -> Any:
    """What is left of one vector outside the span of orthonormal rows, `v - Q^T Q v`.

    Rounding leaves eps |v| in the span; of what a second call is given, it leaves nothing.
    """
    return jax.tree.map(jnp.subtract, v, combine(gram(basis, v), basis))


def peaks(rows: Any) -> jax.Array:
    """The largest magnitude in each row, (n,); a constant; not finite where the row is not."""

    def leaf_peaks(x):
        return jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim)), initial=0)

    rows = lax.stop_gradient(pack(widen(rows)))
    return functools.reduce(jnp.maximum, jax.tree.leaves(jax.tree.map(leaf_peaks, rows)))


def power_of_two(x: jax.Array) -> jax.Array:
    """A power of two within [x / 8, 8 x], 2 where x is 0 or not finite; a constant.

    Multiplying or dividing by it is exact, and so is its reciprocal.
    """
    return _two_to(exponent(x), x.dtype)


def exponent(x: jax.Array) -> jax.Array:
    """The exponent of `power_of_two(x)`, an integer."""
    x = lax.stop_gradient(x)
    info = jnp.finfo(x.dtype)
    bits = lax.bitcast_convert_type(jnp.where(jnp.isfinite(x) & (x > 0), x, 1), _integer(x.dtype))
    biased = lax.shift_right_logical(bits, jnp.full_like(bits, info.nmant))
    most = info.maxexp - 3
    return jnp.clip(biased.astype(jnp.int32) - (info.maxexp - 2), -most, most)


def shift(x: jax.Array, exponents: jax.Array) -> jax.Array:
    """`x 2^e`, exact; in two steps, as 2^e alone may be out of range where the product is not."""
    half = exponents // 2
    return x * _two_to(half, x.dtype) * _two_to(exponents - half, x.dtype)


def _two_to(exponents, dtype):
    """Powers of two, bit by bit: 0 below the normal numbers, the largest one above.

    With `jnp.ldexp`, as with `jnp.frexp`, the parts of a batch forget explicit axes (JAX 0.12).
    """
    info = jnp.finfo(dtype)
    biased = jnp.clip(exponents + (info.maxexp - 1), 0, 2 * info.maxexp - 2)
    biased = biased.astype(_integer(dtype))
    bits = lax.shift_left(biased, jnp.full_like(biased, info.nmant))
    return lax.bitcast_convert_type(bits, dtype)


def _integer(dtype):
    return jnp.dtype(f"int{jnp.finfo(dtype).bits}")


def norms(rows: Any) -> jax.Array:
    """The Euclidean norm of each row, (n,), without over- or underflow; the gradient at 0 is 0."""
    rows = pack(widen(rows))
    unit = power_of_two(peaks(rows))
    scaled = scale(1 / unit, rows)
    squares = jax.tree.map(lambda x: jnp.sum(x * x, axis=tuple(range(1, x.ndim))), scaled)
    return unit * safe_sqrt(functools.reduce(jnp.add, jax.tree.leaves(squares)))


def norm(v: Any) -> jax.Array:
    """The Euclidean norm of one vector."""
    return norms(jax.tree.map(lambda leaf: leaf[None], v))[0]


def safe_sqrt(x: jax.Array) -> jax.Array:
    """The square root of the positive part, with gradient 0 where that is 0."""
    flat = x <= 0
    return jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, x)))
