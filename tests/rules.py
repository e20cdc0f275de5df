"""What every implementation is held to, as functions that raise AssertionError; `test_numerics.py` applies them to all
that is registered, and shows that each of them catches a wrong implementation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lab
from lab.backends import registry
from lab.backends.implementation import Call, Implementation
from lab.ops.operator import Operator


def outputs_of(result) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def bound_to(implementation: Implementation):
    """The public function on exactly this implementation."""
    return lab.get_op(implementation.operator, str(implementation))


def expected_calls(implementation: Implementation) -> list[Call]:
    """What a trace of forward and backward holds."""
    place = implementation.operator, implementation.backend, implementation.rung
    return [Call(*place, "forward"), *([] if implementation.function else [Call(*place, "backward")])]


def is_row_wise(operator: Operator) -> bool:
    """On (rows, columns): then it is tried on the same shapes as all of its kind."""
    return operator.dims == ("rows", "columns")


def varies(operator: Operator, name: str, tensor: Tensor | None) -> bool:
    """Whether a tensor argument is there and has a gradient."""
    return tensor is not None and name not in operator.constants


def run(function, tensors, grads=None) -> dict[str, Tensor]:
    """Outputs, and with `grads` the gradients of all tensors, by name."""
    operator = registry.operator(function.__name__)
    leaves = {
        name: tensor.detach().requires_grad_() if grads is not None and varies(operator, name, tensor) else tensor
        for name, tensor in zip(operator.tensors, tensors)
    }
    outputs = outputs_of(function(*leaves.values()))
    found = dict(zip(operator.outputs, outputs))
    if grads is not None:
        varying = {name: leaf for name, leaf in leaves.items() if varies(operator, name, leaf)}
        gradients = torch.autograd.grad(outputs, list(varying.values()), grads)
        found |= {f"d{name}": gradient for name, gradient in zip(varying, gradients)}
    return {name: tensor.detach() for name, tensor in found.items()}


def widened(tensors) -> list[Tensor | None]:
    """In float64, but for indices."""
    return [
        tensor.detach().double() if tensor is not None and tensor.is_floating_point() else tensor for tensor in tensors
    ]


def values_of(operator: Operator, tensors, grads) -> dict[str, Tensor]:
    """Float64 results of the contract's mathematics: outputs, and gradients for those of the outputs."""
    named = dict(zip(operator.tensors, tensors))
    wide = dict(zip(named, widened(tensors)))
    varying = [name for name, tensor in named.items() if varies(operator, name, tensor)]
    leaves = wide | {name: wide[name].clone().requires_grad_() for name in varying}
    outputs = outputs_of(operator.reference(*operator.complete(*leaves.values())))
    gradients = torch.autograd.grad(outputs, [leaves[name] for name in varying], [grad.double() for grad in grads])
    names = [*operator.outputs, *(f"d{name}" for name in varying)]
    return dict(zip(names, [*(output.detach() for output in outputs), *gradients]))


