"""The eigenpair of largest magnitude of a symmetric operator, by thick-restart Lanczos."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._core import programs, scaling, structure, tall, xla
from lowrank_jax._core.spectral import eigh, symmetrize
from lowrank_jax._core.types import Rows, Vector

BASIS = 16  # rows of the Lanczos basis
CYCLES = 100  # at most, of BASIS / 2 products each


class _Search(NamedTuple):
    """Orthonormal rows, their images, and the unit vector that comes next; `filled` rows are set.

    `products` were taken so far. `error` is that of the last Rayleigh-Ritz step, `best` the
    least that counted as a fall, `stale` the cycles since. After a cycle the first row is the
    Ritz vector and `value` its value.
    """

    basis: Rows
    images: Rows
    ahead: Vector
    filled: jax.Array
    products: jax.Array
    value: jax.Array
    error: jax.Array
    best: jax.Array
    stale: jax.Array
    cycle: jax.Array
    ended: jax.Array


class Dominant(NamedTuple):
    """The eigenpair of largest magnitude, NaN if it was not found, and how it was looked for."""

    value: jax.Array
    vector: Vector
    products: jax.Array
    converged: jax.Array


def dominant_eigenpair(product: Callable[[Vector], Vector], start: Vector, eps: float) -> Dominant:
    """The eigenpair of largest magnitude of a symmetric operator, constants, in one program."""
    pure, closed = jax.closure_convert(product, start)
    start, closed = lax.stop_gradient((start, closed))
    # The linear part alone: what does not depend on the vector is computed once.
    product = jax.linearize(lambda v: pure(v, *closed), start)[1]

    def cycle(search):
        def extend(search):
            return _extended(search, product(search.ahead), start, eps)

        full = lax.while_loop(lambda s: s.filled < _basis_size(s), extend, search)
        return _restarted(full, eps)

    return _outcome(lax.while_loop(lambda s: ~s.ended, cycle, _begun(start)), eps)


def dominant_eigenpair_on_host(
    product: Callable[[Vector], Vector], start: Vector, eps: float
) -> Dominant | None:
    """The same in a loop on the host over a product that is a program of its own.

    None, as soon as a product is traced.
    """
    search = _begun(start)
    filled = 0
    while not search.ended:
        for _ in range(filled, _basis_size(search)):
            image = product(search.ahead)
            if programs.traced(image):
                return None
            search = _extended(search, image, start, eps)
        search = _restarted(search, eps)
        filled = _half(_basis_size(search))
    return _outcome(search, eps)


@jax.jit
def _begun(start):
    rows = structure.zeros(start, min(BASIS, structure.size(start)))
    zero = jnp.zeros_like(scaling.norm(start))
    large, none = jnp.full_like(zero, jnp.inf), jnp.zeros((), jnp.int32)
    # Buffers of their own, as they are donated one by one.
    images, ahead = jax.tree.map(jnp.copy, (rows, start))
    ended = jnp.zeros((), bool)
    search = _Search(rows, images, ahead, none, none, zero, large, large, none, none, ended)
    return xla.vary_like(search, start)


@partial(jax.jit, static_argnums=3, donate_argnums=0)
def _extended(search, image, start, eps):
    """One more row and its image, and the unit vector that comes next."""
    size = structure.size(start)
    root, noise_size = 10 * size**0.5, 64 * eps / size**0.5
    image = structure.widen(image)
    basis = _set_row(search.basis, search.filled, search.ahead)
    images = _set_row(search.images, search.filled, image)
    number = (search.cycle * BASIS + search.filled + 1).astype(search.value.dtype)
    noise = jax.tree.map(lambda x: noise_size * jnp.cos(number * root * x), start)
    return search._replace(
        basis=basis,
        images=images,
        ahead=_next_row(image, basis, noise),
        filled=search.filled + 1,
        products=search.products + 1,
    )


@partial(jax.jit, static_argnums=1)
def _outcome(search, eps):
    vector = jax.tree.map(lambda leaf: leaf[0], search.basis)
    converged = search.error < eps**0.5
    valid = scaling.nan_unless(converged, search.value.dtype)
    length = jnp.sqrt(tall.dot(vector, vector))
    vector = tall.times(valid / length, vector)
    return Dominant(valid * search.value, vector, search.products, converged)


def _basis_size(search):
    return structure.length(search.basis)


def _half(count):
    return max(count // 2, 1)


@partial(jax.jit, static_argnums=1, donate_argnums=0)
def _restarted(search: _Search, eps: float) -> _Search:
    """Rayleigh-Ritz in a full basis; the half of largest magnitude is kept, with its images."""
    values, vectors = eigh(symmetrize(tall.gram(search.basis, search.images)))
    order = jnp.argsort(-jnp.abs(values))
    count = len(values)
    half = _half(count)

    ends = jnp.stack([order[0], jnp.where(order[0] == 0, count - 1, 0)])
    ritz = tall.combine(vectors[:, ends].T, search.basis)
    image = tall.combine(vectors[:, ends].T, search.images)
    top, other = jnp.abs(values[ends])
    residual = scaling.norms(jax.tree.map(jnp.subtract, image, tall.scale(values[ends], ritz)))
    error = jnp.maximum(residual[0], other + residual[1] - top) * scaling.reciprocal(top)

    kept = jnp.where((jnp.arange(count) < half)[:, None], vectors[:, order].T, 0)
    falls = error < 0.9 * search.best
    stale, cycle = jnp.where(falls, 0, search.stale + 1), search.cycle + 1
    floor = (error < eps**0.5) & (stale >= 2)
    whole = count == structure.size(search.ahead)  # of the space: nothing to restart for
    return search._replace(
        basis=tall.combine(kept, search.basis),
        images=tall.combine(kept, search.images),
        filled=jnp.full_like(search.filled, half),
        value=values[order[0]],
        error=error,
        best=jnp.where(falls, error, search.best),
        stale=stale,
        cycle=cycle,
        ended=(error <= 16 * eps) | floor | (cycle >= (1 if whole else CYCLES)),
    )


def _next_row(image: Vector, basis: Rows, noise: Vector) -> Vector:
    """The unit vector of what an image has outside the basis; where nothing, that of the noise.

    The noise is above the rounding of the first projection, which may lie within the basis.
    """
    v = jax.tree.map(
        lambda x, y: x + y, tall.times(scaling.reciprocal(scaling.norm(image)), image), noise
    )
    for _ in range(2):
        v = tall.project_out(v, basis)
        v = tall.times(scaling.reciprocal(jnp.sqrt(tall.dot(v, v))), v)
    return v


def _set_row(rows, i, v):
    return jax.tree.map(lambda x, leaf: x.at[i].set(leaf), rows, v)


def count_entries(v, name):
    """How many entries a vector has, at least one."""
    count = structure.size(v)
    if not count:
        raise ValueError(f"{name} must have at least one entry, got {jax.tree.map(jnp.shape, v)}")
    return count


@jax.jit
def random_unit_vector(key, like):
    drawn = structure.normal(key, structure.widen(like))
    drawn = xla.vary_like(drawn, like)
    return tall.times(1 / scaling.norm(drawn), drawn)


@jax.jit
def signed(vector, by):
    """The vector, or minus it where the entry of `by` of largest magnitude is negative."""
    entries = jnp.stack([_largest_entry(leaf) for leaf in jax.tree.leaves(by) if leaf.size])
    entry = entries[jnp.argmax(jnp.abs(entries))]
    return tall.times(jnp.where(entry < 0, -1, 1).astype(entry.dtype), vector)


def _largest_entry(x):
    """The first entry of largest magnitude; not by its place, which may be on any device."""
    high, low = jnp.max(x), jnp.min(x)
    before = (high == -low) & (jnp.argmax(x) < jnp.argmin(x))
    return jnp.where((high > -low) | before, high, low)
