"""`H @ v` beside exact products, and how long the first call takes."""

import jax
import jax.flatten_util
import jax.numpy as jnp

import lowrank_jax as lrj
from benchmarks import measure, methods, problems
from benchmarks.measure import Call
from benchmarks.options import Options


def product(options: Options) -> dict:
    """One product with 32 factors, one exact product, and one gradient."""
    points = {
        "26122 parameters, 1797 images": problems.mlp_point,
        "26122 parameters, 256 images": lambda: problems.mlp_point(count=256),
        "1010602 parameters, 256 images": lambda: problems.million_point(256),
        "1010602 parameters, 1797 images": problems.million_point,
    }
    if options.quick:
        points = dict(list(points.items())[:3])
    table = methods.available(methods.PRODUCTS, options.methods)
    cases = {}
    for name, point in points.items():
        at = point()
        calls = {method: of.make(at) for method, of in table.items()}
        found = measure.compare(calls, "hvp", options.rounds, options.seconds)
        cases[name] = {"methods": found}
    return {"unit": "hvp", "cases": cases}


def first_call(options: Options) -> dict:
    """From nothing cached to the first result; where a dense Hessian is too large, to its program.

    Of all parameters `jax.hessian` is compiled and not run: for the deep network its result alone
    takes 25 GB.
    """
    points = {
        "pixels, 20 layers": problems.deep_image_point(),
        "parameters, digits MLP": problems.mlp_point(steps=0),
    }
    if not options.quick:
        points["first layer of 20"] = problems.deep_layer_point()
        points["parameters, 20 layers"] = problems.deep_point()
    cases = {}
    for name, point in points.items():
        calls = _first_calls(point, runs_dense=not name.startswith("parameters"))
        calls = {n: c for n, c in calls.items() if options.methods is None or n in options.methods}
        found = measure.compare(calls, "jax.hessian", 1 if options.quick else 7, 0)
        cases[name] = {"dimension": point.x.size, "methods": found}
    return {"unit": "jax.hessian", "cases": cases}


def networks(options: Options) -> dict:
    """A Hessian from 21 gradients, outside `jit`, beside 21 calls of the compiled gradient.

    Networks of other libraries, one of them with convolutions, which XLA runs slowly on a CPU
    within a loop of a program.
    """
    count = 100 if options.quick else 300
    points = {"flax, CNN": problems.cnn_point, "equinox, transformer": problems.transformer_point}
    cases = {}
    for name, point in points.items():
        at = point(count)
        hessian_at = lrj.lowrank_hessian(at.loss, 5, passes=4, step=1e-2)
        calls = {
            "gradients": Call(_gradients, (jax.jit(jax.grad(at.loss)), at, 21)),
            "lowrank_hessian": Call(_keyed(hessian_at), (at.x, *at.data)),
        }
        found = measure.compare(calls, "gradients", options.rounds, options.seconds)
        cases[name] = {"methods": found}
    return {"unit": "gradients", "cases": cases}


def _gradients(gradient, at, count):
    return [jax.block_until_ready(gradient(at.x, *at.data)) for _ in range(count)]


def leaves(options: Options) -> dict:
    """First calls on a plain network of 24 layers, 48 leaves, over its gradient's compilation.

    All caches are empty before each. The raveled twin has one leaf.
    """
    keys = jax.random.split(jax.random.key(0), 25)
    layers = [(jax.random.normal(k, (64, 64)) / 8, jnp.zeros(64)) for k in keys[:24]]
    inputs, key = jax.random.normal(keys[24], (32, 64)), jax.random.key(1)

    def network(layers, inputs):
        for weights, bias in layers:
            inputs = jnp.tanh(inputs @ weights + bias)
        return jnp.sum(inputs**2)

    flat, unravel = jax.flatten_util.ravel_pytree(layers)
    twins = {"48 leaves": (network, layers), "raveled": (lambda x, y: network(unravel(x), y), flat)}
    cases = {}
    for name, (loss, x) in twins.items():
        calls = _calls_at(loss, x, inputs, key)
        found = measure.compare(calls, "gradient", 1 if options.quick else 3, 0)
        cases[name] = {"methods": found}
    return {"unit": "gradient", "cases": cases}


def _calls_at(loss, x, inputs, key):
    options = {"passes": 3, "step": 1e-3}

    def hessian():
        return lrj.lowrank_hessian(loss, 4, **options)(x, inputs, key=key)

    def in_one_program():
        return jax.jit(lambda x, y, k: lrj.lowrank_hessian(loss, 4, **options)(x, y, key=k))(
            x, inputs, key
        )

    h = hessian()
    calls = {
        "gradient": lambda: jax.jit(jax.grad(loss))(x, inputs),
        "lowrank_hessian": hessian,
        "lowrank_hessian in jit": in_one_program,
        "solve": lambda: h.solve(x, 1.0),
        "map_spectrum(relu)": lambda: h.map_spectrum(jax.nn.relu),
        "map_spectrum(relu) and solve": lambda: h.map_spectrum(jax.nn.relu).solve(x, 1.0),
    }

    def from_nothing(call):
        jax.clear_caches()
        return call()

    return {name: Call(from_nothing, (call,)) for name, call in calls.items()}


def _keyed(hessian_at):
    return lambda *args: hessian_at(*args, key=jax.random.key(0))


def _first_calls(point, runs_dense):
    cloud = problems.cloud(jax.random.key(0), point.x, n=8)
    loss, args, at_points = point.loss, (point.x, *point.data), (cloud, *point.data)
    return {
        "gradient": Call(_from_nothing, (jax.grad, loss, args)),
        "secant_hessian": Call(_from_nothing, (lrj.secant_hessian, loss, at_points)),
        "lowrank_hessian": Call(_from_nothing, (_lowrank, loss, args)),
        "jax.hessian": Call(_from_nothing, (jax.hessian, loss, args, runs_dense)),
    }


def _lowrank(loss):
    return _keyed(lrj.lowrank_hessian(loss, probes=8))


def _from_nothing(transform, loss, args, run=True):
    jax.clear_caches()
    function = jax.jit(transform(loss))
    return function(*args) if run else function.lower(*args).compile() and None
