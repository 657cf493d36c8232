"""The ring of a trajectory's pairs, against the pairs of its points in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from lowrank_jax import history
from tests import draws, reference

SIZE, DIM = 4, 7


def pushed(points, grads, size=SIZE):
    past = history.init(points[0], size)
    for point, grad in zip(points, grads, strict=True):
        past = history.push(past, point, grad)
    return past


def assert_trees_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("number", [5, 8, 11])
def test_a_full_history_holds_the_steps_to_the_last_point_from_those_before_it(rng, number):
    points, grads = rng.normal(size=(2, number, DIM))
    pairs = history.pairs(pushed(points, grads))
    expected = lrj.anchored(points[-5:-1], grads[-5:-1], points[-1], grads[-1])
    np.testing.assert_allclose(pairs.steps, points[-1] - points[-5:-1], atol=1e-14)
    np.testing.assert_allclose(pairs.grad_diffs, grads[-1] - grads[-5:-1], atol=1e-14)
    np.testing.assert_allclose(pairs.rounding, expected.rounding, rtol=1e-12)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_partly_filled_history_begins_with_zero_pairs_and_fits_like_a_short_one(rng, number):
    points, grads = rng.normal(size=(2, 3, DIM))
    past = history.init(points[0], SIZE)
    for point, grad in zip(points[:number], grads[:number], strict=True):
        past = history.push(past, point, grad)
    pairs = history.pairs(past)
    used = max(number - 1, 0)
    for rows in (pairs.steps, pairs.grad_diffs):
        np.testing.assert_array_equal(rows[: SIZE - used], 0)
    hessian = lrj.fit(pairs).to_dense()
    if used == 0:
        np.testing.assert_array_equal(hessian, 0)
    else:
        short = lrj.fit(lrj.anchored(points[:2], grads[:2], points[2], grads[2]))
        assert reference.relative_error(hessian, short.to_dense()) < 1e-12


def test_a_gradient_at_an_unchanged_point_only_replaces_the_last_one(rng):
    """Two gradients a batch give the pairs of each batch."""
    points = rng.normal(size=(4, DIM))
    before, after = rng.normal(size=(2, 3, DIM))
    past = history.init(points[0], SIZE)
    for k in range(3):
        past = history.push(past, points[k], before[k])
        past = history.push(past, points[k + 1], after[k])
    assert past.points == 4
    np.testing.assert_allclose(past.steps[:3], np.diff(points, axis=0), atol=1e-15)
    np.testing.assert_allclose(past.grad_diffs[:3], after - before, atol=1e-15)
    np.testing.assert_array_equal(past.grads, after[-1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e308])
@pytest.mark.parametrize("where", ["params", "grads"])
@pytest.mark.parametrize("at", [0, 3])
def test_what_is_not_finite_changes_the_count_alone_and_the_next_pair_spans_two_steps(
    rng, bad, where, at
):
    points, grads = rng.normal(size=(2, 6, DIM))
    points[:, 2] = grads[:, 2] = 1e308
    broken = {"params": points[at].copy(), "grads": grads[at].copy()}
    broken[where][2] = bad
    past = pushed(points[:at], grads[:at]) if at else history.init(points[0], SIZE)
    if at == 0 and np.isfinite(bad):
        broken[where][2] = np.nan  # there is no difference yet
    after = history.push(past, **broken)
    assert_trees_equal(after._replace(skipped=past.skipped), past)
    assert after.skipped == 1
    for point, grad in zip(points[at + 1 :], grads[at + 1 :], strict=True):
        after = history.push(after, point, grad)
    whole = pushed(np.delete(points, at, axis=0), np.delete(grads, at, axis=0))
    assert_trees_equal(after._replace(skipped=whole.skipped), whole)


def test_every_leaf_keeps_its_dtype_and_a_step_its_digits(rng):
    values = rng.normal(size=(4, 6))

    def tree(k):
        return {
            "a": jnp.asarray(values[k, :4].reshape(2, 2), jnp.bfloat16),
            "b": jnp.asarray(values[k, 4:], jnp.float32),
        }

    past = history.init(tree(0), 2)
    for k in range(4):
        past = history.push(past, tree(k), jax.tree.map(lambda x: 3 * x.astype(float), tree(k)))
    pairs = history.pairs(past)
    for rows in (past.steps, past.grad_diffs, pairs.steps, pairs.grad_diffs):
        assert jax.tree.map(lambda x: (x.dtype.name, x.shape), rows) == {
            "a": ("bfloat16", (2, 2, 2)),
            "b": ("float32", (2, 2)),
        }
    for one in (past.params, past.grads):
        assert jax.tree.map(lambda x: x.dtype.name, one) == {"a": "bfloat16", "b": "float32"}
    assert past.norms.dtype == pairs.rounding.dtype == np.float32
    exact = jax.tree.map(lambda x, y: np.asarray(x, float) - np.asarray(y, float), tree(3), tree(2))
    for name, eps in (("a", 2.0**-8), ("b", 2.0**-24)):
        np.testing.assert_allclose(np.asarray(past.steps[name][0], float), exact[name], rtol=eps)


def test_a_batch_of_scans_is_each_loop(rng):
    points, grads = rng.normal(size=(2, 3, 7, DIM))

    @jax.jit
    @jax.vmap
    def scanned(points, grads):
        past = history.init(points[0], SIZE)
        past, _ = jax.lax.scan(
            lambda past, each: (history.push(past, *each), None), past, (points, grads)
        )
        return past, history.pairs(past)

    pasts = [pushed(*lane) for lane in zip(points, grads, strict=True)]
    loops = [(past, history.pairs(past)) for past in pasts]
    jax.tree.map(
        lambda x, *y: np.testing.assert_allclose(x, np.stack(y), atol=1e-14),
        scanned(points, grads),
        *loops,
    )


@pytest.mark.parametrize("coarse", ["first", "second", "both"])
def test_the_rounding_is_that_of_the_gradients_that_were_given(rng, coarse):
    """bfloat16 gradients at float32 parameters: the difference is off by their rounding."""
    a, x = draws.symmetric(rng, 40), rng.normal(size=40)
    points = np.stack([x, x + 1e-2 * rng.normal(size=40)]).astype(np.float32)
    exact = points.astype(float) @ a
    past, given = lrj.history.init(points[0], 1), []
    for order, point, grad in zip(("first", "second"), points, exact, strict=True):
        dtype = jnp.bfloat16 if coarse in (order, "both") else jnp.float32
        given.append(jnp.asarray(grad, dtype))
        past = lrj.history.push(past, point, given[-1])
    pairs = lrj.history.pairs(past)
    true = np.linalg.norm(np.asarray(pairs.grad_diffs[0], float) - (exact[1] - exact[0]))
    true /= np.linalg.norm(exact[1] - exact[0])
    assert true < float(pairs.rounding[0]) < 20 * true
