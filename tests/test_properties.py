"""Symmetries of the fit and of the operator, on hostile problems that hypothesis draws.

Powers of two change no bit. All else holds to within what rounding may do by theory (`Rounding`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowrank_jax as lrj
from tests import reference, strategies
from tests.strategies import DIM, N

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
EXTRAPOLATIONS = st.sampled_from([1.0, 2 / 3, 0.4, 0.0])


def holds_for(strategy, examples=25):
    """The same examples whenever a test runs."""

    def decorated(test):
        own = settings(max_examples=examples, deadline=None, derandomize=True, database=None)
        return own(given(strategy)(test))

    return decorated


def drawn(strategy, number=100):
    """What a strategy gives when nothing that it gives is refused."""
    found = []
    holds_for(strategy, number)(lambda example: found.append(example))()
    return found


@jax.jit
def fitted(s, y, extrapolate):
    return lrj.fit(lrj.SecantPairs(s, y), extrapolate=extrapolate)


def dense(s, y, extrapolate):
    return np.asarray(fitted(s, y, extrapolate).to_dense(), float)


class Rounding(NamedTuple):
    """What rounding may do to the fit of n pairs of unit steps and slopes, each rounded by eps.

    Sums of n and D terms have it n + D times, and the least-squares solution Z over the
    smallest singular value of the steps: `error = (n + D) eps |A| / sigma_min`, in M and P too.
    With `G = (e M + i W)^-1` the extrapolation `e P^T Re(G) P` makes it larger by

        1 + 2 e |G P| + e |G P|^2 |d(e M + i W)|,

    of which the last is at most `e + 4 (1 - e) sqrt(r)`: W moves as the harmonic mean of r
    singular values of Z does.

    Attributes:
      error: the bound on |H - H_exact|.
      decided: whether the error is so small beside e M + i W that this first order holds, and no
        singular value of Z is rounding, whose inverse F has.
    """

    error: float
    decided: bool

    @classmethod
    def of(cls, s, y, norm, rank, extrapolate):
        eps, (n, dim) = float(np.finfo(s.dtype).eps), s.shape
        s, y = s.astype(float), y.astype(float)
        q, z = reference.whitened(s, y, rank)
        smallest = np.linalg.svd(reference.unit_pairs(s, y)[0])[1][rank - 1]
        error = (n + dim) * eps * norm / smallest
        if extrapolate == 0:
            return cls(error, True)
        a = z @ q.T
        m, p = (a + a.T) / 2, z - a @ q
        e = float(extrapolate)
        g = np.linalg.inv(e * m + 1j * reference.width(a, z, e, eps))
        moves = e + 4 * (1 - e) * rank**0.5
        noise = 10 * (n + dim) * eps * np.sum(z * z)
        if error * moves * np.linalg.norm(g, 2) > 0.1 or np.linalg.eigvalsh(z @ z.T)[0] < noise:
            return cls(np.inf, False)
        across = np.linalg.norm(g @ p, 2)
        return cls(error * (1 + 2 * e * across + e * across**2 * moves), True)


def bounded(problem, extrapolate, *more):
    """An extrapolation that is decided for all sets of pairs, 0 if need be; their errors' sum."""
    norm = np.linalg.norm(problem.hessian, 2)
    sets = (problem.steps.rows, problem.slopes), *more
    for e in (extrapolate, 0.0):
        found = [Rounding.of(s, y, norm, problem.steps.rank, e) for s, y in sets]
        if all(each.decided for each in found):
            break
    return sets[0][0].dtype.type(e), sum(each.error for each in found)


# The generators do what they say, and reach the corners.


