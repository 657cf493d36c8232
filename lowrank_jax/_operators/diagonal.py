"""A diagonal plus a matrix of low rank, which is closed under inversion."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._core import checks, structure, tall
from lowrank_jax._core.spectral import product
from lowrank_jax._core.types import Rows, Scalar, Vector
from lowrank_jax._operators import shifted
from lowrank_jax._operators.reduced import is_number, packed, reduce


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class DiagonalPlusLowRank:
    """A symmetric D x D matrix `A = diag(d) + H`, H a `SymmetricLowRank`, that is never formed.

    d is one number, or a vector of one number a coordinate: a prior precision, a weight decay, a
    bulk of equal eigenvalues. Sums, differences and real multiples of such matrices,
    also with those of low rank, are such matrices, and so is the inverse:

        (diag(d) + B^T K B)^-1 = diag(1 / d) - F^T N F,

    with as many factors F as B. `inverse` factorizes once; each product with what it returns
    costs that of A. Solving and inverting need positive d; H may be indefinite.

    It is a pytree, and goes through `jit`, `vmap`, `grad`, `scan`; derivatives of products,
    `solve`, `logdet` and `inverse` are right to all orders. The methods are jitted, and share what
    they compile as those of H do.

    Attributes:
      diag: d, a scalar array or a vector; the method `diagonal` gives that of A.
      low_rank: H.

    Source: Woodbury, Inverting modified matrices, Princeton Memorandum Report 42 (1950).

    Example:
      >>> import jax.numpy as jnp
      >>> from lowrank_jax import SymmetricLowRank
      >>> h = SymmetricLowRank(jnp.array([[1.0, 1.0, 0.0]]), jnp.array([[2.0]]))
      >>> a = h.plus_diagonal(jnp.array([1.0, 1.0, 4.0]))
      >>> a
      DiagonalPlusLowRank(shape=(3, 3), factors=1, dtype=float32)
      >>> inverse = a.inverse()
      >>> [round(x, 4) for x in (inverse @ (a @ jnp.array([1.0, 2.0, 3.0]))).tolist()]
      [1.0, 2.0, 3.0]
    """

    diag: jax.Array | Vector
    low_rank: Any  # SymmetricLowRank, which is built on this

    __array_ufunc__ = None  # NumPy scalars leave `c * A` to this class

    @property
    def shape(self) -> tuple[int, ...]:
        """(D, D), after the axes that `vmap` has added."""
        return self.low_rank.shape

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype to which the factors' leaves promote, that of `to_dense()`."""
        return self.low_rank.dtype

    @property
    def T(self) -> "DiagonalPlusLowRank":
        """The transpose, which is A itself."""
        return self

    def __repr__(self) -> str:
        if getattr(getattr(self.low_rank, "core", None), "ndim", 0) < 2:  # no arrays
            return f"DiagonalPlusLowRank(diag={self.diag!r}, low_rank={self.low_rank!r})"
        count = self.low_rank.core.shape[-1]
        return f"DiagonalPlusLowRank(shape={self.shape}, factors={count}, dtype={self.dtype})"

    @jax.jit
    def mv(self, v: Vector) -> Vector:
        """Computes `A v = d v + B^T (K (B v))` for one vector; the errors of `H.mv`."""
        v = self._operand(v, "v")
        d, h, x = structure.widen((self.diag, self.low_rank, v))
        return structure.cast_like(jax.tree.map(jnp.add, shifted.multiply(d, x), h.mv(x)), v)

    __matmul__ = __rmatmul__ = mv

    def matvec(self, v: Vector) -> Vector:
        """Computes `A v` as SciPy asks for it: a NumPy vector may be a column or whole numbers."""
        return self.mv(checks.of_scipy(v, self.low_rank.factors))

    @jax.jit
    def bilinear(self, u: Vector, v: Vector) -> jax.Array:
        """Computes `<u, A v>`, a scalar; the same errors as `mv`."""
        u, v = self._operand(u, "u"), self._operand(v, "v")
        d, h, u, v = structure.widen((self.diag, self.low_rank, u, v))
        return tall.dot(u, shifted.multiply(d, v)) + h.bilinear(u, v)

    @jax.jit
    def to_dense(self) -> jax.Array:
        """Returns the (D, D) matrix, exactly symmetric, in the order of `ravel_pytree`."""
        self.check()
        d, h = structure.widen((self.diag, self.low_rank))
        row = _spread(d, structure.row(h.factors))
        row = structure.matrix(jax.tree.map(lambda leaf: leaf[None], row))[0]
        return (jnp.diag(row) + h.to_dense()).astype(self.dtype)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a DiagonalPlusLowRank is no array: use to_dense() for the (D, D) matrix")

    @jax.jit
    def diagonal(self) -> Vector:
        """Returns the diagonal of A, d and that of H, with the structure of a vector."""
        self.check()
        d, h = structure.widen((self.diag, self.low_rank))
        of_h = h.diagonal()
        total = jax.tree.map(jnp.add, _spread(d, of_h), of_h)
        return structure.cast_like(total, self.low_rank.factors)

    @jax.jit
    def trace(self) -> jax.Array:
        """Computes `tr A`, the sum of d and `tr H`."""
        self.check()
        d, h = structure.widen((self.diag, self.low_rank))
        if is_number(d):
            return d * self.shape[-1] + h.trace()
        return sum((jnp.sum(x) for x in jax.tree.leaves(d)), h.trace())

    def eigh(self) -> tuple[jax.Array, Rows]:
        """Computes the eigenpairs that differ from those of `d I`: `d + s` (k,) and rows (k, ...).

        Those of H with d added to the eigenvalues, in their order: by |s|. Where s is zero
        to rounding the value is d and the row zero. d must be a number.

        Raises:
          ValueError: for a vector d.
        """
        d = self._number()
        values, rows = self.low_rank.eigh()
        return values + d, rows

    def eigenvalues(self) -> jax.Array:
        """Computes those of `eigh` alone, (k,); the other D - k are d."""
        return self._number() + self.low_rank.eigenvalues()

    def _number(self):
        self.check()
        if not is_number(self.diag):
            raise ValueError("eigh needs a diagonal that is one number, got one a coordinate")
        return self.diag.astype(structure.compute_dtype(self.low_rank))

    def solve(self, v: Vector, damping: Scalar | Vector = 0) -> Vector:
        """Computes `(A + diag(damping))^-1 v`, with the derivatives of the linear system.

        The backward error is small: `|(A + damping) x - v|` is rounding beside |A| |x|, also where
        d spans many magnitudes, as far as `D^(-1/2) H D^(-1/2)` for `D = d + damping` is below
        0.01 / eps^2, 7e11 in float32. Beyond, digits of a vector d that is small where H is not
        are lost, here and in `logdet`. It factorizes at every call; where one matrix meets many
        vectors, `inverse` is faster.

        Args:
          v: one vector.
          damping: a number or one a coordinate; may be traced.

        Returns:
          The solution; NaN where `d + damping` is not positive.

        Raises:
          TypeError: for leaves that are not real floating-point arrays.
          ValueError: for structures or shapes that do not fit one factor.
        """
        a, v = self._damped(damping), self._operand(v, "v")
        return _solve(_constant(a, like=v), a, v)

    def logdet(self, damping: Scalar | Vector = 0) -> jax.Array:
        """Computes `log det (A + diag(damping)) = sum log d + log det (I + G K)`.

        NaN where it is not positive definite, or `d + damping` is not positive. What helps is a
        larger damping, or d and the positive part of the rest,
        `A.low_rank.positive_part().plus_diagonal(d)`. The same errors as `solve`.
        """
        a = self._damped(damping)
        return _logdet(_constant(a), a)

    def inverse(self, damping: Scalar | Vector = 0) -> "DiagonalPlusLowRank":
        """Computes `(A + diag(damping))^-1`, a diagonal plus low rank with as many factors.

        What is stored is right to rounding beside the largest `1 / d`. So is a product with
        it; where `(A + damping) x = v` is to hold to rounding, use `solve`.
        The same errors as `solve`.

        Example:
          >>> import jax.numpy as jnp
          >>> from lowrank_jax import SymmetricLowRank
          >>> h = SymmetricLowRank(jnp.eye(3)[:1], jnp.array([[3.0]]))
          >>> h.inverse(damping=1.0) @ jnp.ones(3)
          Array([0.25, 1.  , 1.  ], dtype=float32)
        """
        a = self._damped(damping)
        return _inverse(_constant(a), a)

    def sample(
        self, key: jax.Array, damping: Scalar | Vector = 0, shape: Sequence[int] = ()
    ) -> Any:
        """Draws from the normal distribution N(0, (A + diag(damping))^-1).

        `R z` for standard normal z and `R R^T` that inverse. All draws are NaN where it is not
        positive definite, as `logdet` is. A coordinate is right to rounding beside
        `(d + damping)^(-1/2)`.

        Args:
          key: the random key.
          damping: a number or one a coordinate; may be traced.
          shape: how many draws, as leading axes of the result.

        Returns:
          A pytree of vectors, with the leading axes `shape`.

        Raises:
          TypeError, ValueError: for a key or a shape that is none, or as `solve` does.
        """
        checks.key(key)
        if not isinstance(shape, Sequence):
            raise TypeError(f"shape must be a sequence of Python ints, got {shape!r}")
        for count in shape:
            checks.count(count, "shape", 0)
        a = self._damped(damping)
        return _sample(reduce(*a._parts()), a, key, tuple(shape))

    def plus_diagonal(self, d: Scalar | Vector) -> "DiagonalPlusLowRank":
        """Returns `A + diag(d)`, for a number or one a coordinate."""
        return self._damped(d, "d")

    def truncate(self, rank: int) -> "DiagonalPlusLowRank":
        """Returns A with the `rank` eigenpairs of H of largest magnitude; see H's `truncate`."""
        self.check()
        return replace(self, low_rank=self.low_rank.truncate(rank))

    def __add__(self, other: Any) -> "DiagonalPlusLowRank":
        if isinstance(other, DiagonalPlusLowRank):
            self.check()
            other.check()
            low_rank = self.low_rank + other.low_rank
            return DiagonalPlusLowRank(_sum(self.diag, other.diag), low_rank)
        if isinstance(other, type(self.low_rank)):
            return replace(self, low_rank=self.low_rank + other)
        return self if isinstance(other, int) and other == 0 else NotImplemented  # sum([...])

    __radd__ = __add__

    def __sub__(self, other: Any) -> "DiagonalPlusLowRank":
        known = isinstance(other, (DiagonalPlusLowRank, type(self.low_rank)))
        return self + -other if known else NotImplemented

    def __rsub__(self, other: Any) -> "DiagonalPlusLowRank":
        return -self + other if isinstance(other, type(self.low_rank)) else NotImplemented

    def __neg__(self) -> "DiagonalPlusLowRank":
        return DiagonalPlusLowRank(jax.tree.map(jnp.negative, self.diag), -self.low_rank)

    def __mul__(self, c: Any) -> "DiagonalPlusLowRank":
        low_rank = self.low_rank * c
        diag = jax.tree.map(lambda d: d * jnp.asarray(c, d.dtype), self.diag)
        return DiagonalPlusLowRank(diag, low_rank)

    __rmul__ = __mul__

    def __truediv__(self, c: Any) -> "DiagonalPlusLowRank":
        low_rank = self.low_rank / c
        diag = jax.tree.map(lambda d: d / jnp.asarray(c, d.dtype), self.diag)
        return DiagonalPlusLowRank(diag, low_rank)

    def check(self) -> None:
        """What the parts of a matrix that was put together by hand must be."""
        self.low_rank.check()
        if not all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(self.diag)):
            raise TypeError(f"diag must hold arrays, got {self.diag!r}: h.plus_diagonal makes them")
        _diagonal(self.diag, self.low_rank, "diag")

    def _operand(self, v, name):
        self.check()
        row = "a factor of the operator"
        return checks.operand(v, name, self.low_rank.factors, row, "A.mv")

    def _damped(self, damping, name="damping"):
        self.check()
        if type(damping) is int and damping == 0:  # nothing is to be compiled for it
            return self
        return replace(self, diag=_sum(self.diag, _diagonal(damping, self.low_rank, name)))

    def _parts(self):
        return self.diag, self.low_rank.factors, self.low_rank.core


