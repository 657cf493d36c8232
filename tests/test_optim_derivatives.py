"""Derivatives through optimisations that are unrolled, against central differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lowrank_jax import optim
from tests.derivatives import check_derivatives

STEPS = 5
OPTIMISERS = {
    "scale_by_secant": lambda rate, memory_size: optax.chain(
        optim.scale_by_secant(memory_size), optax.scale(-rate)
    ),
    "secant_newton": lambda rate, memory_size: optim.secant_newton(rate, memory_size=memory_size),
}


def loss(params, tilt):
    """Not quadratic, indefinite where cosines are steep; the last parameter has no gradient."""
    x = jnp.concatenate([params["a"], params["b"]])
    curved = jnp.sum(jnp.geomspace(1, 20, len(x)) * x**2) / 2 + jnp.vdot(x, jnp.roll(x, 1))
    return curved + tilt * jnp.sum(jnp.cos(2 * x)) + tilt**2 * jnp.sum(x**4)


def last_loss(name, memory_size, kind, start, tilt, rate):
    """After updates of which some are of zero gradients, not finite, or not made, as kind says."""
    opt = OPTIMISERS[name](rate, memory_size)
    if kind == "masked":
        opt = optax.masked(opt, {"a": True, "b": False})

    def update(carry, number):
        params, state = carry
        grads = jax.grad(loss)(params, tilt)
        if kind == "rejected":
            grads["a"] = jnp.where(number == 2, jnp.nan, grads["a"])
        if kind == "masked":
            grads["b"] = jnp.zeros_like(grads["b"])
        updates, state = opt.update(grads, state, params)
        taken = number % 2 == 0 if kind == "zero" else True
        updates = jax.tree.map(lambda u: jnp.where(taken, u, 0), updates)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(update, (start, opt.init(start)), jnp.arange(STEPS))
    return loss(params, tilt)


@functools.cache
def of_case(*case):
    return functools.partial(last_loss, *case)


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize(
    ("memory_size", "kind"),
    [(1, "all"), (3, "all"), (10, "all"), (3, "zero"), (3, "masked"), (3, "rejected")],
)
def test_the_derivatives_of_the_last_loss_are_those_of_all_updates(rng, name, memory_size, kind):
    start = {"a": rng.normal(size=3), "b": rng.normal(size=3)}
    args = (start, np.array(0.3), np.array(0.4))
    check_derivatives(of_case(name, memory_size, kind), args, eps=1e-5)
