"""The leading singular triplet and the top eigenpair, with derivatives by the implicit function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax import _checks, _losses, _rows
from lowrank_jax._spectral import eigh, product, reciprocal, symmetrize
from lowrank_jax.rectangular import LowRank

BASIS = 16  # rows of the Lanczos basis
CYCLES = 100  # at most, of BASIS / 2 products each
SOLVE = 1000  # products of one solve with conjugate gradients, at most


def singular_triplet(a: Any, *, like: Any = None) -> tuple[jax.Array, Any, Any]:
    """The leading singular triplet of A, `A v = sigma u`, `A^T u = sigma v`, unit u and v.

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
    a = _checks.vector(a, "a")
    if a.ndim != 2 or not a.size:
        raise ValueError(f"a must be a matrix with entries, got shape {a.shape}")
    return _triplet_of_matrix(a)


def top_eigenpair(loss: Callable, argnums: _losses.Argnums = 0) -> Callable:
    """The eigenvalue of largest magnitude of a loss's Hessian, and its unit eigenvector.

    Found by thick-restart Lanczos with exact Hessian-vector products (forward over reverse),
    as in `singular_triplet`: the error e is the residual `H w - lambda w` in norm, or by how
    much the eigenvalue at the other end of the spectrum, whose residual adds to it,
    could exceed |lambda|, if that is more; both relative to |lambda|.

    The derivatives, in x and in the loss's other arguments, are those of `H w = lambda w`,

        d lambda = w^T dH w,    (lambda I - H) dw = dH w - d lambda w,

    the latter on the complement of w. Those of w are NaN where another eigenvalue is within about
    sqrt(eps) |lambda| of lambda; -lambda may be an eigenvalue.

    Args:
      loss: a scalar function that can be differentiated three times for first derivatives.
      argnums: the argument that is x, or a tuple of such arguments.

    Returns:
      A function of the loss's arguments, in their order, and of `key` (by keyword), the random key
      of the start. It returns `(eigenvalue, eigenvector)`, the latter of x's structure; its
      entry that is largest in magnitude is positive. Use it under `jax.jit`.

    Raises:
      TypeError: for an x that is not real floating-point arrays, or such a value of the loss.
      ValueError: for an x without entries, or a loss that is not scalar.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda x: x[0] ** 2 - 3 * x[1] ** 2
      >>> eigenvalue, eigenvector = top_eigenpair(loss)(jnp.ones(2), key=jax.random.key(0))
      >>> round(float(eigenvalue), 4), bool(jnp.allclose(eigenvector[1], 1.0))
      (-6.0, True)
    """

    def pair_at(*args, key):
        x, rest = _losses.split(argnums, args)
        x = _checks.vector(x, "x")
        _entries(x, "x")
        _checks.key(key)
        start = _unit_vector(key, x)
        gradient = _losses.gradient(loss, argnums, rest)

        def hvp(v):
            return _rows.widen(jax.jvp(gradient, (x,), (_rows.cast_like(v, x),))[1])

        eps = _rows.resolution(x)
        value, vector = _dominant(hvp, start, eps)
        value, vector = _root(hvp, value, _signed(vector, vector), eps)
        return value, _rows.cast_like(vector, x)

    return pair_at


@jax.jit
def _triplet_of_matrix(a):
    wide = _rows.widen(a)
    like = jnp.zeros(a.shape[1], wide.dtype)
    sigma, u, v = _triplet(lambda x: product(wide, x), like)
    return sigma, u.astype(a.dtype), v.astype(a.dtype)


@jax.jit
def _triplet_of_operator(a):
    return _triplet(a.mv, _checked_pattern(_rows.row(a.right), "a.right"))


def _triplet(a, like):
    image, push = jax.linearize(lambda v: _checks.vector(a(v), "a(v)"), like)
    pull = jax.linear_transpose(push, like)
    dtype = _rows.compute_dtype((like, image))
    entries = _entries(image, "a(v)")

    def wide(tree):
        return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)

    def forward(v):
        return wide(push(_rows.cast_like(v, like)))

    def backward(u):
        return wide(pull(_rows.cast_like(u, image))[0])

    start = wide(_unit_vector(jax.random.key(0), like))

    def swap(pair):
        return forward(pair[1]), backward(pair[0])

    unit = 1 / _rows.power_of_two(_rows.norm(forward(start)))
    eps = max(_rows.resolution(like), _rows.resolution(image))
    _, v = _dominant(
        lambda v: _rows.times(unit, backward(_rows.times(unit, forward(v)))), start, eps
    )
    u = lax.stop_gradient(forward(v))
    sigma = _rows.norm(u)
    inverse = reciprocal(sigma)  # where A v = 0, u is any unit vector
    u = jax.tree.map(lambda x: jnp.where(sigma == 0, entries**-0.5, x * inverse), u)
    sigma, (u, v) = _root(swap, sigma, _signed((u, v), v), eps)
    return sigma, _rows.cast_like(u, image), _rows.cast_like(v, like)


