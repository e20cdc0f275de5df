"""The exercises of the RMSNorm chapter: what each asks for, and the cases that tell what is wrong with an answer.

Numbers are made so that one property at a time matters. x is thirty times a normal random number wherever eps is not
the matter, so that eps vanishes beside its mean square; rows are 2^k long wherever masks are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lab.backends.registry import resolve
from lab.backends.rows import accumulation_dtype
from lab.check.exercise import Budget, Case, Exercise, Expectation, Kind, Property, Target, allowed_error
from lab.ops.add_rmsnorm import OPERATOR as ADD_RMSNORM
from lab.ops.operator import Operator
from lab.ops.rmsnorm import OPERATOR as RMSNORM

HALF, BFLOAT, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


# inputs and what should come of them ----------------------------------------------------------------------------------


def _inputs(operator: Operator) -> Callable[[Case], dict[str, Tensor]]:
    def make(case: Case) -> dict[str, Tensor]:
        tensors = dict(zip(operator.tensors, operator.make_inputs(case.shape, SINGLE, seed=case.seed), strict=True))
        scale = {name: 1.0 if name == "weight" else 30.0 for name in tensors}
        return {name: (tensor * scale[name]).to(case.dtype) for name, tensor in tensors.items()}

    return make


def _backward_inputs(case: Case) -> dict[str, Tensor]:
    x, weight = RMSNORM.make_inputs(case.shape, case.dtype, seed=case.seed)
    dy, _ = RMSNORM.make_inputs(case.shape, case.dtype, seed=case.seed + 1)
    return {"dy": dy, "x": x, "weight": weight, "rstd": _rstd(x)}


def _rstd(x: Tensor) -> Tensor:
    """1 / sqrt(mean(x^2)): eps is 0 here."""
    return torch.rsqrt(x.double().square().mean(-1)).to(accumulation_dtype(x.dtype))


def _forward(operator: Operator) -> Expectation:
    def expect(arguments: dict, outputs: dict[str, Tensor]) -> dict[str, Target]:
        tensors, eps = [arguments[name] for name in operator.tensors], arguments["eps"]
        wide = tuple(tensor.double() for tensor in tensors)
        reference = operator.reference(*wide, eps)
        torchs = resolve(operator.name, "torch", tensors[0].device).implementation.forward(*tensors, eps)
        no_grads = tuple(torch.zeros_like(wide[0]) for _ in operator.outputs)
        terms, _ = operator.term_sums((*wide, eps), no_grads)
        values = (reference,) if isinstance(reference, Tensor) else reference
        found = zip(operator.outputs, values, torchs, terms, strict=False)  # torchs ends with what backward needs
        return {name: allowed_error(value, own, sums) for name, value, own, sums in found}

    return expect


def _backward(arguments: dict, outputs: dict[str, Tensor]) -> dict[str, Target]:
    given = tuple(arguments[name] for name in ("dy", "x", "weight", "rstd"))
    dy, x, weight, _ = (tensor.detach().double() for tensor in given)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    values = torch.autograd.grad(RMSNORM.reference(x, weight, 0.0), (x, weight), dy)
    torchs = resolve("rmsnorm", "torch", x.device).implementation.backward(*given, 0.0)
    _, terms = RMSNORM.term_sums((x.detach(), weight.detach(), 0.0), (dy,))
    found = zip(("dx", "dw"), values, torchs, terms, strict=True)
    return {name: allowed_error(value, own, sums) for name, value, own, sums in found}


def _norm_of_returned_sum(arguments: dict, outputs: dict[str, Tensor]) -> dict[str, Target]:
    """y as the norm of the s that was returned: all that rounding s leaves to y is its own half unit."""
    s = outputs["s"].double()
    y = RMSNORM.reference(s, arguments["weight"].double(), arguments["eps"])
    unit = torch.finfo(outputs["s"].dtype).eps / 2
    return {"y": Target(y, 1.1 * unit * y.abs() + torch.finfo(outputs["s"].dtype).smallest_normal * unit)}


# cases ----------------------------------------------------------------------------------------------------------------


def _scaled(**factors: float) -> Callable[[dict[str, Tensor]], None]:
    """Multiply inputs, to bring x's thirties to another size."""

    def prepare(tensors: dict[str, Tensor]) -> None:
        for name, factor in factors.items():
            if name in tensors:
                tensors[name].mul_(factor)

    return prepare


