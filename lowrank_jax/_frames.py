"""Pytrees with a leading axis as tall matrices.

A set of n vectors is a pytree whose leaves have a leading axis n: the rows of an
(n, D) matrix that is never formed. All that is ever done along D is here, at
`Precision.HIGHEST`: inner products (`gram`), small matrices times rows
(`combine`), and an orthonormal basis of the rows' span from these two alone
(`orthonormal`), without a QR of anything tall.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowrank_jax import _pieces
from lowrank_jax._spectral import after, eigh, either, product, reciprocal


def length(rows: Any) -> int:
    """The number n of rows."""
    return jax.tree.leaves(rows)[0].shape[0]


def row(rows: Any) -> Any:
    """The shapes and dtypes of one row, as `jax.ShapeDtypeStruct`s."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)


def size(v: Any) -> int:
    """The number of entries of a vector."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(v))


def identity(v: Any) -> Any:
    """The unit vectors of the space of v, as many rows as it has entries."""
    leaves, tree = jax.tree.flatten(v)
    ends = list(itertools.accumulate(math.prod(leaf.shape) for leaf in leaves))
    eye = np.eye(size(v))
    blocks = np.split(eye, ends[:-1], axis=1)
    rows = [
        jnp.asarray(block.reshape(-1 if block.size else len(eye), *leaf.shape), leaf.dtype)
        for block, leaf in zip(blocks, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, rows)


def wider(*dtypes: Any) -> jnp.dtype:
    """The dtype to which these promote, also where implicit promotion is forbidden."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


def common_dtype(tree: Any) -> jnp.dtype:
    """The dtype to which the leaves promote."""
    return wider(*[leaf.dtype for leaf in jax.tree.leaves(tree)])


def compute_dtype(tree: Any) -> jnp.dtype:
    """The leaves' common dtype, float32 at least: small matrices have it."""
    return wider(common_dtype(tree), jnp.float32)


def resolution(tree: Any) -> float:
    """The machine epsilon of the least precise leaf."""
    return max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(tree))


