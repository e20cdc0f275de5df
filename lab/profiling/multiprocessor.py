"""What a multiprocessor makes of a kernel, by its published rules: the sectors and the banks that the addresses of a
warp touch, and how many blocks it holds at a time. Nothing here is measured.

Limits and rules are those of the CUDA C++ programming guide (appendix "Compute capabilities") and of CUDA's header
cuda_occupancy.h.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure as MplFigure
from matplotlib.patches import Rectangle

from lab.benchmark.figures import COLOURS, Figure, figure, style
from lab.benchmark.tables import Table

if TYPE_CHECKING:
    from lab.profiling.resources import Resources

WARP = 32  # threads
SECTOR = 32  # bytes that cross between a cache and device memory at a time
BANKS, BANK = 32, 4  # of shared memory, each bytes wide
REGISTERS = 65536  # of a multiprocessor, each 32 bits
PARTITIONS = 4  # parts of a multiprocessor, each with a quarter of its registers
RESERVED = 1024  # bytes of shared memory that the system takes for each block, since Ampere


@dataclass(frozen=True)
class Limits:
    """The most that a multiprocessor holds: warps, blocks, and bytes of shared memory. granularity: in which bytes of
    shared memory are given out."""

    warps: int
    blocks: int
    shared: int
    granularity: int = 128


LIMITS = {
    "sm_75": Limits(32, 16, 64 * 1024, granularity=256),
    "sm_80": Limits(64, 32, 164 * 1024),
    "sm_86": Limits(48, 16, 100 * 1024),
    "sm_89": Limits(48, 24, 100 * 1024),
    "sm_90": Limits(64, 32, 228 * 1024),
    "sm_100": Limits(64, 32, 228 * 1024),
    "sm_120": Limits(48, 24, 100 * 1024),
}


def sectors(addresses: Iterable[int], size: int) -> int:
    """Sectors of device memory that one load or store of a warp touches. addresses: in bytes, one for each thread that
    takes part; size: bytes that each of them moves."""
    return len({at // SECTOR for address in addresses for at in range(address, address + size)})


def sectors_drawn(accesses: Mapping[str, Collection[int]], size: int) -> Figure:
    """The sectors that each access of a warp, by its name, touches, eight side by side, and in each of them the bytes
    that are asked for in colour. addresses and size as for `sectors`."""
    touched = {
        name: {at // size for address in addresses for at in range(address, address + size)}
        for name, addresses in accesses.items()
    }
    cells = SECTOR // size
    crossed = {name: sorted({cell // cells for cell in found}) for name, found in touched.items()}
    across, gap = 8, 0.12  # the gap in sectors
    lines = {name: -(-len(found) // across) for name, found in crossed.items()}
    with style():
        fig = MplFigure(figsize=(5.6, 0.55 * len(lines) + 0.3 * sum(lines.values())))
        axes = fig.subplots()
        axes.set_axis_off()
        top = 0.0
        for name, found in crossed.items():
            axes.text(0, top + 0.8, f"{name}: {len(found)} sectors", fontsize=13, va="bottom")
            top += 1
            for index, sector in enumerate(found):
                left, upper = index % across * (1 + gap), top + index // across
                for cell in range(cells):
                    asked = sector * cells + cell in touched[name]
                    place = (left + cell / cells, upper)
                    axes.add_patch(Rectangle(place, 1 / cells, 0.7, color=COLOURS["triton"], alpha=0.9 if asked else 0))
                axes.add_patch(Rectangle((left, upper), 1, 0.7, fill=False, edgecolor="#767676", linewidth=1))
            top += lines[name] + 0.6
        axes.set_xlim(-0.05, across * (1 + gap))
        axes.set_ylim(top - 0.5, 0)
        wanted = {name: 100 * len(touched[name]) / (cells * len(found)) for name, found in crossed.items()}
        told = "; ".join(
            f"{name}: {len(found)} sectors, {wanted[name]:.3g}% of their bytes wanted"
            for name, found in crossed.items()
        )
        return figure(fig, f"The sectors of {SECTOR} bytes that one access of a warp touches. {told}")


def bank_passes(addresses: Iterable[int], size: int) -> int:
    """Passes that one load or store of a warp takes in shared memory: the most different words that it wants of one
    bank. addresses: in bytes; size: bytes that each thread moves, at most those of a bank (wider ones go in parts).

    Raises ValueError for another size.
    """
    if not 1 <= size <= BANK:
        raise ValueError(f"size is {size}; expected 1 to {BANK} bytes")
    words = defaultdict(set)
    for address in addresses:
        words[address // BANK % BANKS].add(address // BANK)
    return max(map(len, words.values()), default=0)


def panel_drawn(layouts: Mapping[str, Callable[[int, int], int]], wanted: int) -> Figure:
    """Eight rows of 128 bytes in shared memory, a column for every four banks: in each place the number of the chunk of
    16 bytes that lies there, and in colour chunk `wanted` of each row. layouts: of a row and a chunk, both 0 to 7, the
    byte at which it lies.

    Raises ValueError for chunks that overlap or leave the panel.
    """
    with style():
        fig = MplFigure(figsize=(5.6, 3.1))
        told = []
        for axes, (name, layout) in zip(fig.subplots(1, len(layouts), squeeze=False)[0], layouts.items(), strict=True):
            places = {layout(row, chunk): (row, chunk) for row in range(8) for chunk in range(8)}
            if set(places) != set(range(0, 1024, 16)):
                raise ValueError(f"{name} does not put 64 chunks of 16 bytes into 1024 bytes")
            passes = bank_passes([layout(row, wanted) + word for row in range(8) for word in range(0, 16, BANK)], BANK)
            text = f"{passes} pass{'' if passes == 1 else 'es'}"
            axes.set_axis_off()
            axes.set_title(f"{name}: {text}")
            for place, (_, chunk) in places.items():
                x, y = place % 128 // 16, place // 128
                if chunk == wanted:
                    axes.add_patch(Rectangle((x, y), 1, 1, color=COLOURS["triton"], alpha=0.55, linewidth=0))
                axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor="#767676", linewidth=0.7))
                axes.text(x + 0.5, y + 0.5, f"{chunk}", fontsize=12, ha="center", va="center")
            axes.set_xlim(-0.05, 8.05)
            axes.set_ylim(8.05, -0.05)
            axes.set_aspect("equal")
            told.append(f"{name}, {text}")
        alt = (
            "Chunks of 16 bytes of eight rows in shared memory, four banks to a column. To read chunk "
            f"{wanted} of every row takes: {'; '.join(told)}"
        )
        return figure(fig, alt)


@dataclass(frozen=True)
class Occupancy:
    """blocks, warps: that a multiprocessor holds at a time. fraction: of the most warps. bound: what allows no more
    blocks: "warps", "blocks", "registers" or "shared memory"."""

    blocks: int
    warps: int
    fraction: float
    bound: str


def occupancy(arch: str, threads: int, registers: int, shared: int) -> Occupancy:
    """Of a kernel with blocks of `threads` threads, `registers` registers a thread, and `shared` bytes of shared memory
    a block, what the system takes for itself included. arch: such as "sm_90".

    Raises ValueError for an unknown architecture.
    """
    if arch not in LIMITS:
        raise ValueError(f"unknown architecture {arch!r}; expected one of {', '.join(LIMITS)}")
    limits = LIMITS[arch]
    warps = -(-threads // WARP)
    of_a_warp = _round_up(registers * WARP, 256)
    taken = _round_up(shared, limits.granularity)
    most = {
        "warps": limits.warps // warps,
        "blocks": limits.blocks,
        "registers": REGISTERS // PARTITIONS // of_a_warp * PARTITIONS // warps,
    }
    if taken:
        most["shared memory"] = limits.shared // taken
    bound = min(most, key=most.__getitem__)
    return Occupancy(most[bound], most[bound] * warps, most[bound] * warps / limits.warps, bound)


def occupancy_of(row: Resources) -> Occupancy:
    """Of a kernel whose resources the compiler has told. The compiler counts what the system takes for itself from
    Hopper on, and only where a kernel uses shared memory at all."""
    major = int(row.arch.removeprefix("sm_")) // 10
    shared = max(row.shared, RESERVED) if major >= 9 else row.shared + (RESERVED if major == 8 else 0)
    return occupancy(row.arch, row.threads, row.registers, shared)


def occupancy_table(rows: Sequence[Resources]) -> Table:
    """A line a kernel: what a block takes, how many a multiprocessor holds, and what allows no more."""
    lines = []
    for row in rows:
        held = occupancy_of(row)
        lines.append(
            [
                row.implementation,
                f"{row.threads}",
                f"{row.registers}",
                f"{row.shared / 1024:.1f}",
                f"{held.blocks}",
                f"{held.warps}",
                f"{100 * held.fraction:.3g}",
                held.bound,
            ]
        )
    header = ["threads", "registers", "KiB shared", "blocks", "warps", "% of all warps", "limited by"]
    return Table(["rung", *header], lines)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