@DTYPES
def test_drawn_steps_have_their_rank_condition_and_repeats(dtype):
    @holds_for(strategies.steps(dtype), 100)
    def check(s):
        unit, _ = reference.unit_pairs(s.rows.astype(float), s.rows.astype(float))
        values = np.linalg.svd(unit)[1]
        eps = np.finfo(dtype).eps
        cond = s.singular_values[0] / s.singular_values[-1]
        assert np.sum(values > 8 * N * eps) == s.rank
        # Rows of unit length have at most sqrt(N) times the least condition of any scaling.
        assert values[0] / values[s.rank - 1] < 2 * N * cond
        assert np.sum(~s.rows.any(axis=1)) == s.dependent.count("zero")
        cosines = np.abs(np.tril(unit @ unit.T, -1))
        same = np.sum((cosines > 1 - 4 * eps).any(axis=1))
        assert same >= s.dependent.count("repeat")

    check()
    found = drawn(strategies.steps(dtype))
    conditions = [s.singular_values[0] / s.singular_values[-1] for s in found]
    assert np.max(conditions) > np.finfo(dtype).eps ** -0.5
    assert {s.rank for s in found} == set(range(1, N + 1))
    assert {kind for s in found for kind in s.dependent} == {"repeat", "sum", "zero"}


@DTYPES
def test_drawn_quadratics_have_their_spectrum_and_are_consistent(dtype):
    @holds_for(strategies.problems(dtype), 100)
    def check(p):
        rank, norm = p.steps.rank if p.along else DIM, np.linalg.norm(p.hessian, 2)
        span = p.steps.basis[:, :rank]
        values = np.linalg.eigvalsh(span.T @ p.hessian @ span)
        np.testing.assert_allclose(values, np.sort(p.spectrum[:rank]), atol=1e-14 * norm)
        unit, _ = reference.unit_pairs(p.steps.rows.astype(float), p.slopes.astype(float))
        outside = unit @ p.steps.basis[:, p.steps.rank :]
        assert (
            np.max(np.abs(outside), initial=0)
            <= 8 * np.finfo(dtype).eps / p.steps.singular_values[-1]
        )
        np.testing.assert_array_equal(p.hessian, p.hessian.T)
        exact = p.steps.rows.astype(float) @ p.hessian
        np.testing.assert_allclose(p.slopes, exact, rtol=np.finfo(dtype).eps)

    check()
    problems = drawn(strategies.problems(dtype))
    assert any(p.along and abs(p.spectrum[0]) == abs(p.spectrum[1]) for p in problems)
    spectra = [p.spectrum for p in problems]
    sizes = [np.max(np.abs(w)) for w in spectra]
    assert np.max(sizes) / np.min(sizes) > 2.0 ** strategies.SCALE[dtype]
    for corner in (
        lambda w: (w > 0).any() and (w < 0).any(),
        lambda w: (w >= 0).all(),
        lambda w: (w <= 0).all(),
        lambda w: (w == 0).any(),
        lambda w: (np.abs(w) == np.abs(w[0])).all(),
        lambda w: w[0] == -w[1],
        lambda w: np.max(np.abs(w)) > 1e6 * np.min(np.abs(w)) > 0,
    ):
        assert any(map(corner, spectra))


@DTYPES
def test_drawn_points_repeat_and_their_offsets_are_exact(dtype):
    clouds = drawn(strategies.clouds(dtype))
    for points, offset in clouds:
        np.testing.assert_array_equal((points + offset) - offset, points)
    distinct = [len(np.unique(points, axis=0)) for points, _ in clouds]
    assert set(distinct) == set(range(1, N + 1))
    assert max(np.max(np.abs(offset)) for _, offset in clouds) > 1e4


def test_most_fits_extrapolate_and_have_digits():
    """Else the bounds of this file would be empty promises."""
    for dtype, digits in ((np.float32, 1e-2), (np.float64, 1e-5)):
        both = st.tuples(strategies.problems(dtype), EXTRAPOLATIONS)
        found = [(*bounded(p, e), np.linalg.norm(p.hessian, 2)) for p, e in drawn(both)]
        assert np.mean([e > 0 for e, _, _ in found]) > 0.5
        assert np.mean([error < digits * norm for _, error, norm in found]) > 0.8


# The fit.


def problem_and(dtype, *others, lowest_rank=1):
    return st.tuples(strategies.problems(dtype, lowest_rank), EXTRAPOLATIONS, *others)


