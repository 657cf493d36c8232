"""The operator: a symmetric matrix of low rank that acts on pytrees and is one itself."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._core import checks, scaling, structure, tall
from lowrank_jax._core.orthonormal import thin_lq
from lowrank_jax._core.spectral import eigh, matrix_function, mirror, product, symmetrize
from lowrank_jax._core.types import Rows, Scalar, Vector


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
    `jax.tree.map(lambda leaf: leaf[i], operators)`. The methods are jitted, but `map_spectrum`.
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
        """The transpose: H itself."""
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
        v = self._vector(v, "v")
        core = structure.widen((self.core, self.factors))[0]
        coordinates = tall.gram(self.factors, v).astype(core.dtype)
        return tall.combine(product(core, coordinates), self.factors)

    __matmul__ = mv

    @jax.jit
    def bilinear(self, u: Vector, v: Vector) -> jax.Array:
        """Computes `<u, H v> = (B u)^T K (B v)`, a scalar; the same errors as `mv`."""
        u, v = self._vector(u, "u"), self._vector(v, "v")
        core = structure.widen((self.core, self.factors))[0]
        left, right = (tall.gram(self.factors, x).astype(core.dtype) for x in (u, v))
        return product(left, core, right)

    @jax.jit
    def to_dense(self) -> jax.Array:
        """Returns the (D, D) matrix, exactly symmetric.

        Its order is that of `jax.flatten_util.ravel_pytree`.
        """
        checks.single(self.core)
        factors, core = structure.widen((self.factors, self.core))
        b = structure.matrix(factors)
        return mirror(product(b.T, core, b)).astype(self.dtype)

    @jax.jit
    def eigh(self) -> tuple[jax.Array, Rows]:
        """Computes eigenpairs, `H = U^T diag(s) U`: s (k,), largest magnitude first, and rows of U.

        The eigenvectors are a pytree with leading axis k. They are orthonormal
        where the eigenvalue is not zero; where it is zero to rounding, it is
        exactly 0 and the row is zero. They are defined up to sign, and
        differentiate only where nonzero eigenvalues are distinct.
        """
        _, q, a, noise, unit = self._reduced()
        s, v = eigh(a)
        s = _without_noise(s, noise)
        order = jnp.argsort(-jnp.abs(s))
        s, v = s[order], jnp.where((s == 0)[None, :], 0, v)[:, order]
        return s * unit, structure.cast_like(tall.combine(v.T, q.rows), self.factors)

    @jax.jit
    def eigenvalues(self) -> jax.Array:
        """Computes the eigenvalues alone, (k,), largest magnitude first, zero ones exactly 0."""
        return self.eigh()[0]

    @jax.jit
    def trace(self) -> jax.Array:
        """Computes `tr H = tr(K G)`."""
        rows, core, unit = self._balanced()
        return jnp.sum(core * tall.gram(rows, rows)) * unit

    @jax.jit
    def frobenius_norm(self) -> jax.Array:
        """Computes `|H|_F = sqrt(tr(K G K G))`; its derivative at H = 0 is taken as 0."""
        rows, core, unit = self._balanced()
        m = product(core, tall.gram(rows, rows))
        return scaling.safe_sqrt(jnp.sum(m * m.T)) * unit

    @jax.jit
    def inertia(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Counts how many of the D eigenvalues are positive, negative, and zero to rounding.

        At a stationary point these decide the second-derivative test: a minimum
        has no negative ones, a maximum no positive ones, a saddle has both. All are
        -1 for an operator that is not finite.

        Example:
          >>> import jax.numpy as jnp
          >>> h = SymmetricLowRank(jnp.eye(4)[:2], jnp.diag(jnp.array([3.0, -1.0])))
          >>> [int(count) for count in h.inertia()]
          [1, 1, 2]
        """
        s = self.eigenvalues()
        positive, negative = jnp.sum(s > 0), jnp.sum(s < 0)
        counts = jnp.array([positive, negative, self.shape[-1] - positive - negative])
        counts = jnp.where(jnp.all(jnp.isfinite(s)), counts, -1)
        return counts[0], counts[1], counts[2]

    @jax.jit
    def diagonal(self) -> Vector:
        """Returns the diagonal of H, one number a coordinate, with the structure of a vector.

        Example:
          >>> import jax.numpy as jnp
          >>> SymmetricLowRank(jnp.array([[1.0, 0.0, 3.0]]), jnp.array([[2.0]])).diagonal()
          Array([ 2.,  0., 18.], dtype=float32)
        """
        rows, core, unit = self._balanced()
        images = tall.combine(core, rows)
        diagonal = jax.tree.map(lambda x, y: jnp.sum(x * y, axis=0) * unit, images, rows)
        return structure.cast_like(diagonal, self.factors)

    def solve(self, v: Vector, damping: Scalar) -> Vector:
        """Computes `(H + damping I)^-1 v`, for a damping that may be traced.

        The small problem is solved in an orthonormal basis of the factors' span, and what
        is outside is divided by the damping; derivatives are those of the linear
        system, of all orders. H may be indefinite. Where -damping is one of its
        eigenvalues there is no solution, and the result is not finite or, to rounding, huge.

        Raises:
          TypeError: for leaves of v that are not real floating-point arrays.
          ValueError: where v does not have the structure and shapes of one factor,
            or for a damping that is not above 0; a traced one gives NaN.

        Example:
          >>> import jax.numpy as jnp
          >>> h = SymmetricLowRank(jnp.eye(3)[:1], jnp.array([[3.0]]))
          >>> h.solve(jnp.ones(3), damping=1.0)
          Array([0.25, 1.  , 1.  ], dtype=float32)
        """
        checks.positive(damping, "damping")
        return self._solve(self._vector(v, "v"), _valid(damping, structure.compute_dtype(self)))

    @jax.jit
    def _solve(self, v, damping):
        h, b = structure.widen((self, v))
        x = _damped_solve(h, damping, h._spectrum(), b)
        return structure.cast_like(x, v)

    def logdet(self, damping: Scalar) -> jax.Array:
        """Computes `log det(H + damping I)`, over all D dimensions; damping may be traced.

        NaN where `H + damping I` is not positive definite. An eigenvalue of H
        that is zero to rounding counts as zero.

        Raises:
          ValueError: for a damping that is not above 0; a traced one gives NaN.

        Example:
          >>> import jax.numpy as jnp
          >>> h = SymmetricLowRank(jnp.eye(3)[:1], jnp.array([[3.0]]))
          >>> h.logdet(damping=1.0)
          Array(1.3862944, dtype=float32)
        """
        checks.positive(damping, "damping")
        return self._logdet(_valid(damping, structure.compute_dtype(self)))

    @jax.jit
    def _logdet(self, damping):
        rows, core, unit = self._balanced()
        h = SymmetricLowRank(rows, core * unit)
        return _log_determinant(h, damping, h._spectrum())

    def map_spectrum(self, f: Callable[[jax.Array], jax.Array]) -> "SymmetricLowRank":
        """Computes `f(H) = sum_i f(s_i) u_i u_i^T`, f of the eigenvalues, as an operator.

        `jnp.abs` gives |H|, `jax.nn.relu` the positive part, `jnp.square` the square.
        `f(0) = 0` is required: the D - k eigenvalues outside the factors' span
        are zero and stay so. Functions that do not vanish at 0 are shifted: an inverse square
        root of `H + d I` is `v / sqrt(d) + h.map_spectrum(lambda s: (s + d)**-0.5 - d**-0.5) @ v`.

        The result has twice the factors of H: an orthonormal basis of their span, and rows of
        zeros that carry derivatives in directions that add to it. Its first derivatives
        are right wherever f(H) is differentiable, also at repeated eigenvalues; where f is not
        differentiable at 0, as `jnp.abs`, H must keep its rank. Second derivatives are right
        where the eigenvalues are distinct and the rank is constant.
        Jit what calls this: f may be any closure, so this method alone is not jitted.

        Args:
          f: an elementwise function of an array of one axis; it may close over traced values.

        Raises:
          ValueError: where f(0) is not 0 (NaN where that is known only when run), or f
            changes the shape.

        Example:
          >>> import jax.numpy as jnp
          >>> h = SymmetricLowRank(jnp.eye(3)[:1], jnp.array([[-3.0]]))
          >>> h.map_spectrum(jnp.abs) @ jnp.ones(3)
          Array([3., 0., 0.], dtype=float32)
        """
        checks.function(f, "f")
        # For B = L Q the result is Q^T f(A) Q. Where rows of B depend on each other or vanish, Q
        # cannot follow all changes of B. What it misses, E = B - L Q, is exactly zero here,
        # and joins the factors for its derivative: f(H) = .. + Q^T (f(A) / A) L^T K E + its
        # transpose + c E^T K E, to first order, with c = f'(0) in place of f(A) / A at 0.
        rows, lq, a, noise, unit = self._reduced()
        core, q, coordinates = self._balanced()[1], lq.rows, lq.coordinates
        slope, valid = _behaviour_at_zero(f, core.dtype)
        w, v = eigh(a)

        def mapped(w):
            zero = jnp.abs(w) <= noise
            at_zero = slope * unit * (w - lax.stop_gradient(w))
            return jnp.where(zero, at_zero, f(jnp.where(zero, 1, w) * unit))

        mean_slope = jnp.where(jnp.abs(w) <= noise, slope * unit, mapped(w) * scaling.reciprocal(w))
        coupling = lax.stop_gradient(product(v * mean_slope[None, :], v.T, coordinates.T, core))
        inner = symmetrize(matrix_function(mapped, a, w, v))
        core = jnp.block([[inner, coupling], [coupling.T, slope * unit * core]]) * valid
        missed = jax.tree.map(jnp.subtract, rows, tall.combine(coordinates, q))
        missed = jax.tree.map(lambda x: x - lax.stop_gradient(x), missed)
        factors = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), q, missed)
        return SymmetricLowRank(structure.cast_like(factors, self.factors), core)

    def sample(self, key: jax.Array, damping: Scalar, shape: Sequence[int] = ()) -> Any:
        """Draws from the normal distribution N(0, (H + damping I)^-1).

        `(H + damping I)^(-1/2) z` for standard normal z, differentiable in H and damping. All
        draws are NaN where `H + damping I` is not positive definite: for an
        indefinite H choose the damping above minus its smallest eigenvalue, or
        sample from `h.map_spectrum(jnp.abs)`.

        Args:
          key: the random key.
          damping: above 0; may be traced.
          shape: how many draws, as leading axes of the result.

        Returns:
          A pytree of vectors, with the leading axes `shape`.

        Raises:
          ValueError: for a damping that is not above 0; a traced one gives NaN.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> h = SymmetricLowRank(jnp.eye(3)[:1], jnp.array([[99.0]]))
          >>> draws = h.sample(jax.random.key(0), damping=1.0, shape=(1000,))
          >>> [round(x, 1) for x in jnp.std(draws, axis=0).tolist()]
          [0.1, 1.0, 1.0]
        """
        checks.positive(damping, "damping")
        checks.key(key)
        if not isinstance(shape, Sequence):
            raise TypeError(f"shape must be a sequence of Python ints, got {shape!r}")
        for count in shape:
            checks.count(count, "shape", 0)
        return self._sample(key, _valid(damping, structure.compute_dtype(self)), tuple(shape))

    @partial(jax.jit, static_argnums=3)
    def _sample(self, key, damping, shape):
        h = structure.widen(self)

        def inverse_root(w):  # minus its value at 0, without cancellation
            positive = w + damping > 0
            root = jnp.sqrt(jnp.where(positive, w + damping, 1))
            shifted = -w / (root * jnp.sqrt(damping) * (root + jnp.sqrt(damping)))
            return jnp.where(positive, shifted, jnp.nan)

        correction = h.map_spectrum(inverse_root)

        def draw(key):
            z = structure.normal(key, structure.row(h.factors))
            x = jax.tree.map(lambda z, c: z / jnp.sqrt(damping) + c, z, correction @ z)
            return structure.cast_like(x, self.factors)

        draws = jax.vmap(draw)(jax.random.split(key, math.prod(shape)))
        return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), draws)

    def truncate(self, rank: int) -> "SymmetricLowRank":
        """Returns the nearest operator of that rank: the `rank` eigenpairs of largest magnitude.

        It stores `rank` factors, zero rows where H has fewer eigenpairs, and
        differentiates only where the nonzero eigenvalues are distinct.

        Raises:
          TypeError: for a rank that is not a Python int.
          ValueError: for a negative rank.
        """
        checks.count(rank, "rank", 0)
        return self._truncate(rank)

    @partial(jax.jit, static_argnums=1)
    def _truncate(self, rank):
        s, rows = self.eigh()
        missing = max(rank - len(s), 0)

        def fit_rows(x):
            return jnp.pad(x[:rank], [(0, missing)] + [(0, 0)] * (x.ndim - 1))

        return SymmetricLowRank(jax.tree.map(fit_rows, rows), jnp.diag(fit_rows(s)))

    def __add__(self, other: Any) -> "SymmetricLowRank":
        if not isinstance(other, SymmetricLowRank):
            return NotImplemented
        checks.single(self.core)
        checks.single(other.core)
        mine, theirs = self.factors, other.factors
        name = "the other operator's factors"
        checks.like(theirs, name, mine, "this operator", lead=1, pattern_lead=1)
        cores = structure.widen((self.core, other.core))
        return SymmetricLowRank(
            structure.concatenate(mine, theirs), jax.scipy.linalg.block_diag(*cores)
        )

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

    def _vector(self, v, name):
        checks.single(self.core)
        v = checks.vector(v, name)
        try:
            checks.like(v, name, self.factors, "a factor of the operator", pattern_lead=1)
        except ValueError as error:
            raise ValueError(f"{error}; for a stack of vectors use jax.vmap(H.mv)") from None
        return structure.cast_like(v, self.factors)

    @jax.jit
    def _reduced(self):
        """Balanced rows `B = L Q` and their thin LQ, `A = L^T K L`, its rounding, the unit of H."""
        rows, core, unit = self._balanced()
        lq = thin_lq(rows)
        coordinates = lq.coordinates
        a = symmetrize(product(coordinates.T, core, coordinates))
        terms = product(jnp.abs(coordinates.T), jnp.abs(core), jnp.abs(coordinates))
        noise = 2 * math.sqrt(len(a)) * jnp.finfo(a.dtype).eps * jnp.max(terms, initial=0)
        return rows, lq, a, lax.stop_gradient(noise), unit

    def _spectrum(self):
        _, lq, a, noise, unit = lax.stop_gradient(self)._reduced()
        w, v = eigh(a)
        return _Spectrum(lq.rows, _without_noise(w, noise) * unit, v)

    def _balanced(self):
        """Factors and core scaled by powers of two, and the unit to multiply H by.

        Rows with entries near 1 and a core near 1 keep the products of Gram
        matrices within range, for an H of any magnitude.
        """
        checks.single(self.core)
        factors, core = structure.widen((self.factors, self.core))
        size = scaling.power_of_two(scaling.max_abs(factors))
        core = core * size[:, None] * size[None, :]
        unit = scaling.power_of_two(jnp.max(jnp.abs(core), initial=0))
        return tall.scale(1 / size, factors), core / unit, unit


