"""The figures of the results, for the README and the site.

    python -m benchmarks.plot

They go to `docs/figures/`. A figure keeps the hash of the data that it was made from, so that
`outdated` can tell that these are not what they were.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from benchmarks.tables import PROBLEMS, RESULTS, load, only_case, spoken

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
OURS, PEER, OTHER, LIMIT = "#0072B2", "#D55E00", "#009E73", "#6b7280"  # of Okabe and Ito
STYLE = {"font.size": 13, "axes.titlesize": 14, "axes.titlelocation": "left", "axes.titlepad": 12}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#555555"}
STYLE |= {"savefig.dpi": 150, "legend.frameon": False}
SIZE = (6.4, 4.4)  # of one panel: on a telephone its letters are as large as the text's
NAMES = {
    "fit": "lowrank_jax",
    "fit by 256": "lowrank_jax, by 256",
    "write": "writing the factors",
    "numpy_qr": "NumPy, tall QR",
    "numpy_loop": "NumPy, loop",
    "lapack_eigh": "LAPACK eigh alone",
    "copy": "copying the pairs",
    "sella": "sella, loop",
    "blackjax": "blackjax, loop",
}


def main() -> None:
    """Draws all figures of the results."""
    results = load()
    with plt.rc_context(STYLE):
        for name, (draw, problem) in DRAWN.items():
            save(draw(results), FIGURES / f"{name}.png", [RESULTS / "cpu" / f"{problem}.json"])


def save(figure: plt.Figure, path: Path, sources: Sequence[Path]) -> None:
    """Writes a figure with the hash of the files that it was made from."""
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Software": None, "Source": fingerprint(sources)})
    plt.close(figure)


def outdated(path: Path, sources: Sequence[Path]) -> bool:
    """Whether the files are not those that the figure was made from."""
    with Image.open(path) as image:
        return image.text.get("Source") != fingerprint(sources)


def fingerprint(sources: Sequence[Path]) -> str:
    """The SHA-256 hash of the files' contents."""
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def draw_solves(results: dict) -> plt.Figure:
    """How fast: pairs to an operator, in copies of the pairs."""
    figure, ax = plt.subplots(figsize=SIZE, layout="constrained")
    _draw_solves(ax, results["solve"]["cases"])
    return figure


def draw_clouds(results: dict) -> plt.Figure:
    """How fast: thousands of small fits."""
    figure, ax = plt.subplots(figsize=SIZE, layout="constrained")
    _draw_clouds(ax, only_case(results, "clouds"))
    ax.set_title(spoken(*results["clouds"]["cases"]))
    return figure


def draw_parameters(results: dict) -> plt.Figure:
    """How accurate for the time: a point to an operator, on the digits network."""
    return _errors(only_case(results, "parameters"), "MLP, 26,122 parameters")


def draw_attention(results: dict) -> plt.Figure:
    """The same for an attention network."""
    return _errors(only_case(results, "attention"), "Attention, 25,408 parameters")


def draw_training(results: dict) -> plt.Figure:
    """How many gradients until Adam's lowest loss."""
    problems = results["training"]["problems"]
    figure, ax = plt.subplots(figsize=SIZE, layout="constrained")
    shown = {
        "Adam": ("Adam", LIMIT),
        "optax.lbfgs": ("optax.lbfgs", PEER),
        "secant_newton": ("secant_newton", OURS),
        "precondition_top_curvature": ("precondition_top_curvature", OTHER),
    }
    for at, problem in enumerate(list(problems.values())[::-1]):
        for i, (method, (_, color)) in enumerate(shown.items()):
            needed = problem["methods"][method]["to_adam"]
            y = at + 0.27 - 0.18 * i
            if needed:
                ax.plot([1, needed[0]], [y, y], color=color, lw=5, solid_capstyle="butt")
                text = f"{needed[0]:,}"
            else:
                text = "not within 2,000"
            x = needed[0] if needed else 1
            offset = {"textcoords": "offset points", "va": "center", "fontsize": 10}
            ax.annotate(text, (x, y), (5, 0), color=color, **offset)
    for i, (name, color) in enumerate(shown.values()):
        style = {"color": color, "fontweight": "bold", "fontsize": 11, "transform": ax.transAxes}
        ax.text((0, 0.2, 0.55, 0.2)[i], (1.1, 1.1, 1.1, 1.03)[i], name, **style)
    names = [PROBLEMS[name].replace(", ", ",\n") for name in problems][::-1]
    names = [
        name.replace("physics-informed network", "physics-informed\nnetwork") for name in names
    ]
    ax.yaxis.set_ticks(range(len(names)), names, fontsize=11)
    ax.set(xlim=(0, 2300), xlabel="gradients to the loss that Adam reaches with 2,000")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return figure


