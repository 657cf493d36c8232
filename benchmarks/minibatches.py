"""Training on mini-batches: the loss on all examples that equally many gradients lead to.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.run --problems minibatches

takes some twelve minutes, a third of it to compile. Two networks of other libraries learn digits
from batches of 32. Every method has the same budget of gradients of one batch, all counted: those
at the steps, of a batch that is taken a second time, for probes, and those that find their length.
(L-BFGS with its line search is not here: a step took up to 0.8 s, where that of Adam takes 5 ms.)

Every method has the best of five learning rates or more, by half-decades, without a schedule: more
are tried as long as the best one is at an end. Those whose loss is near the lowest one after a
first order of the batches are tried in other orders, and the lowest median counts. A figure is
the loss over all training examples at the last step, or the accuracy on examples never seen.
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

BATCH, TRAINING, BUDGET, SEEDS = 32, 1000, 300, 3
RATES, MOST_RATES, NEAR = 5, 9, 2.0
MEMORY = 10  # pairs, of optax.lbfgs and of secant_newton
DAMPING = 1.0  # of secant_newton, where it is damped
PROBES, PASSES, EVERY, NEWTON_RATE = 4, 1, 100, 0.03  # of precondition_top_curvature
FINDING = 10  # gradients that find the length of its first steps
NETWORKS = {"CNN": cnn_point, "transformer": transformer_point}


class Method(NamedTuple):
    """`make(loss, rate, key)` is an optax transformation.

    Attributes:
      make: as above.
      rates: the middle of the first five rates in half-decades, by network: k is 10^(k / 2).
      cost: how many gradients led to a state from the one before.
      takes: names of the extra arguments of `update`.
    """

    make: Callable
    rates: dict[str, int]
    cost: Callable = lambda state: 1
    takes: tuple[str, ...] = ()


def _adam(loss, rate, key):
    return optax.adam(rate)


def _momentum(loss, rate, key):
    return optax.sgd(rate, momentum=0.9)


def _lbfgs(loss, rate, key):
    return optax.lbfgs(rate, memory_size=MEMORY, linesearch=None)


def _secant_newton(loss, rate, key, damping=None):
    return optim.secant_newton(rate, memory_size=MEMORY, damping=damping)


def _top_curvature(inner, loss, rate, key):
    options = {"probes": PROBES, "passes": PASSES, "every": EVERY, "learning_rate": NEWTON_RATE}
    return optim.precondition_top_curvature(inner(loss, rate, key), loss, key=key, **options)


def _probed(state):
    first, due = state.count == 1, (state.count - 1) % EVERY == 0
    return 1 + jnp.where(due, PROBES * PASSES + 1, 0) + jnp.where(first, FINDING, 0)


REPEATED = lambda state: 2, ("grad_fn",)
PROBED = _probed, ("curvature_args",)
ADAM_RATES = {"CNN": -5, "transformer": -6}
MOMENTUM_RATES = {"CNN": -2, "transformer": -3}
SECANT_RATES = {"CNN": -4, "transformer": -4}
METHODS = {
    "Adam": Method(_adam, ADAM_RATES),
    "SGD, momentum 0.9": Method(_momentum, MOMENTUM_RATES),
    "optax.lbfgs": Method(_lbfgs, SECANT_RATES),
    "secant_newton": Method(_secant_newton, SECANT_RATES),
    "secant_newton, grad_fn": Method(_secant_newton, SECANT_RATES, *REPEATED),
    "secant_newton, grad_fn, damping 1": Method(
        partial(_secant_newton, damping=DAMPING), {"CNN": -1, "transformer": -3}, *REPEATED
    ),
    "precondition_top_curvature, Adam": Method(partial(_top_curvature, _adam), ADAM_RATES, *PROBED),
    "precondition_top_curvature, SGD": Method(
        partial(_top_curvature, _momentum), MOMENTUM_RATES, *PROBED
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


class Sizes(NamedTuple):
    """How much is tried: gradients, orders of the batches, rates at first and at most."""

    budget: int
    seeds: int
    rates: int
    most_rates: int


def searched(run: Callable, middle: int, sizes: Sizes) -> dict[float, list]:
    """The ends of every rate that was tried: one for each order, or the first one's alone.

    Args:
      run: `run(rate, seed)`, the loss and the accuracy at the end.
      middle: the half-decade of the first rates' middle.
      sizes: how many rates and orders.
    """

    def rate(place):
        return float(f"{10 ** (place / 2):.1g}")

    low, high = middle - sizes.rates // 2, middle + sizes.rates // 2
    ends = {place: [run(rate(place), 0)] for place in range(low, high + 1)}
    while len(ends) < sizes.most_rates and (place := _beyond(ends)) is not None:
        ends[place] = [run(rate(place), 0)]
    near = NEAR * min(_median(of) for of in ends.values())
    for place, of in ends.items():
        if _median(of) <= near:
            of += [run(rate(place), seed) for seed in range(1, sizes.seeds)]
    whole = {place: of for place, of in ends.items() if len(of) == sizes.seeds}
    while len(ends) < sizes.most_rates and (place := _beyond(ends, whole)) is not None:
        ends[place] = whole[place] = [run(rate(place), seed) for seed in range(sizes.seeds)]
    return {rate(place): ends[place] for place in sorted(ends)}


def _beyond(ends, judged=None):
    """The place next to the best one, where that is at an end; else None."""
    judged = ends if judged is None else judged
    best = min(judged, key=lambda place: _median(judged[place]))
    return {min(ends): best - 1, max(ends): best + 1}.get(best)


def _median(ends):
    return float(np.median([loss for loss, _ in ends]))


def compare(network: str, methods: dict[str, Method], sizes: Sizes) -> dict:
    """All methods on one network: what `results/` holds of it."""
    point = NETWORKS[network](None)
    data = split(point.data)
    judge, found = judged(point, data), {}
    for name, method in methods.items():
        compiled = program(point.loss, method)

        def run(rate, seed, compiled=compiled):
            return judge(train(compiled, point.x, data.training, rate, seed, sizes.budget))

        found[name] = entry(searched(run, method.rates[network], sizes), sizes.seeds)
        show(name, found[name])
    size = sum(leaf.size for leaf in jax.tree.leaves(point.x))
    return {"parameters": size, "methods": found}


def entry(ends: dict[float, list], seeds: int) -> dict:
    """What the best rate led to, and the median loss of each.

    Args:
      ends: losses and accuracies by rate; fewer than `seeds` where the rate was given up.
      seeds: how many orders of the batches there are.
    """
    medians = {rate: _median(of) for rate, of in ends.items()}
    best = min((rate for rate in ends if len(ends[rate]) == seeds), key=medians.get)
    losses, accuracies = (sorted(column) for column in zip(*ends[best], strict=True))
    return {
        "rate": best,
        "loss": _short(medians[best]),
        "losses": [_short(loss) for loss in losses],
        "accuracy": float(np.median(accuracies)),
        "loss_of_rates": {f"{rate:g}": _short(loss) for rate, loss in medians.items()},
        "rate_at_an_end": best in (min(ends), max(ends)),
    }


def minibatches(options: Options) -> dict:
    """Both networks; in a quick run the CNN, two methods, one rate, 40 gradients of one order."""
    sizes = Sizes(40, 1, 1, 1) if options.quick else Sizes(BUDGET, SEEDS, RATES, MOST_RATES)
    names = options.methods or (tuple(METHODS)[::4] if options.quick else METHODS)
    methods = {name: METHODS[name] for name in METHODS if name in names}
    networks = {}
    for network in ("CNN",) if options.quick else NETWORKS:
        print(f"\n  {network}", flush=True)
        networks[network] = compare(network, methods, sizes)
    settings = {"batch": BATCH, "examples": TRAINING, **sizes._asdict()}
    settings |= {"memory": MEMORY, "probes": PROBES, "passes": PASSES, "every": EVERY}
    return {"settings": settings | {"newton_rate": NEWTON_RATE}, "networks": networks}


def show(name: str, found: dict) -> None:
    """One method's row: the loss, from the best order to the worst, the accuracy and the rate."""
    rate = f"rate {found['rate']:g}" + (" (at an end)" if found["rate_at_an_end"] else "")
    spread = f"{found['losses'][0]:.2e} to {found['losses'][-1]:.2e}"
    shown = f"{found['loss']:.2e}", spread, f"{100 * found['accuracy']:.1f} %", rate
    print(f"    {name:34}" + "".join(f"{cell:>24}" for cell in shown), flush=True)


def _short(number):
    return float(f"{number:.4g}")
