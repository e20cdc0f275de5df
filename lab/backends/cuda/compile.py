"""Compile CUDA C++ with NVRTC and launch it on torch's current stream.

Compiling to a cubin needs neither a GPU nor a driver, so every kernel can be compiled for every architecture anywhere
(`lab.backends.dry_run`).
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import threading
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path

import torch

from lab.backends import launches
from lab.backends.hardware import gpu_of

# cuda.core is imported where it is used: naming a CUDA rung must not need the compiler.

TYPES = {torch.float16: "__half", torch.bfloat16: "__nv_bfloat16", torch.float32: "float", torch.float64: "double"}


class CompileError(RuntimeError):
    """NVRTC refused the source; the message is its log."""


def unavailable(device: torch.device) -> str | None:
    """Why CUDA C++ kernels cannot run on `device`, or None."""
    if device.type != "cuda":
        return "CUDA C++ runs on a GPU only" + ("" if torch.cuda.is_available() else ", and this machine has none")
    try:
        import cuda.core  # noqa: F401
    except ImportError as error:
        return f"cuda.core cannot be imported ({error}); pip install 'cuda-core[cu13]' 'cuda-toolkit[cudart,crt,cccl]'"
    return None


def needs_capability(major: int, minor: int, why: str):
    """An `Implementation.unavailable` for rungs that need a GPU of at least that compute capability."""

    def check(device: torch.device) -> str | None:
        if reason := unavailable(device):
            return reason
        gpu = gpu_of(device)
        if gpu.capability < (major, minor):
            return f"needs {why} (compute capability {major}.{minor}); {gpu.name} has {'{}.{}'.format(*gpu.capability)}"
        return None

    return check


def refuses_dtype(x: torch.Tensor, *_) -> str | None:
    """An `Implementation.refuses`: bfloat16 where it does not exist (before Ampere)."""
    if x.dtype == torch.bfloat16 and gpu_of(x.device).capability < (8, 0):
        return f"x is bfloat16, which {gpu_of(x.device).name} lacks; expected float16 or float32"
    return None


def include_paths() -> list[str]:
    """Folders with cuda_fp16.h and its kin: those of NVIDIA's wheels, else a CUDA toolkit's."""
    wheels = importlib.util.find_spec("nvidia")
    folders = wheels.submodule_search_locations if wheels and wheels.submodule_search_locations else ()
    roots = [Path(root) / "cu13" / "include" for root in folders] + [Path("/usr/local/cuda/include")]
    found = next((root for root in roots if (root / "cuda_fp16.h").exists()), None)
    if found is None:
        raise CompileError("cuda_fp16.h was not found; pip install 'cuda-toolkit[cudart,crt,cccl]'")
    return [str(found), str(found / "cccl")]


def target(capability: tuple[int, int]) -> str:
    """NVRTC's name of the architecture; on Hopper the one that has all of Hopper's instructions."""
    return "sm_{}{}".format(*capability) + ("a" if capability == (9, 0) else "")


@cache
def compile_cubin(source: str, names: tuple[str, ...], arch: str):
    """`source` (CUDA C++ text) as a `cuda.core.ObjectCode` for `arch` ("sm_90a") with the kernels that the C++ name
    expressions `names` stand for. Raises CompileError with NVRTC's log."""
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(arch=arch, std="c++17", include_path=include_paths(), lineinfo=True)
    try:
        return Program(source, "c++", options).compile("cubin", name_expressions=names)
    except Exception as error:  # cuda.core raises its own kinds; the log is in the message
        raise CompileError(f"{names} for {arch}: {error}") from error


def _binary(source: str, name: str, arch: str, threads: int, shared: int) -> launches.Binary:
    return launches.Binary(bytes(compile_cubin(source, (name,), arch).code), threads, shared)


@cache
def source_of(path: Path) -> str:
    """The text of a CUDA C++ file, and in place of each `#include "..."` that of the file beside it: a text that holds
    all of ours that is compiled."""
    return re.sub(r'^#include "(.+)"$', lambda match: source_of(path.with_name(match[1])), path.read_text(), flags=re.M)


