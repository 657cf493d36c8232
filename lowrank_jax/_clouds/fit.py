"""The fit: secant pairs in, the low-rank Hessian that satisfies them out.

Let the rows of Q be an orthonormal basis of the row space of the steps S, `Q = T S`, and

    Z = T Y (~ Q H),    A = Z Q^T,    M = (A + A^T) / 2,    P = Z - A Q.

For every symmetric C the operator

    H_r = [Q; P]^T [[M, I], [I, C]] [Q; P]

minimises `|Q H - Z|_F` over the symmetric H: the least squares of the secant equations
`S H = Y` in whitened steps (weights change T and M, see `whitened`). Where the data are
consistent, all of them satisfy `S H_r = Y`. C says how H_r acts outside the span of the steps,
where nothing was measured: C = 0 is the H of least Frobenius norm, C = M^+ the one of least rank.
Between them, for e in [0, 1], C is an inverse of M that is damped where curvature is small,

    C = e Re (e M + i W)^-1 = (M + W M^-1 W / e^2)^-1,
    W = d I + e f^2 / (d^2 + f^2) F,    d = 1.2 (1 - e) g,

where the second form shows that `0 <= C <= M^+` for a positive semidefinite M: then `H_r <= H`.

The damping d. With `K = Z Z^T` and the rank r, h^2 is the harmonic mean of the squared singular
values of Z, and s the share of Z that lies within the span of the steps:

    h^2 = r / tr K^-1,    g^2 = h^2 (s + r^-2) / (1 + r^-2),    s = |M|^2 / |Z|^2.

h vanishes with the smallest singular value: if H has a lower rank than the steps, C = M^+ at
every e > 0, but for rounding. Of H in many dimensions random steps see little within their span:
all of M is small beside Z, and with many steps that is typical, so g shrinks with s. With one
step or two it may be an accident, and r^-2 limits the shrinking.

The floor F, which takes over where d falls below f, keeps from being inverted what is rounding, and
what pairs of a loss that is not quadratic contradict each other by. In units of |Z|, and
with K + eps I in place of K wherever it is inverted,

    F = eps^(1/2) (K + h I + eps K^-1) + u^2 / (eps + u^2)^(1/2) I,    u^2 = 0.2^2 |A - M|^2 / r,
    f^2 = e^2 (eps + u^2).

The first term bounds what is made of a direction q that H turns, `q H q^T ~ 0`, but not `q H`, as
SR1's skip rule does, and the second one does where `q H` is among the shortest; the third is as
large as eps^(1/2) where `q H` is below eps^(1/2), hence K cannot tell it from rounding. The last
one is u, a fifth of the typical singular value of the contradiction, where that is above eps^(1/2).
Without it directions along which H vanishes, but M does not, would undo the extrapolation of
all others. The 1.2, g, F and 0.2 are heuristics, chosen by measurement.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._clouds.pairs import SecantPairs, check, step_errors
from lowrank_jax._clouds.whitened import compress_to_dimension, whiten
from lowrank_jax._core import checks, scaling, structure, tall, xla
from lowrank_jax._core.spectral import diagonal, inverse, mirror, product, symmetrize
from lowrank_jax._core.types import Rows, Scalar, Vector
from lowrank_jax._operators.diagonal import DiagonalPlusLowRank, plus_diagonal
from lowrank_jax._operators.symmetric import Operator, SymmetricLowRank

DAMPING, CONTRADICTION = 1.2, 0.2  # the factors of d and u in the text above


def fit(
    pairs: SecantPairs | tuple[Rows, Rows],
    /,
    *,
    base: Scalar | Vector | Operator | None = None,
    weights: jax.Array | None = None,
    extrapolate: Scalar = 2 / 3,
    rtol: Scalar | None = None,
) -> Operator:
    """Fits the symmetric operator of rank at most 2n to the secant equations `H s_i = y_i`.

    Consistent pairs are satisfied at any `extrapolate`, to rounding times the condition of the unit
    steps. Inconsistent ones (a loss that is not quadratic on the cloud) are met by least
    squares in an orthonormal basis of the steps, so that mixing independent pairs changes nothing.
    Pairs may be dependent, repeated, zero, or more than D; a non-finite entry makes
    the whole operator NaN.

    What the pairs cannot tell is how H acts outside the span of the steps, and
    `extrapolate` decides:

    * 0 assumes nothing: the H of least Frobenius norm (the multisecant Powell-symmetric-Broyden
      update of zero). It differentiates wherever the rank of the steps is constant.
    * 1 assumes rank n: where S Y^T is regular it is `Y^T (S Y^T)^-1 Y` (block SR1 from zero,
      Nystrom), and it is exact if rank H <= n. For an indefinite H it is large now and then, and
      it changes fast where `S Y^T` is about to lose rank: by 1 / sqrt(eps) at most. Its second
      derivatives at consistent pairs hold within sqrt(eps) of them.
    * Between, a direction extrapolates the more, the larger its curvature is beside the
      others'. An H of lower rank than the steps is exact, to rounding, at any value well above 0.
      The default, 2/3, is a heuristic: near the best of all fixed values over many spectra.

    Below 1 the H_r of a positive semidefinite Hessian is below it, `H_r <= H`, and indefinite
    unless it is exact. On
    decaying spectra and random steps the smallest over the largest eigenvalue is -0.2 to -0.9 at 0
    and, at 2/3, 0 to -0.06 for 16 pairs, to -0.16 for 2 and to -0.6 for one.
    At any value a direction q extrapolates only as far as its curvature rises above rounding, above
    sqrt(eps) times the length of `q H` (as in the skip rule of SR1), and above what the pairs
    contradict each other by.

    Args:
      pairs: steps (n, ...) and gradient differences (n, ...), pytrees of one structure, as
        `SecantPairs` or a plain tuple.
        bfloat16 and float16 are computed in float32.
      base: what is known of H, and changed as the pairs ask for: H is the base B plus the
        fit to `(S, Y - S B)`. A number or a vector stand for diagonal matrices, a bulk of equal
        eigenvalues or prior precisions; an operator is a Hessian to be updated, a dense symmetric A
        in D dimensions as `SymmetricLowRank(jnp.eye(D), A)`. At `extrapolate=0` this is the
        multisecant Powell-symmetric-Broyden update of B, the least change, at 1 block SR1; where
        the change has both signs, only 0 is sure to be no further off than B. See `choose_shift`.
      weights: (n,), how much each pair counts where they contradict each other, on any scale: for
        noise, one over the variance of `y_i / |s_i|`; for age, powers of a number below 1. A weight
        of 0 drops its pair, and so does one that beside the largest is below the normal numbers; on
        consistent pairs others change nothing. Along directions that
        only pairs of less than n eps of the largest weight have seen, these count alike.
        Equal ones count unit steps alike, None all directions of their span.
      extrapolate: in [0, 1]; may be traced, and one outside then makes the operator NaN.
      rtol: directions of the unit steps below `rtol` times the largest singular value
        are dropped, as in `jnp.linalg.pinv`; None drops what is rounding noise, by the dtype and
        by `pairs.rounding` where it is known. With a number, 0 among them, the pairs' rounding
        does not count: steps of a smooth path in many dimensions carry curvature below it.
        Which ones are dropped is a constant to differentiation.

    Returns:
      `SymmetricLowRank` with 2n factors, leaves in the dtypes of the steps; where 2n is D or more,
      with the D unit vectors. With a base the whole Hessian, with the factors of the base besides:
      `DiagonalPlusLowRank` for a base that has a diagonal. In a loop of updates,
      `fit(pairs, base=h).truncate(k)` keeps their number.

    Raises:
      TypeError: for leaves that are not real floating-point arrays.
      ValueError: for structures or shapes that differ, or options outside their interval.

    Source: Schnabel, Quasi-Newton methods using multiple secant equations, report CU-CS-247-83
    (1983); Byrd, Nocedal and Schnabel, Representations of quasi-Newton matrices,
    Mathematical Programming 63 (1994), for the compact forms at the two ends.

    Example:
      >>> import jax.numpy as jnp
      >>> a = jnp.diag(jnp.array([3.0, -1.0, 0.0, 0.0]))
      >>> steps = jnp.array([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
      >>> h = fit(SecantPairs(steps, steps @ a), extrapolate=1)
      >>> bool(jnp.allclose(h.to_dense(), a, atol=1e-5))
      True
      >>> fit((steps, steps @ (a + 2 * jnp.eye(4))), base=2.0)
      DiagonalPlusLowRank(shape=(4, 4), factors=4, dtype=float32)
    """
    pairs, n = check(pairs)
    checks.between(extrapolate, "extrapolate", 0, 1)
    if rtol is not None:
        checks.between(rtol, "rtol", 0, 1)
    dtype = structure.compute_dtype((pairs.steps, pairs.grad_diffs))
    if weights is not None:
        checks.weights(weights, "weights", n)
        weights = jnp.asarray(weights, dtype)
    nothing = jax.tree.map(lambda leaf: leaf[:0], pairs.steps)
    nothing = SymmetricLowRank(nothing, jnp.zeros((0, 0), dtype))
    if isinstance(base, (SymmetricLowRank, DiagonalPlusLowRank)):
        base.check()
        rows = (base if isinstance(base, SymmetricLowRank) else base.low_rank).factors
        checks.like(pairs.steps, "pairs.steps", rows, "a factor of base", lead=1, pattern_lead=1)
    elif base is not None:
        base = plus_diagonal(nothing, base, "base")
    if min(n, structure.size(structure.row(pairs.steps))) == 0:
        return nothing if base is None else base
    extrapolate = jnp.asarray(extrapolate, dtype)
    if rtol is not None:
        pairs, rtol = pairs._replace(rounding=None), jnp.asarray(rtol, dtype)
    if base is None:
        return _fit(pairs, weights, extrapolate, rtol)
    return _update(base, pairs, weights, extrapolate, rtol)


@jax.jit
def _update(base, pairs, *options):
    s, y = structure.widen((pairs.steps, pairs.grad_diffs))
    images = jax.vmap(structure.widen(base).mv)(s)
    return base + _fit(pairs._replace(grad_diffs=jax.tree.map(jnp.subtract, y, images)), *options)


@jax.jit
def _fit(
    pairs: SecantPairs, weights: jax.Array | None, extrapolate: Any, rtol: Any
) -> SymmetricLowRank:
    steps, grad_diffs, _ = pairs
    errors = step_errors(pairs)
    n, eps = structure.length(steps), structure.resolution(steps)
    wide = structure.widen((steps, grad_diffs))
    vector = structure.row(wide[0])
    valid = (extrapolate >= 0) & (extrapolate <= 1)
    valid &= True if rtol is None else (rtol >= 0) & (rtol <= 1)
    if weights is not None:
        largest = jnp.max(weights)
        valid &= (jnp.min(weights) >= 0) & (largest > 0) & jnp.isfinite(largest)
        weights = weights / largest
        wide = tuple(tall.where(weights > 0, rows) for rows in wide)
    if n > structure.size(vector):
        *wide, weights = compress_to_dimension(
            *wide, eps=eps, rtol=rtol, weights=weights, errors=errors
        )
        rtol = errors = None  # they were applied where lengths were known
    else:
        wide = tuple(map(structure.pack, wide))
    whitened = whiten(*wide, eps=eps, rtol=rtol, weights=weights, errors=errors)
    a, k = whitened.products()
    m, eye = whitened.symmetric(a), xla.once(jnp.eye(len(a), dtype=a.dtype))
    u_squared = CONTRADICTION**2 * whitened.contradiction(a - m)
    c = _damped_inverse(m, k, u_squared, whitened.kept, eye, extrapolate)
    core = jnp.block([[m, eye], [eye, c]])
    factors = whitened.rows(_factors, a)  # the rows of Q and P

    scale = whitened.unit * scaling.nan_unless(valid, core.dtype)
    if 2 * n >= structure.size(vector):  # then the matrix itself is no larger
        dense = structure.matrix(factors)
        core, factors = mirror(product(dense.T, core, dense)), structure.identity(vector)
    else:
        factors = structure.unpack(factors, vector)
    return SymmetricLowRank(structure.cast_like(factors, steps), scale * core)


def _factors(a, q, z):
    return jax.tree.map(lambda q, z: jnp.concatenate([q, z - tall.combine(a, q)]), q, z)


def _damped_inverse(m, k, u_squared, kept, eye, e):
    """The C of this module's text, zero where not kept, for u in the units of M."""
    eps = float(jnp.finfo(m.dtype).eps)
    norm_squared = jnp.sum(diagonal(k))
    per_norm = lax.rsqrt(jnp.where(norm_squared > 0, norm_squared, 1))
    m, k, u_squared = per_norm * m, per_norm**2 * k, per_norm**2 * u_squared  # in units of |Z|
    rank = jnp.maximum(jnp.sum(kept), 1).astype(m.dtype)

    inverse_k = inverse(k + eps * eye, eps)
    trace = jnp.sum(jnp.where(kept, diagonal(inverse_k), 0))
    h = jnp.sqrt(rank / jnp.where(trace > 0, trace, 1))
    g = h * jnp.sqrt((jnp.sum(m * m) + rank**-2) / (1 + rank**-2))
    d, f_squared = DAMPING * (1 - e) * g, e**2 * (eps + u_squared)
    floor = (
        eps**0.5 * (k + h * eye + eps * inverse_k) + u_squared * lax.rsqrt(eps + u_squared) * eye
    )
    # Not 0 where not kept; 1 / i has no real part.
    w = d * eye + e * f_squared / (d**2 + f_squared) * floor
    return e * per_norm * symmetrize(jnp.real(inverse(lax.complex(e * m, w))))
