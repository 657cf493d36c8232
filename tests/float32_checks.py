"""What must hold with double precision off; `test_default_settings` runs this."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from tests import draws, reference


def test_double_precision_is_off():
    assert jnp.ones(1).dtype == np.float32


def test_float64_input_becomes_float32(rng):
    a, s = draws.symmetric(rng, 12), rng.normal(size=(5, 12))
    h = lrj.fit(lrj.SecantPairs(s, s @ a))
    assert h.dtype == np.float32
    assert h.core.dtype == np.float32
    assert reference.relative_error(h.to_dense(), reference.fit(s, s @ a, 2 / 3)) < 1e-5
    assert np.asarray(h.eigenvalues()).dtype == np.float32


def test_an_operator_of_float64_input_is_computed_with_in_float32(rng):
    """Without a warning that JAX has no other."""
    factors, core = rng.normal(size=(3, 6)), draws.symmetric(rng, 3)
    h, dense, v = lrj.SymmetricLowRank(factors, core), factors.T @ core @ factors, np.ones(6)
    assert h.dtype == np.float32
    for damping in (20.0, 20 * v):
        solution = np.linalg.solve(dense + 20 * np.eye(6), v)
        np.testing.assert_allclose(h.solve(v, damping), solution, rtol=1e-4)
        np.testing.assert_allclose(
            h.logdet(damping), np.linalg.slogdet(dense + 20 * np.eye(6))[1], rtol=1e-5
        )
    np.testing.assert_allclose(h.plus_diagonal(1.0).eigenvalues(), 1 + h.eigenvalues())


@pytest.mark.parametrize("kind", draws.DEPENDENT)
def test_dependent_pairs(rng, kind):
    s, rank = draws.dependent(rng, kind)
    s = s.astype(np.float32)
    y = rng.normal(size=s.shape).astype(np.float32)
    pairs = lrj.SecantPairs(s, y)
    h = lrj.fit(pairs)
    truth = reference.fit(s, y, 2 / 3, rank=rank, eps=2.0**-23)
    assert reference.relative_error(h.to_dense(), truth) < 1e-5
    assert lrj.diagnose(h, pairs).rank == rank


def test_gradients_of_a_penalty_are_those_of_double_precision(rng):
    """Of a quadratic loss: the fit to pairs that contradict each other depends on the precision."""
    w, points = rng.normal(size=(6, 6)), rng.normal(size=(5, 6))

    def loss(x, w):
        return jnp.sum((w @ x) ** 2)

    def penalty(w):
        return lrj.secant_hessian(loss)(points.astype(w.dtype), w).frobenius_norm()

    found = jax.grad(penalty)(w.astype(np.float32))
    with jax.enable_x64(True):
        truth = jax.grad(penalty)(w)
    assert found.dtype == np.float32
    assert reference.relative_error(found, truth) < 5e-5


def test_the_coarsest_leaf_decides_what_is_rounding(rng):
    """A sum of two steps, rounded to bfloat16 in one leaf, is no third direction."""
    s = rng.normal(size=(3, 40))
    s[2] = s[0] + s[1]
    steps = {"a": jnp.asarray(s[:, :20], jnp.bfloat16), "b": jnp.asarray(s[:, 20:], jnp.float32)}
    pairs = lrj.SecantPairs(steps, steps)
    assert lrj.diagnose(lrj.fit(pairs), pairs).rank == 2


def test_mixed_half_and_single_leaves_keep_their_dtypes(rng):
    points = {
        "a": jnp.asarray(rng.normal(size=(4, 3)), jnp.bfloat16),
        "b": jnp.asarray(rng.normal(size=(4, 5)), jnp.float32),
    }

    def loss(p):
        return jnp.sum(p["a"].astype(jnp.float32) ** 2) + jnp.sum(p["b"] ** 4)

    h = lrj.secant_hessian(loss)(points)
    v = jax.tree.map(lambda x: x[0], points)
    assert jax.tree.map(lambda x: x.dtype, h @ v) == jax.tree.map(lambda x: x.dtype, v)
    assert np.isfinite(h.to_dense()).all()
    assert np.isfinite(lrj.hvp(loss)(v, v)["b"]).all()
    assert lrj.gradient_difference(loss)(v, v)["a"].dtype == jnp.bfloat16
