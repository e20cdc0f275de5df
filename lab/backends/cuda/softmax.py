"""Launchers of `softmax.cu`, in the order in which the chapter teaches its kernels. The mathematics is in
`lab/ops/softmax.py`."""

from pathlib import Path
from typing import NamedTuple

import torch

from lab.backends.cuda.compile import (
    TYPES,
    launch,
    name_of,
    needs_capability,
    refuses_dtype,
    source_of,
    unavailable,
)
from lab.backends.cuda.rows import next_power_of_2, vector_width
from lab.backends.implementation import Implementation

SOURCE = Path(__file__).with_suffix(".cu")


def _launch(kernel: str, template: tuple, grid: int, block: int, *args, **options) -> None:
    launch(source_of(SOURCE), name_of(kernel, *template), grid, block, *args, **options)


# naive and vectorized: a block a row ---------------------------------------------------------------------------------


def forward_naive(x):
    rows, columns = x.shape
    y = x.new_empty(rows, columns)
    _launch("softmax_forward_naive", (TYPES[x.dtype],), rows, 256, x, x.stride(0), y, columns)
    return (y,)


def backward_naive(dy, y):
    rows, columns = y.shape
    dx = torch.empty_like(y)
    _launch("softmax_backward_naive", (TYPES[y.dtype],), rows, 256, dy, dy.stride(0), y, dx, columns)
    return (dx,)


def forward_vectorized(x):
    rows, columns = x.shape
    y = x.new_empty(rows, columns)
    template = (TYPES[x.dtype], vector_width(x), 256)
    _launch("softmax_forward_vectorized", template, rows, 256, x, x.stride(0), y, columns)
    return (y,)


def backward_vectorized(dy, y):
    rows, columns = y.shape
    dx = torch.empty_like(y)
    template = (TYPES[y.dtype], vector_width(dy, y), 256)
    _launch("softmax_backward_vectorized", template, rows, 256, dy, dy.stride(0), y, dx, columns)
    return (dx,)


# one_pass, fast_exp and cluster: the same kernels, in which LANES threads of each of CLUSTER blocks share a row -------


class Plan(NamedTuple):
    """How softmax_forward and softmax_backward share out a row."""

    threads: int  # of a block
    lanes: int  # those of them that share a row: all, or a part of a warp
    held: int  # vectors to a thread
    cluster: int  # blocks that share a row

    def grid(self, rows: int) -> int:
        return -(-rows // (self.threads // self.lanes)) * self.cluster


def _plan(vectors: int, longest: dict[int, int], four_up_to: int) -> Plan | None:
    """For a row of that many vectors; None if it is too long. longest: the most vectors that one block takes, by
    cluster size, in the order in which sizes are tried. four_up_to: up to so many vectors of a block each thread has
    four, and eight of more."""
    if vectors <= 128:  # two to a thread; but of a row of two each has one, or neighbours' loads would leave gaps
        lanes = min(32, max(min(vectors, 2), next_power_of_2(-(-vectors // 2))))
        return Plan(128, lanes, next_power_of_2(-(-vectors // lanes)), 1)
    for cluster, most in longest.items():
        slice_vectors = -(-vectors // cluster)
        if slice_vectors <= most:
            each = 4 if slice_vectors <= four_up_to else 8
            threads = min(1024, max(64, next_power_of_2(-(-slice_vectors // each))))
            return Plan(threads, threads, next_power_of_2(-(-slice_vectors // threads)), cluster)
    return None


def _forward(x, longest, fast):
    rows, columns = x.shape
    width = vector_width(x)
    plan = _plan(columns // width, longest, four_up_to=2048)
    if plan is None:
        return forward_vectorized(x)
    y = x.new_empty(rows, columns)
    template = (TYPES[x.dtype], width, *plan, fast and x.element_size() == 2)
    _launch(
        "softmax_forward", template, plan.grid(rows), plan.threads,
        x, x.stride(0), y, rows, columns, cluster=plan.cluster,
    )  # fmt: skip
    return (y,)


def _backward(dy, y, longest):
    rows, columns = y.shape
    width = vector_width(dy, y)
    plan = _plan(columns // width, longest, four_up_to=4096)  # of each of two tensors
    if plan is None:
        return backward_vectorized(dy, y)
    dx = torch.empty_like(y)
    _launch(
        "softmax_backward", (TYPES[y.dtype], width, *plan), plan.grid(rows), plan.threads,
        dy, dy.stride(0), y, dx, rows, columns, cluster=plan.cluster,
    )  # fmt: skip
    return (dx,)


def forward_one_pass(x):
    return _forward(x, {1: 8192}, fast=False)


def forward_fast_exp(x):
    return _forward(x, {1: 8192}, fast=True)


def backward_one_pass(dy, y):
    return _backward(dy, y, {1: 4096})


def forward_cluster(x):
    return _forward(x, {1: 4096, 2: 4096, 4: 4096, 8: 8192}, fast=True)


def backward_cluster(dy, y):
    return _backward(dy, y, {1: 1024, 2: 1024, 4: 1024, 8: 4096})


LADDER = [
    Implementation(
        forward_naive, backward_naive, "naive",
        "a block a row, an element at a time, a tree for each reduction; the row read three times, backward twice",
        unavailable, refuses_dtype,
    ),
    Implementation(
        forward_vectorized, backward_vectorized, "vectorized",
        "16-byte loads, warp shuffles; maximum and sum in one look, the row read twice",
        unavailable, refuses_dtype,
    ),
    Implementation(
        forward_one_pass, backward_one_pass, "one_pass",
        "the row stays in registers and is read once; short rows share a block",
        unavailable, refuses_dtype,
    ),
    Implementation(
        forward_fast_exp, backward_one_pass, "fast_exp",
        "forward, of 16-bit numbers: an exponential of four instructions",
        unavailable, refuses_dtype,
    ),
    Implementation(
        forward_cluster, backward_cluster, "cluster",
        "a long row is shared out over a cluster of blocks, which exchange maximum and sum through shared memory",
        needs_capability(9, 0, "Hopper's clusters"), refuses_dtype,
    ),
]  # fmt: skip
