"""The eigenpair of largest magnitude of a symmetric operator, by thick-restart Lanczos."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._core import scaling, structure, tall
from lowrank_jax._core.spectral import eigh, symmetrize
from lowrank_jax._core.types import Rows, Vector

BASIS = 16  # rows of the Lanczos basis
CYCLES = 100  # at most, of BASIS / 2 products each


class _Search(NamedTuple):
    """Orthonormal rows, their images, and the unit vector that comes next; `filled` rows are set.

    `error` is that of the last Rayleigh-Ritz step, `best` the least that counted as a fall, `stale`
    the cycles since. After a cycle the first row is the Ritz vector and `value` its value.
    """

    basis: Rows
    images: Rows
    ahead: Vector
    filled: jax.Array
    value: jax.Array
    error: jax.Array
    best: jax.Array
    stale: jax.Array
    cycle: jax.Array


def dominant_eigenpair(
    product: Callable[[Vector], Vector], start: Vector, eps: float
) -> tuple[jax.Array, Vector]:
    """The eigenpair of largest magnitude of a symmetric operator, constants; NaN if not found."""
    pure, closed = jax.closure_convert(product, start)
    start, closed = lax.stop_gradient((start, closed))
    # The linear part alone: what does not depend on the vector is computed once.
    product = jax.linearize(lambda v: pure(v, *closed), start)[1]
    size = structure.size(start)
    count = min(BASIS, size)
    cycles = 1 if count == size else CYCLES  # the whole space: nothing to restart for
    root, noise_size = 10 * size**0.5, 64 * eps / size**0.5

    def extend(search):
        image = product(search.ahead)
        basis = _set_row(search.basis, search.filled, search.ahead)
        images = _set_row(search.images, search.filled, image)
        number = (search.cycle * BASIS + search.filled + 1).astype(search.value.dtype)
        noise = jax.tree.map(lambda x: noise_size * jnp.cos(number * root * x), start)
        ahead = _next_row(image, basis, noise)
        return search._replace(basis=basis, images=images, ahead=ahead, filled=search.filled + 1)

    def cycle(search):
        return _restarted(lax.while_loop(lambda s: s.filled < count, extend, search))

    def unfinished(search):
        floor = (search.error < eps**0.5) & (search.stale >= 2)
        return (search.error > 16 * eps) & ~floor & (search.cycle < cycles)

    rows = structure.zeros(start, count)
    zero, large = jnp.zeros_like(scaling.norm(start)), jnp.full_like(scaling.norm(start), jnp.inf)
    none = jnp.zeros((), jnp.int32)
    first = _Search(rows, rows, start, none, zero, large, large, none, none)
    last = lax.while_loop(unfinished, cycle, first)
    vector = jax.tree.map(lambda leaf: leaf[0], last.basis)
    valid = scaling.nan_unless(last.error < eps**0.5, last.value.dtype)
    length = jnp.sqrt(tall.dot(vector, vector))
    return valid * last.value, tall.times(valid / length, vector)


def _restarted(search: _Search) -> _Search:
    """Rayleigh-Ritz in a full basis; the half of largest magnitude is kept, with its images."""
    values, vectors = eigh(symmetrize(tall.gram(search.basis, search.images)))
    order = jnp.argsort(-jnp.abs(values))
    count = len(values)
    half = max(count // 2, 1)

    ends = jnp.stack([order[0], jnp.where(order[0] == 0, count - 1, 0)])
    ritz = tall.combine(vectors[:, ends].T, search.basis)
    image = tall.combine(vectors[:, ends].T, search.images)
    top, other = jnp.abs(values[ends])
    residual = scaling.norms(jax.tree.map(jnp.subtract, image, tall.scale(values[ends], ritz)))
    error = jnp.maximum(residual[0], other + residual[1] - top) * scaling.reciprocal(top)

    kept = jnp.where((jnp.arange(count) < half)[:, None], vectors[:, order].T, 0)
    falls = error < 0.9 * search.best
    return search._replace(
        basis=tall.combine(kept, search.basis),
        images=tall.combine(kept, search.images),
        filled=jnp.full_like(search.filled, half),
        value=values[order[0]],
        error=error,
        best=jnp.where(falls, error, search.best),
        stale=jnp.where(falls, 0, search.stale + 1),
        cycle=search.cycle + 1,
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


def random_unit_vector(key, like):
    drawn = structure.normal(key, structure.widen(like))
    return tall.times(1 / scaling.norm(drawn), drawn)


def signed(vector, by):
    """The vector, or minus it where the entry of `by` of largest magnitude is negative."""
    flat = [leaf.ravel() for leaf in jax.tree.leaves(by) if leaf.size]
    entries = jnp.stack([leaf[jnp.argmax(jnp.abs(leaf))] for leaf in flat])
    entry = entries[jnp.argmax(jnp.abs(entries))]
    return tall.times(jnp.where(entry < 0, -1, 1).astype(entry.dtype), vector)
