"""Real problems that examples, tests and benchmarks share: handwritten digits and a small network.

Everything is float32 and explicit about it, so that the problems are the same with
`jax_enable_x64` and where implicit promotion of dtypes or ranks is an error.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

Params = Sequence[dict[str, jax.Array]]


def digits() -> tuple[jax.Array, jax.Array]:
    """The 1797 handwritten digits of scikit-learn, 8 x 8 pixels each.

    Returns:
      images: (1797, 64) float32 in [0, 1].
      labels: (1797,) int32, 0 to 9.
    """
    pixels, labels = load_digits(return_X_y=True)
    return jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(labels, jnp.int32)


def init_mlp(key: jax.Array, sizes: Sequence[int] = (64, 128, 128, 10)) -> Params:
    """Random parameters: weights N(0, 2 / fan_in), biases zero.

    Args:
      key: the random key, split into one for each layer.
      sizes: the widths of the layers, input and output included.

    Returns:
      One `{"w": (in, out), "b": (out,)}` for each layer, float32.
    """
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {
            "w": (2 / fan_in) ** 0.5 * jax.random.normal(k, (fan_in, fan_out), jnp.float32),
            "b": jnp.zeros(fan_out, jnp.float32),
        }
        for k, fan_in, fan_out in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def logits(params: Params, x: jax.Array) -> jax.Array:
    """The network: tanh in the hidden layers, linear in the last one.

    Args:
      params: as from `init_mlp`.
      x: one image (64,) or a stack of them (n, 64).

    Returns:
      One logit for each class, (10,) or (n, 10).
    """
    *hidden, last = params
    for layer in hidden:
        x = jnp.tanh(_affine(layer, x))
    return _affine(last, x)


def image_loss(x: jax.Array, label: jax.Array, params: Params) -> jax.Array:
    """The cross-entropy of one image, a scalar.

    The image comes first: `jax.hessian(image_loss)(x, label, params)` is the
    Hessian in the pixels, (64, 64).

    Args:
      x: one image, (64,).
      label: its class, an integer scalar.
      params: as from `init_mlp`.
    """
    z = logits(params, x)
    return jax.nn.logsumexp(z) - z[label]


def mean_loss(params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross-entropy over all images, a scalar; the parameters come first."""
    return jnp.mean(jax.vmap(image_loss, in_axes=(0, 0, None))(images, labels, params))


def trained_mlp(steps: int = 100) -> Params:
    """The network after that many full-batch steps of Adam (1e-3) from `jax.random.key(0)`."""
    images, labels = digits()
    optimizer = optax.adam(1e-3)

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(mean_loss)(params, images, labels)
        with jax.numpy_dtype_promotion("standard"):  # optax takes 1 - decay**count of integers
            updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(params):
        return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[0][0]

    return train(init_mlp(jax.random.key(0)))


def cloud(key: jax.Array, x: jax.Array, n: int = 16, radius: float = 1e-2) -> jax.Array:
    """A point and n more around it, each one step of length `radius` in a random direction away.

    Args:
      key: the random key.
      x: the point, (D,).
      n: the number of steps.
      radius: the Euclidean length of every step.

    Returns:
      (n + 1, D), x itself first, in the dtype of x.
    """
    directions = jax.random.normal(key, (n, *x.shape), x.dtype)
    steps = radius * directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    return jnp.concatenate([x[None], x[None] + steps])


def _affine(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    y = x @ layer["w"]
    return y + jnp.broadcast_to(layer["b"], y.shape)
