"""What must hold on a device, beside twins in NumPy and in double precision.

No TF32, bfloat16 or running sum may stand where float32 was asked for: TF32 alone makes errors of
1e-3, so bounds near 1e-5 tell. Each check is a figure and a bound, see `device.Report`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lowrank_jax as lrj
from benchmarks import measure, numpy_fits, problems

N = 16
BOUNDS = {"float32": 2e-5, "float64": 1e-11, "bfloat16": 2e-2}


def arithmetic(report: Any) -> None:
    """The fit and what its operator can do, in three precisions, beside NumPy's in double."""
    _default_product(report)
    for dtype in BOUNDS:
        try:
            _arithmetic(report, dtype)
        except Exception:
            report.failed(dtype)


def _default_product(report):
    """For reading the others: what JAX makes of a float32 product unless it is told."""
    a = np.random.default_rng(0).standard_normal((64, 4096)).astype(np.float32)
    truth = a.astype(float) @ a.astype(float).T
    found = jnp.asarray(a) @ jnp.asarray(a).T
    report.check("a float32 product as JAX computes it by default", _error(found, truth))


def _used(s, y, v):
    """The fit, and what is asked of its operator."""
    h = lrj.fit((s, y))
    damping = 2 * h.frobenius_norm()
    values, vectors = h.eigh()
    return {
        "factors": h.factors,
        "core": h.core,
        "damping": damping,
        "product": h @ v,
        "solve": h.solve(h @ v, damping),
        "eigenvalues": values,
        "eigenvectors": vectors,
        "trace": h.trace(),
        "frobenius_norm": h.frobenius_norm(),
        "logdet": h.logdet(damping),
        "diagonal": h.diagonal(),
    }


def _drawn(dtype, report):
    """Inconsistent pairs and a vector, as the device has them and widened in NumPy."""
    rng = np.random.default_rng(1)
    d = 2_000 if report.quick else 100_000
    s, v = rng.standard_normal((N, d)), rng.standard_normal(d)
    y = s * _signed(d) + 0.03 * rng.standard_normal((N, d))
    given = [jnp.asarray(x, dtype) for x in (s, y, v)]
    return given, [np.asarray(x, float) for x in given]


def _arithmetic(report, dtype):
    used = jax.jit(_used)
    with jax.enable_x64(dtype == "float64"):
        given, (s, y, v) = _drawn(dtype, report)
        found = _widened(used(*given))
    fitted = _Twin(*numpy_fits.secant_fit(s, y))
    own = _Twin(found["factors"], found["core"])
    damping, unit = found["damping"], np.abs(own.values).max()
    basis, q, w = found["factors"][:N], found["eigenvectors"], found["eigenvalues"]
    product = found["product"]
    figures = {
        "fit: H v": _error(own.mv(v), fitted.mv(v)),
        "fit: orthonormal Q": np.abs(basis @ basis.T - np.eye(N)).max(),
        "H @ v": _error(product, own.mv(v)),
        "solve": _error(found["solve"], own.function(product, lambda w: 1 / (w + damping))),
        "eigh: values": np.abs(np.sort(w) - np.sort(own.values)).max() / unit,
        "eigh: orthonormal": np.abs(q @ q.T - np.eye(len(q))).max(),
        "eigh: V diag(w) V^T v": _error(q.T @ (w * (q @ v)), own.mv(v)),
        "trace": abs(found["trace"] - own.values.sum()) / np.abs(own.values).sum(),
        "frobenius_norm": abs(found["frobenius_norm"] / np.linalg.norm(own.values) - 1),
        "logdet": abs(found["logdet"] / own.logdet(damping, len(v)) - 1),
        "diagonal": _error(found["diagonal"], own.diagonal()),
    }
    for name, figure in figures.items():
        report.check(f"{dtype}: {name}", figure, BOUNDS[dtype])
    if dtype == "float32":
        report.check("all this twice: largest difference", _difference(found, used(*given)), 0)
        _settings(report, given, found)


