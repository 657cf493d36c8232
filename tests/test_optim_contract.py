"""What optax promises of its optimisers and asks of wrapped ones holds for ours.

The statements are those of optax's own tests of its optimisers (`alias_test`, the common tests of
`contrib`, `sharding_test`), in other words. Not among them: complex parameters, which raise a
TypeError here; a dtype of the state of its own, which no optimiser here has; plain implementations
of L-BFGS. Shardings are in `device_checks.py`.
"""

import functools

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

from lowrank_jax import optim

# On one problem of mixed precision.


def contract_loss(params):
    return jnp.sum(params["a"].astype(jnp.float32) ** 4) + 2 * jnp.sum(jnp.cosh(params["b"]))


def contract_start(seed):
    a, b = np.random.default_rng(seed).normal(size=(2, 3))
    return {"a": jnp.asarray(a, jnp.bfloat16), "b": jnp.asarray(b, jnp.float32)}


CONTRACT = {
    "secant_newton": lambda: optim.secant_newton(optax.linear_schedule(0.5, 1, 4), memory_size=3),
    "precondition_top_curvature": lambda: optax.inject_hyperparams(
        optim.precondition_top_curvature,
        static_args=("loss", "probes", "passes", "every", "key"),
        hyperparam_dtype=jnp.float32,
    )(
        optax.sgd(0.1, momentum=0.5),
        contract_loss,
        probes=2,
        every=2,
        key=jax.random.key(0),
        learning_rate=optax.linear_schedule(0.5, 1, 4),
    ),
}


@functools.cache
def contract(name):
    """The transformation, a jitted step that donates the state, and the number of its traces."""
    opt, traces = CONTRACT[name](), []

    def step(params, state):
        traces.append(name)
        value, grads = jax.value_and_grad(contract_loss)(params)
        updates, state = opt.update(grads, state, params, value=value, unknown=grads)
        return optax.apply_updates(params, updates), state, updates

    return opt, step, jax.jit(step, donate_argnums=1), traces


def followed(step, params, state, steps):
    for _ in range(steps):
        params, state, updates = step(params, state)
    return params, state, updates


@pytest.mark.parametrize("name", CONTRACT)
def test_a_state_keeps_its_form_so_that_nothing_is_compiled_twice(name):
    opt, _, step, traces = contract(name)
    params = contract_start(0)
    form = jax.eval_shape(opt.init, params)
    last, state, updates = followed(step, params, opt.init(params), 5)
    assert len(traces) == 1
    chex.assert_trees_all_equal_shapes_and_dtypes(state, form)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    assert contract_loss(last) < contract_loss(params)


@pytest.mark.parametrize("name", CONTRACT)
def test_a_state_saved_as_arrays_and_restored_continues_bit_for_bit(name):
    opt, _, step, _ = contract(name)
    params = contract_start(0)
    middle, state, _ = followed(step, params, opt.init(params), 3)
    leaves, tree = jax.tree.flatten(state)
    saved = [np.array(leaf) for leaf in leaves]
    expected = followed(step, middle, state, 3)
    restored = jax.tree.unflatten(tree, map(jnp.asarray, saved))
    jax.tree.map(np.testing.assert_array_equal, followed(step, middle, restored, 3), expected)


@pytest.mark.parametrize("name", CONTRACT)
def test_a_batch_of_scans_over_starts_is_each_loop(name):
    opt, plain_step, step, _ = contract(name)
    starts = [contract_start(seed) for seed in range(2)]

    @jax.jit
    @jax.vmap
    def scanned(params):
        return jax.lax.scan(
            lambda carry, _: (plain_step(*carry)[:2], None), (params, opt.init(params)), length=3
        )[0][0]

    together = scanned(jax.tree.map(lambda *x: jnp.stack(x), *starts))
    for i, start in enumerate(starts):
        alone, _, _ = followed(step, start, opt.init(start), 3)
        for leaf in alone:  # curvature from differences in half precision
            np.testing.assert_allclose(
                np.asarray(together[leaf][i], float), np.asarray(alone[leaf], float), atol=5e-2
            )


# On trees of two leaves, which wrappers take apart.

