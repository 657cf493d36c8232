"""Saddle steps against dense eigendecompositions, and searches for transition states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import lowrank_jax as lrj
from tests.compilations import counted
from tests.derivatives import check_derivatives

DIM = 6


def model_of(values, vectors, g):
    h = lrj.SymmetricLowRank(jnp.asarray(vectors.T), jnp.diag(jnp.asarray(values)))
    return lrj.QuadraticModel(jnp.zeros(len(g)), jnp.zeros(()), jnp.asarray(g), h)


def image_step(values, vectors, g, radius):
    """Up along the first eigenvector and down along the others, by bisection of the shift."""
    flipped, c = values * np.where(np.arange(len(values)) == 0, -1, 1), vectors.T @ g
    c = c * np.where(np.arange(len(values)) == 0, -1, 1)

    def coordinates(shift):
        return -c / (flipped + shift)

    low, high = max(-flipped.min(), 0), np.linalg.norm(c) / radius + np.abs(values).max() + 1
    if flipped.min() > 0 and np.linalg.norm(coordinates(0)) <= radius:
        return vectors @ coordinates(0)
    for _ in range(200):
        middle = (low + high) / 2
        longer = np.linalg.norm(coordinates(middle)) > radius
        low, high = (middle, high) if longer else (low, middle)
    return vectors @ coordinates(high)


@pytest.mark.parametrize("negative", [0, 1, 2, DIM])
@pytest.mark.parametrize("radius", [0.1, 100.0])
def test_a_saddle_step_minimises_the_image_of_the_model(rng, negative, radius):
    values = np.sort(np.where(np.arange(DIM) < negative, -1, 1) * rng.uniform(1, 3, size=DIM))
    vectors, g = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0], rng.normal(size=DIM)
    step = model_of(values, vectors, g).saddle_step(radius)
    np.testing.assert_allclose(step, image_step(values, vectors, g, radius), rtol=1e-8, atol=1e-10)
    if negative == 1 and radius > 1:
        np.testing.assert_allclose(step, -vectors / values @ vectors.T @ g, rtol=1e-9)


@pytest.mark.parametrize(("known", "shift", "lowest"), [(-2.0, 0.5, 0), (2.0, -3.0, 2)])
def test_outside_the_factors_the_lowest_direction_is_that_of_the_gradient(
    rng, known, shift, lowest
):
    vectors = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    g = rng.normal(size=DIM)
    known = np.array([known, 4.0])
    low_rank = model_of(known, vectors[:, :2], g).hessian
    model = lrj.QuadraticModel(g, jnp.zeros(()), g, low_rank.plus_diagonal(shift))
    outside = g - vectors[:, :2] @ vectors[:, :2].T @ g
    basis = np.column_stack([vectors[:, :2], outside / np.linalg.norm(outside)])
    values = np.append(known, 0.0) + shift
    order = np.argsort(values)
    assert order[0] == lowest
    expected = image_step(values[order], basis[:, order], g, 0.2)
    np.testing.assert_allclose(model.saddle_step(0.2), expected, rtol=1e-8, atol=1e-10)


def test_derivatives_of_a_saddle_step_are_slopes(rng):
    vectors = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    core = vectors @ np.diag([-2.0, 1.0, 2.0, 3.0, 4.0, 5.0]) @ vectors.T

    def step(core, g, radius):
        h = lrj.SymmetricLowRank(jnp.eye(DIM), core + core.T)
        return lrj.QuadraticModel(jnp.zeros(DIM), jnp.zeros(()), g, h).saddle_step(radius)

    check_derivatives(step, (core / 2, rng.normal(size=DIM), np.array(0.3)))


# Searches. All begin with one Hessian at the start and take one gradient a step.


def mueller_brown(v):
    """Three minima, two saddles between them."""
    height = jnp.array([-200.0, -100.0, -170.0, 15.0])
    a, b = jnp.array([-1.0, -1.0, -6.5, 0.7]), jnp.array([0.0, 0.0, 11.0, 0.6])
    c = jnp.array([-10.0, -10.0, -6.5, 0.7])
    dx, dy = v[0] - jnp.array([1.0, 0.0, -0.5, -1.0]), v[1] - jnp.array([0.0, 0.5, 1.5, 1.0])
    return jnp.sum(height * jnp.exp(a * dx**2 + b * dx * dy + c * dy**2))


SADDLES = np.array([[-0.8220015587, 0.6243128028], [0.2124865820, 0.2929883251]])
MINIMA = np.array([[0.623499405, 0.028037759], [-0.050010823, 0.466694105]])  # two of them


def cluster_energy(atoms):
    """Lennard-Jones energy of atoms (n, 3), unit depth and diameter."""
    gaps = atoms[:, None] - atoms[None]
    squares = jnp.sum(gaps**2, -1) + jnp.eye(len(atoms))
    sixth = jnp.where(jnp.eye(len(atoms)) == 1, 0, squares**-3)
    return 2 * jnp.sum(sixth**2 - sixth)


def pinned(x):
    """The atoms of 3 n - 6 coordinates: the first in the origin, the second on an axis, the
    third in a plane, so that nothing turns or drifts."""
    n = len(x) // 3 + 2
    first = jnp.zeros((3, 3)).at[jnp.array([1, 2, 2]), jnp.array([0, 0, 1])].set(x[:3])
    return jnp.concatenate([first, x[3:].reshape(n - 3, 3)])


def updated(h, s, y):
    return lrj.fit((s[None], y[None]), base=h).truncate(h.core.shape[0])


def bofill(h, s, y):
    """Between SR1 and Powell's update, by how well the first is defined; dense, in NumPy."""
    h, s, y = (np.asarray(x) for x in (h.to_dense(), s, y))
    miss = y - h @ s
    along, length = miss @ s, s @ s
    sr1 = np.outer(miss, miss) / along
    powell = (np.outer(miss, s) + np.outer(s, miss)) / length
    powell -= along * np.outer(s, s) / length**2
    share = along**2 / ((miss @ miss) * length)
    h = h + share * sr1 + (1 - share) * powell
    return lrj.SymmetricLowRank(jnp.eye(len(s)), jnp.asarray(h))


