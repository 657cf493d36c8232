"""The gradient over batches is the gradient over all data, and only few batches are in memory."""

import re
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj

KEY = jax.random.key(0)
ROWS = np.ones((3, 4))
W = np.ones(4)


class Each:
    """Makes its batches anew whenever it is iterated over."""

    def __init__(self, make):
        self.make = make

    def __iter__(self):
        return self.make()


def squares(w, x):
    return jnp.mean((x @ w) ** 2) / 2


def residuals(params, batch):
    x, y, weight = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2) * weight[0]


@pytest.mark.parametrize(
    ("dtype", "atol"), [(jnp.bfloat16, 2e-2), (np.float32, 2e-7), (np.float64, 1e-14)]
)
def test_ten_thousand_small_batches_give_the_full_gradient(rng, dtype, atol, fully_compiled):
    ends = np.cumsum(rng.integers(0, 4, 10_000))
    x, y = rng.normal(1, 1, (ends[-1], 5)).astype(dtype), rng.normal(size=ends[-1]).astype(dtype)
    params = {"w": rng.normal(size=5).astype(dtype), "b": np.ones((), dtype)}
    half = np.full(len(x), 0.5, dtype)
    parts = zip(*(np.split(part, ends[:-1]) for part in (x, y, half)), strict=True)
    found = lrj.mean_gradient(residuals, list(parts))(params)
    x, y, w, b = (np.asarray(a, float) for a in (x, y, params["w"], params["b"]))
    error = x @ w + b - y
    true = {"w": x.T @ error / len(x), "b": np.mean(error)}
    scale = np.hypot(np.linalg.norm(true["w"]), true["b"])
    for name in params:
        assert found[name].dtype == dtype
        np.testing.assert_allclose(np.asarray(found[name], float), true[name], 0, atol * scale)


def test_the_hessian_of_all_data_comes_from_their_batches(rng):
    x = rng.normal(size=(50, 6))
    gradient = lrj.mean_gradient(squares, Each(lambda: iter([x[:30], x[30:37], x[37:]])))
    h = lrj.lowrank_hessian_from_gradient(gradient, 6)(rng.normal(size=6), key=KEY)
    np.testing.assert_allclose(h.to_dense(), x.T @ x / 50, atol=1e-6)


def test_products_of_all_data_come_from_their_batches(rng):
    """Exact and Gauss-Newton ones: of a linear model with squared loss both are the Hessian."""
    x, w, v = rng.normal(size=(50, 6)), rng.normal(size=6), rng.normal(size=6)
    y = rng.normal(size=50)
    parts = Each(lambda: iter([(x[:30], y[:30]), (x[30:37], y[30:37]), (x[37:], y[37:])]))

    def model(w, inputs):
        return inputs @ w

    def half_squares(outputs, targets):
        return jnp.mean((outputs - targets) ** 2) / 2

    gauss_newton = lrj.gauss_newton_product(model, half_squares)
    exact = lrj.hvp(lambda w, batch: half_squares(model(w, batch[0]), batch[1]))
    for product in (exact, lambda x, v, batch: gauss_newton(x, v, *batch)):
        at = lrj.mean_product(product, parts)
        np.testing.assert_allclose(at(w, v), x.T @ (x @ v) / 50, rtol=1e-12)
    h = lrj.lowrank_from_product(lrj.mean_product(exact, parts), 6, passes=1)(w, key=KEY)
    np.testing.assert_allclose(h.to_dense(), x.T @ x / 50, atol=1e-12)


def test_memory_does_not_grow_with_the_number_of_batches():
    batches, alive, arrays = [], [], []

    def read():
        for _ in range(40):
            batch = [np.ones((400, 400), np.float32)]
            batches.append(weakref.ref(batch[0]))
            alive.append(sum(ref() is not None for ref in batches))
            arrays.append(len(jax.live_arrays()))
            yield batch.pop()

    w = np.full((400, 400), 1e-2, np.float32)
    jax.block_until_ready(lrj.mean_gradient(lambda w, x: jnp.mean(x @ w @ w), Each(read))(w))
    assert max(alive) <= 3
    assert max(arrays) <= arrays[0] + 2


def test_a_batch_shape_is_compiled_once():
    traced = []

    def loss(w, x):
        traced.append(x.shape)
        return squares(w, x)

    gradient = lrj.mean_gradient(loss, [np.ones((n, 4)) for n in (2, 3, 0, 3, 2)])
    for w in (W, jnp.ones(4), 2 * W):
        gradient(w)
    assert traced == [(2, 4), (3, 4)]


