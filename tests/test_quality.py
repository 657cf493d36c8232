"""What `diagnose` and `compare_hvp` report, against the dense computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from tests import draws, reference


def test_diagnosis_is_the_dense_computation(rng):
    s, y = rng.normal(size=(5, 9)), rng.normal(size=(5, 9))
    s[3] *= 1e6
    y[3] *= 1e6
    pairs = lrj.SecantPairs(s, y)
    h = lrj.fit(pairs)
    report = lrj.diagnose(h, pairs)
    u, v = reference.unit_pairs(s, y)
    residual = np.linalg.norm(u @ np.asarray(h.to_dense()) - v) / np.linalg.norm(v)
    g = u @ v.T
    np.testing.assert_allclose(report.secant_residual, residual, rtol=1e-10)
    asymmetry = np.linalg.norm(g - g.T) / (2 * np.linalg.norm(g))
    np.testing.assert_allclose(report.asymmetry, asymmetry, rtol=1e-10)
    assert report.rank == 5
    assert report.finite
    np.testing.assert_allclose(report.rounding, np.finfo(float).eps)


def test_a_quadratic_has_neither_residual_nor_asymmetry(rng):
    s = rng.normal(size=(5, 9))
    pairs = lrj.SecantPairs(s, s @ draws.symmetric(rng, 9))
    report = lrj.diagnose(lrj.fit(pairs), pairs)
    assert report.secant_residual < 1e-13
    assert report.asymmetry < 1e-13


def test_one_point_with_two_gradients_shows_as_residual(rng):
    s, y = rng.normal(size=(3, 9)), rng.normal(size=(3, 9))
    s[2] = s[1]
    pairs = lrj.SecantPairs(s, y)
    report = lrj.diagnose(lrj.fit(pairs), pairs)
    assert report.finite
    assert report.rank == 2
    assert report.secant_residual > 0.1


def test_no_pairs_and_empty_pairs_are_reported_as_rank_zero():
    for n in (0, 2):
        pairs = lrj.SecantPairs(np.zeros((n, 4)), np.zeros((n, 4)))
        report = lrj.diagnose(lrj.fit(pairs), pairs)
        assert report.rank == 0
        assert report.finite
        assert report.secant_residual == 0
        assert report.asymmetry == 0


def test_numbers_that_are_not_finite_are_reported(rng):
    s, y = rng.normal(size=(3, 9)), rng.normal(size=(3, 9))
    good = lrj.SecantPairs(s, y)
    h = lrj.fit(good)
    y = y.copy()
    y[1, 1] = np.nan
    for operator, seen in ((h, lrj.SecantPairs(s, y)), (lrj.fit(lrj.SecantPairs(s, y)), good)):
        report = lrj.diagnose(operator, seen)
        assert not report.finite
        assert np.isnan(report.secant_residual)
        assert np.isnan(report.asymmetry)


def test_comparison_is_the_dense_computation(rng):
    def loss(shift, x):
        return jnp.sum(jnp.sin(x - shift) * jnp.roll(x, 1))

    x, shift = rng.normal(size=(2, 9))
    points = x + 1e-2 * rng.normal(size=(5, 9))
    h = lrj.secant_hessian(loss, 1)(shift, points)
    vectors = rng.normal(size=(6, 9))
    found = lrj.compare_hvp(loss, h, x, vectors, shift, argnums=1)
    exact = vectors @ np.asarray(jax.hessian(loss, 1)(shift, x))
    ours = vectors @ np.asarray(h.to_dense())
    size = np.linalg.norm(exact, axis=1)
    error = np.linalg.norm(ours - exact, axis=1) / size
    cosine = np.sum(ours * exact, axis=1) / size / np.linalg.norm(ours, axis=1)
    curvature = np.sum(vectors * (ours - exact), axis=1) / size / np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(found.relative_error, error, rtol=1e-9)
    np.testing.assert_allclose(found.cosine, cosine, rtol=1e-9)
    np.testing.assert_allclose(found.curvature_error, curvature, rtol=1e-9, atol=1e-12)


def test_comparison_with_a_hessian_that_is_zero():
    vectors = np.eye(3)
    zero = lrj.fit(lrj.SecantPairs(np.eye(3)[:1], np.zeros((1, 3))))
    one = lrj.fit(lrj.SecantPairs(np.eye(3), np.eye(3)))

    def linear(x):
        return jnp.sum(x)

    np.testing.assert_array_equal(
        lrj.compare_hvp(linear, zero, np.ones(3), vectors), np.zeros((3, 3))
    )
    found = lrj.compare_hvp(linear, one, np.ones(3), vectors)
    assert np.isinf(found.relative_error).all()
    assert (found.cosine == 0).all()
    assert (found.curvature_error == 0).all()


def test_the_rounding_reported_is_that_of_pairs_with_a_step(rng):
    """A symmetric stencil: its centre has no step, and says nothing of the others."""
    x, h = rng.normal(size=(2, 9))
    points = np.stack([x, x + 1e-2 * h, x - 1e-2 * h])
    pairs = lrj.centered(points, points)
    assert np.isinf(pairs.rounding[0])
    np.testing.assert_array_equal(
        lrj.diagnose(lrj.fit(pairs), pairs).rounding, np.max(pairs.rounding[1:])
    )
    equal = lrj.centered(points[[0, 0]], points[[0, 0]])
    assert np.isinf(lrj.diagnose(lrj.fit(equal), equal).rounding)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_float32_data_of_any_magnitude_is_diagnosed(rng, scale):
    s = (scale * rng.normal(size=(5, 9))).astype(np.float32)
    pairs = lrj.centered(s, 2 * s)
    report = lrj.diagnose(lrj.fit(pairs), pairs)
    assert report.finite
    assert report.secant_residual < 1e-6
    assert 1e-8 < report.rounding < 1e-4
