"""What is known of errors, beside the truth: residuals, flags, error bars.

Networks in float32, whose exact eigenvalues take some hundred exact products; then spectra,
a posterior and noisy forces in float64.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.datasets import load_breast_cancer

import lowrank_jax as lrj
from benchmarks import problems, step_problems
from benchmarks.options import Options
from benchmarks.problems import Point

LEADING, FLAG = 10, 0.03


def networks(options: Options) -> dict:
    """Leading eigenvalues with residuals, flags at kinks, the trace with its error bar."""
    count, steps, keys = (40, 15, 2) if options.quick else (100, 60, 3)
    transformers = {
        after: trained(problems.transformer_point(count), after) for after in (steps // 2, steps)
    }
    mlp = problems.mlp_point(steps=100, count=10 * count)
    kinks = {
        "CNN, trained": trained(problems.cnn_point(count), steps // 2),
        "CNN at its start": problems.cnn_point(count),
        "ReLU network at its start, blank images": blank_point(count),
    }
    return {
        **{
            f"transformer after {after} steps": leading(point, exact_eigenvalues(point, 16))
            for after, point in transformers.items()
        },
        "transformer, trace": traces(transformers[steps // 2], 10 if options.quick else 40),
        "digits MLP, Ritz intervals": intervals(mlp, keys),
        "kinks": {name: flags(point, keys) for name, point in kinks.items()},
    }


def trained(point: Point, steps: int) -> Point:
    """After that many steps of Adam (1e-3), a program each: convolutions are slow in a loop."""
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(x, state, *data):
        update, state = optimizer.update(jax.grad(point.loss)(x, *data), state)
        return optax.apply_updates(x, update), state

    x, state = point.x, optimizer.init(point.x)
    for _ in range(steps):
        x, state = step(x, state, *point.data)
    return point._replace(x=x)


def blank_point(count: int = 300) -> Point:
    """A ReLU network with zero biases; a quarter of its images are blank, and sit on the kinks."""
    images, labels = (array[:count] for array in problems.digits())
    images = jnp.where(jnp.arange(count)[:, None] < count // 4, 0, images)
    x = problems.init_mlp(jax.random.key(0), (64, 32, 10))

    def loss(x, images, labels):
        hidden, last = x
        z = jax.nn.relu(images @ hidden["w"] + hidden["b"][None, :])
        scores = z @ last["w"] + last["b"][None, :]
        picked = jnp.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(scores, axis=1) - picked)

    return Point(loss, x, (images, labels))


def exact_eigenvalues(point: Point, count: int) -> np.ndarray:
    """Those of largest magnitude, by SciPy's Lanczos on exact products."""
    flat, unravel = ravel_pytree(point.x)
    product = lrj.hvp(point.loss)

    def multiply(v):
        y = product(point.x, unravel(jnp.asarray(v.ravel(), flat.dtype)), *point.data)
        return np.asarray(ravel_pytree(y)[0])

    operator = LinearOperator((flat.size, flat.size), matvec=multiply, dtype=flat.dtype)
    values = eigsh(operator, k=count, which="LM", tol=1e-5, return_eigenvectors=False)
    return values[np.argsort(-np.abs(values))]


def leading(point: Point, truth: np.ndarray) -> dict:
    """Ritz values from 28 slopes, of one-sided and central differences and exact products."""
    found: dict = {"exact": truth[:LEADING].tolist()}
    for probes, passes in ((4, 7), (2, 14)):
        products = {"exact products": lrj.hvp(point.loss)}
        if probes == 4:
            products["central"] = lrj.gradient_difference(point.loss, central=True)
        calls = {"one-sided": lrj.lowrank_hessian(point.loss, probes, passes=passes, **RETURNED)}
        calls |= {
            name: lrj.lowrank_from_product(product, probes, passes=passes, **RETURNED)
            for name, product in products.items()
        }
        for name, call in calls.items():
            _, pairs = call(point.x, *point.data, key=jax.random.key(0))
            ritz = lrj.ritz_pairs(pairs)
            values = np.asarray(ritz.values[:LEADING])
            errors = distances(values, truth) / np.abs(values)
            residuals = np.asarray(ritz.residuals[:LEADING]) / np.abs(values)
            found[f"{name}, {probes} x {passes}"] = {
                "values": values.tolist(),
                "relative errors": errors.tolist(),
                "relative residuals": residuals.tolist(),
                "within 1 % and known to be": int(np.sum((errors < 0.01) & (residuals < 0.01))),
                "worst pass": None if pairs.rounding is None else float(np.max(pairs.rounding)),
            }
    return found


