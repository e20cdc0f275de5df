"""Turn book/chapters/*.py (jupytext, py:percent) into executed notebooks in book/notebooks.

    python book/build_notebooks.py [CHAPTER ...]     regenerate, all chapters unless some are named
    python book/build_notebooks.py --check           exit 1 if a notebook is not what its chapter gives

What executing leaves behind that differs from run to run (times, versions) is removed, so that regenerating an
unchanged chapter changes no byte. How long it took, and on which versions, goes into book/execution.json whenever a
notebook changes; the book's page *What ran* shows it.
"""

import argparse
import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

BOOK = Path(__file__).resolve().parent
CHAPTERS, NOTEBOOKS = BOOK / "chapters", BOOK / "notebooks"
EXECUTION, PAGE = (
    BOOK / "execution.json",
    "execution",
)  # the page itself is not in the file: it would never be up to date
PACKAGES = ("torch", "triton", "numpy", "matplotlib", "nvidia-cuda-nvrtc")
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


def problems(chapters: Path = CHAPTERS, notebooks: Path = NOTEBOOKS, execution: Path = EXECUTION) -> list[str]:
    """What is wrong with the published notebooks, a line each: out of step with the chapters, or holding what nbval
    would not compare (it runs a cell without an execution count, and takes any output of it; of images it compares
    SVG alone); or executed, and it is not said when and on what."""
    names = sorted({path.stem for path in [*chapters.glob("*.py"), *notebooks.glob("*.ipynb")]})
    ran = read_execution(execution)
    found = [f"{name}: {execution.name} has a run of it" for name in sorted(set(ran) - set(names))]
    found += [f"{name}: {execution.name} has no run of it" for name in names if name not in {*ran, PAGE}]
    for name in names:
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
            if any(output.get("name") == "stderr" for output in cell.outputs):
                found.append(f"{name}: cell {number} warns")
    return found


def read_execution(path: Path = EXECUTION) -> dict[str, dict]:
    """{chapter: {"seconds": what executing it took, "device": "CPU", and its versions}}"""
    return json.loads(path.read_text()) if path.exists() else {}


def note_execution(name: str, seconds: float, path: Path = EXECUTION) -> None:
    versions = {"python": platform.python_version()} | {package: metadata.version(package) for package in PACKAGES}
    ran = read_execution(path) | {name: {"seconds": round(seconds), "device": "CPU", "versions": versions}}
    _replace(path, json.dumps(dict(sorted(ran.items())), indent=2) + "\n")


def _replace(target: Path, text: str) -> None:
    partial = target.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, target)


def build(chapter: Path, target: Path) -> float:
    """Execute the chapter and write it to `target`; a cell that fails raises, and `target` stays as it was. Returns
    the seconds that executing took."""
    notebook = convert(chapter)
    where = {"metadata": {"path": str(NOTEBOOKS)}}  # the folder that nbval runs it in
    # What a cell prints arrives in as many pieces as the machine's load makes of it: merge them.
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where, coalesce_streams=True)
    began = time.perf_counter()
    client.execute()
    seconds = time.perf_counter() - began
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    _replace(target, nbformat.writes(notebook) + "\n")
    return seconds


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
    for name in [*(name for name in options.names or known if name != PAGE), PAGE]:  # it tells of the others
        print(f"executing {name}", flush=True)
        target = NOTEBOOKS / f"{name}.ipynb"
        before = target.read_bytes() if target.exists() else None
        seconds = build(known[name], target)
        if name != PAGE and (target.read_bytes() != before or name not in read_execution()):
            note_execution(name, seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
