"""Training on mini-batches: the loss on all examples that equally many gradients lead to.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.run --problems minibatches

takes some ten minutes. Two networks of other libraries learn digits from batches of 32. Every method
has the same budget of gradients of one batch, all counted: those at the steps, in line searches,
of a batch that is taken a second time, for probes, and those that find the length of a probe's step.

Where it has a learning rate, it has the best of five, by half-decades, that of the lowest median
over the orders of the batches; no method has a schedule. A figure is the loss over all training
examples at the last step, and the accuracy on examples that were never seen.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.options import Options
from benchmarks.problems import Point, cnn_point, transformer_point
from lowrank_jax import optim

BATCH, TRAINING, BUDGET, SEEDS = 32, 1000, 500, 3
MEMORY = 10  # pairs, of optax.lbfgs and of secant_newton
PROBES, PASSES, EVERY, NEWTON_RATE = 4, 1, 50, 0.1  # of precondition_top_curvature
FINDING = 10  # gradients that find the length of the first refresh's step
NETWORKS = {"CNN": cnn_point, "transformer": transformer_point}


def half_decades(middle: float, count: int = 5) -> list[float]:
    """So many rates around one of them."""
    places = np.arange(count) - count // 2
    return [float(f"{middle * 10 ** (k / 2):.2g}") for k in places]


class Method(NamedTuple):
    """`make(loss, rate, key)` is an optax transformation; `cost(state)` counts a step's gradients.

    `rates` are the middles of the grids, by network; None for one that searches lines. `takes` are
    the names of the extra arguments of its `update`.
    """

    make: Callable
    rates: dict[str, float] | None
    cost: Callable = lambda state: 1
    takes: tuple[str, ...] = ()


def _searched(state):
    # The value and gradient that the last search ended with are another batch's: they are no use.
    return 1 + optax.tree_utils.tree_get(state, "info").num_linesearch_steps


def _probed(state):
    first, due = state.count == 1, (state.count - 1) % EVERY == 0
    return 1 + jnp.where(due, PROBES * PASSES + 1, 0) + jnp.where(first, FINDING, 0)


def _momentum(rate):
    return optax.sgd(rate, momentum=0.9)


def _top_curvature(inner, loss, rate, key):
    options = {"probes": PROBES, "passes": PASSES, "every": EVERY, "learning_rate": NEWTON_RATE}
    return optim.precondition_top_curvature(inner(rate), loss, key=key, **options)


def _lbfgs(loss, rate, key):
    return optax.lbfgs(rate, memory_size=MEMORY, linesearch=None)


def _secant_newton(loss, rate, key):
    return optim.secant_newton(rate, memory_size=MEMORY)


PROBED = _probed, ("curvature_args",)
METHODS = {
    "Adam": Method(lambda loss, rate, key: optax.adam(rate), {"CNN": 3e-3, "transformer": 3e-3}),
    "SGD, momentum 0.9": Method(
        lambda loss, rate, key: _momentum(rate), {"CNN": 0.1, "transformer": 0.1}
    ),
    "optax.lbfgs, line search": Method(
        lambda loss, rate, key: optax.lbfgs(memory_size=MEMORY),
        None,
        _searched,
        ("value", "grad", "value_fn"),
    ),
    "optax.lbfgs": Method(_lbfgs, {"CNN": 0.1, "transformer": 0.1}),
    "secant_newton": Method(_secant_newton, {"CNN": 0.1, "transformer": 0.1}),
    "secant_newton, grad_fn": Method(
        _secant_newton, {"CNN": 0.1, "transformer": 0.1}, lambda state: 2, ("grad_fn",)
    ),
    "precondition_top_curvature, Adam": Method(
        partial(_top_curvature, optax.adam), {"CNN": 3e-3, "transformer": 3e-3}, *PROBED
    ),
    "precondition_top_curvature, SGD": Method(
        partial(_top_curvature, _momentum), {"CNN": 0.1, "transformer": 0.1}, *PROBED
    ),
}


class Split(NamedTuple):
    """Examples to learn from and others, each `(images, labels)`."""

    training: tuple[jax.Array, jax.Array]
    other: tuple[jax.Array, jax.Array]


def split(data: tuple) -> Split:
    """The first TRAINING examples, and the rest."""
    return Split(tuple(a[:TRAINING] for a in data), tuple(a[TRAINING:] for a in data))


def batches(seed: int) -> Iterator[np.ndarray]:
    """Places of examples: epoch after epoch in another order, without what fills no batch."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(TRAINING)
        yield from order[: TRAINING // BATCH * BATCH].reshape(-1, BATCH)


class Program(NamedTuple):
    """The compiled `init(x, rate, key)` and `step(carry, rate, key, rows, data)`; see `program`."""

    init: Callable
    step: Callable


def program(loss: Callable, method: Method) -> Program:
    """One compiled step, whatever the rate and the order of the batches.

    The steps are not a scan: in one, XLA's convolutions on a CPU take many times as long.
    """

    def init(x, rate, key):
        return jax.tree.map(jnp.copy, x), method.make(loss, rate, key).init(x), 0

    def step(carry, rate, key, rows, data):
        x, state, count = carry
        batch = tuple(array[rows] for array in data)

        def of_batch(x):
            return loss(x, *batch)

        value, grad = jax.value_and_grad(of_batch)(x)
        extra = {"value": value, "grad": grad, "value_fn": of_batch}
        extra |= {"grad_fn": jax.grad(of_batch), "curvature_args": batch}
        taken = {name: extra[name] for name in method.takes}
        updates, state = method.make(loss, rate, key).update(grad, state, x, **taken)
        return optax.apply_updates(x, updates), state, count + method.cost(state)

    return Program(jax.jit(init), jax.jit(step, donate_argnums=0))


def train(program: Program, x, data: tuple, rate: float, seed: int, budget: int):
    """The parameters when the budget is spent."""
    key = jax.random.key(seed)
    carry, orders = program.init(x, rate, key), batches(seed)
    while int(carry[-1]) < budget:
        carry = program.step(carry, rate, key, next(orders), data)
    return carry[0]


def accuracy(loss: Callable, x, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The share of images whose own label has the smallest loss of all."""

    def guess(image):
        of_label = jax.vmap(lambda label: loss(x, image[None], label[None]))
        return jnp.argmin(of_label(jnp.arange(10, dtype=labels.dtype)))

    return jnp.mean(jax.vmap(guess)(images) == labels)


def judged(point: Point, data: Split) -> Callable:
    """The compiled loss on all training examples and accuracy on the others, infinite for NaN."""

    @jax.jit
    def judge(x, data):
        value = point.loss(x, *data.training)
        return jnp.where(jnp.isfinite(value), value, jnp.inf), accuracy(point.loss, x, *data.other)

    return lambda x: tuple(map(float, judge(x, data)))


def compare(network: str, methods: dict, budget: int, seeds: int, rates: int) -> dict:
    """All methods on one network: what `results/` holds of it."""
    point = NETWORKS[network](None)
    data = split(point.data)
    judge, found = judged(point, data), {}
    for name, method in methods.items():
        compiled = program(point.loss, method)
        tried = half_decades(method.rates[network], rates) if method.rates else [1.0]
        ends = {
            rate: [
                judge(train(compiled, point.x, data.training, rate, seed, budget))
                for seed in range(seeds)
            ]
            for rate in tried
        }
        found[name] = entry(ends, method.rates is not None)
        show(name, found[name])
    size = sum(leaf.size for leaf in jax.tree.leaves(point.x))
    return {"parameters": size, "methods": found}


def entry(ends: dict[float, list], rated: bool) -> dict:
    """What the best rate led to, and the median loss of each.

    Args:
      ends: the loss and accuracy at the end, for every order of the batches, by rate.
      rated: whether the method has a rate at all.
    """
    medians = {rate: float(np.median([loss for loss, _ in of])) for rate, of in ends.items()}
    best = min(medians, key=medians.get)
    losses, accuracies = (sorted(column) for column in zip(*ends[best], strict=True))
    return {
        "rate": best if rated else None,
        "loss": medians[best],
        "losses": _short(losses),
        "accuracy": float(np.median(accuracies)),
        "accuracies": _short(accuracies),
        "loss_of_rates": {f"{rate:g}": _short([loss])[0] for rate, loss in medians.items()},
        "rate_at_an_end": rated and best in (min(ends), max(ends)),
    }


def minibatches(options: Options) -> dict:
    """Both networks; in a quick run 40 gradients, one rate and one order of the batches."""
    budget, seeds, rates = (40, 1, 1) if options.quick else (BUDGET, SEEDS, 5)
    methods = {
        name: method
        for name, method in METHODS.items()
        if options.methods is None or name in options.methods
    }
    networks = {}
    for network in NETWORKS:
        print(f"\n  {network}", flush=True)
        networks[network] = compare(network, methods, budget, seeds, rates)
    settings = {"batch": BATCH, "examples": TRAINING, "budget": budget, "orders": seeds}
    settings |= {"memory": MEMORY, "probes": PROBES, "passes": PASSES, "every": EVERY}
    return {"settings": settings | {"newton_rate": NEWTON_RATE}, "networks": networks}


def _short(numbers):
    return [float(f"{x:.4g}") for x in numbers]


def show(name: str, found: dict) -> None:
    """One method's row: the loss from its best order to its worst, the accuracy and the rate."""
    rate = "line search" if found["rate"] is None else f"{found['rate']:g}"
    rate += " (at an end)" if found["rate_at_an_end"] else ""
    spread = f"{found['losses'][0]:.2e} to {found['losses'][-1]:.2e}"
    shown = f"{found['loss']:.2e}", spread, f"{100 * found['accuracy']:.1f} %", rate
    print(f"    {name:34}" + "".join(f"{cell:>24}" for cell in shown), flush=True)
