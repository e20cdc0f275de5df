"""The wheel: everything in lab/ is in it, and it works away from the checkout."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import lab

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("source")  # a build leaves folders behind
    shutil.copytree(ROOT / "lab", source / "lab", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", "dist", "."]
    built = subprocess.run(command, cwd=source, text=True, capture_output=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return next((source / "dist").glob("llm_kernel_lab-*.whl"))


def left_out(wheel: Path, root: Path) -> list[str]:
    """Files of root/lab that a wheel does not hold."""
    held = set(zipfile.ZipFile(wheel).namelist())
    files = (path for path in (root / "lab").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted({path.relative_to(root).as_posix() for path in files} - held)


def test_the_wheel_holds_the_package(wheel):
    assert list((ROOT / "lab/backends/cuda").glob("*.cu")) and not left_out(wheel, ROOT)


def test_a_file_that_is_left_out_is_found(tmp_path):
    (tmp_path / "lab").mkdir()
    for name in ("rmsnorm.py", "rmsnorm.cu"):
        (tmp_path / "lab" / name).touch()
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as archive:
        archive.writestr("lab/rmsnorm.py", "")
    assert left_out(tmp_path / "some.whl", tmp_path) == ["lab/rmsnorm.cu"]


def test_the_wheel_works_away_from_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True)
    program = """
import pathlib, torch, lab
from lab import cli
print(pathlib.Path(lab.__file__).parent)
x, w = torch.randn(2, 8), torch.ones(8)
triton, eager = (lab.get_op("rmsnorm", backend=name)(x, w) for name in ("triton", "torch"))
assert torch.allclose(triton, eager, atol=1e-5)
assert cli.main(["ops", "rmsnorm"]) == 0
assert cli.main(["generate", "--prompt", "The ", "--max-new-tokens", "5"]) == 0
"""
    environment = {**os.environ, "PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0] == str(site / "lab")


def released(changelog: str) -> tuple[str, str]:
    """Version and date of the newest entry."""
    return re.findall(r"^## (\S+) \((.*)\)$", changelog, re.M)[0]


def test_package_project_and_changelog_are_of_one_version():
    version, date = released((ROOT / "CHANGELOG.md").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert version == lab.__version__ == project["version"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", date)


def test_the_newest_entry_is_the_one_that_counts():
    older = "## 0.1.0 (2026-01-01)\n\n- B\n"
    assert released(f"# Changelog\n\n## 0.2.0 (unreleased)\n\n- A\n\n{older}") == ("0.2.0", "unreleased")
