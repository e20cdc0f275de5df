"""Layer normalization in Triton. The mathematics is in `lab/ops/layernorm.py`.

Rows go through a row stride in elements, columns have unit stride; columns past the end of a row are masked, and where
a masked lane would add to a sum it is put to zero after the mean is taken off. EPS and ACC (the accumulation dtype) are
compile-time constants: a Python float passed at run time would arrive as float32.
"""

import torch
import triton
import triton.language as tl

from lab.backends.hardware import gpu_of
from lab.backends.implementation import Implementation
from lab.backends.rows import accumulation_dtype
from lab.backends.triton.runtime import accumulator, refuses_dtype, unavailable

REGISTER_COLUMNS = 16384  # the longest row that one program holds at once

# naive: a program a row, which goes over its row once for every sum ---------------------------------------------------


@triton.jit
def _layernorm_forward_naive(
    x, x_stride, weight, bias, y, means, rstds, columns,
    EPS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Reads columns three times, and w and b; writes columns."""
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], ACC)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        total += tl.load(x + row * x_stride + column, column < columns, other=0).to(ACC)
    mean = tl.sum(total) / columns
    squares = tl.zeros([BLOCK], ACC)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * x_stride + column, column < columns, other=0).to(ACC)
        centred = tl.where(column < columns, value - mean, 0)
        squares += centred * centred
    r = 1 / tl.sqrt(tl.sum(squares) / columns + EPS)
    tl.store(means + row, mean)
    tl.store(rstds + row, r)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        value = tl.load(x + row * x_stride + column, mask).to(ACC)
        w = tl.load(weight + column, mask).to(ACC)
        b = tl.load(bias + column, mask).to(ACC)
        tl.store(y + row * columns + column, (value - mean) * r * w + b, mask)


@triton.jit
def _layernorm_dx_naive(
    dy, dy_stride, x, x_stride, weight, means, rstds, dx, columns, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    """dx. Reads 2 columns twice, and w; writes columns."""
    row = tl.program_id(0).to(tl.int64)
    mean = tl.load(means + row)
    r = tl.load(rstds + row)
    sum_g = tl.zeros([BLOCK], ACC)
    sum_gx = tl.zeros([BLOCK], ACC)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        grad = tl.load(dy + row * dy_stride + column, mask, other=0).to(ACC)
        value = tl.load(x + row * x_stride + column, mask, other=0).to(ACC)
        g = grad * tl.load(weight + column, mask, other=0).to(ACC)
        sum_g += g
        sum_gx += g * (value - mean) * r
    mean_g = tl.sum(sum_g) / columns
    mean_gx = tl.sum(sum_gx) / columns
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        grad = tl.load(dy + row * dy_stride + column, mask).to(ACC)
        value = tl.load(x + row * x_stride + column, mask).to(ACC)
        g = grad * tl.load(weight + column, mask).to(ACC)
        tl.store(dx + row * columns + column, r * (g - mean_g - (value - mean) * r * mean_gx), mask)


@triton.jit
def _layernorm_dw_db(
    dy, dy_stride, x, x_stride, means, rstds, dw, db, rows, columns,
    ACC: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One program for each BLOCK columns: reads all rows of them."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    sum_w = tl.zeros([ROWS, BLOCK], ACC)
    sum_b = tl.zeros([ROWS, BLOCK], ACC)
    for start in range(0, rows, ROWS):
        row = (start + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        mask = (row < rows) & (column < columns)
        grad = tl.load(dy + row * dy_stride + column, mask, other=0).to(ACC)
        value = tl.load(x + row * x_stride + column, mask, other=0).to(ACC)
        mean = tl.load(means + row, row < rows, other=0)
        r = tl.load(rstds + row, row < rows, other=0)
        sum_w += grad * (value - mean) * r
        sum_b += grad
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(dw + column, tl.sum(sum_w, 0), column < columns)
    tl.store(db + column, tl.sum(sum_b, 0), column < columns)


def _outputs(x):
    rows, columns = x.shape
    mean, rstd = (x.new_empty(rows, dtype=accumulation_dtype(x.dtype)) for _ in range(2))
    return x.new_empty(rows, columns), mean, rstd


def forward_naive(x, weight, bias, eps):
    rows, columns = x.shape
    y, mean, rstd = _outputs(x)
    _layernorm_forward_naive[(rows,)](
        x, x.stride(0), weight, bias, y, mean, rstd, columns, EPS=eps, ACC=accumulator(x.dtype), BLOCK=1024
    )
    return y, mean, rstd


def backward_naive(dy, x, weight, mean, rstd, eps):
    rows, columns = x.shape
    dx, dw, db = x.new_empty(rows, columns), torch.empty_like(weight), torch.empty_like(weight)
    acc = accumulator(x.dtype)
    _layernorm_dx_naive[(rows,)](dy, dy.stride(0), x, x.stride(0), weight, mean, rstd, dx, columns, ACC=acc, BLOCK=1024)
    _layernorm_dw_db[(triton.cdiv(columns, 64),)](
        dy, dy.stride(0), x, x.stride(0), mean, rstd, dw, db, rows, columns, ACC=acc, BLOCK=64, ROWS=32
    )
    return dx, dw, db


# one_pass: the row stays in registers; dw and db are summed in registers over many rows -------------------------------


@triton.jit
def _layernorm_forward_one_pass(
    x, x_stride, weight, bias, y, means, rstds, columns,
    EPS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row, all of it at once: reads columns, writes columns."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < columns
    value = tl.load(x + row * x_stride + column, mask, other=0).to(ACC)
    w = tl.load(weight + column, mask).to(ACC)
    b = tl.load(bias + column, mask).to(ACC)
    mean = tl.sum(value) / columns
    centred = tl.where(mask, value - mean, 0)
    r = 1 / tl.sqrt(tl.sum(centred * centred) / columns + EPS)
    tl.store(means + row, mean)
    tl.store(rstds + row, r)
    tl.store(y + row * columns + column, centred * r * w + b, mask)


@triton.jit
def _layernorm_backward_one_pass(
    dy, dy_stride, x, x_stride, weight, means, rstds, dx, partial, rows, columns,
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program takes every num_programs-th row and keeps its sums of dw and db in registers: reads 2 columns and
    writes columns for each row; writes its sums, two rows of partial, once."""
    column = tl.arange(0, BLOCK)
    mask = column < columns
    w = tl.load(weight + column, mask, other=0).to(ACC)
    sum_w = tl.zeros([BLOCK], ACC)
    sum_b = tl.zeros([BLOCK], ACC)
    program = tl.program_id(0).to(tl.int64)
    for row in tl.range(program, rows, tl.num_programs(0)):
        grad = tl.load(dy + row * dy_stride + column, mask, other=0).to(ACC)
        value = tl.load(x + row * x_stride + column, mask, other=0).to(ACC)
        r = tl.load(rstds + row)
        x_hat = (value - tl.load(means + row)) * r
        g = w * grad  # zero in the masked lanes, so that x_hat, which is not, does not matter there
        out = r * (g - tl.sum(g) / columns - x_hat * (tl.sum(g * x_hat) / columns))
        tl.store(dx + row * columns + column, out, mask)
        sum_w += grad * x_hat
        sum_b += grad
    tl.store(partial + 2 * program * columns + column, sum_w, mask)
    tl.store(partial + (2 * program + 1) * columns + column, sum_b, mask)


def _warps(block):
    """512 columns to a warp: 16 to a thread."""
    return min(max(block // 512, 1), 16)


def forward_one_pass(x, weight, bias, eps):
    rows, columns = x.shape
    if columns > REGISTER_COLUMNS:
        return forward_naive(x, weight, bias, eps)
    y, mean, rstd = _outputs(x)
    block = triton.next_power_of_2(columns)
    _layernorm_forward_one_pass[(rows,)](
        x, x.stride(0), weight, bias, y, mean, rstd, columns,
        EPS=eps, ACC=accumulator(x.dtype), BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return y, mean, rstd


def backward_one_pass(dy, x, weight, mean, rstd, eps):
    rows, columns = x.shape
    if columns > REGISTER_COLUMNS // 2:
        return backward_naive(dy, x, weight, mean, rstd, eps)
    block = triton.next_power_of_2(columns)
    warps = _warps(block)
    programs = min(rows, gpu_of(x.device).multiprocessors * max(1, 8 // warps))
    dx, partial = x.new_empty(rows, columns), rstd.new_empty(programs, 2, columns)
    _layernorm_backward_one_pass[(programs,)](
        dy, dy.stride(0), x, x.stride(0), weight, mean, rstd, dx, partial, rows, columns,
        ACC=accumulator(x.dtype), BLOCK=block, num_warps=warps,
    )  # fmt: skip
    dw, db = (partial[:, which].sum(0).to(weight.dtype) for which in range(2))  # apart: they must not share memory
    return dx, dw, db


LADDER = [
    Implementation(
        forward_naive, backward_naive, "naive",
        "a program a row, which reads it once for every sum; dw and db by programs that read all rows again",
        unavailable, refuses_dtype,
    ),
    Implementation(
        forward_one_pass, backward_one_pass, "one_pass",
        "rows that registers can hold are read once, dw and db summed in registers; longer ones as before",
        unavailable, refuses_dtype,
    ),
]  # fmt: skip
