"""Estimates of what an operator misses: exact where nothing is, calibrated where much is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from benchmarks import errors
from tests import draws

KEY = jax.random.key(0)
DIM = 60
SPECTRA = {
    "1 / i": 1 / np.arange(1.0, DIM + 1),
    "slow, both signs": np.arange(1.0, DIM + 1) ** -0.5 * np.where(np.arange(DIM) % 3 == 2, -1, 1),
    "bulk of 1": np.where(np.arange(DIM) < 5, 50.0, 1.0),
}


def product(x, v, a):
    return a @ v


def with_spectrum(rng, spectrum):
    q = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    return (q * spectrum) @ q.T


@pytest.mark.parametrize(
    "diagonal", [None, 0.7, np.linspace(0.2, 2, DIM)], ids=["no diagonal", "number", "vector"]
)
def test_of_an_operator_that_is_exact_nothing_is_missing(rng, diagonal):
    """Of low rank, or with a number or a vector on the diagonal."""
    a, x = draws.symmetric(rng, DIM, rank=4), np.zeros(DIM)
    a = a @ a / 4
    h = lrj.lowrank_from_product(product, 4)(x, a, key=KEY)
    if diagonal is not None:
        h, a = h.plus_diagonal(diagonal), a + diagonal * np.eye(DIM)
    found = lrj.estimate(product, h, 3)(x, a, key=KEY)
    for name, value, args in (
        ("trace", np.trace(a), ()),
        ("diagonal", np.diag(a), ()),
        ("frobenius_norm", np.linalg.norm(a), ()),
        ("logdet", np.linalg.slogdet(a + 0.5 * np.eye(DIM))[1], (0.5,)),
        ("error", 0, ()),
    ):
        estimate = getattr(found, name)(*args)
        np.testing.assert_allclose(estimate.value, value, atol=1e-8)
        np.testing.assert_allclose(estimate.standard_error, np.zeros_like(value), atol=1e-8)


@pytest.mark.study
@pytest.mark.parametrize("name", SPECTRA)
def test_error_bars_cover_the_truth_as_often_as_they_say(rng, name):
    """Of 200 keys: the trace and the diagonal in 90 to 99 percent, the error within a factor 2."""
    a, x = with_spectrum(rng, SPECTRA[name]), np.zeros(DIM)
    h = lrj.lowrank_from_product(product, 6)(x, a, key=KEY)

    @jax.jit
    @jax.vmap
    def found(key):
        each = lrj.estimate(product, h, 12)(x, a, key=key)
        return each.trace(), each.diagonal(), each.frobenius_norm(), each.error()

    trace, diagonal, norm, error = found(jax.random.split(jax.random.key(1), 200))

    def covered(estimate, truth):
        return np.mean(np.abs(estimate.value - truth) < 1.96 * estimate.standard_error)

    assert 0.9 <= covered(trace, np.trace(a)) <= 0.99
    assert 0.88 <= covered(diagonal, np.diag(a)[None, :]) <= 0.99
    assert 0.85 <= covered(norm, np.linalg.norm(a)) <= 0.995
    missed = np.linalg.norm(a - h.to_dense()) / np.linalg.norm(a)
    assert np.mean((error.value < 2 * missed) & (error.value > missed / 2)) > 0.9


def test_the_first_order_of_a_log_determinant_is_an_upper_bound(rng):
    a, x = with_spectrum(rng, SPECTRA["1 / i"]), np.zeros(DIM)
    h = lrj.lowrank_from_product(product, 6)(x, a, key=KEY)
    d = 0.3
    dense = np.asarray(h.to_dense())
    missing = np.trace(np.linalg.solve(dense + d * np.eye(DIM), a - dense))
    first = np.linalg.slogdet(dense + d * np.eye(DIM))[1] + missing
    found = jax.jit(lambda key: lrj.estimate(product, h, 400)(x, a, key=key).logdet(d))(KEY)
    assert abs(found.value - first) < 4 * found.standard_error
    assert first >= np.linalg.slogdet(a + d * np.eye(DIM))[1]


def test_the_evidence_of_a_posterior_within_one_nat():
    """Of 17 gradients and 10 products; the study is in `benchmarks/errors.py`."""
    found = errors.evidence(*errors.posteriors()["normal features"], 40, 1 / 2)
    assert found["NaN, not positive definite"] == 0
    assert found["within 1 nat"] >= 0.9  # 0.99 of 1500
    assert found["covers the first order"] >= 0.8
    assert found["without shift and estimate, off by"] > 5


def test_trees_of_numpy_on_the_host(rng):
    """A product in NumPy is called as it is, for as many vectors as are asked for."""
    calls, x = [], {"u": np.zeros((2, 3)), "v": np.zeros(4, np.float32)}

    def twice(x, v):
        calls.append(isinstance(v["u"], np.ndarray))
        return {"u": 2 * v["u"], "v": 2 * v["v"]}

    h = lrj.lowrank_from_product(twice, 2, passes=1)(x, key=KEY)
    calls.clear()
    found = lrj.estimate(twice, h, 5)(x, key=jax.random.key(3))
    assert calls == [True] * 5
    trace, diagonal = found.trace(), found.diagonal()
    assert abs(trace.value - 20) < 4 * trace.standard_error
    assert jax.tree.map(jnp.shape, diagonal.value) == {"u": (2, 3), "v": (4,)}
