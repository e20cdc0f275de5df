"""Every implementation that is registered, held to `rules.py` on the device that is here."""

import math

import pytest
import torch
from rules import (
    bound_to,
    check_all_written,
    check_error,
    check_inputs_unmodified,
    check_many_rows,
    check_no_aliasing,
    check_non_finite,
    expected_calls,
    is_row_wise,
    on_meta,
    outputs_of,
    passes,
    random_grads,
    reference,
    run,
    values_of,
    varies,
)
from torch.utils._python_dispatch import TorchDispatchMode

import lab
from lab.backends import registry
from lab.backends.dry_run import launches_of
from lab.backends.hardware import default_device, gpu_of
from lab.backends.implementation import BackendUnavailable, Implementation

DEVICE = default_device()
ON_GPU = DEVICE.type == "cuda"
EVERYTHING = [rung for op in registry.operators() for rung in registry.implementations(op)]
COLUMNS = (1, 2, 127, 128, 129, 1000, 4096, 4097, 8192, 16384, 65536)
ROWS = (1, 3, 1000)
HALF = (torch.float16, torch.bfloat16) if ON_GPU else (torch.float16,)  # the interpreter has no bfloat16


def runs_here(implementation: Implementation) -> bool:
    reason = implementation.unavailable(DEVICE)
    lacks_hardware = reason is not None and ("capability" in reason or not ON_GPU)
    assert reason is None or lacks_hardware, f"{implementation} should run here: {reason}"
    return reason is None


def row_wise(implementation: Implementation) -> bool:
    return is_row_wise(registry.operator(implementation.operator))


def named(implementation: Implementation) -> str:
    return f"{implementation.operator}-{implementation}"


HERE = [rung for rung in EVERYTHING if runs_here(rung)]
BEST = {(op, backend): ladder[-1] for op in registry.operators() for backend in registry.backends()
        if (ladder := [rung for rung in registry.ladder(op, backend) if rung in HERE])}  # fmt: skip
BEST_ON_ROWS = [rung for rung in BEST.values() if row_wise(rung) and rung.has_passes]
OURS_WITH_VECTORS = [rung for rung in HERE if rung.backend != "torch" and row_wise(rung)
                     and "weight" in registry.operator(rung.operator).tensors]  # fmt: skip
every = pytest.mark.parametrize("implementation", HERE, ids=named)


def inputs(implementation: Implementation, shape, dtype, seed):
    operator = registry.operator(implementation.operator)
    tensors = operator.make_inputs(shape, dtype, DEVICE, seed)
    return tensors, random_grads(operator, tensors, seed)


def refused(implementation: Implementation, tensors) -> bool:
    """Whether this rung takes no such inputs; a best rung takes them all."""
    canonical = registry.operator(implementation.operator).canonical(*tensors)
    reason = implementation.refuses(*canonical)
    best = BEST[implementation.operator, implementation.backend]
    assert not (reason and implementation is best), f"the best rung, {implementation}, refuses: {reason}"
    return reason is not None


def shapes_to_try(operator) -> list[tuple[int, ...]]:
    """On a GPU every combination; in the interpreter, 1000 rows up to 1000 columns and few rows of the longest."""
    if not is_row_wise(operator):
        return list(operator.trial_shapes)
    every_shape = [(rows, columns) for columns in COLUMNS for rows in ROWS]
    if ON_GPU:
        return every_shape
    return [
        (rows, columns) for rows, columns in every_shape if rows * columns <= 13_000 or (rows, columns) == (1, 65536)
    ]


def test_something_runs_here():
    assert {rung.backend for rung in HERE} >= ({"torch", "triton", "cuda"} if ON_GPU else {"torch", "triton"})


@every
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_error_rule(implementation, dtype, seed):
    operator = registry.operator(implementation.operator)
    for shape in shapes_to_try(operator):
        if is_row_wise(operator) and not ON_GPU and dtype != torch.float32 and shape[0] * shape[1] > 5000:
            continue
        tensors, grads = inputs(implementation, shape, dtype, seed)
        if not refused(implementation, tensors):
            with lab.trace() as calls:
                check_error(implementation, tensors, grads)
            expected = expected_calls(implementation)
            assert calls[: len(expected)] == expected
        if ON_GPU:
            torch.cuda.empty_cache()


@pytest.mark.cpu
@pytest.mark.parametrize("best", BEST_ON_ROWS, ids=str)
@pytest.mark.parametrize("columns", [129, 1000])
def test_a_thousand_rows_in_the_interpreter(best, columns, seed):
    check_error(best, *inputs(best, (1000, columns), torch.float32, seed))


