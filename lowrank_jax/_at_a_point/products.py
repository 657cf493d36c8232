"""Products of a Hessian with vectors, `v -> H v`, straight from the loss.

Each function here takes a loss and returns a function of a point x first, a vector v of its
structure next, and then the loss's other arguments in their order: `hvp(loss, 1)(x, v, w)`
for a `loss(w, x)`. Called where nothing is traced, it is compiled once for as long as the
loss lives, see `programs.compiled`.
"""

from collections.abc import Callable

import jax

from lowrank_jax._core import checks, losses, programs, structure, xla
from lowrank_jax._core.types import Argnums, Loss, Product, Vector


def hvp(loss: Loss, argnums: Argnums = 0) -> Product:
    """Makes exact Hessian-vector products, `H v = d/dt grad f(x + t v)` at t = 0.

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
    return programs.compiled(_hvp, (loss,), losses.hashable(argnums))


def _hvp(loss, argnums):
    def product(x, v, *args):
        x, v = point_and_vector(x, v, "v")
        return jax.jvp(losses.gradient(loss, argnums, args), (x,), (v,))[1]

    return product


def gauss_newton_product(model: Callable, loss: Loss) -> Product:
    """Makes products with the generalised Gauss-Newton matrix, `J^T H_out J v`.

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
    checks.function(model, "model")
    return programs.compiled(_gauss_newton_product, (model, loss))


def _gauss_newton_product(model, loss):
    def product(x, v, inputs, targets):
        x, v = point_and_vector(x, v, "v")
        outputs, push = jax.linearize(
            lambda y: checks.vector(model(y, inputs), "model(x, inputs)"), x
        )
        pull = jax.linear_transpose(push, x)
        in_outputs = losses.gradient(loss, 0, (targets,))
        return pull(jax.jvp(in_outputs, (outputs,), (push(v),))[1])[0]

    return product


def second_derivative(loss: Loss, argnums: Argnums = 0) -> Callable[..., jax.Array]:
    """Makes the second derivative a bilinear form, `d^2/dt ds f(x + t h + s k)` = <h, H k>.

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
    return programs.compiled(_second_derivative, (loss,), losses.hashable(argnums))


def _second_derivative(loss, argnums):
    def form(x, h, k, *args):
        x, h = point_and_vector(x, h, "h")
        x, k = point_and_vector(x, k, "k")
        f = losses.at(loss, argnums, args)
        return jax.jvp(lambda y: jax.jvp(f, (y,), (h,))[1], (x,), (k,))[1]

    return form


def point_and_vector(x: Vector, v: Vector, name: str) -> tuple[Vector, Vector]:
    x, v = checks.vector(x, "x"), checks.vector(v, name)
    checks.like(v, name, x, "x")
    return xla.vary_like((x, structure.cast_like(v, x)), x, v)
