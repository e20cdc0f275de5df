"""Bad input raises an error that names the argument and says what was expected, before anything is launched."""

import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad

import lab
from lab.backends import registry
from lab.backends.autograd import differentiable
from lab.backends.hardware import default_device
from lab.backends.implementation import BackendUnavailable

DEVICE = default_device()
BACKENDS = ["torch", "triton"] + (["cuda"] if DEVICE.type == "cuda" else [])


def f32(*shape):
    return torch.randn(*shape, device=DEVICE)


BAD = {
    "integer x": (lambda: (f32(2, 8).long(), f32(8)), TypeError, "x has dtype torch.int64; expected one of"),
    "complex x": (lambda: (f32(2, 8).cfloat(), f32(8)), TypeError, "x has dtype torch.complex64"),
    "x no tensor": (lambda: ([1.0], f32(8)), TypeError, "x is a list; expected a torch.Tensor"),
    "weight no tensor": (lambda: (f32(2, 8), None), TypeError, "weight is a NoneType; expected a torch.Tensor"),
    "weight of another dtype": (
        lambda: (f32(2, 8), f32(8).half()), TypeError, "weight has dtype torch.float16; expected x's"),
    "weight too short": (lambda: (f32(2, 8), f32(7)), ValueError, r"weight has shape \(7,\); expected \(8,\)"),
    "weight with two dimensions": (lambda: (f32(2, 8), f32(1, 8)), ValueError, r"weight has shape \(1, 8\)"),
    "sparse x": (lambda: (f32(2, 8).to_sparse(), f32(8)), TypeError, "x has layout torch.sparse_coo; expected"),
    "x without dimensions": (lambda: (f32(1)[0], f32(1)), ValueError, "x has no dimensions"),
    "weight on another device": (
        lambda: (f32(2, 8), torch.empty(8, device="meta")), ValueError, "weight is on meta; expected x's device"),
    "negative eps": (lambda: (f32(2, 8), f32(8), -1e-6), ValueError, "eps is -1e-06; expected a finite number"),
    "eps NaN": (lambda: (f32(2, 8), f32(8), float("nan")), ValueError, "eps is nan; expected a finite number"),
    "eps no float": (lambda: (f32(2, 8), f32(8), 10**400), ValueError, "eps is 10*; expected a finite number"),
    "too many arguments": (lambda: (f32(2, 8), f32(8), 1e-6, 3), TypeError, "too many positional arguments"),
    "eps a string": (lambda: (f32(2, 8), f32(8), "small"), TypeError, "eps is a str; expected a float"),
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", BAD)
def test_rmsnorm(case, backend):
    make, kind, says = BAD[case]
    with lab.trace() as calls, pytest.raises(kind, match=says) as caught:
        lab.get_op("rmsnorm", backend)(*make())
    assert str(caught.value).startswith("rmsnorm: ") and calls == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", BAD)
def test_add_rmsnorm(case, backend):
    make, kind, says = BAD[case]
    x, *rest = make()
    with lab.trace() as calls, pytest.raises(kind, match=says):
        lab.get_op("add_rmsnorm", backend)(x, x, *rest)
    assert calls == []


@pytest.mark.parametrize(
    ("residual", "kind", "says"),
    [
        (lambda: f32(8), ValueError, r"residual has shape \(8,\); expected x's shape \(2, 8\)"),
        (lambda: f32(2, 8).half(), TypeError, "residual has dtype torch.float16; expected x's dtype"),
        (lambda: torch.empty(2, 8, device="meta"), ValueError, "residual is on meta; expected x's device"),
    ],
)
def test_residual(residual, kind, says):
    with lab.trace() as calls, pytest.raises(kind, match=says):
        lab.ops.add_rmsnorm(f32(2, 8), residual(), f32(8), backend="triton")
    assert calls == []


@pytest.mark.parametrize(
    ("gate", "up", "kind", "says"),
    [
        (lambda: f32(2, 8), lambda: f32(8), ValueError, r"up has shape \(8,\); expected gate's shape \(2, 8\)"),
        (lambda: f32(2, 8), lambda: f32(2, 8).half(), TypeError, "up has dtype torch.float16; expected gate's dtype"),
        (lambda: f32(2, 8).long(), lambda: f32(2, 8), TypeError, "gate has dtype torch.int64; expected one of"),
        (lambda: f32(1)[0], lambda: f32(1)[0], ValueError, "gate has no dimensions"),
    ],
)
def test_swiglu(gate, up, kind, says):
    with lab.trace() as calls, pytest.raises(kind, match=f"swiglu: {says}"):
        lab.ops.swiglu(gate(), up())
    assert calls == []


@pytest.mark.parametrize(
    "scale", [True, 10**400, -(10**400), float("inf"), "1"], ids=["bool", "huge", "-huge", "inf", "string"]
)
def test_scale(scale):
    q, lengths = f32(1, 2, 3, 4), torch.ones(1, dtype=torch.int64, device=DEVICE)
    with lab.trace() as calls:
        with pytest.raises(ValueError, match=r"^attention: scale is .*; expected a finite number or None"):
            lab.ops.attention(q, q, q, scale=scale)
        with pytest.raises(ValueError, match=r"^decode_attention: scale is .*; expected a finite number or None"):
            lab.ops.decode_attention(q[:, :, 0], q, q, lengths, scale=scale)
    assert calls == []


def test_heads_of_no_size():
    q, lengths = f32(1, 2, 3, 0), torch.ones(1, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match=r"^attention: q has shape \(1, 2, 3, 0\); expected a head_dim of at least 1"):
        lab.ops.attention(q, q, q)
    with pytest.raises(ValueError, match=r"^decode_attention: q has shape \(1, 2, 0\); expected a head_dim of at"):
        lab.ops.decode_attention(q[:, :, 0], q, q, lengths)


@pytest.mark.parametrize(
    "classes, ignore_index, says",
    [
        (0, -100, r"logits has shape \(2, 0\); expected at least one class"),
        (3, 10**30, "ignore_index is 10*; expected one of 64 bits"),
    ],
)
def test_cross_entropy(classes, ignore_index, says):
    target = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    with lab.trace() as calls, pytest.raises(ValueError, match=f"cross_entropy: {says}"):
        lab.ops.cross_entropy(f32(2, classes), target, ignore_index)
    assert calls == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_number_may_be_an_int(backend):
    x, weight = f32(2, 8), f32(8)
    for eps in (1, 2**64):
        as_float = lab.get_op("rmsnorm", backend)(x, weight, float(eps))
        assert torch.equal(lab.get_op("rmsnorm", backend)(x, weight, eps), as_float)


def test_tensors_on_a_device_where_nothing_runs():
    x = torch.empty(2, 8, device="meta")
    with pytest.raises(BackendUnavailable, match="nothing runs on meta"):
        lab.get_op("rmsnorm", "triton")(x, x[0])


@pytest.mark.cpu
def test_bfloat16_in_the_interpreter():
    x = torch.randn(2, 8).bfloat16()
    with lab.trace() as calls, pytest.raises(BackendUnavailable, match="bfloat16, which Triton's interpreter"):
        lab.get_op("rmsnorm", "triton")(x, x[0])
    assert calls == []
    assert lab.get_op("rmsnorm", "torch")(x, x[0]).dtype == torch.bfloat16


@pytest.mark.gpu
def test_cpu_tensors_on_a_gpu_machine():
    x = torch.randn(2, 8)
    for backend, says in (("triton", "interpreter"), ("cuda", "runs on a GPU only")):
        with pytest.raises(BackendUnavailable, match=says):
            lab.get_op("rmsnorm", backend)(x, x[0])
    assert lab.get_op("rmsnorm", "auto")(x, x[0]).shape == x.shape  # auto finds what runs on the tensors given


@pytest.mark.parametrize("asked", [
    lambda f, x: torch.autograd.grad(f(x).sum(), x, create_graph=True),
    lambda f, x: f(x).sum().backward(create_graph=True),
    lambda f, x: torch.autograd.functional.hessian(lambda q: f(q).square().sum(), x),  # 0 without an error, once
], ids=["grad", "backward", "hessian"])  # fmt: skip
def test_double_backward_is_refused(asked):
    softmax, x = lab.get_op("softmax", "triton"), f32(2, 8).requires_grad_()
    with pytest.raises(RuntimeError, match="softmax is differentiable once, and create_graph=True asks for more"):
        asked(softmax, x)


def test_forward_mode_is_refused():
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="softmax has no forward-mode derivative"):
        lab.get_op("softmax", "triton")(forward_ad.make_dual(f32(2, 8), f32(2, 8)))


