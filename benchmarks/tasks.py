"""What people ask of a Hessian, beside the tools that they have for it.

Two networks of other libraries, trained for a while: the ten leading eigenvalues, the trace, and a
linear system; one of them from its start to its minimum. And what is made of pairs that are there
already: a sampler's mass matrix, an update of a molecule's Hessian. Everybody has the same compiled
product or gradient, and settings that suit.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import lowrank_jax as lrj
from benchmarks import given_pairs, measure, problems
from benchmarks.measure import Call
from benchmarks.methods import Method, available
from benchmarks.options import Options
from benchmarks.problems import Point
from lowrank_jax import optim

LEADING = 10
BUDGET = 40  # products for a trace
RELATIVE_GRADIENT, MOST_STEPS, MEMORY = 1e-3, 500, 20  # of a minimisation
JITTED = "matfree, jit"


class Network(NamedTuple):
    """`point(images)` is the loss and where it starts; Lanczos under `jit` has these depths."""

    point: Callable
    depths: tuple[int, ...]


NETWORKS = {
    # XLA's convolutions take 20 times as long in a compiled loop: a deeper one only repeats that.
    "flax, CNN": Network(problems.cnn_point, (20,)),
    "equinox, transformer": Network(problems.transformer_point, (20, 28)),
}


def tasks(options: Options) -> dict:
    """Each task of its own case; in a quick run of a small transformer alone.

    `error` is relative and a median like the seconds, each round with a random key of its own;
    products and gradients are counted.
    """
    networks, images, steps = NETWORKS, 150, 60
    if options.quick:
        small = partial(problems.transformer_point, width=16, depth=1)
        networks, images, steps = {"equinox, small transformer": Network(small, (20,))}, 60, 5
    cases = {}
    for name, network in networks.items():
        start = _flat(network.point(images))
        at = Counted(_trained(start, steps))
        cases[f"{name}: {LEADING} leading eigenvalues"] = _eigenvalues(at, network.depths, options)
        cases[f"{name}: trace"] = _trace(at, options)
        cases[f"{name}: system"] = _system(at, options)
    cases[f"{name}: minimum"] = _minimum(Counted(start), options)
    cases |= given_pairs.posterior(options) | given_pairs.cluster(options)
    return {"unit": "gradient", "cases": cases}


class Counted:
    """A network's loss, gradient and product at its point, compiled and counted.

    Attributes:
      loss: of x and the data.
      x: the parameters as one vector.
      data: what the loss is of besides. They are arguments everywhere: a program with constants of
        their size is another one.
      taken: how many gradients and products since `begin`.
    """

    def __init__(self, point: Point):
        self.loss, self.x, self.data = point
        self._gradient = jax.jit(jax.grad(point.loss))
        self._product = jax.jit(lrj.hvp(point.loss))
        self.begin()

    def begin(self) -> None:
        """Counts from here."""
        self.taken = {"gradients": 0, "products": 0}

    def gradient(self, x: jax.Array) -> jax.Array:
        """At x."""
        self.taken["gradients"] += 1
        return self._gradient(x, *self.data)

    def product(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """With the Hessian at x."""
        self.taken["products"] += 1
        return self._product(x, jnp.asarray(v, x.dtype), *self.data)

    def traceable(self, v: jax.Array, x: jax.Array, *data: jax.Array) -> jax.Array:
        """The product in the order of matfree's arguments, to be compiled into its programs."""
        return lrj.hvp(self.loss)(x, v, *data)

    def matrix(self, shift: float = 0.0) -> Any:
        """The Hessian at the point, plus a multiple of the identity, in SciPy's terms."""
        from scipy.sparse.linalg import LinearOperator

        def matvec(v):
            v = np.asarray(v, np.float32).ravel()
            return np.asarray(self.product(self.x, v)) + np.float32(shift) * v

        return LinearOperator((self.x.size,) * 2, matvec=matvec, dtype=np.float32)


def _flat(point):
    x, unravel = ravel_pytree(point.x)
    return Point(lambda x, *data: point.loss(unravel(x), *data), x, point.data)


def _trained(point, steps):
    """After some steps of Adam, in a loop on the host."""
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(x, state, *data):
        update, state = optimizer.update(jax.grad(point.loss)(x, *data), state)
        return optax.apply_updates(x, update), state

    x, state = point.x, optimizer.init(point.x)
    for _ in range(steps):
        x, state = step(x, state, *point.data)
    return point._replace(x=x)


