"""The quadratic model and its steps against the dense model."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import lowrank_jax as lrj
from tests import draws, reference
from tests.derivatives import check_derivatives

DIM, N = 8, 4
V = np.linspace(-1, 1, DIM)


def bowl(a, b):
    """A quadratic with Hessian a and gradient b at 0, and its value there 3."""
    return lambda x: 3 + b @ x + x @ a @ x / 2


@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_model_of_a_quadratic_is_exact_on_its_cloud(rng, batch_size):
    a, b = draws.symmetric(rng, DIM), rng.normal(size=DIM)
    loss = bowl(a, b)
    points = 5 + rng.normal(size=(N, DIM))
    build = jax.jit(lrj.quadratic_model(loss, batch_size=batch_size))
    model = build(points)
    center = points.mean(axis=0)
    np.testing.assert_allclose(model.center, center, rtol=1e-14)
    np.testing.assert_allclose(model.value, loss(center), rtol=1e-12)
    np.testing.assert_allclose(model.grad, b + a @ center, rtol=1e-12, atol=1e-12)
    for x in points:
        np.testing.assert_allclose(model.predict(x - center), loss(x), rtol=1e-12)
        change = model.predicted_change(x - center)
        np.testing.assert_allclose(change, loss(x) - loss(center), rtol=1e-10)


def test_argnums_auxiliary_output_and_pytrees_are_those_of_the_loss(rng):
    a, b = draws.symmetric(rng, DIM), rng.normal(size=DIM)

    def loss(shift, x):
        flat = jnp.concatenate([x["u"], x["w"].ravel()])
        return bowl(a, b)(flat - shift), flat[0]

    rows = rng.normal(size=(DIM + 3, DIM))
    points = {"u": rows[:, :2], "w": rows[:, 2:].reshape(-1, 2, 3)}
    model, aux = lrj.quadratic_model(loss, 1, has_aux=True)(0.5, points)
    np.testing.assert_array_equal(aux, rows[:, 0])
    raveled = lrj.quadratic_model(bowl(a, b))(rows - 0.5)
    np.testing.assert_allclose(model.value, raveled.value, rtol=1e-10)
    np.testing.assert_allclose(ravel_pytree(model.center)[0], rows.mean(axis=0), atol=1e-12)
    step = ravel_pytree(model.newton_step(10.0))[0]
    np.testing.assert_allclose(step, raveled.newton_step(10.0), atol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "offset", "spread"),
    [(jnp.float32, 1e3, 0.1), (jnp.float32, 1e5, 0.01), (jnp.bfloat16, 100, 1)],
)
def test_the_model_of_a_cloud_far_away_is_that_at_its_mean(rng, dtype, offset, spread):
    """Also where the steps of the fit are lost in the rounding of the points."""
    points = jnp.asarray(offset + spread * rng.normal(size=(5, DIM)), dtype)
    exact = np.asarray(points, float)

    def loss(x):
        return jnp.sum((x - offset) ** 2) / 2

    model = lrj.quadratic_model(loss)(points)
    center = exact.mean(axis=0)
    assert model.center.dtype == dtype
    resolution = float(jnp.finfo(dtype).eps) * offset
    np.testing.assert_allclose(np.asarray(model.center, float), center, atol=resolution)
    truth = np.sum((center - offset) ** 2) / 2
    tolerance = 1e-2 if dtype == jnp.bfloat16 else 1e-3
    np.testing.assert_allclose(model.value, truth, rtol=tolerance)
    assert model.predict(0 * model.center) == model.value


@pytest.mark.parametrize("size", [1e-20, 1e-12, 1e12, 1e20])
def test_float32_models_of_any_magnitude(size):
    g = np.array([1, 2, 2], np.float32)
    for g_size, h_size in ((size, size), (size, 1), (1, size)):
        h = lrj.SymmetricLowRank(np.eye(3, dtype=np.float32), h_size * np.eye(3, dtype=np.float32))
        model = lrj.QuadraticModel(np.zeros(3, np.float32), np.float32(0), g * g_size, h)
        exact = -g * (g_size / h_size)
        np.testing.assert_allclose(model.cauchy_step(), exact, rtol=1e-5)
        for share in (1e-9, 0.5):
            radius = np.float32(3 * share * g_size / h_size)
            step = model.trust_region_step(radius)
            np.testing.assert_allclose(step, exact * share, rtol=1e-5)
        slope = jax.jvp(model.trust_region_step, (radius,), (np.float32(1),))[1]
        np.testing.assert_allclose(slope, -g / 3, rtol=1e-5)
        free, slope = jax.jvp(model.trust_region_step, (np.float32(np.inf),), (np.float32(1),))
        np.testing.assert_allclose(free, exact, rtol=1e-5)
        np.testing.assert_array_equal(slope, 0)


def test_newton_and_cauchy_steps_are_those_of_the_dense_model(rng):
    a = draws.symmetric(rng, DIM)
    a = a @ a
    g = rng.normal(size=DIM)
    values, vectors = np.linalg.eigh(a)
    model = lrj.QuadraticModel(
        V, jnp.zeros(()), g, lrj.SymmetricLowRank(vectors.T, np.diag(values))
    )
    newton = np.linalg.solve(a + 0.3 * np.eye(DIM), -g)
    np.testing.assert_allclose(model.newton_step(0.3), newton, rtol=1e-10)
    np.testing.assert_allclose(model.cauchy_step(), -(g @ g) / (g @ a @ g) * g, rtol=1e-12)
    downhill = lrj.QuadraticModel(V, jnp.zeros(()), g, -model.hessian)
    assert np.isnan(downhill.cauchy_step()).all()
    flat = lrj.QuadraticModel(V, jnp.zeros(()), 0 * g, -model.hessian)
    np.testing.assert_array_equal(flat.cauchy_step(), 0)


def test_a_gradient_step_departs_from_first_order_by_the_sign_of_curvature():
    """Along a step -t g the loss falls by t |g|^2, less or more by t^2 <g, H g> / 2."""
    g, t = np.array([0.0, 3.0]), 0.1
    for curvature in (-2.0, 0.0, 2.0):
        loss = bowl(np.diag([1.0, curvature]), g)
        model = lrj.quadratic_model(loss)(np.array([[1.0, 0], [-1.0, 0], [0, 1.0], [0, -1.0]]))
        real = loss(-t * g) - loss(0 * g)
        np.testing.assert_allclose(model.predicted_change(-t * g), real, rtol=1e-12)
        np.testing.assert_allclose(real + t * g @ g, t**2 * curvature * 9 / 2, atol=1e-13)


KINDS = ("interior", "boundary", "negative", "zero gradient", "hard", "repeated hard", "in range")


def trust_region_case(rng, kind, k):
    """Eigenvalues, those of k factors at most, the gradient in the eigenbasis, the radius."""
    values = np.zeros(DIM)
    values[:k] = rng.uniform(0.5, 3, size=k) * rng.choice([-1, 1], size=k)
    c, radius = rng.normal(size=DIM), rng.uniform(0.1, 3)
    if kind in ("interior", "in range"):
        values = np.abs(values)
    if kind == "interior" and k == DIM:
        radius = 20.0
    if kind == "in range":
        c[values == 0], radius = 0, rng.uniform(0.1, 10)
    if kind == "negative":
        values = -np.abs(values)
    if kind == "zero gradient":
        c = 0 * c
    if kind == "repeated hard":
        values[1] = values.min()
    if "hard" in kind:
        c[values == values.min()], radius = 0, rng.uniform(0.1, 20)
    return values, c, radius


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_trust_region_step_satisfies_the_conditions_of_more_and_sorensen(rng, dtype):
    tolerance = {np.float32: 1e-5, np.float64: 1e-9}[dtype]
    step_of = jax.jit(lambda m, radius: m.trust_region_step(radius))
    on_boundary = []
    for i in range(504):
        kind, k = KINDS[i % 7], (2, 4, DIM)[i // 7 % 3]
        values, c, radius = trust_region_case(rng, kind, k)
        size = 10 ** rng.uniform(-6, 6)
        basis = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0].T
        turn = np.linalg.qr(rng.normal(size=(k, k)))[0]
        core = turn @ np.diag(values[:k] * size) @ turn.T
        hessian = lrj.SymmetricLowRank((turn @ basis[:k]).astype(dtype), core.astype(dtype))
        h, g, radius = (basis.T * values * size) @ basis, c @ basis, radius / size
        model = lrj.QuadraticModel(np.zeros(DIM, dtype), dtype(0), g.astype(dtype), hessian)
        s = np.asarray(step_of(model, dtype(radius)), float)

        length, norm = np.linalg.norm(s), np.abs(values).max() * size
        assert length <= radius * (1 + tolerance), kind
        inside = length < radius * (1 - tolerance)
        mu = 0 if inside else max(0, -(h @ s + g) @ s / (s @ s))
        residual = np.linalg.norm(h @ s + mu * s + g)
        assert residual <= tolerance * (np.linalg.norm(g) + (norm + mu) * length), kind
        assert values.min() * size + mu >= -tolerance * (norm + mu), kind
        on_boundary.append(not inside)
    assert 0.6 < np.mean(on_boundary) < 0.95


def test_a_traced_radius_that_is_not_positive_gives_nan(rng):
    model = lrj.quadratic_model(bowl(np.eye(DIM), V))(rng.normal(size=(N, DIM)))
    step = jax.jit(model.trust_region_step)
    for radius in (0.0, -1.0, np.nan):
        assert np.isnan(step(radius)).all()


def test_numbers_that_are_not_finite_give_steps_that_are_not(rng):
    model = lrj.quadratic_model(bowl(np.eye(DIM), V))(rng.normal(size=(N, DIM)))
    broken = lrj.QuadraticModel(model.center, model.value, model.grad, jnp.nan * model.hessian)
    for step in (broken.newton_step(1.0), broken.cauchy_step(), broken.trust_region_step(1.0)):
        assert np.isnan(step).all()


def generic(rng):
    return rng.normal(size=(N, DIM)), rng.normal(size=(N, DIM)), 2 / 3


def identity(rng):
    s = rng.normal(size=(N, DIM))
    return s, s.copy(), 0


def exact_low_rank(rng):
    s = rng.normal(size=(N, DIM))
    return s, s @ draws.symmetric(rng, DIM, 2), 0


@cache
def steps(extrapolate):
    def of_pairs(s, y, g, damping, radius):
        h = lrj.fit(lrj.SecantPairs(s, y), extrapolate=extrapolate)
        model = lrj.QuadraticModel(jnp.zeros(DIM), jnp.sum(g), g, h)
        step = model.trust_region_step(radius)
        return step, model.newton_step(damping), model.predict(V), model.predict(step)

    return of_pairs


@pytest.mark.parametrize("draw", [generic, identity, exact_low_rank])
def test_derivatives_of_the_model_and_its_steps(rng, draw):
    s, y, extrapolate = draw(rng)
    args = s, y, rng.normal(size=DIM), np.float64(9.0), np.float64(0.3)
    check_derivatives(steps(extrapolate), args)


def test_derivatives_of_an_interior_step_and_second_ones_of_one_on_the_boundary(rng):
    basis = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]

    def step(radius):
        def of_model(values, g):
            h = lrj.SymmetricLowRank(basis, jnp.diag(values))
            return lrj.QuadraticModel(jnp.zeros(DIM), 0.0, g, h).trust_region_step(radius)

        return of_model

    args = np.linspace(1, 3, DIM), rng.normal(size=DIM)
    check_derivatives(step(10.0), args)
    check_derivatives(step(0.2), args, order=2)


def test_derivatives_of_the_model_of_a_cloud(rng):
    points, w = rng.normal(size=(N, DIM)), rng.normal(size=(3, DIM))

    def loss(x, w):
        return jnp.sum(jnp.tanh(w @ x) ** 2) + jnp.sum(x**4) / 9

    def outputs(points, w):
        model = lrj.quadratic_model(loss)(points, w)
        return model.center, model.value, model.grad, model.predict(V)

    check_derivatives(outputs, (points, w))


STEPS = {
    "trust_region_step": lambda model: model.trust_region_step(0.4),
    "newton_step": lambda model: model.newton_step(5.0),
    "predict": lambda model: model.predict(V),
}


@pytest.mark.parametrize("name", STEPS)  # one to a program: two can deadlock JAX 0.10
def test_models_under_vmap_are_those_of_each(rng, name):
    clouds = rng.normal(size=(3, N, DIM))
    a = draws.symmetric(rng, DIM)

    def step(points):
        return STEPS[name](lrj.quadratic_model(bowl(a, V))(points))

    batch = jax.jit(jax.vmap(step))(clouds)
    for i in range(3):
        assert reference.relative_error(batch[i], step(clouds[i])) < 1e-9