@every
def test_gradcheck_in_float64(implementation, seed):
    operator = registry.operator(implementation.operator)
    for shape in [(3, 5), (2, 33), (5, 1)] if is_row_wise(operator) else operator.tiny_shapes:
        tensors, _ = inputs(implementation, shape, torch.float64, seed)
        for name, tensor in zip(operator.tensors, tensors):
            tensor.requires_grad_(varies(operator, name, tensor))
        atomic = "fused" in implementation.rung  # sums in another order on every run
        assert torch.autograd.gradcheck(bound_to(implementation), tensors, nondet_tol=1e-12 if atomic else 0.0)


@every
def test_float64_stays_float64(implementation, seed):
    operator = registry.operator(implementation.operator)
    on_rows = [(3, 129), (3, 4096 if ON_GPU else 2000)]
    for shape in on_rows if is_row_wise(operator) else operator.trial_shapes:
        tensors, grads = inputs(implementation, shape, torch.float64, seed)
        expected, terms = reference(operator, tensors, grads)
        found = run(bound_to(implementation), tensors, grads)
        for name, value in expected.items():
            assert ((found[name] - value).abs() <= 1e-12 * (terms[name] + 1e-300)).all(), f"{implementation}: {name}"


def of_rows(relayout):
    """The layout for tensors of rows; a vector keeps its own."""
    return lambda tensor: relayout(tensor) if tensor.dim() > 1 else tensor


LAYOUTS = {  # the values of a tensor, laid out in memory as a caller may come with them
    "contiguous": lambda t: t,
    "transposed": of_rows(lambda t: t.mT.contiguous().mT),
    "permuted": of_rows(lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0)),
    "every second row": of_rows(lambda t: t.repeat_interleave(2, 0)[::2]),
    "every second column": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "off the alignment": lambda t: torch.nn.functional.pad(t, (1, 0))[..., 1:],
    "wider rows": of_rows(lambda t: torch.nn.functional.pad(t, (0, 16))[..., :-16]),
    "one row for all": of_rows(lambda t: t[:1].expand(t.shape)),
}


@every
@pytest.mark.parametrize("dtype", [torch.float32, HALF[-1]], ids=str)
def test_layouts(implementation, dtype, seed):
    operator = registry.operator(implementation.operator)
    leads = {"contiguous": [(), (2, 1, 3)], "permuted": [(2, 3)]}
    for name, relayout in LAYOUTS.items():
        on_rows = [(*lead, columns) for lead in leads.get(name, [(3,)]) for columns in (129, 1024)]
        for shape in on_rows if is_row_wise(operator) else operator.trial_shapes[:3]:
            tensors, grads = inputs(implementation, shape, dtype, seed)
            tensors = [relayout(tensor) for tensor in tensors]
            try:
                check_error(implementation, tensors, grads)
                spread = [torch.stack([grad, grad], dim=-1)[..., 0] for grad in grads]  # a column stride of 2
                check_error(implementation, tensors, spread)
                flat = [grad[..., :1].expand(grad.shape) if grad.dim() else grad for grad in grads]  # of 0
                check_error(implementation, tensors, flat)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error


@every
@pytest.mark.parametrize("dtype", [torch.float32, HALF[-1]], ids=str)
def test_gradients_whose_rows_lie_apart(implementation, dtype, seed):
    """As torch.cat hands them back; by an odd number of elements too."""
    operator = registry.operator(implementation.operator)
    for shape in [(3, 16), (3, 129), (3, 1024)] if is_row_wise(operator) else operator.trial_shapes[:3]:
        tensors, grads = inputs(implementation, shape, dtype, seed)
        for more in (0, 1):
            apart = [
                torch.cat([grad, grad, grad[..., :more]], -1)[..., : grad.shape[-1]] if grad.dim() else grad
                for grad in grads
            ]
            check_error(implementation, tensors, apart)


@pytest.mark.parametrize("implementation", [rung for rung in HERE if rung.has_passes], ids=named)
@pytest.mark.parametrize("dtype", [torch.float32, HALF[-1]], ids=str)
def test_passes_return_what_the_operator_declares(implementation, dtype, seed):
    """Shapes and dtypes, of what the backward pass is left by the forward pass too: torch.compile goes by them."""
    operator = registry.operator(implementation.operator)
    shape = (3, 129) if is_row_wise(operator) else operator.trial_shapes[0]
    tensors, grads = inputs(implementation, shape, dtype, seed)
    tensors, grads = operator.canonical(*tensors), operator.canonical_grads(*grads)
    parameters = operator.complete(*tensors)[len(tensors) :]
    results = implementation.forward(*tensors, *parameters)
    saved = operator.saved(tensors, results)
    gradients = implementation.backward(*grads, *saved, *parameters)
    declared = operator.like_forward(*map(on_meta, tensors), *parameters)
    declared += operator.like_backward(*map(on_meta, grads), *map(on_meta, saved), *parameters)
    for found, expected in zip((*results, *gradients), declared, strict=True):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize("implementation", OURS_WITH_VECTORS, ids=named)
