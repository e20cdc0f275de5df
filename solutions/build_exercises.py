"""Cut the answers out of solutions/<chapter>.py, and write exercises/<chapter>.py and .ipynb.

    python solutions/build_exercises.py            write them
    python solutions/build_exercises.py --check    write nothing; exit 1 if they differ from what would be written

An answer stands between comments (`#`, or `//` in C++). What follows the colon is left in its place, for a body that may
not be empty:

    # BEGIN ANSWER: pass
    ...
    # END ANSWER
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import jupytext
import nbformat
import yaml

SOLUTIONS = Path(__file__).parent
EXERCISES = SOLUTIONS.parent / "exercises"

_ANSWER = re.compile(
    r"^(?P<indent> *)(?P<comment>#|//) BEGIN ANSWER(?:: (?P<stub>[^\n]*))?\n.*?^ *(?P=comment) END ANSWER\n",
    re.M | re.S,
)

COLAB = """\
# %%
import sys

if "google.colab" in sys.modules:  # get the course and install it, with the torch that Colab has
    import subprocess
    from pathlib import Path

    if not Path("/content/llm-kernel-lab").exists():  # this cell may run twice
        subprocess.run(["git", "clone", "--depth", "1", "{url}", "/content/llm-kernel-lab"], check=True)
    install = [sys.executable, "-m", "pip", "install", "-q", "-e", "/content/llm-kernel-lab"]
    subprocess.run(install, check=True)
    sys.path.insert(0, "/content/llm-kernel-lab")

"""


def cut(solution: str) -> str:
    """The text without its answers. Raises ValueError if a marker has no partner."""

    def stub(answer: re.Match) -> str:
        lines = [f"{answer['comment']} your code here", *([answer["stub"]] if answer["stub"] else [])]
        return "".join(f"{answer['indent']}{line}\n" for line in lines)

    text = _ANSWER.sub(stub, solution)
    if "BEGIN ANSWER" in text or "END ANSWER" in text:
        raise ValueError("a BEGIN ANSWER or END ANSWER has no partner")
    return text


def exercise(solution: str, url: str) -> str:
    """The exercise's py:percent text: answers cut, and a cell for Colab after the introduction."""
    text = cut(solution)
    introduction, first_code, rest = text.partition("# %%\n")
    return introduction + COLAB.format(url=url) + first_code + rest


def notebook(text: str) -> str:
    """A py:percent text as a notebook without outputs; the same text gives the same notebook."""
    book = jupytext.reads(text, fmt="py:percent")
    book.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    book.nbformat, book.nbformat_minor = 4, 5
    for number, cell in enumerate(book.cells):
        cell.id = f"cell-{number}"
    return nbformat.writes(book) + "\n"


def generated() -> dict[Path, str]:
    """Every generated file and its text."""
    url = yaml.safe_load((SOLUTIONS.parent / "_config.yml").read_text())["repository"]["url"]
    files = {}
    for source in sorted(SOLUTIONS.glob("*.py")):
        if source.name != Path(__file__).name:
            text = exercise(source.read_text(), url)
            files[EXERCISES / source.name] = text
            files[EXERCISES / f"{source.stem}.ipynb"] = notebook(text)
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate exercises/ from solutions/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if exercises/ has drifted")
    check = parser.parse_args().check
    drifted = [path for path, text in generated().items() if not path.exists() or path.read_text() != text]
    for path in drifted:
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(generated()[path])
        print(f"{'has drifted' if check else 'wrote'}: {path.relative_to(SOLUTIONS.parent)}", file=sys.stderr)
    if drifted and check:
        print("run: python solutions/build_exercises.py", file=sys.stderr)
    return 1 if drifted and check else 0


if __name__ == "__main__":
    sys.exit(main())