def _settings(report, given, found):
    """A precision that the user sets for products of networks changes nothing here."""
    with jax.default_matmul_precision("bfloat16"):
        set_to = _widened(jax.jit(_used)(*given))
    for name in ("product", "solve", "eigenvalues", "logdet"):
        figure = _error(set_to[name], found[name])
        report.check(f"matmul precision set to bfloat16: {name}", figure, BOUNDS["float32"])


class _Twin:
    """`B^T K B` in double precision, by a tall QR and the eigenpairs of a small matrix."""

    def __init__(self, factors, core):
        self._q, r = np.linalg.qr(factors.T)
        self.values, self._v = np.linalg.eigh(r @ core @ r.T)

    def mv(self, v):
        return self._basis() @ (self.values * (self._basis().T @ v))

    def function(self, v, f):
        inside = self._basis().T @ v
        return self._basis() @ ((f(self.values) - f(0)) * inside) + f(0) * v

    def logdet(self, damping, d):
        return np.log(self.values + damping).sum() + (d - len(self.values)) * np.log(damping)

    def diagonal(self):
        return (self._basis() ** 2) @ self.values

    def _basis(self):
        return self._q @ self._v


def curvature(report: Any) -> None:
    """`H_r v` beside the exact `H v` of a loss whose Hessian has rank six."""
    rng = np.random.default_rng(2)
    d = 4_000
    a = np.linalg.qr(rng.standard_normal((d, 6)))[0].T
    x, v, c = rng.standard_normal(d), rng.standard_normal(d), np.array([8.0, -5, 3, 2, -1, 1])
    steps = {"float32": 1e-3, "float64": 1e-6, "bfloat16": None}
    bounds = {"float32": 5e-3, "float64": 2e-6}
    for dtype, bound in BOUNDS.items():
        with jax.enable_x64(dtype == "float64"):
            given = [jnp.asarray(u, dtype) for u in (x, a, c, v)]
            wide_x, wide_a, wide_c, wide_v = (np.asarray(u, float) for u in given)
            truth = -wide_a.T @ (wide_c * np.cos(wide_a @ wide_x) * (wide_a @ wide_v))
            products = jax.jit(partial(_products, steps[dtype]))
            found = products(*given)
        report.check(f"{dtype}: hvp", _error(found["hvp"], truth), bound)
        report.check(f"{dtype}: H_r from products", _error(found["products"], truth), bound)
        if "gradients" in found:
            error = _error(found["gradients"], truth)
            report.check(f"{dtype}: H_r from gradients", error, bounds[dtype])
        if dtype == "float32":
            figure = _difference(found, products(*given))
            report.check("all this twice: largest difference", figure, 0)


def _waves(x, a, c):
    return jnp.sum(c * jnp.cos(jnp.dot(a, x, precision=lax.Precision.HIGHEST)))


def _products(step, x, a, c, v):
    product, key = lrj.hvp(_waves), jax.random.key(0)
    found = {
        "hvp": product(x, v, a, c),
        "products": lrj.lowrank_from_product(product, 8)(x, a, c, key=key) @ v,
    }
    if step is not None:
        found["gradients"] = lrj.lowrank_hessian(_waves, 8, step=step)(x, a, c, key=key) @ v
    return found


def derivatives(report: Any) -> None:
    """Derivatives of the fit and of what its operator does, beside central differences.

    Those of float32 at consistent pairs: how far others extrapolate depends on the resolution.
    """
    rng = np.random.default_rng(3)
    n, d = 6, 300
    s, y, v, ds, dy = (rng.standard_normal(shape) for shape in ((n, d), (n, d), d, (n, d), (n, d)))
    names = ("product", "solve", "logdet", "eigenvalues")
    consistent = [np.float32(x) for x in (s, 8 * s * _signed(d), v)]
    with jax.enable_x64(True):
        s, y, v, ds, dy = map(jnp.asarray, (s, y, v, ds, dy))

        def along(t):
            return _penalties(s + t * ds, y + t * dy, v)

        slopes = np.asarray(jax.jit(jax.jacfwd(along))(0.0))
        values = jax.jit(along)
        step = 1e-3
        at = {i: np.asarray(values(i * step)) for i in (-2, -1, 1, 2)}
        grads = jax.jit(jax.jacrev(_penalties, argnums=(0, 1)))(s, y, v)
        reverse = np.asarray(jnp.sum(grads[0] * ds, (1, 2)) + jnp.sum(grads[1] * dy, (1, 2)))
    central = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * step)
    for i, name in enumerate(names):
        for mode, found in (("forward", slopes), ("reverse", reverse)):
            figure = abs(found[i] / central[i] - 1)
            report.check(f"float64: {mode} derivative of {name}", figure, 1e-6)
    gradient = jax.jit(jax.jacrev(_penalties, argnums=(0, 1)))
    with jax.enable_x64(True):
        exact = [np.asarray(g) for g in gradient(*(jnp.asarray(x, float) for x in consistent))]
    found = gradient(*consistent)
    for i, name in enumerate(names):
        error = max(_error(f[i], g[i]) for f, g in zip(found, exact, strict=True))
        report.check(f"float32: gradient of {name} beside float64", error, 1e-5)