def widen(tree: Any) -> Any:
    """All leaves in the dtype that is computed in."""
    dtype = compute_dtype(tree)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def cast_like(tree: Any, pattern: Any) -> Any:
    """The leaves of `tree` in the dtypes of `pattern`."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, pattern)


def pack(rows: Any) -> Any:
    """The rows with all small leaves in one, so that many leaves do not make many operations.

    Where leaves differ in dtype, or may be sharded each in its own way, they stay as they are.
    """
    leaves = jax.tree.leaves(rows)
    small = _small([jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in leaves])
    if not any(small):
        return rows
    flat = [
        x.reshape(len(x), math.prod(x.shape[1:]))
        for x, packs in zip(leaves, small, strict=True)
        if packs
    ]
    # The barrier keeps the copy from being compiled into everything that reads it.
    packed = lax.optimization_barrier(jnp.concatenate(flat, axis=1))
    return [packed, *[x for x, packs in zip(leaves, small, strict=True) if not packs]]


def unpack(packed: Any, v: Any) -> Any:
    """Packed rows, any number of them, each in the structure of the vector v."""
    leaves, tree = jax.tree.flatten(v)
    small = _small(leaves)
    if not any(small):
        return packed
    sizes = [math.prod(x.shape) for x, packs in zip(leaves, small, strict=True) if packs]
    ends = list(itertools.accumulate(sizes))
    parts, large = iter(jnp.split(packed[0], ends[:-1], axis=1)), iter(packed[1:])
    rows = [next(parts if packs else large) for packs in small]
    shaped = [x.reshape(len(x), *like.shape) for x, like in zip(rows, leaves, strict=True)]
    return jax.tree.unflatten(tree, shaped)


def _small(leaves):
    """Which leaves of a vector are packed."""
    small = [math.prod(x.shape) <= 2**16 for x in leaves]
    alone = jax.device_count() == 1 and len({x.dtype for x in leaves}) == 1
    return [alone and sum(small) > 1 and packs for packs in small]


def gram(a: Any, b: Any) -> jax.Array:
    """Inner products `A B^T`: of n rows with m rows, (n, m), or with one vector, (n,)."""
    dtype = wider(compute_dtype(a), compute_dtype(b))
    a, b = (jax.tree.map(lambda leaf: leaf.astype(dtype), rows) for rows in (a, b))
    if jax.tree.leaves(a)[0].ndim == jax.tree.leaves(b)[0].ndim:
        return _pieces.total(_leaf_gram, None, pack(a), pack(b))
    products = jax.tree.map(functools.partial(_leaf_gram, None), a, b)
    return functools.reduce(jnp.add, jax.tree.leaves(products))


def _leaf_gram(_, x, y):
    point = x.ndim - 1
    axes = tuple(range(1, x.ndim)), tuple(range(y.ndim - point, y.ndim))
    return jnp.tensordot(x, y, axes, precision=lax.Precision.HIGHEST)


def dot(u: Any, v: Any) -> jax.Array:
    """The inner product of two vectors."""
    return gram(*(jax.tree.map(lambda leaf: leaf[None], x) for x in (u, v)))[0, 0]


def combine(coefficients: jax.Array, rows: Any, *, pairwise: bool = False) -> Any:
    """`T B`: a (k, n) matrix times n rows gives k rows, an (n,) vector gives one vector.

    Each leaf comes back in its own dtype. Where T makes orthonormal rows of ill-conditioned ones,
    terms cancel, and the rounding of a running sum of 64 is twice that of a pairwise one: the
    latter is taken above 32 rows where `pairwise` asks for it.
    """

    def leaf_combine(x):
        dtype = wider(x.dtype, coefficients.dtype)
        sum_over_n = _pairwise if pairwise and len(x) > 32 else _product
        return sum_over_n(coefficients.astype(dtype), x.astype(dtype)).astype(x.dtype)

    return jax.tree.map(leaf_combine, rows)


def _pairwise(t: jax.Array, x: jax.Array) -> jax.Array:
    if len(x) <= 4:
        return _product(t, x)
    half = len(x) // 2
    return _pairwise(t[:, :half], x[:half]) + _pairwise(t[:, half:], x[half:])


def _product(t: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tensordot(t, x, 1, precision=lax.Precision.HIGHEST)


def each(f: Callable, rows: Any, batch_size: int | None) -> Any:
    """F of each row, stacked: that many rows at once, all of them for None."""
    if batch_size is None:
        return jax.vmap(f)(rows)
    if batch_size == 1:  # no batch of one: that would turn matrix products into batched ones
        return lax.map(f, rows)
    return lax.map(f, rows, batch_size=batch_size)


def normal(key: jax.Array, v: Any, shape: tuple[int, ...] = ()) -> Any:
    """Standard normal vectors like v, with the leading axes `shape`; a key of its own a leaf."""
    leaves, tree = jax.tree.flatten(v)
    keys = jax.random.split(key, len(leaves))
    draws = [
        jax.random.normal(k, (*shape, *x.shape), x.dtype) for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, draws)


def scale(factors: jax.Array, rows: Any) -> Any:
    """Row i times `factors[i]`, each leaf in its own dtype."""
    return jax.tree.map(
        lambda x: x * factors.reshape((-1,) + (1,) * (x.ndim - 1)).astype(x.dtype), rows
    )


def times(t: jax.Array, v: Any) -> Any:
    """`t v`, each leaf computed in the dtype of t, in its own dtype."""
    return jax.tree.map(lambda x: (t * x.astype(t.dtype)).astype(x.dtype), v)


def plus(v: Any, t: jax.Array, w: Any) -> Any:
    """`v + t w`, each leaf computed in the dtype of t, in the dtype of v."""

    def leaf_plus(x, y):
        return (x.astype(t.dtype) + t * y.astype(t.dtype)).astype(x.dtype)

    return jax.tree.map(leaf_plus, v, w)


def minus(v: Any, w: Any) -> Any:
    """`v - w`, each leaf in float32 at least: the difference of close numbers keeps its digits."""

    def leaf_minus(x, y):
        wide = wider(x.dtype, y.dtype, jnp.float32)
        return x.astype(wide) - y.astype(wide)

    return jax.tree.map(leaf_minus, v, w)


def finite(tree: Any) -> jax.Array:
    """Whether every entry is finite."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return functools.reduce(jnp.logical_and, leaves)


