"""Dependent, repeated, zero and too many pairs: the operator of the dense twin."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from lowrank_jax._core import orthonormal
from tests import draws, reference

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}


@jax.jit
@jax.vmap
@partial(jax.grad, argnums=(0, 1), has_aux=True)
def gradients_and_operators(s, y):
    h = lrj.fit(lrj.SecantPairs(s, y))
    return jnp.sum(h @ jnp.ones(s.shape[1], s.dtype)) + h.trace(), h.to_dense()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("consistent", [True, False])
@pytest.mark.parametrize("kind", draws.DEPENDENT)
def test_dependent_pairs_give_the_operator_of_the_dense_twin(rng, kind, consistent, dtype):
    steps, slopes, truth = [], [], []
    for _ in range(100):
        s, rank = draws.dependent(rng, kind)
        y = s @ draws.symmetric(rng, s.shape[1]) if consistent else rng.normal(size=s.shape)
        steps.append(s.astype(dtype))
        slopes.append(y.astype(dtype))
        eps = np.finfo(dtype).eps
        truth.append(reference.fit(steps[-1], slopes[-1], 2 / 3, rank=rank, eps=eps))

    gradients, found = gradients_and_operators(np.array(steps), np.array(slopes))
    errors = [reference.relative_error(h, t) for h, t in zip(found, truth, strict=True)]
    assert np.max(errors) < TOLERANCE[dtype]
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("kind", draws.DEPENDENT)
def test_dependent_pairs_are_least_squares(rng, kind):
    """No multiple of a vanishing combination of pairs leaks into the others' solution."""
    for _ in range(20):
        s, rank = draws.dependent(rng, kind, cond=1e3)
        y = rng.normal(size=s.shape)
        found = lrj.fit(lrj.SecantPairs(s, y), extrapolate=0).to_dense()
        assert reference.relative_error(found, reference.fit(s, y, 0, rank=rank)) < 1e-9


def test_a_combination_that_vanishes_without_rounding_is_one_too(rng):
    """Of coordinate steps the Gram matrix is exact, and two that repeat each other count alike."""
    s = np.diag([1, 1, 1, 0.25]) @ np.eye(5)[[0, 1, 2, 1]]
    y = rng.normal(size=s.shape)
    found = lrj.fit((s, y), extrapolate=0).to_dense()
    assert reference.relative_error(found, reference.fit(s, y, 0, rank=3)) < 1e-14


@pytest.mark.usefixtures("fully_compiled")
def test_many_steps_of_noise_alone_span_what_they_span(rng):
    """Half of forty steps differ from the others by their rounding, and by ten times that."""
    for times in (1, 10):
        s = rng.normal(size=(20, 80))
        s = np.concatenate([s, s * (1 + times * 2.0**-24 * rng.normal(size=s.shape))])
        rows = np.asarray(orthonormal.orthonormal(s.astype(np.float32), eps=2.0**-23), float)
        kept = np.any(rows != 0, axis=1)
        assert np.sum(kept) == 20 if times == 1 else 20 <= np.sum(kept) <= 40
        np.testing.assert_allclose(rows @ rows.T, np.diag(kept), atol=0.1)


@pytest.mark.usefixtures("fully_compiled")
def test_hundreds_of_steps_that_are_nearly_parallel_have_an_orthonormal_basis(rng):
    """Of 400, which differ by a hundred roundings, what is left to be whitened is not small."""
    for _ in range(6):
        s = (rng.normal(size=800) + 1e-5 * rng.normal(size=(400, 800))).astype(np.float32)
        rows = np.asarray(orthonormal.orthonormal(s, eps=2.0**-23), float)
        kept = np.any(rows != 0, axis=1)
        np.testing.assert_allclose(rows @ rows.T, np.diag(kept), atol=2.5e-6)
        assert np.sum(kept) > 300


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_coordinate_that_is_rounding_is_no_step_of_many_pairs(rng, place):
    """Of ten times 30 pairs in three dimensions, one of them a thousand millionth of the others."""
    s = rng.normal(size=(10, 30, 3)).astype(np.float32)
    s[..., place] *= 2.0**-30
    y = rng.normal(size=s.shape).astype(np.float32)
    for each, h in zip(zip(s, y, strict=True), gradients_and_operators(s, y)[1], strict=True):
        expected = reference.fit(*each, 2 / 3, rank=2, eps=2**-23)
        assert reference.relative_error(h, expected) < 1e-4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "k", "condition"), [(60, 20, 30), (40, 30, 10)])
def test_many_ill_conditioned_steps_in_few_coordinates_tell_all_of_these(
    rng, n, k, condition, dtype
):
    """As of the weights behind few live units, or where draws are more than dimensions."""
    sizes = np.pad(np.geomspace(1, 1 / condition, k), (0, 10))
    s = np.pad(rng.normal(size=(40, n, k)), ((0, 0), (0, 0), (0, 10))) * sizes
    s, curvatures = s.astype(dtype), np.pad(sizes[:k] ** -2, (0, 10)).astype(dtype)
    found = gradients_and_operators(s, s * curvatures)[1]
    errors = [reference.relative_error(h, np.diag(curvatures)) for h in found]
    assert np.max(errors) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_more_draws_than_dimensions_are_diagnosed(rng, dtype):
    sizes = np.geomspace(1, 1 / 30, 20)
    for s in (rng.normal(size=(5, 40, 20)) * sizes).astype(dtype):
        pairs = s, s * (sizes**-2).astype(dtype)
        report = lrj.diagnose(lrj.fit(pairs), pairs)
        assert report.rank == 20
        assert report.leave_one_out < TOLERANCE[dtype]
    assert np.isfinite(lrj.choose_shift(pairs))


@pytest.mark.parametrize(
    ("eps", "apart", "rank"),
    [(2**-23, 2**-23, 3), (2**-23, 4 * 2**-23, 4), (2**-7, 2**-7, 3), (2**-7, 2**-5, 4)],
)
def test_steps_apart_by_less_than_their_rounding_are_one_direction(rng, eps, apart, rank):
    """In float64 `eps` is that of the data; its half is the error of a row, twice that is seen."""
    q = np.linalg.qr(rng.normal(size=(20, 20)))[0][:4]
    rows = np.stack([*q[:3], q[0] + apart * q[3]])
    assert np.sum(np.any(orthonormal.orthonormal(rows, eps=eps) != 0, axis=1)) == rank
