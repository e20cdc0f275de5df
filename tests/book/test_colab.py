"""The chapters in Colab: their first cells get the course into an environment with its own torch, and leave that."""

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jupytext
import pytest
import torch

from lab import notebook
from lab.backends import hardware, registry
from lab.benchmark import experiments, records
from lab.benchmark.candidates import Workload

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "book/chapters").glob("*.py"))
EXERCISES = sorted((ROOT / "exercises").glob("*.py"))


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


@pytest.mark.parametrize("notebooks", [CHAPTERS, EXERCISES], ids=["chapters", "exercises"])
def test_the_course_comes_and_torch_stays(colab, notebooks):
    """A first cell twice, as whoever runs all cells again runs it; then what each notebook imports."""
    install = first_cells(notebooks[0])[0]
    every = "\n".join(f"exec({first_cells(notebook)[1]!r}, {{}})" for notebook in notebooks)
    asks = "import lab, torch; print(lab.__file__, torch.__file__, torch.__version__)"
    afresh = 'import shutil; shutil.rmtree("/content/llm-kernel-lab", ignore_errors=True)'
    where, torchs, version = colab(f"{afresh}\n{install}\n{install}\n{every}\n{asks}").split()
    assert where.endswith("/content/llm-kernel-lab/lab/__init__.py") and str(ROOT) not in where
    assert (torchs, version) == (torch.__file__, torch.__version__)


@pytest.mark.parametrize("notebooks", [CHAPTERS, EXERCISES], ids=["chapters", "exercises"])
def test_every_notebook_gets_the_course_in_the_same_way(notebooks):
    installs, imports = zip(*map(first_cells, notebooks))
    assert len(set(installs)) == 1 and all("lab" in cell for cell in imports)


# A T4, which Colab lends for nothing: 16 GB, and no bfloat16 ----------------------------------------------------------


@pytest.fixture
def t4(monkeypatch):
    """What lab asks about the GPU is answered as a T4 would."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(total_memory=16e9))
    with hardware.assume(hardware.ARCHITECTURES["sm_75"]):
        yield


def test_on_a_t4_live_cells_measure_in_float16_on_fewer_rows(t4, monkeypatch):
    published, asked, shown = records.published("rmsnorm"), [], []

    def run(experiment, progress):
        asked.extend(experiment.workloads)
        here = replace(published.environment, gpu="Tesla T4")
        rows = [
            replace(row, shape=(4096, 4096), dtype="float16")
            for row in published.at("rmsnorm", "forward", (16384, 4096))
        ]
        return replace(published, environment=here, rows=tuple(rows))

    monkeypatch.setattr(experiments, "run", run)
    monkeypatch.setattr(notebook, "show", lambda *things: shown.extend(things))
    notebook.measure_here(published, "rmsnorm", "forward", (16384, 4096), ("triton:*", "cuda:*"))
    assert asked == [Workload("rmsnorm", (4096, 4096), "float16", "forward")]
    said, table = shown
    assert said == "On this Tesla T4:" and table.header[0] == "forward 4096x4096"
    assert "triton:tuned" in [row[0] for row in table.rows]


def test_on_a_t4_models_are_in_float16(t4):
    assert hardware.half_dtype(torch.device("cuda")) == torch.float16
    with hardware.assume(hardware.ARCHITECTURES["sm_80"]):
        assert hardware.half_dtype(torch.device("cuda")) == torch.bfloat16


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_on_a_t4_bfloat16_is_refused_by_name(t4, backend):
    x = SimpleNamespace(dtype=torch.bfloat16, device=torch.device("cuda"), shape=(4, 8))
    for rung in registry.ladder("rmsnorm", backend):
        assert rung.refuses(x) == "x is bfloat16, which T4 lacks; expected float16 or float32"
