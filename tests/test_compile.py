"""Under torch.compile with every implementation that runs here: no graph break, the same results, the same kernels."""

import pytest
import torch
from rules import expected_calls, is_row_wise, random_grads, run
from test_numerics import HERE

import lab
from lab.backends import registry
from lab.backends.hardware import default_device
from lab.backends.implementation import Implementation

DEVICE = default_device()
COMPILER = "inductor" if DEVICE.type == "cuda" else "aot_eager"
every = pytest.mark.parametrize("implementation", HERE, ids=lambda rung: f"{rung.operator}-{rung}")


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function):
    made = torch.compile(function, fullgraph=True, backend=COMPILER)

    def call(*args):
        return made(*args)

    call.__name__ = function.__name__
    return call


@every
def test_same_results_and_same_kernels(implementation, seed):
    operator = registry.operator(implementation.operator)
    shape = (2, 3, 64) if is_row_wise(operator) else operator.trial_shapes[1]
    tensors = operator.make_inputs(shape, torch.float32, DEVICE, seed)
    grads = random_grads(operator, tensors, seed)
    function = lab.get_op(operator.name, str(implementation))
    eager = run(function, tensors, grads)
    with lab.trace() as calls:
        found = run(compiled(function), tensors, grads)
    assert calls == ([] if implementation.function else expected_calls(implementation))
    for name, value in eager.items():
        assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-5), name


