"""What is known beforehand: the base of the fit, and the choice of a number as one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import SR1

import lowrank_jax as lrj
from lowrank_jax._clouds import fit as fitting
from tests import draws, reference

DIM = 9


def bases(rng):
    d = rng.uniform(1, 2, DIM)
    h = lrj.SymmetricLowRank(rng.normal(size=(2, DIM)), np.diag([1.0, -2.0]))
    return {
        "a number": (1.5, 1.5 * np.eye(DIM)),
        "a diagonal": (d, np.diag(d)),
        "low rank": (h, h.to_dense()),
        "diagonal plus low rank": (h.plus_diagonal(d), np.diag(d) + h.to_dense()),
        "a number plus low rank": (h.plus_diagonal(0.5), 0.5 * np.eye(DIM) + h.to_dense()),
    }


KINDS = list(bases(np.random.default_rng(0)))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_changed_as_little_as_the_pairs_ask_for(rng, kind):
    base, dense = bases(rng)[kind]
    a, s = draws.symmetric(rng, DIM), rng.normal(size=(3, DIM))
    h = lrj.fit((s, s @ a), base=base, extrapolate=0)
    expected = dense + reference.least_norm_solution(s, s @ (a - dense))
    assert reference.relative_error(h.to_dense(), expected) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_one_by_one_are_the_symmetric_rank_one_update(rng, kind):
    base, dense = bases(rng)[kind]
    a = draws.symmetric(rng, DIM)
    theirs = SR1()
    theirs.initialize(DIM, "hess")
    theirs.B, theirs.first_iteration = np.array(dense), False
    for s in rng.normal(size=(3, DIM)):
        theirs.update(s, a @ s)
        base = lrj.fit((s[None], (a @ s)[None]), base=base, extrapolate=1)
    assert reference.relative_error(base.to_dense(), theirs.get_matrix()) < 1e-8


def test_the_base_goes_through_every_transformation(rng):
    """Of a batch, and differentiated: by a number and by an operator."""
    s, a = rng.normal(size=(2, 3, DIM)), draws.symmetric(rng, DIM)
    c = np.array([1.0, 2.0])
    traces = jax.vmap(lambda s, c: lrj.fit((s, s @ a), base=c).trace())(s, c)
    one_by_one = [lrj.fit((x, x @ a), base=y).trace() for x, y in zip(s, c, strict=True)]
    np.testing.assert_allclose(traces, one_by_one, rtol=1e-12)
    slope = jax.grad(lambda c: lrj.fit((s[0], s[0] @ a), base=c, extrapolate=0).trace())(1.0)
    np.testing.assert_allclose(slope, DIM - 3, rtol=1e-9)  # of what the pairs do not show


def test_where_nothing_is_measured_the_base_is_the_hessian(rng):
    base, dense = bases(rng)["diagonal plus low rank"]
    for n in (0, 2):
        nothing = np.zeros((n, DIM))
        h = lrj.fit((nothing, nothing), base=base)
        np.testing.assert_allclose(h.to_dense(), dense, rtol=1e-12)


def test_a_loop_of_updates_compiles_nothing_after_the_second_and_learns_the_hessian(rng):
    a = draws.symmetric(rng, DIM)
    h = lrj.SymmetricLowRank(np.zeros((DIM, DIM)), np.zeros((DIM, DIM)))
    for i, s in enumerate(rng.normal(size=(DIM, 1, DIM))):
        h = lrj.fit((s, s @ a), base=h, extrapolate=1).truncate(DIM)
        if i == 1:
            compiled = fitting._update._cache_size()
    assert fitting._update._cache_size() == compiled
    assert reference.relative_error(h.to_dense(), a) < 1e-6


def spectra(rng, dim, n):
    i = np.arange(1, dim + 1.0)
    low = np.where(i <= n // 2, 10 * rng.normal(size=dim), 0)
    return {
        "one and a low rank": 1 + low,
        "minus one and a low rank": -1 + low,
        "1 / i": 1 / i,
        "1 / sqrt(i)": i**-0.5,
        "linear": i / dim,
        "1 / i^2": i**-2.0,
        "0.8^i": 0.8**i,
        "a bulk": np.where(i <= 5, [10, 8, 6, 4, 3, *[0] * (dim - 5)], 1),
        "indefinite": rng.normal(size=dim),
    }


@pytest.mark.study
@pytest.mark.parametrize("n", [8, 16])
def test_the_shift_that_is_chosen_is_near_the_best(rng, n):
    """Over draws of spectra; the best of a grid of shifts, and of the one chosen."""
    dim = 100

    @jax.jit
    def errors(s, a):
        def error(c):
            h = lrj.fit((s, s @ a), base=c).to_dense()
            return jnp.linalg.norm(h - a) / jnp.linalg.norm(a)

        middle = jnp.abs(jnp.median(jnp.sum(s * (s @ a), 1) / jnp.sum(s * s, 1)))
        shifts = jnp.append(middle * jnp.linspace(-1.5, 1.5, 13), lrj.choose_shift((s, s @ a)))
        found = jax.lax.map(error, shifts)
        return jnp.min(found), found[6], found[-1]  # the best, none, the one chosen

    best, none, chosen = np.transpose(
        [
            errors(rng.normal(size=(n, dim)), (u * w) @ u.T)
            for _ in range(3)
            for w in spectra(rng, dim, n).values()
            for u in [np.linalg.qr(rng.normal(size=(dim, dim)))[0]]
        ]
    )
    assert np.mean(chosen <= 1.1 * best + 0.02) >= 0.9
    assert np.mean(chosen <= 1.02 * none + 1e-12) >= 0.9
    assert np.all(chosen <= 1.1 * none + 1e-12)


def test_a_bulk_between_outliers_is_found_exactly_and_zero_pairs_say_nothing(rng):
    """Of n steps as many eigenvalues less the outliers are the bulk's; also where steps depend."""
    dim = 100
    u = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    a = (u * (1 + np.where(np.arange(dim) < 2, [30.0, -20] + [0] * (dim - 2), 0))) @ u.T
    s = rng.normal(size=(8, dim))
    s[7] = s[6] + s[5]
    for steps in (s, np.pad(s, ((0, 9), (0, 0)))):
        np.testing.assert_allclose(lrj.choose_shift((steps, steps @ a)), 1, rtol=1e-9)
    definite = (u * np.linspace(3, 4, dim)) @ u.T
    padded = np.pad(s[:6], ((0, 9), (0, 0)))
    expected = lrj.choose_shift((s[:6], s[:6] @ definite))
    np.testing.assert_allclose(lrj.choose_shift((padded, padded @ definite)), expected, rtol=1e-9)


