"""The measured length of the steps of gradient differences, and the estimate of their error."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from benchmarks import errors, step_problems, steps
from tests import draws, reference

KEY = jax.random.key(0)
SUBSET = (
    "quadratic, small x",
    "rosenbrock",
    "log-sum-exp, double",
    "cosines, shift",
    "cosines at the origin",
    "softmax, half",
    "tanh network",
    "lennard-jones, far, double",
    "logistic",
    "noise 1e-4",
    "styblinski",
    "student",
)


@pytest.mark.study
def test_measured_steps_are_near_the_best_and_their_error_is_known():
    """The thresholds of the study in `benchmarks/steps.py`, on a subset of its problems."""
    found = [each for name in SUBSET for each in steps.study(name, steps.PROBLEMS[name]())]
    summary = steps.summary(found)
    assert summary["median"] < 1.3, found
    assert summary["90 %"] < 5, found
    assert summary["estimate within 3x"] > 0.8, found
    assert summary["above 10 % and not flagged"] == 0, found
    assert summary["most gradients more"] <= 10


@pytest.mark.parametrize("noise", [1e-5, 1e-4, 1e-3])
def test_steps_are_found_that_lie_between_the_rungs_of_the_ladder(noise):
    """With this noise a gradient tells of curvature nowhere but between two rungs, 2^11 apart."""
    problem = step_problems.noisy(step_problems.logistic(point=np.float64), noise)
    for found in steps.study("noise", problem):
        assert found["error"] < 5 * found["best"], found


def test_a_quotient_of_zero_does_not_show_how_small_the_noise_is():
    """Atoms so far from the origin that float32 gradients do not see the shortest steps."""
    problem = steps.PROBLEMS["lennard-jones, far, mixed"]()
    for found in steps.study("lennard-jones, far, mixed", problem):
        assert found["central"] < 0.005, found


def quartic(x, a, size=1.0):
    return size * (jnp.vdot(x, a @ x) / 2 + jnp.sum(x**4) / 4 + jnp.sum(x))


def pairs_of(loss, x, *args, **options):
    options = {"passes": 2, "solver": lambda pairs: pairs} | options
    return lrj.lowrank_hessian(loss, 3, **options)(x, *args, key=KEY)


def test_units_of_x_and_of_the_loss_change_nothing(rng):
    """But how a compiler rounds the gradient, which may move the length by an octave or two."""
    x, a = rng.normal(size=8), draws.symmetric(rng, 8)
    here = pairs_of(quartic, x, a)
    for unit, size in ((2.0**30, 1.0), (2.0**-40, 2.0**60), (1.0, 2.0**-80)):
        there = pairs_of(lambda y, a, u=unit, s=size: quartic(y / u, a, s), unit * x, a)
        octaves = np.log2(np.linalg.norm(there.steps, axis=1) / unit)
        octaves -= np.log2(np.linalg.norm(here.steps, axis=1))
        assert np.all(np.abs(octaves) < 2.01)
        assert np.all(there.rounding < 3e-7)
        exact = jax.hessian(quartic)(x, a) * size / unit**2
        assert reference.relative_error(there.grad_diffs, there.steps @ exact) < 1e-7


def test_the_step_that_was_found_gives_the_same_pairs_for_fewer_gradients(rng):
    x, a, points = rng.normal(size=8), draws.symmetric(rng, 8), []

    def gradient(x, a):
        points.append(x)
        return jax.grad(quartic)(x, a)

    at = partial(lrj.lowrank_hessian_from_gradient, gradient, 3, solver=lambda pairs: pairs)
    first = at(passes=1)(x, a, key=KEY)
    points.clear()
    again = at(passes=1, step=np.linalg.norm(first.steps[0]))(x, a, key=KEY)
    assert len(points) == 4
    assert again.rounding is None
    np.testing.assert_allclose(again.grad_diffs, first.grad_diffs, rtol=1e-6)


def test_the_second_pass_looks_for_shorter_steps():
    """Along the leading direction the best step is 2^9 times shorter than along the first one."""

    def loss(x):
        return jnp.sum(x[1:] ** 3) / 6 + jnp.sin(1000 * x[0]) / 100

    x = np.full(12, 0.5)
    x[0] = 0.0012
    start = np.eye(12)[3:4] + 2.0**-8 * np.eye(12)[:1]
    pairs = lrj.lowrank_hessian(loss, 1, start=start, solver=lambda pairs: pairs)(x, key=KEY)
    exact = np.asarray(pairs.steps) @ np.asarray(jax.hessian(loss)(x))
    assert reference.relative_error(pairs.grad_diffs[1], exact[1]) < 1e-8


def test_a_field_that_is_no_gradient_is_flagged(rng):
    """It is linear: no two steps disagree, and only symmetry is missing."""
    a = rng.normal(size=(8, 8))
    at = lrj.lowrank_hessian_from_gradient(lambda y: a @ y, 4, solver=lambda pairs: pairs)
    assert np.all(at(rng.normal(size=8), key=KEY).rounding > 0.3)


@pytest.mark.parametrize("crossing", [1, 2, 3])
def test_a_kink_that_any_probe_of_a_pass_crosses_is_known(rng, crossing):
    """The gradient jumps along that probe: to the others, and to symmetry, it is nothing.

    The first one, along which the step is measured, would take a step so long that it is nothing.
    """
    x, eye = rng.normal(size=6), np.eye(6)

    def loss(y, jump):
        return jnp.sum(jnp.cos(y)) + jump * jax.nn.relu(y[crossing] - x[crossing])

    at = lrj.lowrank_hessian(loss, 4, passes=1, start=eye[:4], solver=lambda pairs: pairs)
    pairs = at(x, 2e-9, key=KEY)
    exact = np.asarray(pairs.steps) * -np.cos(x)
    sizes = np.linalg.norm(pairs.steps, axis=1)
    error = np.linalg.norm(pairs.grad_diffs - exact, axis=1) / sizes
    true = np.max(error) / np.max(np.linalg.norm(exact, axis=1) / sizes)
    assert true > 0.01
    assert np.all((true / 3 < pairs.rounding) & (pairs.rounding < 3 * true))


@pytest.mark.parametrize(("count", "size"), [(1, 2000), (3, 400)])
def test_errors_are_not_compared_with_slopes_that_are_mostly_error(rng, count, size):
    """So many pairs of the second pass have jumps above all curvature, one before a small one."""
    x = rng.normal(size=10)

    def loss(y, jump):
        z = y - x
        jumps = jax.nn.relu(z[1]) + size * jnp.sum(jax.nn.relu(z[5 : 5 + count]))
        return jnp.sum(jnp.cos(y)) + jnp.sum(y[:4] * y[4:8]) + jump * jumps

    at = lrj.lowrank_hessian(loss, 4, start=np.eye(10)[:4], solver=lambda pairs: pairs)
    pairs = at(x, 2e-9, key=KEY)
    sizes = np.linalg.norm(pairs.steps, axis=1)
    exact = np.asarray(jax.hessian(loss)(x, 0.0))
    error = np.linalg.norm(pairs.grad_diffs - pairs.steps @ exact, axis=1) / sizes
    true = np.max(error.reshape(2, 4), axis=1) / np.linalg.norm(exact, 2)
    assert true[1] > 3
    assert true[0] / 4 < pairs.rounding[0] < 3 * true[0]


def test_of_a_function_of_one_number_no_more_than_the_error_is_left_out(rng):
    """All slopes and errors point along one vector, and slopes are not errors for that."""
    ratios = []

    def loss(y, a):
        return jnp.sin(a @ y)

    for a, x in rng.normal(size=(5, 2, 8)):
        for v in (a, -a):
            at = lrj.lowrank_hessian(loss, 1, passes=1, start=v[None], solver=lambda pairs: pairs)
            pairs = at(x, a, key=KEY)
            exact = np.asarray(pairs.steps) @ np.asarray(jax.hessian(loss)(x, a))
            true = np.linalg.norm(pairs.grad_diffs - exact) / np.linalg.norm(exact)
            ratios.append(pairs.rounding[0] / true)
    assert np.median(ratios) > 1 / 3
    assert np.quantile(ratios, 0.75) < 3


def test_a_check_that_is_no_number_is_no_agreement(rng):
    """A gradient that exists to one side of the point only."""
    x = rng.normal(size=6)
    at = lrj.lowrank_hessian_from_gradient(
        lambda y: np.where(np.any(y < x), np.nan, y**3),
        2,
        passes=1,
        start=np.eye(6)[:2],
        solver=lambda pairs: pairs,
    )
    assert np.all(at(x, key=KEY).rounding > 0.3)


def test_a_relu_network_at_its_start_is_flagged_in_every_pass():
    """Zero biases and blank images: the gradient jumps at the point, and all steps agree."""
    point = errors.blank_point(60)  # of 40 the jumps of the ten blank ones cancel
    at = lrj.lowrank_hessian(point.loss, 4, passes=3, return_pairs=True)
    for key in jax.random.split(KEY, 3):
        _, pairs = at(point.x, *point.data, key=key)
        assert np.max(pairs.rounding) > 0.3
        assert np.min(pairs.rounding) > 0.05


def test_a_batch_of_points_finds_the_steps_of_each(rng):
    """In one program under vmap, scales 1e6 apart, one not finite: as one at a time."""
    a = draws.symmetric(rng, 8)
    units = np.array([1e-3, 1.0, 1e3])
    x = rng.normal(size=(3, 8)) * units[:, None]

    def loss(y, unit):
        return quartic(y / unit, a)

    both = {"passes": 2, "return_pairs": True}
    at = jax.jit(jax.vmap(lambda y, u: lrj.lowrank_hessian(loss, 4, **both)(y, u, key=KEY)))
    h, pairs = at(x, units)
    bad, _ = at(np.where(np.arange(3)[:, None] == 1, np.nan, x), units)
    for i in range(3):
        exact = jax.hessian(loss)(x[i], units[i])
        found = jax.tree.map(lambda leaf, i=i: leaf[i], h).to_dense()
        assert reference.relative_error(found, exact) < 1e-6
        assert np.all(pairs.rounding[i] < 1e-6)
    assert np.isnan(bad.core).all(axis=(1, 2)).tolist() == [False, True, False]


def test_the_ladder_is_climbed_from_below_and_no_further_than_it_must(rng):
    """A gradient that breaks at long steps is never asked there on the host."""
    x, a = rng.normal(size=8), draws.symmetric(rng, 8)
    longest = []

    def gradient(y):
        longest.append(np.linalg.norm(y - x))
        assert longest[-1] < np.linalg.norm(x)
        return a @ y + y**3

    lrj.lowrank_hessian_from_gradient(gradient, 2)(x, key=KEY)
    assert max(longest) > 1e-6


@pytest.mark.parametrize("jitted", [False, True])
def test_where_short_steps_agree_to_the_last_bit_no_long_one_is_taken(jitted):
    """A quadratic and a bounded part, at its centre: steps of 100 agree as well, on 100 for 99."""

    def loss(x):
        return 50 * x[0] ** 2 - 20 * x[1] ** 2 + jnp.sum(jnp.cos(x))

    at = lrj.lowrank_hessian(loss, 4, passes=3, return_pairs=True)
    h, pairs = (jax.jit(at) if jitted else at)(jnp.zeros(30, jnp.float32), key=KEY)
    assert np.min(pairs.rounding) >= 2.0**-23  # the last bit is doubted still
    np.testing.assert_allclose(h.truncate(2).eigenvalues()[:2], [99, -41], rtol=1e-4)


def test_what_no_step_can_measure_is_flagged(rng):
    """Kinks at the point itself, and noise as large as the gradient."""
    w, x = rng.normal(size=(40, 12)), np.zeros(12)

    def jumps(x):
        return jnp.sum(jax.nn.relu(w @ x))

    def bends(x):  # to one side of x all steps agree
        return jnp.sum(jax.nn.relu(x) ** 2)

    for loss in (jumps, bends):
        assert np.max(pairs_of(loss, x).rounding) > 0.3
    noise = np.random.default_rng(0)
    noisy = lrj.lowrank_hessian_from_gradient(
        lambda x: np.sin(x) + noise.normal(size=12), 2, return_pairs=True
    )
    _, pairs = noisy(np.ones(12), key=KEY)
    assert np.max(pairs.rounding) > 0.3
    assert np.max(lrj.diagnose(lrj.fit(pairs), pairs).rounding) > 0.3


@pytest.mark.parametrize("central", [False, True])
def test_products_measure_their_step_along_their_vector(rng, central):
    """A loss whose scales along two directions are 100 apart; as one program and on the host."""
    x, v = np.float32([1.0, 1.0]), np.float32(np.eye(2))

    def loss(x):
        return jnp.sum(jnp.sin(x * jnp.array([1.0, 100.0], x.dtype)))

    product = lrj.gradient_difference(loss, central=central)
    exact = jax.hessian(loss)(x.astype(float))
    for at in (product, jax.jit(product)):
        for unit in v:
            error = reference.relative_error(at(x, unit), exact @ unit.astype(float))
            assert error < (1e-3 if central else 5e-3)


def test_a_loss_without_second_derivative_is_compared_with_central_differences(rng):
    w, x, vectors = rng.normal(size=(9, 6)), rng.normal(size=6), rng.normal(size=(3, 6))

    @jax.custom_vjp
    def loss(x):
        return jnp.sum(jnp.sin(w @ x))

    loss.defvjp(lambda x: (loss(x), x), lambda x, g: (g * (w.T @ jnp.cos(w @ x)),))

    def same(x):
        return jnp.sum(jnp.sin(w @ x))

    h = lrj.lowrank_hessian(same, 2)(x, key=KEY)
    product = lrj.gradient_difference(loss, central=True)
    found = lrj.compare_hvp(None, h, x, vectors, product=product)
    expected = lrj.compare_hvp(same, h, x, vectors)
    np.testing.assert_allclose(found.relative_error, expected.relative_error, atol=1e-6)
    with pytest.raises(TypeError, match="loss must be a function where no product is given"):
        lrj.compare_hvp(None, h, x, vectors)
    kinds, dense = [], np.asarray(jax.hessian(same)(x))

    def in_numpy(x, v):
        kinds.append((type(x), type(v), v.shape))
        return dense @ v

    found = lrj.compare_hvp(None, h, x, vectors, product=in_numpy)
    assert kinds == 3 * [(np.ndarray, np.ndarray, (6,))]  # as it is, one vector at a time
    np.testing.assert_allclose(found, expected, atol=1e-9)
    traced = jax.jit(lambda v: lrj.compare_hvp(None, h, x, v, product=lambda x, v: dense @ v))
    np.testing.assert_allclose(traced(vectors), expected, atol=1e-9)


def test_gradients_that_are_coarser_than_the_point(rng):
    """In bfloat16 at float32 points, in float32 at float64 points; how wrong it is is said."""
    a = draws.symmetric(rng, 12)
    for fine, coarse, tolerance in ((np.float32, jnp.bfloat16, 1), (float, np.float32, 2e-3)):
        x = rng.normal(size=12).astype(fine)

        def gradient(x, coarse=coarse):
            wide = np.asarray(x, float)
            return jnp.asarray(a @ wide + wide**3, coarse)

        hessian_at = lrj.lowrank_hessian_from_gradient(gradient, 6, return_pairs=True)
        h, pairs = hessian_at(x, key=KEY)
        exact = a + np.diag(3 * x.astype(float) ** 2)
        error = reference.relative_error(h.to_dense(), exact)
        assert error < min(tolerance, 3 * float(np.max(pairs.rounding)))


def test_a_loss_that_computes_in_float32_at_float64_points(rng):
    """The shortest steps change nothing at all, which is no agreement; the dtypes do not tell."""
    w, x = rng.normal(size=(20, 8)).astype(np.float32), 5 + rng.normal(size=8)

    def loss(x):
        z = w @ (jnp.float32(x) - 5)
        return jnp.sum(jnp.tanh(z) ** 2).astype(float)

    def wide(x):
        return jnp.sum(jnp.tanh(w.astype(float) @ (x - 5)) ** 2)

    exact = np.asarray(jax.hessian(wide)(x))
    h, pairs = lrj.lowrank_hessian(loss, 8, passes=1, return_pairs=True)(x, key=KEY)
    error = reference.relative_error(h.to_dense(), exact)
    assert error < min(0.1, 3 * float(np.max(pairs.rounding)))


@pytest.mark.parametrize("jitted", [False, True])
def test_how_the_point_is_rounded_drops_out_of_all_comparisons(rng, jitted):
    """A quadratic about the point itself, far from the origin: the shortest steps agree exactly."""
    a = draws.symmetric(rng, 8).astype(np.float32)
    x = (100 + rng.normal(size=8)).astype(np.float32)

    def loss(y):
        return jnp.vdot(y - x, a @ (y - x)) / 2

    at = lrj.lowrank_hessian(loss, 2, passes=1, return_pairs=True)
    _h, pairs = (jax.jit(at) if jitted else at)(x, key=jax.random.key(1))
    assert np.max(pairs.rounding) < 3e-7  # of steps that were asked for: 1e-6 to 3e-6
    assert np.max(np.linalg.norm(pairs.steps, axis=1)) < 1e-2 * np.linalg.norm(x)
