"""What may come in: each check returns the checked value or raises an error that names it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path, tree_map_with_path, tree_structure

from lowrank_jax._core.types import Rows, Vector


def vector(tree: Any, name: str) -> Vector:
    """A pytree of real floating-point arrays, each leaf made a `jax.Array`.

    Raises:
      TypeError: for an integer, boolean, complex, key or non-array leaf, with its path.
    """
    return tree_map_with_path(lambda path, leaf: _float_array(leaf, name + keystr(path)), tree)


def point(tree: Any, name: str) -> Vector:
    """A `vector` of at least one array.

    Raises:
      TypeError: as `vector` does.
      ValueError: where there is no leaf.
    """
    tree = vector(tree, name)
    if not jax.tree.leaves(tree):
        raise ValueError(f"{name} must hold at least one array, got {tree!r}")
    return tree


def form(tree: Any, name: str) -> Vector:
    """A `vector`, or shapes and dtypes alone of one, `jax.ShapeDtypeStruct`s.

    Raises:
      TypeError: as `vector` does.
    """

    def leaf_form(path, leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return _float_array(leaf, name + keystr(path))
        _floating(leaf.dtype, name + keystr(path))
        return leaf

    return tree_map_with_path(leaf_form, tree)


def rows(tree: Any, name: str) -> tuple[Rows, int]:
    """A pytree whose leaves share a leading axis, and that axis's length.

    Raises:
      TypeError: as `vector` does.
      ValueError: where there is no leaf, a leaf without axes, or leading axes that differ.
    """
    tree = point(tree, name)
    named = [(name + keystr(path), leaf) for path, leaf in tree_flatten_with_path(tree)[0]]
    first, count = named[0][0], named[0][1].shape[:1]
    for path, leaf in named:
        if leaf.ndim == 0:
            raise ValueError(f"{path} must have a leading axis of points, got a scalar")
        if leaf.shape[:1] != count:
            raise ValueError(
                f"{path} must have the leading axis of {first}, {count[0]}, got shape {leaf.shape}"
            )
    return tree, count[0]


def array(value: Any, name: str, shape: tuple[int, ...]) -> None:
    """One real floating-point array of that shape, not a pytree of several.

    Raises:
      TypeError: for anything else.
      ValueError: for another shape.
    """
    found = _float_array(value, name).shape
    if found != shape:
        raise ValueError(f"{name} must have shape {shape}, got {found}")


def like(
    tree: Any, name: str, pattern: Any, pattern_name: str, *, lead: int = 0, pattern_lead: int = 0
) -> None:
    """`tree` has the structure of `pattern`, and its leaf shapes after the leading axes of each.

    Raises:
      ValueError: with the two structures, or with the path and the two shapes.
    """
    found: Any = tree_structure(tree)
    expected: Any = tree_structure(pattern)
    if found != expected:
        raise ValueError(
            f"{name} must have the tree structure of {pattern_name}, {expected}, got {found}"
        )
    others = jax.tree.leaves(pattern)
    for (path, leaf), other in zip(tree_flatten_with_path(tree)[0], others, strict=True):
        row = other.shape[pattern_lead:]
        leading = leaf.shape[:lead] if leaf.ndim == lead + len(row) else ("n",) * lead
        if leaf.shape != (*leading, *row):
            shape = str((*leading, *row)).replace("'", "")
            raise ValueError(
                f"{name + keystr(path)} must have the shape that {pattern_name} gives, "
                f"{shape}, got {leaf.shape}"
            )


def operand(v: Any, name: str, rows: Rows, rows_name: str, method: str) -> Vector:
    """One vector like each of the rows; `method` is what a stack of vectors is to be mapped over.

    Raises:
      TypeError: as `vector` does.
      ValueError: for another structure or other shapes.
    """
    v = vector(v, name)
    try:
        like(v, name, rows, rows_name, pattern_lead=1)
    except ValueError as error:
        raise ValueError(f"{error}; for a stack of vectors use jax.vmap({method})") from None
    return v


def of_scipy(v: Any, rows: Rows) -> Any:
    """A vector as SciPy hands it over, which may be a column, or of whole numbers; others as is."""
    if not isinstance(v, np.ndarray) or not isinstance(rows, (jax.Array, np.ndarray)):
        return v
    v = v[:, 0] if v.ndim == rows.ndim and v.shape[1:] == (1,) else v
    return v.astype(rows.dtype) if np.issubdtype(v.dtype, np.integer) else v


def single(core: jax.Array) -> None:
    """One operator, not a batch of them.

    Raises:
      ValueError: for a core with more than two axes.
    """
    if core.ndim != 2:
        raise ValueError(
            f"this is a batch of operators, core of shape {core.shape}: "
            "use it under jax.vmap, as in jax.vmap(lambda h, v: h @ v)(operators, vectors)"
        )


def scalar(value: Any, name: str) -> None:
    """A real number: a Python or NumPy one, or an array without axes.

    Raises:
      TypeError: for anything but a real number.
      ValueError: for an array with axes.
    """
    dtype = _dtype(value, name, "a real number")
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"{name} must be a real number, got dtype {dtype}")
    if jnp.shape(value) != ():
        raise ValueError(f"{name} must be a scalar, got shape {jnp.shape(value)}")


def between(value: Any, name: str, low: float, high: float) -> None:
    """A real number in [low, high]; of a traced one only dtype and shape are known.

    Raises:
      TypeError: for anything but a real number.
      ValueError: for an array with axes, or a number outside the interval.
    """
    scalar(value, name)
    if not isinstance(value, jax.core.Tracer) and not low <= float(value) <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value}")


def positive(value: Any, name: str) -> None:
    """A real number above 0; of a traced one only dtype and shape are known.

    Raises:
      TypeError: for anything but a real number.
      ValueError: for an array with axes, or a number that is not above 0.
    """
    scalar(value, name)
    if not isinstance(value, jax.core.Tracer) and not float(value) > 0:
        raise ValueError(f"{name} must be positive, got {value}")


def weights(value: Any, name: str, n: int) -> None:
    """One number a row, none negative and not all zero; of traced ones only dtype and shape.

    Raises:
      TypeError: for anything but real numbers.
      ValueError: for another shape, or numbers that are negative, not finite, or all zero.
    """
    array(value, name, (n,))
    if not isinstance(value, jax.core.Tracer):
        lowest, highest = np.min(value, initial=0), np.max(value, initial=0)
        if not (lowest >= 0 and 0 < highest < np.inf) and n:
            raise ValueError(
                f"{name} must be finite, not negative and not all zero, got values from "
                f"{np.min(value)} to {np.max(value)}"
            )


def count(value: Any, name: str, low: int) -> None:
    """A Python integer, at least `low`.

    Raises:
      TypeError: for anything else, a traced value too: it decides a shape.
      ValueError: for a smaller integer.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a Python int, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")


