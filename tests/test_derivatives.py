"""Derivatives of the fit against finite differences, where the function is differentiable."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from tests import draws
from tests.derivatives import check_derivatives

DIM, N = 12, 4
V = np.linspace(-1, 1, DIM)


def results(extrapolate, s, y):
    h = lrj.fit(lrj.SecantPairs(s, y), extrapolate=extrapolate)
    return h @ V, h.trace(), h.frobenius_norm(), h.bilinear(V, V**2)


@cache
def results_at(extrapolate):
    """One function for all steps: its derivatives are compiled once a shape."""
    return partial(results, extrapolate)


def generic(rng):
    s = rng.normal(size=(N, DIM))
    return s, s @ draws.symmetric(rng, DIM)


def identity(rng):
    s = rng.normal(size=(N, DIM))
    return s, s.copy()


def tied(_):
    """M has one eigenvalue alone, 2, and H is no multiple of the identity."""
    s = np.eye(DIM)[[1, 4, 7, 10]]
    return s, s @ draws.chain_laplacian(DIM)


def exact_low_rank(rng):
    s = rng.normal(size=(N, DIM))
    return s, s @ draws.symmetric(rng, DIM, 2)


def inconsistent(rng):
    return rng.normal(size=(N, DIM)), rng.normal(size=(N, DIM))


def more_than_dim(rng):
    return rng.normal(size=(DIM + 3, DIM)), rng.normal(size=(DIM + 3, DIM))


def orthonormal(rng):
    s = np.linalg.qr(rng.normal(size=(DIM, N)))[0].T
    return s, s @ draws.symmetric(rng, DIM)


def unit_vectors(rng):
    s = np.eye(DIM)[[1, 3, 4, 8]]
    return s, s @ draws.symmetric(rng, DIM)


@pytest.mark.parametrize(
    ("draw", "extrapolate", "order"),
    [
        (generic, 2 / 3, 2),
        (generic, 1, 1),
        (tied, 0, 2),
        (tied, 2 / 3, 2),
        (tied, 1, 1),
        (inconsistent, 0, 1),
        (inconsistent, 2 / 3, 2),
        (inconsistent, 1, 2),
        (orthonormal, 2 / 3, 2),
        (unit_vectors, 2 / 3, 2),
        (identity, 0, 2),
        (identity, 1, 2),
        (exact_low_rank, 0, 2),
        (more_than_dim, 0, 1),
        (more_than_dim, 2 / 3, 1),
    ],
)
def test_derivatives_of_the_fit(rng, draw, extrapolate, order):
    s, y = draw(rng)
    check_derivatives(results_at(extrapolate), (s, y), order=order, eps=1e-6, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("extrapolate", [0, 2 / 3])
def test_derivatives_with_a_duplicated_point(rng, extrapolate):
    """Along changes that keep the rank: both copies move together, their gradients freely."""
    s, y = rng.normal(size=(N, DIM)), rng.normal(size=(N + 1, DIM))

    def of_distinct(s, y):
        return results(extrapolate, jnp.concatenate([s, s[1:2]]), y)

    check_derivatives(of_distinct, (s, y), eps=1e-6)


@pytest.mark.parametrize("extrapolate", [0, 2 / 3])
@pytest.mark.parametrize("consistent", [True, False])
def test_derivatives_along_dependent_steps(rng, consistent, extrapolate):
    """One step is a combination of three others, all of them ill-conditioned."""

    def of_combination(s, c, y):
        rows = jnp.concatenate([s, (c @ s[:3])[None]])
        return results(extrapolate, rows, rows @ y if consistent else y)

    for _ in range(3):
        s = draws.steps_of_condition(rng, N, DIM, 30.0, "geometric")
        y = draws.symmetric(rng, DIM) if consistent else rng.normal(size=(N + 1, DIM))
        args = s, rng.normal(size=3), y
        check_derivatives(of_combination, args, eps=1e-6)


def loss(x, w):
    return jnp.sum(jnp.tanh(w @ x) ** 2) + 0.5 * jnp.sum(w[0] * x**2)


@pytest.mark.parametrize(
    ("pairing", "extrapolate", "n"),
    [
        (lrj.centered, 2 / 3, N),
        (lrj.centered, 2 / 3, DIM + 3),
        (lrj.from_first, 2 / 3, N),
        (lrj.successive, 0, DIM + 3),
    ],
)
def test_derivatives_through_points_and_parameters(rng, pairing, extrapolate, n):
    points, w = rng.normal(size=(n, DIM)), rng.normal(size=(3, DIM))

    def of_points(points, w):
        solver = partial(lrj.fit, extrapolate=extrapolate)
        h = lrj.secant_hessian(loss, pairing=pairing, solver=solver)(points, w)
        return h @ V, h.trace()

    check_derivatives(of_points, (points, w), eps=1e-6)


def scalar(s, y):
    return sum(jnp.sum(jnp.sin(x)) for x in results(2 / 3, s, y))


def total(s, y):
    return jnp.sum(jax.vmap(scalar)(s, y))


def second(s, y):
    """Along S itself, of the gradient in Y: half of the Hessian's blocks take part."""
    return jax.jvp(jax.grad(scalar, argnums=1), (s, y), (s, y))[1]


@pytest.mark.parametrize(
    ("of_batch", "of_one"),
    [
        (jax.vmap(jax.grad(scalar, argnums=(0, 1))), jax.grad(scalar, argnums=(0, 1))),
        (jax.grad(total, argnums=(0, 1)), jax.grad(scalar, argnums=(0, 1))),
        (jax.vmap(second), second),
        (lambda s, y: jax.jvp(jax.grad(total, argnums=1), (s, y), (s, y))[1], second),
    ],
    ids=["vmap of grad", "grad of vmap", "vmap of second", "second of vmap"],
)
def test_derivatives_of_a_batch_are_those_of_its_members(rng, of_batch, of_one):
    s, y = rng.normal(size=(2, 3, N, DIM))
    found, of_one = jax.jit(of_batch)(s, y), jax.jit(of_one)
    for i in range(3):
        ours = jax.tree.map(lambda leaf, i=i: leaf[i], found)
        chex.assert_trees_all_close(ours, of_one(s[i], y[i]), rtol=1e-9, atol=1e-9)
