"""Note launches of Triton kernels, and compile them with no GPU (see `lab.backends.dry_run`).

Compiling goes through the JIT's own warm-up, so that it specializes on the arguments as a launch would: on divisibility
by 16 above all. It needs a process in which Triton does not interpret.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import KernelInterface

from lab.backends import launches
from lab.backends.hardware import GPU, gpu_of
from lab.backends.triton.runtime import INTERPRETED


@contextmanager
def noted_launches() -> Iterator[None]:
    """Inside the block `kernel[grid](...)` is noted and not run."""
    with mock.patch.object(KernelInterface, "__getitem__", _noter):
        yield


def _noter(kernel, grid):
    if not hasattr(kernel, "fn") or not inspect.isfunction(kernel.fn):
        raise TypeError(f"cannot note a launch of {type(kernel).__name__}; expected a function under @triton.jit alone")
    signature = inspect.signature(kernel.fn)

    def launch(*args, **kwargs):
        options = {name: value for name, value in kwargs.items() if name not in signature.parameters}
        bound = signature.bind(*args, **{name: value for name, value in kwargs.items() if name not in options})
        bound.apply_defaults()
        sizes = grid(bound.arguments) if callable(grid) else grid
        compile = partial(_binary, kernel, args, kwargs, gpu_of(torch.device("meta")))
        launches.note(
            launches.Launch(
                kernel.fn.__name__, "triton", _sources(kernel), tuple(sizes), dict(bound.arguments), options, compile
            )
        )

    return launch


def _sources(kernel) -> tuple[str, ...]:
    """The text of a kernel, of the JIT functions that it calls, and of the compile-time constants that it names."""
    found: dict[object, str] = {}
    waiting = [kernel.fn]
    while waiting:
        fn = waiting.pop()
        if fn in found:
            continue
        found[fn] = inspect.getsource(fn)
        for name in fn.__code__.co_names:
            value = fn.__globals__.get(name)
            if isinstance(value, KernelInterface):
                waiting.append(value.fn)  # type: ignore[attr-defined]
            elif isinstance(value, tl.constexpr):
                found[name] = f"{name} = {value.value!r}"
    return tuple(found.values())


class _NoDriver:
    """Stands in for the GPU's driver while nothing is launched."""

    def __init__(self, gpu: GPU) -> None:
        self.gpu = gpu

    def get_current_device(self):
        return self.gpu.arch  # what the JIT keeps its compiled kernels by

    def get_current_stream(self, device):
        return 0

    def get_current_target(self) -> GPUTarget:
        major, minor = self.gpu.capability
        return GPUTarget("cuda", 10 * major + minor, 32)


def _binary(kernel, args: tuple, kwargs: dict, gpu: GPU) -> launches.Binary:
    if INTERPRETED:
        raise RuntimeError("Triton interprets kernels in this process; start Python with TRITON_INTERPRET=0 to compile")
    with mock.patch.object(triton.runtime.driver, "_active", _NoDriver(gpu)):
        compiled = kernel.run(*args, grid=(1,), warmup=True, **kwargs)
    return launches.Binary(compiled.asm["cubin"], 32 * compiled.metadata.num_warps, compiled.metadata.shared)
