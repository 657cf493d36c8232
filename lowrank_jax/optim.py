"""Optax transformations that use curvature.

`scale_by_secant` takes it from the trajectory's own pairs, `secant_newton` is the optimiser
made of it, and `precondition_top_curvature` measures the leading curvature every few steps and
leaves the rest to another optimiser. Their states are plain pytrees of arrays; jit what
calls `update`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from lowrank_jax import history
from lowrank_jax._at_a_point.differences import Options
from lowrank_jax._at_a_point.expansion import expansion_at
from lowrank_jax._clouds.fit import fit
from lowrank_jax._core import checks, scaling, structure, tall
from lowrank_jax._core.types import Loss, Rows, Scalar
from lowrank_jax._training.direction import direction


class ScaleBySecantState(NamedTuple):
    """State of `scale_by_secant`.

    Attributes:
      history: the trajectory's pairs; `history.skipped` counts the gradients left out.
    """

    history: history.History


def scale_by_secant(
    memory_size: int = 10, *, damping: Scalar | None = None
) -> optax.GradientTransformationExtraArgs:
    """Scales gradients by the inverse of the curvature that the trajectory itself has shown.

    `+(|H_r| + damping)^-1 g`, with H_r from the last `memory_size` pairs of steps and gradient
    differences: no gradient is computed that the training would not have. On a quadratic the secant
    equations of all pairs hold at once (the block BFGS update). Negative curvature counts by its
    magnitude, so that saddle points repel. A step of zero is no pair.

    The damping adapts, by heuristics. Where no step has gone, it is the newest pair's
    `y.y / |s.y|`, the curvature that L-BFGS begins with, at most the largest one measured; before
    the first pair it is |g|, at least 1, so that the first step is no longer than 1. Along the
    steps it is as much as the pairs contradict each other there, nothing on a quadratic; the
    weight of a pair halves with each newer one.

    The length of a step is right only where the quadratic model is: use a line search, as in
    `secant_newton`, a learning rate, or `optax.clip_by_global_norm`.

    **Mini-batches**: gradients of two batches differ by their noise, however short the step;
    the curvature that shows is too large, and the steps shrink until nothing moves. Give `update`
    the gradient function of its batch, `update(g, state, params, grad_fn=grad_fn)`: it
    takes the last point's gradient on that batch as well, one more gradient a step.

    Args:
      memory_size: how many pairs are kept; the state has the memory of `2 memory_size + 2`
        points.
      damping: a number in place of all heuristics; may be traced.

    Returns:
      An optax transformation. `update` needs `params`. A gradient that is not finite gives an
      update of zeros, changes no pair, and is counted in the state. Updates have the
      dtypes of the gradients. Under `optax.inject_hyperparams` name `memory_size` in
      `static_args`.

    Raises:
      TypeError: for a memory size that is not a Python int, or parameters that are not real
        floating-point arrays.
      ValueError: for a memory size below 1, a damping that is not positive, no parameters, or
        gradients of another structure.

    Source: see the derivation in `lowrank_jax._training.direction`; Schnabel, Quasi-Newton
    methods using multiple secant equations, report CU-CS-247-83 (1983).

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> loss = lambda x: jnp.sum(jnp.array([100.0, 1.0, 0.01]) * x**2)
      >>> opt = optax.chain(scale_by_secant(memory_size=3), optax.scale(-1.0))
      >>> @jax.jit
      ... def step(x, state):
      ...     updates, state = opt.update(jax.grad(loss)(x), state, x)
      ...     return optax.apply_updates(x, updates), state
      >>> x, state = jnp.ones(3), opt.init(jnp.ones(3))
      >>> for _ in range(20):
      ...     x, state = step(x, state)
      >>> bool(loss(x) < 1e-5)
      True
    """
    checks.count(memory_size, "memory_size", 1)
    if damping is not None:
        checks.positive(damping, "damping")

    def init(params):
        return ScaleBySecantState(history.init(params, memory_size))

    def update(updates, state, params=None, *, grad_fn=None, **extra_args):
        del extra_args
        _require(params, "scale_by_secant")
        past = state.history
        if grad_fn is not None:
            checks.function(grad_fn, "grad_fn")
            begun = past.points > 0
            last = jax.tree.map(lambda old, new: jnp.where(begun, old, new), past.params, params)
            past = history.push(past, last, grad_fn(last))
        past = history.push(past, params, updates)
        fixed = None if damping is None else jnp.asarray(damping, past.norms.dtype)
        usable = tall.finite(updates)
        updates = jax.tree.map(lambda x: jnp.where(usable, x, 0), updates)
        scaled = direction(past.steps, past.grad_diffs, history.age(past), updates, fixed)
        return scaled, ScaleBySecantState(past)

    return optax.GradientTransformationExtraArgs(init, update)


def secant_newton(
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    memory_size: int = 10,
    damping: Scalar | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Makes a quasi-Newton optimiser from the trajectory's own pairs: `scale_by_secant`, chained.

    With None it searches along each direction with optax's zoom line search and is
    called as `optax.lbfgs` is:

        value, grad = optax.value_and_grad_from_state(loss)(params, state=state)
        updates, state = opt.update(grad, state, params, value=value, grad=grad, value_fn=loss)

    With a learning rate, 1 or a little less, it is called as `optax.adam` is; for mini-batches
    see `scale_by_secant`.

    Args:
      learning_rate: a number, a schedule, or None for the line search.
      memory_size: how many pairs are kept.
      damping: a number in place of the heuristics of `scale_by_secant`.

    Raises:
      TypeError, ValueError: as `scale_by_secant` does.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> loss = lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
      >>> opt = secant_newton()
      >>> value_and_grad = optax.value_and_grad_from_state(loss)
      >>> @jax.jit
      ... def step(x, state):
      ...     value, grad = value_and_grad(x, state=state)
      ...     updates, state = opt.update(grad, state, x, value=value, grad=grad, value_fn=loss)
      ...     return optax.apply_updates(x, updates), state
      >>> x = jnp.array([-1.2, 1.0])
      >>> state = opt.init(x)
      >>> for _ in range(60):
      ...     x, state = step(x, state)
      >>> bool(jnp.allclose(x, 1, atol=1e-3))
      True
    """
    scaler = scale_by_secant(memory_size, damping=damping)
    if learning_rate is not None:
        return optax.chain(scaler, optax.scale_by_learning_rate(learning_rate))
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=20, initial_guess_strategy="one")
    return optax.chain(scaler, optax.scale(-1.0), search)


