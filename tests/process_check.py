"""One of several processes that fit steps together; `test_devices` runs this.

python tests/process_check.py host:port count index
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import lowrank_jax as lrj
from tests import reference


def loss(x):
    return jnp.sum(jnp.cos(x)) + jnp.sum(x**4) / 2


def curvature(points, v):
    h = lrj.secant_hessian(loss)(points)
    return h @ v, h.solve(v, 3.0), h.eigenvalues()


def main(address, count, index):
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, count, index)
    assert jax.process_count() == count
    rng = np.random.default_rng(0)
    points, v = rng.normal(size=(6, 48)), rng.normal(size=48)
    mesh = jax.make_mesh((count,), ("d",), (jax.sharding.AxisType.Auto,))

    def part(x, spec):  # only what this process holds is read
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    found = jax.jit(curvature)(part(points, P(None, "d")), part(v, P("d")))
    grads = -np.sin(points) + 2 * points**3
    steps, diffs = points - points.mean(0), grads - grads.mean(0)
    h = reference.fit(steps, diffs, 2 / 3, rank=5)
    eigenvalues = np.linalg.eigvalsh(h)
    eigenvalues = eigenvalues[np.argsort(-np.abs(eigenvalues))][:12]
    truth = h @ v, np.linalg.solve(h + 3 * np.eye(48), v), eigenvalues
    for value, expected in zip(found, truth, strict=True):
        assert value.sharding.spec in (P("d"), P())
        for shard in value.addressable_shards:
            np.testing.assert_allclose(shard.data, expected[shard.index], rtol=1e-8, atol=1e-9)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
