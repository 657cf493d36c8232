"""Inputs that break numerical code: what must come of each, in single and in double precision."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import lowrank_jax as lrj
from tests import draws, reference

N, DIM = 5, 6
V = np.linspace(-1, 1, DIM)
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


least_norm = partial(lrj.fit, extrapolate=0)


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def paired(s, y, dtype):
    return lrj.SecantPairs(jnp.asarray(s, dtype), jnp.asarray(y, dtype))


def fitted(s, y, dtype, extrapolate=2 / 3):
    """The operator, and what `diagnose` says of it."""
    pairs = paired(s, y, dtype)
    h = lrj.fit(pairs, extrapolate=extrapolate)
    return h, lrj.diagnose(h, pairs, extrapolate=extrapolate)


def quadratic(a):
    return lambda x: x @ jnp.asarray(a, x.dtype) @ x / 2


@jax.jit
def results(s, y):
    h = lrj.fit(lrj.SecantPairs(s, y))
    return h @ jnp.asarray(V, s.dtype), h.trace(), h.logdet(jnp.asarray(64, h.core.dtype))


@jax.jit
@partial(jax.grad, argnums=(0, 1))
def gradients(s, y):
    return sum(jnp.sum(x) for x in results(s, y))


@pytest.mark.parametrize(
    ("cloud", "dtype"), [("equal points", np.float32), ("a linear loss", np.float64)]
)
def test_a_cloud_that_shows_no_curvature_has_exactly_the_zero_operator(rng, cloud, dtype):
    linear = cloud == "a linear loss"
    points = rng.normal(size=(N, DIM)).astype(dtype) if linear else np.full((N, DIM), 1.1, dtype)
    loss = (lambda x: jnp.sum(V.astype(dtype) * x)) if linear else quadratic(np.eye(DIM))
    pairs = lrj.secant_pairs(loss)(points)
    h = lrj.fit(pairs)
    np.testing.assert_array_equal(h.to_dense(), np.zeros((DIM, DIM)))
    np.testing.assert_array_equal(h.eigenvalues(), 0)
    report = lrj.diagnose(h, pairs)
    assert report.finite
    assert report.rank == (4 if linear else 0)
    assert report.secant_residual == report.asymmetry == 0
    np.testing.assert_allclose(h.solve(V.astype(dtype), 2.0), V / 2, atol=2 * eps(dtype))
    np.testing.assert_allclose(h.logdet(2.0), DIM * np.log(2), rtol=4 * eps(dtype))


def test_one_point_and_spaces_of_no_dimension_or_one(rng):
    dtype = np.float32
    single = lrj.secant_hessian(quadratic(np.eye(DIM)))(rng.normal(size=(1, DIM)).astype(dtype))
    np.testing.assert_array_equal(single.eigenvalues(), 0)
    nothing = lrj.secant_hessian(jnp.sum)(np.zeros((2, 0), dtype))
    assert nothing.shape == (0, 0)
    assert nothing.trace() == nothing.logdet(2.0) == 0
    assert nothing.solve(np.zeros(0, dtype), 2.0).shape == (0,)
    x = rng.normal(size=(2, 1)).astype(dtype)
    tree = {"x": x, "none": np.zeros((2, 0, 2), dtype)}
    line = lrj.secant_hessian(lambda p: 1.5 * jnp.sum(p["x"] ** 2) + jnp.sum(p["none"]))(tree)
    np.testing.assert_allclose(line.eigenvalues()[:1], 3, rtol=20 * eps(dtype))
    assert line.eigh()[1]["none"].shape == (1, 0, 2)


@DTYPES
@pytest.mark.parametrize("pairing", [lrj.centered, lrj.from_first, lrj.successive])
def test_a_point_given_twice_counts_once(rng, pairing, dtype):
    points, a = rng.normal(size=(N - 1, DIM)).astype(dtype), draws.symmetric(rng, DIM)
    steps = np.diff(points.astype(float), axis=0)
    found = lrj.secant_hessian(quadratic(a), pairing=pairing)(points[[0, 1, 1, 2, 3]]).to_dense()
    truth = reference.fit(steps, steps @ a, 2 / 3)
    assert reference.relative_error(found, truth) < 1000 * eps(dtype)


@DTYPES
def test_a_point_with_two_gradients_shows_as_residual(rng, dtype):
    points, grads = rng.normal(size=(2, N, DIM)).astype(dtype)
    points[3] = points[1]
    pairs = lrj.centered(points, grads)
    report = lrj.diagnose(lrj.fit(pairs), pairs)
    assert report.finite
    assert report.rank == 3
    assert report.secant_residual > 0.1


@DTYPES
def test_the_signs_of_curvature_are_kept(rng, dtype):
    w = np.array([-3, 2, -1])
    q = np.linalg.qr(rng.normal(size=(DIM, 3)))[0]
    s = rng.normal(size=(N, 3)) @ q.T
    h, report = fitted(s, s @ (q * w) @ q.T, dtype)
    assert report.rank == 3
    assert reference.relative_error(h.to_dense(), (q * w) @ q.T) < 200 * eps(dtype)
    np.testing.assert_allclose(h.eigenvalues()[:3], w, rtol=200 * eps(dtype))
    np.testing.assert_array_equal(h.eigenvalues()[3:], 0)


@DTYPES
def test_collinear_steps_with_consistent_gradients_are_satisfied(rng, dtype):
    s = np.outer([1, -2, 0.5, 1e3, 0], rng.normal(size=DIM))
    y = s @ draws.symmetric(rng, DIM)
    h, report = fitted(s, y, dtype)
    assert report.rank == 1
    assert report.secant_residual < 20 * eps(dtype)
    dense = np.asarray(h.to_dense(), float)
    assert reference.relative_error(s @ dense, y) < 20 * eps(dtype)


def test_truncation_beyond_the_rank_adds_zeros_and_to_nothing_gives_zero(rng):
    s = rng.normal(size=(N, 2)) @ rng.normal(size=(2, DIM))
    h = fitted(s, s @ draws.symmetric(rng, DIM), np.float32, 0)[0]
    short = h.truncate(7)
    np.testing.assert_array_equal(np.diag(short.core)[4:], 0)
    np.testing.assert_array_equal(short.factors[4:], 0)
    assert reference.relative_error(short.to_dense(), h.to_dense()) < 1e-6
    np.testing.assert_array_equal(h.truncate(0).to_dense(), np.zeros((DIM, DIM)))


@DTYPES
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_least_rank_recovers_low_rank_to_rounding_times_both_conditions(rng, rank, dtype):
    """Of curvatures above sqrt(eps): what is below counts as rounding."""
    for cond in (1, 10, 100):
        ratios = []
        while len(ratios) < 5:
            a = draws.symmetric(rng, DIM, rank)
            s = draws.steps_of_condition(rng, N, DIM, cond, "geometric")
            q = reference.whitened(s, s @ a, N)[0]
            w = np.sort(np.abs(np.linalg.eigvalsh(q @ a @ q.T)))[-rank:]
            if w[0] < 3 * eps(dtype) ** 0.5 * w[-1]:
                continue
            ratios.append(w[-1] / w[0])
            h = fitted(s, s @ a, dtype, 1)[0].to_dense()
            assert reference.relative_error(h, a) < 30 * eps(dtype) * cond * ratios[-1]


@DTYPES
def test_a_step_without_curvature_is_satisfied_and_flagged(rng, dtype):
    """A = diag(1, -1) and the step (1, 1); the flag is that of the span, however it is given."""
    s, y = np.zeros((2, N, DIM))
    s[0, :2], y[0, :2] = (1, 1), (1, -1)
    h, report = fitted(s, y, dtype)
    np.testing.assert_allclose(h @ s[0].astype(dtype), y[0], atol=4 * eps(dtype))
    assert report.finite
    assert report.rank == 1
    assert report.secant_residual < 4 * eps(dtype)
    assert report.least_curvature < 4 * eps(dtype)
    s[1:3, 2:], y[1:3, 2:] = rng.normal(size=(2, 2, 4))
    y[1:3, 2:] = s[1:3, 2:] * np.array([1, 2, 3, 4])
    mix = rng.normal(size=(N, N))
    for rows in (np.eye(N), mix):
        assert fitted(rows @ s, rows @ y, dtype)[1].least_curvature < 100 * eps(dtype)
    # Two steps that are turned into each other are curved along their sum and difference.
    s, y = np.eye(N, DIM), np.eye(N, DIM)
    y[:2] = y[[1, 0]]
    np.testing.assert_allclose(fitted(s, y, dtype)[1].least_curvature, 1, rtol=10 * eps(dtype))


@DTYPES
@pytest.mark.parametrize("cosine", [1e-1, 1e-2, 1e-4, 1e-6, 1e-10, 1e-20])
def test_what_has_nearly_no_curvature_extrapolates_to_a_bounded_operator(cosine, dtype):
    """`1 / cosine` where that is seen; never above the greatest value of the damped inverse."""
    s, y = np.zeros((2, N, DIM))
    s[0, 0], y[0, :2] = 1, (cosine, 1)
    h, report = fitted(s, y, dtype, 1)
    np.testing.assert_allclose(
        h @ s[0].astype(dtype), y[0], rtol=4 * eps(dtype), atol=4 * eps(dtype)
    )
    width = eps(dtype) ** 0.5 * 2 * np.hypot(cosine, 1)  # of K and of h, one number each
    c = cosine / (cosine**2 + width**2)
    expected = np.sqrt(cosine**2 + 2 + c**2)
    np.testing.assert_allclose(h.frobenius_norm(), expected, rtol=4 * cosine**2 + 100 * eps(dtype))
    assert expected < 1 / np.sqrt(eps(dtype))
    np.testing.assert_allclose(report.least_curvature, cosine, rtol=1e-2)


@DTYPES
@pytest.mark.parametrize("extrapolate", [2 / 3, 1])
def test_opposite_curvatures_of_one_size_give_one_operator(rng, extrapolate, dtype):
    across = rng.normal(size=(3, 3))
    a = np.block([[np.diag([4.0, 2, -2]), across], [across.T, np.eye(3)]])
    s = np.pad(np.eye(3, DIM), ((0, 2), (0, 0)))
    truth = reference.fit(s, s @ a, extrapolate, rank=3, eps=eps(dtype))
    for order in ([0, 1, 2, 3, 4], [2, 4, 1, 0, 3], [1, 0, 3, 4, 2]):
        q = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
        h, _ = fitted(s[order] @ q, s[order] @ a @ q, dtype, extrapolate)
        found = np.asarray(h.to_dense(), float)
        assert reference.relative_error(q @ found @ q.T, truth) < 50 * eps(dtype)


def hilbert():
    i = np.arange(DIM)
    return 1 / (i[:N, None] + i[None, :] + 1)


def kahan(angle=0.5):
    s, c = np.sin(angle), np.cos(angle)
    upper = np.eye(N, DIM) - c * np.triu(np.ones((N, DIM)), 1)
    return s ** np.arange(N)[:, None] * upper


def turned(rng, values):
    u, v = (np.linalg.qr(rng.normal(size=(k, N)))[0] for k in (N, DIM))
    return (u * values) @ v.T


SPECTRA = {
    **{
        f"{spectrum} {cond:.0e}": lambda rng, spectrum=spectrum, cond=cond: (
            draws.steps_of_condition(rng, N, DIM, cond, spectrum)
        )
        for spectrum in ("one small", "geometric", "clustered")
        for cond in 10.0 ** np.arange(0, 17, 2)
    },
    "hilbert": lambda rng: hilbert(),
    "kahan": lambda rng: kahan(),
    "nearly singular kahan": lambda rng: kahan(0.03),
    "spiked": lambda rng: turned(rng, [1e6, 1, 1, 1, 1]),
    "steps": lambda rng: turned(rng, [1, 1, 1e-4, 1e-4, 1e-8]),
}


@DTYPES
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_error_is_rounding_times_the_condition_or_the_rank_says_so(rng, spectrum, dtype):
    """Of the Hessian on the whole span; no cliff where the square of the condition is 1 / eps."""
    a = draws.symmetric(rng, DIM)
    s = SPECTRA[spectrum](rng)
    s = s.astype(dtype).astype(float)
    y = (s @ a).astype(dtype)
    h, report = fitted(s, y, dtype, 0)
    unit = reference.unit_pairs(s, s)[0]
    values = np.linalg.svd(unit)[1]
    cond = values[0] / values[-1]
    truth = reference.fit(s, s @ a, 0, rank=N)
    error = reference.relative_error(h.to_dense(), truth)
    assert error < 30 * eps(dtype) * cond if report.rank == N else eps(dtype) * cond > 0.01
    assert report.rank <= N
    assert np.isfinite(report.secant_residual)


@DTYPES
@pytest.mark.parametrize(("offset", "low", "high"), [(0, 0, 1e2), (1, 1, 1e4)])
def test_points_near_each_other_show_in_the_rounding(rng, offset, low, high, dtype):
    """Spread s at distance d: eps d / s, here of sqrt(eps) apart."""
    points = offset + np.sqrt(eps(dtype)) * rng.normal(size=(N, DIM))
    pairs = lrj.secant_pairs(quadratic(np.eye(DIM)))(points.astype(dtype))
    rounding = lrj.diagnose(lrj.fit(pairs), pairs).rounding
    unit = eps(dtype) ** 0.5 if offset else eps(dtype)
    assert low * unit < rounding < high * unit


@DTYPES
def test_a_cloud_that_its_offset_swallows_is_flagged(rng, dtype):
    spread = 1e-3 if dtype == np.float32 else 1e-12
    points = (1e6 + spread * rng.normal(size=(N, DIM))).astype(dtype)
    pairs = lrj.secant_pairs(quadratic(draws.symmetric(rng, DIM)))(points)
    report = lrj.diagnose(lrj.fit(pairs), pairs)
    assert report.rounding > 0.5


@jax.jit
def compared(h, a, x, vectors):
    return lrj.compare_hvp(lambda x: x @ (a @ x) / 2, h, x, vectors)


@DTYPES
@pytest.mark.parametrize("exponent", [-0.49, 0.49])
def test_data_near_the_roots_of_the_largest_and_the_least_number(rng, exponent, dtype):
    size = float(np.finfo(dtype).max) ** exponent
    a = draws.symmetric(rng, DIM)
    s = draws.steps_of_condition(rng, N, DIM, 3, "geometric")
    truth = reference.fit(s, s @ a, 2 / 3)
    w = np.linalg.eigvalsh(truth)
    w = w[np.argsort(-np.abs(w))]
    for step, slope in ((size, size), (1, size), (size, 1)):
        unit = slope / step
        h, report = fitted(step * s, slope * s @ a, dtype)
        tolerance = 300 * eps(dtype)
        assert reference.relative_error(np.asarray(h.to_dense(), float) / unit, truth) < tolerance
        assert report.finite
        assert report.secant_residual < tolerance
        assert report.least_curvature > tolerance
        found, rows = h.eigh()
        np.testing.assert_allclose(found[:DIM] / unit, w, atol=tolerance * abs(w[0]))
        np.testing.assert_allclose(rows[:DIM] @ rows[:DIM].T, np.eye(DIM), atol=tolerance)
        x = np.asarray(h.solve(V.astype(dtype), 9 * unit), float) * unit
        exact = np.linalg.solve(truth + 9 * np.eye(DIM), V)
        assert reference.relative_error(x, exact) < tolerance
        full = (unit * a).astype(dtype)
        comparison = compared(h, full, (step * V).astype(dtype), (step * s).astype(dtype))
        assert np.max(comparison.relative_error) < tolerance
        assert np.max(np.abs(comparison.cosine - 1)) < tolerance
        assert np.max(np.abs(comparison.curvature_error)) < tolerance


@DTYPES
def test_subnormal_pairs_are_zeros_and_no_nan(rng, dtype):
    s, a = rng.normal(size=(N, DIM)), np.eye(DIM)
    tiny = float(np.finfo(dtype).tiny) * 1e-3
    s[1] *= tiny
    h, report = fitted(s, s @ a, dtype)
    rest = np.delete(s, 1, axis=0)
    assert report.finite
    assert np.isfinite(report.secant_residual)
    dense = np.asarray(h.to_dense(), float)
    assert reference.relative_error(rest @ dense, rest) < 200 * eps(dtype)
    nothing, report = fitted(tiny * s, tiny * s @ a, dtype)
    assert report.finite
    assert np.isfinite(nothing.to_dense()).all()
    assert np.linalg.norm(nothing.to_dense(), 2) < 2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_single_inside_and_comes_back_as_it_was(rng, dtype):
    a = draws.symmetric(rng, DIM)
    s = jnp.asarray(rng.normal(size=(N, DIM)), dtype)
    wide = np.asarray(s, float)
    y = jnp.asarray(wide @ a, dtype)
    h, report = fitted(s, y, dtype)
    truth = reference.fit(wide, np.asarray(y, float), 2 / 3)
    assert report.finite
    assert report.secant_residual.dtype == h.eigenvalues().dtype == np.float32
    assert report.secant_residual < 100 * eps(dtype)
    assert h.solve(s[0], 9.0).dtype == h.eigh()[1].dtype == dtype
    assert reference.relative_error(h.to_dense(), truth) < 10 * eps(dtype)
    exact = np.linalg.solve(truth + 9 * np.eye(DIM), wide[0])
    assert reference.relative_error(h.solve(s[0], 9.0), exact) < 10 * eps(dtype)


def bent(w, x):
    return jnp.sum(jnp.tanh(x) * (w @ x))


@jax.jit
@jax.vmap
def lanes(points, w, rtol):
    pairs = lrj.secant_pairs(bent, 1)(w, points)
    of_cloud = lrj.secant_hessian(bent, 1)(w, points)
    return of_cloud, lrj.fit(pairs, extrapolate=rtol), lrj.fit(pairs, rtol=rtol)


@DTYPES
@pytest.mark.parametrize("where", ["points", "gradients", "options"])
def test_a_lane_that_is_not_finite_leaves_the_others_as_they_were(rng, where, dtype):
    """Bit for bit; with lanes that are easy and lanes that are not."""
    points = rng.normal(size=(4, N, DIM)).astype(dtype)
    points[2] *= np.array([1, 1e-3, 1, 1, 1, 1], dtype)
    w, rtol = rng.normal(size=(4, DIM, DIM)).astype(dtype), np.full(4, 1e-6, dtype)
    before = lanes(points, w, rtol)
    points, w, rtol = points.copy(), w.copy(), rtol.copy()
    {"points": points[1, 2], "gradients": w[1, 3], "options": rtol[1:2]}[where][0] = np.nan
    after = lanes(points, w, rtol)
    good = [0, 2, 3]
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(np.asarray(x)[good], np.asarray(y)[good])
    assert all(np.isnan(h.core[1]).all() for h in (after[1:] if where == "options" else after))


@DTYPES
def test_an_infinite_gradient_is_reported(rng, dtype):
    points = np.abs(rng.normal(size=(N, DIM))).astype(dtype)
    points[2, 1] = 0
    pairs = lrj.secant_pairs(lambda x: jnp.sum(jnp.sqrt(x)))(points)
    h = lrj.fit(pairs)
    assert not lrj.diagnose(h, pairs).finite
    assert np.isnan(h.to_dense()).all()
    assert [int(count) for count in h.inertia()] == [-1, -1, -1]


def silent_cases(rng):
    """Points and gradients, degenerate and finite."""
    points = rng.normal(size=(N, DIM))
    twice = points[[0, 1, 1, 3, 4]]
    saddle = np.zeros((2, N, DIM))
    saddle[0, 1:, :2], saddle[1, 1:, :2] = (1, 1), (1, -1)
    return {
        "equal points": (np.ones((N, DIM)), np.ones((N, DIM))),
        "a point twice": (twice, twice * V),
        "a point with two gradients": (twice, points),
        "a linear loss": (points, np.ones((N, DIM))),
        "no curvature along the step": tuple(saddle),
        "zero operator": (points, np.zeros((N, DIM))),
    }


@DTYPES
def test_degenerate_data_make_no_nan_that_jax_would_stop_at(rng, dtype):
    for points, grads in silent_cases(rng).values():
        with jax.debug_nans(True):
            pairs = lrj.centered(points.astype(dtype), grads.astype(dtype))
            h = lrj.fit(pairs)
            lrj.diagnose(h, pairs)
            h.eigh()
            h.solve(V.astype(dtype), 64.0)
            h.logdet(64.0)
            found = gradients(pairs.steps, pairs.grad_diffs)
        assert all(np.isfinite(x).all() for x in found)


@jax.jit
@partial(checkify.checkify, errors=checkify.float_checks)
@jax.value_and_grad
def checked(pairs):
    return lrj.fit(pairs).trace()


def test_degenerate_data_make_no_nan_inside(rng):
    for name, (points, grads) in silent_cases(rng).items():
        error, _ = checked(lrj.SecantPairs(points, grads))
        assert error.get() is None, name


@DTYPES
def test_gradients_at_the_identity_are_those_of_finite_differences(rng, dtype):
    """All curvatures are tied there: steps stay below what parts a tie."""
    s, along = rng.normal(size=(N, DIM)), rng.normal(size=(2, N, DIM))
    found = gradients(s.astype(dtype), s.astype(dtype))
    ends = [results(*(s + step * along)) for step in (-1e-9, 1e-9)]
    below, above = (sum(float(jnp.sum(x)) for x in each) for each in ends)
    slope = np.sum(np.asarray(found, float) * along)
    np.testing.assert_allclose(slope, (above - below) / 2e-9, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("top", [2.0**24, 1e-20])
def test_eigenvalues_of_any_size_in_float32_have_right_values_and_gradients(rng, top):
    """Of diag(w), w from `top` down to 1e-20: the trace's in y is the pseudo-inverse of s."""
    w = np.geomspace(top, 1e-20, N)
    s = np.eye(N, DIM)
    y = (s[:, :N] * w) @ np.eye(N, DIM)
    v, trace, logdet = results(s.astype(np.float32), y.astype(np.float32))
    np.testing.assert_allclose(trace, np.sum(w), rtol=1e-6)
    np.testing.assert_allclose(v, [*(w * V[:N]), 0], rtol=1e-6)
    seen = np.where(w > 20 * eps(np.float32) * top, w, 0)  # the others are zero to rounding
    exact = np.sum(np.log1p(seen / 64)) + DIM * np.log(64)
    np.testing.assert_allclose(logdet, exact, rtol=1e-6)
    d_steps, d_diffs = gradients(s.astype(np.float32), y.astype(np.float32))
    assert np.isfinite(d_steps).all()
    found = np.diag(d_diffs[:, :N]) - V[:N] - 1  # of an eigenvalue at the cut, either is right
    assert (found > 1 / (64 + w) - 5e-5).all()
    assert (found < 1 / (64 + seen) + 1e-5).all()


