"""Orthonormal bases of the span of rows, from Gram matrices and n x n algebra alone.

There is no QR of anything tall: pytrees need no flattening, and of rows that are
sharded along D only n x n matrices travel.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowrank_jax._core import scaling, structure, tall, xla
from lowrank_jax._core.spectral import diagonal, inverse, inverse_root, product, svd
from lowrank_jax._core.types import Rows, Scalar

ROUNDS = 4  # of pivoted Cholesky, at most
MOST_ERROR = 1 / 8  # of a unit row


class Transform(NamedTuple):
    """Combinations of n rows `S` that are orthonormal, `Q = (I + V) T U` for the unit rows U.

    Attributes:
      scale: (n,), powers of two near one over the largest entry of each row, constants.
      unit: (n,), one over the norms of the scaled rows, 0 for zero rows: `U = unit scale S`.
      combine: (n, n), T: the rows of `B = T U` are orthonormal but for the rounding of U times its
        condition, or, where nothing is left, zero, as those of T. A constant, and so is `unit` in
        it: other combinations of the rows span the same space (but those that `rtol`
        drops, which are constants to differentiation).
      correct: (n, n), V: the rows of `Q = B + V B` are orthonormal, and remain so as the rows move.
      kept: (n,), False for the zero rows of T, V and Q.
    """

    scale: jax.Array
    unit: jax.Array
    combine: jax.Array
    correct: jax.Array
    kept: jax.Array

    @property
    def to_rows(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What `orthonormal_rows` makes Q of S with."""
        return self.scale, self.combine * lax.stop_gradient(self.unit)[None, :], self.correct


def orthonormal(rows: Rows, *, eps: float, errors: jax.Array | None = None) -> Rows:
    """N orthonormal rows that span n rows, all leaves of one dtype; see `whitening`.

    Those beyond the rank are exactly zero.
    """
    if structure.length(rows) == 0:
        return rows
    found = whitening(rows, eps=eps, errors=errors)
    return xla.blockwise_map(orthonormal_rows, found.to_rows, rows)


def orthonormal_rows(to_rows: tuple, rows: Rows) -> Rows:
    """The rows `Q = (I + V) T U` of S, or of a piece of it, for `Transform.to_rows`."""
    scale, combine, correct = to_rows
    rows = _combined((scale, combine), rows)
    return jax.tree.map(jnp.add, rows, tall.combine(correct, rows))  # V is small: no grouping


