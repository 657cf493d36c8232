"""The problems that examples, tests and benchmarks share: handwritten digits and networks on them.

Everything is float32 and explicit about it, so that the problems are the same with
`jax_enable_x64` and where implicit promotion of dtypes or ranks is an error.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from lowrank_jax import SecantPairs

Params = Sequence[dict[str, jax.Array]]


def digits() -> tuple[jax.Array, jax.Array]:
    """The 1797 handwritten digits of scikit-learn, 8 x 8 pixels each.

    Returns:
      images: (1797, 64) float32 in [0, 1].
      labels: (1797,) int32, 0 to 9.
    """
    from sklearn.datasets import load_digits  # here: the problems that need no digits need none

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


class Point(NamedTuple):
    """A loss, `loss(x, *data)`, and the x, most often a vector, and data at which it is studied."""

    loss: Callable
    x: Any
    data: tuple


def mlp_point(
    sizes: Sequence[int] = (64, 128, 128, 10), steps: int = 100, count: int = 1797
) -> Point:
    """A network's parameters as one vector after `steps` of Adam, and its loss over `count` images.

    By default those of `trained_mlp` and of `mean_loss`, 26,122 parameters.
    """
    x, unravel = ravel_pytree(init_mlp(jax.random.key(0), sizes))
    data = tuple(array[:count] for array in digits())

    def loss(x, images, labels):
        return mean_loss(unravel(x), images, labels)

    return _trained(Point(loss, x, data), steps)


def million_point(count: int = 1797) -> Point:
    """Untrained, 64-968-968-10 with 1,010,602 parameters."""
    return mlp_point((64, 968, 968, 10), steps=0, count=count)


def deep_point() -> Point:
    """Untrained, 20 layers of width 64, 79,690 parameters, at 256 images."""
    return mlp_point((*[64] * 20, 10), steps=0, count=256)


def deep_layer_point() -> Point:
    """The 4,096 weights of the first layer of the same network, at 32 images."""
    first, *others = init_mlp(jax.random.key(0), (*[64] * 20, 10))
    images, labels = (array[:32] for array in digits())

    def loss(x, images, labels):
        layer = {"w": x.reshape(64, 64), "b": first["b"]}
        return mean_loss([layer, *others], images, labels)

    return Point(loss, first["w"].ravel(), (images, labels))


def attention_point(steps: int = 100, count: int = 512) -> Point:
    """Two blocks of attention over the eight rows of a digit, 25,408 parameters, at `count` images.

    An exact product with its Hessian takes 2.3 times as long as a gradient.
    """
    x, unravel = ravel_pytree(_init_attention(jax.random.key(1), width=32, blocks=2))
    data = tuple(array[:count] for array in digits())

    def loss(x, images, labels):
        scores = jax.vmap(_attention_logits, in_axes=(None, 0))(unravel(x), images)
        return _mean_cross_entropy(scores, labels)

    return _trained(Point(loss, x, data), steps)


def deep_image_point() -> Point:
    """One image's 64 pixels under the same network."""
    images, labels = digits()
    params = init_mlp(jax.random.key(0), (*[64] * 20, 10))
    return Point(image_loss, images[0], (labels[0], params))


def cnn_point(count: int = 300) -> Point:
    """A convolutional network of flax with ReLU, 105,226 parameters, x in its own structure."""
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Conv(1, 16, (3, 3), rngs=rngs)
            self.second = nnx.Conv(16, 32, (3, 3), rngs=rngs)
            self.hidden = nnx.Linear(512, 192, rngs=rngs)
            self.scores = nnx.Linear(192, 10, rngs=rngs)

        def __call__(self, images):
            z = nnx.relu(self.second(nnx.relu(self.first(images.reshape(-1, 8, 8, 1)))))
            z = nnx.avg_pool(z, (2, 2), (2, 2)).reshape(len(images), -1)
            return self.scores(nnx.relu(self.hidden(z)))

    structure, x, rest = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)

    def loss(x, images, labels):
        return _mean_cross_entropy(nnx.merge(structure, x, rest)(images), labels)

    return Point(loss, x, tuple(array[:count] for array in digits()))


def transformer_point(count: int = 300, width: int = 64, depth: int = 2) -> Point:
    """A transformer of equinox that reads rows as tokens, 101,194 parameters in 29 leaves."""
    import equinox as eqx

    class Block(eqx.Module):
        mix: eqx.nn.MultiheadAttention
        before: eqx.nn.LayerNorm
        between: eqx.nn.LayerNorm
        dense: eqx.nn.MLP

        def __init__(self, key):
            one, other = jax.random.split(key)
            self.mix = eqx.nn.MultiheadAttention(4, width, key=one)
            self.before, self.between = eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)
            gelu = jax.nn.gelu
            self.dense = eqx.nn.MLP(width, width, 4 * width, 1, activation=gelu, key=other)

        def __call__(self, z):
            seen = jax.vmap(self.before)(z)
            z = z + self.mix(seen, seen, seen)
            return z + jax.vmap(self.dense)(jax.vmap(self.between)(z))

    class Network(eqx.Module):
        tokens: eqx.nn.Linear
        places: jax.Array
        blocks: list
        scores: eqx.nn.Linear

        def __init__(self, key):
            keys = jax.random.split(key, depth + 3)
            self.tokens = eqx.nn.Linear(8, width, key=keys[0])
            self.places = jax.random.normal(keys[1], (8, width), jnp.float32) / 10
            self.scores = eqx.nn.Linear(width, 10, key=keys[2])
            self.blocks = [Block(k) for k in keys[3:]]

        def __call__(self, image):
            z = jax.vmap(self.tokens)(image.reshape(8, 8)) + self.places
            for block in self.blocks:
                z = block(z)
            return self.scores(jnp.mean(z, axis=0))

    x, static = eqx.partition(Network(jax.random.key(0)), eqx.is_inexact_array)

    def loss(x, images, labels):
        return _mean_cross_entropy(jax.vmap(eqx.combine(x, static))(images), labels)

    return Point(loss, x, tuple(array[:count] for array in digits()))


