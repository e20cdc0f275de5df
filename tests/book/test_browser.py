"""The built book in Chromium, at a desktop's and at a phone's width, light and dark, with no other host in reach.

What is looked for on a page is a function that returns what it finds wrong, in words; each of them is shown a page
with a fault planted in it.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import pytest
from playwright.sync_api import Browser, Page, TimeoutError, sync_playwright

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).parents[2]
WIDTHS = {"wide": 1680, "desktop": 1280, "phone": 390}
HEIGHT = 800
CHAPTER = "book/notebooks/rmsnorm.html"
FLAGS = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
READABLE = 4.5  # contrast of text with what is behind it: WCAG 2.2, 1.4.3

# For each chapter a phrase of its own, by which a reader would look for it.
PHRASES = {
    "add_an_operator": "three new files",
    "inference": "two questions to one model",
    "execution": "compared to the letter",
    "gpu": "the plain tile meets two banks",
    "linear": "tensor cores that read shared memory",
    "llm": "why is the norm first",
    "profiling": "two clocks on one step",
    "results": "every published record",
    "rmsnorm": "bulk copy engine",
    "roofline": "both axes logarithmic",
    "softmax": "online softmax",
    "timing": "same work, at another clock",
    "waterfall": "five wholes with the same kernels",
    "training": "why there are two sets of weights",
}
CHAPTERS = sorted(path.stem for path in (ROOT / "book/chapters").glob("*.py"))


# The browser ----------------------------------------------------------------------------------------------------------


def chromium() -> str:
    """Its path. Where it is missing the tests are skipped, and under CI they fail."""
    names = ("chromium", "chromium-browser", "google-chrome")
    if found := next(filter(None, map(shutil.which, names)), None):
        return found
    missing = "there is no Chromium; on Debian: apt-get install chromium"
    return pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium(), args=["--disable-gpu", *FLAGS])
        yield launched
        launched.close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def address(html) -> Iterator[str]:
    """Of a server of the book's pages, with a slash at its end."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=html)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@dataclass
class Visit:
    """A page of the book, open in a window. address: where the folder `html` is served. complaints: what the console,
    the scripts and the network had to say."""

    page: Page
    address: str
    html: Path
    complaints: list[str] = field(default_factory=list)

    def listen(self) -> None:
        self.page.on("console", lambda message: message.type in ("error", "warning") and self.note(message.text))
        self.page.on("pageerror", lambda error: self.note(f"uncaught: {error}"))
        self.page.on("response", lambda answer: answer.status >= 400 and self.note(f"{answer.status}: {answer.url}"))
        self.page.context.route(re.compile(f"^(?!{re.escape(self.address)})"), self.refuse)

    def note(self, complaint: str) -> None:
        self.complaints.append(complaint)

    def refuse(self, route) -> None:
        self.note(f"wants {route.request.url}")
        route.abort()

    def open(self, name: str, text: str = "") -> None:
        """The page (or `text` in its place), with everything open in it that is folded."""
        url = self.address + name
        if text:
            self.page.route(url, lambda route: route.fulfill(body=text, content_type="text/html"))
        self.complaints.clear()
        self.page.goto(url)
        self.page.evaluate("""document.querySelectorAll("article details").forEach(folded => {
            folded.removeAttribute("name")  // of those that share one, opening the next closes this
            folded.open = true
        })""")


@pytest.fixture
def visit(browser, address, html, request) -> Iterator[Visit]:
    """A window; parametrized indirectly with its width and colour scheme."""
    width, scheme = getattr(request, "param", ("desktop", "light"))
    context = browser.new_context(viewport={"width": WIDTHS[width], "height": HEIGHT}, color_scheme=scheme)
    context.set_default_timeout(10_000)
    visit = Visit(context.new_page(), address, html)
    visit.listen()
    yield visit
    context.close()


# What may be wrong with a page ----------------------------------------------------------------------------------------


def complaints(visit: Visit) -> list[str]:
    """Errors and warnings on the console, uncaught exceptions, what could not be loaded, and other hosts."""
    return visit.complaints


def overflow(visit: Visit) -> list[str]:
    """What makes the page, rather than a part of it, scroll sideways."""
    return visit.page.evaluate("""() => {
        const room = document.documentElement.clientWidth
        if (document.documentElement.scrollWidth <= room) return []
        const scrolls = e => e && (getComputedStyle(e).overflowX !== "visible" || scrolls(e.parentElement))
        const wide = [...document.querySelectorAll("main *")].filter(e => e.getBoundingClientRect().right > room)
        const found = wide.filter(e => !scrolls(e.parentElement)).map(e => e.outerHTML.slice(0, 80))
        return [`${document.documentElement.scrollWidth} in a window of ${room}`, ...found]
    }""")