def _draw_solves(ax, cases):
    """A row each: ours with its number below, NumPy's with it above."""
    rows = list(cases.items())[::-1]
    kinds = (("fit", OURS, -20), ("numpy_qr", PEER, 9))
    for at, (_, case) in enumerate(rows):
        values = [case["methods"][name]["times_copy"] for name, *_ in kinds]
        ax.plot(values, [at, at], color="#d1d5db", lw=3, zorder=1, solid_capstyle="butt")
        for value, (_, color, up) in zip(values, kinds, strict=True):
            ax.plot(value, at, "o", color=color, ms=10)
            text = {"textcoords": "offset points", "ha": "center", "color": color}
            ax.annotate(f"{value:.2g}", (value, at), (0, up), **text)
    for (name, color, _), at in zip(kinds, (0.12, 0.58), strict=True):
        style = {"color": color, "fontweight": "bold", "transform": ax.transAxes}
        ax.text(at, 0.97, NAMES[name], **style)
    ax.axvline(1, color=LIMIT, ls="--", lw=1.5)
    ax.annotate("copying", (1, -0.55), (5, 0), textcoords="offset points", color=LIMIT)
    ax.set_xscale("log")
    most = ax.get_xlim()[1]
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200) if tick <= most]
    ax.set(xlim=(0.8, 1.2 * most), ylim=(-0.7, len(rows) - 0.3))
    ax.xaxis.set_ticks(ticks, [f"{tick}" for tick in ticks])
    ax.xaxis.set_ticks([], minor=True)
    ax.yaxis.set_ticks(range(len(rows)), [spoken(label) for label, _ in rows])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_title("Pairs to an operator")
    ax.set_xlabel("time, in copies of the pairs")


def _draw_clouds(ax, methods):
    shown = sorted(methods.items(), key=lambda item: -item[1]["seconds"])
    colors = {"fit": OURS, "fit by 256": OURS}
    colors |= {name: LIMIT for name in ("lapack_eigh", "copy", "write")}
    for at, (name, of) in enumerate(shown):
        value = 1e3 * of["seconds"]
        digits = 0 if value >= 20 else 1
        ax.plot(value, at, "o", color=colors.get(name, PEER), ms=10)
        text = f"{value:,.{digits}f}"
        ax.annotate(text, (value, at), (10, 0), textcoords="offset points", va="center")
    ax.set_xscale("log")
    ax.set_xlim(right=6e3 * max(of["seconds"] for _, of in shown))
    ax.set_ylim(-0.6, len(shown) - 0.3)
    ax.yaxis.set_ticks(range(len(shown)), [NAMES[name] for name, _ in shown])
    ax.yaxis.get_ticklabels()[list(dict(shown)).index("fit")].set(color=OURS, fontweight="bold")
    ax.grid(axis="y", color="#e5e7eb", lw=1)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("milliseconds")


def _errors(methods, title):
    figure, ax = plt.subplots(figsize=SIZE, layout="constrained")
    _draw_errors(ax, methods)
    ax.set_title(title)
    return figure


def _draw_errors(ax, methods):
    """Every setting a dot, a line through those that no quicker one beats, its name beside it."""
    families = {"lowrank": ("lowrank_jax", OURS, "o-", -1, (6, -22), "right")}
    families["lanczos"] = ("matfree's Lanczos", PEER, "s--", 0, (0, 10), "left")
    families["eigsh"] = ("SciPy's eigsh", OTHER, "^:", 0, (12, -4), "left")
    for prefix, (name, color, style, near, offset, side) in families.items():
        found = [of for method, of in methods.items() if method.startswith(prefix)]
        points = [(of["times_gradient"], of["error"]) for of in found]
        ax.plot(*zip(*points, strict=True), style[0], color=color, ms=6, alpha=0.35)
        best = _frontier(points)
        ax.plot(*zip(*best, strict=True), style, color=color, lw=2.5, ms=8)
        text = {"color": color, "fontweight": "bold", "ha": side, "textcoords": "offset points"}
        ax.annotate(name, best[near], offset, **text)
    ax.set(xscale="log", yscale="log", xlabel="time, in gradients")
    ax.set_ylabel("relative error of $H_r$")
    times, errors = (10, 15, 20, 30, 50, 70, 100, 150, 200), (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
    for axis, ticks in ((ax.xaxis, times), (ax.yaxis, errors)):
        low, high = axis.get_view_interval()
        axis.set_view_interval(low / 1.2, high * 1.05, ignore=True)
        kept = [tick for tick in ticks if low / 1.2 <= tick <= high * 1.05]
        axis.set_ticks(kept, [f"{tick:g}" for tick in kept])
        axis.set_ticks([], minor=True)


def _frontier(points):
    """The points that no quicker one beats, in order of time."""
    kept = []
    for seconds, error in sorted(points):
        if not kept or error < kept[-1][1]:
            kept.append((seconds, error))
    return kept


DRAWN = {  # what is drawn, and the file of results that it is made from
    "solves": (draw_solves, "solve"),
    "clouds": (draw_clouds, "clouds"),
    "parameters": (draw_parameters, "parameters"),
    "attention": (draw_attention, "attention"),
    "training": (draw_training, "training"),
}

if __name__ == "__main__":
    main()