def test_an_error_is_raised_anew_each_time():
    """The same one again would gather the frames of all callers, and keep their tensors."""
    absent, raised = differentiable(registry.operator("rmsnorm"), {"cpu": BackendUnavailable("not here")}), []
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match="not here") as caught:
            absent(torch.randn(2, 8), torch.randn(8))
        raised.append(caught.value)
    assert raised[0] is not raised[1]


def test_an_output_may_be_changed_in_place():
    """As torch's own: where the backward pass needs it unchanged, autograd says so."""

    def gradient(backend):
        x = torch.arange(12.0).reshape(1, 3, 4).to(default_device()).requires_grad_()
        y = lab.get_op("rmsnorm", backend)(x, torch.ones(4, device=x.device))
        y *= 2
        return torch.autograd.grad(y.square().sum(), x)[0]

    assert torch.allclose(gradient("triton"), gradient("torch"), atol=1e-5)
    for backend in ("triton", "torch"):
        x = torch.ones(1, 3, 4, device=default_device(), requires_grad=True)
        y = lab.get_op("softmax", backend)(x)
        y *= 2
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.cpu
def test_triton_imported_before_lab():
    """Then Triton compiles for a GPU that is not there: said, and not worked around."""
    program = (
        "import os; os.environ.pop('TRITON_INTERPRET', None); import triton, lab, torch\n"
        "try: lab.get_op('rmsnorm', 'triton')\n"
        "except lab.BackendUnavailable as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "import lab first" in told.stdout, told.stdout + told.stderr


def test_every_public_function_says_what_it_takes():
    for op in registry.operators():
        text = getattr(lab.ops, op).__doc__
        assert ("Raises" in text and "Returns" in text) or "returns" in text, op
