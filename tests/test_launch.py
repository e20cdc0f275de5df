"""How a CUDA kernel is launched: what the driver is told, and when."""

import threading
from types import SimpleNamespace

import pytest
import torch

import lab
from lab.backends import registry
from lab.backends.autograd import differentiable
from lab.backends.cuda import compile as cuda
from lab.backends.dry_run import dry_run, launches_of
from lab.backends.hardware import ARCHITECTURES, assume

H100 = ARCHITECTURES["sm_90"]


@pytest.fixture
def granted(monkeypatch):
    """A driver that grants a kernel what is asked for, and writes it down."""
    core, driver = pytest.importorskip("cuda.core"), pytest.importorskip("cuda.bindings.driver")
    asked = []

    def grant(attribute, value, kernel, device):
        asked.append(value)
        return (driver.CUresult.CUDA_SUCCESS,)

    monkeypatch.setattr(driver, "cuKernelSetAttribute", grant)
    monkeypatch.setattr(core, "Device", lambda index: SimpleNamespace(set_current=lambda: None))
    compiled = SimpleNamespace(get_kernel=lambda name: SimpleNamespace(handle=7))
    monkeypatch.setattr(cuda, "compile_cubin", lambda source, names, arch: compiled)
    monkeypatch.setattr(cuda, "_granted", {})
    cuda._kernel.cache_clear()
    yield asked
    cuda._kernel.cache_clear()


def test_shared_memory_is_not_taken_back(granted):
    """A kernel that was launched with much of it, then with less, may be launched with much again."""
    with assume(H100):
        for shared in (1024, 65536, 49152, 65536, 98304, 40960):
            cuda._kernel("source", "f<float>", 0, shared)
    assert granted == [65536, 98304]


@pytest.mark.parametrize("rung", registry.ladder("rmsnorm", "cuda"), ids=str)
def test_an_eps_without_a_point_is_a_double_to_the_kernel(rung):
    operator = registry.operator("rmsnorm")
    x, weight = operator.make_inputs((8, 64), torch.float32)
    with assume(H100), dry_run() as launches:
        differentiable(operator, {"cpu": rung})(x, weight, 1)
    numbers = [
        value
        for launch in launches
        for value in launch.arguments.values()
        if isinstance(value, (int, float)) and value == 1
    ]
    assert numbers and all(type(value) is float for value in numbers)


def test_a_noted_grid_is_of_the_gpu_that_is_assumed_now():
    rung = registry.ladder("rmsnorm", "cuda")[-1]
    grids = [launches_of(rung, (4096, 32768), torch.bfloat16, "backward", ARCHITECTURES[arch])[0].grid
             for arch in ("sm_90", "sm_100", "sm_90")]  # fmt: skip
    assert grids[0] == grids[2] != grids[1]


@pytest.mark.gpu
def test_widths_that_share_a_kernel_run_in_any_order():
    """On Hopper, the three are one kernel with rings of different size."""
    for columns in (4096, 3072, 2560, 4096):
        x = torch.randn(64, columns, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight = torch.ones(columns, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        lab.get_op("rmsnorm", "cuda")(x, weight).sum().backward()
    torch.cuda.synchronize()


@pytest.mark.gpu
def test_a_new_thread_launches_what_was_compiled_in_another():
    x, found = torch.randn(64, 4096, device="cuda"), []
    function = lab.get_op("softmax", "cuda")
    function(x)
    thread = threading.Thread(target=lambda: found.append(function(x)))
    thread.start()
    thread.join()
    assert torch.equal(found[0], function(x))
