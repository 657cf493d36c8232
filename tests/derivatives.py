"""Derivatives in both modes against differences of fourth order, in one program.

Most of the time of such a test is compilation: one program has the value and all derivatives,
and a function given again with arguments of the same shapes is not compiled again.
"""

from functools import partial

import jax
import numpy as np


def check_derivatives(function, args, *, order=1, eps=1e-4, rtol=1e-7, atol=1e-7):
    """Asserts that derivatives along random directions are slopes, by `args +- {1, 2} eps along`.

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
        at, *around = (
            _derivatives(function, _moved(args, steps * eps, along), directions)
            for steps in (0, 1, -1, 2, -2)
        )
        for _ in range(depth):  # the value of the derivatives is what they are derivatives of
            at, *around = (found[0] for found in (at, *around))
        _, forward, back = at
        slopes = jax.tree.map(
            lambda a, b, c, d: (8 * (a - b) - (c - d)) / (12 * eps), *(found[0] for found in around)
        )
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
