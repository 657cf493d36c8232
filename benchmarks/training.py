"""Ill-conditioned training problems: the loss against the gradients and the time that it takes.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.run --problems training

takes some minutes. (Its many small factorizations want one thread of linear algebra.)

Every method has the same budget of 2,000 gradients, all counted: those at the steps, in
line searches and for probes. Where it has a learning rate, it has the best one of 1e-4 ... 1 by
half-decades, that of the lowest loss. A curve is the lowest loss so far, so that nobody is
judged by the step at which the budget ends; the mark to reach is the lowest loss of Adam.

Times are without compilation, of the best rate: the run of median time among repeats in which
the methods take turns. The problems are small, and where a gradient takes microseconds, the time
is that of the optimiser's own work.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from sklearn.datasets import load_breast_cancer

from benchmarks.options import Options
from benchmarks.problems import digits, init_mlp, logits
from lowrank_jax import optim

RATES = [10 ** (k / 2) for k in range(-8, 1)]
BUDGET, REPEATS, CHUNK, POINTS = 2000, 5, 100, 60
MEMORY = 20  # pairs, of optax.lbfgs and of secant_newton
PROBES, PASSES, EVERY = 10, 2, 100  # of precondition_top_curvature
FINDING = 6 + 4 * PASSES  # gradients that find the length of its first steps, at most


class Problem(NamedTuple):
    """A loss of one vector of parameters and of arrays of data, and where to start."""

    loss: Callable
    start: jax.Array
    data: tuple[jax.Array, ...]


def least_squares() -> Problem:
    """|A x - b|^2 / 2 in 100 unknowns; the eigenvalues of A^T A are log-uniform, 1 to 1e-6.

    In float64, like `logistic` and `poisson`, so that rounding plays no part. (In float32 the first
    two rank the methods alike; the logistic losses end up to 7 percent higher.)
    """
    random = np.random.default_rng(0)
    u, v = (np.linalg.qr(random.standard_normal((n, 100)))[0] for n in (200, 100))
    a = u * np.geomspace(1, 1e-3, 100) @ v.T
    b = a @ random.standard_normal(100)

    def loss(x, a, b):
        residual = a @ x - b
        return 0.5 * jnp.vdot(residual, residual)

    return Problem(loss, jnp.zeros(100, jnp.float64), (jnp.asarray(a), jnp.asarray(b)))


def logistic() -> Problem:
    """Logistic regression on the breast cancer data, features unscaled, with a tiny ridge."""
    x, labels = load_breast_cancer(return_X_y=True)
    x = jnp.asarray(np.column_stack([x, np.ones(len(x))]))

    def loss(w, x, signs):
        return jnp.mean(jnp.logaddexp(0, -signs * (x @ w))) + 1e-6 * jnp.vdot(w, w)

    return Problem(loss, jnp.zeros(31, jnp.float64), (x, jnp.asarray(2.0 * labels - 1)))


def poisson() -> Problem:
    """A physics-informed network 2-16-16-1 for the equation of Poisson on a square.

    The residual of `u_xx + u_yy = -2 pi^2 sin(pi x) sin(pi y)` at 361 points inside [-1, 1]^2, and
    ten times that of u = 0 at the 80 points of a grid on the border, mean squares.
    """
    network = init_mlp(jax.random.key(0), (2, 16, 16, 1))
    start, unravel = ravel_pytree(jax.tree.map(lambda w: w.astype(jnp.float64), network))
    ticks = np.linspace(-1, 1, 21)
    grid = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    edge = np.any(np.abs(grid) == 1, axis=1)

    def loss(params, inside, border):
        def u(x):
            return logits(unravel(params), x)[0]

        laplacian = jax.vmap(lambda x: jnp.trace(jax.hessian(u)(x)))(inside)
        source = -2 * jnp.pi**2 * jnp.prod(jnp.sin(jnp.pi * inside), axis=1)
        return jnp.mean((laplacian - source) ** 2) + 10 * jnp.mean(jax.vmap(u)(border) ** 2)

    return Problem(loss, start, (jnp.asarray(grid[~edge]), jnp.asarray(grid[edge])))


def autoencoder() -> Problem:
    """The digits through six units, 64-24-6-24-64, float32; the squared error of an image."""
    start, unravel = ravel_pytree(init_mlp(jax.random.key(1), (64, 24, 6, 24, 64)))

    def loss(params, images):
        error = logits(unravel(params), images) - images
        return jnp.sum(error * error) / len(images)

    return Problem(loss, start, (digits()[0],))


PROBLEMS = (least_squares, logistic, poisson, autoencoder)


class Method(NamedTuple):
    """`make(loss, rate)` is an optax transformation, `cost(state)` the gradients of a step to it.

    One that `searches` lines has no rate, and finds the next value and gradient itself.
    """

    make: Callable
    cost: Callable = lambda state: 1
    searches: bool = False


def _searched(state):
    return optax.tree_utils.tree_get(state, "info").num_linesearch_steps


def _top_curvature(loss, rate):
    options = {"probes": PROBES, "passes": PASSES, "every": EVERY, "key": jax.random.key(0)}
    return optim.precondition_top_curvature(optax.adam(rate), loss, **options)


def _probed(state):
    first, due = state.count == 1, (state.count - 1) % EVERY == 0
    return 1 + jnp.where(due, PROBES * PASSES + 1, 0) + jnp.where(first, FINDING, 0)


METHODS = {
    "Adam": Method(lambda loss, rate: optax.adam(rate)),
    "SGD, momentum 0.9": Method(lambda loss, rate: optax.sgd(rate, momentum=0.9)),
    "optax.lbfgs": Method(lambda loss, rate: optax.lbfgs(memory_size=MEMORY), _searched, True),
    "secant_newton": Method(
        lambda loss, rate: optim.secant_newton(memory_size=MEMORY), _searched, True
    ),
    "precondition_top_curvature": Method(_top_curvature, _probed),
}


class Runner(NamedTuple):
    """The compiled `init(rate, data)` and `steps(carry, rate, data)`, and the seconds it took."""

    init: Callable
    steps: Callable
    seconds: float


def runner(problem: Problem, method: Method) -> Runner:
    """Compiles CHUNK steps; `steps` also returns every step's loss and gradients so far."""

    def tools(rate, data):
        def loss(x):
            return problem.loss(x, *data)

        def evaluate(x, state):
            if method.searches:
                return optax.value_and_grad_from_state(loss)(x, state=state)
            return jax.value_and_grad(loss)(x)

        return loss, evaluate, optax.with_extra_args_support(method.make(loss, rate))

    def init(rate, data):
        return problem.start, tools(rate, data)[-1].init(problem.start), 1

    def steps(carry, rate, data):
        loss, evaluate, optimizer = tools(rate, data)

        def step(carry, _):
            x, state, count = carry
            value, grad = evaluate(x, state)
            extra = {"value": value, "grad": grad, "value_fn": loss}
            updates, state = optimizer.update(grad, state, x, **extra)
            after = optax.apply_updates(x, updates), state, count + method.cost(state)
            return after, (value, count)

        return jax.lax.scan(step, carry, length=CHUNK)

    began = time.perf_counter()
    init = jax.jit(init).lower(1.0, problem.data).compile()
    carry = init(1.0, problem.data)
    steps = jax.jit(steps).lower(carry, 1.0, problem.data).compile()
    return Runner(init, steps, time.perf_counter() - began)


