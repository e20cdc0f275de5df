"""Launchers of `linear.cu`, in the order in which the chapter teaches its kernels. The mathematics is in
`lab/ops/linear.py`.

Its three products are one, c = a b (+ bias) of a (m, k) and b (k, n), as in `lab/backends/triton/linear.py`; a
transpose is a view. float16 and bfloat16 are summed in float32. float32 is multiplied in full and not in TF32, and
float64 in float64: the rungs that use tensor cores, for half precision only, multiply both as `register` does.
"""

from pathlib import Path
from typing import NamedTuple

import torch

from lab.backends.cuda.compile import (
    TYPES,
    TensorMap,
    launch,
    name_of,
    needs_capability,
    refuses_dtype,
    source_of,
    unavailable,
)
from lab.backends.cuda.rows import VECTOR_BYTES, vector_width
from lab.backends.hardware import GPU, gpu_of
from lab.backends.implementation import Implementation
from lab.backends.rows import accumulation_dtype

SOURCE = Path(__file__).with_suffix(".cu")
PANEL = 64  # elements to a row of shared memory, and rows, in which tensor cores' operands lie
PANEL_BYTES = 128 * PANEL


def _launch(kernel: str, template: tuple, grid: int, block: int, *args, **options) -> None:
    launch(source_of(SOURCE), name_of(kernel, *template), grid, block, *args, **options)