@DTYPES
def test_hostile_pairs_give_the_operator_of_the_dense_twin_and_satisfy_their_equations(dtype):
    @holds_for(problem_and(dtype), 50)
    def check(drawn):
        problem, extrapolate = drawn
        s, y = problem.steps.rows, problem.slopes
        extrapolate, error = bounded(problem, extrapolate)
        h, eps = dense(s, y, extrapolate), float(np.finfo(dtype).eps)
        truth = reference.fit(s, y, float(extrapolate), rank=problem.steps.rank, eps=eps)
        assert np.linalg.norm(h - truth) <= error
        unit, slopes = reference.unit_pairs(s.astype(float), y.astype(float))
        assert np.max(np.linalg.norm(unit @ h - slopes, axis=1)) <= error
        np.testing.assert_array_equal(h, h.T)

    check()


@DTYPES
def test_the_order_of_hostile_pairs_does_not_matter(dtype):
    @holds_for(problem_and(dtype, st.permutations(range(N))))
    def check(drawn):
        problem, extrapolate, order = drawn
        s, y = problem.steps.rows, problem.slopes
        extrapolate, error = bounded(problem, extrapolate)
        difference = dense(s[order], y[order], extrapolate) - dense(s, y, extrapolate)
        assert np.linalg.norm(difference) <= 2 * error

    check()


@DTYPES
def test_rotated_hostile_pairs_rotate_the_hessian(dtype):
    @holds_for(problem_and(dtype, strategies.orthogonal()))
    def check(drawn):
        problem, extrapolate, q = drawn
        s, y = problem.steps.rows, problem.slopes
        turned = (s.astype(float) @ q).astype(dtype), (y.astype(float) @ q).astype(dtype)
        extrapolate, error = bounded(problem, extrapolate, turned)
        difference = dense(*turned, extrapolate) - q.T @ dense(s, y, extrapolate) @ q
        assert np.linalg.norm(difference) <= error

    check()


@DTYPES
def test_hostile_pairs_mixed_by_an_invertible_matrix_give_the_same_hessian(dtype):
    """Consistent pairs: the mixture of rounded ones is rounded to their size, not to its own."""
    mixes = st.tuples(strategies.seeds(), st.integers(0, 4))

    @holds_for(problem_and(dtype, mixes, lowest_rank=N))
    def check(drawn):
        problem, extrapolate, (seed, cond) = drawn
        rng = np.random.default_rng(seed)
        u, v = (np.linalg.qr(rng.normal(size=(N, N)))[0] for _ in range(2))
        mix = (u * np.geomspace(1, 2.0**-cond, N)) @ v
        s, y = problem.steps.rows, problem.slopes
        mixed = (mix @ s).astype(dtype)
        mixed = mixed, (mixed.astype(float) @ problem.hessian).astype(dtype)
        extrapolate, error = bounded(problem, extrapolate, mixed)
        difference = dense(*mixed, extrapolate) - dense(s, y, extrapolate)
        assert np.linalg.norm(difference) <= error

    check()


@DTYPES
def test_powers_of_two_on_pairs_and_on_slopes_change_no_bit_but_the_scale(dtype):
    powers = strategies.exponents(dtype, N), strategies.exponents(dtype)

    @holds_for(problem_and(dtype, *powers), 50)
    def check(drawn):
        problem, extrapolate, pairs, loss = drawn
        s, y, extrapolate = problem.steps.rows, problem.slopes, dtype(extrapolate)
        h = fitted(s, y, extrapolate)
        rows = pairs[:, None]
        scaled = fitted(np.ldexp(s, rows), np.ldexp(np.ldexp(y, rows), loss), extrapolate)
        np.testing.assert_array_equal(scaled.factors, h.factors)
        np.testing.assert_array_equal(scaled.core, np.ldexp(h.core, loss))
        np.testing.assert_array_equal(scaled.eigenvalues(), np.ldexp(h.eigenvalues(), loss))

    check()