def figures(visit: Visit) -> list[str]:
    """Images and figures without a size or an alternative text."""
    return visit.page.evaluate("""() => {
        const found = []
        for (const e of document.querySelectorAll("article :is(img, .cell_output svg, svg[role=img])")) {
            if (e.closest("button")) continue
            const {width, height} = e.getBoundingClientRect()
            const text = e.getAttribute(e.localName === "img" ? "alt" : "aria-label") || ""
            if (width < 50 || height < 20) found.push(`${width} x ${height}: ${e.outerHTML.slice(0, 80)}`)
            if (e.localName === "img" && !e.naturalWidth) found.push(`not loaded: ${e.src}`)
            if (text.length < 20) found.push(`alternative text is "${text}": ${e.outerHTML.slice(0, 80)}`)
        }
        return found
    }""")


def formulas(visit: Visit) -> list[str]:
    """Formulas that are not laid out as MathML, or left as TeX."""
    return visit.page.evaluate(r"""() => {
        const found = []
        for (const e of document.querySelectorAll("article math")) {
            const {width, height} = e.getBoundingClientRect()
            if (!width || !height) found.push(`${width} x ${height}: ${e.outerHTML.slice(0, 80)}`)
            for (const part of e.querySelectorAll("mfrac")) {
                const [above, below] = [...part.children].map(child => child.getBoundingClientRect())
                if (above.bottom > below.top + 1) found.push(`not a fraction: ${part.textContent}`)
            }
        }
        const prose = document.querySelector("article").cloneNode(true)
        prose.querySelectorAll("pre, code, svg, math").forEach(e => e.remove())
        return found.concat(prose.textContent.match(/\$[^$]+\$|\\[a-z]+/g) || [])
    }""")


def contrast(visit: Visit) -> list[str]:
    """Text of the article that is hard to tell from what is behind it."""
    return visit.page.evaluate(
        """readable => {
        const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true})
        const known = new Map()
        const rgba = colour => {
            if (!known.has(colour)) {
                context.clearRect(0, 0, 1, 1)
                context.fillStyle = colour
                context.fillRect(0, 0, 1, 1)
                known.set(colour, [...context.getImageData(0, 0, 1, 1).data].map(part => part / 255))
            }
            return known.get(colour)
        }
        const over = ([r, g, b, a], behind) => [r, g, b].map((part, i) => a * part + (1 - a) * behind[i])
        const behind = e => {
            const under = e.parentElement ? behind(e.parentElement) : [1, 1, 1]
            return over(rgba(getComputedStyle(e).backgroundColor), under)
        }
        const linear = part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4
        const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)
        const found = new Map()
        const texts = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT)
        while (texts.nextNode()) {
            const e = texts.currentNode.parentElement, text = texts.currentNode.data.trim()
            if (!text || !e.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue
            if (e.closest("script, style, title")) continue
            const style = getComputedStyle(e), ground = behind(e)
            const ink = over(rgba(e.closest("svg") ? style.fill : style.color), ground)
            const [dark, light] = [luminance(ink), luminance(ground)].sort((a, b) => a - b)
            const ratio = (light + 0.05) / (dark + 0.05)
            if (ratio < readable) found.set(`${ratio.toFixed(2)} in ${e.localName}.${e.classList}`, text.slice(0, 40))
        }
        return [...found].map(([where, text]) => `contrast ${where}: ${text}`)
    }""",
        READABLE,
    )


def colab(visit: Visit) -> list[str]:
    """Colab buttons of notebooks that are not in the repository; on a page made of a notebook, that there is none."""
    links = visit.page.eval_on_selector_all("a[href*='colab.research']", "found => found.map(link => link.href)")
    name = visit.page.url.removeprefix(visit.address).partition("#")[0].removesuffix(".html")
    found = [] if links or not (ROOT / f"{name}.ipynb").exists() else ["no Colab button"]
    return found + [link for link in links if not (ROOT / link.partition("/blob/main/")[2]).is_file()]


@cache
def anchors(page: Path) -> set[str]:
    return {"", *re.findall(r'\bid="([^"]+)"', page.read_text())}


def links(visit: Visit) -> list[str]:
    """Links within the book that lead nowhere. (Those to other hosts are not followed.)"""
    found = []
    for link in visit.page.eval_on_selector_all("a[href]", "found => [...new Set(found.map(link => link.href))]"):
        name, _, anchor = link.removeprefix(visit.address).partition("#")
        target = visit.html / unquote(name)
        if link.startswith(visit.address) and not (target.is_file() and unquote(anchor) in anchors(target)):
            found.append(link.removeprefix(visit.address))
    return found