def plus_diagonal(h: Any, d: Scalar | Vector, name: str) -> DiagonalPlusLowRank:
    """`H + diag(d)` for a `SymmetricLowRank` that was checked."""
    return DiagonalPlusLowRank(_diagonal(d, h, name), h)


def _diagonal(d, h, name):
    """A checked diagonal, in the dtype that is computed in."""
    dtype = structure.compute_dtype(h)
    if jax.tree.structure(d) == jax.tree.structure(0) and jnp.ndim(d) == 0:
        checks.scalar(d, name)
        return jnp.asarray(d, dtype)
    d, size = checks.vector(d, name), structure.size(structure.row(h.factors))
    if size > 1 and getattr(d, "shape", None) == (size, size):
        raise ValueError(
            f"{name} must be a number or a vector, got a matrix of shape {d.shape}: "
            "as an operator that is SymmetricLowRank(jnp.eye(len(a)), a)"
        )
    checks.like(d, name, h.factors, "a factor of the operator", pattern_lead=1)
    return jax.tree.map(lambda x: x.astype(dtype), d)


def _spread(d, like):
    """One number a coordinate."""
    if is_number(d):
        return jax.tree.map(lambda x: jnp.broadcast_to(d, x.shape), like)
    return d


def _sum(c, d):
    c, d = structure.widen((c, d))
    if is_number(c) != is_number(d):
        c, d = (c, _spread(d, c)) if is_number(d) else (_spread(c, d), d)
    return jax.tree.map(jnp.add, c, d)


