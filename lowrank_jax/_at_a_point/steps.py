"""The length of a gradient difference's step, measured along the direction that it is taken in.

The error of a quotient `q(h) = (g(x + h v) - g(x)) / h` is the noise of the gradients over h, and
truncation that grows as h^p; p is 1, or 2 for central differences. No multiple of |x| balances
them: by how much the best step differs between two directions at one point may be 2^8. So some
quotients are taken and compared. All steps of a comparison are collinear, neighbours on
opposite sides of x: at a kink at x itself all steps to one side can agree, and be wrong.

    s_1 = fl(x + h_1 v) - x,    x + (-1)^k 2^(a_k) s_1,

exact for whole a_k, so that how x is rounded drops out of it. From the disagreements
`D_k = |q_k - q_(k+1)|` of neighbours, where noise or truncation rules,

    noise = min D_k h_k,    truncation = min D_k / h_(k+1)^p,
    h = (noise / (p truncation))^(1 / (p + 1)),

the minima near the first rung from below where neighbours agree: to better than a half, and better
than those above; of all rungs where none do, as with gradients so noisy that the steps where they
would agree lie between two rungs. (Where q_k is zero its step may be too short for the gradient to
see, and D_k is the noise of the other over h_(k+1).) Noise rules until D_k h_k has risen, to four
times its least. If those two, the first where truncation rules, disagree by more than a half, D_k
is that of another place and no longer grows with the step, nor do those above. Truncation is
somewhere between

    min(D_k, |q_k|) / h_(k+1)^p    and the least D_j / h_(j+1)^p where noise rules, j < k,

the closer to the middle of their logarithms the more those two disagree.

First all this on a ladder of six rungs from the resolution of x to 64 |x|, then on
three about the result, 16 times as long as one another; another pass takes those three alone,
about the step of the pass before (the second one, which turns to leading directions, about a
sixteenth of it). On the three, where one of noise and truncation may rule
everywhere, each is what is left without the other: truncation is linear in (-16)^k (in 256^k for
central differences), so with w = 1 / 16 (-1 / 256)

    noise <= |q_1 - q_2 - w (q_3 - q_2)| h_1,    truncation <= (D_2 - noise / h_2) / h_3^p.

The rule is a heuristic; its numbers were chosen on the problems of `benchmarks/step_problems.py`,
and on others like them with more noise.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowrank_jax._core import programs, scaling, structure, tall, xla
from lowrank_jax._core.types import Vector

LADDER = 6  # rungs
TOP = 6  # of the ladder, in octaves above |x|
ORIGIN = -50  # its lowest rung where x = 0, in octaves above 1
BELOW = 4  # octaves from the lowest rung of the zoom to what it is about
ZOOM = (0, 4, 8)  # its rungs, in octaves above the lowest
RUNGS = LADDER + len(ZOOM)
RISE = 2  # of D_k h_k to where noise rules no longer, in octaves


class Search(NamedTuple):
    """What is known of the quotients along one direction, rung by rung; lengths are powers of two.

    Attributes:
      floor: the exponent of the shortest step that x resolves.
      center: that of the length that the zoom is about.
      base: that of h_1.
      quotient: the last one.
      earlier: the one before it.
      bend: how far the first quotient of the zoom is from the line through the other two.
      exponents: (RUNGS,), of the lengths.
      sizes: (RUNGS,), of the quotients; negative for rungs that were left out.
      gaps: (RUNGS,), between a quotient and the one before it; infinite where there is none.
    """

    floor: jax.Array
    center: jax.Array
    base: jax.Array
    quotient: Vector
    earlier: Vector
    bend: jax.Array
    exponents: jax.Array
    sizes: jax.Array
    gaps: jax.Array


def measured(
    slope: Callable[[Vector], Vector],
    x: Vector,
    v: Vector,
    *,
    power: int = 1,
    eps: float = 0.0,
    before: jax.Array | None = None,
    first: jax.Array | bool = True,
    known: jax.Array | bool = False,
    last: Callable[[jax.Array], Vector] | None = None,
) -> tuple[jax.Array, Vector]:
    """The length h of the best step along a unit vector, and the quotient `-slope(last(h)) / h`.

    Args:
      slope: `slope(s)`, the difference of gradients for a step s; not differentiated.
      x: the point.
      v: the direction; along a zero vector every step is as good.
      power: p.
      eps: the resolution of the gradients, if it is coarser than that of x.
      before: the length of a step that was found before, for the zoom to begin with.
      first: whether to climb the ladder before.
      known: whether `before` is the length already; then nothing is measured.
      last: `last(h)`, one more step, for the caller to compare its quotient with others; not
        differentiated. None leaves it out.
    """
    x, v = lax.stop_gradient((x, v))
    search = _begun(x, eps, before)
    end = RUNGS if last is None else RUNGS + 1
    if programs.traced(x, v, before, first, known):
        slope, closed = jax.closure_convert(slope, v)
        closed = lax.stop_gradient(closed)

        def take(i, search):
            search, step = _aimed(search, x, v, i, power)
            if last is not None:
                step = lax.cond(i == RUNGS, last, lambda h: step, _two_to(search.base))
            return _noted(search, slope(step, *closed), i, power)

        begin = jnp.where(known, end, jnp.where(first, 0, LADDER))
        search = lax.fori_loop(begin, end, take, search)
    else:
        i = end if known else 0 if first else LADDER
        while i < end:
            search, step = _aimed(search, x, v, i, power)
            if last is not None and i == RUNGS:
                step = last(_length(search, power))
            search = _noted(search, slope(step), i, power)
            # No further up than it must: a long step can break what it is to measure.
            i = LADDER if i < LADDER and _settled(search) else i + 1
    length = _length(search, power)
    if before is not None:
        length = jnp.where(known, before, length)
    return lax.stop_gradient((length, search.quotient))


@jax.jit
def _begun(x, eps, before):
    size = scaling.norm(x)
    origin = size == 0
    octave = jnp.floor(jnp.log2(jnp.where(origin, 1, size)))
    own = jnp.asarray(2 * structure.resolution(x), size.dtype)
    lowest = jnp.where(origin, ORIGIN, jnp.log2(jnp.maximum(own, eps)))
    rungs = jnp.arange(LADDER, dtype=size.dtype) / (LADDER - 1)
    ladder = octave + jnp.round(lowest + rungs * (TOP - lowest))
    search = Search(
        floor=jnp.where(origin, -jnp.inf, octave + jnp.log2(own)),
        center=ladder[0] + BELOW if before is None else jnp.round(jnp.log2(before)),
        base=ladder[0],
        quotient=jax.tree.map(jnp.zeros_like, x),
        earlier=jax.tree.map(jnp.zeros_like, x),
        bend=jnp.zeros_like(size),
        exponents=jnp.concatenate([ladder, jnp.zeros(len(ZOOM), size.dtype)]),
        sizes=jnp.full(RUNGS, -1, size.dtype),
        gaps=jnp.full(RUNGS, jnp.inf, size.dtype),
    )
    return xla.vary_like(search, x)


@partial(jax.jit, static_argnums=4)
def _aimed(search, x, v, i, power):
    """The search on its way to the i-th rung, and the step to be taken there.

    After the last rung comes the step that was found.
    """
    ladder = jax.tree.map(lambda r: r[:LADDER], search[-3:])
    climbed = jnp.any(search.sizes[:LADDER] >= 0)
    center = jnp.where((i == LADDER) & climbed, _optimum(*ladder, power), search.center)
    lowest = jnp.maximum(center - BELOW, search.floor)
    zoom = lowest + jnp.array(ZOOM, lowest.dtype)
    exponents = jnp.where(i == LADDER, search.exponents.at[LADDER:].set(zoom), search.exponents)
    search = search._replace(center=center, exponents=exponents)
    base = jnp.where(i == 0, exponents[0], search.base)
    base = jnp.where(i == LADDER, lowest, jnp.where(i == RUNGS, _exponent(search, power), base))
    moved = tall.axpy(x, _two_to(base), v)
    step = jax.tree.map(lambda y, x: (y - x).astype(x.dtype), moved, x)
    factor = _side(i) * _two_to(_of_rung(search._replace(base=base), i) - base)
    return search._replace(base=base), tall.times(factor.astype(base.dtype), step)


@partial(jax.jit, static_argnums=3, donate_argnums=0)
def _noted(search, difference, i, power):
    """The search with the quotient at the i-th rung."""
    # In two steps: the power alone may be out of range.
    exponent = _of_rung(search, i)
    half = jnp.round(exponent / 2)
    signed = (_side(i) * _two_to(-half)).astype(half.dtype)
    quotient = tall.times(_two_to(half - exponent), tall.times(signed, difference))
    moved = tall.minus(quotient, search.quotient)
    gap = scaling.norm(moved)
    line = jnp.asarray(-_line(power), half.dtype)
    bend = scaling.norm(tall.axpy(tall.minus(search.earlier, search.quotient), line, moved))
    alone = (i == 0) | (i == LADDER)
    return search._replace(
        quotient=quotient,
        earlier=search.quotient,
        bend=jnp.where(i == RUNGS - 1, bend, search.bend),
        sizes=search.sizes.at[i].set(scaling.norm(quotient), mode="drop"),
        gaps=search.gaps.at[i].set(jnp.where(alone, jnp.inf, gap), mode="drop"),
    )


@jax.jit
def _settled(search):
    """Whether the ladder need not be climbed any further."""
    sizes, gaps = search.sizes, search.gaps
    agree, _ = _agreement(sizes[:LADDER], gaps[:LADDER])
    climbed = sizes[2:LADDER]
    return jnp.any(agree[:-1] & ((climbed >= 0) | jnp.isnan(climbed)))


@partial(jax.jit, static_argnums=1)
def _length(search, power):
    return _two_to(_exponent(search, power))


def _exponent(search, power):
    """Of the length that the zoom finds."""
    zoom = (r[LADDER:] for r in search[-3:])
    return jnp.maximum(_optimum(*zoom, power, search.bend), search.floor)


def _side(i):
    """Of x, where the i-th rung is: of the first rung, of the zoom's and of the pairs it is 1."""
    return 1 - 2 * ((i % LADDER) % 2)


