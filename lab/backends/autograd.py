"""The one place where an implementation becomes a differentiable function.

PyTorch's own function stays as it is. Two pure passes go through a `torch.autograd.Function` in eager mode, the
cheapest differentiable call that PyTorch offers, and past it where no gradient is asked for. Under torch.compile they
are custom operators (`torch.library`), which the compiler keeps whole; their fakes tell it the shapes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lab.backends.implementation import BackendUnavailable, Implementation, running

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
        """From the caller's tensors to the canonical outputs. These are restored outside, so that autograd knows of the
        views, and a caller may change them in place."""

        @staticmethod
        def forward(ctx, *args):
            tensors, ctx.parameters = args[:n_tensors], args[n_tensors:]
            canonical = operator.canonical(*tensors)
            results = forward(*canonical, *ctx.parameters)
            ctx.save_for_backward(*operator.saved(canonical, results))
            ctx.shapes = [None if tensor is None else tensor.shape for tensor in tensors]
            return tuple(results[:n_outputs])

        @staticmethod
        def backward(ctx, *grads):
            # PyTorch's `once_differentiable` would raise later, and not at all for a gradient with respect to inputs.
            if torch.is_grad_enabled():
                asked = "is differentiable once, and create_graph=True asks for more"
                raise RuntimeError(f"{operator.name} {asked}; PyTorch's own functions, backend 'torch', have it")
            results = backward(*operator.canonical_grads(*grads), *ctx.saved_tensors, *ctx.parameters)
            # A gradient of two inputs stays one tensor object: autograd then sees that it is shared, and copies it
            # where both inputs are leaves. Of two views it would not know.
            restored: dict[int, Tensor] = {}
            gradients = [
                None if gradient is None else restored.setdefault(id(gradient), gradient.view(shape))
                for gradient, shape in zip(operator.gradients(*results), ctx.shapes)
            ]
            return *gradients, *(None for _ in ctx.parameters)

        @staticmethod
        def jvp(ctx, *tangents):
            raise NotImplementedError(
                f"{operator.name} has no forward-mode derivative; PyTorch's own functions, backend 'torch', have it"
            )

    Function.__name__ = Function.__qualname__ = operator.name

    def function(*args):
        tensors, parameters = args[:n_tensors], args[n_tensors:]
        if _asked_for_gradients(tensors):
            results = Function.apply(*args)
        else:  # a cheaper call
            results = forward(*operator.canonical(*tensors), *parameters)
        return operator.restore(results[:n_outputs], *tensors)

    return function


def _asked_for_gradients(tensors: tuple[Tensor | None, ...]) -> bool:
    """Or maybe for forward-mode ones, which the Function refuses."""
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


_number = count()


def _tuple(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results


def _declared(function: Callable, arguments: dict[str, object], n_results: int) -> Callable:
    """`function` with the signature from which torch.library infers a schema: every result is a tensor, an empty one
    where there is none, and a single one is by itself."""

    def call(*args):
        results = tuple(args[0].new_empty(0) if result is None else result for result in function(*args))
        return results[0] if n_results == 1 else results

    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)
            for name, kind in arguments.items()
        ],
        return_annotation=Tensor if n_results == 1 else tuple[(Tensor,) * n_results],  # type: ignore[misc]
    )
    return call


def _custom_operator(
    operator: Operator, implementation: Implementation, forward: Callable, backward: Callable
) -> Callable:
    # Numbered, because a user may register another implementation under the same name.
    base = f"lab::{operator.name}_{implementation.backend}_{implementation.rung}_{next(_number)}"
    n_tensors, n_outputs = len(operator.tensors), len(operator.outputs)
    arguments = {name: parameter.annotation for name, parameter in operator.signature.parameters.items()}

    shape = next(iter(operator.shapes.values()))
    tensors = operator.canonical(*operator.make_inputs(shape, torch.float32, "meta"))
    parameters = operator.complete(*tensors)[n_tensors:]
    results = operator.like_forward(*tensors, *parameters)
    saved = operator.saved(tensors, results)
    n_gradients = len(operator.like_backward(*results[:n_outputs], *saved, *parameters))
    of_backward: dict[str, object] = {f"grad{i}": Tensor for i in range(n_outputs)}
    of_backward |= {f"saved{i}": Tensor | None for i in range(len(saved))}
    of_backward |= {name: arguments[name] for name in operator.parameters}

    forward_op = torch.library.custom_op(base, _declared(forward, arguments, len(results)), mutates_args=())
    backward_op = torch.library.custom_op(
        f"{base}_backward", _declared(backward, of_backward, n_gradients), mutates_args=()
    )
    forward_op.register_fake(_declared(operator.like_forward, arguments, len(results)))
    backward_op.register_fake(_declared(operator.like_backward, of_backward, n_gradients))

    def setup_context(ctx, inputs, output) -> None:
        tensors, ctx.parameters = inputs[:n_tensors], inputs[n_tensors:]
        ctx.save_for_backward(*operator.saved(tensors, _tuple(output)))
        ctx.there = [tensor is not None for tensor in tensors]

    def run_backward(ctx, *grads):
        grads = operator.canonical_grads(*grads[:n_outputs])
        gradients = operator.gradients(*_tuple(backward_op(*grads, *ctx.saved_tensors, *ctx.parameters)))
        wanted = (gradient if there else None for gradient, there in zip(gradients, ctx.there))
        return *wanted, *(None for _ in ctx.parameters)

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
    n_arguments = n_tensors + len(operator.parameters)
    kinds = [parameter.annotation for parameter in operator.signature.parameters.values()]
    floats = [position for position, kind in enumerate(kinds) if kind in (float, float | None)]

    def function(*args, **kwargs):
        if kwargs or len(args) != n_arguments:
            args = operator.complete(*args, **kwargs)
        operator.check(*args)
        for position in floats:
            if isinstance(args[position], int):  # a kernel would take it for an integer of 32 or 64 bits
                args = *args[:position], float(args[position]), *args[position + 1 :]
        tensors = args[:n_tensors]
        if any(tensor is not None and tensor.numel() == 0 for tensor in tensors):  # nothing to launch
            return operator.reference(*args)
        here = passes.get(tensors[0].device.type)
        if not isinstance(here, Passes):
            why = str(here or f"{operator.name}: nothing runs on {tensors[0].device}")
            raise BackendUnavailable(why)  # a new one: an error that is raised again keeps every caller's frames
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