class _Search(NamedTuple):
    """Orthonormal rows, their images, and the unit vector that comes next; `filled` rows are set.

    `error` is that of the last Rayleigh-Ritz step, `best` the least that counted as a fall, `stale`
    the cycles since. After a cycle the first row is the Ritz vector and `value` its value.
    """

    basis: Any
    images: Any
    ahead: Any
    filled: jax.Array
    value: jax.Array
    error: jax.Array
    best: jax.Array
    stale: jax.Array
    cycle: jax.Array


def _dominant(product: Callable, start: Any, eps: float) -> tuple[jax.Array, Any]:
    """The eigenpair of largest magnitude of a symmetric operator, constants; NaN if not found."""
    pure, closed = jax.closure_convert(product, start)
    start, closed = lax.stop_gradient((start, closed))
    # The linear part alone: what does not depend on the vector is computed once.
    product = jax.linearize(lambda v: pure(v, *closed), start)[1]
    size = _rows.size(start)
    count = min(BASIS, size)
    cycles = 1 if count == size else CYCLES  # the whole space: nothing to restart for
    root, noise_size = 10 * size**0.5, 64 * eps / size**0.5

    def extend(search):
        image = product(search.ahead)
        basis = _set_row(search.basis, search.filled, search.ahead)
        images = _set_row(search.images, search.filled, image)
        number = (search.cycle * BASIS + search.filled + 1).astype(search.value.dtype)
        noise = jax.tree.map(lambda x: noise_size * jnp.cos(number * root * x), start)
        ahead = _next_row(image, basis, noise)
        return search._replace(basis=basis, images=images, ahead=ahead, filled=search.filled + 1)

    def cycle(search):
        return _restarted(lax.while_loop(lambda s: s.filled < count, extend, search))

    def unfinished(search):
        floor = (search.error < eps**0.5) & (search.stale >= 2)
        return (search.error > 16 * eps) & ~floor & (search.cycle < cycles)

    rows = _rows.zeros(start, count)
    zero, large = jnp.zeros_like(_rows.norm(start)), jnp.full_like(_rows.norm(start), jnp.inf)
    none = jnp.zeros((), jnp.int32)
    first = _Search(rows, rows, start, none, zero, large, large, none, none)
    last = lax.while_loop(unfinished, cycle, first)
    vector = jax.tree.map(lambda leaf: leaf[0], last.basis)
    flag = jnp.where(last.error < eps**0.5, 1, jnp.nan).astype(last.value.dtype)
    length = jnp.sqrt(_rows.dot(vector, vector))
    return flag * last.value, _rows.times(flag / length, vector)


