"""Ours and every peer behind one interface: a function of the problem that makes a `Call`.

Of `SecantPairs` those that fit, of a `Point` those that find its curvature or multiply by it. The
peers are the optional extra `bench`; `available` leaves out what is not installed and says so.
"""

from collections.abc import Callable, Iterable
from functools import cache, partial
from importlib.util import find_spec
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import ThreadpoolController

import lowrank_jax as lrj
from benchmarks import numpy_fits
from benchmarks.measure import Call, compiled
from benchmarks.problems import Point

SOME = 32  # clouds that a slow loop is timed on


class Method(NamedTuple):
    """`make(problem)` is the call to time; it needs this package."""

    make: Callable
    package: str = "jax"


def available(methods: dict[str, Method], names: Iterable[str] | None = None) -> dict[str, Method]:
    """The methods of these names (all for None) whose packages are there."""
    wanted = {name: of for name, of in methods.items() if names is None or name in names}
    return {name: of for name, of in wanted.items() if _installed(of.package)}


@cache
def _installed(package: str) -> bool:
    found = find_spec(package) is not None
    if not found:
        print(f"  {package} is not installed: left out", flush=True)
    return found


# Pairs to an operator.


def fit(pairs: lrj.SecantPairs) -> Call:
    """Ours, under `vmap` for a batch."""
    batched = pairs.steps.ndim == 3
    return compiled(jax.vmap(lrj.fit) if batched else lrj.fit, pairs)


def fit_by_256(pairs: lrj.SecantPairs) -> Call:
    """Ours, 256 clouds at a time: what these need fits the cache."""
    return compiled(lambda pairs: jax.lax.map(lrj.fit, pairs, batch_size=256), pairs)


def write(pairs: lrj.SecantPairs) -> Call:
    """The least that makes an operator: an array of the factors' shape is written."""
    return compiled(lambda pairs: jnp.concatenate([pairs.steps, pairs.grad_diffs], -2), pairs)


def copy(pairs: lrj.SecantPairs) -> Call:
    """The limit: both arrays are read, and arrays of their size written."""
    return compiled(lambda pairs: jax.tree.map(lambda x: x + 1, pairs), pairs)


def numpy_qr(pairs: lrj.SecantPairs) -> Call:
    """The same operator in NumPy."""
    return Call(numpy_fits.secant_fit, (np.array(pairs.steps), np.array(pairs.grad_diffs)))


def numpy_qr_one_thread(pairs: lrj.SecantPairs) -> Call:
    """The same with one thread of linear algebra: threads of OpenBLAS can wait for each other."""
    threads, call = ThreadpoolController(), numpy_qr(pairs)

    def limited(s, y):
        with threads.limit(limits=1, user_api="blas"):
            return call.function(s, y)

    return call._replace(function=limited)


def numpy_loop(pairs: lrj.SecantPairs) -> Call:
    """NumPy's eigenvalue problem of each cloud, one after the other."""
    clouds = _columns(pairs)
    return Call(lambda: [numpy_fits.eigenproblem_fit(x, y) for x, y in clouds])


def lapack_eigh(pairs: lrj.SecantPairs) -> Call:
    """One batched eigenvalue decomposition of the clouds' (n, n) matrices, and nothing else."""
    small = jnp.einsum("bid,bjd->bij", pairs.steps, pairs.grad_diffs)
    return compiled(jnp.linalg.eigh, (small + small.mT) / 2)


def sella_update(pairs: lrj.SecantPairs) -> Call:
    """Sella's multisecant update of a zero (D, D) matrix, that of `fit(extrapolate=0)`."""
    from sella.hessian_update import update_H

    clouds = _columns(pairs)[:SOME]
    d = pairs.steps.shape[-1]
    zero, eye = np.zeros((d, d), np.float32), np.eye(d, dtype=np.float32)
    update = partial(update_H, zero, method="PSB", lams=zero[0], vecs=eye)
    share = len(clouds) / len(pairs.steps)
    return Call(lambda: [update(x, y) for x, y in clouds], share=share)


def blackjax_metric(pairs: lrj.SecantPairs) -> Call:
    """Blackjax's low-rank metric of draws and their gradients: like work, always definite."""
    from blackjax.adaptation.metric_estimators import fisher_score_low_rank

    clouds = [(s, -y) for s, y in zip(pairs.steps[:SOME], pairs.grad_diffs[:SOME], strict=True)]
    one = compiled(partial(fisher_score_low_rank, max_rank=pairs.steps.shape[1]), *clouds[0])
    share = len(clouds) / len(pairs.steps)
    return one._replace(
        function=lambda: [one.function(*cloud) for cloud in clouds], args=(), share=share
    )


