"""A diagonal plus an operator of low rank: linear systems, determinants and inverses.

For D positive and `H = B^T K B`,

    D + H = D^(1/2) (I + H') D^(1/2),    H' = D^(-1/2) H D^(-1/2),

and H' has the same form: a number D divides K, a vector D the factors. In the basis of
`reduced`, `H' = Q^T A Q` with `A = V diag(w) V^T`:

    (I + H')^-1 = I - Q^T N Q,    N = A (I + A)^-1,    log det (I + H') = sum log(1 + w),

positive definite where all `w > -1`. Derivatives are those in a basis that moves with the
factors, `Q = T B` with T constant, whose Gram matrix G is I at the point and no more:

    N = A (I + G A)^-1,    dN = (I - N G) dA (I - G N) - N dG N,
    d log det (I + G A) = tr(N dG) + tr((G - G N G) dA),

of all orders, also where rows of B depend on each other.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._core import scaling, structure, tall, xla
from lowrank_jax._core.orthonormal import ThinLQ, motion
from lowrank_jax._core.spectral import product, symmetrize
from lowrank_jax._core.types import Rows, Vector
from lowrank_jax._operators.reduced import function, reduce

Diagonal = jax.Array | Vector  # one number, or one a coordinate


def is_number(diagonal: Diagonal) -> bool:
    """Whether it is one number for all coordinates."""
    return jax.tree.structure(diagonal) == jax.tree.structure(0) and jnp.ndim(diagonal) == 0


def multiply(diagonal: Diagonal, v: Vector) -> Vector:
    """`D v`."""
    if is_number(diagonal):
        return jax.tree.map(lambda x: diagonal * x, v)
    return jax.tree.map(jnp.multiply, diagonal, v)


def multiply_rows(diagonal: Diagonal, rows: Rows) -> Rows:
    """`B D`."""
    if is_number(diagonal):
        return jax.tree.map(lambda x: diagonal * x, rows)
    return jax.tree.map(lambda d, x: d[None] * x, diagonal, rows)


def solve(diagonal: Diagonal, factors: Rows, core: jax.Array, b: Vector) -> Vector:
    """`(D + H)^-1 b`, with a small backward error and the derivatives of the linear system."""
    root, found = _reduced(*lax.stop_gradient((diagonal, factors, core)))
    basis, v = found.basis.rows, found.vectors
    divisor = 1 + found.values * found.unit

    def shifted(x):
        image = tall.combine(product(core, tall.gram(factors, x)), factors)
        return jax.tree.map(jnp.add, multiply(diagonal, x), image)

    def solved(_, b):
        x = multiply(root, b)
        inside = product(v, product(v.T, tall.gram(basis, x)) / divisor)
        for _ in range(2):  # of rounding along the span that the first leaves, nothing stays
            missed = tall.combine(inside - tall.gram(basis, x), basis)
            x = jax.tree.map(jnp.add, x, missed)
        return multiply(root, x)

    return lax.custom_linear_solve(shifted, b, solved, symmetric=True)


def log_determinant(diagonal: Diagonal, factors: Rows, core: jax.Array) -> jax.Array:
    """`log det (D + H)`, NaN where that is not positive definite."""
    moving = _moving(diagonal, factors, core)
    w = moving.values
    value = jnp.sum(jnp.log1p(jnp.where(w > -1, w, jnp.nan)))
    small = _log_determinant(moving.small, moving.gram, moving.inner, value)
    if is_number(diagonal):
        return structure.size(structure.row(factors)) * jnp.log(diagonal) + small
    return sum((jnp.sum(jnp.log(x)) for x in jax.tree.leaves(diagonal)), small)


def inverse(diagonal: Diagonal, factors: Rows, core: jax.Array) -> tuple[Any, Rows, jax.Array]:
    """`(D + H)^-1` as the diagonal, factors and core of another such matrix."""
    moving = _moving(diagonal, factors, core)
    scaled = _scaled(moving.root, moving.rows, -moving.inner)
    return jax.tree.map(lambda r: r * r, moving.root), *scaled


def draw_root(diagonal: Diagonal, factors: Rows, core: jax.Array) -> tuple[Any, Rows, jax.Array]:
    """D^(-1/2), Q and C with `R R^T = (D + H)^-1` for `R = D^(-1/2) (I + Q^T C Q)`.

    NaN where D + H is not positive definite.
    """
    root, found = _reduced(diagonal, factors, core)

    def shifted(w):  # (1 + w)^(-1/2) - 1, without cancellation
        size = jnp.sqrt(jnp.where(w > -1, 1 + w, jnp.nan))
        return -w / (size * (1 + size))

    slope = jnp.full((), -0.5, core.dtype)
    return root, found.basis.rows, function(shifted, slope, found)


def _reduced(diagonal, factors, core):
    """D^(-1/2), and H' reduced."""
    root = _inverse_root(diagonal)
    return root, reduce(*_scaled(root, factors, core))


