"""Every test runs in double precision, with implicit promotions of dtype or rank an error.

`JAX_ENABLE_X64=0` runs them in single precision. Most of the time is compilation: it is asked
for few optimizations, but where `JAX_DISABLE_MOST_OPTIMIZATIONS=0` is set; see also `quick`.
"""

import gc
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import quick


def is_set(name):
    return os.environ.get(name, "1") != "0"


flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{flags} {quick.XLA_FLAGS}"
jax.devices()  # reads the flags
os.environ["XLA_FLAGS"] = flags
jax.config.update("jax_enable_x64", is_set("JAX_ENABLE_X64"))
jax.config.update("jax_disable_most_optimizations", is_set("JAX_DISABLE_MOST_OPTIMIZATIONS"))
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(100_000, 20, 20)  # programs stay: walking them again and again takes minutes


def pytest_addoption(parser):
    parser.addoption("--first-cases", action="store_true", help="of each test the first case alone")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--first-cases"):
        first = {item.nodeid.split("[")[0]: item for item in reversed(items)}.values()
        config.hook.pytest_deselected(items=[item for item in items if item not in first])
        items[:] = [item for item in items if item in first]


def pytest_runtest_teardown(item, nextitem):
    """Drops all programs between two files where they are many.

    Each takes a hundred maps of memory. Linux gives a process 65,530, and LLVM dies without.
    """
    maps = Path("/proc/self/maps")
    between = nextitem is not None and nextitem.path != item.path
    if between and maps.exists() and len(maps.read_bytes().splitlines()) > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def rng(request):
    """A NumPy generator, the same one whenever the same test runs."""
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture
def fully_compiled():
    """For tests that compute more than they compile."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
