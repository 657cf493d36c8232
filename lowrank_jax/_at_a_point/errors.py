"""How wrong the pairs of gradient differences are, by one gradient more in each pass.

The k pairs (s_i, y_i) of a pass, s_i of length h, are checked by a step to the other side of x from
all of them: were the pairs right, the gradient there would be g(x) minus their sum,

    error = | g(x - c sum s_i) - g(x) + c sum y_i | / (h c (1 + k / 2)),

with c = 1, and 2 for a single pair, to whose opposite all that is odd in the step is nothing. At a
kink that one of the steps crosses the check, on the other side, does not share in the jump. For
normal noise the quotient is 0.9 to 1.4 of the error of a pair, and for truncation, of which the
check has k times as much, 2 to 4 times; a jump in one pair alone counts 2 / (2 + k), or more where
`S Y^T` contradicts its transpose. The steps are those that are really taken, and so is their sum:
how x is rounded drops out.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax._at_a_point import krylov
from lowrank_jax._clouds.pairs import SecantPairs
from lowrank_jax._core import scaling, structure, tall, xla
from lowrank_jax._core.types import Rows, Vector


class Measured(NamedTuple):
    """What was measured of the pairs of the passes so far.

    Attributes:
      length: of the steps of the last pass.
      lengths: of each pair.
      errors: of each pair, in units of H.
      slopes: `|y| / h` of each pair.
      credible: what of the slope is not error.
    """

    length: jax.Array
    lengths: jax.Array
    errors: jax.Array
    slopes: jax.Array
    credible: jax.Array


@partial(jax.jit, static_argnums=1)
def nothing(x: Vector, count: int, found: jax.Array | float) -> Measured:
    """Nothing measured of that many pairs, whose length may have been found before."""
    dtype = structure.compute_dtype(x)
    length = jnp.where(found > 0, found, 1).astype(dtype)
    measured = Measured(length, jnp.ones(count, dtype), *3 * [jnp.zeros(count, dtype)])
    return xla.vary_like(measured, x)


def _weight(probes):
    """The c of this module's text."""
    return 2 if probes == 1 else 1


@partial(jax.jit, static_argnums=3)
def opposite(x: Vector, steps: Rows, offset: jax.Array, probes: int, h: jax.Array) -> Vector:
    """The step of the check of a pass, `-c sum s_i`, as the steps are taken with length h."""
    packed = structure.pack_vector(x)
    ahead = krylov.ahead(packed, steps, offset, probes, h)
    taken = jax.tree.map(lambda a, x: a - x[None], ahead, packed)
    total = jax.tree.map(lambda t, x: jnp.sum(t, axis=0).astype(x.dtype), taken, packed)
    return structure.unpack_vector(jax.tree.map(lambda t: -_weight(probes) * t, total), x)


@partial(jax.jit, static_argnums=3)
def noted(
    measured: Measured,
    pairs: SecantPairs,
    offset: jax.Array,
    probes: int,
    h: jax.Array,
    check: Vector,
) -> Measured:
    """With the error of a pass, by how far its pairs are off the quotient of their check.

    And with the slopes. What of one is credible is its part that is not along the difference, which
    is the jump where one pair alone has one, or the root of its square less that of twice the
    error, whichever is less.
    """
    weight = _weight(probes)
    grad_diffs = krylov.rows(pairs.grad_diffs, offset, probes)
    check = structure.pack(jax.tree.map(lambda leaf: leaf[None], check))
    total = jax.tree.map(lambda y: weight * jnp.sum(structure.widen(y), axis=0)[None], grad_diffs)
    off = tall.minus(total, check)
    missed, slopes = scaling.norms(off)[0], scaling.norms(grad_diffs)
    off = tall.times(scaling.reciprocal(missed), off)
    cosines = tall.gram(grad_diffs, off)[:, 0] * scaling.reciprocal(slopes)
    error = missed / (weight * (1 + probes / 2))
    error = jnp.where(jnp.isnan(error), jnp.inf, error)
    along = jnp.clip(cosines, 0, scaling.ratio(missed, slopes))
    across = jnp.maximum(1 + (along - 2 * cosines) * along, 0)
    without = jnp.maximum(1 - jnp.square(2 * scaling.ratio(error, slopes)), 0)
    credible = slopes * jnp.sqrt(jnp.minimum(across, without))

    def put(values, some):
        some = jnp.broadcast_to(some, probes).astype(values.dtype)
        return lax.dynamic_update_slice_in_dim(values, some, offset, 0)

    some = h, error, slopes, credible
    return Measured(h.astype(error.dtype), *map(put, measured[1:], some))


def rounding(measured: Measured, pairs: SecantPairs, probes: int) -> jax.Array:
    """The errors of unit pairs beside the largest slope, (n,); constants."""
    both = pairs[:2]
    # What of the errors contradicts symmetry, and is little in the sum of a pass.
    products = tall.gram(*both)
    contradictions = scaling.norms((products - products.T) / 2)
    contradictions = jnp.max(contradictions.reshape(-1, probes), axis=1)
    errors = jnp.maximum(measured.errors, jnp.repeat(contradictions, probes))
    # Beside slopes that are mostly error all errors would look small.
    largest = jnp.max(measured.credible)
    largest = jnp.where(largest > 0, largest, jnp.max(measured.slopes) / 8)
    # Where two steps agree to the last bit, the last bit is what is left to doubt.
    relative = jnp.maximum(scaling.ratio(errors, largest), structure.resolution(both))
    return lax.stop_gradient(relative)
