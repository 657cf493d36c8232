"""Derivatives of spectral functions at close and repeated eigenvalues."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax._core import xla
from lowrank_jax._core.spectral import eigh, inverse, inverse_root, masked_inverse, svd
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
    check_derivatives(kept_inverse, (m,))


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
    check_derivatives(spans, (m,))


def test_singular_vectors_of_nothing_have_no_columns():
    u, s, v = svd(jnp.zeros((0, 3)))
    assert (u.shape, s.shape, v.shape) == ((0, 0), (0,), (3, 0))


def resolvent(m, width):
    return jnp.real(inverse(jax.lax.complex((m + m.T) / 2, width @ width.T)))


@pytest.mark.parametrize("values", [[3.0, -2.0, 0.5, 0.1], [2.0, 2.0, -2.0, 0.0]])
def test_the_real_part_of_a_resolvent_is_the_damped_inverse(rng, values):
    """M with a diagonal of zeros, too, and derivatives of two orders at repeated eigenvalues."""
    turned, width = matrix(rng, values), 0.3 * rng.normal(size=(4, 4))
    swap = np.kron(np.eye(2), [[0.0, 1], [1, 0]])
    for m in (turned, swap):
        w = width @ width.T
        block = np.block([[w, m], [m, -w]])
        truth = np.linalg.solve(block, np.concatenate([np.zeros((4, 4)), np.eye(4)]))[:4]
        np.testing.assert_allclose(resolvent(m, width), truth, rtol=1e-11, atol=1e-11)
    check_derivatives(resolvent, (turned, width), order=2)


@pytest.mark.parametrize("gap", [1e-2, 1e-4])
def test_a_resolvent_in_float32_has_the_digits_of_its_condition_not_of_its_square(rng, gap):
    m = matrix(rng, [1.0, -1.0, 0.7, gap])
    width = 1e-6 * np.eye(4)
    found = jnp.real(inverse(jax.lax.complex(np.float32(m), np.float32(width))))
    exact = np.linalg.inv(np.float32(m).astype(float) + 1j * width).real
    assert reference.relative_error(found, exact) < 20 * 2.0**-23 / gap


def test_a_resolvent_whose_diagonal_vanishes_early_keeps_its_digits(rng):
    """Pivots as they come would begin with one of 1e-6, and lose as many digits."""
    width = 1e-6 * np.eye(4, dtype=np.float32)
    for _ in range(5):
        m = draws.symmetric(rng, 4).astype(np.float32)
        m[0, 0] = 0
        found = inverse(jax.lax.complex(m, width))
        exact = np.linalg.inv(m.astype(float) + 1j * width)
        assert np.linalg.norm(np.asarray(found) - exact) < 100 * 2.0**-23 * np.linalg.norm(exact)


def test_a_matrix_that_rounding_left_indefinite_has_a_definite_inverse(rng):
    v = rng.normal(size=(4, 1))
    m = v @ v.T
    noise = 4e-16 * draws.symmetric(rng, 4)
    least = 2.0**-52 * np.trace(m)
    assert np.linalg.eigvalsh(m + noise)[0] < 0
    found = inverse(jnp.asarray(m + noise), least)
    values = np.linalg.eigvalsh(found)
    assert values[0] > -1e-13 * values[-1]
    definite = m + np.eye(4)
    np.testing.assert_allclose(inverse(definite, least), np.linalg.inv(definite), rtol=1e-12)


def gram(w, a):
    """`A^T W^T W A` = `A^T M^-1 A`, whatever the choice of W."""
    return a.T @ w.T @ w @ a


def test_the_inverse_root_whitens_what_is_nearly_orthonormal(rng):
    e, eye = draws.symmetric(rng, 4), np.eye(4)
    for size in (0.24, 1e-2, 1e-4):
        near = size * e / np.linalg.norm(e)
        w = eye + inverse_root(near)
        assert np.linalg.norm(w @ (eye + near) @ w.T - eye) < 1e-14
    np.testing.assert_array_equal(inverse_root(np.pad(near, (0, 1)))[4], 0)


def test_second_derivatives_of_the_inverse_root_are_those_of_the_inverse(rng):
    """Of `A^T W^T W A` = `A^T (I + E)^-1 A` at 1e-6 (E + E^T), in units of 1e-12."""
    e, a, along, across = rng.normal(size=(4, 4, 4))
    eye = np.eye(4)

    def second(f):
        def slope(e):
            return jax.jvp(lambda e: f(1e-6 * (e + e.T)), (e,), (along,))[1]

        return 1e12 * jax.jvp(slope, (e,), (across,))[1]

    found = second(lambda e: gram(eye + inverse_root(e), a))
    exact = second(lambda e: a.T @ jnp.linalg.inv(eye + e) @ a)
    assert reference.relative_error(found, exact) < 1e-4


def doubled(x):
    return jax.tree.map(lambda x: 2 * x, x)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_loop_ends_for_each_of_a_batch_where_it_should(monkeypatch, devices):
    monkeypatch.setattr(jax, "device_count", lambda: devices)

    def run(x):
        return xla.iterate(doubled, x, until=lambda x: x > 10, most=4)

    x = np.array([20.0, 3.0, 1.0, 0.1])
    np.testing.assert_array_equal(jax.vmap(run)(x), [20, 12, 16, 1.6])
    np.testing.assert_array_equal([run(y) for y in x], [20, 12, 16, 1.6])
    text = jax.jit(jax.vmap(run)).lower(x).as_text()
    # On several devices no member of a batch is asked whether it is done.
    assert ("stablehlo.reduce" in text) == (devices == 1)
