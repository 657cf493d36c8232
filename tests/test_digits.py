"""Real losses: a digit classifier's Hessians in the pixels of an image and in its parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from benchmarks import problems
from tests import reference

IMAGES = 300


@pytest.fixture(scope="module")
def params():
    return problems.trained_mlp()


def from_cloud(key, x, label, params):
    points = problems.cloud(key, x, 16)
    return lrj.secant_hessian(problems.image_loss, pairing=lrj.from_first)(points, label, params)


def at_point(probes, passes, rank=None):
    def hessian(key, x, label, params):
        at = lrj.lowrank_hessian(problems.image_loss, probes, passes=passes)
        h = at(x, label, params, key=key)
        return h if rank is None else h.truncate(rank)

    return hessian


# The relative error over that of the best approximation of rank 16, the median and the worst
# relative error that are allowed.
IN_PIXELS = {
    "a cloud of 16 steps": (from_cloud, 2.7, 0.9),
    "8 probes, 2 passes": (at_point(8, 2), 1.85, 0.55),
    "8 probes, 3 passes": (at_point(8, 3), 1.25, 0.55),
    "16 probes, 2 passes": (at_point(16, 2), 0.95, 0.55),
    "16 probes, 2 passes, of rank 16": (at_point(16, 2, rank=16), 1.25, 0.55),
}


def test_curvature_in_the_pixels_comes_near_the_best_approximation_of_rank_sixteen(params):
    images, labels = problems.digits()
    chosen = jax.random.choice(jax.random.key(1), len(images), (IMAGES,), replace=False)
    keys = jax.random.split(jax.random.key(2), IMAGES)
    batch = (keys, images[chosen], labels[chosen])

    @jax.jit
    def exact(params):
        return jax.vmap(jax.hessian(problems.image_loss), (0, 0, None))(*batch[1:], params)

    truth = np.asarray(exact(params), np.float64)
    best = [reference.eckart_young_error(h, 16) for h in truth]
    for name, (hessian, ratio, worst) in IN_PIXELS.items():
        dense = jax.vmap(lambda *args, f=hessian: f(*args).to_dense(), (0, 0, 0, None))
        found = np.asarray(jax.jit(dense)(*batch, params), np.float64)
        error = [reference.relative_error(h, e) for h, e in zip(found, truth, strict=True)]
        assert np.median(np.divide(error, best)) < ratio, name
        assert np.max(error) < worst, name


def error_on(vectors, exact, h):
    def size(rows):
        return sum(jnp.sum(leaf.astype(float) ** 2) for leaf in jax.tree.leaves(rows))

    off = jax.tree.map(jnp.subtract, jax.vmap(h.mv)(vectors), exact)
    return float(jnp.sqrt(size(off) / size(exact)))


def test_a_few_gradients_tell_the_curvature_in_26122_parameters(params):
    """Relative error on 64 random vectors, and that exact products would not lower it."""
    data = problems.digits()
    keys = iter(jax.random.split(jax.random.key(3), 6))
    vectors = jax.tree.map(lambda x: jax.random.normal(next(keys), (64, *x.shape), x.dtype), params)

    @jax.jit
    def products(params, *data):
        return jax.lax.map(lambda v: lrj.hvp(problems.mean_loss)(params, v, *data), vectors)

    truth = products(params, *data)
    key = jax.random.key(4)
    for probes, passes, allowed in ((4, 5, 0.235), (10, 4, 0.205)):
        options = {"passes": passes, "batch_size": 1}
        at = jax.jit(lrj.lowrank_hessian(problems.mean_loss, probes, **options))
        error = error_on(vectors, truth, at(params, *data, key=key))
        assert error < allowed
    exact = jax.jit(lrj.lowrank_from_product(lrj.hvp(problems.mean_loss), probes, **options))
    by_products = error_on(vectors, truth, exact(params, *data, key=key))
    np.testing.assert_allclose(error, by_products, rtol=0.01)
