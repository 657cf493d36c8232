"""The optax transformations, against dense models of the Hessian in NumPy and optax's own."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lowrank_jax import optim
from lowrank_jax._training.direction import direction, no_products
from tests import draws, reference

N, DIM = 6, 12


def spectrum(rng, values):
    u = np.linalg.qr(rng.normal(size=(len(values),) * 2))[0]
    return (u * values) @ u.T


def padded(rows):
    """As a history holds them: N rows, the unused ones zero."""
    return np.pad(rows, ((N - len(rows), 0), (0, 0)))


def direction_of(s, y, g, damping=None):
    """`B^-1 g`, after the pairs have come one by one, the oldest first."""
    products = no_products(N, s.dtype)
    for newest in np.arange(N, dtype=np.int32):
        found, products = direction(products, s, y, newest, g, damping)
    return found


def inverse_model(s, y, damping=None):
    """All of B^-1."""
    one = functools.partial(direction_of, padded(s), padded(y), damping=damping)
    return np.asarray(jax.vmap(one)(np.eye(s.shape[1])))


@pytest.mark.parametrize("condition", [5, 1e5])
@pytest.mark.parametrize("n", [1, 3, N])
def test_on_a_convex_quadratic_the_direction_is_that_of_block_bfgs(rng, n, condition):
    a, s = spectrum(rng, np.geomspace(1, condition, DIM)), rng.normal(size=(n, DIM))
    y = s @ a
    found = inverse_model(s, y)
    off = reference.relative_error(found @ reference.block_bfgs(s, y), np.eye(DIM))
    assert off < 1e-14 * condition**2
    np.testing.assert_allclose(y @ found, s, atol=1e-14 * condition**1.5)


@pytest.mark.parametrize(("damping", "noise"), [(None, 0.3), (None, 6.0), (0.7, 0.3)])
def test_pairs_that_contradict_each_other_are_made_conjugate_as_far_as_they_agree(
    rng, damping, noise
):
    """Indefinite, and inconsistent by noise."""
    s = rng.normal(size=(N, DIM))
    y = s @ draws.symmetric(rng, DIM) + noise * rng.normal(size=(N, DIM))
    model = reference.conjugated_bfgs(s, y, damping)
    off = reference.relative_error(inverse_model(s, y, damping) @ model, np.eye(DIM))
    assert off < 1e-14 * np.linalg.cond(model)


def test_a_step_across_which_the_gradient_turns_has_the_curvature_of_the_turn():
    s, y = np.zeros((2, 1, DIM))
    s[0, 3], y[0, 5] = 2, 6
    np.testing.assert_allclose(inverse_model(s, y), np.eye(DIM) / 3, atol=1e-14)


def test_of_two_measurements_of_one_curvature_the_newer_counts():
    s, y = np.zeros((2, 2, DIM))
    s[:, 3], y[:, 3] = [1, -10], [3, -60]
    np.testing.assert_allclose(inverse_model(s, y)[3], np.eye(DIM)[3] / 6, atol=1e-12)


@pytest.mark.parametrize("kind", ["indefinite", "noise", *draws.DEPENDENT])
def test_every_set_of_pairs_gives_a_positive_definite_model(rng, kind):
    if kind in draws.DEPENDENT:
        s, _ = draws.dependent(rng, kind, n=5, dim=4 if kind == "more than D" else DIM)
        s = s[:N]
    else:
        s = rng.normal(size=(N, DIM))
    dim = s.shape[1]
    y = rng.normal(size=s.shape) if kind != "indefinite" else s @ draws.symmetric(rng, dim)
    found = inverse_model(s, y)
    np.testing.assert_allclose(found, found.T, atol=1e-9 * np.max(np.abs(found)))
    assert np.linalg.eigvalsh((found + found.T) / 2)[0] > 0


@pytest.mark.parametrize("exponent", [-60, 60])
def test_a_loss_times_a_power_of_two_has_the_same_direction_bit_for_bit(rng, exponent):
    s, y = rng.normal(size=(2, N, DIM))
    g, factor = rng.normal(size=DIM), 2.0**exponent
    found = direction_of(s, y, g)
    np.testing.assert_array_equal(direction_of(s, factor * y, factor * g), found)


@pytest.mark.parametrize("exponent", [-113, 113])
def test_the_size_of_ill_conditioned_steps_changes_no_bit(rng, exponent):
    s = draws.steps_of_condition(rng, N, DIM, 1e5, "geometric")
    s, y = np.float32(s), np.float32(s @ spectrum(rng, np.geomspace(1, 8, DIM)))
    g, factor = np.ones(DIM, np.float32), np.float32(2.0**exponent)
    found = direction_of(s, y, g)
    for longer in np.float32([1, 2.0**40]):  # times one over a step it is out of range
        of_longer = direction_of(factor * s, factor * y, longer * g)
        np.testing.assert_array_equal(of_longer, longer * found)


def test_what_is_rounding_beside_newer_pairs_counts_for_nothing(rng):
    """A step that is nearly the newest one: what is left of it has a curvature that is noise."""
    a = spectrum(rng, np.geomspace(1, 8, DIM))
    for _ in range(20):
        older, newest, apart = rng.normal(size=(3, DIM))
        s = np.float32([older, newest + 10 ** rng.uniform(-6, -4) * apart, newest])
        y, g = np.float32(s @ a), rng.normal(size=DIM).astype(np.float32)
        found = direction_of(padded(s), padded(y), g)
        expected = direction_of(padded(s[::2]), padded(y[::2]), g)
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_along_eigenvectors_the_model_is_the_magnitude_of_the_hessian_and_the_damping(rng):
    values, vectors = np.linalg.eigh(draws.symmetric(rng, DIM))
    some = vectors[:, [0, 1, 5, 11]]
    s = rng.normal(size=4)[:, None] * some.T
    y = s @ (vectors * values) @ vectors.T
    size = some * np.abs(values[[0, 1, 5, 11]]) @ some.T
    found = inverse_model(s, y, 0.3)
    assert reference.relative_error(found, np.linalg.inv(size + 0.3 * np.eye(DIM))) < 1e-10
    none = np.zeros((1, DIM))
    assert reference.relative_error(inverse_model(none, none, 0.3), np.eye(DIM) / 0.3) < 1e-14


def trained(opt, gradient, x, steps, state=None, **extra):
    """The points, updates and last state of a loop without jit."""
    state = opt.init(x) if state is None else state
    points, all_updates = [x], []
    for _ in range(steps):
        updates, state = opt.update(gradient(x), state, x, **extra)
        x = x + updates
        points.append(x)
        all_updates.append(updates)
    return np.array(points), np.array(all_updates), state


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_the_first_step_is_the_gradient_but_no_longer_than_one(rng, size):
    g = size * rng.normal(size=DIM)
    opt = optim.scale_by_secant(N)
    found, _ = opt.update(jnp.asarray(g), opt.init(jnp.zeros(DIM)), jnp.zeros(DIM))
    np.testing.assert_allclose(found, g / max(np.linalg.norm(g), 1), rtol=1e-14)


def test_steps_and_gradients_of_zero_and_a_linear_loss_keep_everything_finite(rng):
    g = jnp.asarray(rng.normal(size=DIM))
    opt = optim.secant_newton(1.0, memory_size=N)
    points, updates, _ = trained(opt, lambda x: g, jnp.zeros(DIM), 4)
    np.testing.assert_allclose(updates, np.tile(-g / jnp.linalg.norm(g), (4, 1)), atol=1e-12)

    a = spectrum(rng, np.linspace(1, 5, DIM))
    points, updates, state = trained(opt, lambda x: a @ x, g, 3)
    again, unmoved = opt.update(a @ points[2], state, points[2])
    again, unmoved = opt.update(a @ points[2], unmoved, points[2])
    assert unmoved[0].history.points == state[0].history.points == 3
    np.testing.assert_array_equal(opt.update(a @ points[2], unmoved, points[2])[0], again)
    for x in (points[2], jnp.zeros(DIM)):
        zero, _ = opt.update(jnp.zeros(DIM), state, x)
        np.testing.assert_array_equal(zero, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_gives_no_step_and_no_pair(rng, bad):
    a = spectrum(rng, np.linspace(1, 5, DIM))
    opt = optim.secant_newton(1.0, memory_size=N)
    points, _, state = trained(opt, lambda x: a @ x, jnp.asarray(rng.normal(size=DIM)), 3)
    updates, after = opt.update(jnp.asarray(a @ points[3]).at[4].set(bad), state, points[3])
    np.testing.assert_array_equal(updates, 0)
    assert after[0].history.skipped == 1
    expected = state[0].history._replace(skipped=after[0].history.skipped)
    jax.tree.map(np.testing.assert_array_equal, after[0].history, expected)
    points, _, state = trained(opt, lambda x: a @ x, jnp.asarray(points[3]), 30, after)
    assert np.linalg.norm(points[-1]) < 1e-10
    assert state[0].history.skipped == 1


def minimised(opt, tol, most=2000):
    """The jitted function of (loss's data, start): where it ends and how many gradients it took."""

    def run(loss, x):
        value_and_grad = optax.value_and_grad_from_state(loss)
        goal = tol * jnp.linalg.norm(jax.grad(loss)(x))

        def going(state):
            _, opt_state, gradients = state
            grad = optax.tree_utils.tree_get(opt_state, "grad")
            return (gradients < most) & ((gradients == 1) | (jnp.linalg.norm(grad) > goal))

        def step(state):
            x, opt_state, gradients = state
            value, grad = value_and_grad(x, state=opt_state)
            updates, opt_state = opt.update(
                grad, opt_state, x, value=value, grad=grad, value_fn=loss
            )
            info = optax.tree_utils.tree_get(opt_state, "info")
            x = optax.apply_updates(x, updates)
            return x, opt_state, gradients + info.num_linesearch_steps

        x, _, gradients = jax.lax.while_loop(going, step, (x, opt.init(x), 1))
        return x, gradients

    return run


@pytest.mark.usefixtures("fully_compiled")
def test_on_quadratics_secant_newton_needs_no_more_gradients_than_lbfgs(rng):
    dim, cond, runs = 100, 1e4, {}
    for opt in (optim.secant_newton(memory_size=20), optax.lbfgs(memory_size=20)):
        run = minimised(opt, 1e-8)
        runs[opt] = jax.jit(lambda a, x, run=run: run(lambda x: 0.5 * x @ (a @ x), x)), []
    for k in range(5):
        inner = np.geomspace(1, 1 / cond, dim) if k % 2 else cond ** -rng.uniform(size=dim)
        a = spectrum(rng, np.concatenate([[1], inner[1:-1], [1 / cond]]))
        start = rng.normal(size=dim)
        for run, counts in runs.values():
            with jax.numpy_dtype_promotion("standard"):  # for optax.lbfgs
                x, gradients = run(a, start)
            assert np.linalg.norm(a @ x) <= 1e-8 * np.linalg.norm(a @ start)
            counts.append(gradients)
    ours, theirs = (np.median(counts) for _, counts in runs.values())
    assert ours <= theirs


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def bounded_monkey_saddle(x):
    a, b = x
    return a**3 - 3 * a * b**2 + (a**2 + b**2) ** 2 + 27 / 256


SADDLE_STARTS = ((1e-3, 2e-3), (-1e-2, 1e-3), (0.0, 1e-2), (1e-4, -1e-5), (0.02, 0.02))


@pytest.mark.parametrize(
    ("loss", "starts"),
    [(rosenbrock, (np.tile([-1.2, 1.0], 50),)), (bounded_monkey_saddle, SADDLE_STARTS)],
)
def test_secant_newton_leaves_indefinite_regions_for_a_minimum(loss, starts):
    jitted = jax.jit(functools.partial(minimised(optim.secant_newton(), 1e-9), loss))
    for x in [jitted(start)[0] for start in np.array(starts)]:
        assert loss(x) < 1e-9
        assert np.linalg.norm(jax.grad(loss)(x)) < 1e-5


def least_squares(rng, rows=64):
    inputs = rng.normal(size=(rows, DIM)) * np.geomspace(3, 0.3, DIM)
    targets = inputs @ rng.normal(size=DIM) + 0.5 * rng.normal(size=rows)
    x_rows, y_rows = jnp.asarray(inputs), jnp.asarray(targets)

    @jax.jit
    def gradient(x, batch):
        return x_rows[batch].T @ (x_rows[batch] @ x - y_rows[batch]) / len(batch)

    best = np.linalg.lstsq(inputs, targets)[0]
    excess = np.linalg.cholesky(inputs.T @ inputs / rows).T
    return gradient, lambda x: np.sum((excess @ (x - best)) ** 2)


def test_with_grad_fn_both_gradients_of_a_pair_are_of_one_batch(rng):
    gradient, _ = least_squares(rng)
    opt = optim.secant_newton(0.5, memory_size=N)
    points, pairs = [jnp.ones(DIM)], [np.zeros((2, DIM))] * N
    state = opt.init(points[0])
    for k, batch in enumerate(rng.integers(64, size=(N + 4, 16))):
        grad_fn = functools.partial(gradient, batch=batch)
        grad = grad_fn(points[-1])
        if k > 0:
            pairs.append(np.array([points[-1] - points[-2], grad - grad_fn(points[-2])]))
        updates, state = opt.update(grad, state, points[-1], grad_fn=grad_fn)
        steps, grad_diffs = np.stack(pairs[-N:], axis=1)
        expected = -0.5 * direction_of(steps, grad_diffs, grad)
        np.testing.assert_allclose(updates, expected, rtol=1e-6, atol=1e-9)
        points.append(points[-1] + updates)


def test_gradients_of_one_batch_and_a_damping_reach_the_least_squares_solution(rng):
    gradient, excess = least_squares(rng)
    opt = optim.secant_newton(0.2, memory_size=N, damping=1.0)
    x, state = jnp.zeros(DIM), opt.init(jnp.zeros(DIM))
    for batch in rng.integers(64, size=(100, 16)):
        grad_fn = functools.partial(gradient, batch=batch)
        updates, state = opt.update(grad_fn(x), state, x, grad_fn=grad_fn)
        x = x + updates
    assert excess(np.asarray(x)) < 1e-2 * excess(np.zeros(DIM))


# Newton in the leading subspace.

EVERY = 2
OUTLIERS = np.array([100.0, -80.0, 60.0])
GAIN = optax.GradientTransformationExtraArgs(
    lambda _: optax.EmptyState(), lambda g, state, params=None, *, gain: (gain * g, state)
)
INNER = optax.chain(optax.sgd(0.1, momentum=0.9), GAIN)


@functools.cache
def top_curvature():
    a = jnp.asarray(spectrum(np.random.default_rng(0), [*OUTLIERS, *np.ones(DIM - 3)]))
    opt = optim.precondition_top_curvature(
        INNER,
        lambda x, scale: 0.5 * scale * x @ (a @ x),
        probes=3,
        passes=1,
        every=EVERY,
        key=jax.random.key(0),
        learning_rate=0.5,
    )

    @jax.jit
    def update(grad, state, x, scale):
        return opt.update(grad, state, x, curvature_args=(scale,), gain=0.7)

    return np.asarray(a), opt, update


def measured(rng, scales):
    """The states before each update and after the last, for gradients that are drawn."""
    _, opt, update = top_curvature()
    x = jnp.asarray(rng.normal(size=DIM))
    states = [opt.init(x)]
    for scale in scales:
        states.append(update(jnp.asarray(rng.normal(size=DIM)), states[-1], x, scale)[1])
    return x, states


def test_a_later_refresh_takes_the_length_of_the_first(rng):
    """Of a loss whose Hessian is another one a thousandth away."""
    curvatures, width = jnp.asarray([9.0, -6.0, 4.0, 1.0, 0.5]), 1e-4

    def loss(x):
        return jnp.sum(curvatures * (1 - jnp.cos(x / width))) * width**2

    opt = optim.precondition_top_curvature(
        optax.sgd(0.0), loss, probes=3, passes=2, every=1, key=jax.random.key(0)
    )
    x = jnp.zeros(5)
    state = opt.init(x)
    for _ in range(2):
        length = state.step
        _, state = opt.update(jnp.asarray(rng.normal(size=5)), state, x)
    np.testing.assert_array_equal(state.step, length)
    np.testing.assert_allclose(np.sort(state.eigenvalues), [-6, 4, 9], rtol=1e-3)


def test_newton_along_the_leading_eigenvectors_and_the_inner_optimiser_across(rng):
    """Each refresh begins with the last subspace: one pass each suffices."""
    a, _, update = top_curvature()
    x, states = measured(rng, [1.0] * 4 * EVERY)
    g = jnp.asarray(rng.normal(size=DIM))
    found, state = update(g, states[-1], x, 1.0)
    values, vectors = np.linalg.eigh(a)
    lead = np.abs(values) > 2
    u = vectors[:, lead]
    across = np.eye(DIM) - u @ u.T
    inner, inner_state = INNER.update(across @ g, states[-1].inner, gain=0.7)
    newton = u / np.abs(values[lead]) @ u.T @ g
    assert reference.relative_error(found, across @ inner - 0.5 * newton) < 1e-5
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), state.inner, inner_state)


