"""Benchmarks on a device: each figure beside the limit that its memory sets, or one gradient.

`over_limit` is the time over that of moving what must be moved once, at the bandwidth which a copy
has on the same device.
"""

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.profiler import ProfileData

import lowrank_jax as lrj
from benchmarks import device_models as models
from benchmarks import measure
from benchmarks.measure import Call
from benchmarks.problems import random_pairs

FLOAT = 4  # bytes
SHARE = 10  # arrays of the size of all steps that `lowrank_hessian` may hold at once
VECTORS = 16


def on_cpu() -> bool:
    """Whether sizes must be those of a CPU."""
    return jax.default_backend() == "cpu"


def memory() -> float:
    """Bytes that the device has for us; on a CPU what others leave, as a guess."""
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 4e9)


@cache
def bandwidth() -> float:
    """Bytes a second that a copy reads and writes."""
    x = jnp.ones(2**24 if on_cpu() else 2**28, jnp.float32)
    copy = measure.compiled(lambda x: x + 1, x)
    found = measure.compare({"copy": copy}, "copy", seconds=0.3)
    return 2 * x.nbytes / found["copy"]["fastest"]


@dataclass(frozen=True)
class Method:
    """One of those that are compared.

    Attributes:
      make: a function without arguments that makes the call.
      moves: the bytes that it must read and write, where that is what limits it.
      judge: of its result, the error.
      facts: what else there is to say, such as the gradients that it takes.
    """

    make: Callable[[], Call]
    moves: int | None = None
    judge: Callable[[Any], float] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def timed(report: Any, case: str, methods: dict[str, Method], unit: str, **about: Any) -> dict:
    """Times calls that take turns, in units of one of them; one that fails is left out and said.

    Returns:
      The calls that run, by name.
    """
    calls, rows = {}, {}
    for name, method in methods.items():
        try:
            calls[name], rows[name] = _tried(method)
        except Exception:
            report.failed(f"{case}: {name}")
        else:
            report.ran(case, name, rows[name])
    found = measure.compare(calls, unit, 3 if report.quick else 5, 0 if report.quick else 0.7)
    for name, row in found.items():
        row |= rows[name]
        if methods[name].moves is not None:
            row["limit_seconds"] = methods[name].moves / bandwidth()
            row["over_limit"] = row["seconds"] / row["limit_seconds"]
    report.case(case, unit, found, **about)
    return calls


def _tried(method):
    """The call, and what is known once it has run."""
    call = method.make()
    if call.memory is not None and sum(call.memory.values()) > memory():
        raise MemoryError(f"needs {call.memory} bytes of {memory():.3g}")
    began = time.perf_counter()
    result = call.run()
    seconds = time.perf_counter() - began
    row = {"compile_seconds": call.compile_seconds, "first_run_seconds": seconds}
    row |= _kernels(call) | method.facts
    if method.judge is not None:
        row["error"] = method.judge(result)
    return call, row


def _kernels(call):
    """How many kernels and loops the compiled program has."""
    if not hasattr(call.function, "as_text"):
        return {}
    program = call.function.as_text()
    counts = {name: program.count(f" {name}(") for name in ("fusion", "custom-call", "while")}
    return {"kernels": counts["fusion"] + counts["custom-call"], "instructions": counts}


# Pairs to an operator.


def fit(report: Any) -> None:
    """One cloud beside a copy of its pairs, and beside single passes over them."""
    add = measure.compiled(lambda x: x + 1, jnp.ones(1, jnp.float32))
    row = measure.compare({"add one": add}, "add one", rounds=50, seconds=0)
    report.case("a call that computes nothing", "add one", row, bandwidth=bandwidth())
    shapes = [(16, 1_000_000), (16, 10_000_000), (64, 1_000_000)]
    if on_cpu():
        shapes = [(16, 1_000_000), (64, 200_000)]
    _fits(report, [(8, 10_000)] if report.quick else shapes)


