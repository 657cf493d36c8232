"""Adaptive cross approximation: the rows and columns of a CUR decomposition found by pivoting."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowrank_jax._core import checks, programs, structure, tall, xla
from lowrank_jax._models.cur import Matrix, access, assemble, read_lines
from lowrank_jax._operators.rectangular import LowRank


def cross(a: Matrix, rank: int) -> LowRank:
    """Returns the skeleton on `rank` rows and columns chosen by pivoting, as in elimination.

    Each step subtracts from the residual E the cross through an entry of it,
    `E[:, j] E[i, :] / E[i, j]`. For a matrix that entry is the largest one (complete pivoting). For
    two functions it is found by looking for the largest entry of a row, then of its
    column, and so on a few times (rook pivoting): O((m + p) rank) memory, O((m + p) rank^2)
    work and O(rank) rows and columns. Where what it finds is zero, the next row is one that
    the crosses so far touch least. That is a heuristic: of a matrix with few nonzero entries
    it can miss some.

    Where A has a smaller rank, its surplus rows are zero. The choice is a constant under
    differentiation. A number that is not finite in what is read makes the result NaN.

    Args:
      a: (p, m), or two functions `row(i) -> (m,)` and `column(j) -> (p,)`. Where nothing is traced
        they are called as they are, with a Python int, and may be plain Python or NumPy; under a
        transformation i and j are traced.
      rank: how many rows and columns, a Python int.

    Returns:
      `LowRank` with `rank` rows on each side; `truncate` it to less for a better
      approximation of a lower rank.

    Raises:
      TypeError: for anything but a matrix or two functions of real floating-point numbers,
        or a rank that is not a Python int.
      ValueError: for wrong shapes or a negative rank.

    Source: Bebendorf, Approximation of boundary element matrices, Numerische Mathematik
    86 (2000).

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.linspace(0.0, 1.0, 50)
      >>> a = 1 / (1 + x[:, None] + x[None, :])
      >>> bool(jnp.max(jnp.abs(cross(a, 5).to_dense() - a)) < 1e-5)
      True
    """
    checks.count(rank, "rank", 0)
    on_host = isinstance(a, tuple) and _sizes_on_host(a)
    row, column, shape = (*a, on_host) if on_host else access(a)
    steps = min(rank, *shape)
    if steps == 0:
        c, r = (read_lines(read, (), n) for read, n in zip((column, row), shape, strict=True))
        c, r = (jnp.zeros((rank, x.shape[1]), x.dtype) for x in (c, r))
        return LowRank(c, jnp.zeros((rank, rank), structure.compute_dtype((c, r))), r)
    if on_host:
        rows, cols, found, finite = _rook_pivots_on_host(row, column, shape, steps)
        c, r = _lines(column, cols), _lines(row, rows)
    elif isinstance(a, tuple):
        rows, cols, found, finite = _rook_pivots(row, column, shape, steps)
        c, r = jax.vmap(column)(cols), jax.vmap(row)(rows)
    else:
        rows, cols, found = _complete_pivots(lax.stop_gradient(structure.widen(a)), steps)
        finite = True  # or the first pivot is not, and its row is read
        c, r = jax.vmap(column)(cols), jax.vmap(row)(rows)
    return _skeleton(c, r, cols, found, finite, rank)


@partial(jax.jit, static_argnums=5)
def _skeleton(c, r, cols, found, finite, rank):
    """The skeleton on the columns and rows that were found, with zeros up to `rank`."""
    c, r = (tall.scale(found.astype(x.dtype), x) for x in (c, r))
    small = r[:, cols] * found.astype(r.dtype)[None, :]
    rest = rank - len(found)
    c, r = (jnp.pad(x, ((0, rest), (0, 0))) for x in (c, r))
    small = jnp.pad(small, (0, rest))
    eps = float(jnp.finfo(structure.compute_dtype(small)).eps)
    return assemble(c, small, r, rank * eps, finite)


@partial(jax.jit, static_argnums=1)
def _complete_pivots(a, steps):
    """Rows, columns (steps,), and which of them are crosses."""
    noise = _noise(jnp.max(jnp.abs(a), initial=0), steps)

    def step(k, state):
        e, rows, cols, found = state
        i, j = _largest(e)
        good = jnp.abs(e[i, j]) > noise
        ratio = jnp.where(good, e[i] / jnp.where(good, e[i, j], 1), 0)
        e = e - jnp.outer(e[:, j], ratio)
        return e, rows.at[k].set(i), cols.at[k].set(j), found.at[k].set(good)

    empty = jnp.zeros(steps, jnp.int32)
    state = a, *xla.vary_like((empty, empty, jnp.zeros(steps, bool)), noise)
    _, *pivots = lax.fori_loop(0, steps, step, state)
    return pivots


class _Search(NamedTuple):
    """What rook pivoting knows: so many crosses, `A ~ columns^T across`."""

    tries: jax.Array
    crosses: jax.Array
    start: jax.Array  # the row where the next try begins
    used: jax.Array  # (p,), rows not to begin from again
    reach: jax.Array  # (p,), how much of each row the crosses have touched
    size: jax.Array  # the largest entry that was read
    columns: jax.Array  # (n, p), residual columns over their pivots
    across: jax.Array  # (n, m), residual rows
    rows: jax.Array
    cols: jax.Array


def _rook_pivots(row, column, shape, steps):
    """As `_complete_pivots`, by reading rows and columns; and whether what was read is finite."""
    row, column = _constant(row), _constant(column)

    def look(_, found):
        """The column of the row's largest entry, and the row of that column's largest one."""
        state, i, *_ = found
        state, j, _ = _along(state, i, row(i))
        state, i, down = _down(state, j, column(j))
        return state, i, j, down

    def attempt(state):
        begin = state.start
        state, i, j, down = lax.fori_loop(0, 2, look, look(0, (state, begin)))
        state, _, along = _along(state, i, row(i))
        return _extended(state, begin, i, j, down, along)

    dtype = structure.wider(jax.eval_shape(row, 0).dtype, jax.eval_shape(column, 0).dtype)
    start = xla.vary_like(_begun(shape, steps, dtype), row(0))  # in a shard_map alone is it read
    return _found(lax.while_loop(_unfinished, attempt, start))


def _rook_pivots_on_host(row, column, shape, steps):
    """The same of functions of a Python int, which are not traced."""
    dtype = structure.wider(
        *(structure.compute_dtype(jnp.asarray(read(0))) for read in (row, column))
    )
    state = _begun(shape, steps, dtype)
    while _unfinished(state):
        begin = i = int(state.start)
        for _ in range(3):
            state, j, _ = _along(state, i, row(i))
            j = int(j)
            state, i, down = _down(state, j, column(j))
            i = int(i)
        state, _, along = _along(state, i, row(i))
        state = _extended(state, begin, i, j, down, along)
    return _found(state)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _begun(shape, steps, dtype):
    return _Search(
        tries=jnp.int32(0),
        crosses=jnp.int32(0),
        start=jnp.int32(0),
        used=jnp.zeros(shape[0], bool),
        reach=jnp.zeros(shape[0], dtype),
        size=jnp.zeros((), dtype),
        columns=jnp.zeros((steps, shape[0]), dtype),
        across=jnp.zeros((steps, shape[1]), dtype),
        rows=jnp.zeros(steps, jnp.int32),
        cols=jnp.zeros(steps, jnp.int32),
    )


@jax.jit
def _unfinished(state):
    steps = len(state.rows)
    return (state.crosses < steps) & (state.tries < 2 * steps + 8)


@jax.jit
def _found(state):
    """Rows and columns, which of them are crosses, and whether what was read is finite."""
    crosses = jnp.arange(len(state.rows), dtype=jnp.int32) < state.crosses
    return state.rows, state.cols, crosses, jnp.isfinite(state.size)


@jax.jit
def _along(state, i, entries):
    """What is left of row i, and where it is largest."""
    state, left = _residual(state, entries, state.columns[:, i], state.across)
    return state, _largest(left), left


@jax.jit
def _down(state, j, entries):
    """What is left of column j, and where it is largest."""
    state, left = _residual(state, entries, state.across[:, j], state.columns)
    return state, _largest(left), left


def _sizes_on_host(a):
    """(p, m), by calling functions as they are; None for what is traced or not a pair of them."""
    if len(a) != 2 or not all(map(callable, a)) or programs.traced():
        return None
    lines = [read(0) for read in a]
    if programs.traced(lines):
        return None
    for line, name in zip(lines, ("row", "column"), strict=True):
        dtype = getattr(line, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{name} must return a real floating-point array, got {line}")
        if line.ndim != 1:
            raise ValueError(f"{name} must return an array of one axis, got shape {line.shape}")
    return len(lines[1]), len(lines[0])


def _lines(read, indices):
    return jnp.stack([jnp.asarray(read(int(i))) for i in indices])


def _constant(read):
    """Rows or columns in the dtype that is computed in, without a derivative."""
    return lambda i: lax.stop_gradient(structure.widen(read(i)))


def _residual(state, entries, coefficients, rows):
    """What the crosses leave of a row or a column, and the size of the entries noted."""
    entries = entries.astype(rows.dtype)
    left = entries - tall.combine(coefficients, rows)
    return state._replace(size=jnp.maximum(state.size, jnp.max(jnp.abs(entries)))), left


@jax.jit
def _extended(state, begin, i, j, down, along):
    """One more cross, through (i, j), if its pivot is more than noise; and where to look next."""
    noise = _noise(state.size, len(state.rows))
    pivot, k = along[j], state.crosses
    good = jnp.abs(pivot) > noise
    scaled = down / jnp.where(good, pivot, 1)
    used = state.used.at[jnp.where(good, i, begin)].set(True)
    reach = jnp.where(good, jnp.maximum(state.reach, jnp.abs(scaled)), state.reach)
    by_column = jnp.argmax(jnp.where(used, -1, jnp.abs(scaled)))
    order = _spread(len(used))
    untouched = order[jnp.argmin(jnp.where(used, jnp.inf, reach)[order])]
    added = state._replace(
        crosses=k + 1,
        columns=state.columns.at[k].set(scaled),
        across=state.across.at[k].set(along),
        rows=state.rows.at[k].set(i),
        cols=state.cols.at[k].set(j),
    )
    state = jax.tree.map(lambda new, old: jnp.where(good, new, old), added, state)
    start = jnp.where(good, by_column.astype(jnp.int32), untouched)
    return state._replace(tries=state.tries + 1, start=start, used=used, reach=reach)


def _spread(n):
    """An order of n indices in which any few in a row are spread over all of them."""
    return jnp.asarray(np.argsort(np.arange(n) * 0.5 * (5**0.5 - 1) % 1), jnp.int32)


def _largest(x):
    """The indices of the entry of largest magnitude; one index for a vector."""
    index = jnp.unravel_index(jnp.argmax(jnp.abs(x)), x.shape)
    index = tuple(i.astype(jnp.int32) for i in index)
    return index if x.ndim > 1 else index[0]


def _noise(size, steps):
    """What an entry of a residual must exceed: the rounding of so many subtractions."""
    return 4 * max(steps, 1) * float(jnp.finfo(size.dtype).eps) * size
