"""`SymmetricLowRank` against the dense matrix that it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

import lowrank_jax as lrj
from tests import draws, reference

TOLERANCE = {np.float32: 2e-5, np.float64: 1e-10}


def tree(rows):
    """Rows of 7 numbers as a pytree of mixed leaf shapes, in raveled order."""
    lead = rows.shape[:-1]
    return {"a": rows[..., 0], "b": [rows[..., 1:5].reshape(*lead, 2, 2), rows[..., 5:]]}


def operator(rng, k=4, dtype=np.float64):
    """An indefinite operator of pytrees, and its dense twin."""
    factors, core = rng.normal(size=(k, 7)), draws.symmetric(rng, k)
    h = lrj.SymmetricLowRank(tree(factors.astype(dtype)), core.astype(dtype))
    return h, reference.low_rank(factors, core)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [0, 1, 4, 9])
def test_every_method_equals_its_dense_twin(rng, k, dtype):
    h, dense = operator(rng, k, dtype)
    u, v = rng.normal(size=(2, 7)).astype(dtype)

    def close(a, b):
        return reference.relative_error(a, b) < TOLERANCE[dtype]

    assert close(h.to_dense(), dense)
    np.testing.assert_array_equal(h.to_dense(), h.to_dense().T)
    assert close(ravel_pytree(h @ tree(v))[0], dense @ v)
    assert close(h.bilinear(tree(u), tree(v)), u @ dense @ v)
    assert close(h.trace(), np.trace(dense))
    assert close(h.frobenius_norm(), np.linalg.norm(dense))
    assert h.T is h
    assert h.shape == (7, 7)
    assert h.dtype == dtype
    for combined, truth in (
        (h + 2 * h, 3 * dense),
        (h - h / 4, 0.75 * dense),
        (-h * np.float32(3), -3 * dense),
        (jnp.asarray(2.0) * h, 2 * dense),
        (np.float64(2) * h, 2 * dense),
    ):
        assert close(combined.to_dense(), truth)
        assert combined.core.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [0, 1, 4, 9])
def test_eigenpairs_are_those_of_the_dense_twin(rng, k, dtype):
    h, dense = operator(rng, k, dtype)
    s, rows = h.eigh()
    s, rank = np.asarray(s), min(k, 7)
    exact = np.linalg.eigvalsh(dense)
    exact = exact[np.argsort(-np.abs(exact))][:rank]
    np.testing.assert_allclose(
        s[:rank], exact, atol=TOLERANCE[dtype] * max(np.abs(exact), default=1)
    )
    np.testing.assert_array_equal(s[rank:], 0)
    np.testing.assert_array_equal(np.asarray(h.eigenvalues()), s)
    u = np.concatenate([np.reshape(x, (k, -1 if k else 0)) for x in jax.tree.leaves(rows)], axis=1)
    u = u if k else np.zeros((0, 7))
    np.testing.assert_array_equal(u[rank:], 0)
    np.testing.assert_allclose(u @ u.T, np.diag(np.arange(k) < rank), atol=TOLERANCE[dtype])
    assert reference.relative_error(u.T * s @ u, dense) < TOLERANCE[dtype]


def test_truncation_is_the_best_approximation_of_its_rank(rng):
    h, dense = operator(rng, 5)
    for rank in range(9):
        short = h.truncate(rank)
        assert short.core.shape == (rank, rank)
        error = reference.relative_error(short.to_dense(), dense)
        np.testing.assert_allclose(error, reference.eckart_young_error(dense, rank), atol=1e-10)
    surplus, rows = h.truncate(8).eigh()
    np.testing.assert_array_equal(surplus[5:], 0)
    assert all((leaf[5:] == 0).all() for leaf in jax.tree.leaves(rows))


def test_what_cancels_is_exactly_zero(rng):
    h, _ = operator(rng, 4)
    np.testing.assert_array_equal((h - h).eigenvalues(), 0)


@pytest.mark.parametrize("magnitude", [1e-30, 1e-18, 1e18, 1e30])
def test_float32_operators_of_any_magnitude(rng, magnitude):
    factors, core = rng.normal(size=(4, 7)), draws.symmetric(rng, 4)
    dense = reference.low_rank(factors, core)
    size = np.sqrt(magnitude)
    for rows, small in ((factors, core * magnitude), (factors * size, core)):
        h = lrj.SymmetricLowRank(rows.astype(np.float32), small.astype(np.float32))
        np.testing.assert_allclose(h.trace() / magnitude, np.trace(dense), rtol=1e-5)
        np.testing.assert_allclose(h.frobenius_norm() / magnitude, np.linalg.norm(dense), rtol=1e-5)
        found = h.eigenvalues().astype(float) / magnitude
        exact = np.linalg.eigvalsh(dense)
        exact = exact[np.argsort(-np.abs(exact))][:4]
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)


def test_eigenpairs_under_vmap_are_those_of_each(rng):
    factors = rng.normal(size=(3, 4, 7))
    core = np.array([draws.symmetric(rng, 4) for _ in range(3)])
    batch = jax.vmap(lrj.SymmetricLowRank)(factors, core)
    values = jax.vmap(lambda h: h.eigenvalues())(batch)
    assert batch.shape == (3, 7, 7)
    for i in range(3):
        one = lrj.SymmetricLowRank(factors[i], core[i])
        np.testing.assert_allclose(values[i], one.eigenvalues(), atol=1e-12)


def test_derivatives_of_methods(rng):
    factors, core = rng.normal(size=(4, 7)), draws.symmetric(rng, 4)
    v = rng.normal(size=7)

    def smooth(factors, core):
        h = lrj.SymmetricLowRank(factors, (core + core.T) / 2)
        return h @ v, h.trace(), h.frobenius_norm(), h.bilinear(v, v**2)

    def spectral(factors, core):
        h = lrj.SymmetricLowRank(factors, (core + core.T) / 2)
        return h.eigenvalues(), h.truncate(2) @ v

    check_grads(smooth, (factors, core), order=2, rtol=1e-5, atol=1e-5)
    check_grads(spectral, (factors, core), order=1, rtol=1e-5, atol=1e-5)


def test_truncation_differentiates_where_eigenvalues_outside_repeat(rng):
    """Two eigenvalues of four vanish: the span of the others is smooth."""
    factors, v = rng.normal(size=(4, 7)), rng.normal(size=7)

    def truncated(w):
        core = jnp.diag(jnp.concatenate([w, jnp.zeros(2)]))
        return lrj.SymmetricLowRank(factors, core).truncate(2) @ v

    check_grads(truncated, (np.array([2.0, -1.0]),), order=1, rtol=1e-5, atol=1e-5)


def test_repr_tells_shape_factors_and_dtype(rng):
    h, _ = operator(rng)
    assert repr(h) == "SymmetricLowRank(shape=(7, 7), factors=4, dtype=float64)"
    axes = jax.tree.unflatten(jax.tree.structure(h), [0] * 4)
    assert "core=0" in repr(axes)