def test_a_vectors_gradient_may_be_larger_than_float16_on_its_way(implementation, seed):
    """It is 0, the sum over rows of as many +40,000 as -40,000. Two of one sign are infinite in float16."""
    operator = registry.operator(implementation.operator)
    tensors, grads = inputs(implementation, (1024, 8), torch.float16, seed)
    x, *others = tensors
    x[:, ::2], x[:, 1::2] = 1, -1
    for other in others:
        other.fill_(other.dim() == 1)
    dy, *other_grads = grads
    dy.copy_(40000 * (2 * (torch.randperm(1024) % 2) - 1)[:, None])
    for other in other_grads:
        other.zero_()
    found = run(bound_to(implementation), tensors, grads)
    for name in (f"d{name}" for name, tensor in zip(operator.tensors, tensors) if tensor.dim() == 1):
        assert (found[name].abs() <= 4 * torch.finfo(torch.float32).eps * 1024 * 40000).all(), name


@every
def test_empty(implementation):
    operator = registry.operator(implementation.operator)
    on_rows = [(0, 8), (3, 0), (0, 0), (2, 0, 8)]
    for shape in on_rows if is_row_wise(operator) else [(0, *operator.trial_shapes[1][1:])]:
        tensors = operator.make_inputs(shape, torch.float32, DEVICE, 0)
        grads = random_grads(operator, tensors, 0)
        expected = values_of(operator, tensors, grads)
        for name, tensor in run(bound_to(implementation), tensors, grads).items():
            assert tensor.dtype == torch.float32, (name, shape)
            torch.testing.assert_close(tensor.double(), expected[name], rtol=0, atol=0, equal_nan=True)


CHECKS = {
    "all written": check_all_written,
    "inputs unmodified": check_inputs_unmodified,
    "no aliasing": check_no_aliasing,
}


@every
@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_memory(implementation, check, seed):
    operator = registry.operator(implementation.operator)
    for shape in ((3, 129), (5, 1024), (2, 5000)) if is_row_wise(operator) else operator.trial_shapes:
        for dtype in (torch.float32, HALF[-1]):
            CHECKS[check](implementation, *inputs(implementation, shape, dtype, seed))


@every
def test_gradients_of_leaves_are_their_own(implementation, seed):
    operator = registry.operator(implementation.operator)
    shape = (3, 64) if is_row_wise(operator) else operator.trial_shapes[1]
    tensors, grads = inputs(implementation, shape, torch.float32, seed)
    for name, tensor in zip(operator.tensors, tensors):
        tensor.requires_grad_(varies(operator, name, tensor))
    outputs = bound_to(implementation)(*tensors)
    torch.autograd.backward(outputs, grads if isinstance(outputs, tuple) else grads[0])
    memory = [leaf.grad.untyped_storage().data_ptr() for leaf in tensors if leaf.requires_grad]
    assert len(set(memory)) == len(memory)


@every
def test_without_a_gradient_the_result_is_the_same(implementation, seed):
    """It is called another way then, and on the same kernels."""
    operator = registry.operator(implementation.operator)
    shape = (3, 64) if is_row_wise(operator) else operator.trial_shapes[1]
    tensors, _ = inputs(implementation, shape, torch.float32, seed)
    function = bound_to(implementation)
    with lab.trace() as plain:
        expected = outputs_of(function(*tensors))
    leaves = [tensor.detach().requires_grad_() if varies(operator, name, tensor) else tensor
              for name, tensor in zip(operator.tensors, tensors)]  # fmt: skip
    with lab.trace() as differentiable:
        outputs = outputs_of(function(*leaves))
    with torch.no_grad(), lab.trace() as without:
        again = outputs_of(function(*leaves))
    assert plain == differentiable == without and len(plain) == 1
    assert all(output.requires_grad for output in outputs)
    for output, same, want in zip(outputs, again, expected, strict=True):
        assert not same.requires_grad and not want.requires_grad
        assert torch.equal(output, want) and torch.equal(same, want)


