"""Options of the fit chosen by predicting each pair from the others."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._clouds.fit import fit
from lowrank_jax._clouds.pairs import SecantPairs, check, step_errors
from lowrank_jax._core import checks, programs, scaling, structure, tall, xla
from lowrank_jax._core.orthonormal import rounding_of_rows, thin_lq
from lowrank_jax._core.spectral import diagonal, product, symmetrize
from lowrank_jax._core.types import Rows, Scalar

EXTRAPOLATIONS = (0, 1 / 2, 2 / 3, 4 / 5)
SHIFTS = (0, 1 / 4, 1 / 2, 3 / 4, 1)  # times the median curvature of the steps
RTOLS = (0, 1e-3, 1e-2, 1e-1, 0.3)


def choose_extrapolation(pairs: SecantPairs | tuple[Rows, Rows]) -> jax.Array:
    """Chooses the `extrapolate` in {0, 1/2, 2/3, 4/5} that predicts each pair best from the others.

    A scalar for `fit(pairs, extrapolate=choose_extrapolation(pairs))`. It has the least
    geometric mean of the errors `|H_i s_i - y_i| / |s_i|`, H_i the fit to all pairs but the
    i-th (see `diagnose`): a mean of squares would follow the few pairs that are missed
    most. 1 is no candidate: where H is indefinite it is far off now and then, which pairs left
    out one at a time do not always show. The choice is a constant to differentiation.

    Args:
      pairs: secant pairs, or a tuple (steps, grad_diffs), whose steps are alike, as random ones
        are: the error speaks of more such steps.

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
    short = _constant(check(pairs)[0])
    candidates = jnp.array(EXTRAPOLATIONS, short.pairs.steps.dtype)
    return _choose(short, candidates, lambda e: left_out_errors(short.pairs, e))


def choose_shift(
    pairs: SecantPairs | tuple[Rows, Rows], *, extrapolate: Scalar = 2 / 3
) -> jax.Array:
    """Chooses the multiple of the identity whose fit predicts each pair best from the others.

    A scalar c for `fit(pairs, base=choose_shift(pairs))`, for a Hessian whose eigenvalues gather
    around another number than 0: a fit without a base takes what the pairs do not show for
    0. Tried are 0, 1/4, 1/2, 3/4 and 1 times the median of the curvatures
    `<s_i, y_i> / |s_i|^2`, and the least, the middle and the largest eigenvalue of H within the
    span of the steps. Where most eigenvalues of H are nearly alike, the middle one is theirs.
    Chosen as `choose_extrapolation` does.
    With four pairs or fewer, or the steps of an optimiser, the pairs left out say little of that.

    Args:
      pairs: secant pairs, or a tuple (steps, grad_diffs), whose steps are alike.
      extrapolate: of the fits that leave a pair out; that of the fit itself, as a rule.

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
      >>> curvatures = jnp.ones(40).at[:3].set(9.0)  # a bulk, and three outliers
      >>> round(float(choose_shift((steps, steps * curvatures))), 3)
      1.0
    """
    pairs, _ = check(pairs)
    checks.between(extrapolate, "extrapolate", 0, 1)
    short = _constant(pairs)
    chosen = _choose(
        short, _shifts(short), lambda c: left_out_errors(short.pairs, extrapolate, shift=c)
    )
    return chosen * short.units[1] / short.units[0]