@DTYPES
def test_no_data_extrapolate_by_more_than_the_skip_rule_allows(dtype):
    """`|H_r| <= 3 |Z| + n |P|^2 / |w|`, and a direction is kept only if |w| > sqrt(eps) |P|.

    Also for slopes that contradict each other and for steps along which nothing curves.
    """
    slopes = st.tuples(strategies.seeds(), st.integers(0, 60))

    @holds_for(problem_and(dtype, slopes, lowest_rank=N))
    def check(drawn):
        problem, extrapolate, (seed, along) = drawn
        s = problem.steps.rows.astype(float)
        y = np.random.default_rng(seed).normal(size=s.shape)
        inside = y @ np.linalg.pinv(s, rcond=1e-14) @ s
        y = np.linalg.norm(s, axis=1, keepdims=True) * (y - inside + 2.0**-along * inside)
        y = y.astype(dtype)
        z = np.linalg.norm(reference.whitened(s, y.astype(float), N)[1], 2)
        h = dense(problem.steps.rows, y, dtype(extrapolate))
        assert np.linalg.norm(h, 2) <= 1.5 * z * (3 + N / np.sqrt(np.finfo(dtype).eps))

    check()


@DTYPES
def test_hostile_pairs_that_contradict_each_other_are_least_squares(dtype):
    """Rounding of the steps turns residuals into solution: `(n + D) eps |Y| / sigma_min^2`.

    Up to condition 2^10: beyond it dependent steps whose slopes contradict each other lose more.
    """
    steps = strategies.steps(dtype, highest_condition=10)

    @holds_for(st.tuples(steps, strategies.seeds()), 50)
    def check(drawn):
        steps, seed = drawn
        s, eps = steps.rows, float(np.finfo(dtype).eps)
        y = np.random.default_rng(seed).normal(size=s.shape)
        y = (np.linalg.norm(s.astype(float), axis=1, keepdims=True) * y).astype(dtype)
        unit, slopes = reference.unit_pairs(s.astype(float), y.astype(float))
        smallest = np.linalg.svd(unit)[1][steps.rank - 1]
        truth = reference.fit(s, y, 0, rank=steps.rank)
        error = (N + DIM) * eps * np.linalg.norm(slopes, 2) / smallest**2
        assert np.linalg.norm(dense(s, y, dtype(0)) - truth) <= 2 * error

    check()


PADDED = N + 3


def test_zero_steps_whatever_their_slopes_and_repeated_pairs_are_inert():
    dtype = np.float32
    padding = st.tuples(
        st.permutations(range(PADDED)),
        st.lists(st.integers(0, N), min_size=PADDED - N, max_size=PADDED - N),
        strategies.exponents(dtype, PADDED - N),
        st.sampled_from([0, 120, -100]),
    )

    @holds_for(problem_and(dtype, padding))
    def check(drawn):
        problem, extrapolate, (order, repeated, powers, noise) = drawn
        s, y = problem.steps.rows, problem.slopes
        nothing = np.zeros((1, DIM), dtype), np.full((1, DIM), 2.0**noise, dtype)
        more = (np.concatenate(rows)[repeated] for rows in zip((s, y), nothing, strict=True))
        powers = np.where(np.array(repeated) == N, 0, powers)
        more = (np.ldexp(rows, powers[:, None]) for rows in more)
        padded = [np.concatenate(rows)[order] for rows in zip((s, y), more, strict=True)]
        known = padded[0], np.where(padded[0].any(axis=1, keepdims=True), padded[1], 0)
        extrapolate, error = bounded(problem, extrapolate, known)
        difference = dense(*padded, extrapolate) - dense(s, y, extrapolate)
        assert np.linalg.norm(difference) <= error

    check()


LANES = 4


def test_hostile_lanes_under_vmap_are_fitted_each():
    """Lanes that need rotations beside others that one Cholesky factor serves."""
    dtype = np.float32
    batched = jax.jit(jax.vmap(fitted))

    @holds_for(st.lists(problem_and(dtype), min_size=LANES, max_size=LANES), 15)
    def check(lanes):
        bounds = [bounded(*lane) for lane in lanes]
        s, y = (
            np.stack(x) for x in zip(*[(p.steps.rows, p.slopes) for p, _ in lanes], strict=True)
        )
        h = jax.vmap(lambda h: h.to_dense())(batched(s, y, np.array([e for e, _ in bounds])))
        for i, (extrapolate, error) in enumerate(bounds):
            difference = np.asarray(h[i], float) - dense(s[i], y[i], extrapolate)
            assert np.linalg.norm(difference) <= 2 * error

    check()


