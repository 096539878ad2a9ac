"""The documentation site: `make docs`, then open docs/_build/index.html."""

import re
import sys
from pathlib import Path
from typing import Any

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from commandline.settings_table import tables  # noqa: E402

project = "vae_lab"
author = copyright = "the vae_lab authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "notebooks"]
# Only the MyST pages' code blocks are typed; what a program prints is not to be copied.
copybutton_exclude = ".linenos, .gp, .go"

default_role = "code"  # of the docstrings
html_theme = "furo"
html_title = "vae_lab"
html_show_sphinx = False
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False
python_maximum_signature_line_length = 80
suppress_warnings = ["misc.highlighting_failure", "ref.python"]


def shapes_as_code(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """A shape such as [*B, L], whose star would begin an emphasis."""
    for place, line in enumerate(lines):
        lines[place] = re.sub(r"(?<!`)(\[[^][`]*\*[^][`]*\])", r"``\1``", line)


def write_settings(app: Sphinx) -> None:
    """The list of all settings is made from the configs themselves."""
    path = Path(app.srcdir) / "settings.md"
    text = f"# All settings\n\n{tables()}"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def formula(self: nodes.NodeVisitor, node: nodes.Element) -> None:
    """MathML, which browsers set themselves: no script, and a mistake ends the build."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    html = latex2mathml.converter.convert(node.astext(), display=display)
    self.body.append(f'<div class="math">{html}</div>' if display == "block" else html)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", shapes_as_code, priority=400)  # before napoleon
    app.connect("builder-inited", write_settings)
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
