"""RMSNorm in Triton, in the order in which the chapter teaches it. The mathematics is in `lab/ops/rmsnorm.py`.

Every kernel takes rows through a row stride in elements and columns of unit stride. Columns past the end of a row
are masked: loaded as zero, which adds nothing to any sum here, and never stored. Row offsets are 64-bit, for tensors of
more than 2^31 elements. EPS and ACC (the accumulation dtype) are compile-time constants: a Python float passed at run
time would arrive as float32.

ADD turns a kernel into its residual-add form, used by `lab/backends/triton/add_rmsnorm.py`: forward, the rounded sum
s = x + residual is stored and normalized; backward, the gradient ds of that sum is added to dx.
"""

import torch
import triton
import triton.language as tl

from lab.backends.hardware import gpu_of
from lab.backends.implementation import Implementation
from lab.backends.rows import norm_outputs, pointer
from lab.backends.triton.runtime import accumulator, refuses_dtype, refuses_longer_rows, unavailable

# naive: one kernel for each step, as eager PyTorch would do it -------------------------------------------------------


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
    y, rstd = norm_outputs(x)
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
        dy, dy.stride(0), *pointer(ds, dy), x, x.stride(0), weight, rstd, dot, dx, columns,
        ADD=ds is not None, ACC=acc, BLOCK=1024,
    )  # fmt: skip
    _rmsnorm_dw_naive[(triton.cdiv(columns, 64),)](
        dy, dy.stride(0), x, x.stride(0), rstd, dw, rows, columns, ACC=acc, BLOCK=64, ROWS=32
    )
    return dx, dw


# fused: one kernel a pass; a program keeps to its row, so that its second look at the row finds it in cache ----------


