"""Operators used as people use operators: SciPy, sums, left products, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse.linalg as sparse

import lowrank_jax as lrj
from tests import draws, reference
from tests.test_operator import operator, tree
from tests.test_rectangular import in_tree, out_tree
from tests.test_rectangular import operator as rectangular


def flat_operator(rng, k=3, dim=7):
    factors, core = rng.normal(size=(k, dim)), draws.symmetric(rng, k)
    return lrj.SymmetricLowRank(factors, core), reference.low_rank(factors, core)


def test_scipy_takes_operators_as_they_are(rng):
    h, dense = flat_operator(rng)
    v = rng.normal(size=7)
    for a, truth in ((h, dense), (h.plus_diagonal(2.0), dense + 2 * np.eye(7))):
        np.testing.assert_allclose(sparse.aslinearoperator(a) @ v, truth @ v, atol=1e-12)
        exact = np.linalg.eigvalsh(truth)
        found = np.sort(sparse.eigsh(a, 2)[0])
        np.testing.assert_allclose(found, np.sort(exact[np.argsort(-np.abs(exact))][:2]))
        right, _ = sparse.cg(a.plus_diagonal(1e2), v, rtol=1e-12)
        np.testing.assert_allclose(truth @ right + 1e2 * right, v, atol=1e-9)
    a, rows = rectangular(rng, 3, 4)
    flat = lrj.LowRank(
        *(
            np.concatenate([x.reshape(len(x), -1) for x in jax.tree.leaves(p)], 1)
            if p is not a.core
            else p
            for p in (a.left, a.core, a.right)
        )
    )
    found = sparse.svds(sparse.aslinearoperator(flat), 1)[1]
    np.testing.assert_allclose(found, np.linalg.svd(rows)[1][:1])


def test_scipy_minimises_with_an_operator_as_hessian(rng):
    _, dense = flat_operator(rng)
    dense = dense @ dense + np.eye(7)
    values, vectors = np.linalg.eigh(dense - np.eye(7))
    a = lrj.SymmetricLowRank(vectors.T, np.diag(values)).plus_diagonal(1.0)
    b = rng.normal(size=7)
    options = {"hess": lambda x: sparse.aslinearoperator(a), "method": "trust-constr"}
    found = scipy.optimize.minimize(
        lambda x: x @ dense @ x / 2 - b @ x, np.zeros(7), jac=lambda x: dense @ x - b, **options
    )
    np.testing.assert_allclose(found.x, np.linalg.solve(dense, b), atol=1e-5)
    found = scipy.optimize.minimize(
        lambda x: x @ dense @ x / 2 - b @ x,
        np.zeros(7),
        jac=lambda x: dense @ x - b,
        hessp=lambda x, v: a @ v,
        method="newton-cg",
    )
    np.testing.assert_allclose(found.x, np.linalg.solve(dense, b), atol=1e-5)


def test_sums_and_products_from_the_left(rng):
    h, dense = operator(rng, 3)
    v = rng.normal(size=7)
    np.testing.assert_allclose(sum([h, h, 2 * h]).to_dense(), 4 * dense, atol=1e-12)
    flat, twin = flat_operator(rng)
    for left in (v, jnp.asarray(v)):
        np.testing.assert_allclose(left @ flat, v @ twin, atol=1e-12)
        np.testing.assert_allclose(left @ flat.plus_diagonal(v), v @ twin + v * v, atol=1e-12)
    a, rows = rectangular(rng, 3, 4)
    b, _ = rectangular(rng, 2, 3)
    np.testing.assert_allclose(sum([a, b, a]).to_dense(), 2 * rows + b.to_dense(), atol=1e-12)


ARRAYS = {
    "symmetric": lambda rng: operator(rng, 3)[0],
    "diagonal": lambda rng: operator(rng, 3)[0].plus_diagonal(1.0),
    "rectangular": lambda rng: rectangular(rng, 3, 4)[0],
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_operator_is_no_array_and_a_stack_no_vector(rng, kind):
    h = ARRAYS[kind](rng)
    with pytest.raises(TypeError, match=r"to_dense\(\)"):
        np.asarray(h)
    with pytest.raises(TypeError):
        jnp.asarray(h)
    stack = (in_tree if kind == "rectangular" else tree)(np.ones((5, 7)))
    with pytest.raises(ValueError, match=r"for a stack of vectors use jax.vmap\(.\.mv\)"):
        h @ stack
    with pytest.raises(ValueError, match="for a stack of vectors"):
        (out_tree(np.ones((2, 5))) if kind == "rectangular" else stack) @ Matmul(h)
    with pytest.raises(TypeError):
        h + 1.0
    with pytest.raises(TypeError):
        h @ "text"


class Matmul:
    """Pytrees have no `@` of their own: this calls the right operand's."""

    def __init__(self, operand):
        self.operand = operand

    def __rmatmul__(self, v):
        return self.operand.__rmatmul__(v)


@pytest.mark.parametrize("dtype", [np.complex64, np.int32])
def test_factors_that_are_not_real_numbers_are_refused(dtype):
    factors, v = np.ones((2, 3), dtype), jnp.ones(3)
    h = lrj.SymmetricLowRank(factors, jnp.eye(2))
    a = lrj.LowRank(factors, jnp.eye(2), factors)
    uses = [lambda: h @ v, h.trace, h.eigh, h.to_dense, h.diagonal, lambda: h.solve(v, 1.0)]
    uses += [lambda: h.logdet(1.0), lambda: h.plus_diagonal(1.0), h.positive_part, h.frobenius_norm]
    uses += [lambda: h.bilinear(v, v), h.inertia, lambda: h + h, lambda: h.inverse(v)]
    uses += [lambda: a @ v, a.svd, a.to_dense, a.frobenius_norm, lambda: a + a, lambda: a @ a]
    uses += [lambda: lrj.SymmetricLowRank(jnp.ones((2, 3)), np.eye(2, dtype=dtype)).trace()]
    for use in uses:
        with pytest.raises(TypeError, match="real floating-point"):
            use()


def test_what_no_diagonal_is_is_refused(rng):
    h, _ = operator(rng, 3)
    wrong = [("text", TypeError), (1j, TypeError), (np.ones(7), ValueError)]
    wrong += [(tree(np.ones(6 + 1, int)), TypeError), (None, ValueError)]
    for d, error in wrong:
        for use in (h.plus_diagonal, h.logdet, h.inverse, lambda d: h.solve(tree(np.ones(7)), d)):
            with pytest.raises(error, match=r"^(d|damping)\b"):
                use(d)
    for d in (0.0, -1.0):
        with pytest.raises(ValueError, match="damping must be positive"):
            h.inverse(d)