def clouds(report: Any) -> None:
    """Many small clouds at once, beside a copy of their pairs."""
    shapes = [(4096, 8, 64), (65_536, 8, 64), (1024, 16, 64)]
    _fits(report, [(64, 8, 64)] if report.quick else shapes)


def _fits(report, shapes):
    for shape in shapes:
        pairs, n = random_pairs(shape), shape[-2]
        size = pairs.steps.nbytes
        batched = jax.vmap if len(shape) == 3 else lambda function: function
        t = jnp.cos(jnp.outer(jnp.arange(n), jnp.arange(n)).astype(jnp.float32))
        grams = batched(_gram)(pairs.steps)

        def compiled(function, *args, batched=batched):
            return partial(measure.compiled, batched(function), *args)

        methods = {
            "copy": Method(compiled(_copy, pairs), 4 * size),
            "fit": Method(compiled(lrj.fit, pairs), 4 * size),
            "Gram": Method(compiled(_gram, pairs.steps), size),
            "combine": Method(compiled(partial(_combine, t), pairs.steps), 2 * size),
            "eigh of n x n": Method(compiled(jnp.linalg.eigh, grams)),
        }
        timed(report, " x ".join(map(str, shape)), methods, "copy")


def _copy(pairs):
    return jax.tree.map(lambda x: x + 1, pairs)


def _gram(s):
    return jnp.dot(s, s.T, precision=lax.Precision.HIGHEST)


def _combine(t, s):
    return jnp.dot(t, s, precision=lax.Precision.HIGHEST)


# A point to an operator.


def mlp(report: Any) -> None:
    """A million parameters; also in the precision that JAX takes by default."""
    model = models.mlp(*_sized(report, 1_000_000, 100_000), batch=_batch(1024))
    at_point(report, "mlp", model, [(4, 5, None)], default_precision=not on_cpu())


def transformer(report: Any) -> None:
    """A million, in four passes and in twenty."""
    model = models.transformer(*_sized(report, 1_000_000, 100_000), batch=_batch(16))
    at_point(report, "transformer", model, [(4, 5, None), (1, 20, None)])


