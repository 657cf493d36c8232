"""The value, gradient and Hessian of a loss at one point."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lowrank_jax._core import checks, losses, scaling
from lowrank_jax._core.types import Argnums, Loss, Vector
from lowrank_jax._operators.symmetric import SymmetricLowRank


class Expansion(NamedTuple):
    """What is known of a loss at a point; aux is None without `has_aux`."""

    point: Vector
    value: jax.Array
    grad: Vector
    hessian: SymmetricLowRank
    aux: Any


def expansion_at(loss: Loss, argnums: Argnums, has_aux: bool, curvature: Callable) -> Callable:
    """A function of (args, key) to the `Expansion`, H by `curvature(gradient, x, grad, key)`."""

    def expansion(args, key):
        x, rest = losses.split(argnums, args)
        x = checks.point(x, "x")
        at = jax.value_and_grad(losses.at(loss, argnums, rest, has_aux=has_aux), has_aux=has_aux)
        out, grad = at(x)
        value, aux = out if has_aux else (out, None)
        finite = jnp.isfinite(value)
        base = jax.tree.map(lambda g: g * scaling.nan_unless(finite, g.dtype), grad)

        def gradient(y):
            return at(y)[1]

        return Expansion(x, value, grad, curvature(gradient, x, base, key), aux)

    return expansion
