"""Optax transformations that use curvature.

`scale_by_secant` takes it from the trajectory's own pairs, `secant_newton` is the optimiser
made of it, and `precondition_top_curvature` measures the leading curvature every few steps and
leaves the rest to another optimiser. Their states are plain pytrees of arrays; jit what
calls `update`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from lowrank_jax import history
from lowrank_jax._at_a_point.differences import Options
from lowrank_jax._at_a_point.expansion import expansion_at
from lowrank_jax._clouds.fit import fit
from lowrank_jax._core import checks, scaling, structure, tall, xla
from lowrank_jax._core.types import Loss, Rows, Scalar
from lowrank_jax._training.direction import Products, direction, no_products


class ScaleBySecantState(NamedTuple):
    """State of `scale_by_secant`.

    Attributes:
      history: the trajectory's pairs; `history.skipped` counts the gradients left out.
      products: the inner products of its pairs.
    """

    history: history.History
    products: Products


def scale_by_secant(
    memory_size: int = 10, *, damping: Scalar | None = None
) -> optax.GradientTransformationExtraArgs:
    """Scales gradients by the inverse of the curvature that the trajectory itself has shown.

    `+B^-1 g`, with B made of the last `memory_size` pairs of steps and gradient differences by BFGS
    updates: no gradient is computed that the training would not have. Pairs are first made
    conjugate as far as they agree with each other. On a quadratic the secant equations of all pairs
    then hold at once (the block BFGS update); where the Hessian changes, the updates are those of
    L-BFGS. Negative curvature counts by its magnitude, so that saddle points repel. A step of
    zero is no pair.

    Where no step has gone, the curvature is the newest pair's `y.y / |s.y|`, with which L-BFGS
    begins; before the first pair it is |g|, at least 1, so that the first step is no longer than 1.
    How far pairs have to agree is a heuristic, chosen by measurement.

    The length of a step is right only where the quadratic model is: use a line search, as in
    `secant_newton`, a learning rate, or `optax.clip_by_global_norm`.

    **Mini-batches**: use another optimiser. Gradients of two batches differ by their noise, however
    short the step; the curvature that shows is too large, and the steps shrink until nothing moves,
    or are of a length that diverges. With the gradient function of its batch,
    `update(g, state, params, grad_fn=grad_fn)` takes the last point's gradient on that batch as
    well, one more gradient a step, and pairs are free of that noise; the gradient itself is not,
    and steps along what bends little may still be too long: with batches of 32 two networks needed
    a `damping` as well, and ended at a higher loss than with Adam.

    Args:
      memory_size: how many pairs are kept; the state has the memory of `2 memory_size + 2`
        points.
      damping: a number that is added to the curvature along the steps, and is the curvature where
        no step has gone; may be traced.

    Returns:
      An optax transformation. `update` needs `params`. A gradient that is not finite gives an
      update of zeros, changes no pair, and is counted in the state. Updates have the
      dtypes of the gradients. Under `optax.inject_hyperparams` name `memory_size` in its
      `static_args`. Differentiable in both modes, so that optimisations can be unrolled.

    Raises:
      TypeError: for a memory size that is not a Python int, or parameters that are not real
        floating-point arrays.
      ValueError: for a memory size below 1, a damping that is not positive, or gradients of
        another structure than the parameters.

    Source: see the derivation in `lowrank_jax._training.direction`; Nocedal, Updating quasi-Newton
    matrices with limited storage, Math. Comp. 35 (1980); Schnabel, Quasi-Newton methods using
    multiple secant equations, report CU-CS-247-83 (1983).

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
    _static(checks.count, memory_size, "memory_size", 1)
    if damping is not None:
        checks.positive(damping, "damping")

    def init(params):
        empty = history.init(params, memory_size)
        products = no_products(memory_size, empty.norms.dtype)
        return ScaleBySecantState(empty, xla.vary_like(products, empty.params))

    def update(updates, state, params=None, *, grad_fn=None, **extra_args):
        del extra_args
        _require(params, "scale_by_secant")
        if not jax.tree.leaves(updates):
            return updates, state
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
        newest = (past.points - 2) % memory_size
        scaled, products = direction(
            state.products, past.steps, past.grad_diffs, newest, updates, fixed
        )
        return scaled, ScaleBySecantState(past, products)

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

    With a learning rate, 1 or a little less, it is called as `optax.adam` is. It is for full
    batches: `scale_by_secant` says what mini-batches do to it.

    Args:
      learning_rate: a number, a schedule, or None for the line search.
      memory_size: how many pairs are kept.
      damping: as in `scale_by_secant`.

    Returns:
      An optax transformation. Under `optax.inject_hyperparams` name `memory_size` in its
      `static_args`. A line search has no derivative in reverse mode, but in forward mode.

    Raises:
      TypeError: as `scale_by_secant`, and from `update` where the line search lacks an argument.
      ValueError: as `scale_by_secant` does.

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
    searching = optax.chain(scaler, optax.scale(-1.0), search)

    def update(updates, state, params=None, **extra):
        missing = {"value", "grad", "value_fn"} - extra.keys()
        if missing:
            raise TypeError(
                "update of secant_newton with its line search must get value, grad and value_fn, "
                f"as that of optax.lbfgs, got no {', '.join(sorted(missing))}; "
                "or give a learning_rate"
            )
        return searching.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(searching.init, update)


