"""The figures that explain, for the README and the site.

    python docs/figures.py [--data FOLDER]

computes their numbers into `docs/figures/*.json` and draws them from there; with `--data` it
computes into another folder and draws nothing, for the test that compares. Figures of
the benchmarks' results are drawn by `benchmarks/plot.py`.
"""

import argparse
import json
import sys
from functools import cache, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import lowrank_jax as lrj
from benchmarks.plot import FIGURES, LIMIT, OTHER, OURS, PEER, SIZE, STYLE, plt, save
from benchmarks.problems import digits, init_mlp, mean_loss

EXTRAPOLATE = {"0": 0.0, "2/3": 2 / 3, "1": 1.0}
COLORS = {"0": OTHER, "2/3": OURS, "1": PEER}


def main():
    """Computes all, and draws all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    folder = parser.parse_args().data
    for name, (compute, draw) in COMPUTED.items():
        path = (folder or FIGURES) / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        data = jax.tree.map(lambda x: _rounded(np.asarray(x)), compute())
        path.write_text(json.dumps(data) + "\n")
        if not folder:
            with plt.rc_context(STYLE):
                save(draw(json.loads(path.read_text())), FIGURES / f"{name}.png", [path])


def _rounded(x, digits=5):
    """Numbers with that many digits, as lists."""
    return np.vectorize(lambda number: float(f"{number:.{digits}g}"))(x).tolist()


# ---- a cloud of points: the README's example -----------------------------------------------------


def compute_cloud():
    """The first example: its steps and gradient differences in the plane of two eigenvectors."""
    w = jax.random.normal(jax.random.key(0), (3, 1000)) / 1000**0.5

    def loss(x):
        return jnp.sum(jnp.log(jnp.cosh(w @ x)))

    x = jnp.ones(1000)
    points = x + 0.01 * jax.random.normal(jax.random.key(1), (8, 1000))
    h, pairs = lrj.secant_hessian(loss)(points), lrj.secant_pairs(loss)(points)
    values, vectors = jnp.linalg.eigh(jax.hessian(loss)(x))
    plane = vectors[:, jnp.array([-1, -3])].T  # the strongest curvature and the third
    return {
        "steps": pairs.steps @ plane.T,
        "grad_diffs": pairs.grad_diffs @ plane.T,
        "exact": jnp.diag(values[jnp.array([-1, -3])]),
        "fitted": plane @ jax.vmap(h.mv)(plane).T,
        "eigenvalues": {"exact": values[::-1][:8], "fitted": h.eigenvalues()[:8]},
    }


def draw_cloud(data):
    """What goes in, and what comes out."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.9), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08)
    steps, change = (np.array(data[name]) for name in ("steps", "grad_diffs"))
    reach = 1.45 * np.abs(steps).max()
    grid = np.linspace(-reach, reach, 121)
    at = np.stack(np.meshgrid(grid, grid), axis=-1)
    levels = np.linspace(0, 0.9 * reach**2 / 2, 8)[1:]
    for name, style in (("exact", "solid"), ("fitted", "dashed")):
        bowl = np.einsum("...i,ij,...j->...", at, np.array(data[name]), at) / 2
        color = "#9ca3af" if name == "exact" else OURS
        left.contour(grid, grid, bowl, levels=levels, colors=color, linestyles=style)
    left.quiver(*steps.T, *change.T, color=PEER, angles="xy", scale_units="xy", scale=1, width=6e-3)
    left.plot(*steps.T, "o", color="black", ms=6)
    left.set(aspect="equal", xticks=[], yticks=[], xlabel="8 points, 8 gradients")
    left.set_title("Steps, and how the\ngradient changes: $H s = y$")
    left.spines[:].set_visible(True)

    exact, fitted = (np.array(data["eigenvalues"][name]) for name in ("exact", "fitted"))
    numbers = np.arange(1, 1 + len(exact))
    right.bar(numbers, exact, color="#cbd5e1", width=0.7, label="exact")
    right.plot(numbers, fitted, "o", color=OURS, ms=9, label="from 8 gradients")
    right.axhline(0, color="#555555", lw=0.8)
    right.set(xticks=numbers, xlabel="number of the eigenvalue")
    right.set_title("Eigenvalues of H\nin 1,000 dimensions")
    right.legend(loc="upper right")
    return figure