def _large(tensors: dict[str, Tensor]) -> None:
    """Every element is 300 or -300: float16 holds it, and not its square."""
    for name in ("x", "residual", "dy"):
        if name in tensors:
            sign = torch.where(tensors[name] < 0, -1.0, 1.0) * (0.5 if name == "residual" else 1.0)
            tensors[name].copy_(300 * sign)
    if "rstd" in tensors:
        tensors["rstd"].copy_(_rstd(tensors["x"]))


def _orthogonal(tensors: dict[str, Tensor]) -> None:
    """Make the second term of dx vanish: dy loses its part along w x."""
    direction = tensors["weight"] * tensors["x"]
    along = (tensors["dy"] * direction).sum(-1, keepdim=True) / direction.square().sum(-1, keepdim=True)
    tensors["dy"].sub_(along * direction)


def _cases(*cases: Case, **parameters: float) -> tuple[Case, ...]:
    return tuple(replace(case, parameters=parameters | dict(case.parameters)) for case in cases)


_basic = (Case((1, 8)), Case((1, 8), seed=1), Case((4, 8)), Case((3, 64)))
_dtypes = (Case((1, 8), HALF), Case((1, 8), DOUBLE))
_odd = (Case((1, 1)), Case((1, 3)), Case((5, 127)), Case((3, 129)), Case((2, 1000)), Case((2, 4097)))
_long = (Case((1, 128)), Case((1, 2048)), Case((2, 4096)), Case((1, 16384)))
_strided = (Case((3, 8), padding=5), Case((4, 127), padding=1, offset=3), Case((2, 1000), padding=24))
_tiny = (
    Case((1, 8), prepare=_scaled(x=0, residual=0)),
    Case((3, 64), prepare=_scaled(x=3e-5, residual=3e-5)),
    Case((3, 64), prepare=_scaled(x=1e-3, residual=1e-3), parameters={"eps": 1e-3}),
    Case((2, 127), prepare=_scaled(x=0.03, residual=0.03), parameters={"eps": 0.5}),
)
_precise = (
    Case((1, 1), HALF, prepare=_large),
    Case((2, 127), HALF, prepare=_large),
    Case((3, 129), HALF),
    Case((2, 1000), HALF, prepare=_scaled(x=3e-5, residual=3e-5)),
    Case((2, 1000), BFLOAT),
    Case((2, 127), DOUBLE, prepare=_scaled(x=0.03, residual=0.03), parameters={"eps": 0.1}),
)


