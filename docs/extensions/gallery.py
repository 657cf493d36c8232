"""The notebooks, as pages: `notebooks/*.py` become `docs/gallery/*.ipynb`, which the build runs.

They are rewritten only where they have changed, so that a second build runs nothing anew; a page
depends on the library's files, so that one after a change of the library does. With QUICK in the
environment they are given `--quick`.
"""

import os
from pathlib import Path

import jupytext
import nbformat
from docutils import nodes

DOCS = Path(__file__).parent.parent
ROOT = DOCS.parent
FOLDER = DOCS / "gallery"
ARGUMENTS = ["notebook", *(["--quick"] if "QUICK" in os.environ else [])]
# Each runs in its own folder, as a script does; what the reader sees begins after this cell.
SETUP = f"""\
import os
import sys

os.chdir("../../notebooks")
sys.argv = {ARGUMENTS}
"""


def convert(app):
    """Writes all notebooks, and removes those that are no more."""
    sources = sorted((ROOT / "notebooks").glob("*.py"))
    FOLDER.mkdir(exist_ok=True)
    for stale in set(FOLDER.glob("*.ipynb")) - {target(source) for source in sources}:
        stale.unlink()
    for source in sources:
        notebook = jupytext.read(source, fmt="py:percent")
        cell = nbformat.v4.new_code_cell(SETUP, metadata={"tags": ["remove-cell"]}, id="setup")
        notebook.cells.insert(0, cell)
        for i, cell in enumerate(notebook.cells[1:]):
            cell.id = f"cell-{i}"  # not a random one: the same source is the same page
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
        text = nbformat.writes(notebook)
        if not target(source).exists() or target(source).read_text() != text:
            target(source).write_text(text)


def target(source):
    """Where the page of a notebook lies."""
    return FOLDER / source.with_suffix(".ipynb").name


def depend(app, name, _):
    """A page is run again where the library or what notebooks share has changed."""
    if name.startswith("gallery/"):
        for folder in ("lowrank_jax", "benchmarks"):
            for path in sorted((ROOT / folder).rglob("*.py")):
                app.env.note_dependency(str(path))


def picture(app, doctree, name):
    """Puts the last picture of each notebook, with its title, on the page `gallery`."""
    if name != "gallery":
        return
    pictures = nodes.container(classes=["pictures"])
    for page in sorted(page for page in app.env.found_docs if page.startswith("gallery/")):
        of_page = [uri for uri, (pages, _) in app.env.images.items() if page in pages]
        link = nodes.reference(internal=True, refuri=app.builder.get_relative_uri(name, page))
        title = app.env.titles[page].astext()
        if of_page:
            image = of_page[-1]
            link += nodes.image(uri=image, candidates={"*": image}, alt=f"picture of: {title}")
        link += nodes.inline(text=title)
        pictures += nodes.paragraph("", "", link)
    doctree.children[0] += pictures


def setup(app):
    """Registers all three."""
    app.connect("builder-inited", convert)
    app.connect("source-read", depend)
    app.connect("doctree-resolved", picture)
    return {"parallel_read_safe": True}
