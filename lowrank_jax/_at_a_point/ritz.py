"""Ritz pairs: eigenpairs as far as the steps see them, each with the error that is left."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax._clouds.pairs import SecantPairs, check, step_errors
from lowrank_jax._clouds.whitened import compress_to_dimension, whiten
from lowrank_jax._core import scaling, structure, tall
from lowrank_jax._core.spectral import eigh
from lowrank_jax._core.types import Rows


class RitzPairs(NamedTuple):
    """Ritz values in order of magnitude; see `ritz_pairs`.

    Attributes:
      values: (n,), w_i; 0 beyond the rank of the steps.
      vectors: n rows, unit vectors; zero beyond the rank.
      residuals: (n,), `|H v_i - w_i v_i|`; infinite beyond the rank.
    """

    values: jax.Array
    vectors: Rows
    residuals: jax.Array


def ritz_pairs(pairs: SecantPairs | tuple[Rows, Rows]) -> RitzPairs:
    """Computes Ritz pairs and their residuals from secant pairs, without further gradients.

    With Q, A, M and P of `fit` (the rows of Q an orthonormal basis of the steps, `Z = Q H`,
    `A = Z Q^T`, M its symmetric part, `P = Z - A Q`), and an eigenpair `M u = w u`, the vector
    `v = Q^T u` has

        |H v - w v|^2 = |P^T u|^2 + |(A - M)^T u|^2.

    Within that distance of w lies an eigenvalue of H, where the pairs are those of one symmetric H
    (Krylov-Weinstein). Where they are not, as gradient differences of a loss that is not
    quadratic, the second term has what contradicts symmetry; the rest of their error is not in the
    residual. Of pairs from `lowrank_hessian` `pairs.rounding` estimates it, relative to the
    largest slope: add `max(pairs.rounding)` times the largest value to each residual. It is not the
    eigenvalue of the same number where the residual is not below the gap to the next one.
    The values are those of H on the span of the steps: the operator of
    `fit` extrapolates, and its eigenvalues differ.

    Args:
      pairs: as in `fit`.

    Returns:
      `RitzPairs`, n of them, those of largest magnitude first. NaN where the pairs are not finite.

    Raises:
      TypeError, ValueError: as `fit` does.

    Source: Parlett, The symmetric eigenvalue problem (1998), sections 4.5 and 11.4.

    Example:
      >>> import jax.numpy as jnp
      >>> a = jnp.array([[2.0, 0.1, 0.0], [0.1, -5.0, 0.0], [0.0, 0.0, 1.0]])
      >>> found = ritz_pairs((jnp.eye(3)[:2], a[:2]))
      >>> [round(float(w), 3) for w in found.values]
      [-5.001, 2.001]
      >>> bool(found.residuals.max() < 1e-5)  # the steps span these two eigenvectors
      True
    """
    pairs, _ = check(pairs)
    return _ritz_pairs(pairs)


@jax.jit
def _ritz_pairs(pairs):
    steps, grad_diffs, _ = pairs
    errors = step_errors(pairs)
    n, eps = structure.length(steps), structure.resolution(steps)
    vector, wide = structure.row(steps), structure.widen((steps, grad_diffs))
    dtype = structure.compute_dtype(wide)
    if min(n, structure.size(vector)) == 0:
        return RitzPairs(jnp.zeros(n, dtype), steps, jnp.full(n, jnp.inf, dtype))
    if n > structure.size(vector):
        wide, errors = compress_to_dimension(*wide, eps=eps, errors=errors)[:2], None
    else:
        wide = tuple(map(structure.pack, wide))
    whitened = whiten(*wide, eps=eps, errors=errors)
    a, _ = whitened.products()
    m, kept = whitened.symmetric(a), whitened.kept

    # Rows of Q beyond the rank are zero: their own eigenvalue keeps them apart from all others.
    apart = 2 * jnp.sqrt(jnp.sum(m * m)) + 1
    values, u = eigh(m + apart * jnp.diag(1 - kept.astype(dtype)))
    empty = jnp.sum(jnp.where(kept[:, None], 0, u * u), axis=0) > 0.5
    values = jnp.where(empty, 0, values)
    order = jnp.argsort(jnp.where(empty, jnp.inf, -jnp.abs(values)))
    values, u, empty = values[order], u[:, order], empty[order]
    u = jnp.where(empty[None, :], 0, u)

    both = whitened.rows(_vectors_and_residuals, (u, values))
    vectors = jax.tree.map(lambda x: x[: len(u)], both)
    rest = jax.tree.map(lambda x: x[len(u) :], both)
    residuals = jnp.where(empty, jnp.inf, scaling.norms(rest))
    vectors = _rows_like(vectors, vector)
    unit = whitened.unit
    found = RitzPairs(unit * values, structure.cast_like(vectors, steps), unit * residuals)
    missing = RitzPairs(0, jax.tree.map(lambda _: 0, vector), jnp.inf)
    return jax.tree.map(lambda x, fill: _padded(x, n, fill), found, missing)


def _vectors_and_residuals(small, q, z):
    u, values = small
    vectors = jax.tree.map(lambda q: tall.combine(u.T, q), q)
    rest = jax.tree.map(lambda z, v: tall.combine(u.T, z) - tall.scale(values, v), z, vectors)
    return jax.tree.map(lambda v, r: jnp.concatenate([v, r]), vectors, rest)


def _rows_like(rows, vector):
    """Rows, packed or of one matrix, in the structure of a vector."""
    if isinstance(rows, jax.Array) and jax.tree.structure(vector) != jax.tree.structure(0):
        leaves, tree = jax.tree.flatten(vector)
        ends = np.cumsum([math.prod(leaf.shape) for leaf in leaves])[:-1]
        parts = jnp.split(rows, ends, axis=1)
        shaped = [x.reshape(len(x), *leaf.shape) for x, leaf in zip(parts, leaves, strict=True)]
        return jax.tree.unflatten(tree, shaped)
    return structure.unpack(rows, vector)


def _padded(x, n, fill):
    more = [(0, n - len(x))] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, more, constant_values=jnp.asarray(fill, x.dtype))
