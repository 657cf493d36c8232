"""The README's two figures and its table, from `results/`.

    python -m benchmarks.plot [folder of results]

The figures go to `benchmarks/figures/`, the table is printed.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
OURS, PEER, OTHER, LIMIT = "#0072B2", "#D55E00", "#009E73", "#6b7280"  # of Okabe and Ito
STYLE = {"font.size": 13, "axes.titlesize": 14, "axes.titlelocation": "left", "axes.titlepad": 12}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#555555"}
NAMES = {
    "fit": "lowrank_jax",
    "fit by 256": "lowrank_jax, 256 at a time",
    "write": "writing the factors",
    "numpy_qr": "NumPy, tall QR",
    "numpy_loop": "NumPy, loop",
    "lapack_eigh": "LAPACK eigh alone",
    "copy": "copying the pairs",
    "sella": "sella, loop",
    "blackjax": "blackjax, loop",
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", default=HERE / "results" / "cpu")
    parser.add_argument("--output", type=Path, default=HERE / "figures")
    given = parser.parse_args()
    results = load(given.results)
    given.output.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        for name, draw in (("speed", draw_speed), ("accuracy", draw_accuracy)):
            draw(results).savefig(given.output / f"{name}.png", dpi=110)
    print(table(results))


def load(folder: Path) -> dict[str, dict]:
    """All results, by problem. NumPy's QR is the faster of all threads and one."""
    results = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    for problem in {"solve", "clouds"} & set(results):
        for case in results[problem]["cases"].values():
            found = case["methods"]
            both = [found.pop(name) for name in ("numpy_qr", "numpy_qr 1 thread") if name in found]
            if both:
                found["numpy_qr"] = min(both, key=lambda of: of["seconds"])
    return results


def only_case(results: dict, problem: str) -> dict:
    """The methods of a problem that has one case."""
    (case,) = results[problem]["cases"].values()
    return case["methods"]


def matching(methods: dict, peer: str = "lanczos 20") -> str:
    """Our fastest setting whose error is at most the peer's; our most accurate if none is."""
    ours = {name: of for name, of in methods.items() if name.startswith("lowrank")}
    reached = [name for name, of in ours.items() if of["error"] <= methods[peer]["error"]]
    if reached:
        return min(reached, key=lambda name: ours[name]["seconds"])
    return min(ours, key=lambda name: ours[name]["error"])