ORDER = [1, 0, 2, 4, 3]


@DTYPES
def test_padding_is_inert_in_gradients(rng, dtype):
    s = draws.steps_of_condition(rng, 3, DIM, 2, "geometric")
    s, y = np.pad(s, ((1, 1), (0, 0))), np.pad(s @ draws.symmetric(rng, DIM), ((1, 1), (0, 0)))
    first, second = (
        [np.asarray(x) for x in gradients(s[order].astype(dtype), y[order].astype(dtype))]
        for order in (slice(None), ORDER)
    )
    for x, z in zip(first, second, strict=True):
        assert np.isfinite(x).all()
        assert reference.relative_error(z, x[ORDER]) < 1000 * eps(dtype)
    np.testing.assert_array_equal(first[1][[0, 4]], 0)


def test_a_loop_that_donates_its_points_compiles_once(rng):
    @partial(jax.jit, donate_argnums=0)
    @chex.assert_max_traces(n=1)
    def step(points):
        h = lrj.secant_hessian(quadratic(np.diag(V)), solver=least_norm)(points)
        return points - 0.1 * jax.vmap(h.mv)(points)

    start = rng.normal(size=(N, DIM))
    centre = start - start.mean(0)
    points = step(step(step(jnp.asarray(centre))))
    # The steps span the centred points, where H is diag(V) but for what leaves their span.
    h = reference.fit(centre, centre * V, 0, rank=4)
    np.testing.assert_allclose(step(jnp.asarray(centre)), centre - 0.1 * centre @ h, atol=1e-12)
    assert np.isfinite(points).all()


def test_pairs_of_two_precisions_work_under_strict_promotion(rng):
    s, a = rng.normal(size=(N, DIM)).astype(np.float32), draws.symmetric(rng, DIM)
    pairs = lrj.SecantPairs(s, s.astype(float) @ a)
    h = lrj.fit(pairs)
    assert h.dtype == (h @ s[0]).dtype == np.float32
    assert lrj.diagnose(h, pairs).secant_residual < 1e-5
    truth = reference.fit(s, s.astype(float) @ a, 2 / 3)
    assert reference.relative_error(h.to_dense(), truth) < 1e-5
