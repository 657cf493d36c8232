"""What must hold on several devices; `test_devices` runs this with eight of them."""

import json
import re
from collections import Counter
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lowrank_jax as lrj
from benchmarks import scale

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "cpu"
N, DIM = 6, 48
COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
AXIS_TYPES = {"explicit": AxisType.Explicit, "automatic": AxisType.Auto}  # the stricter one first


def loss(x):
    return jnp.sum(jnp.cos(x)) + jnp.sum(x**4) / 2


def on(count, axis_type):
    return jax.make_mesh((count,), ("d",), (AXIS_TYPES[axis_type],), devices=jax.devices()[:count])


def curvature(points, v):
    """All that the library is asked for, of one cloud and of one point."""
    pairs = lrj.secant_pairs(loss)(points)
    h = lrj.fit(pairs)
    whole = lrj.lowrank_hessian(loss, N)(v, key=jax.random.key(0))
    return {
        "H v": h @ v,
        "dense": h.to_dense(),
        "solve": h.solve(v, 3.0),
        "eigenvalues": h.eigh()[0],
        "logdet": h.logdet(1e3),
        "diagonal": h.diagonal(),
        "truncation": h.truncate(3).to_dense(),
        "residual": lrj.diagnose(h, pairs).secant_residual,
        "error": lrj.compare_hvp(loss, h, v, points).relative_error,
        "lowrank_hessian": whole @ v,
        "gradient": jax.grad(lambda p: lrj.secant_hessian(loss)(p).frobenius_norm())(points),
    }


def curvature_on(mesh, points, spec, v):
    with jax.set_mesh(mesh):
        points = jax.device_put(points, NamedSharding(mesh, spec))
        return jax.jit(curvature)(points, jax.device_put(v, NamedSharding(mesh, P("d"))))


@pytest.fixture(scope="module")
def cloud():
    rng = np.random.default_rng(0)
    points, v = rng.normal(size=(N, DIM)), rng.normal(size=DIM)
    return points, v, curvature_on(on(1, "automatic"), points, P(None, "d"), v)


@pytest.mark.parametrize(
    ("count", "axis_type", "spec"),
    [
        (8, "explicit", P(None, "d")),
        (3, "explicit", P("d", None)),
        (2, "automatic", P("d", None)),
    ],
)
def test_points_sharded_along_either_axis_give_the_curvature_of_one_device(
    cloud, count, axis_type, spec
):
    points, v, truth = cloud
    found = curvature_on(on(count, axis_type), points, spec, v)
    for name, value in truth.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-8, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("axis_type", AXIS_TYPES)
def test_a_batch_sharded_over_devices_gives_each_cloud_its_operator(axis_type):
    clouds = np.random.default_rng(0).normal(size=(8, 4, 10))
    mesh = on(4, axis_type)
    function = jax.jit(jax.vmap(lambda points: lrj.secant_hessian(loss)(points).to_dense()))
    with jax.set_mesh(mesh):
        found = function(jax.device_put(clouds, NamedSharding(mesh, P("d"))))
    assert found.sharding.spec[0] == "d"
    np.testing.assert_allclose(found, function(clouds), rtol=1e-10, atol=1e-12)


def test_clouds_in_a_shard_map_are_fitted_where_they_lie():
    clouds = np.random.default_rng(0).normal(size=(8, 4, 10))
    each = jax.vmap(lambda points: lrj.secant_hessian(loss)(points).to_dense())
    mesh = on(4, "automatic")
    found = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=P("d"), out_specs=P("d")))(clouds)
    np.testing.assert_allclose(found, jax.jit(each)(clouds), rtol=1e-10, atol=1e-12)


