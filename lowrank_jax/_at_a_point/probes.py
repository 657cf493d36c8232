"""A point and a product in, secant pairs out: the library chooses the steps itself."""

from collections.abc import Callable
from functools import partial

from lowrank_jax._at_a_point import krylov
from lowrank_jax._clouds.pairs import SecantPairs
from lowrank_jax._core import checks, programs, structure, xla
from lowrank_jax._core.types import Product, Rows


def probe_pairs(
    product: Product,
    probes: int,
    *,
    passes: int = 2,
    batch_size: int | None = None,
    start: Rows | None = None,
    progress: bool = False,
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
        `gauss_newton_product(model, loss)`. Where nothing is traced it may be plain Python.
      probes: how many steps are measured in a pass.
      passes: how many passes.
      batch_size: how many products of a pass are computed at once where something is traced, as
        in `jax.lax.map`; None computes all at once by `jax.vmap`.
      start: directions of the first pass instead of random ones, a pytree like x whose
        leaves have a leading axis `probes`, such as the eigenvectors found before.
        Zero rows and rows that depend on others are replaced by random ones.
      progress: shows a progress bar over the products (needs tqdm) where nothing is traced.

    Returns:
      A function of a point x, the product's other arguments, and the keyword `key`,
      one random key. It returns `SecantPairs` of `probes * passes` pairs. Where nothing is traced,
      it calls the product as it is, for one vector at a time: x and v are NumPy arrays,
      its own copies, where x is given as such. Otherwise it is one program, and
      differentiates in x and the arguments if the product does.

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
    krylov.check(probes, passes, batch_size, progress)

    def pairs_at(x, *args, key):
        given, x = x, checks.point(x, "x")
        checks.key(key)
        x = xla.vary_like(x, x, args)

        measured = krylov.checked_product(product, x, args)
        if not programs.traced(x, args, key, start):
            with krylov.counter(probes * passes, progress, "products") as count:

                def one_by_one(pairs, offset, memory):
                    found = krylov.multiply(measured, x, given, pairs, offset, probes, count)
                    return None if found is None else (found, memory)

                state = krylov.begin(x, probes, passes, start), ()
                state = krylov.loop(one_by_one, state, probes, key)
            if state is not None:
                return krylov.unpacked(state[0], x)

        def at_once(pairs, offset, memory):
            v = krylov.read(pairs.steps, offset, probes, x)
            y = structure.pack(xla.map_rows(partial(measured, x), v, batch_size))
            return SecantPairs(pairs.steps, krylov.write(pairs.grad_diffs, offset, y)), memory

        state = krylov.begin(x, probes, passes, start), ()
        return krylov.unpacked(krylov.scan(at_once, state, probes, key)[0], x)

    return pairs_at
