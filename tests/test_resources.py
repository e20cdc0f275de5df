"""Every kernel compiles for every architecture, on a machine with no GPU, and takes what the book says."""

from unittest import mock

import pytest
import torch

from lab.backends import launches, registry
from lab.backends.cuda.compile import compile_cubin
from lab.backends.dry_run import launches_of
from lab.backends.hardware import ARCHITECTURES, assume, gpu_of
from lab.benchmark import config
from lab.profiling import resources

OPERATORS = list(registry.operators())


@pytest.fixture(scope="module")
def measured():
    return resources.measure(progress=False)


@pytest.mark.cpu
def test_every_rung_compiles_for_every_architecture_that_it_runs_on(measured):
    found = {(row.operator, row.implementation, row.direction, row.arch) for row in measured.rows}
    for op in OPERATORS:
        for rung in registry.implementations(op):
            if rung.backend == "torch":
                continue
            for arch, gpu in ARCHITECTURES.items():
                with assume(gpu):
                    needs_more = "compute capability" in (rung.unavailable(torch.device("cuda")) or "")
                compiled = {(op, str(rung), direction, arch) for direction in ("forward", "backward")}
                assert not compiled & found if needs_more else compiled <= found, (op, str(rung), arch)


@pytest.mark.cpu
@pytest.mark.parametrize("columns", [65536, 1001])
def test_long_and_odd_rows_compile_too(columns):
    rows = resources.measure(shape=(16384, columns), architectures=("sm_75", "sm_90"), progress=False).rows
    on_rows = [op for op in OPERATORS if len(registry.operator(op).dims) == 2]
    ladders = [(op, registry.ladder(op, backend)) for op in on_rows for backend in ("triton", "cuda")]
    best = {(op, str(ladder[-1])) for op, ladder in ladders if ladder}
    assert {(row.operator, row.implementation) for row in rows if row.arch == "sm_90"} >= best
    assert {row.operator for row in rows if row.arch == "sm_75"} == {op for op, _ in best}


EXPERIMENTS = {name: config.load(name) for name in config.names()}
# Beside models an experiment times operators that have an experiment of their own.
OF_OPERATORS = [name for name, experiment in EXPERIMENTS.items() if experiment.operators and not experiment.models]


@pytest.mark.cpu
@pytest.mark.parametrize("name", OF_OPERATORS)
def test_the_published_resources_are_those_of_the_present_kernels(measured, name):
    published, names = resources.published(name), config.load(name).operators
    again = f"run `lab record {name} --resources`"
    assert published.compilers == measured.compilers, again
    assert set(published.rows) == {row for row in measured.rows if row.operator in names}, again


def binary(source: str, arch: str, dynamic_shared: int = 0) -> launches.Binary:
    return launches.Binary(bytes(compile_cubin(source, ("f<float>",), arch).code), 32, dynamic_shared)


def test_what_is_read_is_what_the_kernel_takes():
    head = "template <typename T> __global__ void f(T *x) "
    plain = head + "{ x[0] = 1; }"
    shared = head + "{ __shared__ T s[512]; s[threadIdx.x] = x[0]; __syncthreads(); x[1] = s[(int)x[2]]; }"
    local = head + "{ T s[500]; for (int i = 0; i < 500; i++) s[i] = x[i]; x[1] = s[(int)x[2]]; }"
    assert resources.resource_usage(binary(plain, "sm_80"))[1:] == (0, 0)
    assert resources.resource_usage(binary(shared, "sm_80", 100))[1:] == (0, 512 * 4 + 100)
    assert resources.resource_usage(binary(local, "sm_80"))[1] == 500 * 4
    two = binary(shared + "__global__ void other() {}", "sm_80", 100)
    assert sorted(usage[2] for usage in resources.resource_usages(two)) == [100, 512 * 4 + 100]
    with pytest.raises(resources.ResourceError, match="expected the usage of one kernel"):
        resources.resource_usage(two)


def test_instructions_are_counted():
    head = "template <typename T> __global__ void f(T *x) { T v = x[0], w = x[1]; "
    few, many = (head + "v = v * v + w; " * n + "x[0] = v; }" for n in (10, 110))
    assert resources.instructions(binary(many, "sm_80")) - resources.instructions(binary(few, "sm_80")) == 100
    assert 10 < resources.instructions(binary(few, "sm_80")) < 40


def test_what_cannot_be_compiled_is_said():
    with pytest.raises(resources.ResourceError, match=r"sm_90: (.|\n)*unknown operator 'nothing'"):
        resources._in_own_process("sm_90", ["nothing"], None)
    with pytest.raises(ValueError, match="unknown operator 'nothing'"):
        resources.measure(["nothing"], progress=False)
    with pytest.raises(ValueError, match="unknown architecture 'sm_1'"):
        resources.measure(["rmsnorm"], architectures=["sm_1"], progress=False)
    with pytest.raises(ValueError, match="shape is 4; rmsnorm has 2 sizes: rows, columns"):
        resources.measure(["rmsnorm"], shape=(4,), progress=False)


@pytest.mark.cpu
def test_the_interpreter_does_not_compile():
    with pytest.raises(resources.ResourceError, match="rmsnorm on triton:naive cannot be compiled: TRITON_INTERPRET=1"):
        list(resources.compiled_here("rmsnorm", ARCHITECTURES["sm_90"]))


@pytest.mark.gpu
@pytest.mark.parametrize("op", [op for op in OPERATORS if registry.ladder(op, "triton")])
def test_what_is_compiled_is_what_is_launched(op):
    """For the GPU that is here, the compiler is given what a launch gives it: the same specialization."""
    from triton.runtime.jit import JITFunction

    operator, run, launched = registry.operator(op), JITFunction.run, []

    def noting_run(self, *args, **kwargs):
        launched.append(run(self, *args, **kwargs))
        return launched[-1]

    shape = next(iter(operator.shapes.values()))
    for rung in registry.ladder(op, "triton"):
        tensors = operator.canonical(*operator.make_inputs(shape, torch.float16, "cuda"))
        parameters = operator.complete(*tensors)[len(tensors) :]
        launched.clear()
        with mock.patch.object(JITFunction, "run", noting_run):
            results = rung.forward(*tensors, *parameters)
            grads = tuple(torch.ones_like(result) for result in results[: len(operator.outputs)])
            rung.backward(*grads, *operator.saved(tensors, results), *parameters)
        noted = launches_of(rung, shape, torch.float16, "both", gpu_of(torch.device("cuda")))
        assert len(launched) == len(noted) > 0
        for kernel, launch in zip(launched, noted, strict=True):
            compiled = launch.compile()
            own = launches.Binary(kernel.asm["cubin"], 32 * kernel.metadata.num_warps, kernel.metadata.shared)
            assert resources.resource_usage(compiled) == resources.resource_usage(own), launch.kernel
            assert (compiled.threads, compiled.dynamic_shared) == (own.threads, own.dynamic_shared), launch.kernel