class Run(NamedTuple):
    """Arrays over the steps: gradients so far, the lowest loss so far, seconds so far."""

    gradients: np.ndarray
    loss: np.ndarray
    seconds: np.ndarray

    def cost(self, mark: float) -> tuple[int, float] | None:
        """The gradients and seconds to reach a loss; None if it was not reached."""
        reached = self.loss <= mark
        first = np.argmax(reached)
        return (int(self.gradients[first]), self.seconds[first]) if reached[first] else None


def train(runner: Runner, data: tuple, rate: float, budget: int) -> Run:
    """Steps until the budget is spent.

    The clock is read after every chunk of steps; within one, time goes with the gradients.
    """
    carry = jax.block_until_ready(runner.init(rate, data))
    rows, began, last = [], time.perf_counter(), 0.0
    while (before := int(carry[-1])) <= budget:
        carry, (loss, gradients) = jax.block_until_ready(runner.steps(carry, rate, data))
        now = time.perf_counter() - began
        part = (gradients - before) / (int(carry[-1]) - before)
        rows.append((gradients, loss, last + (now - last) * np.asarray(part)))
        last = now
    gradients, loss, seconds = (np.concatenate(column) for column in zip(*rows, strict=True))
    kept = gradients <= budget
    loss = np.minimum.accumulate(np.where(np.isfinite(loss), loss, np.inf).astype(float))
    return Run(gradients[kept], loss[kept], seconds[kept])