def reject(v: Any, basis: Any) -> Any:
    """What is left of one vector outside the span of orthonormal rows, `v - Q^T Q v`.

    Rounding leaves eps |v| in the span; of what a second call is given, it leaves nothing.
    """
    return jax.tree.map(jnp.subtract, v, combine(gram(basis, v), basis))


def peaks(rows: Any) -> jax.Array:
    """The largest magnitude in each row, (n,); a constant; not finite where the row is not."""

    def leaf_peaks(x):
        return jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim)), initial=0)

    rows = lax.stop_gradient(pack(widen(rows)))
    return functools.reduce(jnp.maximum, jax.tree.leaves(jax.tree.map(leaf_peaks, rows)))


def power_of_two(x: jax.Array) -> jax.Array:
    """A power of two within [x / 8, 8 x], 2 where x is 0 or not finite; a constant.

    Multiplying or dividing by it is exact, and so is its reciprocal.
    """
    return jnp.ldexp(jnp.ones_like(x), exponent(x))


def exponent(x: jax.Array) -> jax.Array:
    """The exponent of `power_of_two(x)`, an integer."""
    x = lax.stop_gradient(x)
    usable = jnp.isfinite(x) & (x > 0)
    most = jnp.finfo(x.dtype).maxexp - 3
    return jnp.clip(jnp.frexp(jnp.where(usable, x, 1))[1], -most, most)


def shift(x: jax.Array, exponents: jax.Array) -> jax.Array:
    """`x 2^e`, exact; in two steps, as 2^e alone may be out of range where the product is not."""
    half = exponents // 2
    one = jnp.ones_like(x)
    return x * jnp.ldexp(one, half) * jnp.ldexp(one, exponents - half)


def norms(rows: Any) -> jax.Array:
    """The Euclidean norm of each row, (n,), without over- or underflow; the gradient at 0 is 0."""
    rows = pack(widen(rows))
    unit = power_of_two(peaks(rows))
    scaled = scale(1 / unit, rows)
    squares = jax.tree.map(lambda x: jnp.sum(x * x, axis=tuple(range(1, x.ndim))), scaled)
    return unit * safe_sqrt(functools.reduce(jnp.add, jax.tree.leaves(squares)))


def norm(v: Any) -> jax.Array:
    """The Euclidean norm of one vector."""
    return norms(jax.tree.map(lambda leaf: leaf[None], v))[0]


def safe_sqrt(x: jax.Array) -> jax.Array:
    """The square root of the positive part, with gradient 0 where that is 0."""
    flat = x <= 0
    return jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, x)))


class Basis(NamedTuple):
    """An orthonormal basis of the span of n rows `S`.

    Attributes:
      rows: n orthonormal rows `Q`, those beyond the rank exactly zero.
      transform: (n, n), T with `Q = T diag(scale) S`. For data Y given at the
        rows, `Z = T diag(scale) Y` is the least-squares solution of `(S Q^T) Z = Y`
        with every row divided by its `|s_i|`, also to first order where rows depend on each other.
      scale: (n,), powers of two near one over the largest entry of each row, constants.
      kept: (n,), False for the zero rows of Q.
      chain: with which `through` makes Q of S, or of a piece of S.
      turn: (n, n), with `T = turn rotation` for the rotation of `turned`.
    """

    rows: Any
    transform: jax.Array
    scale: jax.Array
    kept: jax.Array
    chain: tuple[jax.Array, ...]
    turn: jax.Array


