"""How good a fit is: by its own pairs, and against exact Hessian-vector products."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lowrank_jax import _checks, _frames
from lowrank_jax._losses import Argnums
from lowrank_jax._spectral import reciprocal
from lowrank_jax.pairs import SecantPairs, check, rounding
from lowrank_jax.products import hvp
from lowrank_jax.symmetric import SymmetricLowRank


class Diagnosis(NamedTuple):
    """What the pairs say of a fit to them; see `diagnose`.

    Attributes:
      secant_residual: `|U H - V|_F / |V|_F` for unit steps U and their gradient differences V.
      asymmetry: `|G - G^T|_F / 2 |G|_F` for `G = U V^T`; in [0, 1], 0 for a quadratic loss.
      rank: the numerical rank of the steps.
      rounding: the largest relative rounding error of a pair that has a step (of any,
        where none has); near 1 it carries only noise.
      finite: whether all numbers of the pairs and of the operator are finite.
    """

    secant_residual: jax.Array
    asymmetry: jax.Array
    rank: jax.Array
    rounding: jax.Array
    finite: jax.Array


def diagnose(hessian: SymmetricLowRank, pairs: SecantPairs) -> Diagnosis:
    """How far an operator can be trusted, from the pairs that it was fitted to.

    The secant residual is at rounding level for consistent pairs; what it is above
    that, no symmetric H explains. The asymmetry of `S Y^T`, which is symmetric for a
    quadratic loss, measures how far the loss is from quadratic on the cloud.

    Args:
      hessian: the operator.
      pairs: secant pairs, of the operator's structure. Pairs without a step count for nothing.

    Returns:
      `Diagnosis`, scalars all. Numbers that are not finite make `finite`
      False and the residual and the asymmetry NaN.

    Raises:
      TypeError: for leaves that are not real floating-point arrays.
      ValueError: where the pairs do not fit the operator, or for a batch of operators
        without `vmap`.

    Example:
      >>> import jax.numpy as jnp
      >>> from lowrank_jax import fit
      >>> pairs = SecantPairs(jnp.eye(3)[:2], jnp.array([[2.0, 1.0, 0.0], [1.0, 5.0, 0.0]]))
      >>> report = diagnose(fit(pairs), pairs)
      >>> int(report.rank), bool(report.finite), float(report.asymmetry)
      (2, True, 0.0)
    """
    if not isinstance(hessian, SymmetricLowRank):
        raise TypeError(f"hessian must be a SymmetricLowRank, got {type(hessian).__name__}")
    _checks.single(hessian.core)
    pairs, _ = check(pairs)
    _checks.like(
        pairs.steps, "pairs.steps", hessian.factors, "a factor of hessian", lead=1, pattern_lead=1
    )
    return _diagnose(hessian, pairs)


@jax.jit
def _diagnose(hessian, pairs):
    steps, grad_diffs = _frames.widen(pairs.steps), _frames.widen(pairs.grad_diffs)
    basis = _frames.orthonormal(steps, eps=_frames.resolution(pairs.steps))
    sizes = _frames.norms(steps)
    used, inverse = sizes > 0, reciprocal(sizes)
    unit_steps = _frames.scale(inverse, steps)
    slopes = _frames.scale(inverse, grad_diffs)
    images = jax.vmap(_frames.widen(hessian).mv)(unit_steps)
    residual = _total_norm(jax.tree.map(jnp.subtract, images, slopes))
    g = _frames.gram(unit_steps, slopes)
    everything = (pairs.steps, pairs.grad_diffs, hessian)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(everything)]))
    valid = jnp.where(finite, 1, jnp.nan).astype(g.dtype)
    return Diagnosis(
        secant_residual=_ratio(residual, _total_norm(slopes)) * valid,
        asymmetry=_ratio(_frames.norm(g - g.T), 2 * _frames.norm(g)) * valid,
        rank=jnp.sum(basis.kept),
        rounding=jnp.max(jnp.where(used | ~jnp.any(used), rounding(pairs), 0), initial=0),
        finite=finite,
    )


class HvpComparison(NamedTuple):
    """H_r against the exact Hessian H, one number per vector v; see `compare_hvp`.

    Attributes:
      relative_error: `|H_r v - H v| / |H v|`.
      cosine: of the angle between `H_r v` and `H v`.
      curvature_error: `v^T (H_r - H) v / (|v| |H v|)`, positive where H_r overestimates.
    """

    relative_error: jax.Array
    cosine: jax.Array
    curvature_error: jax.Array


def compare_hvp(
    loss: Callable,
    hessian: SymmetricLowRank,
    x: Any,
    vectors: Any,
    *args: Any,
    argnums: Argnums = 0,
) -> HvpComparison:
    """Compares an operator with exact Hessian-vector products of the loss at x.

    A plain function of a loss: jit it for repeated use.

    Args:
      loss: a scalar function, differentiated twice in argument `argnums`.
      hessian: the operator.
      x: the point, of the operator's structure.
      vectors: m vectors v, a pytree whose leaves have a leading axis m.
      *args: the loss's other arguments, in their order.
      argnums: as in `hvp`.

    Returns:
      `HvpComparison` of arrays of shape (m,). Where `H v` is zero, the error is 0 if `H_r v` is
      zero too and infinite otherwise, and cosine and curvature error are 0.

    Raises:
      TypeError: for leaves that are not real floating-point arrays.
      ValueError: where x or the vectors do not fit the operator, or the loss is not scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from lowrank_jax import secant_hessian
      >>> loss = lambda x: jnp.sum(x**4)
      >>> points = 1 + 1e-2 * jnp.eye(3)
      >>> h = secant_hessian(loss, extrapolate=1)(points)
      >>> comparison = compare_hvp(loss, h, jnp.ones(3), points - points[0])
      >>> bool(comparison.relative_error.max() < 0.05)
      True
    """
    x, (vectors, _) = _checks.vector(x, "x"), _checks.rows(vectors, "vectors")
    _checks.like(vectors, "vectors", x, "x", lead=1)
    product_at_x = hvp(loss, argnums)

    def compare(v):
        exact, approximate = _frames.widen((product_at_x(x, v, *args), hessian @ v))
        v = _frames.widen(v)
        size = _frames.norm(exact)
        error = jax.tree.map(jnp.subtract, approximate, exact)
        return HvpComparison(
            relative_error=_ratio(_frames.norm(error), size),
            cosine=_overlap(approximate, exact),
            curvature_error=_overlap(v, error) * _frames.norm(error) * reciprocal(size),
        )

    return jax.vmap(compare)(vectors)


def _overlap(u, v):
    """The cosine of the angle between two vectors, 0 where one of them is zero."""
    unit_u, unit_v = (
        _frames.scale(reciprocal(_frames.norms(a)), a)
        for a in (jax.tree.map(lambda leaf: leaf[None], b) for b in (u, v))
    )
    return _frames.gram(unit_u, unit_v)[0, 0]


def _total_norm(rows):
    return _frames.norm(_frames.norms(rows))


def _ratio(a, b):
    """A / b; 0 / 0 is 0."""
    zero = b == 0
    return jnp.where(zero, jnp.where(a == 0, 0, jnp.inf), a / jnp.where(zero, 1, b))
