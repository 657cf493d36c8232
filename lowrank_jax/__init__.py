"""Low-rank Hessians from gradients: curvature for JAX without a second derivative."""

from lowrank_jax import history, interop, optim, plot
from lowrank_jax._at_a_point.comparison import HvpComparison, compare_hvp
from lowrank_jax._at_a_point.differences import gradient_difference
from lowrank_jax._at_a_point.eigenpair import EigenpairInfo, top_eigenpair
from lowrank_jax._at_a_point.estimates import Estimate, Estimates, estimate
from lowrank_jax._at_a_point.hessian import (
    lowrank_from_product,
    lowrank_hessian,
    lowrank_hessian_from_gradient,
)
from lowrank_jax._at_a_point.jacobian import lowrank_jacobian
from lowrank_jax._at_a_point.probes import probe_pairs
from lowrank_jax._at_a_point.products import gauss_newton_product, hvp, second_derivative
from lowrank_jax._at_a_point.ritz import RitzPairs, ritz_pairs
from lowrank_jax._at_a_point.triplet import singular_triplet
from lowrank_jax._clouds.diagnosis import Diagnosis, diagnose
from lowrank_jax._clouds.fit import fit
from lowrank_jax._clouds.hessian import secant_hessian
from lowrank_jax._clouds.pairs import (
    SecantPairs,
    anchored,
    centered,
    concatenate,
    from_first,
    secant_pairs,
    successive,
)
from lowrank_jax._clouds.selection import choose_extrapolation, choose_rtol, choose_shift
from lowrank_jax._models.cross import cross
from lowrank_jax._models.cur import skeleton
from lowrank_jax._models.quadratic import QuadraticModel, quadratic_model, quadratic_model_at
from lowrank_jax._operators.diagonal import DiagonalPlusLowRank
from lowrank_jax._operators.rectangular import LowRank
from lowrank_jax._operators.symmetric import SymmetricLowRank
from lowrank_jax._training.batches import mean_gradient, mean_product

__version__ = "0.1.0"

__all__ = [
    "Diagnosis",
    "DiagonalPlusLowRank",
    "EigenpairInfo",
    "Estimate",
    "Estimates",
    "HvpComparison",
    "LowRank",
    "QuadraticModel",
    "RitzPairs",
    "SecantPairs",
    "SymmetricLowRank",
    "anchored",
    "centered",
    "choose_extrapolation",
    "choose_rtol",
    "choose_shift",
    "compare_hvp",
    "concatenate",
    "cross",
    "diagnose",
    "estimate",
    "fit",
    "from_first",
    "gauss_newton_product",
    "gradient_difference",
    "history",
    "hvp",
    "interop",
    "lowrank_from_product",
    "lowrank_hessian",
    "lowrank_hessian_from_gradient",
    "lowrank_jacobian",
    "mean_gradient",
    "mean_product",
    "optim",
    "plot",
    "probe_pairs",
    "quadratic_model",
    "quadratic_model_at",
    "ritz_pairs",
    "secant_hessian",
    "secant_pairs",
    "second_derivative",
    "singular_triplet",
    "skeleton",
    "successive",
    "top_eigenpair",
]
