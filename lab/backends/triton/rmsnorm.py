"""RMSNorm in Triton, in the order in which the chapter teaches it. The mathematics is in `lab/ops/rmsnorm.py`.

Every kernel takes rows through a row stride in elements and columns of unit stride. Columns past the end of a row are
masked: loaded as zero, which adds nothing to any sum here, and never stored. Row offsets are 64-bit, for tensors of more
than 2^31 elements. EPS and ACC (the accumulation dtype) are compile-time constants: a Python float passed at run time
would arrive as float32.

ADD turns a kernel into its residual-add form, used by `lab/backends/triton/add_rmsnorm.py`: forward, the rounded sum
s = x + residual is stored and normalized; backward, the gradient ds of that sum is added to dx.
"""

import torch
import triton
import triton.language as tl

from lab.backends.hardware import gpu_of
from lab.backends.registry import Implementation
from lab.backends.triton.runtime import accumulator, refuses_dtype, unavailable

# naive: one kernel for each step, as eager PyTorch would do it --------------------------------------------------------


@triton.jit
def _rmsnorm_add_naive(x, x_stride, residual, residual_stride, s, columns, BLOCK: tl.constexpr):
    """s = x + residual. One program a row: reads 2 columns, writes columns."""
    row = tl.program_id(0).to(tl.int64)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        a = tl.load(x + row * x_stride + column, mask)
        b = tl.load(residual + row * residual_stride + column, mask)
        tl.store(s + row * columns + column, a + b, mask)


@triton.jit
def _rmsnorm_rstd_naive(x, x_stride, rstd, columns, EPS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """r = 1 / sqrt(mean(x^2) + eps). One program a row: reads columns, writes 1."""
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([BLOCK], ACC)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * x_stride + column, column < columns, other=0).to(ACC)
        squares += value * value
    tl.store(rstd + row, 1 / tl.sqrt(tl.sum(squares) / columns + EPS))


