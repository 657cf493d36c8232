"""Pairs to an operator: large ones, and many small ones."""

import math

from benchmarks import measure, methods
from benchmarks.options import Options
from benchmarks.problems import random_pairs

SHAPES = ((16, 1_000_000), (32, 200_000), (20, 26_122), (4096, 8, 64), (256, 16, 784))
SMALL_SHAPES = ((16, 100_000), (20, 26_122), (256, 8, 64))


def solve(options: Options) -> dict:
    """`fit` beside NumPy's QR and a plain copy, and the memory that it takes."""
    shapes = SMALL_SHAPES if options.quick else SHAPES
    found = {label(shape): _compared(shape, methods.SOLVES, options) for shape in shapes}
    table = methods.available(methods.SOLVES, options.methods)
    peaks = {label(shapes[0]): _peaks(shapes[0], table)}
    return {"unit": "copy", "cases": found, "peak_bytes": peaks}


def clouds(options: Options) -> dict:
    """4096 clouds at once beside loops over them, and the LAPACK calls that no way avoids."""
    shape = (256 if options.quick else 4096, 8, 64)
    found = _compared(shape, methods.CLOUDS, options, "fit")
    return {"unit": "fit", "cases": {label(shape): found}}


def label(shape: tuple[int, ...]) -> str:
    """`16 x 1000000`."""
    return " x ".join(map(str, shape))


def _compared(shape, table, options, unit="copy"):
    pairs = random_pairs(shape)
    calls = {name: of.make(pairs) for name, of in methods.available(table, options.methods).items()}
    found = measure.compare(calls, unit, options.rounds, options.seconds)
    return {"bytes_of_pairs": 2 * 4 * math.prod(shape), "methods": found}


def _peaks(shape, table):
    """Of fresh processes: one that only makes the pairs, and one for each method."""
    found = {name: measure.peak_bytes(_make_and_run, shape, name) for name in table}
    return {"pairs alone": measure.peak_bytes(random_pairs, shape)} | found


def _make_and_run(shape, name):
    return methods.SOLVES[name].make(random_pairs(shape)).run()
