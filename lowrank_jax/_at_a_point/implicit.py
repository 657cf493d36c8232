"""An eigenpair that is known, with derivatives by the implicit function theorem."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._core import scaling, tall, xla
from lowrank_jax._core.types import Rows, Vector

SOLVE = 1000  # products of one solve with conjugate gradients, at most


def differentiable_eigenpair(
    product: Callable[[Vector], Vector], value: jax.Array, vector: Vector, eps: float
) -> tuple[jax.Array, Vector]:
    """An eigenpair that is known, with the derivatives of `M w = lambda w`, `|w|` fixed.

    The Jacobian of the equations in (w, lambda) is symmetric, [[M - lambda, -w], [-w^T, 0]]. No
    eigenvalue of M is larger in magnitude: `I - M / lambda` is positive semidefinite.
    """
    value, vector = lax.stop_gradient((value, vector))
    size = tall.dot(vector, vector)
    inverse = scaling.reciprocal(value)
    unit = jax.tree.map(lambda leaf: (leaf / jnp.sqrt(size))[None], vector)

    def equations(pair):
        w, value = pair
        image = product(w)
        # A linear solve can be transposed only if all of its right side depends on the input.
        tie = 0 * tall.dot(vector, image)
        residual = jax.tree.map(lambda m, x: m - value * x + tie, image, w)
        return residual, (size - tall.dot(w, w)) / 2 + tie

    def bordered(linear, right):
        residual, scalar = right
        along = tall.dot(vector, residual) / size

        def operator(p):
            return tall.times(-inverse, linear((p, jnp.zeros_like(value)))[0])

        solution = tall.times(-inverse, _conjugate_gradients(operator, residual, unit, eps))
        step = jax.tree.map(lambda x, w: x - scalar / size * w, solution, vector)
        return step, -along

    vector, value = lax.custom_root(
        equations,
        (vector, value),
        lambda _, guess: guess,
        lambda linear, right: lax.custom_linear_solve(linear, right, bordered, symmetric=True),
    )
    return value, vector


def _conjugate_gradients(
    operator: Callable[[Vector], Vector], b: Vector, null: Rows, eps: float
) -> Vector:
    """The solution of `B x = P b` for P that takes out the row `null`; eigenvalues in [0, 2].

    It is orthogonal to `null`. NaN where P b has parts along other eigenvalues of B below
    about sqrt(eps); what is left of b by rounding is taken for 0.
    """
    scale = scaling.power_of_two(scaling.norm(b))
    b = tall.times(1 / scale, b)
    noise = (16 * eps) ** 2 * tall.dot(b, b)
    b = tall.project_out(tall.project_out(b, null), null)
    b = tall.times(jnp.where(tall.dot(b, b) <= noise, 0, 1).astype(noise.dtype), b)
    bb = tall.dot(b, b)

    def step(state):
        x, r, p, rr, _, count = state
        bp = operator(p)
        bend = tall.dot(p, bp)
        solvable = bend > eps**0.5 * tall.dot(p, p)
        length = jnp.where(solvable, rr * scaling.reciprocal(bend), 0)
        x, r = tall.axpy(x, length, p), tall.project_out(tall.axpy(r, -length, bp), null)
        new = tall.dot(r, r)
        return x, r, tall.axpy(r, new / rr, p), new, solvable, count + 1

    def unfinished(state):
        *_, rr, solvable, count = state
        return (rr > eps**2 * bb) & solvable & (count < SOLVE)

    zero = jax.tree.map(jnp.zeros_like, b)
    first = (zero, b, b, bb, *xla.vary_like((jnp.array(True), jnp.zeros((), jnp.int32)), bb))
    x, _, _, rr, _, _ = lax.while_loop(unfinished, step, first)
    return tall.times(jnp.where(rr <= eps * bb, scale, jnp.nan), x)