class Turned(NamedTuple):
    """Rows rotated until they are nearly orthonormal; what is dropped is zero or below `threshold`.

    Attributes:
      scale: (n,), as in `Basis`.
      unit: (n,), one over the norms of the scaled rows.
      first, second: (n, n), the two rotations.
      rotation: (n, n), R with the rotated rows `R diag(scale) S`.
      threshold: (n,), what the norm of a rotated row must exceed.
    """

    scale: jax.Array
    unit: jax.Array
    first: jax.Array
    second: jax.Array
    rotation: jax.Array
    threshold: jax.Array


def through(chain: tuple[jax.Array, ...], rows: Any) -> Any:
    """`T_k ... T_1 diag(d) S` for the chain (d, T_1, ..., T_k), one product after the other."""
    d, *transforms = chain
    rows = scale(d, rows)
    for transform in transforms:
        rows = combine(transform, rows, pairwise=True)
    return rows


def through_gram(chain: tuple[jax.Array, ...], rows: Any) -> jax.Array:
    """The Gram matrix of `through(chain, rows)`."""
    rows = through(chain, rows)
    return gram(rows, rows)


def orthonormal(rows: Any, *, eps: float, rtol: Any = 0.0) -> Basis:
    """An orthonormal basis of the rows' span by two rounds of Gram, eigh and rotation.

    Only Gram matrices and n x n algebra: each round rotates the rows by the
    eigenvectors of their Gram matrix and rescales them by their *measured* norms
    nu. One round resolves directions down to nu ~ sqrt(eps): the Gram matrix
    knows no more. The first round lifts all rows below that by one common factor
    (each to its own unit norm would mix clean rows with noise), the second
    resolves them. A Cholesky factor of what is by then nearly the identity whitens the rest.

    Where a Cholesky factor shows that no direction is short, its inverse stands for both rounds.

    The rotations are multiplied up as small matrices and applied to the given rows
    at once. Data at the rows then see the very matrix that the rows saw: what rounding did
    to the product of the rotations is no error, only another choice of combinations.

    A row of rounding noise must not be promoted to a direction: `_lifted` carries the
    noise of the rows along, and what does not rise above it is dropped, exactly to zero.

    The rotations are constants: any constant invertible transform spans the same rows,
    so the rows differentiate through their scale and the whitening alone, smoothly to
    all orders. The transform has the derivative of the pseudo-inverse (`_least_squares`).

    Args:
      rows: n rows, all leaves of one dtype (see `widen`).
      eps: relative rounding error of the entries.
      rtol: directions below `rtol` times the largest singular value of the unit
        rows are dropped as well.

    Source: one round is the SVQB of Stathopoulos and Wu, A block orthogonalization procedure
    with constant synchronization requirements, SIAM J. Sci. Comput. 23 (2002).
    """
    n, dtype = length(rows), compute_dtype(rows)
    if n == 0:
        none, empty = jnp.zeros(0, dtype), jnp.zeros((0, 0), dtype)
        return Basis(rows, empty, none, jnp.zeros(0, bool), (none,), empty)
    turn = turned(rows, eps=eps, rtol=rtol)
    return whitened(turn, _pieces.total(through_gram, (turn.scale, turn.rotation), rows), rows)


def turned(rows: Any, *, eps: float, rtol: Any = 0.0) -> Turned:
    """The rotations of `orthonormal`; n at least 1."""
    shift = 1 / power_of_two(peaks(rows))
    inner = _pieces.total(through_gram, (shift,), rows)
    unit = reciprocal(safe_sqrt(jnp.diagonal(inner)))
    fixed = lax.stop_gradient((rows, shift, unit, inner * jnp.outer(unit, unit)))
    first, second, threshold = _rotations(eps, rtol, *fixed)
    return Turned(shift, unit, first, second, product(second, first) * unit[None, :], threshold)


