"""A matrix from a few of its own rows and columns: the skeleton and the cross approximation.

r rows and r columns whose r x r intersection is regular give a matrix of rank r exactly,
`A = C A_hat^-1 R`. Of a Hessian these are its products with unit vectors.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowrank_jax import _checks, _rows
from lowrank_jax._spectral import masked_inverse, product
from lowrank_jax.rectangular import LowRank

Matrix = jax.Array | tuple[Callable, Callable]


def skeleton(
    a: Matrix,
    rows: Sequence[int] | jax.Array,
    cols: Sequence[int] | jax.Array,
    *,
    rtol: float | None = None,
) -> LowRank:
    """`C A_hat^+ R`, with `C = A[:, cols]`, `R = A[rows]`, `A_hat = A[rows][:, cols]`.

    It is A itself where the rank of A is that of A_hat; in general it has the rows and columns of
    A that were chosen, if A_hat is square and regular, and its error
    depends on the choice; see `cross`. An index may be given twice. Only these rows and
    columns are read; a number among them that is not finite makes the result NaN.

    The rows are rotated into singular vectors of A_hat before anything is divided by its singular
    values, so that small ones amplify the rounding of their own direction only. Derivatives
    with respect to a are right where the number of kept singular values is constant.

    Args:
      a: (p, m), or two functions: `row(i) -> (m,)` and `column(j) -> (p,)`, for a matrix that
        need not fit into memory. They are called under `jax.vmap` with a traced index.
      rows: (k,) integers in [0, p); traced ones outside make the result NaN.
      cols: (n,) integers in [0, m), likewise; k and n may differ.
      rtol: singular values of A_hat below `rtol` times its largest one are taken as zero; None
        stands for 10 max(k, n) eps, as in `jnp.linalg.pinv`.

    Returns:
      `LowRank` with n rows on the left and k on the right.

    Raises:
      TypeError: for anything but a matrix or two functions of real floating-point numbers,
        or indices that are not integers.
      ValueError: for wrong shapes, an index out of range, or rtol outside [0, 1].

    Source: Goreinov, Tyrtyshnikov and Zamarashkin, A theory of pseudoskeleton
    approximations, Linear Algebra and its Applications 261 (1997).

    Example:
      >>> import jax.numpy as jnp
      >>> a = jnp.outer(jnp.arange(1.0, 4.0), jnp.array([1.0, -2.0]))
      >>> bool(jnp.allclose(skeleton(a, rows=[1], cols=[0]).to_dense(), a))
      True
    """
    row, column, (p, m) = _access(a)
    (i, rows_exist), (j, cols_exist) = _indices(rows, "rows", p), _indices(cols, "cols", m)
    if rtol is not None:
        _checks.between(rtol, "rtol", 0, 1)
    c, r = _read(column, j, p), _read(row, i, m)
    return _assembled(c, _read(lambda j: r[:, j], j, len(i)).T, r, rtol, rows_exist & cols_exist)


def cross(a: Matrix, rank: int) -> LowRank:
    """The skeleton on `rank` rows and columns that are chosen by pivoting, as in elimination.

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
      a: (p, m), or two functions `row(i) -> (m,)` and `column(j) -> (p,)` of a traced index.
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
    row, column, shape = _access(a)
    _checks.count(rank, "rank", 0)
    steps = min(rank, *shape)
    if steps == 0:
        c, r = (_read(read, (), n) for read, n in zip((column, row), shape, strict=True))
        c, r = (jnp.zeros((rank, x.shape[1]), x.dtype) for x in (c, r))
        return LowRank(c, jnp.zeros((rank, rank), _rows.compute_dtype((c, r))), r)
    if isinstance(a, tuple):
        rows, cols, found, finite = _rook_pivots(row, column, shape, steps)
    else:
        rows, cols, found = _complete_pivots(lax.stop_gradient(_rows.widen(a)), steps)
        finite = True  # or the first pivot is not, and its row is read
    rows, cols, found = (jnp.pad(x, (0, rank - steps)) for x in (rows, cols, found))
    c, r = jax.vmap(column)(cols), jax.vmap(row)(rows)
    c, r = (_rows.scale(found.astype(x.dtype), x) for x in (c, r))
    small = r[:, cols] * found.astype(r.dtype)[None, :]
    eps = float(jnp.finfo(_rows.compute_dtype(small)).eps)
    return _assembled(c, small, r, rank * eps, finite)


