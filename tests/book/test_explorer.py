"""The explorer of the roofline's chapter: views for everyone, and widgets for who can use them."""

import re
import sys

import pytest

from lab import notebook
from lab.backends import registry
from lab.benchmark import records
from lab.benchmark.tables import Table
from lab.notebook import Folded

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def record():
    return records.published("rmsnorm")


@pytest.fixture
def shown(monkeypatch) -> list:
    """What a chapter would show."""
    things: list = []
    monkeypatch.setattr(notebook, "show", lambda *shown: things.extend(shown))
    monkeypatch.setattr("IPython.display.display", things.append)
    return things


def test_what_is_folded_is_html_without_a_script():
    text = Folded("a < b?", ("No, a > b.", Table(["a", "b"], [["2", "1"]])), group="g", is_open=True)._repr_html_()
    assert text.startswith('<details name="g" open><summary>a &lt; b?</summary>\n<p>No, a &gt; b.</p>\n<div')
    assert text.endswith("</table></div>\n</details>\n") and "script" not in text
    assert Folded("a?", ("b",))._repr_html_().startswith("<details><summary>a?")
    assert str(Folded("a?", ("b", Table(["c"], [["d"]])))) == "a?\nb\nc\nd"


def test_with_nobody_there_every_operator_is_shown_and_no_widget(record, shown, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    notebook.explore(record)
    assert [folded.summary for folded in shown] == list(registry.operators())
    assert [folded.is_open for folded in shown] == [True] + [False] * (len(shown) - 1)
    assert {folded.group for folded in shown} == {"explorer"}
    for folded in shown:
        shapes = registry.operator(folded.summary).shapes
        assert len(folded.things[1].rows) == 2 * len(shapes)


@pytest.mark.parametrize("where", ["jupyter", "colab"])
def test_where_somebody_is_the_chooser_comes_first(record, shown, monkeypatch, where):
    if where == "jupyter":
        monkeypatch.setenv("JPY_SESSION_NAME", "roofline.ipynb")
    else:
        monkeypatch.setitem(sys.modules, "google.colab", sys)
    notebook.explore(record)
    assert type(shown[0]).__name__ == "VBox" and len(shown) == 1 + len(registry.operators())


def test_the_chooser_redraws_with_each_choice(record):
    operator, shape, dtype, direction, place = notebook.explorer(record).children
    assert list(operator.options) == list(registry.operators())

    def bound() -> tuple[str, str, str]:
        """Operator, what is computed, and the bound, as the table says it."""
        row = r">([a-z_]+)</th><th[^>]*>FLOPs a byte.*<th scope=\"row\">(.+?)</th>.*<td>(memory|compute)"
        return re.search(row, place.value, re.S).groups()

    assert bound() == ("add_rmsnorm", "forward 16384x4096", "memory")
    operator.value = "linear"
    assert bound() == ("linear", "forward 8192x4096x4096", "compute")
    shape.value = (16, 14336, 4096)
    assert bound() == ("linear", "forward 16x14336x4096", "memory")
    direction.value = "backward"
    assert bound() == ("linear", "backward 16x14336x4096", "memory")
    before = place.value
    dtype.value = "float32"
    assert place.value != before
    operator.value = "rope"
    assert bound() == ("rope", "backward 4x4096x32x8x128", "memory")
