"""What people ask of a network's Hessian, beside the tools that they have for it.

Two networks of other libraries, trained for a while: the ten leading eigenvalues, the trace, and a
linear system. Everybody has the same compiled product or gradient, and settings that suit.
"""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import lowrank_jax as lrj
from benchmarks import measure, problems
from benchmarks.measure import Call
from benchmarks.methods import Method, available
from benchmarks.options import Options
from benchmarks.problems import Point

LEADING = 10
KEYS = 9  # of the error of a trace


def tasks(options: Options) -> dict:
    """Each task on each network; `error` is relative, products and gradients are counted."""
    count, steps = (60, 5) if options.quick else (300, 60)
    networks = {"flax, CNN": problems.cnn_point, "equinox, transformer": problems.transformer_point}
    cases = {}
    for name, network in networks.items():
        at = Counted(_trained(_flat(network(count)), steps))
        cases[f"{name}: {LEADING} leading eigenvalues"] = _eigenvalues(at, options)
        cases[f"{name}: trace"] = _trace(at, options)
        cases[f"{name}: system"] = _system(at, options)
    return {"unit": "gradient", "cases": cases}


class Counted:
    """A network's loss, gradient and product at its point, both compiled and counted.

    Attributes:
      loss: of x alone.
      x: the parameters as one vector.
      taken: how many gradients and products since `begin`.
    """

    def __init__(self, point: Point):
        self.loss = lambda x: point.loss(x, *point.data)
        self.x = point.x
        # The data are arguments: a program with constants of their size is another one.
        self._gradient = jax.jit(jax.grad(point.loss))
        self._product = jax.jit(lrj.hvp(point.loss))
        self._data = point.data
        self.begin()

    def begin(self) -> None:
        """Counts from here."""
        self.taken = {"gradients": 0, "products": 0}

    def gradient(self, x: jax.Array) -> jax.Array:
        """At x."""
        self.taken["gradients"] += 1
        return self._gradient(x, *self._data)

    def product(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """With the Hessian at x."""
        self.taken["products"] += 1
        return self._product(x, jnp.asarray(v, x.dtype), *self._data)

    def matrix(self, shift: float = 0.0) -> "object":
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
    def step(x, state):
        update, state = optimizer.update(jax.grad(point.loss)(x, *point.data), state)
        return optax.apply_updates(x, update), state

    x, state = point.x, optimizer.init(point.x)
    for _ in range(steps):
        x, state = step(x, state)
    return point._replace(x=x)


def _compared(at: Counted, methods: dict, error: Callable, options: Options) -> dict:
    """Times in turns, and the errors and counts of the last run of each."""
    methods = available(methods, options.methods)
    calls = {"gradient": Call(at.gradient, (at.x,))}
    calls |= {name: Call(method.make, (jax.random.key(0),)) for name, method in methods.items()}
    found = measure.compare(calls, "gradient", 3, 0.0)
    for name in methods:
        at.begin()
        result = calls[name].run()
        found[name] |= {kind: count for kind, count in at.taken.items() if count}
        found[name]["error"] = error(result, calls[name].function)
    return {"methods": found}


def _eigenvalues(at, options):
    from scipy.sparse.linalg import eigsh

    exact = eigsh(at.matrix(), LEADING + 2, return_eigenvectors=False)
    exact = exact[np.argsort(-np.abs(exact))][:LEADING]

    def ritz(pairs):
        return np.asarray(lrj.ritz_pairs(pairs).values[:LEADING])

    def from_gradients(key):
        take = lrj.lowrank_hessian_from_gradient(at.gradient, 4, passes=7, return_pairs=True)
        return ritz(take(at.x, key=key)[1])

    def from_products(key):
        take = lrj.lowrank_from_product(at.product, 4, passes=7, return_pairs=True)
        return ritz(take(at.x, key=key)[1])

    def scipy(tolerance, key):
        start = np.asarray(jax.random.normal(key, at.x.shape, at.x.dtype))
        options = {"v0": start, "tol": tolerance, "return_eigenvectors": False}
        values = eigsh(at.matrix(), LEADING, **options)
        return values[np.argsort(-np.abs(values))]

    @cache
    def lanczos(depth):
        from matfree import decomp, eig

        eigh = eig.eigh_partial(decomp.tridiag_sym(depth, reortho="full", custom_vjp=False))
        return jax.jit(lambda v: eigh(lambda v: at.product(at.x, v), v)[0])

    def matfree(depth, key):
        values = np.asarray(lanczos(depth)(jax.random.normal(key, at.x.shape, at.x.dtype)))
        at.taken["products"] = depth
        return values[np.argsort(-np.abs(values))][:LEADING]

    methods = {
        "lowrank, 28 gradients and the step": Method(from_gradients),
        "lowrank, 28 products": Method(from_products),
        "eigsh, tolerance 0.01": Method(partial(scipy, 1e-2), "scipy"),
        "eigsh, tolerance 0.1": Method(partial(scipy, 1e-1), "scipy"),
    }
    methods |= {f"lanczos {k}": Method(partial(matfree, k), "matfree") for k in (28, 40)}
    found = _compared(
        at, methods, lambda values, _: float(np.max(np.abs(values / exact - 1))), options
    )
    return found | {"exact": exact.tolist()}


def _trace(at, options):
    samples = 100 if options.quick else 1000
    key = jax.random.key(123)
    none = lrj.lowrank_from_product(at.product, 1)(at.x, key=key)
    reference = lrj.estimate(at.product, none, samples)(at.x, key=key).trace()

    def ours(key):
        keys = jax.random.split(key)
        h = lrj.lowrank_from_product(at.product, 5, passes=4)(at.x, key=keys[0])
        return lrj.estimate(at.product, h, 20)(at.x, key=keys[1]).trace().value

    @cache
    def estimator(kind):
        from matfree import stochtrace

        if kind == "hutchinson":
            sampler = stochtrace.sampler_signs(at.x, num=40)
            of = stochtrace.estimator_monte_carlo(stochtrace.monte_carlo_trace(), sampler)
        else:  # two products for each vector
            sampler = stochtrace.sampler_signs(at.x, num=20)
            of = stochtrace.estimator_leave_one_out(stochtrace.leave_one_out_xtrace(), sampler)
        return jax.jit(lambda key: of(lambda v: at.product(at.x, v), key))

    def matfree(kind, key):
        value = jax.block_until_ready(estimator(kind)(key))
        at.taken["products"] = 40
        return value

    def error(_, function):
        values = [float(function(jax.random.key(i))) for i in range(KEYS)]
        return float(np.median(np.abs(np.array(values) / float(reference.value) - 1)))

    methods = {
        "lowrank and estimate": Method(ours),
        "hutchinson": Method(partial(matfree, "hutchinson"), "matfree"),
        "xtrace": Method(partial(matfree, "xtrace"), "matfree"),
    }
    found = _compared(at, methods, error, options)
    return found | {"reference": [float(x) for x in reference], "keys": KEYS}


def _system(at, options):
    """(H + d I) x = b to 1e-4, d twice the magnitude of the lowest eigenvalue."""
    from scipy.sparse.linalg import LinearOperator, cg, eigsh

    lowest = eigsh(at.matrix(), 1, which="SA", tol=1e-2, return_eigenvectors=False)[0]
    damping = float(2 * abs(lowest))
    b = np.asarray(at.gradient(at.x))
    matrix = at.matrix(damping)

    def plain(key):
        del key
        return cg(matrix, b, rtol=1e-4, maxiter=5000)[0]

    def preconditioned(key):
        h = lrj.lowrank_from_product(at.product, 4, passes=7)(at.x, key=key)
        inverse = h.positive_part().inverse(jnp.float32(damping))
        apply = jax.jit(lambda inverse, v: inverse @ v)

        def matvec(v):
            return np.asarray(apply(inverse, np.asarray(v, np.float32).ravel()))

        before = LinearOperator(matrix.shape, matvec=matvec, dtype=np.float32)
        return cg(matrix, b, rtol=1e-4, maxiter=5000, M=before)[0]

    def error(x, _):
        return float(np.linalg.norm(matrix @ x - b) / np.linalg.norm(b))

    methods = {
        "cg": Method(plain, "scipy"),
        "cg, preconditioned by 28 products": Method(preconditioned, "scipy"),
    }
    found = _compared(at, methods, error, options)
    return found | {"damping": damping}
