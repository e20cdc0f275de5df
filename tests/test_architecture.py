"""Imports run one way: see the page "The design" of the book."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu

LAB = Path(__file__).parents[1] / "lab"

# Who must not import whom. A backend's folder is `lab.backends.<name>`; the registry and what backends share lie above.
BACKENDS = tuple(f"lab.backends.{name}" for name in ("torch", "triton", "cuda"))
ABOVE_TRAINING = ("lab.benchmark", "lab.profiling", "lab.check", "lab.notebook", "lab.cli")
ABOVE_OPS = ("lab.core", "lab.datasets", "lab.training", *ABOVE_TRAINING)
FORBIDDEN = {
    "lab.ops": (*BACKENDS, *ABOVE_OPS),
    "lab.backends": ABOVE_OPS,
    "lab.core": (*BACKENDS, *(name for name in ABOVE_OPS if name != "lab.core")),
    "lab.datasets": ("lab.training", *ABOVE_TRAINING),
    "lab.training": (*BACKENDS, *ABOVE_TRAINING),
    "lab": ("lab.cli",),
}
MAIN = "lab.__main__"  # which is there to import the command line


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def imports(source: str) -> Iterator[str]:
    """What is imported, inside functions too. Of `from a import b`, both a and a.b, since b may be a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(module: str, source: str) -> list[str]:
    return [
        f"{module} imports {name}"
        for package, refused in FORBIDDEN.items()
        if inside(module, package)
        for name in imports(source)
        if any(inside(name, each) for each in refused) and module != MAIN
    ]


@pytest.mark.parametrize("path", sorted(LAB.rglob("*.py")), ids=lambda path: str(path.relative_to(LAB)))
def test_imports_run_one_way(path):
    module = ".".join(path.relative_to(LAB.parent).with_suffix("").parts).removesuffix(".__init__")
    assert not violations(module, path.read_text())


@pytest.mark.parametrize(
    "module, source",
    [
        ("lab.core.model", "from lab.backends.triton import rmsnorm"),
        ("lab.core.model", "def f():\n    import lab.backends.cuda.compile"),
        ("lab.ops.rmsnorm", "from lab.core import LLM"),
        ("lab.backends.triton.rmsnorm", "from lab.benchmark.timing import measure"),
        ("lab.training.trainer", "from lab.benchmark.timing import measure"),
        ("lab.datasets.tokens", "from lab.training import train"),
        ("lab.benchmark.report", "from lab import cli"),
    ],
)
def test_a_planted_import_is_caught(module, source):
    assert violations(module, source)
    assert not violations(module, "from lab.backends import registry\nimport torch")
