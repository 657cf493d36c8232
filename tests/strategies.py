"""Hostile problems for the property tests: what is drawn is the structure, not the numbers.

A shape is one compilation, so that all problems have one. Orthogonal factors come from a drawn
seed; spectra, ranks, conditions, scales, repeats and offsets are drawn themselves.
"""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

N, DIM = 5, 8
SCALE = {np.float32: 20, np.float64: 60}  # the largest exponent of a scale
CONDITION = {np.float32: 14, np.float64: 36}  # and of a condition: beyond half of the digits


@dataclass(frozen=True)
class Steps:
    """Some steps, each times a power of two, in the dtype asked for.

    Attributes:
      rows: (N, DIM), in any order.
      rank: how many are independent.
      singular_values: (rank,), of these before the powers of two.
      dependent: (N - rank,), what the others are: repeats, sums or zeros.
      basis: (DIM, DIM), orthogonal; the first `rank` columns span the steps.
    """

    rows: np.ndarray
    rank: int
    singular_values: np.ndarray
    dependent: tuple
    basis: np.ndarray


@dataclass(frozen=True)
class Problem:
    """Steps, and the slopes `steps A` there of a quadratic, rounded to the dtype of the steps.

    The spectrum is that of A or, where `along`, its first `rank` values are that of A along the
    steps: what a fit extrapolates from, where ties and zeros of A itself do not show.
    """

    steps: Steps
    slopes: np.ndarray
    hessian: np.ndarray
    spectrum: np.ndarray
    along: bool


def orthogonal(dim=DIM):
    """Rotations and reflections; some only permute the axes and change their signs."""

    def matrix(seed, generic):
        rng = np.random.default_rng(seed)
        if generic:
            return np.linalg.qr(rng.normal(size=(dim, dim)))[0]
        return np.eye(dim)[rng.permutation(dim)] * rng.choice([-1.0, 1.0], size=dim)

    return st.builds(matrix, seeds(), st.booleans())


@st.composite
def spectra(draw):
    """DIM eigenvalues up to magnitude 1: any signs, any decay, zeros, ties up to the sign."""
    signs = draw(st.sampled_from(["any", "positive", "negative"]))
    decay, zeros = draw(st.integers(0, 12)), draw(st.integers(0, DIM - 1))
    values = 2.0 ** (-decay * np.arange(DIM) / 2)
    if draw(st.booleans()):
        values[: DIM - draw(st.integers(0, DIM - 2))] = 1
    values[DIM - zeros :] = 0
    if signs == "any":
        return values * np.random.default_rng(draw(seeds())).choice([-1, 1], size=DIM)
    return -values if signs == "negative" else values


@st.composite
def steps(draw, dtype, lowest_rank=1, highest_condition=None):
    rank = N - draw(st.integers(0, N - lowest_rank))
    most = CONDITION[dtype] if highest_condition is None else highest_condition
    cond = 2.0 ** draw(st.integers(0, most)) if rank > 1 else 1.0
    values = {
        "geometric": np.geomspace(1, 1 / cond, rank),
        "clustered": np.where(np.arange(rank) < rank // 2, 1, 1 / cond),
        "one small": np.where(np.arange(rank) < rank - 1, 1, 1 / cond),
    }[draw(st.sampled_from(["geometric", "clustered", "one small"]))]
    kinds = tuple(draw(st.sampled_from(["repeat", "sum", "zero"])) for _ in range(N - rank))
    rng = np.random.default_rng(draw(seeds()))
    u = np.linalg.qr(rng.normal(size=(rank, rank)))[0]
    basis = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    rows = ((u * values) @ basis[:, :rank].T).astype(dtype)
    rows = np.concatenate([rows, *(_dependent(rng, kind, rows)[None] for kind in kinds)])
    rows = rows[draw(st.permutations(range(N)))]
    if draw(st.booleans()):
        rows = np.ldexp(rows, draw(exponents(dtype, N))[:, None])
    return Steps(rows, rank, values, kinds, basis)


@st.composite
def problems(draw, dtype, lowest_rank=1):
    s = draw(steps(dtype, lowest_rank))
    values, q, exponent = draw(spectra()), draw(orthogonal()), draw(exponents(dtype))
    along, core = draw(st.booleans()), np.diag(values)
    if along:
        core[: s.rank, s.rank :] = q[: s.rank, s.rank :]
        core[s.rank :, : s.rank] = q[: s.rank, s.rank :].T
        q = s.basis
    hessian = q @ core @ q.T
    hessian = np.ldexp((hessian + hessian.T) / 2, exponent)
    slopes = (s.rows.astype(float) @ hessian).astype(dtype)
    return Problem(s, slopes, hessian, np.ldexp(values, exponent), along)


@st.composite
def clouds(draw, dtype):
    """N points of a few digits, of which some repeat, and how far to move them without rounding."""
    rng = np.random.default_rng(draw(seeds()))
    points = rng.integers(-31, 32, size=(N, DIM)).astype(dtype)
    points = points[draw(st.lists(st.integers(0, N - 1), min_size=N, max_size=N))]
    far = rng.integers(-7, 8, size=DIM).astype(dtype)
    return points, np.ldexp(far, draw(st.integers(0, 14)))


def exponents(dtype, size=None):
    """Of one scale, or an array of them."""
    one = st.integers(-SCALE[dtype], SCALE[dtype])
    return one if size is None else st.lists(one, min_size=size, max_size=size).map(np.array)


def seeds():
    return st.integers(0, 2**32 - 1)


def _dependent(rng, kind, rows):
    """One more row; of a sum nothing cancels, or it would be rounding to a larger part."""
    if kind == "zero":
        return np.zeros(DIM, rows.dtype)
    i, j = rng.integers(len(rows), size=2)
    if kind == "repeat":
        return np.ldexp(rows[i], rng.integers(-3, 4)) * rng.choice([-1, 1]).astype(rows.dtype)
    return rows[i] - rows[j] if rows[i] @ rows[j] < 0 else rows[i] + rows[j]
