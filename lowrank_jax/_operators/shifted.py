"""A diagonal plus an operator of low rank: linear systems, determinants and inverses.

For D positive and `H = B^T K B`,

    D + H = D^(1/2) (I + H') D^(1/2),    H' = D^(-1/2) H D^(-1/2),

and in the basis of `reduced`, found beforehand, `H' = Q^T A Q` with `A = V diag(w) V^T`:

    (I + H')^-1 = I - Q^T N Q,    N = A (I + A)^-1,    log det (I + H') = sum log(1 + w),

positive definite where all `w > -1`. Derivatives are those in a basis that moves with the
factors, `Q = T B` with T constant, whose Gram matrix G is I at the point and no more:

    N = A (I + G A)^-1,    dN = (I - N G) dA (I - G N) - N dG N,
    d log det (I + G A) = tr(N dG) + tr((G - G N G) dA),

of all orders, also where rows of B depend on each other. What was found is a constant to them; to
those of `draw_root` it is not.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._core import scaling, structure, tall, xla
from lowrank_jax._core.orthonormal import ThinLQ, motion
from lowrank_jax._core.spectral import eigh, product, svd, symmetrize
from lowrank_jax._core.types import Rows, Vector
from lowrank_jax._operators.reduced import (
    Diagonal,
    Reduced,
    function,
    in_units_of,
    inverse_root,
    is_number,
    positive,
    spectrum,
)


def multiply(diagonal: Diagonal, v: Vector) -> Vector:
    """`D v`."""
    if is_number(diagonal):
        return jax.tree.map(lambda x: diagonal * x, v)
    return jax.tree.map(jnp.multiply, diagonal, v)


def solve(found: Reduced, diagonal: Diagonal, factors: Rows, core: jax.Array, b: Vector) -> Vector:
    """`(D + H)^-1 b`, with a small backward error and the derivatives of the linear system."""
    system = diagonal, factors, core, b
    diagonal, factors, core, b = xla.vary_like(system, system)
    d = lax.stop_gradient(positive(diagonal))
    before, after = (jnp.ones_like(d), 1 / d) if is_number(d) else (inverse_root(d),) * 2
    basis, resolvent = found.basis.rows, _resolvent(found, graded=not is_number(diagonal))

    def shifted(x):
        image = tall.combine(product(core, tall.gram(factors, x)), factors)
        return jax.tree.map(jnp.add, multiply(diagonal, x), image)

    def solved(_, b):
        x = approximate(b)
        if not is_number(diagonal):  # what is small beside H' need not be so beside H
            x = jax.tree.map(jnp.add, x, approximate(jax.tree.map(jnp.subtract, b, shifted(x))))
        return x

    def approximate(b):
        x = xla.once(multiply(before, b))
        inside = resolvent.of(tall.gram(basis, x))
        for _ in range(2):  # of rounding along the span that the first leaves, nothing stays
            missed = tall.combine(inside - tall.gram(basis, x), basis)
            x = xla.once(jax.tree.map(jnp.add, x, missed))
        return multiply(after, x)

    return lax.custom_linear_solve(shifted, b, solved, symmetric=True)


def log_determinant(
    found: Reduced, diagonal: Diagonal, factors: Rows, core: jax.Array
) -> jax.Array:
    """`log det (D + H)`, NaN where that is not positive definite."""
    moving = _moving(found, diagonal, factors, core)
    small = _log_determinant(moving.small, moving.gram, moving.inner, moving.value)
    if is_number(diagonal):
        return structure.size(structure.row(factors)) * jnp.log(diagonal) + small
    return sum((jnp.sum(jnp.log(x)) for x in jax.tree.leaves(diagonal)), small)


def inverse(
    found: Reduced, diagonal: Diagonal, factors: Rows, core: jax.Array
) -> tuple[Any, Rows, jax.Array]:
    """`(D + H)^-1` as the diagonal, factors and core of another such matrix."""
    moving = _moving(found, diagonal, factors, core)
    d = positive(diagonal)
    return jax.tree.map(lambda d: 1 / d, d), *in_units_of(d, moving.rows, -moving.inner)


def draw_root(found: Reduced, diagonal: Diagonal) -> tuple[Any, Rows, jax.Array]:
    """D^(-1/2), Q and C with `R R^T = (D + H)^-1` for `R = D^(-1/2) (I + Q^T C Q)`.

    NaN where D + H is not positive definite.
    """
    d = positive(diagonal)
    pairs = None if is_number(d) else _graded_spectrum(lax.stop_gradient(found))

    def shifted(w):  # (1 + w)^(-1/2) - 1, without cancellation
        size = jnp.sqrt(jnp.where(w > -1, 1 + w, jnp.nan))
        return -w / (size * (1 + size))

    slope = jnp.full((), -0.5, found.core.dtype)
    return inverse_root(d), found.basis.rows, function(shifted, slope, found, pairs)


def _graded_spectrum(found):
    """Eigenpairs of A with `(1 + w)^(-1/2)` right to rounding: NaN where one is not real.

    They are singular values of the root `V T^-1 U diag(1 + w)^(-1/2)` of `(I + A)^-1`.
    """
    resolvent = _resolvent(found, graded=True)
    scale, u, _ = resolvent.graded
    squares = 1 + resolvent.values
    valid = jnp.all(squares > 0)
    root = u / scale[:, None] * lax.rsqrt(jnp.where(valid, squares, 1))[None, :]
    v, s, _ = svd(root)
    w = (1 - s) * (1 + s) / s**2
    return w / found.unit * scaling.nan_unless(valid, w.dtype), product(resolvent.turn, v)


class _Moving(NamedTuple):
    """`H' = Q^T A Q` at the point, and beside it as a function of (D, B, K): see this module.

    Attributes:
      rows: Q = T B'.
      small: A.
      gram: G.
      inner: N.
      value: `log det (I + A)`, a constant.
    """

    rows: Rows
    small: jax.Array
    gram: jax.Array
    inner: jax.Array
    value: jax.Array


def _moving(found, diagonal, factors, core):
    factors, core = in_units_of(positive(diagonal), factors, core)
    basis = found.basis
    rows = _with_motion(basis, factors)
    gram = xla.with_derivative_of(jnp.diag(basis.kept), _gram, None, rows, rows)
    free = (1 - basis.kept)[:, None]
    lifted = basis.coordinates + jnp.diag(free[:, 0])
    small = product(lifted.T, core / basis.scale[:, None] / basis.scale[None, :], lifted)
    # A (I + G A)^-1 by blocks: the zero rows of Q are not in G.
    resolvent = _resolvent(found, graded=not is_number(diagonal))
    y = resolvent.of(jnp.eye(len(basis.kept), dtype=core.dtype))
    across = free * found.half * found.unit
    mixed = product(across, y)
    corner = free * free.T * found.core * found.unit - product(mixed, across.T)
    inner = resolvent.complement() + mixed + mixed.T + corner
    inner = _inner(small, gram, symmetrize(inner))
    return _Moving(rows, small, gram, inner, resolvent.log_determinant())


class _Resolvent(NamedTuple):
    """`I + A = V M V^T` for an orthogonal V: M is diagonal, or graded as A is, `M = I + C`.

    Eigenvalues of A are known to eps times the largest one. Where D, and so A, spans many
    magnitudes, nothing would be left of H along the large numbers of D. What is left is in small
    coordinates L V of the factors along the eigenvectors V of small eigenvalues, hence in
    `C = V^T L^T K L V`: of `M = T U diag(1 + w) U^T T`, T diagonal, the middle has rows that are
    alike, as a Cholesky factorization would find them.

    Source: Demmel and Veselic, Jacobi's method is more accurate than QR, SIAM J. Matrix Anal.
    Appl. 13 (1992), for what scaled matrices determine.

    Attributes:
      turn: V.
      values: w, the eigenvalues of A or those of the middle less 1.
      graded: T, U and C, or nothing where M is diagonal.
    """

    turn: jax.Array
    values: jax.Array
    graded: tuple[jax.Array, jax.Array, jax.Array] | None = None

    def of(self, x):
        """`(I + A)^-1 X`, for a vector or columns."""
        return product(self.turn, self._of(product(self.turn.T, x)))

    def _of(self, x):
        """`M^-1 X`."""

        def along(s):
            return jnp.expand_dims(s, tuple(range(1, x.ndim)))

        if self.graded is None:
            return x / (1 + along(self.values))
        scale, vectors, _ = self.graded
        y = product(vectors.T, x / along(scale)) / (1 + along(self.values))
        return product(vectors, y) / along(scale)

    def complement(self):
        """`I - (I + A)^-1 = V (M^-1 C M^-1 + (I - M^-1)^2) V^T`: small where A is, and as right."""
        if self.graded is None:
            inside = jnp.diag(self.values / (1 + self.values))
        else:
            eye = jnp.eye(len(self.turn), dtype=self.turn.dtype)
            y = self._of(eye)
            inside = product(y, self.graded[2], y) + product(eye - y, eye - y)
        return product(self.turn, inside, self.turn.T)

    def log_determinant(self):
        w = self.values
        logs = jnp.sum(jnp.log1p(jnp.where(w > -1, w, jnp.nan)))
        return logs if self.graded is None else logs + 2 * jnp.sum(jnp.log(self.graded[0]))


def _resolvent(found, *, graded):
    w, turn = spectrum(found)
    unit = found.unit
    if not graded:
        return _Resolvent(turn, w * unit)
    left, eye = product(found.basis.coordinates, turn), jnp.eye(len(turn), dtype=turn.dtype)
    c = symmetrize(product(left.T, found.core, left)) * unit
    terms = product(jnp.abs(left).T, jnp.abs(found.core), jnp.abs(left)) * unit  # summed up to C
    largest = jnp.maximum(jnp.max(terms, axis=1, initial=0), 1)
    scale = jnp.sqrt(1 + jnp.max(terms / largest[None, :] * terms, axis=1, initial=0))
    scaled = terms / scale[:, None] / scale[None, :]
    noise = 2 * math.sqrt(len(c)) * jnp.finfo(c.dtype).eps * (1 + jnp.max(scaled, initial=0))
    m, v = eigh((c + eye) / scale[:, None] / scale[None, :])
    of_identity = jnp.sum((v / scale[:, None]) ** 2, axis=0)
    # The curvature of H, exactly 0 where it is rounding.
    curvature = jnp.where(jnp.abs(m - of_identity) <= noise, 0, m - of_identity)
    return _Resolvent(turn, of_identity + curvature - 1, (scale, v, c))


def _gram(_, x, y):
    return tall.gram(x, y)


@jax.custom_jvp
def _with_motion(basis: ThinLQ, rows: Rows) -> Rows:
    """The rows Q, which are `T B`, with the derivative of that."""
    del rows
    return basis.rows


@_with_motion.defjvp
def _with_motion_jvp(primals, tangents):
    (basis, _), d_rows = primals, tangents[1]
    moved = tall.combine(motion(basis), tall.scale(basis.scale, d_rows), grouped=True)
    return _with_motion(*primals), moved


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