def _penalties(s, y, v):
    """Scalars, one of each kind of use."""
    h = lrj.fit((s, y))
    damping = jnp.asarray(40, v.dtype)
    weights = jnp.arange(1, 2 * len(s) + 1, dtype=v.dtype)
    return jnp.stack(
        [
            jnp.sum(jnp.sin(h @ v)),
            jnp.sum(jnp.sin(h.solve(v, damping))),
            h.logdet(damping),
            jnp.sum(weights * h.eigenvalues()),
        ]
    )


def batches(report: Any) -> None:
    """Clouds under `vmap` beside a loop over them, and clouds that are degenerate among them."""
    rng = np.random.default_rng(4)
    count, n, d = 64 if report.quick else 4096, 8, 64
    s = rng.standard_normal((count, n, d)).astype(np.float32)
    y = (s * _signed(d)).astype(np.float32)
    v = rng.standard_normal((count, d)).astype(np.float32)
    factors, core = numpy_fits.secant_fit(s.astype(float), y.astype(float))
    truth = _apply(factors, core, v.astype(float))

    def product(s, y, v):
        return lrj.fit((s, y)) @ v

    together = np.asarray(jax.jit(jax.vmap(product))(s, y, v))
    errors = np.linalg.norm(together - truth, axis=1) / np.linalg.norm(truth, axis=1)
    report.check(f"{count} clouds: median error beside NumPy", np.median(errors), 1e-5)
    report.check(f"{count} clouds: worst error beside NumPy", np.max(errors), 1e-3)

    s, y, v = s[:16].copy(), y[:16].copy(), v[:16]
    s[1, 1:], y[1, 1:] = s[1, 0], y[1, 0]  # one point, again and again
    s[2], y[2] = 0, 0
    s[3, 4], y[3, 4] = 0.5 * (s[3, 0] + s[3, 1]), 0.5 * (y[3, 0] + y[3, 1])
    y[4, 2, 5] = np.nan
    together = np.asarray(jax.jit(jax.vmap(product))(s, y, v))
    one_by_one = np.asarray(jax.jit(lambda *args: lax.map(lambda a: product(*a), args))(s, y, v))
    lanes = [i for i in range(16) if i != 4]
    apart = [_error(together[i], one_by_one[i]) for i in lanes if i != 2]
    report.check("degenerate clouds among others: vmap beside loop", max(apart), 1e-4)
    report.check("zero steps give zero", np.abs(together[2]).max(), 0)
    report.check("entries of a NaN cloud that are not NaN", np.sum(~np.isnan(together[4])), 0)
    report.check("entries of other clouds that are", np.sum(~np.isfinite(together[lanes])), 0)