def test_curvature_is_measured_every_few_updates_with_a_new_key_and_the_arguments(rng):
    _, states = measured(rng, [1.0] * 3 * EVERY + [-2.0] * EVERY)
    keys = np.array([state.key for state in states])
    changed = np.any(np.diff(keys, axis=0), axis=1)
    np.testing.assert_array_equal(changed, np.arange(4 * EVERY) % EVERY == 0)
    for k in range(1, len(states) - 1, EVERY):
        np.testing.assert_array_equal(states[k].eigenvectors, states[k + 1].eigenvectors)
    for state, scale in ((states[3 * EVERY], 1), (states[-1], -2)):
        np.testing.assert_allclose(np.sort(state.eigenvalues), np.sort(scale * OUTLIERS), rtol=1e-2)


def test_a_measurement_that_is_not_finite_is_left_out_and_counted(rng):
    _, states = measured(rng, [np.nan] * EVERY + [1.0] * EVERY + [np.inf] * EVERY)
    assert [int(state.skipped) for state in states[1::EVERY]] == [1, 1, 2]
    np.testing.assert_array_equal(states[EVERY].eigenvectors, 0)
    assert np.all(np.abs(states[2 * EVERY].eigenvalues) > 2)
    for name in ("eigenvalues", "eigenvectors"):
        kept, after = getattr(states[2 * EVERY], name), getattr(states[-1], name)
        np.testing.assert_array_equal(after, kept)


