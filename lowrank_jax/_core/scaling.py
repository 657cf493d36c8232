"""Magnitudes: powers of two, norms, and divisions and roots that are guarded where they vanish."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._core import structure, tall
from lowrank_jax._core.types import Rows, Vector


def max_abs(rows: Rows) -> jax.Array:
    """The largest magnitude in each row, (n,); a constant; not finite where the row is not.

    It is 0 where all are subnormal: one over them overflows, and a CPU takes them for zeros.
    """

    def leaf_max_abs(x):
        return jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim)), initial=0)

    rows = lax.stop_gradient(structure.pack(structure.widen(rows)))
    peaks = functools.reduce(jnp.maximum, jax.tree.leaves(jax.tree.map(leaf_max_abs, rows)))
    return jnp.where(peaks < jnp.finfo(peaks.dtype).tiny, 0, peaks)


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


def norms(rows: Rows) -> jax.Array:
    """The Euclidean norm of each row, (n,), without over- or underflow; the gradient at 0 is 0."""
    rows = structure.pack(structure.widen(rows))
    unit = power_of_two(max_abs(rows))
    scaled = tall.scale(1 / unit, rows)
    squares = jax.tree.map(lambda x: jnp.sum(x * x, axis=tuple(range(1, x.ndim))), scaled)
    return unit * safe_sqrt(functools.reduce(jnp.add, jax.tree.leaves(squares)))


def norm(v: Vector) -> jax.Array:
    """The Euclidean norm of one vector."""
    return norms(jax.tree.map(lambda leaf: leaf[None], v))[0]


def safe_sqrt(x: jax.Array) -> jax.Array:
    """The square root of the positive part, with gradient 0 where that is 0."""
    flat = x <= 0
    return jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, x)))


def reciprocal(x: jax.Array) -> jax.Array:
    """1 / x, and 0 where x is 0; its derivative there is 0 as well."""
    zero = x == 0
    return jnp.where(zero, 0, 1 / jnp.where(zero, 1, x))


def ratio(a, b):
    """The ratio; 0 / 0 is 0."""
    zero = b == 0
    return jnp.where(zero, jnp.where(a == 0, 0, jnp.inf), a / jnp.where(zero, 1, b))


def nan_unless(valid: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """A factor that makes NaN of every number where not valid, and changes nothing elsewhere."""
    return jnp.where(valid, 1, jnp.nan).astype(dtype)