@cache
def name_of(kernel: str, *template: object) -> str:
    """The C++ name expression: name_of("f", "float", 4, True) is "f<float, 4, true>"."""
    return f"{kernel}<{', '.join(str(value).lower() if isinstance(value, bool) else str(value) for value in template)}>"


UNASKED = 32 * 1024  # dynamic and static together, every GPU grants 48 KiB unasked
_granted: dict[tuple[int, int], int] = {}  # dynamic shared memory that a kernel may have on a GPU, where it is more


@cache
def _kernel(source: str, name: str, device_index: int, shared: int):
    from cuda.bindings import driver
    from cuda.core import Device

    Device(device_index).set_current()
    gpu = gpu_of(torch.device("cuda", device_index))
    kernel = compile_cubin(source, (name,), target(gpu.capability)).get_kernel(name)
    handle = int(kernel.handle)
    # What is granted is the kernel's, whatever the launch, so it must not shrink again.
    if shared > _granted.get((handle, device_index), UNASKED):
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        (status,) = driver.cuKernelSetAttribute(attribute, shared, driver.CUkernel(handle), device_index)
        if status != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{name}: {shared} bytes of shared memory a block were refused: {status}")
        _granted[handle, device_index] = shared
    return kernel


@dataclass(frozen=True)
class TensorMap:
    """An argument of a launch: what the tensor memory accelerator (TMA) must know of a matrix to move boxes of it, in
    which what lies outside is read as zero and not written.

    matrix: (rows, columns), float16 or bfloat16, unit stride in its second dimension; its address and the stride of its
    first are multiples of 16 bytes. box: rows and columns; 64 columns, which are 128 bytes, swizzled in shared memory.
    wide: L2 fetches 256 bytes at a time from memory, so with a row of a box the neighbouring box's.
    """

    matrix: torch.Tensor
    box: tuple[int, int]
    wide: bool = True

    def __str__(self) -> str:
        fetched = "" if self.wide else ", fetched as asked for"
        return f"{self.matrix.dtype} {tuple(self.matrix.shape)} {self.matrix.stride()} in {self.box}{fetched}"

    def encoded(self) -> ctypes.Structure:
        """As the driver has it. Raises RuntimeError if it refuses."""
        matrix = self.matrix
        return _encoded(matrix.data_ptr(), matrix.dtype, tuple(matrix.shape), matrix.stride(0), self.box, self.wide)


class _CUtensorMap(ctypes.Structure):
    _fields_ = [("opaque", ctypes.c_uint64 * 16)]


@lru_cache(maxsize=4096)
def _encoded(address: int, dtype: torch.dtype, shape: tuple[int, int], stride: int, box: tuple[int, int], wide: bool):
    # By the driver itself: it wants the map at a multiple of 64 bytes, where cuda.bindings puts it by chance only; and
    # cuda.core keeps the tensor alive and takes no box that is larger than it.
    from cuda.bindings import driver

    memory = ctypes.create_string_buffer(ctypes.sizeof(_CUtensorMap) + 64)
    encoded = _CUtensorMap.from_buffer(memory, -ctypes.addressof(memory) % 64)
    kind, promotion = driver.CUtensorMapDataType, driver.CUtensorMapL2promotion
    status = _driver().cuTensorMapEncodeTiled(
        ctypes.byref(encoded),
        int(kind.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 if dtype == torch.bfloat16 else kind.CU_TENSOR_MAP_DATA_TYPE_FLOAT16),
        2,
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * 2)(*reversed(shape)),
        (ctypes.c_uint64 * 1)(stride * dtype.itemsize),
        (ctypes.c_uint32 * 2)(*reversed(box)),
        (ctypes.c_uint32 * 2)(1, 1),
        int(driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE),
        int(driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B),
        int(promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B if wide else promotion.CU_TENSOR_MAP_L2_PROMOTION_NONE),
        int(driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
    )
    if status:
        raise RuntimeError(f"a tensor map of {dtype} {shape}, stride {stride}, in {box} was refused: {status}")
    return encoded


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