def whitening(
    rows: Rows, *, eps: float, rtol: Scalar | None = None, errors: jax.Array | None = None
) -> Transform:
    """Finds orthonormal combinations of n rows: rounds of pivoted Cholesky, then whitening.

    A round takes the Gram matrix of the combinations so far, and its pivoted Cholesky factor
    makes them orthonormal as far as that can tell: down to a length of 2 sqrt(n eps). What is
    shorter is projected and lifted, for the next round to measure. Rows that are nearly
    orthonormal, as random ones in many dimensions, need no round, well-conditioned ones one, others
    two to four. What is left is near the identity, for hundreds of rows that are hardly above their
    noise not very, and V, which corrects it, carries all derivatives.

    The rank of rows is decided here and nowhere else: unit rows that are known to within `noise`
    have combinations t that are known to within `|noise t|`, and one that is not twice as long
    vanishes: all others are made orthogonal to t, so that T is a pseudo-inverse (see
    `least_squares`), and t itself is replaced by zero.

    Args:
      rows: n rows, n at least 1, all leaves of one dtype (see `widen`).
      eps: relative rounding error of the entries, if larger than that of their dtype.
      rtol: directions below `rtol` times the largest singular value of the unit
        rows are dropped as well, as in the truncated pseudo-inverse.
      errors: relative errors of the rows, (n,), where they are larger than what `eps` says; to
        `MOST_ERROR`, so that no row vanishes for being uncertain itself.

    Source: Fukaya, Kannan, Nakatsukasa, Yamamoto and Yanagisawa, Shifted Cholesky QR for computing
    the QR factorization of ill-conditioned matrices, SIAM J. Sci. Comput. 42 (2020), for rounds
    of CholeskyQR; Higham, Analysis of the Cholesky decomposition of a semi-definite matrix
    (1990), for pivots and rank.
    """
    n, dtype = structure.length(rows), structure.compute_dtype(rows)
    known = rounding_of_rows(n, dtype, eps)
    noise = known if errors is None else jnp.clip(errors, known, MOST_ERROR)
    eye = xla.once(jnp.eye(n, dtype=dtype))
    scale = 1 / scaling.power_of_two(scaling.max_abs(rows))
    inner = tall.scaled_gram(scale, rows)
    unit = scaling.reciprocal(scaling.safe_sqrt(diagonal(inner)))
    fixed, fixed_unit, inner = lax.stop_gradient((rows, unit, inner))

    def measure(combine):
        return xla.blockwise_sum(_combined_gram, (scale, combine * fixed_unit[None, :]), fixed)

    def from_identity(combine, inner):
        return inner - jnp.where(_nonzero(combine), eye, 0)

    def near_identity(combine, inner):
        return jnp.sum(from_identity(combine, inner) ** 2) < 1 / 16

    def round_(state):
        _, combine, inner = state
        combine = _pivoted_cholesky(combine, inner, noise)
        inner = measure(combine)
        return near_identity(combine, inner), combine, inner

    inner = inner * jnp.outer(fixed_unit, fixed_unit)
    start = near_identity(eye, inner), xla.vary_like(eye, inner), inner
    _, combine, inner = xla.iterate(round_, start, until=lambda s: s[0], most=ROUNDS)
    if rtol is not None:
        off = from_identity(combine, inner)
        combine = _truncated(fixed, scale, fixed_unit, combine, off, rtol)
        inner = measure(combine)
    small = scale, combine * fixed_unit[None, :]
    off = xla.with_derivative_of(from_identity(combine, inner), _combined_gram, small, rows)
    return Transform(scale, unit, combine, inverse_root(off), _nonzero(combine))


def _nonzero(rows):
    return jnp.any(rows != 0, axis=1)


def rounding_of_rows(n: int, dtype: jnp.dtype, eps: float) -> float:
    """How far the direction of a unit row may be off, of combinations of n with unit length.

    By sums of n terms, 1.2 sqrt(n) roundings (a heuristic between what is typical and what is
    possible), and by data that are rounded to `eps`, if that is more than their dtype's.
    """
    own = float(jnp.finfo(dtype).eps)
    return 1.2 * math.sqrt(n) * own + (eps / 2 if eps > own else 0)


def _pivoted_cholesky(combine, inner, noise):
    """One round: combinations of the rows with Gram matrix G, orthonormal where G can tell.

    Gram-Schmidt on the rows of `[G | T]`, the longest first, and of those that are nearly as long
    (squared, within a factor of two) the first one: rounding is not to choose the basis, which
    is that of the next probes. On the diagonal of G is what is left of each squared length,
    known to about `short`, 4 n eps of what it was. A row that is

    * longer than that is normalised, and its part taken off all that are free;
    * shorter is lifted, as if it were that long, for the next round to measure;
    * no longer than twice its noise, and G can tell, vanishes: it is a combination t of the rows
      U with t U = 0. All others, those that were taken too, lose their part along t, which
      changes no row of T U, hence nothing in G; then it is zero.

    What a length is before the others' parts are taken off says nothing of noise.
    """
    n = len(inner)
    info = jnp.finfo(inner.dtype)

    order = np.arange(n)
    handicap = (1 - order / (2 * n)).astype(inner.dtype)
    in_gram = np.arange(2 * n) < n

    def step(_, state):
        rows, free = state
        lengths = handicap * rows.reshape(-1)[:: 2 * n + 1]
        i = jnp.argmax(jnp.where(free, lengths, -1))
        row, square = rows[i], rows[i, i]
        size = jnp.sum(row[n:] ** 2)
        short, least = 4 * n * info.eps * inner[i, i], 4 * jnp.sum((noise * row[n:]) ** 2)
        gone = jnp.maximum(square, short) <= least
        row = jnp.where(gone & in_gram, 0, row)
        beside = jnp.where(gone, product(rows[:, n:], row[n:]), rows[i, :n])  # T t, or G's row
        beside = jnp.where(gone | (free & (square > short)), beside, 0)  # 0: it is only lifted
        square = jnp.maximum(jnp.where(gone, size, jnp.maximum(square, short)), info.tiny)
        own = jnp.where(gone, 1, 1 - lax.rsqrt(square))
        along = jnp.where(order == i, own, beside / square)
        rows = rows - along[:, None] * row[None, :]
        return rows, free & (order != i)

    free = xla.vary_like(jnp.ones(n, bool), inner)
    start = jnp.concatenate([inner, combine], axis=1), free
    return lax.fori_loop(0, n, step, start)[0][:, n:]


