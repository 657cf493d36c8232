"""`secant_hessian` end to end: arguments, transformations, batches."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from tests import draws, reference


def loss(w, x):
    return jnp.sum(jnp.tanh(w @ x) ** 2)


def test_a_cloud_gives_the_fit_of_its_gradients(rng):
    w, points = rng.normal(size=(3, 6)), rng.normal(size=(5, 6))
    grads = jax.vmap(jax.grad(loss, argnums=1), in_axes=(None, 0))(w, points)
    for extrapolate in (0, 0.5, 1.0):
        solver = partial(lrj.fit, extrapolate=extrapolate)
        for pairing in (lrj.centered, lrj.successive):
            expected = solver(pairing(points, grads)).to_dense()
            for batch_size in (None, 2):
                found = lrj.secant_hessian(
                    loss, 1, pairing=pairing, solver=solver, batch_size=batch_size
                )(w, points)
                assert reference.relative_error(found.to_dense(), expected) < 1e-8


KEY = jax.random.key(0)
PRODUCT = lrj.hvp(lambda x, w: loss(w, x))
BY_PAIRS = {
    "secant_hessian": (
        lambda w, x, **options: lrj.secant_hessian(loss, 1, **options)(w, x),
        lambda w, x: lrj.secant_pairs(loss, 1)(w, x),
    ),
    "lowrank_from_product": (
        lambda w, x, **options: lrj.lowrank_from_product(PRODUCT, 2, **options)(x[0], w, key=KEY),
        lambda w, x: lrj.probe_pairs(PRODUCT, 2)(x[0], w, key=KEY),
    ),
}


@pytest.mark.parametrize("name", BY_PAIRS)
def test_a_solver_is_given_the_pairs(rng, name):
    operator, pairs = BY_PAIRS[name]
    w, x = rng.normal(size=(3, 6)), rng.normal(size=(4, 6))
    found = operator(w, x, solver=partial(lrj.fit, extrapolate=0))
    expected = lrj.fit(pairs(w, x), extrapolate=0)
    assert reference.relative_error(found.to_dense(), expected.to_dense()) < 1e-12


def test_aux_is_stacked_and_argnums_may_be_a_tuple(rng):
    w, x = rng.normal(size=(5, 3, 6)), rng.normal(size=(5, 6))
    h, aux = lrj.secant_hessian(lambda w, x: (loss(w, x), x), (1, 0), has_aux=True)(w, x)
    np.testing.assert_array_equal(aux, x)
    direction = (x[0], w[0])
    assert jax.tree.structure(h @ direction) == jax.tree.structure(direction)
    assert h.shape == (24, 24)


def test_pytrees_of_points_give_the_operator_of_the_raveled_problem(rng):
    points, w = rng.normal(size=(5, 6)), rng.normal(size=(3, 6))

    def of_tree(tree):
        return loss(w, jnp.concatenate([tree["a"].ravel(), tree["b"]]))

    def of_vector(x):
        return of_tree({"a": x[:4].reshape(2, 2), "b": x[4:]})

    tree = {"a": points[:, :4].reshape(5, 2, 2), "b": points[:, 4:]}
    h = lrj.secant_hessian(of_tree)(tree)
    expected = lrj.secant_hessian(of_vector)(points).to_dense()
    assert reference.relative_error(h.to_dense(), expected) < 1e-10


def test_clouds_under_vmap_are_fitted_each_and_compiled_once(rng):
    def counted(x):
        return jnp.sum(jnp.cos(x) * jnp.roll(x, 1))

    clouds = rng.normal(size=(4096, 9, 64)).astype(np.float32)
    once = chex.assert_max_traces(lambda x: jax.vmap(lrj.secant_hessian(counted))(x), n=1)
    hessians = jax.jit(once)
    batch = hessians(clouds)
    hessians(clouds + 1)
    assert np.isfinite(batch.core).all()
    for i in (0, 4095):
        one = lrj.secant_hessian(counted)(clouds[i])
        assert reference.relative_error(batch.core[i], one.core) < 1e-4


def test_it_composes_with_scan_and_grad(rng):
    """A curvature penalty in a training loop: differentiate through the fit, step, repeat."""
    points, w = rng.normal(size=(5, 6)), rng.normal(size=(3, 6))

    def penalty(w):
        solver = partial(lrj.fit, extrapolate=0)
        return lrj.secant_hessian(loss, 1, solver=solver)(w, points).frobenius_norm() ** 2

    def step(w, _):
        value, slope = jax.value_and_grad(penalty)(w)
        return w - 1e-3 * slope, value

    _, values = jax.jit(lambda w: jax.lax.scan(step, w, length=20))(w)
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize("extrapolate", [0, 2 / 3, 1])
def test_rotated_coordinates_rotate_the_hessian(rng, extrapolate):
    points = rng.normal(size=(5, 6))
    q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    a, solver = draws.symmetric(rng, 6), partial(lrj.fit, extrapolate=extrapolate)

    def f(x):
        return jnp.sum(jnp.sin(a @ x))

    h = lrj.secant_hessian(f, solver=solver)(points).to_dense()
    rotated = lrj.secant_hessian(lambda x: f(q @ x), solver=solver)(points @ q)
    assert reference.relative_error(rotated.to_dense(), q.T @ h @ q) < 1e-8
