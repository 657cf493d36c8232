"""`lowrank_jacobian` against dense Jacobians and the best approximations of its rank."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import lowrank_jax as lrj
from benchmarks import problems
from tests import draws, reference
from tests.test_lowering import equations

P, M = 20, 24


def jacobian_of(a, probes, key=0):
    """That of x -> A x, dense."""
    return linear_jacobian(jnp.asarray(a), probes, jax.random.key(key))


@partial(jax.jit, static_argnums=1)
def linear_jacobian(a, probes, key):
    def f(x):
        return jnp.matmul(a, x, precision="highest")

    return lrj.lowrank_jacobian(f, probes)(jnp.zeros(a.shape[1], a.dtype), key=key)


def of_spectrum(rng, s):
    u, v = (np.linalg.qr(rng.normal(size=(n, len(s))))[0] for n in (P, M))
    return u * s @ v.T


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("probes", [1, 4, 40])
def test_rank_at_most_the_probes_is_exact(rng, probes, dtype):
    """Also with equal singular values, of any magnitude, and with more probes than dimensions."""
    rank = min(probes, P)
    for s in (np.ones(rank), 1e-18 * np.geomspace(1, 1e-3, rank)):
        a = of_spectrum(rng, s)
        found = jacobian_of(a.astype(dtype), probes)
        assert found.dtype == dtype
        assert reference.relative_error(found.to_dense(), a) < 30 * np.finfo(dtype).eps


SPECTRA = {
    "geometric, fast": 0.1 ** np.arange(P),
    "geometric, slow": 0.8 ** np.arange(P),
    "1 / i": 1 / np.arange(1.0, P + 1),
    "1 / i^2": 1 / np.arange(1.0, P + 1) ** 2,
}


@pytest.mark.parametrize("probes", [1, 3, 6])
def test_the_error_is_near_the_best_of_as_many_directions_for_every_key(rng, probes):
    errors = jax.jit(
        jax.vmap(
            lambda a, key: jnp.linalg.norm(linear_jacobian(a, probes, key).to_dense() - a),
            (None, 0),
        )
    )
    keys = jax.random.split(jax.random.key(probes), 100)
    for name, s in SPECTRA.items():
        ratios = np.asarray(errors(of_spectrum(rng, s), keys)) / np.linalg.norm(s[probes:])
        assert np.max(ratios) < 3, name
        assert np.median(ratios) < 1.1, name


def test_no_more_products_are_taken_than_promised():
    """The vectors that meet the matrix of x -> A x in the jaxpr, one of them for f(x) itself."""
    a = jax.ShapeDtypeStruct((30, 31), np.float32)
    for probes in (1, 2, 6, 40):
        jaxpr = jax.make_jaxpr(
            lambda a, x, k, n=probes: lrj.lowrank_jacobian(lambda x: a @ x, n)(x, key=k)
        )(a, jnp.zeros(31, np.float32), jax.random.key(0))
        vectors = {30: 0, 31: 0}
        for equation in equations(jaxpr.jaxpr):
            shapes = [v.aval.shape for v in equation.invars]
            if equation.primitive.name == "dot_general" and (30, 31) in shapes:
                (other,) = [shape for shape in shapes if shape != (30, 31)]
                length = 31 if 31 in other else 30
                vectors[length] += np.prod(other) // length
        half = (3 * probes + 5) // 2
        expected = {31: 1 + half, 30: half} if half < 30 else {31: 1, 30: 30}
        assert vectors == expected


def test_the_jacobian_of_a_gradient_is_the_hessian(rng):
    h = draws.symmetric(rng, 12, rank=4)

    def gradient(x):
        return {"g": jax.grad(lambda x: x["a"] @ h @ x["a"] / 2)(x)["a"]}

    found = jax.jit(lrj.lowrank_jacobian(gradient, 4))({"a": jnp.ones(12)}, key=jax.random.key(1))
    np.testing.assert_allclose(found.to_dense(), h, atol=1e-12)


def tangled(x, c):
    """A tree of mixed dtypes to another, of rank 3 in 5 numbers."""
    inner = jnp.stack([jnp.sum(x["a"]).astype(c.dtype), x["b"][0, 0] * c, x["b"][1, 0] ** 2])
    return [jnp.sin(inner).astype(jnp.float32), {"c": jnp.outer(inner, inner)[:2]}]


def test_any_trees_and_further_arguments(rng):
    x = {
        "a": jnp.asarray(rng.normal(size=4), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(2, 1))),
    }
    c = jnp.asarray(rng.normal())
    found = jax.jit(lrj.lowrank_jacobian(tangled, 3))(x, c, key=jax.random.key(0))
    with jax.numpy_dtype_promotion("standard"):
        flat, unravel = ravel_pytree(x)
        truth = jax.jacobian(lambda v: ravel_pytree(tangled(unravel(v), c))[0])(flat)
    assert found.shape == truth.shape == (9, 6)
    assert [leaf.dtype for leaf in jax.tree.leaves(found.left)] == [jnp.float32, jnp.float64]
    assert reference.relative_error(found.to_dense(), truth) < 1e-6


def test_bfloat16_comes_back_as_it_was(rng):
    a = jnp.asarray(of_spectrum(rng, np.ones(2)), jnp.bfloat16)
    found = jacobian_of(a, 2)
    assert found.dtype == jnp.bfloat16
    assert found.core.dtype == jnp.float32
    assert reference.relative_error(found.to_dense(), a) < 0.03


def test_a_jacobian_of_constant_rank_differentiates(rng):
    left, right, turn = rng.normal(size=(6, 2)), rng.normal(size=(2, 7)), rng.normal(size=(7, 7))

    def f(x):
        return left @ jnp.tanh(right @ (x + (turn @ x) ** 2))

    def dense(x):
        return lrj.lowrank_jacobian(f, 2)(x, key=jax.random.key(0)).to_dense()

    x, direction = rng.normal(size=(2, 7)) / 5
    tangent = jax.jit(lambda x, d: jax.jvp(dense, (x,), (d,))[1])(x, direction)
    truth = jax.jvp(jax.jacobian(f), (x,), (direction,))[1]
    np.testing.assert_allclose(tangent, truth, atol=1e-9)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(truth * dense(x))))(x)
    np.testing.assert_allclose(
        gradient, jax.grad(lambda x: jnp.sum(truth * jax.jacobian(f)(x)))(x), atol=1e-8
    )


@pytest.mark.parametrize("outputs", [2, 3, 4])
def test_the_whole_jacobian_differentiates_also_where_its_rank_changes(rng, outputs):
    a = rng.normal(size=(outputs, 3))

    def dense(x):
        f = lrj.lowrank_jacobian(lambda x: {"p": a[0] @ x**2, "q": a[1:] @ x**2}, 3)
        return f(x, key=jax.random.key(0)).to_dense()

    x = np.array([1.0, 0, 0])
    np.testing.assert_allclose(dense(x), 2 * a * x, atol=1e-14)
    slope = jax.jit(jax.jacobian(dense))(x)
    np.testing.assert_allclose(slope, 2 * a[:, :, None] * np.eye(3), atol=1e-14)


def test_the_logits_of_the_digits_network(rng):
    """As a function of the pixels, and of the parameters for three images."""
    params, image = problems.trained_mlp(20), problems.digits()[0][:3]

    def check(f, x, probes):
        flat, unravel = ravel_pytree(x)
        truth = np.asarray(jax.jit(jax.jacobian(lambda v: f(unravel(v))))(flat), float)
        s = np.linalg.svd(truth, compute_uv=False)
        found = jax.jit(lambda key: lrj.lowrank_jacobian(f, probes)(x, key=key))(jax.random.key(0))
        error = np.linalg.norm(np.asarray(found.to_dense(), float) - truth)
        assert error < 1.3 * np.linalg.norm(s[probes:]) + 1e-5 * s[0]

    check(lambda x: problems.logits(params, x), image[0], 3)
    check(lambda p: problems.logits(p, image).ravel(), params, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_derivatives_that_are_not_finite_give_nan(rng, bad):
    a = of_spectrum(rng, np.ones(3))
    a[2, 5] = bad
    assert np.isnan(jacobian_of(a, 3).right).all()


def test_a_function_of_nothing_or_of_zero_slope_has_the_zero_jacobian():
    key = jax.random.key(0)
    for f, x in ((lambda x: 0 * x, jnp.ones(3)), (lambda x: jnp.sum(x)[None], jnp.zeros(0))):
        found = jax.jit(lrj.lowrank_jacobian(f, 2))(x, key=key)
        np.testing.assert_array_equal(found.to_dense(), 0)
