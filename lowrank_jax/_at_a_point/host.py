"""The Hessian of a gradient that is computed outside JAX, in a loop of Python."""

import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax._at_a_point.differences import checked_gradient, difference, step_length
from lowrank_jax._at_a_point.probes import pairs_on_host
from lowrank_jax._clouds.fit import fit
from lowrank_jax._core import checks
from lowrank_jax._core.types import Gradient, Rows, Scalar, Solver
from lowrank_jax._operators.symmetric import SymmetricLowRank


def lowrank_hessian_on_host(
    grad_fn: Gradient,
    probes: int,
    *,
    passes: int = 2,
    solver: Solver = fit,
    start: Rows | None = None,
    step: Scalar | None = None,
    progress: bool = False,
) -> Callable[..., SymmetricLowRank]:
    """Makes the `lowrank_hessian` of a gradient in plain Python or NumPy, which is never traced.

    A loop that calls `grad_fn` `probes * passes + 1` times, for gradients that read
    files, call other programs or sum over data that does not fit in memory. What it
    returns is taken in the dtypes of x.

    Args:
      grad_fn: `grad_fn(x, *args)` of NumPy arrays, of the structure and shapes of x.
      probes: how many gradients a pass takes.
      passes: how many passes; see `probe_pairs`.
      solver: a function of pairs to the operator, such as `partial(fit, extrapolate=1)`; see `fit`.
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
    checks.function(grad_fn, "grad_fn")
    checks.flag(progress, "progress")
    checks.count(probes, "probes", 1)
    checks.count(passes, "passes", 1)
    checks.function(solver, "solver")
    if step is not None:
        checks.positive(step, "step")

    def hessian_at(x, *args, key):
        x = checks.point(x, "x")
        checks.key(key)
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

            gradient = checked_gradient(counted, x)
            grad = gradient(x)
            h = step_length(x, step)

            def measure(rows):
                measured = [difference(gradient, x, grad, v, h) for v in _vectors(rows)]
                return jax.tree.map(lambda *y: jnp.stack(y), *measured)

            pairs = pairs_on_host(measure, x, probes, passes, start, key)
        return solver(pairs)

    return hessian_at


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
