"""The operator: a symmetric matrix of low rank that acts on pytrees and is one itself."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax._core import checks, scaling, structure, tall, xla
from lowrank_jax._core.spectral import mirror, product
from lowrank_jax._core.types import Rows, Scalar, Vector
from lowrank_jax._operators.diagonal import DiagonalPlusLowRank, plus_diagonal
from lowrank_jax._operators.reduced import function, reduce, spectrum


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class SymmetricLowRank:
    """A symmetric D x D matrix of low rank, `H = B^T K B`, that is never formed.

    The rows of B are `factors`, a pytree whose leaves have a leading axis k; a
    vector is a pytree without that axis. In this form products, trace and norm
    are polynomials in (B, K) through the k x k Gram matrix `G = B B^T`,

        H v = B^T (K (B v)),   tr H = tr(K G),   |H|_F^2 = tr(K G K G),

    so they have derivatives of all orders, also where eigenvalues repeat; the
    eigenpairs, computed on request, have not.

    The operator is a pytree: it goes through `jit`, `vmap`, `grad`, `scan`. Where
    `vmap` has made a batch of operators, use them under `vmap` as well:
    `jax.vmap(lambda h, v: h @ v)(operators, vectors)`, or take one out with
    `jax.tree.map(lambda leaf: leaf[i], operators)`. The methods are jitted, but `map_spectrum`;
    outside `jit` those that factorize H share the program that does, for all operators of a shape.
    Sums, differences and real multiples of operators are operators; those of a
    sum hold the factors of both.

    Attributes:
      factors: the rows of B: a pytree whose leaves have a leading axis k.
      core: K, (k, k), symmetric (not checked).

    Example:
      >>> import jax.numpy as jnp
      >>> h = SymmetricLowRank(jnp.array([[1.0, 0.0, 1.0]]), jnp.array([[2.0]]))
      >>> h
      SymmetricLowRank(shape=(3, 3), factors=1, dtype=float32)
      >>> h @ jnp.array([1.0, 5.0, 0.0])
      Array([2., 0., 2.], dtype=float32)
      >>> h.trace()
      Array(4., dtype=float32)
      >>> ((2 * h - h) @ jnp.ones(3)).tolist()
      [4.0, 0.0, 4.0]
    """

    factors: Rows
    core: jax.Array

    __array_ufunc__ = None  # NumPy scalars leave `c * H` to this class

    @property
    def shape(self) -> tuple[int, ...]:
        """(D, D), after the axes that `vmap` has added."""
        batch = self.core.ndim - 2
        size = sum(math.prod(leaf.shape[batch + 1 :]) for leaf in jax.tree.leaves(self.factors))
        return (*self.core.shape[:batch], size, size)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype to which the factors' leaves promote, that of `to_dense()`."""
        return structure.common_dtype(self.factors)

    @property
    def T(self) -> "SymmetricLowRank":
        """The transpose, which is H itself."""
        return self

    def __repr__(self) -> str:
        if getattr(self.core, "ndim", 0) < 2:  # a pytree of something else than arrays
            return f"SymmetricLowRank(factors={self.factors!r}, core={self.core!r})"
        count = self.core.shape[-1]
        return f"SymmetricLowRank(shape={self.shape}, factors={count}, dtype={self.dtype})"

    @jax.jit
    def mv(self, v: Vector) -> Vector:
        """Computes `H v` for one vector, `B^T (K (B v))`; the leaves have the factors' dtypes.

        A stack of vectors goes through `jax.vmap(H.mv)`.

        Raises:
          TypeError: for leaves of v that are not real floating-point arrays.
          ValueError: where v does not have the structure and shapes of one factor.
        """
        v = self._operand(v, "v")
        core = structure.widen((self.core, self.factors))[0]
        coordinates = tall.gram(self.factors, v).astype(core.dtype)
        return tall.combine(product(core, coordinates), self.factors)

    __matmul__ = __rmatmul__ = mv

    def matvec(self, v: Vector) -> Vector:
        """Computes `H v` as SciPy asks for it: a NumPy vector may be a column or whole numbers."""
        return self.mv(checks.of_scipy(v, self.factors))

    @jax.jit
    def bilinear(self, u: Vector, v: Vector) -> jax.Array:
        """Computes `<u, H v> = (B u)^T K (B v)`, a scalar; the same errors as `mv`."""
        u, v = self._operand(u, "u"), self._operand(v, "v")
        core = structure.widen((self.core, self.factors))[0]
        left, right = (tall.gram(self.factors, x).astype(core.dtype) for x in (u, v))
        return product(left, core, right)

    @jax.jit
    def to_dense(self) -> jax.Array:
        """Returns the (D, D) matrix, exactly symmetric.

        Its order is that of `jax.flatten_util.ravel_pytree`.
        """
        self.check()
        factors, core = structure.widen((self.factors, self.core))
        b = structure.matrix(factors)
        return mirror(product(b.T, core, b)).astype(self.dtype)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a SymmetricLowRank is no array: use to_dense() for the (D, D) matrix")

    def eigh(self) -> tuple[jax.Array, Rows]:
        """Computes eigenpairs, `H = U^T diag(s) U`: s (k,), largest magnitude first, and rows of U.

        The eigenvectors are a pytree with leading axis k. They are orthonormal
        where the eigenvalue is not zero; where it is zero to rounding, it is
        exactly 0 and the row is zero. They are defined up to sign, and
        differentiate only where nonzero eigenvalues are distinct.
        """
        return self._eigenpairs(self._reduced(), None)

    @partial(jax.jit, static_argnums=2)
    def _eigenpairs(self, found, count):
        """That many at most, all for None."""
        s, v, order = _spectrum(found)
        v = jnp.where((s == 0)[None, :], 0, v)[:, order[:count]]
        return s[order[:count]] * found.unit, self._unpacked(tall.combine(v.T, found.basis.rows))

    def eigenvalues(self) -> jax.Array:
        """Computes the eigenvalues alone, (k,), largest magnitude first, zero ones exactly 0."""
        return _eigenvalues(self._reduced())

    @jax.jit
    def trace(self) -> jax.Array:
        """Computes `tr H = tr(K G)`."""
        scale, rows, core, unit = self._balanced()
        return jnp.sum(core * tall.scaled_gram(scale, rows)) * unit

    @jax.jit
    def frobenius_norm(self) -> jax.Array:
        """Computes `|H|_F = sqrt(tr(K G K G))`; its derivative at H = 0 is taken as 0."""
        scale, rows, core, unit = self._balanced()
        m = product(core, tall.scaled_gram(scale, rows))
        return scaling.safe_sqrt(jnp.sum(m * m.T)) * unit

    def inertia(self, tol: Scalar | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Counts how many of the D eigenvalues are positive, negative, and zero.

        At a stationary point these decide the second-derivative test: a minimum
        has no negative ones, a maximum no positive ones, a saddle has both. All are
        -1 for an operator that is not finite.

        Args:
          tol: eigenvalues of at most that magnitude count as zero. None stands for sqrt(eps) times
            the largest magnitude, which is what differences of gradients are right to: the rigid
            motions of a molecule count as zero. 0 counts as zero what is rounding of H alone.

        Raises:
          ValueError: for a negative tol; a traced one gives -1.

        Example:
          >>> import jax.numpy as jnp
          >>> h = SymmetricLowRank(jnp.eye(4)[:2], jnp.diag(jnp.array([3.0, -1.0])))
          >>> [int(count) for count in h.inertia()]
          [1, 1, 2]
        """
        if tol is not None:
            checks.between(tol, "tol", 0, math.inf)
        return self._inertia(self.eigenvalues(), tol)

    @jax.jit
    def _inertia(self, s, tol):
        default = structure.resolution(self.factors) ** 0.5 * jnp.max(jnp.abs(s), initial=0)
        tol = default if tol is None else jnp.asarray(tol, s.dtype)
        positive, negative = jnp.sum(s > tol), jnp.sum(s < -tol)
        counts = jnp.array([positive, negative, self.shape[-1] - positive - negative])
        counts = jnp.where(jnp.all(jnp.isfinite(s)) & (tol >= 0), counts, -1)
        return counts[0], counts[1], counts[2]

    @jax.jit
    def diagonal(self) -> Vector:
        """Returns the diagonal of H, one number a coordinate, with the structure of a vector.

        Example:
          >>> import jax.numpy as jnp
          >>> SymmetricLowRank(jnp.array([[1.0, 0.0, 3.0]]), jnp.array([[2.0]])).diagonal()
          Array([ 2.,  0., 18.], dtype=float32)
        """
        scale, rows, core, unit = self._balanced()
        found = xla.blockwise_map(_diagonal, (scale, core), rows)
        return structure.row_of(self._unpacked(jax.tree.map(lambda x: unit * x, found)))

    def plus_diagonal(self, d: Scalar | Vector) -> DiagonalPlusLowRank:
        """Returns `H + diag(d)`, for a number or one a coordinate."""
        self.check()
        return plus_diagonal(self, d, "d")

    def solve(self, v: Vector, damping: Scalar | Vector) -> Vector:
        """Computes `(H + diag(damping))^-1 v`, for a damping that may be traced.

        The small problem is solved in an orthonormal basis of the factors' span, and what
        is outside is divided by the damping; derivatives are those of the linear
        system, of all orders. H may be indefinite. Where `H + damping` is singular there is no
        solution, and the result is not finite or, to rounding, huge. Where many
        vectors meet one damping, `inverse` is faster.

        With a number, eigenvalues of H below about `eps |H|` are rounding and count as zero. Where
        the damping is as small as that, and variables are in units so far apart that such
        curvature is real, give it as a vector: then no variable is small beside others, and
        the curvature is kept.

        Args:
          v: one vector.
          damping: above 0; a number, or a vector of one number a coordinate.

        Raises:
          TypeError: for leaves that are not real floating-point arrays.
          ValueError: where v or the damping does not have the structure and shapes of one factor,
            or for a number that is not above 0; a traced one, or a number in a vector, gives NaN.

        Example:
          >>> import jax.numpy as jnp
          >>> h = SymmetricLowRank(jnp.eye(3)[:1], jnp.array([[3.0]]))
          >>> h.solve(jnp.ones(3), damping=1.0)
          Array([0.25, 1.  , 1.  ], dtype=float32)
          >>> h.solve(jnp.ones(3), damping=jnp.array([1.0, 2.0, 4.0]))
          Array([0.25, 0.5 , 0.25], dtype=float32)
        """
        return self._damped(damping).solve(v)

    def inverse(self, damping: Scalar | Vector) -> DiagonalPlusLowRank:
        """Computes `(H + diag(damping))^-1` once, for many products with it.

        See `DiagonalPlusLowRank.inverse`; the errors of `solve`.
        """
        return self._damped(damping).inverse()

    def logdet(self, damping: Scalar | Vector) -> jax.Array:
        """Computes `log det(H + diag(damping))`, over all D dimensions; damping may be traced.

        NaN where that is not positive definite. The most negative of `eigenvalues()` tells by how
        much: what helps is a larger damping, or `h.positive_part().logdet(damping)` where negative
        curvature is known to be an error of the fit. An eigenvalue of H that is zero to rounding
        counts as zero; see `solve`. The errors of `solve`.

        Example:
          >>> import jax.numpy as jnp
          >>> h = SymmetricLowRank(jnp.eye(3)[:1], jnp.array([[3.0]]))
          >>> h.logdet(damping=1.0)
          Array(1.3862944, dtype=float32)
        """
        return self._damped(damping).logdet()

    def map_spectrum(self, f: Callable[[jax.Array], jax.Array]) -> "SymmetricLowRank":
        """Computes `f(H) = sum_i f(s_i) u_i u_i^T`, f of the eigenvalues, as an operator.

        `jnp.abs` gives |H|, `jax.nn.relu` the positive part, `jnp.square` the square.
        `f(0) = 0` is required: the D - k eigenvalues outside the factors' span
        are zero and stay so. Functions that do not vanish at 0 are shifted: an inverse square
        root of `H + d I` is `v / sqrt(d) + h.map_spectrum(lambda s: (s + d)**-0.5 - d**-0.5) @ v`.

        The result has as many factors as H: an orthonormal basis of their span, and rows of
        zeros that carry derivatives in directions that add to it. Its first derivatives
        are right wherever f(H) is differentiable, also at repeated eigenvalues; where f is not
        differentiable at 0, as `jnp.abs`, H must keep its rank. Second derivatives are right
        where the eigenvalues are distinct and the rank is constant.
        Jit what calls this: f may be any closure, so this method alone is not jitted.

        Args:
          f: an elementwise function of an array of one axis; it may close over traced values.

        Raises:
          TypeError: where f returns anything but floating-point numbers.
          ValueError: where f(0) is not 0 (NaN where that is known only when run), or f
            changes the shape.

        Example:
          >>> import jax.numpy as jnp
          >>> h = SymmetricLowRank(jnp.eye(3)[:1], jnp.array([[-3.0]]))
          >>> h.map_spectrum(jnp.abs) @ jnp.ones(3)
          Array([3., 0., 0.], dtype=float32)
        """
        checks.function(f, "f")
        found = self._reduced()
        f, slope = _vanishing(f, found.core.dtype)
        return SymmetricLowRank(self._unpacked(found.basis.rows), function(f, slope, found))

    def positive_part(self) -> "SymmetricLowRank":
        """Computes the nearest positive semidefinite operator, `map_spectrum(jax.nn.relu)`.

        For a loss that is known to be convex, where a fit is slightly indefinite: then `logdet` and
        `sample` are finite at every damping that is a number, and with a vector where all of it is
        well above `eps |H|`, the rounding of the small eigenvalues.
        """
        found = self._reduced()
        return SymmetricLowRank(self._unpacked(found.basis.rows), _positive_core(found))

    def sample(self, key: jax.Array, damping: Scalar | Vector, shape: Sequence[int] = ()) -> Any:
        """Draws from the normal distribution N(0, (H + diag(damping))^-1).

        `R z` for standard normal z and `R R^T` that inverse, `(H + damping I)^(-1/2) z` where the
        damping is a number; differentiable in H and damping. All
        draws are NaN where `H + damping` is not positive definite: for an
        indefinite H choose the damping above minus its smallest eigenvalue, or
        sample from `h.positive_part()` or `h.map_spectrum(jnp.abs)`. A coordinate is right to
        rounding beside `damping^(-1/2)`; of which eigenvalues count as zero see `solve`.

        Args:
          key: the random key.
          damping: above 0; a number, or a vector of one number a coordinate; may be traced.
          shape: how many draws, as leading axes of the result.

        Returns:
          A pytree of vectors, with the leading axes `shape`.

        Raises:
          TypeError, ValueError: for a key or a shape that is none, or as `solve` does.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> h = SymmetricLowRank(jnp.eye(3)[:1], jnp.array([[99.0]]))
          >>> draws = h.sample(jax.random.key(0), damping=1.0, shape=(1000,))
          >>> [round(x, 1) for x in jnp.std(draws, axis=0).tolist()]
          [0.1, 1.0, 1.0]
        """
        return self._damped(damping).sample(key, shape=shape)

    def truncate(self, rank: int) -> "SymmetricLowRank":
        """Returns the nearest operator of that rank: the `rank` eigenpairs of largest magnitude.

        It stores `rank` factors, zero rows where H has fewer eigenpairs, and
        differentiates only where the nonzero eigenvalues are distinct.

        Raises:
          TypeError: for a rank that is not a Python int.
          ValueError: for a negative rank.
        """
        checks.count(rank, "rank", 0)
        return self._truncate(self._reduced(), rank)

    @partial(jax.jit, static_argnums=2)
    def _truncate(self, found, rank):
        s, rows = structure.leading(self._eigenpairs(found, rank), rank)
        return SymmetricLowRank(rows, jnp.diag(s))

    def __add__(self, other: Any) -> "SymmetricLowRank":
        if isinstance(other, int) and other == 0:  # sum([...]) begins with it
            return self
        if not isinstance(other, SymmetricLowRank):
            return NotImplemented
        self.check()
        other.check()
        mine, theirs = self.factors, other.factors
        name = "the other operator's factors"
        checks.like(theirs, name, mine, "this operator", lead=1, pattern_lead=1)
        cores = structure.widen((self.core, other.core))
        return SymmetricLowRank(
            structure.concatenate(mine, theirs), jax.scipy.linalg.block_diag(*cores)
        )

    __radd__ = __add__

    def __sub__(self, other: Any) -> "SymmetricLowRank":
        return self + -other if isinstance(other, SymmetricLowRank) else NotImplemented

    def __neg__(self) -> "SymmetricLowRank":
        return SymmetricLowRank(self.factors, -self.core)

    def __mul__(self, c: Any) -> "SymmetricLowRank":
        return SymmetricLowRank(self.factors, self.core * self._scalar(c))

    __rmul__ = __mul__

    def __truediv__(self, c: Any) -> "SymmetricLowRank":
        return SymmetricLowRank(self.factors, self.core / self._scalar(c))

    def _scalar(self, c):
        checks.scalar(c, "the factor of an operator")
        return jnp.asarray(c, self.core.dtype)

    def check(self) -> None:
        """Raises an error for a batch of operators, or parts that are not real numbers.

        Whether the core is symmetric is not checked: give `(a + a.T) / 2` for a matrix that is only
        nearly so.
        """
        checks.vector(self.core, "core")
        checks.single(self.core)
        checks.vector(self.factors, "factors")

    def _operand(self, v, name):
        self.check()
        row = "a factor of the operator"
        return structure.cast_like(checks.operand(v, name, self.factors, row, "H.mv"), self.factors)

    def _damped(self, damping):
        self.check()
        if jax.tree.structure(damping) == jax.tree.structure(0) and jnp.ndim(damping) == 0:
            checks.positive(damping, "damping")
        return plus_diagonal(self, damping, "damping")

    def _reduced(self):
        self.check()
        return reduce(np.ones((), structure.compute_dtype(self)), self.factors, self.core)

    def _balanced(self):
        """Powers of two for the rows, the packed factors, the core, and the unit to multiply H by.

        Scaled rows with entries near 1 and a core near 1 keep the products of Gram
        matrices within range, for an H of any magnitude.
        """
        self.check()
        factors, core = structure.widen((self.factors, self.core))
        factors = structure.pack(factors)
        size = scaling.power_of_two(scaling.max_abs(factors))
        core = core * size[:, None] * size[None, :]
        unit = scaling.power_of_two(jnp.max(jnp.abs(core), initial=0))
        return 1 / size, factors, core / unit, unit

    @jax.jit
    def _unpacked(self, rows):
        wide = structure.row(structure.widen((self.factors, self.core))[0])
        return structure.cast_like(structure.unpack(rows, wide), self.factors)


def _spectrum(found):
    """Eigenvalues, eigenvectors, and the order by magnitude."""
    s, v = spectrum(found)
    return s, v, jnp.argsort(-jnp.abs(s))


@jax.jit
def _eigenvalues(found):
    s, _, order = _spectrum(found)
    return s[order] * found.unit


@jax.jit
def _positive_core(found):
    return function(jax.nn.relu, jnp.zeros((), found.core.dtype), found)


def _diagonal(small, rows):
    """That of `B^T K B` for scaled rows B, as one row."""
    scale, core = small
    rows = tall.scale(scale, rows)
    return jnp.sum(tall.combine(core, rows) * rows, axis=0, keepdims=True)


Operator = SymmetricLowRank | DiagonalPlusLowRank


def check_operator(h: Any, name: str) -> Rows:
    """The factors of one symmetric operator of either class.

    Raises:
      TypeError: for anything else, or factors that are not real numbers.
      ValueError: for a batch of operators.
    """
    checks.instance(h, name, SymmetricLowRank, DiagonalPlusLowRank)
    h.check()
    return h.factors if isinstance(h, SymmetricLowRank) else h.low_rank.factors


def _vanishing(f, dtype):
    """What f is, and f'(0), 0 where not finite; an error unless f(0) = 0, NaN if that is traced."""
    zero = np.zeros(1, dtype)
    with jax.ensure_compile_time_eval(), jax.debug_nans(False):  # f' may not exist at 0
        value, slope = jax.jvp(f, (zero,), (np.ones_like(zero),))
    if jnp.shape(value) != (1,):
        raise ValueError(
            f"f must map an array of eigenvalues of shape (1,) to the same shape, "
            f"got {jnp.shape(value)}"
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"f must return floating-point numbers, got dtype {value.dtype}")
    if isinstance(value, jax.core.Tracer):
        valid = scaling.nan_unless(value[0] == 0, dtype)
        return lambda w: f(w) * valid, jnp.where(jnp.isfinite(slope[0]), slope[0], 0) * valid
    value, slope = np.asarray(value), np.asarray(slope)
    if value[0] != 0:
        raise ValueError(f"f must be 0 at 0, got {value[0]}; shift it, as the docstring shows")
    return f, np.where(np.isfinite(slope), slope, 0)[0]