class _Spectrum(NamedTuple):
    """`H = Q^T V diag(w) V^T Q`, constants: orthonormal or zero rows Q, w, columns of V."""

    rows: Rows
    values: jax.Array
    vectors: jax.Array


def _damped_solve(h, damping, spectrum, b):
    """`(H + damping I)^-1 b`: the numbers from the spectrum, the derivatives from H."""
    basis, values, vectors = spectrum
    divisor = lax.stop_gradient(damping)

    def shifted(x):
        return jax.tree.map(lambda hx, x: hx + damping * x, h.mv(x), x)

    def solved(_, b):
        inside = product(vectors, product(vectors.T, tall.gram(basis, b)) / (values + divisor))
        outside = tall.project_out(tall.project_out(b, basis), basis)
        inside = tall.combine(inside, basis)
        return jax.tree.map(lambda x, y: x + y / divisor, inside, outside)

    return lax.custom_linear_solve(shifted, b, solved, symmetric=True)


@jax.custom_jvp
def _log_determinant(h, damping, spectrum):
    ratio = spectrum.values / damping
    logs = jnp.where(ratio > -1, jnp.log1p(jnp.where(ratio > -1, ratio, 0)), jnp.nan)
    return h.shape[-1] * jnp.log(damping) + jnp.sum(logs)


