"""The fit: secant pairs in, the low-rank Hessian that satisfies them out.

Let the rows of Q be an orthonormal basis of the row space of the steps S, `Q = T S`, and

    Z = T Y (~ Q H),    A = Z Q^T,    M = (A + A^T) / 2,    P = Z - A Q.

For every symmetric C the operator

    H_r = [Q; P]^T [[M, I], [I, C]] [Q; P]

minimises `|Q H - Z|_F` over the symmetric H: the least squares of the secant equations
`S H = Y` in whitened steps. Where the data are consistent, all of them satisfy
`S H_r = Y`. C says how H_r acts outside the span of the steps, where nothing was measured:
C = 0 is the H of least Frobenius norm, C = M^+ the one of least rank.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._clouds.pairs import SecantPairs, check
from lowrank_jax._core import checks, scaling, structure, tall, xla
from lowrank_jax._core.orthonormal import apply_transforms, cholesky_qr, svqb_rotations
from lowrank_jax._core.spectral import (
    eigh,
    eigh_with_derivative,
    product,
    symmetrize,
    truncated_inverse,
)
from lowrank_jax._core.types import Rows, Scalar
from lowrank_jax._operators.symmetric import SymmetricLowRank


def fit(
    pairs: SecantPairs,
    /,
    *,
    extrapolate: Scalar = 2 / 3,
    rtol: Scalar | None = None,
) -> SymmetricLowRank:
    """Fits the symmetric operator of rank at most 2n to the secant equations `H s_i = y_i`.

    Consistent pairs are satisfied exactly at any `extrapolate`. Inconsistent ones
    (a loss that is not quadratic on the cloud) are met in the least-squares sense of
    this module's text: in whitened steps, so that mixing the pairs changes nothing.
    Dependent, repeated, zero and more than D pairs are handled by masks; a
    non-finite entry makes the whole operator NaN.

    What the pairs cannot tell is how H acts outside the span of the steps, and
    `extrapolate` decides:

    * 0 assumes nothing: the H of least Frobenius norm (the multisecant Powell-symmetric-Broyden
      update of zero). It differentiates wherever the rank of the steps is constant.
    * 1 assumes rank n: `Y^T (S Y^T)^+ Y` (block SR1 from zero, Nystrom), exact if
      rank H <= n. For an indefinite H it is large now and then, and it is
      discontinuous where `S Y^T` loses rank.
    * Between, the directions of largest curvature among the steps extrapolate, the fraction
      `extrapolate` of them, rounded down; a tie across the cut is left out. The
      default, 2/3, is a heuristic: near the best of all fixed values over many spectra.

    Below 1 the H_r of a positive semidefinite Hessian is indefinite. On decaying
    spectra and random steps the smallest over the largest eigenvalue is -0.4 to -0.9 at 0;
    at 2/3 it is 0 to -0.05 for 16 pairs and to -0.4 for 2 (a single pair is least norm).
    At any value a direction extrapolates only if its curvature rises above rounding and
    above sqrt(eps) times what it would extrapolate (the skip rule of SR1).

    Args:
      pairs: steps (n, ...) and gradient differences (n, ...), pytrees of one structure.
        bfloat16 and float16 are computed in float32.
      extrapolate: in [0, 1]; may be traced, and one outside then makes the operator NaN.
      rtol: directions of the unit steps below `rtol` times the largest singular value
        are dropped, as in `jnp.linalg.pinv`; None drops what is rounding noise.

    Returns:
      `SymmetricLowRank` with 2n factors, leaves in the dtypes of the steps.

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
    """
    pairs, n = check(pairs)
    checks.between(extrapolate, "extrapolate", 0, 1)
    rtol = 0.0 if rtol is None else rtol
    checks.between(rtol, "rtol", 0, 1)
    dtype = structure.compute_dtype((pairs.steps, pairs.grad_diffs))
    if n == 0:
        return SymmetricLowRank(pairs.steps, jnp.zeros((0, 0), dtype))
    least_norm = not isinstance(extrapolate, jax.Array) and float(extrapolate) == 0
    extrapolate, rtol = jnp.asarray(extrapolate, dtype), jnp.asarray(rtol, dtype)
    return _fit(pairs.steps, pairs.grad_diffs, extrapolate, rtol, least_norm=least_norm)


@partial(jax.jit, static_argnames="least_norm")
def _fit(
    steps: Rows, grad_diffs: Rows, extrapolate: jax.Array, rtol: jax.Array, *, least_norm: bool
) -> SymmetricLowRank:
    wide = structure.widen((steps, grad_diffs))
    s, y = map(structure.pack, wide)
    eps = structure.resolution(steps)
    turn = svqb_rotations(s, eps=eps, rtol=rtol)
    unit, valid = unit_and_validity(turn.scale, s, y)
    per_unit = jnp.where(turn.unit > 0, 1 / unit, 0)  # nothing of what no step goes with
    rotated = (turn.scale, turn.rotation), (turn.scale, per_unit, turn.rotation)
    inner, a, zz = xla.blockwise_sum(_rotated_products, rotated, s, y)
    basis = cholesky_qr(turn, inner, s)
    solve = turn.scale, per_unit, basis.transform
    a = product(basis.turn, a, basis.transforms[-1].T), product(basis.turn, zz, basis.turn.T)
    a, zz = xla.with_derivative_of(a, _inner_products, (basis.transforms, solve), s, y)
    m = symmetrize(a)
    # A kept w may be mere noise where H has low rank, and then P is noise along its
    # eigenvector: rotated into eigenvectors first, 1 / w meets that and nothing larger.
    eye = jnp.eye(len(m), dtype=m.dtype)
    w, v = (m[0], eye) if least_norm else lax.stop_gradient(eigh(m))
    factors = xla.blockwise_map(_factors, (basis.transforms, solve, a, v), s, y)

    c = jnp.zeros_like(m)
    if not least_norm:
        # What cancels in P P^T here is below the thresholds that it is compared with.
        pp = product(v.T, zz - product(a, a.T), v)
        keep = _extrapolated(w, pp, jnp.sum(basis.kept), extrapolate, eps)
        m_v = symmetrize(product(v.T, m, v))
        c = truncated_inverse(m_v, *eigh_with_derivative(m_v, w, xla.depend_on(eye, w)), keep)
    core = unit * jnp.block([[m, v], [v.T, c]])
    valid &= (extrapolate >= 0) & (extrapolate <= 1) & (rtol >= 0) & (rtol <= 1)
    core = core * jnp.where(valid, 1, jnp.nan).astype(core.dtype)
    factors = structure.cast_like(structure.unpack(factors, structure.row(wide[0])), steps)
    return SymmetricLowRank(factors, core)


def unit_and_validity(scale: jax.Array, steps: Rows, grad_diffs: Rows) -> tuple:
    """A power of two near |H|, so that Z Z^T keeps its digits, and whether all pairs are finite."""
    s_peaks, y_peaks = scaling.max_abs(steps), scaling.max_abs(grad_diffs)
    unit = scaling.power_of_two(jnp.max(jnp.where(s_peaks > 0, y_peaks * scale, 0)))
    valid = jnp.all(jnp.isfinite(s_peaks) & jnp.isfinite(y_peaks) & (scale / unit > 0))
    return unit, valid


def _rotated_products(small, s, y):
    """Of rotated steps and rotated gradient differences: `R R^T`, `Z R^T`, `Z Z^T`."""
    rows = apply_transforms(small[0], s)
    z = _solution(small[1], y)
    return tall.gram(rows, rows), tall.gram(z, rows), tall.gram(z, z)


def _inner_products(small, s, y):
    """`A = Z Q^T` and `Z Z^T`."""
    transforms, solve = small
    z = _solution(solve, y)
    return tall.gram(z, apply_transforms(transforms, s)), tall.gram(z, z)


def _factors(small, s, y):
    """The rows of Q and of `V^T P`."""
    transforms, solve, a, v = small
    q = apply_transforms(transforms, s)
    p = _solution(solve, y) - tall.combine(a, q)
    return jnp.concatenate([q, tall.combine(v.T, p)])


def _solution(solve, y):
    """Z; scaled before it is combined, as T times the scale of tiny steps would overflow."""
    scale, per_unit, transform = solve
    y = tall.scale(per_unit, tall.scale(scale, y))
    return tall.combine(transform, y, pairwise=True)


def _extrapolated(w, pp, rank, extrapolate, eps):
    """Which eigenvectors of M extrapolate; `pp` is P P^T in their basis.

    The `floor(extrapolate * rank)` largest |w| (a tie across the cut is
    dropped whole, or permuted points would give another H), if they rise above
    sqrt(eps) |P_i|, and above the rounding of the largest row.
    """
    size, outside = jnp.abs(w), jnp.sqrt(jnp.maximum(jnp.diagonal(pp), 0))
    most = jnp.floor(extrapolate * rank.astype(w.dtype) + 1e-4).astype(rank.dtype)
    descending = jnp.concatenate([-jnp.sort(-size), jnp.zeros_like(size, shape=1)])
    cut = jnp.where(most >= rank, 0, descending[most])
    ranked = size > cut * (1 + jnp.sqrt(eps))
    noise = 4 * len(w) * eps * jnp.max(jnp.hypot(size, outside))
    return ranked & (size > jnp.sqrt(eps) * outside) & (size > noise)
