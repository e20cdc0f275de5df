"""Launchers of `rmsnorm.cu`, in the order in which the chapter teaches its kernels. The mathematics is in
`lab/ops/rmsnorm.py`; residual and ds are given by `lab/backends/cuda/add_rmsnorm.py` only."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from lab.backends.cuda.compile import launch, needs_capability, resident_clusters, source_of, unavailable
from lab.backends.hardware import gpu_of
from lab.backends.registry import Implementation
from lab.backends.rows import norm_outputs, pointer

SOURCE = Path(__file__).with_suffix(".cu")
TYPES = {torch.float16: "__half", torch.bfloat16: "__nv_bfloat16", torch.float32: "float", torch.float64: "double"}
VECTOR_BYTES = 16  # the widest load of one thread


def refuses(x, *_):
    if x.dtype == torch.bfloat16 and gpu_of(x.device).capability < (8, 0):
        return f"x is bfloat16, which {gpu_of(x.device).name} lacks; expected float16 or float32"
    return None


@cache
def _name(kernel: str, *template: object) -> str:
    """The C++ name expression: _name("f", "float", 4, True) is "f<float, 4, true>"."""
    return f"{kernel}<{', '.join(str(value).lower() if isinstance(value, bool) else str(value) for value in template)}>"


def _launch(kernel: str, template: tuple, grid: int, block: int, *args, **options) -> None:
    launch(source_of(SOURCE), _name(kernel, *template), grid, block, *args, **options)


def _vector(*tensors) -> int:
    """Elements to a load: 16 bytes' worth if every row of every tensor starts on a 16-byte boundary, else 1."""
    size = tensors[0].element_size()
    aligned = all(
        tensor.data_ptr() % VECTOR_BYTES == 0
        and tensor.shape[-1] * size % VECTOR_BYTES == 0
        and (tensor.dim() == 1 or tensor.shape[0] == 1 or tensor.stride(0) * size % VECTOR_BYTES == 0)
        for tensor in tensors
    )
    return VECTOR_BYTES // size if aligned else 1


def _power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


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


# vectorized and one_pass: kernels that differ in where a row is kept between its two uses ----------------------------


def _forward(x, weight, eps, residual, keep, threads, held, shared=0):
    y, rstd = norm_outputs(x)
    s = torch.empty_like(y) if residual is not None else y
    vector = _vector(x, weight, y) if residual is None else _vector(x, residual, weight, y)
    _launch(
        "rmsnorm_forward", (TYPES[x.dtype], vector, threads, keep, held, residual is not None), x.shape[0], threads,
        x, x.stride(0), *pointer(residual, x), weight, y, s, rstd, x.shape[1], eps, shared=shared,
    )  # fmt: skip
    return (y, rstd) if residual is None else (y, s, rstd)


def _backward(dy, x, weight, rstd, ds, keep, threads, held, blocks_per_sm):
    rows, columns = x.shape
    dx = x.new_empty(rows, columns)
    vector = _vector(dy, x, weight, dx) if ds is None else _vector(dy, ds, x, weight, dx)
    blocks = min(rows, gpu_of(x.device).multiprocessors * blocks_per_sm)
    new_partial = rstd.new_zeros if keep == "NOWHERE" else rstd.new_empty
    partial = new_partial(blocks, columns)
    _launch(
        "rmsnorm_backward", (TYPES[x.dtype], vector, threads, keep, held, ds is not None), blocks, threads,
        dy, dy.stride(0), *pointer(ds, dy), x, x.stride(0), weight, rstd, dx, partial, rows, columns,
    )  # fmt: skip
    return dx, _sum_partials(partial, weight)