# ---- two points in three dimensions ----------------------------------------------------------


def worked_example():
    """Two points and their gradients, rows, as float64 where that is on."""
    points = np.array(
        [[-2.20796738, -1.40391911, -0.42806159], [-0.30411266, -0.54950598, 0.83258512]]
    )
    grads = np.array(
        [[-2.90303289, -3.29571902, -2.85327694], [-0.07347936, -0.13532473, 0.07932159]]
    )
    return jnp.asarray(points), jnp.asarray(grads)


def compute_slopes():
    """Each point and its gradient along the two eigenvectors."""
    points, grads = worked_example()
    zero = jnp.zeros(3)
    h = lrj.fit(lrj.anchored(points, grads, zero, zero), extrapolate=1)
    values, vectors = h.eigh()
    vectors = vectors[:2] * jnp.sign(vectors[:2, :1])
    return {
        "eigenvalues": values[:2],
        "points": vectors @ points.T,
        "grads": vectors @ grads.T,
    }


def draw_slopes(data):
    """An eigenvalue is a slope."""
    figure, ax = plt.subplots(figsize=SIZE, layout="constrained")
    reach = 1.15 * np.abs(data["points"]).max()
    for i, (s, x, y, color) in enumerate(
        zip(data["eigenvalues"], data["points"], data["grads"], (OURS, PEER), strict=True)
    ):
        ax.plot([-reach, reach], [-s * reach, s * reach], color=color, lw=2)
        ax.plot(x, y, "o", color=color, ms=10)
        at = (0.2, -1.4) if i == 0 else (0.55, 0.75)
        ax.text(*at, f"slope $s_{i + 1}$ = {s:.4f}", color=color, fontweight="bold")
    ax.axhline(0, color="#9ca3af", lw=0.8, zorder=0)
    ax.axvline(0, color="#9ca3af", lw=0.8, zorder=0)
    ax.set(xlabel="$u_i^T x$, of the two points", ylabel="$u_i^T y$, of their gradients")
    ax.set_title("Two points, two directions")
    return figure


# ---- what is measured, and what is guessed -------------------------------------------------------


def compute_blocks(dimension=24, steps=8):
    """A Hessian and three fits to the same steps, in a basis that begins with the steps."""
    key, step_key = jax.random.split(jax.random.key(5))
    basis = jnp.linalg.qr(jax.random.normal(key, (dimension, dimension)))[0]
    exact = (basis * jnp.arange(1.0, 1 + dimension) ** -1.0) @ basis.T
    rows = jax.random.normal(step_key, (steps, dimension))
    turned = jnp.linalg.qr(rows.T, mode="complete")[0]
    found = {"exact": exact}
    for name, value in EXTRAPOLATE.items():
        found[name] = lrj.fit((rows, rows @ exact), extrapolate=value).to_dense()
    return {name: turned.T @ h @ turned for name, h in found.items()}


