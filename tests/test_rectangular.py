"""`LowRank` against the dense matrix that it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import lowrank_jax as lrj
from tests import reference
from tests.derivatives import check_derivatives

TOLERANCE = {np.float32: 2e-5, np.float64: 1e-10}


def out_tree(rows):
    """Rows of 5 numbers as a pytree, in raveled order."""
    return [rows[..., :2], rows[..., 2:]]


def in_tree(rows):
    """Rows of 7 numbers as a pytree of mixed leaf shapes, in raveled order."""
    return {"a": rows[..., 0], "b": rows[..., 1:].reshape(*rows.shape[:-1], 2, 3)}


def operator(rng, k, n, dtype=np.float64):
    left, core, right = rng.normal(size=(k, 5)), rng.normal(size=(k, n)), rng.normal(size=(n, 7))
    a = lrj.LowRank(out_tree(left.astype(dtype)), core.astype(dtype), in_tree(right.astype(dtype)))
    return a, left.T @ core @ right


def matrix(rows, dim):
    leaves = [np.asarray(x, float) for x in jax.tree.leaves(rows)]
    return (
        np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)
        if len(leaves[0])
        else np.zeros((0, dim))
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("k", "n"), [(0, 2), (3, 4), (9, 6)])
def test_every_method_equals_its_dense_twin(rng, k, n, dtype):
    a, dense = operator(rng, k, n, dtype)
    v, w = rng.normal(size=7).astype(dtype), rng.normal(size=5).astype(dtype)

    def close(x, truth):
        return reference.relative_error(ravel_pytree(x)[0], np.ravel(truth)) < TOLERANCE[dtype]

    assert close(a.to_dense(), dense)
    assert close(a @ in_tree(v), dense @ v)
    assert close(a.T @ out_tree(w), w @ dense)
    assert close(a.T.to_dense(), dense.T)
    assert (a.shape, a.T.shape, a.dtype, a.to_dense().dtype) == ((5, 7), (7, 5), dtype, dtype)

    r, rank = min(k, n), min(k, n, 5)
    u, s, v = a.svd()
    exact = np.linalg.svd(dense)[1][:rank]
    np.testing.assert_allclose(s[:rank], exact, atol=TOLERANCE[dtype] * max(exact, default=1))
    np.testing.assert_array_equal(s[rank:], 0)
    u, v = matrix(u, 5), matrix(v, 7)
    for rows in (u, v):
        np.testing.assert_array_equal(rows[rank:], 0)
        kept = np.diag(np.arange(r) < rank)
        np.testing.assert_allclose(rows @ rows.T, kept, atol=TOLERANCE[dtype])
    assert reference.relative_error(u.T * np.asarray(s) @ v, dense) < TOLERANCE[dtype]


def test_truncation_is_the_best_approximation_of_its_rank(rng):
    a, dense = operator(rng, 4, 6)
    s = np.linalg.svd(dense)[1]
    for rank in (0, 2, 7):
        short = a.truncate(rank)
        assert short.core.shape == (rank, rank)
        error = np.linalg.norm(short.to_dense() - dense)
        np.testing.assert_allclose(error, np.linalg.norm(s[rank:]), atol=1e-10)
    surplus = jax.tree.leaves((short.left, short.right))
    assert all((leaf[4:] == 0).all() for leaf in surplus)


@pytest.mark.parametrize("magnitude", [1e-30, 1e-18, 1e18, 1e30])
def test_float32_operators_of_any_magnitude(rng, magnitude):
    left, core, right = rng.normal(size=(3, 5)), rng.normal(size=(3, 4)), rng.normal(size=(4, 7))
    exact = np.linalg.svd(left.T @ core @ right)[1][:3]
    inverse = 1 / magnitude
    sizes = (magnitude, 1, 1), (1, magnitude, 1), (1, 1, magnitude), (magnitude, inverse, magnitude)
    for x, y, z in (*sizes, (magnitude, inverse, 1)):
        parts = (part.astype(np.float32) for part in (left * x, core * y, right * z))
        found = lrj.LowRank(*parts).svd()[1].astype(float) / (x * y * z)
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)
    diagonal = np.diag([magnitude, inverse]).astype(np.float32)
    mixed = lrj.LowRank(
        diagonal, np.diag([inverse, magnitude]).astype(np.float32), np.eye(2, dtype=np.float32)
    )
    np.testing.assert_allclose(mixed.svd()[1], 1, rtol=1e-6)


def test_bfloat16_rows_are_computed_in_float32_and_come_back_as_they_were(rng):
    left, right = (jnp.asarray(rng.normal(size=(2, d)), jnp.bfloat16) for d in (5, 7))
    a = lrj.LowRank(left, jnp.eye(2, dtype=jnp.float32), right)
    wide = lrj.LowRank(left.astype(jnp.float32), a.core, right.astype(jnp.float32))
    u, s, v = a.svd()
    assert [x.dtype for x in (u, s, v)] == [jnp.bfloat16, jnp.float32, jnp.bfloat16]
    np.testing.assert_array_equal(s, wide.svd()[1])
    v = jnp.ones(7, jnp.bfloat16)
    np.testing.assert_array_equal(a @ v, (wide @ v.astype(jnp.float32)).astype(jnp.bfloat16))


def test_rows_of_two_precisions_give_products_of_either(rng):
    left, right = rng.normal(size=(2, 5)), rng.normal(size=(2, 7))
    for one, other in ((np.float32, np.float64), (np.float64, np.float32)):
        a = lrj.LowRank(left.astype(one), np.eye(2, dtype=np.float32), right.astype(other))
        product = a @ jnp.ones(7, other)
        assert product.dtype == one
        np.testing.assert_allclose(product, left.T @ right @ np.ones(7), rtol=1e-5)
        assert a.to_dense().dtype == np.float64


def test_singular_values_and_truncations_differentiate_at_distinct_ones(rng):
    a, _ = operator(rng, 3, 4)
    weights = rng.normal(size=(5, 7))

    def sums(a):
        return a.svd()[1], jnp.sum(weights * a.truncate(2).to_dense())

    check_derivatives(sums, (a,))


def test_dependent_rows_differentiate_in_directions_that_keep_the_rank(rng):
    """A row given twice moves: d (A^T A) and the singular values against finite differences."""
    left, core, right = rng.normal(size=(3, 5)), rng.normal(size=(3, 3)), rng.normal(size=(3, 7))
    left[2], direction = left[0], rng.normal(size=(3, 5))
    direction[2] = direction[0]

    def values(t):
        return lrj.LowRank(left + t * direction, core, right).svd()[1]

    tangent = jax.jvp(values, (0.0,), (1.0,))[1]
    step = 1e-6
    np.testing.assert_allclose(tangent, (values(step) - values(-step)) / (2 * step), atol=1e-7)
    assert np.isfinite(jax.jacrev(values)(0.0)).all()


def test_a_batch_is_each_of_its_operators_and_says_so_where_it_must(rng):
    left, core, right = (
        rng.normal(size=(3, 2, 5)),
        rng.normal(size=(3, 2, 4)),
        rng.normal(size=(3, 4, 7)),
    )
    batch = lrj.LowRank(left, core, right)
    assert batch.shape == (3, 5, 7)
    assert batch.T.shape == (3, 7, 5)
    values = jax.vmap(lambda a: a.svd()[1])(batch)
    for i in range(3):
        one = lrj.LowRank(left[i], core[i], right[i])
        np.testing.assert_allclose(values[i], one.svd()[1], atol=1e-12)
    for method in (lambda: batch @ right[0, 0], batch.to_dense, batch.svd):
        with pytest.raises(ValueError, match="batch of operators, core of shape"):
            method()


def test_numbers_that_are_not_finite_give_none_that_are(rng):
    a, _ = operator(rng, 3, 4)
    for bad in (np.nan, np.inf):
        for part in ("left", "core", "right"):
            value = jax.tree.map(lambda x, bad=bad: jnp.asarray(x).at[0].set(bad), getattr(a, part))
            broken = lrj.LowRank(
                **{**{n: getattr(a, n) for n in ("left", "core", "right")}, part: value}
            )
            assert np.isnan(broken.svd()[1]).all()


def test_repr_tells_shape_core_and_dtype(rng):
    a, _ = operator(rng, 3, 4)
    assert repr(a) == "LowRank(shape=(5, 7), core=(3, 4), dtype=float64)"
    axes = jax.tree.unflatten(jax.tree.structure(a), [0] * 5)
    assert "core=0" in repr(axes)
    assert "float64" in repr(jax.tree.map(lambda leaf: leaf.dtype, a))
