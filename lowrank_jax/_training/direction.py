"""The quasi-Newton direction that the pairs of a trajectory give.

In an orthonormal basis Q of their steps S the pairs say `Q H = Z = A Q + P`, see `fit`. On a
trajectory they are of unequal worth: the newest were measured where the trajectory is. With
R = S Q^T, rows of unit length, and weights that halve with each pair's age,
`W = R^T diag(weights) R`, the symmetric M that minimises `sum_i weight_i |r_i (M - A)|^2` solves

    W M + M W = W A + A^T W:    M_ij = (l_i A_ij + l_j A_ji) / (l_i + l_j)

in the eigenvectors of W, with its eigenvalues l: of two measurements of one number, the one
along the better-measured direction counts more. What it misses, E = M - A, is zero on a quadratic
and elsewhere says how far the pairs contradict each other. With `M = V diag(w) V^T` and q_i,
p_i, e_i the rows of V^T Q, V^T P, V^T E, the model of the Hessian is

    B = sum_i d_i h_i h_i^T + c (I - Q^T Q),
    d_i = |w_i| + min(|e_i|, c),    h_i = q_i + sign(w_i) p_i / d_i.

Where w > 0 and E = 0 it is the block BFGS update of c I, with `B s_i = y_i`. It is positive
definite whatever the signs of w. Where |w_i| is below sqrt(eps) |p_i|, a zero crossing, |p_i| takes
its place in d_i, and h_i = q_i; where d_i is rounding, c does. The inverse needs no further
factorization: B x = g for

    u = (g - sum_i (g.q_i) h_i) / c,    x = u + sum_i ((g.q_i) - sign(w_i) (p_i.u)) / d_i q_i.

The halving, what E adds to d and the value of c are heuristics, chosen by measurement.

Source: Schnabel, Quasi-Newton methods using multiple secant equations, report CU-CS-247-83
(1983), for the block update; Dauphin et al., Identifying and attacking the saddle point problem,
NeurIPS 2014, for the magnitude of negative curvature.
"""

import jax
import jax.numpy as jnp

from lowrank_jax._clouds.fit import unit_and_validity
from lowrank_jax._core import scaling, structure, tall
from lowrank_jax._core.orthonormal import orthonormal
from lowrank_jax._core.spectral import eigh, product, symmetrize
from lowrank_jax._core.types import Rows, Scalar, Vector


@jax.jit
def direction(
    steps: Rows, grad_diffs: Rows, age: jax.Array, grad: Vector, damping: Scalar | None
) -> Vector:
    """`B^-1 g` of this module's text, in the dtypes of g.

    Args:
      steps: n rows; zero rows count for nothing.
      grad_diffs: n rows.
      age: (n,), 0 for the newest pair.
      grad: the vector g.
      damping: None, or a number in place of c and of every `min(|e_i|, c)`.
    """
    s, y, g = structure.widen((steps, grad_diffs, grad))
    eps = structure.resolution(steps)
    basis = orthonormal(s, eps=eps)
    q = basis.rows
    unit, _ = unit_and_validity(basis.scale, s, y)
    r = tall.gram(tall.scale(basis.scale, s), q)
    size = jnp.linalg.norm(r, axis=1)
    r = r * scaling.reciprocal(size)[:, None]
    transform, quality = _weighted(basis.transform * size[None, :], r, basis.kept, age)
    # Y is scaled before it is combined: the scale of tiny steps times T would overflow.
    y = tall.scale(1 / unit, tall.scale(basis.scale, y))
    z = tall.combine(transform * scaling.reciprocal(size)[None, :], y, pairwise=True)
    a = tall.gram(z, q)
    m = _symmetric(a, *quality)

    w, v = eigh(m)
    p = tall.minus(z, tall.combine(a, q))
    q, p = tall.combine(v.T, q), tall.combine(v.T, p)
    outside = scaling.norms(p)
    top = jnp.max(jnp.hypot(w, outside))
    if damping is None:
        first = jnp.maximum(scaling.norm(g), 1) / unit
        newest = r[jnp.argmin(age)]
        c = _complement(newest, product(newest, a, newest), z, top, first)
        noise = jnp.minimum(jnp.linalg.norm(product(v.T, m - a), axis=1), c)
    else:
        noise = c = damping / unit

    rounding = len(w) * eps * top
    curved = jnp.abs(w) > jnp.maximum(eps**0.5 * outside, rounding)
    d = jnp.where(curved, jnp.abs(w), outside) + noise
    d = jnp.where(d > rounding, d, c)
    slant = jnp.where(curved, jnp.sign(w), 0) / d
    g = jax.tree.map(lambda x: x / unit, g)
    return structure.cast_like(_solved(q, p, d, slant, c, g), grad)


def _solved(q, p, d, slant, c, g):
    """The x with B x = g, by the two equations of this module's text; slant is sign(w) / d."""
    inside = tall.gram(q, g)
    u = tall.minus(tall.project_out(g, q), tall.combine(slant * inside, p))
    u = jax.tree.map(lambda x: x / c, tall.project_out(u, q))
    x = tall.combine(inside / d - slant * tall.gram(p, u), q)
    return jax.tree.map(jnp.add, x, u)


def _weighted(transform, r, kept, age):
    """The transform T of weighted least squares, `r Z = Y`, and the eigendecomposition of W.

    Where no row depends on others, `r T = I` and every weight gives the same T.
    """
    weighted = r.T * jnp.exp2(-age.astype(r.dtype))[None, :]
    quality, v = eigh(symmetrize(product(weighted, r)))
    known = quality > len(r) * jnp.finfo(r.dtype).eps * quality[-1]
    inverse = jnp.where(known, scaling.reciprocal(jnp.where(known, quality, 0)), 0)
    solve = product(v * inverse[None, :], v.T, weighted)
    dependent = jnp.sum(kept) < jnp.sum(jnp.any(r != 0, axis=1))
    missed = jnp.where(dependent, jnp.eye(len(r), dtype=r.dtype) - product(r, transform), 0)
    return transform + product(solve, missed), (quality, v)


def _symmetric(a, quality, v):
    """The M of this module's text."""
    # Where nothing was measured, both sides count alike.
    quality = jnp.maximum(quality, jnp.finfo(a.dtype).eps ** 2)[:, None]
    a = quality * product(v.T, a, v)
    return symmetrize(product(v, (a + a.T) / (quality + quality.T), v.T))


def _complement(newest, slope, z, top, first):
    """The curvature c of what no step has measured: `y.y / |s.y|` of the newest pair.

    It is at most the largest curvature measured, and |g| before any was, so that the first
    step is no longer than 1.
    """
    y = scaling.norm(tall.combine(newest, z))
    measured = jnp.where(
        slope == 0, top, jnp.minimum(y * y * scaling.reciprocal(jnp.abs(slope)), top)
    )
    return jnp.where(measured > 0, measured, first)
