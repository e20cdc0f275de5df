"""What the exercises of all operators share that work row by row: properties, and the shapes that tell them apart."""

from __future__ import annotations

from dataclasses import replace

import torch

from lab.check.exercise import Case, Kind, Property

HALF, BFLOAT, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64

# cases ----------------------------------------------------------------------------------------------------------------


def with_parameters(*cases: Case, **parameters: float) -> tuple[Case, ...]:
    return tuple(replace(case, parameters=parameters | dict(case.parameters)) for case in cases)


BASIC = (Case((1, 8)), Case((1, 8), seed=1), Case((4, 8)), Case((3, 64)))
DTYPES = (Case((1, 8), HALF), Case((1, 8), DOUBLE))
ODD = (Case((1, 1)), Case((1, 3)), Case((5, 127)), Case((3, 129)), Case((2, 1000)), Case((2, 4097)))
LONG = (Case((1, 128)), Case((1, 2048)), Case((2, 4096)), Case((1, 16384)))
STRIDED = (Case((3, 8), padding=5), Case((4, 127), padding=1, offset=3), Case((2, 1000), padding=24))


# properties -----------------------------------------------------------------------------------------------------------

COMPILES = Property(
    "compiles",
    "NVRTC compiles the kernel, in every dtype.",
    "The compiler's first error is the one to mend; the rest often follow from it. A missing name means that the "
    "launch asks for a kernel that the source does not have.",
    (),
    frozenset({Kind.DOES_NOT_COMPILE}),
)
RUNS = Property(
    "runs",
    "The function runs on ordinary input.",
    "The lines above are the last of yours that ran. In the interpreter a kernel is Python: print() works inside it.",
    (),
    frozenset({Kind.RAISED}),
)
LAUNCHES = Property(
    "launches a kernel",
    "The work is done by a kernel of yours.",
    "A kernel is launched with kernel[grid](arguments).",
    (),
    frozenset({Kind.NO_LAUNCH}),
)
UNMODIFIED = Property(
    "inputs unmodified",
    "The inputs hold after the call what they held before.",
    "Which pointer does each store go to? An output needs memory of its own.",
    (),
    frozenset({Kind.MODIFIED}),
)
FRESH = Property(
    "fresh outputs",
    "Each call returns memory of its own, shared with no input and no earlier call.",
    "Allocate the outputs in every call. A view of an input is not an output.",
    (),
    frozenset({Kind.ALIASED}),
)
WRITTEN = Property(
    "output fully written",
    "Every element of every output is written.",
    "Is there a store? Does the grid have a program for every row, and does a program's block reach the row's end?",
    (),
    frozenset({Kind.UNWRITTEN}),
)
MASK = Property(
    "mask",
    "Lanes past the end of a row touch no memory, and add nothing.",
    "A block is a power of two, and rarely as long as the row. Which lanes are past the last column, and what does "
    "each load put into them? A masked load without `other` leaves them undefined.",
    (),
    frozenset({Kind.OUT_OF_BOUNDS, Kind.UNDEFINED}),
)
ANY_COLUMNS = Property(
    "any number of columns",
    "Rows of any length are taken.",
    "tl.arange wants a power of two: triton.next_power_of_2(columns), or a fixed block and a loop.",
    (),
    frozenset({Kind.RAISED}),
)
BLOCK = Property(
    "hard-coded block",
    "Rows far longer than the first ones are taken too.",
    "Is there a number in the code that must be at least the number of columns?",
    (),
)
STRIDE = Property(
    "row stride",
    "Rows may lie further apart than they are long, and each matrix has its own row stride.",
    "At which address does row r of each tensor start? x.stride(0) says how far apart the rows are; an output that was "
    "allocated afresh has another stride than a slice.",
    (),
)
NARROW = Property(
    "block size",
    "No load or store is wider than the block given.",
    "How long is the longest tl.arange? A row of any length has to pass through a block of that one length.",
    (),
    frozenset({Kind.WIDE}),
)

PRECISION = Property(
    "accumulation dtype",
    "float16 and bfloat16 are computed in float32, float64 stays float64 throughout.",
    "In which dtype are the products and their sum formed? Convert what was loaded before multiplying. For float64, "
    "look at the scalars as well: a Python float that is no tl.constexpr arrives as float32.",
    (),
)


def outputs(says: str) -> Property:
    hint = "What does the function return, in which order, and in which dtype was each tensor allocated?"
    return Property("outputs", says, hint, (*BASIC, *DTYPES), frozenset({Kind.OUTPUTS}))


def formula(name: str, says: str, *outputs: str, hint: str = "") -> Property:
    hint = hint or "Work out the smallest case by hand, and print what the kernel has after each line."
    return Property(name, says, hint, BASIC, outputs=outputs or None)


def on(*properties: Property, cases: tuple[Case, ...], **parameters: float) -> tuple[Property, ...]:
    """The properties on these cases; one set of cases for all, so that each is run once."""
    own = with_parameters(*cases, **parameters)
    return tuple(replace(examined, cases=own) for examined in properties)