RETURNED = {"return_pairs": True}


def distances(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """From each value to the nearest true one."""
    return np.abs(values[:, None] - truth[None, :]).min(axis=1)


def intervals(point: Point, keys: int) -> dict:
    """How many of the intervals of Ritz values, of several settings, hold an exact eigenvalue.

    Counted are those in the part of the spectrum whose eigenvalues are all known.
    """
    truth = exact_eigenvalues(point, 40)
    known, held, width = 0, 0, []
    for probes, passes in ((4, 5), (5, 4), (2, 12), (8, 3)):
        at = lrj.lowrank_hessian(point.loss, probes, passes=passes, solver=lrj.ritz_pairs)
        for key in range(keys):
            values, _, residuals = at(point.x, *point.data, key=jax.random.key(key))
            values, residuals = np.asarray(values), np.asarray(residuals)
            chosen = np.abs(values) - residuals > np.abs(truth[-1])
            known += int(chosen.sum())
            held += int(np.sum((distances(values, truth) <= residuals)[chosen]))
            width += (residuals / np.abs(values))[chosen].tolist()
    return {
        "intervals": known,
        "hold an eigenvalue": held / known,
        "median relative residual": float(np.median(width)),
    }


def flags(point: Point, keys: int) -> dict:
    """The estimated and the true error of each pass; exact products along the steps taken."""
    at = lrj.lowrank_hessian(point.loss, 4, passes=4, return_pairs=True)
    product = lrj.hvp(point.loss)
    estimated, true, asymmetry = [], [], []
    for key in range(keys):
        h, pairs = at(point.x, *point.data, key=jax.random.key(key))
        rows = [ravel_pytree(jax.tree.map(lambda s, i=i: s[i], pairs.steps)) for i in range(16)]
        steps = np.stack([np.asarray(flat) for flat, _ in rows])
        slopes = np.stack(
            [
                np.asarray(ravel_pytree(product(point.x, unravel(flat), *point.data))[0])
                for flat, unravel in rows
            ]
        )
        measured = np.stack(
            [
                np.asarray(ravel_pytree(jax.tree.map(lambda y, i=i: y[i], pairs.grad_diffs))[0])
                for i in range(16)
            ]
        )
        sizes = np.linalg.norm(steps, axis=1)
        errors = np.linalg.norm(measured - slopes, axis=1) / sizes
        largest = np.max(np.linalg.norm(slopes, axis=1) / sizes)
        estimated.append(np.asarray(pairs.rounding).reshape(4, 4)[:, 0].tolist())
        true.append((errors / largest).reshape(4, 4).max(axis=1).tolist())
        asymmetry.append(float(lrj.diagnose(h, pairs).asymmetry))
    below = np.array(estimated) < FLAG
    return {
        "estimated": estimated,
        "true, worst of a pass": true,
        "asymmetry": asymmetry,
        "largest estimate, least of the keys": float(np.min(np.max(estimated, axis=1))),
        "passes not flagged": int(below.sum()),
        "their worst true error": float(np.max(np.array(true)[below], initial=0)),
    }


def traces(point: Point, keys: int) -> dict:
    """20 products for the operator and 20 for the estimate, beside Hutchinson's with 40."""
    product = lrj.hvp(point.loss)
    h = lrj.lowrank_from_product(product, 4, passes=5)(point.x, *point.data, key=jax.random.key(7))
    zero = 0.0 * h.truncate(1)
    ours, hutchinson = [], []
    for i, key in enumerate(jax.random.split(jax.random.key(1), keys)):
        ours.append(lrj.estimate(product, h, 20)(point.x, *point.data, key=key).trace())
        if i < 8:
            found = lrj.estimate(product, zero, 40)(point.x, *point.data, key=key)
            hutchinson.append(found.trace())
    # All samples of all keys together, whose own error bar is a sixth of one key's.
    truth = float(np.mean([each.value for each in ours]))
    bars = {
        name: 1.96 * np.array([float(each.standard_error) for each in of])
        for name, of in (("ours", ours), ("hutchinson", hutchinson))
    }
    missed = np.array([abs(float(each.value) - truth) for each in ours])
    return {
        "trace": truth,
        "of the operator alone": float(h.trace()),
        "covered": float(np.mean(missed < bars["ours"])),
        "error bar": float(np.median(bars["ours"])),
        "hutchinson's error bar": float(np.median(bars["hutchinson"])),
    }


def estimates(options: Options) -> dict:
    """Calibration on spectra, the evidence of a posterior, noisy forces. In double precision."""
    jax.config.update("jax_enable_x64", True)
    keys = 50 if options.quick else 200
    return {
        "spectra": {name: calibration(values, keys) for name, values in SPECTRA.items()},
        "evidence": {
            f"{name}, extrapolate {e:.2g}": evidence(*data, keys, e)
            for name, data in posteriors().items()
            for e in (1 / 2, 2 / 3)
        },
        "noisy forces": noisy_forces(),
    }


_INDEX = np.arange(1.0, 101)
SPECTRA = {
    "1 / i": 1 / _INDEX,
    "i^-1/2": _INDEX**-0.5,
    "i^-1/2, both signs": _INDEX**-0.5 * np.where(_INDEX % 3 == 0, -1, 1),
    "i^-2": _INDEX**-2,
    "linear": 1 - (_INDEX - 1) / 100,
    "0.8^i": 0.8**_INDEX,
    "bulk of 1, five outliers": np.where(_INDEX <= 5, 50.0, 1.0),
    "one negative outlier": np.where(_INDEX == 1, -20.0, 1.0),
}


def calibration(spectrum: np.ndarray, keys: int, samples: int = 12) -> dict:
    """How often error bars cover the truth, and the error of H_r within a factor of two."""
    dim = len(spectrum)
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, dim)))[0]
    a, x = (q * spectrum) @ q.T, np.zeros(dim)

    def product(x, v, a):
        return a @ v

    h = lrj.lowrank_from_product(product, 8)(x, a, key=jax.random.key(0))

    @jax.jit
    @jax.vmap
    def found(key):
        each = lrj.estimate(product, h, samples)(x, a, key=key)
        return each.trace(), each.diagonal(), each.frobenius_norm(), each.error()

    trace, diagonal, norm, error = found(jax.random.split(jax.random.key(1), keys))

    def covered(estimate, truth):
        return float(np.mean(np.abs(estimate.value - truth) < 1.96 * estimate.standard_error))

    missed = np.linalg.norm(a - np.asarray(h.to_dense())) / np.linalg.norm(a)
    return {
        "error of H_r": float(missed),
        "trace covered": covered(trace, np.trace(a)),
        "diagonal covered": covered(diagonal, np.diag(a)[None, :]),
        "norm covered": covered(norm, np.linalg.norm(a)),
        "error within 2x": float(np.mean((error.value < 2 * missed) & (error.value > missed / 2))),
    }


