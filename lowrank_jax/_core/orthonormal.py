"""Orthonormal bases of the span of rows, from Gram matrices and n x n algebra alone.

There is no QR of anything tall: pytrees need no flattening, and of rows that are
sharded along D only n x n matrices travel.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._core import scaling, structure, tall, xla
from lowrank_jax._core.spectral import eigh, product
from lowrank_jax._core.types import Rows, Scalar


class Basis(NamedTuple):
    """An orthonormal basis of the span of n rows `S`.

    Attributes:
      rows: n orthonormal rows `Q`, those beyond the rank exactly zero.
      transform: (n, n), T with `Q = T diag(scale) S`. For data Y given at the
        rows, `Z = T diag(scale) Y` is the least-squares solution of `(S Q^T) Z = Y`
        with every row divided by its `|s_i|`, also to first order where rows depend on each other.
      scale: (n,), powers of two near one over the largest entry of each row, constants.
      kept: (n,), False for the zero rows of Q.
      transforms: with which `apply_transforms` makes Q of S, or of a piece of S.
      turn: (n, n), with `T = turn rotation` for the rotation of `svqb_rotations`.
    """

    rows: Rows
    transform: jax.Array
    scale: jax.Array
    kept: jax.Array
    transforms: tuple[jax.Array, ...]
    turn: jax.Array


class Rotated(NamedTuple):
    """Rows rotated until they are nearly orthonormal; what is dropped is zero or below `threshold`.

    Attributes:
      scale: (n,), as in `Basis`.
      unit: (n,), one over the norms of the scaled rows.
      first, second: (n, n), the two rotations.
      rotation: (n, n), R with the rotated rows `R diag(scale) S`.
      threshold: (n,), what the norm of a rotated row must exceed.
    """

    scale: jax.Array
    unit: jax.Array
    first: jax.Array
    second: jax.Array
    rotation: jax.Array
    threshold: jax.Array


def apply_transforms(transforms: tuple[jax.Array, ...], rows: Rows) -> Rows:
    """`T_k ... T_1 diag(d) S` for transforms (d, T_1, ..., T_k), one product after the other."""
    d, *matrices = transforms
    rows = tall.scale(d, rows)
    for matrix in matrices:
        rows = tall.combine(matrix, rows, pairwise=True)
    return rows


def transformed_gram(transforms: tuple[jax.Array, ...], rows: Rows) -> jax.Array:
    """The Gram matrix of `apply_transforms(transforms, rows)`."""
    rows = apply_transforms(transforms, rows)
    return tall.gram(rows, rows)


def orthonormal(rows: Rows, *, eps: float, rtol: Scalar = 0.0) -> Basis:
    """An orthonormal basis of the rows' span by two rounds of Gram, eigh and rotation.

    Only Gram matrices and n x n algebra: each round rotates the rows by the
    eigenvectors of their Gram matrix and rescales them by their *measured* norms
    nu. One round resolves directions down to nu ~ sqrt(eps): the Gram matrix
    knows no more. The first round lifts all rows below that by one common factor
    (each to its own unit norm would mix clean rows with noise), the second
    resolves them. A Cholesky factor of what is by then nearly the identity whitens the rest.

    Where a Cholesky factor shows that no direction is short, its inverse stands for both rounds.

    The rotations are multiplied up as small matrices and applied to the given rows
    at once. Data at the rows then see the very matrix that the rows saw: what rounding did
    to the product of the rotations is no error, only another choice of combinations.

    A row of rounding noise must not be promoted to a direction: `_equilibrated` carries the
    noise of the rows along, and what does not rise above it is dropped, exactly to zero.

    The rotations are constants: any constant invertible transform spans the same rows,
    so the rows differentiate through their scale and the whitening alone, smoothly to
    all orders. The transform has the derivative of the pseudo-inverse (`_least_squares`).

    Args:
      rows: n rows, all leaves of one dtype (see `widen`).
      eps: relative rounding error of the entries.
      rtol: directions below `rtol` times the largest singular value of the unit
        rows are dropped as well.

    Source: one round is the SVQB of Stathopoulos and Wu, A block orthogonalization procedure
    with constant synchronization requirements, SIAM J. Sci. Comput. 23 (2002).
    """
    n, dtype = structure.length(rows), structure.compute_dtype(rows)
    if n == 0:
        none, empty = jnp.zeros(0, dtype), jnp.zeros((0, 0), dtype)
        return Basis(rows, empty, none, jnp.zeros(0, bool), (none,), empty)
    turn = svqb_rotations(rows, eps=eps, rtol=rtol)
    return cholesky_qr(
        turn, xla.blockwise_sum(transformed_gram, (turn.scale, turn.rotation), rows), rows
    )


def svqb_rotations(rows: Rows, *, eps: float, rtol: Scalar = 0.0) -> Rotated:
    """The rotations of `orthonormal`; n at least 1."""
    shift = 1 / scaling.power_of_two(scaling.max_abs(rows))
    inner = xla.blockwise_sum(transformed_gram, (shift,), rows)
    unit = scaling.reciprocal(scaling.safe_sqrt(jnp.diagonal(inner)))
    fixed = lax.stop_gradient((rows, shift, unit, inner * jnp.outer(unit, unit)))
    first, second, threshold = _rotations(eps, rtol, *fixed)
    return Rotated(shift, unit, first, second, product(second, first) * unit[None, :], threshold)


def _rotations(eps, rtol, rows, shift, unit, inner):
    """The two rotations of unit rows with the Gram matrix `inner`, and the threshold after them.

    Where the inverse of a Cholesky factor shows that no direction is short, and none near what
    would be dropped, it does all that the rotations are for, at a fraction of their cost.
    """
    n = len(inner)
    cut = jnp.maximum(rtol, 2 * math.sqrt(2 * n) * eps) * math.sqrt(n)
    eye = jnp.eye(n, dtype=inner.dtype)
    positive = inner + 4 * n * float(jnp.finfo(inner.dtype).eps) * eye  # a factor without NaN
    root = jnp.linalg.cholesky(positive, symmetrize_input=False)
    inverse = jax.scipy.linalg.solve_triangular(root, eye, lower=True)
    size = jnp.linalg.norm(inverse)  # at least one over the smallest singular value of the rows
    well_conditioned = (size < 10 * math.sqrt(n)) & (cut * size < 1)

    def one_factor(inverse, *_):
        low = jnp.full_like(inverse[0], math.sqrt(n) * eps)
        same = jnp.where(jnp.eye(n, dtype=bool), 1, jnp.zeros_like(inverse))
        return inverse, same, low

    def two_rotations(_, rtol, rows, shift, unit, inner):
        first = eigh(inner)[1].T
        transforms = shift, first * unit[None, :]
        return first, *_equilibrated(
            xla.blockwise_sum(transformed_gram, transforms, rows), eps, rtol
        )

    rtol = jnp.asarray(rtol, inner.dtype)
    inner = xla.depend_on(inner, well_conditioned.astype(inner.dtype))
    return xla.batched_cond(
        well_conditioned, one_factor, two_rotations, inverse, rtol, rows, shift, unit, inner
    )


def cholesky_qr(turn: Rotated, inner: jax.Array, rows: Rows) -> Basis:
    """The basis, given the Gram matrix `inner` of the rotated rows."""
    shift, unit, first, second, rotation, threshold = turn
    kept = _lengths(inner) > threshold
    kept = kept & ~_nearly_collinear(inner, kept)
    whiten = _whitening(inner, kept)
    transforms = shift, rotation, whiten
    basis = xla.blockwise_map(apply_transforms, transforms, rows)

    # A vanishing combination that was lifted leaks into kept rows by a sizeable multiple:
    # nothing in Q, but no least-squares transform. The leak is removed; it is 0 elsewhere.
    size = jnp.linalg.norm(second, axis=1)
    dropped = jnp.where(kept, 0, scaling.reciprocal(size))
    null = dropped[:, None] * second
    leak = product(second, null.T)
    transform = product(whiten, rotation - product(leak, null, first) * unit[None, :])
    unit_rows = tall.scale(unit, tall.scale(shift, rows))
    transform = _least_squares(basis, unit_rows, unit, lax.stop_gradient(transform))
    turn_on = whiten - product(whiten, leak * dropped[None, :])
    return Basis(basis, transform, shift, kept, transforms, turn_on)


def _equilibrated(inner: jax.Array, eps: float, rtol: Scalar) -> tuple[jax.Array, jax.Array]:
    """The second round's rotation of rows with this Gram matrix, and what a norm must exceed then.

    The noise of unit rows, sqrt(n) eps in the rows and as much again in their
    rotation, grows with the size of a row of the transform. What is dropped
    here becomes a zero row.
    """
    n = len(inner)
    nu = _lengths(inner)
    top = jnp.max(nu)
    noise = math.sqrt(2 * n) * eps * jnp.maximum(top, 1)
    lift = 1 / jnp.maximum(jnp.where(nu > 0, nu, 1), math.sqrt(n * eps) * top)
    lift = jnp.where(nu > jnp.maximum(2 * noise, rtol * top), lift, 0)
    # The -1 keeps the eigenvectors of dropped rows apart from all others.
    dropped = jnp.diag((lift == 0).astype(lift.dtype))
    transform = _rotation(inner * jnp.outer(lift, lift) - dropped) * lift[None, :]
    size = jnp.linalg.norm(transform, axis=1)
    transform = jnp.where((size * top > 0.5)[:, None], transform, 0)
    threshold = jnp.maximum(jnp.hypot(noise * size, math.sqrt(n) * eps), rtol * top * size)
    return transform, threshold


def _rotation(inner: jax.Array) -> jax.Array:
    return lax.stop_gradient(eigh(lax.stop_gradient(inner))[1]).T


def _lengths(inner: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.maximum(lax.stop_gradient(jnp.diagonal(inner)), 0))


def _nearly_collinear(inner: jax.Array, kept: jax.Array) -> jax.Array:
    """Kept rows nearly parallel to a longer one, (n,): noise of the rotation above its threshold.

    Rotated rows are orthogonal to within the noise, and without these the Gram matrix of
    the unit rows is positive definite.
    """
    lengths = jnp.where(kept, _lengths(inner), 0)
    unit = scaling.reciprocal(lengths)
    cosines = jnp.abs(lax.stop_gradient(inner)) * jnp.outer(unit, unit)
    order = jnp.arange(len(lengths))
    tied = (lengths[None, :] == lengths[:, None]) & (order[None, :] < order[:, None])
    longer = (lengths[None, :] > lengths[:, None]) | tied
    return jnp.any((cosines > 0.5) & longer, axis=1)


def _whitening(inner: jax.Array, kept: jax.Array) -> jax.Array:
    """The transform of nearly orthogonal rows to orthonormal ones, zero where not kept."""
    lift = jnp.where(kept, scaling.reciprocal(_lengths(inner)), 0)
    nearly_one = inner * jnp.outer(lift, lift) + jnp.diag(1 - kept.astype(lift.dtype))
    root = jnp.linalg.cholesky(nearly_one, symmetrize_input=False)
    return jax.scipy.linalg.solve_triangular(root, jnp.diag(lift), lower=True)


@jax.custom_jvp
def _least_squares(
    basis: Rows, unit_rows: Rows, unit: jax.Array, transform: jax.Array
) -> jax.Array:
    """The transform, with the derivative of the pseudo-inverse that it is.

    With `K = Q U^T` for the unit rows U, `T = transform / unit = (K^T)^+` and

        dT = T T^T dK (I - K^T T) - T dK^T T;

    the first term acts on what is inconsistent in the data along dependent rows.
    """
    del basis, unit_rows, unit
    return transform


@_least_squares.defjvp
def _least_squares_jvp(primals, tangents):
    basis, unit_rows, unit, transform = primals
    d_basis, d_unit_rows, d_unit, _ = tangents
    transform = _least_squares(*primals)
    t = transform * scaling.reciprocal(unit)[None, :]
    k = tall.gram(basis, unit_rows)
    dk = tall.gram(d_basis, unit_rows) + tall.gram(basis, d_unit_rows)
    dependent = jnp.any(jnp.all(t == 0, axis=1))
    residual = jnp.where(dependent, jnp.eye(len(t), dtype=t.dtype) - product(k.T, t), 0)
    dt = product(t, t.T, dk, residual) - product(t, dk.T, t)
    return transform, dt * unit[None, :] + t * d_unit[None, :]


class ThinLQ(NamedTuple):
    """k rows in an orthonormal basis of their span, `B = L Q`.

    Attributes:
      rows: k orthonormal rows Q, those beyond the rank exactly zero.
      coordinates: L = B Q^T, (k, k).
      inverse: (k, k), R with `Q = R B`.
    """

    rows: Rows
    coordinates: jax.Array
    inverse: jax.Array


@jax.custom_jvp
def thin_lq(rows: Rows) -> ThinLQ:
    """The thin LQ factors of k rows of one dtype.

    It moves with the rows without turning within their span, `dQ Q^T = 0`, hence

        dL = dB Q^T,    dQ = R (dB - dL Q),    dR = -R dL R.

    What depends on B alone has the right derivatives of all orders in these terms where
    the rank is constant. Where the rank changes, what depends on L and K alone, as a
    function of `H = Q^T (L^T K L) Q` in the form `B^T N(L, K) B` does, has the right
    first derivative still: B lies in the span of Q, so no other part of dB enters.
    """
    basis = orthonormal(rows, eps=float(jnp.finfo(structure.compute_dtype(rows)).eps))
    return ThinLQ(basis.rows, tall.gram(rows, basis.rows), basis.transform * basis.scale[None, :])


@thin_lq.defjvp
def _thin_lq_jvp(primals, tangents):
    (rows,), (d_rows,) = primals, tangents
    here = thin_lq(rows)
    q, _, inverse = here
    d_coordinates = tall.gram(d_rows, q)
    outside = jax.tree.map(jnp.subtract, d_rows, tall.combine(d_coordinates, q))
    d_inverse = -product(inverse, d_coordinates, inverse)
    return here, ThinLQ(tall.combine(inverse, outside, pairwise=True), d_coordinates, d_inverse)