def at_a_point(x):
    """What begins loops, linear maps and states with constants, at one point."""
    key, ones = jax.random.key(0), jnp.ones(len(x))  # like any constant, on all devices
    a = jnp.outer(x, ones) + jnp.diag(ones)
    h = lrj.lowrank_hessian(loss, 2)(x, key=key)
    ensemble = jax.vmap(lambda y: lrj.lowrank_hessian(loss, 2)(y, key=key) @ ones)
    gradients = lrj.lowrank_hessian_from_gradient(lambda w, x: w + x * jnp.sum(x * w), 2)
    pairs = lrj.SecantPairs(jnp.eye(len(x))[:3], a[:3])
    of_product = lrj.lowrank_from_product(lambda w, v, a: a @ v + a.T @ v, 2)
    product = lrj.gauss_newton_product(lambda w, a: a @ w, lambda z, y: jnp.sum((z - y) ** 2))

    def trained(optimiser):
        def step(_, carry):
            x, state = carry
            update, state = optimiser.update(jax.grad(loss)(x), state, x)
            return optax.apply_updates(x, update), state

        return jax.lax.fori_loop(0, 3, step, (x, optimiser.init(x)))[0]

    return {
        "H v": h @ ones,
        "vmap": ensemble(jnp.stack([x, 2 * x])),
        "data": gradients(ones, x, key=key) @ ones,
        "operator": of_product(ones, a, key=key) @ ones,
        "diagnose": lrj.diagnose(lrj.fit(pairs), pairs).leave_one_out,
        "solve": h.solve(ones, 9.0),
        "solve, one number a coordinate": h.solve(x, 9 * ones),
        "gauss_newton_product": product(x, ones, a, ones),
        "gradient_difference": lrj.gradient_difference(loss, step=0.1)(ones, x),
        "top_eigenpair": jax.value_and_grad(lambda x: lrj.top_eigenpair(loss)(x, key=key)[0])(x),
        "singular_triplet": lrj.singular_triplet(a)[0],
        "singular_triplet of factors": lrj.singular_triplet(lrj.cross(a, 2))[0],
        "lowrank_jacobian": lrj.lowrank_jacobian(lambda x: jnp.sin(x[1:]), 2)(x, key=key) @ ones,
        "cross": lrj.cross(a, 2) @ ones,
        "cross of functions": lrj.cross((lambda i: a[i], lambda j: a[:, j]), 2) @ ones,
        "secant_newton": trained(lrj.optim.secant_newton(0.1)),
        "precondition_top_curvature": trained(
            lrj.optim.precondition_top_curvature(optax.sgd(0.01), loss, probes=2, key=key)
        ),
    }


def test_in_a_shard_map_each_device_has_a_point_of_its_own():
    points = 0.3 + jax.random.uniform(jax.random.key(1), (2, 10))
    each = jax.shard_map(
        lambda points: jax.tree.map(lambda y: y[None], at_a_point(points[0])),
        mesh=on(2, "automatic"),
        in_specs=P("d"),
        out_specs=P("d"),
    )
    found, expected = jax.jit(each)(points), list(map(jax.jit(at_a_point), points))
    expected = jax.tree.map(lambda *rows: jnp.stack(rows), *expected)
    chex.assert_trees_all_close(found, expected, rtol=1e-5)


def collectives(f, *args):
    """How many numbers each kind of communication in the compiled program moves at most."""
    found = Counter()
    for shapes, kind in COLLECTIVE.findall(jax.jit(f).lower(*args).compile().as_text()):
        sizes = [
            np.prod([int(d) for d in s.split(",") if d])
            for s in re.findall(r"\[([\d,]*)\]", shapes)
        ]
        found[kind] = max(found[kind], int(sum(sizes)))
    return dict(found)


def shards(mesh, spec, *shape):
    return jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(mesh, spec))


@pytest.mark.parametrize("axis_type", AXIS_TYPES)
def test_along_the_long_axis_only_sums_of_small_matrices_travel(axis_type):
    n, dim = 8, 8 * 4096
    mesh = on(8, axis_type)
    with jax.set_mesh(mesh):
        rows, v = shards(mesh, P(None, "d"), n, dim), shards(mesh, P("d"), dim)
        factors = shards(mesh, P(None, "d"), 2 * n, dim)
        h = lrj.SymmetricLowRank(factors, shards(mesh, P(), 2 * n, 2 * n))
        programs = {
            "fit": (lambda s, y: lrj.fit(lrj.SecantPairs(s, y)), rows, rows),
            "mv": (lambda h, v: h @ v, h, v),
            "solve": (lambda h, v: h.solve(v, 0.1), h, v),
            "lowrank_hessian": (
                lambda x: lrj.lowrank_hessian(loss, n)(x, key=jax.random.key(0)),
                v,
            ),
        }
        for name, program in programs.items():
            moved = collectives(*program)
            assert set(moved) == {"all-reduce"}, (name, moved)
            assert moved["all-reduce"] <= 4 * (2 * n) ** 2, (name, moved)


def test_a_fit_takes_the_memory_that_the_arithmetic_for_many_devices_says():
    """In units of the pairs, which are known: `benchmarks.scale` writes what pages show."""
    said = json.loads((RESULTS / "scale.json").read_text())["arithmetic"]["dtypes"]
    found = scale.arithmetic(10**7)["dtypes"]
    for dtype, of in said.items():
        for name, units in of["units"].items():
            assert found[dtype]["units"][name] == pytest.approx(units, rel=0.02), (dtype, name)