def _tiles(m: int, n: int, side_m: int, side_n: int) -> int:
    """How many tiles of side_m x side_n make up an m x n matrix."""
    return -(-m // side_m) * -(-n // side_n)


class Operand(NamedTuple):
    """a or b as kernels take it. matrix: (m, k) or (n, k), as a view; along_k: whether unit stride is along k."""

    matrix: torch.Tensor
    along_k: bool

    @property
    def rows(self) -> torch.Tensor:
        """The matrix or its transpose, with unit stride in the second dimension."""
        return self.matrix if self.along_k else self.matrix.mT

    @property
    def stride(self) -> int:
        return self.rows.stride(0)


def _operands(a, b) -> tuple[Operand, Operand]:
    return Operand(a, a.stride(1) == 1), Operand(b.mT, b.stride(0) == 1)


def _product(kernel, template, grid, block, left, right, bias, c, *args, **options) -> None:
    """Launches a kernel that takes both operands, bias and c, and then their sizes."""
    (m, k), n = left.matrix.shape, right.matrix.shape[0]
    dtype = (TYPES[c.dtype], left.along_k, right.along_k)
    _launch(
        kernel, (*dtype, *template, bias is not None), grid, block,
        left.matrix, left.stride, right.matrix, right.stride, c if bias is None else bias, c, m, n, k, *args, **options,
    )  # fmt: skip


# naive, shared, register ---------------------------------------------------------------------------------------------


def product_naive(a, b, bias=None):
    m, n = a.shape[0], b.shape[1]
    c = a.new_empty(m, n)
    _product("linear_naive", (), _tiles(m, n, 16, 16), 256, *_operands(a, b), bias, c)
    return c


def product_shared(a, b, bias=None):
    m, n = a.shape[0], b.shape[1]
    c = a.new_empty(m, n)
    _product("linear_shared", (), _tiles(m, n, 32, 32), 1024, *_operands(a, b), bias, c)
    return c


def product_register(a, b, bias=None):
    m, n, (left, right) = a.shape[0], b.shape[1], _operands(a, b)
    c, widths = a.new_empty(m, n), (vector_width(left.rows), vector_width(right.rows))
    _product("linear_register", widths, _tiles(m, n, 128, 128), 256, left, right, bias, c)
    return c


def column_sums(x):
    """x (rows, columns) summed over its rows: slabs of rows, as many as keep the GPU busy, and then the slabs' sums."""
    rows, columns = x.shape
    blocks = -(-columns // (32 * vector_width(x)))
    slab = max(64, -(-rows // -(-4 * gpu_of(x.device).multiprocessors // blocks)))
    if slab >= rows:
        return _column_sums(x, x.new_empty(1, columns), rows)[0]
    partial = x.new_empty(-(-rows // slab), columns, dtype=accumulation_dtype(x.dtype))
    return _column_sums(_column_sums(x, partial, slab), x.new_empty(1, columns), len(partial))[0]


def _column_sums(x, sums, slab):
    (rows, columns), width = x.shape, vector_width(x)
    _launch(
        "linear_column_sums", (TYPES[x.dtype], TYPES[sums.dtype], width),
        -(-columns // (32 * width)) * sums.shape[0], 256, x, x.stride(0), sums, rows, columns, slab,
    )  # fmt: skip
    return sums


# mma -----------------------------------------------------------------------------------------------------------------

GROUP = 8  # rows of tiles to a group


def _for_tensor_cores(operand: Operand) -> Operand:
    """An operand whose rows begin at multiples of 16 bytes: a copy if those of this one do not."""
    rows = operand.rows
    size, stride = rows.element_size(), rows.stride(0)
    if rows.data_ptr() % VECTOR_BYTES or stride * size % VECTOR_BYTES or stride < rows.shape[1]:
        unit = VECTOR_BYTES // size
        # zeros: a copy of fewer than 16 bytes reads no padding, but compute-sanitizer takes it for a read of 16
        padded = rows.new_zeros(rows.shape[0], -(-rows.shape[1] // unit) * unit)[:, : rows.shape[1]]
        rows = padded.copy_(rows)
    return Operand(rows if operand.along_k else rows.mT, operand.along_k)


class WarpTile(NamedTuple):
    """block_m x block_n elements of c to a block, shared out over warps_m x warps_n warps. stages: of the ring."""

    block_m: int
    block_n: int
    warps_m: int
    warps_n: int
    stages: int


def plan_mma(m: int, n: int, gpu: GPU) -> WarpTile:
    """The tile of linear_mma for a product with m rows and n columns on `gpu`."""
    if m <= 64:
        return WarpTile(64, 128, 1, 4, 4)
    large = WarpTile(128, 256, 2, 4, 3)
    roomy = gpu.shared_memory >= large.stages * (large.block_m + large.block_n) * 128
    return large if roomy and _tiles(m, n, 128, 256) >= gpu.multiprocessors else WarpTile(128, 128, 2, 2, 3)


def product_mma(a, b, bias=None):
    if a.element_size() > 2:
        return product_register(a, b, bias)
    m, n, (left, right) = a.shape[0], b.shape[1], map(_for_tensor_cores, _operands(a, b))
    c, tile = a.new_empty(m, n), plan_mma(m, n, gpu_of(a.device))
    _product(
        "linear_mma", tile, _tiles(m, n, tile.block_m, tile.block_n), 32 * tile.warps_m * tile.warps_n,
        left, right, bias, c, GROUP, shared=tile.stages * (tile.block_m + tile.block_n) * 128,
    )  # fmt: skip
    return c


# wgmma ---------------------------------------------------------------------------------------------------------------


class Schedule(NamedTuple):
    """How linear_wgmma goes about a product. block_n: columns of a tile; it has 64 rows for each of the warpgroups that
    multiply, `consumers`. stages: places of the ring. cluster: blocks that share tiles of b. group: rows of tiles to a
    group, in clusters. depth: what is summed at a time; less than k, and the sum is split."""

    block_n: int
    consumers: int
    stages: int
    cluster: int
    group: int
    depth: int

    def items(self, m: int, n: int, k: int) -> int:
        """What the blocks share out among them, in clusters."""
        return _tiles(m, n, PANEL * self.consumers * self.cluster, self.block_n) * -(-k // self.depth)

    def shared(self, output: str) -> int:
        """Bytes of shared memory: the ring, what c passes through, two barriers a stage."""
        panels = self.stages * (self.consumers + self.block_n // PANEL) + (output == "TO_TMA") * 2 * self.consumers
        return panels * PANEL_BYTES + self.stages * 16


def plan_wgmma(m: int, n: int, k: int, gpu: GPU) -> Schedule:
    """The schedule of a product. Where c has too few tiles for the GPU, smaller ones, and then the sum over k is split:
    as often as there are multiprocessors left, but into parts of at least 4 steps."""
    if m > 64 and _tiles(m, n, 128, 256) >= gpu.multiprocessors:
        return Schedule(256, 2, 4, 2, 8, k)
    few = Schedule(128, 1, 8, 1, 16, k) if m <= 64 else Schedule(128, 2, 6, 1, 8, k)
    splits = max(1, min(gpu.multiprocessors // few.items(m, n, k), -(-k // PANEL) // 4))
    depth = -(-k // (splits * PANEL)) * PANEL
    return few._replace(depth=min(k, depth))


def _maps(left: Operand, right: Operand) -> list[TensorMap]:
    """Of a and b, which TMA fetches in panels. Of few rows of a no more than there are: zeros for the others take TMA
    longer than copies. And then what is along k is fetched as it is asked for, which is faster: the 128 bytes beside a
    panel's are the next step's."""
    few = len(left.matrix) <= PANEL
    boxes = (min(len(left.matrix), PANEL) if left.along_k else PANEL, PANEL), (PANEL, PANEL)
    return [TensorMap(each.rows, box, not (few and each.along_k)) for each, box in zip((left, right), boxes)]


def _wgmma(left, right, bias, c, schedule):
    """linear_wgmma with the schedule; c is written by it, or after it where the sum is split."""
    (m, n), k = c.shape, left.matrix.shape[1]
    splits = -(-k // schedule.depth)
    output = "SPLIT" if splits > 1 else "TO_TMA" if n * c.element_size() % VECTOR_BYTES == 0 else "DIRECT"
    out = c if splits == 1 else c.new_empty(splits, m, n, dtype=torch.float32)
    maps = _maps(left, right)
    clusters = min(schedule.items(m, n, k), gpu_of(c.device).multiprocessors // schedule.cluster)
    _launch(
        "linear_wgmma",
        (TYPES[c.dtype], left.along_k, right.along_k, *schedule[:4], bias is not None and splits == 1, output),
        clusters * schedule.cluster, 128 * (schedule.consumers + 1),
        out, *maps, TensorMap(c, (PANEL, PANEL)) if output == "TO_TMA" else maps[0], c if bias is None else bias,
        m, n, k, schedule.depth, schedule.group, shared=schedule.shared(output), cluster=schedule.cluster,
    )  # fmt: skip
    if splits > 1:
        _launch(
            "linear_add_splits", (TYPES[c.dtype], bias is not None), -(-m * n // 256), 256,
            out, c if bias is None else bias, c, m * n, n, splits,
        )  # fmt: skip


def product_wgmma(a, b, bias=None):
    if a.element_size() > 2:
        return product_register(a, b, bias)
    (m, k), n, (left, right) = a.shape, b.shape[1], map(_for_tensor_cores, _operands(a, b))
    c = a.new_empty(m, n)
    _wgmma(left, right, bias, c, plan_wgmma(m, n, k, gpu_of(a.device)))
    return c


def is_not_hopper(device: torch.device) -> str | None:
    """Why wgmma, which later GPUs have no more, cannot run on `device`, or None."""
    gpu = gpu_of(device) if device.type == "cuda" else None
    if gpu and gpu.capability[0] != 9 and not unavailable(device):
        return f"needs Hopper's wgmma (compute capability 9.0); {gpu.name} has {'{}.{}'.format(*gpu.capability)}"
    return unavailable(device)


def _rung(name, change, product, unavailable=unavailable):
    def forward(x, weight, bias):
        return (product(x, weight.mT, bias),)

    def backward(dy, x, weight, bias):
        return product(dy, weight), product(dy.mT, x), None if bias is None else column_sums(dy)

    return Implementation(forward, backward, name, change, unavailable, refuses_dtype)


LADDER = [
    _rung("naive", "a thread an element of y, which reads a row of x and one of weight", product_naive),
    _rung("shared", "tiles of 32 x 32 elements in shared memory, each element read once and used 32 times",
          product_shared),
    _rung("register", "8 x 8 elements of y to a thread; 16-byte loads, under way while the tile before is multiplied",
          product_register),
    _rung("mma", "tensor cores by the warp (float16, bfloat16): ldmatrix, swizzled tiles, a ring that cp.async fills",
          product_mma, needs_capability(8, 0, "Ampere's tensor cores and cp.async")),
    _rung("wgmma", "Hopper's tensor cores by the warpgroup, TMA, warps that only load, blocks that stay; the sum over "
          "k split where y has few tiles", product_wgmma, is_not_hopper),
]  # fmt: skip
