"""The built book: no warning, and nothing that its pages fetch from another host."""

import re
import shutil
from pathlib import Path

import pytest

from lab.benchmark import records

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted(path.stem for path in (ROOT / "book/chapters").glob("*.py"))


# What a browser fetches by itself when it opens a page; a link waits for a click.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|embed)\b[^>]*\bsrc=["']?((?:https?:)?//[^"'>\s]+)
      | <link\b(?![^>]*\brel=["']?(?:canonical|index|search|next|prev|author|license))[^>]*
            \bhref=["']?((?:https?:)?//[^"'>\s]+)
      | (?:url\(|@import\s)\s*["']?((?:https?:)?//[^"')\s]+)
    """,
    re.VERBOSE,
)


def fetched(text: str) -> list[str]:
    """Addresses on other hosts that a page or a style sheet makes the browser fetch."""
    return [next(filter(None, groups)) for groups in FETCHED.findall(text)]


def pages(html: Path) -> dict[str, str]:
    return {path.relative_to(html).as_posix(): path.read_text() for path in html.rglob("*.html")}


def test_a_page_for_every_page_of_the_table_of_contents(html):
    chapters = {f"book/notebooks/{chapter}.html" for chapter in CHAPTERS}
    assert {"index.html", "book/intro.html", "book/references.html"} | chapters <= set(pages(html))


def test_nothing_is_fetched_from_other_hosts(html):
    found = {name: fetched(text) for name, text in pages(html).items()}
    found |= {path.name: fetched(path.read_text()) for path in (html / "_static").rglob("*.css")}
    assert not {name: addresses for name, addresses in found.items() if addresses}


@pytest.mark.parametrize(
    "planted",
    [
        '<script src="https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-mml-chtml.js"></script>',
        '<script defer="defer" src="//unpkg.com/thebe"></script>',
        '<link rel="stylesheet" href="https://fonts.googleapis.com/css?family=Lato">',
        "<style>@import url('https://example.org/a.css')</style>",
        "a { background: url(https://example.org/a.png) }",
    ],
)
def test_a_fetch_from_another_host_is_found(planted):
    assert fetched(f"<html>\n{planted}\n</html>")


def test_links_are_no_fetches():
    assert not fetched(
        '<a href="https://arxiv.org">x</a><link rel="canonical" href="https://x.org"><script src="a.js">'
    )


def test_formulas_are_rendered_without_a_script(html):
    chapter = pages(html)["book/notebooks/rmsnorm.html"]
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in chapter
    assert not re.search(r"<script[^>]*src=[^>]*(mathjax|thebe)|THEBE_JS_URL", chapter, re.IGNORECASE)
    prose = re.sub(r"<(pre|code|svg|script)\b.*?</\1>", "", chapter, flags=re.DOTALL)
    assert "$" not in prose and "\\frac" not in prose


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapters_open_in_colab(html, chapter):
    address = rf"https://colab\.research\.google\.com/github/[^/]+/[^/]+/blob/main/book/notebooks/{chapter}\.ipynb"
    assert re.search(address, pages(html)[f"book/notebooks/{chapter}.html"])


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_figures_have_alternative_text(html, chapter):
    figures = re.findall(r"<svg\b[^>]*role=\"img\"[^>]*>", pages(html)[f"book/notebooks/{chapter}.html"])
    assert all(re.search(r'aria-label="[^"]{20,}"', figure) for figure in figures)
    assert figures or chapter in ("add_an_operator", "execution")  # which have none


def test_the_introduction_shows_a_ladder_out_of_its_record(html):
    record = records.published("rmsnorm")
    naive = record.select("rmsnorm", "both", (65536, 4096), "triton:naive")[0]
    introduction = pages(html)["book/intro.html"]
    assert (
        f"triton:naive {naive.timing.median_us:.0f}" in re.search(r'role="img" aria-label="([^"]*)"', introduction)[1]
    )
    assert record.environment.gpu in re.sub("<[^>]*>", "", introduction)


@pytest.mark.parametrize(
    "planted",
    [
        "[to nowhere](nowhere.md)",
        "[to no part](#no-such-part)",
        "{cite}`nobody1999`",
        "$$\\frac{1$$",  # and so on: what latex2mathml does not understand
        "$\\nosuchcommand x$",
        "$\\left( x$",
        "$$\\begin{nosuch} a & b \\end{nosuch}$$",
        "```{times} rmsnorm both 1x1\ntorch eager\n```",  # the record has none
        "```{times} nothing both 1x1\ntorch eager\n```",
    ],
)
def test_a_broken_page_fails_the_build(build_book, tmp_path, planted):
    for name in ("_config.yml", "book/_ext", "book/_static", "book/references.bib"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: page\n")
    (tmp_path / "page.md").write_text(f"# A page\n\n{planted}\n")
    built = build_book(tmp_path, tmp_path)
    assert built.returncode != 0 and "page.md:3: WARNING" in built.stderr
