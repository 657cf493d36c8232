"""An operator beside exact Hessian-vector products."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lowrank_jax._at_a_point import krylov
from lowrank_jax._at_a_point.products import hvp
from lowrank_jax._clouds.pairs import SecantPairs
from lowrank_jax._core import checks, programs, scaling, structure, tall
from lowrank_jax._core.types import Argnums, Loss, Product, Rows, Vector
from lowrank_jax._operators.symmetric import Operator, check_operator


class HvpComparison(NamedTuple):
    """H_r against the exact Hessian H, one number per vector v; see `compare_hvp`.

    Attributes:
      relative_error: `|H_r v - H v| / |H v|`.
      cosine: of the angle between `H_r v` and `H v`.
      curvature_error: `v^T (H_r - H) v / (|v| |H v|)`, positive where H_r overestimates.
    """

    relative_error: jax.Array
    cosine: jax.Array
    curvature_error: jax.Array


def compare_hvp(
    loss: Loss | None,
    hessian: Operator,
    x: Vector,
    vectors: Rows,
    *args: Any,
    argnums: Argnums = 0,
    product: Product | None = None,
) -> HvpComparison:
    """Compares an operator with exact Hessian-vector products of the loss at x, or other ones.

    A plain function of a loss: jit it for repeated use.

    Args:
      loss: a scalar function, differentiated twice in argument `argnums`.
      hessian: the operator, `SymmetricLowRank` or `DiagonalPlusLowRank`.
      x: the point, of the operator's structure.
      vectors: m vectors v, a pytree whose leaves have a leading axis m.
      *args: the loss's other arguments, in their order.
      argnums: as in `hvp`.
      product: `product(x, v, *args)` to compare with instead, for a loss without second
        derivatives: a central difference, `gradient_difference(loss, central=True)`. The
        loss is not used then, and may be None. Where nothing is traced it is called as it is, for
        one vector at a time, as in `probe_pairs`: it may be plain Python.

    Returns:
      `HvpComparison` of arrays of shape (m,). Where `H v` is zero, the error is 0 if `H_r v` is
      zero too and infinite otherwise, and cosine and curvature error are 0.

    Raises:
      TypeError: for leaves that are not real floating-point arrays.
      ValueError: where x or the vectors do not fit the operator, or the loss is not scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from functools import partial
      >>> from lowrank_jax import fit, secant_hessian
      >>> loss = lambda x: jnp.sum(x**4)
      >>> points = 1 + 1e-2 * jnp.eye(3)
      >>> h = secant_hessian(loss, solver=partial(fit, extrapolate=1))(points)
      >>> comparison = compare_hvp(loss, h, jnp.ones(3), points - points[0])
      >>> bool(comparison.relative_error.max() < 0.05)
      True
    """
    given, x, (vectors, _) = x, checks.vector(x, "x"), checks.rows(vectors, "vectors")
    checks.like(vectors, "vectors", x, "x", lead=1)
    factors = check_operator(hessian, "hessian")
    checks.like(x, "x", factors, "a factor of hessian", pattern_lead=1)
    own = product is not None
    if product is not None:
        checks.function(product, "product")
    elif loss is not None:
        product = hvp(loss, argnums)
    else:
        raise TypeError("loss must be a function where no product is given, got None")
    at, exact = krylov.checked_product(product, x, args), None
    if own and not programs.traced(x, vectors, args, hessian):
        exact = _on_host(at, x, given, vectors)
    vectors = structure.reshard(vectors)
    if exact is None:
        exact = jax.vmap(lambda v: at(x, v))(vectors)

    def compare(v, exact):
        exact, approximate = structure.widen((exact, hessian @ v))
        v = structure.widen(v)
        size = scaling.norm(exact)
        error = jax.tree.map(jnp.subtract, approximate, exact)
        return HvpComparison(
            relative_error=scaling.ratio(scaling.norm(error), size),
            cosine=_overlap(approximate, exact),
            curvature_error=_overlap(v, error) * scaling.norm(error) * scaling.reciprocal(size),
        )

    return jax.vmap(compare)(vectors, exact)


def _on_host(product, x, given, vectors):
    steps = structure.pack(structure.cast_like(vectors, x))
    pairs = SecantPairs(steps, jax.tree.map(jnp.zeros_like, steps))
    found = krylov.multiply(product, x, given, pairs, 0, structure.length(steps))
    return None if found is None else krylov.unpacked(found, x).grad_diffs


def _overlap(u, v):
    """The cosine of the angle between two vectors, 0 where one of them is zero."""
    unit_u, unit_v = (
        tall.scale(scaling.reciprocal(scaling.norms(a)), a)
        for a in (jax.tree.map(lambda leaf: leaf[None], b) for b in (u, v))
    )
    return tall.gram(unit_u, unit_v)[0, 0]
