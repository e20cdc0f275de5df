"""What a measurement depends on, as a hash: the work that a rung gives to the GPU, blind to how the code around it is
written.

It covers every launch on a workload: the text of the kernel and of what it calls (without comments, docstrings and
formatting), its grid, arguments and compile-time constants. So a kernel, a block size or a choice between kernels
that changes makes a record stale; an argument check or a comment does not, and neither does a new rung beside it. Not
covered: what PyTorch runs for a rung between its launches, such as the zeroing of a buffer.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import re
import textwrap
from collections.abc import Callable
from functools import cache

import torch

from lab.backends.dry_run import launches_of
from lab.backends.hardware import GPU
from lab.backends.implementation import Implementation
from lab.backends.launches import Launch
from lab.benchmark.candidates import Workload


def fingerprint(implementation: Implementation, workload: Workload, gpu: GPU) -> str:
    """sha256, in hexadecimal, of what `implementation` launches for `workload` on `gpu`. Of a rung that launches no
    kernel of its own (PyTorch does), the hash covers the module that it is defined in."""
    if launches := _launches(implementation, workload, gpu):
        return _digest([_described(launch) for launch in launches])
    return _of_module(implementation.forward if implementation.has_passes else implementation.function)


def described_launches(implementation: Implementation, workload: Workload, gpu: GPU) -> tuple[str, ...]:
    """What the fingerprint covers in words: each kernel, its grid, and the constants that were chosen for it."""
    return tuple(map(str, _launches(implementation, workload, gpu)))


def _launches(implementation: Implementation, workload: Workload, gpu: GPU) -> list[Launch]:
    if not implementation.has_passes:
        return []
    return launches_of(implementation, workload.shape, workload.torch_dtype, workload.direction, gpu)


def _of_module(function: Callable | None) -> str:
    return _digest(_bare_python(inspect.getsource(inspect.getmodule(function))))  # type: ignore[arg-type]


def _described(launch: Launch) -> list:
    bare = _bare_python if launch.language == "triton" else _bare_cuda
    arguments = {name: _value(value) for name, value in launch.arguments.items()}
    return [launch.kernel, [bare(source) for source in launch.sources], launch.grid, arguments, launch.options]


def _value(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} {value.stride()}"
    return str(value)


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@cache
def _bare_cuda(text: str) -> str:
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    return re.sub(r"\s*([^\w\s])\s*", r"\1", " ".join(text.split()))


@cache
def _bare_python(text: str) -> str:
    return _dump(_WithoutDocstrings().visit(ast.parse(textwrap.dedent(text))))


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        return self.generic_visit(node)


def _dump(node: object) -> str:
    """As `ast.dump`, but the same in every version of Python: empty fields, which come and go, are left out."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return f"{type(node).__name__}({', '.join(f'{name}={_dump(value)}' for name, value in sorted(fields))})"
    if isinstance(node, list):
        return f"[{', '.join(map(_dump, node))}]"
    return repr(node)