def _compared(
    at: Counted, methods: dict[str, Method], error: Callable, rounds: int, options: Options
) -> dict:
    """Times in turns; medians of the errors and counts of the same runs, each with its own key."""
    runs: dict[str, list] = {name: [] for name in methods}

    def recorded(name):
        key = jax.random.fold_in(jax.random.key(0), len(runs[name]))
        at.begin()
        result = jax.block_until_ready(methods[name].make(key))
        runs[name].append((result, dict(at.taken)))
        return result

    methods = available(methods, options.methods)
    calls = {"gradient": Call(at.gradient, (at.x,))}
    calls |= {name: Call(recorded, (name,)) for name in methods}
    found = measure.compare(calls, "gradient", 1 if options.quick else rounds, 0.0)
    for name in methods:
        results, counts = zip(*runs[name][1:], strict=True)  # the first one is not timed
        for kind in at.taken:
            found[name][kind] = float(np.median([count[kind] for count in counts]))
        found[name]["error"] = float(np.median([error(result) for result in results]))
    return {"methods": found}


def _eigenvalues(at, depths, options):
    from scipy.sparse.linalg import eigsh

    exact = eigsh(at.matrix(), LEADING + 2, return_eigenvectors=False)
    exact = exact[np.argsort(-np.abs(exact))][:LEADING]

    def start(key):
        return jax.random.normal(key, at.x.shape, at.x.dtype)

    def error(values):
        """The largest, of each exact value to the nearest one found."""
        gaps = np.min(np.abs(values[:, None] - exact), axis=0)
        return float(np.max(gaps / np.abs(exact)))

    def from_gradients(probes, passes, key):
        settings = {"passes": passes, "return_pairs": True}
        take = lrj.lowrank_hessian_from_gradient(at.gradient, probes, **settings)
        return np.asarray(lrj.ritz_pairs(take(at.x, key=key)[1]).values)

    def from_products(passes, key):
        take = lrj.lowrank_from_product(at.product, 1, passes=passes, return_pairs=True)
        return np.asarray(lrj.ritz_pairs(take(at.x, key=key)[1]).values)

    def scipy(tolerance, key):
        options = {"v0": np.asarray(start(key)), "tol": tolerance, "return_eigenvectors": False}
        return eigsh(at.matrix(), LEADING, **options)

    @cache
    def eigh(depth):
        from matfree import decomp, eig

        return eig.eigh_partial(decomp.tridiag_sym(depth, reortho="full", custom_vjp=False))

    @cache
    def jitted(depth):
        return jax.jit(lambda v, x, *data: eigh(depth)(at.traceable, v, x, *data)[0])

    def lanczos_jit(depth, key):
        values = np.asarray(jitted(depth)(start(key), at.x, *at.data))
        at.taken["products"] = depth
        return values

    def lanczos(depth, key):
        def product(v):
            with jax.disable_jit(False):
                return at.product(at.x, v)

        with jax.disable_jit():  # its loop is Python's then, around the same compiled product
            values = np.asarray(eigh(depth)(product, start(key))[0])
        at.taken["products"] = depth  # it looks at the shape of one more
        return values

    methods = {}
    for probes, passes in ((4, 7), (2, 14)):
        name = f"lowrank_hessian_from_gradient, {probes} x {passes}"
        methods[name] = Method(partial(from_gradients, probes, passes))
    for k in (20, 28):
        methods[f"lowrank_from_product, 1 x {k}"] = Method(partial(from_products, k))
    for tolerance in (0.1, 0.01):
        methods[f"eigsh, tolerance {tolerance}"] = Method(partial(scipy, tolerance), "scipy")
    for k in (20, 28):
        methods[f"matfree, Lanczos {k}"] = Method(partial(lanczos, k), "matfree")
    for k in depths:
        methods[f"{JITTED}, Lanczos {k}"] = Method(partial(lanczos_jit, k), "matfree")
    found = _compared(at, methods, error, 3, options)
    return found | {"exact": exact.tolist()}


