"""Differences of gradients, `(g(x + h v) - g(x)) / h`, and the length of their steps."""

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._at_a_point.products import point_and_vector
from lowrank_jax._core import checks, losses, scaling, structure, tall
from lowrank_jax._core.types import Argnums, Gradient, Loss, Product, Scalar, Vector


def gradient_difference(
    loss: Loss,
    argnums: Argnums = 0,
    *,
    step: Scalar | None = None,
    central: bool = False,
) -> Product:
    """Makes Hessian-vector products from gradients alone, `H v ~ (g(x + h v) - g(x)) / h`.

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
        checks.positive(step, "step")
    checks.flag(central, "central")

    def product(x, v, *args):
        x, v = point_and_vector(x, v, "v")
        gradient = losses.gradient(loss, argnums, args)
        h = step_length(x, step, central)
        if not central:
            return difference(gradient, x, gradient(x), v, h)
        unit, size = _direction(v)
        ahead, behind = tall.axpy(x, h, unit), tall.axpy(x, -h, unit)
        return _quotient(ahead, gradient(ahead), behind, gradient(behind), unit, size)

    return product


def step_length(x: Vector, step: Scalar | None = None, central: bool = False) -> jax.Array:
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
        h = jnp.asarray(step, structure.compute_dtype(x))
        return jnp.where((h > 0) & (h < jnp.inf), h, jnp.nan)
    size = lax.stop_gradient(scaling.norm(x))
    return structure.resolution(x) ** (1 / 3 if central else 1 / 2) * jnp.where(size == 0, 1, size)


def difference(gradient: Gradient, x: Vector, grad: Vector, v: Vector, h: jax.Array) -> Vector:
    """`(g(x + h u) - g(x)) |v| / h` for `u = v / |v|` and g(x) given: one gradient; 0 at v = 0."""
    unit, size = _direction(v)
    ahead = tall.axpy(x, h, unit)
    return _quotient(ahead, gradient(ahead), x, grad, unit, size)


def _direction(v):
    size = scaling.norm(v)
    return tall.times(1 / jnp.where(size == 0, 1, size), v), size


def _quotient(ahead, grad_ahead, behind, grad_behind, unit, size):
    """The difference of two gradients, over the step between the points, times |v|."""
    taken = tall.dot(jax.tree.map(jnp.subtract, ahead, behind), unit)
    slope = jnp.where(size == 0, 0, size / jnp.where(size == 0, 1, taken))
    return tall.times(slope, tall.axpy(grad_ahead, -jnp.ones_like(slope), grad_behind))


def checked_gradient(grad_fn, x):
    """The gradient field, with errors for what does not fit x, in the dtypes of x."""

    def gradient(y):
        grad = checks.vector(grad_fn(y), "grad_fn(x)")
        checks.like(grad, "grad_fn(x)", x, "x")
        return structure.cast_like(grad, x)

    return gradient
