"""How many fused kernels programs have, as JSON; `test_fusions` runs this.

A fused kernel costs about 11 ms of compilation on a CPU, and its time goes with their number.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

import lowrank_jax as lrj

DIM = 64
QUICK = {  # to machine code, which is not counted
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}


def rows(n, leaves=None):
    """Shapes of n rows: one array, or many small leaves."""
    if leaves is None:
        return jax.ShapeDtypeStruct((n, DIM), np.float32)
    return [jax.ShapeDtypeStruct((n, 6, 5)[: 3 - i % 2], np.float32) for i in range(leaves)]


def operator(k, leaves=None):
    return lrj.SymmetricLowRank(rows(k, leaves), jax.ShapeDtypeStruct((k, k), np.float32))


METHODS = {
    "product": lambda h, v, d: h @ v,
    "eigh": lambda h, v, d: h.eigh(),
    "solve": lambda h, v, d: h.solve(v, d),
    "solve, one number a coordinate": lambda h, v, d: h.solve(v, v),
    "logdet": lambda h, v, d: h.logdet(d),
    "inverse": lambda h, v, d: h.inverse(d),
    "positive_part": lambda h, v, d: h.positive_part(),
    "truncate": lambda h, v, d: h.truncate(4),
    "sample": lambda h, v, d: h.sample(jax.random.key(0), d),
}


def count(function, *args):
    """The number of fusions of the program that is compiled for these shapes."""
    program = jax.jit(function).lower(*args).compile(compiler_options=QUICK)
    return program.as_text().count(" fusion(")


def of_methods(names, k, leaves=None):
    h = operator(k, leaves)
    v = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), h.factors)
    d = jax.ShapeDtypeStruct((), np.float32)
    return {f"{name}, {k}, {leaves}": count(METHODS[name], h, v, d) for name in names}


def main():
    found = of_methods(METHODS, 32)
    few = ("product", "eigh", "solve", "logdet")
    for k in (34, 600):
        found |= of_methods(few, k)
    for leaves in (20, 40):
        found |= of_methods((*few, "positive_part"), 32, leaves)
    pairs = lrj.SecantPairs(rows(16), rows(16))
    found["fit"] = count(lrj.fit, pairs)
    found["diagnose"] = count(lrj.diagnose, operator(32), pairs)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    assert jnp.ones(1).dtype == np.float32
    main()
