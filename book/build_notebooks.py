"""Turn book/chapters/*.py (jupytext, py:percent) into executed notebooks in book/notebooks.

    python book/build_notebooks.py [CHAPTER ...]     regenerate, all chapters unless some are named
    python book/build_notebooks.py --check           exit 1 if a notebook is out of step with its chapter

What executing leaves behind that differs from run to run (times, versions) is removed, so that regenerating an unchanged
chapter changes no byte.
"""

import argparse
import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

BOOK = Path(__file__).resolve().parent
CHAPTERS, NOTEBOOKS = BOOK / "chapters", BOOK / "notebooks"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def convert(chapter: Path) -> nbformat.NotebookNode:
    """The chapter as a notebook that has not been run, with stable cell ids."""
    notebook = jupytext.read(chapter, fmt="py:percent")
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    return notebook


def sources(notebook: nbformat.NotebookNode) -> list[tuple]:
    return [(cell.cell_type, cell.source, sorted(cell.metadata.get("tags", []))) for cell in notebook.cells]


def in_step(chapter: Path, notebook: Path) -> bool:
    """Whether the published notebook has just the chapter's cells."""
    return notebook.exists() and sources(convert(chapter)) == sources(nbformat.read(notebook, as_version=4))


def not_executed(notebook: Path) -> list[int]:
    """Numbers of the code cells without an execution count: nbval runs such cells but never compares them."""
    cells = nbformat.read(notebook, as_version=4).cells
    return [
        number
        for number, cell in enumerate(cells)
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None
    ]


def build(chapter: Path, target: Path) -> None:
    """Execute the chapter and write it to `target`; a cell that fails raises, and `target` stays as it was."""
    notebook = convert(chapter)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(BOOK)}}).execute()
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    partial = target.with_suffix(".partial")
    nbformat.write(notebook, partial)
    os.replace(partial, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", help="chapters, without .py")
    parser.add_argument("--check", action="store_true", help="only compare")
    options = parser.parse_args()
    chapters = [CHAPTERS / f"{name}.py" for name in options.names] or sorted(CHAPTERS.glob("*.py"))
    NOTEBOOKS.mkdir(exist_ok=True)
    stale = []
    for chapter in chapters:
        target = NOTEBOOKS / f"{chapter.stem}.ipynb"
        if not options.check:
            print(f"executing {chapter.name}", flush=True)
            build(chapter, target)
        elif not in_step(chapter, target):
            stale.append(chapter.name)
    if stale:
        print(f"out of step with their notebooks: {', '.join(stale)}; run `make notebooks`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
