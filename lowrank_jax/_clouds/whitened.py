"""Whitened pairs: secant pairs in an orthonormal basis of their steps.

Let the rows of Q be an orthonormal basis of the row space of the steps S, `Q = T S`. In it the
equations `S H = Y` read

    Q H = Z,    Z = T Y,

solved by least squares where steps depend on each other. All that a fit needs to know
are small matrices, above all `A = Z Q^T` and `K = Z Z^T`, and then one pass that writes its
factors from the rows of Q and Z. The symmetric M nearest to A is `(A + A^T) / 2`.

Pairs of unequal worth have weights. With `R = S Q^T` for steps of unit length and
`W = R^T diag(weights) R`, the symmetric M that minimises `sum_i weight_i |r_i (M - A)|^2` solves

    W M + M W = W A + A^T W:    M_ij = (l_i A_ij + l_j A_ji) / (l_i + l_j)

in the eigenvectors of W, with its eigenvalues l: of two measurements of one number, the one
along the better-measured direction counts more. On consistent pairs no weight changes anything.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._core import scaling, structure, tall, xla
from lowrank_jax._core.orthonormal import (
    MOST_ERROR,
    Transform,
    least_squares,
    orthonormal,
    orthonormal_rows,
    rounding_of_rows,
    whitening,
)
from lowrank_jax._core.spectral import (
    diagonal,
    lyapunov,
    product,
    svd,
    symmetrize,
    truncated_inverse,
)
from lowrank_jax._core.types import Rows, Scalar


class WhitenedPairs(NamedTuple):
    """Pairs (S, Y) as `Q H = Z`; Q and Z are combined from them where they are read.

    H is measured in a unit of its own, a power of two, so that Z Z^T neither over- nor underflows.

    Attributes:
      steps: n rows S.
      grad_diffs: n rows Y.
      from_steps: the combinations that make Q of S.
      from_grad_diffs: (n, n), those that make Z, in units of H, of the rows `scale Y / unit`.
      scale: (n,), powers of two, those of the steps; 0 for no step, which is no equation.
      unit: the unit of H; NaN if any number of the pairs is not finite, as then all that it scales.
      quality: W, its eigenvalues and eigenvectors; None without weights.
    """

    steps: Rows
    grad_diffs: Rows
    from_steps: Transform
    from_grad_diffs: jax.Array
    scale: jax.Array
    unit: jax.Array
    quality: tuple[jax.Array, jax.Array, jax.Array] | None

    @property
    def kept(self) -> jax.Array:
        """(n,), which rows of Q are not zero: as many as the rank of S."""
        return self.from_steps.kept

    def products(self) -> tuple[jax.Array, jax.Array]:
        """`A = Z Q^T` and `K = Z Z^T`, (n, n) each."""
        return xla.blockwise_sum(_products, self._small(), self.steps, self.grad_diffs)

    def symmetric(self, a: jax.Array) -> jax.Array:
        """The M of this module's text."""
        m = symmetrize(a)
        if self.quality is None:
            return m
        weighted = product(self.quality[0], a - m)  # of A = M alone nothing is left to be rounded
        return m + symmetrize(lyapunov(*self.quality, weighted + weighted.T))

    def contradiction(self, missed: jax.Array) -> jax.Array:
        """The mean square of the rows of `A - M`, well measured directions weighing more."""
        if self.quality is None:
            rank = jnp.maximum(jnp.sum(self.kept), 1)
            return jnp.sum(missed * missed) / rank.astype(missed.dtype)
        information = self.quality[0]
        return jnp.sum(missed * product(information, missed)) / jnp.sum(diagonal(information))

    def rows(self, f: Callable, small: Any = None) -> Rows:
        """The rows `f(small, Q, Z)` in one pass; f computes column by column, from leaves.

        f closes over no traced value: what it needs is in `small`.
        """
        small = self._small(), small
        return xla.blockwise_map(partial(_written, f), small, self.steps, self.grad_diffs)

    def _small(self):
        return self.from_steps.to_rows, self.from_grad_diffs, self.scale, 1 / self.unit


