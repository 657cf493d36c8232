"""Checks and benchmarks on the device that JAX finds, bounded in time: `make device`.

    python -m benchmarks.device [--seconds 330] [--quick] [--sections fit ...] [--output FILE]

It needs this package and JAX, NumPy and optax alone; its data are made. What it finds is on the
screen and in `results/<device>/device.json`, written anew after every figure: what was measured
survives a signal, an error, a crash and a section that does not end. Sections run in a process of
their own, which is replaced when one of them breaks it; the next section goes on. With
`--sections` the others of an earlier run on the same device stay in the file. A quick run writes
nothing, unless `--output` names a file.

The exit status is 0 if all checks hold and all sections have ended well.
"""

import argparse
import gc
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks import device_cases, device_checks, measure

RESULTS = Path(__file__).parent / "results"
START = 60.0  # seconds that a process may take to begin
LEAST = 8.0  # with less time left no section begins


class Section(NamedTuple):
    """`run(report)`, and the seconds after which it is given up."""

    run: Callable
    limit: float


SECTIONS = {
    "arithmetic": Section(device_checks.arithmetic, 100),
    "curvature": Section(device_checks.curvature, 60),
    "derivatives": Section(device_checks.derivatives, 80),
    "batches": Section(device_checks.batches, 60),
    "hostile": Section(device_checks.hostile, 60),
    "large": Section(device_checks.large, 60),
    "fit": Section(device_cases.fit, 60),
    "clouds": Section(device_cases.clouds, 60),
    "mlp": Section(device_cases.mlp, 150),
    "transformer": Section(device_cases.transformer, 150),
    "large-transformer": Section(device_cases.large_transformer, 100),
    "cnn": Section(device_cases.cnn, 100),
    "kernels": Section(device_cases.kernels, 45),
    "large-mlp": Section(device_cases.large_mlp, 80),
    "medium-transformer": Section(device_cases.medium_transformer, 80),
    "medium-cnn": Section(device_cases.medium_cnn, 80),
}


class Report:
    """What a section tells while it runs.

    Attributes:
      quick: smaller and shorter, to try the script.
    """

    def __init__(self, send: Callable, quick: bool):
        self._send = send
        self.quick = quick

    def check(self, name: str, figure: Any, bound: float | None = None) -> None:
        """A figure that must not be above its bound, nor NaN; without a bound it is for reading."""
        figure = float(figure)
        ok = None if bound is None else figure <= bound
        self._send("checks", {"name": name, "figure": figure, "bound": bound, "ok": ok})

    def case(self, name: str, unit: str, methods: dict[str, dict], **about: Any) -> None:
        """What `measure.compare` finds, in units of that method, and facts beside it."""
        self._send("cases", {"name": name, "unit": unit, **about, "methods": methods})

    def ran(self, case: str, name: str, row: dict) -> None:
        """A call that has run once, until its case is known: a cut may come before that."""
        self._send("calls", {"case": case, "name": name, **row})

    def failed(self, name: str) -> None:
        """The exception that is being handled: of this part, the section goes on."""
        self._send("errors", {"name": name, "traceback": _without_paths(traceback.format_exc())})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=330, help="ends by then")
    parser.add_argument("--quick", action="store_true", help="smaller and shorter")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--output", type=Path, help="a file for the results")
    given = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # compile times are figures here
    run = Run(SECTIONS, given.seconds, given.quick, given.output)
    try:
        for name in given.sections:
            run.section(name)
    finally:
        run.end()
    sys.exit(0 if run.succeeded() else 1)


