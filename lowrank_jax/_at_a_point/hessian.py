"""Loss, gradient or product in, operator out."""

from collections.abc import Callable

from lowrank_jax._at_a_point import krylov
from lowrank_jax._at_a_point.differences import (
    Options,
    checked,
    checked_gradient,
    difference_pairs,
    most_gradients,
)
from lowrank_jax._at_a_point.expansion import expansion_at
from lowrank_jax._at_a_point.probes import probe_pairs
from lowrank_jax._clouds.fit import fit
from lowrank_jax._core import checks
from lowrank_jax._core.types import Argnums, Gradient, Loss, Product, Rows, Scalar, Solver


def lowrank_hessian(
    loss: Loss,
    probes: int,
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    passes: int = 2,
    solver: Solver = fit,
    batch_size: int | None = None,
    start: Rows | None = None,
    step: Scalar | None = None,
    return_pairs: bool = False,
    progress: bool = False,
) -> Callable:
    """Finds the leading curvature of a loss at a point, from gradients alone.

    `lowrank_hessian(loss, probes)(x, key=key)` takes the gradient at x once and
    `probes * passes` more, one step away from x each, along the steps of `probe_pairs`, and
    fits all pairs at once; and at most 10 in the first pass and 4 in each further one that find
    the length of these steps and check them. No second derivative is taken. For the r leading
    eigenpairs take a few more probes than r / passes, and `truncate(r)`: more passes find them more
    exactly, more probes a pass run in parallel.

    The steps of a pass have the length `step`; by default it is measured along the first of them,
    where the noise of the gradients and truncation are balanced. `pairs.rounding` is an estimate of
    the error of each pass relative to the largest curvature: how far its pairs are from one more
    gradient, opposite to all of them, or from symmetric, whichever is more. Where it is above 0.03,
    no step is good, as at a kink, with noise or in half precision. Exact products help then
    (`lowrank_from_product`), or a `step` as long as what is of interest; without either,
    `extrapolate=0` loses least. A caller who asks again gives the `step` that was found, the norm
    of one of `pairs.steps`: that costs `probes * passes + 1` gradients. With a `step` nothing is
    measured: the pairs' `rounding` is None, and `diagnose` reports that of the numbers alone.

    Args:
      loss: a scalar function; it is differentiated once, in argument `argnums`.
      probes: how many gradients a pass takes.
      argnums: the argument that is the point, or a tuple of such arguments.
      has_aux: the loss returns `(value, aux)`.
      passes: how many passes; see `probe_pairs`.
      solver: a function of pairs to the operator, such as `partial(fit, extrapolate=1)`; see `fit`.
      batch_size: how many gradients are computed at once. None is one at a time on the host, and
        in one program all of a pass by `jax.vmap`; there, for a network's parameters on
        a CPU, 1 is often faster.
      start: directions of the first pass instead of random ones; see `probe_pairs`.
      step: the length of the steps instead of a measured one.
      return_pairs: returns the pairs beside the operator.
      progress: shows a progress bar over the gradients (needs tqdm) where nothing is traced.

    Returns:
      A function of the loss's arguments, in their order, and the keyword `key`, one random key. It
      returns the operator H, a `SymmetricLowRank`, or `(H, pairs)`, `(H, aux)` or
      `(H, pairs, aux)` with the aux at x. The operator is NaN where the loss at x or a
      gradient is not finite.

      Where nothing is traced it is a loop on the host over compiled pieces, of which the
      gradient is compiled once for as long as the loss object lives, with what
      it closes over for a constant, as by `jax.jit`. Where something is, as under `jit`, `vmap`
      and `grad`, it is one program.

    Raises:
      TypeError: for points that are not real floating-point arrays, or such a value of the loss.
      ValueError: for probes or passes below 1, a start that does not fit x, a loss that is not
        scalar, or a step that is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda x: 50 * x[0] ** 2 - 20 * x[1] ** 2 + jnp.sum(jnp.cos(x))
      >>> h = lowrank_hessian(loss, 4, passes=3)(jnp.zeros(100), key=jax.random.key(0))
      >>> [round(float(s)) for s in h.truncate(2).eigenvalues()]
      [99, -41]
    """
    checks.function(solver, "solver")
    checks.flag(return_pairs, "return_pairs")
    options = checked(Options(probes, passes, batch_size, start, step, progress))
    expansion = expansion_at(loss, argnums, has_aux, options)

    def hessian_at(*args, key):
        at = expansion(args, key)
        h = solver(at.pairs)
        out = (h, *([at.pairs] if return_pairs else []), *([at.aux] if has_aux else []))
        return out if len(out) > 1 else h

    return hessian_at


