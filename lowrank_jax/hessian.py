"""Loss, gradient or product in, operator out."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax import _checks, _losses, _rows
from lowrank_jax._losses import Argnums
from lowrank_jax.pairs import SecantPairs, centered, secant_pairs
from lowrank_jax.probe import pairs_on_host, probe_pairs
from lowrank_jax.products import difference, step_length
from lowrank_jax.secant import fit
from lowrank_jax.symmetric import SymmetricLowRank


def secant_hessian(
    loss: Callable,
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    pairing: Callable[[Any, Any], SecantPairs] = centered,
    extrapolate: float | jax.Array = 2 / 3,
    batch_size: int | None = None,
) -> Callable:
    """The low-rank Hessian of a loss on a cloud of points, from its gradients alone.

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
      extrapolate: in [0, 1], how H_r continues outside the span of the steps; see `fit`.
      batch_size: how many gradients are computed at once, as in `jax.lax.map`; None
        computes all at once by `jax.vmap`. For a network's parameters on a CPU, 1 is
        often faster.

    Returns:
      A function of the loss's arguments, in their order, with n points in place of one.
      It returns a `SymmetricLowRank`, or `(SymmetricLowRank, aux)` with aux stacked over
      points.

    Raises:
      TypeError: for points that are not real floating-point arrays, or such a value of the loss.
      ValueError: for no points, leading axes that differ, a loss that is not scalar, or
        `extrapolate` outside [0, 1].

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
    _checks.between(extrapolate, "extrapolate", 0, 1)
    pairs_of_points = secant_pairs(
        loss, argnums, has_aux=has_aux, pairing=pairing, batch_size=batch_size
    )

    def hessian_of_points(*args):
        out = pairs_of_points(*args)
        pairs, aux = out if has_aux else (out, None)
        h = fit(pairs, extrapolate=extrapolate)
        return (h, aux) if has_aux else h

    return hessian_of_points


def lowrank_hessian(
    loss: Callable,
    probes: int,
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    passes: int = 2,
    extrapolate: float | jax.Array = 2 / 3,
    batch_size: int | None = None,
    start: Any = None,
    step: float | jax.Array | None = None,
) -> Callable:
    """The leading curvature of a loss at a point, from gradients alone.

    `lowrank_hessian(loss, probes)(x, key=key)` takes the gradient at x once and
    `probes * passes` more, one step away from x each, along the steps of `probe_pairs`, and
    fits all pairs at once. No second derivative is taken. For the r leading eigenpairs take a
    few more probes than r / passes, and `truncate(r)`: more passes find them more exactly, more
    probes a pass run in parallel.

    The steps have the length `step`, by default sqrt(eps) |x|: a heuristic that fails where
    |x| says nothing about the scale on which the gradient changes.

    Args:
      loss: a scalar function; it is differentiated once, in argument `argnums`.
      probes: how many gradients a pass takes.
      argnums: the argument that is the point, or a tuple of such arguments.
      has_aux: the loss returns `(value, aux)`.
      passes: how many passes; see `probe_pairs`.
      extrapolate: in [0, 1], how H_r continues outside the span of the steps; see `fit`.
      batch_size: how many gradients are computed at once, as in `jax.lax.map`; None
        computes all of a pass by `jax.vmap`. For a network's parameters on a CPU, 1 is
        often faster.
      start: directions of the first pass instead of random ones; see `probe_pairs`.
      step: the length of the steps instead of the default.

    Returns:
      A function of the loss's arguments, in their order, and the keyword `key`, one random key. It
      returns a `SymmetricLowRank`, or `(SymmetricLowRank, aux)` with the aux at x. The operator
      is NaN where the loss at x or a gradient is not finite. Jit it, as `jax.jit(hessian_at)`:
      outside `jit` the loop over the passes is compiled at every call.

    Raises:
      TypeError: for points that are not real floating-point arrays, or such a value of the loss.
      ValueError: for probes or passes below 1, a start that does not fit x, a loss that is not
        scalar, `extrapolate` outside [0, 1], or a step that is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda x: 50 * x[0] ** 2 - 20 * x[1] ** 2 + jnp.sum(jnp.cos(x))
      >>> h = lowrank_hessian(loss, 4, passes=3)(jnp.zeros(100), key=jax.random.key(0))
      >>> [round(float(s)) for s in h.truncate(2).eigenvalues()]
      [99, -41]
    """
    curvature = from_differences(probes, passes, extrapolate, batch_size, start, step)
    expansion = expansion_at(loss, argnums, has_aux, curvature)

    def hessian_at(*args, key):
        at = expansion(args, key)
        return (at.hessian, at.aux) if has_aux else at.hessian

    return hessian_at


