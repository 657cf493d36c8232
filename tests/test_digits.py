"""Real losses: Hessians of a digit classifier in the pixels of one image."""

import jax
import jax.numpy as jnp
import numpy as np

import lowrank_jax as lrj
from benchmarks import problems
from tests import reference

IMAGES, STEPS = 300, 16


def test_sixteen_steps_come_near_the_best_approximation_of_rank_sixteen():
    params = problems.trained_mlp()
    images, labels = problems.digits()
    chosen = jax.random.choice(jax.random.key(1), len(images), (IMAGES,), replace=False)
    images, labels = images[chosen], labels[chosen]
    keys = jax.random.split(jax.random.key(2), IMAGES)

    def errors(key, x, label):
        points = problems.cloud(key, x, STEPS)
        h = lrj.secant_hessian(problems.image_loss, pairing=lrj.from_first)(points, label, params)
        exact = jax.hessian(problems.image_loss)(x, label, params)
        values = jnp.sort(jnp.abs(jnp.linalg.eigvalsh(exact)))
        size = jnp.linalg.norm(values)
        error = jnp.linalg.norm(h.to_dense() - exact) / size
        return error, jnp.linalg.norm(values[:-STEPS]) / size, exact

    error, best, exact = jax.jit(jax.vmap(errors))(keys, images, labels)
    np.testing.assert_allclose(best[0], reference.eckart_young_error(exact[0], STEPS), rtol=1e-3)
    assert np.median(error / best) < 2.7
    assert np.max(error) < 0.9
