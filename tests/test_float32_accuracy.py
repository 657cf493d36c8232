"""Float32 fits of ill-conditioned steps, beside NumPy's Householder QR in float32."""

import numpy as np
import pytest

import lowrank_jax as lrj
from tests import draws, reference

DIM, SEEDS = 200, 20
pytestmark = pytest.mark.usefixtures("fully_compiled")


def errors_and_ranks(spectrum, n, cond, extrapolate):
    ours, numpy, ranks = [], [], []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        a = draws.symmetric(rng, DIM)
        s = draws.steps_of_condition(rng, n, DIM, cond, spectrum).astype(np.float32)
        y = (s.astype(float) @ a).astype(np.float32)
        truth = reference.fit(s, y, extrapolate, rank=n)
        h = lrj.fit(lrj.SecantPairs(s, y), extrapolate=extrapolate)
        ours.append(reference.relative_error(h.to_dense(), truth))
        numpy.append(reference.relative_error(reference.numpy_fit(s, y, extrapolate), truth))
        ranks.append(np.count_nonzero(np.any(h.factors[:n] != 0, axis=1)))  # rows of Q
    return np.median(ours), np.median(numpy), np.array(ranks)


@pytest.mark.parametrize("extrapolate", [0, 2 / 3])
@pytest.mark.parametrize(
    ("spectrum", "n"),
    [(spectrum, n) for spectrum in ("geometric", "clustered") for n in (4, 16, 64)]
    + [("one small", 4), ("one small", 16)],  # at 64 a sum of 64 cancelling terms: 4 to 6 times
)
def test_error_is_within_five_times_that_of_householder_qr(spectrum, n, extrapolate):
    for cond in (1, 1e1, 1e2, 1e3, 1e4, 1e5, 3e5):
        ours, numpy, ranks = errors_and_ranks(spectrum, n, cond, extrapolate)
        assert ours < 5 * numpy, cond
        assert (ranks == n).all(), cond


@pytest.mark.parametrize("spectrum", ["geometric", "clustered", "one small"])
def test_beyond_that_a_direction_is_within_reach_or_dropped_and_the_rank_says_so(spectrum):
    for cond in (1e6, 1e7, 1e8, 1e12):
        ours, numpy, ranks = errors_and_ranks(spectrum, 16, cond, 0)
        assert ours < 5 * numpy or (ranks < 16).all(), cond
        assert np.isfinite(ours)
