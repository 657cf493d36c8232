"""Operators in the terms of other libraries, which are imported where they are used."""

from functools import cache
from typing import Any

import jax

from lowrank_jax._core import checks, structure
from lowrank_jax._operators.symmetric import Operator, check_operator


def lineax_operator(hessian: Operator) -> Any:
    """Returns the symmetric operator as a `lineax.AbstractLinearOperator`.

    It composes with lineax's own; iterative solvers see its products. With
    `solver=lineax_solver()` the linear system is solved by the operator's own `solve`; lineax's
    default solver makes a dense matrix of any operator.

    Args:
      hessian: a `SymmetricLowRank` or `DiagonalPlusLowRank`; only the latter is regular.

    Raises:
      ImportError: where lineax is not installed.
      TypeError: for another object.
      ValueError: for a batch of operators.

    Source: Rader, Lyons and Kidger, Lineax: unified linear solves and linear least-squares in JAX
    and Equinox, arXiv:2311.17283 (2023).

    Example:
      >>> import jax.numpy as jnp
      >>> import lineax
      >>> from lowrank_jax import SymmetricLowRank
      >>> h = SymmetricLowRank(jnp.eye(3)[:1], jnp.array([[3.0]])).plus_diagonal(1.0)
      >>> lineax.linear_solve(lineax_operator(h), jnp.ones(3), lineax_solver()).value
      Array([0.25, 1.  , 1.  ], dtype=float32)
    """
    factors = check_operator(hessian, "hessian")
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), structure.row(factors))
    return _lineax_classes()[0](hessian, _Static(row))


def lineax_solver() -> Any:
    """Returns the `lineax.AbstractLinearSolver` that calls the `solve` of `lineax_operator(h)`.

    Raises:
      ImportError: where lineax is not installed.
    """
    return _lineax_classes()[1]()


class _Static:
    """A structure that is no part of a pytree, equal to others of the same shapes."""

    def __init__(self, row):
        self.row = row

    def _key(self):
        leaves, tree = jax.tree.flatten(self.row)
        return tree, tuple((x.shape, x.dtype) for x in leaves)

    def __eq__(self, other):
        return isinstance(other, _Static) and self._key() == other._key()

    def __hash__(self):
        return hash(self._key())


@cache
def _lineax_classes():
    import equinox
    import lineax

    class LowRankOperator(lineax.AbstractLinearOperator):
        hessian: Any
        static: _Static = equinox.field(static=True)

        def mv(self, vector):
            return self.hessian.mv(vector)

        def as_matrix(self):
            return self.hessian.to_dense()

        def transpose(self):
            return self

        def in_structure(self):
            return self.static.row

        out_structure = in_structure

    class LowRankSolver(lineax.AbstractLinearSolver):
        def init(self, operator, options):
            del options
            checks.instance(operator, "operator", LowRankOperator)
            return operator

        def compute(self, state, vector, options):
            del options
            if not hasattr(state.hessian, "diag"):
                raise ValueError("an operator of low rank is singular: add plus_diagonal")
            return state.hessian.solve(vector), lineax.RESULTS.successful, {}

        def transpose(self, state, options):
            return state, options

        conj = transpose

        def assume_full_rank(self):
            return True

    structured = (lineax.is_diagonal, lineax.is_tridiagonal, lineax.has_unit_diagonal)
    structured += (lineax.is_lower_triangular, lineax.is_upper_triangular)
    structured += (lineax.is_positive_semidefinite, lineax.is_negative_semidefinite)
    for test in structured:
        test.register(LowRankOperator, lambda operator: False)
    lineax.is_symmetric.register(LowRankOperator, lambda operator: True)
    for same in (lineax.linearise, lineax.conj):
        same.register(LowRankOperator, lambda operator: operator)
    lineax.materialise.register(
        LowRankOperator,
        lambda operator: lineax.MatrixLinearOperator(operator.as_matrix(), lineax.symmetric_tag),
    )
    lineax.diagonal.register(
        LowRankOperator, lambda operator: jax.numpy.diagonal(operator.as_matrix())
    )
    return LowRankOperator, LowRankSolver