def draw_speed(results: dict) -> plt.Figure:
    """How fast: pairs to an operator."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", width_ratios=(5, 4))
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.1)
    _draw_solves(axes[0], results["solve"]["cases"])
    _draw_clouds(axes[1], only_case(results, "clouds"))
    axes[1].set_title(_spoken(*results["clouds"]["cases"]))
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
    ax.yaxis.set_ticks(range(len(rows)), [_spoken(label) for label, _ in rows])
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


def _spoken(label):
    """`4096 x 8 x 64` in words."""
    *batch, n, d = (int(part) for part in label.split(" x "))
    words = f"{n} pairs of {d:,}"
    return f"{batch[0]:,} times {words}" if batch else words


def draw_accuracy(results: dict) -> plt.Figure:
    """How accurate for the time: a point to an operator."""
    titles = {"parameters": "MLP, 26,122 parameters", "attention": "Attention, 25,408 parameters"}
    titles = {problem: title for problem, title in titles.items() if problem in results}
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.1)
    for ax, (problem, title) in zip(axes, titles.items(), strict=False):
        _draw_errors(ax, only_case(results, problem))
        ax.set_title(title)
    return figure


def _draw_errors(ax, methods):
    """Every setting a dot, a line through those that no quicker one beats, its name beside it."""
    families = {"lowrank": ("lowrank_jax", OURS, "o-", 2, (-14, -14), "right")}
    families["lanczos"] = ("matfree's Lanczos", PEER, "s--", 0, (0, 10), "left")
    families["eigsh"] = ("SciPy's eigsh", OTHER, "^:", 1, (12, 6), "left")
    for prefix, (name, color, style, near, offset, side) in families.items():
        found = [of for method, of in methods.items() if method.startswith(prefix)]
        points = [(of["times_gradient"], of["error"]) for of in found]
        ax.plot(*zip(*points, strict=True), style[0], color=color, ms=6, alpha=0.35)
        best = _frontier(points)
        ax.plot(*zip(*best, strict=True), style, color=color, lw=2.5, ms=8)
        text = {"color": color, "fontweight": "bold", "ha": side, "textcoords": "offset points"}
        ax.annotate(name, best[min(near, len(best) - 1)], offset, **text)
    ax.set(
        xscale="log", yscale="log", xlabel="time, in gradients", ylabel="relative error of $H_r$"
    )
    times, errors = (10, 15, 20, 30, 50, 70, 100, 150, 200), (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
    for axis, ticks in ((ax.xaxis, times), (ax.yaxis, errors)):
        low, high = axis.get_view_interval()
        axis.set_view_interval(low / 1.15, high * 1.05, ignore=True)
        kept = [tick for tick in ticks if low / 1.15 <= tick <= high * 1.05]
        axis.set_ticks(kept, [f"{tick:g}" for tick in kept])
        axis.set_ticks([], minor=True)


def _frontier(points):
    """The points that no quicker one beats, in order of time."""
    kept = []
    for seconds, error in sorted(points):
        if not kept or error < kept[-1][1]:
            kept.append((seconds, error))
    return kept


def table(results: dict) -> str:
    """The README's table, in Markdown."""
    makers = {
        "solve": _solve_rows,
        "clouds": _cloud_rows,
        "parameters": _point_rows,
        "attention": _point_rows,
        "product": _product_rows,
        "compile": _compile_rows,
        "inputs": _input_rows,
    }
    rows = [
        row
        for problem, make in makers.items()
        if problem in results
        for row in make(problem, results[problem]["cases"])
    ]
    lines = ["| | lowrank_jax | beside it | |", "|---|---|---|---|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _solve_rows(_, cases):
    for label, case in cases.items():
        ours, qr, copy = (case["methods"][name] for name in ("fit", "numpy_qr", "copy"))
        beside = f"NumPy QR {_time(qr)}, a copy {_time(copy)}"
        bytes_ = sum(ours["memory_bytes"].values()) / case["bytes_of_pairs"]
        said = (
            f"{_ratio(qr, ours)}, {ours['times_copy']:.1f} copies; {bytes_:.1f} times their memory"
        )
        yield f"fit, {_spoken(label)}", _time(ours), beside, said


def _cloud_rows(_, cases):
    for label, case in cases.items():
        methods = case["methods"]
        names = "fit by 256", "numpy_loop", "lapack_eigh"
        ours, loop, eigh = (methods[name] for name in names)
        beside = f"NumPy loop {_time(loop)}, LAPACK `eigh` alone {_time(eigh)}"
        yield f"fit, {_spoken(label)}, 256 at a time", _time(ours), beside, _ratio(loop, ours)


def _point_rows(problem, cases):
    for label, case in cases.items():
        methods = case["methods"]
        name, peer = matching(methods), methods["lanczos 20"]
        ours = methods[name]
        beside = f"matfree, Lanczos 20: {_time(peer)}, error {peer['error']:.3f}"
        shown = f"{_time(ours)}, error {ours['error']:.3f} ({name.split()[1]})"
        title = {"parameters": "digits MLP", "attention": "attention"}[problem]
        said = f"{ours['seconds'] / peer['seconds']:.2f} of its time"
        yield f"Hessian of {title}, {label}", shown, beside, said


def _product_rows(_, cases):
    for label, case in cases.items():
        ours, exact = case["methods"]["product"], case["methods"]["hvp"]
        yield f"`H @ v`, {label}", _time(ours), f"exact {_time(exact)}", _ratio(exact, ours)


def _compile_rows(_, cases):
    for label, case in cases.items():
        ours, dense = case["methods"]["lowrank_hessian"], case["methods"]["jax.hessian"]
        title = f"first call, {label} ({case['dimension']:,})"
        yield title, _time(ours), f"`jax.hessian` {_time(dense)}", _ratio(dense, ours)


def _input_rows(_, cases):
    for label, case in cases.items():
        dense = case["methods"]["jax.hessian"]
        for name in ("secant 16", "lowrank 8x3"):
            ours = case["methods"][name]
            shown = f"{_time(ours)}, error {ours['error']:.3f}, worst {ours['worst_error']:.2f}"
            beside = (
                f"`jax.hessian` and `eigh` {_time(dense)}, rank 16 {case['best_of_rank_16']:.3f}"
            )
            yield f"input Hessians, {label}, {name}", shown, beside, _ratio(dense, ours)


def _time(of):
    seconds = of["seconds"]
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _ratio(peer, ours):
    ratio = peer["seconds"] / ours["seconds"]
    if abs(ratio - 1) < 0.05:
        return "as fast"
    return f"{ratio:.2g} times faster" if ratio > 1 else f"{1 / ratio:.2g} times slower"


if __name__ == "__main__":
    main()
