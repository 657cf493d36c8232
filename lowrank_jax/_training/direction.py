"""The quasi-Newton direction that the pairs of a trajectory give.

In an orthonormal basis Q of their steps S the pairs say `Q H = Z = A Q + P`, see `whitened`. On a
trajectory they are of unequal worth: the newest were measured where the trajectory is, and the
weights that make M of A halve with each pair's age. What it misses, E = M - A, is zero on a
quadratic and elsewhere says how far the pairs contradict each other. With `M = V diag(w) V^T` and
q_i, p_i, e_i the rows of V^T Q, V^T P, V^T E, the model of the Hessian is

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

from lowrank_jax._clouds.whitened import whiten
from lowrank_jax._core import scaling, structure, tall
from lowrank_jax._core.spectral import eigh, product
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
    pairs = whiten(s, y, eps=eps, weights=jnp.exp2(-age.astype(structure.compute_dtype(s))))
    a, k = pairs.products()
    m = pairs.symmetric(a)
    w, v = eigh(m)
    rows = pairs.rows(_rotated, (v, a))
    q, p = (jax.tree.map(lambda x: x[: len(w)], rows), jax.tree.map(lambda x: x[len(w) :], rows))

    outside = scaling.norms(p)
    top = jnp.max(scaling.norms(jnp.stack([w, outside], axis=1)))
    g = jax.tree.map(lambda x: x / pairs.unit, g)
    if damping is None:
        newest = pairs.coordinates[jnp.argmin(age)]
        first = jnp.maximum(scaling.norm(g), 1 / pairs.unit)
        c = _complement(product(newest, a, newest), product(newest, k, newest), top, first)
        noise = jnp.minimum(scaling.norms(product(v.T, m - a)), c)
    else:
        noise = c = jnp.asarray(damping, m.dtype) / pairs.unit

    rounding = len(w) * eps * top
    curved = jnp.abs(w) > jnp.maximum(eps**0.5 * outside, rounding)
    d = jnp.where(curved, jnp.abs(w), outside) + noise
    d = jnp.where(d > rounding, d, c)
    slant = jnp.where(curved, jnp.sign(w), 0) / d
    return structure.cast_like(_solved(q, p, d, slant, c, g), grad)


def _rotated(small, q, z):
    """The rows of V^T Q and V^T P."""
    v, a = small
    p = jax.tree.map(jnp.subtract, z, tall.combine(a, q))
    return jax.tree.map(
        lambda q, p: jnp.concatenate([q, p]), tall.combine(v.T, q), tall.combine(v.T, p)
    )


def _solved(q, p, d, slant, c, g):
    """The x with B x = g, by the two equations of this module's text; slant is sign(w) / d."""
    inside = tall.gram(q, g)
    u = tall.minus(tall.project_out(g, q), tall.combine(slant * inside, p))
    u = jax.tree.map(lambda x: x / c, tall.project_out(u, q))
    x = tall.combine(inside / d - slant * tall.gram(p, u), q)
    return jax.tree.map(jnp.add, x, u)


def _complement(slope, square, top, first):
    """The curvature c of what no step has measured: `y.y / |s.y|` of the newest pair.

    It is at most the largest curvature measured, and |g| before any was, so that the first
    step is no longer than 1.
    """
    measured = jnp.where(
        slope == 0, top, jnp.minimum(square * scaling.reciprocal(jnp.abs(slope)), top)
    )
    return jnp.where(measured > 0, measured, first)
