"""Launchers of `rmsnorm.cu`, in the order in which the chapter teaches its kernels. The mathematics is in
`lab/ops/rmsnorm.py`; residual and ds are given by `lab/backends/cuda/add_rmsnorm.py` only."""

from pathlib import Path
from typing import NamedTuple

import torch

from lab.backends.cuda.compile import (
    TYPES,
    launch,
    name_of,
    needs_capability,
    refuses_dtype,
    resident_clusters,
    source_of,
    unavailable,
)
from lab.backends.cuda.rows import VECTOR_BYTES, next_power_of_2, vector_width
from lab.backends.hardware import gpu_of
from lab.backends.implementation import Implementation
from lab.backends.rows import norm_outputs, pointer

SOURCE = Path(__file__).with_suffix(".cu")


def _launch(kernel: str, template: tuple, grid: int, block: int, *args, **options) -> None:
    launch(source_of(SOURCE), name_of(kernel, *template), grid, block, *args, **options)


# naive ---------------------------------------------------------------------------------------------------------------


def forward_naive(x, weight, eps, residual=None):
    rows, columns = x.shape
    y, rstd = norm_outputs(x)
    s = torch.empty_like(y) if residual is not None else y
    _launch(
        "rmsnorm_forward_naive", (TYPES[x.dtype], residual is not None), rows, 256,
        x, x.stride(0), *pointer(residual, x), weight, y, s, rstd, columns, eps,
    )  # fmt: skip
    return (y, rstd) if residual is None else (y, s, rstd)


