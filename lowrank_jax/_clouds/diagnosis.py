"""How good a fit is, by its own pairs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._clouds.pairs import SecantPairs, check, rounding
from lowrank_jax._clouds.selection import compressed, left_out_errors, not_empty
from lowrank_jax._core import checks, scaling, structure, tall
from lowrank_jax._core.spectral import eigh, product, symmetrize
from lowrank_jax._core.types import Rows, Scalar
from lowrank_jax._operators.symmetric import Operator, check_operator


class Diagnosis(NamedTuple):
    """What the pairs say of a fit to them; see `diagnose`.

    Attributes:
      secant_residual: `|U H - V|_F / |V|_F` for unit steps U and their gradient differences V.
      asymmetry: `|G - G^T|_F / 2 |G|_F` for `G = U V^T`; in [0, 1], 0 for a quadratic loss.
      rank: the numerical rank of the steps.
      leave_one_out: `(sum_i |H_i u_i - v_i|^2 / |V|_F^2)^(1/2)`, H_i the fit to all pairs but
        the i-th.
      rounding: the largest relative rounding error of a pair that has a step (of any,
        where none has); near 1 it carries only noise.
      finite: whether all numbers of the pairs and of the operator are finite.
      least_curvature: the least `|v^T H v| / |H v|` of the eigenvectors v of H within the span
        of the steps; in [0, 1]. Near 0 the image H v of a step was seen, but hardly any curvature
        along v, as of (1, 1) with H = diag(1, -1): below sqrt(eps) no fit extrapolates along v.
        Vectors whose image is next to nothing, or only noise, do not count.
    """

    secant_residual: jax.Array
    asymmetry: jax.Array
    rank: jax.Array
    leave_one_out: jax.Array
    rounding: jax.Array
    finite: jax.Array
    least_curvature: jax.Array


def diagnose(
    hessian: Operator,
    pairs: SecantPairs | tuple[Rows, Rows],
    *,
    extrapolate: Scalar = 2 / 3,
) -> Diagnosis:
    """Tells how far an operator can be trusted, from the pairs that it was fitted to.

    * The secant residual is at rounding level for consistent pairs; what it is above
      that, no symmetric H explains.
    * The asymmetry of `S Y^T`, which is symmetric for a quadratic loss, measures how
      far the loss is from quadratic on the cloud.
    * The leave-one-out error predicts each pair from the others: an estimate of
      `|H_r v - H v| / |H v|` for a new v that is drawn as the steps were. Steps that sum to
      zero are those of `centered`: there a point is left out of the cloud, and of its mean.
      Where steps depend on each other in another way, what is left out is known
      already, and the error is too good.

    Residual and asymmetry have derivative 0 where they are rounding.

    Args:
      hessian: the operator, `SymmetricLowRank` or `DiagonalPlusLowRank`.
      pairs: secant pairs, or a tuple (steps, grad_diffs), of the operator's structure. Pairs
        without a step count for nothing.
      extrapolate: of the fits that leave a pair out; that of the fit itself, as a rule.

    Returns:
      `Diagnosis`, scalars all. Numbers that are not finite make `finite` False and the
      errors NaN. With one step or none the leave-one-out error is 1, that of predicting zero.

    Raises:
      TypeError: for leaves that are not real floating-point arrays.
      ValueError: where the pairs do not fit the operator, for a batch of operators
        without `vmap`, or for `extrapolate` outside [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from lowrank_jax import fit
      >>> pairs = SecantPairs(jnp.eye(3)[:2], jnp.array([[2.0, 1.0, 0.0], [1.0, 5.0, 0.0]]))
      >>> report = diagnose(fit(pairs), pairs)
      >>> int(report.rank), bool(report.finite), float(report.asymmetry)
      (2, True, 0.0)
    """
    factors = check_operator(hessian, "hessian")
    pairs, _ = check(pairs)
    checks.like(pairs.steps, "pairs.steps", factors, "a factor of hessian", lead=1, pattern_lead=1)
    checks.between(extrapolate, "extrapolate", 0, 1)
    pairs = not_empty(pairs)
    found = compressed(pairs)
    return _diagnose(hessian, pairs, found, left_out_errors(found.pairs, extrapolate))


@jax.jit
def _diagnose(hessian, pairs, found, left_out):
    short, rank, transform, units = found
    sizes = scaling.norms(short.steps)
    used, inverse = sizes > 0, scaling.reciprocal(sizes)
    unit_steps, slopes = (tall.scale(inverse, rows) for rows in (short.steps, short.grad_diffs))
    g, slope_sizes = product(unit_steps, slopes.T), scaling.norms(slopes)
    asymmetry = scaling.norms(jnp.stack([g - g.T, 2 * g]))
    steps, grad_diffs = (
        tall.scale(inverse / units[0], structure.widen(rows))
        for rows in (pairs.steps, pairs.grad_diffs)
    )
    images = structure.cast_like(jax.vmap(structure.widen(hessian).mv)(steps), grad_diffs)
    missed = jax.tree.map(jnp.subtract, images, grad_diffs)
    missed = scaling.norms(missed) / units[1] * units[0]
    noise = jnp.max(jnp.where(used | ~jnp.any(used), rounding(pairs), 0), initial=0)
    least_curvature = _least_curvature(*lax.stop_gradient((short, transform)), noise)
    residual, error, size = scaling.norms(jnp.stack([missed, left_out, slope_sizes]))
    leave_one_out = jnp.where(jnp.any(used), scaling.ratio(error, size), 1)
    finite = tall.finite((pairs.steps, pairs.grad_diffs, hessian))
    valid = scaling.nan_unless(finite, g.dtype)
    return Diagnosis(
        secant_residual=_resolved_ratio(residual, size, len(g)) * valid,
        asymmetry=_resolved_ratio(*asymmetry, len(g)) * valid,
        rank=rank,
        leave_one_out=leave_one_out * valid,
        rounding=noise,
        finite=finite,
        least_curvature=least_curvature * valid,
    )


def _least_curvature(short, transform, noise):
    """Of `M = V diag(w) V^T` and `Z ~ Q H` as in the text of `fit`: the least |w_i| / |V^T Z|_i.

    Where V^T Z is within the noise of the pairs, or sqrt(eps) of its longest row, there is nothing
    to tell.
    """
    z = product(transform, short.grad_diffs)  # in coordinates whose first n are those of Q
    w, v = eigh(symmetrize(z[:, : len(z)]))
    images = scaling.norms(product(v.T, z))
    noise = jnp.maximum(noise.astype(w.dtype), float(jnp.finfo(w.dtype).eps) ** 0.5)
    seen = images > noise * jnp.max(images)
    return jnp.min(jnp.where(seen, jnp.abs(w) / jnp.where(seen, images, 1), 1), initial=1)


def _resolved_ratio(a, b, n):
    """The ratio, a constant to differentiation where it is rounding."""
    ratio = scaling.ratio(a, b)
    rounded = ratio <= 8 * (n + 1) * jnp.finfo(ratio.dtype).eps
    return jnp.where(rounded, lax.stop_gradient(ratio), ratio)
