"""Probes in passes: which steps are taken, and how long a gradient difference's step is."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import lowrank_jax as lrj
from lowrank_jax._core import structure
from tests import draws, reference

DIM = 60


def matrix_product(x, v, a):
    return a @ v


ten_passes = jax.jit(lrj.probe_pairs(matrix_product, 4, passes=10))

OPERATORS = {
    "generic": lambda rng: draws.symmetric(rng, DIM),
    "decaying": lambda rng: np.diag(0.5 ** np.arange(DIM)),
    "identity": lambda rng: np.eye(DIM),
    "rank 3": lambda rng: draws.symmetric(rng, DIM, rank=3),
    "zero": lambda rng: np.zeros((DIM, DIM)),
    "large": lambda rng: 1e25 * draws.symmetric(rng, DIM),
}


@pytest.mark.parametrize("operator", OPERATORS)
def test_float32_steps_of_ten_passes_are_orthonormal(rng, operator):
    """Also where the products add nothing to the steps so far: random ones fill up."""
    a, x = OPERATORS[operator](rng), np.zeros(DIM, np.float32)
    found = ten_passes(x, a.astype(np.float32), key=jax.random.key(1))
    s = np.asarray(found.steps, float)
    np.testing.assert_allclose(s @ s.T, np.eye(40), atol=1e-5)
    assert reference.relative_error(found.grad_diffs, s @ a) < 1e-6


def test_the_steps_span_the_block_krylov_space(rng):
    x = np.zeros((4, 5))
    h = draws.symmetric(rng, 20)
    start = rng.normal(size=(3, 4, 5))

    def product(x, v):
        return (h @ v.reshape(20)).reshape(4, 5)

    pairs_at = jax.jit(lrj.probe_pairs(product, 3, passes=4, start=start))
    found = pairs_at(x, key=jax.random.key(1))
    blocks = [start.reshape(3, 20)]
    for _ in range(3):
        blocks.append(np.linalg.qr(blocks[-1].T)[0].T @ h)
    q = np.linalg.qr(np.concatenate(blocks).T)[0].T
    s = np.asarray(found.steps).reshape(12, 20)
    np.testing.assert_allclose(s.T @ s, q.T @ q, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_of_random_numbers_are_independent_and_of_variance_one(dtype):
    count = 100_000
    rows = structure.uniform(jax.random.key(0), jnp.zeros(count, dtype), 9)
    assert rows.shape == (9, count)
    assert rows.dtype == dtype
    np.testing.assert_allclose(rows.mean(1), 0, atol=5 * count**-0.5)
    np.testing.assert_allclose(rows.var(1), 1, atol=5 * count**-0.5)
    np.testing.assert_allclose(np.corrcoef(np.sign(rows)), np.eye(9), atol=5 * count**-0.5)
    np.testing.assert_allclose(np.corrcoef(rows), np.eye(9), atol=5 * count**-0.5 + 1 / 256)


def test_directions_of_a_start_that_are_missing_are_random(rng):
    """A zero row and a multiple of another one add nothing; the others are kept."""
    start = rng.normal(size=(4, DIM))
    start[1], start[3] = 0, -2 * start[0]
    pairs_at = jax.jit(lrj.probe_pairs(matrix_product, 4, passes=1, start=start))
    found = pairs_at(np.zeros(DIM), np.eye(DIM), key=jax.random.key(1))
    s = np.asarray(found.steps)
    np.testing.assert_allclose(s @ s.T, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(start @ s.T @ s, start, atol=1e-10)


def test_more_probes_than_dimensions_measure_the_whole_matrix_and_nothing_twice(rng):
    a, x = draws.symmetric(rng, 7), {"u": np.zeros(3), "v": np.zeros((2, 2))}

    def product(x, v):
        flat, unravel = ravel_pytree(v)
        return unravel(a @ flat)

    found = jax.jit(lrj.probe_pairs(product, 3, passes=4))(x, key=jax.random.key(1))
    assert int(jnp.sum(jnp.any(found.steps["u"] != 0, axis=1))) == 7
    np.testing.assert_allclose(lrj.fit(found).to_dense(), a, atol=1e-12)


def test_float32_steps_in_a_space_that_is_full_are_orthonormal_or_zero(rng):
    a = draws.symmetric(rng, 7).astype(np.float32)
    at = jax.jit(
        jax.vmap(lambda key: lrj.probe_pairs(matrix_product, 3, passes=4)(a[0], a, key=key))
    )
    s = np.asarray(at(jax.random.split(jax.random.key(0), 500)).steps, float)
    gram = s @ np.swapaxes(s, 1, 2)
    used = np.any(s != 0, axis=2)
    assert (used.sum(axis=1) <= 7).all()
    np.testing.assert_allclose(gram, used[:, :, None] * np.eye(12), atol=5e-5)


@pytest.mark.parametrize("x", [{"u": np.ones(3), "v": np.ones((2, 0))}, np.ones(0), np.ones(1)])
def test_a_point_with_an_empty_leaf_and_one_of_few_dimensions(x):
    h = jax.jit(lrj.lowrank_hessian_from_gradient(lambda x: x, 2))(x, key=jax.random.key(0))
    np.testing.assert_allclose(h.to_dense(), np.eye(h.shape[0]), atol=1e-6)


def test_a_shared_key_gives_shared_probes_and_a_bad_lane_stays_alone(rng):
    clean = rng.normal(size=(3, 10))
    bad = clean.copy()
    bad[1, 2] = np.nan
    at = lrj.probe_pairs(lrj.hvp(lambda x: jnp.sum(x**4)), 2, passes=2)
    pairs_at = jax.jit(jax.vmap(lambda x: at(x, key=jax.random.key(0))))
    expected, found = pairs_at(clean), pairs_at(bad)
    np.testing.assert_array_equal(found.steps[0, :2], found.steps[2, :2])
    for leaf, other in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(leaf[::2], other[::2], rtol=1e-10)
    assert np.isnan(jax.vmap(lrj.fit)(found).core).all(axis=(1, 2)).tolist() == [0, 1, 0]


DATA = np.random.default_rng(1).normal(size=(31, 10))
SHAPES = {
    "rosenbrock": lambda z: jnp.sum(100 * (z[1:] - z[:-1] ** 2) ** 2 + (1 - z[:-1]) ** 2),
    "cosines": lambda z: jnp.sum(jnp.cos(3 * z) * jnp.roll(z, 1)),
    "logistic": lambda z: jnp.mean(jnp.logaddexp(0.0, _data(z) @ z)),
    "student": lambda z: jnp.sum(jnp.log1p((_data(z) @ z - 1) ** 2)),
    "network": lambda z: jnp.sum(jnp.tanh(_data(z)[:6] @ z) ** 2),
    "springs": lambda z: jnp.sum(jnp.logspace(-1, 1, 10, dtype=z.dtype) * z**2 + z**4 / 10),
}
# The units of x and of the loss, a linear term in those units, and the ratio of the largest
# to the smallest coordinate's own unit.
UNITS = ((1e-3, 1.0, 0.0, 1.0), (1e3, 1e-3, 0.0, 1.0), (1.0, 1e3, 30.0, 1.0), (1.0, 1.0, 0.0, 10.0))


def _data(z):
    return jnp.asarray(DATA, z.dtype)


@pytest.mark.study
def test_the_default_step_is_near_the_best_one_at_all_scales(rng):
    """For 24 problems, ten points each, of scales of x, gradients and curvature 1e6 apart."""
    v = rng.normal(size=(8, 10))

    def errors(shape, units, size, slope, x):
        """Those of the default step and of 33 others, in float32."""

        def loss(x):
            z = x / units.astype(x.dtype)
            return size.astype(x.dtype) * (shape(z) + slope.astype(x.dtype) * (_data(z)[-1] @ z))

        def error(step):
            product = lrj.gradient_difference(loss, step=step)
            found = jax.vmap(product, in_axes=(None, 0))(x, jnp.asarray(v, jnp.float32))
            return jnp.linalg.norm(found.astype(np.float64) - exact)

        exact = v @ jax.hessian(loss)(x.astype(np.float64))
        steps = jnp.linalg.norm(x) * jnp.logspace(-7, 1, 33, dtype=np.float32)
        return error(None), jax.lax.map(error, steps)

    ratios = []
    for shape in SHAPES.values():
        of_units = jax.jit(partial(errors, shape))
        for unit, size, slope, spread in UNITS:
            units = unit * np.geomspace(spread**-0.5, spread**0.5, 10)
            of_points = []
            for _ in range(10):
                x = np.float32(units * rng.normal(size=10))
                found, others = of_units(units, np.array(size), np.array(slope), x)
                of_points.append(found / np.nanmin(others))
            ratios.append(np.median(of_points))
    assert np.median(ratios) < 1.5, ratios
    assert np.mean(np.array(ratios) < 5) > 0.7, ratios