def lowrank_hessian_from_gradient(
    grad_fn: Callable,
    probes: int,
    *,
    passes: int = 2,
    extrapolate: float | jax.Array = 2 / 3,
    batch_size: int | None = 1,
    start: Any = None,
    step: float | jax.Array | None = None,
) -> Callable:
    """`lowrank_hessian` of a gradient field that comes without its loss.

    Forces of a simulator (with the sign changed), scores of a diffusion model, a kernel without
    forward derivatives, a `jax.pure_callback`: whatever JAX can trace. The field is taken
    for a gradient: of a Jacobian that is not symmetric the symmetric part is found.

    Args:
      grad_fn: `grad_fn(x, *args)`, of the structure and shapes of x; never differentiated.
      probes: how many gradients a pass takes.
      passes: how many passes; see `probe_pairs`.
      extrapolate: in [0, 1], how H_r continues outside the span of the steps; see `fit`.
      batch_size: how many gradients are computed at once; one at a time unless told, as not
        every callback or kernel can be batched. None computes all of a pass by `jax.vmap`.
      start: directions of the first pass instead of random ones; see `probe_pairs`.
      step: the length of the steps instead of the default, sqrt(eps) |x|.

    Returns:
      A function of x, `*args` and the keyword `key`, one random key, that returns a
      `SymmetricLowRank`; NaN where a gradient is not finite.

    Raises:
      TypeError: for points or gradients that are not real floating-point arrays.
      ValueError: for gradients that do not fit x, or options as in `lowrank_hessian`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> force = lambda x, stiffness: -stiffness * x
      >>> hessian_at = lowrank_hessian_from_gradient(lambda x, k: -force(x, k), 3)
      >>> stiffness = jnp.array([5.0, 0.0, 0.0, -2.0])
      >>> h = hessian_at(jnp.ones(4), stiffness, key=jax.random.key(0))
      >>> bool(jnp.allclose(h.diagonal(), stiffness, atol=1e-2))
      True
    """
    _checks.function(grad_fn, "grad_fn")
    curvature = from_differences(probes, passes, extrapolate, batch_size, start, step)

    def hessian_at(x, *args, key):
        x = _checks.point(x, "x")
        gradient = _checked(lambda y: grad_fn(y, *args), x)
        return curvature(gradient, x, gradient(x), key)

    return hessian_at


def lowrank_hessian_on_host(
    grad_fn: Callable,
    probes: int,
    *,
    passes: int = 2,
    extrapolate: float | jax.Array = 2 / 3,
    start: Any = None,
    step: float | jax.Array | None = None,
    progress: bool = False,
) -> Callable:
    """`lowrank_hessian` of a gradient in plain Python or NumPy, which is never traced.

    A loop that calls `grad_fn` `probes * passes + 1` times, for gradients that read
    files, call other programs or sum over data that does not fit in memory. What it
    returns is taken in the dtypes of x.

    Args:
      grad_fn: `grad_fn(x, *args)` of NumPy arrays, of the structure and shapes of x.
      probes: how many gradients a pass takes.
      passes: how many passes; see `probe_pairs`.
      extrapolate: in [0, 1], how H_r continues outside the span of the steps; see `fit`.
      start: directions of the first pass instead of random ones; see `probe_pairs`.
      step: the length of the steps instead of the default, sqrt(eps) |x|.
      progress: shows a progress bar over the gradients (needs tqdm).

    Returns:
      A function of x, `*args` and the keyword `key`, one random key, that returns a
      `SymmetricLowRank`; NaN where a gradient is not finite. It can't be jitted.

    Raises:
      TypeError: under `jit`, `vmap` or `grad`, or for points or gradients that are not real
        floating-point arrays.
      ValueError: for gradients that do not fit x, or options as in `lowrank_hessian`.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> def gradient(x):
      ...     return np.array([5.0, 0.0, 0.0, -2.0]) * x
      >>> h = lowrank_hessian_on_host(gradient, 3)(jnp.ones(4), key=jax.random.key(0))
      >>> [round(float(s), 2) for s in h.truncate(2).eigenvalues()]
      [5.0, -2.0]
    """
    _checks.function(grad_fn, "grad_fn")
    _checks.flag(progress, "progress")
    _checks.count(probes, "probes", 1)
    _checks.count(passes, "passes", 1)
    _checks.between(extrapolate, "extrapolate", 0, 1)
    if step is not None:
        _checks.positive(step, "step")

    def hessian_at(x, *args, key):
        x = _checks.point(x, "x")
        _checks.key(key)
        with _counter(probes * passes + 1, progress) as count:

            def counted(y):
                if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(y)):
                    raise TypeError(
                        "lowrank_hessian_on_host cannot be traced by jit, vmap or grad, "
                        "got a traced point: use lowrank_hessian_from_gradient there"
                    )
                grad = grad_fn(jax.tree.map(np.array, y), *args)
                count()
                return grad

            gradient = _checked(counted, x)
            grad = gradient(x)
            h = step_length(x, step)

            def measure(rows):
                measured = [difference(gradient, x, grad, v, h) for v in _vectors(rows)]
                return jax.tree.map(lambda *y: jnp.stack(y), *measured)

            pairs = pairs_on_host(measure, x, probes, passes, start, key)
        return fit(pairs, extrapolate=extrapolate)

    return hessian_at