@triton.jit
def _rmsnorm_scale_naive(x, x_stride, weight, rstd, y, columns, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """y = x r w. One program a row: reads columns again, and w; writes columns."""
    row = tl.program_id(0).to(tl.int64)
    r = tl.load(rstd + row)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        value = tl.load(x + row * x_stride + column, mask).to(ACC)
        w = tl.load(weight + column, mask).to(ACC)
        tl.store(y + row * columns + column, value * r * w, mask)


@triton.jit
def _rmsnorm_dot_naive(dy, dy_stride, x, x_stride, weight, dot, columns, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """dot = mean(w dy x). One program a row: reads 2 columns, and w; writes 1."""
    row = tl.program_id(0).to(tl.int64)
    products = tl.zeros([BLOCK], ACC)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        grad = tl.load(dy + row * dy_stride + column, mask, other=0).to(ACC)
        value = tl.load(x + row * x_stride + column, mask, other=0).to(ACC)
        w = tl.load(weight + column, mask, other=0).to(ACC)
        products += w * grad * value
    tl.store(dot + row, tl.sum(products) / columns)


@triton.jit
def _rmsnorm_dx_naive(
    dy, dy_stride, ds, ds_stride, x, x_stride, weight, rstd, dot, dx, columns,
    ADD: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx = r w dy - x r^3 dot (+ ds). One program a row: reads 2 columns again, and w; writes columns."""
    row = tl.program_id(0).to(tl.int64)
    r = tl.load(rstd + row)
    coefficient = r * r * r * tl.load(dot + row)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        grad = tl.load(dy + row * dy_stride + column, mask).to(ACC)
        value = tl.load(x + row * x_stride + column, mask).to(ACC)
        w = tl.load(weight + column, mask).to(ACC)
        out = r * w * grad - coefficient * value
        if ADD:
            out += tl.load(ds + row * ds_stride + column, mask).to(ACC)
        tl.store(dx + row * columns + column, out, mask)


@triton.jit
def _rmsnorm_dw_naive(
    dy, dy_stride, x, x_stride, rstd, dw, rows, columns, ACC: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    """dw = sum over rows of dy x r. One program for each BLOCK columns: reads all rows a third time."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([ROWS, BLOCK], ACC)
    for start in range(0, rows, ROWS):
        row = (start + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        mask = (row < rows) & (column < columns)
        grad = tl.load(dy + row * dy_stride + column, mask, other=0).to(ACC)
        value = tl.load(x + row * x_stride + column, mask, other=0).to(ACC)
        r = tl.load(rstd + row, row < rows, other=0)
        total += grad * value * r
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(dw + column, tl.sum(total, 0), column < columns)


def forward_naive(x, weight, eps, residual=None):
    rows, columns = x.shape
    if residual is not None:
        s = x.new_empty(rows, columns)
        _rmsnorm_add_naive[(rows,)](x, x.stride(0), residual, residual.stride(0), s, columns, BLOCK=1024)
        x = s
    y, rstd = _outputs(x)
    acc = accumulator(x.dtype)
    _rmsnorm_rstd_naive[(rows,)](x, x.stride(0), rstd, columns, EPS=eps, ACC=acc, BLOCK=1024)
    _rmsnorm_scale_naive[(rows,)](x, x.stride(0), weight, rstd, y, columns, ACC=acc, BLOCK=1024)
    return (y, rstd) if residual is None else (y, x, rstd)


def backward_naive(dy, x, weight, rstd, eps, ds=None):
    rows, columns = x.shape
    dx, dw = x.new_empty(rows, columns), torch.empty_like(weight)
    dot = torch.empty_like(rstd)
    acc = accumulator(x.dtype)
    _rmsnorm_dot_naive[(rows,)](dy, dy.stride(0), x, x.stride(0), weight, dot, columns, ACC=acc, BLOCK=1024)
    _rmsnorm_dx_naive[(rows,)](
        dy, dy.stride(0), *_pointer(ds, dy), x, x.stride(0), weight, rstd, dot, dx, columns,
        ADD=ds is not None, ACC=acc, BLOCK=1024,
    )  # fmt: skip
    _rmsnorm_dw_naive[(triton.cdiv(columns, 64),)](
        dy, dy.stride(0), x, x.stride(0), rstd, dw, rows, columns, ACC=acc, BLOCK=64, ROWS=32
    )
    return dx, dw


# fused: one kernel a pass; a program keeps to its row, so that its second look at the row finds it in cache ------------


@triton.jit
def _rmsnorm_forward_fused(
    x, x_stride, residual, residual_stride, weight, y, s, rstd, columns,
    EPS: tl.constexpr, ADD: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row, BLOCK columns at a time, twice: reads columns (and again, from cache), writes columns."""
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([BLOCK], ACC)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        value = tl.load(x + row * x_stride + column, mask, other=0)
        if ADD:
            value += tl.load(residual + row * residual_stride + column, mask, other=0)
            tl.store(s + row * columns + column, value, mask)
        squares += value.to(ACC) * value.to(ACC)
    r = 1 / tl.sqrt(tl.sum(squares) / columns + EPS)
    tl.store(rstd + row, r)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        value = tl.load(x + row * x_stride + column, mask)
        if ADD:  # once more the sum, rather than a read of s that another thread may have written
            value += tl.load(residual + row * residual_stride + column, mask)
        w = tl.load(weight + column, mask).to(ACC)
        tl.store(y + row * columns + column, value.to(ACC) * r * w, mask)


@triton.jit
def _rmsnorm_backward_fused(
    dy, dy_stride, ds, ds_stride, x, x_stride, weight, rstd, dx, dw, columns,
    ADD: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row, twice over the row; every row adds its share of dw to one array with atomics."""
    row = tl.program_id(0).to(tl.int64)
    r = tl.load(rstd + row)
    products = tl.zeros([BLOCK], ACC)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        grad = tl.load(dy + row * dy_stride + column, mask, other=0).to(ACC)
        value = tl.load(x + row * x_stride + column, mask, other=0).to(ACC)
        w = tl.load(weight + column, mask, other=0).to(ACC)
        products += w * grad * value
    coefficient = r * r * r * (tl.sum(products) / columns)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        grad = tl.load(dy + row * dy_stride + column, mask).to(ACC)
        value = tl.load(x + row * x_stride + column, mask).to(ACC)
        w = tl.load(weight + column, mask).to(ACC)
        out = r * w * grad - coefficient * value
        if ADD:
            out += tl.load(ds + row * ds_stride + column, mask).to(ACC)
        tl.store(dx + row * columns + column, out, mask)
        tl.atomic_add(dw + column, grad * value * r, mask, sem="relaxed")


def forward_fused(x, weight, eps, residual=None):
    rows, columns = x.shape
    y, rstd = _outputs(x)
    s = torch.empty_like(y) if residual is not None else y
    _rmsnorm_forward_fused[(rows,)](
        x, x.stride(0), *_pointer(residual, x), weight, y, s, rstd, columns,
        EPS=eps, ADD=residual is not None, ACC=accumulator(x.dtype), BLOCK=1024,
    )  # fmt: skip
    return (y, rstd) if residual is None else (y, s, rstd)


def backward_fused(dy, x, weight, rstd, eps, ds=None):
    rows, columns = x.shape
    dx = x.new_empty(rows, columns)
    dw = torch.zeros_like(weight, dtype=rstd.dtype)
    _rmsnorm_backward_fused[(rows,)](
        dy, dy.stride(0), *_pointer(ds, dy), x, x.stride(0), weight, rstd, dx, dw, columns,
        ADD=ds is not None, ACC=accumulator(x.dtype), BLOCK=1024,
    )  # fmt: skip
    return dx, dw.to(weight.dtype)


# one_pass: the whole row in registers, so that it is read once; dw is summed in registers over many rows ---------------


@triton.jit
def _rmsnorm_forward_one_pass(
    x, x_stride, residual, residual_stride, weight, y, s, rstd, columns,
    EPS: tl.constexpr, ADD: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row, all of it at once: reads columns, writes columns."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < columns
    value = tl.load(x + row * x_stride + column, mask, other=0)
    if ADD:
        value += tl.load(residual + row * residual_stride + column, mask, other=0)
        tl.store(s + row * columns + column, value, mask)
    w = tl.load(weight + column, mask).to(ACC)
    value = value.to(ACC)
    r = 1 / tl.sqrt(tl.sum(value * value) / columns + EPS)
    tl.store(rstd + row, r)
    tl.store(y + row * columns + column, value * r * w, mask)


@triton.jit
def _rmsnorm_backward_one_pass(
    dy, dy_stride, ds, ds_stride, x, x_stride, weight, rstd, dx, partial, rows, columns,
    ADD: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A program takes every num_programs-th row and keeps its sum of dw in registers: reads 2 columns and writes columns
    for each row, and writes columns of partial dw once. STAGES > 1 loads that many rows ahead, into shared memory."""
    column = tl.arange(0, BLOCK)
    mask = column < columns
    w = tl.load(weight + column, mask, other=0)
    total = tl.zeros([BLOCK], ACC)
    for index in tl.range(tl.program_id(0), rows, tl.num_programs(0), num_stages=STAGES):
        row = index.to(tl.int64)
        grad = tl.load(dy + row * dy_stride + column, mask, other=0).to(ACC)
        value = tl.load(x + row * x_stride + column, mask, other=0).to(ACC)
        r = tl.load(rstd + row)
        g = w.to(ACC) * grad
        coefficient = r * r * r * (tl.sum(g * value) / columns)
        out = r * g - coefficient * value
        if ADD:
            out += tl.load(ds + row * ds_stride + column, mask).to(ACC)
        tl.store(dx + row * columns + column, out, mask)
        total += grad * value * r
    tl.store(partial + tl.program_id(0).to(tl.int64) * columns + column, total, mask)


@triton.jit
def _rmsnorm_sum_partials(partial, dw, programs, columns, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """dw = sum over programs of partial. One program for each BLOCK columns."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([ROWS, BLOCK], partial.dtype.element_ty)
    for start in range(0, programs, ROWS):
        row = (start + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        total += tl.load(partial + row * columns + column, (row < programs) & (column < columns), other=0)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(dw + column, tl.sum(total, 0), column < columns)


ONE_PASS_COLUMNS = 16384  # the longest row whose x, dy and dw fit a block's registers


def refuses_one_pass(*tensors):
    columns = tensors[0].shape[-1]
    if columns > ONE_PASS_COLUMNS:
        return f"a row of {columns} columns does not fit registers; expected at most {ONE_PASS_COLUMNS}"
    return refuses_dtype(*tensors)


def forward_one_pass(x, weight, eps, residual=None):
    rows, columns = x.shape
    y, rstd = _outputs(x)
    s = torch.empty_like(y) if residual is not None else y
    _rmsnorm_forward_one_pass[(rows,)](
        x, x.stride(0), *_pointer(residual, x), weight, y, s, rstd, columns,
        EPS=eps, ADD=residual is not None, ACC=accumulator(x.dtype), BLOCK=triton.next_power_of_2(columns),
    )  # fmt: skip
    return (y, rstd) if residual is None else (y, s, rstd)


def backward_one_pass(dy, x, weight, rstd, eps, ds=None):
    programs = min(x.shape[0], gpu_of(x.device).multiprocessors)
    return _backward_rows(dy, x, weight, rstd, ds, programs, stages=1, num_warps=4)


def _backward_rows(dy, x, weight, rstd, ds, programs, stages, num_warps):
    rows, columns = x.shape
    dx, dw = x.new_empty(rows, columns), torch.empty_like(weight)
    partial = rstd.new_empty(programs, columns)
    _rmsnorm_backward_one_pass[(programs,)](
        dy, dy.stride(0), *_pointer(ds, dy), x, x.stride(0), weight, rstd, dx, partial, rows, columns,
        ADD=ds is not None, ACC=accumulator(x.dtype), BLOCK=triton.next_power_of_2(columns), STAGES=stages,
        num_warps=num_warps,
    )  # fmt: skip
    _sum_partials(partial, dw)
    return dx, dw


def _sum_partials(partial, dw):
    programs, columns = partial.shape
    _rmsnorm_sum_partials[(triton.cdiv(columns, 32),)](partial, dw, programs, columns, BLOCK=32, ROWS=64, num_warps=8)


def _outputs(x):
    rows, columns = x.shape
    rstd_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(rows, columns), x.new_empty(rows, dtype=rstd_dtype)


def _pointer(tensor, stand_in):
    """A pointer and row stride for an argument that a kernel may not have; it never reads the stand-in."""
    tensor = stand_in if tensor is None else tensor
    return tensor, tensor.stride(0)
