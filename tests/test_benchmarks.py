"""The benchmarks measure what they say, and the results hold what the README shows."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_jax as lrj
from benchmarks import device, measure, methods, numpy_fits, plot, problems, tables
from benchmarks.measure import Call
from tests.reference import low_rank, relative_error

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results/cpu"
pytestmark = pytest.mark.study


class Clock:
    """A clock that stands still unless it is told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def taking(self, name, durations, seen):
        """A function that takes these times, one after the other."""
        durations = iter(durations)

        def function():
            seen.append(name)
            self.now += next(durations)

        return function


def test_calls_take_turns_after_an_unmeasured_round():
    clock, seen = Clock(), []
    calls = {
        "a": Call(clock.taking("a", [100, 3, 1, 2, 9, 4], seen)),
        "b": Call(clock.taking("b", [100] + [8] * 5, seen), share=0.5),
    }
    found = measure.compare(calls, "a", rounds=5, seconds=0, clock=clock)
    assert seen == ["a", "b"] * 6
    assert found["a"]["seconds"] == 3
    assert found["a"]["quartiles"] == [2, 4]
    assert found["a"]["fastest"] == 1
    assert found["b"]["seconds"] == 16
    assert found["b"]["times_a"] == 16 / 3
    assert found["b"]["rounds"] == 5


def test_rounds_go_on_until_the_time_is_over():
    clock = Clock()
    calls = {"a": Call(clock.taking("a", [1] * 100, []))}
    assert len(measure.interleaved(calls, rounds=7, seconds=20, clock=clock)["a"]) == 20


def test_compilation_is_timed_apart():
    clock = Clock()

    def function(x):
        clock.now += 5  # while it is traced
        return x + 1

    call = measure.compiled(function, jnp.zeros(1000, jnp.float32), clock=clock)
    found = measure.compare({"f": call}, "no unit", rounds=3, seconds=0, clock=clock)["f"]
    assert found["compile_seconds"] == 5
    assert found["seconds"] == 0
    assert found["memory_bytes"]["arguments"] == 4000
    assert found["memory_bytes"]["output"] == 4000


def test_peak_memory_is_of_the_call_and_not_of_this_process():
    ours = np.ones(100_000_000)  # 800 MB
    peaks = [measure.peak_bytes(np.ones, size) for size in (10, 30_000_000)]
    assert peaks[0] < ours.nbytes
    assert peaks[1] - peaks[0] == pytest.approx(240e6, rel=0.1)


def consistent_pairs(rng, shape):
    """Steps and their products with an indefinite matrix."""
    s, h = rng.standard_normal(shape), rng.standard_normal((shape[-1],) * 2)
    return s, s @ (h + h.T)


@pytest.mark.parametrize("shape", [(6, 40), (5, 4, 30)])
@pytest.mark.parametrize("consistent", [True, False])
def test_numpy_qr_is_the_fit(rng, shape, consistent):
    s, y = consistent_pairs(rng, shape)
    y = y if consistent else y + 0.1 * rng.standard_normal(shape)
    factors, core = numpy_fits.secant_fit(s, y)
    fit = lrj.fit if len(shape) == 2 else jax.vmap(lrj.fit)
    ours = fit(lrj.SecantPairs(s, y))
    stacks = (x.reshape(-1, *x.shape[-2:]) for x in (s, y, factors, core, ours.factors, ours.core))
    for s, y, b, k, our_b, our_k in zip(*stacks, strict=True):
        h = low_rank(b, k)
        assert relative_error(h, low_rank(np.array(our_b), np.array(our_k))) < 1e-9
        if consistent:
            assert relative_error(s @ h, y) < 1e-10


def test_the_eigenvalue_problem_is_the_fit_of_least_rank(rng):
    s, y = consistent_pairs(rng, (5, 40))
    values, vectors = numpy_fits.eigenproblem_fit(s.T, y.T)
    h = vectors * values @ vectors.T
    assert relative_error(s @ h, y) < 1e-8
    assert relative_error(h, lrj.fit(lrj.SecantPairs(s, y), extrapolate=1).to_dense()) < 1e-8


def test_methods_at_a_point_find_its_hessian():
    diagonal = np.array([9.0, -7, 5, 3, 2, 1, 0, 0, 0, 0], np.float32)

    def loss(x, diagonal):
        return jnp.vdot(x, diagonal * x) / 2

    point = problems.Point(loss, jnp.ones(10, jnp.float32), (jnp.asarray(diagonal),))
    table = methods.available(methods.curvatures([(2, 5)], [7], [4]))
    for name, method in table.items():
        call = method.make(point)
        rank = 4 if name.startswith("eigsh") else 10
        truth = np.diag(np.where(np.arange(10) < rank, diagonal, 0))
        assert relative_error(call.run().to_dense(), truth) < 2e-2, name
        if rank == 4:
            assert call.function.products >= 8


def test_what_is_not_installed_is_left_out_and_said(capsys):
    table = {"a": methods.Method(None), "b": methods.Method(None, "no_such_package")}
    assert list(methods.available(table)) == ["a"]
    assert "no_such_package is not installed" in capsys.readouterr().out
    assert list(methods.available(table, ["b"])) == []