def backward_naive(dy, x, weight, rstd, eps, ds=None):
    rows, columns = x.shape
    dx, dw = x.new_empty(rows, columns), torch.empty_like(weight)
    _launch(
        "rmsnorm_dx_naive", (TYPES[x.dtype], ds is not None), rows, 256,
        dy, dy.stride(0), *pointer(ds, dy), x, x.stride(0), weight, rstd, dx, columns,
    )  # fmt: skip
    _launch(
        "rmsnorm_dw_naive", (TYPES[x.dtype],), -(-columns // 256), 256,
        dy, dy.stride(0), x, x.stride(0), rstd, dw, rows, columns,
    )  # fmt: skip
    return dx, dw


# vectorized and one_pass: is a row kept in registers between its two uses? -------------------------------------------


def _forward(x, weight, eps, residual, kept, threads, held):
    y, rstd = norm_outputs(x)
    s = torch.empty_like(y) if residual is not None else y
    vector = vector_width(x, weight, y) if residual is None else vector_width(x, residual, weight, y)
    _launch(
        "rmsnorm_forward", (TYPES[x.dtype], vector, threads, kept, held, residual is not None), x.shape[0], threads,
        x, x.stride(0), *pointer(residual, x), weight, y, s, rstd, x.shape[1], eps,
    )  # fmt: skip
    return (y, rstd) if residual is None else (y, s, rstd)


def _backward(dy, x, weight, rstd, ds, kept, threads, held, blocks_per_sm):
    rows, columns = x.shape
    dx = x.new_empty(rows, columns)
    vector = vector_width(dy, x, weight, dx) if ds is None else vector_width(dy, ds, x, weight, dx)
    blocks = min(rows, gpu_of(x.device).multiprocessors * blocks_per_sm)
    new_partial = rstd.new_empty if kept else rstd.new_zeros
    partial = new_partial(blocks, columns)
    _launch(
        "rmsnorm_backward", (TYPES[x.dtype], vector, threads, kept, held, ds is not None), blocks, threads,
        dy, dy.stride(0), *pointer(ds, dy), x, x.stride(0), weight, rstd, dx, partial, rows, columns,
    )  # fmt: skip
    return dx, _sum_partials(partial, weight)


def _sum_partials(partial, weight):
    dw = torch.empty_like(weight)
    blocks, columns = partial.shape
    _launch("rmsnorm_sum_partials", (TYPES[weight.dtype],), -(-columns // 32), 1024, partial, dw, blocks, columns)
    return dw


def forward_vectorized(x, weight, eps, residual=None):
    return _forward(x, weight, eps, residual, kept=False, threads=256, held=2)


def backward_vectorized(dy, x, weight, rstd, eps, ds=None):
    return _backward(dy, x, weight, rstd, ds, kept=False, threads=256, held=1, blocks_per_sm=4)


def forward_one_pass(x, weight, eps, residual=None):
    columns = x.shape[1]
    tensors = (x, weight) if residual is None else (x, weight, residual)
    vectors = columns // vector_width(*tensors)
    threads = min(1024, max(32, next_power_of_2(-(-vectors // 4))))
    if vectors > 8 * threads:
        return _forward(x, weight, eps, residual, kept=False, threads=threads, held=2)
    return _forward(x, weight, eps, residual, kept=True, threads=threads, held=next_power_of_2(-(-vectors // threads)))


def backward_one_pass(dy, x, weight, rstd, eps, ds=None):
    tensors = (dy, x, weight) if ds is None else (dy, x, weight, ds)
    vectors = x.shape[1] // vector_width(*tensors)
    threads = min(512, max(32, next_power_of_2(-(-vectors // 2))))
    if vectors <= 4 * threads:
        held = 2 if vectors <= 2 * threads else 4
        return _backward(dy, x, weight, rstd, ds, kept=True, threads=threads, held=held, blocks_per_sm=512 // threads)
    return _backward(dy, x, weight, rstd, ds, kept=False, threads=1024, held=1, blocks_per_sm=1)


# pipelined: forward as one_pass (loading rows ahead was slower there: the chapter tells); backward through a ring ----


class Ring(NamedTuple):
    """How rmsnorm_backward_pipelined is launched."""

    threads: int
    held: int  # vectors of a slice to a thread
    stages: int
    cluster: int
    blocks_per_sm: int
    shared: int  # bytes


def _ring(columns: int, element_size: int, n_streams: int, shared_memory: int) -> Ring | None:
    """The smallest cluster whose slices fit the registers (dw) and shared memory (at least 2 stages), or None."""
    vectors = columns * element_size // VECTOR_BYTES
    for cluster in (1, 2, 4, 8):
        if vectors % cluster:
            break
        slice_vectors = vectors // cluster
        limit = 1024 if cluster == 1 else 512  # measured: with a cluster, half the threads with twice the work
        threads = min(limit, max(32, next_power_of_2(-(-slice_vectors // 2))))
        held = -(-slice_vectors // threads)
        blocks_per_sm = max(1, min(512 // threads, 8))
        slot = slice_vectors * VECTOR_BYTES * n_streams
        besides = 4096 if element_size == 8 else 2048  # bytes for barriers, scratch, the system's own
        stages = min(4, (shared_memory // blocks_per_sm - besides) // slot)
        if slice_vectors <= 2048 and stages >= 2:
            return Ring(threads, next_power_of_2(held), stages, cluster, blocks_per_sm, stages * slot)
    return None


def backward_pipelined(dy, x, weight, rstd, eps, ds=None):
    rows, columns = x.shape
    gpu = gpu_of(x.device)
    tensors = (dy, x, weight) if ds is None else (dy, x, weight, ds)
    aligned = vector_width(*tensors) > 1
    ring = _ring(columns, x.element_size(), 2 if ds is None else 3, gpu.shared_memory) if aligned else None
    if ring is None:  # rows that the copy engine cannot take, or too long for eight blocks
        return backward_one_pass(dy, x, weight, rstd, eps, ds)
    kernel = "rmsnorm_backward_pipelined"
    template = (TYPES[x.dtype], ring.threads, ring.held, ring.stages, ring.cluster, ds is not None)
    if ring.cluster == 1:
        clusters = gpu.multiprocessors * ring.blocks_per_sm
    else:
        name = name_of(kernel, *template)
        clusters = resident_clusters(source_of(SOURCE), name, ring.cluster, ring.threads, ring.shared, x.device)
    clusters = min(rows, clusters)
    dx, partial = x.new_empty(rows, columns), rstd.new_empty(clusters, columns)
    _launch(
        kernel, template, clusters * ring.cluster, ring.threads,
        dy, dy.stride(0), *pointer(ds, dy), x, x.stride(0), weight, rstd, dx, partial, rows, columns,
        shared=ring.shared, cluster=ring.cluster,
    )  # fmt: skip
    return dx, _sum_partials(partial, weight)


LADDER = [
    Implementation(
        forward_naive, backward_naive, "naive",
        "a block a row, an element at a time, the row read twice; dw by a thread a column",
        unavailable, refuses_dtype,
    ),
    Implementation(
        forward_vectorized, backward_vectorized, "vectorized",
        "16-byte loads, warp shuffles in place of the shared-memory tree; dw summed by block in global memory",
        unavailable, refuses_dtype,
    ),
    Implementation(
        forward_one_pass, backward_one_pass, "one_pass",
        "the row stays in registers and is read once; dw in registers over many rows",
        unavailable, refuses_dtype,
    ),
    Implementation(
        forward_one_pass, backward_pipelined, "pipelined",
        "backward: the copy engine loads rows ahead into a shared-memory ring; long rows over a cluster of blocks",
        needs_capability(9, 0, "Hopper's bulk copy engine and clusters"), refuses_dtype,
    ),
]  # fmt: skip
