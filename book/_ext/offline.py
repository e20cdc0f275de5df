"""Make the built book readable with no network: formulas become MathML at build time, and scripts that a page would fetch
from elsewhere are left out."""

from docutils import nodes
from latex2mathml.converter import convert


def inline_math(translator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block_math(translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math-block">{convert(node.astext(), display="block")}</div>')
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
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
