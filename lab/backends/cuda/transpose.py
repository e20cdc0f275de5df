"""Launchers of `transpose.cu`, in the order in which the chapter teaches its kernels. The mathematics is in
`lab/ops/transpose.py`; both passes are the same kernel."""

from pathlib import Path

from lab.backends.cuda.compile import launch, name_of, refuses_dtype, source_of, unavailable
from lab.backends.cuda.rows import vector_width
from lab.backends.implementation import Implementation

SOURCE = Path(__file__).with_suffix(".cu")
BITS = {2: "unsigned short", 4: "unsigned", 8: "unsigned long long"}  # by element size: only bits are moved


def _launch(kernel: str, template: tuple, tile: tuple[int, int], threads: int, x):
    """One block for each tile of x; a tile is (rows, columns)."""
    rows, columns = x.shape
    y = x.new_empty(columns, rows)
    grid = -(-rows // tile[0]) * -(-columns // tile[1])
    name = name_of(kernel, BITS[x.element_size()], *template)
    launch(source_of(SOURCE), name, grid, threads, x, x.stride(0), y, rows, columns)
    return (y,)


def naive(x):
    return _launch("transpose_naive", (), (1, 256), 256, x)


def tiled(x):
    return _launch("transpose_tiled", (32,), (32, 32), 256, x)


def padded(x):
    return _launch("transpose_tiled", (33,), (32, 32), 256, x)


def vectorized(x):
    """Tiles of 64 x 64; of float64, of 32 x 32, whose rows are as long."""
    tile = 32 if x.element_size() == 8 else 64
    rows_are_aligned = vector_width(x) > 1 and x.shape[0] * x.element_size() % 16 == 0  # those of x, and those of y
    width = vector_width(x) if rows_are_aligned else 1
    return _launch("transpose_vectorized", (width, tile, 256), (tile, tile), 256, x)


LADDER = [
    Implementation(
        naive, naive, "naive",
        "an element a thread: neighbours of a row are read, and each is written into another row",
        unavailable, refuses_dtype,
    ),
    Implementation(
        tiled, tiled, "tiled",
        "through a tile of 32 x 32 in shared memory, so that reads and writes are both of neighbours",
        unavailable, refuses_dtype,
    ),
    Implementation(
        padded, padded, "padded",
        "the tile's rows are one element longer, so that a column lies in all banks",
        unavailable, refuses_dtype,
    ),
    Implementation(
        vectorized, vectorized, "vectorized",
        "16-byte loads and stores, and tiles of 64 x 64: more bytes on their way at a time",
        unavailable, refuses_dtype,
    ),
]  # fmt: skip
