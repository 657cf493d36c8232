"""Low-rank Hessians from gradients: curvature for JAX without a second derivative."""

from lowrank_jax import history, optim
from lowrank_jax.batches import mean_gradient
from lowrank_jax.hessian import (
    lowrank_from_product,
    lowrank_hessian,
    lowrank_hessian_from_gradient,
    lowrank_hessian_on_host,
    secant_hessian,
)
from lowrank_jax.jacobian import lowrank_jacobian
from lowrank_jax.leading import singular_triplet, top_eigenpair
from lowrank_jax.pairs import (
    SecantPairs,
    anchored,
    centered,
    concatenate,
    from_first,
    secant_pairs,
    successive,
)
from lowrank_jax.probe import probe_pairs
from lowrank_jax.products import (
    gauss_newton_product,
    gradient_difference,
    hvp,
    second_derivative,
)
from lowrank_jax.quadratic import QuadraticModel, quadratic_model, quadratic_model_at
from lowrank_jax.quality import (
    Diagnosis,
    HvpComparison,
    choose_extrapolation,
    choose_rtol,
    compare_hvp,
    diagnose,
)
from lowrank_jax.rectangular import LowRank
from lowrank_jax.secant import fit
from lowrank_jax.skeleton import cross, skeleton
from lowrank_jax.symmetric import SymmetricLowRank

__version__ = "0.1.0"

__all__ = [
    "Diagnosis",
    "HvpComparison",
    "LowRank",
    "QuadraticModel",
    "SecantPairs",
    "SymmetricLowRank",
    "anchored",
    "centered",
    "choose_extrapolation",
    "choose_rtol",
    "compare_hvp",
    "concatenate",
    "cross",
    "diagnose",
    "fit",
    "from_first",
    "gauss_newton_product",
    "gradient_difference",
    "history",
    "hvp",
    "lowrank_from_product",
    "lowrank_hessian",
    "lowrank_hessian_from_gradient",
    "lowrank_hessian_on_host",
    "lowrank_jacobian",
    "mean_gradient",
    "optim",
    "probe_pairs",
    "quadratic_model",
    "quadratic_model_at",
    "secant_hessian",
    "secant_pairs",
    "second_derivative",
    "singular_triplet",
    "skeleton",
    "successive",
    "top_eigenpair",
]
