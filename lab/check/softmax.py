"""The exercises of the softmax chapter: what each asks for, and the cases that tell what is wrong with an answer.

Ordinary rows are of random numbers with a spread of three, so that nothing overflows and every term of a sum counts;
rows are 2^k long wherever masks are not the matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lab.backends.registry import resolve
from lab.check import rows
from lab.check.exercise import Budget, Case, Exercise, Kind, Property, Run, Target, Violation, allowed_error
from lab.check.memory import Watch
from lab.ops.softmax import OPERATOR as SOFTMAX

# inputs and what should come of them ----------------------------------------------------------------------------------


def _inputs(case: Case) -> dict[str, Tensor]:
    (x,) = SOFTMAX.make_inputs(case.shape, rows.SINGLE, seed=case.seed)
    return {"x": (3 * x).to(case.dtype)}


def _backward_inputs(case: Case) -> dict[str, Tensor]:
    dy, x = (SOFTMAX.make_inputs(case.shape, rows.DOUBLE, seed=case.seed + n)[0] for n in range(2))
    return {"dy": dy.to(case.dtype), "y": torch.softmax(x, -1).to(case.dtype)}


def _forward(arguments: dict, outputs: dict[str, Tensor]) -> dict[str, Target]:
    x = arguments["x"]
    (torchs,) = resolve("softmax", "torch", x.device).implementation.forward(x)
    (terms,), _ = SOFTMAX.term_sums((x.double(),), (torch.zeros_like(x, dtype=rows.DOUBLE),), x.dtype)
    return {"y": allowed_error(SOFTMAX.reference(x.double()), torchs, terms)}


def _backward(arguments: dict, outputs: dict[str, Tensor]) -> dict[str, Target]:
    """The y given is rounded, and need not sum to 1: dx is that of the formula, for this y."""
    dy, y = arguments["dy"], arguments["y"]
    (torchs,) = resolve("softmax", "torch", y.device).implementation.backward(dy, y)
    wide, grad = y.double(), dy.double()
    value = wide * (grad - (wide * grad).sum(-1, keepdim=True))
    terms = wide * (grad.abs() + (wide * grad.abs()).sum(-1, keepdim=True))
    return {"dx": allowed_error(value, torchs, terms)}


# cases ----------------------------------------------------------------------------------------------------------------


def _shifted(shift: float) -> Callable[[dict[str, Tensor]], None]:
    def prepare(tensors: dict[str, Tensor]) -> None:
        tensors["x"].add_(shift)

    return prepare


def _sorted(descending: bool) -> Callable[[dict[str, Tensor]], None]:
    def prepare(tensors: dict[str, Tensor]) -> None:
        tensors["x"].copy_(tensors["x"].sort(-1, descending=descending).values)

    return prepare


def _masked(first: float, last: float) -> Callable[[dict[str, Tensor]], None]:
    """-inf in the columns from `first` to `last`, as fractions of the row: what a causal or padding mask leaves."""

    def prepare(tensors: dict[str, Tensor]) -> None:
        columns = tensors["x"].shape[-1]
        tensors["x"][:, math.floor(first * columns) : math.floor(last * columns)] = -math.inf

    return prepare


def _sum_beyond_half(tensors: dict[str, Tensor]) -> None:
    """y dy sums to more than float16 holds, and dx fits it."""
    tensors["y"].fill_(0.5)
    tensors["dy"].fill_(100)


def _one_large(tensors: dict[str, Tensor]) -> None:
    """One element far above the rest: float16 rounds what lies between them by several units of roundoff of y."""
    tensors["x"].clamp_(-1, 1)[:, 0] = 8.5


_large = (
    Case((4, 8), prepare=_shifted(200)),
    Case((4, 64), prepare=_shifted(-200)),
    Case((4, 64), prepare=_shifted(1e6)),
    Case((4, 64), rows.HALF, prepare=_shifted(100)),
)
_some_masked = (
    Case((1, 8), prepare=_masked(0.5, 1)),
    Case((1, 8), prepare=_masked(0, 0.5)),
    Case((3, 64), prepare=_masked(0.25, 1)),
    Case((3, 64), prepare=_masked(0, 0.75)),
)
_precise = (
    Case((3, 129), rows.HALF, prepare=_one_large),
    Case((3, 129), rows.HALF),
    Case((2, 1000), rows.BFLOAT),
    Case((3, 129), rows.DOUBLE),
)


# properties -----------------------------------------------------------------------------------------------------------

OVERFLOW = Property(
    "overflow",
    "Large numbers, of either sign, give finite results: softmax(x + c) = softmax(x).",
    "The exponential of 89 is infinite in float32, that of -104 is zero. By how much may all elements of a row be "
    "moved without changing the result?",
    (),
)
INFINITIES = Property(
    "masked elements",
    "An element that is -inf gives 0, wherever it stands, and leaves the rest of the row alone.",
    "-inf less -inf is NaN. Where can both be -inf at the same time?",
    (),
)
FORMULA = rows.formula("formula", "y = exp(x) / sum(exp(x)), each row for itself.")
BUDGET_CASE = Case((4, 200), padding=56)
SCORES = (16384, 4096)


def _row_properties(
    *long: Property,
    basic: tuple[Case, ...] = rows.BASIC,
    large: tuple[Case, ...] = _large,
    of_blocks: tuple[Case, ...] = (),
    masked_blocks: tuple[Case, ...] = (),
    **parameters: float,
) -> tuple[Property, ...]:
    """What holds for every forward pass. long: what is said of long rows; basic, large: rows of exactly one block;
    of_blocks, masked_blocks: further long rows, and rows of which whole blocks are -inf."""
    returned = rows.outputs("Returns y, in x's shape and dtype.")
    return (
        *rows.on(rows.RUNS, rows.LAUNCHES, cases=basic, **parameters),
        *rows.on(returned, cases=(*basic, *rows.DTYPES), **parameters),
        *rows.on(rows.UNMODIFIED, rows.FRESH, rows.WRITTEN, FORMULA, cases=basic, **parameters),
        *rows.on(OVERFLOW, cases=large, **parameters),
        *rows.on(*long, cases=(*rows.LONG, *of_blocks), **parameters),
        *rows.on(rows.MASK, rows.ANY_COLUMNS, IN_THE_SUM, cases=rows.ODD, **parameters),
        *rows.on(INFINITIES, cases=(*_some_masked, *masked_blocks), **parameters),
        *rows.on(rows.STRIDE, cases=rows.STRIDED, **parameters),
        *rows.on(rows.PRECISION, cases=_precise, **parameters),
    )


IN_THE_SUM = Property(
    "sum over the columns",
    "The sum, and the maximum, are over the columns of the row.",
    "What do the lanes past the end of the row hold when the maximum is taken, and what do they add to the sum? exp(0) "
    "is not 0.",
    (),
)

FORWARD = Exercise(
    "softmax.forward",
    "Softmax forward in Triton",
    _inputs,
    ("y",),
    _forward,
    _row_properties(rows.BLOCK),
    Budget({"x": 1}, {"y": 1}, (), BUDGET_CASE, SCORES, 0.7),
)


def _programs(run: Run, watch: Watch) -> Iterator[Violation]:
    count, each = len(run.arguments["x"]), run.arguments["rows_per_program"]
    asked, enough = math.prod(run.launches[-1].grid), math.ceil(count / each)
    if asked > enough:
        many = f"{asked} programs were launched for {count} rows"
        yield Violation(Kind.PROGRAMS, f"{many}; {enough} are enough at {each:g} rows each")


SEVERAL = Property(
    "rows of several blocks",
    "The maximum and the sum are of the whole row.",
    "When a block brings a larger maximum, what does that make of the sum so far?",
    (),
)
_online_basic = (Case((1, 64)), Case((1, 64), seed=1), Case((4, 64)))

ONLINE = Exercise(
    "softmax.online",
    "The online normalizer: a row longer than a block, in two reads",
    _inputs,
    ("y",),
    _forward,
    (
        *_row_properties(
            rows.NARROW,
            SEVERAL,
            basic=_online_basic,
            large=_large[1:],
            of_blocks=(
                Case((1, 128), prepare=_sorted(descending=False)),
                Case((1, 128), prepare=_sorted(descending=True)),
                Case((2, 2048), prepare=_sorted(descending=False)),
            ),
            masked_blocks=(Case((1, 256), prepare=_masked(0, 0.5)), Case((3, 1000), prepare=_masked(0.2, 1))),
            block=64,
        ),
    ),
    Budget({"x": 2}, {"y": 1}, (), Case((4, 200), padding=56, parameters={"block": 64}), SCORES, 0.3),
)

_some_rows = (Case((1, 8)), Case((4, 8)), Case((3, 64)), Case((3, 64), seed=2))

BACKWARD = Exercise(
    "softmax.backward",
    "Softmax backward",
    _backward_inputs,
    ("dx",),
    _backward,
    (
        *rows.on(rows.RUNS, rows.LAUNCHES, cases=_some_rows),
        *rows.on(rows.outputs("Returns dx, in y's shape and dtype."), cases=(*_some_rows, *rows.DTYPES)),
        *rows.on(rows.UNMODIFIED, rows.FRESH, rows.WRITTEN, cases=_some_rows),
        Property(
            "formula",
            "dx = y (dy - sum(y dy)), each row for itself.",
            "Every x moves every y of its row, through the sum in the denominator: one number a row says how much.",
            _some_rows,
        ),
        *rows.on(rows.BLOCK, cases=rows.LONG),
        *rows.on(rows.MASK, rows.ANY_COLUMNS, cases=rows.ODD),
        *rows.on(rows.STRIDE, cases=rows.STRIDED),
        *rows.on(
            rows.PRECISION,
            cases=(
                Case((2, 2048), rows.HALF, prepare=_sum_beyond_half),
                Case((3, 129), rows.HALF),
                Case((3, 129), rows.BFLOAT),
                Case((3, 129), rows.DOUBLE),
            ),
        ),
    ),
    Budget({"dy": 1, "y": 1}, {"dx": 1}, (), BUDGET_CASE, SCORES, 0.7),
)

TILED = Exercise(
    "softmax.tiled",
    "Several short rows to a program",
    _inputs,
    ("y",),
    _forward,
    (
        *rows.on(rows.RUNS, rows.LAUNCHES, cases=rows.BASIC, rows_per_program=4),
        *rows.on(
            rows.outputs("Returns y, in x's shape and dtype."), cases=(*rows.BASIC, *rows.DTYPES), rows_per_program=4
        ),
        *rows.on(rows.UNMODIFIED, rows.FRESH, rows.WRITTEN, cases=rows.BASIC, rows_per_program=4),
        *rows.on(
            Property(
                "rows to a program",
                "Each program takes as many rows as it is told to.",
                "How many programs are enough for all rows, when the last one may have fewer?",
                (),
                frozenset({Kind.PROGRAMS}),
            ),
            FORMULA,
            cases=(Case((4, 8)), Case((8, 8)), Case((64, 16))),
            rows_per_program=4,
        ),
        *rows.on(OVERFLOW, cases=_large, rows_per_program=4),
        *rows.on(
            Property(
                "the last program",
                "Rows past the last one touch no memory, whatever the number of rows.",
                "Which rows does the last program take if their number is no multiple of what a program takes?",
                (),
            ),
            cases=(Case((1, 8)), Case((5, 8)), Case((7, 64)), Case((1001, 2))),
            rows_per_program=4,
        ),
        *rows.on(
            rows.MASK,
            rows.ANY_COLUMNS,
            IN_THE_SUM,
            cases=(Case((4, 1)), Case((4, 3)), Case((8, 127)), Case((8, 129))),
            rows_per_program=4,
        ),
        *rows.on(INFINITIES, cases=_some_masked, rows_per_program=4),
        *rows.on(rows.STRIDE, cases=rows.STRIDED[:2], rows_per_program=4),
        *rows.on(rows.PRECISION, cases=_precise, rows_per_program=4),
    ),
    Budget({"x": 1}, {"y": 1}, (), Case((64, 24), padding=8, parameters={"rows_per_program": 4}), (262144, 128), 0.5),
    launched=_programs,
)

EXERCISES = (FORWARD, ONLINE, BACKWARD, TILED)