class PreconditionTopCurvatureState(NamedTuple):
    """State of `precondition_top_curvature`.

    Attributes:
      count: how many updates were made.
      key: the random key of the next refresh.
      eigenvalues: (probes,), those of largest magnitude; 0 where nothing is known.
      eigenvectors: `probes` orthonormal rows; zero rows where nothing is known.
      step: the length of the gradient differences' steps, found by the first refresh; 0 before.
      skipped: how many refreshes were left out, as a gradient was not finite.
      inner: the state of the inner optimiser.
    """

    count: jax.Array  # type: ignore[assignment]
    key: jax.Array
    eigenvalues: jax.Array
    eigenvectors: Rows
    step: jax.Array
    skipped: jax.Array
    inner: Any


def precondition_top_curvature(
    inner: optax.GradientTransformation,
    loss: Loss,
    *,
    probes: int,
    passes: int = 2,
    every: int = 50,
    key: jax.Array,
    learning_rate: Scalar = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Steps by Newton along the leading curvature, by an optax optimiser on everything else.

    With U the `probes` leading eigenvectors of the Hessian and s their eigenvalues, the update is

        -learning_rate U^T (|s| + damping)^-1 U g + (I - U^T U) inner((I - U^T U) g).

    U and s are measured by `lowrank_hessian` at the first step and every `every` steps from
    then on, from the last U: `probes * passes + 1` gradients each, and for the first one those that
    find the length of its steps, which is kept. The damping is
    sqrt(eps) max |s|, which is what gradient differences resolve.

    Args:
      inner: the optimiser for the complement, with its own learning rate, such as
        `optax.adam(1e-3)`; extra arguments of `update` reach it.
      loss: `loss(params, *curvature_args)`, a scalar, of the data on which the curvature is
        measured: `update(g, state, params, curvature_args=(batch,))`.
      probes: how many eigenvectors.
      passes: how many passes measure them; see `lowrank_hessian`.
      every: how many updates are made with one measurement.
      key: the random key of the first probes.
      learning_rate: of the Newton part; 1 for full batches, less the noisier the gradient.

    Returns:
      An optax transformation. `update` needs `params`. A measurement that is not finite is left
      out and counted in the state. Under `optax.inject_hyperparams` name all arguments but
      `inner` and `learning_rate` in `static_args`.

    Raises:
      TypeError, ValueError: for wrong options, no parameters, or as `lowrank_hessian` does.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> loss = lambda x: 500 * x[0] ** 2 + jnp.sum((x - 1) ** 2)
      >>> opt = precondition_top_curvature(optax.sgd(0.3), loss, probes=1, key=jax.random.key(0))
      >>> @jax.jit
      ... def step(x, state):
      ...     updates, state = opt.update(jax.grad(loss)(x), state, x)
      ...     return optax.apply_updates(x, updates), state
      >>> x = jnp.full(8, 2.0)
      >>> state = opt.init(x)
      >>> for _ in range(10):
      ...     x, state = step(x, state)
      >>> bool(loss(x) < 1.001 * loss(jnp.ones(8).at[0].set(1 / 501)))
      True
    """
    checks.instance(inner, "inner", optax.GradientTransformation)
    checks.function(loss, "loss")
    for value, name in ((probes, "probes"), (passes, "passes"), (every, "every")):
        checks.count(value, name, 1)
    checks.key(key)
    checks.positive(learning_rate, "learning_rate")
    inner = optax.with_extra_args_support(inner)

    def init(params):
        params = checks.point(params, "params")
        rows = jax.tree.map(
            lambda x: jnp.broadcast_to(jnp.zeros_like(x), (probes, *x.shape)), params
        )
        values = jnp.zeros(probes, structure.compute_dtype(params))
        count, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        # A copy of the key: a donated state must not take the caller's with it.
        known = jnp.copy(key), values, rows, jnp.zeros((), values.dtype), skipped
        return PreconditionTopCurvatureState(count, *known, inner.init(params))

    def update(updates, state, params=None, *, curvature_args=(), **extra_args):
        _require(params, "precondition_top_curvature")
        updates = checks.vector(updates, "updates")
        checks.like(updates, "updates", params, "params")

        def refreshed(key, values, rows, step, skipped):
            key, now = jax.random.split(key)
            options = Options(probes, passes, 1, rows, None, progress=False, found=step)
            at = expansion_at(loss, 0, False, options)((params, *curvature_args), now)
            found = jax.tree.map(lambda x: x[:probes], fit(at.pairs).eigh())
            length = scaling.norms(jax.tree.map(lambda x: x[:1], at.pairs.steps))[0]
            usable = tall.finite(found)
            new, old = (*found, length), (values, rows, step)
            s, u, step = jax.tree.map(lambda x, y: jnp.where(usable, x, y), new, old)
            return key, s, u, step, skipped + (~usable).astype(jnp.int32)

        known = state.key, state.eigenvalues, state.eigenvectors, state.step, state.skipped
        due = state.count % every == 0
        key, s, u, length, skipped = lax.cond(due, refreshed, lambda *known: known, *known)

        along, rest = _split(updates, u)
        rate = jnp.asarray(learning_rate, s.dtype)
        size = jnp.abs(s)
        size = size + jnp.finfo(s.dtype).eps ** 0.5 * jnp.max(size)
        newton = tall.combine(
            -rate * along.astype(s.dtype) * scaling.reciprocal(size), structure.widen(u)
        )
        rest, inner_state = inner.update(rest, state.inner, params, **extra_args)
        update = jax.tree.map(jnp.add, *structure.widen((newton, _split(rest, u)[1])))
        state = PreconditionTopCurvatureState(
            state.count + 1, key, s, u, length, skipped, inner_state
        )
        return structure.cast_like(update, rest), state

    return optax.GradientTransformationExtraArgs(init, update)


def _split(v, rows):
    """The coordinates of v in orthonormal rows, and the rest of it."""
    wide, rows = structure.widen((v, rows))
    return tall.gram(rows, wide), structure.cast_like(tall.project_out(wide, rows), v)


def _require(params, name):
    if params is None:
        raise ValueError(f"{name} needs the parameters, update(grads, state, params), got None")