def _trace(at, options):
    def both(key, passes, samples):
        keys = jax.random.split(key)
        h = lrj.lowrank_from_product(at.product, 1, passes=passes)(at.x, key=keys[0])
        return lrj.estimate(at.product, h, samples)(at.x, key=keys[1]).trace()

    reference = both(jax.random.key(123), 40, 20 if options.quick else 100)

    def ours(passes, key):
        return both(key, passes, BUDGET - passes).value

    @cache
    def estimator(kind):
        from matfree import stochtrace

        if kind == "hutchinson":
            sampler = stochtrace.sampler_signs(at.x, num=BUDGET)
            of = stochtrace.estimator_monte_carlo(stochtrace.monte_carlo_trace(), sampler)
        else:  # two products for each vector
            sampler = stochtrace.sampler_signs(at.x, num=BUDGET // 2)
            of = stochtrace.estimator_leave_one_out(stochtrace.leave_one_out_xtrace(), sampler)
        return jax.jit(lambda key, x, *data: of(at.traceable, key, x, *data))

    def matfree(kind, key):
        value = jax.block_until_ready(estimator(kind)(key, at.x, *at.data))
        at.taken["products"] = BUDGET
        return value

    methods = {
        "lowrank_from_product, 1 x 20, and estimate": Method(partial(ours, 20)),
        "lowrank_from_product, 1 x 30, and estimate": Method(partial(ours, 30)),
        f"{JITTED}, hutchinson": Method(partial(matfree, "hutchinson"), "matfree"),
        f"{JITTED}, xtrace": Method(partial(matfree, "xtrace"), "matfree"),
    }
    found = _compared(
        at, methods, lambda value: abs(float(value / reference.value) - 1), 5, options
    )
    return found | {"reference": [float(x) for x in reference]}


def _system(at, options):
    """(H + d I) x = b to 1e-4, d twice the magnitude of the lowest eigenvalue."""
    from scipy.sparse.linalg import LinearOperator, cg, eigsh

    lowest = eigsh(at.matrix(), 1, which="SA", tol=1e-2, return_eigenvectors=False)[0]
    damping = float(2 * abs(lowest))
    b = np.asarray(at.gradient(at.x))
    matrix = at.matrix(damping)
    apply = jax.jit(lambda inverse, v: inverse @ v)

    def plain(key):
        del key
        return cg(matrix, b, rtol=1e-4, maxiter=5000)[0]

    def preconditioned(passes, key):
        h = lrj.lowrank_from_product(at.product, 1, passes=passes)(at.x, key=key)
        inverse = h.positive_part().inverse(jnp.float32(damping))

        def matvec(v):
            return np.asarray(apply(inverse, np.asarray(v, np.float32).ravel()))

        before = LinearOperator(matrix.shape, matvec=matvec, dtype=np.float32)
        return cg(matrix, b, rtol=1e-4, maxiter=5000, M=before)[0]

    def error(x):
        return float(np.linalg.norm(matrix @ x - b) / np.linalg.norm(b))

    methods = {"cg": Method(plain, "scipy")}
    for passes in (12, 20):
        name = f"cg, preconditioned by lowrank_from_product, 1 x {passes}"
        methods[name] = Method(partial(preconditioned, passes), "scipy")
    found = _compared(at, methods, error, 3, options)
    return found | {"damping": damping}


def _minimum(at, options):
    """Down to `RELATIVE_GRADIENT` times the gradient at the start; `error` is the relative one."""
    first = float(jnp.linalg.norm(at.gradient(at.x)))

    def descent(optimizer):
        @jax.jit
        def step(x, state, *data):
            def loss(x):
                return at.loss(x, *data)

            value, grad = optax.value_and_grad_from_state(loss)(x, state=state)
            extra = {"value": value, "grad": grad, "value_fn": loss}
            updates, state = optimizer.update(grad, state, x, **extra)
            size = jnp.linalg.norm(optax.tree_utils.tree_get(state, "grad"))
            count = optax.tree_utils.tree_get(state, "info").num_linesearch_steps
            return optax.apply_updates(x, updates), state, size, count

        def run(key):
            del key
            x, state = at.x, optimizer.init(at.x)
            at.taken["gradients"] = 1
            for _ in range(MOST_STEPS):
                x, state, size, count = step(x, state, *at.data)
                at.taken["gradients"] += int(count)
                if size <= RELATIVE_GRADIENT * first:
                    break
            return float(size) / first

        return run

    def lbfgs_b(key):
        from scipy.optimize import minimize

        del key
        size = first  # at the last point, which is the one that a line search ends at

        def value_and_gradient(x):
            nonlocal size
            value, grad = both(jnp.asarray(x, jnp.float32), *at.data)
            at.taken["gradients"] += 1
            size = float(jnp.linalg.norm(grad))
            return float(value), np.asarray(grad, float)

        def enough(x):
            del x
            if size <= RELATIVE_GRADIENT * first:
                raise StopIteration

        options = {"maxcor": MEMORY, "ftol": 0, "gtol": 0, "maxiter": MOST_STEPS}
        settings = {"jac": True, "method": "L-BFGS-B", "callback": enough, "options": options}
        minimize(value_and_gradient, np.asarray(at.x, float), **settings)
        return size / first

    both = jax.jit(jax.value_and_grad(at.loss))
    methods = {
        "SciPy's L-BFGS-B": Method(lbfgs_b, "scipy"),
        "optax.lbfgs": Method(descent(optax.lbfgs(memory_size=MEMORY))),
        "secant_newton": Method(descent(optim.secant_newton(memory_size=MEMORY))),
    }
    return _compared(at, methods, float, 3, options)
