"""The top eigenpair of a loss's Hessian, differentiable."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from lowrank_jax._at_a_point.implicit import differentiable_eigenpair
from lowrank_jax._at_a_point.lanczos import (
    count_entries,
    dominant_eigenpair,
    dominant_eigenpair_on_host,
    random_unit_vector,
    signed,
)
from lowrank_jax._at_a_point.products import hvp
from lowrank_jax._core import checks, losses, programs, structure
from lowrank_jax._core.types import Argnums, Loss


class EigenpairInfo(NamedTuple):
    """How `top_eigenpair` looked for what it returns.

    Attributes:
      products: how many Hessian-vector products it took, an integer.
      converged: whether it found an eigenpair, the relative error e below sqrt(eps); if not,
        value and vector are NaN.
    """

    products: jax.Array
    converged: jax.Array


def top_eigenpair(loss: Loss, argnums: Argnums = 0) -> Callable:
    """Finds the eigenvalue of largest magnitude of a loss's Hessian, and its unit eigenvector.

    Found by thick-restart Lanczos with exact Hessian-vector products (forward over reverse),
    as in `singular_triplet`: the error e is the residual `H w - lambda w` in norm, or by how
    much the eigenvalue at the other end of the spectrum, whose residual adds to it,
    could exceed |lambda|, if that is more; both relative to |lambda|.

    The derivatives, in x and in the loss's other arguments, are those of `H w = lambda w`,

        d lambda = w^T dH w,    (lambda I - H) dw = dH w - d lambda w,

    the latter on the complement of w. Those of w are NaN where another eigenvalue is within about
    sqrt(eps) |lambda| of lambda; -lambda may be an eigenvalue.

    Args:
      loss: a scalar function that can be differentiated three times for first derivatives.
      argnums: the argument that is x, or a tuple of such arguments.

    Returns:
      A function of the loss's arguments, in their order, and of `key` (by keyword), the random key
      of the start. It returns `(eigenvalue, eigenvector, info)`: the vector, of x's structure, has
      a positive entry where it is largest in magnitude; info is an `EigenpairInfo`. Where
      nothing is traced it is a loop on the host over products compiled once a loss; otherwise one
      program.

    Raises:
      TypeError: for an x that is not real floating-point arrays, or such a value of the loss.
      ValueError: for an x without entries, or a loss that is not scalar.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda x: x[0] ** 2 - 3 * x[1] ** 2
      >>> eigenvalue, eigenvector, info = top_eigenpair(loss)(jnp.ones(2), key=jax.random.key(0))
      >>> round(float(eigenvalue), 4), bool(jnp.allclose(eigenvector[1], 1.0))
      (-6.0, True)
      >>> int(info.products), bool(info.converged)
      (2, True)
    """
    product_at = hvp(loss, argnums)

    def pair_at(*args, key):
        x, rest = losses.split(argnums, args)
        x = checks.vector(x, "x")
        count_entries(x, "x")
        checks.key(key)
        start, eps = random_unit_vector(key, x), structure.resolution(x)

        if not programs.traced(x, rest, key):
            found = dominant_eigenpair_on_host(lambda v: product_at(x, v, *rest), start, eps)
            if found is not None:
                vector = structure.cast_like(signed(found.vector, found.vector), x)
                return found.value, vector, EigenpairInfo(found.products, found.converged)

        def product(v):
            return structure.widen(product_at(x, structure.cast_like(v, x), *rest))

        found = dominant_eigenpair(product, start, eps)
        vector = signed(found.vector, found.vector)
        value, vector = differentiable_eigenpair(product, found.value, vector, eps)
        info = EigenpairInfo(found.products, found.converged)
        return value, structure.cast_like(vector, x), info

    return pair_at
