"""What the tiles of a matrix product ask of memory, counted and drawn. Nothing here is measured.

A product c = a b of a (m, k) and b (k, n) is cut into tiles of c. A program computes one of them, from as many rows of
a and columns of b.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as MplFigure
from matplotlib.patches import Rectangle

from lab.benchmark.figures import COLOURS, Figure, figure, style

FRAME = "#767676"
WAVES = (0.9, 0.45, 0.2)  # how strongly the programs that run first, second and third are coloured


def intensity(rows: int, columns: int, size: int) -> float:
    """FLOPs of a tile for each byte of a and b that its program fetches: 2 rows columns k over (rows + columns) k size.
    size: bytes of an element."""
    return 2 * rows * columns / ((rows + columns) * size)


def needed(order: Sequence[Sequence[int]], programs: int) -> tuple[int, int]:
    """How many rows of tiles of a, and columns of tiles of b, the first `programs` programs need together. order: for
    each tile of c, by row and column, the number of its program."""
    first = [(i, j) for i, line in enumerate(order) for j, number in enumerate(line) if number < programs]
    return len({i for i, _ in first}), len({j for _, j in first})


def tile_drawn(m: int, n: int, k: int, rows: int, columns: int, step: int) -> Figure:
    """The three matrices to scale: a tile of c, the rows of a and the columns of b that it is made of, and the part of
    those that one step of `step` along k takes."""
    gap = 0.06 * max(m + k, n + k)
    with style():
        fig = MplFigure(figsize=(5.6, 5.6 * (m + k + gap) / (n + k + gap)))
        axes = fig.subplots()
        axes.set_axis_off()
        top, left = k + gap, k + gap
        named = {"a": (0, top, k, m), "b": (left, 0, n, k), "c": (left, top, n, m)}
        for name, (x, y, width, height) in named.items():
            axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=FRAME, linewidth=1))
            axes.text(x + width * 0.94, y + height * 0.92, name, fontsize=15, ha="right", va="bottom")
        row, column, along = m // 2 // rows * rows, n // 2 // columns * columns, k // 3 // step * step
        strips = [((0, top + row), k, rows), ((left + column, 0), columns, k)]
        steps = [((along, top + row), step, rows), ((left + column, along), columns, step)]
        for place, width, height in strips:
            axes.add_patch(Rectangle(place, width, height, color=COLOURS["triton"], alpha=0.35, linewidth=0))
        for place, width, height in steps:
            axes.add_patch(Rectangle(place, width, height, color=COLOURS["cuda"], linewidth=0))
        axes.add_patch(Rectangle((left + column, top + row), columns, rows, color=COLOURS["triton"], linewidth=0))
        axes.set_xlim(-gap / 4, left + n + gap / 4)
        axes.set_ylim(top + m + gap / 4, -gap / 4)
        alt = (
            f"Matrices a of {m} x {k}, b of {k} x {n} and c of {m} x {n}. A tile of {rows} x {columns} of c is made of "
            f"{rows} rows of a and {columns} columns of b, which come in steps of {step} along k"
        )
        return figure(fig, alt)


def waves_drawn(orders: Mapping[str, Sequence[Sequence[int]]], programs: int) -> Figure:
    """c as a grid of tiles, once for each numbering of them: those of the first three waves of `programs` programs in
    colour, the first the strongest, and along the edges the rows of a and the columns of b that the first needs."""
    with style():
        fig = MplFigure(figsize=(5.6, 3.9))
        every = fig.subplots(1, len(orders), squeeze=False)[0]
        told = []
        for axes, (name, order) in zip(every, orders.items(), strict=True):
            rows, columns = needed(order, programs)
            _draw_waves(axes, order, programs)
            axes.set_title(f"{name}\n{rows} of a + {columns} of b")
            told.append(f"{name}: {rows} rows of tiles of a and {columns} columns of tiles of b")
        alt = f"Which tiles of c {programs} programs that run at the same time compute. They need, {'; '.join(told)}"
        return figure(fig, alt)


def _draw_waves(axes: Axes, order: Sequence[Sequence[int]], programs: int) -> None:
    height, width = len(order), len(order[0])
    edge = 0.06 * max(height, width)
    axes.set_axis_off()
    axes.add_patch(Rectangle((0, 0), width, height, fill=False, edgecolor=FRAME, linewidth=1))
    for i, line in enumerate(order):
        begin = 0
        for j in range(1, width + 1):  # a rectangle for each stretch of one wave
            wave = line[begin] // programs
            if j < width and line[j] // programs == wave:
                continue
            if wave < len(WAVES):
                place = Rectangle((begin, i), j - begin, 1, color=COLOURS["triton"], alpha=WAVES[wave], linewidth=0)
                axes.add_patch(place)
            begin = j
    first = [(i, j) for i, line in enumerate(order) for j, number in enumerate(line) if number < programs]
    for i in sorted({i for i, _ in first}):
        axes.add_patch(Rectangle((-2 * edge, i), edge, 1, color=COLOURS["cuda"], linewidth=0))
    for j in sorted({j for _, j in first}):
        axes.add_patch(Rectangle((j, -2 * edge), 1, edge, color=COLOURS["cuda"], linewidth=0))
    axes.set_xlim(-2.2 * edge, width + edge / 4)
    axes.set_ylim(height + edge / 4, -2.2 * edge)
    axes.set_aspect("equal")