@pytest.mark.parametrize("implementation", [rung for rung in HERE if not row_wise(rung)], ids=named)
def test_nan_inputs(implementation, seed):
    shape = registry.operator(implementation.operator).trial_shapes[1]
    tensors, grads = inputs(implementation, shape, torch.float32, seed)
    tensors[0].view(-1)[tensors[0].numel() // 2] = math.nan
    check_non_finite(implementation, tensors, grads)


# PyTorch's fused GPU kernels are not held to what it does on the CPU: see check_non_finite.
@pytest.mark.parametrize(
    "implementation", [rung for rung in HERE if row_wise(rung) and not (ON_GPU and rung.backend == "torch")], ids=named
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_non_finite_inputs(implementation, value, seed):
    for columns in (65, 1024):
        tensors, grads = inputs(implementation, (4, columns), torch.float32, seed)
        tensors[0][1, columns // 2] = value
        tensors[0][3, 0] = value
        check_non_finite(implementation, tensors, grads)


class OnlyMemory(TorchDispatchMode):
    """PyTorch may allocate, view, copy, and add up what our kernels left, and not compute otherwise."""

    FREE = ("empty", "new_empty", "zeros", "zero_", "set_", "copy_", "_to_copy", "clone", "sum")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::")
        assert function.is_view or name.startswith(self.FREE), f"PyTorch computes {name}"
        return function(*args, **(kwargs or {}))


def a_shape(implementation: Implementation) -> tuple[int, ...]:
    return (64, 1024) if row_wise(implementation) else registry.operator(implementation.operator).trial_shapes[-1]


@pytest.mark.parametrize("best", [rung for rung in BEST.values() if rung.backend != "torch"], ids=named)
def test_torch_is_not_behind_it(best, seed):
    tensors, grads = inputs(best, a_shape(best), torch.float32, seed)
    with OnlyMemory():
        passes(best, tensors, grads)


@pytest.mark.gpu
@pytest.mark.parametrize("best", [rung for rung in HERE if rung.backend != "torch"], ids=named)
def test_kernels_on_the_gpu_are_ours(best, seed):
    shape = a_shape(best)
    tensors, grads = inputs(best, shape, torch.float32, seed)
    passes(best, tensors, grads)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        passes(best, tensors, grads)
        torch.cuda.synchronize()
    on_gpu = torch.autograd.DeviceType.CUDA
    names = {event.key for event in profile.key_averages() if event.device_type == on_gpu}
    helpers = ("Mem", "elementwise", "reduce_kernel")  # PyTorch may zero, convert and add up what our kernels left
    kernels = {name for name in names if not any(helper in name for helper in helpers)}
    gpu = gpu_of(DEVICE)
    ours = {launch.kernel.partition("<")[0] for launch in launches_of(best, shape, torch.float32, "both", gpu)}
    assert all(any(kernel in name for kernel in ours) for name in kernels), (names, ours)
    assert all(any(kernel in name for name in kernels) for kernel in ours), (names, ours)


@pytest.mark.gpu
@pytest.mark.parametrize("best", [rung for rung in BEST_ON_ROWS if rung.backend != "torch"], ids=str)
def test_more_than_2_to_the_31_elements(best, seed, much_memory):
    check_many_rows(best, (2**31 // 8192 + 3, 8192), torch.bfloat16, DEVICE, seed)


@pytest.mark.cpu
@pytest.mark.parametrize("best", BEST_ON_ROWS, ids=str)
def test_many_rows_are_checked_as_more_than_2_to_the_31_elements_are(best, seed):
    """The check of the test above, where it can run anywhere."""
    check_many_rows(best, (37, 8), torch.float32, DEVICE, seed, chunk=10)


@pytest.mark.gpu
def test_sanitize():
    """A short run over every CUDA kernel and both their branches, for compute-sanitizer (see CONTRIBUTING.md)."""
    for implementation in HERE:
        if implementation.backend == "cuda":
            on_rows = [(5, columns) for columns in (1, 129, 1024, 8192, 40000, 65536)]
            operator = registry.operator(implementation.operator)
            for shape in on_rows if row_wise(implementation) else operator.trial_shapes:
                for dtype in (torch.float32, torch.float16):
                    tensors, grads = inputs(implementation, shape, dtype, 0)
                    passes(implementation, tensors, grads)
    torch.cuda.synchronize()


# The checks themselves: each must catch what it is there for ----------------------------------------------------------


def test_what_is_drawn_without_a_seed_is_the_tests_own(seed):
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(seed)))


def wrong(change_forward=None, change_backward=None):
    """torch's rmsnorm with its results changed, registered as the backend `wrong`."""
    torchs = registry.ladder("rmsnorm", "torch")[-1]

    def forward(x, weight, eps):
        results = torchs.forward(x, weight, eps)
        return change_forward(x, weight, *results) if change_forward else results

    def backward(dy, x, weight, rstd, eps):
        results = torchs.backward(dy, x, weight, rstd, eps)
        return change_backward(dy, x, weight, rstd, *results) if change_backward else results

    return Implementation(forward, backward)


def unwritten_last_column(x, weight, y, rstd):
    fresh = torch.empty_like(y)
    fresh[:, :-1] = y[:, :-1]
    return fresh, rstd


def into_the_input(x, weight, y, rstd):
    x.mul_(1)
    x[0, 0] += 1
    return y, rstd


def check_last_of_many_rows(implementation, tensors, grads):
    check_many_rows(implementation, (37, 8), torch.float32, DEVICE, 0, chunk=10)


kept: dict = {}


def check_only_memory(implementation, tensors, grads):
    with OnlyMemory():
        passes(implementation, tensors, grads)


def the_same_memory(x, weight, y, rstd):
    return kept.setdefault("y", torch.zeros_like(y)).copy_(y), rstd


WRONG = {
    "y one bit too large": (wrong(lambda x, w, y, r: (y * 1.0002, r)), check_error),
    "a NaN": (wrong(lambda x, w, y, r: (y.index_fill(1, y.new_ones(1, dtype=int), math.nan), r)), check_error),
    "no weight": (wrong(lambda x, w, y, r: (y / w, r)), check_error),
    "dx without its second term": (
        wrong(None, lambda dy, x, w, r, dx, dw: ((r[:, None] * w * dy).to(x.dtype), dw)), check_error),
    "dw without the last row": (
        wrong(None, lambda dy, x, w, r, dx, dw: (dx, dw - (dy * x * r[:, None]).to(x.dtype)[-1])), check_error),
    "low-precision accumulation": (
        wrong(lambda x, w, y, r: (x / (x * x).half().cumsum(-1)[:, -1:].div(x.shape[1]).sqrt().float() * w, r)),
        check_error),
    "a column not written": (wrong(unwritten_last_column), check_all_written),
    "an input modified": (wrong(into_the_input), check_inputs_unmodified),
    "one buffer for all calls": (wrong(the_same_memory), check_no_aliasing),
    "the input itself": (wrong(lambda x, w, y, r: (x, r)), check_no_aliasing),
    "the last row not written": (
        wrong(lambda x, w, y, r: (torch.cat([y[:-1], 0 * y[-1:]]), r)), check_last_of_many_rows),
    "dw without the last of many rows": (
        wrong(None, lambda dy, x, w, r, dx, dw: (dx, dw - (dy * x * r[:, None])[-1])), check_last_of_many_rows),
    "PyTorch's arithmetic": (wrong(), check_only_memory),
    "NaN swallowed": (wrong(lambda x, w, y, r: (torch.nan_to_num(y), r)), check_non_finite),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_mistake_is_caught(mistake, seed):
    implementation, check = WRONG[mistake]
    kept.clear()
    registry.register_backend("wrong", {"rmsnorm": implementation})
    try:
        registered = registry.ladder("rmsnorm", "wrong")[0]
        tensors, grads = inputs(registry.ladder("rmsnorm", "torch")[-1], (3, 129), torch.float32, seed)
        if check is check_non_finite:
            tensors[0][1, 5] = math.nan
        with pytest.raises(AssertionError):
            check(registered, tensors, grads)
    finally:
        del registry._ladders["wrong"]


def test_a_best_rung_may_not_refuse(monkeypatch):
    best = BEST["rmsnorm", "triton"]
    picky = Implementation(
        best.forward, best.backward, best.rung, refuses=lambda *_: "no", operator="rmsnorm", backend="triton"
    )
    monkeypatch.setitem(BEST, ("rmsnorm", "triton"), picky)
    with pytest.raises(AssertionError, match="refuses"):
        refused(picky, inputs(best, (2, 3), torch.float32, 0)[0])


def test_refused_rows_raise_before_any_launch(seed):
    one_pass = next(rung for rung in registry.ladder("rmsnorm", "triton") if rung.rung == "one_pass")
    x, weight = registry.operator("rmsnorm").make_inputs((1, 20000), torch.float32, DEVICE, seed)
    with lab.trace() as calls, pytest.raises(BackendUnavailable, match="20000 columns"):
        bound_to(one_pass)(x, weight)
    assert calls == []