def test_a_run_writes_results_and_where_they_come_from(tmp_path):
    command = "-m benchmarks.run --quick --problems clouds --methods copy --output"
    run = subprocess.run(
        [sys.executable, *command.split(), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "JAX_ENABLE_X64": "0"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "clouds.json").read_text())
    assert set(tables.only_case({"clouds": found}, "clouds")) == {"copy"}
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["clouds"]["versions"]["jax"] == jax.__version__


def test_the_fastest_setting_as_accurate_as_the_peer_is_chosen():
    methods_found = {
        "lanczos 20": {"error": 0.2, "seconds": 3},
        "lowrank 4x5": {"error": 0.21, "seconds": 1},
        "lowrank 1x24": {"error": 0.19, "seconds": 2.5},
        "lowrank 4x6": {"error": 0.2, "seconds": 2},
    }
    assert tables.matching(methods_found) == "lowrank 4x6"
    methods_found["lanczos 20"]["error"] = 0.1
    assert tables.matching(methods_found) == "lowrank 1x24"


@pytest.mark.parametrize("name", tables.TABLES)
def test_the_results_hold_every_table(name):
    lines = tables.TABLES[name]().splitlines()
    assert len(lines) > 3
    assert len({line.count("|") for line in lines}) == 1
    assert "nan" not in "".join(lines)


@pytest.mark.parametrize("network", ["CNN", "transformer"])
def test_on_mini_batches_the_methods_end_where_the_pages_say(network):
    found = tables.load(RESULTS)["minibatches"]["networks"][network]["methods"]
    assert not any(of["rate_at_an_end"] for of in found.values())
    assert (
        7 <= round(found["secant_newton, grad_fn, damping 1"]["loss"] / found["Adam"]["loss"]) <= 9
    )
    for name in ("optax.lbfgs", "secant_newton", "secant_newton, grad_fn"):
        assert found[name]["loss"] > 0.99 * np.log(10), "no better than guesses"
    for inner in ("Adam", "SGD"):
        ours = found[f"precondition_top_curvature, {inner}"]["losses"]
        alone = found["Adam" if inner == "Adam" else "SGD, momentum 0.9"]["losses"]
        assert ours[0] < alone[-1], "the ranges overlap"
        assert alone[0] < ours[-1], "the ranges overlap"


@pytest.mark.parametrize("name", plot.DRAWN)
def test_the_results_hold_every_figure(name):
    figure = plot.DRAWN[name][0](tables.load(RESULTS))
    (ax,) = figure.axes
    assert ax.lines
    assert ax.get_xlabel()
    plot.plt.close(figure)


def test_every_result_says_where_it_comes_from():
    results = tables.load(RESULTS)
    assert set(results["environment"]) == set(results) - {"environment"}


def good_section(report):
    report.check("holds", 1, 2)


def bad_section(report):
    report.check("does not hold", float("nan"), 2)
    raise ValueError("on purpose")


def dying_section(report):
    report.check("is known before", 1, 2)
    os._exit(3)


def endless_section(report):
    report.check("is known before", 1, 2)
    time.sleep(1000)


def test_what_a_section_found_survives_whatever_it_does(tmp_path):
    sections = {
        "bad": device.Section(bad_section, 60),
        "dying": device.Section(dying_section, 60),
        "endless": device.Section(endless_section, 1),
        "good": device.Section(good_section, 60),
    }
    run = device.Run(sections, 300, False, tmp_path / "found.json")
    for name in sections:
        run.section(name)
    run.end()
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["environment"]["versions"]["jax"] == jax.__version__
    found = found["sections"]
    assert [len(found[name]["checks"]) for name in sections] == [1, 1, 1, 1]
    statuses = ["failed", "broken: exit code 3", "given up: out of time", "done"]
    assert [found[name]["status"] for name in sections] == statuses
    (error,) = found["bad"]["errors"]
    assert error["traceback"].endswith("ValueError: on purpose\n")
    assert str(ROOT) not in error["traceback"]
    assert [found[name]["checks"][0]["ok"] for name in ("bad", "good")] == [False, True]
    assert not run.succeeded()


def test_without_time_no_section_begins(tmp_path, capsys):
    run = device.Run({"good": device.Section(good_section, 60)}, 0, False, tmp_path / "found.json")
    run.section("good")
    run.end()
    assert "no time was left" in capsys.readouterr().out


def test_a_signal_leaves_what_was_found(tmp_path):
    path = tmp_path / "found.json"
    command = f"-m benchmarks.device --quick --sections arithmetic --output {path}"
    run = subprocess.Popen([sys.executable, *command.split()], cwd=ROOT, stdout=subprocess.DEVNULL)
    ends = time.monotonic() + 100
    while not path.exists() and run.poll() is None and time.monotonic() < ends:
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=100) == 128 + signal.SIGTERM
    found = json.loads(path.read_text())["sections"]["arithmetic"]
    assert found["status"] == "interrupted"
    assert found["checks"]
