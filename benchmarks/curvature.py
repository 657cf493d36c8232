"""A point to an operator: how accurate for the time, in units of one gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import lowrank_jax as lrj
from benchmarks import measure, methods, problems
from benchmarks.options import Options
from benchmarks.problems import Point

VECTORS, KEYS, HISTORY = 64, 3, 20
SETTINGS = [(4, 3), (4, 4), (4, 5), (4, 6), (5, 5), (2, 6), (2, 11)]
SETTINGS += [(1, passes) for passes in (8, 12, 16, 20, 24, 32)]
DEPTHS, RANKS = (8, 12, 16, 20, 24, 32), (4, 8, 12)


def parameters(options: Options) -> dict:
    """The 26,122 parameters of the digits' MLP, loss over all images."""
    start = problems.mlp_point(steps=0)
    pushed = _with_history(start, 30 if options.quick else 100)
    return _at_point(*pushed, options)


def attention(options: Options) -> dict:
    """The same for a network whose exact products cost more."""
    start = problems.attention_point(steps=0, count=256 if options.quick else 512)
    return _at_point(*_with_history(start, 30 if options.quick else 100), options)


def _with_history(start: Point, steps: int) -> tuple[Point, lrj.history.History]:
    empty = lrj.history.init(start.x, HISTORY)
    x, history = problems.adam_path(start, steps, lrj.history.push, empty)
    return start._replace(x=x), history


def _at_point(point, history, options):
    table = methods.curvatures(SETTINGS, DEPTHS, RANKS)
    if options.quick:
        table = methods.curvatures([(1, 20)], [20], [4])
    table = methods.available(table, options.methods)
    calls = {name: of.make(point) for name, of in table.items()}
    units = {name: methods.PRODUCTS[name].make(point) for name in ("gradient", "hvp")}
    past = measure.compiled(lambda past: lrj.fit(lrj.history.pairs(past)), history)
    timed = units | calls | {"history": past}
    found = measure.compare(timed, "gradient", options.rounds, options.seconds)
    error = _judge(point)
    for name, call in calls.items():
        seeded = [call._replace(args=(jax.random.key(k), *call.args[1:])) for k in range(KEYS)]
        errors = [error(each.run()) for each in seeded]
        found[name] |= {"error": float(np.mean(errors)), "errors": errors}
        found[name] |= _cost(name, call)
    found["history"] |= {"error": error(past.run()), "gradients": 0}
    return {"unit": "gradient", "cases": {f"{point.x.size} parameters": {"methods": found}}}


def _cost(name, call):
    """Gradients or exact products of one call."""
    method, count = name.split()
    if method == "lowrank":
        probes, passes = map(int, count.split("x"))
        return {"gradients": probes * passes + 1}
    return {"products": int(count) if method == "lanczos" else call.function.products}


def _judge(point: Point):
    """The relative Frobenius error of an operator, from exact products with random vectors."""
    shape = (VECTORS, point.x.size)
    vectors = jax.random.normal(jax.random.key(7), shape, jnp.float32)

    @jax.jit
    def exact(x, vectors, *data):
        return jax.lax.map(lambda v: lrj.hvp(point.loss)(x, v, *data), vectors)

    @jax.jit
    def relative_error(h, vectors, products):
        difference = jax.vmap(h.mv)(vectors) - products
        return jnp.linalg.norm(difference) / jnp.linalg.norm(products)

    products = exact(point.x, vectors, *point.data)
    return lambda h: float(relative_error(h, vectors, products))


def inputs(options: Options) -> dict:
    """The Hessians of one image's loss in its 64 pixels, for 300 images at once."""
    count = 64 if options.quick else 300
    *args, exact = _images(count)
    calls = {
        name: measure.compiled(jax.vmap(function, in_axes=(0, 0, 0, None)), *args)
        for name, function in _of_one_image().items()
        if options.methods is None or name in options.methods
    }
    timed = measure.compare(calls, "jax.hessian", options.rounds, options.seconds)
    for name in set(calls) - {"jax.hessian"}:
        errors = _errors(np.asarray(jax.vmap(lambda h: h.to_dense())(calls[name].run())), exact)
        timed[name] |= {"error": float(np.median(errors)), "worst_error": float(np.max(errors))}
    best = float(np.median(_eckart_young(exact, 16)))
    case = {"best_of_rank_16": best, "methods": timed}
    return {"unit": "jax.hessian", "cases": {f"{count} images": case}}


def _of_one_image():
    """Functions of a key, an image, its label and the parameters; the dense one with its `eigh`."""
    loss = problems.image_loss

    def dense(key, x, label, params):
        return jnp.linalg.eigh(jax.hessian(loss)(x, label, params))

    def secant(key, x, label, params):
        return lrj.secant_hessian(loss)(problems.cloud(key, x), label, params)

    def lowrank(hessian_at, key, x, label, params):
        return hessian_at(x, label, params, key=key)

    found = {"jax.hessian": dense, "secant 16": secant}
    for b, p in ((16, 1), (8, 2), (8, 3), (16, 2)):
        found[f"lowrank {b}x{p}"] = partial(lowrank, lrj.lowrank_hessian(loss, b, passes=p))
    return found


def _images(count):
    images, labels = problems.digits()
    chosen = np.random.default_rng(0).choice(len(images), count, replace=False)
    images, labels, params = images[chosen], labels[chosen], problems.trained_mlp()
    hessians = jax.vmap(jax.hessian(problems.image_loss), in_axes=(0, 0, None))
    exact = np.asarray(jax.jit(hessians)(images, labels, params), float)
    return jax.random.split(jax.random.key(0), count), images, labels, params, exact


def _errors(found, exact):
    return np.linalg.norm(found - exact, axis=(1, 2)) / np.linalg.norm(exact, axis=(1, 2))


def _eckart_young(exact, rank):
    squares = np.sort(np.linalg.eigvalsh(exact) ** 2, axis=1)
    return np.sqrt(np.sum(squares[:, :-rank], axis=1) / np.sum(squares, axis=1))