def test_pytrees_outside_jit_give_the_operator_of_the_raveled_problem_inside():
    def tree(rows):
        return {"a": rows[:, 0], "b": [rows[:, 1:1], rows[:, 1:5].reshape(-1, 2, 2), rows[:, 5:]]}

    @holds_for(problem_and(np.float64))
    def check(drawn):
        problem, extrapolate = drawn
        s, y = problem.steps.rows, problem.slopes
        extrapolate, error = bounded(problem, extrapolate)
        pairs = lrj.SecantPairs(tree(s), tree(y))
        h = lrj.fit(pairs, extrapolate=jnp.asarray(extrapolate)).to_dense()
        assert np.linalg.norm(h - dense(s, y, extrapolate)) <= 2 * error

    check()


# From a loss.


def quartic(x, a, offset, size, factor):
    z = a @ ((x - offset) * size)
    return factor * jnp.sum(z**4 / 64 + z**3 / 8 + jnp.arange(-3, 5, dtype=z.dtype) * z**2)


@jax.jit
def of_cloud(points, extrapolate, a, offset, size, factor):
    def solver(pairs):  # without their rounding, which knows how far from the origin they are
        return lrj.fit(pairs[:2], extrapolate=extrapolate)

    return lrj.secant_hessian(quartic, solver=solver)(points, a, offset, size, factor)


pairs_of_cloud = jax.jit(lrj.secant_pairs(quartic))


def matrix(dtype):
    return (np.random.default_rng(0).normal(size=(DIM, DIM)) / 32).astype(dtype)


@DTYPES
def test_exact_shifts_and_powers_of_two_of_a_cloud_change_no_bit_but_the_scale(dtype):
    powers = strategies.exponents(dtype), strategies.exponents(dtype)

    @holds_for(st.tuples(strategies.clouds(dtype), EXTRAPOLATIONS, *powers), 50)
    def check(drawn):
        (points, offset), extrapolate, size, loss = drawn
        a, one, extrapolate = matrix(dtype), np.ones((), dtype), dtype(extrapolate)
        h = of_cloud(points, extrapolate, a, 0 * offset, one, one)
        moved, offset = (np.ldexp(x, -size) for x in (points + offset, offset))
        scales = np.ldexp(one, size), np.ldexp(one, loss)
        moved = of_cloud(moved, extrapolate, a, offset, *scales)
        exponent = loss + 2 * size
        np.testing.assert_array_equal(moved.to_dense(), np.ldexp(h.to_dense(), exponent))
        np.testing.assert_array_equal(moved.eigenvalues(), np.ldexp(h.eigenvalues(), exponent))

    check()


@DTYPES
def test_the_order_of_points_and_which_of_them_repeats_do_not_matter(dtype):
    """No matter that the loss is not quadratic: repeats contradict nothing."""
    clouds = st.tuples(strategies.clouds(dtype), EXTRAPOLATIONS)
    twice = st.integers(0, N - 1)

    @holds_for(st.tuples(clouds, twice, twice, st.permutations(range(N))), 40)
    def check(drawn):
        ((points, offset), extrapolate), one, other, order = drawn
        rest = 0 * offset, np.ones((), dtype), np.ones((), dtype)
        a = matrix(dtype)
        distinct = np.unique(points, axis=0)
        if len(distinct) == 1:
            return
        # As many points as before, and a repeat of each of two others where there is room.
        first = distinct[[*range(len(distinct)), *[one % len(distinct)] * (N - len(distinct))]]
        second = distinct[[*range(len(distinct)), *[other % len(distinct)] * (N - len(distinct))]]
        both = [of_cloud_bounded(x, extrapolate, a, *rest) for x in (first, second[order])]
        if not all(decided for _, _, decided in both):
            both = [of_cloud_bounded(x, 0.0, a, *rest) for x in (first, second[order])]
        (h, error, _), (g, other_error, _) = both
        assert np.linalg.norm(h - g) <= error + other_error

    check()