def lowrank_hessian_from_gradient(
    grad_fn: Gradient,
    probes: int,
    *,
    passes: int = 2,
    solver: Solver = fit,
    batch_size: int | None = 1,
    start: Rows | None = None,
    step: Scalar | None = None,
    return_pairs: bool = False,
    progress: bool = False,
) -> Callable:
    """Makes the `lowrank_hessian` of a gradient field that comes without its loss.

    Forces of a simulator (with the sign changed), scores of a diffusion model, a kernel without
    forward derivatives, NumPy code, gradients that read files or sum over data larger than
    memory. The field is taken for a gradient: of a Jacobian that is not symmetric the
    symmetric part is found, once the steps span the space; `asymmetry` says how far from it.

    Where nothing is traced, `grad_fn` is called as it is, for one point at a time: jit it if it is
    JAX code. Points are NumPy arrays, its own copies, where x is given as such, in the
    dtypes that JAX has for them: float32 unless `jax_enable_x64` is set. Under
    `jit`, `vmap` or `grad` it is traced.

    Args:
      grad_fn: `grad_fn(x, *args)`, of the structure and shapes of x; never differentiated.
      probes: how many gradients a pass takes.
      passes: how many passes; see `probe_pairs`.
      solver: a function of pairs to the operator, such as `partial(fit, extrapolate=1)`; see `fit`.
      batch_size: how many gradients are computed at once where something is traced; one at a
        time unless told, as not every callback or kernel can be batched. None computes all
        of a pass by `jax.vmap`.
      start: directions of the first pass instead of random ones; see `probe_pairs`.
      step: the length of the steps instead of the default, as in `lowrank_hessian`.
      return_pairs: returns the pairs beside the operator.
      progress: shows a progress bar over the gradients (needs tqdm) where nothing is traced.

    Returns:
      A function of x, `*args` and the keyword `key`, one random key, that returns a
      `SymmetricLowRank`, or it and the pairs; NaN where a gradient is not finite.

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
      >>> import numpy as np
      >>> gradient = lambda x: np.array([5.0, 0.0, 0.0, -2.0]) * x  # in plain NumPy
      >>> h = lowrank_hessian_from_gradient(gradient, 3)(np.ones(4), key=jax.random.key(0))
      >>> [round(float(s), 2) for s in h.truncate(2).eigenvalues()]
      [5.0, -2.0]
    """
    checks.function(grad_fn, "grad_fn")
    checks.function(solver, "solver")
    checks.flag(return_pairs, "return_pairs")
    options = checked(Options(probes, passes, batch_size, start, step, progress))

    def hessian_at(x, *args, key):
        given, x = x, checks.point(x, "x")
        checks.key(key)
        gradient = checked_gradient(lambda y: grad_fn(krylov.as_given(y, given), *args), x)
        with krylov.counter(most_gradients(options), progress, "gradients") as count:
            grad = gradient(x)
            count(1)
            pairs = difference_pairs(gradient, x, grad, key, options, count=count)
        return (solver(pairs), pairs) if return_pairs else solver(pairs)

    return hessian_at


def lowrank_from_product(
    product: Product,
    probes: int,
    *,
    passes: int = 2,
    solver: Solver = fit,
    batch_size: int | None = None,
    start: Rows | None = None,
    return_pairs: bool = False,
    progress: bool = False,
) -> Callable:
    """Finds the leading part of any symmetric operator that is known by its products with vectors.

    `fit(probe_pairs(product, probes)(x, key=key))`: exact Hessian-vector products by
    `hvp(loss)`, Gauss-Newton ones by `gauss_newton_product(model, loss)`, central differences
    by `gradient_difference(loss, central=True)`, or a function of one's own. Where nothing is
    traced, the product is called as it is, for one vector at a time; those of the library are
    compiled once a loss.

    Args:
      product: `product(x, v, *args)`, symmetric and linear in v, of the structure of x.
      probes: how many products a pass takes.
      passes: how many passes; see `probe_pairs`.
      solver: a function of pairs to the operator, such as `partial(fit, extrapolate=1)`; see `fit`.
      batch_size: how many products are computed at once where something is traced; None computes
        all of a pass by `jax.vmap`.
      start: directions of the first pass instead of random ones; see `probe_pairs`.
      return_pairs: returns the pairs beside the operator.
      progress: shows a progress bar over the products (needs tqdm) where nothing is traced.

    Returns:
      A function of x, `*args` and the keyword `key`, one random key, that returns a
      `SymmetricLowRank`, or it and the pairs.

    Raises:
      TypeError, ValueError: as `probe_pairs` and `fit` do.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> product = lambda x, v: jnp.array([7.0, 0.0, -3.0, 0.0]) * v
      >>> h = lowrank_from_product(product, 3)(jnp.zeros(4), key=jax.random.key(0))
      >>> [round(float(s), 3) for s in h.truncate(2).eigenvalues()]
      [7.0, -3.0]
    """
    checks.function(solver, "solver")
    checks.flag(return_pairs, "return_pairs")
    pairs_at = probe_pairs(
        product, probes, passes=passes, batch_size=batch_size, start=start, progress=progress
    )

    def hessian_at(x, *args, key):
        pairs = pairs_at(x, *args, key=key)
        return (solver(pairs), pairs) if return_pairs else solver(pairs)

    return hessian_at
