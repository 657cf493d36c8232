"""Every test runs in double precision, with implicit promotions of dtype or rank an error."""

import os

import jax
import numpy as np
import pytest

jax.config.update("jax_enable_x64", os.environ.get("JAX_ENABLE_X64", "1") != "0")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def rng(request):
    """A NumPy generator, the same one whenever the same test runs."""
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture
def quick_compile():
    """Compiles with few optimizations: finite differences of a function are mostly compilation."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