SHAPES = {"a": (2, 3), "b": (4,)}
TREE = {
    name: jnp.linspace(0.5, 1.0, np.prod(shape)).reshape(shape) for name, shape in SHAPES.items()
}


def tree_loss(params):
    """Of all parameters, whatever is masked."""
    a, b = params["a"], params["b"]
    return jnp.sum(a**4) + jnp.sum(b**2) + jnp.sum(a) * jnp.sum(b) / 10


def top_curvature(**options):
    options = {"probes": 2, "every": 2, "key": jax.random.key(0), **options}
    return optim.precondition_top_curvature(optax.sgd(0.1), tree_loss, **options)


OPTIMISERS = {
    "scale_by_secant": lambda: optax.chain(optim.scale_by_secant(3), optax.scale(-0.5)),
    "secant_newton": lambda: optim.secant_newton(0.5, memory_size=3),
    "precondition_top_curvature": top_curvature,
}


def stepped(opt, params=TREE, steps=4, loss=tree_loss, **extra):
    """The parameters after each of some updates, and the last state."""
    state, found = opt.init(params), [params]
    opt = optax.with_extra_args_support(opt)

    @jax.jit
    def step(params, state):
        updates, state = opt.update(jax.grad(loss)(params), state, params, **extra)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
        found.append(params)
    return found, state


@functools.cache
def plain(name):
    return stepped(OPTIMISERS[name]())


def assert_close(found, expected, **options):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **options), found, expected)


def rounding(name):
    """Two programs round differently; gradient differences resolve the root of that."""
    measured = name == "precondition_top_curvature"
    return {"rtol": 1e-6, "atol": 1e-7} if measured else {"rtol": 1e-9}


@pytest.fixture
def promoting():
    """For wrappers and schedules of optax that leave dtypes to promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


by_name = pytest.mark.parametrize("name", OPTIMISERS)


@by_name
def test_shapes_and_dtypes_are_enough_to_begin(name):
    """As in planning where a state is to lie, before there are parameters."""
    opt = OPTIMISERS[name]()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), TREE)
    state = opt.init(TREE)
    assert_close(opt.init(shapes), state)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(opt.init, shapes), state)


@by_name
def test_the_parts_of_a_state_that_are_like_the_parameters_are_told_from_the_others(name):
    opt = OPTIMISERS[name]()
    state = plain(name)[1]
    seen = []
    same = optax.tree.map_params(
        opt, lambda x, p: seen.append((x.shape, p.shape)) or x, state, TREE
    )
    assert_close(same, state)
    assert {mine[-len(theirs) :] == theirs for mine, theirs in seen} == {True}
    assert len(seen) == (2 if name == "precondition_top_curvature" else 8)


@by_name
def test_of_no_parameters_nothing_is_updated(name):
    opt = optax.with_extra_args_support(OPTIMISERS[name]())
    nothing = {"a": {}, "b": optax.MaskedNode()}
    updates, state = opt.update(nothing, opt.init(nothing), nothing)
    assert updates == nothing
    chex.assert_trees_all_equal_shapes_and_dtypes(state, opt.init(nothing))


@by_name
@pytest.mark.parametrize("masked", ["none", "b", "all"])
def test_masked_parameters_are_left_to_others(name, masked):
    """The rest is optimised as if they were constants of the loss."""
    mask = {key: masked not in (key, "all") for key in TREE}
    labels = {key: "ours" if mask[key] else "theirs" for key in TREE}
    wrapped = optax.partition({"ours": OPTIMISERS[name](), "theirs": optax.set_to_zero()}, labels)
    extra = {"whole_params": TREE} if name == "precondition_top_curvature" else {}
    found, _ = stepped(wrapped, **extra)
    rest = {key: x for key, x in TREE.items() if mask[key]}
    if masked == "all":
        assert_close(found[-1], TREE)
        return

    def loss(some):
        return tree_loss({**TREE, **some})

    alone = OPTIMISERS[name]()
    if name == "precondition_top_curvature":
        options = {"probes": 2, "every": 2, "key": jax.random.key(0)}
        alone = optim.precondition_top_curvature(optax.sgd(0.1), loss, **options)
    expected, _ = stepped(alone, rest, loss=loss)
    assert_close(found[-1], {**TREE, **expected[-1]}, rtol=1e-6)


def test_the_loss_of_masked_parameters_asks_for_the_whole_ones():
    opt = optax.masked(top_curvature(), {"a": True, "b": False})
    with pytest.raises(ValueError, match=r"whole_params=params"):
        opt.update(TREE, opt.init(TREE), TREE)


@by_name
def test_a_wrapper_that_leaves_out_updates_that_are_not_finite_steps_over_them(name):
    opt = optax.apply_if_finite(OPTIMISERS[name](), 3)
    found, state = stepped(opt)
    assert_close(found, plain(name)[0], **rounding(name))
    bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), TREE)
    updates, after = jax.jit(opt.update)(bad, state, TREE)
    assert_close(updates, jax.tree.map(jnp.zeros_like, TREE))
    skipped = optax.tree.get_all_with_path(after, "skipped")
    assert after.notfinite_count == 1 or skipped[0][1] == 1


@by_name
@pytest.mark.usefixtures("promoting")
def test_gradients_accumulated_over_steps_are_one_gradient(name):
    """In the dtype of the parameters; that of optax's own choice is float32."""
    wrapped = optax.MultiSteps(OPTIMISERS[name](), 2, accumulator_dtype=TREE["a"].dtype)
    found, _ = stepped(wrapped.gradient_transformation(), steps=8)
    assert_close(found[::2], plain(name)[0], **rounding(name))
    assert_close(found[1], TREE)