def focus(visit: Visit) -> list[str]:
    """Tab, Enter on the link that skips the navigation, Tab on to the article's first link: each is seen."""
    page, found = visit.page, []
    focused = """() => {
        const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect()
        const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0
        const inside = box.width > 0 && box.top >= 0 && box.bottom <= innerHeight && box.left >= 0
        return {what: e.outerHTML.slice(0, 80), seen: inside && (outlined || style.boxShadow !== "none"),
                content: e.closest("article") !== null}
    }"""
    page.keyboard.press("Tab")
    page.wait_for_timeout(300)  # it slides in
    now = page.evaluate(focused)
    if "Skip to main content" not in now["what"]:
        return [f"the first Tab does not lead to the link that skips the navigation: {now['what']}"]
    page.keyboard.press("Enter")
    for _ in range(12):  # the buttons above the article come first
        if not now["seen"]:
            found.append(f"no visible focus: {now['what']}")
        if now["content"]:
            return found
        page.keyboard.press("Tab")
        now = page.evaluate(focused)
    return [*found, f"not in the article yet: {now['what']}"]


def cut(visit: Visit) -> list[str]:
    """Kernels, and whatever else a cell prints, of which one has to scroll sideways to see the end."""
    return visit.page.eval_on_selector_all(
        "article .cell_output pre",
        "all => all.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText.slice(0, 80))",
    )


def first_screen(visit: Visit) -> list[str]:
    """What of the landing page one has to scroll for: its title, the ladder, what one can do afterwards, and where to
    start with a GPU and without."""
    wanted = {
        "title": "article h1",
        "ladder": "article svg[role=img]",
        "what you can do": "article ul li >> nth=2",
        "without a GPU": "article strong:text-is('Without a GPU')",
        "with one": "article strong:text-is('With one')",
    }
    found = []
    for what, selector in wanted.items():
        box = visit.page.locator(selector).first.bounding_box()
        if box is None or box["y"] < 0 or box["y"] + box["height"] > HEIGHT:
            found.append(f"{what} is at {box}")
    return found


def search(visit: Visit, phrase: str, chapter: str) -> list[str]:
    """Type the phrase into the search page; the chapter is among the results, and holds the phrase."""
    page = visit.page
    visit.open("search.html")
    page.fill("input[name=q]:visible", phrase)
    page.keyboard.press("Enter")
    try:
        page.click(f"#search-results a[href*='{chapter}']")
    except TimeoutError:
        return [f"{phrase!r} does not find {chapter}: {page.inner_text('#search-results')[:200]}"]
    page.wait_for_load_state()
    text = re.sub(r"\s+", " ", page.inner_text("article")).lower()
    return [] if phrase in text else [f"{chapter} was found and has no {phrase!r}"]


CHECKS = (complaints, overflow, figures, formulas, contrast, colab, links)


def wrong(visit: Visit) -> list[str]:
    return [f"{check.__name__}: {text}" for check in CHECKS for text in check(visit)]


