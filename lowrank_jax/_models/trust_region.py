"""The minimiser of a quadratic model over steps of bounded norm, and the step to a saddle."""

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._core import scaling, structure, tall
from lowrank_jax._core.types import Vector
from lowrank_jax._operators.symmetric import Operator, SymmetricLowRank


def minimiser_within(hessian: Operator, grad: Vector, radius: jax.Array) -> Vector:
    """The step of least `<grad, s> + <s, H s> / 2` with `|s| <= radius`, with its derivatives."""
    h, g = structure.widen((hessian, grad))
    radius = jnp.where(radius > 0, radius, jnp.nan)
    found, mu, on_boundary, resolvent = _minimiser(*lax.stop_gradient((h, g, radius)))
    radius = jnp.where(on_boundary > 0, radius, 1)
    length = scaling.norm(found)
    inverse_length = scaling.reciprocal(length)
    direction = jax.tree.map(lambda s: s * inverse_length, found)

    def optimality(unknowns):
        step, force = unknowns  # mu |s|: then the border of the Jacobian is a unit vector
        # A linear solve can be transposed only if all of its right side depends on the
        # input: whichever of h, g and radius that is, the tie does.
        bend = h.bilinear(direction, direction)
        tie = 0 * (bend + tall.dot(g, direction) + radius)
        weight = on_boundary * force * inverse_length
        residual = jax.tree.map(lambda hs, s, g: hs + weight * s + g + tie, h.mv(step), step, g)
        excess = jnp.where(on_boundary > 0, scaling.norm(step) - radius, force)
        return residual, excess + tie

    def bordered(_, right):
        """[[H + mu I, u], [u^T, 0]] inverted by elimination; u drops out in the interior."""
        vector, scalar = right
        p, q = resolvent(vector), resolvent(direction)
        along = tall.dot(direction, p) - scalar
        force = along * scaling.reciprocal(tall.dot(direction, q))
        force = jnp.where(on_boundary > 0, force, scalar)
        return jax.tree.map(lambda p, q: p - on_boundary * force * q, p, q), force

    step, _ = lax.custom_root(
        optimality,
        (found, mu * length),
        lambda _, guess: guess,
        lambda linear, right: lax.custom_linear_solve(linear, right, bordered, symmetric=True),
    )
    return structure.cast_like(step, grad)


def saddle_within(hessian: Operator, grad: Vector, radius: jax.Array) -> Vector:
    """The minimiser of the image of the model, upside down along the lowest eigenvector of H.

    With w and v the lowest eigenvalue and its eigenvector, the image has the Hessian
    `H - 2 w v v^T` and the gradient `g - 2 <g, v> v`.
    """
    h, g = structure.widen((hessian, grad))
    shift, s, u = _spectrum(h)
    outside = tall.project_out(tall.project_out(g, u), u)
    outside = tall.times(scaling.reciprocal(scaling.norm(outside)), outside)
    has_null = jnp.sum(s != 0) < h.shape[-1]
    values = jnp.append(jnp.where(s == 0, jnp.inf, s), jnp.where(has_null, 0, jnp.inf))
    lowest = jnp.argmin(values)
    chosen = (jnp.arange(len(values)) == lowest).astype(s.dtype)
    v = jax.tree.map(lambda x, y: x + chosen[-1] * y, tall.combine(chosen[:-1], u), outside)
    w = shift + values[lowest]
    v_row = jax.tree.map(lambda x: x[None], v)
    image = h + SymmetricLowRank(v_row, jnp.reshape(-2 * w, (1, 1)))
    return minimiser_within(image, structure.cast_like(_reflected(g, v), grad), radius)


def _reflected(g, v):
    along = tall.dot(g, v)
    return jax.tree.map(lambda x, y: x - 2 * along * y, g, v)


def _minimiser(h, g, radius):
    """The step of More and Sorensen and its mu, whether it is on the boundary, (H + mu I)^+."""
    shift, s, u = _spectrum(h)
    inside = tall.gram(u, g)
    outside = tall.project_out(tall.project_out(g, u), u)
    size = scaling.norm(g)
    noise = 8 * jnp.sqrt(len(s) + 1.0) * jnp.finfo(s.dtype).eps * size
    outside_size = scaling.norm(outside)
    has_null = jnp.sum(s != 0) < h.shape[-1]

    # The eigenvalues and g in the eigenbasis; all outside the span is one more direction.
    # A row that is no eigenvector has an infinite one, which nothing moves along.
    values = shift + jnp.append(jnp.where(s == 0, jnp.inf, s), jnp.where(has_null, 0, jnp.inf))
    c = jnp.append(inside, outside_size)
    least = jnp.maximum(-jnp.min(values), 0)
    gaps = values + least
    c = jnp.where((gaps == 0) & (jnp.abs(c) <= noise), 0, c)

    length = scaling.norm(_quotient(c, gaps))
    short = length < radius
    t = jnp.where(short, 0, _boundary(gaps, c, radius))
    step = -_quotient(c, gaps + t)
    hard = short & (least > 0)
    missing = jnp.sqrt(jnp.maximum(radius - length, 0) * (radius + length))
    lowest = jnp.argmin(values)
    step = step.at[lowest].add(jnp.where(hard, missing, 0))
    interior = short & ~hard
    mu = least + t
    spectrum = scaling.reciprocal(jnp.where(jnp.isinf(values), 0, gaps + t))

    def vector(coefficients, residue):
        return jax.tree.map(jnp.add, tall.combine(coefficients, u), residue)

    def resolvent(b):
        rest = tall.project_out(tall.project_out(b, u), u)
        rest = jax.tree.map(lambda leaf: spectrum[-1] * leaf, rest)
        return vector(spectrum[:-1] * tall.gram(u, b), rest)

    scale = step[-1] * scaling.reciprocal(outside_size)
    found = vector(step[:-1], jax.tree.map(lambda leaf: scale * leaf, outside))
    return found, mu, jnp.where(interior, 0, 1).astype(s.dtype), resolvent


def _spectrum(h):
    """A number, and the eigenpairs of what h has beside it times the identity."""
    if isinstance(h, SymmetricLowRank):
        return 0.0, *h.eigh()
    return h.diag, *h.low_rank.eigh()


def _boundary(gaps, c, radius):
    """The root t >= 0 of `|c / (gaps + t)| = radius`, where there is one.

    1 / length is concave and increasing in t: Newton's method on it rises to the root
    from any point to its left, such as the largest `|c_i| / radius - gaps_i`.
    """

    def newton(state):
        t, _, count = state
        step = _quotient(c, gaps + t)
        length = scaling.norm(step)
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
