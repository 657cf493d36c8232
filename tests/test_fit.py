"""The theorems of the fit, against dense solvers in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from lowrank_jax._clouds import fit as fitting
from lowrank_jax._clouds.whitened import whiten
from tests import draws, reference

EXTRAPOLATIONS = (0, 0.4, 2 / 3, 1)


def fitted(s, y, extrapolate, **options):
    return lrj.fit(lrj.SecantPairs(s, y), extrapolate=extrapolate, **options).to_dense()


def test_worked_example_of_rank_two():
    x = np.array([[-2.20796738, -1.40391911, -0.42806159], [-0.30411266, -0.54950598, 0.83258512]])
    y = np.array([[-2.90303289, -3.29571902, -2.85327694], [-0.07347936, -0.13532473, 0.07932159]])
    h = lrj.fit(lrj.anchored(x, y, np.zeros(3), np.zeros(3)), extrapolate=1)
    np.testing.assert_allclose(h.eigenvalues()[:2], [2.2574573, 0.14866874], atol=1e-6)
    np.testing.assert_array_equal(h.eigenvalues()[2:], 0)


@pytest.mark.parametrize("extrapolate", EXTRAPOLATIONS)
def test_consistent_pairs_are_satisfied(rng, extrapolate):
    a, s = draws.symmetric(rng, 20), rng.normal(size=(6, 20))
    h = fitted(s, s @ a, extrapolate)
    assert reference.relative_error(s @ h, s @ a) < 1e-10
    np.testing.assert_array_equal(h, h.T)
    assert reference.relative_error(h, reference.fit(s, s @ a, extrapolate)) < 1e-10


@pytest.mark.parametrize("extrapolate", EXTRAPOLATIONS)
def test_inconsistent_pairs_are_least_squares_in_whitened_steps(rng, extrapolate):
    s, y = rng.normal(size=(4, 9)), rng.normal(size=(4, 9))
    h = fitted(s, y, extrapolate)
    q, z = reference.whitened(s, y, 4)
    best = reference.least_norm_solution(q, z)
    np.testing.assert_allclose(np.linalg.norm(q @ h - z), np.linalg.norm(q @ best - z), rtol=1e-10)


def test_no_extrapolation_is_the_least_frobenius_norm(rng):
    a, s = draws.symmetric(rng, 8), rng.normal(size=(3, 8))
    h = fitted(s, s @ a, 0)
    assert reference.relative_error(h, reference.least_norm_solution(s, s @ a)) < 1e-10


def test_full_extrapolation_is_the_eigenproblem_of_points_and_gradients(rng):
    a, s = draws.symmetric(rng, 20), rng.normal(size=(5, 20))
    expected = reference.gram_schmidt_eigenproblem(s, s @ a)
    assert reference.relative_error(fitted(s, s @ a, 1), expected) < 1e-10


@pytest.mark.parametrize("cond", [1e2, 1e3, 1e5])
@pytest.mark.parametrize("extrapolate", [2 / 3, 1])
def test_low_rank_is_recovered_from_ill_conditioned_steps(rng, extrapolate, cond):
    """Curvature that is rounding noise extrapolates nothing: error eps cond, no cliff."""
    for _ in range(10):
        a = draws.symmetric(rng, 20, 2)
        s = draws.steps_of_condition(rng, 4, 20, cond, "geometric")
        assert reference.relative_error(fitted(s, s @ a, extrapolate), a) < 1e4 * 2.0**-52 * cond


@pytest.mark.parametrize("n", [9, 12])
def test_as_many_pairs_as_dimensions_recover_the_hessian(rng, n):
    a, s = draws.symmetric(rng, 9), rng.normal(size=(n, 9))
    assert reference.relative_error(fitted(s, s @ a, 2 / 3), a) < 1e-10


@pytest.mark.parametrize("extrapolate", EXTRAPOLATIONS)
def test_mixed_and_scaled_pairs_give_the_same_hessian(rng, extrapolate):
    s, y = rng.normal(size=(4, 9)), rng.normal(size=(4, 9))
    mix = rng.normal(size=(4, 4)) * np.array([1e8, 1, 1e-8, 1])[:, None]
    h = fitted(s, y, extrapolate)
    assert reference.relative_error(fitted(mix @ s, mix @ y, extrapolate), h) < 1e-9


def test_a_direction_without_curvature_is_not_extrapolated():
    a, s = np.diag([1.0, -1.0]), np.array([[1.0, 1.0]])
    h = fitted(s, s @ a, 1)
    np.testing.assert_allclose(s @ h, s @ a, atol=1e-15)
    for cosine in (1e-2, 1e-6, 1e-10, 1e-20):
        y = np.array([[cosine, 1.0]])
        assert np.linalg.norm(fitted(np.array([[1.0, 0.0]]), y, 1)) < 4 / np.sqrt(1e-16)


@pytest.mark.parametrize("exponent", [-60, 7, 60])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_loss_times_a_power_of_two_scales_eigenvalues_bit_for_bit(rng, exponent, dtype):
    s = rng.normal(size=(4, 9)).astype(dtype)
    y = rng.normal(size=(4, 9)).astype(dtype)
    factor = dtype(2.0**exponent)
    values = lrj.fit(lrj.SecantPairs(s, y)).eigenvalues()
    scaled = lrj.fit(lrj.SecantPairs(s, y * factor)).eigenvalues()
    np.testing.assert_array_equal(scaled, values * factor)


def test_padding_with_zero_pairs_changes_nothing(rng):
    s, y = rng.normal(size=(4, 9)), rng.normal(size=(4, 9))
    for extrapolate in EXTRAPOLATIONS:
        padded = fitted(np.pad(s, ((1, 5), (0, 0))), np.pad(y, ((1, 5), (0, 0))), extrapolate)
        assert reference.relative_error(padded, fitted(s, y, extrapolate)) < 1e-12


@pytest.mark.parametrize("shape", [(4, 9), (30, 4)])
def test_rtol_drops_weak_directions(rng, shape):
    s = draws.steps_of_condition(rng, *shape, 1e3, "one small")
    a = draws.symmetric(rng, shape[1])
    strong = reference.fit(s, s @ a, 0, rank=3)
    assert reference.relative_error(fitted(s, s @ a, 0, rtol=1e-2), strong) < 1e-10
    kept = reference.fit(s, s @ a, 0, rank=4)
    assert reference.relative_error(fitted(s, s @ a, 0, rtol=1e-4), kept) < 1e-10


def test_rtol_drops_directions_that_one_gram_matrix_cannot_resolve(rng):
    u, v = np.linalg.qr(rng.normal(size=(4, 4)))[0], np.linalg.qr(rng.normal(size=(9, 4)))[0]
    s = (u * [1, 1, 1e-9, 1e-12]) @ v.T
    pairs = lrj.SecantPairs(s, s)
    for rtol, rank in ((None, 4), (1e-14, 4), (3e-11, 3), (1e-6, 2)):
        h = lrj.fit(pairs, extrapolate=0, rtol=rtol)
        assert np.sum(np.linalg.norm(h.factors[:4], axis=1) > 0.5) == rank


def test_traced_options_equal_static_ones(rng):
    s, y = rng.normal(size=(4, 9)), rng.normal(size=(4, 9))
    traced = jax.jit(lambda e, r: lrj.fit(lrj.SecantPairs(s, y), extrapolate=e, rtol=r).to_dense())
    for extrapolate in EXTRAPOLATIONS:
        np.testing.assert_allclose(
            traced(extrapolate, 0.0), fitted(s, y, extrapolate), rtol=1e-12, atol=1e-12
        )


def test_traced_options_out_of_range_give_no_plausible_operator(rng):
    pairs = lrj.SecantPairs(*rng.normal(size=(2, 4, 9)))
    traced = jax.jit(lambda e, r: lrj.fit(pairs, extrapolate=e, rtol=r).to_dense())
    for extrapolate, rtol in ((-0.5, 0.0), (1.5, 0.0), (np.nan, 0.0), (0.5, -1.0), (0.5, np.nan)):
        assert np.isnan(traced(extrapolate, rtol)).all()


def test_pytrees_give_the_operator_of_the_raveled_problem(rng):
    s, y = rng.normal(size=(4, 11)), rng.normal(size=(4, 11))

    def tree(rows):
        return {"a": rows[:, :6].reshape(-1, 2, 3), "b": (rows[:, 6], rows[:, 7:]), "none": None}

    h = lrj.fit(lrj.SecantPairs(tree(s), tree(y)))
    assert reference.relative_error(h.to_dense(), fitted(s, y, 2 / 3)) < 1e-12


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 1), (5, 1)])
def test_smallest_shapes(rng, shape):
    s = rng.normal(size=shape)
    h = lrj.fit(lrj.SecantPairs(s, 3 * s))
    expected = np.zeros((shape[1],) * 2) if shape[0] == 0 else 3 * np.eye(shape[1])
    np.testing.assert_allclose(h.to_dense(), expected, atol=1e-12)


def test_a_bad_number_poisons_its_own_lane_alone(rng):
    s, y = rng.normal(size=(3, 4, 9)), rng.normal(size=(3, 4, 9))
    fit, diagnose = jax.jit(jax.vmap(lrj.fit)), jax.jit(jax.vmap(lrj.diagnose))
    for bad in (np.nan, np.inf):
        for array in (s, y):
            broken = array.copy()
            broken[1, 2, 3] = bad
            pairs = lrj.SecantPairs(broken if array is s else s, broken if array is y else y)
            h = fit(pairs)
            dense = jax.vmap(lambda h: h.to_dense())(h)
            assert np.isnan(dense[1]).all()
            assert np.isfinite(dense[0]).all()
            assert np.isfinite(dense[2]).all()
            np.testing.assert_array_equal(diagnose(h, pairs).finite, [1, 0, 1])


def test_data_beyond_the_range_of_float32_is_never_a_plausible_zero(rng):
    s = np.array([[1.5e38, 0.0], [0.0, 1.0]], np.float32)
    h = fitted(s, s, 1)
    assert np.isnan(h).all() or reference.relative_error(h, np.eye(2)) < 1e-6
    padded = np.array([[0, 0], [1, 0]], np.float32)
    h = fitted(padded, np.array([[1e30, 0], [2e-10, 0]], np.float32), 1)
    np.testing.assert_allclose(h, [[2e-10, 0], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("of_steps", [True, False])
def test_the_unit_of_pairs_that_are_not_finite_is_no_number(rng, of_steps, bad):
    s, y = rng.normal(size=(2, 4, 9))
    assert np.isfinite(whiten(s, y, eps=2.0**-52).unit)
    (s if of_steps else y)[2, 3] = bad
    assert np.isnan(whiten(s, y, eps=2.0**-52).unit)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_any_magnitude_of_float32_data(rng, scale):
    a = draws.symmetric(rng, 9)
    s = rng.normal(size=(4, 9))
    truth = reference.fit(s, s @ a, 2 / 3)
    for steps, slopes in ((scale, scale), (1, scale), (scale, 1)):
        size = slopes / steps
        h = fitted((steps * s).astype(np.float32), (slopes * (s @ a)).astype(np.float32), 2 / 3)
        assert reference.relative_error(np.asarray(h, float) / size, truth) < 1e-5


def test_options_of_any_number_type_share_one_compilation(rng):
    pairs = lrj.SecantPairs(*rng.normal(size=(2, 3, 11)))
    before = fitting._fit._cache_size()
    for extrapolate in (0.1, 1, np.float32(0.5), np.float64(0.5), jnp.asarray(0.5)):
        lrj.fit(pairs, extrapolate=extrapolate)
    assert fitting._fit._cache_size() == before + 1


def outside(m, p, extrapolate):
    """The C of the fit to pairs `Q H = M Q + P` with orthonormal rows [Q; P], `P H_r P^T`."""
    rows = np.eye(2 * len(m), 3 * len(m))
    q, across = rows[: len(m)], rows[len(m) :]
    h = fitted(q, m @ q + p @ across, extrapolate)
    inverse = np.linalg.inv(p)
    return inverse.T @ (across @ np.asarray(h) @ across.T) @ inverse


@pytest.mark.parametrize("extrapolate", [0, 0.3, 2 / 3, 0.9])
def test_what_extrapolates_commutes_with_the_curvature_and_is_bounded(rng, extrapolate):
    """`|C| <= e / 2 d`, whatever M is."""
    for size in (1e-3, 1, 1e3):
        m, p = size * draws.symmetric(rng, 4), rng.normal(size=(4, 4))
        c = outside(m, p, extrapolate)
        assert np.linalg.norm(c @ m - m @ c) < 1e-7 * np.linalg.norm(m) * np.linalg.norm(c) + 1e-13
        k = m @ m + p @ p.T
        g = np.sqrt(
            4 / np.trace(np.linalg.inv(k)) * (np.sum(m * m) / np.trace(k) + 1 / 16) / (17 / 16)
        )
        assert np.linalg.norm(c, 2) <= extrapolate / (2.4 * (1 - extrapolate) * g) * (1 + 1e-6)


@pytest.mark.parametrize("spectrum", ["decaying", "flat", "low rank", "outliers"])
def test_of_a_positive_semidefinite_hessian_the_fit_stays_below_and_nears_it(rng, spectrum):
    i = np.arange(1, 31)
    values = {
        "decaying": 1.0 / i**2,
        "flat": rng.uniform(1, 2, size=30),
        "low rank": np.where(i <= 7, 1.0 / i, 0),
        "outliers": np.where(i <= 3, 50.0, 1),
    }[spectrum]
    q = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    a, s = (q * values) @ q.T, rng.normal(size=(8, 30))
    errors = []
    for extrapolate in (0, 0.2, 0.5, 2 / 3, 0.9, 1):
        remainder = a - fitted(s, s @ a, extrapolate)
        assert np.linalg.eigvalsh(remainder)[0] > -1e-7 * np.linalg.norm(a)
        errors.append(np.linalg.norm(remainder) / np.linalg.norm(a))
    assert np.all(np.diff(errors) < 1e-7)
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("rank", [0, 1, 7, 12, 15])
@pytest.mark.parametrize(("extrapolate", "most"), [(0.1, 1e-6), (2 / 3, 1e-8), (1, 1e-12)])
def test_a_hessian_of_lower_rank_than_the_steps_is_recovered_at_any_extrapolation(
    rng, rank, extrapolate, most
):
    """To `|Z| / g` times the smallest curvature's share of rounding: rank 15 of 16 is near 16."""
    errors = []
    for _ in range(5):
        a, s = draws.symmetric(rng, 60, rank), rng.normal(size=(16, 60))
        errors.append(reference.relative_error(fitted(s, s @ a, extrapolate), a))
    assert np.median(errors) < most


