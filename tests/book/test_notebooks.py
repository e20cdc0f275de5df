"""The published notebooks: in step with their chapters, executed, and compared by nbval to the digit."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from book import build_notebooks

pytestmark = pytest.mark.cpu

CHAPTER = """\
# %% [markdown]
# # A chapter

# %%
from IPython.display import HTML, SVG, display
print("text 41")

# %%
display(HTML("<td>html 42</td>"))

# %%
display(SVG('<svg xmlns="http://www.w3.org/2000/svg"><text>svg 43</text></svg>'))

# %% tags=["nbval-ignore-output"]
print("live 44")
"""


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A folder with one chapter, and what build_notebooks makes of it."""
    folder = tmp_path_factory.mktemp("book")
    (folder / "chapters").mkdir()
    (folder / "notebooks").mkdir()
    (folder / "chapters/tiny.py").write_text(CHAPTER)
    seconds = build_notebooks.build(folder / "chapters/tiny.py", folder / "notebooks/tiny.ipynb")
    build_notebooks.note_execution("tiny", seconds, folder / "execution.json")
    return folder


def read(book: Path) -> nbformat.NotebookNode:
    return nbformat.read(book / "notebooks/tiny.ipynb", as_version=4)


def problems(book: Path, tmp_path: Path, notebook: nbformat.NotebookNode | None = None) -> list[str]:
    """What build_notebooks finds wrong with `notebook` in place of the published one; None is no notebook."""
    if notebook is not None:
        nbformat.write(notebook, tmp_path / "tiny.ipynb")
    return build_notebooks.problems(book / "chapters", tmp_path, book / "execution.json")


def test_the_published_notebooks():
    assert not build_notebooks.problems()


def test_a_good_notebook_is_let_through(book, tmp_path):
    assert not problems(book, tmp_path, read(book))


def test_a_changed_chapter_is_noticed(book, tmp_path):
    notebook = read(book)
    notebook.cells[1].source += "\n"
    assert problems(book, tmp_path, notebook) == ["tiny: the notebook is out of step with its chapter"]


def test_a_changed_tag_is_noticed(book, tmp_path):
    notebook = read(book)
    notebook.cells[2].metadata["tags"] = ["nbval-ignore-output"]
    assert problems(book, tmp_path, notebook) == ["tiny: the notebook is out of step with its chapter"]


def test_a_missing_notebook_or_chapter_is_noticed(book, tmp_path):
    assert problems(book, tmp_path) == ["tiny: there is no notebook"]
    (tmp_path / "other.ipynb").write_text((book / "notebooks/tiny.ipynb").read_text())
    assert problems(book, tmp_path, read(book))[1:] == ["other: there is no chapter"]


def test_a_run_that_is_not_noted_or_is_no_more_is_noticed(book, tmp_path):
    execution = tmp_path / "execution.json"
    assert build_notebooks.problems(book / "chapters", book / "notebooks", execution) == [
        "tiny: execution.json has no run of it"
    ]
    for name in ("tiny", "gone"):
        build_notebooks.note_execution(name, 1.6, execution)
    assert build_notebooks.problems(book / "chapters", book / "notebooks", execution) == [
        "gone: execution.json has a run of it"
    ]
    noted = build_notebooks.read_execution(execution)["tiny"]
    assert noted["seconds"] == 2 and noted["versions"]["torch"] == torch.__version__


def test_a_cell_without_execution_count_is_noticed(book, tmp_path):
    notebook = read(book)
    notebook.cells[3].execution_count = None
    assert problems(book, tmp_path, notebook) == ["tiny: cell 3 has not been executed"]


def test_a_bitmap_is_noticed(book, tmp_path):
    notebook = read(book)
    notebook.cells[3].outputs[0].data["image/png"] = "iVBORw0KGgo="
    assert problems(book, tmp_path, notebook) == ["tiny: cell 3 shows a bitmap; show an SVG"]


def test_a_warning_is_noticed(book, tmp_path):
    notebook = read(book)
    notebook.cells[1].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="a UserWarning"))
    assert problems(book, tmp_path, notebook) == ["tiny: cell 1 warns"]


def test_building_again_changes_no_byte(book, tmp_path):
    build_notebooks.build(book / "chapters/tiny.py", tmp_path / "again.ipynb")
    assert (tmp_path / "again.ipynb").read_bytes() == (book / "notebooks/tiny.ipynb").read_bytes()


def test_a_cell_that_fails_stops_the_build_and_leaves_the_notebook(tmp_path):
    (tmp_path / "bad.py").write_text("# %%\n1 / 0\n")
    (tmp_path / "bad.ipynb").write_text("as it was")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        build_notebooks.build(tmp_path / "bad.py", tmp_path / "bad.ipynb")
    assert (tmp_path / "bad.ipynb").read_text() == "as it was"


def nbval(folder: Path) -> dict[str, bool]:
    """Whether nbval passes each notebook of `folder`, asked as `make test` asks."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "--nbval", "-p", "no:cacheprovider", "-q", "-rA", "--tb=no", str(folder)]
    ran = subprocess.run(command, env=environment, cwd=folder, text=True, capture_output=True)
    outcomes = re.findall(r"^(PASSED|FAILED|ERROR)\s+(\w+)\.ipynb", ran.stdout, re.M)
    assert outcomes, ran.stdout + ran.stderr
    return {name: all(o == "PASSED" for o, n in outcomes if n == name) for _, name in outcomes}


def test_nbval_compares_every_digit(book, tmp_path):
    """Text, HTML (tables and figures) and SVG, but not what a live cell measures."""
    for number, name in enumerate(["same", "text", "html", "svg", "live"]):
        notebook = read(book)
        if name != "same":
            output = json.dumps(notebook.cells[number].outputs)
            assert f"4{number}" in output
            notebook.cells[number].outputs = nbformat.from_dict(json.loads(output.replace(f"4{number}", "40")))
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    assert nbval(tmp_path) == {"same": True, "text": False, "html": False, "svg": False, "live": True}
