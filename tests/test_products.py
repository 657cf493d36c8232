"""Hessian products of a loss against `jax.hessian`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from tests import draws, reference


def loss(w, x, shift):
    return jnp.sum(jnp.tanh(w @ x + shift) ** 2) + jnp.sum(x**4)


def setting(rng, dtype=np.float64):
    arrays = (
        rng.normal(size=(3, 5)),
        rng.normal(size=5),
        rng.normal(size=3),
        rng.normal(size=(2, 5)),
    )
    w, x, shift, vectors = (a.astype(dtype) for a in arrays)
    return w, x, shift, *vectors


def test_products_of_an_argument_are_those_of_the_dense_hessian(rng):
    w, x, shift, v, u = setting(rng)
    h = jax.hessian(loss, argnums=1)(w, x, shift)
    np.testing.assert_allclose(lrj.hvp(loss, 1)(x, v, w, shift), h @ v, rtol=1e-12)
    np.testing.assert_allclose(
        lrj.second_derivative(loss, 1)(x, u, v, w, shift), u @ h @ v, rtol=1e-12
    )
    for central, tolerance in ((False, 1e-6), (True, 1e-8)):
        product = lrj.gradient_difference(loss, -2, central=central)
        assert reference.relative_error(product(x, v, w, shift), h @ v) < tolerance


def test_products_of_a_tuple_of_arguments_take_tuples(rng):
    w, x, shift, v, _ = setting(rng)
    point, direction = (shift, w), (0 * shift, jnp.outer(jnp.ones(3), v))
    blocks = jax.hessian(loss, argnums=(2, 0))(w, x, shift)
    expected = [jnp.tensordot(row[1], direction[1], 2) for row in blocks]
    for product in (lrj.hvp(loss, (2, 0)), lrj.gradient_difference(loss, (2, 0), central=True)):
        for found, truth in zip(product(point, direction, x), expected, strict=True):
            np.testing.assert_allclose(found, truth, rtol=1e-6, atol=1e-7)


def test_gradient_differences_need_no_second_derivative(rng):
    @jax.custom_vjp
    def forbidden(x):
        return jnp.sum(x**3)

    forbidden.defvjp(
        lambda x: (forbidden(x), x), lambda x, g: (g * 3 * jax.lax.stop_gradient(x) ** 2,)
    )
    x, v = rng.normal(size=(2, 5))
    found = lrj.gradient_difference(forbidden, central=True)(x, v)
    np.testing.assert_allclose(found, 6 * x * v, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_the_default_step_follows_the_scale_of_the_point(rng, scale):
    """A quartic at x of any size: the float32 error is that of its step."""
    x, v = rng.normal(size=(2, 5))
    point, direction = (scale * x).astype(np.float32), v.astype(np.float32)

    def quartic(y):
        return jnp.sum((y / np.float32(scale)) ** 4)

    exact = 12 * x**2 * v / scale**2
    for central, tolerance in ((False, 5e-3), (True, 2e-4)):
        product = lrj.gradient_difference(quartic, central=central)
        found = np.asarray(product(point, direction), float)
        assert reference.relative_error(found, exact) < tolerance
    np.testing.assert_array_equal(lrj.gradient_difference(quartic)(point, 0 * direction), 0)


def test_the_step_can_be_given(rng):
    """A cluster far from the origin: its norm says nothing of the scale."""
    x, v = rng.normal(size=(2, 5))

    def far(y):
        return jnp.sum(jnp.sin(y - 1e6))

    exact = -np.sin(x) * v
    assert reference.relative_error(lrj.gradient_difference(far)(x + 1e6, v), exact) > 1e-3
    found = lrj.gradient_difference(far, step=1e-4)(x + 1e6, v)
    assert reference.relative_error(found, exact) < 1e-3


def test_the_difference_is_divided_by_the_step_really_taken():
    """1 + 1e-6 is 1 + 9.5e-7 in float32: the quotient of a quadratic stays exact."""
    ones = np.ones(3, np.float32)
    found = lrj.gradient_difference(lambda x: jnp.sum(x**2), step=1e-6)(ones, ones)
    np.testing.assert_allclose(found, 2, rtol=1e-6)


def test_a_point_at_the_origin_and_half_precision(rng):
    v = rng.normal(size=5)
    a = draws.symmetric(rng, 5)

    def quadratic(x):
        return 0.5 * x @ jnp.asarray(a, x.dtype) @ x

    found = lrj.gradient_difference(quadratic)(np.zeros(5), v)
    np.testing.assert_allclose(found, a @ v, rtol=1e-7)
    x = jnp.asarray(rng.normal(size=5), jnp.bfloat16)
    half = lrj.gradient_difference(lambda y: quadratic(y.astype(np.float32)), central=True)(
        x, jnp.asarray(v, jnp.bfloat16)
    )
    assert half.dtype == jnp.bfloat16
    assert reference.relative_error(half, a @ v) < 5e-2


def test_second_derivative_is_the_polarization_of_its_diagonal(rng):
    w, x, shift, u, v = setting(rng)

    def form(h, k):
        return lrj.second_derivative(loss, 1)(x, h, k, w, shift)

    polar = (form(u + v, u + v) - form(u - v, u - v)) / 4
    np.testing.assert_allclose(form(u, v), polar, rtol=1e-10)
    np.testing.assert_allclose(form(u, v), form(v, u), rtol=1e-12)
