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
def test_ill_conditioned_dependent_pairs_are_least_squares(rng, kind):
    """No multiple of a vanishing combination of pairs leaks into the others' solution."""
    for _ in range(20):
        s, rank = draws.dependent(rng, kind, cond=1e3)
        y = rng.normal(size=s.shape)
        found = lrj.fit(lrj.SecantPairs(s, y), extrapolate=0).to_dense()
        assert reference.relative_error(found, reference.fit(s, y, 0, rank=rank)) < 1e-9


def test_rotated_rows_that_noise_left_parallel_are_one_direction():
    """Else the Gram matrix of the unit rows has a negative eigenvalue, and Cholesky fails."""
    rows = np.array([[1.0, 0, 0], [0, 3e-4, 1e-5], [0, 4e-4, 0], [0, 4e-4, 0], [0, 0, 2e-4]])
    kept = np.array([True, True, True, True, False])
    dropped = orthonormal._nearly_collinear(jnp.asarray(rows @ rows.T), jnp.asarray(kept))
    np.testing.assert_array_equal(dropped, [False, True, False, True, False])


@pytest.mark.parametrize(
    ("eps", "apart", "rank"),
    [(2**-23, 4 * 2**-23, 3), (2**-23, 40 * 2**-23, 4), (2**-7, 0.08, 3), (2**-7, 1, 4)],
)
def test_steps_apart_by_less_than_their_rounding_are_one_direction(rng, eps, apart, rank):
    """Of unit rows, 8 eps here; 0.08 is one that a Cholesky factor alone would keep."""
    q = np.linalg.qr(rng.normal(size=(20, 20)))[0][:4]
    rows = np.stack([*q[:3], q[0] + apart * q[3]])
    assert np.sum(orthonormal.orthonormal(rows, eps=eps).kept) == rank
