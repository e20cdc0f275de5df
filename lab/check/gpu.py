"""The exercises of the chapter on the GPU: what a warp asks of memory, what a multiprocessor holds, and a transpose."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lab.check import rows
from lab.check.calculation import Calculation, Mistake
from lab.check.exercise import Budget, Case, Exercise, Kind, Property, Target
from lab.ops.transpose import OPERATOR as TRANSPOSE
from lab.profiling import multiprocessor

# calculations ---------------------------------------------------------------------------------------------------------


def _sectors(distance: int, bits: int) -> int:
    """Of a warp, aligned at its first address; elements are no larger than a sector, and aligned."""
    size = bits // 8
    return multiprocessor.sectors([lane * distance * size for lane in range(multiprocessor.WARP)], size)


SECTORS = Calculation(
    "gpu.sectors",
    "The sectors that a warp touches",
    _sectors,
    (
        {"distance": 1, "bits": 32},
        {"distance": 8, "bits": 16},
        {"distance": 3, "bits": 32},
        {"distance": 0, "bits": 32},
        {"distance": 4096, "bits": 16},
        {"distance": 1, "bits": 8},
        {"distance": 5, "bits": 64},
    ),
    (
        Mistake(
            "no more than there are lanes",
            "A lane whose element has a sector to itself asks for one sector, however far away the next one is.",
            "Is what lies between two lanes' sectors fetched?",
            lambda distance, bits: max(1, math.ceil(32 * distance * bits / 8 / 32)),
        ),
        Mistake(
            "what lies between",
            "A sector is fetched whole: what lies between the wanted elements in it comes along.",
            "How many of the 32 lanes find their element in the first 32 bytes?",
            lambda distance, bits: math.ceil(32 * bits / 8 / 32),
        ),
        Mistake(
            "each sector once",
            "The hardware looks at all 32 addresses together: a sector that several lanes want is fetched once.",
            "Where do the first two lanes' elements lie?",
            lambda distance, bits: 32,
        ),
    ),
)

BANK_PASSES = Calculation(
    "gpu.bank_passes",
    "The passes that a column of a tile takes",
    lambda pitch: multiprocessor.bank_passes([4 * pitch * lane for lane in range(multiprocessor.WARP)], 4),
    tuple({"pitch": pitch} for pitch in (33, 32, 34, 48, 64, 36, 1, 31)),
    (
        Mistake(
            "some banks, not one",
            "A pitch that shares a factor with 32 meets a few banks: neither all of them nor a single one.",
            "With rows of 48 words, in which banks do the first four elements of a column lie?",
            lambda pitch: 32 if pitch % 32 == 0 else 1,
        ),
        Mistake(
            "passes, not banks",
            "The number of passes is asked for: elements in a bank, not banks.",
            "32 lanes share the banks that they meet. How many are there in each?",
            lambda pitch: 32 // math.gcd(pitch, 32),
        ),
        Mistake(
            "words, not bytes",
            "The pitch is given in words, and so are banks counted.",
            "How many banks further is the next word?",
            lambda pitch: math.gcd(4 * pitch, 32),
        ),
    ),
)

LOADS_IN_FLIGHT = Calculation(
    "gpu.loads_in_flight",
    "The loads that a thread must have on their way",
    lambda gbps, latency_ns, multiprocessors, threads: math.ceil(gbps * latency_ns / (multiprocessors * threads * 16)),
    (
        {"gbps": 3200, "latency_ns": 500, "multiprocessors": 100, "threads": 1024},
        {"gbps": 3000, "latency_ns": 640, "multiprocessors": 132, "threads": 256},
        {"gbps": 8000, "latency_ns": 800, "multiprocessors": 148, "threads": 128},
    ),
    (
        Mistake(
            "of each multiprocessor",
            "All multiprocessors have their loads on their way.",
            "Which share of the bytes falls to one multiprocessor?",
            lambda gbps, latency_ns, multiprocessors, threads: math.ceil(gbps * latency_ns / (threads * 16)),
        ),
        Mistake(
            "16 bytes each",
            "Each load brings 16 bytes.",
            "Loads are asked for, not bytes.",
            lambda gbps, latency_ns, multiprocessors, threads: math.ceil(
                gbps * latency_ns / (multiprocessors * threads)
            ),
        ),
        Mistake(
            "whole loads",
            "A part of a load is a load.",
            "Is your number of loads enough to keep memory busy?",
            lambda gbps, latency_ns, multiprocessors, threads: gbps * latency_ns // (multiprocessors * threads * 16),
        ),
    ),
)


def _blocks(threads: int, registers: int, shared: int) -> int:
    return multiprocessor.occupancy("sm_90", threads, registers, shared).blocks


BLOCKS = Calculation(
    "gpu.blocks",
    "The blocks that a multiprocessor holds",
    _blocks,
    (
        {"threads": 256, "registers": 16, "shared": 1024},
        {"threads": 256, "registers": 128, "shared": 1024},
        {"threads": 128, "registers": 32, "shared": 33 * 1024},
        {"threads": 32, "registers": 32, "shared": 1024},
        {"threads": 1024, "registers": 40, "shared": 2048},
        {"threads": 512, "registers": 64, "shared": 100 * 1024},
    ),
    (
        Mistake(
            "registers are of a thread",
            "Every thread of a block has registers of its own.",
            "How many registers does the whole block take?",
            lambda threads, registers, shared: min(
                2048 // threads, 32, 65536 // registers, multiprocessor.LIMITS["sm_90"].shared // shared
            ),
        ),
        Mistake(
            "no more than 32",
            "There is a limit to the number of blocks itself.",
            "How many blocks of a single warp would there be, by your count?",
            lambda threads, registers, shared: min(
                2048 // threads, 65536 // (threads * registers), multiprocessor.LIMITS["sm_90"].shared // shared
            ),
        ),
        Mistake(
            "room for the threads",
            "A multiprocessor holds 2048 threads.",
            "How many threads would be on it, by your count?",
            lambda threads, registers, shared: min(
                32, 65536 // (threads * registers), multiprocessor.LIMITS["sm_90"].shared // shared
            ),
        ),
        Mistake(
            "shared memory",
            "All blocks on a multiprocessor share the 228 KiB.",
            "Which of the arguments have you used?",
            lambda threads, registers, shared: min(2048 // threads, 32, 65536 // (threads * registers)),
        ),
        Mistake(
            "whole blocks",
            "A block is there with all of its threads, or not at all.",
            "Is your answer a whole number in every case?",
            lambda threads, registers, shared: min(
                2048 / threads, 32, 65536 / (threads * registers), multiprocessor.LIMITS["sm_90"].shared / shared
            ),
        ),
    ),
)

# the transpose --------------------------------------------------------------------------------------------------------


def _inputs(case: Case) -> dict[str, Tensor]:
    (x,) = TRANSPOSE.make_inputs(case.shape, torch.float64, seed=case.seed)
    return {"x": x.to(case.dtype)}


def _transposed(arguments: dict, outputs: dict[str, Tensor]) -> dict[str, Target]:
    """To the bit: nothing is computed."""
    y = arguments["x"].T.contiguous().double()
    return {"y": Target(y, torch.zeros_like(y))}


# Square ones first: there a mask is all that can go wrong with a bound, and rows are as long as columns.
_square = (Case((8, 8)), Case((8, 8), seed=1), Case((1, 1)), Case((33, 33)))
_basic = (*_square, Case((16, 64)), Case((64, 16)), Case((1, 3)), Case((33, 31)), Case((127, 5)), Case((65, 130)))
_large = (Case((64, 64)), Case((128, 64)), Case((64, 256)), Case((128, 128), rows.HALF))
_strided = (Case((3, 8), padding=5), Case((64, 64), padding=1, offset=3), Case((33, 40), padding=24))

TRANSPOSE_RIGHT = Property(
    "formula",
    "y[j, i] = x[i, j].",
    "Work out the smallest case by hand: to which address does each element of the square go?",
    _basic,
)
MASK = Property(
    "mask",
    "Lanes past the last row or the last column touch no memory.",
    "The squares at the right and at the lower edge are not full. Which condition keeps each of the two dimensions in "
    "bounds, in the load and in the store?",
    (),
    frozenset({Kind.OUT_OF_BOUNDS, Kind.UNDEFINED}),
)
COALESCED = Property(
    "neighbours together",
    "Each load and each store is of neighbours: it touches at most twice the sectors that its elements would fill.",
    "Which dimension of the block of pointers has a stride of one element, in the load and in the store? It takes a "
    "block of two dimensions for both to have one.",
    _large,
    frozenset({Kind.SCATTERED}),
)

COALESCED_TRANSPOSE = Exercise(
    "gpu.transpose",
    "A transpose whose every load and store is of neighbours",
    _inputs,
    ("y",),
    _transposed,
    (
        *rows.on(rows.RUNS, rows.LAUNCHES, cases=_basic),
        *rows.on(
            rows.outputs("Returns y, x's columns by x's rows, in x's dtype."),
            cases=(*_basic, Case((8, 16), rows.HALF), Case((8, 16), rows.DOUBLE)),
        ),
        *rows.on(rows.UNMODIFIED, rows.FRESH, MASK, rows.WRITTEN, cases=_square),
        TRANSPOSE_RIGHT,
        *rows.on(rows.BLOCK, cases=_large),
        COALESCED,
        *rows.on(rows.STRIDE, cases=_strided),
        Property(
            "every bit",
            "The elements arrive as they were, in every dtype.",
            "Nothing is computed, so nothing need be converted.",
            (Case((16, 33), rows.HALF), Case((16, 33), rows.DOUBLE), Case((16, 33))),
        ),
    ),
    Budget({"x": 1}, {"y": 1}, (), Case((65, 130), padding=6), (8192, 8192), 0.4),
)

EXERCISES = (SECTORS, BANK_PASSES, LOADS_IN_FLIGHT, BLOCKS, COALESCED_TRANSPOSE)
