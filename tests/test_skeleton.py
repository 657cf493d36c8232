"""The skeleton and the cross approximation against the matrices that they are of."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from tests import draws, reference
from tests.derivatives import check_derivatives

ROWS, COLS = np.array([4, 0, 7, 4, 2]), np.array([1, 8, 3, 5])


def low_rank(rng, rank, p=9, m=11):
    return rng.normal(size=(p, rank)) @ rng.normal(size=(rank, m))


def reads(a):
    """The two functions that read a matrix, a traced index at a time."""
    a = jnp.asarray(a)
    return (lambda i: a[i]), (lambda j: a[:, j])


@partial(jax.jit, static_argnums=1)
def complete(a, rank):
    return lrj.cross(a, rank)


@partial(jax.jit, static_argnums=1)
def rook(a, rank):
    return lrj.cross(reads(a), rank)


BOTH = pytest.mark.parametrize("cross_of", [complete, rook])


def blocks(rng):
    """Six blocks of rank one: most rows of a residual are zero."""
    a = np.zeros((30, 30))
    for i in range(0, 30, 5):
        a[i : i + 5, i : i + 5] = np.outer(*rng.normal(size=(2, 5)))
    return a


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rank", [0, 3])
def test_a_matrix_of_the_rank_of_the_intersection_is_its_skeleton(rng, rank, dtype):
    """Also with a row given twice and with more rows than columns."""
    a = low_rank(rng, rank).astype(dtype)
    found = lrj.skeleton(a, ROWS, COLS)
    assert found.core.shape == (4, 5)
    assert found.dtype == dtype
    assert reference.relative_error(found.to_dense(), a) < 500 * np.finfo(dtype).eps
    np.testing.assert_array_equal(
        lrj.skeleton(reads(a), list(ROWS), COLS).to_dense(), found.to_dense()
    )


def test_the_skeleton_is_the_formula_and_cuts_relative_to_the_largest(rng):
    """Of a full matrix, whole and with the singular values of A_hat below the cut dropped."""
    a = rng.normal(size=(9, 11))
    small = a[ROWS][:, COLS]
    s = np.linalg.svd(small)[1]
    for rtol in (None, np.sqrt(s[1] * s[2]) / s[0]):
        inverse = np.linalg.pinv(small, rcond=1e-15 if rtol is None else rtol)
        truth = a[:, COLS] @ inverse @ a[ROWS]
        found = lrj.skeleton(a, ROWS, COLS, rtol=rtol)
        np.testing.assert_allclose(found.to_dense(), truth, atol=1e-12)


def test_probes_along_unit_vectors_make_the_fit_of_least_rank_a_skeleton(rng):
    h, chosen = draws.symmetric(rng, 8), np.array([1, 3, 6])
    fit = lrj.fit(lrj.SecantPairs(np.eye(8)[chosen], h[chosen]), extrapolate=1)
    np.testing.assert_allclose(
        lrj.skeleton(h, chosen, chosen).to_dense(), fit.to_dense(), atol=1e-12
    )


def test_derivatives_are_those_of_the_formula(rng):
    """Full rank of A_hat from either side; and a row given twice, which lowers its rank."""
    a = rng.normal(size=(5, 6))
    for rows, cols in (([0, 2, 3], [1, 4]), ([0, 2], [5, 1, 4]), ([0, 2, 0], [1, 4, 5])):
        check_derivatives(lambda a, r=rows, c=cols: lrj.skeleton(a, r, c).to_dense(), (a,))


def test_derivatives_through_a_cut_are_those_of_the_kept_part(rng):
    a = rng.normal(size=(5, 6))
    check_derivatives(lambda a: lrj.skeleton(a, [0, 2, 3], [1, 4, 5], rtol=0.5).to_dense(), (a,))


def test_a_matrix_of_constant_rank_moves_as_its_skeleton_and_its_cross(rng):
    left, right = rng.normal(size=(9, 3)), rng.normal(size=(3, 11))
    d_left, d_right = rng.normal(size=(9, 3)), rng.normal(size=(3, 11))
    truth = d_left @ right + left @ d_right

    def moved(approximate, t):
        return approximate((left + t * d_left) @ (right + t * d_right)).to_dense()

    for approximate in (
        lambda a: lrj.skeleton(a, ROWS, COLS),
        lambda a: complete(a, 5),
        lambda a: rook(a, 5),
    ):

        def both(t, f=approximate):
            gradient = jax.grad(lambda t: jnp.sum(truth * moved(f, t)))(t)
            return jax.jvp(partial(moved, f), (t,), (1.0,))[1], gradient

        tangent, gradient = jax.jit(both)(0.0)
        np.testing.assert_allclose(tangent, truth, atol=1e-10)
        np.testing.assert_allclose(gradient, np.sum(truth**2), rtol=1e-10)


@pytest.mark.parametrize(
    ("dtype", "magnitude"), [(np.float32, 1e-34), (np.float32, 1e36), (np.float64, 1)]
)
@BOTH
def test_a_cross_of_more_than_the_rank_is_exact_with_zero_rows(rng, cross_of, dtype, magnitude):
    a = low_rank(rng, 3)
    found = cross_of((a * magnitude).astype(dtype), 12)
    info = np.finfo(dtype)
    allowed = 50 * info.eps + info.tiny / magnitude  # terms below the normal numbers are zero
    assert reference.relative_error(np.asarray(found.to_dense(), float) / magnitude, a) < allowed
    for side in (found.left, found.right):
        size = np.max(np.abs(side), axis=1)
        assert np.sum(size > 0) == 3
    assert np.max(np.abs(found.core)) < 10


@BOTH
def test_a_cross_is_near_the_best_of_its_rank_and_ends_at_rounding(rng, cross_of):
    x = np.arange(1.0, 31)
    hilbert = 1 / (x[:, None] + x[None, :] - 1)
    s = np.linalg.svd(hilbert)[1]
    for rank, allowed in ((4, 30 * s[4]), (20, 1e-13)):
        found = cross_of(hilbert, rank)
        assert np.linalg.norm(found.to_dense() - hilbert, 2) < allowed
        assert np.max(np.abs(found.core)) < 1e4
    single = np.asarray(cross_of(hilbert.astype(np.float32), 12).to_dense(), float)
    assert np.linalg.norm(single - hilbert, 2) < 5e-5


@BOTH
def test_pivoting_finds_blocks_behind_rows_that_are_zero(rng, cross_of):
    a, order = blocks(rng), rng.permutation(30)
    for matrix in (a, a[order][:, order[::-1]]):
        assert reference.relative_error(cross_of(matrix, 6).to_dense(), matrix) < 1e-14
    for start in range(0, 28, 3):  # a small block beside a large one: few rows know of it
        two = np.outer(*rng.normal(size=(2, 30)))
        two[start : start + 2] = two[:, start : start + 2] = 0
        two[start : start + 2, start : start + 2] = 1
        assert reference.relative_error(cross_of(two, 2).to_dense(), two) < 1e-14
    late = np.zeros((30, 30))
    late[22:, 20:] = low_rank(rng, 2, 8, 10)
    assert reference.relative_error(cross_of(late, 6).to_dense(), late) < 1e-13


@BOTH
def test_crosses_of_algebraic_spectra_are_near_the_best(rng, cross_of):
    s, ratios = 1 / np.arange(1.0, 31) ** 2, []
    for _ in range(60):
        u, v = (np.linalg.qr(rng.normal(size=(30, 30)))[0] for _ in range(2))
        a = u * s @ v
        error = np.linalg.norm(cross_of(a, 6).to_dense() - a)
        ratios.append(error / np.linalg.norm(s[6:]))
    assert np.mean(ratios) < 2.05
    assert np.max(ratios) < 4


def test_complete_pivoting_begins_at_the_largest_entry():
    a = np.diag([1.0, -3.0, 2.0])
    np.testing.assert_allclose(complete(a, 2).to_dense(), a * [0, 1, 1], atol=1e-15)


def test_rank_zero_and_empty_choices_give_the_zero_operator(rng):
    a = low_rank(rng, 2)
    for empty in (complete(a, 0), rook(a, 0), lrj.skeleton(a, [], COLS), lrj.skeleton(a, ROWS, [])):
        assert empty.shape == a.shape
        np.testing.assert_array_equal(empty.to_dense(), 0)
        assert lrj.singular_triplet(empty)[0] == 0
    for shape in ((0, 3), (3, 0), (0, 0)):
        assert lrj.cross(np.ones(shape), 2).shape == shape
        row, column = jnp.zeros(shape[1]), jnp.zeros(shape[0])
        assert lrj.cross((lambda i, x=row: x, lambda j, x=column: x), 2).shape == shape
    assert lrj.skeleton(np.ones((0, 3)), [], [0]).shape == (0, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_give_nan(rng, bad):
    a = low_rank(rng, 3)
    a[4, 1] = bad
    for found in (lrj.skeleton(a, [4, 0], [3, 2]), lrj.skeleton(a, [0, 2], [1, 3]), complete(a, 2)):
        assert np.isnan(found.core).all()
    a = low_rank(rng, 3)
    a[1:, 1:] = bad  # the row and the column where the search begins are finite
    assert np.isnan(rook(a, 2).core).all()


def test_a_batch_of_matrices_is_each_of_them(rng):
    batch = np.stack([low_rank(rng, rank) for rank in (1, 2, 3)])
    for cross_of in (complete, rook):
        found = jax.vmap(lambda a, f=cross_of: f(a, 3))(batch)
        dense = np.swapaxes(found.left, 1, 2) @ found.core @ found.right
        np.testing.assert_allclose(dense, batch, atol=1e-12)


def test_traced_indices_out_of_range_give_nan(rng):
    a = low_rank(rng, 2)
    dense = jax.jit(lambda rows: lrj.skeleton(a, rows, [1, 2]).to_dense())
    np.testing.assert_allclose(dense(np.array([0, 1])), a, atol=1e-12)
    for bad in ([0, 9], [-1, 0], [0, 2**32 + 1]):
        assert np.isnan(dense(np.array(bad))).all()
    one = jax.jit(lambda j, rtol: lrj.skeleton(a, [0, 1], [1, j], rtol=rtol).to_dense())
    np.testing.assert_allclose(one(2, 1e-6), a, atol=1e-12)
    for j, rtol in ((11, 1e-6), (2, 2.0)):
        assert np.isnan(one(j, rtol)).all()


def test_bfloat16_matrices_come_back_as_they_were(rng):
    a = jnp.asarray(low_rank(rng, 1), jnp.bfloat16)
    for found in (lrj.skeleton(a, [0], [1]), complete(a, 1), rook(a, 1)):
        assert (found.left.dtype, found.right.dtype) == (jnp.bfloat16, jnp.bfloat16)
        assert reference.relative_error(found.to_dense(), a) < 0.03
