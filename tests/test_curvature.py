"""Curvature at a point: from losses, gradients, host functions and products."""

import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import lowrank_jax as lrj
from tests import draws, reference
from tests.derivatives import check_derivatives

KEY = jax.random.key(1)


def trigonometric(x, w):
    """A loss with a full indefinite Hessian, dominated by a few directions."""
    return jnp.sum(jnp.sin(w @ x)) + 0.01 * jnp.sum(x**4)


def setting(rng):
    return rng.normal(size=20) / 5, rng.normal(size=(6, 20))


def test_a_quadratic_of_rank_below_the_probes_is_exact(rng):
    a, x = draws.symmetric(rng, 30, rank=5), rng.normal(size=30)

    def quadratic(x):
        return x @ a @ x / 2 + jnp.sum(x)

    exact = jax.jit(lrj.lowrank_from_product(lrj.hvp(quadratic), 4))(x, key=KEY)
    assert reference.relative_error(exact.to_dense(), a) < 1e-9  # of 200 draws at worst 8e-11
    model_at = lrj.quadratic_model_at(lambda x: (quadratic(x), x[0]), 4, has_aux=True)
    model, aux = jax.jit(model_at)(x, key=KEY)
    assert reference.relative_error(model.hessian.to_dense(), a) < 1e-6
    step = rng.normal(size=30)
    np.testing.assert_allclose(model.predict(step), quadratic(x + step), rtol=1e-6)
    assert aux == x[0]


def test_all_sources_of_gradients_give_the_same_operator(rng):
    """A loss in its own argument order, its gradient, the gradient on the host, a product."""
    x, w = setting(rng)
    start = rng.normal(size=(3, 20))
    options = {"passes": 3, "solver": partial(lrj.fit, extrapolate=0.5), "start": start}
    seen = []

    def host_gradient(x, w):
        assert isinstance(x, np.ndarray)
        seen.append(x.copy())
        grad = w.T @ np.cos(w @ x) + 0.04 * x**3
        x[:] = 0  # its own copy
        return grad

    with_aux = lrj.lowrank_hessian(
        lambda w, x: (trigonometric(x, w), w[0]), 3, argnums=1, has_aux=True, **options
    )
    by_loss, aux = jax.jit(with_aux)(w, x, key=KEY)
    by_gradient = lrj.lowrank_hessian_from_gradient(jax.grad(trigonometric), 3, **options)
    by_product = lrj.lowrank_from_product(lrj.gradient_difference(trigonometric), 3, **options)
    others = {
        "gradient": jax.jit(by_gradient)(x, w, key=KEY),
        "product": jax.jit(by_product)(x, w, key=KEY),
        "host": lrj.lowrank_hessian_from_gradient(host_gradient, 3, **options)(x, w, key=KEY),
    }
    np.testing.assert_array_equal(aux, w[0])
    for name, other in others.items():
        error = reference.relative_error(other.to_dense(), by_loss.to_dense())
        assert error < 1e-5, (name, error)
    assert len(seen) <= 10 + 10 + 4 + 4  # those that find the step among them
    assert sum(np.array_equal(point, x) for point in seen) == 1


@pytest.mark.parametrize("batch_size", [None, 1])
def test_the_gradient_at_the_point_is_taken_once_and_no_second_derivative(rng, batch_size):
    """Counted where the gradients run: behind a custom_vjp that forbids forward derivatives."""
    x, w = setting(rng)
    points = []

    def gradient(x):
        points.append(np.array(x))
        return w.T @ np.cos(w @ x) + 0.04 * x**3

    @jax.custom_vjp
    def loss(x):
        return trigonometric(x, w)

    def backward(x, g):
        out = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return (g * jax.pure_callback(gradient, out, x, vmap_method="sequential"),)

    loss.defvjp(lambda x: (loss(x), x), backward)
    hessian_at = jax.jit(lrj.lowrank_hessian(loss, 3, passes=4, batch_size=batch_size))
    h = jax.block_until_ready(hessian_at(x, key=KEY))
    assert len(points) == 13 + 10 + 4 + 4 + 4  # those that find the step among them
    assert sum(np.array_equal(point, x) for point in points) == 1
    exact = jax.hessian(trigonometric)(x, w)
    assert reference.relative_error(h.to_dense(), exact) < 0.3
    with pytest.raises((TypeError, ValueError), match=r"custom_vjp|JVP"):
        lrj.hvp(loss)(x, x)


def test_a_callback_that_cannot_be_batched_is_called_one_at_a_time(rng):
    x, w = setting(rng)

    def gradient(x):
        out = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: np.asarray(w.T @ np.cos(w @ x)), out, x)

    h = jax.jit(lrj.lowrank_hessian_from_gradient(gradient, 6))(x, key=KEY)
    exact = -w.T @ np.diag(np.sin(w @ x)) @ w
    assert reference.relative_error(h.to_dense(), exact) < 1e-5


def test_steps_along_the_eigenvectors_find_their_eigenvalues(rng):
    """A warm start: one pass along the leading eigenvectors of a pytree's Hessian."""
    a = draws.symmetric(rng, 12)
    values, vectors = np.linalg.eigh(a)
    order = np.argsort(-np.abs(values))[:3]
    x = {"u": np.zeros((2, 3)), "v": np.zeros(6)}
    unravel = ravel_pytree(x)[1]

    def quadratic(x):
        flat = ravel_pytree(x)[0]
        return flat @ a @ flat / 2

    start = jax.vmap(unravel)(vectors[:, order].T)
    options = {"passes": 1, "start": start, "return_pairs": True}
    h, pairs = jax.jit(lrj.lowrank_hessian(quadratic, 3, **options))(x, key=KEY)
    np.testing.assert_allclose(h.truncate(3).eigenvalues(), values[order], rtol=1e-6)
    taken = np.concatenate([leaf.reshape(3, -1) for leaf in jax.tree.leaves(pairs.steps)], axis=1)
    assert np.all(np.sum(taken * vectors[:, order].T, axis=1) > 0)  # ahead, not behind


