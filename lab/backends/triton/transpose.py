"""The transpose in Triton. The mathematics is in `lab/ops/transpose.py`; both passes are the same kernel.

Rows go through a row stride in elements, columns have unit stride. Offsets are 64-bit, for tensors of more than 2^31
elements.
"""

import torch
import triton
import triton.language as tl

from lab.backends.implementation import Implementation
from lab.backends.triton.runtime import refuses_dtype, unavailable

MOST_PROGRAMS = 65535  # of the second dimension of a grid

# rows: a program reads a piece of a row and writes it down a column ---------------------------------------------------


@triton.jit
def _transpose_rows(x, x_stride, y, rows, columns, BLOCK: tl.constexpr):
    """BLOCK neighbours of a row of x become BLOCK elements of y that lie `rows` apart."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    tl.store(y + column * rows + row, tl.load(x + row * x_stride + column, mask), mask)


def _by_rows(x):
    rows, columns = x.shape
    y = x.new_empty(columns, rows)
    _transpose_rows[(rows, triton.cdiv(columns, 1024))](x, x.stride(0), y, rows, columns, BLOCK=1024)
    return (y,)


def _refuses_long_rows(x: torch.Tensor) -> str | None:
    if max(x.shape) > MOST_PROGRAMS * 1024:
        return f"x is {x.shape[0]} x {x.shape[1]}; expected at most {MOST_PROGRAMS * 1024} rows and columns"
    return refuses_dtype(x)


# tiles: a program reads a square, and writes it with rows and columns exchanged ---------------------------------------


@triton.jit
def _transpose_tiles(x, x_stride, y, rows, columns, BLOCK: tl.constexpr):
    """A BLOCK x BLOCK square: neighbours of a row are read together, and neighbours of a column written together. In
    between the square goes through shared memory, where Triton exchanges what each thread holds."""
    blocks = tl.cdiv(columns, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = (row[:, None] < rows) & (column[None, :] < columns)
    tile = tl.load(x + row[:, None] * x_stride + column[None, :], mask)
    tl.store(y + column[:, None] * rows + row[None, :], tl.trans(tile), tl.trans(mask))


def _by_tiles(x):
    rows, columns = x.shape
    y = x.new_empty(columns, rows)
    _transpose_tiles[(triton.cdiv(rows, 64) * triton.cdiv(columns, 64),)](
        x, x.stride(0), y, rows, columns, BLOCK=64, num_warps=8
    )
    return (y,)


LADDER = [
    Implementation(
        _by_rows, _by_rows, "rows",
        "a program reads 1024 neighbours of a row and writes each of them into another row",
        unavailable, _refuses_long_rows,
    ),
    Implementation(
        _by_tiles, _by_tiles, "tiles",
        "a program moves a square of 64 x 64, so that both its reads and its writes are of neighbours",
        unavailable, refuses_dtype,
    ),
]  # fmt: skip
