"""A Sphinx extension: formulas become MathML when the pages are built, which browsers draw without a script."""

from __future__ import annotations

import html
import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

TAG = re.compile(r"\\tag\{([^}]*)\}")


def mathml(latex: str, display: str) -> str:
    """A formula; what cannot be converted ends the build."""
    found = convert(latex.strip(), display=display)
    if "\\" in re.sub(r"<[^>]*>", "", found):
        raise ValueError(f"math: a command was not understood in {latex!r}, received {found!r}.")
    return found


def _inline(writer: Any, node: nodes.Element) -> None:
    writer.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.Element) -> None:
    latex = node.astext()
    tag = TAG.search(latex)
    number = f'<span class="tag">({html.escape(tag[1])})</span>' if tag else ""
    writer.body.append(f'<div class="formula">{mathml(TAG.sub("", latex), "block")}{number}</div>\n')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.add_css_file("formula.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
