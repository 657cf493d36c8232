"""Networks of any size on made data, and Lanczos with exact products, in plain JAX.

The products of the networks run in the precision that `jax.default_matmul_precision` says while
they are traced.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

import lowrank_jax as lrj
from benchmarks import problems
from benchmarks.measure import Call

CLASSES, TOKENS, LENGTH, HEAD = 10, 256, 64, 32


class Model(NamedTuple):
    """A loss `loss(params, *data)` of a pytree, and where it is studied."""

    loss: Callable
    params: Any
    data: tuple


def mlp(parameters: int, batch: int) -> Model:
    """64 inputs, three hidden layers of tanh, ten classes."""
    width = max(8, round((parameters / 2) ** 0.5) - 18)
    images, labels = _classes((64,), batch)
    params = problems.init_mlp(jax.random.key(0), (64, width, width, width, CLASSES))
    return Model(problems.mean_loss, params, (images, labels))


def cnn(parameters: int, batch: int, side: int = 32) -> Model:
    """Four 3 x 3 convolutions with tanh on colour images, the mean of pixels, ten classes."""
    c = max(4, round((parameters / 63) ** 0.5))
    channels = (3, c, c, 2 * c, 2 * c)
    keys = jax.random.split(jax.random.key(0), 5)
    kernels = [
        _normal(key, (3, 3, a, b), 9 * a)
        for key, a, b in zip(keys, channels[:-1], channels[1:], strict=False)
    ]
    params = {"kernels": kernels, "scores": _normal(keys[4], (2 * c, CLASSES), 2 * c)}
    return Model(_cnn_loss, params, _classes((side, side, 3), batch))


def transformer(parameters: int, batch: int) -> Model:
    """Blocks of causal attention and two layers, in a scan, over tokens that follow a rule."""
    blocks = 4 if parameters < 3e6 else 8 if parameters < 3e7 else 12
    width = max(HEAD, HEAD * round((parameters / (12 * blocks)) ** 0.5 / HEAD))
    keys = jax.random.split(jax.random.key(0), 7)
    shapes = {
        "mixed": (blocks, width, 3 * width),
        "output": (blocks, width, width),
        "wide": (blocks, width, 4 * width),
        "narrow": (blocks, 4 * width, width),
    }
    stack = {
        name: _normal(key, shape, shape[1])
        for key, (name, shape) in zip(keys[:4], shapes.items(), strict=True)
    }
    params = {
        "blocks": stack,
        "tokens": _normal(keys[4], (TOKENS, width), 1) / 4,
        "places": _normal(keys[5], (LENGTH, width), 1) / 4,
        "scores": _normal(keys[6], (width, TOKENS), width),
    }
    first = jax.random.randint(jax.random.key(1), (batch, 2), 0, TOKENS)

    def follow(pair, _):
        following = (3 * pair[1] + pair[0] // 2 + 1) % TOKENS
        return (pair[1], following), following

    _, tokens = lax.scan(follow, (first[:, 0], first[:, 1]), length=LENGTH + 1)
    return Model(_transformer_loss, params, (tokens.T,))


def trained(model: Model, gradient: Call, steps: int) -> Model:
    """The model after steps of Adam (1e-3), with the gradient's compiled call."""
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(params, state, grad):
        updates, state = optimizer.update(grad, state)
        return optax.apply_updates(params, updates), state

    params, state = model.params, optimizer.init(model.params)
    for _ in range(steps):
        params, state = step(params, state, gradient.function(params, *model.data))
    return model._replace(params=params)


def lanczos(loss: Callable, depth: int) -> Callable:
    """Lanczos with exact products, every vector orthogonalised twice against all others.

    Returns:
      A function `(key, params, *data)` to `Q^T T Q` as a `SymmetricLowRank`: T is `Q H Q^T`, as the
      projections find it, and its rows are not turned into eigenvectors, which costs a pass more.
    """

    def operator(key, params, *data):
        def grow(carry, i):
            basis, v = carry
            basis = jax.tree.map(lambda b, x: b.at[i].set(x), basis, v)
            w = lrj.hvp(loss)(params, v, *data)
            once = _inner(basis, w)
            w = jax.tree.map(jnp.subtract, w, _combined(once, basis))
            again = _inner(basis, w)
            w = jax.tree.map(jnp.subtract, w, _combined(again, basis))
            return (basis, _unit(w)), once + again

        empty = jax.tree.map(lambda x: jnp.zeros((depth, *x.shape), x.dtype), params)
        start = _unit(random_like(key, params))
        (basis, _), projections = lax.scan(grow, (empty, start), jnp.arange(depth))
        upper = jnp.tril(projections).T
        core = upper + jnp.triu(upper, 1).T
        return lrj.SymmetricLowRank(basis, core)

    return operator


def random_like(key: jax.Array, tree: Any) -> Any:
    """Normal numbers in the shapes of the tree."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return structure.unflatten(drawn)


def norm(tree: Any) -> jax.Array:
    """The Euclidean length of all leaves together."""
    return jnp.sqrt(sum(jnp.sum(x * x) for x in jax.tree.leaves(tree)))


def size(tree: Any) -> int:
    """How many numbers there are."""
    return sum(x.size for x in jax.tree.leaves(tree))


def _unit(v):
    length = norm(v)
    return jax.tree.map(lambda x: x / length, v)


def _inner(basis, v):
    def leaf(b, x):
        return jnp.tensordot(b, x, x.ndim, precision=lax.Precision.HIGHEST)

    return sum(jax.tree.leaves(jax.tree.map(leaf, basis, v)))


def _combined(coefficients, basis):
    return jax.tree.map(
        lambda b: jnp.tensordot(coefficients, b, 1, precision=lax.Precision.HIGHEST), basis
    )


def _classes(shape, batch):
    """Noise about a pattern of each class."""
    keys = jax.random.split(jax.random.key(1), 3)
    labels = jax.random.randint(keys[0], (batch,), 0, CLASSES)
    patterns = jax.random.normal(keys[1], (CLASSES, *shape), jnp.float32)
    noise = jax.random.normal(keys[2], (batch, *shape), jnp.float32)
    return patterns[labels] / 2 + noise, labels


def _normal(key, shape, fan_in):
    return jax.random.normal(key, shape, jnp.float32) / fan_in**0.5


def _cross_entropy(scores, labels):
    picked = jnp.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(scores, axis=-1) - picked)


def _cnn_loss(params, images, labels):
    x = images
    for kernel, stride in zip(params["kernels"], (1, 2, 2, 2), strict=True):
        x = lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jnp.tanh(x)
    return _cross_entropy(jnp.mean(x, axis=(1, 2)) @ params["scores"], labels)


def _transformer_loss(params, tokens):
    seen = tokens[:, :-1]
    x = params["tokens"][seen] + params["places"]
    x, _ = lax.scan(lambda x, block: (_block(block, x), None), x, params["blocks"])
    return _cross_entropy(_normalised(x) @ params["scores"], tokens[:, 1:])


def _block(block, x):
    batch, length, width = x.shape
    mixed = (_normalised(x) @ block["mixed"]).reshape(batch, length, 3, -1, HEAD)
    query, key, value = (mixed[:, :, i] for i in range(3))
    scores = jnp.einsum("blhc,bmhc->bhlm", query, key) / HEAD**0.5
    causal = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e9), axis=-1)
    seen = jnp.einsum("bhlm,bmhc->blhc", weights, value).reshape(batch, length, width)
    x = x + seen @ block["output"]
    return x + jax.nn.gelu(_normalised(x) @ block["wide"]) @ block["narrow"]


def _normalised(x):
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
