"""Launchers of `linear.cu`, in the order in which the chapter teaches its kernels. The mathematics is in
`lab/ops/linear.py`.

Its three products are one, c = a b (+ bias) of a (m, k) and b (k, n), as in `lab/backends/triton/linear.py`; a
transpose is a view. float16 and bfloat16 are summed in float32. float32 is multiplied in full and not in TF32, and
float64 in float64.
"""

from pathlib import Path
from typing import NamedTuple

import torch

from lab.backends.cuda.compile import TYPES, launch, name_of, refuses_dtype, source_of, unavailable
from lab.backends.cuda.rows import vector_width
from lab.backends.hardware import gpu_of
from lab.backends.registry import Implementation
from lab.backends.rows import accumulation_dtype

SOURCE = Path(__file__).with_suffix(".cu")


def _launch(kernel: str, template: tuple, grid: int, block: int, *args) -> None:
    launch(source_of(SOURCE), name_of(kernel, *template), grid, block, *args)


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


def _product(kernel, template, grid, block, left, right, bias, c) -> None:
    """Launches a kernel that takes both operands, bias and c, and then their sizes."""
    (m, k), n = left.matrix.shape, right.matrix.shape[0]
    dtype = (TYPES[c.dtype], left.along_k, right.along_k)
    _launch(
        kernel, (*dtype, *template, bias is not None), grid, block,
        left.matrix, left.stride, right.matrix, right.stride, c if bias is None else bias, c, m, n, k,
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


def _rung(name, change, product):
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
]  # fmt: skip
