"""The leading singular triplet, differentiable."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._at_a_point.implicit import differentiable_eigenpair
from lowrank_jax._at_a_point.lanczos import (
    count_entries,
    dominant_eigenpair,
    random_unit_vector,
    signed,
)
from lowrank_jax._core import checks, scaling, structure, tall, xla
from lowrank_jax._core.spectral import product
from lowrank_jax._core.types import Vector
from lowrank_jax._operators.rectangular import LowRank


def singular_triplet(a: Any, *, like: Vector | None = None) -> tuple[jax.Array, Vector, Vector]:
    """Finds the leading singular triplet of A, `A v = sigma u`, `A^T u = sigma v`, unit u and v.

    Found by thick-restart Lanczos on `v -> A^T A v` from a fixed random start, the normal vector
    of `jax.random.key(0)`. With e for the residual `A^T A v - sigma^2 v` in norm, relative to
    sigma^2, it ends where e <= 16 eps; or e < sqrt(eps) and has not fallen by a tenth in
    two cycles of 8 products: the rounding of the products; or after 100 cycles. If e is
    above sqrt(eps) then, the result is NaN. So it is for an A that is not finite.

    The search is not differentiated. The derivatives, of every order and in both modes, are
    those of the equations above,

        d sigma = u^T dA v,    K [du; dv] = [dA v - d sigma u; dA^T u - d sigma v],
        K = [[sigma I, -A], [-A^T, sigma I]],

    K on the complement of its null vector [u; v], by conjugate gradients. That of sigma is
    finite also where u and v are not unique (there it is that of the u and v returned). Those of u
    and v are NaN where a singular value is within about sqrt(eps) sigma of sigma
    and they depend on its vectors. The other singular values may repeat, or vanish.

    Args:
      a: a matrix (p, m), a `LowRank`, or a linear function of one vector, an array or
        pytree; what it closes over is differentiated. Compile what calls it with a function.
      like: for a function only, a vector of its input space, or its `jax.ShapeDtypeStruct`s.

    Returns:
      `(sigma, u, v)`: sigma >= 0; u a vector of the output space, v of the input
      space. The entry of v that is largest in magnitude is positive. For A = 0, u and v are
      some unit vectors.

    Raises:
      TypeError: for arrays that are not real floating-point ones, a function
        without `like`, or a matrix with it.
      ValueError: for an array that is not a matrix, or without entries.

    Source: Wu and Simon, Thick-restart Lanczos method for large symmetric eigenvalue
    problems, SIAM J. Matrix Anal. Appl. 22 (2000).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> a = jnp.array([[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]])
      >>> sigma, u, v = singular_triplet(a)
      >>> round(float(sigma), 4), bool(jnp.allclose(v, jnp.array([0.0, 1.0]), atol=1e-5))
      (4.0, True)
      >>> slope = jax.grad(lambda a: singular_triplet(a)[0])(a)  # u v^T
      >>> bool(jnp.allclose(slope, jnp.outer(u, v), atol=1e-5))
      True
    """
    if not isinstance(a, LowRank) and callable(a):
        if like is None:
            raise TypeError("like must be a vector of the input space where a is a function")
        return _triplet(a, _checked_pattern(like, "like"))
    if like is not None:
        raise TypeError(f"like goes with a function a alone, got a {type(a).__name__} for a")
    if isinstance(a, LowRank):
        return _triplet_of_operator(a)
    if not jax.tree_util.all_leaves([a]):
        raise TypeError(f"a must be a matrix, a LowRank or a function, got a {type(a).__name__}")
    a = checks.vector(a, "a")
    if a.ndim != 2 or not a.size:
        raise ValueError(f"a must be a matrix with entries, got shape {a.shape}")
    return _triplet_of_matrix(a)


@jax.jit
def _triplet_of_matrix(a):
    wide = structure.widen(a)
    like = xla.vary_like(jnp.zeros(a.shape[1], wide.dtype), wide)
    sigma, u, v = _triplet(lambda x: product(wide, x), like)
    return sigma, u.astype(a.dtype), v.astype(a.dtype)


@jax.jit
def _triplet_of_operator(a):
    return _triplet(a.mv, xla.vary_like(_checked_pattern(structure.row(a.right), "a.right"), a))


def _triplet(a, like):
    image, push = jax.linearize(lambda v: checks.vector(a(v), "a(v)"), like)
    pull = jax.linear_transpose(push, like)
    dtype = structure.compute_dtype((like, image))
    entries = count_entries(image, "a(v)")

    def wide(tree):
        return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)

    def forward(v):
        return wide(push(structure.cast_like(v, like)))

    def backward(u):
        return wide(pull(structure.cast_like(u, image))[0])

    start = wide(random_unit_vector(jax.random.key(0), like))

    def swap(pair):
        return forward(pair[1]), backward(pair[0])

    unit = 1 / scaling.power_of_two(scaling.norm(forward(start)))
    eps = max(structure.resolution(like), structure.resolution(image))
    v = dominant_eigenpair(
        lambda v: tall.times(unit, backward(tall.times(unit, forward(v)))), start, eps
    ).vector
    u = lax.stop_gradient(forward(v))
    sigma = scaling.norm(u)
    inverse = scaling.reciprocal(sigma)  # where A v = 0, u is any unit vector
    u = jax.tree.map(lambda x: jnp.where(sigma == 0, entries**-0.5, x * inverse), u)
    sigma, (u, v) = differentiable_eigenpair(swap, sigma, signed((u, v), v), eps)
    return sigma, structure.cast_like(u, image), structure.cast_like(v, like)


def _checked_pattern(tree, name):
    """Zeros of the shapes and dtypes of arrays or of their descriptions, with entries."""

    def zeros(leaf):
        described = isinstance(leaf, jax.ShapeDtypeStruct)
        return jnp.zeros(leaf.shape, leaf.dtype) if described else leaf

    like = jax.tree.map(jnp.zeros_like, checks.vector(jax.tree.map(zeros, tree), name))
    count_entries(like, name)
    return like