def evidence(features: np.ndarray, signs: np.ndarray, keys: int, extrapolate: float) -> dict:
    """Half of log det(H + I) at the mode of a logistic posterior: 17 gradients, 10 products."""
    dim = features.shape[1]

    def loss(w):
        return jnp.sum(jax.nn.softplus(-jnp.asarray(features * signs[:, None]) @ w))

    def posterior(w):
        return loss(w) + w @ w / 2

    gradient, dense = jax.jit(jax.grad(posterior)), jax.jit(jax.hessian(posterior))
    w = jnp.zeros(dim)
    for _ in range(30):
        w = w - jnp.linalg.solve(dense(w), gradient(w))
    exact, eye = np.asarray(dense(w)), np.eye(dim)
    truth = np.linalg.slogdet(exact)[1] / 2

    def shifted(pairs):
        base = lrj.choose_shift(pairs, extrapolate=extrapolate)
        return lrj.fit(pairs, base=base, extrapolate=extrapolate)

    at = partial(lrj.lowrank_hessian, loss, 4, passes=4, step=1e-3)
    with_shift, without = at(solver=shifted), at()

    @jax.jit
    def estimated(key):
        one, other = jax.random.split(key)
        h = with_shift(w, key=one)
        found = lrj.estimate(lrj.hvp(loss), h, 10)(w, key=other).logdet(1.0)
        return h.to_dense(), *found, without(w, key=one).logdet(1.0)

    missed, to_first_order, bars, bare = [], [], [], []
    for key in range(keys):
        dense_h, value, error, alone = estimated(jax.random.key(key))
        mine = np.asarray(dense_h) + eye
        first = np.linalg.slogdet(mine)[1] + np.trace(np.linalg.solve(mine, exact - mine))
        missed.append(float(value) / 2 - truth)
        to_first_order.append((float(value) - first) / 2)
        bars.append(1.96 * float(error) / 2)
        bare.append(float(alone) / 2 - truth)
    sizes = np.abs(missed)
    return {
        "log det / 2": float(truth),
        "NaN, not positive definite": int(np.sum(np.isnan(sizes))),
        "off by, median": float(np.nanmedian(sizes)),
        "off by, worst": float(np.nanmax(sizes)),
        "within 1 nat": float(np.mean(sizes < 1)),
        "error bar": float(np.nanmedian(bars)),
        "covers the first order": float(np.mean(np.abs(to_first_order) < bars)),
        "covers all": float(np.mean(sizes < bars)),
        "without shift and estimate, off by": _median(np.abs(bare)),
        "without them, NaN": int(np.sum(np.isnan(bare))),
    }


