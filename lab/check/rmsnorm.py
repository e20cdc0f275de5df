"""The exercises of the RMSNorm chapter: what each asks for, and the cases that tell what is wrong with an answer.

Numbers are made so that one property at a time matters. x is thirty times a normal random number wherever eps is not
the matter, so that eps vanishes beside its mean square; rows are 2^k long wherever masks are not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lab.backends.registry import resolve
from lab.backends.rows import accumulation_dtype
from lab.check import rows
from lab.check.exercise import Budget, Case, Exercise, Expectation, Kind, Property, Target, allowed_error
from lab.ops.add_rmsnorm import OPERATOR as ADD_RMSNORM
from lab.ops.operator import Operator
from lab.ops.rmsnorm import OPERATOR as RMSNORM

# inputs and what should come of them ----------------------------------------------------------------------------------


def _inputs(operator: Operator) -> Callable[[Case], dict[str, Tensor]]:
    def make(case: Case) -> dict[str, Tensor]:
        tensors = dict(
            zip(operator.tensors, operator.make_inputs(case.shape, rows.SINGLE, seed=case.seed), strict=True)
        )
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
        terms, _ = operator.term_sums((*wide, eps), no_grads, tensors[0].dtype)
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
    _, terms = RMSNORM.term_sums((x.detach(), weight.detach(), 0.0), (dy,), given[1].dtype)
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


_tiny = (
    Case((1, 8), prepare=_scaled(x=0, residual=0)),
    Case((3, 64), prepare=_scaled(x=3e-5, residual=3e-5)),
    Case((3, 64), prepare=_scaled(x=1e-3, residual=1e-3), parameters={"eps": 1e-3}),
    Case((2, 127), prepare=_scaled(x=0.03, residual=0.03), parameters={"eps": 0.5}),
)
_precise = (
    Case((1, 1), rows.HALF, prepare=_large),
    Case((2, 127), rows.HALF, prepare=_large),
    Case((3, 129), rows.HALF),
    Case((2, 1000), rows.HALF, prepare=_scaled(x=3e-5, residual=3e-5)),
    Case((2, 1000), rows.BFLOAT),
    Case((2, 127), rows.DOUBLE, prepare=_scaled(x=0.03, residual=0.03), parameters={"eps": 0.1}),
)


# properties -----------------------------------------------------------------------------------------------------------

MEAN = Property(
    "mean over the columns",
    "The mean is over the columns of the row.",
    "By what number is the sum divided? It fits as long as the row is exactly as long as a block.",
    (),
)
EPS = Property(
    "eps",
    "r = 1 / sqrt(mean(x^2) + eps), also where eps is as large as the mean or larger, and for rows of zeros.",
    "Where does eps go: under the root or beside it? Is it the argument, or a number in the kernel?",
    (),
)


def _row_properties(
    *first: Property,
    returned: Property,
    long: tuple[Property, ...],
    basic: tuple[Case, ...] = rows.BASIC,
    **parameters: float,
) -> tuple[Property, ...]:
    """What holds for every forward pass that works row by row. first: its formulas; long: what it says of long rows,
    in lengths that need no mask; basic: rows that are exactly one block."""
    return (
        *rows.on(rows.RUNS, rows.LAUNCHES, cases=basic, **parameters),
        *rows.on(returned, cases=(*basic, *rows.DTYPES), **parameters),
        *rows.on(rows.UNMODIFIED, rows.FRESH, rows.WRITTEN, *first, cases=basic, **parameters),
        *rows.on(*long, cases=rows.LONG, **parameters),
        *rows.on(rows.MASK, rows.ANY_COLUMNS, MEAN, cases=rows.ODD, **parameters),
        *rows.on(rows.STRIDE, cases=rows.STRIDED, **parameters),
        *rows.on(EPS, cases=_tiny, **parameters),
        *rows.on(rows.PRECISION, cases=_precise, **parameters),
    )


NORM = rows.formula("formula", "y = x * r * weight with r = 1 / sqrt(mean(x^2) + eps).", "y")
LLAMA = (16384, 4096)

FORWARD = Exercise(
    "rmsnorm.forward",
    "RMSNorm forward in Triton",
    _inputs(RMSNORM),
    ("y",),
    _forward(RMSNORM),
    _row_properties(NORM, returned=rows.outputs("Returns y, in x's shape and dtype."), long=(rows.BLOCK,), eps=1e-6),
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
            rows.formula("sum", "s = x + residual.", "s"),
            NORM,
            returned=rows.outputs("Returns (y, s), both in x's shape and dtype."),
            long=(rows.BLOCK,),
            eps=1e-6,
        ),
        Property(
            "rounded sum",
            "y is the norm of the s that is returned, rounded to its dtype.",
            "What the next layer adds to is the rounded s. Is what you normalize what you store?",
            rows.with_parameters(
                Case((1, 64), rows.HALF), Case((3, 129), rows.HALF), Case((3, 129), rows.BFLOAT), eps=1e-6
            ),
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
        *rows.on(rows.RUNS, rows.LAUNCHES, cases=_one_row),
        *rows.on(
            rows.outputs("Returns (dx, dw), in the shapes and dtypes of x and weight."), cases=(*_one_row, *rows.DTYPES)
        ),
        *rows.on(rows.UNMODIFIED, rows.FRESH, rows.WRITTEN, cases=_one_row),
        Property(
            "first term of dx",
            "Where mean(g x) = 0 for g = weight dy, dx = r g.",
            rows.formula("", "").hint,
            (Case((1, 8), prepare=_orthogonal), Case((1, 64), prepare=_orthogonal)),
            outputs=("dx",),
        ),
        Property("second term of dx", "dx = r g - x r^3 mean(g x).", _second_hint, _one_row, outputs=("dx",)),
        Property("dw of one row", "dw = dy x r.", rows.formula("", "").hint, _one_row, outputs=("dw",)),
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
        *rows.on(rows.BLOCK, cases=rows.LONG),
        *rows.on(rows.MASK, rows.ANY_COLUMNS, MEAN, cases=rows.ODD),
        *rows.on(rows.STRIDE, cases=rows.STRIDED),
        *rows.on(
            rows.PRECISION,
            cases=(
                Case((1, 2), rows.HALF, prepare=_large),
                Case((3, 129), rows.HALF, prepare=_large),
                Case((5, 127), rows.HALF),
                Case((5, 127), rows.BFLOAT),
                Case((5, 127), rows.DOUBLE),
            ),
        ),
    ),
    Budget({"dy": 1, "x": 1}, {"dx": 1}, ("weight", "rstd", "dw"), Case((64, 200), padding=56), LLAMA, 0.5),
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
            returned=rows.outputs("Returns y, in x's shape and dtype."),
            long=(rows.NARROW, _SEVERAL),
            basic=(Case((1, 64)), Case((1, 64), seed=1), Case((4, 64))),
            eps=1e-6,
            block=64,
        ),
    ),
    Budget(
        {"x": 2}, {"y": 1}, ("weight",), Case((4, 200), padding=56, parameters={"eps": 1e-6, "block": 64}), LLAMA, 0.4
    ),
)

_cuda_basic = (Case((1, 8)), Case((3, 64)), Case((3, 64), rows.HALF))

CUDA = Exercise(
    "rmsnorm.cuda",
    "RMSNorm forward in CUDA C++",
    _inputs(RMSNORM),
    ("y",),
    _forward(RMSNORM),
    (
        *rows.on(
            rows.COMPILES,
            rows.RUNS,
            rows.LAUNCHES,
            cases=_cuda_basic,
            eps=1e-6,
        ),
        *rows.on(
            rows.outputs("Returns y, in x's shape and dtype."),
            rows.UNMODIFIED,
            rows.FRESH,
            rows.WRITTEN,
            cases=_cuda_basic,
            eps=1e-6,
        ),
        *rows.on(NORM, cases=(*rows.BASIC, Case((5, 256)), Case((7, 1024))), eps=1e-6),
        *rows.on(
            Property(
                "columns and threads",
                "Rows shorter and longer than a block has threads are right, and so are rows between.",
                "Which columns does thread t take, and what does it add where there are none? Is every partial sum "
                "written before another thread reads it?",
                (),
            ),
            cases=(*rows.ODD, *rows.LONG, Case((1000, 1000))),
            eps=1e-6,
        ),
        *rows.on(rows.STRIDE, cases=rows.STRIDED, eps=1e-6),
        *rows.on(EPS, cases=_tiny, eps=1e-6),
        *rows.on(rows.PRECISION, cases=tuple(case for case in _precise if case.dtype == rows.HALF), eps=1e-6),
    ),
    Budget({"x": 1}, {"y": 1}, ("weight",), Case((1, 8), parameters={"eps": 1e-6}), LLAMA, 0.3),
    language="cuda",
)

EXERCISES = (FORWARD, ADD, BACKWARD, LONG_ROWS, CUDA)
