"""Ritz pairs and their residuals against the dense matrix."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from tests import draws

KEY = jax.random.key(0)


@pytest.mark.parametrize("kind", ["Krylov", "random", *draws.DEPENDENT])
def test_every_interval_of_consistent_pairs_holds_an_eigenvalue(rng, kind):
    """The values are those of H on the span, the residuals those of the vectors; ranks too."""
    dim = 9
    a = draws.symmetric(rng, dim)
    if kind == "Krylov":
        steps = np.linalg.qr(np.stack([np.linalg.matrix_power(a, k)[0] for k in range(4)]).T)[0].T
        rank = 4
    elif kind == "random":
        steps, rank = rng.normal(size=(5, dim)), 5
    else:
        steps, rank = draws.dependent(rng, kind)
    found = lrj.ritz_pairs((steps, steps @ a))
    values, vectors, residuals = map(np.asarray, found)
    assert len(values) == len(vectors) == len(residuals) == len(steps)
    assert np.isinf(residuals[rank:]).all()
    assert (values[rank:] == 0).all()
    assert (vectors[rank:] == 0).all()
    q = np.linalg.svd(steps)[2][:rank]
    expected = np.linalg.eigvalsh(q @ a @ q.T)
    expected = expected[np.argsort(-np.abs(expected))]
    np.testing.assert_allclose(values[:rank], expected, atol=1e-10)
    v = vectors[:rank]
    np.testing.assert_allclose(v @ v.T, np.eye(rank), atol=1e-10)
    truth = np.linalg.norm(v @ a - values[:rank, None] * v, axis=1)
    np.testing.assert_allclose(residuals[:rank], truth, atol=1e-10)
    gaps = np.abs(np.linalg.eigvalsh(a)[:, None] - values[None, :rank]).min(axis=0)
    assert (gaps <= residuals[:rank] + 1e-12).all()


def test_contradictions_are_in_the_residuals(rng):
    steps, grads = rng.normal(size=(2, 4, 7))
    values, vectors, residuals = map(np.asarray, lrj.ritz_pairs((steps, grads)))
    h_of_vectors = vectors @ np.linalg.pinv(steps) @ grads
    truth = np.linalg.norm(h_of_vectors - values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(residuals, truth, rtol=1e-10)


@pytest.mark.study
@pytest.mark.parametrize("noise", [1e-4, 1e-2])
def test_of_noisy_gradients_the_error_of_the_pairs_and_the_residual_are_the_bar(rng, noise):
    """Residuals alone are not: more than one eigenvalue in ten lies beyond them."""
    q = np.linalg.qr(rng.normal(size=(60, 60)))[0]
    curvature, x = 10 / np.arange(1, 61.0) ** 2, rng.normal(size=60) / 2

    def gradient(x):
        g = q @ (curvature * np.tanh(q.T @ x))
        return g + noise * np.linalg.norm(g) * rng.normal(size=60) / 60**0.5

    exact = curvature / np.cosh(q.T @ x) ** 2  # eigenvalues
    at = lrj.lowrank_hessian_from_gradient(gradient, 5, passes=3, return_pairs=True)
    covered = []
    for key in jax.random.split(KEY, 15):
        _, pairs = at(x, key=key)
        found = jax.tree.map(lambda leaf: np.asarray(leaf)[:4], lrj.ritz_pairs(pairs))
        distances = np.min(np.abs(found.values[:, None] - exact), axis=1)
        bars = np.max(pairs.rounding) * np.max(np.abs(found.values)) + found.residuals
        covered.append((distances <= found.residuals, distances <= bars))
    alone, together = np.mean(covered, axis=(0, 2))
    assert alone < 0.9
    assert together > 0.93


def test_trees_scales_float32_lanes_and_what_is_not_finite(rng):
    a, steps = draws.symmetric(rng, 6), rng.normal(size=(3, 6))
    truth = np.asarray(lrj.ritz_pairs((steps, steps @ a)).residuals)

    def tree(rows):
        return {
            "a": jnp.asarray(rows[..., :2], np.float32),
            "b": jnp.asarray(rows[..., 2:], np.float32),
        }

    batch = np.stack([steps, 1e-12 * steps, np.where(np.eye(3, 6) > 0, np.nan, steps)])
    grads = np.stack([steps @ a, steps @ a, steps @ a]) * np.array([1.0, 1.0, 1.0])[:, None, None]
    found = jax.vmap(lambda s, y: lrj.ritz_pairs((s, y)))(tree(batch), tree(grads))
    np.testing.assert_allclose(found.residuals[0], truth, rtol=1e-4)
    np.testing.assert_allclose(found.residuals[1], 1e12 * truth, rtol=1e-4)
    assert np.isnan(found.residuals[2]).all()
    assert found.vectors["b"].shape == (3, 3, 4)


@pytest.mark.study
def test_the_leading_eigenvalues_of_a_network_have_honest_residuals(rng):
    w, x = rng.normal(size=(30, 20)), rng.normal(size=20)

    def loss(x):
        return jnp.sum(jnp.tanh(w @ x) ** 2)

    at = lrj.lowrank_hessian(loss, 4, passes=3, solver=lrj.ritz_pairs)
    found = at(x, key=KEY)
    exact = np.linalg.eigvalsh(jax.hessian(loss)(x))
    gaps = np.abs(exact[:, None] - np.asarray(found.values)[None, :]).min(axis=0)
    assert (gaps <= found.residuals + 1e-5).all()
    assert found.residuals[0] < 0.05 * abs(found.values[0])
    jitted = jax.jit(partial(at, key=KEY))(x)
    np.testing.assert_allclose(jitted.values, found.values, rtol=1e-5)
