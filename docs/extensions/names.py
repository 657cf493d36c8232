"""Code that begins with a public name links to its description, and every name has one.

`fit(pairs, base=B)` in a page, a notebook or a docstring becomes a link. A name that two pages
describe is a warning of Sphinx's own; one that no page describes is a warning of this module.
"""

import inspect
import re

from docutils import nodes
from sphinx import addnodes
from sphinx.util import logging

import lowrank_jax

SHORT = 12  # letters of code that no line break divides, see site.css
MODULES = [name for name in lowrank_jax.__all__ if inspect.ismodule(getattr(lowrank_jax, name))]
ELSEWHERE = (nodes.title, nodes.reference, addnodes.pending_xref, addnodes.desc_signature)
START = re.compile(r"(?:lrj\.|lowrank_jax\.)?([A-Za-z_]+(?:\.[A-Za-z_]+)?)")


def public():
    """Names as written in a page, without the library's own."""
    names = [name for name in lowrank_jax.__all__ if name not in MODULES]
    for module in MODULES:
        inside = vars(getattr(lowrank_jax, module))
        names += [
            f"{module}.{name}"
            for name, of in inside.items()
            if not name.startswith("_")
            and getattr(of, "__module__", None) == f"lowrank_jax.{module}"
            and callable(of)
        ]
    return names


NAMES = frozenset(public())


def ancestors(node):
    """The nodes above one."""
    while node.parent is not None:
        node = node.parent
        yield node


def link(app, doctree):
    """Makes links of the code in running text."""
    for literal in list(doctree.findall(nodes.literal)):
        if len(literal.astext()) <= SHORT:
            literal["classes"].append("short")
        if any(isinstance(node, ELSEWHERE) for node in ancestors(literal)):
            continue
        found = START.match(literal.astext())
        if not found:
            continue
        name = found[1] if found[1] in NAMES else found[1].partition(".")[0]
        if name not in NAMES:
            continue
        link = addnodes.pending_xref(
            "",
            refdomain="py",
            reftype="obj",
            reftarget=f"lowrank_jax.{name}",
            refexplicit=True,
            refwarn=True,
        )
        literal.replace_self(link)
        link += literal


def complete(app, env):
    """Warns of a public name without a description."""
    described = env.get_domain("py").objects
    for name in sorted(NAMES):
        if f"lowrank_jax.{name}" not in described:
            logging.getLogger(__name__).warning("no page describes lowrank_jax.%s", name)


def setup(app):
    """Registers both."""
    app.connect("doctree-read", link)
    app.connect("env-check-consistency", complete)
    return {"parallel_read_safe": True}