@lru_cache(maxsize=4096)
def _prepared(source: str, name: str, grid: int, block: int, shared: int, cluster: int, device_index: int, stream: int):
    """Of a launch all but its arguments, as the driver takes it: the configuration, its address, the kernel's handle.
    Compiles and loads the kernel."""
    from cuda.bindings import driver

    kernel = _kernel(source, name, device_index, shared)
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
    config.sharedMemBytes, config.hStream = shared, driver.CUstream(stream)
    if cluster > 1:
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        attribute.value.clusterDim.x, attribute.value.clusterDim.y, attribute.value.clusterDim.z = cluster, 1, 1
        config.attrs, config.numAttrs = [attribute], 1
    return config, ctypes.c_void_p(config.getPtr()), ctypes.c_void_p(int(kernel.handle))


def _argument(value):
    """As the kernel takes it: tensors as pointers, int as `long long`, float as `double`."""
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, int):
        return ctypes.c_longlong(value)
    return value.encoded() if isinstance(value, TensorMap) else ctypes.c_double(value)


def resident_clusters(source: str, name: str, cluster: int, block: int, shared: int, device: torch.device) -> int:
    """How many clusters of `cluster` blocks the GPU holds at once. A persistent kernel launched with more would run its
    last clusters alone at the end. Clusters do not cross the GPU's partitions: it is less than blocks / cluster."""
    if launches.noting() or cluster == 1:
        return gpu_of(device).multiprocessors // cluster
    return _resident_clusters(source, name, cluster, block, shared, device)


@cache
def _resident_clusters(source: str, name: str, cluster: int, block: int, shared: int, device: torch.device) -> int:
    from cuda.core import LaunchConfig, Stream

    config = LaunchConfig(grid=1, cluster=cluster, block=block, shmem_size=shared)
    stream = Stream.from_handle(torch.cuda.current_stream(device).cuda_stream)
    return _kernel(source, name, device.index, shared).occupancy.max_active_clusters(config, stream=stream)


_thread = threading.local()


def _enter_context(device_index: int) -> None:
    from cuda.core import Device

    Device(device_index).set_current()
    _thread.has_context = True


def launch(source: str, name: str, grid: int, block: int, *args, shared: int = 0, cluster: int = 1) -> None:
    """Compile `source` (once) and launch the kernel `name`, a C++ name expression such as "scale<float>".

    grid: blocks (with cluster > 1 a multiple of it); block: threads; args: the first is a tensor on the current GPU,
    whose current stream is used; tensors arrive as pointers, int as `long long`, float as `double`, a `TensorMap` as
    itself. shared: dynamic shared memory in bytes. Raises CompileError if NVRTC refuses the source.
    """
    device = args[0].device
    if launches.noting():
        arguments = {str(position): value for position, value in enumerate(args)}
        options = {"block": block, "shared": shared, "cluster": cluster}
        compile = partial(_binary, source, name, target(gpu_of(device).capability), block, shared)
        launches.note(launches.Launch(name, "cuda", (source,), (grid,), arguments, options, compile))
        return
    if not hasattr(_thread, "has_context"):  # torch may not have given this thread one yet
        _enter_context(device.index)
    # By the driver itself, as Triton does it: where kernels are short, what a call costs the CPU counts. And cuda.core
    # takes no tensor map that it has not made.
    stream = torch._C._cuda_getCurrentRawStream(device.index)
    _, config, kernel = _prepared(source, name, grid, block, shared, cluster, device.index, stream)
    values = [_argument(arg) for arg in args]
    addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    if status := _driver().cuLaunchKernelEx(config, kernel, addresses, None):
        raise RuntimeError(f"the launch of {name} was refused: CUDA error {status}")
