"""Tables of the benchmarks' results: `{results} fits` is `benchmarks.tables.fits()`.

In running text, {results}`device_checks` is the number of checks that hold on the device.
"""

from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective, SphinxRole

from benchmarks import tables


class Results(SphinxDirective):
    """One table, made from the results when the page is."""

    required_arguments = 1

    def run(self):
        """The table's nodes; the page is made anew when a result changes."""
        for path in sorted(tables.RESULTS.rglob("*.json")):
            self.env.note_dependency(str(path))
        self.env.note_dependency(str(Path(tables.__file__)))
        found = self.parse_text_to_nodes(tables.TABLES[self.arguments[0]]())
        if "beside it" in found[0].astext():  # see site.css
            found[0]["classes"] += ["rows", "beside"]
        return found


class Number(SphinxRole):
    """`all 66` or `65 of 66`."""

    def run(self):
        """The words."""
        held, of = getattr(tables, self.text)()
        return [nodes.Text(f"all {of}" if held == of else f"{held} of {of}")], []


def setup(app):
    """Registers both."""
    app.add_directive("results", Results)
    app.add_role("results", Number())
    return {"parallel_read_safe": True}
