"""A hash of the code that a measurement depends on, blind to prose and formatting.

The hash of operator X covers lab/ops/X.py, lab/backends/*/X.{py,cu,cuh} and whatever those import or include inside
lab/. The wiring around the kernels (registry, operator, autograd, hardware) is left out: it is not timed.
"""

from __future__ import annotations

import ast
import hashlib
import re
from pathlib import Path

LAB = Path(__file__).parents[1]
FRAMEWORK = {"backends/registry.py", "backends/hardware.py", "ops/operator.py", "ops/autograd.py", "ops/__init__.py"}
CUDA_SUFFIXES = (".cu", ".cuh")


def sources(operator: str, lab: Path = LAB) -> list[Path]:
    """The files that the hash covers, sorted. Raises ValueError if the operator has none."""
    found: set[Path] = set()
    waiting = [lab / "ops" / f"{operator}.py"]
    waiting += (path for path in lab.glob(f"backends/*/{operator}.*") if path.suffix in (".py", *CUDA_SUFFIXES))
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file() or path.relative_to(lab).as_posix() in FRAMEWORK:
            continue
        found.add(path)
        waiting += _imported(path, lab) if path.suffix == ".py" else _included(path)
    if not found:
        raise ValueError(f"operator {operator!r} has no source files under {lab}")
    return sorted(found)


def source_hash(operator: str, lab: Path = LAB) -> str:
    """sha256, in hexadecimal, over the operator's sources without comments, docstrings, formatting, error messages and
    the rungs' one-line descriptions. Raises ValueError if the operator has no sources."""
    digest = hashlib.sha256()
    for path in sources(operator, lab):
        text = path.read_text()
        bare = _bare_python(text) if path.suffix == ".py" else _bare_cuda(text)
        digest.update(f"{path.relative_to(lab).as_posix()}\n{bare}\n".encode())
    return digest.hexdigest()


def _imported(path: Path, lab: Path) -> list[Path]:
    """Files that a Python file may import from lab/, and the CUDA files of its own name or named in its strings."""
    names: list[str] = []
    files = [path.with_suffix(suffix) for suffix in CUDA_SUFFIXES]
    package = ["lab", *path.relative_to(lab).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names += (f"{module}.{alias.name}" for alias in node.names)
            names.append(module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(CUDA_SUFFIXES):
            files.append(path.parent / node.value)
    for name in names:
        parts = name.split(".")
        if parts[0] == "lab" and len(parts) > 1:
            files.append(lab.joinpath(*parts[1:]).with_suffix(".py"))
    return files


def _included(path: Path) -> list[Path]:
    return [path.parent / name for name in re.findall(r'#\s*include\s+"([^"]+)"', path.read_text())]


def _bare_cuda(text: str) -> str:
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    return re.sub(r"\s*([^\w\s])\s*", r"\1", " ".join(text.split()))


def _bare_python(text: str) -> str:
    return _dump(_WithoutProse().visit(ast.parse(text)))


class _WithoutProse(ast.NodeTransformer):
    """Drops docstrings and other bare strings, the arguments of what is raised, and `change="..."` of a rung."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            return ast.Raise(exc=node.exc.func)
        return node

    def visit_keyword(self, node: ast.keyword) -> ast.AST | None:
        return None if node.arg == "change" else self.generic_visit(node)


def _dump(node: object) -> str:
    """As `ast.dump`, but the same in every version of Python: empty fields, which come and go, are left out."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return f"{type(node).__name__}({', '.join(f'{name}={_dump(value)}' for name, value in sorted(fields))})"
    if isinstance(node, list):
        return f"[{', '.join(map(_dump, node))}]"
    return repr(node)