def _restarted(search: _Search) -> _Search:
    """Rayleigh-Ritz in a full basis; the half of largest magnitude is kept, with its images."""
    values, vectors = eigh(symmetrize(_rows.gram(search.basis, search.images)))
    order = jnp.argsort(-jnp.abs(values))
    count = len(values)
    half = max(count // 2, 1)

    ends = jnp.stack([order[0], jnp.where(order[0] == 0, count - 1, 0)])
    ritz = _rows.combine(vectors[:, ends].T, search.basis)
    image = _rows.combine(vectors[:, ends].T, search.images)
    top, other = jnp.abs(values[ends])
    residual = _rows.norms(jax.tree.map(jnp.subtract, image, _rows.scale(values[ends], ritz)))
    error = jnp.maximum(residual[0], other + residual[1] - top) * reciprocal(top)

    kept = jnp.where((jnp.arange(count) < half)[:, None], vectors[:, order].T, 0)
    falls = error < 0.9 * search.best
    return search._replace(
        basis=_rows.combine(kept, search.basis),
        images=_rows.combine(kept, search.images),
        filled=jnp.full_like(search.filled, half),
        value=values[order[0]],
        error=error,
        best=jnp.where(falls, error, search.best),
        stale=jnp.where(falls, 0, search.stale + 1),
        cycle=search.cycle + 1,
    )


def _next_row(image: Any, basis: Any, noise: Any) -> Any:
    """The unit vector of what an image has outside the basis; where nothing, that of the noise.

    The noise is above the rounding of the first projection, which may lie within the basis.
    """
    v = jax.tree.map(lambda x, y: x + y, _rows.times(reciprocal(_rows.norm(image)), image), noise)
    for _ in range(2):
        v = _rows.reject(v, basis)
        v = _rows.times(reciprocal(jnp.sqrt(_rows.dot(v, v))), v)
    return v


def _root(product: Callable, value: jax.Array, vector: Any, eps: float) -> tuple[jax.Array, Any]:
    """An eigenpair that is known, with the derivatives of `M w = lambda w`, `|w|` fixed.

    The Jacobian of the equations in (w, lambda) is symmetric, [[M - lambda, -w], [-w^T, 0]]. No
    eigenvalue of M is larger in magnitude: `I - M / lambda` is positive semidefinite.
    """
    value, vector = lax.stop_gradient((value, vector))
    size = _rows.dot(vector, vector)
    inverse = reciprocal(value)
    unit = jax.tree.map(lambda leaf: (leaf / jnp.sqrt(size))[None], vector)

    def equations(pair):
        w, value = pair
        image = product(w)
        # A linear solve can be transposed only if all of its right side depends on the input.
        tie = 0 * _rows.dot(vector, image)
        residual = jax.tree.map(lambda m, x: m - value * x + tie, image, w)
        return residual, (size - _rows.dot(w, w)) / 2 + tie

    def bordered(linear, right):
        residual, scalar = right
        along = _rows.dot(vector, residual) / size

        def operator(p):
            return _rows.times(-inverse, linear((p, jnp.zeros_like(value)))[0])

        solution = _rows.times(-inverse, _conjugate_gradients(operator, residual, unit, eps))
        step = jax.tree.map(lambda x, w: x - scalar / size * w, solution, vector)
        return step, -along

    vector, value = lax.custom_root(
        equations,
        (vector, value),
        lambda _, guess: guess,
        lambda linear, right: lax.custom_linear_solve(linear, right, bordered, symmetric=True),
    )
    return value, vector


def _conjugate_gradients(operator: Callable, b: Any, null: Any, eps: float) -> Any:
    """The solution of `B x = P b` for P that takes out the row `null`; eigenvalues in [0, 2].

    It is orthogonal to `null`. NaN where P b has parts along other eigenvalues of B below
    about sqrt(eps); what is left of b by rounding is taken for 0.
    """
    scale = _rows.power_of_two(_rows.norm(b))
    b = _rows.times(1 / scale, b)
    noise = (16 * eps) ** 2 * _rows.dot(b, b)
    b = _rows.reject(_rows.reject(b, null), null)
    b = _rows.times(jnp.where(_rows.dot(b, b) <= noise, 0, 1).astype(noise.dtype), b)
    bb = _rows.dot(b, b)

    def step(state):
        x, r, p, rr, _, count = state
        bp = operator(p)
        bend = _rows.dot(p, bp)
        solvable = bend > eps**0.5 * _rows.dot(p, p)
        length = jnp.where(solvable, rr * reciprocal(bend), 0)
        x, r = _rows.plus(x, length, p), _rows.reject(_rows.plus(r, -length, bp), null)
        new = _rows.dot(r, r)
        return x, r, _rows.plus(r, new / rr, p), new, solvable, count + 1

    def unfinished(state):
        *_, rr, solvable, count = state
        return (rr > eps**2 * bb) & solvable & (count < SOLVE)

    zero = jax.tree.map(jnp.zeros_like, b)
    first = (zero, b, b, bb, jnp.array(True), jnp.zeros((), jnp.int32))
    x, _, _, rr, _, _ = lax.while_loop(unfinished, step, first)
    return _rows.times(jnp.where(rr <= eps * bb, scale, jnp.nan), x)


def _checked_pattern(tree, name):
    """Zeros of the shapes and dtypes of arrays or of their descriptions, with entries."""

    def zeros(leaf):
        described = isinstance(leaf, jax.ShapeDtypeStruct)
        return jnp.zeros(leaf.shape, leaf.dtype) if described else leaf

    like = jax.tree.map(jnp.zeros_like, _checks.vector(jax.tree.map(zeros, tree), name))
    _entries(like, name)
    return like


def _entries(v, name):
    """How many entries a vector has, at least one."""
    count = _rows.size(v)
    if not count:
        raise ValueError(f"{name} must have at least one entry, got {jax.tree.map(jnp.shape, v)}")
    return count


def _unit_vector(key, like):
    drawn = _rows.normal(key, _rows.widen(like))
    return _rows.times(1 / _rows.norm(drawn), drawn)


def _signed(vector, by):
    """The vector, or minus it where the entry of `by` of largest magnitude is negative."""
    flat = [leaf.ravel() for leaf in jax.tree.leaves(by) if leaf.size]
    entries = jnp.stack([leaf[jnp.argmax(jnp.abs(leaf))] for leaf in flat])
    entry = entries[jnp.argmax(jnp.abs(entries))]
    return _rows.times(jnp.where(entry < 0, -1, 1).astype(entry.dtype), vector)


def _set_row(rows, i, v):
    return jax.tree.map(lambda x, leaf: x.at[i].set(leaf), rows, v)
