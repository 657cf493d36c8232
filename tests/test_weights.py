"""Pairs of unequal worth: the weights of the fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import lowrank_jax as lrj
from tests import draws, reference
from tests.derivatives import check_derivatives

SHAPES = {"few": (4, 9), "dependent": (6, 9), "as many": (9, 9), "more": (14, 5)}


def pairs_of(rng, kind):
    n, dim = SHAPES[kind]
    s = rng.normal(size=(n, dim))
    if kind == "dependent":
        s[4:] = rng.normal(size=(2, 4)) @ s[:4]
    return s, rng.normal(size=(n, dim))


def dense(s, y, **options):
    return lrj.fit((s, y), **options).to_dense()


def weighed(s, y, weights):
    """Pairs of unit steps times the roots of their weights."""
    factors = np.sqrt(weights)[:, None] / np.linalg.norm(s, axis=1, keepdims=True)
    return factors * s, factors * y


def nearest_symmetric(u, v):
    """The symmetric H of least `|U H - V|_F`, for steps that span the space."""
    dim = u.shape[1]
    rows, columns = np.triu_indices(dim)
    basis = np.zeros((len(rows), dim, dim))
    basis[np.arange(len(rows)), rows, columns] = 1
    basis[np.arange(len(rows)), columns, rows] = 1
    images = np.stack([(u @ b).ravel() for b in basis], axis=1)
    return np.tensordot(np.linalg.lstsq(images, v.ravel())[0], basis, 1)


@pytest.mark.parametrize("kind", ["as many", "more"])
def test_where_steps_span_the_space_it_is_weighted_least_squares(rng, kind):
    s, y = pairs_of(rng, kind)
    weights = 10.0 ** rng.uniform(-3, 3, len(s))
    u, v = weighed(s, y, weights)
    off = reference.relative_error(dense(s, y, weights=weights), nearest_symmetric(u, v))
    assert off < 1e-12 * np.linalg.cond(u)


@pytest.mark.parametrize("kind", ["few", "dependent"])
@pytest.mark.parametrize("extrapolate", [0, 2 / 3])
def test_within_the_span_of_the_steps_it_is_weighted_least_squares(rng, kind, extrapolate):
    """In coordinates of the span; what leads out of it is the weighted mean of the images."""
    s, y = pairs_of(rng, kind)
    weights = 10.0 ** rng.uniform(-2, 2, len(s))
    h = dense(s, y, weights=weights, extrapolate=extrapolate)
    q, (u, v) = np.linalg.svd(s)[2][:4], weighed(s, y, weights)
    assert reference.relative_error(q @ h @ q.T, nearest_symmetric(u @ q.T, v @ q.T)) < 1e-9
    images, outside = np.linalg.lstsq(u @ q.T, v)[0], np.eye(9) - q.T @ q
    assert reference.relative_error(q @ h @ outside, images @ outside) < 1e-9


@pytest.mark.parametrize("kind", SHAPES)
def test_positive_weights_change_nothing_of_consistent_pairs(rng, kind):
    s, _ = pairs_of(rng, kind)
    y = s @ draws.symmetric(rng, s.shape[1])
    weights = 10.0 ** rng.uniform(-2, 2, len(s))
    assert reference.relative_error(dense(s, y, weights=weights), dense(s, y)) < 1e-9


def test_weights_say_nothing_of_the_rank():
    """As many pairs as dimensions, and one more, which says nothing new."""
    a = np.array([[2.0, 1], [1, 3]])
    for s in (np.eye(2), np.eye(3, 2), np.eye(2)[[0, 1, 1]]):
        for small, rtol in ((1e-4, 0.05), (1e-40, None)):
            weights = np.array([1, small, small])[: len(s)]
            found = dense(s, s @ a, weights=weights, rtol=rtol)
            np.testing.assert_allclose(found, a, atol=1e-12)


@pytest.mark.parametrize(("height", "rtol"), [(1e-3, 0.05), (1e-17, None)])
def test_what_is_left_of_more_pairs_than_dimensions_is_weighted(rng, height, rtol):
    """Steps that are mirrored at a plane, and hardly leave it: as if they lay in it."""
    plane, y = rng.normal(size=(4, 2)), rng.normal(size=(8, 3))
    plane = np.tile(plane / np.linalg.norm(plane, axis=1, keepdims=True), (2, 1))
    s = np.column_stack([plane, height * np.repeat([1, -1], 4)])
    weights = 10.0 ** rng.uniform(-2, 2, 8)
    found = dense(s, y, weights=weights, rtol=rtol)[:2, :2]
    assert reference.relative_error(found, dense(plane, y[:, :2], weights=weights)) < 1e-9


def test_weights_over_thirty_decades_make_nothing_large(rng):
    """Where nothing was measured rounding decides between two numbers, not on a third one."""
    s, y = rng.normal(size=(2, 2000, 4, 8)).astype(np.float32)
    weights = (10 ** rng.uniform(-30, 0, (2000, 4))).astype(np.float32)
    size = jax.jit(
        jax.vmap(lambda s, y, w: lrj.fit((s, y), weights=w, extrapolate=0).frobenius_norm())
    )
    found, alike = (size(s, y, w) for w in (weights, np.ones_like(weights)))
    assert np.max(found / alike) < 2


@pytest.mark.parametrize("kind", SHAPES)
def test_a_weight_of_zero_drops_its_pair_and_their_scale_says_nothing(rng, kind):
    s, y = pairs_of(rng, kind)
    weights = rng.uniform(1, 2, len(s))
    weights[2] = 0
    others = np.arange(len(s)) != 2
    y[2] = np.nan
    expected = dense(s[others], y[others], weights=weights[others])
    for scale in (1, 1e-200, 1e200):
        assert reference.relative_error(dense(s, y, weights=scale * weights), expected) < 1e-12


@pytest.mark.study
@pytest.mark.parametrize("start", [(-1.2, 1, -1.2, 1, -1.2), (0, 0, 0, 0, 0)])
def test_weights_by_age_follow_a_hessian_that_changes(start):
    """The last 37 pairs of BFGS on Rosenbrock's function in five dimensions."""

    def loss(x):
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    gradient, points = jax.jit(jax.grad(loss)), []
    minimize(loss, np.array(start, float), method="BFGS", jac=gradient, callback=points.append)
    points = np.array(points[-38:])
    pairs = lrj.successive(points, jax.vmap(gradient)(points))
    truth, age = jax.hessian(loss)(points[-1]), np.arange(37.0)[::-1]
    assert reference.relative_error(lrj.fit(pairs).to_dense(), truth) > 0.5
    by_age = lrj.fit(pairs, weights=0.25**age).to_dense()
    assert reference.relative_error(by_age, truth) < 0.05