def _constant(a, like=()):
    """What A reduces to, a constant to differentiation, in the widest dtype of A and others."""
    diag, factors, core = lax.stop_gradient(a._parts())
    return reduce(diag, factors, core.astype(structure.compute_dtype((a, like))))


@jax.jit
def _solve(found, a, v):
    a, wide = structure.widen((a, v))
    x = shifted.solve(found, *packed(*a._parts()), structure.pack_vector(wide))
    return structure.cast_like(structure.unpack_vector(x, wide), v)


@jax.jit
def _logdet(found, a):
    return shifted.log_determinant(found, *packed(*a._parts()))


@jax.jit
def _inverse(found, a):
    diag, factors, core = shifted.inverse(found, *packed(*a._parts()))
    row = structure.row(structure.widen(a.low_rank).factors)
    diag = diag if is_number(diag) else structure.unpack_vector(diag, row)
    factors = structure.cast_like(structure.unpack(factors, row), a.low_rank.factors)
    return DiagonalPlusLowRank(diag, replace(a.low_rank, factors=factors, core=core))


@partial(jax.jit, static_argnums=3)
def _sample(found, a, key, shape):
    root, basis, core = shifted.draw_root(found, packed(*a._parts())[0])
    row = structure.row(structure.widen(a.low_rank).factors)

    def draw(key):
        z = structure.pack_vector(structure.normal(key, row))
        x = tall.combine(product(core, tall.gram(basis, z)), basis)
        x = shifted.multiply(root, jax.tree.map(jnp.add, z, x))
        return structure.cast_like(structure.unpack_vector(x, row), a.low_rank.factors)

    draws = jax.vmap(draw)(jax.random.split(key, math.prod(shape)))
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), draws)