def draw_blocks(data):
    """Heat maps with the span of the steps drawn in."""
    figure, axes = plt.subplots(2, 2, figsize=(6.4, 7), layout="constrained")
    exact = np.array(data["exact"])
    n, limit = 8, 0.8 * np.abs(exact).max()
    titles = {"exact": "$H$", "0": "$H_r$, extrapolate 0"}
    titles |= {"2/3": "$H_r$, 2/3 (default)", "1": "$H_r$, 1"}
    for ax, (name, title) in zip(axes.flat, titles.items(), strict=True):
        h = np.array(data[name])
        ax.imshow(h, cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.axhline(n - 0.5, color="black", lw=1.2)
        ax.axvline(n - 0.5, color="black", lw=1.2)
        ax.set(xticks=[], yticks=[])
        ax.set_title(title)
        ax.spines[:].set_visible(True)
        error = np.linalg.norm(h - exact) / np.linalg.norm(exact)
        ax.set_xlabel("exact" if name == "exact" else f"error {error:.2f}")
    axes[0, 0].set_ylabel("steps, then the rest")
    axes[1, 0].set_ylabel("steps, then the rest")
    return figure


COUNTS = (2, 4, 8, 16, 32)


def compute_extrapolation(dimension=100, draws=24):
    """Relative error beside the number of steps, for spectra that decay, of one sign and of two."""
    magnitude = jnp.arange(1.0, 1 + dimension) ** -1.0
    signs = jnp.where(jnp.arange(dimension) % 2, -1.0, 1.0)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None, None, None))
    def error(key, n, spectrum, extrapolate):
        steps = jax.random.normal(key, (max(COUNTS), dimension))
        steps = jnp.where((jnp.arange(len(steps)) < n)[:, None], steps, 0)  # zero is no pair
        h = lrj.fit((steps, steps * spectrum), extrapolate=extrapolate).to_dense()
        return jnp.linalg.norm(h - jnp.diag(spectrum)) / jnp.linalg.norm(spectrum)

    keys = jax.random.split(jax.random.key(0), draws)
    found = {}
    for kind, spectrum in (("positive", magnitude), ("mixed", magnitude * signs)):
        tails = [jnp.linalg.norm(magnitude[n:]) / jnp.linalg.norm(magnitude) for n in COUNTS]
        found[kind] = {"best": jnp.stack(tails)}
        for name, value in EXTRAPOLATE.items():
            errors = jnp.stack([error(keys, n, spectrum, value) for n in COUNTS])
            found[kind][name] = {"median": jnp.median(errors, 1), "worst": jnp.max(errors, 1)}
    return found


def draw_extrapolation(data):
    """Medians as lines, the worst of the draws as light dots."""
    figure, axes = plt.subplots(2, 1, figsize=(6.4, 7.4), layout="constrained", sharex=True)
    titles = {"positive": "Eigenvalues 1 / i", "mixed": "Eigenvalues 1 / i, signs in turn"}
    for ax, (kind, title) in zip(axes, titles.items(), strict=True):
        ax.plot(COUNTS, data[kind]["best"], "--", color=LIMIT, label="best of rank n")
        for name in EXTRAPOLATE:
            of, color = data[kind][name], COLORS[name]
            ax.plot(COUNTS, of["median"], "o-", color=color, lw=2, label=f"extrapolate {name}")
            ax.plot(COUNTS, of["worst"], "o", color=color, alpha=0.35)
        ax.set(xscale="log", yscale="log", ylabel="relative error of $H_r$")
        ax.set_title(title)
        ax.xaxis.set_ticks(COUNTS, [str(n) for n in COUNTS])
        ax.xaxis.set_ticks([], minor=True)
        low, high = ax.get_ylim()
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000) if low <= t <= high]
        ax.yaxis.set_ticks(ticks, [f"{t:g}" for t in ticks])
        ax.yaxis.set_ticks([], minor=True)
    axes[1].set_xlabel("n, random steps in 100 dimensions")
    axes[0].legend(fontsize=11)
    return figure


# ---- how sure ------------------------------------------------------------------------------------


@cache
def network():
    """The loss of the network 64-8-10 on the digits, after 600 steps of Adam, and its point."""
    images, labels = digits()
    x, unravel = ravel_pytree(init_mlp(jax.random.key(0), (64, 8, 10)))
    optimizer = optax.adam(1e-3)

    def loss(x):
        return mean_loss(unravel(x), images, labels)

    @jax.jit
    def trained(x):
        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(jax.grad(loss)(x), state)
            return (optax.apply_updates(x, updates), state), None

        return jax.lax.scan(step, (x, optimizer.init(x)), length=600)[0][0]

    return loss, trained(x)


