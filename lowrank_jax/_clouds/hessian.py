"""The low-rank Hessian of a loss on a cloud of points."""

from collections.abc import Callable

from lowrank_jax._clouds.fit import fit
from lowrank_jax._clouds.pairs import SecantPairs, centered, secant_pairs
from lowrank_jax._core import checks
from lowrank_jax._core.types import Argnums, Loss, Rows, Solver


def secant_hessian(
    loss: Loss,
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    pairing: Callable[[Rows, Rows], SecantPairs] = centered,
    solver: Solver = fit,
    batch_size: int | None = None,
) -> Callable:
    """Fits the low-rank Hessian of a loss on a cloud of points, from its gradients alone.

    `secant_hessian(loss)(points)` takes the gradients at the n points with
    `jax.grad`, pairs them, and fits the symmetric operator H_r of rank at most 2n with
    `H_r (x_i - mean(x)) = g_i - mean(g)`; see `fit`. It is a plain function: compose it
    with `jit`, `grad`, and with `vmap` for a batch of clouds,
    `jax.jit(jax.vmap(secant_hessian(loss)))(clouds)`.

    Args:
      loss: a scalar function; it is differentiated once, in argument `argnums`.
      argnums: the argument that is a stack of points, or a tuple of such
        arguments; the others are shared by all points.
      has_aux: the loss returns `(value, aux)`.
      pairing: a function of `(points, grads)` to `SecantPairs`, such as `from_first`.
      solver: a function of pairs to the operator, such as `partial(fit, extrapolate=1)`; see `fit`.
      batch_size: how many gradients are computed at once, as in `jax.lax.map`; None
        computes all at once by `jax.vmap`. For a network's parameters on a CPU, 1 is
        often faster.

    Returns:
      A function of the loss's arguments, in their order, with n points in place of one.
      It returns a `SymmetricLowRank`, or `(SymmetricLowRank, aux)` with aux stacked over
      points.

    Raises:
      TypeError: for points that are not real floating-point arrays, or such a value of the loss.
      ValueError: for no points, leading axes that differ, or a loss that is not scalar.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda x: jnp.sum(jnp.cos(x))
      >>> points = 0.01 * jax.random.normal(jax.random.key(0), (4, 10))
      >>> h = secant_hessian(loss)(points)
      >>> h
      SymmetricLowRank(shape=(10, 10), factors=8, dtype=float32)
      >>> step = points[1] - points[0]
      >>> bool(jnp.allclose(h @ step, -step, rtol=1e-2, atol=1e-5))
      True
    """
    checks.function(solver, "solver")
    pairs_of_points = secant_pairs(
        loss, argnums, has_aux=has_aux, pairing=pairing, batch_size=batch_size
    )

    def hessian_of_points(*args):
        out = pairs_of_points(*args)
        pairs, aux = out if has_aux else (out, None)
        h = solver(pairs)
        return (h, aux) if has_aux else h

    return hessian_of_points
