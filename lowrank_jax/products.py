"""Products of a Hessian with vectors, `v -> H v`, straight from the loss.

Each function here takes a loss and returns a function of a point x, a vector of
its structure, and the loss's other arguments in their order.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax import _checks, _losses, _rows


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

    The default step is `sqrt(eps) |x|`, or `eps^(1/3) |x|` for a central difference, with
    1 for |x| at the origin. It is a heuristic that takes |x| for the scale on which the
    gradient changes. The difference is divided by the step that was really taken,
    `(x + h v) - x`.

    Args:
      loss: a scalar function, differentiated once, in argument `argnums`.
      argnums: that argument, or a tuple; x and v are then tuples.
      step: the length |h v| of the step instead of the default, for points whose
        norm says nothing of their scale (a cluster far from the origin). A traced one
        that is not above 0 gives NaN, and so does one that x is too coarse for.
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
        _checks.positive(step, "step")
    _checks.flag(central, "central")

    def product(x, v, *args):
        x, v = _point_and_vector(x, v, "v")
        gradient = _losses.gradient(loss, argnums, args)
        h = step_length(x, step, central)
        if not central:
            return difference(gradient, x, gradient(x), v, h)
        unit, size = _direction(v)
        ahead, behind = _rows.plus(x, h, unit), _rows.plus(x, -h, unit)
        return _quotient(ahead, gradient(ahead), behind, gradient(behind), unit, size)

    return product


def gauss_newton_product(model: Callable, loss: Callable) -> Callable:
    """Products with the generalised Gauss-Newton matrix, `J^T H_out J v`.

    J is the Jacobian of the model's outputs in its parameters, H_out the Hessian of the
    loss in those outputs. It is the Hessian of `loss(model(x, inputs), targets)` without
    the model's second derivatives: positive semidefinite wherever the loss is convex in
    the outputs, and equal to the Hessian for a model that is linear in x.

    Args:
      model: `model(x, inputs)`, the outputs, a pytree.
      loss: `loss(outputs, targets)`, a scalar.

    Returns:
      `product(x, v, inputs, targets)`: of the structure, shapes and dtypes of x. One
      forward and one reverse derivative of the model, about the time of two gradients.

    Raises:
      TypeError: for leaves that are not real floating-point arrays, or such a value of the loss.
      ValueError: where v does not fit x, or the loss is not scalar.

    Source: Schraudolph, Fast curvature matrix-vector products for second-order gradient
    descent, Neural Computation 14 (2002).

    Example:
      >>> import jax.numpy as jnp
      >>> product = gauss_newton_product(lambda w, x: x @ w, lambda z, y: jnp.sum((z - y) ** 2))
      >>> inputs = jnp.array([[1.0, 2.0]])
      >>> product(jnp.zeros(2), jnp.array([1.0, 0.0]), inputs, jnp.ones(1))
      Array([2., 4.], dtype=float32)
    """
    _checks.function(model, "model")

    def product(x, v, inputs, targets):
        x, v = _point_and_vector(x, v, "v")
        outputs, push = jax.linearize(
            lambda y: _checks.vector(model(y, inputs), "model(x, inputs)"), x
        )
        pull = jax.linear_transpose(push, x)
        in_outputs = _losses.gradient(loss, 0, (targets,))
        return pull(jax.jvp(in_outputs, (outputs,), (push(v),))[1])[0]

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
    return x, _rows.cast_like(v, x)


def step_length(x: Any, step: Any = None, central: bool = False) -> jax.Array:
    """The length of a gradient difference's step at x: the one given, or a constant.

    The relative error of a one-sided difference is h |H'| / |H| of truncation and
    noise / (h |H|) of the gradients' rounding. |x| is the one scale that is known: let H
    change by as much as itself over |x|, and the gradient be rounded as that of a point
    within eps |x| of x is, by eps |H| |x|. Then h / |x| + eps |x| / h is least at
    sqrt(eps) |x|; for a central difference (h / |x|)^2 + eps |x| / h at eps^(1/3) |x|.
    A gradient that is larger than |H| |x|, by a factor c, has c times that noise: the best
    step is sqrt(c) times as long, and the error of this one sqrt(c) / 2 times the least.
    """
    if step is not None:
        h = jnp.asarray(step, _rows.compute_dtype(x))
        return jnp.where((h > 0) & (h < jnp.inf), h, jnp.nan)
    size = lax.stop_gradient(_rows.norm(x))
    return _rows.resolution(x) ** (1 / 3 if central else 1 / 2) * jnp.where(size == 0, 1, size)


def difference(gradient: Callable, x: Any, grad: Any, v: Any, h: Any) -> Any:
    """`(g(x + h u) - g(x)) |v| / h` for `u = v / |v|` and g(x) given: one gradient; 0 at v = 0."""
    unit, size = _direction(v)
    ahead = _rows.plus(x, h, unit)
    return _quotient(ahead, gradient(ahead), x, grad, unit, size)


def _direction(v):
    size = _rows.norm(v)
    return _rows.times(1 / jnp.where(size == 0, 1, size), v), size


def _quotient(ahead, grad_ahead, behind, grad_behind, unit, size):
    """The difference of two gradients, over the step between the points, times |v|."""
    taken = _rows.dot(jax.tree.map(jnp.subtract, ahead, behind), unit)
    slope = jnp.where(size == 0, 0, size / jnp.where(size == 0, 1, taken))
    return _rows.times(slope, _rows.plus(grad_ahead, -jnp.ones_like(slope), grad_behind))