def lowrank_from_product(
    product: Callable,
    probes: int,
    *,
    passes: int = 2,
    extrapolate: float | jax.Array = 2 / 3,
    batch_size: int | None = None,
    start: Any = None,
) -> Callable:
    """The leading part of any symmetric operator that is known by its products with vectors.

    `fit(probe_pairs(product, probes)(x, key=key))`: exact Hessian-vector products by
    `hvp(loss)`, Gauss-Newton ones by `gauss_newton_product(model, loss)`, central differences
    by `gradient_difference(loss, central=True)`, or a function of one's own.

    Args:
      product: `product(x, v, *args)`, symmetric and linear in v, of the structure of x.
      probes: how many products a pass takes.
      passes: how many passes; see `probe_pairs`.
      extrapolate: in [0, 1], how H_r continues outside the span of the steps; see `fit`.
      batch_size: how many products are computed at once, as in `jax.lax.map`; None computes
        all of a pass by `jax.vmap`.
      start: directions of the first pass instead of random ones; see `probe_pairs`.

    Returns:
      A function of x, `*args` and the keyword `key`, one random key, that returns a
      `SymmetricLowRank`.

    Raises:
      TypeError, ValueError: as `probe_pairs` and `fit` do.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> product = lambda x, v: jnp.array([7.0, 0.0, -3.0, 0.0]) * v
      >>> h = lowrank_from_product(product, 3)(jnp.zeros(4), key=jax.random.key(0))
      >>> [round(float(s), 3) for s in h.truncate(2).eigenvalues()]
      [7.0, -3.0]
    """
    _checks.between(extrapolate, "extrapolate", 0, 1)
    pairs_at = probe_pairs(product, probes, passes=passes, batch_size=batch_size, start=start)

    def hessian_at(x, *args, key):
        return fit(pairs_at(x, *args, key=key), extrapolate=extrapolate)

    return hessian_at


class Expansion(NamedTuple):
    """What is known of a loss at a point; aux is None without `has_aux`."""

    point: Any
    value: jax.Array
    grad: Any
    hessian: SymmetricLowRank
    aux: Any


def expansion_at(loss: Callable, argnums: Argnums, has_aux: bool, curvature: Callable) -> Callable:
    """A function of (args, key) to the `Expansion`, H by `curvature(gradient, x, grad, key)`."""

    def expansion(args, key):
        x, rest = _losses.split(argnums, args)
        x = _checks.point(x, "x")
        at = jax.value_and_grad(_losses.at(loss, argnums, rest, has_aux=has_aux), has_aux=has_aux)
        out, grad = at(x)
        value, aux = out if has_aux else (out, None)
        poison = jnp.where(jnp.isfinite(value), 1, jnp.nan)
        base = jax.tree.map(lambda g: g * poison.astype(g.dtype), grad)

        def gradient(y):
            return at(y)[1]

        return Expansion(x, value, grad, curvature(gradient, x, base, key), aux)

    return expansion


def from_differences(
    probes: int, passes: int, extrapolate: Any, batch_size: int | None, start: Any, step: Any
) -> Callable:
    """A function of (gradient, x, its value there, key) to the operator, by `lowrank_from_product`.

    Raises:
      TypeError, ValueError: for wrong options.
    """
    if step is not None:
        _checks.positive(step, "step")

    def product(x, v, gradient, grad):
        return difference(gradient, x, grad, v, step_length(x, step))

    hessian_at = lowrank_from_product(
        product,
        probes,
        passes=passes,
        extrapolate=extrapolate,
        batch_size=batch_size,
        start=start,
    )
    return lambda gradient, x, grad, key: hessian_at(x, gradient, grad, key=key)


def _checked(grad_fn, x):
    """The gradient field, with errors for what does not fit x, in the dtypes of x."""

    def gradient(y):
        grad = _checks.vector(grad_fn(y), "grad_fn(x)")
        _checks.like(grad, "grad_fn(x)", x, "x")
        return _rows.cast_like(grad, x)

    return gradient


def _vectors(rows):
    leaves, tree = jax.tree.flatten(rows)
    return [jax.tree.unflatten(tree, row) for row in zip(*leaves, strict=True)]


@contextlib.contextmanager
def _counter(total, progress):
    """What is to be called after each of that many gradients."""
    if not progress:
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc="gradients") as bar:
        yield bar.update