def compress_to_dimension(
    steps: Rows,
    grad_diffs: Rows,
    *,
    eps: float,
    rtol: Scalar | None = None,
    weights: jax.Array | None = None,
    errors: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Replaces n pairs in D < n dimensions by D pairs with the same least squares.

    With the rows of C an orthonormal basis of the columns of the unit steps U, and V what goes
    with U, the pairs are (C U, C V): in whitened steps no mixing of the pairs changes anything.
    C U has the singular values of U, and what is rounding or below `rtol` is left out here, where
    they are known: whitening takes steps of unit length, of which it cannot tell how long they
    were, and where such steps depend on each other their least squares are others. With weights
    the columns of V are met by weighted least squares in the columns of C^T, and the D new pairs,
    whose errors are not independent, come with a matrix of weights. D x D and D x n matrices alone.
    """
    inverse_norms = scaling.reciprocal(scaling.norms(steps))
    u, v = (structure.matrix(tall.scale(inverse_norms, rows)) for rows in (steps, grad_diffs))
    # An error is in no coordinate more than in others: a short column is hardly known, and goes
    # where it is nothing else, with what others leave of it.
    sizes = lax.stop_gradient(scaling.norms(u.T))
    error = rounding_of_rows(len(u), u.dtype, eps) * jnp.max(sizes)
    if errors is not None:
        errors = jnp.minimum(errors, MOST_ERROR)
        error = jnp.maximum(error, scaling.norm(errors) / math.sqrt(len(u.T)))
    columns = tall.where(sizes > 2 * error, u.T)
    c = orthonormal(columns, eps=eps, errors=error * scaling.reciprocal(sizes))  # (D, n)
    if rtol is not None:
        x, s, _ = svd(lax.stop_gradient(tall.combine(c, u)))
        c = tall.combine(jnp.where((s > rtol * s[0])[None, :], x, 0).T, c)
    steps = tall.combine(c, u)
    if weights is None:
        return steps, tall.combine(c, v), None
    of_slopes, (weights, *_) = _weighted(c, c.T, jnp.any(c != 0, axis=1), weights)
    sizes = scaling.norms(steps)
    weights = weights * sizes[:, None] * sizes[None, :]
    return steps, tall.combine(of_slopes, v), weights


def whiten(
    steps: Rows,
    grad_diffs: Rows,
    *,
    eps: float,
    rtol: Scalar | None = None,
    weights: jax.Array | None = None,
    errors: jax.Array | None = None,
) -> WhitenedPairs:
    """Whitens n pairs, all leaves of one dtype; `eps`, `rtol` and `errors` as in `whitening`.

    `weights`: those of unit steps and their slopes, (n,), not negative, or a definite (n, n) matrix
    where their errors depend on each other; None for least squares in whitened steps.
    """
    found = whitening(steps, eps=eps, rtol=rtol, errors=errors)
    transform, coordinates = least_squares(found, steps)
    quality = None
    if weights is not None:
        transform, quality = _weighted(transform, coordinates, found.kept, weights)
    scale = jnp.where(found.unit > 0, found.scale, 0)
    # 0 times infinity: numbers of the steps that are not finite show as well.
    peak = jnp.max(scale * scaling.max_abs(grad_diffs) + 0 * scaling.max_abs(steps))
    unit = scaling.power_of_two(peak) * scaling.nan_unless(jnp.isfinite(peak), peak.dtype)
    transform = transform * found.unit[None, :]
    return WhitenedPairs(steps, grad_diffs, found, transform, scale, unit, quality)


def _weighted(transform, r, kept, weights):
    """The transform T of weighted least squares, `R Z = V`, and W with its eigendecomposition.

    To the T of all alike is added what the weights change, `W^-1 R^T diag(weights) (I - R T)`:
    where no row depends on others, `R T = I` and every weight gives the same T. Along eigenvectors
    where W is not above its rounding by the sum of n terms, T stays. W is raised by its
    rounding: where nothing was measured, both sides of M count alike.
    """
    r_eye, eye = (jnp.eye(n, dtype=r.dtype) for n in r.shape)
    weighted = r.T * weights[None, :] if weights.ndim == 1 else product(r.T, weights)
    information = symmetrize(product(weighted, r))
    rounding = float(jnp.finfo(r.dtype).eps) * lax.stop_gradient(jnp.sum(diagonal(information)))
    least = jnp.where(rounding > 0, rounding, 1)
    information += least * eye
    values, v = jnp.linalg.eigh(lax.stop_gradient(information), symmetrize_input=False)
    values = jnp.maximum(values, least)
    inverse = truncated_inverse(information, values, v, values > 2 * len(r) * rounding)
    dependent = jnp.sum(kept) < jnp.sum(jnp.any(r != 0, axis=1))
    missed = jnp.where(dependent, r_eye - product(r, transform), 0)
    return transform + product(inverse, weighted, missed), (information, values, v)


def _rows_of(small, s, y):
    """The rows of Q and Z, or a piece of them.

    Y is scaled before it is combined: the scale of tiny steps times T would overflow.
    """
    to_rows, from_grad_diffs, scale, per_unit = small
    y = tall.times(per_unit, tall.scale(scale, y))
    return orthonormal_rows(to_rows, s), tall.combine(from_grad_diffs, y, grouped=True)


def _products(small, s, y):
    q, z = _rows_of(small, s, y)
    return tall.gram(z, q), tall.gram(z, z)


def _written(f, small, s, y):
    return f(small[1], *_rows_of(small[0], s, y))
