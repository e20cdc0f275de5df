"""Make the built book readable with no network: formulas become MathML at build time, and scripts that a page would
fetch from elsewhere are left out."""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

logger = logging.getLogger(__name__)


def mathml(node: nodes.Element, display: str) -> str:
    """The formula of a math node. Warns, so that the build fails, where latex2mathml does not understand it: for most
    of that it says nothing and leaves what it did not understand in its result."""
    latex = node.astext().replace("{aligned}", "{align*}")  # the same inside a formula; it knows the second one only
    braces = re.sub(r"\\[{}]", "", latex)
    try:
        result = convert(latex, display=display)
    except Exception as error:  # its exceptions share no base class
        result, reason = "", type(error).__name__
    else:
        left = re.search(r"\\|[{}]|&(?!#?\w+;)", result)
        reason = "unbalanced braces" if braces.count("{") != braces.count("}") else left and f"{left.group()} is left"
    if reason:
        logger.warning("formula %r cannot be converted to MathML: %s", latex, reason, location=node)
    return result


def inline_math(translator, node: nodes.math) -> None:
    translator.body.append(mathml(node, "inline"))
    raise nodes.SkipNode


def block_math(translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math-block">{mathml(node, "block")}</div>')
    raise nodes.SkipNode


def local_scripts_only(app, pagename, templatename, context, doctree) -> None:
    """Drop scripts from other hosts, and those of sphinx-thebe, which this book does not use and which declare the same
    constant twice."""

    def wanted(script) -> bool:
        text = f"{getattr(script, 'filename', '') or ''} {getattr(script, 'attributes', {}).get('body', '') or ''}"
        return not any(word in text for word in ("https://", "thebe", "THEBE"))

    context["script_files"] = [script for script in context.get("script_files", []) if wanted(script)]


def setup(app):
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("html-page-context", local_scripts_only, priority=900)
    return {"version": "2", "parallel_read_safe": True, "parallel_write_safe": True}
