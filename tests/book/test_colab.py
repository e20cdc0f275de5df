"""The chapters in Colab: their first cells get the course into an environment with its own torch, and leave that."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import jupytext
import pytest
import torch

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "book/chapters").glob("*.py"))


def first_cells(chapter: Path) -> tuple[str, str]:
    """The cell that gets the course, and the one that imports it."""
    code = [cell.source for cell in jupytext.read(chapter, fmt="py:percent").cells if cell.cell_type == "code"]
    return code[0], code[1]


def published(folder: Path) -> Path:
    """The working tree as a repository of its own, committed."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    who = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """A Python as Colab's: torch and its like are there, the course is not, and /content is a folder of ours. Returns
    what runs code in it and gives what it printed."""
    folder = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    library = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                             capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    Path(library, "colabs_own.pth").write_text(sysconfig.get_path("purelib") + "\n")
    content = folder / "content"
    content.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "CUDA_VISIBLE_DEVICES": "",
        "GIT_CONFIG_COUNT": "1",  # the repository's address leads there
        "GIT_CONFIG_KEY_0": f"url.file://{published(folder / 'published')}.insteadOf",
        "GIT_CONFIG_VALUE_0": address(),
    }

    def run(code: str) -> str:
        pretend = "import sys, types; sys.modules['google.colab'] = types.ModuleType('google.colab')\n"
        code = pretend + code.replace('"/content/', f'"{content}/')
        done = subprocess.run([python, "-c", code], cwd=content, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def address() -> str:
    cell, _ = first_cells(CHAPTERS[0])
    return cell.split('repository = "')[1].split('"')[0]


def test_the_course_comes_and_torch_stays(colab):
    install = first_cells(CHAPTERS[0])[0]
    every = "\n".join(f"exec({first_cells(chapter)[1]!r}, {{}})" for chapter in CHAPTERS)
    asks = "import lab, torch; print(lab.__file__, torch.__file__, torch.__version__)"
    where, torchs, version = colab(f"{install}\n{every}\n{asks}").split()
    assert where.endswith("/content/llm-kernel-lab/lab/__init__.py") and str(ROOT) not in where
    assert (torchs, version) == (torch.__file__, torch.__version__)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_gets_the_course_in_the_same_way(chapter):
    install, imports = first_cells(chapter)
    assert install == first_cells(CHAPTERS[0])[0] and "lab" in imports
