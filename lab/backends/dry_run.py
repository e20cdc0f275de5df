"""What an implementation would have a GPU do, learnt on any machine: its kernel launches are noted, and not run.

    launches = launches_of(implementation, (16384, 4096), torch.bfloat16, "forward", ARCHITECTURES["sm_90"])
    launches[0].compile().cubin

A note can be compiled, for the GPU that was assumed, with no GPU there. So registers, spills and shared memory can be
told anywhere (`lab.profiling.resources`), and whether a kernel is still the one that was measured
(`lab.benchmark.fingerprint`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lab.backends.hardware import GPU, assume
from lab.backends.implementation import Implementation
from lab.backends.launches import Launch, collected
from lab.backends.registry import operator
from lab.backends.triton.compile import noted_launches


@contextmanager
def dry_run() -> Iterator[list[Launch]]:
    """Collect the launches of Triton and CUDA kernels inside the block instead of running them."""
    with collected() as launches, noted_launches():
        yield launches


def launches_of(
    implementation: Implementation, shape: tuple[int, ...], dtype: torch.dtype, direction: str, gpu: GPU
) -> list[Launch]:
    """The launches of the pass `direction` ("forward", "backward" or "both") on `gpu`, in order. Tensors are taken to
    be as `make_inputs` of the operator lays them out."""
    op = operator(implementation.operator)
    tensors = op.canonical(*op.make_inputs(shape, dtype, "meta"))
    parameters = op.complete(*tensors)[len(op.tensors) :]
    results = op.like_forward(*tensors, *parameters)
    grads = tuple(torch.empty_like(result) for result in results[: len(op.outputs)])
    with assume(gpu), dry_run() as launches:
        if direction != "backward":
            implementation.forward(*tensors, *parameters)
        if direction != "forward":
            implementation.backward(*grads, *op.saved(tensors, results), *parameters)
    return launches
