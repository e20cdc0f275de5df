"""The one place where an implementation becomes a differentiable function.

PyTorch's own function stays as it is. Two pure passes go through a `torch.autograd.Function` in eager mode: the
cheapest call that PyTorch offers. Under torch.compile they are custom operators (`torch.library`), which the compiler
keeps whole; their fakes tell it the shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lab.backends.registry import BackendUnavailable, Implementation, running

if TYPE_CHECKING:
    from lab.ops.operator import Operator


class Passes:
    """Both passes of one implementation, recorded in traces and run on the tensors' own GPU.

    eager, compiled: the differentiable function of the operator's arguments, for eager mode and under torch.compile."""

    def __init__(self, operator: Operator, implementation: Implementation) -> None:
        self.operator, self.implementation = operator, implementation
        if own := implementation.function:
            self.eager, self.compiled = self.noted(own), lambda *args: _tuple(own(*args))
        else:
            self.eager = _autograd_function(operator, self.forward, self.backward)
            self.compiled = _custom_operator(operator, implementation, self.forward, self.backward)

    def noted(self, function: Callable) -> Callable:
        def call(*args) -> tuple[Tensor, ...]:
            with running(self.implementation, "forward"):
                return _tuple(function(*args))

        return call

    def forward(self, *args) -> tuple[Tensor, ...]:
        with running(self.implementation, "forward"), torch.cuda.device_of(args[0]):
            return self.implementation.forward(*args)

    def backward(self, *args) -> tuple[Tensor, ...]:
        with running(self.implementation, "backward"), torch.cuda.device_of(args[0]):
            return self.implementation.backward(*args)


@cache
def _passes(operator: Operator, implementation: Implementation) -> Passes:
    """One for each implementation, however it is asked for: to define its custom operators again would take them away
    from under the functions that use them."""
    return Passes(operator, implementation)


def _autograd_function(operator: Operator, forward: Callable, backward: Callable) -> Callable:
    n_tensors, n_outputs = len(operator.tensors), len(operator.outputs)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            tensors, ctx.parameters = args[:n_tensors], args[n_tensors:]
            canonical = operator.canonical(*tensors)
            results = forward(*canonical, *ctx.parameters)
            ctx.save_for_backward(*operator.saved(canonical, results))
            ctx.shapes = [tensor.shape for tensor in tensors]
            ctx.output_shapes = [result.shape for result in results[:n_outputs]]
            return operator.restore(results[:n_outputs], *tensors)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, *grads):
            flat = (grad.reshape(shape) for grad, shape in zip(grads, ctx.output_shapes))
            results = backward(*operator.canonical_grads(*flat), *ctx.saved_tensors, *ctx.parameters)
            # A gradient of two inputs stays one tensor object: autograd then sees that it is shared, and copies it
            # where both inputs are leaves. Of two views it would not know.
            restored: dict[int, Tensor] = {}
            gradients = [
                restored.setdefault(id(gradient), gradient.view(shape))
                for gradient, shape in zip(operator.gradients(*results), ctx.shapes)
            ]
            return *gradients, *(None for _ in ctx.parameters)

    Function.__name__ = Function.__qualname__ = operator.name
    return Function.apply


_number = count()


def _bare(results: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """As torch.library wants a function's results: one by itself."""
    return results[0] if len(results) == 1 else results


def _tuple(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results


def _custom_operator(
    operator: Operator, implementation: Implementation, forward: Callable, backward: Callable
) -> Callable:
    # Numbered, because a user may register another implementation under the same name.
    base = f"lab::{operator.name}_{implementation.backend}_{implementation.rung}_{next(_number)}"
    n_tensors, n_outputs = len(operator.tensors), len(operator.outputs)
    parameters = [f"float {name}" for name in operator.parameters]

    def schema(tensors: list[str], n_results: int) -> str:
        results = ", ".join(["Tensor"] * n_results)
        return f"({', '.join([f'Tensor {name}' for name in tensors] + parameters)}) -> ({results})"

    names = list(operator.tensors)
    examples = tuple(torch.empty(1, 1, device="meta") for _ in names)
    results = operator.like_forward(*examples)
    saved = operator.saved(examples, results)
    n_saved, n_grads = len(saved), len(operator.like_backward(*results[:n_outputs], *saved))
    grad_names = [f"grad{i}" for i in range(n_outputs)]
    saved_names = [f"saved{i}" for i in range(n_saved)]

    forward_op = torch.library.custom_op(
        base, lambda *args: _bare(forward(*args)), mutates_args=(), schema=schema(names, len(results))
    )
    backward_op = torch.library.custom_op(
        f"{base}_backward",
        lambda *args: _bare(backward(*args)),
        mutates_args=(),
        schema=schema(grad_names + saved_names, n_grads),
    )
    forward_op.register_fake(lambda *args: _bare(operator.like_forward(*args[:n_tensors])))
    backward_op.register_fake(lambda *args: _bare(operator.like_backward(*args[: n_outputs + n_saved])))

    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*operator.saved(inputs[:n_tensors], _tuple(output)))
        ctx.parameters = inputs[n_tensors:]

    def run_backward(ctx, *grads):
        grads = operator.canonical_grads(*grads[:n_outputs])
        results = _tuple(backward_op(*grads, *ctx.saved_tensors, *ctx.parameters))
        return *operator.gradients(*results), *(None for _ in ctx.parameters)

    forward_op.register_autograd(run_backward, setup_context=setup_context)

    def function(*args):
        tensors, parameters = args[:n_tensors], args[n_tensors:]
        results = _tuple(forward_op(*operator.canonical(*tensors), *parameters))
        return operator.restore(results[:n_outputs], *tensors)

    return function


def differentiable(operator: Operator, chosen: dict[str, Implementation | BackendUnavailable]) -> Callable:
    """The operator's public function over the implementation chosen for each device type."""
    passes = {
        device: choice if isinstance(choice, BackendUnavailable) else _passes(operator, choice)
        for device, choice in chosen.items()
    }
    n_tensors = len(operator.tensors)

    def function(*args, **kwargs):
        if kwargs or len(args) < n_tensors + len(operator.parameters):
            args = operator.complete(*args, **kwargs)
        operator.check(*args)
        tensors = args[:n_tensors]
        if tensors[0].numel() == 0:  # nothing to launch
            return operator.reference(*args)
        here = passes.get(tensors[0].device.type)
        if not isinstance(here, Passes):
            raise here or BackendUnavailable(f"{operator.name}: nothing runs on {tensors[0].device}")
        if reason := here.implementation.refuses(*tensors):
            raise BackendUnavailable(f"{operator.name} on {here.implementation}: {reason}")
        outputs = here.compiled(*args) if torch.compiler.is_compiling() else here.eager(*args)
        return outputs[0] if len(outputs) == 1 else outputs

    function.__name__ = function.__qualname__ = operator.name
    function.__doc__ = operator.reference.__doc__
    function.__signature__ = operator.signature  # type: ignore[attr-defined]
    function.implementations = {  # type: ignore[attr-defined]
        device: p.implementation for device, p in passes.items() if isinstance(p, Passes)
    }
    return function
