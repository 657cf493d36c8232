"""The local quadratic model of a loss, and the steps that minimise it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax import _checks, _losses, _rows
from lowrank_jax._spectral import reciprocal
from lowrank_jax.hessian import expansion_at, from_differences
from lowrank_jax.pairs import centered, evaluate
from lowrank_jax.secant import fit
from lowrank_jax.symmetric import SymmetricLowRank


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class QuadraticModel:
    """`m(s) = value + <grad, s> + <s, H s> / 2`, a function of the step s from the center.

    A pytree. Steps are vectors, with the structure of the center. The methods raise a ValueError
    for a gradient that does not fit the Hessian.

    Attributes:
      center: the point that steps start from.
      value: the model's value there, a scalar.
      grad: its gradient there.
      hessian: its Hessian, `SymmetricLowRank`.

    Example:
      >>> import jax.numpy as jnp
      >>> h = SymmetricLowRank(jnp.eye(2), jnp.diag(jnp.array([2.0, -1.0])))
      >>> model = QuadraticModel(jnp.zeros(2), jnp.array(1.0), jnp.array([2.0, 0.0]), h)
      >>> model.predict(jnp.array([-1.0, 0.0]))
      Array(0., dtype=float32)
      >>> step = model.trust_region_step(radius=2.0)
      >>> round(float(model.predicted_change(step)), 4)
      -2.6667
    """

    center: Any
    value: jax.Array
    grad: Any
    hessian: SymmetricLowRank

    @jax.jit
    def predicted_change(self, step: Any) -> jax.Array:
        """`<grad, s> + <s, H s> / 2`, a scalar.

        The first term is what the gradient alone predicts. A step against the gradient
        falls by exactly that where there is no curvature along it, by less where it is
        positive, by more where it is negative.

        Raises:
          TypeError: for leaves that are not real floating-point arrays.
          ValueError: where the step does not have the structure and shapes of the center.
        """
        self._check()
        step = _checks.vector(step, "step")
        _checks.like(step, "step", self.grad, "the gradient")
        fall, curvature = _rows.dot(self.grad, step), self.hessian.bilinear(step, step)
        dtype = _rows.wider(fall.dtype, curvature.dtype)
        return fall.astype(dtype) + curvature.astype(dtype) / 2

    @jax.jit
    def predict(self, step: Any) -> jax.Array:
        """`value + <grad, s> + <s, H s> / 2`, a scalar; the same errors as `predicted_change`."""
        _checks.scalar(self.value, "value")
        change = self.predicted_change(step)
        dtype = _rows.wider(self.value.dtype, change.dtype)
        return self.value.astype(dtype) + change.astype(dtype)

    def newton_step(self, damping: float | jax.Array) -> Any:
        """`-(H + damping I)^-1 grad`: a descent step where `H + damping I` is positive definite.

        Raises:
          ValueError: for a damping that is not above 0; a traced one gives NaN.
        """
        self._check()
        return jax.tree.map(jnp.negative, self.hessian.solve(self.grad, damping))

    @jax.jit
    def cauchy_step(self) -> Any:
        """The minimiser along the negative gradient, `-(<g, g> / <g, H g>) g`.

        Zero where the gradient is; NaN where the curvature along it is not positive and the
        model has no minimiser along it.
        """
        self._check()
        h, g = _rows.widen((self.hessian, self.grad))
        size = _rows.norm(g)
        unit = jax.tree.map(lambda leaf: leaf * reciprocal(size), g)
        curvature = h.bilinear(unit, unit)
        length = jnp.where((curvature > 0) | (size == 0), size * reciprocal(curvature), jnp.nan)
        return _rows.cast_like(jax.tree.map(lambda leaf: -length * leaf, unit), self.grad)

    def trust_region_step(self, radius: float | jax.Array) -> Any:
        """The minimiser of the model over all steps of Euclidean norm at most `radius`.

        Exact, also where H is indefinite or the gradient has no part along its lowest
        eigenvectors (the hard case): the step s is the global minimiser if and only if for some
        mu >= 0, positive only where |s| = radius,

            (H + mu I) s = -grad,    H + mu I positive semidefinite.

        mu is found in the eigenbasis of H, in which all outside the factors' span is
        one more eigenvector, of eigenvalue zero. With an infinite radius the step is that to
        the unconstrained minimiser, not finite where there is none. The derivatives
        are those of these equations. They do not exist in the hard case and where the
        unconstrained minimiser lies on the boundary; the step is finite there, and so are they.

        Raises:
          ValueError: for a radius that is not above 0; a traced one gives NaN.

        Source: More and Sorensen, Computing a trust region step, SIAM J. Sci. Stat. Comput.
        4 (1983); the derivatives by the implicit function theorem.
        """
        self._check()
        _checks.positive(radius, "radius")
        dtype = _rows.compute_dtype((self.hessian, self.grad))
        return self._trust_region_step(jnp.asarray(radius, dtype))

    @jax.jit
    def _trust_region_step(self, radius):
        h, g = _rows.widen((self.hessian, self.grad))
        radius = jnp.where(radius > 0, radius, jnp.nan)
        found, mu, on_boundary, resolvent = _minimiser(*lax.stop_gradient((h, g, radius)))
        radius = jnp.where(on_boundary > 0, radius, 1)
        length = _rows.norm(found)
        inverse_length = reciprocal(length)
        direction = jax.tree.map(lambda s: s * inverse_length, found)

        def optimality(unknowns):
            step, force = unknowns  # mu |s|: then the border of the Jacobian is a unit vector
            # A linear solve can be transposed only if all of its right side depends on the
            # input: whichever of h, g and radius that is, the tie does.
            bend = h.bilinear(direction, direction)
            tie = 0 * (bend + _rows.dot(g, direction) + radius)
            weight = on_boundary * force * inverse_length
            residual = jax.tree.map(lambda hs, s, g: hs + weight * s + g + tie, h.mv(step), step, g)
            excess = jnp.where(on_boundary > 0, _rows.norm(step) - radius, force)
            return residual, excess + tie

        def bordered(_, right):
            """[[H + mu I, u], [u^T, 0]] inverted by elimination; u drops out in the interior."""
            vector, scalar = right
            p, q = resolvent(vector), resolvent(direction)
            along = _rows.dot(direction, p) - scalar
            force = along * reciprocal(_rows.dot(direction, q))
            force = jnp.where(on_boundary > 0, force, scalar)
            return jax.tree.map(lambda p, q: p - on_boundary * force * q, p, q), force

        step, _ = lax.custom_root(
            optimality,
            (found, mu * length),
            lambda _, guess: guess,
            lambda linear, right: lax.custom_linear_solve(linear, right, bordered, symmetric=True),
        )
        return _rows.cast_like(step, self.grad)

    def _check(self):
        """What the parts of a model that was put together by hand must be."""
        _checks.instance(self.hessian, "hessian", SymmetricLowRank)
        _checks.single(self.hessian.core)
        grad = _checks.vector(self.grad, "grad")
        _checks.like(grad, "grad", self.hessian.factors, "a factor of hessian", pattern_lead=1)


def quadratic_model(
    loss: Callable,
    argnums: _losses.Argnums = 0,
    *,
    has_aux: bool = False,
    extrapolate: float | jax.Array = 2 / 3,
    batch_size: int | None = None,
) -> Callable:
    """The quadratic model of a loss on a cloud of points, from its values and gradients.

    `quadratic_model(loss)(points)` is centered at the mean of the points. Its gradient is
    the mean of theirs, its Hessian that of `secant_hessian`, and its value

        mean_i f(x_i) - mean_i <s_i, y_i> / 2

    for the centered pairs: all exact for a quadratic loss, H along the steps. A plain
    function: compose it with `jit`, `vmap` and `grad`.

    Args:
      loss: a scalar function; it is differentiated once, in argument `argnums`.
      argnums: the argument that is a stack of points, or a tuple of such
        arguments; the others are shared by all points.
      has_aux: the loss returns `(value, aux)`.
      extrapolate: in [0, 1], how H continues outside the span of the steps; see `fit`.
      batch_size: how many gradients are computed at once; None computes all by `jax.vmap`.

    Returns:
      A function of the loss's arguments, in their order, with n points in place of one. It
      returns a `QuadraticModel`, or `(QuadraticModel, aux)` with aux stacked over points.

    Raises:
      TypeError: for points that are not real floating-point arrays, or such a value of the loss.
      ValueError: for no points, leading axes that differ, a loss that is not scalar, or
        `extrapolate` outside [0, 1].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda x: jnp.sum((x - 3.0) ** 2)
      >>> points = jax.random.normal(jax.random.key(0), (4, 3))
      >>> model = quadratic_model(loss)(points)
      >>> minimum = model.center + model.newton_step(damping=1e-6)
      >>> bool(jnp.allclose(minimum, 3.0, atol=1e-3))
      True
    """
    _checks.between(extrapolate, "extrapolate", 0, 1)
    if batch_size is not None:
        _checks.count(batch_size, "batch_size", 1)

    def model_of_points(*args):
        points, values, grads, aux = evaluate(loss, argnums, args, has_aux, batch_size)
        pairs = centered(points, grads)
        center, steps = _mean_and_deviations(points)
        grad, grad_diffs = _mean_and_deviations(grads)
        dtype = _rows.wider(values.dtype, _rows.compute_dtype(steps))
        values = values.astype(dtype)
        falls = jax.vmap(_rows.dot)(steps, grad_diffs).astype(dtype)
        model = QuadraticModel(
            center=_rows.cast_like(center, points),
            value=values[0] + jnp.mean(values - values[0]) - jnp.mean(falls) / 2,
            grad=_rows.cast_like(grad, grads),
            hessian=fit(pairs, extrapolate=extrapolate),
        )
        return (model, aux) if has_aux else model

    return model_of_points


def quadratic_model_at(
    loss: Callable,
    probes: int,
    argnums: _losses.Argnums = 0,
    *,
    has_aux: bool = False,
    passes: int = 2,
    extrapolate: float | jax.Array = 2 / 3,
    batch_size: int | None = None,
    start: Any = None,
    step: float | jax.Array | None = None,
) -> Callable:
    """The quadratic model of a loss at a point: its value and gradient, and `lowrank_hessian`.

    `probes * passes + 1` gradients, the one at the point among them. A plain function:
    compose it with `jit`, `vmap` and `grad`.

    Args:
      loss: a scalar function; it is differentiated once, in argument `argnums`.
      probes: how many gradients a pass takes.
      argnums: the argument that is the point, or a tuple of such arguments.
      has_aux: the loss returns `(value, aux)`.
      passes: how many passes; see `probe_pairs`.
      extrapolate: in [0, 1], how H continues outside the span of the steps; see `fit`.
      batch_size: how many gradients are computed at once; None computes all by `jax.vmap`.
      start: directions of the first pass instead of random ones; see `probe_pairs`.
      step: the length of the steps instead of the default, sqrt(eps) |x|.

    Returns:
      A function of the loss's arguments, in their order, and the keyword `key`, one random key. It
      returns a `QuadraticModel` centered at the point, or `(QuadraticModel, aux)`.

    Raises:
      TypeError, ValueError: as `lowrank_hessian` does.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda x: jnp.sum((x - 3.0) ** 2)
      >>> model = quadratic_model_at(loss, 3)(jnp.ones(4), key=jax.random.key(0))
      >>> minimum = model.center + model.newton_step(damping=1e-6)
      >>> bool(jnp.allclose(minimum, 3.0, atol=1e-2))
      True
    """
    curvature = from_differences(probes, passes, extrapolate, batch_size, start, step)
    expansion = expansion_at(loss, argnums, has_aux, curvature)

    def model_at(*args, key):
        at = expansion(args, key)
        model = QuadraticModel(at.point, at.value, at.grad, at.hessian)
        return (model, at.aux) if has_aux else model

    return model_at


def _mean_and_deviations(rows):
    """Widened; the first row is subtracted first, as in `centered`, to lose no digits."""
    rows = _rows.widen(rows)
    near = jax.tree.map(lambda x: x - x[:1], rows)
    offset = jax.tree.map(lambda x: jnp.mean(x, axis=0), near)
    mean = jax.tree.map(lambda x, d: x[0] + d, rows, offset)
    return mean, jax.tree.map(lambda x, d: x - d[None], near, offset)


def _minimiser(h, g, radius):
    """The step of More and Sorensen and its mu, whether it is on the boundary, (H + mu I)^+."""
    s, u = h.eigh()
    inside = _rows.gram(u, g)
    outside = _rows.reject(_rows.reject(g, u), u)
    size = _rows.norm(g)
    noise = 8 * jnp.sqrt(len(s) + 1.0) * jnp.finfo(s.dtype).eps * size
    outside_size = _rows.norm(outside)
    has_null = jnp.sum(s != 0) < h.shape[-1]

    # The eigenvalues and g in the eigenbasis; all outside the span is one more direction.
    # A row that is no eigenvector has an infinite one, which nothing moves along.
    values = jnp.append(jnp.where(s == 0, jnp.inf, s), jnp.where(has_null, 0, jnp.inf))
    c = jnp.append(inside, outside_size)
    least = jnp.maximum(-jnp.min(values), 0)
    gaps = values + least
    c = jnp.where((gaps == 0) & (jnp.abs(c) <= noise), 0, c)

    length = _rows.norm(_quotient(c, gaps))
    short = length < radius
    t = jnp.where(short, 0, _boundary(gaps, c, radius))
    step = -_quotient(c, gaps + t)
    hard = short & (least > 0)
    missing = jnp.sqrt(jnp.maximum(radius - length, 0) * (radius + length))
    lowest = jnp.argmin(values)
    step = step.at[lowest].add(jnp.where(hard, missing, 0))
    interior = short & ~hard
    mu = least + t
    spectrum = reciprocal(jnp.where(jnp.isinf(values), 0, gaps + t))

    def vector(coefficients, residue):
        return jax.tree.map(jnp.add, _rows.combine(coefficients, u), residue)

    def resolvent(b):
        rest = _rows.reject(_rows.reject(b, u), u)
        rest = jax.tree.map(lambda leaf: spectrum[-1] * leaf, rest)
        return vector(spectrum[:-1] * _rows.gram(u, b), rest)

    scale = step[-1] * reciprocal(outside_size)
    found = vector(step[:-1], jax.tree.map(lambda leaf: scale * leaf, outside))
    return found, mu, jnp.where(interior, 0, 1).astype(s.dtype), resolvent


def _boundary(gaps, c, radius):
    """The root t >= 0 of `|c / (gaps + t)| = radius`, where there is one.

    1 / length is concave and increasing in t: Newton's method on it rises to the root
    from any point to its left, such as the largest `|c_i| / radius - gaps_i`.
    """

    def newton(state):
        t, _, count = state
        step = _quotient(c, gaps + t)
        length = _rows.norm(step)
        unit = step / length
        rise = (length / radius - 1) / jnp.sum(unit * _quotient(unit, gaps + t))
        return jnp.where(rise > 0, t + rise, t), t, count + 1

    def rising(state):
        t, before, count = state
        return (t > before) & (count < 100)

    start = jnp.maximum(jnp.max(jnp.abs(c) / radius - jnp.where(c == 0, jnp.inf, gaps)), 0)
    return lax.while_loop(rising, newton, (start, -jnp.ones_like(start), 0))[0]


def _quotient(a, b):
    """The quotient, 0 where a is 0."""
    return jnp.where(a == 0, 0, a / jnp.where(a == 0, 1, b))