def _line(power):
    """Where on the line from the second quotient of the zoom to the third the first one is."""
    first, second, third = ((-1) ** k * 2.0**octave for k, octave in enumerate(ZOOM))
    return (first**power - second**power) / (third**power - second**power)


def _of_rung(search, i):
    return jnp.where(i == RUNGS, search.base, search.exponents[jnp.minimum(i, RUNGS - 1)])


def _agreement(sizes, gaps):
    """Of each pair of neighbours, whether they agree, and better than the next pair above.

    Two that are zero say nothing: their steps may be too short for the gradient to see.
    """
    largest = jnp.maximum(sizes[:-1], sizes[1:])
    relative = jnp.where(largest > 0, gaps[1:] / jnp.where(largest > 0, largest, 1), jnp.inf)
    relative = jnp.where(jnp.isfinite(relative) & jnp.isfinite(gaps[1:]), relative, jnp.inf)
    above = jnp.concatenate([relative[1:], jnp.full(1, jnp.inf, relative.dtype)])
    return (relative < 0.5) & (relative <= above), relative


def _optimum(exponents, sizes, gaps, power, bend=None):
    """The exponent of the length where noise and truncation are balanced, in this module's text.

    A whole number; with the bend of the zoom's quotients, of quarters. The middle where none is
    finite.
    """
    agree, relative = _agreement(sizes, gaps)
    near = jnp.abs(jnp.arange(len(agree)) - jnp.argmax(agree)) <= 1
    used = jnp.isfinite(relative) & jnp.where(jnp.any(agree), near, True)
    logs = jnp.where(used, jnp.log2(gaps[1:]), jnp.inf)
    noise, truncation = _bounds(exponents, sizes, logs, relative, power, bend)
    found = (noise - truncation - math.log2(power)) / (power + 1)
    # Where neighbours agree to the last bit, as far as they do and no farther.
    exact = jnp.where(used & (gaps[1:] == 0), exponents[1:], -jnp.inf)
    found = jnp.where(truncation == -jnp.inf, jnp.max(exact), found)
    found = jnp.where(jnp.any(used), found, exponents[len(exponents) // 2])
    # Where one gap tells of both, this is the middle of two rungs: no tie for rounding to decide.
    found = jnp.floor(found + 0.25) if bend is None else jnp.floor(4 * found + 0.75) / 4
    return jnp.clip(found, exponents[0], exponents[-1])


def _bounds(exponents, sizes, logs, relative, power, bend):
    """Noise and truncation as logarithms, by those of the disagreements, inf where unused."""
    order = np.arange(len(logs))
    so_far = order[None, :] <= order[:, None]
    # A quotient of zero has no noise to show; what it is off by is that of its neighbour.
    noises = logs + jnp.where(sizes[:-1] > 0, exponents[:-1], exponents[1:])
    truncations = logs - power * exponents[1:]
    noise = jnp.min(jnp.where(so_far, noises[None, :], jnp.inf), axis=1)
    if bend is not None:
        known = (bend > 0) & (bend < jnp.inf) & jnp.all(jnp.isfinite(logs))
        # Not less than a 64th of it, nor truncation than an eighth: both are as uncertain as that.
        least = jnp.maximum(jnp.log2(bend) + exponents[0], noise[-1] - 6)
        noise = jnp.where(known, jnp.minimum(noise, least), noise)
    risen = (noises < jnp.inf) & (noises > noise + RISE)
    ruled = ~jnp.any(so_far & risen[None, :], axis=1)
    first = risen & (order == jnp.argmax(risen))
    noise, truncation = noise[-1], jnp.min(truncations)
    if bend is not None:
        share = jnp.maximum(1 - jnp.exp2(noise - exponents[1] - logs[1]), 1 / 16)
        without = logs[1] + jnp.log2(share) - power * exponents[2]
        without = jnp.minimum(truncation, jnp.maximum(without, truncation - 3))
        truncation = jnp.where(known, without, truncation)
    size = jnp.log2(jnp.maximum(sizes[:-1], 0))
    above = _least(first, jnp.minimum(logs, size) - power * exponents[1:])
    weight = jnp.max(jnp.where(first, jnp.clip(relative - 0.5, 0, 0.5), 0))
    between = above + weight * (_least(ruled, truncations) - above)
    return noise, jnp.where((weight > 0) & jnp.isfinite(between), between, truncation)


def _least(chosen, values):
    return jnp.min(jnp.where(chosen, values, jnp.inf))


def _two_to(exponent):
    whole = jnp.floor(exponent)
    return scaling.shift(jnp.exp2(exponent - whole), whole.astype(jnp.int32))