@pytest.mark.parametrize("kind", ["few", "dependent", "more", "orthonormal"])
def test_derivatives_in_pairs_and_weights(rng, kind):
    """Also at equal weights of orthonormal steps, where all eigenvalues of W are one."""
    s, y = pairs_of(rng, "few" if kind == "orthonormal" else kind)
    weights = rng.uniform(1, 2, len(s))
    if kind == "orthonormal":
        s, weights = np.linalg.qr(s.T)[0].T, np.ones(len(s))
    v = np.linspace(-1, 1, s.shape[1])

    def results(y, weights):
        h = lrj.fit((s, y), weights=weights)
        return h @ v, h.trace()

    check_derivatives(results, (y, weights), order=2)


def test_traced_weights_that_are_none_give_no_plausible_operator(rng):
    s, y = pairs_of(rng, "few")
    fit = jax.jit(lambda w: lrj.fit((s, y), weights=w).trace())
    for bad in ([1, 1, -1, 1], [0, 0, 0, 0], [1, np.inf, 1, 1], [1, np.nan, 1, 1]):
        assert np.isnan(fit(np.array(bad, float)))
    lanes = jax.vmap(fit)(np.array([[1.0] * 4, [-1.0] * 4]))
    np.testing.assert_array_equal(np.isnan(lanes), [False, True])
