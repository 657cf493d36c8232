"""Low-rank Hessians from gradients: curvature for JAX without a second derivative."""

from lowrank_jax.hessian import secant_hessian
from lowrank_jax.pairs import (
    SecantPairs,
    anchored,
    centered,
    concatenate,
    from_first,
    secant_pairs,
    successive,
)
from lowrank_jax.products import gradient_difference, hvp, second_derivative
from lowrank_jax.quadratic import QuadraticModel, quadratic_model
from lowrank_jax.quality import (
    Diagnosis,
    HvpComparison,
    choose_extrapolation,
    choose_rtol,
    compare_hvp,
    diagnose,
)
from lowrank_jax.secant import fit
from lowrank_jax.symmetric import SymmetricLowRank

__version__ = "0.1.0"

__all__ = [
    "Diagnosis",
    "HvpComparison",
    "QuadraticModel",
    "SecantPairs",
    "SymmetricLowRank",
    "anchored",
    "centered",
    "choose_extrapolation",
    "choose_rtol",
    "compare_hvp",
    "concatenate",
    "diagnose",
    "fit",
    "from_first",
    "gradient_difference",
    "hvp",
    "quadratic_model",
    "secant_hessian",
    "secant_pairs",
    "second_derivative",
    "successive",
]
