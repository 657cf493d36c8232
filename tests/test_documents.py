"""The README and the pages print what they say and show what the results say."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lowrank_jax as lrj
from benchmarks import plot, tables
from tests.quick import environment

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
NUMBER = re.compile(r"-?\d+\.\d*(?:e-?\d+)?")
EXAMPLE = re.compile(r"```python\n((?:(?!```).)*)```\n\n```text\n(.*?)```", re.DOTALL)
EXAMPLES = {  # by page: what it shows to be run, one after the other, and printed
    path.stem: found for path in (README, *PAGES) if (found := EXAMPLE.findall(path.read_text()))
}
SHOWN = re.compile(r"!\[[^]]+\]\((?:docs/)?figures/(\w+)\.png\)")


def run(*command):
    """What a program prints, in single precision."""
    found = subprocess.run(
        [sys.executable, *command],
        env=environment(JAX_ENABLE_X64="0"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.parametrize("page", EXAMPLES)
def test_the_examples_of_a_page_print_their_output(page):
    codes, outputs = zip(*EXAMPLES[page], strict=True)
    printed = run("-c", "\nprint('\\f', end='')\n".join(codes)).split("\f")
    for text, expected in zip(printed, outputs, strict=True):
        words = [re.sub(r"\s+", "", NUMBER.sub("x", t)) for t in (text, expected)]
        assert words[0] == words[1]
        found, shown = ([float(x) for x in NUMBER.findall(t)] for t in (text, expected))
        np.testing.assert_allclose(found, shown, rtol=2e-2, atol=1e-5)


def test_the_pages_with_examples_are_known():
    expected = {"README", "devices", "how_it_works", "how_sure", "libraries", "which_call"}
    assert set(EXAMPLES) == expected


def test_every_python_block_is_run():
    blocks = {path.stem: path.read_text().count("```python\n") for path in (README, *PAGES)}
    assert {k: n for k, n in blocks.items() if n} == {k: len(v) for k, v in EXAMPLES.items()}


def test_the_readme_is_short_and_its_table_is_that_of_the_results():
    text = README.read_text()
    assert len(text.splitlines()) < 150
    assert text.count(tables.readme()) == 1


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (ROOT / target).exists(), target


def described():
    """The names that pages of the reference describe, as often as they do."""
    pattern = re.compile(r"^\.\. auto(?:class|function):: lowrank_jax\.([\w.]+)$", re.MULTILINE)
    pages = (ROOT / "docs" / "api").glob("*.md")
    return sorted(name for path in pages for name in pattern.findall(path.read_text()))


def test_every_public_name_is_on_one_page_of_the_reference():
    names = {name: getattr(lrj, name) for name in lrj.__all__}
    modules = [name for name, of in names.items() if inspect.ismodule(of)]
    expected = set(names) - set(modules)
    for module in modules:
        for name, of in vars(names[module]).items():
            own = getattr(of, "__module__", None) == f"lowrank_jax.{module}"
            if own and not name.startswith("_"):
                expected.add(f"{module}.{name}")
    assert described() == sorted(expected)


# ---- figures -------------------------------------------------------------------------------------


def sources():
    """Every figure, and the file that it is made from."""
    results = {name: tables.RESULTS / "cpu" / f"{of}.json" for name, (_, of) in plot.DRAWN.items()}
    return results | {path.stem: path for path in plot.FIGURES.glob("*.json")}


@pytest.mark.parametrize("name", sorted(sources()))
def test_a_figure_is_as_new_as_its_data(name):
    figure = plot.FIGURES / f"{name}.png"
    assert not plot.outdated(figure, [sources()[name]]), "make figures"


def test_a_figure_of_other_data_is_outdated(tmp_path):
    data, path = tmp_path / "data.json", tmp_path / "figure.png"
    data.write_text("[1.0]")
    plot.save(plot.plt.figure(), path, [data])
    assert not plot.outdated(path, [data])
    data.write_text("[1.1]")
    assert plot.outdated(path, [data])


def test_every_figure_is_shown_and_made():
    shown = {name for path in (README, *PAGES) for name in SHOWN.findall(path.read_text())}
    assert shown == {path.stem for path in plot.FIGURES.glob("*.png")} == set(sources())


@pytest.mark.study
def test_what_the_figures_explain_is_still_so(tmp_path):
    """The numbers in `docs/figures/*.json` are those of the library as it is."""
    run("docs/figures.py", "--data", str(tmp_path))
    for path in tmp_path.glob("*.json"):
        found, kept = (numbers(p.read_text()) for p in (path, plot.FIGURES / path.name))
        small = 1e-3 * np.abs(kept).max()
        loose = 0.5 if path.stem == "radius" else 0.02  # half of it shows rounding, which is noise
        np.testing.assert_allclose(found, kept, rtol=loose, atol=small, err_msg=path.name)


def numbers(text):
    return np.array([float(x) for x in re.findall(r"-?\d[\d.]*(?:e-?\d+)?", text)])
