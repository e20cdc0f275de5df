"""What every operator states about itself, whoever implements it."""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TypeGuard

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DTYPE_NAMES = tuple(str(dtype).removeprefix("torch.") for dtype in FLOATING)


@dataclass(frozen=True)
class Cost:
    """Work of one pass: each dict maps a term, in words, to a count, so that a reader can check the sum."""

    flop_terms: dict[str, int]
    byte_terms: dict[str, int]

    @property
    def flops(self) -> int:
        """Floating-point operations; a division, square root or exponential counts as one."""
        return sum(self.flop_terms.values())

    @property
    def bytes(self) -> int:
        """The fewest bytes that must cross device memory: every input read once, every output written once."""
        return sum(self.byte_terms.values())

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes

    def __add__(self, other: Cost) -> Cost:
        def joined(mine: dict[str, int], theirs: dict[str, int]) -> dict[str, int]:
            return {f"forward: {k}": v for k, v in mine.items()} | {f"backward: {k}": v for k, v in theirs.items()}

        return Cost(
            joined(self.flop_terms, other.flop_terms),
            joined(self.byte_terms, other.byte_terms),
        )


class Operator(ABC):
    """An operator's contract: signature, checks, reference mathematics, inputs to try it on, cost and error bound.

    name: as registered.
    tensors: names of the tensor arguments, in order; one whose default is None may be None. constants: those that have
        no gradient, such as indices.
    outputs: names of the outputs.
    residuals: names of what `forward` returns after the outputs, for the backward pass.
    dims: names of the dimensions of a *shape* of this operator, such as ("rows", "columns").
    shapes: named shapes; those of Llama-3-8B first.
    tiny_shapes, trial_shapes: what tests try; tiny ones for gradients by finite differences, of a few elements, and odd
        ones. Of an operator on (rows, columns) the tests have their own.
    """

    name: str
    tensors: tuple[str, ...]
    constants: tuple[str, ...] = ()
    outputs: tuple[str, ...]
    residuals: tuple[str, ...] = ()
    dims: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    tiny_shapes: tuple[tuple[int, ...], ...] = ()
    trial_shapes: tuple[tuple[int, ...], ...] = ()

    @cached_property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.reference)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the arguments after the tensors: numbers and flags, for a kernel compile-time constants."""
        return tuple(self.signature.parameters)[len(self.tensors) :]

    def complete(self, *args, **kwargs) -> tuple:
        """All arguments in order, defaults filled in."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}; expected {', '.join(self.signature.parameters)}") from None
        bound.apply_defaults()
        return bound.args

    # What a caller sees -----------------------------------------------------------------------------------------

    @abstractmethod
    def check(self, *args) -> None:
        """Raise TypeError or ValueError, naming the argument and what was expected, for inputs that are wrong."""

    @abstractmethod
    def reference(self, *args):
        """The operator in plain torch, in the inputs' own dtype; differentiable. The outputs as the public function
        returns them."""

    # What an implementation sees --------------------------------------------------------------------------------

    @abstractmethod
    def canonical(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors in the form in which kernels take them (for a row-wise operator: two dimensions, unit stride in
        the last). A copy is made only where a view cannot do it."""

    @abstractmethod
    def restore(self, outputs: tuple[Tensor, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        """Canonical outputs back in the shape that the caller's `tensors` ask for."""

    @abstractmethod
    def like_forward(self, *args) -> tuple[Tensor, ...]:
        """Empty tensors of the shapes and dtypes that `forward` returns for these arguments, residuals included."""

    @abstractmethod
    def saved(self, tensors: tuple[Tensor, ...], results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What `backward` takes after the outputs' gradients, out of canonical inputs and what `forward` returned."""

    @abstractmethod
    def like_backward(self, *args) -> tuple[Tensor | None, ...]:
        """Empty tensors of the shapes and dtypes that `backward` returns for these arguments."""

    def canonical_grads(self, *grads: Tensor) -> tuple[Tensor, ...]:
        """The outputs' gradients as `backward` takes them."""
        return tuple(grad if grad.dim() == 0 or grad.stride(-1) == 1 else grad.contiguous() for grad in grads)

    def gradients(self, *results: Tensor) -> tuple[Tensor, ...]:
        """What `backward` returned, as one gradient for each tensor argument; None for a constant."""
        return results

    # What tests and benchmarks need -----------------------------------------------------------------------------

    @abstractmethod
    def make_inputs(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0
    ) -> tuple[Tensor, ...]:
        """Random tensor arguments of that shape; on "meta" tensors without values."""

    @abstractmethod
    def forward_cost(self, shape: tuple[int, ...], dtype: torch.dtype) -> Cost:
        """Work of the forward pass."""

    @abstractmethod
    def backward_cost(self, shape: tuple[int, ...], dtype: torch.dtype) -> Cost:
        """Work of the backward pass."""

    def cost(self, shape: tuple[int, ...], dtype: torch.dtype, direction: str) -> Cost:
        """Work of "forward", "backward" or "both". Raises ValueError for another direction."""
        if direction == "forward":
            return self.forward_cost(shape, dtype)
        if direction == "backward":
            return self.backward_cost(shape, dtype)
        if direction == "both":
            return self.forward_cost(shape, dtype) + self.backward_cost(shape, dtype)
        raise ValueError(f"{self.name}: direction is {direction!r}; expected forward, backward or both")

    @abstractmethod
    def term_sums(
        self, args: tuple, grads: tuple[Tensor, ...], dtype: torch.dtype
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """For float64 arguments and output gradients: for every element of every output, and of every input's
        gradient, the sum of the absolute values of the terms that make it up. The error bound is
        2 x PyTorch's own error + 4 units of roundoff (8 in float32) of `dtype`, the inputs' own, x this sum."""


def require_floating(op: str, **tensors: Tensor) -> None:
    """The first tensor has a floating dtype; the others share its dtype and device."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} is a {type(tensor).__name__}; expected a torch.Tensor")
    if first.dtype not in FLOATING:
        names = ", ".join(str(dtype) for dtype in FLOATING)
        raise TypeError(f"{op}: {first_name} has dtype {first.dtype}; expected one of {names}")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided:
            raise TypeError(f"{op}: {name} has layout {tensor.layout}; expected torch.strided")
        if tensor.dtype != first.dtype:
            raise TypeError(f"{op}: {name} has dtype {tensor.dtype}; expected {first_name}'s dtype {first.dtype}")
        if tensor.device != first.device:
            raise ValueError(f"{op}: {name} is on {tensor.device}; expected {first_name}'s device {first.device}")


def is_finite(value: object) -> TypeGuard[float]:
    """Whether it is a number, no bool, that is finite as a float: an int may be too large for one."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def rows_of(x: Tensor) -> Tensor:
    """x (..., n) as (rows, n) with unit stride in the last dimension: a view where there is one."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


def seeded(device: torch.device | str, seed: int) -> torch.Generator:
    """What `make_inputs` draws with on `device`; on "meta", where nothing is drawn, a stand-in."""
    return torch.Generator("cpu" if torch.device(device).type == "meta" else device).manual_seed(seed)