@cache
def exact_hessian():
    """Its Hessian, 610 x 610."""
    loss, x = network()
    return jax.jit(jax.hessian(loss))(x)


@cache
def pairs_at(passes):
    """The pairs of 4 probes."""
    loss, x = network()
    hessian_at = lrj.lowrank_hessian(loss, 4, passes=passes, return_pairs=True)
    return hessian_at(x, key=jax.random.key(0))[1]


RADII = [4.0**k for k in range(-8, 2)]


def compute_radius():
    """Clouds of 17 points at many radii: the pairs' true error, and what the pairs say of it."""
    loss, x = network()
    directions = jax.random.normal(jax.random.key(1), (16, len(x)))
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)

    @jax.jit
    def at(radius):
        points = jnp.concatenate([x[None], x + radius * directions])
        pairs = lrj.secant_pairs(loss, pairing=lrj.from_first)(points)
        found = lrj.diagnose(lrj.fit(pairs), pairs)
        exact = jax.vmap(lrj.hvp(loss), (None, 0))(x, pairs.steps)
        error = jnp.linalg.norm(pairs.grad_diffs - exact) / jnp.linalg.norm(exact)
        return error, found.rounding, found.asymmetry

    found = [at(radius) for radius in RADII]
    error, rounding, asymmetry = (jnp.stack(column) for column in zip(*found, strict=True))
    return {"error": error, "rounding": rounding, "asymmetry": asymmetry}


def draw_radius(data):
    """Too narrow, right, too wide."""
    figure, ax = plt.subplots(figsize=SIZE, layout="constrained")
    ax.plot(RADII, data["error"], "o", color="black", ms=7, label="true error of the pairs")
    ax.plot(RADII, data["rounding"], color=PEER, lw=2.5, label="`rounding`")
    ax.plot(RADII, data["asymmetry"], color=OURS, lw=2.5, label="`asymmetry`")
    ax.set(xscale="log", yscale="log", ylim=(3e-4, 2), xlabel="radius of the cloud")
    ax.set_title("Too narrow, right, too wide")
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(handles, [label.strip("`") for label in labels], loc="upper center")
    return figure


def compute_residuals():
    """Eigenvalues from 4 probes in 5 passes with their residuals, beside the exact ones."""
    ritz = lrj.ritz_pairs(pairs_at(passes=5))
    exact = jnp.linalg.eigvalsh(exact_hessian())
    exact = exact[jnp.argsort(-jnp.abs(exact))]
    return {"values": ritz.values, "residuals": ritz.residuals, "exact": exact[:24]}


def draw_residuals(data):
    """Error bars that hold."""
    figure, ax = plt.subplots(figsize=SIZE, layout="constrained")
    values, residuals, exact = (np.array(data[n]) for n in ("values", "residuals", "exact"))
    numbers = np.arange(1, 1 + len(values))
    bars = {"fmt": "o", "color": OURS, "capsize": 4, "ms": 6}
    ax.bar(numbers, exact[: len(values)], color="#cbd5e1", width=0.8, label="exact, by magnitude")
    ax.errorbar(numbers, values, residuals, label="20 gradients, with residuals", **bars)
    ax.axhline(0, color="#555555", lw=0.8)
    ax.set(xlabel="number of the eigenvalue", xticks=[1, 5, 10, 15, 20])
    ax.set_title("Eigenvalues of a network's Hessian")
    ax.legend()
    return figure


STEPS = (2, 4, 8, 16, 32)