def test_a_shift_of_nothing_is_none(rng):
    s = rng.normal(size=(4, DIM))
    assert np.isnan(lrj.choose_shift((0 * s, s)))
    assert np.isnan(lrj.choose_shift((s, np.nan * s)))
    np.testing.assert_allclose(lrj.choose_shift((1e-200 * s, 3e-200 * s)), 3, rtol=1e-12)
    many = jax.jit(jax.vmap(lambda s: lrj.choose_shift((s, 2 * s))))(rng.normal(size=(3, 5, DIM)))
    np.testing.assert_allclose(many, 2, rtol=1e-12)
    assert not np.any(jax.grad(lambda y: lrj.choose_shift((s, y)))(2 * s))  # a choice is a constant


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_evidence_of_a_convex_posterior_is_a_number(rng, dtype):
    """Log-determinants of a logistic posterior with a prior precision for each of 31 weights."""
    dim = 31
    inputs, signs = rng.normal(size=(200, dim)), np.sign(rng.normal(size=200))
    inputs *= 0.8 ** np.arange(dim)
    prior = rng.uniform(0.5, 2, dim).astype(dtype)

    def loss(w, inputs, signs):
        return jnp.sum(jax.nn.softplus(-signs * (inputs @ w)))

    data = inputs.astype(dtype), signs.astype(dtype)
    w = np.zeros(dim, dtype)
    exact = np.asarray(jax.hessian(loss)(w.astype(float), inputs, signs)) + np.diag(prior)
    exact, found = np.linalg.slogdet(exact)[1], []
    for count in (9, 13, 17, 33):
        points = (w + 1e-2 * rng.normal(size=(count, dim))).astype(dtype)
        h = lrj.secant_hessian(loss)(points, *data)
        found.append(float(h.positive_part().logdet(prior)))
    assert np.isfinite(found).all()
    assert (np.abs(np.array(found) - exact) < [8, 4, 1.5, 0.01]).all()
