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

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._core import scaling, structure, tall, xla
from lowrank_jax._core.spectral import diagonal, product
from lowrank_jax._core.types import Rows, Scalar, Vector

AGREEMENT = 0.1  # the contradiction at which t is a half


class Products(NamedTuple):
    """The Gram matrix of n pairs, kept from one direction to the next.

    Attributes:
      scales: (2n,), powers of two, one over about the largest entry of each row of S and Y.
      gram: (2n, 2n), inner products of all rows of S and Y, each times its scale.
    """

    scales: jax.Array
    gram: jax.Array


def no_products(n: int, dtype: jnp.dtype) -> Products:
    """Those of n pairs that are zero."""
    return Products(jnp.zeros(2 * n, dtype), jnp.zeros((2 * n, 2 * n), dtype))


@jax.jit
def direction(
    products: Products,
    steps: Rows,
    grad_diffs: Rows,
    newest: jax.Array,
    grad: Vector,
    damping: Scalar | None,
) -> tuple[Vector, Products]:
    """`B^-1 g` of this module's text, in the dtypes of g, and the products with the newest pair.

    Args:
      products: of all pairs but the newest, from the call before.
      steps: a ring of n rows; zero rows count for nothing.
      grad_diffs: a ring of n rows.
      newest: the index of the newest pair; the one before it is the next older one, and so on.
      grad: the vector g.
      damping: None, or a number in place of c, by which the curvature along the steps rises too.
    """
    s, y, g = structure.widen((steps, grad_diffs, grad))
    s, y, g = map(structure.pack, (s, y, jax.tree.map(lambda x: x[None], g)))
    products, with_g, square, per_g = _with_newest(products, s, y, g, newest)
    scales, gram = products
    n, dtype = len(scales) // 2, scales.dtype
    # Y is taken in a unit and to the scale of its steps: tiny steps have tiny differences.
    ratios = scales[:n] * scaling.reciprocal(scales[n:])
    peak = jnp.max(ratios)
    unit = jnp.where(peak > 0, peak, 1) * scaling.nan_unless(jnp.isfinite(peak), dtype)
    factors = jnp.concatenate([jnp.ones_like(ratios), ratios / unit])
    first = jnp.maximum(scaling.safe_sqrt(square) / per_g, 1) / unit
    fixed = None if damping is None else jnp.asarray(damping, dtype) / unit
    order = (newest - jnp.arange(n, dtype=newest.dtype)) % n  # newest first; its own inverse
    order = jnp.concatenate([order, n + order])
    gram = (gram * factors[:, None] * factors[None, :])[order][:, order]
    with_g = (with_g * factors)[order] / per_g / unit
    of_pairs, of_grad = _solved(gram, with_g, first, fixed)
    found = _combined(scales, of_pairs[order] * factors, of_grad / unit, s, y, g)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), grad)
    found = structure.cast_like(structure.row_of(structure.unpack(found, like)), grad)
    return found, products


def _with_newest(products, s, y, g, newest):
    """The products with the newest pair, and those of all rows with g and of g with itself.

    The last two are of g times a power of two, which is the last result; 1 for g = 0.
    """
    n = len(products.scales) // 2
    pair = [jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, newest, 1), x) for x in (s, y)]
    new = jax.tree.map(lambda *x: jnp.concatenate(x), *pair, g)  # three rows
    largest = scaling.max_abs(new)
    scale = jnp.where(largest > 0, 1 / scaling.power_of_two(largest), 0)
    places = newest + jnp.array([0, n], newest.dtype)
    at = places[:, None] == jnp.arange(2 * n, dtype=newest.dtype)[None, :]
    scales = jnp.where(at[0], scale[0], jnp.where(at[1], scale[1], products.scales))
    of_rows, square = xla.blockwise_sum(_along, (scales, scale), s, y, new)
    gram = products.gram
    for i in range(2):
        gram = jnp.where(at[i][:, None], of_rows[None, :, i], gram)
        gram = jnp.where(at[i][None, :], of_rows[:, None, i], gram)
    per_g = jnp.where(scale[2] > 0, scale[2], 1)
    return Products(scales, gram), of_rows[:, 2], square, per_g


def _along(small, s, y, new):
    """Inner products of all rows with the new ones, and of the last new one with itself.

    One at a time: on a CPU a product with three vectors takes longer than three with one each.
    """
    scales, scale = small
    n, new = len(s), tall.scale(scale, new)
    sets = tall.scale(scales[:n], s), tall.scale(scales[n:], y)
    of_rows = [jnp.concatenate([tall.gram(x, v) for x in sets]) for v in new]
    return jnp.stack(of_rows, axis=1), tall.gram(new[2:], new[2:])[0, 0]


def _combined(scales, of_pairs, of_grad, s, y, g):
    """What the rows times their scales, and g, add up to.

    Rows are read as they are. Scales of tiny rows times what is made of them might overflow.
    """
    n, peak = len(scales) // 2, 16 * scaling.power_of_two(jnp.max(jnp.abs(of_pairs)))
    of_pairs = scales * (of_pairs / peak)
    of_steps, of_grad_diffs = (
        tall.combine(of_pairs[None, :n], s),
        tall.combine(of_pairs[None, n:], y),
    )
    return jax.tree.map(lambda s, y, g: peak * (s + y) + of_grad * g, of_steps, of_grad_diffs, g)


def _solved(gram, with_g, first, damping):
    """The x of this module's text as a combination of S and Y, newest first, and of g."""
    n = len(gram) // 2
    ss, w, k = gram[:n, :n], gram[:n, n:], gram[n:, n:]
    a, b = with_g[:n], with_g[n:]
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
    pivots = jnp.where(used, diagonal(w), 1)
    signs = jnp.where(used, jnp.sign(pivots), 0)
    lower = jnp.tril(jnp.where(used[:, None], w * signs[None, :], 0), -1)
    system = lower + jnp.diag(jnp.abs(pivots))
    u = _triangular(system, jnp.where(used, product(t, a), 0), transposed=False)
    of_grad_diffs = product(t.T, signs * u)
    right = jnp.abs(pivots) * u - signs * product(t, b - product(k, of_grad_diffs)) / c
    of_steps = product(t.T, _triangular(system, right, transposed=True))
    of_grad_diffs = -of_grad_diffs / c
    if damping is not None:
        of_steps = of_steps + more * of_grad_diffs
    return jnp.concatenate([of_steps, of_grad_diffs]), 1 / c


def _conjugate(w):
    """W of the conjugate pairs, T with which they are made of the pairs, and which count."""
    n, eps = len(w), float(jnp.finfo(w.dtype).eps)
    measured = jnp.abs(diagonal(w))
    least = 8 * n * eps * measured

    def step(j, both):  # [W | T]: rows of both, then columns of W
        row, column, pivot = both[j], both[:, j], both[j, j]
        size = AGREEMENT**2 * jnp.abs(pivot) * measured
        share = size * scaling.reciprocal(size + (column - row[:n]) ** 2)
        older = (jnp.arange(n) > j) & (jnp.abs(pivot) > least[j])
        along = jnp.where(older, share * column * scaling.reciprocal(pivot), 0)
        left, columns = column - along * pivot, jnp.pad(along, (0, n))
        return both - along[:, None] * row[None, :] - left[:, None] * columns[None, :]

    both = jnp.concatenate([w, jnp.eye(n, dtype=w.dtype)], axis=1)
    both = lax.fori_loop(0, n, step, both)
    w, t = both[:, :n], both[:, n:]
    return w, t, jnp.abs(diagonal(w)) > least


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
