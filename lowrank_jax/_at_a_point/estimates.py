"""What an operator misses of a Hessian, estimated from a few fresh products."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lowrank_jax._at_a_point import krylov
from lowrank_jax._clouds.pairs import SecantPairs
from lowrank_jax._core import checks, programs, scaling, structure, tall
from lowrank_jax._core.types import Product, Rows, Scalar, Vector
from lowrank_jax._operators.symmetric import Operator, SymmetricLowRank, check_operator


class Estimate(NamedTuple):
    """An estimated value, and its standard error.

    An error bar of 95 percent is 1.96 standard errors with 20 vectors or more, 2.3 with ten.

    Attributes:
      value: a number, or a vector for a diagonal.
      standard_error: of the same structure.
    """

    value: jax.Array | Vector
    standard_error: jax.Array | Vector


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Estimates:
    """What `estimate` found: vectors v and `(H - H_r) v`. Error bars want 10 vectors or more.

    Attributes:
      hessian: the operator H_r.
      vectors: m vectors of random signs.
      missing: `H v - H_r v` for each.
    """

    hessian: Operator
    vectors: Rows
    missing: Rows

    @jax.jit
    def trace(self) -> Estimate:
        """Estimates tr H, as `tr H_r` and the mean of `<v, (H - H_r) v>`."""
        return _shifted(self.hessian.trace(), _dots(self.vectors, self.missing))

    @jax.jit
    def diagonal(self) -> Estimate:
        """Estimates the diagonal of H, as that of H_r and the mean of `v * (H - H_r) v`."""

        def leaf(known, v, missing):
            found = _shifted(known, (v * missing).astype(known.dtype))
            return found.value, found.standard_error

        known, *rows = structure.widen((self.hessian.diagonal(), self.vectors, self.missing))
        outer = jax.tree.structure(known)
        found = jax.tree.map(leaf, known, *rows)
        return Estimate(*jax.tree.transpose(outer, jax.tree.structure((0, 0)), found))

    @jax.jit
    def frobenius_norm(self) -> Estimate:
        """Estimates |H|, from `|H|^2 = |H_r|^2` and the mean of `|H v|^2 - |H_r v|^2`."""
        return _root(self._square())

    @jax.jit
    def error(self) -> Estimate:
        """Estimates `|H - H_r| / |H|` in the Frobenius norm, from the mean of `|(H - H_r) v|^2`.

        The standard error is that of the numerator.
        """
        missed = _root(_shifted(0.0, _dots(self.missing, self.missing)))
        size = self.frobenius_norm().value
        return Estimate(*(scaling.ratio(part, size) for part in missed))

    @jax.jit
    def logdet(self, damping: Scalar) -> Estimate:
        """Estimates log det(H + d I) to first order in what H_r misses.

        That of `H_r + d I` and the mean of `<(H_r + d I)^-1 v, (H - H_r) v>`: an upper bound, in
        expectation, where `H + d I` and `H_r + d I` are positive definite. The standard error is
        that of the first-order term alone: it means nothing where what is missing is not small
        beside d. NaN where `H_r + d I` is not positive definite; an estimate that was made with
        `h.positive_part()` for H_r is then a number.
        """
        solved = jax.vmap(lambda v: self.hessian.solve(v, damping))(self.vectors)
        return _shifted(self.hessian.logdet(damping), _dots(solved, self.missing))

    def _square(self):
        known = jax.vmap(self.hessian.mv)(self.vectors)
        both = jax.tree.map(lambda k, m: 2 * k + m, *structure.widen((known, self.missing)))
        return _shifted(_square(self.hessian), _dots(self.missing, both))


def estimate(product: Product, hessian: Operator, samples: int) -> Callable:
    """Estimates what an operator H_r misses of a Hessian H, from fresh products `H v`.

    For v of random signs, `(H - H_r) v` gives unbiased estimates of the trace, the diagonal and the
    squared Frobenius norm of what is missing, the better, the less is missing.

    Args:
      product: `product(x, v, *args)`, H v; such as `hvp(loss)` or a central difference.
      hessian: the operator, `SymmetricLowRank` or `DiagonalPlusLowRank`, of x's structure.
      samples: how many products are taken, at least 2.

    Returns:
      A function of x, the product's other arguments, and the keyword `key`, one random key that
      H_r was not made with. It returns `Estimates`, whose methods `trace`, `diagonal`,
      `frobenius_norm`, `logdet(damping)` and `error` each give an `Estimate` with a standard error.
      Products are taken as in `probe_pairs`.

    Raises:
      TypeError: for leaves that are not real floating-point arrays, or options of a wrong type.
      ValueError: for fewer than 2 samples, or what does not fit x.

    Source: Meyer, Musco, Musco and Woodruff, Hutch++: optimal stochastic trace estimation, SOSA
    (2021), for the part that is known exactly and the part that is estimated.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lowrank_jax import hvp, lowrank_from_product
      >>> product = hvp(lambda x: 50 * x[0] ** 2 + jnp.sum(x**2))
      >>> x = jnp.zeros(40)
      >>> h = lowrank_from_product(product, 4)(x, key=jax.random.key(0))
      >>> trace = estimate(product, h, 10)(x, key=jax.random.key(1)).trace()
      >>> bool(abs(trace.value - 180) < 4 * trace.standard_error + 1)
      True
    """
    checks.function(product, "product")
    factors = check_operator(hessian, "hessian")
    checks.count(samples, "samples", 2)

    def estimates_at(x, *args, key):
        given, x = x, checks.point(x, "x")
        checks.key(key)
        checks.like(x, "x", factors, "a factor of hessian", pattern_lead=1)
        at, pairs = krylov.checked_product(product, x, args), None
        if not programs.traced(x, args, key, hessian):
            pairs = krylov.multiply(at, x, given, _signs(x, key, samples), 0, samples)
        if pairs is None:
            signs = _signs(x, key, samples)
            v = krylov.read(signs.steps, 0, samples, x)
            pairs = signs._replace(grad_diffs=structure.pack(jax.vmap(partial(at, x))(v)))
        return _estimates(hessian, krylov.unpacked(pairs, x))

    return estimates_at


@partial(jax.jit, static_argnums=2)
def _signs(x, key, count):
    rows = structure.pack(structure.zeros(x, count))
    drawn = structure.uniform(key, structure.row(rows), count)
    signs = jax.tree.map(lambda n: jnp.where(n < 0, -1, 1).astype(n.dtype), drawn)
    return SecantPairs(signs, rows)


@jax.jit
def _estimates(hessian, pairs):
    known = jax.vmap(hessian.mv)(pairs.steps)
    return Estimates(hessian, pairs.steps, tall.minus(pairs.grad_diffs, known))


def _square(h):
    """The squared Frobenius norm; what is added to a diagonal changes nothing beside it."""
    if isinstance(h, SymmetricLowRank):
        return h.frobenius_norm() ** 2
    own, low = structure.widen((h.diagonal(), h.low_rank.diagonal()))
    return h.low_rank.frobenius_norm() ** 2 - tall.dot(low, low) + tall.dot(own, own)


def _dots(a, b):
    return jax.vmap(tall.dot)(a, b)


def _shifted(known, samples):
    """The known part and the mean of samples, with the standard error of that mean."""
    count = len(samples)
    mean = jnp.mean(samples, axis=0)
    spread = samples - mean[None]
    error = scaling.safe_sqrt(jnp.sum(spread * spread, axis=0) / (count * (count - 1)))
    return Estimate(known + mean, error)


def _root(square):
    """The root of an estimated square; of a square that is not positive, zero."""
    value = scaling.safe_sqrt(square.value)
    return Estimate(value, scaling.reciprocal(2 * value) * square.standard_error)
