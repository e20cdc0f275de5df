"""What tiles ask of memory, by hand."""

import pytest

from lab.profiling import tiles

ROWS = [[4 * i + j for j in range(4)] for i in range(4)]  # 4 x 4 tiles, numbered row by row
COLUMNS = [list(column) for column in zip(*ROWS, strict=True)]
SQUARES = [[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]]


@pytest.mark.parametrize("rows, columns, size, flops", [(32, 32, 2, 16), (128, 256, 2, 256 / 3), (128, 128, 4, 32)])
def test_the_intensity_of_a_tile(rows, columns, size, flops):
    assert tiles.intensity(rows, columns, size) == pytest.approx(flops)


@pytest.mark.parametrize(
    "order, programs, rows, columns",
    [(ROWS, 4, 1, 4), (COLUMNS, 4, 4, 1), (SQUARES, 4, 2, 2), (ROWS, 5, 2, 4), (SQUARES, 16, 4, 4)],
)
def test_rows_and_columns_that_programs_need(order, programs, rows, columns):
    assert tiles.needed(order, programs) == (rows, columns)


def test_the_waves_drawn():
    drawn = tiles.waves_drawn({"rows": ROWS, "squares": SQUARES}, 4)
    assert "rows: 1 rows of tiles of a and 4 columns of tiles of b; squares: 2 rows" in drawn.alt
    assert drawn.svg == tiles.waves_drawn({"rows": ROWS, "squares": SQUARES}, 4).svg
    assert drawn.svg != tiles.waves_drawn({"rows": ROWS, "squares": COLUMNS}, 4).svg


def test_the_tile_drawn():
    drawn = tiles.tile_drawn(512, 256, 256, 128, 64, 32)
    assert "A tile of 128 x 64 of c is made of 128 rows of a and 64 columns of b" in drawn.alt
    assert drawn.svg == tiles.tile_drawn(512, 256, 256, 128, 64, 32).svg