@pytest.mark.parametrize("extrapolate", [0.3, 2 / 3, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_pairs_contradict_each_other_by_is_not_extrapolated(rng, dtype, extrapolate):
    """Of a loss that bends in 3 of 200 directions, 8 points: A has rank 3, its symmetric part 6."""
    w, points = rng.normal(size=(3, 200)) / 200**0.5, 1 + 0.01 * rng.normal(size=(8, 200))
    pairs = lrj.centered(points.astype(dtype), (np.tanh(points @ w.T) @ w).astype(dtype))
    exact = (w.T * (1 - np.tanh(w.sum(axis=1)) ** 2)) @ w
    found = lrj.fit(pairs, extrapolate=dtype(extrapolate)).to_dense()
    assert reference.relative_error(found, exact) < 0.02


def test_rank_14_of_16_is_recovered_in_float32():
    errors = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        a, s = draws.symmetric(rng, 100, 14), rng.normal(size=(16, 100)).astype(np.float32)
        h = fitted(s, (s.astype(float) @ a).astype(np.float32), 2 / 3)
        errors.append(reference.relative_error(h, a))
    assert np.median(errors) < 0.02


def test_one_pair_of_an_indefinite_hessian_never_gives_one_far_too_large():
    """A scale made of M alone would: the worst of 500 is then in the hundreds."""
    errors = []
    for seed in range(500):
        rng = np.random.default_rng(seed)
        a, s = draws.symmetric(rng, 20), rng.normal(size=(1, 20))
        errors.append(reference.relative_error(reference.fit(s, s @ a, 2 / 3), a))
    assert np.max(errors) < 1.5
    h = jax.vmap(lambda s, y: fitted(s, y, 2 / 3))
    s = np.random.default_rng(0).normal(size=(100, 1, 20))
    assert np.max(np.linalg.norm(h(s, s @ a), axis=(1, 2))) < 1.5 * np.linalg.norm(a)


@pytest.mark.parametrize("extrapolate", [0, 2 / 3])
def test_between_two_hessians_the_fit_moves_evenly(rng, extrapolate):
    """1e4 small steps of H, all kinds of signs and ties on the way: no jump of H_r."""
    a, b = draws.symmetric(rng, 20), draws.symmetric(rng, 20)
    s = rng.normal(size=(5, 20))
    at = jax.jit(jax.vmap(lambda t: fitted(s, s @ (a + t * (b - a)), extrapolate)))
    path = np.concatenate([at(ts) for ts in np.linspace(0, 1, 10_001)[:-1].reshape(10, -1)])
    moves = np.linalg.norm(np.diff(path, axis=0), axis=(1, 2))
    assert np.max(moves) < 2 * np.median(moves)


@pytest.mark.parametrize("rank", [4, 9, 40])
def test_bfloat16_pairs_are_as_good_as_their_numbers_in_float32(rank):
    errors = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        a = draws.symmetric(rng, 40, rank)
        s = jnp.asarray(rng.normal(size=(12, 40)), jnp.bfloat16)
        y = jnp.asarray(np.asarray(s, float) @ a, jnp.bfloat16)
        errors.append(
            [
                reference.relative_error(fitted(*(x.astype(t) for x in (s, y)), 2 / 3), a)
                for t in (jnp.bfloat16, jnp.float32)
            ]
        )
    half, single = np.median(errors, axis=0)
    assert half < 3 * single


@pytest.mark.parametrize("rank", [5, 3])
@pytest.mark.parametrize("consistent", [True, False])
def test_hundreds_of_pairs_in_few_dimensions_have_as_many_factors_as_dimensions(
    rng, rank, consistent
):
    s = (
        rng.normal(size=(400, rank))
        @ rng.normal(size=(rank, 5))
        * 10.0 ** rng.uniform(-5, 5, size=(400, 1))
    )
    y = s @ draws.symmetric(rng, 5) if consistent else rng.normal(size=s.shape)
    s[7], y[7] = 0, 1e20
    fit = jax.jit(lambda s, y: lrj.fit((s, y)))
    h = fit(s, y)
    assert h.factors.shape == (5, 5)
    keep = np.arange(400) != 7
    truth = reference.fit(s[keep], y[keep], 2 / 3, rank=rank)
    assert reference.relative_error(h.to_dense(), truth) < 1e-9
    y[7, 1] = np.nan
    assert np.isnan(fit(s, y).to_dense()).all()
    shapes = [v.aval.shape for e in jax.make_jaxpr(fit)(s, y).eqns for v in e.outvars]
    assert (400, 400) not in shapes
