"""The CUR decomposition: a matrix from a few of its own rows and columns, `skeleton`.

r rows and r columns whose r x r intersection is regular give a matrix of rank r exactly,
`A = C A_hat^-1 R`. Of a Hessian these are its products with unit vectors.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowrank_jax._core import checks, scaling, structure, tall
from lowrank_jax._core.spectral import masked_inverse, product
from lowrank_jax._operators.rectangular import LowRank

Matrix = jax.Array | tuple[Callable, Callable]


def skeleton(
    a: Matrix,
    rows: Sequence[int] | jax.Array,
    cols: Sequence[int] | jax.Array,
    *,
    rtol: float | None = None,
) -> LowRank:
    """Computes `C A_hat^+ R`, with `C = A[:, cols]`, `R = A[rows]`, `A_hat = A[rows][:, cols]`.

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
    row, column, (p, m) = access(a)
    (i, rows_exist), (j, cols_exist) = _indices(rows, "rows", p), _indices(cols, "cols", m)
    if rtol is not None:
        checks.between(rtol, "rtol", 0, 1)
    c, r = read_lines(column, j, p), read_lines(row, i, m)
    return assemble(c, read_lines(lambda j: r[:, j], j, len(i)).T, r, rtol, rows_exist & cols_exist)


@jax.jit
def assemble(c, small, r, rtol, valid):
    """`C A_hat^+ R` from the rows of C^T (n, p), A_hat (k, n), and R (k, m)."""
    left, small, right = structure.widen((c, small, r))
    k, n = small.shape
    rtol = 10 * max(k, n) * float(jnp.finfo(small.dtype).eps) if rtol is None else rtol
    rtol = jnp.asarray(rtol, small.dtype)
    valid &= jnp.all(jnp.isfinite(left)) & jnp.all(jnp.isfinite(right))
    valid = scaling.nan_unless(valid & (rtol >= 0) & (rtol <= 1), small.dtype)
    if k == 0 or n == 0:
        return LowRank(c, jnp.zeros((n, k), small.dtype) * valid, r)

    # Constant rotations of both sides: A_hat becomes diagonal, but for its derivative.
    unit = scaling.power_of_two(jnp.max(jnp.abs(small)))
    u, s, vt = lax.stop_gradient(jnp.linalg.svd(lax.stop_gradient(small / unit)))
    cut = rtol * s[0]
    rotated = product(u.T, small / unit, vt.T)
    both = jnp.block(
        [[jnp.zeros((k, k), s.dtype), rotated], [rotated.T, jnp.zeros((n, n), s.dtype)]]
    )
    inverse = masked_inverse(_outermost, both, jnp.sum(s > cut))[k:, :k]
    size = scaling.power_of_two(jnp.maximum(jnp.pad(s, (0, n - len(s))), cut))
    left = tall.combine(vt / size[:, None], tall.scale(jnp.full(n, 1 / unit), left))
    right = tall.combine(u.T, right)
    return LowRank(left.astype(c.dtype), size[:, None] * inverse * valid, right.astype(r.dtype))


def _outermost(w, v, rank):
    """Of the ascending eigenvalues -s, 0, s of `[[0, M], [M^T, 0]]`, those of the largest s."""
    del v
    i = jnp.arange(len(w))
    return (i < rank) | (i >= len(w) - rank)


def access(a):
    """Functions that read a row and a column, and (p, m)."""
    if not isinstance(a, tuple):
        if jax.tree.structure(a) != jax.tree.structure(0):
            raise TypeError(f"a must be a matrix or two functions (row, column), got {a!r}")
        a = checks.vector(a, "a")
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


def read_lines(read, indices, length):
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
