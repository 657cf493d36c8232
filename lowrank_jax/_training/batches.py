"""The gradient and products of a loss over data that are read one batch at a time."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from lowrank_jax._core import checks, losses, structure
from lowrank_jax._core.types import Gradient, Product, Vector


def mean_gradient(
    loss: Callable[[Vector, Any], jax.Array], batches: Iterable[Any], *, progress: bool = False
) -> Gradient:
    """Computes the gradient of a loss over data larger than memory, `sum_b n_b g_b / sum_b n_b`.

    `g_b` is the gradient of `loss(params, batch)`, a mean over the `n_b` examples of a batch:
    the result is the gradient of the mean over all examples, whatever the sizes of the batches.
    `lowrank_hessian_from_gradient(mean_gradient(loss, batches), probes)`: the Hessian of all data.

    Every call reads `batches` from its start, the next batch while one is computed: two or three
    are in memory at a time, however many there are. The gradient of a batch is compiled once a
    batch shape. The sums are compensated, in float32 at least: a running float32 sum of
    10,000 gradients is wrong by more than 1e-6.

    Args:
      loss: `loss(params, batch)`, the mean over a batch, a scalar; JAX differentiates it.
      batches: what can be iterated over again and again, such as a list, a data loader, or an
        object whose `__iter__` opens files. Each batch is a pytree of arrays that share a
        leading axis, of length `n_b`; a batch of length 0 is skipped.
      progress: shows a progress bar over the batches while they are read (needs tqdm).

    Returns:
      A function of params, a pytree, that returns the gradient in their structure and dtypes. It
      can't be jitted. An entry that is not finite in one batch is not finite in the result.

    Raises:
      TypeError: for batches that are an iterator or can't be iterated over, a loss that is no
        function, or a progress that is no bool. From the function
        returned: under `jit`, `vmap` or `grad`, or for params or a value of the loss that
        are not real floating-point.
      ValueError: from the function returned: for no batches, a batch without leaves or whose
        leaves do not share a leading axis, params without leaves, or a loss that is not scalar.

    Source: the compensation is that of Ogita, Rump and Oishi, Accurate sum and dot product,
    SIAM J. Sci. Comput. 26 (2005), algorithm 4.1.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from lowrank_jax import lowrank_hessian_from_gradient
      >>> class Days:
      ...     def __iter__(self):
      ...         for day in range(5):  # stands for a file of 100 + day measurements
      ...             yield np.random.default_rng(day).normal(size=(100 + day, 2)) * [3, 1]
      >>> gradient = mean_gradient(lambda w, x: jnp.mean((x @ w) ** 2) / 2, Days())
      >>> hessian_at = lowrank_hessian_from_gradient(gradient, 2)
      >>> h = hessian_at(jnp.ones(2), key=jax.random.key(0))
      >>> [round(float(s)) for s in h.diagonal()]
      [9, 1]
    """
    checks.function(loss, "loss")

    def of_batch(batch, params):
        return losses.gradient(loss, 0, (batch,))(params)

    mean = _mean_over(of_batch, batches, progress, "mean_gradient", "lowrank_hessian_from_gradient")
    return lambda params: mean(checks.point(params, "params"))


def mean_product(
    product: Callable[[Vector, Vector, Any], Vector],
    batches: Iterable[Any],
    *,
    progress: bool = False,
) -> Product:
    """Computes products `H v` over data larger than memory, `sum_b n_b H_b v / sum_b n_b`.

    As `mean_gradient`, with `product(x, v, batch)` in place of the gradient: `hvp(loss)` for exact
    products, `lambda x, v, batch: gauss_newton_product(model, loss)(x, v, *batch)` for those of
    Gauss and Newton. `lowrank_from_product(mean_product(hvp(loss), batches), probes)`: the Hessian
    of all data.

    Args:
      product: `product(x, v, batch)`, the mean over a batch, of the structure of x.
      batches: as in `mean_gradient`.
      progress: shows a progress bar over the batches while they are read (needs tqdm).

    Returns:
      A function of x and v that returns H v, of the structure and dtypes of x. It can't be jitted.

    Raises:
      TypeError, ValueError: as `mean_gradient` does, and for v that do not fit x.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from lowrank_jax import hvp
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2) / 2
      >>> batches = [np.ones((2, 2), np.float32), np.zeros((6, 2), np.float32)]
      >>> mean_product(hvp(loss), batches)(jnp.zeros(2), jnp.array([1.0, 0.0]))
      Array([0.25, 0.25], dtype=float32)
    """
    checks.function(product, "product")

    def of_batch(batch, x, v):
        y = checks.vector(product(x, v, batch), "product(x, v)")
        checks.like(y, "product(x, v)", x, "x")
        return y

    mean = _mean_over(of_batch, batches, progress, "mean_product", "lowrank_from_product")

    def product_of_all(x, v):
        x, v = checks.point(x, "x"), checks.vector(v, "v")
        checks.like(v, "v", x, "x")
        return mean(x, structure.cast_like(v, x))

    return product_of_all


def _mean_over(of_batch, batches, progress, name, use):
    """The function x, ... -> mean of `of_batch(batch, x, ...)`, weighted by numbers of examples."""
    _check_rereadable(batches)
    checks.flag(progress, "progress")

    def add(totals, batch, *args):
        n = float(structure.length(batch))
        return _plus(totals, jax.tree.map(lambda g: n * g, structure.widen(of_batch(batch, *args))))

    add = jax.jit(add, donate_argnums=0)

    def mean(*args):
        x = args[0]
        totals = _zeros(x), _zeros(x)
        _check_concrete((args, totals), name, use)
        examples = 0
        for i, batch in enumerate(_shown(batches, progress)):
            _check_concrete(batch, name, use)
            n = _length(batch, f"batch {i}")
            if n > 0:  # the mean over nothing may be NaN
                # Without waiting for the batch before, dispatched ones would pile up.
                totals = add(jax.block_until_ready(totals), batch, *args)
            examples += n
        if examples == 0:
            raise ValueError(
                "batches must yield at least one example whenever they are iterated over, got "
                "none: an __iter__ that returns the same iterator each time is empty the second "
                "time, so let it start anew"
            )
        return _mean(totals, float(examples), x)

    return mean


def _check_rereadable(batches):
    if isinstance(batches, Iterator) and iter(batches) is batches:
        raise TypeError(
            "batches are read once for every gradient, and gradients are taken many times: they "
            "must be a list, or an object whose __iter__ starts anew (a class whose __iter__ is "
            f"the generator function), got a {type(batches).__name__}, which can be read once"
        )
    if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        raise TypeError(f"batches must be iterable, got a {type(batches).__name__}")


def _check_concrete(tree, name, use):
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
        raise TypeError(
            f"the function that {name} returns cannot be traced by jit, vmap or grad, as "
            f"it reads batches: for curvature, give it to {use}"
        )


def _length(batch, name):
    leaves = tree_flatten_with_path(batch)[0]
    if not leaves:
        raise ValueError(f"{name} must hold at least one array, got {batch!r}")
    for path, leaf in leaves:
        if np.ndim(leaf) == 0:
            raise ValueError(
                f"{name + keystr(path)} must have a leading axis of examples, got a scalar {leaf!r}"
            )
    first, count = name + keystr(leaves[0][0]), np.shape(leaves[0][1])[0]
    for path, leaf in leaves:
        if np.shape(leaf)[0] != count:
            raise ValueError(
                f"{name + keystr(path)} must have as many examples as {first}, {count}, got shape "
                f"{np.shape(leaf)}"
            )
    return count


def _shown(batches, progress):
    if not progress:
        return batches
    from tqdm import tqdm

    return tqdm(batches, desc="batches", leave=False)


def _zeros(params):
    dtype = structure.compute_dtype(params)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), params)


def _plus(totals, terms):
    """The sums and, beside them, the sums of what each addition rounded off, exactly known."""
    sums, rests = totals
    new = jax.tree.map(jnp.add, sums, terms)

    def rounded_off(s, x, t):
        added = t - s
        return (s - (t - added)) + (x - added)

    lost = jax.tree.map(rounded_off, sums, terms, new)
    return new, jax.tree.map(jnp.add, rests, lost)


@jax.jit
def _mean(totals, examples, params):
    def corrected(s, rest):
        return jnp.where(jnp.isfinite(s), s + rest, s) / examples  # inf - inf in the rest

    return structure.cast_like(jax.tree.map(corrected, *totals), params)