@_log_determinant.defjvp
def _log_determinant_jvp(primals, tangents):
    """`d log det = tr(R dH) + tr(R) dd` for `R = (H + d I)^-1`, from rows `X = B R`."""
    h, damping, spectrum = primals
    dh, d_damping, _ = tangents
    solve = jax.vmap(lambda row: _damped_solve(h, damping, spectrum, row))
    x = solve(h.factors)
    by_factors = 2 * jnp.sum(h.core * tall.gram(x, dh.factors))
    by_core = jnp.sum(tall.gram(x, h.factors) * dh.core)
    q = spectrum.rows
    outside = h.shape[-1] - jnp.sum(scaling.norms(q) > 0).astype(damping.dtype)
    trace = jnp.trace(tall.gram(solve(q), q)) + outside / damping
    value = _log_determinant(*primals)
    valid = scaling.nan_unless(~jnp.isnan(value), value.dtype)
    return value, (by_factors + by_core + trace * d_damping) * valid


def _without_noise(values, noise):
    """Eigenvalues that are zero to rounding made exactly 0, with their derivatives."""
    return values - lax.stop_gradient(jnp.where(jnp.abs(values) <= noise, values, 0))


def _valid(damping, dtype):
    """The damping in that dtype, NaN where it is not positive."""
    damping = jnp.asarray(damping, dtype)
    return jnp.where(damping > 0, damping, jnp.nan)


def _behaviour_at_zero(f, dtype):
    """f'(0), 0 where it is not finite; 1 where f(0) = 0, else an error or, if traced, NaN."""
    zero = jnp.zeros(1, dtype)
    with jax.ensure_compile_time_eval():
        value, slope = jax.jvp(f, (zero,), (jnp.ones_like(zero),))
    if jnp.shape(value) != (1,):
        raise ValueError(
            f"f must map an array of eigenvalues of shape (1,) to the same shape, "
            f"got {jnp.shape(value)}"
        )
    if not isinstance(value, jax.core.Tracer) and not value[0] == 0:
        raise ValueError(f"f must be 0 at 0, got {value[0]}; shift it, as the docstring shows")
    valid = scaling.nan_unless(value[0] == 0, dtype)
    return jnp.where(jnp.isfinite(slope[0]), slope[0], 0), valid