def hostile(report: Any) -> None:
    """Small problems where a number must be the same wherever it is read, and subnormal ones.

    A GPU's compiler writes small sums anew into each kernel that reads them, and keeps subnormal
    numbers, where a CPU makes zeros of them.
    """
    rng, dtype = np.random.default_rng(5), np.float32
    eps, d, k = np.finfo(dtype).eps, 7, 8
    spread = rng.permutation(np.geomspace(1e-3, 1e3, d)).astype(dtype)
    solve = jax.jit(lambda h, v, damping: h.solve(v, damping))
    for size in (1e1, 1e3, 1e6):
        core = rng.standard_normal((k, k))
        core = (size / k * (core + core.T)).astype(dtype)
        factors, v = rng.standard_normal((k, d)).astype(dtype), rng.standard_normal(d).astype(dtype)
        h = lrj.SymmetricLowRank(_leaves(factors), core)
        x = _flat(solve(h, _leaves(v), _leaves(spread)))
        figure = _backward_error(_dense(factors, core) + np.diag(spread.astype(float)), x, v)
        report.check(f"D spans 1e6, H to {size:.0e}: backward error in eps", figure / eps, 25)
    t = rng.uniform(0, 1e4, size=20).astype(dtype)
    factors, v = np.stack([t, np.ones_like(t)], axis=1), np.ones(2, dtype)
    h, damping = lrj.SymmetricLowRank(factors, np.eye(20, dtype=dtype)), np.full(2, 1e-2, dtype)
    dense = _dense(factors, np.eye(20)) + 1e-2 * np.eye(2)
    truth = np.linalg.solve(dense, v)
    error = _error(solve(h, v, damping), truth)
    report.check("rows [t, 1] with t to 1e4: error of solve in eps", error / eps, 200)

    s = rng.standard_normal((4, 40)).astype(dtype)
    s[1] *= np.finfo(dtype).tiny * 1e-3
    pairs = lrj.SecantPairs(s, s)
    h = lrj.fit(pairs)
    rest = np.delete(s, 1, axis=0)
    report.check("a subnormal step among others", _error(jax.vmap(h.mv)(rest), rest), 1e-5)
    found = [float(x) for x in lrj.diagnose(h, pairs)]
    report.check("its diagnosis: entries that are not finite", np.sum(~np.isfinite(found)), 0)


def large(report: Any) -> None:
    """Rows that are longer than a piece: what a chain takes beside them, and what it makes."""
    n, d = 16, 2**18 if report.quick else 2**22
    s, y, _ = problems.random_pairs((n, d))
    fit = measure.compiled(lambda s, y: lrj.fit((s, y)), s, y)
    h = fit.run()
    report.check("a fit of long rows: memory beside them", _beside(fit), 1.1)
    report.check("its secant equations", _error(jax.vmap(h.mv)(s), y), 2e-5)
    v, damping = y[0], h.frobenius_norm()
    solve = measure.compiled(lambda h, v: h.solve(v, damping), h, v)
    x = solve.run()
    report.check("a solve with long factors: memory beside them", _beside(solve), 2)
    residual = np.asarray(h @ x, float) + float(damping) * np.asarray(x, float) - np.asarray(v)
    report.check("its residual", np.linalg.norm(residual) / np.linalg.norm(v), 2e-6)


def _beside(call):
    return call.memory["temporary"] / call.memory["arguments"]


def _leaves(x):
    """Seven numbers, or rows of them, in three leaves."""
    lead = x.shape[:-1]
    return {"a": x[..., 0], "b": [x[..., 1:5].reshape(*lead, 2, 2), x[..., 5:]]}


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _dense(factors, core):
    factors, core = (np.asarray(x, float) for x in (factors, core))
    return factors.T @ core @ factors


def _backward_error(a, x, b):
    x = x.astype(float)
    size = np.linalg.norm(a, 2) * np.linalg.norm(x) + np.linalg.norm(b)
    return np.linalg.norm(a @ x - b) / size


def _signed(d):
    return np.where(np.arange(d) % 3 == 2, -1, 1) * np.geomspace(1, 1e-3, d)


def _apply(factors, core, v):
    """`B^T K B v` of stacks."""
    inside = core @ (factors @ v[..., None])
    return (np.swapaxes(factors, -1, -2) @ inside)[..., 0]


def _difference(once, again):
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), _widened(once), _widened(again))
    return max(jax.tree.leaves(differences))


def _widened(tree):
    return jax.tree.map(lambda x: np.asarray(x, float), tree)


def _error(found, truth):
    found = np.asarray(found, float)
    return np.linalg.norm(found - truth) / np.linalg.norm(truth)