def _rotations(eps, rtol, rows, shift, unit, inner):
    """The two rotations of unit rows with the Gram matrix `inner`, and the threshold after them.

    Where the inverse of a Cholesky factor shows that no direction is short, and none near what
    would be dropped, it does all that the rotations are for, at a fraction of their cost.
    """
    n = len(inner)
    cut = jnp.maximum(rtol, 2 * math.sqrt(2 * n) * eps) * math.sqrt(n)
    root = jnp.linalg.cholesky(inner, symmetrize_input=False)
    inverse = jax.scipy.linalg.solve_triangular(root, jnp.eye(n, dtype=inner.dtype), lower=True)
    size = jnp.linalg.norm(inverse)  # at least one over the smallest singular value of the rows
    easy = (size < 10 * math.sqrt(n)) & (cut * size < 1)

    def one_factor(inverse, *_):
        low = jnp.full(n, math.sqrt(n) * eps, inverse.dtype)
        return inverse, jnp.eye(n, dtype=inverse.dtype), low

    def two_rotations(_, rtol, rows, shift, unit, inner):
        first = eigh(inner)[1].T
        chain = shift, first * unit[None, :]
        return first, *_lifted(_pieces.total(through_gram, chain, rows), eps, rtol)

    rtol = jnp.asarray(rtol, inner.dtype)
    inner = after(inner, easy.astype(inner.dtype))
    return either(easy, one_factor, two_rotations, inverse, rtol, rows, shift, unit, inner)


def whitened(turn: Turned, inner: jax.Array, rows: Any) -> Basis:
    """The basis, given the Gram matrix `inner` of the rotated rows."""
    shift, unit, first, second, rotation, threshold = turn
    kept = _lengths(inner) > threshold
    kept = kept & ~_entangled(inner, kept)
    whiten = _whitening(inner, kept)
    chain = shift, rotation, whiten
    basis = _pieces.written(through, chain, rows)

    # A vanishing combination that was lifted leaks into kept rows by a sizeable multiple:
    # nothing in Q, but no least-squares transform. The leak is removed; it is 0 elsewhere.
    size = jnp.linalg.norm(second, axis=1)
    dropped = jnp.where(kept, 0, reciprocal(size))
    null = dropped[:, None] * second
    leak = product(second, null.T)
    transform = product(whiten, rotation - product(leak, null, first) * unit[None, :])
    unit_rows = scale(unit, scale(shift, rows))
    transform = _least_squares(basis, unit_rows, unit, lax.stop_gradient(transform))
    turn_on = whiten - product(whiten, leak * dropped[None, :])
    return Basis(basis, transform, shift, kept, chain, turn_on)


def _lifted(inner: jax.Array, eps: float, rtol: Any) -> tuple[jax.Array, jax.Array]:
    """The second round's rotation of rows with this Gram matrix, and what a norm must exceed then.

    The noise of unit rows, sqrt(n) eps in the rows and as much again in their
    rotation, grows with the size of a row of the transform. What is dropped
    here becomes a zero row.
    """
    n = len(inner)
    nu = _lengths(inner)
    top = jnp.max(nu)
    noise = math.sqrt(2 * n) * eps * jnp.maximum(top, 1)
    lift = 1 / jnp.maximum(jnp.where(nu > 0, nu, 1), math.sqrt(n * eps) * top)
    lift = jnp.where(nu > jnp.maximum(2 * noise, rtol * top), lift, 0)
    # The -1 keeps the eigenvectors of dropped rows apart from all others.
    dropped = jnp.diag((lift == 0).astype(lift.dtype))
    transform = _rotation(inner * jnp.outer(lift, lift) - dropped) * lift[None, :]
    size = jnp.linalg.norm(transform, axis=1)
    transform = jnp.where((size * top > 0.5)[:, None], transform, 0)
    threshold = jnp.maximum(jnp.hypot(noise * size, math.sqrt(n) * eps), rtol * top * size)
    return transform, threshold


def _rotation(inner: jax.Array) -> jax.Array:
    return lax.stop_gradient(eigh(lax.stop_gradient(inner))[1]).T


def _lengths(inner: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.maximum(lax.stop_gradient(jnp.diagonal(inner)), 0))


