"""The value and gradient of a loss at one point, and pairs of steps and gradients around it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from lowrank_jax._at_a_point import krylov
from lowrank_jax._at_a_point.differences import Options, difference_pairs, most_gradients
from lowrank_jax._clouds.pairs import SecantPairs
from lowrank_jax._core import checks, losses
from lowrank_jax._core.types import Argnums, Loss, Vector


class Expansion(NamedTuple):
    """What is known of a loss at a point; aux is None without `has_aux`."""

    point: Vector
    value: jax.Array
    grad: Vector
    pairs: SecantPairs
    aux: Any


def expansion_at(loss: Loss, argnums: Argnums, has_aux: bool, options: Options) -> Callable:
    """A function of (args, key) to the `Expansion`; its gradient is compiled once a loss."""
    at = losses.value_and_gradient(loss, argnums, has_aux)
    at_rows = losses.values_and_gradients(loss, argnums, has_aux)

    def expansion(args, key):
        x, rest = losses.split(argnums, args)
        x = checks.point(x, "x")
        checks.key(key)
        with krylov.counter(most_gradients(options), options.progress, "gradients") as count:
            value, aux, grad = at(x, *rest)
            count(1)
            pairs = difference_pairs(
                lambda y: at(y, *rest)[2],
                x,
                grad,
                key,
                options,
                gradients=lambda points: at_rows(points, *rest)[2],
                count=count,
                value=value,
            )
        return Expansion(x, value, grad, pairs, aux)

    return expansion
