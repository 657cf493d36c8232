"""Functions of small symmetric matrices whose derivatives survive repeated eigenvalues.

For an analytic f and `M = V diag(w) V^T`, the Daleckii-Krein formula gives

    d f(M) = V (phi * (V^T dM V)) V^T,    phi_ij = (f(w_i) - f(w_j)) / (w_i - w_j),

and the functions here write phi in closed form, so that no gap between equal
eigenvalues is ever divided by and no tolerance decides what "equal" means.
They are `custom_jvp`s whose rules call the functions themselves, hence
differentiate in both modes and more than once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._core import scaling, xla


def product(*matrices: jax.Array) -> jax.Array:
    """The product of small matrices, at the highest precision that the device has."""
    result = matrices[0]
    for matrix in matrices[1:]:
        result = jnp.matmul(result, matrix, precision=lax.Precision.HIGHEST)
    return result


def diagonal(m: jax.Array) -> jax.Array:
    """The diagonal of a square matrix: a slice, where `jnp.diagonal` gathers."""
    return m.reshape(-1)[:: len(m) + 1]


def mirror(m: jax.Array) -> jax.Array:
    """The symmetric matrix with the lower triangle of m, equal to its transpose bit for bit."""
    return jnp.tril(m) + jnp.tril(m, -1).T


def symmetrize(m: jax.Array) -> jax.Array:
    """The symmetric part, `(m + m^T) / 2`."""
    return (m + m.T) / 2


def eigh(m: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Ascending eigenvalues w and orthonormal eigenvectors V (columns) of a symmetric m.

    The derivative of V keeps no component between eigenvectors of one eigenvalue
    (where it does not exist) instead of dividing by zero: what depends on their
    span alone differentiates right.
    """
    return eigh_with_derivative(m, *jnp.linalg.eigh(lax.stop_gradient(m), symmetrize_input=False))