def _inverse_root(diagonal):
    """D^(-1/2), NaN where D is not positive."""
    return jax.tree.map(lambda d: 1 / jnp.sqrt(jnp.where(d > 0, d, jnp.nan)), diagonal)


def _scaled(root, factors, core):
    """Factors and core of `D^(-1/2) H D^(-1/2)`."""
    if is_number(root):
        return factors, core * (root * root)
    return multiply_rows(root, factors), core


class _Moving(NamedTuple):
    """`H' = Q^T A Q` at the point, and beside it as a function of (D, B, K): see this module.

    Attributes:
      root: D^(-1/2).
      rows: Q = T B'.
      small: A.
      gram: G.
      inner: N.
      values: w, constants.
    """

    root: Any
    rows: Rows
    small: jax.Array
    gram: jax.Array
    inner: jax.Array
    values: jax.Array


def _moving(diagonal, factors, core):
    _, found = _reduced(*lax.stop_gradient((diagonal, factors, core)))
    root = _inverse_root(diagonal)
    factors, core = _scaled(root, factors, core)
    basis, v = found.basis, found.vectors
    rows = _with_motion(basis, factors)
    gram = xla.with_derivative_of(jnp.diag(basis.kept), _gram, None, rows, rows)
    free = (1 - basis.kept)[:, None]
    lifted = basis.scale[:, None] * basis.coordinates + jnp.diag(free[:, 0])
    small = product(lifted.T, core / basis.scale[:, None] / basis.scale[None, :], lifted)
    # A (I + G A)^-1 by blocks: the zero rows of Q are not in G.
    w, across = found.values * found.unit, free * product(found.half, v) * found.unit
    corner = free * free.T * found.core * found.unit
    mixed = product(across / (1 + w)[None, :], v.T)
    inner = product(v * (w / (1 + w))[None, :], v.T) + mixed + mixed.T
    inner += corner - product(mixed, product(v, across.T))
    return _Moving(root, rows, small, gram, _inner(small, gram, symmetrize(inner)), w)


def _gram(_, x, y):
    return tall.gram(x, y)


@jax.custom_jvp
def _with_motion(basis: ThinLQ, rows: Rows) -> Rows:
    """The rows Q, which are `T B`, with the derivative of that."""
    del rows
    return basis.rows


@_with_motion.defjvp
def _with_motion_jvp(primals, tangents):
    return _with_motion(*primals), tall.combine(motion(primals[0]), tangents[1], grouped=True)


@jax.custom_jvp
def _inner(small, gram, value):
    """`N = A (I + G A)^-1`, which is known."""
    del small, gram
    return value


@_inner.defjvp
def _inner_jvp(primals, tangents):
    n, gram = _inner(*primals), primals[1]
    rest = jnp.eye(len(n), dtype=n.dtype) - product(n, gram)
    return n, product(rest, tangents[0], rest.T) - product(n, tangents[1], n)


@jax.custom_jvp
def _log_determinant(small, gram, inner, value):
    """`log det (I + G A)`, which is known."""
    del small, gram, inner
    return value


@_log_determinant.defjvp
def _log_determinant_jvp(primals, tangents):
    _, gram, n, value = primals
    by_small = jnp.sum((gram - product(gram, n, gram)) * tangents[0])
    by_gram = jnp.sum(n * tangents[1])
    valid = scaling.nan_unless(~jnp.isnan(value), value.dtype)
    return _log_determinant(*primals), (by_small + by_gram) * valid
