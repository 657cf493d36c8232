"""Derivatives of spectral functions at close and repeated eigenvalues."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax._core.spectral import eigh, masked_inverse, svd
from lowrank_jax._core.xla import batched_cond
from tests import draws, reference
from tests.derivatives import check_derivatives


def above(w, v, level):
    return jnp.abs(w) > level


def matrix(rng, values):
    q = np.linalg.qr(rng.normal(size=(len(values),) * 2))[0]
    return (q * values) @ q.T


def kept_inverse(a):
    return masked_inverse(above, (a + a.T) / 2, 0.3)


@pytest.mark.parametrize(
    "values",
    [[3.0, -2.0, 0.5, 0.1], [2.0, 2.0, -2.0, 0.1], [2.0, 2.0, 0.1, 0.1], [1.0, 0.0, 0.0, 0.0]],
)
def test_the_inverse_of_the_kept_part_differentiates(rng, values):
    m = matrix(rng, values)

    w, v = np.linalg.eigh(m)
    kept = np.where(np.abs(w) > 0.3, 1 / w, 0)
    np.testing.assert_allclose(kept_inverse(m), v * kept @ v.T, atol=1e-12)
    check_derivatives(kept_inverse, (m,), rtol=1e-6, atol=1e-6)


def test_second_derivatives_at_distinct_and_at_repeated_kept_eigenvalues(rng):
    m = matrix(rng, [3.0, -2.0, 0.5, 0.1])
    check_derivatives(kept_inverse, (m,), order=2)
    all_kept = matrix(rng, [2.0, 2.0, -2.0, 0.5])
    check_derivatives(kept_inverse, (all_kept,), order=2)
    check_derivatives(lambda a: eigh((a + a.T) / 2)[0], (m,), order=2)


@pytest.mark.parametrize("gap", [0, 1e-7, 1e-5, 1e-3])
def test_close_eigenvalues_lose_no_digits_in_float32(rng, gap):
    """All kept: the derivative is -M^-1 E M^-1, whatever the gap."""
    m, e = matrix(rng, [1.0, 1.0 + gap, 2.0, -0.7]), draws.symmetric(rng, 4)
    truth = -np.linalg.inv(m) @ e @ np.linalg.inv(m)
    tangent = jax.jvp(
        lambda a: masked_inverse(above, a, np.float32(0.3)),
        (m.astype(np.float32),),
        (e.astype(np.float32),),
    )[1]
    assert reference.relative_error(tangent, truth) < 1e-5


def spans(m):
    u, s, v = svd(m)
    u, v = u[:, :2], v[:, :2]
    return u @ u.T, v @ v.T, u @ v.T, jnp.sum(s[:2])


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
@pytest.mark.parametrize("values", [[3.0, 1.0, 0.4], [2.0, 2.0, 0.5], [2.0, 1.0, 0.0]])
def test_spans_of_singular_vectors_differentiate(rng, shape, values):
    """The projectors on the leading two and the polar factor, also where those two are equal."""
    turned = len(set(values)) == 3  # rounding would part two that are equal
    draw = rng.normal if turned else (lambda size: np.eye(*size))
    left, right = (np.linalg.qr(draw(size=(n, 3)))[0] for n in shape)
    m = left * values @ right.T

    u, s, v = svd(m)
    np.testing.assert_allclose((u * s[None, :]) @ v.T, m, atol=1e-14)
    np.testing.assert_allclose(s[:3], values, atol=1e-14)
    check_derivatives(spans, (m,), rtol=1e-6, atol=1e-6)


def test_singular_vectors_of_nothing_have_no_columns():
    u, s, v = svd(jnp.zeros((0, 3)))
    assert (u.shape, s.shape, v.shape) == ((0, 0), (0,), (3, 0))


def test_batched_cond_of_a_batch_is_the_choice_of_each():
    def choose(x):
        return batched_cond(x > 0, lambda x: 10 * x, lambda x: 100 * x, x)

    x = np.array([[1.0, 2.0], [3.0, -4.0]])
    expected = np.array([[10, 20], [30, -400]])
    assert choose(x[0, 0]) == 10
    for row, of_row in zip(x, expected, strict=True):
        np.testing.assert_array_equal(jax.vmap(choose)(row), of_row)
    np.testing.assert_array_equal(jax.jit(jax.vmap(jax.vmap(choose)))(x), expected)
    assert "stablehlo.case" in jax.jit(jax.vmap(choose)).lower(x[0]).as_text()