OPAQUE_ON_TORCH = {"transpose"}  # in PyTorch's own, dx would be a view of dy; no model calls it


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_the_compiler_sees_through_pytorchs_own_functions(backend):
    """Else torch.compile could not fuse them with their neighbours, and a model on the torch backend would not be the
    baseline that it is taken for."""
    seen = []

    def look(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    for op in registry.operators():
        if not registry.ladder(op, backend):
            continue
        torch._dynamo.reset()  # one lambda is compiled anew for each operator; there is a limit to that
        function, operator = lab.get_op(op, backend), registry.operator(op)
        shape = (5, 64) if is_row_wise(operator) else operator.trial_shapes[1]
        torch.compile(lambda *args, f=function: f(*args), fullgraph=True, backend=look)(
            *operator.make_inputs(shape, torch.float32, DEVICE, 0)
        )
        opaque = backend == "triton" or op in OPAQUE_ON_TORCH
        assert any(f"lab.{op}_" in name for name in seen) == opaque, (op, seen)


@every
def test_without_gradients(implementation, seed):
    operator = registry.operator(implementation.operator)
    shape = (5, 64) if is_row_wise(operator) else operator.trial_shapes[1]
    tensors = operator.make_inputs(shape, torch.float32, DEVICE, seed)
    function = lab.get_op(operator.name, str(implementation))
    with torch.no_grad():
        for name, value in run(function, tensors).items():
            assert torch.allclose(run(compiled(function), tensors)[name], value, rtol=1e-5, atol=1e-5)


def attention_forward(q, k, v, causal, scale):
    scores, _ = ATTENTION._scores(q, k, causal, scale)
    return torch.softmax(scores, -1) @ v, torch.logsumexp(scores, -1)


def attention_backward(dy, q, k, v, y, lse, causal, scale):
    scores, _ = ATTENTION._scores(q, k, causal, scale)
    p = torch.exp(scores - lse[..., None])
    ds = p * (dy @ v.mT - (dy * y).sum(-1, keepdim=True)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return ds @ k, ds.mT @ q, p.mT @ dy


def cross_entropy_forward(logits, target, ignore_index, reduction):
    return CROSS_ENTROPY.reference(logits, target, ignore_index, reduction), torch.logsumexp(logits, -1)


def cross_entropy_backward(dloss, logits, target, lse, ignore_index, reduction):
    counts = target != ignore_index
    one_hot = torch.nn.functional.one_hot(target.where(counts, 0), logits.shape[-1])
    g = dloss / counts.sum() if reduction == "mean" else dloss
    return ((g * counts)[:, None] * (torch.exp(logits - lse[:, None]) - one_hot),)


def linear_forward(x, weight, bias):
    return (LINEAR.reference(x, weight, bias),)


def linear_backward(dy, x, weight, bias):
    return dy @ weight, dy.mT @ x, None if bias is None else dy.sum(0)


ATTENTION, CROSS_ENTROPY, LINEAR = (registry.operator(name) for name in ("attention", "cross_entropy", "linear"))
ARGUMENTS = {  # passes, the shape of tensors, and arguments of every kind that a pass may take
    "attention": (attention_forward, attention_backward, (2, 3, 3, 4, 6, 8), [(True, None), (False, 0.3), (True, 2)]),
    "cross_entropy": (
        cross_entropy_forward, cross_entropy_backward, (9, 5), [(-100, "mean"), (-100, "sum"), (-100, "none")]),
    "linear": (linear_forward, linear_backward, (3, 5, 7), [()]),
}  # fmt: skip


def with_parameters(function, values):
    def bound(*tensors):
        return function(*tensors, *values)

    bound.__name__ = function.__name__
    return bound


@pytest.mark.parametrize("op", ARGUMENTS)
def test_arguments_of_every_kind(op, seed):
    """Flags, integers, strings and numbers that may be None reach the passes, in eager mode and compiled; indices have
    no gradient, and neither has a tensor that is not there."""
    operator, (forward, backward, shape, parameters) = registry.operator(op), ARGUMENTS[op]
    tensors = operator.make_inputs(shape, torch.float32, DEVICE, seed)
    registry.register_backend("mine", {op: Implementation(forward, backward)})
    try:
        for given in [tensors, (*tensors[:-1], None)] if op == "linear" else [tensors]:
            for values in parameters:
                mine, torchs = (with_parameters(lab.get_op(op, backend), values) for backend in ("mine", "torch"))
                grads = [torch.randn_like(torchs(*given))]
                expected = run(torchs, given, grads)
                with lab.trace() as calls:
                    eager, found = run(mine, given, grads), run(compiled(mine), given, grads)
                assert [call.backend for call in calls] == ["mine"] * 4
                assert eager.keys() == found.keys() == expected.keys()
                for name, value in expected.items():
                    for each in (eager, found):
                        assert torch.allclose(each[name], value, rtol=1e-4, atol=1e-5), (name, values)
    finally:
        del registry._ladders["mine"]
        vars(registry._bound).clear()


class Block(torch.nn.Module):
    """Operators through `lab.ops` with a choice string, as a model calls them."""

    def __init__(self, columns: int, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.first = torch.nn.Parameter(torch.randn(columns))
        self.second = torch.nn.Parameter(torch.randn(columns))

    def forward(self, x):
        normed = lab.ops.rmsnorm(x, self.first, backend=self.backend)
        y, s = lab.ops.add_rmsnorm(torch.tanh(normed), x, self.second, backend=self.backend)
        return y * s


@pytest.mark.parametrize("backend", ["torch", "triton", "torch,rmsnorm=triton:fused", "auto"])
def test_in_a_module_never_called_before(backend):
    block = Block(64, backend).to(DEVICE)
    x = torch.randn(3, 64, device=DEVICE, requires_grad=True)
    vars(registry._bound).clear()  # nothing is bound yet: binding happens while torch.compile traces
    out = torch.compile(block, fullgraph=True, backend=COMPILER)(x)
    gradients = torch.autograd.grad(out.sum(), [x, *block.parameters()])
    eager = block(x)
    expected = torch.autograd.grad(eager.sum(), [x, *block.parameters()])
    assert torch.allclose(out, eager, rtol=1e-5, atol=1e-5)
    for found, value in zip(gradients, expected):
        assert torch.allclose(found, value, rtol=1e-4, atol=1e-4)


def test_other_batch_sizes(seed):
    function = lab.get_op("rmsnorm", "triton")
    made = torch.compile(function, fullgraph=True, backend=COMPILER, dynamic=True)
    for rows in (2, 5, 9):
        x, weight = registry.operator("rmsnorm").make_inputs((rows, 64), torch.float32, DEVICE, seed)
        assert torch.allclose(made(x, weight), function(x, weight), atol=1e-6)


def test_bad_input_raises_under_compile_too():
    x = torch.randn(2, 64, device=DEVICE)
    with pytest.raises(Exception, match="weight has shape"):
        torch.compile(lambda x, w: lab.ops.rmsnorm(x, w, backend="torch"), backend=COMPILER)(x, x[0, :3])
