"""A point and a product in, secant pairs out: the library chooses the steps itself.

In each pass b steps are taken at once and measured, `y = H s`. The steps of the first
pass are random; those of a further pass are what the measurements of the pass before add
to the span of all steps so far. The pairs of p passes so belong to a block Krylov space,

    span(S) = span(X, H X, .. , H^(p-1) X),    X the b first steps,

which closes in on the eigenvectors of largest magnitude, and every measured pair is kept.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._clouds.pairs import SecantPairs
from lowrank_jax._core import checks, scaling, structure, tall, xla
from lowrank_jax._core.orthonormal import orthonormal
from lowrank_jax._core.types import Product, Rows, Vector


def probe_pairs(
    product: Product,
    probes: int,
    *,
    passes: int = 2,
    batch_size: int | None = None,
    start: Rows | None = None,
) -> Callable:
    """Measures secant pairs of a symmetric operator at a point, along probes chosen in passes.

    The `probes * passes` steps are orthonormal. In the first pass they are random (or span
    `start`); in a further one they are an orthonormal basis of what the products of the
    pass before add to the steps so far. Where those add fewer than `probes` directions, as
    for a multiple of the identity, random ones fill up. Once the steps span the whole
    space the rest of them are exactly zero, which no fit uses.

    Args:
      product: `product(x, v, *args)`, H v, symmetric and linear in v, with the structure
        and shapes of x; such as `hvp(loss)`, `gradient_difference(loss)` or
        `gauss_newton_product(model, loss)`.
      probes: how many steps are measured in a pass.
      passes: how many passes.
      batch_size: how many products of a pass are computed at once, as in `jax.lax.map`;
        None computes all at once by `jax.vmap`.
      start: directions of the first pass instead of random ones, a pytree like x whose
        leaves have a leading axis `probes`, such as the eigenvectors found before.
        Zero rows and rows that depend on others are replaced by random ones.

    Returns:
      A function of a point x, the product's other arguments, and the keyword `key`,
      one random key. It returns `SecantPairs` of `probes * passes` pairs. It differentiates in
      x and the arguments if the product does. Jit what calls it: the passes are a loop, which
      JAX compiles at every call outside `jit`.

    Raises:
      TypeError: for leaves that are not real floating-point arrays, or options of a wrong type.
      ValueError: for probes or passes below 1, or a start or products that do not fit x.

    Source: Musco and Musco, Randomized block Krylov methods for stronger and faster
    approximate singular value decomposition, NeurIPS 28 (2015).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> product = lambda x, v: jnp.arange(6.0) * v
      >>> pairs = probe_pairs(product, 2, passes=2)(jnp.zeros(6), key=jax.random.key(0))
      >>> pairs.steps.shape
      (4, 6)
      >>> bool(jnp.allclose(pairs.steps @ pairs.steps.T, jnp.eye(4), atol=1e-5))
      True
    """
    checks.function(product, "product")
    checks.count(probes, "probes", 1)
    checks.count(passes, "passes", 1)
    if batch_size is not None:
        checks.count(batch_size, "batch_size", 1)

    def pairs_at(x, *args, key):
        x = checks.point(x, "x")
        checks.key(key)

        def measure(v):
            y = checks.vector(product(x, v, *args), "product(x, v)")
            checks.like(y, "product(x, v)", x, "x")
            return structure.cast_like(y, x)

        def body(state, at_pass):
            return _advance(lambda v: xla.map_rows(measure, v, batch_size), x, state, *at_pass)

        offsets = probes * jnp.arange(passes)
        state = _begin(x, probes, passes, start)
        (steps, _), grad_diffs = lax.scan(body, state, (offsets, jax.random.split(key, passes)))
        grad_diffs = jax.tree.map(lambda y, s: y.reshape(s.shape), grad_diffs, steps)
        return SecantPairs(*(structure.unpack(rows, x) for rows in (steps, grad_diffs)))

    return pairs_at


def pairs_on_host(
    measure: Callable[[Rows], Rows],
    x: Vector,
    probes: int,
    passes: int,
    start: Rows | None,
    key: jax.Array,
) -> SecantPairs:
    """The pairs of `probe_pairs`, in a loop of Python: `measure` maps a stack of steps to products.

    Raises:
      TypeError, ValueError: as `probe_pairs` does.
    """
    state, measured = _begin(x, probes, passes, start), []
    for i, subkey in enumerate(jax.random.split(key, passes)):
        state, grad_diffs = _advance(measure, x, state, probes * i, subkey)
        measured.append(grad_diffs)
    grad_diffs = jax.tree.map(lambda *y: jnp.concatenate(y), *measured)
    return SecantPairs(*(structure.unpack(rows, x) for rows in (state[0], grad_diffs)))


def _begin(x, probes, passes, start):
    """No steps so far, and the directions of the first pass; zero rows stand for random ones.

    Both packed, as all rows here are.
    """
    steps = structure.pack(structure.zeros(x, probes * passes))
    if start is None:
        return steps, structure.pack(structure.zeros(x, probes))
    start, count = checks.rows(start, "start")
    if count != probes:
        raise ValueError(f"start must have a leading axis of probes, {probes}, got {count}")
    checks.like(start, "start", x, "x", lead=1)
    return steps, structure.pack(structure.cast_like(start, x))


def _advance(measure, x, state, offset, key):
    """One pass: steps along the rows are measured and stored, their products are the next rows."""
    steps, rows = state
    probes = _new_directions(rows, steps, key)
    grad_diffs = structure.pack(measure(structure.unpack(probes, x)))
    steps = jax.tree.map(
        lambda old, new: lax.dynamic_update_slice_in_dim(old, new, offset, 0), steps, probes
    )
    return (steps, grad_diffs), grad_diffs


@jax.jit
def _new_directions(rows: Rows, steps: Rows, key: jax.Array) -> Rows:
    """Orthonormal rows: what the rows add to the span of the steps, and random ones for the rest.

    Projected and orthonormalised, and both again: a row that the first projection leaves
    little of keeps rounding errors along the steps, which its normalisation magnifies; the
    second time there is nothing left to magnify. A row that adds nothing, or nothing but
    rounding, is zero after the first round and random in the second. Then all rows are
    orthonormal or random, and one of which less than 8 sqrt(eps) is left has found
    no room: of random rows in a space that is full, rounding is left.
    """
    eps = structure.resolution(steps)
    rows, known = structure.widen((rows, steps))
    dtype = structure.compute_dtype(rows)
    no_room = max(32 * eps, 8 * float(jnp.finfo(dtype).eps) ** 0.5)

    def once(rows, at_round):
        round_key, nothing = at_round
        fresh = structure.normal(round_key, rows)
        empty = scaling.max_abs(rows) == 0
        rows = jax.tree.map(jnp.add, rows, tall.scale(empty.astype(dtype), fresh))
        inside = tall.combine(tall.gram(rows, known), known)
        outside = jax.tree.map(jnp.subtract, rows, inside)
        rounding = scaling.norms(outside) <= nothing * scaling.norms(rows)
        outside = tall.scale(1 - rounding.astype(dtype), outside)
        return orthonormal(outside, eps=eps**0.5).rows, None  # no direction shorter than that

    limits = jnp.array([32 * eps, no_room], dtype)
    rows, _ = lax.scan(once, rows, (jax.random.split(key), limits))
    return structure.cast_like(rows, steps)
