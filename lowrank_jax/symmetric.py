"""The operator: a symmetric matrix of low rank that acts on pytrees and is one itself."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lowrank_jax import _checks, _frames
from lowrank_jax._spectral import eigh, mirror, product, symmetrize


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
    `jax.tree.map(lambda leaf: leaf[i], operators)`. The methods are jitted.
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

    factors: Any
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
        return _frames.common_dtype(self.factors)

    @property
    def T(self) -> "SymmetricLowRank":
        """The transpose: H itself."""
        return self

    def __repr__(self) -> str:
        if not hasattr(self.core, "shape"):  # a pytree of something else than arrays
            return f"SymmetricLowRank(factors={self.factors!r}, core={self.core!r})"
        count = self.core.shape[-1]
        return f"SymmetricLowRank(shape={self.shape}, factors={count}, dtype={self.dtype})"

    @jax.jit
    def mv(self, v: Any) -> Any:
        """`H v` for one vector, `B^T (K (B v))`; the leaves have the factors' dtypes.

        A stack of vectors goes through `jax.vmap(H.mv)`.

        Raises:
          TypeError: for leaves of v that are not real floating-point arrays.
          ValueError: where v does not have the structure and shapes of one factor.
        """
        coordinates = _frames.gram(self.factors, self._vector(v, "v"))
        return _frames.combine(product(self.core, coordinates), self.factors)

    __matmul__ = mv

    @jax.jit
    def bilinear(self, u: Any, v: Any) -> jax.Array:
        """`<u, H v> = (B u)^T K (B v)`, a scalar; the same errors as `mv`."""
        left = _frames.gram(self.factors, self._vector(u, "u"))
        right = _frames.gram(self.factors, self._vector(v, "v"))
        return product(left, self.core, right)

    @jax.jit
    def to_dense(self) -> jax.Array:
        """The (D, D) matrix, in the order of `jax.flatten_util.ravel_pytree`; exactly symmetric."""
        _checks.single(self.core)
        leaves = jax.tree.leaves(_frames.widen(self.factors))
        b = jnp.concatenate([x.reshape(x.shape[0], math.prod(x.shape[1:])) for x in leaves], axis=1)
        return mirror(product(b.T, self.core, b)).astype(self.dtype)

    @jax.jit
    def eigh(self) -> tuple[jax.Array, Any]:
        """Eigenpairs, `H = U^T diag(s) U`: s (k,), largest magnitude first, and the rows of U.

        The eigenvectors are a pytree with leading axis k. They are orthonormal
        where the eigenvalue is not zero; where it is zero to rounding, it is
        exactly 0 and the row is zero. They are defined up to sign, and
        differentiate only where nonzero eigenvalues are distinct.
        """
        rows, core, unit = self._balanced()
        basis = _frames.orthonormal(rows, eps=float(jnp.finfo(core.dtype).eps)).rows
        to_basis = _frames.gram(basis, rows)
        s, v = eigh(symmetrize(product(to_basis, core, to_basis.T)))
        terms = product(jnp.abs(to_basis), jnp.abs(core), jnp.abs(to_basis.T))
        noise = 2 * math.sqrt(len(s)) * jnp.finfo(s.dtype).eps * jnp.max(terms, initial=0)
        s = jnp.where(jnp.abs(s) <= noise, 0, s)
        order = jnp.argsort(-jnp.abs(s))
        s, v = s[order], jnp.where((s == 0)[None, :], 0, v)[:, order]
        return s * unit, _frames.cast_like(_frames.combine(v.T, basis), self.factors)

    @jax.jit
    def eigenvalues(self) -> jax.Array:
        """The eigenvalues alone, (k,), largest magnitude first, those that are zero exactly 0."""
        return self.eigh()[0]

    @jax.jit
    def trace(self) -> jax.Array:
        """`tr H = tr(K G)`."""
        rows, core, unit = self._balanced()
        return jnp.sum(core * _frames.gram(rows, rows)) * unit

    @jax.jit
    def frobenius_norm(self) -> jax.Array:
        """`|H|_F = sqrt(tr(K G K G))`; its derivative at H = 0 is taken as 0."""
        rows, core, unit = self._balanced()
        m = product(core, _frames.gram(rows, rows))
        return _frames.safe_sqrt(jnp.sum(m * m.T)) * unit

    @partial(jax.jit, static_argnums=1)
    def truncate(self, rank: int) -> "SymmetricLowRank":
        """The nearest operator of that rank: the `rank` eigenpairs of largest magnitude.

        It stores `rank` factors, zero rows where H has fewer eigenpairs, and
        differentiates only where the nonzero eigenvalues are distinct.

        Raises:
          TypeError: for a rank that is not a Python int.
          ValueError: for a negative rank.
        """
        _checks.count(rank, "rank", 0)
        s, rows = self.eigh()
        missing = max(rank - len(s), 0)

        def fit_rows(x):
            return jnp.pad(x[:rank], [(0, missing)] + [(0, 0)] * (x.ndim - 1))

        return SymmetricLowRank(jax.tree.map(fit_rows, rows), jnp.diag(fit_rows(s)))

    def __add__(self, other: Any) -> "SymmetricLowRank":
        if not isinstance(other, SymmetricLowRank):
            return NotImplemented
        _checks.single(self.core)
        _checks.single(other.core)
        mine, theirs = self.factors, other.factors
        name = "the other operator's factors"
        _checks.like(theirs, name, mine, "this operator", lead=1, pattern_lead=1)
        factors = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), mine, theirs)
        return SymmetricLowRank(factors, jax.scipy.linalg.block_diag(self.core, other.core))

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
        _checks.scalar(c, "the factor of an operator")
        return jnp.asarray(c, self.core.dtype)

    def _vector(self, v, name):
        _checks.single(self.core)
        v = _checks.vector(v, name)
        try:
            _checks.like(v, name, self.factors, "a factor of the operator", pattern_lead=1)
        except ValueError as error:
            raise ValueError(f"{error}; for a stack of vectors use jax.vmap(H.mv)") from None
        return _frames.cast_like(v, self.factors)

    def _balanced(self):
        """Factors and core scaled by powers of two, and the unit to multiply H by.

        Rows with entries near 1 and a core near 1 keep the products of Gram
        matrices within range, for an H of any magnitude.
        """
        _checks.single(self.core)
        size = _frames.power_of_two(_frames.peaks(self.factors))
        core = self.core * size[:, None] * size[None, :]
        unit = _frames.power_of_two(jnp.max(jnp.abs(core), initial=0))
        return _frames.scale(1 / size, _frames.widen(self.factors)), core / unit, unit
