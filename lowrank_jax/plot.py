"""Pictures of operators, drawn with matplotlib, which is imported where it is used."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax._at_a_point.ritz import ritz_pairs
from lowrank_jax._clouds.pairs import SecantPairs
from lowrank_jax._core import checks, losses, programs, structure
from lowrank_jax._core.types import Loss, Rows, Scalar, Vector
from lowrank_jax._operators.symmetric import Operator, check_operator

POSITIVE, NEGATIVE, BAR = "#2f6fae", "#c8442e", "#9aa3af"


def spectrum(
    h: Operator, pairs: SecantPairs | tuple[Rows, Rows] | None = None, ax: Any = None
) -> Any:
    """Draws the eigenvalues of an operator by magnitude, on a logarithmic axis.

    Filled dots are positive, hollow ones negative; eigenvalues that are zero are left out. With
    `pairs`, bars show the Ritz values `w_i` of the same number and their residuals r_i, from
    `|w_i| - r_i` to `|w_i| + r_i`: within each bar lies the magnitude of an exact eigenvalue, as
    far as `ritz_pairs` promises. A long bar says that the dot may be anywhere near it; a
    dot above its bar owes what is between to `extrapolate` of `fit`.

    Args:
      h: a `SymmetricLowRank`, or a `DiagonalPlusLowRank` whose diagonal is one number; or a batch
        of one of them, as `vmap` makes it.
      pairs: the pairs that h was fitted to, as in `fit`; a batch of one with such an h.
      ax: the axes to draw into; None makes a figure.

    Returns:
      The axes.

    Raises:
      ImportError: where matplotlib is not installed.
      TypeError: for another object than an operator, or pairs that are none.
      ValueError: for a batch of several operators, or pairs of another structure than h's.

    Source: Parlett, The symmetric eigenvalue problem (1998), section 4.5, for the bars.

    Example:
      >>> import jax.numpy as jnp
      >>> from matplotlib.figure import Figure
      >>> from lowrank_jax import fit
      >>> pairs = (jnp.eye(4)[:2], jnp.diag(jnp.array([5.0, -2.0, 1.0, 0.0]))[:2])
      >>> ax = spectrum(fit(pairs), pairs, ax=Figure().subplots())
      >>> [(line.get_label(), line.get_ydata().round(2).tolist()) for line in ax.lines]
      [('positive', [5.0]), ('negative', [2.0])]
    """
    h, alone = _single(h)
    factors = check_operator(h, "h")
    values, _ = _eigenpairs(h)
    numbers = np.arange(1, len(values) + 1)
    ax = _axes(ax)
    ax.set_yscale("log")
    if pairs is not None:
        found = ritz_pairs(structure.row_of(pairs) if alone else pairs)
        checks.like(found.vectors, "pairs", factors, "h", lead=1, pattern_lead=1)
        _draw_bars(ax, np.abs(np.asarray(found.values)), np.asarray(found.residuals))
    for label, kept, fill, color in (
        ("positive", values > 0, POSITIVE, POSITIVE),
        ("negative", values < 0, "white", NEGATIVE),
    ):
        style = {"color": color, "markerfacecolor": fill, "markersize": 6}
        ax.plot(numbers[kept], np.abs(values[kept]), "o", label=label, **style)
    if len(values):
        magnitudes = np.abs(values)
        ax.set_ylim(magnitudes.min() / 3, 3 * magnitudes.max())
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("number of the eigenvalue")
    ax.set_ylabel("magnitude of the eigenvalue")
    ax.legend()
    return ax


def landscape(
    loss: Loss,
    x: Vector,
    h: Operator,
    ax: Any = None,
    *,
    radius: Scalar | None = None,
    count: int = 25,
) -> Any:
    """Draws the contours of a loss in the plane of the two leading eigenvectors u, v of h.

    The loss at `x + a u + b v`, a and b from -radius to radius, as filled contours with lines;
    a dot marks x. The eigenvalues stand at the axes.

    Args:
      loss: a scalar function of x, which is compiled once; the other arguments of yours go into
        a closure or a `functools.partial`. It is evaluated `count**2` times, one after the other.
      x: the point, of the structure of h.
      h: the operator, as in `spectrum`, for a batch of one with x as it is or in a batch of one.
      ax: the axes to draw into; None makes a figure.
      radius: how far to look. None takes the distance along u over which the curvature alone
        changes the loss by its own magnitude, `sqrt(2 |loss(x)| / |s|)` with u's eigenvalue s (by
        1 where the loss is 0): a heuristic for losses that cannot be negative.
      count: the number of points along each direction, at least 2.

    Returns:
      The axes, whose coordinates are a and b.

    Raises:
      ImportError: where matplotlib is not installed.
      TypeError: for what is no function, no operator or no vector.
      ValueError: for a batch of several operators, an x of another structure than h's, an h
        with fewer than two eigenvalues that are not zero, a loss that is not scalar, a radius that
        is not above 0, or a count below 2.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from matplotlib.figure import Figure
      >>> from lowrank_jax import lowrank_hessian
      >>> loss = lambda x: 50 * x[0] ** 2 + 8 * x[1] ** 2 + jnp.sum(jnp.cos(x))
      >>> h = lowrank_hessian(loss, 3)(jnp.zeros(9), key=jax.random.key(0))
      >>> ax = landscape(loss, jnp.zeros(9), h, ax=Figure().subplots(), radius=0.5, count=5)
      >>> ax.get_xlabel(), ax.get_ylabel()
      ('along eigenvector 1, eigenvalue 99', 'along eigenvector 2, eigenvalue 15')
    """
    checks.function(loss, "loss")
    checks.count(count, "count", 2)
    if radius is not None:
        checks.positive(radius, "radius")
    h, alone = _single(h)
    factors, x = check_operator(h, "h"), checks.point(x, "x")
    ax = _axes(ax)
    if alone and jax.tree.leaves(x)[0].ndim == jax.tree.leaves(factors)[0].ndim:
        x = structure.row_of(x)
    checks.like(x, "x", factors, "a factor of h", pattern_lead=1)
    values, vectors = _eigenpairs(h)
    if len(values) < 2:
        raise ValueError(f"h must have two eigenvalues that are not zero, got {values.tolist()}")
    plane = jax.tree.map(lambda leaf: leaf[:2], vectors)
    at = programs.compiled(_loss_in_plane, (loss,))

    def value(*coordinates):
        return float(at(x, plane, jnp.array(coordinates, structure.compute_dtype(x))))

    if radius is None:
        radius = math.sqrt(2 * (abs(value(0.0, 0.0)) or 1) / abs(values[0]))
    along = np.linspace(-float(radius), float(radius), count)
    grid = np.array([[value(a, b) for a in along] for b in along])

    ax.contourf(along, along, grid, 12, cmap="Blues_r", alpha=0.8)
    lines = ax.contour(along, along, grid, 12, colors="#33415c", linewidths=0.8)
    ax.clabel(lines, lines.levels[1::2], fontsize=8)
    ax.plot([0], [0], "o", color="k", markersize=6)
    ax.set_aspect("equal")
    for number, label in enumerate((ax.set_xlabel, ax.set_ylabel)):
        label(f"along eigenvector {number + 1}, eigenvalue {values[number]:.3g}")
    return ax


def _eigenpairs(h):
    """Those that are not zero (of a diagonal plus low rank: not d), largest magnitude first."""
    values, vectors = h.eigh()
    values, base = np.asarray(values), getattr(h, "diag", 0)
    kept = np.argsort(-np.abs(values), stable=True)
    kept = kept[values[kept] != np.asarray(base, values.dtype)]
    return values[kept], jax.tree.map(lambda leaf: leaf[kept], vectors)


def _draw_bars(ax, magnitudes, residuals):
    known, top = np.isfinite(residuals), magnitudes + residuals
    # On a logarithmic axis a bar that reaches zero ends where all digits are lost.
    low = np.maximum(magnitudes - residuals, np.finfo(top.dtype).eps * top)
    places = np.arange(1, len(top) + 1)
    style = {"color": BAR, "linewidth": 5, "alpha": 0.6, "label": "Ritz value ± residual"}
    ax.vlines(places[known], low[known], top[known], **style)


def _loss_in_plane(loss):
    def at(x, plane, coordinates):
        def moved(leaf, rows):
            step = jnp.tensordot(coordinates, rows.astype(coordinates.dtype), 1)
            return (leaf.astype(coordinates.dtype) + step).astype(leaf.dtype)

        return losses.at(loss, 0, ())(jax.tree.map(moved, x, plane))

    return at


def _single(h):
    """An operator, and whether it came in a batch of one."""
    core = getattr(getattr(h, "low_rank", h), "core", None)
    alone = getattr(core, "shape", ())[:-2] == (1,)
    return (structure.row_of(h) if alone else h), alone


def _axes(ax):
    from matplotlib import axes, pyplot

    if ax is None:
        return pyplot.subplots()[1]
    checks.instance(ax, "ax", axes.Axes)
    return ax