def cnn(report: Any) -> None:
    """One gradient at a time and four: a batch of kernels makes grouped convolutions."""
    side = 16 if on_cpu() else 32
    model = models.cnn(*_sized(report, 1_000_000, 20_000), batch=_batch(64) // 2, side=side)
    at_point(report, "cnn", model, [(4, 5, 1), (4, 5, None)])


def medium_transformer(report: Any) -> None:
    """Ten millions."""
    model = models.transformer(*_sized(report, 10_000_000, 1_000_000), batch=_batch(16))
    at_point(report, "transformer", model, [(4, 5, 1)])


def medium_cnn(report: Any) -> None:
    """Ten millions."""
    side = 16 if on_cpu() else 32
    model = models.cnn(*_sized(report, 10_000_000, 100_000), batch=_batch(64) // 2, side=side)
    at_point(report, "cnn", model, [(4, 5, 1)])


def large_transformer(report: Any) -> None:
    """A hundred millions."""
    model = models.transformer(*_sized(report, 100_000_000, 300_000), batch=_batch(16))
    at_point(report, "transformer", model, [(4, 5, 1)])


def large_mlp(report: Any) -> None:
    """A hundred millions."""
    model = models.mlp(*_sized(report, 100_000_000, 1_000_000), batch=_batch(1024))
    at_point(report, "mlp", model, [(4, 5, 1)])


def _sized(report, accelerator, cpu):
    return (3_000 if report.quick else cpu if on_cpu() else accelerator,)


def _batch(size):
    return max(2, size // 8) if on_cpu() else size


def at_point(
    report: Any, name: str, model: models.Model, settings: list, default_precision: bool = False
) -> None:
    """`lowrank_hessian` beside Lanczos of as many exact products, and what the operator does.

    Args:
      report: see `device.Report`.
      name: of the case.
      model: trained a little here.
      settings: (probes, passes, batch_size) of `lowrank_hessian`.
      default_precision: both once more, with the network's products as JAX computes them by
        default; judged by products in the highest precision.
    """
    d = models.size(model.params)
    settings = [(_affordable(d, b, p), p, size) for b, p, size in settings]
    count = settings[0][0] * settings[0][1]
    case = f"{name}, {d} parameters"
    loss, highest = model.loss, _in("highest", model.loss)
    gradient = measure.compiled(jax.grad(highest), model.params, *model.data)
    model = models.trained(model, gradient, 5 if report.quick else 50)
    gradient = gradient._replace(args=(model.params, *model.data))
    v = models.random_like(jax.random.key(5), model.params)
    exact = measure.compiled(lrj.hvp(highest), model.params, v, *model.data)
    unit = {"gradient": Method(lambda: gradient)}
    timed(report, f"{case}: products", unit | {"hvp": Method(lambda: exact)}, "gradient")
    calls = _operators(report, case, unit, model._replace(loss=highest), settings, count, exact)
    if default_precision:
        compiled = measure.compiled(jax.grad(loss), model.params, *model.data)
        unit = {"gradient": Method(lambda: compiled)}
        _operators(report, f"{case}: default precision", unit, model, settings[:1], count, exact)
        unit = {"gradient": Method(lambda: gradient)}
    if calls:
        _uses(report, f"{case}: operator", unit, next(iter(calls.values())).run(), v)


def _affordable(d, probes, passes):
    """As many probes, or fewer where the device could not hold their pairs and the operator."""
    while probes > 1 and SHARE * FLOAT * d * probes * passes > memory():
        probes //= 2
    return probes


def _operators(report, case, unit, model, settings, count, exact):
    step, error = _step(unit["gradient"].make(), model, exact)
    judge = partial(_relative_error, exact)
    methods = {}
    for b, p, size in settings:
        at = lrj.lowrank_hessian(model.loss, b, passes=p, batch_size=size, step=step)
        label = f"lowrank {b}x{p}" + ("" if size is None else " one by one")
        call = partial(_compiled_at, lambda key, x, *data, at=at: at(x, *data, key=key), model)
        methods[label] = Method(call, judge=judge, facts={"gradients": b * p + 1})
    call = partial(_compiled_at, models.lanczos(model.loss, count), model)
    methods[f"lanczos {count}"] = Method(call, judge=judge, facts={"products": count})
    about = {"step": step, "difference_error": error}
    calls = timed(report, case, unit | methods, "gradient", **about)
    return {name: call for name, call in calls.items() if name.startswith("lowrank")}


def _uses(report, case, unit, h, v):
    """What an operator does, beside reading its factors once."""
    size = sum(x.nbytes for x in jax.tree.leaves(h.factors))

    def compiled(function, *args):
        return partial(measure.compiled, function, *args)

    methods = {
        "H @ v": Method(compiled(lambda h, v: h @ v, h, v), size),
        "solve": Method(compiled(lambda h, v: h.solve(v, 0.1), h, v), size),
        "eigh": Method(compiled(lambda h: h.eigh(), h), 2 * size),
    }
    timed(report, case, unit | methods, "gradient")


def _in(precision, loss):
    def precise(*args):
        with jax.default_matmul_precision(precision):
            return loss(*args)

    return precise


def _compiled_at(operator, model):
    return measure.compiled(operator, jax.random.key(0), model.params, *model.data)


def _step(gradient, model, exact):
    """The best length for a difference of gradients along the gradient, and the error there."""
    x, *data = gradient.args
    here = gradient.run()
    direction = _scaled(1 / models.norm(here), here)
    truth = exact.function(x, direction, *data)
    length, errors = float(models.norm(x)), {}
    for octave in range(-20, 0, 2):
        h = length * 2.0**octave
        ahead = gradient.function(_plus(x, h, direction), *data)
        error = float(_distance(_scaled(1 / h, _plus(ahead, -1.0, here)), truth))
        errors[h] = math.inf if math.isnan(error) else error
    best = min(errors, key=errors.get)
    return best, errors[best]


def _relative_error(exact, h):
    """That of H in the Frobenius norm, from exact products with random vectors."""
    x, _, *data = exact.args
    wrong, right = 0.0, 0.0
    for i in range(VECTORS):
        v = models.random_like(jax.random.key(100 + i), x)
        truth = exact.function(x, v, *data)
        wrong += float(_missed(h, v, truth)) ** 2
        right += float(models.norm(truth)) ** 2
    return (wrong / right) ** 0.5


@jax.jit
def _missed(h, v, product):
    return models.norm(jax.tree.map(jnp.subtract, h @ v, product))


@jax.jit
def _plus(x, h, v):
    return jax.tree.map(lambda x, v: x + h * v, x, v)


@jax.jit
def _scaled(h, x):
    return jax.tree.map(lambda x: h * x, x)


@jax.jit
def _distance(a, b):
    return models.norm(jax.tree.map(jnp.subtract, a, b)) / models.norm(b)


# Where the time goes.


def kernels(report: Any) -> None:
    """The kernels of some calls, by the time that each kind takes, as the profiler sees them."""
    scale = 100 if report.quick else 10 if on_cpu() else 1
    calls = {
        "fit 16 x 1000000": (lrj.fit, (16, 1_000_000 // scale)),
        "fit 64 x 1000000": (lrj.fit, (64, 1_000_000 // scale)),
        "fit 4096 x 8 x 64": (jax.vmap(lrj.fit), (4096 // scale, 8, 64)),
        "fit and solve, 16 x 1000000": (_fit_and_solve, (16, 1_000_000 // scale)),
    }
    named = 0
    for name, (function, shape) in calls.items():
        try:
            found, names = profiled(measure.compiled(function, random_pairs(shape)))
        except Exception:
            report.failed(name)
        else:
            named += sum("tf32" in name for name in names)
            report.case(name, "all", found)
    report.check("kernels with tf32 in their names", named, 0)


def _fit_and_solve(pairs):
    return lrj.fit(pairs).solve(pairs.steps[0], 1.0)


def profiled(call: Call, most: int = 12) -> tuple[dict[str, dict], set[str]]:
    """The kernels of one call, those that take most time first; `all` of them, and first to last.

    On a CPU an entry contains those that it calls.

    Returns:
      The rows, and the names of all kernels.
    """
    call.run()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            call.run()
        (path,) = Path(folder).rglob("*.xplane.pb")
        events = _events(ProfileData.from_file(str(path)))
    seconds, launches = Counter(), Counter()
    for name, _, taken in events:
        seconds[name] += taken
        launches[name] += 1
    span = max(end for _, end, _ in events) - min(end - taken for _, end, taken in events)
    rows = {
        "all": {"seconds": sum(seconds.values()), "kernels": len(events)},
        "first to last": {"seconds": span, "kernels": len(events)},
    }
    for name, taken in seconds.most_common(most):
        rows[name] = {"seconds": taken, "kernels": launches[name]}
    for row in rows.values():
        row["times_all"] = row["seconds"] / rows["all"]["seconds"]
    return rows, set(launches)


def _events(profile):
    """(name, end, seconds) of what ran on the device: on its streams, or in XLA's threads."""
    place, kind = ("/host:CPU", "tf_XLA") if on_cpu() else ("/device:", "Stream")
    return [
        (event.name, (event.start_ns + event.duration_ns) / 1e9, event.duration_ns / 1e9)
        for plane in profile.planes
        if plane.name.startswith(place)
        for line in plane.lines
        if line.name.startswith(kind)
        for event in line.events
        if "::" not in event.name or not on_cpu()
    ]
