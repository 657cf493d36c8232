"""Settings of the site, which `make docs` builds."""

import re
import sys
from importlib.resources import files
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))
sys.path.insert(0, str(Path(__file__).parent.parent))  # for benchmarks/

import lowrank_jax

project = "lowrank_jax"
author = "the lowrank_jax authors"
copyright = author
release = lowrank_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "gallery",
    "names",
    "results",
]
exclude_patterns = ["extensions"]

# Pages. A link to a page or a heading that does not exist is a warning, and a warning is an error.
myst_enable_extensions = ["amsmath", "attrs_block", "attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
nitpick_ignore = [("py:class", "jax.Array")]
nitpick_ignore_regex = [("py:exc", ".*Error")]

# Notebooks run when the site is built.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "remove-warn"

# Docstrings. In them a single backtick is code, as in Markdown.
default_role = "literal"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False

# Formulas. MathJax is part of the site: one file from a package, no other host is asked.
MATHJAX = files("mathjax") / "static" / "mathjax" / "es5" / "tex-svg-full.js"
mathjax_path = MATHJAX.name

html_theme = "furo"
html_title = "lowrank_jax"
html_static_path = ["static", str(MATHJAX)]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0b5c8a",
        "color-brand-content": "#0b5c8a",
        "font-stack--monospace": "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7cc4ee",
        "color-brand-content": "#7cc4ee",
    },
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


MARKUP = re.compile(r"(?P<code>`[^`]+`)(?=(?P<ending>\w)?)|\|")


def _escape(found):
    """A bar is a bar, and code may go on as a word, as in `Array`s."""
    if not found["code"]:
        return r"\|"
    return found["code"] + ("\\ " if found["ending"] else "")


def as_markdown(app, what, name, obj, options, lines):
    """Norms, `|x|`, outside of code are no references, and indented formulas are no quotations."""
    text, above, formula = [], "", False
    for line in lines:
        if line:
            opens = not text[-1] and not above.startswith(" ") if text else False
            known, formula = formula, line.startswith("    ") and (formula or opens)
            if formula and not known:
                text += [".. code-block:: text", ""]
            above = line
        text.append(line if formula else MARKUP.sub(_escape, line))
    lines[:] = text


def setup(app):
    """Docstrings are Markdown in spirit."""
    app.connect("autodoc-process-docstring", as_markdown, priority=100)
