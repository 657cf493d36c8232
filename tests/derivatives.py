"""Derivatives in both modes against central differences, in one program.

Most of the time of such a test is compilation: one program has the value and all derivatives,
and a function given again with arguments of the same shapes is not compiled again.
"""

from functools import partial

import jax
import numpy as np


def check_derivatives(function, args, *, order=1, eps=1e-4, rtol=1e-5, atol=1e-5):
    """Asserts that derivatives along random directions are slopes between `args +- eps along`.

    Those of order 2 are derivatives, in both modes, of the derivatives in both modes, along
    another direction: a second derivative that is not symmetric is right along the same one.
    """
    rng = np.random.default_rng(0)
    directions = ()
    for _ in range(order):
        shapes = jax.eval_shape(partial(_derivatives, function), args, directions)
        directions += ((_normal(rng, args), _normal(rng, shapes)),)

    close = partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
    for depth, (along, weights) in enumerate(reversed(directions)):
        ahead, at, behind = (
            _derivatives(function, _moved(args, step, along), directions)
            for step in (eps, 0.0, -eps)
        )
        for _ in range(depth):  # the value of the derivatives is what they are derivatives of
            ahead, at, behind = ahead[0], at[0], behind[0]
        _, forward, back = at
        slopes = jax.tree.map(lambda a, b: (a - b) / (2 * eps), ahead[0], behind[0])
        jax.tree.map(close, forward, slopes)
        close(_dot(back, along), _dot(weights, forward))


@partial(jax.jit, static_argnums=0)
def _derivatives(function, args, directions):
    for along, weights in directions:
        function = partial(_differentiated, function, along, weights)
    return function(*args)


def _differentiated(function, along, weights, *args):
    """The value at `args`, `J along` and `J^T weights`."""
    out, forward = jax.jvp(function, args, along)
    return out, forward, jax.vjp(function, *args)[1](weights)


def _moved(args, step, along):
    return jax.tree.map(lambda x, t: x + step * t, args, along)


def _normal(rng, like):
    return jax.tree.map(lambda leaf: np.asarray(rng.normal(size=np.shape(leaf))), like)


def _dot(a, b):
    return sum(map(np.vdot, jax.tree.leaves(a), jax.tree.leaves(b)))
