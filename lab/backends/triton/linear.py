"""Linear in Triton, in the order in which the chapter teaches it. The mathematics is in `lab/ops/linear.py`.

Its three products are one, c = a b (+ bias) of a (m, k) and b (k, n); a transpose is a view:

    y = x weight^T + bias,   dx = dy weight,   dweight = dy^T x

So a rung is a function `product(a, b, bias)`, and one that sums the columns of dy for dbias. a and b have unit stride
in one dimension, whichever, and any stride in the other; kernels take both strides of each, in elements. c is
contiguous. Offsets of rows and columns are 64-bit, for tensors of more than 2^31 elements. Tiles may stick out of a, b
and c: what lies outside is read as zero, which adds nothing to a sum, and never written.

float16 and bfloat16 are multiplied by tensor cores (from Ampere on) and summed in float32. float32 is multiplied in
full and not in TF32, as PyTorch does unless `torch.backends.cuda.matmul.allow_tf32` is set. float64 stays float64. ACC
is the dtype of sums.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from lab.backends.hardware import GPU, gpu_of
from lab.backends.implementation import Implementation
from lab.backends.rows import accumulation_dtype
from lab.backends.triton.runtime import accumulator, refuses_dtype, unavailable

# naive: a small tile of c to a program ------------------------------------------------------------------------------


@triton.jit
def _linear_naive(
    a, a_row, a_column, b, b_row, b_column, bias, c, m, n, k,
    BIAS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program for a BLOCK x BLOCK tile of c, the tiles of a row of tiles one after the other: reads BLOCK rows of a
    and BLOCK columns of b, 2 BLOCK k elements for 2 BLOCK^2 k FLOPs, and writes BLOCK^2."""
    tiles_n = tl.cdiv(n, BLOCK)
    row = (tl.program_id(0) // tiles_n * BLOCK + tl.arange(0, BLOCK)[:, None]).to(tl.int64)
    column = (tl.program_id(0) % tiles_n * BLOCK + tl.arange(0, BLOCK)[None, :]).to(tl.int64)
    acc = tl.zeros([BLOCK, BLOCK], ACC)
    for start in range(0, k, BLOCK):
        along_a = (start + tl.arange(0, BLOCK)[None, :]).to(tl.int64)
        along_b = (start + tl.arange(0, BLOCK)[:, None]).to(tl.int64)
        left = tl.load(a + row * a_row + along_a * a_column, (row < m) & (along_a < k), other=0)
        right = tl.load(b + along_b * b_row + column * b_column, (along_b < k) & (column < n), other=0)
        acc = tl.dot(left, right, acc, input_precision="ieee", out_dtype=ACC)
    if BIAS:
        acc += tl.load(bias + column, column < n, other=0).to(ACC)
    tl.store(c + row * n + column, acc, (row < m) & (column < n))


@triton.jit
def _linear_column_sums(
    x, x_row, sums, rows, columns, slab, ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Program (i, j) sums the i-th BLOCK columns of x over its j-th slab of rows, into row j of sums: reads slab BLOCK
    elements, writes BLOCK. x: (rows, columns), unit stride in a row, x_row between rows; sums: (slabs, columns)."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([ROWS, BLOCK], ACC)
    first = tl.program_id(1).to(tl.int64) * slab
    last = tl.minimum(first + slab, rows)
    for start in range(first, last, ROWS):
        row = (start + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        total += tl.load(x + row * x_row + column[None, :], (row < last) & (column[None, :] < columns), other=0).to(ACC)
    tl.store(sums + tl.program_id(1).to(tl.int64) * columns + column, tl.sum(total, 0), column < columns)


def product_naive(a, b, bias=None):
    (m, k), n = a.shape, b.shape[1]
    c = a.new_empty(m, n)
    _linear_naive[(triton.cdiv(m, 32) * triton.cdiv(n, 32),)](
        a, *a.stride(), b, *b.stride(), c if bias is None else bias, c, m, n, k,
        BIAS=bias is not None, ACC=accumulator(a.dtype), BLOCK=32, num_stages=1,
    )  # fmt: skip
    return c


def column_sums_naive(x):
    """x (rows, columns) summed over its rows: 64 columns to a program."""
    return _column_sums(x, x.new_empty(1, x.shape[1]), x.shape[0])[0]


def _column_sums(x, sums, slab):
    (slabs, columns), wide = sums.shape, accumulator(x.dtype)
    _linear_column_sums[(triton.cdiv(columns, 64), slabs)](
        x, x.stride(0), sums, x.shape[0], columns, slab, ACC=wide, ROWS=32, BLOCK=64
    )
    return sums


# tiled: a tile that fills the registers; no mask where k needs none ---------------------------------------------------


@triton.jit
def _linear_place(tile, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """First row and column of a tile of c. Tiles are counted group by group, a group being GROUP rows of tiles, and in
    a group column by column; so with GROUP = 1 row by row."""
    tiles_m = tl.cdiv(m, BLOCK_M)
    group_tiles = GROUP * tl.cdiv(n, BLOCK_N)
    first = tile // group_tiles * GROUP
    height = tl.minimum(tiles_m - first, GROUP)  # the last group may be lower
    inside = tile % group_tiles
    return (first + inside % height) * BLOCK_M, inside // height * BLOCK_N


@triton.jit
def _linear_sum(
    a, a_row, a_column, b, b_row, b_column, m, n, row, column, first, last,
    WHOLE: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The tile of a b with the rows `row` (BLOCK_M, 1) and the columns `column` (1, BLOCK_N), summed over k from first
    to last: reads (BLOCK_M + BLOCK_N) (last - first) elements. WHOLE: BLOCK_K divides last - first, and no step needs a
    mask along k."""
    along_a = (first + tl.arange(0, BLOCK_K)[None, :]).to(tl.int64)
    along_b = (first + tl.arange(0, BLOCK_K)[:, None]).to(tl.int64)
    acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for _ in range(first, last, BLOCK_K):
        in_a = row < m if WHOLE else (row < m) & (along_a < last)
        in_b = column < n if WHOLE else (along_b < last) & (column < n)
        left = tl.load(a + row * a_row + along_a * a_column, in_a, other=0)
        right = tl.load(b + along_b * b_row + column * b_column, in_b, other=0)
        acc = tl.dot(left, right, acc, input_precision="ieee", out_dtype=ACC)
        along_a += BLOCK_K
        along_b += BLOCK_K
    return acc


@triton.jit
def _linear_tiled(
    a, a_row, a_column, b, b_row, b_column, bias, c, m, n, k,
    WHOLE: tl.constexpr, BIAS: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One program for a BLOCK_M x BLOCK_N tile of c: reads (BLOCK_M + BLOCK_N) k elements for 2 BLOCK_M BLOCK_N k
    FLOPs, writes BLOCK_M BLOCK_N."""
    first_row, first_column = _linear_place(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP)
    row = (first_row + tl.arange(0, BLOCK_M)[:, None]).to(tl.int64)
    column = (first_column + tl.arange(0, BLOCK_N)[None, :]).to(tl.int64)
    acc = _linear_sum(
        a, a_row, a_column, b, b_row, b_column, m, n, row, column, 0, k, WHOLE, ACC, BLOCK_M, BLOCK_N, BLOCK_K
    )
    if BIAS:
        acc += tl.load(bias + column, column < n, other=0).to(ACC)
    tl.store(c + row * n + column, acc, (row < m) & (column < n))


class Tile(NamedTuple):
    """BLOCK_M x BLOCK_N elements of c to a program, summed BLOCK_K at a time by num_warps warps. num_stages: the steps
    that are under way at once, where loads run ahead."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int

    def tiles(self, m: int, n: int) -> int:
        """How many make up an m x n matrix."""
        return triton.cdiv(m, self.BLOCK_M) * triton.cdiv(n, self.BLOCK_N)

    @property
    def per_multiprocessor(self) -> int:
        """Programs that a multiprocessor holds: as many as its registers allow, 8 warps in all."""
        return max(1, 8 // self.num_warps)


# Tiles that neither spill registers nor exceed the shared memory of a block: for a product that is large both ways; for
# one with at most NARROW rows or columns, which comes down to reading its other operand (of the narrow one the side in
# question is cut further); and for one of which k is at most NARROW, which comes down to writing c. In half precision
# by compute capability. Before Ampere, Triton multiplies without tensor cores, in half precision too.
HALF = {
    (7, 5): (Tile(64, 64, 16, 8, 2), Tile(64, 64, 16, 8, 2), Tile(64, 64, 16, 8, 2)),
    (8, 0): (Tile(128, 256, 32, 8, 4), Tile(64, 64, 64, 4, 6), Tile(128, 64, 16, 4, 2)),
    (8, 6): (Tile(128, 128, 32, 8, 4), Tile(64, 64, 64, 4, 4), Tile(128, 64, 16, 4, 2)),
    (9, 0): (Tile(128, 256, 64, 8, 4), Tile(64, 64, 64, 4, 6), Tile(128, 64, 16, 4, 2)),
    (10, 0): (Tile(128, 256, 64, 8, 3), Tile(64, 64, 64, 4, 6), Tile(128, 64, 16, 4, 2)),
    (12, 0): (Tile(128, 128, 32, 8, 4), Tile(64, 64, 64, 4, 4), Tile(128, 64, 16, 4, 2)),
}
FLOAT = (Tile(128, 64, 16, 8, 3), Tile(64, 64, 16, 4, 4), Tile(128, 64, 16, 8, 3))
DOUBLE = (Tile(64, 64, 16, 8, 3), Tile(64, 64, 16, 8, 3), Tile(64, 64, 16, 8, 3))
NARROW = 64


def plan(m: int, n: int, k: int, dtype: torch.dtype, gpu: GPU, aligned: bool = True) -> Tile:
    """The tile of a product (m, k) by (k, n) on `gpu`. A table: the same product always runs the same way. aligned:
    whether loads are of 16 bytes; if not, the addresses of single elements need registers of their own."""
    half = HALF[max((known for known in HALF if known <= gpu.capability), default=(7, 5))]
    large, narrow, shallow = {torch.float32: FLOAT, torch.float64: DOUBLE}.get(dtype, half)
    side = max(16, triton.next_power_of_2(min(m, n)))
    if side > NARROW:
        tile = large if k > NARROW else shallow
    else:
        tile = narrow._replace(BLOCK_M=side) if m <= n else narrow._replace(BLOCK_N=side)
    return tile if aligned else tile._replace(BLOCK_N=max(16, tile.BLOCK_N // 2), BLOCK_K=max(16, tile.BLOCK_K // 2))


def _aligned(a, b):
    """Whether Triton can tell that 16 bytes at a time may be loaded: addresses, strides and k are multiples of 16."""
    sizes = [size for size in (*a.stride(), *b.stride()) if size != 1]
    return all(number % 16 == 0 for number in (a.data_ptr(), b.data_ptr(), a.shape[1], *sizes))


def _product_tiled(a, b, bias, group, pipelined):
    (m, k), n = a.shape, b.shape[1]
    c, tile = a.new_empty(m, n), plan(m, n, k, a.dtype, gpu_of(a.device), _aligned(a, b))
    tile = tile if pipelined else tile._replace(num_stages=1)
    _linear_tiled[(tile.tiles(m, n),)](
        a, *a.stride(), b, *b.stride(), c if bias is None else bias, c, m, n, k,
        WHOLE=k % tile.BLOCK_K == 0, BIAS=bias is not None, ACC=accumulator(a.dtype), GROUP=group, **tile._asdict(),
    )  # fmt: skip
    return c


def product_tiled(a, b, bias=None):
    return _product_tiled(a, b, bias, group=1, pipelined=False)


def column_sums(x):
    """x (rows, columns) summed over its rows: slabs of rows, as many as keep the GPU busy, and then the slabs' sums."""
    rows, columns = x.shape
    blocks = triton.cdiv(columns, 64)
    slab = triton.cdiv(rows, triton.cdiv(4 * gpu_of(x.device).multiprocessors, blocks))
    if slab == rows:
        return column_sums_naive(x)
    partial = x.new_empty(triton.cdiv(rows, slab), columns, dtype=accumulation_dtype(x.dtype))
    return _column_sums(_column_sums(x, partial, slab), x.new_empty(1, columns), len(partial))[0]


# grouped: tiles that run at the same time share rows of a and columns of b, which they then find in L2 ----------------

GROUP = 8  # rows of tiles to a group


def product_grouped(a, b, bias=None):
    return _product_tiled(a, b, bias, GROUP, pipelined=False)


# pipelined: the next steps' loads are under way while a step is multiplied --------------------------------------------


def product_pipelined(a, b, bias=None):
    return _product_tiled(a, b, bias, GROUP, pipelined=True)


# persistent: as many programs as the GPU holds, each working through tiles; TMA moves them ----------------------------


@triton.jit
def _linear_persistent(
    a, a_stride, b, b_stride, bias, c, c_stride, m, n, k,
    A_TRANSPOSED: tl.constexpr, B_TRANSPOSED: tl.constexpr, SPECIALIZED: tl.constexpr,
    BIAS: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """A program takes every num_programs-th tile, with the reads, writes and FLOPs of _linear_tiled. Tiles of a and b
    come, and those of c go, through the tensor memory accelerator (TMA): told once where a matrix lies, it moves a tile
    between memory and shared memory for one instruction, reads as zero what lies outside, and does not write there.

    a: (m, k), or (k, m) if A_TRANSPOSED; b: (k, n), or (n, k) if B_TRANSPOSED; c: (m, n); unit stride in the second
    dimension, and in the first a_stride, b_stride and c_stride, multiples of 16 bytes.

    The loop over tiles and the one over k are flattened into one, so that the next tile's loads are under way while c
    is written. SPECIALIZED: instead, some warps only load and the others only multiply.
    """
    if A_TRANSPOSED:
        tiles_of_a = tl.make_tensor_descriptor(a, [k, m], [a_stride, 1], [BLOCK_K, BLOCK_M])
    else:
        tiles_of_a = tl.make_tensor_descriptor(a, [m, k], [a_stride, 1], [BLOCK_M, BLOCK_K])
    if B_TRANSPOSED:
        tiles_of_b = tl.make_tensor_descriptor(b, [n, k], [b_stride, 1], [BLOCK_N, BLOCK_K])
    else:
        tiles_of_b = tl.make_tensor_descriptor(b, [k, n], [b_stride, 1], [BLOCK_K, BLOCK_N])
    WIDTH: tl.constexpr = BLOCK_N if SPECIALIZED else BLOCK_N // 2  # halves of c take half the shared memory
    tiles_of_c = tl.make_tensor_descriptor(c, [m, n], [c_stride, 1], [BLOCK_M, WIDTH])
    tiles = tl.cdiv(m, BLOCK_M) * tl.cdiv(n, BLOCK_N)
    for tile in tl.range(
        tl.program_id(0), tiles, tl.num_programs(0), flatten=not SPECIALIZED, warp_specialize=SPECIALIZED
    ):
        row, column = _linear_place(tile, m, n, BLOCK_M, BLOCK_N, GROUP)
        acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
        for start in range(0, k, BLOCK_K):
            left = tiles_of_a.load([start, row]).T if A_TRANSPOSED else tiles_of_a.load([row, start])
            right = tiles_of_b.load([column, start]).T if B_TRANSPOSED else tiles_of_b.load([start, column])
            acc = tl.dot(left, right, acc, input_precision="ieee", out_dtype=ACC)
        if BIAS:
            columns = column + tl.arange(0, BLOCK_N)
            acc += tl.load(bias + columns, columns < n, other=0).to(ACC)[None, :]
        if SPECIALIZED:
            tiles_of_c.store([row, column], acc.to(c.dtype.element_ty))
        else:
            first, second = tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, WIDTH)), (0, 2, 1)))
            tiles_of_c.store([row, column], first.to(c.dtype.element_ty))
            tiles_of_c.store([row, column + WIDTH], second.to(c.dtype.element_ty))


def _padded(like, rows, columns):
    """An unwritten matrix whose rows begin at multiples of 16 bytes, as TMA wants them."""
    unit = 16 // like.element_size()
    return like.new_empty(rows, triton.cdiv(columns, unit) * unit)[:, :columns]


def _for_tma(matrix):
    """A matrix as TMA takes it, copied if it must be, and whether that is its transpose."""
    transposed = matrix.stride(1) != 1
    matrix = matrix.mT if transposed else matrix
    (rows, columns), stride = matrix.shape, matrix.stride(0)
    if matrix.data_ptr() % 16 or stride * matrix.element_size() % 16 or stride < columns:
        matrix = _padded(matrix, rows, columns).copy_(matrix)
    return matrix, transposed


def _scratch(size, alignment, stream):
    """Memory in which Triton keeps the descriptions that it gives to TMA."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def _product_persistent(a, b, bias, tile, specialized):
    (m, k), n = a.shape, b.shape[1]
    c, programs = _padded(a, m, n), gpu_of(a.device).multiprocessors * tile.per_multiprocessor
    (a, a_transposed), (b, b_transposed) = _for_tma(a), _for_tma(b)
    triton.set_allocator(_scratch)
    _linear_persistent[(min(tile.tiles(m, n), programs),)](
        a, a.stride(0), b, b.stride(0), c if bias is None else bias, c, c.stride(0), m, n, k,
        A_TRANSPOSED=a_transposed, B_TRANSPOSED=b_transposed, SPECIALIZED=specialized,
        BIAS=bias is not None, ACC=accumulator(a.dtype), GROUP=GROUP, **tile._asdict(),
    )  # fmt: skip
    return c.contiguous()


def product_persistent(a, b, bias=None):
    k = max(a.shape[1], NARROW + 1)  # TMA's boxes stay wide, however few of them k fills
    tile = plan(a.shape[0], b.shape[1], k, a.dtype, gpu_of(a.device))
    return _product_persistent(a, b, bias, tile, specialized=False)


def lacks_tma(device):
    """Why kernels that use TMA cannot run on `device`, or None."""
    gpu = gpu_of(device)
    if gpu.capability < (9, 0):
        return f"needs TMA (compute capability 9.0); {gpu.name} has {'{}.{}'.format(*gpu.capability)}"
    return unavailable(device)


# specialized: warps that load and warps that multiply -----------------------------------------------------------------


def product_specialized(a, b, bias=None):
    m, n = a.shape[0], b.shape[1]
    if a.element_size() > 2 or min(m, n, a.shape[1]) <= NARROW:
        return product_persistent(a, b, bias)
    return _product_persistent(a, b, bias, Tile(128, 256, 64, 4, 3), specialized=True)


def is_not_hopper(device):
    """Why warps cannot be specialized on `device`, or None. On later GPUs not every release of Triton compiles it."""
    gpu = gpu_of(device)
    if gpu.capability[0] != 9:
        return f"needs Hopper (compute capability 9.0); {gpu.name} has {'{}.{}'.format(*gpu.capability)}"
    return unavailable(device)


# split_k: where c has too few tiles for the GPU, the sum over k is split ----------------------------------------------


@triton.jit
def _linear_split(
    a, a_row, a_column, b, b_row, b_column, partial, m, n, k, depth,
    WHOLE: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Program (i, j) sums the i-th tile of c over the j-th `depth` of k: reads (BLOCK_M + BLOCK_N) depth elements, and
    writes BLOCK_M BLOCK_N sums of the accumulation dtype to partial (splits, m, n)."""
    first_row, first_column = _linear_place(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, 1)
    row = (first_row + tl.arange(0, BLOCK_M)[:, None]).to(tl.int64)
    column = (first_column + tl.arange(0, BLOCK_N)[None, :]).to(tl.int64)
    first = tl.program_id(1) * depth
    last = tl.minimum(first + depth, k)
    acc = _linear_sum(
        a, a_row, a_column, b, b_row, b_column, m, n, row, column, first, last, WHOLE, ACC, BLOCK_M, BLOCK_N, BLOCK_K
    )
    row_of_partial = tl.program_id(1).to(tl.int64) * m + row
    tl.store(partial + row_of_partial * n + column, acc, (row < m) & (column < n))


@triton.jit
def _linear_add_splits(partial, bias, c, elements, n, splits, BIAS: tl.constexpr, BLOCK: tl.constexpr):
    """c = the sum of partial (splits, elements) in the order of the splits, so that it is the same in every run. One
    program for BLOCK elements: reads splits BLOCK, writes BLOCK."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = element < elements
    total = tl.zeros([BLOCK], partial.dtype.element_ty)
    for split in range(splits):
        total += tl.load(partial + split * elements + element, mask, other=0)
    if BIAS:
        total += tl.load(bias + element % n, mask, other=0).to(total.dtype)
    tl.store(c + element, total, mask)


def _split(tile, m, n, k, gpu):
    """How deep a program sums so that there is one for every place on the GPU, but none takes fewer than 4 steps."""
    places = gpu.multiprocessors * tile.per_multiprocessor
    splits = max(1, min(places // tile.tiles(m, n), triton.cdiv(k, tile.BLOCK_K) // 4))
    return triton.cdiv(triton.cdiv(k, splits), tile.BLOCK_K) * tile.BLOCK_K


def product_split_k(a, b, bias=None):
    (m, k), n, gpu = a.shape, b.shape[1], gpu_of(a.device)
    tile = plan(m, n, k, a.dtype, gpu, _aligned(a, b))
    depth = _split(tile, m, n, k, gpu)
    if depth >= k:
        few = min(m, n, k) <= NARROW
        return (product_pipelined if few or lacks_tma(a.device) else product_persistent)(a, b, bias)
    c, splits = a.new_empty(m, n), triton.cdiv(k, depth)
    partial = a.new_empty(splits, m, n, dtype=accumulation_dtype(a.dtype))
    _linear_split[(tile.tiles(m, n), splits)](
        a, *a.stride(), b, *b.stride(), partial, m, n, k, depth,
        WHOLE=k % tile.BLOCK_K == 0, ACC=accumulator(a.dtype), **tile._asdict(),
    )  # fmt: skip
    _linear_add_splits[(triton.cdiv(m * n, 1024),)](
        partial, c if bias is None else bias, c, m * n, n, splits, BIAS=bias is not None, BLOCK=1024
    )
    return c


def _rung(name, change, product, sums=column_sums, unavailable=unavailable):
    def forward(x, weight, bias):
        return (product(x, weight.mT, bias),)

    def backward(dy, x, weight, bias):
        return product(dy, weight), product(dy.mT, x), None if bias is None else sums(dy)

    return Implementation(forward, backward, name, change, unavailable, refuses_dtype)


LADDER = [
    _rung(
        "naive",
        "a tile of 32 x 32 elements to a program, with a mask for every load",
        product_naive, column_sums_naive,
    ),
    _rung(
        "tiled",
        "tiles as large as registers allow; no mask along k where its steps come out even",
        product_tiled,
    ),
    _rung(
        "grouped",
        "tiles in groups 8 rows high, so that those at work at the same time share what L2 holds",
        product_grouped,
    ),
    _rung(
        "pipelined",
        "the next steps' loads are under way while a step is multiplied",
        product_pipelined,
    ),
    _rung(
        "persistent",
        "as many programs as fit work through all tiles, which TMA moves: the next one's loads run while c is written",
        product_persistent, unavailable=lacks_tma,
    ),
    _rung(
        "specialized",
        "warps that only load beside warps that only multiply, where a large c is in half precision",
        product_specialized, unavailable=is_not_hopper,
    ),
    _rung(
        "split_k",
        "the sum over k split where c has too few tiles; else persistent, and where c is narrow or TMA lacks pipelined",
        product_split_k,
    ),
]  # fmt: skip
