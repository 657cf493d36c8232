"""A loss as a function of the argument that it is differentiated in."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax._core import programs
from lowrank_jax._core.types import Argnums, Gradient, Loss, Vector


def split(argnums: Argnums, args: tuple) -> tuple[Vector, tuple]:
    """Takes the differentiated argument (a tuple of them for a tuple `argnums`) out of `args`.

    Raises:
      TypeError: for argnums that are not integers.
      ValueError: for argnums that are not places of arguments, or one twice.
    """
    positions, alone = _positions(argnums, len(args))
    rest = tuple(arg for i, arg in enumerate(args) if i not in positions)
    x = tuple(args[i] for i in positions)
    return (x[0] if alone else x), rest


def at(loss: Loss, argnums: Argnums, rest: tuple, *, has_aux: bool = False) -> Loss:
    """The function x -> loss(..., x, ...), with `rest` in the other places, in their order.

    Raises:
      TypeError: for a loss that is no function, a `has_aux` that is no bool, or argnums that are
        not integers; when called, if the loss's value is not a real floating-point number.
      ValueError: for argnums as in `split`; when called, if the loss's value is not a scalar.
    """
    if not callable(loss):
        raise TypeError(f"loss must be a function, got {type(loss).__name__}")
    if not isinstance(has_aux, bool):
        raise TypeError(f"has_aux must be True or False, got {has_aux!r}")
    numbers, alone = _numbers(argnums)
    count = len(numbers)
    positions, _ = _positions(argnums, len(rest) + count)

    def of_x(x):
        if not alone and not (isinstance(x, tuple) and len(x) == count):
            raise ValueError(f"argnums {argnums} take a tuple of {count} arguments, got {x!r}")
        places = dict(zip(positions, (x,) if alone else x, strict=True))
        others = iter(rest)
        args = (places[i] if i in places else next(others) for i in range(len(rest) + count))
        out = loss(*args)
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(
                f"loss must return a pair (value, aux) with has_aux=True, got {type(out).__name__}"
            )
        _check_value(out[0] if has_aux else out)
        return out

    return of_x


def gradient(loss: Loss, argnums: Argnums, rest: tuple) -> Gradient:
    """The function x -> gradient of the loss in x."""
    return jax.grad(at(loss, argnums, rest))


def value_and_gradient(loss: Loss, argnums: Argnums, has_aux: bool) -> Callable:
    """The function (x, *rest) -> (value, aux or None, gradient), compiled as by `programs`."""
    return programs.compiled(_value_and_gradient, (loss,), hashable(argnums), has_aux)


def values_and_gradients(loss: Loss, argnums: Argnums, has_aux: bool) -> Callable:
    """The same of rows of points at once."""
    return programs.compiled(_values_and_gradients, (loss,), hashable(argnums), has_aux)


def _value_and_gradient(loss, argnums, has_aux):
    def at_point(x, *rest):
        of_x = jax.value_and_grad(at(loss, argnums, rest, has_aux=has_aux), has_aux=has_aux)
        out, grad = of_x(x)
        value, aux = out if has_aux else (out, None)
        return value, aux, grad

    return at_point


def _values_and_gradients(loss, argnums, has_aux):
    at_point = _value_and_gradient(loss, argnums, has_aux)
    return lambda points, *rest: jax.vmap(lambda x: at_point(x, *rest))(points)


def _check_value(value: Any) -> None:
    if not isinstance(value, (jax.Array, np.ndarray, np.generic, complex, float, int)):
        raise TypeError(f"loss must return a scalar, got {type(value).__name__}")
    if jnp.shape(value) != ():
        raise ValueError(f"loss must return a scalar, got shape {jnp.shape(value)}")
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise TypeError(f"loss must return a real float, got dtype {jnp.result_type(value)}")


def _positions(argnums: Argnums, count: int) -> tuple[tuple[int, ...], bool]:
    """The places that argnums name, counted from the first one, and whether it is a single int."""
    numbers, alone = _numbers(argnums)
    if not numbers or any(not -count <= i < count for i in numbers):
        raise ValueError(f"argnums must name some of the loss's {count} arguments, got {argnums}")
    positions = tuple(i % count for i in numbers)
    if len(set(positions)) < len(positions):
        raise ValueError(f"argnums must name each argument once, got {argnums}")
    return positions, alone


def hashable(argnums: Argnums) -> int | tuple[int, ...]:
    """Argnums as options of a program.

    Raises:
      TypeError: for argnums that are not integers.
    """
    numbers, alone = _numbers(argnums)
    return numbers[0] if alone else numbers


def _numbers(argnums: Argnums) -> tuple[tuple[int, ...], bool]:
    """Argnums as a tuple of ints, and whether they were a single one."""
    alone = not isinstance(argnums, Sequence)
    numbers: Any = (argnums,) if alone else argnums
    try:
        if any(isinstance(i, bool) for i in numbers):
            raise TypeError("a bool names no argument")
        return tuple(map(operator.index, numbers)), alone
    except TypeError:
        raise TypeError(f"argnums must be an int or a sequence of ints, got {argnums!r}") from None