def test_of_fewer_parameters_than_probes_all_curvature_is_known():
    """Two updates are Newton's, and the state keeps its shapes."""
    curvatures = jnp.asarray([5.0, -2.0])
    opt = optim.precondition_top_curvature(
        optax.sgd(1.0), lambda x: curvatures @ x**2 / 2, probes=3, every=1, key=jax.random.key(0)
    )
    x = jnp.asarray([0.3, -0.4])
    begun = state = opt.init(x)
    for _ in range(2):
        update, state = opt.update(curvatures * x, state, x)
        np.testing.assert_allclose(update, -x * np.sign(curvatures), rtol=1e-5)
        np.testing.assert_allclose(state.eigenvalues, [5, -2, 0], atol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, begun)


def test_a_refresh_after_the_first_one_keeps_its_step_and_takes_no_gradient_to_find_one(rng):
    points, x = [], jnp.asarray(rng.normal(size=6))

    @jax.custom_vjp
    def loss(x):
        return jnp.sum(x**4)

    def backward(x, g):
        jax.debug.callback(lambda _: points.append(1), x)
        return (g * 4 * x**3,)

    loss.defvjp(lambda x: (loss(x), x), backward)
    key = jax.random.key(0)
    opt = optim.precondition_top_curvature(
        optax.sgd(0.1), loss, probes=2, passes=1, every=1, key=key
    )
    update, state, taken = jax.jit(opt.update), opt.init(x), []
    for _ in range(3):
        _, state = update(4 * x**3, state, x)
        jax.effects_barrier()
        taken.append(len(points))
        points.clear()
    assert taken == [13, 3, 3]
    assert state.step > 0
