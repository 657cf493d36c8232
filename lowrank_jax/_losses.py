"""A loss as a function of the argument that it is differentiated in."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Argnums = int | Sequence[int]


def split(argnums: Argnums, args: tuple) -> tuple[Any, tuple]:
    """Takes the differentiated argument (a tuple of them for a tuple `argnums`) out of `args`."""
    positions = _positions(argnums, len(args))
    rest = tuple(arg for i, arg in enumerate(args) if i not in positions)
    if isinstance(argnums, int):
        return args[positions[0]], rest
    return tuple(args[i] for i in positions), rest


def at(loss: Callable, argnums: Argnums, rest: tuple, *, has_aux: bool = False) -> Callable:
    """The function x -> loss(..., x, ...), with `rest` in the other places, in their order.

    Raises:
      ValueError: when called, if the loss's value is not a scalar.
      TypeError: when called, if the loss's value is not a real floating-point number.
    """
    count = 1 if isinstance(argnums, int) else len(argnums)
    positions = _positions(argnums, len(rest) + count)

    def of_x(x):
        if not isinstance(argnums, int) and not (isinstance(x, tuple) and len(x) == count):
            raise ValueError(f"argnums {argnums} take a tuple of {count} arguments, got {x!r}")
        places = dict(zip(positions, (x,) if isinstance(argnums, int) else x, strict=True))
        others = iter(rest)
        args = (places[i] if i in places else next(others) for i in range(len(rest) + count))
        out = loss(*args)
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(
                f"loss must return a pair (value, aux) with has_aux=True, got {type(out).__name__}"
            )
        value = out[0] if has_aux else out
        if not jax.tree_util.all_leaves([value]):
            raise TypeError(f"loss must return a scalar, got {jax.tree.structure(value)}")
        if jnp.shape(value) != ():
            raise ValueError(f"loss must return a scalar, got shape {jnp.shape(value)}")
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise TypeError(f"loss must return a real float, got dtype {jnp.result_type(value)}")
        return out

    return of_x


def gradient(loss: Callable, argnums: Argnums, rest: tuple) -> Callable:
    """The function x -> gradient of the loss in x."""
    return jax.grad(at(loss, argnums, rest))


def _positions(argnums: Argnums, count: int) -> tuple[int, ...]:
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not all(isinstance(i, int) for i in numbers):
        raise TypeError(f"argnums must be an int or a sequence of ints, got {argnums!r}")
    if not numbers or any(not -count <= i < count for i in numbers):
        raise ValueError(f"argnums must name some of the loss's {count} arguments, got {argnums}")
    positions = tuple(i % count for i in numbers)
    if len(set(positions)) < len(positions):
        raise ValueError(f"argnums must name each argument once, got {argnums}")
    return positions
