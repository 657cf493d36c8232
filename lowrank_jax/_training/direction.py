"""The quasi-Newton direction that the pairs of a trajectory give.

BFGS updates satisfy `B s = y` for the last pair alone, and those of conjugate pairs,
`s_i.y_j = 0` for i other than j, for all pairs at once: the block update. On a quadratic any pairs
are made conjugate by Gram-Schmidt, the newest first,

    (s_i, y_i) <- (s_i, y_i) - t_ij (s_i.y_j) / (s_j.y_j) (s_j, y_j),    j newer than i,

with t = 1: what an older pair says beside the newer ones. Where the Hessian changes along the way,
pairs contradict each other, `s_i.y_j` is not `s_j.y_i`, and what would be left of an older pair
is mostly the change. So

    t_ij = 1 / (1 + d_ij^2 / 0.1^2),    d_ij^2 = (s_i.y_j - s_j.y_i)^2 / |(s_i.y_i) (s_j.y_j)|,

with the older pair's `s_i.y_i` as it was measured. Pairs that contradict each other stay as they
are, and the updates are those of L-BFGS. Then, from the oldest pair to the newest,

    B <- B - (B s) (B s)^T / (s.B s) + y y^T / |s.y|,    B_0 = c I,

which is positive definite: of a pair with `s.y < 0` it takes `-y`, the magnitude of its curvature.
A pair of which nothing but rounding is left counts for nothing. All this happens in the Gram matrix
of steps and gradient differences: `W = S Y^T` of the conjugate pairs, `K = Y Y^T`, `a = S g` and
`b = Y g`. With the signs E of W's diagonal, its magnitudes D, and the strict lower triangle L of
`W E`, the newest pair first, `B x = g` is

    (D + L) u = a,    (D + L)^T v = D u - E (b - K E u) / c,    x = (g - Y^T E u) / c + S^T v,

the two loops of L-BFGS.

The 0.1, the form of t and the value of c are heuristics, chosen by measurement, see
`benchmarks/functions.py`.

Source: Nocedal, Updating quasi-Newton matrices with limited storage, Math. Comp. 35 (1980);
Schnabel, Quasi-Newton methods using multiple secant equations, report CU-CS-247-83 (1983), for the
block update.
"""

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._core import scaling, structure, tall, xla
from lowrank_jax._core.spectral import diagonal, product
from lowrank_jax._core.types import Rows, Scalar, Vector

