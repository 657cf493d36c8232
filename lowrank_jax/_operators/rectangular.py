"""The rectangular operator: a matrix of low rank between two spaces of pytrees."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._core import checks, scaling, structure, tall
from lowrank_jax._core.orthonormal import thin_lq
from lowrank_jax._core.spectral import product, svd
from lowrank_jax._core.types import Rows, Vector


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class LowRank:
    """A p x m matrix of low rank, `A = L^T K R`, that is never formed.

    A maps vectors of an input space, pytrees of m numbers in all, to those of an output space, of
    p numbers. The rows of L are `left`, a pytree whose leaves have a leading axis k and then
    the shapes of the output space; the rows of R are `right`, leading axis l and the shapes of
    the input space. The product is `A v = L^T (K (R v))`.

    Sums, differences, real multiples and products of such matrices are such matrices: those of a
    sum hold the rows of both, a product `A1 A2` the left ones of A1 and the right ones of A2.
    The operator is a pytree: it goes through `jit`, `vmap`, `grad`, `scan`. Where `vmap`
    has made a batch of operators, use them under `vmap` as well. The methods are jitted.

    Attributes:
      left: the rows of L: a pytree whose leaves have a leading axis k.
      core: K, (k, l).
      right: the rows of R: a pytree whose leaves have a leading axis l.

    Example:
      >>> import jax.numpy as jnp
      >>> a = LowRank(jnp.array([[0.0, 1.0]]), jnp.array([[2.0]]), jnp.array([[3.0, 0.0, 4.0]]))
      >>> a
      LowRank(shape=(2, 3), core=(1, 1), dtype=float32)
      >>> (a @ jnp.ones(3)).tolist(), (a.T @ jnp.ones(2)).tolist()
      ([0.0, 14.0], [6.0, 0.0, 8.0])
      >>> u, s, v = a.svd()
      >>> [round(x, 4) for x in s.tolist()]
      [10.0]
    """

    left: Rows
    core: jax.Array
    right: Rows

    __array_ufunc__ = None  # NumPy scalars leave `c * A` to this class

    @property
    def shape(self) -> tuple[int, ...]:
        """(p, m), after the axes that `vmap` has added."""
        batch = self.core.ndim - 2
        p, m = (
            sum(math.prod(leaf.shape[batch + 1 :]) for leaf in jax.tree.leaves(rows))
            for rows in (self.left, self.right)
        )
        return (*self.core.shape[:batch], p, m)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype to which the leaves of left and right promote, that of `to_dense()`."""
        return structure.common_dtype((self.left, self.right))

    @property
    def T(self) -> "LowRank":
        """The transpose, from the output space to the input space."""
        return LowRank(self.right, jnp.swapaxes(self.core, -1, -2), self.left)

    def __repr__(self) -> str:
        if getattr(self.core, "ndim", 0) < 2:  # a pytree of something else than arrays
            return f"LowRank(left={self.left!r}, core={self.core!r}, right={self.right!r})"
        core = self.core.shape[-2:]
        return f"LowRank(shape={self.shape}, core={core}, dtype={self.dtype})"

    @jax.jit
    def mv(self, v: Vector) -> Vector:
        """Computes `A v` for one vector, `L^T (K (R v))`; the leaves have the dtypes of `left`.

        A stack of vectors goes through `jax.vmap(A.mv)`.

        Raises:
          TypeError: for leaves of v that are not real floating-point arrays.
          ValueError: where v does not have the structure and shapes of one row of `right`.
        """
        self._check()
        v = checks.operand(v, "v", self.right, "a right row of the operator", "A.mv")
        dtype = structure.compute_dtype((self.left, self.core, self.right))
        coordinates = tall.gram(self.right, structure.cast_like(v, self.right)).astype(dtype)
        return tall.combine(product(self.core.astype(dtype), coordinates), self.left)

    def matvec(self, v: Vector) -> Vector:
        """Computes `A v` as SciPy asks for it: a NumPy vector may be a column or whole numbers."""
        return self.mv(checks.of_scipy(v, self.right))

    def rmatvec(self, v: Vector) -> Vector:
        """Computes `A^T v`, as `A.T.mv` does, and as SciPy asks for it."""
        return self.T.matvec(v)

    __rmatmul__ = rmatvec

    def __matmul__(self, other: Any) -> Any:
        """`A v` for a vector, the product `A1 A2` for another `LowRank`."""
        return self._times(other) if isinstance(other, LowRank) else self.mv(other)

    @jax.jit
    def _times(self, other):
        self._check()
        other._check()
        name = "the other operator's left rows"
        checks.like(
            other.left, name, self.right, "this operator's right rows", lead=1, pattern_lead=1
        )
        cores = structure.widen((self.core, tall.gram(self.right, other.left), other.core))
        return LowRank(self.left, product(*cores), other.right)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a LowRank is no array: use to_dense() for the (p, m) matrix")

    @jax.jit
    def to_dense(self) -> jax.Array:
        """Returns the (p, m) matrix, both sides in the order of `jax.flatten_util.ravel_pytree`."""
        self._check()
        left, core, right = structure.widen((self.left, self.core, self.right))
        return product(structure.matrix(left).T, core, structure.matrix(right)).astype(self.dtype)

    @jax.jit
    def frobenius_norm(self) -> jax.Array:
        """Computes `|A|_F = tr(K R R^T K^T L L^T)^(1/2)`; its derivative at A = 0 is taken as 0."""
        left, core, right, exponent = self._balanced()
        half = product(tall.gram(left, left), core)
        squares = jnp.sum(half * product(core, tall.gram(right, right)))
        return scaling.shift(scaling.safe_sqrt(squares), exponent)

    @jax.jit
    def svd(self) -> tuple[Rows, jax.Array, Rows]:
        """Computes singular triplets, `A = sum_i s_i u_i v_i^T`: rows u, s (r,) descending, rows v.

        r = min(k, l); u and v are pytrees with leading axis r, of the output and of the input
        space. Their rows are orthonormal where the singular value is not zero; where it is zero
        to rounding, it is exactly 0 and both rows are zero. They are defined up to one
        sign for each pair, and differentiate only where nonzero singular values are distinct.
        """
        left, core, right, exponent = self._balanced()
        p, q = thin_lq(left), thin_lq(right)
        core = core / p.scale[:, None] / q.scale[None, :]
        small = product(p.coordinates.T, core, q.coordinates)
        terms = core * p.sizes[:, None] * q.sizes[None, :]  # what is added up
        along = (jnp.max(jnp.sum(terms * terms, axis=i), initial=0) for i in (0, 1))
        largest = jnp.sqrt(jnp.maximum(*along))
        noise = 2 * math.sqrt(max(core.shape)) * jnp.finfo(core.dtype).eps * largest
        u, s, v = svd(small)
        zero = s <= lax.stop_gradient(noise)
        u, v = (jnp.where(zero[None, :], 0, x) for x in (u, v))
        left, _, right = structure.widen((self.left, self.core, self.right))
        u, v = (
            structure.unpack(tall.combine(x.T, basis.rows), structure.row(rows))
            for x, basis, rows in ((u, p, left), (v, q, right))
        )
        u, v = structure.cast_like(u, self.left), structure.cast_like(v, self.right)
        return u, scaling.shift(jnp.where(zero, 0, s), exponent), v

    def truncate(self, rank: int) -> "LowRank":
        """Returns the nearest operator of that rank: the `rank` largest singular triplets.

        It stores `rank` rows on each side, zero rows where A has fewer singular values, and
        differentiates only where the nonzero singular values are distinct.

        Raises:
          TypeError: for a rank that is not a Python int.
          ValueError: for a negative rank.
        """
        checks.count(rank, "rank", 0)
        return self._truncate(rank)

    @partial(jax.jit, static_argnums=1)
    def _truncate(self, rank):
        left, s, right = structure.leading(self.svd(), rank)
        return LowRank(left, jnp.diag(s), right)

    def __add__(self, other: Any) -> "LowRank":
        if isinstance(other, int) and other == 0:  # sum([...]) begins with it
            return self
        if not isinstance(other, LowRank):
            return NotImplemented
        self._check()
        other._check()
        for mine, theirs, side in (
            (self.left, other.left, "left"),
            (self.right, other.right, "right"),
        ):
            name = f"the other operator's {side} rows"
            checks.like(theirs, name, mine, "this operator's", lead=1, pattern_lead=1)
        cores = structure.widen((self.core, other.core))
        return LowRank(
            structure.concatenate(self.left, other.left),
            jax.scipy.linalg.block_diag(*cores),
            structure.concatenate(self.right, other.right),
        )

    __radd__ = __add__

    def __sub__(self, other: Any) -> "LowRank":
        return self + -other if isinstance(other, LowRank) else NotImplemented

    def __neg__(self) -> "LowRank":
        return LowRank(self.left, -self.core, self.right)

    def __mul__(self, c: Any) -> "LowRank":
        checks.scalar(c, "the factor of an operator")
        return LowRank(self.left, self.core * jnp.asarray(c, self.core.dtype), self.right)

    __rmul__ = __mul__

    def __truediv__(self, c: Any) -> "LowRank":
        checks.scalar(c, "the factor of an operator")
        return LowRank(self.left, self.core / jnp.asarray(c, self.core.dtype), self.right)

    def _check(self):
        """Raises an error for a batch of operators, or parts that are not real numbers."""
        checks.vector(self.core, "core")
        checks.single(self.core)
        checks.vector(self.left, "left")
        checks.vector(self.right, "right")

    def _balanced(self):
        """Both sides and the core scaled by powers of two, and the exponent that A is left with.

        The exponents are added before any product is taken: of a huge side, a tiny core and
        another huge side no two need have a product within range.
        """
        self._check()
        left, core, right = structure.widen((self.left, self.core, self.right))
        left, right = structure.pack(left), structure.pack(right)
        row_size, column_size = scaling.max_abs(left), scaling.max_abs(right)
        sides = scaling.exponent(row_size)[:, None] + scaling.exponent(column_size)[None, :]
        entries = jnp.where(core == 0, -(2**20), scaling.exponent(jnp.abs(core)) + sides)
        largest = jnp.max(entries, initial=-(2**20))
        largest = jnp.where(largest == -(2**20), 0, largest)
        left = tall.scale(1 / scaling.power_of_two(row_size), left)
        right = tall.scale(1 / scaling.power_of_two(column_size), right)
        return left, scaling.shift(core, sides - largest), right, largest
