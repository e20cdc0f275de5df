"""The book, built once for all tests of a worker."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def build_book() -> Callable[[Path, Path], subprocess.CompletedProcess]:
    """As `make book` does: (folder with _toc.yml, folder for the output) -> the finished process."""

    def build(source: Path, output: Path) -> subprocess.CompletedProcess:
        command = [Path(sys.executable).parent / "jupyter-book", "build", source, "--path-output", output]
        strict = ["--all", "--warningiserror", "--nitpick", "--keep-going"]
        return subprocess.run([*command, *strict], text=True, capture_output=True)

    return build


@pytest.fixture(scope="session")
def html(build_book, tmp_path_factory) -> Path:
    """The folder of the book's pages."""
    output = tmp_path_factory.mktemp("output")
    built = build_book(ROOT, output)
    assert built.returncode == 0, built.stdout + built.stderr
    return output / "_build/html"