@pytest.mark.parametrize("name", ["scale_by_secant", "secant_newton"])  # without a loss of a tree
def test_parameters_as_one_vector_are_optimised_as_their_tree(name):
    found, _ = stepped(optax.flatten(OPTIMISERS[name]()))
    assert_close(found, plain(name)[0], **rounding(name))


@by_name
@pytest.mark.usefixtures("promoting")
def test_sharpness_aware_minimisation_takes_any_of_them(name):
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.01))
    opt = optax.contrib.sam(OPTIMISERS[name](), adversary, sync_period=2, reset_state=True)
    found, _ = stepped(opt, steps=8)
    assert tree_loss(found[-1]) < 0.2 * tree_loss(TREE)


@by_name
def test_the_parts_of_a_state_are_read_and_set_by_their_names(name):
    state = plain(name)[1]
    known = {"precondition_top_curvature": ("count", 4)}.get(name, ("points", 4))
    assert optax.tree.get(state, known[0]) == known[1]
    changed = optax.tree.set(state, **{known[0]: jnp.asarray(7, jnp.int32)})
    assert optax.tree.get(changed, known[0]) == 7


INJECTED = {
    "scale_by_secant": (
        optim.scale_by_secant,
        ("memory_size",),
        {"memory_size": 3, "damping": 0.5},
    ),
    "secant_newton": (
        optim.secant_newton,
        ("memory_size",),
        {"learning_rate": 0.5, "memory_size": 3},
    ),
    "precondition_top_curvature": (
        optim.precondition_top_curvature,
        ("loss", "probes", "passes", "every"),
        {
            "inner": optax.sgd(0.1),
            "loss": tree_loss,
            "probes": 2,
            "every": 2,
            "key": jax.random.key(0),
            "learning_rate": 0.5,
        },
    ),
}


@by_name
def test_options_that_are_injected_give_the_same_updates_and_state(name):
    make, static, options = INJECTED[name]
    injected = optax.inject_hyperparams(make, static_args=static)(**options)
    expected, state = stepped(make(**options), steps=3)
    found, injected_state = stepped(injected, steps=3)
    assert_close(found, expected, **rounding(name))
    assert_close(injected_state.inner_state, state, **rounding(name))
    for wrong in set(static) - {"loss"}:  # which would be called as a schedule
        some = tuple(other for other in static if other != wrong)
        with pytest.raises(TypeError, match=f"{wrong} must .* name it in static_args"):
            optax.inject_hyperparams(make, static_args=some)(**options).init(TREE)


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("name", ["secant_newton", "precondition_top_curvature"])
def test_a_schedule_is_read_at_the_count_of_updates(name):
    make, _, options = INJECTED[name]
    rates = [0.5, 0.5, 0.25, 0.25]
    schedule = optax.piecewise_constant_schedule(0.5, {2: 0.5})
    found, _ = stepped(make(**{**options, "learning_rate": schedule}))
    states = None
    params = TREE
    for rate, expected in zip(rates, found[1:], strict=True):
        opt = make(**{**options, "learning_rate": rate})
        states = opt.init(TREE) if states is None else states
        updates, states = jax.jit(opt.update)(jax.grad(tree_loss)(params), states, params)
        params = optax.apply_updates(params, updates)
        assert_close(params, expected, **rounding(name))


