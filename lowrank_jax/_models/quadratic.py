"""The local quadratic model of a loss."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from lowrank_jax._at_a_point.differences import Options, checked
from lowrank_jax._at_a_point.expansion import expansion_at
from lowrank_jax._clouds.fit import fit
from lowrank_jax._clouds.pairs import centered, evaluate
from lowrank_jax._core import checks, scaling, structure, tall
from lowrank_jax._core.types import Argnums, Loss, Rows, Scalar, Solver, Vector
from lowrank_jax._models.trust_region import minimiser_within, saddle_within
from lowrank_jax._operators.diagonal import DiagonalPlusLowRank
from lowrank_jax._operators.shifted import is_number
from lowrank_jax._operators.symmetric import Operator, check_operator


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
      hessian: its Hessian, `SymmetricLowRank` or `DiagonalPlusLowRank`.

    Example:
      >>> import jax.numpy as jnp
      >>> from lowrank_jax import SymmetricLowRank
      >>> h = SymmetricLowRank(jnp.eye(2), jnp.diag(jnp.array([2.0, -1.0])))
      >>> model = QuadraticModel(jnp.zeros(2), jnp.array(1.0), jnp.array([2.0, 0.0]), h)
      >>> model.predict(jnp.array([-1.0, 0.0]))
      Array(0., dtype=float32)
      >>> step = model.trust_region_step(radius=2.0)
      >>> round(float(model.predicted_change(step)), 4)
      -2.6667
      >>> model.saddle_step(radius=2.0)
      Array([-1.,  0.], dtype=float32)
    """

    center: Vector
    value: jax.Array
    grad: Vector
    hessian: Operator

    @jax.jit
    def predicted_change(self, step: Vector) -> jax.Array:
        """Computes `<grad, s> + <s, H s> / 2`, a scalar.

        The first term is what the gradient alone predicts. A step against the gradient
        falls by exactly that where there is no curvature along it, by less where it is
        positive, by more where it is negative.

        Raises:
          TypeError: for leaves that are not real floating-point arrays.
          ValueError: where the step does not have the structure and shapes of the center.
        """
        self._check()
        step = checks.vector(step, "step")
        checks.like(step, "step", self.grad, "the gradient")
        fall, curvature = tall.dot(self.grad, step), self.hessian.bilinear(step, step)
        dtype = structure.wider(fall.dtype, curvature.dtype)
        return fall.astype(dtype) + curvature.astype(dtype) / 2

    @jax.jit
    def predict(self, step: Vector) -> jax.Array:
        """Computes `value + <grad, s> + <s, H s> / 2`; the same errors as `predicted_change`."""
        checks.scalar(self.value, "value")
        change = self.predicted_change(step)
        dtype = structure.wider(self.value.dtype, change.dtype)
        return self.value.astype(dtype) + change.astype(dtype)

    def newton_step(self, damping: Scalar) -> Vector:
        """Returns `-(H + damping I)^-1 grad`.

        It is a descent step where `H + damping I` is positive definite.

        Raises:
          ValueError: for a damping that is not above 0; a traced one gives NaN.
        """
        self._check()
        return jax.tree.map(jnp.negative, self.hessian.solve(self.grad, damping))

    @jax.jit
    def cauchy_step(self) -> Vector:
        """Returns the minimiser along the negative gradient, `-(<g, g> / <g, H g>) g`.

        Zero where the gradient is; NaN where the curvature along it is not positive and the
        model has no minimiser along it.
        """
        self._check()
        h, g = structure.widen((self.hessian, self.grad))
        size = scaling.norm(g)
        unit = jax.tree.map(lambda leaf: leaf * scaling.reciprocal(size), g)
        curvature = h.bilinear(unit, unit)
        length = jnp.where(
            (curvature > 0) | (size == 0), size * scaling.reciprocal(curvature), jnp.nan
        )
        return structure.cast_like(jax.tree.map(lambda leaf: -length * leaf, unit), self.grad)

    def trust_region_step(self, radius: Scalar) -> Vector:
        """Returns the minimiser of the model over all steps of Euclidean norm at most `radius`.

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
          ValueError: for a radius that is not above 0; a traced one gives NaN. Also for a Hessian
            with a diagonal of one number a coordinate, which has no eigenbasis of low rank: scale
            the variables by its square root, and it is the identity.

        Source: More and Sorensen, Computing a trust region step, SIAM J. Sci. Stat. Comput.
        4 (1983); the derivatives by the implicit function theorem.
        """
        return self._within(minimiser_within, radius, "trust_region_step")

    def saddle_step(self, radius: Scalar) -> Vector:
        """Returns a step of norm at most `radius` up along the lowest eigenvector, down otherwise.

        With w the lowest eigenvalue of H and v its eigenvector, it is the `trust_region_step` of
        the model's image, which is upside down along v: H becomes `H - 2 w v v^T`, and g
        becomes `g - 2 <g, v> v`. Where w alone is negative and the Newton step is within the
        radius, it is the Newton step, to the saddle of index one. Elsewhere it climbs along v,
        out of a minimum too, and descends along the rest: repeated, with a new gradient
        and `fit(pairs, base=hessian)` as the new Hessian, it leads to transition states.

        Outside the factors' span all eigenvalues are zero, or the number on the diagonal: where
        they are the lowest, v is the direction of the gradient there.

        Raises:
          ValueError: as `trust_region_step` does.

        Source: Helgaker, Transition-state optimizations by trust-region image minimization,
        Chem. Phys. Lett. 182 (1991).
        """
        return self._within(saddle_within, radius, "saddle_step")

    def _within(self, step, radius, name):
        self._check()
        checks.positive(radius, "radius")
        if isinstance(self.hessian, DiagonalPlusLowRank) and not is_number(self.hessian.diag):
            raise ValueError(f"{name} needs a Hessian whose diagonal is one number")
        dtype = structure.compute_dtype((self.hessian, self.grad))
        return _step_within(step, self.hessian, self.grad, jnp.asarray(radius, dtype))

    def _check(self):
        """What the parts of a model that was put together by hand must be."""
        factors = check_operator(self.hessian, "hessian")
        grad = checks.vector(self.grad, "grad")
        checks.like(grad, "grad", factors, "a factor of hessian", pattern_lead=1)


