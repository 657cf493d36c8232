"""How programs that are run once are compiled: in half the time, to slower code."""

import os

import jax

# Parts of a program are compiled in parallel, which is for those who have nothing else to do.
XLA_FLAGS = "--xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__[:2] == (0, 10):  # later ones cannot do without their emitters
    XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"


def environment(**more):
    """That of a process of its own."""
    return {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {XLA_FLAGS}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        **more,
    }
