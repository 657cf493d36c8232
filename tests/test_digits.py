"""Real losses: Hessians of a digit classifier in the pixels of one image."""

import jax
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

    @jax.jit
    @jax.vmap
    def hessians(key, x, label):
        points = problems.cloud(key, x, STEPS)
        h = lrj.secant_hessian(problems.image_loss, pairing=lrj.from_first)(points, label, params)
        return h.to_dense(), jax.hessian(problems.image_loss)(x, label, params)

    approximate, exact = (np.asarray(h, np.float64) for h in hessians(keys, images, labels))
    best = [reference.eckart_young_error(h, STEPS) for h in exact]
    error = [reference.relative_error(h, e) for h, e in zip(approximate, exact, strict=True)]
    assert np.median(np.divide(error, best)) < 2.7
    assert np.max(error) < 0.9
