"""Programs that are compiled once, and whether there is anything to compile them into.

Where no argument is traced, work at a point is a loop of Python over small programs: those of the
library are compiled once a shape, those of a user's function once for as long as it lives.
"""

import functools
import inspect
import weakref
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# By the identity of what they belong to. A user's function may hold the data of a whole run.
_programs: dict[int, tuple[weakref.ref, dict[Hashable, Callable]]] = {}


def traced(*trees: Any) -> bool:
    """Whether a leaf is a tracer, or whatever is computed here will be one (as inside `jit`)."""
    leaves = [*jax.tree.leaves(trees), jnp.zeros(())]
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def compiled(transform: Callable, functions: tuple[Callable, ...], *options: Hashable) -> Callable:
    """`transform(*functions, *options)`, compiled where nothing is traced, once a shape.

    The program is known by the functions, which may be dropped with all they hold, by the
    transform and by the options. A function that can't be hashed, as it may change, has a new one
    every time. What it closes over is constant, as for `jax.jit`. Of the arguments arrays and
    floats are variable; all others, such as ints and strings, are part of the program.
    """
    plain, weak = transform(*functions, *options), tuple(map(_weak, functions))
    if None in weak:
        program = jax.jit(functools.partial(_from_leaves, lambda: plain), static_argnums=1)
    else:
        first = functions[0].__self__ if inspect.ismethod(functions[0]) else functions[0]
        programs, name = _programs_of(first), (transform, weak, options)
        if name not in programs:  # which keeps nothing alive that its own life hangs on
            again = functools.partial(_transformed, transform, weak, options)
            programs[name] = jax.jit(functools.partial(_from_leaves, again), static_argnums=1)
        program = programs[name]

    def call(*args):
        leaves, constants = _split(args)
        if constants is None or traced(leaves):
            return plain(*args)
        return program(leaves, constants)

    return call


def _transformed(transform, weak, options):
    return transform(*(refer() for refer in weak), *options)


class _Constants(NamedTuple):
    """What of a function's arguments is part of its program: their structure, and some leaves."""

    tree: Any
    leaves: tuple  # the type and value of a constant, None in the place of a variable


def _split(args):
    """The variable leaves of the arguments, and the rest; None for a rest that cannot be hashed."""
    leaves, tree = jax.tree.flatten(args)
    varies = [_varies(leaf) for leaf in leaves]
    fixed = (None if v else (type(x), x) for x, v in zip(leaves, varies, strict=True))
    constants = _Constants(tree, tuple(fixed))
    try:
        hash(constants)
    except TypeError:
        constants = None
    return [x for x, v in zip(leaves, varies, strict=True) if v], constants


def _varies(leaf):
    if isinstance(leaf, (np.ndarray, np.generic)):
        return leaf.dtype.kind not in "OSUMm"
    return isinstance(leaf, (jax.Array, float, complex))


def _from_leaves(function, variables, constants):
    variables = iter(variables)
    leaves = [next(variables) if fixed is None else fixed[1] for fixed in constants.leaves]
    return function()(*jax.tree.unflatten(constants.tree, leaves))


def _weak(function):
    """A weak reference, or None where the function cannot be hashed or referred to weakly."""
    try:
        hash(function)
        return (weakref.WeakMethod if inspect.ismethod(function) else weakref.ref)(function)
    except TypeError:
        return None


def _programs_of(owner):
    number = id(owner)
    if number not in _programs:
        forget = weakref.ref(owner, lambda _: _programs.pop(number, None))
        _programs[number] = forget, {}
    return _programs[number][1]
