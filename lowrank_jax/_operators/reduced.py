"""An operator in a basis of its factors' span: the small matrices that its functions share.

With the thin LQ factors `B = L Q` of the factors, `H = B^T K B` is

    H = Q^T A Q,    A = L^T K L,

and functions of H are those of the k x k matrix A. Rows of B that depend on others make zero
rows of Q, which carry derivatives: in directions that part them, H is `Q^T A' Q` to all orders
for the rows Q that then move (see `motion`) and

    A' = (L + D)^T K (L + D),    D the identity on the zero rows of Q,

which A is part of. A zero row meets what D adds to A where Q is not differentiated.

An H beside a diagonal is reduced in its units, `D^(-1/2) H D^(-1/2)`, which has the same form: a
number D divides K, a vector D the factors.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._core import scaling, structure
from lowrank_jax._core.orthonormal import ThinLQ, thin_lq
from lowrank_jax._core.spectral import eigh, matrix_function, product, symmetrize
from lowrank_jax._core.types import Rows, Vector

Diagonal = jax.Array | Vector  # one number, or one a coordinate


def is_number(diagonal: Diagonal) -> bool:
    """Whether it is one number for all coordinates."""
    return jax.tree_util.all_leaves([diagonal]) and jnp.ndim(diagonal) == 0


def packed(diagonal: Diagonal, factors: Rows, core: jax.Array) -> tuple[Any, Rows, jax.Array]:
    """D, B and K in their widest dtype, packed."""
    diagonal, factors, core = structure.widen((diagonal, factors, core))
    if not is_number(diagonal):
        diagonal = structure.pack_vector(diagonal)
    return diagonal, structure.pack(factors), core


def positive(diagonal: Diagonal) -> Any:
    """D, NaN where it is not positive."""
    return jax.tree.map(lambda d: jnp.where(d > 0, d, jnp.nan), diagonal)


def inverse_root(diagonal: Diagonal) -> Any:
    """`D^(-1/2)`."""
    return jax.tree.map(lambda d: 1 / jnp.sqrt(d), diagonal)


def in_units_of(diagonal: Diagonal, factors: Rows, core: jax.Array) -> tuple[Rows, jax.Array]:
    """Factors and core of `D^(-1/2) H D^(-1/2)`."""
    if is_number(diagonal):
        return factors, core / diagonal
    return jax.tree.map(lambda r, x: r[None] * x, inverse_root(diagonal), factors), core


class Reduced(NamedTuple):
    """`H = unit Q^T A Q`; L and K are those of rows of B that are scaled by powers of two.

    Attributes:
      basis: Q, and L of the rows as they are.
      core: K.
      half: `K L`, the columns of zero rows of Q zero.
      small: A, one triangle of which counts.
      noise: what rounding may make of an eigenvalue of A.
      unit: a power of two.
    """

    basis: ThinLQ
    core: jax.Array
    half: jax.Array
    small: jax.Array
    noise: jax.Array
    unit: jax.Array


@jax.jit
def reduce(diagonal: Diagonal, factors: Rows, core: jax.Array) -> Reduced:
    """Reduces `D^(-1/2) B^T K B D^(-1/2)`, in the widest dtype; NaN where D is not positive.

    A program of its own where nothing is traced: it is most of what is to be compiled for a
    function of an operator, and all of them share it.
    """
    diagonal, factors, core = packed(diagonal, factors, core)
    factors, core = in_units_of(positive(diagonal), factors, core)
    basis = thin_lq(factors)
    core = core / basis.scale[:, None] / basis.scale[None, :]
    unit = scaling.power_of_two(jnp.max(jnp.abs(core), initial=0))
    core = core / unit
    half = product(core, basis.coordinates)
    small = product(basis.coordinates.T, half)
    # What is added up to A, before anything cancels.
    terms = core * basis.sizes[:, None] * basis.sizes[None, :]
    largest = jnp.sqrt(jnp.max(jnp.sum(terms * terms, axis=1), initial=0))
    noise = 2 * math.sqrt(len(small)) * jnp.finfo(small.dtype).eps * largest
    return Reduced(basis, core, half, small, lax.stop_gradient(noise), unit)


def spectrum(found: Reduced) -> tuple[jax.Array, jax.Array]:
    """`A = V diag(w) V^T`: w, exactly 0 where it is zero to rounding, and V."""
    w, v = eigh(found.small)
    return w - lax.stop_gradient(jnp.where(jnp.abs(w) <= found.noise, w, 0)), v


def function(
    f: Callable,
    slope: jax.Array,
    found: Reduced,
    pairs: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """The core of `f(H)` for the factors Q, `f(0) = 0` and `f'(0) = slope`.

    With the eigenpairs of A, where those of `spectrum` are not good enough.
    Beside f(A) it has what couples zero rows of Q to the others in `f(H) = Q^T A' g(A) Q`,
    `g(x) = f(x) / x`: their first derivatives are right. Where nothing is traced, f is called
    as it is, between two programs that are compiled once.
    """
    w, v, safe, nodes = _spectrum(found, pairs)

    def of(w):
        return jnp.where(w == 0, slope * found.unit * w, f(_nodes(w, safe, found.unit)))

    known = _core_of_function(found, w, v, slope, f(nodes))
    return matrix_function(of, lax.stop_gradient(known), found.small, w, v)


@jax.jit
def _spectrum(found, pairs):
    """Eigenpairs of A, what stands for 0 where f may not be finite, and what f is asked at."""
    w, v = spectrum(found) if pairs is None else pairs
    largest = lax.stop_gradient(jnp.max(jnp.abs(w), initial=0))
    safe = jnp.where(largest == 0, 1, largest)
    return w, v, safe, _nodes(w, safe, found.unit)


def _nodes(w, safe, unit):
    """The eigenvalues of H."""
    return jnp.where(w == 0, safe, w) * unit


@jax.jit
def _core_of_function(found, w, v, slope, values):
    free, slope = 1 - found.basis.kept, slope * found.unit
    values = jnp.where(w == 0, slope * w, values)
    ratio = jnp.where(w == 0, slope, values * scaling.reciprocal(w))
    coupling = free[:, None] * product(found.half, v * ratio[None, :], v.T)
    return symmetrize(product(v * values[None, :], v.T)) + coupling + coupling.T