def _median(values: np.ndarray) -> float | None:
    """Of those that are numbers."""
    numbers = values[~np.isnan(values)]
    return float(np.median(numbers)) if len(numbers) else None


def posteriors() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features and signs, D = 31: alike, of scales from 1/2 to 2, and of a data set."""
    draws = np.random.default_rng(0)
    features = draws.normal(size=(300, 31))
    signs = np.sign(features @ draws.normal(size=31) / 4 + draws.logistic(size=300))
    measured, classes = load_breast_cancer(return_X_y=True)
    measured = (measured - measured.mean(axis=0)) / measured.std(axis=0)
    measured = np.concatenate([np.ones((len(measured), 1)), measured], axis=1)
    return {
        "normal features": (features, signs),
        "normal features of scales 1/2 to 2": (features * np.geomspace(0.5, 2, 31), signs),
        "breast cancer data": (measured, 2.0 * classes - 1),
    }


def noisy_forces() -> list[dict]:
    """Thirteen atoms, noise of 1e-4 of the largest force: the whole Hessian, beside fixed steps."""
    found = []
    for noise in (1e-6, 1e-4):
        exact = step_problems.lennard_jones(**step_problems.DOUBLE)
        hessian = np.stack([np.asarray(exact.exact(v)) for v in np.eye(exact.x.size)])

        def error(step, noise=noise, exact=exact, hessian=hessian):
            gradient = step_problems.noisy(exact, noise).gradient
            at = lrj.lowrank_hessian_from_gradient(gradient, 13, passes=3, step=step, **RETURNED)
            h, pairs = at(exact.x, key=jax.random.key(0))
            missed = np.linalg.norm(np.asarray(h.to_dense()) - hessian) / np.linalg.norm(hessian)
            return float(missed), pairs.rounding

        fixed = {step: error(step)[0] for step in 10.0 ** np.arange(-8, 1)}
        missed, rounding = error(None)
        found.append(
            {
                "noise": noise,
                "error": missed,
                "best fixed step's": min(fixed.values()),
                "estimated": np.asarray(rounding)[::13].tolist(),
            }
        )
    return found