class Run:
    """Sections one after the other in a process beside this one, and the file of what they find."""

    def __init__(
        self, sections: dict[str, Section], seconds: float, quick: bool, output: Path | None
    ):
        self._sections = sections
        self._ends = time.monotonic() + seconds
        self._quick = quick
        self._output = output
        self._found: dict[str, Any] = {"environment": None, "sections": {}}
        self._own: dict[str, dict] = {}  # the sections of this run
        self._process = self._connection = None

    def section(self, name: str) -> None:
        """Runs it and keeps what it finds, whatever happens."""
        left = self._ends - time.monotonic()
        entry: dict[str, Any] = {"status": "not run: no time was left"}
        self._own[name] = self._found["sections"][name] = entry
        if left < LEAST:
            return
        print(f"\n{name}", flush=True)
        entry |= {"status": "interrupted", "checks": [], "cases": [], "calls": [], "errors": []}
        began = time.monotonic()
        try:
            if self._process is None:
                self._start(left)
            self._connection.send(name)
            ends = min(time.monotonic() + self._sections[name].limit, self._ends)
            entry["status"] = self._follow(entry, ends)
        except TimeoutError:
            entry["status"] = "given up: out of time"
            self._stop()
        except (EOFError, ConnectionError):
            self._process.join()
            entry["status"] = f"broken: exit code {self._process.exitcode}"
            self._stop()
        entry["seconds"] = round(time.monotonic() - began, 1)
        self._save()
        print(f"  {entry['status']}, {entry['seconds']} s", flush=True)

    def end(self) -> None:
        """Stops the process, saves, and says what did not hold."""
        self._stop()
        path = self._save()
        print(f"\n{path or 'Nothing'} written\n")
        for name, entry in self._own.items():
            checks = [check for check in entry.get("checks", ()) if check["ok"] is not None]
            good = sum(check["ok"] for check in checks)
            print(f"  {name:20} {entry['status']:28} {good} of {len(checks)} checks hold")
            for check in checks:
                if not check["ok"]:
                    print(f"    FAIL  {_check_line(check)}")
            for error in entry.get("errors", ()):
                print(f"    ERROR {error['name']}: {error['traceback'].splitlines()[-1][:120]}")
        sys.stdout.flush()

    def succeeded(self) -> bool:
        """Whether all sections have ended well, and all checks hold."""
        return all(
            entry["status"] in ("done", "not run: no time was left")
            and not entry.get("errors")
            and all(check["ok"] is not False for check in entry.get("checks", ()))
            for entry in self._own.values()
        )

    def _start(self, left):
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        args = theirs, self._sections, self._quick
        self._process = context.Process(target=_work, args=args, daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process is the end of what it sends
        environment = self._receive(time.monotonic() + min(START, left))
        print(f"  {environment['device']}, JAX {environment['versions']['jax']}", flush=True)
        if self._found["environment"] is None:
            self._found["environment"] = environment
            self._add_earlier()

    def _stop(self):
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = self._connection = None

    def _follow(self, entry, ends):
        """Keeps what comes until the section is over, and says how it ended."""
        while True:
            kind, found = self._receive(ends)
            if kind == "end":
                return found
            entry[kind].append(found)
            if kind == "cases":
                entry["calls"] = [of for of in entry["calls"] if of["case"] != found["name"]]
            show(kind, found)
            self._save()

    def _receive(self, ends):
        if not self._connection.poll(max(0, ends - time.monotonic())):
            raise TimeoutError
        return self._connection.recv()

    def _add_earlier(self):
        """Sections of an earlier run in the same file, on the same device and versions."""
        path = self._path()
        if path is None or not path.exists():
            return
        earlier = json.loads(path.read_text())
        if earlier["environment"] == self._found["environment"]:
            self._found["sections"] = earlier["sections"] | self._found["sections"]

    def _path(self):
        environment = self._found["environment"]
        if self._output is not None or self._quick or environment is None:
            return self._output
        slug = re.sub(r"[^a-z0-9]+", "-", environment["device"].lower()).strip("-")
        return RESULTS / slug / "device.json"

    def _save(self):
        """The whole file in one step: a reader, or a cut, never meets half of it."""
        path = self._path()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_text(measure.text(self._found))
            part.replace(path)
        return path


def _work(connection, sections, quick):
    """The process beside: sections by name, until it is stopped."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what happens then is decided by the other one
    device = jax.devices()[0]
    size = (device.memory_stats() or {}).get("bytes_limit")
    runtime = {"runtime": device.client.platform_version, "device_bytes": size}
    connection.send(measure.environment() | runtime)

    def send(kind, found):
        connection.send((kind, found))

    while True:
        name = connection.recv()
        report = Report(send, quick)
        try:
            sections[name].run(report)
        except Exception:
            report.failed(name)
            end = "failed"
        else:
            end = "done"
        del report  # and what a traceback holds: the next section has all of the memory
        jax.clear_caches()
        gc.collect()
        send("end", end)


def _without_paths(trace):
    """A traceback that names files by their last two parts."""
    return re.sub(r'File "[^"]*?([^/"]+/[^/"]+)"', r'File "\1"', trace)


def show(kind: str, found: dict) -> None:
    """One check, one error, or the rows of one case."""
    if kind == "checks":
        print(f"  {_check_line(found)}", flush=True)
    elif kind == "calls":
        times = found["compile_seconds"], found["first_run_seconds"]
        print(f"    {found['name'][:30]:30}" + "{:9.2f} s to compile {:9.4f} s".format(*times))
    elif kind == "errors":
        print(f"  ERROR in {found['name']}\n{found['traceback']}", flush=True)
    else:
        about = {k: v for k, v in found.items() if k not in ("name", "unit", "methods")}
        facts = ", ".join(f"{k} {v:.3g}" for k, v in about.items())
        print(f"  {found['name']}  {facts}")
        heads = "ms", f"per {found['unit']}", "over limit", "compile s", "kernels", "error"
        print(f"    {'':30}" + "".join(f"{head:>14}" for head in heads))
        for name, row in found["methods"].items():
            cells = 1e3 * row["seconds"], row.get(f"times_{found['unit']}"), row.get("over_limit")
            cells += row.get("compile_seconds"), row.get("kernels"), row.get("error")
            line = "".join(f"{'-' if c is None else f'{c:.4g}':>14}" for c in cells)
            print(f"    {name[:30]:30}{line}", flush=True)


def _check_line(check):
    word = {True: "ok", False: "FAIL", None: ""}[check["ok"]]
    bound = "" if check["bound"] is None else f"{check['bound']:.0e}"
    return f"{check['name']:60} {check['figure']:9.2e} {bound:>7}  {word}"


if __name__ == "__main__":
    main()