def flag(value: Any, name: str) -> None:
    """True or False.

    Raises:
      TypeError: for anything else, a traced value too: it decides what is computed.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def function(value: Any, name: str) -> None:
    """Something to be called.

    Raises:
      TypeError: for anything else.
    """
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {type(value).__name__}")


def instance(value: Any, name: str, *kinds: type) -> None:
    """An object of one of these classes of the library.

    Raises:
      TypeError: for anything else.
    """
    if not isinstance(value, kinds):
        expected = " or a ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{name} must be a {expected}, got {type(value).__name__}")


def key(value: Any) -> None:
    """One random key, typed or raw.

    Raises:
      TypeError: for anything else.
      ValueError: for an array of keys.
    """
    dtype = getattr(value, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not typed and dtype != jnp.uint32:
        raise TypeError(f"key must be a random key, such as jax.random.key(0), got {value!r}")
    expected = () if typed else jax.eval_shape(jax.random.PRNGKey, 0).shape
    if jnp.shape(value) != expected:
        raise ValueError(f"key must be one random key, got an array of shape {jnp.shape(value)}")


def _float_array(leaf: Any, path: str) -> jax.Array:
    _floating(_dtype(leaf, path), path)
    return jnp.asarray(leaf)


def _floating(dtype: Any, path: str) -> None:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{path} must be a real floating-point array, got dtype {dtype}")


def _dtype(leaf: Any, path: str, expected: str = "an array") -> Any:
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)):
        found = type(leaf).__name__
        if callable(leaf):
            found += "; of a module give its arrays alone: equinox.partition, nnx.split"
        raise TypeError(f"{path} must be {expected}, got {found}")
    try:
        return jnp.result_type(leaf)
    except TypeError as error:  # a dtype that JAX has not, such as text
        raise TypeError(f"{path} must be {expected}, got dtype {np.asarray(leaf).dtype}") from error