@jax.custom_jvp
def eigh_with_derivative(m: jax.Array, w: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Known eigenvalues and eigenvectors of m, with the derivatives of `eigh(m)`."""
    del m
    return w, v


@eigh_with_derivative.defjvp
def _eigh_jvp(primals, tangents):
    w, v = eigh_with_derivative(*primals)
    rotated = symmetrize(product(v.T, tangents[0], v))  # of m, only one half was read
    dv = product(v, scaling.reciprocal(w[None, :] - w[:, None]) * rotated)
    return (w, v), (diagonal(rotated), dv)


@jax.custom_jvp
def inverse_root(e: jax.Array) -> jax.Array:
    """V with `(I + V) (I + E) (I + V)^T = I` for a symmetric E with eigenvalues in (-1, 2).

    Newton's iteration from V = 0: half of what is left, `(I + V) (I + E) (I + V)^T - I = F`, is
    taken off, which leaves `-3 F^2 / 4 - F^3 / 4`, until that is rounding: at once where E is
    small, after ten turns at most. With W = I + V
    and L(.) for the lower triangle and half of the diagonal, `dV = -L(W dE W^T) W` gives
    W (I + E) W^T no derivative, of any order: it is that of a Cholesky factor, so that second
    ones commute. Where a row of E is zero, so is that of V.
    """

    def step(state):
        v, _ = state
        image = v + e + product(v, e)  # W (I + E) - I
        left = image + v.T + product(image, v.T)
        return v - (left + product(left, v)) / 2, jnp.sum(left * left)

    eps, start = float(jnp.finfo(e.dtype).eps), (jnp.zeros_like(e), jnp.ones_like(e[0, 0]))
    return xla.iterate(step, start, until=lambda state: state[1] < eps, most=10)[0]


@inverse_root.defjvp
def _inverse_root_jvp(primals, tangents):
    v, change = inverse_root(*primals), tangents[0]
    change += product(v, change)
    change += product(change, v.T)
    lower = jnp.tril(change) - jnp.diag(diagonal(change)) / 2
    return v, -(lower + product(lower, v))


@jax.custom_jvp
def inverse(m: jax.Array, least: jax.Array | None = None) -> jax.Array:
    """The inverse of a definite matrix, by Gauss-Jordan elimination; `dX = -X dM X`.

    Definite, real and symmetric or the complex `A + i B` of two symmetric matrices, B definite:
    then no diagonal entry vanishes on the way. For the complex one, which takes the largest as
    pivot, it is the elimination of [[B, A], [A, -B]] by blocks of two: at worst, where the diagonal
    of A is small, it loses as many digits as forming `A^2 + B^2` would.

    A real one needs `least`, which no pivot is below, and takes its pivots as they come: of a
    matrix that rounding has left indefinite, this is the inverse of one that is definite and
    differs from it on the diagonal.

    There is no LAPACK in it, whose batched routines can make JAX 0.10 hang: its threads wait
    for one another.
    """
    n = len(m)

    def sweep(step, state):  # turns M into -M^-1, pivot by pivot; it stays symmetric
        m, free = state
        i = step if least is not None else _largest_free(m, free)
        here, pivot = jnp.arange(n) == i, m[i, i]
        pivot = pivot if least is None else jnp.maximum(pivot, least)
        row = jnp.where(here, -1, m[i])
        m = jnp.where(here[:, None] | here[None, :], 0, m)
        return m - row[:, None] * (row / pivot)[None, :], free & ~here

    free = xla.vary_like(jnp.ones(n, bool), m)
    return -lax.fori_loop(0, n, sweep, (m, free))[0]


def _largest_free(m, free):
    pivots = diagonal(m)
    sizes = jnp.abs(jnp.real(pivots)) + jnp.abs(jnp.imag(pivots))
    return jnp.argmax(jnp.where(free, sizes, -1))


@inverse.defjvp
def _inverse_jvp(primals, tangents):
    x = inverse(*primals)
    return x, -product(x, tangents[0], x)


def lyapunov(m: jax.Array, w: jax.Array, v: jax.Array, r: jax.Array) -> jax.Array:
    """The X with `M X + X M = R` for a positive definite M with the eigenpairs w and V.

    The derivatives are those of the equation: w and V are constants to them.
    """

    def both_sides(x):
        return product(m, x) + product(x, m)

    def solve(_, r):
        return product(v, product(v.T, r, v) / (w[:, None] + w[None, :]), v.T)

    return lax.custom_linear_solve(both_sides, r, solve, symmetric=True)


@jax.custom_jvp
def svd(m: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Descending singular values s and singular vectors, `M = U diag(s) V^T` for a (k, l) matrix.

    U is (k, r) and V (l, r), r = min(k, l), both with orthonormal columns. As with `eigh`, the
    derivatives of U and V keep no component between vectors of one singular value, nor
    any that a zero singular value would divide: what depends on spans alone is right.
    """
    if 0 in m.shape:
        k, n = m.shape
        return jnp.zeros((k, 0), m.dtype), jnp.zeros(0, m.dtype), jnp.zeros((n, 0), m.dtype)
    u, s, vt = jnp.linalg.svd(m, full_matrices=False)
    return u, s, vt.T


@svd.defjvp
def _svd_jvp(primals, tangents):
    """With X, Y the symmetric, antisymmetric part of `E = U^T dM V` over s_j - s_i and s_j + s_i.

    Then dU = U (X + Y) + (I - U U^T) dM V / s,    dV = V (X - Y) + (I - V V^T) dM^T U / s.
    """
    (m,), (dm,) = primals, tangents
    u, s, v = svd(m)
    right, left = product(dm, v), product(dm.T, u)
    rotated = product(u.T, right)
    even = scaling.reciprocal(s[None, :] - s[:, None]) * (rotated + rotated.T) / 2
    odd = scaling.reciprocal(s[None, :] + s[:, None]) * (rotated - rotated.T) / 2
    outside = scaling.reciprocal(s)[None, :]
    du = product(u, even + odd) + (right - product(u, rotated)) * outside
    dv = product(v, even - odd) + (left - product(v, rotated.T)) * outside
    return (u, s, v), (du, diagonal(rotated), dv)


def masked_inverse(select: Callable, m: jax.Array, *args: Any) -> jax.Array:
    """`V diag(keep / w) V^T` for symmetric `m = V diag(w) V^T` and `keep = select(w, V, *args)`.

    The mask is piecewise constant: the derivative is that of the kept spectral
    part, `phi_ij` = -1 / (w_i w_j) for two kept eigenvalues, 0 for two dropped ones, and
    (keep_i / w_i - keep_j / w_j) / (w_i - w_j) for one of each. It is infinite
    where a kept eigenvalue meets a dropped one; there the function jumps, and
    the rule returns the part that is finite.
    """
    w, v = eigh(m)
    return truncated_inverse(m, w, v, select(w, v, *args))


@jax.custom_jvp
def truncated_inverse(m, w, v, keep):
    del m  # the derivative needs it: those of w and V do not exist where eigenvalues repeat
    return product(v * _kept_reciprocal(w, keep)[None, :], v.T)


@truncated_inverse.defjvp
def _truncated_inverse_jvp(primals, tangents):
    _, w, v, keep = primals
    dm = tangents[0]
    f = _kept_reciprocal(w, keep)
    one_kept = keep[:, None] != keep[None, :]
    gaps = scaling.reciprocal(jnp.where(one_kept, w[:, None] - w[None, :], 0))
    mixed = product(v, (f[:, None] - f[None, :]) * gaps * product(v.T, dm, v), v.T)
    inverse = truncated_inverse(*primals)  # itself, so that it differentiates again
    return inverse, mixed - product(inverse, dm, inverse)


def _kept_reciprocal(w, keep):
    return jnp.where(keep, scaling.reciprocal(jnp.where(keep, w, 0)), 0)


def matrix_function(
    f: Callable, value: jax.Array, m: jax.Array, w: jax.Array, v: jax.Array
) -> jax.Array:
    """A value that differs from `f(M) = V diag(f(w)) V^T` by a constant, if at all.

    For `w, V = eigh(M)` and f elementwise on arrays of one axis. The derivative is that of the text
    above, phi by divided differences, or by the mean of f' between two eigenvalues where they
    are near; f and f' are evaluated for derivatives alone. f may close over traced values. The
    second derivative is right where the eigenvalues are distinct.
    """
    f, captured = jax.closure_convert(f, w)
    return _matrix_function(f, value, m, w, v, captured)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _matrix_function(f, value, m, w, v, captured):
    del f, m, w, v, captured
    return value


@_matrix_function.defjvp
def _matrix_function_jvp(f, primals, tangents):
    _, _, w, v, captured = primals
    by_m = _divided_differences(lambda w: f(w, *captured), w) * product(v.T, tangents[1], v)
    by_f = jax.jvp(lambda c: f(w, *c), (captured,), (tangents[4],))[1]
    return _matrix_function(f, *primals), symmetrize(product(v, by_m + jnp.diag(by_f), v.T))


def _slope(f, x):
    return jax.jvp(f, (x,), (jnp.ones_like(x),))[1]


def _divided_differences(f, w):
    """`(f(w_i) - f(w_j)) / (w_i - w_j)`, (k, k).

    The difference loses eps / gap; two nodes of Gauss average f' over the gap to within
    gap^4. Gaps are relative: the two errors are both small at eps^(1/5).
    """
    a, b = jnp.broadcast_arrays(w[:, None], w[None, :])
    gap = a - b
    near = jnp.abs(gap) <= jnp.finfo(w.dtype).eps ** 0.2 * jnp.maximum(jnp.abs(a), jnp.abs(b))
    middle, half = (a + b) / 2, jnp.where(near, gap, 0) / 12**0.5
    slope = jax.vmap(partial(_slope, f))
    mean_slope = (slope(middle - half) + slope(middle + half)) / 2
    fw = f(w)
    return jnp.where(near, mean_slope, (fw[:, None] - fw[None, :]) / jnp.where(near, 1, gap))