def _entangled(inner: jax.Array, kept: jax.Array) -> jax.Array:
    """Kept rows nearly parallel to a longer one, (n,): noise of the rotation above its threshold.

    Rotated rows are orthogonal to within the noise, and without these the Gram matrix of
    the unit rows is positive definite.
    """
    lengths = jnp.where(kept, _lengths(inner), 0)
    unit = reciprocal(lengths)
    cosines = jnp.abs(lax.stop_gradient(inner)) * jnp.outer(unit, unit)
    order = jnp.arange(len(lengths))
    tied = (lengths[None, :] == lengths[:, None]) & (order[None, :] < order[:, None])
    longer = (lengths[None, :] > lengths[:, None]) | tied
    return jnp.any((cosines > 0.5) & longer, axis=1)


def _whitening(inner: jax.Array, kept: jax.Array) -> jax.Array:
    """The transform of nearly orthogonal rows to orthonormal ones, zero where not kept."""
    lift = jnp.where(kept, reciprocal(_lengths(inner)), 0)
    nearly_one = inner * jnp.outer(lift, lift) + jnp.diag(1 - kept.astype(lift.dtype))
    root = jnp.linalg.cholesky(nearly_one, symmetrize_input=False)
    return jax.scipy.linalg.solve_triangular(root, jnp.diag(lift), lower=True)


@jax.custom_jvp
def _least_squares(basis: Any, unit_rows: Any, unit: jax.Array, transform: jax.Array) -> jax.Array:
    """The transform, with the derivative of the pseudo-inverse that it is.

    With `K = Q U^T` for the unit rows U, `T = transform / unit = (K^T)^+` and

        dT = T T^T dK (I - K^T T) - T dK^T T;

    the first term acts on what is inconsistent in the data along dependent rows.
    """
    del basis, unit_rows, unit
    return transform


@_least_squares.defjvp
def _least_squares_jvp(primals, tangents):
    basis, unit_rows, unit, transform = primals
    d_basis, d_unit_rows, d_unit, _ = tangents
    transform = _least_squares(*primals)
    t = transform * reciprocal(unit)[None, :]
    k = gram(basis, unit_rows)
    dk = gram(d_basis, unit_rows) + gram(basis, d_unit_rows)
    dependent = jnp.any(jnp.all(t == 0, axis=1))
    residual = jnp.where(dependent, jnp.eye(len(t), dtype=t.dtype) - product(k.T, t), 0)
    dt = product(t, t.T, dk, residual) - product(t, dk.T, t)
    return transform, dt * unit[None, :] + t * d_unit[None, :]


class Frame(NamedTuple):
    """k rows in an orthonormal basis of their span, `B = L Q`.

    Attributes:
      rows: k orthonormal rows Q, those beyond the rank exactly zero.
      coordinates: L = B Q^T, (k, k).
      inverse: (k, k), R with `Q = R B`.
    """

    rows: Any
    coordinates: jax.Array
    inverse: jax.Array


@jax.custom_jvp
def frame(rows: Any) -> Frame:
    """The frame of k rows of one dtype.

    It moves with the rows without turning within their span, `dQ Q^T = 0`, hence

        dL = dB Q^T,    dQ = R (dB - dL Q),    dR = -R dL R.

    What depends on B alone has the right derivatives of all orders in these terms where
    the rank is constant. Where the rank changes, what depends on L and K alone, as a
    function of `H = Q^T (L^T K L) Q` in the form `B^T N(L, K) B` does, has the right
    first derivative still: B lies in the span of Q, so no other part of dB enters.
    """
    basis = orthonormal(rows, eps=float(jnp.finfo(compute_dtype(rows)).eps))
    return Frame(basis.rows, gram(rows, basis.rows), basis.transform * basis.scale[None, :])


@frame.defjvp
def _frame_jvp(primals, tangents):
    (rows,), (d_rows,) = primals, tangents
    here = frame(rows)
    q, _, inverse = here
    d_coordinates = gram(d_rows, q)
    outside = jax.tree.map(jnp.subtract, d_rows, combine(d_coordinates, q))
    d_inverse = -product(inverse, d_coordinates, inverse)
    return here, Frame(combine(inverse, outside, pairwise=True), d_coordinates, d_inverse)