def quadratic_model(
    loss: Loss,
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    solver: Solver = fit,
    batch_size: int | None = None,
) -> Callable:
    """Makes the quadratic model of a loss on a cloud of points, from its values and gradients.

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
      solver: a function of pairs to the operator, such as `partial(fit, extrapolate=1)`; see `fit`.
      batch_size: how many gradients are computed at once; None computes all by `jax.vmap`.

    Returns:
      A function of the loss's arguments, in their order, with n points in place of one. It
      returns a `QuadraticModel`, or `(QuadraticModel, aux)` with aux stacked over points.

    Raises:
      TypeError: for points that are not real floating-point arrays, such a value of the loss, or
        a solver that returns no operator.
      ValueError: for no points, leading axes that differ, or a loss that is not scalar.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda x: jnp.sum((x - 3.0) ** 2)
      >>> points = jax.random.normal(jax.random.key(0), (4, 3))
      >>> model = quadratic_model(loss)(points)
      >>> minimum = model.center + model.newton_step(damping=1e-6)
      >>> bool(jnp.allclose(minimum, 3.0, atol=1e-3))
      True
    """
    checks.function(solver, "solver")
    if batch_size is not None:
        checks.count(batch_size, "batch_size", 1)

    def model_of_points(*args):
        points, values, grads, aux = evaluate(loss, argnums, args, has_aux, batch_size)
        pairs = centered(points, grads)
        center, steps = _mean_and_deviations(points)
        grad, grad_diffs = _mean_and_deviations(grads)
        dtype = structure.wider(values.dtype, structure.compute_dtype(steps))
        values = values.astype(dtype)
        falls = jax.vmap(tall.dot)(steps, grad_diffs).astype(dtype)
        model = QuadraticModel(
            center=structure.cast_like(center, points),
            value=values[0] + jnp.mean(values - values[0]) - jnp.mean(falls) / 2,
            grad=structure.cast_like(grad, grads),
            hessian=_operator(solver(pairs)),
        )
        return (model, aux) if has_aux else model

    return model_of_points


def quadratic_model_at(
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
    progress: bool = False,
) -> Callable:
    """Makes the quadratic model of a loss at a point: value, gradient and `lowrank_hessian`.

    As many gradients as `lowrank_hessian` takes. A plain function: compose it with `jit`, `vmap`
    and `grad`.

    Args:
      loss: a scalar function; it is differentiated once, in argument `argnums`.
      probes: how many gradients a pass takes.
      argnums: the argument that is the point, or a tuple of such arguments.
      has_aux: the loss returns `(value, aux)`.
      passes: how many passes; see `probe_pairs`.
      solver: a function of pairs to the operator, such as `partial(fit, extrapolate=1)`; see `fit`.
      batch_size: how many gradients are computed at once; None computes all by `jax.vmap`.
      start: directions of the first pass instead of random ones; see `probe_pairs`.
      step: the length of the steps instead of a measured one; see `lowrank_hessian`.
      progress: shows a progress bar over the gradients (needs tqdm) where nothing is traced.

    Returns:
      A function of the loss's arguments, in their order, and the keyword `key`, one random key. It
      returns a `QuadraticModel` centered at the point, or `(QuadraticModel, aux)`.

    Raises:
      TypeError, ValueError: as `lowrank_hessian` does, or a TypeError for a solver that returns no
        operator.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda x: jnp.sum((x - 3.0) ** 2)
      >>> model = quadratic_model_at(loss, 3)(jnp.ones(4), key=jax.random.key(0))
      >>> minimum = model.center + model.newton_step(damping=1e-6)
      >>> bool(jnp.allclose(minimum, 3.0, atol=1e-2))
      True
    """
    checks.function(solver, "solver")
    options = checked(Options(probes, passes, batch_size, start, step, progress))
    expansion = expansion_at(loss, argnums, has_aux, options)

    def model_at(*args, key):
        at = expansion(args, key)
        model = QuadraticModel(at.point, at.value, at.grad, _operator(solver(at.pairs)))
        return (model, at.aux) if has_aux else model

    return model_at


@partial(jax.jit, static_argnums=0)
def _step_within(step, hessian, grad, radius):
    return step(hessian, grad, radius)


def _operator(hessian):
    check_operator(hessian, "what solver returned")
    return hessian


def _mean_and_deviations(rows):
    """Widened; the first row is subtracted first, as in `centered`, to lose no digits."""
    rows = structure.widen(rows)
    near = jax.tree.map(lambda x: x - x[:1], rows)
    offset = jax.tree.map(lambda x: jnp.mean(x, axis=0), near)
    mean = jax.tree.map(lambda x, d: x[0] + d, rows, offset)
    return mean, jax.tree.map(lambda x, d: x - d[None], near, offset)
