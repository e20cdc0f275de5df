"""Softmax in Triton, in the order in which the chapter teaches it. The mathematics is in `lab/ops/softmax.py`.

Every kernel takes rows through a row stride in elements and columns of unit stride. Columns past the end of a row are
masked: loaded as -inf, whose exponential adds nothing, and never stored. Row offsets are 64-bit, for tensors of more
than 2^31 elements. ACC is the accumulation dtype.
"""

import math

import torch
import triton
import triton.language as tl

from lab.backends.implementation import Implementation
from lab.backends.triton.runtime import accumulator, refuses_dtype, refuses_longer_rows, unavailable

REGISTER_COLUMNS = 32768  # the longest row that the registers of one program hold
TILED_COLUMNS = 4096  # up to here a program takes a tile of rows, at the end a tile of one

# naive: a kernel for each step, as eager PyTorch would do it ---------------------------------------------------------


@triton.jit
def _softmax_max_naive(x, x_stride, largest, columns, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """m = max(x). One program a row: reads columns, writes 1."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.full([BLOCK], float("-inf"), ACC)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * x_stride + column, column < columns, other=float("-inf")).to(ACC)
        lanes = tl.maximum(lanes, value)
    tl.store(largest + row, tl.max(lanes))


@triton.jit
def _softmax_sum_naive(x, x_stride, largest, total, columns, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """s = sum(exp(x - m)). One program a row: reads columns again, writes 1."""
    row = tl.program_id(0).to(tl.int64)
    m = tl.load(largest + row)
    lanes = tl.zeros([BLOCK], ACC)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * x_stride + column, column < columns, other=float("-inf")).to(ACC)
        lanes += tl.where(column < columns, tl.exp(value - m), 0)
    tl.store(total + row, tl.sum(lanes))


@triton.jit
def _softmax_scale_naive(x, x_stride, largest, total, y, columns, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """y = exp(x - m) / s. One program a row: reads columns a third time, writes columns."""
    row = tl.program_id(0).to(tl.int64)
    m = tl.load(largest + row)
    s = tl.load(total + row)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        value = tl.load(x + row * x_stride + column, mask).to(ACC)
        tl.store(y + row * columns + column, tl.exp(value - m) / s, mask)


@triton.jit
def _softmax_dot_naive(dy, dy_stride, y, dot, columns, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """d = sum(y dy). One program a row: reads 2 columns, writes 1."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.zeros([BLOCK], ACC)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        grad = tl.load(dy + row * dy_stride + column, mask, other=0).to(ACC)
        lanes += tl.load(y + row * columns + column, mask, other=0).to(ACC) * grad
    tl.store(dot + row, tl.sum(lanes))


@triton.jit
def _softmax_dx_naive(dy, dy_stride, y, dot, dx, columns, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """dx = y (dy - d). One program a row: reads 2 columns again, writes columns."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.load(dot + row)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        grad = tl.load(dy + row * dy_stride + column, mask).to(ACC)
        value = tl.load(y + row * columns + column, mask).to(ACC)
        tl.store(dx + row * columns + column, value * (grad - d), mask)


def _per_row(x):
    """One unwritten number for each row, in the accumulation dtype."""
    return x.new_empty(x.shape[0], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def forward_naive(x):
    rows, columns = x.shape
    y, largest, total = x.new_empty(rows, columns), _per_row(x), _per_row(x)
    acc = accumulator(x.dtype)
    _softmax_max_naive[(rows,)](x, x.stride(0), largest, columns, ACC=acc, BLOCK=1024)
    _softmax_sum_naive[(rows,)](x, x.stride(0), largest, total, columns, ACC=acc, BLOCK=1024)
    _softmax_scale_naive[(rows,)](x, x.stride(0), largest, total, y, columns, ACC=acc, BLOCK=1024)
    return (y,)


def backward_naive(dy, y):
    rows, columns = y.shape
    dx, dot = torch.empty_like(y), _per_row(y)
    acc = accumulator(y.dtype)
    _softmax_dot_naive[(rows,)](dy, dy.stride(0), y, dot, columns, ACC=acc, BLOCK=1024)
    _softmax_dx_naive[(rows,)](dy, dy.stride(0), y, dot, dx, columns, ACC=acc, BLOCK=1024)
    return (dx,)


# one_pass: the whole row in registers, read once ----------------------------------------------------------------------


@triton.jit
def _softmax_forward_one_pass(x, x_stride, y, columns, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """One program a row, all of it at once: reads columns, writes columns."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < columns
    value = tl.load(x + row * x_stride + column, mask, other=float("-inf")).to(ACC)
    e = tl.where(mask, tl.exp(value - tl.max(value)), 0)
    tl.store(y + row * columns + column, e / tl.sum(e), mask)


@triton.jit
def _softmax_backward_one_pass(dy, dy_stride, y, dx, columns, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """One program a row, all of it at once: reads 2 columns, writes columns."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < columns
    grad = tl.load(dy + row * dy_stride + column, mask, other=0)
    value = tl.load(y + row * columns + column, mask, other=0)
    d = tl.sum(grad.to(ACC) * value.to(ACC))
    tl.store(dx + row * columns + column, value.to(ACC) * (grad.to(ACC) - d), mask)


def _warps(block):
    return 4 if block <= 4096 else min(block // 512, 32)


def forward_one_pass(x):
    rows, columns = x.shape
    y = x.new_empty(rows, columns)
    block = triton.next_power_of_2(columns)
    _softmax_forward_one_pass[(rows,)](
        x, x.stride(0), y, columns, ACC=accumulator(x.dtype), BLOCK=block, num_warps=_warps(block)
    )
    return (y,)


def backward_one_pass(dy, y):
    rows, columns = y.shape
    dx = torch.empty_like(y)
    block = triton.next_power_of_2(columns)
    _softmax_backward_one_pass[(rows,)](
        dy, dy.stride(0), y, dx, columns, ACC=accumulator(y.dtype), BLOCK=block, num_warps=_warps(block)
    )
    return (dx,)


# tiled: several short rows to a program -------------------------------------------------------------------------------


@triton.jit
def _softmax_forward_tiled(
    x, x_stride, y, rows, columns,
    ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """One program for ROWS rows: reads and writes ROWS x columns. WHOLE: a row fills its block, so that no column needs
    a mask. x_stride and columns arrive in units of ALIGN elements, so that loads are as wide as rows allow: Triton asks
    of a number whether 16 divides it, and 8 elements of 16 bits would do."""
    columns = columns * ALIGN
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = row < rows if WHOLE else (row < rows) & (column < columns)
    value = tl.load(x + row * x_stride * ALIGN + column, mask, other=float("-inf")).to(ACC)
    m = tl.max(value, 1)[:, None]
    e = tl.exp(value - m) if WHOLE else tl.where(column < columns, tl.exp(value - m), 0)
    tl.store(y + row * columns + column, e / tl.sum(e, 1)[:, None], mask)


@triton.jit
def _softmax_backward_tiled(
    dy, dy_stride, y, dx, rows, columns,
    ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """One program for ROWS rows: reads 2 ROWS x columns, writes ROWS x columns. dy_stride and columns in units of
    ALIGN elements."""
    columns = columns * ALIGN
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = row < rows if WHOLE else (row < rows) & (column < columns)
    grad = tl.load(dy + row * dy_stride * ALIGN + column, mask, other=0).to(ACC)
    value = tl.load(y + row * columns + column, mask, other=0).to(ACC)
    d = tl.sum(grad * value, 1)[:, None]
    tl.store(dx + row * columns + column, value * (grad - d), mask)


def _tile(columns, align):
    """Rows to a program and columns of its block: 2048 elements, 16 to a thread."""
    block = triton.next_power_of_2(columns)
    return {"ROWS": max(1, 2048 // block), "BLOCK": block, "WHOLE": block == columns, "ALIGN": align, "num_warps": 4}


def forward_tiled(x):
    rows, columns = x.shape
    if columns > TILED_COLUMNS:
        return forward_one_pass(x)
    align = math.gcd(columns, x.stride(0), 16)
    y, tile = x.new_empty(rows, columns), _tile(columns, align)
    _softmax_forward_tiled[(triton.cdiv(rows, tile["ROWS"]),)](
        x, x.stride(0) // align, y, rows, columns // align, ACC=accumulator(x.dtype), **tile
    )
    return (y,)


def backward_tiled(dy, y):
    rows, columns = y.shape
    if columns > TILED_COLUMNS:
        return backward_one_pass(dy, y)
    align = math.gcd(columns, dy.stride(0), 16)
    dx, tile = torch.empty_like(y), _tile(columns, align)
    _softmax_backward_tiled[(triton.cdiv(rows, tile["ROWS"]),)](
        dy, dy.stride(0) // align, y, dx, rows, columns // align, ACC=accumulator(y.dtype), **tile
    )
    return (dx,)


# online: a row too long for registers, in two looks; the first finds maximum and sum together -----------------------


@triton.jit
def _softmax_forward_online(x, x_stride, y, columns, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """One program a row, BLOCK columns at a time, twice: reads columns (and again, from cache), writes columns. Each
    lane keeps a maximum and a sum of its own, the sum scaled whenever the maximum grows; they meet after the loop."""
    row = tl.program_id(0).to(tl.int64)
    m = tl.full([BLOCK], float("-inf"), ACC)
    s = tl.zeros([BLOCK], ACC)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        value = tl.load(x + row * x_stride + column, mask, other=float("-inf"), eviction_policy="evict_last").to(ACC)
        larger = tl.maximum(m, value)
        origin = tl.where(larger == float("-inf"), 0, larger)  # -inf less -inf would be NaN
        s = s * tl.exp(m - origin) + tl.exp(value - origin)
        m = larger
    largest = tl.max(m)
    origin = tl.where(largest == float("-inf"), 0, largest)
    total = tl.sum(s * tl.exp(m - origin))
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        value = tl.load(x + row * x_stride + column, mask, eviction_policy="evict_first").to(ACC)
        tl.store(y + row * columns + column, tl.exp(value - origin) / total, mask)


@triton.jit
def _softmax_backward_two_looks(dy, dy_stride, y, dx, columns, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """One program a row, twice: reads 2 columns (and again, from cache), writes columns."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.zeros([BLOCK], ACC)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        grad = tl.load(dy + row * dy_stride + column, mask, other=0, eviction_policy="evict_last").to(ACC)
        value = tl.load(y + row * columns + column, mask, other=0, eviction_policy="evict_last").to(ACC)
        lanes += value * grad
    d = tl.sum(lanes)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        grad = tl.load(dy + row * dy_stride + column, mask, eviction_policy="evict_first").to(ACC)
        value = tl.load(y + row * columns + column, mask, eviction_policy="evict_first").to(ACC)
        tl.store(dx + row * columns + column, value * (grad - d), mask)


def forward_online(x):
    rows, columns = x.shape
    if columns <= REGISTER_COLUMNS:
        return forward_tiled(x)
    y = x.new_empty(rows, columns)
    _softmax_forward_online[(rows,)](x, x.stride(0), y, columns, ACC=accumulator(x.dtype), BLOCK=16384, num_warps=32)
    return (y,)


def backward_online(dy, y):
    rows, columns = y.shape
    if columns > REGISTER_COLUMNS:
        block, warps = 8192, 16
    elif TILED_COLUMNS // 2 < columns <= TILED_COLUMNS:  # measured: L1 holds the row better than registers
        block, warps = TILED_COLUMNS // 2, 8
    else:
        return backward_tiled(dy, y)
    dx = torch.empty_like(y)
    _softmax_backward_two_looks[(rows,)](
        dy, dy.stride(0), y, dx, columns, ACC=accumulator(y.dtype), BLOCK=block, num_warps=warps
    )
    return (dx,)


LADDER = [
    Implementation(
        forward_naive, backward_naive, "naive",
        "a kernel for each step, as eager PyTorch would run it: maximum, sum, quotient; each reads the row again",
        unavailable, refuses_dtype,
    ),
    Implementation(
        forward_one_pass, backward_one_pass, "one_pass",
        "one kernel a pass: the whole row in the registers of one program, read once",
        unavailable, refuses_longer_rows(REGISTER_COLUMNS),
    ),
    Implementation(
        forward_tiled, backward_tiled, "tiled",
        "several short rows to a program, and no masks where a row fills its block",
        unavailable, refuses_longer_rows(REGISTER_COLUMNS),
    ),
    Implementation(
        forward_online, backward_online, "online",
        "rows too long for registers in two looks, the first with the online normalizer, the second from cache; "
        "backward rows of 2049 to 4096 columns too",
        unavailable, refuses_dtype,
    ),
]  # fmt: skip
