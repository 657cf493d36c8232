"""What arguments are: names for types that Python does not tell apart."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

Vector = Any  # a pytree of arrays
Rows = Any  # a pytree whose leaves have a leading axis: the rows of a tall matrix
Scalar = float | jax.Array  # a number, which may be traced
Argnums = int | Sequence[int]  # which arguments of a loss make up the point
Loss = Callable[..., Any]  # a point among other arguments to a scalar, or (scalar, aux)
Gradient = Callable[..., Vector]  # a point, and other arguments, to the gradient there
Product = Callable[..., Vector]  # a point, a vector v, and other arguments, to H v
Solver = Callable[..., Any]  # secant pairs to the operator that is fitted to them
