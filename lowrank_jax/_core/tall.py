"""All that is ever done along the long axis D of rows and vectors, at `Precision.HIGHEST`.

Above all inner products (`gram`) and small matrices times rows (`combine`).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowrank_jax._core import structure, xla
from lowrank_jax._core.types import Rows, Vector

LONGEST_SUM = 2**14  # of products that are added one by one, as of rows and one vector on a CPU


def gram(a: Rows, b: Rows) -> jax.Array:
    """Inner products `A B^T`: of n rows with m rows, (n, m), or with one vector, (n,)."""
    dtype = structure.wider(structure.compute_dtype(a), structure.compute_dtype(b))
    a, b = (jax.tree.map(lambda leaf: leaf.astype(dtype), rows) for rows in (a, b))
    if jax.tree.leaves(a)[0].ndim == jax.tree.leaves(b)[0].ndim:
        packed = structure.pack(a), structure.pack(b)
        return xla.blockwise_sum(_leaf_gram, None, *packed, chain=False)
    return functools.reduce(jnp.add, jax.tree.leaves(jax.tree.map(_leaf_product, a, b)))


def _leaf_product(x, v):
    """`X v`; long sums in pieces: a CPU's running sum of 2^18 products is off by up to 1e-4."""
    if v.size > 2 * LONGEST_SUM:
        options = {"chain": False, "longest": LONGEST_SUM}
        return xla.blockwise_sum(_leaf_gram, None, x, v[None], **options)[:, 0]
    return _leaf_gram(None, x, v)


def _leaf_gram(_, x, y):
    point = x.ndim - 1
    axes = tuple(range(1, x.ndim)), tuple(range(y.ndim - point, y.ndim))
    everywhere = structure.explicit_sharding(x, *[None] * (1 + y.ndim - point))
    return jnp.tensordot(x, y, axes, precision=lax.Precision.HIGHEST, out_sharding=everywhere)


def scaled_gram(factors: jax.Array, rows: Rows) -> jax.Array:
    """Inner products of n rows with each other, row i times `factors[i]`; all of one dtype."""
    return xla.blockwise_sum(_scaled_gram, factors, rows)


def _scaled_gram(factors, rows):
    rows = scale(factors, rows)
    return gram(rows, rows)


def dot(u: Vector, v: Vector) -> jax.Array:
    """The inner product of two vectors."""
    return gram(*(jax.tree.map(lambda leaf: leaf[None], x) for x in (u, v)))[0, 0]


def combine(coefficients: jax.Array, rows: Rows, *, grouped: bool = False) -> Any:
    """`T B`: a (k, n) matrix times n rows gives k rows, an (n,) vector gives one vector.

    Each leaf comes back in its own dtype. Where T makes orthonormal rows of ill-conditioned ones,
    terms cancel, and the rounding of a running sum of 64 is several times that of a sum of
    sums of 8. The latter is taken above 32 rows where `grouped` asks for it.
    """

    def leaf_combine(x):
        dtype = structure.wider(x.dtype, coefficients.dtype)
        sum_over_n = _grouped if grouped and len(x) > 32 else _product
        return sum_over_n(coefficients.astype(dtype), x.astype(dtype)).astype(x.dtype)

    return jax.tree.map(leaf_combine, rows)


def _grouped(t: jax.Array, x: jax.Array) -> jax.Array:
    """`T X` as a sum over groups of about sqrt(n) rows, in a loop.

    The last group reaches back into the one before, whose rows then count nothing.
    """
    n = len(x)
    size = math.isqrt(n - 1) + 1

    def add(i, total):
        start = jnp.minimum(i * size, n - size)
        new = start + np.arange(size, dtype=np.int32) >= i * size
        coefficients = jnp.where(new[None, :], lax.dynamic_slice_in_dim(t, start, size, 1), 0)
        return total + _product(coefficients, lax.dynamic_slice_in_dim(x, start, size, 0))

    return lax.fori_loop(1, -(-n // size), add, _product(t[:, :size], x[:size]))


def _product(t: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tensordot(t, x, 1, precision=lax.Precision.HIGHEST)


def scale(factors: jax.Array, rows: Rows) -> Rows:
    """Row i times `factors[i]`, each leaf in its own dtype."""
    return jax.tree.map(
        lambda x: x * factors.reshape((-1,) + (1,) * (x.ndim - 1)).astype(x.dtype), rows
    )


def where(chosen: jax.Array, rows: Rows) -> Rows:
    """The chosen rows; all others are exactly zero, whatever they were."""
    return jax.tree.map(
        lambda x: jnp.where(chosen.reshape((-1,) + (1,) * (x.ndim - 1)), x, 0), rows
    )


def times(t: jax.Array, v: Vector) -> Vector:
    """`t v`, each leaf computed in the dtype of t, in its own dtype."""
    return jax.tree.map(lambda x: (t * x.astype(t.dtype)).astype(x.dtype), v)


def axpy(v: Vector, t: jax.Array, w: Vector) -> Vector:
    """`v + t w`, each leaf computed in the dtype of t, in the dtype of v."""

    def leaf_axpy(x, y):
        return (x.astype(t.dtype) + t * y.astype(t.dtype)).astype(x.dtype)

    return jax.tree.map(leaf_axpy, v, w)


def minus(v: Vector, w: Vector) -> Vector:
    """`v - w`, each leaf in float32 at least: the difference of close numbers keeps its digits."""

    def leaf_minus(x, y):
        wide = structure.wider(x.dtype, y.dtype, jnp.float32)
        return x.astype(wide) - y.astype(wide)

    return jax.tree.map(leaf_minus, v, w)


def finite(tree: Any) -> jax.Array:
    """Whether every entry is finite: whether the largest magnitude is, which is quicker to see."""
    leaves = jax.tree.leaves(lax.stop_gradient(tree))
    leaves = [jnp.isfinite(jnp.max(jnp.abs(leaf), initial=0)) for leaf in leaves]
    return functools.reduce(jnp.logical_and, leaves)


def project_out(v: Vector, basis: Rows) -> Vector:
    """What is left of one vector outside the span of orthonormal rows, `v - Q^T Q v`.

    Rounding leaves eps |v| in the span; of what a second call is given, it leaves nothing.
    """
    v = xla.once(v)
    return jax.tree.map(jnp.subtract, v, combine(gram(basis, v), basis))