def compare(problem: Problem, rates: list[float], budget: int, repeats: int) -> dict:
    """All methods on one problem: what `results/` holds of it."""
    runners, lowest = {}, {}
    for name, method in METHODS.items():
        runners[name] = runner(problem, method)
        tried = rates[:1] if method.searches else rates
        runs = [train(runners[name], problem.data, rate, budget) for rate in tried]
        lowest[name] = {rate: run.loss[-1] for rate, run in zip(tried, runs, strict=True)}
        print(f"  {name}: {runners[name].seconds:.1f} s to compile", flush=True)
    best = {name: min(losses, key=losses.get) for name, losses in lowest.items()}
    runs = {name: [] for name in METHODS}
    for _ in range(repeats):
        for name, found in runs.items():
            found.append(train(runners[name], problem.data, best[name], budget))

    def entry(name):
        run = sorted(runs[name], key=lambda run: run.seconds[-1])[repeats // 2]
        shown = np.unique(np.geomspace(1, len(run.loss), POINTS).astype(int)) - 1
        return {
            "rate": None if METHODS[name].searches else best[name],
            "lowest_loss": run.loss[-1],
            "lowest_loss_of_rates": _short(lowest[name].values()),
            "steps": len(run.loss),
            "to_adam": run.cost(runs["Adam"][0].loss[-1]),
            "seconds": run.seconds[-1],
            "compile_seconds": runners[name].seconds,
            "curve": {key: _short(column[shown]) for key, column in run._asdict().items()},
        }

    about = {"parameters": problem.start.size, "dtype": str(problem.start.dtype)}
    return {**about, "methods": {name: entry(name) for name in METHODS}}


def training(options: Options) -> dict:
    """All problems; in a quick run 300 gradients and 3 rates, and the first two problems."""
    jax.config.update("jax_enable_x64", True)
    rates, budget, repeats, problems = RATES, BUDGET, REPEATS, PROBLEMS
    if options.quick:
        rates, budget, repeats, problems = RATES[3:8:2], 300, 1, PROBLEMS[:2]
    results = {}
    for problem in problems:
        results[problem.__name__] = compare(problem(), rates, budget, repeats)
        show(problem.__name__, results[problem.__name__])
    settings = {"budget": budget, "rates": rates, "repeats": repeats, "memory": MEMORY}
    settings |= {"probes": PROBES, "passes": PASSES, "every": EVERY}
    return {"settings": settings, "problems": results}


def _short(numbers):
    return [float(f"{x:.4g}") for x in numbers]


def show(name: str, found: dict) -> None:
    """One problem's table."""
    print(f"\n{name}: {found['parameters']} parameters, {found['dtype']}")
    heads = "rate", "lowest loss", "steps", "gradients", "seconds to Adam's", "seconds in all"
    print(f"  {'':28}" + "".join(f"{head:>18}" for head in heads))
    for method, of in found["methods"].items():
        rate = "line search" if of["rate"] is None else f"{of['rate']:.1e}"
        gradients, seconds = of["to_adam"] or (None, None)
        reached = ("-", "-") if gradients is None else (f"{gradients}", f"{seconds:.3f}")
        row = rate, f"{of['lowest_loss']:.3e}", of["steps"], *reached, f"{of['seconds']:.3f}"
        print(f"  {method:28}" + "".join(f"{cell:>18}" for cell in row), flush=True)