def reference(operator: Operator, tensors, grads) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`values_of`, and for each the sum of the absolute values of its terms."""
    wide_grads = tuple(grad.double() for grad in grads)
    args = operator.complete(*widened(tensors))
    of_outputs, of_tensors = operator.term_sums(args, wide_grads, tensors[0].dtype)
    terms = dict(zip([*operator.outputs, *(f"d{name}" for name in operator.tensors)], [*of_outputs, *of_tensors]))
    values = values_of(operator, tensors, grads)
    return values, {name: terms[name] for name in values}


def on_meta(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None else tensor.to("meta")


def random_grads(operator: Operator, tensors, seed: int) -> tuple[Tensor, ...]:
    outputs = outputs_of(operator.reference(*operator.complete(*map(on_meta, tensors))))
    generator = torch.Generator(tensors[0].device).manual_seed(seed + 17)
    return tuple(
        torch.randn(output.shape, generator=generator, dtype=output.dtype, device=tensors[0].device)
        for output in outputs
    )


def check_error(implementation: Implementation, tensors, grads) -> None:
    """|ours - float64| <= (2 e + c u) T for every element: u the dtype's unit roundoff, T the sum of the absolute
    values of the element's terms, e PyTorch's own largest error in the same dtype, in units of T; c is 4, and 8 in
    float32, in which sums are kept too: of 65536 plain sums of 1000 numbers the worst is off by 4 to 5 u T, whatever
    the kernel.

    e is a maximum over the tensor, not the same element's: an element on which PyTorch is exact by luck says nothing.
    """
    operator = registry.operator(implementation.operator)
    expected, terms = reference(operator, tensors, grads)
    ours = run(bound_to(implementation), tensors, grads)
    theirs = run(lab.get_op(operator.name, "torch"), tensors, grads)
    dtype = tensors[0].dtype
    unit, tiny = torch.finfo(dtype).eps / 2, torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    for name, value in expected.items():
        scale = terms[name] + tiny
        torchs = ((theirs[name].double() - value).abs() / scale).max() if value.numel() else 0
        bound = (2 * torchs + (4 if dtype.itemsize == 2 else 8) * unit) * scale + tiny
        error = (ours[name].double() - value).abs()
        fine = error <= bound
        if not bool(fine.all()):  # NaN compares false, so it is never fine
            index = tuple(torch.nonzero(~fine)[0].tolist())
            raise AssertionError(
                f"{implementation} {operator.name} {tuple(tensors[0].shape)} {dtype}: {name}{list(index)} is "
                f"{ours[name][index].item()}, expected {value[index].item()} within {bound[index].item()}; "
                f"{int((~fine).sum())} of {fine.numel()} elements are off"
            )


def check_many_rows(implementation: Implementation, shape, dtype, device, seed: int, chunk: int = 8192) -> None:
    """For tensors that nearly fill the memory: the last rows of everything, and in full what is summed over all rows,
    such as the gradient of a vector; its reference is made `chunk` rows at a time. PyTorch's own error is not in the
    bound, which is 8 units of roundoff of the sum of terms."""
    operator = registry.operator(implementation.operator)
    last, rows = 3, shape[0]
    tensors = operator.make_inputs(shape, dtype, device, seed)
    parameters = operator.complete(*tensors)[len(tensors) :]
    grads = [tensors[0]] * len(operator.outputs)  # any gradient will do
    results = implementation.forward(*tensors, *parameters)
    saved = operator.saved(tensors, results)
    found = {name: result[-last:].clone() for name, result in zip(operator.outputs, results)}
    del results
    gradients = operator.gradients(*implementation.backward(*grads, *saved, *parameters))
    del saved
    summed = {f"d{name}" for name, tensor in zip(operator.tensors, tensors) if tensor.dim() == 1}
    for name, gradient in zip(operator.tensors, gradients):
        found[f"d{name}"] = gradient.clone() if f"d{name}" in summed else gradient[-last:].clone()
    del gradients
    expected: dict[str, Tensor] = {}
    terms: dict[str, Tensor] = {}
    for start in range(0, rows, chunk) if summed else [rows - last]:
        part = [tensor[start : start + chunk] if tensor.dim() > 1 else tensor for tensor in tensors]
        values, sums = reference(operator, part, [grad[start : start + chunk] for grad in grads])
        for name in values:
            if name in summed:
                expected[name] = expected.get(name, 0) + values[name]
                terms[name] = terms.get(name, 0) + sums[name]
            else:
                before = expected.get(name, values[name][:0]), terms.get(name, sums[name][:0])
                expected[name] = torch.cat([before[0], values[name]])[-last:]
                terms[name] = torch.cat([before[1], sums[name]])[-last:]
    for name, value in found.items():
        bound = 4 * torch.finfo(dtype).eps * terms[name] + torch.finfo(dtype).smallest_normal
        off = ~((value.double() - expected[name]).abs() <= bound)
        assert not off.any(), f"{implementation}: {name} is off in {int(off.sum())} of {off.numel()} elements"


class Poison(TorchDispatchMode):
    """Memory that is handed out without being written holds NaN, so that an element nobody writes shows."""

    UNWRITTEN = {"aten::empty.memory_format", "aten::empty_strided", "aten::empty_like", "aten::new_empty"}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.name() in self.UNWRITTEN and result.is_floating_point():
            result.fill_(float("nan"))
        return result


def passes(implementation: Implementation, tensors, grads) -> dict[str, Tensor]:
    """As `run`, but calling the two pure passes, without autograd and its threads, where there are any."""
    if not implementation.has_passes:
        return run(bound_to(implementation), tensors, grads)
    operator = registry.operator(implementation.operator)
    canonical = operator.canonical(*tensors)
    parameters = operator.complete(*tensors)[len(tensors) :]
    shapes = [like.shape for like in operator.like_forward(*map(on_meta, canonical), *parameters)]
    grads = operator.canonical_grads(*(grad.reshape(shape) for grad, shape in zip(grads, shapes)))
    results = implementation.forward(*canonical, *parameters)
    gradients = implementation.backward(*grads, *operator.saved(canonical, results), *parameters)
    names = [*operator.outputs, *operator.residuals, *(f"d{name}" for name in operator.tensors)]
    found = dict(zip(names, [*results, *operator.gradients(*gradients)]))
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def check_all_written(implementation: Implementation, tensors, grads) -> None:
    with Poison():
        found = passes(implementation, tensors, grads)
    for name, tensor in found.items():
        assert not bool(tensor.isnan().any()), f"{implementation}: {int(tensor.isnan().sum())} of {name} is unwritten"


def check_inputs_unmodified(implementation: Implementation, tensors, grads) -> None:
    given = [tensor for tensor in (*tensors, *grads) if tensor is not None]
    before = [tensor.clone() for tensor in given]
    passes(implementation, tensors, grads)
    for tensor, copy in zip(given, before):
        assert torch.equal(tensor, copy), f"{implementation}: an input of shape {tuple(tensor.shape)} was modified"


def check_no_aliasing(implementation: Implementation, tensors, grads) -> None:
    """Neither the inputs' memory nor the other call's comes back, and no gradient lies in an output."""

    def memory(found) -> set[int]:
        return {tensor.untyped_storage().data_ptr() for tensor in found if tensor.numel()}

    operator = registry.operator(implementation.operator)
    first, second = (run(bound_to(implementation), tensors, grads) for _ in range(2))
    given = memory(tensor for tensor in (*tensors, *grads) if tensor is not None)
    assert not memory(first.values()) & given, f"{implementation}: a result shares memory with an input"
    assert not memory(first.values()) & memory(second.values()), f"{implementation}: two calls share memory"
    outputs = [first[name] for name in operator.outputs]
    assert len(memory(outputs)) == len(outputs), f"{implementation}: two outputs share memory"
    gradients = [tensor for name, tensor in first.items() if name not in operator.outputs]
    assert not memory(outputs) & memory(gradients), f"{implementation}: a gradient shares memory with an output"


def check_non_finite(implementation: Implementation, tensors, grads) -> None:
    """NaN and infinities come out where PyTorch lets them out: on the CPU, where it computes the formula step by step.
    (Its fused GPU kernel turns all of a row with an infinity into NaN for some numbers of columns, and not for others.)
    """
    ours = run(bound_to(implementation), tensors, grads)
    on_cpu = [[tensor if tensor is None else tensor.cpu() for tensor in each] for each in (tensors, grads)]
    theirs = run(lab.get_op(implementation.operator, "torch"), *on_cpu)
    for name, tensor in theirs.items():
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(kind(ours[name].cpu()), kind(tensor)), (
                f"{implementation}: {kind.__name__} of {name} differs"
            )