class PreconditionTopCurvatureState(NamedTuple):
    """State of `precondition_top_curvature`.

    Attributes:
      count: how many updates were made.
      key: the data of the random key of the next refresh, as `jax.random.key_data` gives them.
      eigenvalues: (probes,), those of largest magnitude; 0 where nothing is known.
      eigenvectors: `probes` orthonormal rows; zero rows where nothing is known.
      sharpness: the largest eigenvalue of the Hessian that is known; 0 before.
      step: the length of the gradient differences' steps, found by the first refresh; 0 before.
      skipped: how many refreshes were left out, as a gradient was not finite.
      inner: the state of the inner optimiser.
    """

    count: jax.Array  # type: ignore[assignment]
    key: jax.Array
    eigenvalues: jax.Array
    eigenvectors: Rows
    sharpness: jax.Array
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
    learning_rate: optax.ScalarOrSchedule = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Steps by Newton along the leading curvature, by an optax optimiser on everything else.

    With U the `probes` leading eigenvectors of the Hessian and s their eigenvalues, the update is

        -learning_rate U^T (|s| + damping)^-1 U g + (I - U^T U) inner((I - U^T U) g).

    U and s are measured by `lowrank_hessian` at the first step and every `every` steps from
    then on, from the last U: `probes * passes + 1` gradients each, and for the first one those that
    find the length of its steps, which is kept. The damping is
    sqrt(eps) max |s|, which is what gradient differences resolve.

    **Mini-batches**: the loss takes its batch from `curvature_args`, see the second example. The
    curvature of one batch stays in use for `every` updates: measure it on a batch that is larger
    than those of the gradients, and give the Newton part a learning rate far below 1. Two networks
    with batches of 32 did best with 0.03 and `passes=1, every=100`, and no better than with the
    inner optimiser alone: try that first.

    Args:
      inner: the optimiser for the complement, with its own learning rate, such as
        `optax.adam(1e-3)`; extra arguments of `update` reach it.
      loss: `loss(params, *curvature_args)`, a scalar, of the data on which the curvature is
        measured: `update(g, state, params, curvature_args=(batch,))`. At updates that measure
        nothing the arguments are not read, but they must have the same shapes.
      probes: how many eigenvectors.
      passes: how many passes measure them, see `lowrank_hessian`; from the second measurement on
        one may do, as each begins with the last eigenvectors.
      every: how many updates are made with one measurement.
      key: the random key of the first probes.
      learning_rate: of the Newton part, a number or a schedule of the count of updates; 1 for full
        batches, less the noisier the gradient.

    Returns:
      An optax transformation. `update` needs `params`. A measurement that is not finite is left
      out and counted in the state. Where some parameters are masked, as by `optax.masked` or
      `optax.partition`, the loss still needs all of them: give them as
      `update(g, state, params, whole_params=params)`; the curvature is that of the parameters that
      are not masked. Under `optax.inject_hyperparams` name `loss`, `probes`, `passes` and `every`
      in its `static_args`.

    Raises:
      TypeError, ValueError: for wrong options, masked parameters without `whole_params`, or as
        `lowrank_hessian` does.

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
      >>> round(float(state.sharpness))
      1002

      Mini-batches of 32 examples; the curvature is measured on 256:

      >>> inputs = jax.random.normal(jax.random.key(1), (256, 4)) * jnp.array([9.0, 1.0, 1.0, 1.0])
      >>> targets = inputs @ jnp.ones(4)
      >>> loss = lambda w, x, y: jnp.mean((x @ w - y) ** 2)
      >>> rate = optax.cosine_decay_schedule(0.5, decay_steps=40)
      >>> opt = precondition_top_curvature(
      ...     optax.adam(0.3), loss, probes=1, every=20, key=jax.random.key(0), learning_rate=rate
      ... )
      >>> @jax.jit
      ... def step(w, state, batch):
      ...     grads = jax.grad(loss)(w, *batch)
      ...     updates, state = opt.update(grads, state, w, curvature_args=(inputs, targets))
      ...     return optax.apply_updates(w, updates), state
      >>> w = jnp.zeros(4)
      >>> state = opt.init(w)
      >>> for i in range(40):
      ...     rows = slice(32 * (i % 8), 32 * (i % 8) + 32)
      ...     w, state = step(w, state, (inputs[rows], targets[rows]))
      >>> bool(loss(w, inputs, targets) < 1e-2)
      True
    """
    checks.instance(inner, "inner", optax.GradientTransformation)
    _static(checks.function, loss, "loss")
    for value, name in ((probes, "probes"), (passes, "passes"), (every, "every")):
        _static(checks.count, value, name, 1)
    checks.key(key)
    if not callable(learning_rate):
        checks.positive(learning_rate, "learning_rate")
    inner = optax.with_extra_args_support(inner)
    # The state has the key's data: whole numbers, which every wrapper can copy, scale and save.
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key_data: Callable = jax.random.key_data
        random_key: Callable = partial(jax.random.wrap_key_data, impl=jax.random.key_impl(key))
    else:
        key_data = random_key = jnp.asarray

    def init(params):
        params = checks.form(params, "params")
        rows = jax.tree.map(
            lambda x: jnp.broadcast_to(jnp.zeros_like(x), (probes, *x.shape)), params
        )
        dtype = structure.compute_dtype(params) if jax.tree.leaves(params) else jnp.float32
        values, number = jnp.zeros(probes, dtype), partial(jnp.zeros, ())
        # A copy of the key: a donated state must not take the caller's with it.
        data = jnp.copy(key_data(key))
        known = PreconditionTopCurvatureState(
            number(jnp.int32),
            data,
            values,
            rows,
            number(dtype),
            number(dtype),
            number(jnp.int32),
            inner=None,
        )
        return xla.vary_like(known, rows)._replace(inner=inner.init(params))

    def update(updates, state, params=None, *, curvature_args=(), whole_params=None, **extra_args):
        _require(params, "precondition_top_curvature")
        updates = checks.vector(updates, "updates")
        checks.like(updates, "updates", params, "params")
        if not jax.tree.leaves(updates):
            updates, inner_state = inner.update(updates, state.inner, params, **extra_args)
            return updates, state._replace(count=state.count + 1, inner=inner_state)
        fill = _filled(params, whole_params)

        def measured(known):
            key = random_key(known.key)
            options = Options(
                probes, passes, 1, known.eigenvectors, None, progress=False, found=known.step
            )
            at = expansion_at(lambda x, *args: loss(fill(x), *args), 0, False, options)
            key, now = jax.random.split(key)
            pairs = at((params, *curvature_args), now).pairs
            return _refreshed(known._replace(key=key_data(key)), pairs, probes)

        due = state.count % every == 0
        known = lax.cond(due, measured, lambda known: known, state._replace(inner=None))
        s, u = known.eigenvalues, known.eigenvectors

        along, rest = _split(updates, u)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        rate = jnp.asarray(rate, s.dtype)
        size = jnp.abs(s)
        size = size + jnp.finfo(s.dtype).eps ** 0.5 * jnp.max(size)
        newton = tall.combine(
            -rate * along.astype(s.dtype) * scaling.reciprocal(size), structure.widen(u)
        )
        rest, inner_state = inner.update(rest, state.inner, params, **extra_args)
        update = jax.tree.map(jnp.add, *structure.widen((newton, _split(rest, u)[1])))
        state = known._replace(count=state.count + 1, inner=inner_state)
        return structure.cast_like(update, rest), state

    return optax.GradientTransformationExtraArgs(init, update)


def _refreshed(state, pairs, probes):
    """The state with the eigenpairs of the fit to these pairs; without, where not finite."""
    values, vectors = fit(pairs).eigh()
    leading = structure.leading((values, vectors), probes)  # few parameters have fewer
    found = state._replace(
        eigenvalues=leading[0],
        eigenvectors=leading[1],
        sharpness=jnp.max(values),
        step=scaling.norms(jax.tree.map(lambda x: x[:1], pairs.steps))[0],
    )
    usable = tall.finite(leading)
    kept = jax.tree.map(lambda x, y: jnp.where(usable, x, y), found, state)
    return kept._replace(skipped=state.skipped + (~usable).astype(jnp.int32))


def _filled(params, whole):
    """The function that puts the masked parameters beside those it is given."""
    masked = partial(jax.tree.leaves, is_leaf=_is_masked)
    if not any(map(_is_masked, masked(params))):
        return lambda x: x
    if whole is None:
        raise ValueError(
            "precondition_top_curvature needs all parameters for its loss where some are masked: "
            "update(grads, state, params, whole_params=params)"
        )

    def fill(x):
        return jax.tree.map(
            lambda part, of_whole: of_whole if _is_masked(part) else part,
            x,
            whole,
            is_leaf=_is_masked,
        )

    return fill


def _is_masked(node):
    return isinstance(node, optax.MaskedNode)


def _static(check, value, *options):
    """A check of what `optax.inject_hyperparams` makes an array of, unless it is told not to."""
    try:
        check(value, *options)
    except TypeError as error:
        if not isinstance(value, jax.Array):
            raise
        raise TypeError(f"{error}: under optax.inject_hyperparams name it in static_args") from None


def _split(v, rows):
    """The coordinates of v in orthonormal rows, and the rest of it."""
    wide, rows = structure.widen((v, rows))
    return tall.gram(rows, wide), structure.cast_like(tall.project_out(wide, rows), v)


def _require(params, name):
    if params is None:
        raise ValueError(f"{name} needs the parameters, update(grads, state, params), got None")
