"""Products of a Hessian with vectors, `v -> H v`, straight from the loss.

Each function here takes a loss and returns a function of a point x, a vector of
its structure, and the loss's other arguments in their order.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax import _checks, _frames, _losses


def hvp(loss: Callable, argnums: _losses.Argnums = 0) -> Callable:
    """Exact Hessian-vector products, `H v = d/dt grad f(x + t v)` at t = 0.

    Forward over reverse differentiation: about two gradients of time, and the
    loss must have both modes.

    Args:
      loss: a scalar function, differentiated in argument `argnums`.
      argnums: that argument, or a tuple; x and v are then tuples.

    Returns:
      `product(x, v, *args)`: H v, of the structure, shapes and dtypes of x; v is taken in those.

    Raises:
      TypeError: for leaves that are not real floating-point arrays, or such a value of the loss.
      ValueError: where v does not fit x, or the loss is not scalar.

    Source: Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6 (1994).

    Example:
      >>> import jax.numpy as jnp
      >>> hvp(lambda x: jnp.sum(x**4) / 12)(jnp.array([1.0, 2.0]), jnp.ones(2))
      Array([1., 4.], dtype=float32)
    """

    def product(x, v, *args):
        x, v = _point_and_vector(x, v, "v")
        return jax.jvp(_losses.gradient(loss, argnums, args), (x,), (v,))[1]

    return product


def gradient_difference(
    loss: Callable,
    argnums: _losses.Argnums = 0,
    *,
    step: float | jax.Array | None = None,
    central: bool = False,
) -> Callable:
    """Hessian-vector products from gradients alone, `H v ~ (g(x + h v) - g(x)) / h`.

    Two gradients and no second derivative: for losses whose Hessian-vector
    product does not exist or costs too much. With `central`, the difference is
    `(g(x + h v) - g(x - h v)) / 2h`.

    With |x| for the scale on which the gradient changes, a step of length h has the
    error h / |x| of a one-sided difference, (h / |x|)^2 of a central one, beside
    eps |x| / h of the gradients' rounding. The default, `sqrt(eps) |x|` or `eps^(1/3) |x|`
    (|x| taken as 1 at the origin), balances the two. It is a heuristic.
    The difference is divided by the step that was really taken, `(x + h v) - x`.

    Args:
      loss: a scalar function, differentiated once, in argument `argnums`.
      argnums: that argument, or a tuple; x and v are then tuples.
      step: the length |h v| of the step instead of the default, for points whose
        norm says nothing of their scale (a cluster far from the origin).
      central: take the difference on both sides: error O(h^2) instead of O(h).

    Returns:
      `product(x, v, *args)`: nearly H v, of the structure, shapes and dtypes of x; 0 at v = 0.

    Raises:
      TypeError: for leaves that are not real floating-point arrays, or such a value of the loss.
      ValueError: where v does not fit x, the loss is not scalar, or `step` is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> product = gradient_difference(lambda x: jnp.sum(x**2))
      >>> bool(jnp.allclose(product(jnp.ones(3), jnp.arange(3.0)), 2 * jnp.arange(3.0), rtol=1e-3))
      True
    """
    if step is not None:
        _checks.between(step, "step", math.ulp(0.0), math.inf)

    def product(x, v, *args):
        x, v = _point_and_vector(x, v, "v")
        gradient = _losses.gradient(loss, argnums, args)
        size = _frames.norm(v)
        unit = _times(1 / jnp.where(size == 0, 1, size), v)
        h = _default_step(x, central) if step is None else jnp.asarray(step, size.dtype)
        ahead = _moved(x, h, unit)
        behind = _moved(x, -h, unit) if central else x
        taken = _dot(jax.tree.map(jnp.subtract, ahead, behind), unit)
        slope = jnp.where(size == 0, 0, size / jnp.where(size == 0, 1, taken))
        grad_diff = _moved(gradient(ahead), -jnp.ones_like(slope), gradient(behind))
        return _times(slope, grad_diff)

    return product


def second_derivative(loss: Callable, argnums: _losses.Argnums = 0) -> Callable:
    """The second derivative as a bilinear form, `d^2/dt ds f(x + t h + s k)` = <h, H k>.

    Two forward differentiations: about four evaluations of the loss, no gradient.

    Args:
      loss: a scalar function, differentiated in argument `argnums`.
      argnums: that argument, or a tuple; x, h and k are then tuples.

    Returns:
      `form(x, h, k, *args)`: a scalar, symmetric and linear in h and k.

    Raises:
      TypeError: for leaves that are not real floating-point arrays, or such a value of the loss.
      ValueError: where h or k do not fit x, or the loss is not scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda x: x[0] * x[1]
      >>> second_derivative(loss)(jnp.ones(2), jnp.eye(2)[0], jnp.eye(2)[1])
      Array(1., dtype=float32)
    """

    def form(x, h, k, *args):
        x, h = _point_and_vector(x, h, "h")
        x, k = _point_and_vector(x, k, "k")
        f = _losses.at(loss, argnums, args)
        return jax.jvp(lambda y: jax.jvp(f, (y,), (h,))[1], (x,), (k,))[1]

    return form


def _point_and_vector(x: Any, v: Any, name: str) -> tuple[Any, Any]:
    x, v = _checks.vector(x, "x"), _checks.vector(v, name)
    _checks.like(v, name, x, "x")
    return x, _frames.cast_like(v, x)


def _default_step(x, central):
    size = lax.stop_gradient(_frames.norm(x))
    return _frames.resolution(x) ** (1 / 3 if central else 1 / 2) * jnp.where(size == 0, 1, size)


def _times(t, v):
    return jax.tree.map(lambda a: (t * a.astype(t.dtype)).astype(a.dtype), v)


def _moved(x, t, v):
    """X + t v, computed in the dtype of t."""

    def moved(a, b):
        return (a.astype(t.dtype) + t * b.astype(t.dtype)).astype(a.dtype)

    return jax.tree.map(moved, x, v)


def _dot(u, v):
    return _frames.gram(jax.tree.map(lambda a: a[None], u), v)[0]
