"""Pictures, by the data that is in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure

import lowrank_jax as lrj

A = np.diag([7.0, -3.0, 1.0, 0.5, -0.1])


def axes():
    return Figure().subplots()


def tree(rows):
    return {"a": jnp.asarray(rows[..., :2]), "b": jnp.asarray(rows[..., 2:])}


def batched(h):
    return jax.tree.map(lambda leaf: leaf[None], h)


def points_of(ax):
    """Places and heights of the dots, by their label."""
    return {line.get_label(): np.array(line.get_data()) for line in ax.lines}


@pytest.mark.parametrize("form", [lambda h: h, batched], ids=["one", "batch of one"])
def test_a_spectrum_shows_magnitudes_in_order_and_signs(form):
    h = lrj.SymmetricLowRank(tree(np.eye(5)[:4]), jnp.diag(jnp.array([1.0, 7.0, 0.0, -3.0])))
    given = axes()
    ax = lrj.plot.spectrum(form(h), ax=given)
    assert ax is given
    assert ax.get_yscale() == "log"
    assert np.all(ax.get_xticks() % 1 == 0)  # numbers of eigenvalues
    dots = points_of(ax)
    np.testing.assert_allclose(dots["positive"], [[1, 3], [7, 1]])
    np.testing.assert_allclose(dots["negative"], [[2], [3]])
    assert [line.get_markerfacecolor() == "white" for line in ax.lines] == [False, True]
    assert not ax.collections


def test_a_diagonal_shifts_eigenvalues_and_their_order():
    h = lrj.SymmetricLowRank(np.eye(5)[:3], jnp.diag(jnp.array([-7.0, 2.0, 0.0])))
    dots = points_of(lrj.plot.spectrum(h.plus_diagonal(6.0), ax=axes()))
    np.testing.assert_allclose(dots["positive"], [[1], [8]])
    np.testing.assert_allclose(dots["negative"], [[2], [1]])


@pytest.mark.parametrize("form", [lambda h: h, batched], ids=["one", "batch of one"])
def test_bars_are_ritz_values_and_residuals_and_none_beyond_the_rank(rng, form):
    steps = rng.normal(size=(3, 5))
    pairs = jax.tree.map(tree, lrj.SecantPairs(steps[[0, 1, 1, 2]], (steps @ A)[[0, 1, 1, 2]]))
    ax = lrj.plot.spectrum(form(lrj.fit(pairs)), form(pairs), ax=axes())
    (bars,) = ax.collections
    assert isinstance(bars, LineCollection)
    found = np.array(bars.get_segments())  # (bars, ends, place and height)
    q = np.linalg.qr(steps.T)[0].T
    values, u = np.linalg.eigh(q @ A @ q.T)
    order = np.argsort(-np.abs(values))
    values, v = np.abs(values[order]), u.T[order] @ q
    residuals = np.linalg.norm(v @ A - np.sum(v @ A * v, axis=1, keepdims=True) * v, axis=1)
    np.testing.assert_allclose(found[:, :, 0], np.array([[1, 1], [2, 2], [3, 3]]))
    np.testing.assert_allclose(found[:, 1, 1], values + residuals, rtol=1e-10)
    low = np.maximum(values - residuals, np.finfo(float).eps * (values + residuals))
    np.testing.assert_allclose(found[:, 0, 1], low, rtol=1e-8)


def test_an_operator_without_curvature_is_an_empty_picture():
    ax = lrj.plot.spectrum(lrj.SymmetricLowRank(np.zeros((2, 3)), np.eye(2)), ax=axes())
    assert all(len(line.get_xdata()) == 0 for line in ax.lines)


def quadratic(x):
    x = jnp.concatenate([x["a"], x["b"]])
    return 1.5 + x @ A @ x / 2


X = tree(np.array([0.0, 0.0, 0.2, 0.0, 0.0]))


@pytest.mark.parametrize("form", ["one", "batch of one", "batch of one, x too"])
def test_a_landscape_is_the_loss_in_the_plane_of_the_leading_eigenvectors(form):
    h = lrj.SymmetricLowRank(tree(np.eye(5)[[1, 2, 0]]), jnp.diag(jnp.array([-3.0, 1.0, 7.0])))
    x = batched(X) if form.endswith("too") else X
    given = axes()
    at = (quadratic, x, h if form == "one" else batched(h))
    ax = lrj.plot.landscape(*at, ax=given, radius=0.5, count=7)
    assert ax is given
    assert ax.get_xlabel() == "along eigenvector 1, eigenvalue 7"
    assert ax.get_ylabel() == "along eigenvector 2, eigenvalue -3"
    filled, lines = (c for c in ax.collections if isinstance(c, QuadContourSet))
    a, b = np.meshgrid(np.linspace(-0.5, 0.5, 7), np.linspace(-0.5, 0.5, 7))
    truth = 1.5 + 0.02 + 3.5 * a**2 - 1.5 * b**2
    assert filled.filled
    assert lines.levels[0] >= truth.min() - 0.2
    assert lines.levels[-1] <= truth.max() + 0.2
    for contours in (filled, lines):
        np.testing.assert_allclose([contours.zmin, contours.zmax], [truth.min(), truth.max()])
    # Along a contour the loss has its value, up to how straight a contour is between grid points.
    level = lines.levels[len(lines.levels) // 2]
    (path,) = [p for p, z in zip(lines.get_paths(), lines.levels, strict=True) if z == level]
    at_path = 1.52 + 3.5 * path.vertices[:, 0] ** 2 - 1.5 * path.vertices[:, 1] ** 2
    np.testing.assert_allclose(at_path, level, atol=3.5 * (1 / 12) ** 2)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 0]])


@pytest.mark.parametrize(("offset", "change"), [(-1.5, 1.0), (0.0, 1.5)])
def test_a_landscape_reaches_as_far_as_the_curvature_changes_the_loss_by_itself(offset, change):
    h = lrj.SymmetricLowRank(tree(np.eye(5)[:2]), jnp.diag(jnp.array([7.0, -3.0])))
    x = tree(np.zeros(5))
    ax = lrj.plot.landscape(lambda x: quadratic(x) + offset, x, h, ax=axes(), count=2)
    radius = ax.get_xlim()[1]
    np.testing.assert_allclose(7 * radius**2 / 2, change, rtol=1e-6)


def test_without_axes_there_is_a_figure_of_its_own():
    from matplotlib import pyplot

    h = lrj.SymmetricLowRank(np.eye(3)[:2], np.eye(2))
    ax = lrj.plot.spectrum(h)
    assert pyplot.fignum_exists(ax.figure.number)
    pyplot.close(ax.figure)