@jax.jit
def _shifts(short):
    """The candidates, in units of the compressed pairs."""
    s, y, _ = short.pairs
    squares = jnp.sum(s * s, axis=1)
    used = squares > 0
    curvatures = jnp.where(used, jnp.sum(s * y, axis=1) * scaling.reciprocal(squares), jnp.nan)
    median = jnp.nanmedian(curvatures)
    z = product(short.transform, y)
    m = symmetrize(z[:, : len(z)])
    # Rows beyond the rank are zero: their own eigenvalue sorts them behind all others.
    beyond = diagonal(product(short.transform, s[:, : len(s)])) < 0.5
    apart = jnp.where(beyond, 2 * scaling.norm(m) + 1, 0)
    values = jnp.linalg.eigvalsh(m + jnp.diag(apart), symmetrize_input=False)
    within = values[jnp.stack([0, short.rank // 2, short.rank - 1])]
    return jnp.concatenate([median * jnp.array(SHIFTS, median.dtype), within])


def choose_rtol(
    pairs: SecantPairs | tuple[Rows, Rows], *, extrapolate: Scalar = 2 / 3
) -> jax.Array:
    """Chooses the `rtol` in {0, 1e-3, 1e-2, 0.1, 0.3} that predicts each pair best from the others.

    In place of what is below it stands half of the pairs' largest rounding, where that is known.
    For noisy gradients along a trajectory, as `history` keeps them: a direction in which the steps
    hardly differ carries little but noise, and a fit without it is better. Of the steps of
    `lowrank_hessian`, which are orthogonal, there is none to leave out. A scalar for
    `fit(pairs, rtol=choose_rtol(pairs))`, chosen as `choose_extrapolation` does.

    Args:
      pairs: secant pairs, or a tuple (steps, grad_diffs), whose steps are alike.
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
    checks.between(extrapolate, "extrapolate", 0, 1)
    short = _constant(pairs._replace(rounding=None))
    candidates, errors = jnp.array(RTOLS, short.pairs.steps.dtype), step_errors(pairs)
    if errors is not None:  # a fit with a number leaves them to the number
        candidates = jnp.clip(candidates, 2 * jnp.max(errors, initial=0), max(RTOLS))
    return _choose(
        short, candidates, lambda rtol: left_out_errors(short.pairs, extrapolate, rtol=rtol)
    )


def _choose(short, candidates, left_out):
    """The candidate with the least geometric mean of what it misses of the pairs left out.

    On the host one after the other: then all choices, and the diagnosis, share the program.
    """
    if programs.traced(short, candidates):
        errors = jax.vmap(left_out)(candidates)
    else:
        errors = jnp.stack(list(map(left_out, candidates)))
    return _best(errors, candidates, short.pairs)


@jax.jit
def _best(errors, candidates, short):
    """NaN where no pair has a step, or an error is not finite."""
    logs = jnp.log(jnp.maximum(errors, jnp.finfo(errors.dtype).tiny))
    best = jnp.argmin(jnp.sum(logs, axis=1))
    valid = jnp.any(scaling.norms(short.steps) > 0) & jnp.all(jnp.isfinite(errors))
    return jnp.where(valid, candidates[best], jnp.nan)


class Compressed(NamedTuple):
    """Pairs as rows of 2n numbers with the same inner products.

    With `S = a R Q`, `Y = b (W Q + L E)` for orthonormal rows Q and E, the rows [R, 0] and [W, L].

    Attributes:
      pairs: these rows.
      rank: that of the steps.
      transform: (n, n), T with `a Q = T S`.
      units: a and b, powers of two; H is in units of b / a.
    """

    pairs: SecantPairs
    rank: jax.Array
    transform: jax.Array
    units: tuple[jax.Array, jax.Array]


def not_empty(pairs: SecantPairs) -> SecantPairs:
    """The pairs, or one pair without a step where there are none."""
    steps, grad_diffs, _ = pairs
    if structure.length(steps) > 0:
        return pairs
    steps, grad_diffs = (structure.zeros(structure.row(x), 1) for x in (steps, grad_diffs))
    return SecantPairs(steps, grad_diffs, jnp.zeros(1, structure.compute_dtype(steps)))


def _constant(pairs):
    """Any pairs compressed, a constant to differentiation."""
    return compressed(not_empty(lax.stop_gradient(pairs)))


@jax.jit
def compressed(pairs: SecantPairs) -> Compressed:
    """Compresses at least one pair."""
    wide = structure.widen((pairs.steps, pairs.grad_diffs))
    n, dtype = structure.length(pairs.steps), structure.compute_dtype(wide)
    units = tuple(map(_unit, wide))
    known = jnp.full(n, rounding_of_rows(n, dtype, structure.resolution(pairs.steps)), dtype)
    errors = step_errors(pairs)
    errors = known if errors is None else jnp.maximum(errors, known)

    def factorized(q, block):  # of rows, what is along Q and what is orthogonal to it
        rows, errors = block
        along = tall.gram(rows, q)
        lq = thin_lq(jax.tree.map(jnp.subtract, rows, tall.combine(along, q)), errors)
        outside, transform = lq.coordinates / lq.scale[:, None], lq.inverse * lq.scale[None, :]
        return lq.rows, (along, outside, transform, lq.kept)

    s, y = (structure.pack(tall.times(1 / unit, x)) for unit, x in zip(units, wide, strict=True))
    # A scan over the two: what is the same for both is compiled once.
    blocks = jax.tree.map(lambda a, b: jnp.stack([a, b]), (s, errors), (y, jnp.zeros_like(errors)))
    nothing = xla.vary_like(jax.tree.map(jnp.zeros_like, s), blocks)
    _, found = lax.scan(factorized, nothing, blocks)
    along, outside, transform, kept = found
    short = SecantPairs(
        jnp.concatenate([outside[0], along[0]], axis=1),
        jnp.concatenate([along[1], outside[1]], axis=1),
        pairs.rounding,
    )
    return Compressed(short, jnp.sum(kept[0] > 0), transform[0], units)


def _unit(rows):
    return scaling.power_of_two(jnp.max(scaling.max_abs(rows), initial=0))


def left_out_errors(
    short: SecantPairs, extrapolate: Scalar, *, shift: Scalar = 0, rtol: Scalar | None = None
) -> jax.Array:
    """What the fit to all other pairs misses of each, `|H_i s_i - y_i| / |s_i|`; 0 without a step.

    The fit of H less `shift` times the identity. The steps of `centered` sum to zero: without
    point i they start from another mean.
    """
    dtype = short.steps.dtype
    numbers = (None if x is None else jnp.asarray(x, dtype) for x in (extrapolate, shift, rtol))
    return _left_out_errors(short, *numbers)


@jax.jit
def _left_out_errors(short, extrapolate, shift, rtol):
    s, y, rounding = short
    y = y - shift * s
    n = len(s)
    sizes = scaling.norms(s)
    used, inverse = sizes > 0, scaling.reciprocal(sizes)
    negligible = jnp.sqrt(jnp.finfo(s.dtype).eps) * jnp.max(sizes, initial=0)
    errors = step_errors(short)
    unresolved = (
        4 * n * jnp.finfo(s.dtype).eps if errors is None else 4 * jnp.minimum(errors, 1 / 8)
    )
    rounded = unresolved * sizes
    is_centered = scaling.norm(jnp.sum(s, axis=0)) <= negligible
    moved = jnp.where(is_centered, 1 / jnp.maximum(jnp.sum(used) - 1, 1), 0).astype(s.dtype)

    def missed(i):
        others = (used & (jnp.arange(n) != i))[:, None]
        left = [jnp.where(others, rows + moved * rows[i][None, :], 0) for rows in (s, y)]
        there = (scaling.norms(left[0]) > rounded)[:, None]  # a point may be the others' mean
        left = [jnp.where(there, rows, 0) for rows in left]
        h = fit(SecantPairs(*left, rounding), extrapolate=extrapolate, rtol=rtol)
        return scaling.norm(h @ s[i] - y[i]) * inverse[i]

    return jax.vmap(missed)(jnp.arange(n))