def _sum_partials(partial, weight):
    dw = torch.empty_like(weight)
    blocks, columns = partial.shape
    _launch("rmsnorm_sum_partials", (TYPES[weight.dtype],), -(-columns // 32), 1024, partial, dw, blocks, columns)
    return dw


def forward_vectorized(x, weight, eps, residual=None):
    return _forward(x, weight, eps, residual, "NOWHERE", threads=256, held=2)


def backward_vectorized(dy, x, weight, rstd, eps, ds=None):
    return _backward(dy, x, weight, rstd, ds, "NOWHERE", threads=256, held=1, blocks_per_sm=4)


def forward_one_pass(x, weight, eps, residual=None):
    columns = x.shape[1]
    tensors = (x, weight) if residual is None else (x, weight, residual)
    vectors = columns // _vector(*tensors)
    threads = min(1024, max(32, _power_of_2(-(-vectors // 2))))
    if vectors <= 4 * threads:
        return _forward(x, weight, eps, residual, "REGISTERS", threads, held=2 if vectors <= 2 * threads else 4)
    if (row_bytes := columns * x.element_size()) <= gpu_of(x.device).shared_memory - 1024:  # 1 KiB for the kernel's own
        return _forward(x, weight, eps, residual, "SHARED", threads, held=4, shared=row_bytes)
    return _forward(x, weight, eps, residual, "NOWHERE", threads, held=2)


def backward_one_pass(dy, x, weight, rstd, eps, ds=None):
    tensors = (dy, x, weight) if ds is None else (dy, x, weight, ds)
    vectors = x.shape[1] // _vector(*tensors)
    threads = min(512, max(32, _power_of_2(-(-vectors // 2))))
    if vectors <= 4 * threads:
        held = 2 if vectors <= 2 * threads else 4
        return _backward(dy, x, weight, rstd, ds, "REGISTERS", threads, held, blocks_per_sm=512 // threads)
    return _backward(dy, x, weight, rstd, ds, "NOWHERE", threads=1024, held=1, blocks_per_sm=1)


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
        threads = min(limit, max(32, _power_of_2(-(-slice_vectors // 2))))
        held = -(-slice_vectors // threads)
        blocks_per_sm = max(1, min(512 // threads, 8))
        slot = slice_vectors * VECTOR_BYTES * n_streams
        stages = min(4, (shared_memory // blocks_per_sm - 2048) // slot)  # 2 KiB: barriers, scratch, the system's own
        if slice_vectors <= 2048 and stages >= 2:
            return Ring(threads, _power_of_2(held), stages, cluster, blocks_per_sm, stages * slot)
    return None


def backward_pipelined(dy, x, weight, rstd, eps, ds=None):
    rows, columns = x.shape
    gpu = gpu_of(x.device)
    tensors = (dy, x, weight) if ds is None else (dy, x, weight, ds)
    aligned = _vector(*tensors) > 1
    ring = _ring(columns, x.element_size(), 2 if ds is None else 3, gpu.shared_memory) if aligned else None
    if ring is None:  # rows that the copy engine cannot take, or too long for eight blocks
        return backward_one_pass(dy, x, weight, rstd, eps, ds)
    kernel = "rmsnorm_backward_pipelined"
    template = (TYPES[x.dtype], ring.threads, ring.held, ring.stages, ring.cluster, ds is not None)
    if ring.cluster == 1:
        clusters = gpu.multiprocessors * ring.blocks_per_sm
    else:
        name = _name(kernel, *template)
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
        unavailable, refuses,
    ),
    Implementation(
        forward_vectorized, backward_vectorized, "vectorized",
        "16-byte loads, warp shuffles in place of the shared-memory tree; dw summed by block in global memory",
        unavailable, refuses,
    ),
    Implementation(
        forward_one_pass, backward_one_pass, "one_pass",
        "the row stays in registers (shared memory when longer) and is read once; dw in registers over many rows",
        unavailable, refuses,
    ),
    Implementation(
        forward_one_pass, backward_pipelined, "pipelined",
        "backward: the copy engine loads rows ahead into a shared-memory ring; long rows over a cluster of blocks",
        needs_capability(9, 0, "Hopper's bulk copy engine and clusters"), refuses,
    ),
]  # fmt: skip
