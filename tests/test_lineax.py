"""`interop.lineax_operator` in lineax's own solvers."""

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import lowrank_jax as lrj
from tests.test_operator import operator, tree


def solve(a, v, solver):
    return lineax.linear_solve(lrj.interop.lineax_operator(a), v, solver).value


def test_linear_systems_are_solved_by_the_operator_itself(rng):
    h, low = operator(rng, 3)
    d, v = tree(40 + rng.uniform(size=7)), tree(rng.normal(size=7))
    a = h.plus_diagonal(d)
    truth = np.linalg.solve(low + np.diag(ravel_pytree(d)[0]), ravel_pytree(v)[0])
    for solver in (lrj.interop.lineax_solver(), lineax.CG(rtol=1e-12, atol=1e-12)):
        if isinstance(solver, lineax.CG):
            tagged = lineax.TaggedLinearOperator(
                lrj.interop.lineax_operator(a), lineax.positive_semidefinite_tag
            )
            found = lineax.linear_solve(tagged, v, solver).value
        else:
            found = jax.jit(solve)(a, v, solver)
        np.testing.assert_allclose(ravel_pytree(found)[0], truth, rtol=1e-9)
    np.testing.assert_allclose(
        ravel_pytree(lineax.linear_solve(lrj.interop.lineax_operator(a), v).value)[0], truth
    )


def test_derivatives_are_those_of_solve(rng):
    h, _ = operator(rng, 3)
    v = tree(rng.normal(size=7))

    def through(solver):
        def total(core, d):
            a = lrj.SymmetricLowRank(h.factors, core).plus_diagonal(d)
            x = a.solve(v) if solver is None else solve(a, v, solver)
            return jnp.sum(ravel_pytree(x)[0] ** 2)

        return jax.grad(total, argnums=(0, 1))(h.core, 40.0)

    mine, theirs = through(None), through(lrj.interop.lineax_solver())
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9), mine, theirs)


def test_what_has_no_inverse_is_refused(rng):
    h, _ = operator(rng, 3)
    v, solver = tree(rng.normal(size=7)), lrj.interop.lineax_solver()
    with pytest.raises(ValueError, match="plus_diagonal"):
        solve(h, v, solver)
    with pytest.raises(TypeError, match="must be a LowRankOperator"):
        lineax.linear_solve(lineax.MatrixLinearOperator(jnp.eye(7)), jnp.ones(7), solver)
    with pytest.raises(TypeError, match="SymmetricLowRank or a DiagonalPlusLowRank"):
        lrj.interop.lineax_operator(np.eye(3))