def test_the_step_can_be_given(rng):
    """A cluster far from the origin, whose norm says nothing of the scale."""
    x = 1e6 + rng.normal(size=6)

    def far(x):
        return jnp.sum(jnp.sin(x - 1e6) * jnp.roll(x - 1e6, 1))

    exact, options = jax.hessian(far)(x), {"step": 1e-5, "passes": 1}
    found = {
        "loss": jax.jit(lrj.lowrank_hessian(far, 6, **options)),
        "gradient": jax.jit(lrj.lowrank_hessian_from_gradient(jax.grad(far), 6, **options)),
        "host": lrj.lowrank_hessian_from_gradient(jax.grad(far), 6, **options),
        "model": lambda x, key: (
            jax.jit(lrj.quadratic_model_at(far, 6, **options))(x, key=key).hessian
        ),
    }
    for name, at in found.items():
        assert reference.relative_error(at(x, key=KEY).to_dense(), exact) < 1e-4, name


def test_derivatives_follow_the_probes(rng):
    """In x and in what the loss depends on, in both modes, through the choice of the steps."""
    x, w = rng.normal(size=6) / 2, rng.normal(size=(4, 6))
    solver = partial(lrj.fit, extrapolate=0.5)

    def spectrum(x, w):
        at = lrj.lowrank_from_product(lrj.hvp(trigonometric), 2, solver=solver)
        h = at(x, w, key=KEY)
        return h.trace(), h.frobenius_norm()

    check_derivatives(spectrum, (x, w))


def test_gradient_differences_differentiate_to_their_own_accuracy(rng):
    x, w = rng.normal(size=6) / 2, rng.normal(size=(4, 6))

    def trace(x, w):
        return lrj.lowrank_hessian(trigonometric, 3, passes=2)(x, w, key=KEY).trace()

    def exact(x, w):
        return jnp.trace(jax.hessian(trigonometric)(x, w))

    found, expected = (jax.jit(jax.grad(f, argnums=(0, 1)))(x, w) for f in (trace, exact))
    for leaf, other in zip(found, expected, strict=True):
        assert reference.relative_error(leaf, other) < 1e-4


def test_gauss_newton_products_are_those_of_the_dense_matrix(rng):
    w = {"inner": rng.normal(size=(3, 4)), "outer": rng.normal(size=(2, 3))}
    inputs, targets = rng.normal(size=(7, 4)), rng.normal(size=(7, 2))

    def model(w, inputs):
        return jnp.tanh(inputs @ w["inner"].T) @ w["outer"].T

    def loss(outputs, targets):
        return jnp.sum(jnp.cosh(outputs) * targets)

    flat, unravel = ravel_pytree(w)
    jacobian = jax.jacobian(lambda flat: model(unravel(flat), inputs).ravel())(flat)
    outputs = model(w, inputs)
    inner = jax.hessian(lambda z: loss(z.reshape(7, 2), targets))(outputs.ravel())
    dense = jacobian.T @ inner @ jacobian
    v, product = rng.normal(size=flat.size), lrj.gauss_newton_product(model, loss)
    found = product(w, unravel(v), inputs, targets)
    np.testing.assert_allclose(ravel_pytree(found)[0], dense @ v, rtol=1e-9)
    h = jax.jit(lrj.lowrank_from_product(product, 9))(w, inputs, targets, key=KEY)
    assert reference.relative_error(h.to_dense(), dense) < 1e-9


BAD = {
    "an infinite value": lambda x, **k: lrj.lowrank_hessian(lambda x: jnp.sum(x**2) + jnp.inf, 2)(
        x, **k
    ),
    "a gradient that is not a number": lambda x, **k: lrj.lowrank_hessian_from_gradient(
        lambda x: jnp.full_like(x, jnp.nan), 2
    )(x, **k),
    "one in one program": lambda x, **k: jax.jit(
        lrj.lowrank_hessian_from_gradient(lambda x: jnp.full_like(x, jnp.inf), 2)
    )(x, **k),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_finite_at_the_point_makes_the_operator_nan(case):
    h = BAD[case](jnp.ones(6), key=KEY)
    assert jnp.all(jnp.isnan(h.core))


def test_a_traced_step_that_is_no_length_gives_nan():
    at = jax.jit(lambda h: lrj.lowrank_hessian(jnp.sum, 1, step=h)(jnp.ones(3), key=KEY).core)
    assert np.isfinite(at(1e-4)).all()
    for bad in (0.0, -1e-4, np.inf):
        assert np.isnan(at(bad)).all()


def test_the_host_shows_its_progress(capsys):
    at = lrj.lowrank_hessian_from_gradient(lambda x: 3 * x, 2, passes=3, progress=True)
    at(np.ones(4), key=KEY)
    shown = re.findall(r"(\d+)/(\d+)", capsys.readouterr().err)[-1]
    assert shown[0] == shown[1]
    at = lrj.lowrank_hessian_from_gradient(lambda x: 3 * x, 2, passes=3, step=0.1, progress=True)
    at(np.ones(4), key=KEY)
    assert "7/7" in capsys.readouterr().err
    assert "tqdm" in sys.modules