# The book -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("visit", list(product(("desktop", "phone"), ("light", "dark"))), indirect=True, ids="-".join)
def test_every_page(visit, html):
    names = sorted(path.relative_to(html).as_posix() for path in html.rglob("*.html") if "<article" in path.read_text())
    assert CHAPTER in names
    found = []
    for name in names:
        visit.open(name)
        found += [f"{name}: {fault}" for fault in wrong(visit)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("visit", [("wide", "light")], indirect=True)
def test_a_wide_window_shows_kernels_from_end_to_end(visit):
    found = []
    for chapter in CHAPTERS:
        visit.open(f"book/notebooks/{chapter}.html")
        found += [f"{chapter}: {kernel}" for kernel in cut(visit)]
    assert not found, "\n".join(found)


def test_the_address_itself_leads_to_the_introduction(visit):
    visit.page.goto(visit.address)
    visit.page.wait_for_url(visit.address + "book/intro.html")


def test_the_landing_page_says_it_in_one_screen(visit):
    visit.open("book/intro.html")
    assert not first_screen(visit)


def test_a_landing_page_that_goes_on_and_on_is_found(visit):
    text = (visit.html / "book/intro.html").read_text()
    visit.open("book/intro.html", text.replace("</h1>", "</h1>" + "<p>More.</p>" * 5))
    found = first_screen(visit)
    assert [fault.partition(" is at")[0] for fault in found] == ["what you can do", "without a GPU", "with one"]


def test_the_keyboard_reaches_the_content(visit):
    visit.open("book/intro.html")
    assert not focus(visit)


def test_the_keyboard_leafs_through_the_explorer(visit):
    page = visit.page
    page.goto(f"{visit.address}book/notebooks/roofline.html")
    for index in (3, 4):
        page.focus(f"details[name=explorer] >> nth={index} >> summary")
        page.keyboard.press("Enter")
        is_open = page.eval_on_selector_all("details[name=explorer]", "all => all.map(each => each.open)")
        assert [number for number, each in enumerate(is_open) if each] == [index]
        assert page.is_visible(f"details[name=explorer] >> nth={index} >> svg")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_search_finds_each_chapter(visit, chapter):
    assert not search(visit, PHRASES[chapter], chapter)
    assert not complaints(visit) and not overflow(visit)


# Faults that must be found --------------------------------------------------------------------------------------------

FAULTS = [
    (complaints, "<script>console.error('planted')</script>", "planted"),
    (complaints, "<script>throw new Error('planted')</script>", "uncaught: planted"),
    (complaints, "<script src='planted.js'></script>", "404: "),
    (complaints, "<script src='https://example.org/planted.js'></script>", "wants https://example.org/planted.js"),
    (overflow, "<div id='planted' style='width: 3000px'>wide</div>", "planted"),
    (figures, "<img src='../../_static/file.png' style='width: 90px; height: 90px'>", 'alternative text is ""'),
    (figures, "<img src='planted.png' alt='What this picture shows' width=90 height=90>", "not loaded"),
    (figures, "<svg role='img' viewBox='0 0 90 90' style='width: 90px'></svg>", 'alternative text is ""'),
    (figures, "<svg role='img' aria-label='What this picture shows' style='width: 0'></svg>", "0 x "),
    (formulas, "<math><mi></mi></math>", "0 x 0"),
    (formulas, "<math style='display: none'><mi>x</mi></math>", "0 x 0"),
    (formulas, "<math><mfrac style='display: inline flex'><mi>a</mi><mi>b</mi></mfrac></math>", "not a fraction: ab"),
    (formulas, "<p>so $x$ is</p>", "$x$"),
    (formulas, "<p>so \\frac12 is</p>", "\\frac"),
    (contrast, "<p style='background: #fff; color: #888'>planted</p>", "contrast 3.54 in p."),
    (contrast, "<div style='background: #888'><p style='color: rgb(0 0 0 / 50%)'>planted</p></div>", "in p."),
    (contrast, "<svg><text y='20' style='fill: transparent'>planted</text></svg>", "contrast 1.00 in text."),
    (colab, "<a href='https://colab.research.google.com/github/a/b/blob/main/book/no.ipynb'>x</a>", "no.ipynb"),
    (colab, "<script>document.querySelectorAll('[href*=colab]').forEach(e => e.remove())</script>", "no Colab button"),
    (links, "<a href='planted.html'>x</a>", "book/notebooks/planted.html"),
    (links, "<a href='#planted'>x</a>", "rmsnorm.html#planted"),
    (cut, f"<div class=cell_output><pre style='overflow: auto'>def planted({'x' * 300})</pre></div>", "def planted("),
    (focus, "<style>* { outline: none !important; box-shadow: none !important }</style>", "no visible focus"),
    (focus, "<script>document.querySelector('article').inert = true</script>", "not in the article yet"),
]  # fmt: skip


PLAIN = """<!doctype html><html lang="en"><title>A page</title>
<a href="#main-content">Skip to main content</a><main id="main-content">
<a href="https://colab.research.google.com/github/a/b/blob/main/book/notebooks/rmsnorm.ipynb">Colab</a>
<article><p>Text, <a href="#main-content">a link</a> and <math><mfrac><mi>a</mi><mi>b</mi></mfrac></math>.</p>
<svg role="img" aria-label="What this figure shows" viewBox="0 0 90 90"><text y="20">5</text></svg>
{}</article></main>"""


def test_a_plain_page_has_no_fault(visit):
    visit.open(CHAPTER, PLAIN.format(""))
    assert not wrong(visit) and not focus(visit)


@pytest.mark.parametrize("check, planted, told", FAULTS, ids=lambda value: getattr(value, "__name__", None))
def test_a_planted_fault_is_found(visit: Visit, check: Callable, planted: str, told: str):
    visit.open(CHAPTER, PLAIN.format(planted))
    found = check(visit)
    assert any(told in fault for fault in found), found


def test_a_phrase_that_is_nowhere_is_not_found(visit):
    visit.page.set_default_timeout(2000)  # to wait in vain for a result; a busy machine may take longer to load
    visit.page.set_default_navigation_timeout(10_000)
    assert "does not find rmsnorm" in search(visit, "gradient checkpointing", "rmsnorm")[0]


@pytest.mark.parametrize("ci, outcome", [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_without_chromium_ci_fails_and_others_skip(monkeypatch, ci, outcome):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="apt-get install chromium"):
        chromium()