@triton.jit
def _rmsnorm_forward_fused(
    x, x_stride, residual, residual_stride, weight, y, s, rstd, columns,
    EPS: tl.constexpr, ADD: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row, BLOCK columns at a time, twice: reads columns (and again, from cache), writes columns. The
    first look asks the cache to keep the row, the second lets go of it."""
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([BLOCK], ACC)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        value = tl.load(x + row * x_stride + column, mask, other=0, eviction_policy="evict_last")
        if ADD:
            value += tl.load(residual + row * residual_stride + column, mask, other=0)
            tl.store(s + row * columns + column, value, mask)
        squares += value.to(ACC) * value.to(ACC)
    r = 1 / tl.sqrt(tl.sum(squares) / columns + EPS)
    tl.store(rstd + row, r)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        value = tl.load(x + row * x_stride + column, mask, eviction_policy="evict_first")
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
    return _forward_fused(x, weight, eps, residual, block=1024, warps=4)


def _forward_fused(x, weight, eps, residual, block, warps):
    rows, columns = x.shape
    y, rstd = norm_outputs(x)
    s = torch.empty_like(y) if residual is not None else y
    _rmsnorm_forward_fused[(rows,)](
        x, x.stride(0), *pointer(residual, x), weight, y, s, rstd, columns,
        EPS=eps, ADD=residual is not None, ACC=accumulator(x.dtype), BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return (y, rstd) if residual is None else (y, s, rstd)


def backward_fused(dy, x, weight, rstd, eps, ds=None):
    rows, columns = x.shape
    dx = x.new_empty(rows, columns)
    dw = torch.zeros_like(weight, dtype=rstd.dtype)
    _rmsnorm_backward_fused[(rows,)](
        dy, dy.stride(0), *pointer(ds, dy), x, x.stride(0), weight, rstd, dx, dw, columns,
        ADD=ds is not None, ACC=accumulator(x.dtype), BLOCK=1024,
    )  # fmt: skip
    return dx, dw.to(weight.dtype)


# one_pass: the whole row in registers, so that it is read once; dw is summed in registers over many rows -------------


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
def _rmsnorm_backward_rows(
    dy, dy_stride, ds, ds_stride, x, x_stride, weight, rstd, dx, partial, rows, columns,
    ADD: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A program takes every num_programs-th row and keeps its sum of dw in registers: reads 2 columns and writes
    columns for each row, and writes columns of partial dw once. STAGES > 1 loads rows ahead, into shared memory. What
    is held from load to store stays in the inputs' dtype: as float32 it would not fit the registers of long rows."""
    column = tl.arange(0, BLOCK)
    mask = column < columns
    w = tl.load(weight + column, mask, other=0)
    total = tl.zeros([BLOCK], ACC)
    program = tl.program_id(0).to(tl.int64)
    for row in tl.range(program, rows, tl.num_programs(0), num_stages=STAGES):
        grad = tl.load(dy + row * dy_stride + column, mask, other=0)
        value = tl.load(x + row * x_stride + column, mask, other=0)
        r = tl.load(rstd + row)
        dot = tl.sum(w.to(ACC) * grad.to(ACC) * value.to(ACC)) / columns
        out = r * w.to(ACC) * grad.to(ACC) - r * r * r * dot * value.to(ACC)
        if ADD:
            out += tl.load(ds + row * ds_stride + column, mask, other=0).to(ACC)
        tl.store(dx + row * columns + column, out, mask)
        total += grad.to(ACC) * value.to(ACC) * r
    tl.store(partial + program * columns + column, total, mask)


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


REGISTER_COLUMNS = 16384  # the longest row that x, dy and dw of one program are held of


def _warps(block):
    """512 columns to a warp: 16 to a thread, two loads of 16 bytes in half precision."""
    return min(max(block // 512, 1), 16)


def forward_one_pass(x, weight, eps, residual=None):
    rows, columns = x.shape
    y, rstd = norm_outputs(x)
    s = torch.empty_like(y) if residual is not None else y
    block = triton.next_power_of_2(columns)
    _rmsnorm_forward_one_pass[(rows,)](
        x, x.stride(0), *pointer(residual, x), weight, y, s, rstd, columns,
        EPS=eps, ADD=residual is not None, ACC=accumulator(x.dtype), BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return (y, rstd) if residual is None else (y, s, rstd)


def backward_one_pass(dy, x, weight, rstd, eps, ds=None):
    return _backward_rows(dy, x, weight, rstd, ds, stages=1)


def _backward_rows(dy, x, weight, rstd, ds, stages):
    rows, columns = x.shape
    block = triton.next_power_of_2(columns)
    warps = _warps(block)
    programs = min(rows, gpu_of(x.device).multiprocessors * max(1, 8 // warps))
    dx, partial = x.new_empty(rows, columns), rstd.new_empty(programs, columns)
    _rmsnorm_backward_rows[(programs,)](
        dy, dy.stride(0), *pointer(ds, dy), x, x.stride(0), weight, rstd, dx, partial, rows, columns,
        ADD=ds is not None, ACC=accumulator(x.dtype), BLOCK=block, STAGES=stages, num_warps=warps,
    )  # fmt: skip
    return dx, _sum_partials(partial, weight)


def _sum_partials(partial, weight):
    dw = torch.empty_like(weight)
    programs, columns = partial.shape
    _rmsnorm_sum_partials[(triton.cdiv(columns, 32),)](partial, dw, programs, columns, BLOCK=32, ROWS=64, num_warps=8)
    return dw


# prefetch: a program takes many rows in both passes, and loads rows ahead while it works on one ----------------------


@triton.jit
def _rmsnorm_forward_rows(
    x, x_stride, residual, residual_stride, weight, y, s, rstd, rows, columns,
    EPS: tl.constexpr, ADD: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A program takes every num_programs-th row and reads w once; STAGES - 1 rows are loaded ahead."""
    column = tl.arange(0, BLOCK)
    mask = column < columns
    w = tl.load(weight + column, mask, other=0)
    program = tl.program_id(0).to(tl.int64)
    for row in tl.range(program, rows, tl.num_programs(0), num_stages=STAGES):
        value = tl.load(x + row * x_stride + column, mask, other=0)
        if ADD:
            value += tl.load(residual + row * residual_stride + column, mask, other=0)
            tl.store(s + row * columns + column, value, mask)
        wide = value.to(ACC)
        r = 1 / tl.sqrt(tl.sum(wide * wide) / columns + EPS)
        tl.store(rstd + row, r)
        tl.store(y + row * columns + column, wide * r * w.to(ACC), mask)


def _stages(x, n_streams, programs_per_sm=1):
    """4, or as many as shared memory has room for: each stage but the last holds one row of each stream."""
    row_bytes = triton.next_power_of_2(x.shape[1]) * x.element_size() * n_streams
    room = (gpu_of(x.device).shared_memory - 8192) // programs_per_sm  # 8 KiB for the reductions
    return max(1, min(4, 1 + room // row_bytes))


def forward_prefetch(x, weight, eps, residual=None):
    rows, columns = x.shape
    y, rstd = norm_outputs(x)
    s = torch.empty_like(y) if residual is not None else y
    block = triton.next_power_of_2(columns)
    per_sm = max(1, 16 // _warps(block))
    _rmsnorm_forward_rows[(min(rows, gpu_of(x.device).multiprocessors * per_sm),)](
        x, x.stride(0), *pointer(residual, x), weight, y, s, rstd, rows, columns,
        EPS=eps, ADD=residual is not None, ACC=accumulator(x.dtype), BLOCK=block, num_warps=_warps(block),
        STAGES=_stages(x, 1 if residual is None else 2, per_sm),
    )  # fmt: skip
    return (y, rstd) if residual is None else (y, s, rstd)


def backward_prefetch(dy, x, weight, rstd, eps, ds=None):
    warps = _warps(triton.next_power_of_2(x.shape[1]))
    return _backward_rows(dy, x, weight, rstd, ds, _stages(x, 2 if ds is None else 3, max(1, 8 // warps)))


# tuned: for each pass and length of row the faster of the above; a row too long for registers is read twice ----------


@triton.jit
def _rmsnorm_backward_columns(
    dy, dy_stride, ds, ds_stride, x, x_stride, weight, rstd, dot, dx, partial, rows, columns,
    ADD: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Given dot = mean(w dy x) of every row, the rest needs no sum along the row: a program takes BLOCK columns of
    every num_programs(1)-th row, and keeps its sum of dw in registers. Reads x and dy for the second time."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    w = tl.load(weight + column, mask, other=0)
    total = tl.zeros([BLOCK], ACC)
    program = tl.program_id(1).to(tl.int64)
    for row in tl.range(program, rows, tl.num_programs(1), num_stages=STAGES):
        grad = tl.load(dy + row * dy_stride + column, mask, other=0).to(ACC)
        value = tl.load(x + row * x_stride + column, mask, other=0).to(ACC)
        r = tl.load(rstd + row)
        out = r * w.to(ACC) * grad - r * r * r * tl.load(dot + row) * value
        if ADD:
            out += tl.load(ds + row * ds_stride + column, mask, other=0).to(ACC)
        tl.store(dx + row * columns + column, out, mask)
        total += grad * value * r
    tl.store(partial + program * columns + column, total, mask)


def forward_tuned(x, weight, eps, residual=None):
    if x.shape[1] <= REGISTER_COLUMNS:
        return forward_one_pass(x, weight, eps, residual)
    return _forward_fused(x, weight, eps, residual, block=16384, warps=32)


def backward_tuned(dy, x, weight, rstd, eps, ds=None):
    rows, columns = x.shape
    if columns <= REGISTER_COLUMNS // 2:
        return backward_prefetch(dy, x, weight, rstd, eps, ds)
    if columns <= REGISTER_COLUMNS:
        return backward_one_pass(dy, x, weight, rstd, eps, ds)
    dot = torch.empty_like(rstd)
    acc = accumulator(x.dtype)
    _rmsnorm_dot_naive[(rows,)](
        dy, dy.stride(0), x, x.stride(0), weight, dot, columns, ACC=acc, BLOCK=8192, num_warps=16
    )
    blocks = triton.cdiv(columns, 4096)
    programs = min(rows, triton.cdiv(2 * gpu_of(x.device).multiprocessors, blocks))
    dx, partial = x.new_empty(rows, columns), rstd.new_empty(programs, columns)
    _rmsnorm_backward_columns[(blocks, programs)](
        dy, dy.stride(0), *pointer(ds, dy), x, x.stride(0), weight, rstd, dot, dx, partial, rows, columns,
        ADD=ds is not None, ACC=acc, BLOCK=4096, STAGES=1 if x.dtype == torch.float64 else 3, num_warps=8,
    )  # fmt: skip
    return dx, _sum_partials(partial, weight)


LADDER = [
    Implementation(
        forward_naive, backward_naive, "naive",
        "a kernel for each step, as eager PyTorch would run it; every step reads its inputs again",
        unavailable, refuses_dtype,
    ),
    Implementation(
        forward_fused, backward_fused, "fused",
        "one kernel a pass, a program a row, its second look at the row from cache; dw by atomics",
        unavailable, refuses_dtype,
    ),
    Implementation(
        forward_one_pass, backward_one_pass, "one_pass",
        "the whole row in registers, read once; dw summed in registers over many rows",
        unavailable, refuses_longer_rows(REGISTER_COLUMNS),
    ),
    Implementation(
        forward_prefetch, backward_prefetch, "prefetch",
        "as many programs as the GPU holds, each loading rows ahead while it works on one, in both passes",
        unavailable, refuses_longer_rows(REGISTER_COLUMNS),
    ),
    Implementation(
        forward_tuned, backward_tuned, "tuned",
        "for each pass and length of row the faster of the two before; rows that registers cannot hold are read twice",
        unavailable, refuses_dtype,
    ),
]  # fmt: skip
