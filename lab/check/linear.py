"""The exercises of the chapter on linear: what each asks for, and the cases that tell what is wrong with an answer.

Numbers are small and whole wherever precision is not the matter: their products and sums are exact in every dtype, in
TF32 too. Sizes are multiples of the tile wherever masks are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lab.backends.rows import accumulation_dtype
from lab.check import rows
from lab.check.exercise import ON_REQUEST, Budget, Case, Exercise, Kind, Property, Run, Target, Violation, allowed_error
from lab.check.memory import Watch
from lab.ops.linear import OPERATOR as LINEAR

# inputs and what should come of them ----------------------------------------------------------------------------------


def _inputs(case: Case) -> dict[str, Tensor]:
    x, weight, _ = LINEAR.make_inputs(case.shape, rows.SINGLE, seed=case.seed)
    return {"x": x.to(case.dtype), "weight": weight.to(case.dtype)}


def _gradient_inputs(case: Case) -> dict[str, Tensor]:
    m, n, k = case.shape
    dy, _, _ = LINEAR.make_inputs((m, k, n), rows.SINGLE, seed=case.seed)
    x, _, _ = LINEAR.make_inputs((m, n, k), rows.SINGLE, seed=case.seed + 1)
    return {"dy": dy.to(case.dtype), "x": x.to(case.dtype)}


def _forward(arguments: dict, outputs: dict[str, Tensor]) -> dict[str, Target]:
    x, weight = arguments["x"], arguments["weight"]
    wide = x.double(), weight.double()
    value = LINEAR.reference(*wide)
    (terms,), _ = LINEAR.term_sums((*wide, None), (torch.zeros_like(value),), x.dtype)
    return {"y": allowed_error(value, F.linear(x, weight), terms)}


def _grouped(arguments: dict, outputs: dict[str, Tensor]) -> dict[str, Target]:
    tiles_m, tiles_n = _tiles(arguments)
    order = torch.empty(tiles_m, tiles_n, dtype=torch.int32)
    number = 0
    for first in range(0, tiles_m, arguments["group"]):
        for column in range(tiles_n):
            for row in range(first, min(first + arguments["group"], tiles_m)):
                order[row, column] = number
                number += 1
    exact = Target(order.to(arguments["x"].device), torch.zeros_like(order).to(arguments["x"].device))
    return _forward(arguments, outputs) | {"order": exact}


def _gradients(arguments: dict, outputs: dict[str, Tensor]) -> dict[str, Target]:
    dy, x = arguments["dy"], arguments["x"]
    wide = dy.double(), x.double()
    weight, bias = wide[0].new_zeros(dy.shape[1], x.shape[1]), wide[0].new_zeros(dy.shape[1])
    _, (_, of_dw, of_db) = LINEAR.term_sums((wide[1], weight, bias), wide[:1], x.dtype)
    return {
        "dw": allowed_error(wide[0].mT @ wide[1], dy.mT @ x, of_dw),
        "db": allowed_error(wide[0].sum(0), dy.sum(0), of_db),
    }


# launches -------------------------------------------------------------------------------------------------------------


def _tiles(arguments: dict) -> tuple[int, int]:
    """Rows and columns of tiles of y."""
    return tuple(math.ceil(len(arguments[name]) / arguments["tile"]) for name in ("x", "weight"))


def _tiles_of_dw(arguments: dict) -> tuple[int, int]:
    return tuple(math.ceil(arguments[name].shape[1] / arguments["tile"]) for name in ("dy", "x"))


def _programs(output: str, tiles: Callable[[dict], tuple[int, int]]) -> Callable[[Run, Watch], Iterator[Violation]]:
    """What is wrong with the programs of a call that computes `output` in tiles: their number, what one of them
    computes, how much it loads at once."""

    def judge(run: Run, watch: Watch) -> Iterator[Violation]:
        tile, wanted = run.arguments["tile"], math.prod(tiles(run.arguments))
        asked = [math.prod(launch.grid) for launch in run.launches]
        if wanted not in asked:
            yield _other_number(asked, wanted)
        for (_, program), elements in watch.elements(run.outputs[output], "writes", "updates").items():
            computed = _tiles_with(elements, run.outputs[output].shape[1], tile)
            if len(computed) > 1:
                yield Violation(
                    Kind.PROGRAMS, f"program {program} writes to {len(computed)} tiles of {output}; expected one"
                )
        if watch.widest > tile**2:
            widest = f"the largest load or store has {watch.widest} elements"
            yield Violation(Kind.WIDE, f"{widest}; a tile has {tile**2:g}")

    return judge


def _other_number(asked: list[int], wanted: int) -> Violation:
    return Violation(Kind.PROGRAMS, f"{', '.join(map(str, asked))} programs were launched; expected {wanted}")


def _tiles_with(elements: np.ndarray, columns: int, tile: int) -> np.ndarray:
    """The tiles, counted along the rows of tiles, in which elements of a matrix lie."""
    return np.unique(elements // columns // tile * math.ceil(columns / tile) + elements % columns // tile)


def _in_order(run: Run, watch: Watch) -> Iterator[Violation]:
    """`order` says which program computed a tile."""
    yield from _programs("y", _tiles)(run, watch)
    y, order = run.outputs["y"], run.outputs["order"].flatten().tolist()
    for (_, program), elements in watch.elements(y, "writes", "updates").items():
        for number in _tiles_with(elements, y.shape[1], run.arguments["tile"]):
            if order[number] != program:
                place = ", ".join(map(str, divmod(int(number), run.outputs["order"].shape[1])))
                computed = f"the tile of y that order[{place}] stands for was computed by program {program}"
                yield Violation(Kind.ORDER, f"{computed}; order says {order[number]}")


def _parts(run: Run, watch: Watch) -> Iterator[Violation]:
    """A program for every part of every tile, which reads no other part, and memory for the sums of all parts."""
    x, weight, parts, tile = (run.arguments[name] for name in ("x", "weight", "parts", "tile"))
    asked, wanted = [math.prod(launch.grid) for launch in run.launches], math.prod(_tiles(run.arguments)) * parts
    if wanted not in asked:
        yield _other_number(asked, wanted)
    columns = tile * math.ceil(math.ceil(x.shape[1] / tile) / parts)
    for (_, program), elements in watch.elements(weight, "reads").items():
        read = len(np.unique(elements % x.shape[1]))
        if read > columns:
            yield Violation(
                Kind.PROGRAMS,
                f"program {program} reads {read} of the weight's {x.shape[1]} columns; a part has {columns} at most",
            )
    dtype, size = accumulation_dtype(x.dtype), parts * len(x) * len(weight)
    given = [value for launch in run.launches for value in launch.arguments.values() if isinstance(value, Tensor)]
    sums = [tensor for tensor in given if not _one_of(tensor, x, weight, run.outputs["y"])]
    if not any(tensor.dtype == dtype and tensor.numel() >= size for tensor in sums):
        missing = f"{parts} sums for each of {len(x)}x{len(weight)} elements"
        yield Violation(Kind.SCRATCH, f"no launch was given memory for {missing} in {dtype}")
    for tensor in sums:
        written = watch.elements(tensor, "writes", "updates")
        for step in {launch for launch, _ in written}:
            every = np.concatenate([elements for (launch, _), elements in written.items() if launch == step])
            if len(np.unique(every)) < len(every):
                yield Violation(Kind.SCRATCH, "two programs of a launch write to the same element of the sums' memory")


def _one_of(tensor: Tensor, *others: Tensor) -> bool:
    return any(tensor.data_ptr() == other.data_ptr() for other in others)


# cases ----------------------------------------------------------------------------------------------------------------

TILE = 16


def _whole(tensors: dict[str, Tensor]) -> None:
    for tensor in tensors.values():
        tensor.mul_(2).round_()


def _large(summed: str) -> Callable[[dict[str, Tensor]], None]:
    """Sums begin with many large terms of one sign and end with as many of the other: float16 holds the terms and the
    sums, and no part of them. summed: the tensor with the signs, along its last dimension for "x", along its first for
    "dy"; there its own sums are like that too."""

    def prepare(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensor.fill_(4096 if name == summed else 4)
        signed = tensors[summed] if summed == "x" else tensors[summed].mT
        signed[:, signed.shape[1] // 2 :] *= -1

    return prepare


def _cases(*shapes: tuple[int, int, int], **given) -> tuple[Case, ...]:
    return tuple(Case(shape, prepare=_whole, **given) for shape in shapes)


def _one_tile(k: int) -> tuple[Case, ...]:
    shape = (TILE, TILE, k)
    return (*_cases(shape), *_cases(shape, seed=1))


def _dtypes(k: int) -> tuple[Case, ...]:
    shape = (TILE, TILE, k)
    return (*_cases(shape, dtype=rows.HALF), *_cases(shape, dtype=rows.DOUBLE))


_SEVERAL_TILES = _cases((48, 32, 16), (16, 48, 16), (64, 16, 16))
_EDGES_OF_Y = _cases((1, 1, 16), (5, 16, 16), (16, 7, 16), (33, 18, 16))
_EDGES_OF_K = _cases((16, 16, 1), (16, 16, 7), (16, 16, 17), (16, 16, 40))
_STRIDED = (*_cases((16, 16, 16), padding=5), *_cases((17, 18, 19), padding=1, offset=3))


# properties -----------------------------------------------------------------------------------------------------------

WRITTEN = replace(rows.WRITTEN, hint="Is there a store, to every output, and does it reach every element of a tile?")
FORMULA = Property(
    "formula",
    "y[i, j] is the sum over p of x[i, p] weight[j, p].",
    "Work out a case by hand: x all zeros but for x[0, 1] = 1, say, makes row 0 of y which part of the weight? Print "
    "the blocks that tl.dot is given.",
    (),
)
EVERY_TILE = Property(
    "every tile",
    "Every tile of y is computed, from its own rows of x and of the weight.",
    "Which rows of x, and which of the weight, belong to the tile of a program? Try 3 rows of tiles with 2 columns, "
    "and print the program's number and its tile.",
    (),
)
PROGRAMS = Property(
    "a program a tile",
    "There is one program for each tile, of as many rows and columns as `tile` says, and it computes no other.",
    "How many tiles are there? What is launched, and how large a tile does a program take?",
    (),
    frozenset({Kind.PROGRAMS}),
)
LOOP = Property(
    "loop over k",
    "The sum is over all columns of x, however many pieces they come in.",
    "Take k of two tiles. What does the second round of the loop load, and what becomes of the first round's sum?",
    (),
)
PIECE = replace(
    rows.NARROW,
    name="size of a piece",
    says="The sum goes on in pieces of `tile`: no load or store is larger than `tile` by `tile`.",
    hint="How large are the blocks that are loaded in each round of the loop? All of them have to fit in registers, "
    "however long the sum is.",
)
MASK = Property(
    "mask of rows and columns",
    "Rows and columns past the edges of the result touch no memory.",
    "Three accesses have edges: both loads and the store. Which of their indices can be too large in the last tiles?",
    (),
)
MASK_OF_SUM = Property(
    "mask of the sum",
    "What lies past the end of the sum touches no memory and adds nothing.",
    "In the last piece of the loop, which lanes are past the end? Both blocks have them, and each is multiplied by "
    "what the other holds there: 0 times NaN is NaN.",
    (),
)
STRIDE = replace(
    rows.STRIDE,
    says="Rows may lie further apart than they are long, and each matrix has its own row stride.",
    hint="At which address does row r of each tensor start? Which matrix does each stride belong to?",
)
TF32 = Property(
    "float32 products",
    "Products of float32 are not rounded to TF32.",
    "What does tl.dot do with float32 if nothing is said? Look up its input_precision.",
    (),
)
PRECISION = replace(
    rows.PRECISION,
    says="float16 and bfloat16 are summed in float32, float64 stays float64 throughout.",
    hint="In which dtype is the sum kept from piece to piece, and which one does tl.dot return?",
)


def _basic(*outputs: str, k: int = TILE, **parameters: float) -> tuple[Property, ...]:
    """What holds of one tile."""
    names = " and ".join(outputs) if len(outputs) > 1 else outputs[0]
    returned = rows.outputs(f"Returns {names} in the shapes and dtypes of the signature.")
    return (
        *rows.on(rows.RUNS, rows.LAUNCHES, cases=_one_tile(k), **parameters),
        *rows.on(returned, cases=(*_one_tile(k), *_dtypes(k)), **parameters),
        *rows.on(rows.UNMODIFIED, rows.FRESH, WRITTEN, cases=_one_tile(k), **parameters),
    )


def _precise(signed: str, *shapes: tuple[int, int, int]) -> tuple[Case, ...]:
    dtypes = (rows.HALF, rows.BFLOAT, rows.DOUBLE)
    return (
        *(Case(shape, rows.HALF, prepare=_large(signed)) for shape in shapes),
        *(Case(shape, dtype) for shape in shapes for dtype in dtypes),
    )


_LARGE = (4096, 4096, 4096)


def _of_pytorch(x: Tensor, weight: Tensor, **_: float) -> Tensor:
    return F.linear(x, weight)


def _gradients_of_pytorch(dy: Tensor, x: Tensor, **_: float) -> tuple[Tensor, Tensor]:
    return dy.mT @ x, dy.sum(0)


TILED = Exercise(
    "linear.tiled",
    "A tile of y to a program, in Triton",
    _inputs,
    ("y",),
    _forward,
    (
        *_basic("y", tile=TILE),
        *rows.on(FORMULA, cases=_one_tile(TILE), tile=TILE),
        *rows.on(EVERY_TILE, PROGRAMS, cases=_SEVERAL_TILES, tile=TILE),
        *rows.on(LOOP, PIECE, cases=_cases((16, 16, 32), (16, 16, 80)), tile=TILE),
        *rows.on(MASK_OF_SUM, cases=_EDGES_OF_K, tile=TILE),
        *rows.on(MASK, cases=_EDGES_OF_Y, tile=TILE),
        *rows.on(STRIDE, cases=_STRIDED, tile=TILE),
        *rows.on(TF32, cases=(Case((16, 16, 16)), Case((17, 18, 40))), tile=TILE),
        *rows.on(PRECISION, cases=_precise("x", (16, 16, 32), (5, 7, 70)), tile=TILE),
    ),
    Budget(
        {"x": 2, "weight": 3},
        {"y": 1},
        (),
        Case((48, 32, 40), padding=8, parameters={"tile": TILE}),
        _LARGE,
        0.15,
        {"tile": 64},
        _of_pytorch,
    ),
    launched=_programs("y", _tiles),
)

GROUPED = Exercise(
    "linear.grouped",
    "Programs in groups of rows of tiles",
    _inputs,
    ("y", "order"),
    _grouped,
    (
        *_basic("y", "order", tile=TILE, group=2),
        *rows.on(replace(FORMULA, outputs=("y",)), cases=_one_tile(TILE), tile=TILE, group=2),
        *rows.on(
            replace(EVERY_TILE, outputs=("y",)), PROGRAMS, cases=_cases((32, 48, 16), (64, 32, 16)), tile=TILE, group=2
        ),
        *rows.on(
            Property(
                "order in a group",
                "The numbers of a group go down its columns of tiles, one after the other.",
                "Print `order` and hold it against the picture. How many numbers does a whole group have, and how many "
                "of them does one of its columns?",
                (),
                frozenset(Kind) - ON_REQUEST | {Kind.ORDER},
                ("order",),
            ),
            cases=_cases((32, 48, 16), (64, 32, 16)),
            tile=TILE,
            group=2,
        ),
        *rows.on(
            Property(
                "the last group",
                "The last group may have fewer rows of tiles than the others, and there may be no other.",
                "Which row of tiles does the last group begin with, and how many are left from there? Its columns are "
                "as much shorter.",
                (),
            ),
            cases=_cases((48, 32, 16), (80, 48, 16), (16, 48, 16)),
            tile=TILE,
            group=2,
        ),
        *rows.on(MASK, cases=_EDGES_OF_Y, tile=TILE, group=2),
        *rows.on(STRIDE, cases=_STRIDED, tile=TILE, group=2),
        *rows.on(PRECISION, cases=_precise("x", (16, 16, 32)), tile=TILE, group=2),
    ),
    Budget(
        {"x": 2, "weight": 3},
        {"y": 1, "order": 1},
        (),
        Case((48, 32, 40), padding=8, parameters={"tile": TILE, "group": 2}),
        _LARGE,
        0.15,
        {"tile": 64, "group": 8},
        _of_pytorch,
    ),
    launched=_in_order,
)

_ALL_OF_K = Property(
    "all of k",
    "Every piece of k is in one part, whatever the number of pieces, and a part that has none adds nothing.",
    "k may have one piece more than the parts can share evenly, or fewer pieces than there are parts. Write down first "
    "and last column of each part for 5 pieces and 4 parts. What is in the memory of a part that summed nothing?",
    (),
)

SPLIT_K = Exercise(
    "linear.split_k",
    "Few rows: k split among programs",
    _inputs,
    ("y",),
    _forward,
    (
        *_basic("y", k=32, tile=TILE, parts=2),
        *rows.on(FORMULA, cases=_one_tile(32), tile=TILE, parts=2),
        *rows.on(EVERY_TILE, cases=_cases((16, 48, 32), (32, 16, 32)), tile=TILE, parts=2),
        *rows.on(
            replace(
                PROGRAMS,
                name="a program a part",
                says="One launch has as many programs for every tile of y as there are parts, and each reads its own "
                "part of k alone.",
                hint="How many tiles has y, and how many programs sum for each of them? Which columns does each of "
                "those read?",
            ),
            Property(
                "partial sums",
                "Each part's sum has memory of its own, in float32 (float64 for float64).",
                "How many numbers are there between the two steps, if no two programs share one? In which dtype were "
                "they allocated?",
                (),
                frozenset({Kind.SCRATCH}),
            ),
            cases=(*_cases((16, 32, 64)), *_cases((16, 16, 64), dtype=rows.HALF)),
            tile=TILE,
            parts=4,
        ),
        *rows.on(_ALL_OF_K, cases=_cases((16, 16, 16), (16, 16, 80), (16, 16, 144)), tile=TILE, parts=4),
        *rows.on(MASK_OF_SUM, cases=_EDGES_OF_K, tile=TILE, parts=4),
        *rows.on(MASK, cases=_EDGES_OF_Y, tile=TILE, parts=2),
        *rows.on(STRIDE, cases=_STRIDED, tile=TILE, parts=2),
        *rows.on(PRECISION, cases=_precise("x", (16, 16, 64), (5, 7, 70)), tile=TILE, parts=2),
    ),
    Budget(
        {"x": 2, "weight": 1},
        {},
        ("y",),  # a small one; torch may write it
        Case((16, 32, 232), padding=8, parameters={"tile": TILE, "parts": 2}),
        (16, 14336, 4096),
        0.15,
        {"tile": 64, "parts": 4},
        _of_pytorch,
    ),
    launched=_parts,
)

_TRANSPOSED = "Work out a case by hand: dy all zeros but for dy[0, 1] = 1, say, makes which row of dw, from which of x?"

DW = Exercise(
    "linear.dw",
    "The gradients of weight and bias",
    _gradient_inputs,
    ("dw", "db"),
    _gradients,
    (
        *_basic("dw", "db", tile=TILE),
        Property(
            "dw",
            "dw[i, j] is the sum over rows p of dy[p, i] x[p, j].",
            _TRANSPOSED,
            rows.with_parameters(*_one_tile(TILE), tile=TILE),
            outputs=("dw",),
        ),
        Property(
            "db",
            "db[i] is the sum over rows p of dy[p, i].",
            "Over which dimension of the block is the sum? dy's columns are the bias's elements.",
            rows.with_parameters(*_one_tile(TILE), tile=TILE),
            outputs=("db",),
        ),
        # before any case in which dy and x have rows of different lengths, and so different strides
        *rows.on(STRIDE, cases=_cases((16, 16, 16), padding=5, offset=3), tile=TILE),
        *rows.on(
            replace(
                EVERY_TILE,
                says="Every tile of dw is computed, from its own columns of dy and of x, and every element of db.",
                hint="Which columns of dy, and which of x, belong to a program's tile? Which programs store db?",
            ),
            PROGRAMS,
            cases=_cases((16, 48, 32), (16, 16, 48), (16, 64, 16)),
            tile=TILE,
        ),
        *rows.on(
            replace(
                LOOP,
                name="loop over rows",
                says="The sums are over all rows of dy and x, however many pieces they come in.",
                hint="Take m of two tiles. What does the second round of the loop load, and what becomes of the first "
                "round's sums, dw's and db's?",
            ),
            PIECE,
            cases=_cases((32, 16, 16), (80, 16, 16)),
            tile=TILE,
        ),
        *rows.on(MASK_OF_SUM, cases=_cases((1, 16, 16), (7, 16, 16), (17, 16, 16), (40, 16, 16)), tile=TILE),
        *rows.on(MASK, cases=_cases((16, 1, 1), (16, 5, 16), (16, 16, 7), (16, 33, 18)), tile=TILE),
        *rows.on(TF32, cases=(Case((16, 16, 16)), Case((40, 17, 18))), tile=TILE),
        *rows.on(PRECISION, cases=_precise("dy", (32, 16, 16), (70, 5, 7)), tile=TILE),
    ),
    Budget(
        {"dy": 2, "x": 3},
        {"dw": 1, "db": 1},
        (),
        Case((40, 48, 32), padding=8, parameters={"tile": TILE}),
        _LARGE,
        0.15,
        {"tile": 64},
        _gradients_of_pytorch,
    ),
    launched=_programs("dw", _tiles_of_dw),
)

_compiled = (*_cases((16, 16, 16)), *_cases((16, 16, 16), dtype=rows.HALF))

CUDA = Exercise(
    "linear.tile_cuda",
    "A tile in shared memory, in CUDA C++",
    _inputs,
    ("y",),
    _forward,
    (
        *rows.on(
            rows.COMPILES,
            rows.RUNS,
            rows.LAUNCHES,
            Property(
                "tiles in shared memory",
                "A tile of x and a tile of the weight are kept in shared memory.",
                "Which of the kernel's variables does a block have once, and which has every thread for itself?",
                (),
                frozenset({Kind.NOT_SHARED}),
            ),
            rows.outputs("Returns y, (m, n) in x's dtype."),
            rows.UNMODIFIED,
            rows.FRESH,
            WRITTEN,
            cases=_compiled,
        ),
        replace(
            FORMULA,
            cases=(*_compiled, *_one_tile(TILE)),
            hint="Work out a case by hand. Is every element of both tiles written before another thread reads it?",
        ),
        replace(EVERY_TILE, cases=(*_SEVERAL_TILES, *_cases((256, 512, 16)))),
        replace(LOOP, cases=_cases((16, 16, 32), (16, 16, 80), (256, 256, 512))),
        replace(MASK_OF_SUM, cases=_EDGES_OF_K),
        replace(MASK, cases=_EDGES_OF_Y),
        replace(STRIDE, cases=_STRIDED),
        replace(PRECISION, cases=tuple(case for case in _precise("x", (16, 16, 32)) if case.dtype == rows.HALF)),
    ),
    language="cuda",
    shared=2 * TILE * TILE,
)

EXERCISES = (TILED, GROUPED, SPLIT_K, DW, CUDA)
