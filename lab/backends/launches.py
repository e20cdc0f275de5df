"""What an implementation would have a GPU do, learnt on any machine: its kernel launches are noted, and not run.

    launches = launches_of(implementation, (16384, 4096), torch.bfloat16, "forward", ARCHITECTURES["sm_90"])
    launches[0].compile().cubin

A note can be compiled, for the GPU that was assumed, with no GPU there. So registers, spills and shared memory can be
told anywhere (`lab.profiling.resources`), and whether a kernel is still the one that was measured
(`lab.benchmark.fingerprint`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from lab.backends.hardware import GPU, assume
from lab.backends.registry import Implementation, operator


@dataclass(frozen=True)
class Binary:
    """A compiled kernel. threads: of a block; dynamic_shared: bytes of a block, given at launch."""

    cubin: bytes
    threads: int
    dynamic_shared: int


@dataclass(frozen=True)
class Launch:
    """One launch, as it was asked for.

    kernel: its name. language: "triton" or "cuda". sources: the text of the kernel and of what it calls. grid: blocks.
    arguments: tensors, numbers and compile-time constants by name. options: what else shapes the launch, such as
    num_warps. compile: the binary for the GPU that was assumed; raises what the compiler raises.
    """

    kernel: str
    language: str
    sources: tuple[str, ...]
    grid: tuple[int, ...]
    arguments: Mapping[str, object]
    options: Mapping[str, object]
    compile: Callable[[], Binary] = field(repr=False, compare=False)


_noted: list[Launch] | None = None


def noting() -> bool:
    """Whether launches are noted now, and not run."""
    return _noted is not None


def note(launch: Launch) -> None:
    assert _noted is not None
    _noted.append(launch)


@contextmanager
def noted() -> Iterator[list[Launch]]:
    """Collect the launches of Triton and CUDA kernels inside the block instead of running them."""
    from lab.backends.triton.compile import noted_launches

    global _noted
    before, _noted = _noted, []
    try:
        with noted_launches():
            yield _noted
    finally:
        _noted = before


def launches_of(
    implementation: Implementation, shape: tuple[int, ...], dtype: torch.dtype, direction: str, gpu: GPU
) -> list[Launch]:
    """The launches of the pass `direction` ("forward", "backward" or "both") on `gpu`, in order. Tensors are taken to
    be as `make_inputs` of the operator lays them out."""
    op = operator(implementation.operator)
    tensors = op.canonical(*op.make_inputs(shape, dtype, "meta"))
    parameters = op.complete(*tensors)[len(op.tensors) :]
    results = op.like_forward(*tensors)
    grads = tuple(torch.empty_like(result) for result in results[: len(op.outputs)])
    with assume(gpu), noted() as launches:
        if direction != "backward":
            implementation.forward(*tensors, *parameters)
        if direction != "forward":
            implementation.backward(*grads, *op.saved(tensors, results), *parameters)
    return launches