def test_clouds_on_explicit_axes_are_spread_and_never_gathered():
    """Rows whole on a device each, six on two devices: their entries change places, once each."""
    mesh = on(2, "explicit")
    with jax.set_mesh(mesh):
        rows = shards(mesh, P("d", None), N, 4096)
        moved = collectives(lambda s, y: lrj.fit(lrj.SecantPairs(s, y)), rows, rows)
    assert "all-gather" not in moved
    assert moved["all-reduce"] <= 4 * N**2


def test_batches_over_devices_need_no_communication():
    mesh = on(8, "automatic")
    clouds = shards(mesh, P("d"), 16, 4, 100)
    assert collectives(jax.vmap(lrj.secant_hessian(loss)), clouds) == {}


def test_the_state_of_an_optimiser_lies_where_the_parameters_do():
    mesh = on(8, "automatic")
    x = jax.device_put(np.arange(DIM, dtype=np.float32), NamedSharding(mesh, P("d")))
    opt = lrj.optim.scale_by_secant()
    state = jax.jit(opt.init)(x)
    step = jax.jit(lambda x, state: opt.update(jax.grad(loss)(x), state, x))
    update, state = step(x, state)
    update, state = step(x - 0.01 * update, state)
    assert update.sharding.spec == P("d")
    assert state.history.steps.sharding.spec == P(None, "d")


OPTIMISERS = {
    "scale_by_secant": lrj.optim.scale_by_secant(3),
    "secant_newton": lrj.optim.secant_newton(0.5, memory_size=3),
    "precondition_top_curvature": lrj.optim.precondition_top_curvature(
        optax.sgd(0.1), loss, probes=2, passes=1, every=1, key=jax.random.key(0)
    ),
}


@pytest.mark.parametrize("axis_type", AXIS_TYPES)
def test_states_have_one_type_before_and_after_an_update_and_in_a_program(axis_type):
    """The line search of optax is not among them: it does not take explicit axes."""
    mesh = on(8, axis_type)
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, P(None, "d"))
        x = jax.device_put(np.linspace(0, 1, 64, dtype=np.float32).reshape(2, 8, 4), sharding)
        for name, opt in OPTIMISERS.items():
            begun = opt.init(x)
            update, after = opt.update(x, begun, x)
            states = begun, jax.jit(opt.init)(x), after, jax.jit(opt.update)(x, begun, x)[1]
            types = [jax.tree.map(jax.typeof, state) for state in states]
            assert types[1:] == types[:-1], name
            assert jax.typeof(update) == jax.typeof(x), name


@pytest.mark.parametrize("axis_type", AXIS_TYPES)
def test_a_point_may_be_closed_over_or_passed(axis_type):
    mesh = on(8, axis_type)
    v = np.linspace(0, 1, DIM)
    key = jax.random.key(0)
    expected = lrj.lowrank_hessian(loss, 2)(v, key=key).to_dense()
    with jax.set_mesh(mesh):
        x = jax.device_put(v, NamedSharding(mesh, P("d")))
        closed = jax.jit(lambda key: lrj.lowrank_hessian(loss, 2)(x, key=key).to_dense())(key)
        passed = jax.jit(lambda x, key: lrj.lowrank_hessian(loss, 2)(x, key=key).to_dense())(x, key)
    for found in (closed, passed):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def at_a_sharded_point(x, key):
    h, pairs = lrj.lowrank_hessian(loss, 4, return_pairs=True)(x, key=key)
    return {
        "ritz_pairs": lrj.ritz_pairs(pairs).values,
        "top_eigenpair": lrj.top_eigenpair(loss)(x, key=key)[1],
        "diagnose": lrj.diagnose(h, pairs).leave_one_out,
        "choose_shift": lrj.choose_shift(pairs),
        "estimate": lrj.estimate(lrj.hvp(loss), h, 4)(x, key=key).trace(),
    }


def test_at_a_sharded_point_the_answers_are_those_on_one_device():
    """In one program, as many small ones on stand-ins for devices can starve each other."""
    mesh, v, key = on(8, "explicit"), np.linspace(0, 1, DIM), jax.random.key(0)
    with jax.set_mesh(mesh):
        x = jax.device_put(v, NamedSharding(mesh, P("d")))
        found = jax.jit(at_a_sharded_point)(x, key)
    chex.assert_trees_all_close(found, at_a_sharded_point(v, key), rtol=1e-5, atol=1e-5)