def _truncated(rows, scale, unit, combine, off, rtol):
    """Combinations that span the right singular vectors of the unit rows above `rtol` alone.

    For `U = X diag(s) V^T Q` they are `diag(1 / s) X^T = V^T T`. V^T T is the more accurate, once
    what rounding has left along dropped columns of X is projected out.
    """
    correct = inverse_root(off)
    small = (scale, combine * unit[None, :], correct), unit
    x, s, v = svd(xla.blockwise_sum(_coordinates, small, rows))
    combine = combine + product(correct, combine)
    rank = jnp.sum(_nonzero(combine))
    kept = (s > rtol * s[0]) & (s > 0) & (jnp.arange(len(s)) < rank)
    x = jnp.where(kept[None, :], x, 0)
    return jnp.where(kept[:, None], product(v.T, combine, x, x.T), 0)


def least_squares(found: Transform, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """The T with `Q = T U` for which `Z = T V` solves `R Z = V` by least squares, and `R = U Q^T`.

    V are data given at the unit rows U. The derivative is that of the pseudo-inverse which T is,
    also where rows depend on each other and V contradicts itself along them.
    """
    coordinates = xla.blockwise_sum(_coordinates, (found.to_rows, found.unit), rows)
    # Summed so that a long row of T is rounded once, not with each term that is added to it.
    transform = found.combine + product(lax.stop_gradient(found.correct), found.combine)
    return _with_pinv_derivative(transform, coordinates), coordinates


@jax.custom_jvp
def _with_pinv_derivative(transform: jax.Array, coordinates: jax.Array) -> jax.Array:
    """The transform, known to be `T = R^+` for coordinates R whose nonzero columns are independent.

    The derivative at constant rank,

        dT = T T^T dR^T (I - R T) - T dR T,

    has a first term that acts on what is inconsistent in the data along dependent rows.

    Source: Golub and Pereyra, The differentiation of pseudo-inverses and nonlinear least squares
    problems whose variables separate, SIAM J. Numer. Anal. 10 (1973).
    """
    del coordinates
    return transform


@_with_pinv_derivative.defjvp
def _with_pinv_derivative_jvp(primals, tangents):
    t, (_, r), dr = _with_pinv_derivative(*primals), primals, tangents[1]
    dependent = jnp.any(jnp.all(t == 0, axis=1))
    residual = jnp.where(dependent, jnp.eye(len(t), dtype=t.dtype) - product(r, t), 0)
    return t, product(t, t.T, dr.T, residual) - product(t, dr, t)


def _combined(small, rows):
    """`T diag(scale) S`."""
    scale, combine = small
    return tall.combine(combine, tall.scale(scale, rows), grouped=True)


def _combined_gram(small, rows):
    rows = _combined(small, rows)
    return tall.gram(rows, rows)


def _coordinates(small, rows):
    """`R = U Q^T`."""
    to_rows, unit = small
    unit_rows = tall.scale(unit, tall.scale(to_rows[0], rows))
    return tall.gram(unit_rows, orthonormal_rows(to_rows, rows))


class ThinLQ(NamedTuple):
    """k rows in an orthonormal basis of their span, `diag(scale) B = L Q`.

    Attributes:
      rows: k orthonormal rows Q, those beyond the rank exactly zero.
      coordinates: L, (k, k).
      inverse: (k, k), R with `Q = R diag(scale) B`.
      scale: (k,), powers of two near one over the largest entry of each row of B, constants.
      sizes: (k,), the lengths of the scaled rows, constants.
      kept: (k,), 1 for orthonormal rows of Q, 0 for zero ones; constants.
    """

    rows: Rows
    coordinates: jax.Array
    inverse: jax.Array
    scale: jax.Array
    sizes: jax.Array
    kept: jax.Array


@jax.custom_jvp
def thin_lq(rows: Rows, errors: jax.Array | None = None) -> ThinLQ:
    """The thin LQ factors of k rows of one dtype; `errors` as in `whitening`.

    Q moves with the rows without turning within their span, `dQ Q^T = 0`, hence

        dL = diag(scale) dB Q^T,    dQ = T (diag(scale) dB - dL Q),    dR = -R dL R.

    T is R where the rows are independent; the zero rows of Q follow what parts the dependent rows
    of B from the others, see `motion`. What depends on B alone has the right derivatives
    of all orders in these terms where the rank is constant.
    """
    dtype = structure.compute_dtype(rows)
    if structure.length(rows) == 0:
        none, empty = jnp.zeros(0, dtype), jnp.zeros((0, 0), dtype)
        return ThinLQ(rows, empty, empty, none, none, none)
    found = whitening(rows, eps=float(jnp.finfo(dtype).eps), errors=errors)
    basis = xla.blockwise_map(orthonormal_rows, found.to_rows, rows)
    scale, combine, correct = found.to_rows
    return ThinLQ(
        rows=basis,
        coordinates=xla.blockwise_sum(_scaled_gram, scale, rows, basis),
        inverse=combine + product(correct, combine),
        scale=scale,
        sizes=scaling.reciprocal(found.unit),
        kept=found.kept.astype(dtype),
    )


@thin_lq.defjvp
def _thin_lq_jvp(primals, tangents):
    here, d_rows = thin_lq(*primals), tangents[0]
    d_coordinates = _scaled_gram(here.scale, d_rows, here.rows)
    along = tall.combine(d_coordinates, here.rows)
    outside = jax.tree.map(jnp.subtract, tall.scale(here.scale, d_rows), along)
    return here, ThinLQ(
        tall.combine(motion(here), outside, grouped=True),
        d_coordinates,
        -product(here.inverse, d_coordinates, here.inverse),
        *jax.tree.map(jnp.zeros_like, (here.scale, here.sizes, here.kept)),
    )


def _scaled_gram(scale, x, y):
    return tall.gram(tall.scale(scale, x), y)


def motion(here: ThinLQ) -> jax.Array:
    """T, (k, k) and regular, with `Q = T diag(scale) B`, also where rows of Q and B move.

    With D for the diagonal matrix that is 1 for the zero rows of Q, it is the inverse of `L + D`:
    each dependent row of B keeps a place of its own, in the row of Q that is zero. Its
    other rows make Q of independent rows of B alone: they are R less the
    combination of the rows of `P = I - L R` that is R in the columns of dependent rows.
    """
    eye, free = jnp.eye(len(here.kept), dtype=here.kept.dtype), 1 - here.kept
    sizes = jnp.where(here.sizes > 0, here.sizes, 1)
    left, right = here.coordinates / sizes[:, None], here.inverse * sizes[None, :]
    missed = free[:, None] * (eye - product(left, right))
    dependent = missed * free[None, :] + jnp.diag(here.kept)  # definite: a part of a projector
    known = inverse(dependent, jnp.finfo(eye.dtype).eps)
    right = right - product(right * free[None, :], known, missed)
    independent = right / sizes[None, :]
    return independent + free[:, None] * (eye - product(here.coordinates, independent))