def compute_left_out():
    """Clouds of more and more points: how wrong a new product is, and what leaving out says.

    All clouds have one shape: a point that is x itself makes a step of zero, which is no pair.
    """
    loss, x = network()
    key, fresh_key = jax.random.split(jax.random.key(2))
    offsets = 0.02 * jax.random.normal(key, (max(STEPS), len(x)))
    fresh = jax.random.normal(fresh_key, (64, len(x)))
    exact, points = fresh @ exact_hessian(), jnp.concatenate([x[None], x + offsets])
    grads = jax.jit(jax.vmap(jax.grad(loss)))(points)

    @jax.jit
    def at(n):
        kept = (jnp.arange(len(points)) <= n)[:, None]
        pairs = lrj.from_first(jnp.where(kept, points, x), jnp.where(kept, grads, grads[0]))
        h = lrj.fit(pairs)
        error = jax.vmap(h.mv)(fresh) - exact
        errors = jnp.linalg.norm(error, axis=1) / jnp.linalg.norm(exact, axis=1)
        return lrj.diagnose(h, pairs).leave_one_out, jnp.median(errors)

    said, true = zip(*[at(n) for n in STEPS], strict=True)
    return {"leave_one_out": jnp.stack(said), "true": jnp.stack(true)}


def draw_left_out(data):
    """Two lines that should be one."""
    figure, ax = plt.subplots(figsize=SIZE, layout="constrained")
    ax.plot(STEPS, data["true"], "o", color="black", ms=8, label="error of $H_r v$, new random v")
    ax.plot(STEPS, data["leave_one_out"], color=OURS, lw=2.5, label="leave_one_out")
    ax.set(xscale="log", ylim=(0, 1.1), xlabel="steps that $H_r$ was fitted to")
    ax.xaxis.set_ticks(STEPS, [str(n) for n in STEPS])
    ax.xaxis.set_ticks([], minor=True)
    ax.set_title("A step the fit has not seen")
    ax.legend(loc="upper right")
    return figure


PASSES = (1, 3, 5)


def compute_missing():
    """The error of H_r, as estimated from 20 products, beside the true one."""
    loss, x = network()
    exact = exact_hessian()
    size = jnp.linalg.norm(exact)
    rows = []
    for passes in PASSES:
        h = lrj.fit(pairs_at(passes))
        found = lrj.estimate(lrj.hvp(loss), h, 20)(x, key=jax.random.key(1))
        true = jnp.linalg.norm(h.to_dense() - exact) / size
        trace = found.trace()
        rows.append((true, *found.error(), h.trace(), *trace))
    names = ("true", "error", "error_se", "trace_of_h", "trace", "trace_se")
    columns = zip(*rows, strict=True)
    return {n: jnp.stack(column) for n, column in zip(names, columns, strict=True)} | {
        "exact_trace": jnp.trace(exact)
    }


def draw_missing(data):
    """The trace: what H_r has, and with what is missing."""
    figure, ax = plt.subplots(figsize=SIZE, layout="constrained")
    gradients = 4 * np.array(PASSES)
    bars = 1.96 * np.array(data["trace_se"])
    style = {"fmt": "o", "color": OURS, "capsize": 4, "ms": 7}
    ax.axhline(data["exact_trace"], color="black", lw=1.5, label="trace of H")
    ax.plot(gradients, data["trace_of_h"], "s--", color=LIMIT, ms=6, label="trace of $H_r$")
    ax.errorbar(gradients, data["trace"], bars, label="estimate, 20 products", **style)
    ax.set(xlabel="steps that $H_r$ was fitted to", xticks=gradients, ylim=(0, None))
    ax.set_title("What the fit has not seen")
    ax.legend(loc="lower right")
    return figure


COMPUTED = {
    "cloud": (compute_cloud, draw_cloud),
    "slopes": (compute_slopes, draw_slopes),
    "blocks": (compute_blocks, draw_blocks),
    "extrapolation": (compute_extrapolation, draw_extrapolation),
    "radius": (compute_radius, draw_radius),
    "residuals": (compute_residuals, draw_residuals),
    "left_out": (compute_left_out, draw_left_out),
    "missing": (compute_missing, draw_missing),
}

if __name__ == "__main__":
    main()