def of_cloud_bounded(points, extrapolate, *rest):
    """The dense fit of a cloud, the bound on its error, and whether its extrapolation is decided.

    The differences of points and gradients are rounded by `rounding`, not by eps.
    """
    h = of_cloud(points, points.dtype.type(extrapolate), *rest)
    pairs = pairs_of_cloud(points, *rest)
    s, y = np.asarray(pairs.steps), np.asarray(pairs.grad_diffs)
    rounding = np.asarray(pairs.rounding)[np.isfinite(pairs.rounding)]
    lost = 1 + np.max(rounding) / np.finfo(points.dtype).eps
    rank = len(np.unique(points, axis=0)) - 1
    norm = np.linalg.norm(reference.whitened(s.astype(float), y.astype(float), rank)[1], 2)
    found = Rounding.of(s, y, lost * norm, rank, extrapolate)
    return np.asarray(h.to_dense(), float), *found


# The operator.


@st.composite
def operators(draw, dtype):
    """Factors and a symmetric core with rows of any scale, of an H near 1; two vectors."""
    rng = np.random.default_rng(draw(strategies.seeds()))
    values, q = draw(strategies.spectra()), draw(strategies.orthogonal())
    factors = rng.normal(size=(DIM, DIM))[:, :6]
    scale = draw(strategies.exponents(dtype, DIM))[:, None]
    core = (q * values) @ q.T
    core = ((core + core.T) / 2).astype(dtype)
    return factors.astype(dtype), core, scale, *rng.normal(size=(2, 6)).astype(dtype)


@DTYPES
def test_products_are_linear_and_self_adjoint(dtype):
    @holds_for(st.tuples(operators(dtype), strategies.exponents(dtype, 2)))
    def check(drawn):
        (factors, core, scale, u, v), (one, other) = drawn
        h = lrj.SymmetricLowRank(np.ldexp(factors, scale), np.ldexp(core, -scale - scale.T))
        u, v = np.ldexp(u, one), np.ldexp(v, other)
        rows, small = np.abs(factors.astype(float)), np.abs(core.astype(float))
        size = rows.T @ small @ rows
        error = 4 * (6 + 2 * DIM) * float(np.finfo(dtype).eps) * size
        images = [np.asarray(h @ x, float) for x in (u, v, u + v)]
        allowed = error @ (np.abs(u) + np.abs(v)).astype(float)
        assert (np.abs(images[0] + images[1] - images[2]) <= allowed).all()
        left, right = images[0] @ v, images[1] @ u
        both = np.abs(u).astype(float) @ error @ np.abs(v).astype(float)
        assert abs(left - right) <= both
        assert abs(float(h.bilinear(u, v)) - left) <= both

    check()


@DTYPES
def test_powers_of_two_on_an_operator_change_no_bit_of_what_it_gives_but_the_scale(dtype):
    """Those on the factors, taken back in the core, change nothing at all."""

    @holds_for(st.tuples(operators(dtype), strategies.exponents(dtype)))
    def check(drawn):
        (factors, core, scale, u, v), power = drawn
        h = lrj.SymmetricLowRank(factors, core)
        other = lrj.SymmetricLowRank(
            np.ldexp(factors, scale), np.ldexp(core, power - scale - scale.T)
        )

        def numbers(h):
            return h.eigenvalues(), h.trace(), h.frobenius_norm(), h.diagonal(), h @ v, h.to_dense()

        for found, expected in zip(numbers(other), numbers(h), strict=True):
            np.testing.assert_array_equal(found, np.ldexp(expected, power))
        x = h.solve(u, np.ones((), dtype))
        found = other.solve(u, np.ldexp(np.ones((), dtype), power))
        np.testing.assert_array_equal(found, np.ldexp(x, -power))

    check()
