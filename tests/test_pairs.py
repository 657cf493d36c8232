"""Pairings: which differences, how exact, and how they report their rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from tests import draws, reference


def cloud(rng, n=6, dim=9, a=None):
    points = rng.normal(size=(n, dim))
    return points, points @ (draws.symmetric(rng, dim) if a is None else a)


def test_each_pairing_forms_its_differences(rng):
    points, grads = cloud(rng)
    anchor, anchor_grad = rng.normal(size=(2, 9))
    for pairs, s, y in (
        (lrj.centered(points, grads), points - points.mean(0), grads - grads.mean(0)),
        (lrj.from_first(points, grads), points[1:] - points[0], grads[1:] - grads[0]),
        (
            lrj.anchored(points, grads, anchor, anchor_grad),
            points - anchor,
            grads - anchor_grad,
        ),
        (lrj.successive(points, grads), np.diff(points, axis=0), np.diff(grads, axis=0)),
    ):
        np.testing.assert_allclose(pairs.steps, s, atol=1e-15)
        np.testing.assert_allclose(pairs.grad_diffs, y, atol=1e-15)


def test_pairings_of_one_cloud_give_one_hessian(rng):
    points, grads = cloud(rng)
    h = lrj.fit(lrj.centered(points, grads)).to_dense()
    for pairing in (lrj.from_first, lrj.successive):
        other = lrj.fit(pairing(points, grads)).to_dense()
        assert reference.relative_error(other, h) < 1e-12


def test_centered_gives_one_hessian_for_every_order_of_inconsistent_points(rng):
    points, grads = rng.normal(size=(2, 14, 5))
    order = rng.permutation(14)
    h = lrj.fit(lrj.centered(points, grads)).to_dense()
    permuted = lrj.fit(lrj.centered(points[order], grads[order])).to_dense()
    assert reference.relative_error(permuted, h) < 1e-10


def test_centering_keeps_the_digits_of_a_cloud_far_from_the_origin(rng):
    spread = (0.1 * rng.normal(size=(6, 9))).astype(np.float32)
    points = (1000 + spread).astype(np.float32)
    exact = points.astype(float) - points.astype(float).mean(0)
    assert reference.relative_error(lrj.centered(points, points).steps, exact) < 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ends", [(1, -1), (1, -1, 2)])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_points_on_lines_have_a_step_for_each_line(rng, count, ends, dtype):
    """Not one at the centre, the mean up to rounding, nor one where rounding parts h from 2 h."""
    a = draws.symmetric(rng, 9)
    fitted = jax.jit(lambda points, grads: lrj.fit(lrj.centered(points, grads)).to_dense())
    for size in (1e-1, 1e-2, 1e-3):
        for _ in range(40):
            x, h = rng.normal(size=9), size * rng.normal(size=(count, 9))
            points = np.concatenate([x[None], *(x + t * h for t in ends)]).astype(dtype)
            grads = (points.astype(float) @ a).astype(dtype)
            s = points[1 : count + 1].astype(float) - points[0]
            truth = reference.fit(s, s @ a, 2 / 3)
            close = 100 * np.finfo(dtype).eps / size
            assert reference.relative_error(fitted(points, grads), truth) < close


@pytest.mark.parametrize("count", [1, 2, 4])
def test_what_is_said_of_points_on_lines_counts_each_line_once(rng, count):
    a, x, h = draws.symmetric(rng, 9), rng.normal(size=9), 1e-2 * rng.normal(size=(count, 9))
    points = np.concatenate([x[None], *(x + t * h for t in (1, -1, 2))])
    pairs = lrj.centered(points, points @ a)
    said = lrj.diagnose(lrj.fit(pairs), pairs)
    assert said.rank == count
    assert said.leave_one_out < 1e-9
    assert np.sum(np.isfinite(lrj.ritz_pairs(pairs).residuals)) == count


def test_rounding_drops_no_step_itself_and_nothing_beside_a_given_rtol(rng):
    a, s = draws.symmetric(rng, 9), rng.normal(size=(3, 9))
    s[1] = s[0] + 1e-3 * s[1]
    alone, pairs = lrj.SecantPairs(s[2:], s[2:] @ a), lrj.SecantPairs(s, s @ a)
    for known, rtol in ((alone, None), (pairs, 0.0)):
        noisy = known._replace(rounding=jnp.full(len(known.steps), 10.0))
        truth = lrj.fit(known, rtol=rtol).to_dense()
        assert reference.relative_error(lrj.fit(noisy, rtol=rtol).to_dense(), truth) < 1e-12
    dropped = lrj.fit(pairs._replace(rounding=jnp.full(3, 0.1))).to_dense()
    assert reference.relative_error(dropped, lrj.fit(pairs).to_dense()) > 0.1


@pytest.mark.parametrize("ends", [(1, -1), (1, -1, 2)])
def test_a_chosen_rtol_leaves_out_what_rounding_parts(rng, ends):
    a = draws.symmetric(rng, 9)
    fitted = jax.jit(lambda pairs: lrj.fit(pairs, rtol=lrj.choose_rtol(pairs)).to_dense())
    for _ in range(40):
        x, h = rng.normal(size=9), 1e-2 * rng.normal(size=(2, 9))
        points = np.concatenate([x[None], *(x + t * h for t in ends)])
        found = fitted(lrj.centered(points, points @ a))
        assert reference.relative_error(found, reference.fit(h, h @ a, 2 / 3)) < 1e-11


@pytest.mark.parametrize("pairing", [lrj.centered, lrj.from_first, lrj.successive])
def test_half_precision_is_widened_before_subtracting(rng, pairing):
    points = jnp.asarray(1 + 0.1 * rng.normal(size=(6, 9)), jnp.bfloat16)
    wide = np.asarray(points, float)
    pairs, exact = pairing(points, points), pairing(wide, wide)
    assert pairs.steps.dtype == jnp.bfloat16
    error = np.abs(np.asarray(pairs.steps, float) - np.asarray(exact.steps))
    assert (error <= 2.0**-8 * np.abs(exact.steps) + 1e-9).all()


def test_rounding_says_when_pairs_carry_nothing(rng):
    a = draws.symmetric(rng, 9).astype(np.float32)
    for pairing in (lrj.centered, lrj.from_first, lrj.successive):
        near = rng.normal(size=(6, 9)).astype(np.float32)
        far = (1e6 + 1e-3 * near).astype(np.float32)
        close = (1 + np.sqrt(1.2e-7) * near).astype(np.float32)
        assert np.max(pairing(near, near @ a).rounding) < 1e-5
        assert np.max(pairing(far, far @ a).rounding) > 1
        assert 1e-4 < np.max(pairing(close, close @ a).rounding) < 1e-1
        assert np.max(pairing(near, near @ a + np.float32(1e6)).rounding) > 1e-2
    anchor = np.ones(9, np.float32)
    far_anchor = lrj.anchored(1e-9 * near, 1e-9 * near, anchor, anchor)
    assert np.min(far_anchor.rounding) > 1e-7


def test_rounding_is_about_the_real_error_of_a_pair(rng):
    """Gradients of a quadratic in float32 against float64, over four decades of spread."""
    a = draws.symmetric(rng, 50)
    for spread in 10.0 ** np.arange(-5, 0):
        points = (1 + spread * rng.normal(size=(6, 50))).astype(np.float32)
        grads = np.asarray(jax.vmap(lambda x: a.astype(np.float32) @ x)(points))
        pairs = lrj.from_first(points, grads)
        truth = np.asarray(pairs.steps, float) @ a
        error = np.linalg.norm(np.asarray(pairs.grad_diffs) - truth, axis=1) / np.linalg.norm(
            truth, axis=1
        )
        ratio = np.median(np.asarray(pairs.rounding) / error)
        assert 0.5 < ratio < 50


def test_points_that_are_equal_carry_nothing_and_have_no_effect(rng):
    points = np.ones((3, 4))
    pairs = lrj.centered(points, points)
    np.testing.assert_array_equal(pairs.steps, 0)
    np.testing.assert_array_equal(pairs.rounding, np.inf)
    np.testing.assert_array_equal(lrj.fit(pairs).eigenvalues(), 0)
    single = lrj.secant_hessian(lambda x: jnp.sum(x**2))(np.ones((1, 4)))
    np.testing.assert_array_equal(single.eigenvalues(), 0)


def test_a_linear_loss_has_eigenvalues_exactly_zero(rng):
    w = rng.normal(size=9)
    h = lrj.secant_hessian(lambda x: w @ x)(rng.normal(size=(5, 9)))
    np.testing.assert_array_equal(h.eigenvalues(), 0)


def test_concatenated_pairs_are_all_pairs(rng):
    points, grads = cloud(rng)
    whole = lrj.successive(points, grads)
    parts = lrj.concatenate(
        lrj.successive(points[:3], grads[:3]), lrj.successive(points[2:], grads[2:])
    )
    np.testing.assert_array_equal(parts.steps, whole.steps)
    np.testing.assert_array_equal(parts.grad_diffs, whole.grad_diffs)
    by_hand = lrj.SecantPairs(points, grads)
    assert lrj.concatenate(by_hand, by_hand).rounding is None
    mixed = lrj.concatenate(whole, by_hand).rounding
    np.testing.assert_array_equal(mixed[5:], np.finfo(float).eps)


TAKING_PAIRS = {
    "fit": lrj.fit,
    "diagnose": lambda pairs: lrj.diagnose(lrj.fit(pairs), pairs),
    "choose_extrapolation": lrj.choose_extrapolation,
}


@pytest.mark.parametrize("name", TAKING_PAIRS)
def test_a_tuple_of_steps_and_differences_is_pairs(rng, name):
    of, rows = TAKING_PAIRS[name], tuple(rng.normal(size=(2, 4, 9)))
    jax.tree.map(np.testing.assert_array_equal, of(rows), of(lrj.SecantPairs(*rows)))


def test_secant_pairs_of_a_loss_are_its_gradients_paired(rng):
    points, w = rng.normal(size=(5, 4)), rng.normal(size=(3, 4))

    def loss(w, x):
        return jnp.sum(jnp.sin(w @ x)), w @ x

    grads = jax.vmap(jax.grad(lambda x: loss(w, x)[0]))(points)
    expected = lrj.from_first(points, grads)
    for batch_size in (None, 1, 2):
        pairs, aux = lrj.secant_pairs(
            loss, 1, has_aux=True, pairing=lrj.from_first, batch_size=batch_size
        )(w, points)
        np.testing.assert_allclose(pairs.grad_diffs, expected.grad_diffs, rtol=1e-12)
        np.testing.assert_allclose(aux, points @ w.T, rtol=1e-12)


@pytest.mark.parametrize("n", [3, 12])
def test_pairs_that_are_all_rounding_are_fitted_all_the_same(rng, n):
    """Less than as many as dimensions, and more."""
    s = rng.normal(size=(n, 5))
    y = s @ draws.symmetric(rng, 5)
    known, unknown = (lrj.fit(lrj.SecantPairs(s, y, r)) for r in (np.full(n, 5.0), None))
    assert reference.relative_error(known.to_dense(), unknown.to_dense()) < 1e-9
