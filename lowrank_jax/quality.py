"""How good a fit is: by its own pairs, and against exact Hessian-vector products."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax import _checks, _frames, _rows
from lowrank_jax._losses import Argnums
from lowrank_jax._spectral import after, eigh, product, reciprocal, symmetrize
from lowrank_jax.pairs import SecantPairs, check, rounding
from lowrank_jax.products import hvp
from lowrank_jax.secant import fit
from lowrank_jax.symmetric import SymmetricLowRank

EXTRAPOLATIONS = (0, 1 / 2, 2 / 3, 4 / 5)
RTOLS = (0, 1e-3, 1e-2, 1e-1, 0.3)


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
        of the steps; in [0, 1]. 0 where the pairs show how H turns a step and nothing of
        its curvature, as diag(1, -1) does with (1, 1); below sqrt(eps) no fit extrapolates there.
        Vectors of which H makes next to nothing, or only noise, do not count.
    """

    secant_residual: jax.Array
    asymmetry: jax.Array
    rank: jax.Array
    leave_one_out: jax.Array
    rounding: jax.Array
    finite: jax.Array
    least_curvature: jax.Array


def diagnose(
    hessian: SymmetricLowRank, pairs: SecantPairs, *, extrapolate: float | jax.Array = 2 / 3
) -> Diagnosis:
    """How far an operator can be trusted, from the pairs that it was fitted to.

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
      hessian: the operator.
      pairs: secant pairs, of the operator's structure. Pairs without a step count for nothing.
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
    _checks.instance(hessian, "hessian", SymmetricLowRank)
    _checks.single(hessian.core)
    pairs, _ = check(pairs)
    _checks.like(
        pairs.steps, "pairs.steps", hessian.factors, "a factor of hessian", lead=1, pattern_lead=1
    )
    _checks.between(extrapolate, "extrapolate", 0, 1)
    dtype = _rows.compute_dtype((pairs.steps, pairs.grad_diffs))
    return _diagnose(hessian, pairs, jnp.asarray(extrapolate, dtype))


@jax.jit
def _diagnose(hessian, pairs, extrapolate):
    steps, grad_diffs = _rows.widen((pairs.steps, pairs.grad_diffs))
    sizes = _rows.norms(steps)
    used, inverse = sizes > 0, reciprocal(sizes)
    unit_steps = _rows.scale(inverse, steps)
    slopes = _rows.scale(inverse, grad_diffs)
    images = _rows.cast_like(jax.vmap(_rows.widen(hessian).mv)(unit_steps), slopes)
    residual = _total_norm(jax.tree.map(jnp.subtract, images, slopes))
    g = _rows.gram(unit_steps, slopes)
    short, rank = _short(pairs)
    noise = jnp.max(jnp.where(used | ~jnp.any(used), rounding(pairs), 0), initial=0)
    least_curvature = _least_curvature(lax.stop_gradient(short), noise)
    short = short._replace(steps=after(short.steps, least_curvature))
    sizes_left_out = _rows.norms(short.grad_diffs) * reciprocal(_rows.norms(short.steps))
    leave_one_out = (
        _rows.norm(_left_out(short, extrapolate=extrapolate)),
        _rows.norm(sizes_left_out),
    )
    leave_one_out = jnp.where(jnp.any(used), _ratio(*leave_one_out), 1)
    everything = (pairs.steps, pairs.grad_diffs, hessian)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(everything)]))
    valid = jnp.where(finite, 1, jnp.nan).astype(g.dtype)
    return Diagnosis(
        secant_residual=_resolved_ratio(residual, _total_norm(slopes), len(g)) * valid,
        asymmetry=_resolved_ratio(_rows.norm(g - g.T), 2 * _rows.norm(g), len(g)) * valid,
        rank=rank,
        leave_one_out=leave_one_out * valid,
        rounding=noise,
        finite=finite,
        least_curvature=least_curvature * valid,
    )


def choose_extrapolation(pairs: SecantPairs) -> jax.Array:
    """The `extrapolate` in {0, 1/2, 2/3, 4/5} that predicts each pair best from the others.

    A scalar for `fit(pairs, extrapolate=choose_extrapolation(pairs))`. It has the least
    geometric mean of the errors `|H_i s_i - y_i| / |s_i|`, H_i the fit to all pairs but the
    i-th (see `diagnose`): a mean of squares would follow the few pairs that are missed
    most. 1 is no candidate: where H is indefinite it is far off now and then, which pairs left
    out one at a time do not always show. The choice is a constant to differentiation.

    Args:
      pairs: secant pairs whose steps are alike, as random ones are: the error speaks of
        more such steps.

    Returns:
      A scalar of the pairs' dtype, float32 at least; NaN where the pairs are not finite or
      none has a step.

    Raises:
      TypeError: for leaves that are not real floating-point arrays.
      ValueError: for steps and gradient differences of different structure.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> steps = jax.random.normal(jax.random.key(0), (8, 40))
      >>> pairs = SecantPairs(steps, steps * 0.5 ** jnp.arange(40))  # H decays fast
      >>> round(float(choose_extrapolation(pairs)), 2)
      0.8
    """
    return _choose_extrapolation(check(pairs)[0])


@jax.jit
def _choose_extrapolation(pairs):
    def left_out(short, extrapolate):
        return _left_out(short, extrapolate=extrapolate)

    return _choose(pairs, EXTRAPOLATIONS, left_out)


def choose_rtol(pairs: SecantPairs, *, extrapolate: float | jax.Array = 2 / 3) -> jax.Array:
    """The `rtol` in {0, 1e-3, 1e-2, 0.1, 0.3} that predicts each pair best from the others.

    For noisy gradients, as those of mini-batches are: a direction in which the steps hardly
    differ carries little but noise, and a fit without it is better. A scalar for
    `fit(pairs, rtol=choose_rtol(pairs))`, chosen as `choose_extrapolation` does.

    Args:
      pairs: secant pairs whose steps are alike.
      extrapolate: of the fits that leave a pair out.

    Returns:
      A scalar of the pairs' dtype, float32 at least; NaN where the pairs are not finite or
      none has a step.

    Raises:
      TypeError: for leaves that are not real floating-point arrays.
      ValueError: for steps and gradient differences of different structure, or
        `extrapolate` outside [0, 1].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> steps = jax.random.normal(jax.random.key(0), (8, 40))
      >>> float(choose_rtol(SecantPairs(steps, steps * 0.5 ** jnp.arange(40))))
      0.0
    """
    pairs, _ = check(pairs)
    _checks.between(extrapolate, "extrapolate", 0, 1)
    dtype = _rows.compute_dtype((pairs.steps, pairs.grad_diffs))
    return _choose_rtol(pairs, jnp.asarray(extrapolate, dtype))


@jax.jit
def _choose_rtol(pairs, extrapolate):
    def left_out(short, rtol):
        return _left_out(short, extrapolate=extrapolate, rtol=rtol)

    return _choose(pairs, RTOLS, left_out)


def _choose(pairs, candidates, left_out):
    short, _ = _short(lax.stop_gradient(pairs))
    candidates = jnp.array(candidates, short.steps.dtype)
    errors = jax.vmap(left_out, in_axes=(None, 0))(short, candidates)
    logs = jnp.log(jnp.maximum(errors, jnp.finfo(errors.dtype).tiny))
    best = jnp.argmin(jnp.sum(logs, axis=1))
    valid = jnp.any(_rows.norms(short.steps) > 0) & jnp.all(jnp.isfinite(errors))
    return jnp.where(valid, candidates[best], jnp.nan)


def _short(pairs):
    """The pairs as rows of 2n numbers with the same inner products, and the rank of the steps.

    With `S = R Q`, `Y = W Q + L E` for orthonormal rows Q and E, the rows [R, 0] and [W, L].
    """
    s, y = _rows.widen((pairs.steps, pairs.grad_diffs))
    s, y = (_rows.scale(1 / _unit(rows), rows) for rows in (s, y))
    if _rows.length(s) == 0:  # one pair without a step instead
        nothing = jnp.zeros((1, 1), _rows.compute_dtype(s))
        return SecantPairs(nothing, nothing), jnp.array(0)
    basis = _frames.orthonormal(s, eps=_rows.resolution(pairs.steps))
    w = _rows.gram(y, basis.rows)
    outside = jax.tree.map(jnp.subtract, y, _rows.combine(w, basis.rows))
    r = _rows.gram(s, basis.rows)
    coordinates = _frames.frame(outside).coordinates
    steps = jnp.concatenate([after(r, coordinates), jnp.zeros_like(r)], axis=1)
    slopes = jnp.concatenate([w, coordinates], axis=1)
    return SecantPairs(steps, slopes), jnp.sum(basis.kept)


def _least_curvature(short, noise):
    """Of `M = V diag(w) V^T` and `Z ~ Q H` as in the text of `secant`: the least |w_i| / |V^T Z|_i.

    Where V^T Z is within the noise of the pairs, or sqrt(eps) of its longest row, there is nothing
    to tell.
    """
    inverse = reciprocal(_rows.norms(short.steps))
    s, y = (_rows.scale(inverse, rows) for rows in short[:2])
    basis = _frames.orthonormal(s, eps=_rows.resolution(s))
    z = _rows.combine(basis.transform * basis.scale[None, :], y)
    w, v = eigh(symmetrize(_rows.gram(z, basis.rows)))
    images = _rows.norms(product(v.T, z))
    noise = jnp.maximum(noise.astype(w.dtype), float(jnp.finfo(w.dtype).eps) ** 0.5)
    seen = images > noise * jnp.max(images)
    return jnp.min(jnp.where(seen, jnp.abs(w) / jnp.where(seen, images, 1), 1), initial=1)


def _unit(rows):
    """One power of two for all rows, n times."""
    peaks = _rows.peaks(rows)
    return jnp.full_like(peaks, _rows.power_of_two(jnp.max(peaks, initial=0)))


def _left_out(short, **options):
    """What the fit to all other pairs misses of each, `|H_i s_i - y_i| / |s_i|`; 0 without a step.

    The steps of `centered` sum to zero. Without point i they start from another mean.
    """
    s, y, _ = short
    n = len(s)
    sizes = _rows.norms(s)
    used, inverse = sizes > 0, reciprocal(sizes)
    negligible = jnp.sqrt(jnp.finfo(s.dtype).eps) * jnp.max(sizes, initial=0)
    is_centered = _rows.norm(jnp.sum(s, axis=0)) <= negligible
    shift = jnp.where(is_centered, 1 / jnp.maximum(jnp.sum(used) - 1, 1), 0).astype(s.dtype)

    def missed(i):
        others = (used & (jnp.arange(n) != i))[:, None]
        left = [jnp.where(others, rows + shift * rows[i][None, :], 0) for rows in (s, y)]
        h = fit(SecantPairs(*left), **options)
        return _rows.norm(h @ s[i] - y[i]) * inverse[i]

    return jax.vmap(missed)(jnp.arange(n))


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
    _checks.instance(hessian, "hessian", SymmetricLowRank)
    _checks.single(hessian.core)
    _checks.like(x, "x", hessian.factors, "a factor of hessian", pattern_lead=1)
    product_at_x, vectors = hvp(loss, argnums), _rows.spread(vectors)

    def compare(v):
        exact, approximate = _rows.widen((product_at_x(x, v, *args), hessian @ v))
        v = _rows.widen(v)
        size = _rows.norm(exact)
        error = jax.tree.map(jnp.subtract, approximate, exact)
        return HvpComparison(
            relative_error=_ratio(_rows.norm(error), size),
            cosine=_overlap(approximate, exact),
            curvature_error=_overlap(v, error) * _rows.norm(error) * reciprocal(size),
        )

    return jax.vmap(compare)(vectors)


def _overlap(u, v):
    """The cosine of the angle between two vectors, 0 where one of them is zero."""
    unit_u, unit_v = (
        _rows.scale(reciprocal(_rows.norms(a)), a)
        for a in (jax.tree.map(lambda leaf: leaf[None], b) for b in (u, v))
    )
    return _rows.gram(unit_u, unit_v)[0, 0]


def _total_norm(rows):
    return _rows.norm(_rows.norms(rows))


def _resolved_ratio(a, b, n):
    """The ratio, a constant to differentiation where it is rounding."""
    ratio = _ratio(a, b)
    rounded = ratio <= 8 * (n + 1) * jnp.finfo(ratio.dtype).eps
    return jnp.where(rounded, lax.stop_gradient(ratio), ratio)


def _ratio(a, b):
    """The ratio; 0 / 0 is 0."""
    zero = b == 0
    return jnp.where(zero, jnp.where(a == 0, 0, jnp.inf), a / jnp.where(zero, 1, b))