def _columns(pairs):
    """Each cloud's steps and differences as (D, n)."""
    s, y = np.array(pairs.steps), np.array(pairs.grad_diffs)
    return [(a.T.copy(), b.T.copy()) for a, b in zip(s, y, strict=True)]


# A point to an operator. The first argument of each call is a random key.


def lowrank(point: Point, probes: int, passes: int, batch_size: int | None = 1) -> Call:
    """Ours, from `probes * passes + 1` gradients."""
    at = lrj.lowrank_hessian(point.loss, probes, passes=passes, batch_size=batch_size)

    def operator(key, x, *data):
        return at(x, *data, key=key)

    return compiled(operator, jax.random.key(0), point.x, *point.data)


def lanczos(point: Point, depth: int) -> Call:
    """Matfree's Lanczos with exact products, fully reorthogonalised."""
    from matfree import decomp, eig

    eigh = eig.eigh_partial(decomp.tridiag_sym(depth, reortho="full", custom_vjp=False))

    def product(v, x, *data):
        return lrj.hvp(point.loss)(x, v, *data)

    def operator(key, x, *data):
        start = jax.random.normal(key, x.shape, x.dtype)
        values, vectors = eigh(product, start, x, *data)
        return lrj.SymmetricLowRank(vectors, jnp.diag(values))

    return compiled(operator, jax.random.key(0), point.x, *point.data)


def scipy_eigsh(point: Point, rank: int) -> Call:
    """SciPy's `eigsh` (ARPACK) with exact products, to a tolerance of 0.1.

    The call's function counts the products of the last call in its attribute `products`.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    exact = hvp(point)
    d = point.x.size

    def operator(key, x, *data):
        operator.products = 0

        def product(v):
            operator.products += 1
            return np.asarray(exact.function(x, np.asarray(v, np.float32), *data))

        start = np.asarray(jax.random.normal(key, x.shape, x.dtype))
        matrix = LinearOperator((d, d), matvec=product, dtype=np.float32)
        values, vectors = eigsh(matrix, rank, v0=start, tol=0.1)
        return lrj.SymmetricLowRank(vectors.T, np.diag(values))

    args = (jax.random.key(0), point.x, *point.data)
    return Call(operator, args, exact.compile_seconds)


# A point and a vector to a product.


def gradient(point: Point) -> Call:
    """The unit of cost."""
    return compiled(jax.grad(point.loss), point.x, *point.data)


def hvp(point: Point) -> Call:
    """One exact product with the Hessian."""
    return compiled(lrj.hvp(point.loss), point.x, _direction(point), *point.data)


def product(point: Point) -> Call:
    """`H @ v` with an operator of 32 factors."""
    h = lowrank(point, probes=8, passes=2).run()
    return compiled(lambda h, v: h @ v, h, _direction(point))


def _direction(point: Point) -> jax.Array:
    return jnp.sin(jnp.arange(point.x.size, dtype=point.x.dtype))


SOLVES = {
    "fit": Method(fit),
    "write": Method(write),
    "numpy_qr": Method(numpy_qr),
    "numpy_qr 1 thread": Method(numpy_qr_one_thread),
    "copy": Method(copy),
}
CLOUDS = SOLVES | {
    "fit by 256": Method(fit_by_256),
    "numpy_loop": Method(numpy_loop),
    "lapack_eigh": Method(lapack_eigh),
    "sella": Method(sella_update, "sella"),
    "blackjax": Method(blackjax_metric, "blackjax"),
}
PRODUCTS = {"gradient": Method(gradient), "hvp": Method(hvp), "product": Method(product)}


def curvatures(
    settings: Iterable[tuple[int, int]], depths: Iterable[int], ranks: Iterable[int]
) -> dict[str, Method]:
    """Methods at a point, named by their options: `lowrank 4x5`, `lanczos 20`, `eigsh 6`."""
    ours = {f"lowrank {b}x{p}": Method(partial(lowrank, probes=b, passes=p)) for b, p in settings}
    matfree = {f"lanczos {k}": Method(partial(lanczos, depth=k), "matfree") for k in depths}
    scipy = {f"eigsh {r}": Method(partial(scipy_eigsh, rank=r), "scipy") for r in ranks}
    return ours | matfree | scipy