@jax.jit
def saddle_step(g, h, radius):
    return lrj.QuadraticModel(g, jnp.zeros(()), g, h).saddle_step(radius)


def search(gradient, x, h, update, radius, most=300):
    """The end of a search and how many gradients it took after the first one."""
    g, count = gradient(x), 0
    while np.linalg.norm(g) > 1e-6 and count < most:
        count += 1
        s = saddle_step(g, h, radius)
        after = gradient(x + s)
        h, x, g = update(h, s, after - g), x + s, after
    return x, count


def exact_start(hessian, x):
    return lrj.SymmetricLowRank(jnp.eye(len(x)), hessian(x))


def between_minima(rng, share):
    """Near the path from one to the other; beyond them it is uphill for ever, for every search."""
    return jnp.asarray(MINIMA[0] + share * (MINIMA[1] - MINIMA[0]) + 0.03 * rng.normal(size=2))


def test_on_a_surface_updates_by_fit_take_no_more_gradients_than_those_of_bofill(rng):
    gradient, hessian = jax.jit(jax.grad(mueller_brown)), jax.jit(jax.hessian(mueller_brown))
    counts = []
    for i in range(20):
        x = between_minima(rng, 0.15 + i / 27)
        begun = exact_start(hessian, x)
        found, ours = search(gradient, x, begun, updated, 0.1)
        assert np.min(np.linalg.norm(SADDLES - np.asarray(found), axis=1)) < 1e-6
        counts.append((ours, search(gradient, x, begun, bofill, 0.1)[1]))
    ours, theirs = np.transpose(counts)
    assert np.sum(ours) <= np.sum(theirs)
    assert np.max(ours) < 40


def test_a_search_compiles_nothing_after_its_second_step(rng):
    gradient = jax.jit(jax.grad(mueller_brown))
    x = between_minima(rng, 0.5)
    h = exact_start(jax.jit(jax.hessian(mueller_brown)), x)
    search(gradient, x, h, updated, 0.1, most=2)
    with counted() as compiled:
        found, _ = search(gradient, x, h, updated, 0.1)
    assert len(compiled) == 0
    assert np.min(np.linalg.norm(SADDLES - np.asarray(found), axis=1)) < 1e-6


@pytest.mark.usefixtures("fully_compiled")
def test_a_cluster_of_atoms_is_led_to_its_transition_states(rng):
    """From 20 starts near the minimum of five atoms, nine coordinates."""

    def energy(x):
        return cluster_energy(pinned(x))

    gradient, hessian = jax.jit(jax.grad(energy)), jax.jit(jax.hessian(energy))
    bipyramid = minimize(
        jax.jit(energy), [1.1, 0.5, 1.0, 0.5, 0.4, 0.9, 0.5, 0.4, -0.9], jac=gradient
    )
    assert bipyramid.fun < -9.1
    counts = []
    for _ in range(20):
        x = jnp.asarray(bipyramid.x + 0.05 * rng.normal(size=9))
        found, count = search(gradient, x, exact_start(hessian, x), updated, 0.05)
        assert np.linalg.norm(gradient(found)) < 1e-6
        assert np.sum(np.linalg.eigvalsh(hessian(found)) < 0) == 1
        counts.append(count)
    assert np.median(counts) < 80