@jax.jit
def _assembled(c, small, r, rtol, valid):
    """`C A_hat^+ R` from the rows of C^T (n, p), A_hat (k, n), and R (k, m)."""
    left, small, right = _rows.widen((c, small, r))
    k, n = small.shape
    rtol = 10 * max(k, n) * float(jnp.finfo(small.dtype).eps) if rtol is None else rtol
    rtol = jnp.asarray(rtol, small.dtype)
    valid &= jnp.all(jnp.isfinite(left)) & jnp.all(jnp.isfinite(right))
    nan = jnp.where(valid & (rtol >= 0) & (rtol <= 1), 1, jnp.nan).astype(small.dtype)
    if k == 0 or n == 0:
        return LowRank(c, jnp.zeros((n, k), small.dtype) * nan, r)

    # Constant rotations of both sides: A_hat becomes diagonal, but for its derivative.
    unit = _rows.power_of_two(jnp.max(jnp.abs(small)))
    u, s, vt = lax.stop_gradient(jnp.linalg.svd(lax.stop_gradient(small / unit)))
    cut = rtol * s[0]
    rotated = product(u.T, small / unit, vt.T)
    both = jnp.block(
        [[jnp.zeros((k, k), s.dtype), rotated], [rotated.T, jnp.zeros((n, n), s.dtype)]]
    )
    inverse = masked_inverse(_outermost, both, jnp.sum(s > cut))[k:, :k]
    size = _rows.power_of_two(jnp.maximum(jnp.pad(s, (0, n - len(s))), cut))
    left = _rows.combine(vt / size[:, None], _rows.scale(jnp.full(n, 1 / unit), left))
    right = _rows.combine(u.T, right)
    return LowRank(left.astype(c.dtype), size[:, None] * inverse * nan, right.astype(r.dtype))


def _outermost(w, v, rank):
    """Of the ascending eigenvalues -s, 0, s of `[[0, M], [M^T, 0]]`, those of the largest s."""
    del v
    i = jnp.arange(len(w))
    return (i < rank) | (i >= len(w) - rank)


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
    state = a, empty, empty, jnp.zeros(steps, bool)
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
        state, along = _residual(state, row(i), state.columns[:, i], state.across)
        j = _largest(along)
        state, down = _residual(state, column(j), state.across[:, j], state.columns)
        return state, _largest(down), j, down

    def attempt(state):
        begin = state.start
        first = look(0, (state, begin))
        state, i, j, down = lax.fori_loop(0, 2, look, first)
        state, along = _residual(state, row(i), state.columns[:, i], state.across)
        return _extended(state, begin, i, j, down, along, _noise(state.size, steps))

    dtype = _rows.wider(jax.eval_shape(row, 0).dtype, jax.eval_shape(column, 0).dtype)
    state = _Search(
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
    end = lax.while_loop(
        lambda state: (state.crosses < steps) & (state.tries < 2 * steps + 8), attempt, state
    )
    return (
        end.rows,
        end.cols,
        jnp.arange(steps, dtype=jnp.int32) < end.crosses,
        jnp.isfinite(end.size),
    )


def _constant(read):
    """Rows or columns in the dtype that is computed in, without a derivative."""
    return lambda i: lax.stop_gradient(_rows.widen(read(i)))


def _residual(state, entries, coefficients, rows):
    """What the crosses leave of a row or a column, and the size of the entries noted."""
    entries = entries.astype(rows.dtype)
    left = entries - _rows.combine(coefficients, rows)
    return state._replace(size=jnp.maximum(state.size, jnp.max(jnp.abs(entries)))), left


def _extended(state, begin, i, j, down, along, noise):
    """One more cross, through (i, j), if its pivot is more than noise; and where to look next."""
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


def _access(a):
    """Functions that read a row and a column, and (p, m)."""
    if not isinstance(a, tuple):
        if jax.tree.structure(a) != jax.tree.structure(0):
            raise TypeError(f"a must be a matrix or two functions (row, column), got {a!r}")
        a = _checks.vector(a, "a")
        if a.ndim != 2:
            raise ValueError(f"a must be a matrix of two axes, got shape {a.shape}")
        if not a.size:  # nothing to index
            return (lambda i: jnp.sum(a, axis=0)), (lambda j: jnp.sum(a, axis=1)), a.shape
        return (lambda i: a[i]), (lambda j: a[:, j]), a.shape
    if len(a) != 2 or not all(callable(read) for read in a):
        raise TypeError(f"a must be a matrix or two functions (row, column), got {a!r}")
    sizes = []
    for read, name in zip(a, ("row", "column"), strict=True):
        entries = jax.eval_shape(read, jax.ShapeDtypeStruct((), jnp.int32))
        dtype = getattr(entries, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{name} must return a real floating-point array, got {entries}")
        if len(entries.shape) != 1:
            raise ValueError(f"{name} must return an array of one axis, got shape {entries.shape}")
        sizes.append(entries.shape[0])
    return *a, (sizes[1], sizes[0])


def _read(read, indices, length):
    """These rows or columns, of that length."""
    if len(indices) == 0:
        return jnp.zeros((0, length), jax.eval_shape(read, jnp.int32(0)).dtype)
    return jax.vmap(read)(indices)


def _indices(indices, name, size):
    """An int32 array of one axis, and whether all are in [0, size): an error if known."""
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(indices))
    if traced:
        indices = jnp.asarray(indices)
    else:
        try:
            indices = np.asarray(indices, int if np.size(indices) == 0 else None)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} must be integers, got {indices!r}") from error
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got dtype {indices.dtype}")
    if indices.ndim != 1:
        raise ValueError(f"{name} must have one axis, got shape {indices.shape}")
    inside = (indices >= 0) & (indices < size)
    if not traced and not inside.all():
        raise ValueError(f"{name} must be in [0, {size}), got {indices[~inside][0]}")
    return jnp.asarray(indices).astype(jnp.int32), jnp.all(jnp.asarray(inside))