@by_name
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_updates_have_the_dtype_of_the_parameters_in_either_branch_of_a_condition(name, dtype):
    opt = optax.with_extra_args_support(OPTIMISERS[name]())
    params = jax.tree.map(lambda x: x.astype(dtype), TREE)

    @jax.jit
    def step(params, state, taken):
        grads = jax.grad(tree_loss)(params)
        return jax.lax.cond(
            taken,
            lambda: opt.update(grads, state, params, value=jnp.float32(1)),
            lambda: (params, state),
        )

    updates, state = step(params, opt.init(params), True)
    chex.assert_trees_all_equal_shapes_and_dtypes((updates, state), (params, opt.init(params)))


@by_name
def test_complex_parameters_are_refused(name):
    with pytest.raises(TypeError, match="must be a real floating-point array, got dtype complex"):
        OPTIMISERS[name]().init(jax.tree.map(lambda x: x.astype(complex), TREE))


# The line search, on the problems of optax's tests of L-BFGS.


def himmelblau(x):
    return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2


def matyas(x):
    return 0.26 * (x[0] ** 2 + x[1] ** 2) - 0.48 * x[0] * x[1]


def zakharov(x):
    weighted = jnp.vdot(0.5 * jnp.arange(1.0, len(x) + 1), x)
    return jnp.vdot(x, x) + weighted**2 + weighted**4


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def steep(x):
    return jnp.mean((1e4 * x) ** 2)


def minimised(loss, start, steps=200):
    opt = optim.secant_newton()

    @jax.jit
    def run(start):
        def step(carry, _):
            x, state = carry
            value, grad = optax.value_and_grad_from_state(loss)(x, state=state)
            updates, state = opt.update(grad, state, x, value=value, grad=grad, value_fn=loss)
            return (optax.apply_updates(x, updates), state), None

        return jax.lax.scan(step, (start, opt.init(start)), length=steps)[0][0]

    return run(start)


@pytest.mark.parametrize(
    ("loss", "start"),
    [
        (himmelblau, [1.0, 1.0]),
        (himmelblau, [92.0, 0.001]),
        (matyas, [-6.0, -6.0]),
        (zakharov, [600.0, 700.0, 200.0, 100.0, 90.0, 1e4]),
        (rosenbrock, [0.0, 0.0]),
        (steep, [1.0, 1.0]),
    ],
)
def test_a_line_search_ends_where_that_of_scipy_does(loss, start):
    found = minimised(loss, jnp.array(start))
    scipy = minimize(jax.jit(loss), start, jac=jax.jit(jax.grad(loss)), method="BFGS")
    np.testing.assert_allclose(loss(found), loss(jnp.asarray(scipy.x)), atol=1e-7)
    assert np.linalg.norm(jax.grad(loss)(found)) < 1e-5


def test_a_line_search_over_a_tree_is_that_over_its_vector(rng):
    inputs, labels = rng.normal(size=(10, 5)), rng.integers(3, size=10)

    def loss(params):
        scores = inputs @ params["weights"] + params["bias"][None, :]
        ridge = 0.05 * optax.tree.norm(params, squared=True)
        return (
            jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(scores, labels)) + ridge
        )

    tree = {"weights": jnp.zeros((5, 3)), "bias": jnp.zeros(3)}
    flat, unravel = jax.flatten_util.ravel_pytree(tree)
    found = minimised(loss, tree, 12)
    assert_close(found, unravel(minimised(lambda x: loss(unravel(x)), flat, 12)), rtol=1e-5)
    assert optax.tree.norm(jax.grad(loss)(found)) < 1e-2
