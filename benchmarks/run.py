"""Runs benchmarks, each in a fresh process, and writes what they find.

    python -m benchmarks.run [--quick] [--problems solve clouds ...] [--methods fit numpy_qr ...]

The files are `results/<platform>/<problem>.json`, and `environment.json` says of each where it was
run. A quick run or one of chosen methods writes nothing, unless `--output` names a folder.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks import (
    curvature,
    errors,
    fits,
    functions,
    measure,
    minibatches,
    optimisers,
    products,
    scale,
    steps,
    tasks,
    training,
)
from benchmarks.options import Options

BENCHMARKS = {
    "solve": fits.solve,
    "clouds": fits.clouds,
    "parameters": curvature.parameters,
    "attention": curvature.attention,
    "inputs": curvature.inputs,
    "product": products.product,
    "compile": products.first_call,
    "training": training.training,
    "leaves": products.leaves,
    "functions": functions.functions,
    "optimisers": optimisers.optimisers,
    "networks": products.networks,
    "steps": steps.steps,
    "minibatches": minibatches.minibatches,
    "tasks": tasks.tasks,
    "scale": scale.scale,
    "errors": errors.networks,
    "estimates": errors.estimates,
}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller, in under three minutes")
    parser.add_argument("--problems", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--methods", nargs="+", help="only these, such as: fit lanczos\\ 20")
    parser.add_argument("--output", type=Path, help="a folder for the results")
    given = parser.parse_args()
    options = Options(given.quick, given.methods and tuple(given.methods))
    partial = given.quick or given.methods is not None
    for problem in given.problems:
        began = time.perf_counter()
        print(f"{problem} ...", flush=True)
        found, environment = in_fresh_process(problem, options)
        show(found)
        print(f"  {time.perf_counter() - began:.0f} s\n", flush=True)
        if given.output is not None:
            write(given.output, problem, found, environment)
        elif not partial:
            write(RESULTS / environment["platform"], problem, found, environment)


def in_fresh_process(problem: str, options: Options) -> tuple[dict, dict]:
    """What the benchmark finds, and where, with no other one's settings, caches and memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_run, problem, options).result()


def _run(problem, options):
    return BENCHMARKS[problem](options), measure.environment()


def write(folder: Path, problem: str, found: dict, environment: dict) -> None:
    """One problem's results, and where they come from."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "environment.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(measure.text(known | {problem: environment}))
    (folder / f"{problem}.json").write_text(measure.text(found))
    print(f"  written: {folder / f'{problem}.json'}\n", flush=True)


def show(found: dict) -> None:
    """A table of each case: seconds, quartiles, in units, compile time, and errors if any."""
    unit = found.get("unit")
    for case, of in found.get("cases", {}).items():
        print(f"\n  {case}")
        heads = ("seconds", "lower quartile", "upper", f"per {unit}", "compile", "error")
        print(f"    {'':18}" + "".join(f"{head:>22}" for head in heads))
        for method, entry in of["methods"].items():
            cells = entry["seconds"], *entry["quartiles"], entry.get(f"times_{unit}")
            cells += entry.get("compile_seconds"), entry.get("error")
            row = "".join(f"{'-' if cell is None else f'{cell:.4g}':>22}" for cell in cells)
            print(f"    {method:18}{row}", flush=True)
    for case, quantiles in found.get("summaries", {}).items():
        print(f"\n  {case}: " + ", ".join(f"{k} {v:.3g}" for k, v in quantiles.items()), flush=True)
    for case, peaks in found.get("peak_bytes", {}).items():
        shown = ", ".join(f"{name} {(found or 0) / 1e6:.0f} MB" for name, found in peaks.items())
        print(f"\n  {case}, peak memory of a process: {shown}", flush=True)


if __name__ == "__main__":
    main()
