"""What the notebooks share: progress, times, figures and their style."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib import pyplot

if "ipykernel" not in sys.modules:  # a script: no window
    matplotlib.use("Agg")

QUICK = "--quick" in sys.argv  # smaller and fewer, for a look
FIGURES = Path(__file__).parent.parent / "notebooks" / "figures"
GREY, RED, BLUE, BROWN, GREEN = "#7d8794", "#c8442e", "#2f6fae", "#b5651d", "#3f8f5f"
STYLE = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.titlepad": 10,
    "axes.edgecolor": "#555555",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
START = time.perf_counter()


def say(text: str) -> None:
    """One line of progress, visible at once, also in a log file."""
    print(f"[{time.perf_counter() - START:5.1f} s] {text}", flush=True)


def seconds(function: Callable, *args: Any, repeats: int = 9) -> float:
    """The median time of a call, after a first one."""
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def by_magnitude(values: Any) -> np.ndarray:
    """Eigenvalues that are not zero, the largest magnitude first."""
    values = np.asarray(values)[np.asarray(values) != 0]
    return values[np.argsort(-np.abs(values))]


def panels(mosaic: str, size: tuple[float, float]) -> tuple[Any, dict[str, Any]]:
    """A figure in the notebooks' style, and its axes by the letters of the mosaic.

    It is shown where it is saved, and not half empty by the cell that makes it.
    """
    matplotlib.rcParams.update(STYLE)
    figure, axes = pyplot.subplot_mosaic(mosaic, figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    pyplot.close(figure)
    return figure, axes


def plain_ticks(axis: Any, ticks: Sequence[float]) -> None:
    """These ticks of a logarithmic axis, as plain numbers, and no others."""
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def save(figure: Any, name: str, dpi: int = 100) -> None:
    """Writes a figure below notebooks/figures, and shows it in Jupyter."""
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / name, dpi=dpi)
    say(f"figure saved: notebooks/figures/{name}")
    if "ipykernel" in sys.modules:
        from IPython.display import display  # there is none without Jupyter

        display(figure)