def test_what_is_not_finite_in_a_batch_stays_so():
    batches = [np.ones((2, 3)), np.array([[np.inf, np.nan, 0]]), np.ones((1, 3))]
    found = lrj.mean_gradient(lambda w, x: jnp.mean(x @ w), batches)(np.ones(3))
    np.testing.assert_array_equal(found, [np.inf, np.nan, 3 / 4])


def test_the_bar_counts_the_batches(capsys):
    lrj.mean_gradient(squares, [ROWS, ROWS], progress=True)(W)
    assert re.search(r"batches: .*/2 ", capsys.readouterr().err)
    lrj.mean_gradient(squares, Each(lambda: iter([ROWS])), progress=True)(W)
    assert "batches: 0it" in capsys.readouterr().err
    assert "tqdm" in sys.modules


def gradient_of(*batches):
    return lrj.mean_gradient(squares, batches)


ONCE = iter([ROWS])
ON_DEVICE = jnp.ones(4)
ERRORS = {
    "a generator of batches": (
        lambda: lrj.mean_gradient(squares, (x for x in [ROWS])),
        TypeError,
        "must be a list, or an object whose __iter__ starts anew .* got a generator",
    ),
    "batches that are no batches": (
        lambda: lrj.mean_gradient(squares, 3),
        TypeError,
        "batches must be iterable, got a int",
    ),
    "no batches": (lambda: gradient_of()(W), ValueError, "at least one example .* got none"),
    "empty batches": (
        lambda: gradient_of(ROWS[:0], ROWS[:0])(W),
        ValueError,
        "at least one example",
    ),
    "batches that end with the first pass": (
        lambda: [lrj.mean_gradient(squares, Each(lambda: ONCE))(W) for _ in range(2)],
        ValueError,
        "returns the same iterator each time is empty the second time",
    ),
    "a batch of nothing": (
        lambda: gradient_of(ROWS, {"x": ()})(W),
        ValueError,
        r"batch 1 must hold at least one array, got \{'x': \(\)\}",
    ),
    "a batch without a leading axis": (
        lambda: gradient_of(ROWS, {"x": 2.0, "y": ROWS})(W),
        ValueError,
        r"batch 1\['x'\] must have a leading axis of examples, got a scalar 2.0",
    ),
    "a mean gradient at nothing": (
        lambda: gradient_of(ROWS)({}),
        ValueError,
        "params must hold at least one array",
    ),
    "a mean gradient at integers": (
        lambda: gradient_of(ROWS)({"w": np.ones(4, int)}),
        TypeError,
        r"params\['w'\] must be a real floating-point array, got dtype int",
    ),
    "a mean gradient of a loss that is not scalar": (
        lambda: lrj.mean_gradient(lambda w, x: x @ w, [ROWS])(W),
        ValueError,
        r"loss must return a scalar, got shape \(3,\)",
    ),
    "a batch whose leaves disagree": (
        lambda: lrj.mean_gradient(
            lambda w, b: jnp.mean(b["x"] @ w), [{"weights": np.ones(2), "x": ROWS}]
        )(W),
        ValueError,
        r"batch 0\['x'\] must have as many examples as batch 0\['weights'\], 2, got shape",
    ),
    "a product over batches whose leaves disagree": (
        lambda: lrj.mean_product(lambda x, v, b: v, [(ROWS, np.ones(2))])(W, W),
        ValueError,
        r"batch 0\[1\] must have as many examples as batch 0\[0\]",
    ),
    "a mean gradient under jit": (
        lambda: jax.jit(lambda: gradient_of(ROWS)(ON_DEVICE))(),
        TypeError,
        "returns cannot be traced by jit, vmap or grad, .* lowrank_hessian_from_gradient",
    ),
    "a mean gradient under vmap": (
        lambda: jax.vmap(gradient_of(ROWS))(ROWS),
        TypeError,
        "mean_gradient returns cannot be traced",
    ),
    "a derivative of a mean gradient": (
        lambda: jax.jacfwd(gradient_of(ROWS))(W),
        TypeError,
        "mean_gradient returns cannot be traced",
    ),
    "a derivative in a batch": (
        lambda: jax.jacfwd(lambda x: gradient_of(x)(W))(ROWS),
        TypeError,
        "mean_gradient returns cannot be traced",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_wrong_batches_are_an_error_that_says_what_is_wrong(case):
    call, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        call()