# properties -----------------------------------------------------------------------------------------------------------

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
MEAN = Property(
    "mean over the columns",
    "The mean is over the columns of the row.",
    "By what number is the sum divided? It fits as long as the row is exactly as long as a block.",
    (),
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
EPS = Property(
    "eps",
    "r = 1 / sqrt(mean(x^2) + eps), also where eps is as large as the mean or larger, and for rows of zeros.",
    "Where does eps go: under the root or beside it? Is it the argument, or a number in the kernel?",
    (),
)
PRECISION = Property(
    "accumulation dtype",
    "float16 and bfloat16 are computed in float32, float64 stays float64 throughout.",
    "In which dtype are the products and their sum formed? Convert what was loaded before multiplying. For float64, "
    "look at the scalars as well: a Python float that is no tl.constexpr arrives as float32.",
    (),
)


def _outputs(says: str) -> Property:
    hint = "What does the function return, in which order, and in which dtype was each tensor allocated?"
    return Property("outputs", says, hint, (*_basic, *_dtypes), frozenset({Kind.OUTPUTS}))


def _formula(name: str, says: str, *outputs: str, hint: str = "") -> Property:
    hint = hint or "Work out the smallest case by hand, and print what the kernel has after each line."
    return Property(name, says, hint, _basic, outputs=outputs or None)


def _with(*properties: Property, cases: tuple[Case, ...], **parameters: float) -> tuple[Property, ...]:
    """The properties on these cases; one set of cases for all, so that each is run once."""
    own = _cases(*cases, **parameters)
    return tuple(replace(examined, cases=own) for examined in properties)


def _row_properties(
    *first: Property,
    returned: Property,
    long: tuple[Property, ...],
    basic: tuple[Case, ...] = _basic,
    **parameters: float,
) -> tuple[Property, ...]:
    """What holds for every forward pass that works row by row. first: its formulas; long: what it says of long rows,
    in lengths that need no mask; basic: rows that are exactly one block."""
    return (
        *_with(RUNS, LAUNCHES, cases=basic, **parameters),
        *_with(returned, cases=(*basic, *_dtypes), **parameters),
        *_with(UNMODIFIED, FRESH, WRITTEN, *first, cases=basic, **parameters),
        *_with(*long, cases=_long, **parameters),
        *_with(MASK, ANY_COLUMNS, MEAN, cases=_odd, **parameters),
        *_with(STRIDE, cases=_strided, **parameters),
        *_with(EPS, cases=_tiny, **parameters),
        *_with(PRECISION, cases=_precise, **parameters),
    )


NORM = _formula("formula", "y = x * r * weight with r = 1 / sqrt(mean(x^2) + eps).", "y")
LLAMA = (16384, 4096)

FORWARD = Exercise(
    "rmsnorm.forward",
    "RMSNorm forward in Triton",
    _inputs(RMSNORM),
    ("y",),
    _forward(RMSNORM),
    _row_properties(NORM, returned=_outputs("Returns y, in x's shape and dtype."), long=(BLOCK,), eps=1e-6),
    Budget({"x": 1}, {"y": 1}, ("weight",), Case((4, 200), padding=56, parameters={"eps": 1e-6}), LLAMA, 0.7),
)

ADD = Exercise(
    "rmsnorm.add",
    "The residual add, fused into the norm",
    _inputs(ADD_RMSNORM),
    ("y", "s"),
    _forward(ADD_RMSNORM),
    (
        *_row_properties(
            _formula("sum", "s = x + residual.", "s"),
            NORM,
            returned=_outputs("Returns (y, s), both in x's shape and dtype."),
            long=(BLOCK,),
            eps=1e-6,
        ),
        Property(
            "rounded sum",
            "y is the norm of the s that is returned, rounded to its dtype.",
            "What the next layer adds to is the rounded s. Is what you normalize what you store?",
            _cases(Case((1, 64), HALF), Case((3, 129), HALF), Case((3, 129), BFLOAT), eps=1e-6),
            frozenset({Kind.WRONG, Kind.UNDEFINED}),
            expectation=_norm_of_returned_sum,
        ),
    ),
    Budget(
        {"x": 1, "residual": 1},
        {"y": 1, "s": 1},
        ("weight",),
        Case((4, 200), padding=56, parameters={"eps": 1e-6}),
        LLAMA,
        0.7,
    ),
)

_one_row = (Case((1, 8)), Case((1, 64)), Case((1, 64), seed=2))
_rows = (Case((2, 8)), Case((3, 8)), Case((5, 8)), Case((7, 16)), Case((67, 4)))
_second_hint = "Every element of x moves r, and through r every element of y: what is that sum over the row?"

BACKWARD = Exercise(
    "rmsnorm.backward",
    "RMSNorm backward: dx and dw",
    _backward_inputs,
    ("dx", "dw"),
    _backward,
    (
        *_with(RUNS, LAUNCHES, cases=_one_row),
        *_with(_outputs("Returns (dx, dw), in the shapes and dtypes of x and weight."), cases=(*_one_row, *_dtypes)),
        *_with(UNMODIFIED, FRESH, WRITTEN, cases=_one_row),
        Property(
            "first term of dx",
            "Where mean(g x) = 0 for g = weight dy, dx = r g.",
            _formula("", "").hint,
            (Case((1, 8), prepare=_orthogonal), Case((1, 64), prepare=_orthogonal)),
            outputs=("dx",),
        ),
        Property("second term of dx", "dx = r g - x r^3 mean(g x).", _second_hint, _one_row, outputs=("dx",)),
        Property("dw of one row", "dw = dy x r.", _formula("", "").hint, _one_row, outputs=("dw",)),
        Property(
            "dx of every row",
            "Every row has its own dx.",
            "Which rows does a program take? Which r does it load?",
            _rows,
            outputs=("dx",),
        ),
        Property(
            "dw over all rows",
            "dw is the sum over all rows of dy x r.",
            "Which rows reach the sum, and what becomes of one row's share when the next comes? Try it with as many "
            "rows as programs, then with one more.",
            _rows,
        ),
        *_with(BLOCK, cases=_long),
        *_with(MASK, ANY_COLUMNS, MEAN, cases=_odd),
        *_with(STRIDE, cases=_strided),
        *_with(
            PRECISION,
            cases=(
                Case((1, 2), HALF, prepare=_large),
                Case((3, 129), HALF, prepare=_large),
                Case((5, 127), HALF),
                Case((5, 127), BFLOAT),
                Case((5, 127), DOUBLE),
            ),
        ),
    ),
    Budget({"dy": 1, "x": 1}, {"dx": 1}, ("weight", "rstd", "dw"), Case((64, 200), padding=56), LLAMA, 0.5),
)

_NARROW = Property(
    "block size",
    "No load or store is wider than the block given.",
    "How long is the longest tl.arange? A row of any length has to pass through a block of that one length.",
    (),
    frozenset({Kind.WIDE}),
)

_SEVERAL = Property(
    "rows of several blocks",
    "Every piece of a row is in the sum, and every piece is normalized.",
    "Take a row of two blocks. Which columns has the sum seen when the first loop ends?",
    (),
)

LONG_ROWS = Exercise(
    "rmsnorm.long_rows",
    "A row longer than a block",
    _inputs(RMSNORM),
    ("y",),
    _forward(RMSNORM),
    (
        *_row_properties(
            NORM,
            returned=_outputs("Returns y, in x's shape and dtype."),
            long=(_NARROW, _SEVERAL),
            basic=(Case((1, 64)), Case((1, 64), seed=1), Case((4, 64))),
            eps=1e-6,
            block=64,
        ),
    ),
    Budget(
        {"x": 2}, {"y": 1}, ("weight",), Case((4, 200), padding=56, parameters={"eps": 1e-6, "block": 64}), LLAMA, 0.6
    ),
)

_cuda_basic = (Case((1, 8)), Case((3, 64)), Case((3, 64), HALF))

CUDA = Exercise(
    "rmsnorm.cuda",
    "RMSNorm forward in CUDA C++",
    _inputs(RMSNORM),
    ("y",),
    _forward(RMSNORM),
    (
        *_with(
            Property(
                "compiles",
                "NVRTC compiles the kernel, in every dtype.",
                "The compiler's first error is the one to mend; the rest often follow from it. A missing name means "
                "that the launch asks for a kernel that the source does not have.",
                (),
                frozenset({Kind.DOES_NOT_COMPILE}),
            ),
            RUNS,
            LAUNCHES,
            cases=_cuda_basic,
            eps=1e-6,
        ),
        *_with(_outputs("Returns y, in x's shape and dtype."), UNMODIFIED, FRESH, WRITTEN, cases=_cuda_basic, eps=1e-6),
        *_with(NORM, cases=(*_basic, Case((5, 256)), Case((7, 1024))), eps=1e-6),
        *_with(
            Property(
                "columns and threads",
                "Rows shorter and longer than a block has threads are right, and so are rows between.",
                "Which columns does thread t take, and what does it add where there are none? Is every partial sum "
                "written before another thread reads it?",
                (),
            ),
            cases=(*_odd, *_long, Case((1000, 1000))),
            eps=1e-6,
        ),
        *_with(STRIDE, cases=_strided, eps=1e-6),
        *_with(EPS, cases=_tiny, eps=1e-6),
        *_with(PRECISION, cases=tuple(case for case in _precise if case.dtype == HALF), eps=1e-6),
    ),
    Budget({"x": 1}, {"y": 1}, ("weight",), Case((1, 8), parameters={"eps": 1e-6}), LLAMA, 0.4),
    language="cuda",
)

EXERCISES = (FORWARD, ADD, BACKWARD, LONG_ROWS, CUDA)
