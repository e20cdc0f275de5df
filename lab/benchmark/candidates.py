"""What is timed: the calls of our rungs and of the peers on one workload. And a check that they compute it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lab.backends.implementation import Implementation
from lab.backends.registry import operator
from lab.ops.operator import Operator

Call = Callable[[], tuple[Tensor, ...]]

METHOD = (
    "Ours are timed as the pure forward and backward functions of a rung, without autograd; 'both' is one after the "
    "other on the same inputs. Peers are called through their public functions: forward under no_grad, 'both' as the "
    "call and torch.autograd.grad, backward as torch.autograd.grad with retain_graph. Time is between CUDA events, "
    "behind a clear of L2 that hides the launches."
)

# Loose on purpose: this tells a kernel that computes something else, or nothing, from one that is worth timing. The
# tests hold rungs to the real bound.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.06}
SAMPLED_ROWS = 64
CHUNK = 1 << 25  # elements of the largest tensor in one float64 chunk of the reference


class WrongResult(RuntimeError):
    """A candidate that does not compute the operator; the message says where it differs."""


@dataclass(frozen=True)
class Workload:
    """One operator at one shape, dtype (a name, such as "bfloat16") and direction."""

    operator: str
    shape: tuple[int, ...]
    dtype: str
    direction: str

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def __str__(self) -> str:
        return f"{self.operator} {self.direction} {'x'.join(map(str, self.shape))} {self.dtype}"


class Inputs:
    """The inputs of a workload, the same for every candidate: random tensors, parameters at their defaults, and one
    random gradient for each output."""

    def __init__(self, workload: Workload, device: torch.device, seed: int) -> None:
        self.workload, self.op = workload, operator(workload.operator)
        self.tensors = self.op.make_inputs(workload.shape, workload.torch_dtype, device, seed)
        self.parameters = self.op.complete(*self.tensors)[len(self.tensors) :]
        self.varying = [name not in self.op.constants for name in self.op.tensors]  # which tensors have a gradient
        outputs = _as_tuple(self.op.reference(*(tensor.to("meta") for tensor in self.tensors), *self.parameters))
        generator = torch.Generator(device).manual_seed(seed + 1000)
        self.grads = tuple(
            torch.randn(output.shape, generator=generator, dtype=output.dtype, device=device) for output in outputs
        )

    @property
    def names(self) -> list[str]:
        """What a call returns, in order."""
        outputs, gradients = list(self.op.outputs), self.gradient_names
        return {"forward": outputs, "backward": gradients, "both": outputs + gradients}[self.workload.direction]

    @property
    def gradient_names(self) -> list[str]:
        return [f"d{name}" for name, varies in zip(self.op.tensors, self.varying) if varies]

    def call_of(self, implementation: Implementation) -> Call:
        """The timed call of one of our rungs: its passes, or PyTorch's own function where it has none."""
        if not implementation.has_passes:
            assert implementation.function is not None
            return self.call_of_peer(implementation.function)
        op, parameters = self.op, self.parameters
        tensors = op.canonical(*self.tensors)
        shapes = [like.shape for like in op.like_forward(*(tensor.to("meta") for tensor in tensors), *parameters)]
        grads = op.canonical_grads(*(grad.reshape(shape) for grad, shape in zip(self.grads, shapes, strict=False)))
        n_outputs = len(op.outputs)

        def forward() -> tuple[Tensor, ...]:
            return implementation.forward(*tensors, *parameters)[:n_outputs]

        def both() -> tuple[Tensor, ...]:
            results = implementation.forward(*tensors, *parameters)
            gradients = implementation.backward(*grads, *op.saved(tensors, results), *parameters)
            return *results[:n_outputs], *_there(op.gradients(*gradients))

        if self.workload.direction == "forward":
            return forward
        if self.workload.direction == "both":
            return both
        saved = op.saved(tensors, implementation.forward(*tensors, *parameters))
        return lambda: _there(op.gradients(*implementation.backward(*grads, *saved, *parameters)))

    def call_of_peer(self, fn: Callable) -> Call:
        """The timed call of a differentiable function with the operator's public signature."""
        parameters, grads = self.parameters, self.grads
        if self.workload.direction == "forward":
            tensors = self.tensors

            def forward() -> tuple[Tensor, ...]:
                with torch.no_grad():
                    return _as_tuple(fn(*tensors, *parameters))

            return forward
        leaves = self.leaves(self.tensors)
        varying = [leaf for leaf, varies in zip(leaves, self.varying) if varies]

        def both() -> tuple[Tensor, ...]:
            outputs = _as_tuple(fn(*leaves, *parameters))
            return *outputs, *torch.autograd.grad(outputs, varying, grads)

        if self.workload.direction == "both":
            return both
        outputs = _as_tuple(fn(*leaves, *parameters))
        return lambda: torch.autograd.grad(outputs, varying, grads, retain_graph=True)

    def leaves(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tensors as arguments whose gradient is wanted, where they have one."""
        return tuple(
            tensor.detach().requires_grad_() if varies else tensor for tensor, varies in zip(tensors, self.varying)
        )


def _there(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    return tuple(gradient for gradient in gradients if gradient is not None)


def _as_tuple(outputs) -> tuple[Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


class Expected:
    """Float64 results of a workload. Where the operator treats rows apart, the first and last rows of everything that
    has rows, and in full what is summed over all rows (such as dw); otherwise everything in full."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        op, shape = inputs.op, inputs.workload.shape
        self.per_row = _per_row(op, shape, inputs)
        self.rows: Tensor | None = None
        if self.per_row is not None:
            count, half = shape[0], SAMPLED_ROWS // 2
            picked = sorted({*range(min(half, count)), *range(max(count - half, 0), count)})
            self.rows = torch.tensor(picked, device=inputs.tensors[0].device)
        self.values = dict(self._forward())
        if inputs.workload.direction != "forward":
            self.values |= dict(self._gradients())

    def _picked(self, rows: Tensor | slice | None) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors and output gradients in float64, at those rows."""
        split = self.per_row or [False] * len(self.inputs.tensors)
        tensors = [
            _widened(tensor[rows] if by_row and rows is not None else tensor)
            for tensor, by_row in zip(self.inputs.tensors, split, strict=True)
        ]
        grads = [(grad if rows is None else grad[rows]).double() for grad in self.inputs.grads]
        return tensors, grads

    def _forward(self) -> Iterator[tuple[str, Tensor]]:
        tensors, _ = self._picked(self.rows)
        outputs = _as_tuple(self.inputs.op.reference(*tensors, *self.inputs.parameters))
        yield from zip(self.inputs.op.outputs, outputs, strict=True)

    def _gradients(self) -> Iterator[tuple[str, Tensor]]:
        names = self.inputs.gradient_names
        sampled = self._gradients_at(self.rows)
        if self.per_row is None:
            yield from zip(names, sampled, strict=True)
            return
        per_row = [by_row for by_row, varies in zip(self.per_row, self.inputs.varying) if varies]
        totals = [torch.zeros_like(gradient) for gradient in sampled]
        count = self.inputs.workload.shape[0]
        step = max(1, CHUNK * count // max(tensor.numel() for tensor in self.inputs.tensors))
        if not all(per_row):
            for start in range(0, count, step):
                chunk = self._gradients_at(slice(start, start + step))
                for total, gradient, by_row in zip(totals, chunk, per_row, strict=True):
                    if not by_row:
                        total += gradient
        for name, here, total, by_row in zip(names, sampled, totals, per_row, strict=True):
            yield name, here if by_row else total

    def _gradients_at(self, rows: Tensor | slice | None) -> tuple[Tensor, ...]:
        tensors, grads = self._picked(rows)
        leaves = self.inputs.leaves(tensors)
        outputs = _as_tuple(self.inputs.op.reference(*leaves, *self.inputs.parameters))
        return torch.autograd.grad(outputs, [leaf for leaf in leaves if leaf.requires_grad], grads)

    def check(self, results: tuple[Tensor, ...]) -> None:
        """Raise WrongResult unless `results`, of a call of these inputs, are about right in every element compared."""
        tolerance = TOLERANCE[self.inputs.workload.torch_dtype]
        shapes = {name: grad.shape for name, grad in zip(self.inputs.op.outputs, self.inputs.grads, strict=True)}
        for name, tensor in zip(self.inputs.op.tensors, self.inputs.tensors, strict=True):
            shapes[f"d{name}"] = tensor.shape
        for name, result in zip(self.inputs.names, results, strict=True):
            want = self.values[name]
            got = result.detach().reshape(shapes[name])
            if self.rows is not None and self._has_rows(name):
                got = got[self.rows]
            bound = tolerance * (want.abs() + want.square().mean().sqrt())
            wrong = ~((got.double() - want).abs() <= bound)  # so that NaN is wrong
            if wrong.any():
                where = tuple(wrong.nonzero()[0].tolist())
                raise WrongResult(
                    f"{name} is wrong in {int(wrong.sum())} of {wrong.numel()} elements looked at, "
                    f"first at {where}: {float(got[where]):.6g}, expected {float(want[where]):.6g}"
                )

    def _has_rows(self, name: str) -> bool:
        if name not in self.inputs.gradient_names:
            return True
        return (self.per_row or [])[self.inputs.op.tensors.index(name.removeprefix("d"))]


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _per_row(op: Operator, shape: tuple[int, ...], inputs: Inputs) -> list[bool] | None:
    """For each tensor, whether its first dimension runs over the rows; None if the operator does not treat rows (the
    first dimension of its shape) apart. Told from how the tensors look with a single row."""
    if op.dims[0] not in ("rows", "batch") or any(grad.dim() == 0 or len(grad) != shape[0] for grad in inputs.grads):
        return None
    single = op.make_inputs((1, *shape[1:]), inputs.workload.torch_dtype)
    return [
        one.dim() > 0 and len(one) == 1 and len(tensor) == shape[0]
        for one, tensor in zip(single, inputs.tensors, strict=True)
    ]
