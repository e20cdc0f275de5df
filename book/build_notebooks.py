"""Turn book/chapters/*.py (jupytext, py:percent) into executed notebooks in book/notebooks.

    python book/build_notebooks.py [CHAPTER ...]     regenerate, all chapters unless some are named
    python book/build_notebooks.py --check           exit 1 if a notebook is not what its chapter gives

What executing leaves behind that differs from run to run (times, versions) is removed, so that regenerating an
unchanged chapter changes no byte.
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


def problems(chapters: Path = CHAPTERS, notebooks: Path = NOTEBOOKS) -> list[str]:
    """What is wrong with the published notebooks, a line each: out of step with the chapters, or holding what nbval
    would not compare (it runs a cell without an execution count, and takes any output of it; of images it compares
    SVG alone)."""
    found = []
    for name in sorted({path.stem for path in [*chapters.glob("*.py"), *notebooks.glob("*.ipynb")]}):
        chapter, published = chapters / f"{name}.py", notebooks / f"{name}.ipynb"
        if not chapter.exists() or not published.exists():
            found.append(f"{name}: there is no {'notebook' if chapter.exists() else 'chapter'}")
            continue
        notebook = nbformat.read(published, as_version=4)
        if sources(convert(chapter)) != sources(notebook):
            found.append(f"{name}: the notebook is out of step with its chapter")
        for number, cell in enumerate(notebook.cells):
            if cell.cell_type != "code":
                continue
            if cell.source.strip() and cell.execution_count is None:
                found.append(f"{name}: cell {number} has not been executed")
            if {"image/png", "image/jpeg"} & {kind for output in cell.outputs for kind in output.get("data", {})}:
                found.append(f"{name}: cell {number} shows a bitmap; show an SVG")
    return found


def build(chapter: Path, target: Path) -> None:
    """Execute the chapter and write it to `target`; a cell that fails raises, and `target` stays as it was."""
    notebook = convert(chapter)
    where = {"metadata": {"path": str(NOTEBOOKS)}}  # the folder that nbval runs it in
    # What a cell prints arrives in as many pieces as the machine's load makes of it: merge them.
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where, coalesce_streams=True)
    client.execute()
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    partial = target.with_suffix(".partial")
    nbformat.write(notebook, partial)
    os.replace(partial, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", help="chapters, without .py")
    parser.add_argument("--check", action="store_true", help="only say what is wrong with the published notebooks")
    options = parser.parse_args()
    if options.check:
        found = problems()
        print("\n".join([*found, "run `make notebooks`"]) if found else "The notebooks are in step with the chapters.")
        return 1 if found else 0
    known = {chapter.stem: chapter for chapter in sorted(CHAPTERS.glob("*.py"))}
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"unknown chapter {unknown[0]!r}; expected one of {', '.join(known)}")
    NOTEBOOKS.mkdir(exist_ok=True)
    for name in options.names or known:
        print(f"executing {name}", flush=True)
        build(known[name], NOTEBOOKS / f"{name}.ipynb")
    return 0


if __name__ == "__main__":
    sys.exit(main())