AGREEMENT = 0.1  # the contradiction at which t is a half


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
      damping: None, or a number in place of c, by which the curvature along the steps rises too.
    """
    s, y, g = structure.widen((steps, grad_diffs, grad))
    s, y, g = map(structure.pack, (s, y, jax.tree.map(lambda x: x[None], g)))
    n, dtype = len(age), structure.compute_dtype(s)
    largest, steepest = scaling.max_abs(s), scaling.max_abs(y)
    scale = jnp.where(largest > 0, 1 / scaling.power_of_two(largest), 0)
    peak = jnp.max(steepest * scale + 0 * largest)
    unit = scaling.power_of_two(peak) * scaling.nan_unless(jnp.isfinite(peak), dtype)
    order = jnp.argsort(age)
    order = jnp.concatenate([order, n + order, jnp.full(1, 2 * n, order.dtype)])
    gram = xla.blockwise_sum(_gram, (scale, 1 / unit), s, y, g)[order][:, order]

    first = jnp.maximum(scaling.norms(jax.tree.map(lambda x: x / unit, g))[0], 1 / unit)
    fixed = None if damping is None else jnp.asarray(damping, dtype) / unit
    coefficients = _solved(gram, n, first, fixed)
    back = jnp.zeros_like(coefficients).at[order].set(coefficients)
    found = xla.blockwise_map(_combined, (scale, 1 / unit, back), s, y, g)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), grad)
    return structure.cast_like(structure.row_of(structure.unpack(found, like)), grad)


def _rows(scale, per_unit, s, y, g):
    """S, Y and g in units in which nothing over- or underflows, one below the other."""
    y = tall.times(per_unit, tall.scale(scale, y))
    return jnp.concatenate([tall.scale(scale, s), y, per_unit * g])


def _gram(small, s, y, g):
    rows = _rows(*small, s, y, g)
    return tall.gram(rows, rows)


def _combined(small, s, y, g):
    return tall.combine(small[2][None, :], _rows(*small[:2], s, y, g))


def _solved(gram, n, first, damping):
    """The x of this module's text as a combination of S, Y and g, from their Gram matrix."""
    ss, w, a = gram[:n, :n], gram[:n, n : 2 * n], gram[:n, -1]
    k, b = gram[n : 2 * n, n : 2 * n], gram[n : 2 * n, -1]
    if damping is None:
        c = _complement(diagonal(ss), diagonal(w), diagonal(k), first)
    else:  # Y becomes Y + damping E S
        c = damping
        more = damping * jnp.where(diagonal(w) < 0, -1, 1)
        w, k = (
            w + ss * more[None, :],
            k + w.T * more[None, :] + w * more[:, None] + ss * jnp.outer(more, more),
        )
        b = b + more * a
    w, t, used = _conjugate(w)
    k, a, b = product(t, k, t.T), product(t, a), product(t, b)

    pivots = jnp.where(used, diagonal(w), 1)
    signs = jnp.where(used, jnp.sign(pivots), 0)
    lower = jnp.tril(jnp.where(used[:, None], w * signs[None, :], 0), -1)
    system = lower + jnp.diag(jnp.abs(pivots))
    u = _triangular(system, jnp.where(used, a, 0), transposed=False)
    right = jnp.abs(pivots) * u - signs * (b - product(k, signs * u)) / c
    v = _triangular(system, jnp.where(used, right, 0), transposed=True)
    of_steps, of_grad_diffs = product(t.T, v), -product(t.T, signs * u) / c
    if damping is not None:
        of_steps = of_steps + more * of_grad_diffs
    return jnp.concatenate([of_steps, of_grad_diffs, 1 / c[None]])


def _conjugate(w):
    """W of the conjugate pairs, T with which they are made of the pairs, and which count."""
    n, eps = len(w), float(jnp.finfo(w.dtype).eps)
    measured = jnp.abs(diagonal(w))
    order = jnp.arange(n)

    def step(j, state):
        w, t, used = state
        pivot = w[j, j]
        counts = jnp.abs(pivot) > 8 * n * eps * measured[j]
        size = AGREEMENT**2 * jnp.abs(pivot) * measured
        gap = (w[:, j] - w[j]) ** 2
        share = size * scaling.reciprocal(size + gap)
        along = share * w[:, j] * scaling.reciprocal(pivot)
        along = jnp.where((order > j) & counts, along, 0)
        w = w - along[:, None] * w[j][None, :]
        w = w - w[:, j][:, None] * along[None, :]
        return w, t - along[:, None] * t[j][None, :], used & (counts | (order != j))

    start = w, xla.once(jnp.eye(n, dtype=w.dtype)), xla.vary_like(jnp.ones(n, bool), w)
    return lax.fori_loop(0, n, step, start)


def _triangular(m, right, *, transposed):
    return lax.linalg.triangular_solve(
        m, right[:, None], left_side=True, lower=True, transpose_a=transposed
    )[:, 0]


def _complement(length, slope, square, first):
    """The curvature c of what no step has measured: `y.y / |s.y|` of the newest pair.

    It is at most ten times the largest |y| / |s|, and |g| before any was measured, so that the
    first step is no longer than 1.
    """
    top = 10 * jnp.max(scaling.safe_sqrt(square * scaling.reciprocal(length)))
    used = length > 0
    newest = jnp.argmax(used)
    slope, square = jnp.abs(slope[newest]), square[newest]
    measured = jnp.where(slope == 0, top / 10, jnp.minimum(square * scaling.reciprocal(slope), top))
    return jnp.where(measured > 0, measured, first)