def _mean_cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    picked = jnp.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(scores, axis=1) - picked)


class BeadChain(NamedTuple):
    """Beads in a row, in NumPy: a bond stretched by d costs `k (1 - exp(-d))^2`.

    Bonds get softer along the chain. One stiff bond in the middle is about to break: stretched that
    far, it pulls the less, the longer it gets, a negative curvature.
    """

    stiffness: np.ndarray
    stretch: np.ndarray

    def energy(self, moved: Any) -> np.floating:
        """Where each bead is displaced by so much."""
        return np.sum(self.stiffness * (1 - self._decay(moved)) ** 2)

    def gradient(self, moved: Any) -> np.ndarray:
        """Of the energy."""
        decay = self._decay(moved)
        pull = 2 * self.stiffness * (1 - decay) * decay
        return pull - np.append(pull[1:], 0)

    def hessian(self, moved: Any) -> np.ndarray:
        """The closed form, dense."""
        decay = self._decay(moved)
        differences = np.eye(len(decay)) - np.eye(len(decay), k=-1)
        return (differences.T * (2 * self.stiffness * decay * (2 * decay - 1))) @ differences

    def _decay(self, moved):
        return np.exp(-self.stretch - np.diff(np.asarray(moved, float), prepend=0))


def bead_chain(count: int) -> tuple[BeadChain, np.ndarray]:
    """A chain of that many beads, and how far each is displaced, float32."""
    random = np.random.default_rng(0)
    stiffness, stretch = 100 / np.arange(1.0, count + 1), random.uniform(0, 0.3, count)
    stiffness[count // 2], stretch[count // 2] = 300, np.log(4)
    return BeadChain(stiffness, stretch), random.normal(0, 0.02, count).astype(np.float32)


def random_pairs(shape: Sequence[int]) -> SecantPairs:
    """Consistent float32 pairs of that shape, (n, D) or (batch, n, D).

    The steps are normal, H is diagonal and the same in the whole batch, with eigenvalues of both
    signs whose magnitudes fall from 1 to 1e-3.
    """
    steps = jax.random.normal(jax.random.key(0), tuple(shape), jnp.float32)
    sizes = jnp.geomspace(1, 1e-3, shape[-1], dtype=jnp.float32)
    signs = jnp.where(jnp.arange(shape[-1]) % 3 == 2, -1, 1).astype(jnp.float32)
    diagonal = (signs * sizes).reshape((1,) * (len(shape) - 1) + (-1,))
    return SecantPairs(steps, steps * diagonal)


def adam_path(point: Point, steps: int, record: Callable, state: tuple) -> tuple:
    """Steps of Adam (1e-3): the last x, and what `record(state, x, gradient)` makes on the way.

    Args:
      point: where it starts.
      steps: how many.
      record: called before every step and at the last point.
      state: what `record` begins with.
    """
    optimizer = optax.adam(1e-3)

    def step(carry, _):
        x, adam, state = carry
        gradient = jax.grad(point.loss)(x, *point.data)
        state = record(state, x, gradient)
        with jax.numpy_dtype_promotion("standard"):  # as in `trained_mlp`
            updates, adam = optimizer.update(gradient, adam)
        return (optax.apply_updates(x, updates), adam, state), None

    @jax.jit
    def run(x, state):
        (x, _, state), _ = jax.lax.scan(step, (x, optimizer.init(x), state), length=steps)
        return x, record(state, x, jax.grad(point.loss)(x, *point.data))

    return run(point.x, state)


def _trained(point: Point, steps: int) -> Point:
    if steps == 0:
        return point
    return point._replace(x=adam_path(point, steps, lambda state, x, gradient: state, ())[0])


def _init_attention(key: jax.Array, width: int, blocks: int) -> dict:
    def weights(key, *shape):
        return jax.random.normal(key, shape, jnp.float32) / shape[-2] ** 0.5

    def block(key):
        keys = jax.random.split(key, 3)
        return {
            "mixed": weights(keys[0], 4, width, width),  # queries, keys, values, output
            "wide": weights(keys[1], width, 4 * width),
            "narrow": weights(keys[2], 4 * width, width),
        }

    keys = jax.random.split(key, blocks + 3)
    return {
        "tokens": weights(keys[0], 8, width),
        "places": weights(keys[1], 8, width),
        "scores": weights(keys[2], width, 10),
        "blocks": [block(k) for k in keys[3:]],
    }


def _attention_logits(params: dict, image: jax.Array) -> jax.Array:
    x = image.reshape(8, 8) @ params["tokens"] + params["places"]  # (8 rows, width)
    for block in params["blocks"]:
        query, key, value, output = block["mixed"]
        seen = _normalised(x)
        weights = jax.nn.softmax(seen @ query @ (seen @ key).T / x.shape[1] ** 0.5, axis=-1)
        x = x + weights @ (seen @ value) @ output
        x = x + jnp.tanh(_normalised(x) @ block["wide"]) @ block["narrow"]
    return jnp.mean(x, axis=0) @ params["scores"]


def _normalised(x: jax.Array) -> jax.Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def _affine(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    y = x @ layer["w"]
    return y + jnp.broadcast_to(layer["b"], y.shape)
