"""What a multiprocessor makes of a kernel, by hand, and on a GPU by what its driver says."""

import pytest
import torch

from lab.backends.cuda.compile import compile_cubin, target
from lab.backends.hardware import ARCHITECTURES, gpu_of
from lab.backends.launches import Binary
from lab.profiling import multiprocessor
from lab.profiling.multiprocessor import LIMITS, bank_passes, occupancy, occupancy_of, sectors
from lab.profiling.resources import Resources, resource_usage

LANES = range(32)


@pytest.mark.parametrize(
    "addresses, size, count",
    [
        ([4 * lane for lane in LANES], 4, 4),
        ([4 + 4 * lane for lane in LANES], 4, 5),  # unaligned
        ([64 * lane for lane in LANES], 4, 32),
        ([0] * 32, 4, 1),
        ([16 * lane for lane in LANES], 16, 16),
        ([30], 4, 2),  # across the end of a sector
        ([], 4, 0),
    ],
)
def test_sectors(addresses, size, count):
    assert sectors(addresses, size) == count


@pytest.mark.parametrize(
    "addresses, size, passes",
    [
        ([4 * lane for lane in LANES], 4, 1),
        ([4 * 32 * lane for lane in LANES], 4, 32),
        ([4 * 33 * lane for lane in LANES], 4, 1),
        ([4 * 48 * lane for lane in LANES], 4, 16),
        ([128] * 32, 4, 1),  # one word for all
        ([2 * lane for lane in LANES], 2, 1),  # two to a word
        ([2 * 32 * lane for lane in LANES], 2, 16),
        ([], 4, 0),
    ],
)
def test_bank_passes(addresses, size, passes):
    assert bank_passes(addresses, size) == passes


def test_banks_are_four_bytes_wide():
    with pytest.raises(ValueError, match="size is 16; expected 1 to 4 bytes"):
        bank_passes([0], 16)


# As cuda_occupancy.h, a header of the CUDA runtime, has it for a multiprocessor whose storage is all shared memory.
@pytest.mark.parametrize(
    "arch, threads, registers, shared, blocks, bound",
    [
        ("sm_90", 256, 32, 1024, 8, "warps"),
        ("sm_90", 32, 16, 1024, 32, "blocks"),
        ("sm_90", 256, 33, 1024, 6, "registers"),  # given out in eights
        ("sm_90", 96, 168, 1024, 4, "registers"),  # three warps on four partitions
        ("sm_90", 1024, 255, 1024, 0, "registers"),
        ("sm_90", 33, 16, 1024, 32, "warps"),  # two warps
        ("sm_90", 128, 32, 60000, 3, "shared memory"),
        ("sm_75", 64, 32, 8193, 7, "shared memory"),  # 256 bytes at a time
        ("sm_86", 256, 40, 9472, 6, "warps"),
        ("sm_89", 32, 32, 1024, 24, "blocks"),
    ],
)
def test_occupancy(arch, threads, registers, shared, blocks, bound):
    held = occupancy(arch, threads, registers, shared)
    assert (held.blocks, held.bound) == (blocks, bound)
    assert held.warps == blocks * -(-threads // 32) and held.fraction == held.warps / LIMITS[arch].warps


def test_occupancy_of_an_unknown_architecture():
    with pytest.raises(ValueError, match="unknown architecture 'sm_1'; expected one of sm_75, "):
        occupancy("sm_1", 32, 16, 0)


def test_every_architecture_has_its_limits():
    """What a block may take of shared memory is all but what the system keeps."""
    assert set(LIMITS) == set(ARCHITECTURES)
    for arch, gpu in ARCHITECTURES.items():
        kept = 0 if arch == "sm_75" else multiprocessor.RESERVED
        assert LIMITS[arch].shared - kept == gpu.shared_memory


def row(arch: str, shared: int) -> Resources:
    return Resources("transpose", "cuda:tiled", "forward", (1, 1), "float32", "k", arch, 32, 32, 0, shared)


@pytest.mark.parametrize(
    "arch, shared, blocks",
    [("sm_90", 51200, 4), ("sm_80", 51200 - 1024, 3), ("sm_75", 16384, 4), ("sm_120", 0, 24)],
)
def test_what_the_system_takes_counts_once(arch, shared, blocks):
    assert occupancy_of(row(arch, shared)).blocks == blocks


def test_the_table_says_what_binds():
    line = multiprocessor.occupancy_table([row("sm_90", 51200)]).rows[0]
    assert line == ["cuda:tiled", "32", "32", "50.0", "4", "4", "6.25", "shared memory"]


def test_the_figure_draws_what_is_touched():
    drawn = multiprocessor.sectors_drawn(
        {"near": [4 * lane for lane in LANES], "far": [64 * lane for lane in LANES]}, 4
    )
    assert "near: 4 sectors, 100% of their bytes wanted; far: 32 sectors, 12.5% of their bytes wanted" in drawn.alt
    again = multiprocessor.sectors_drawn(
        {"near": [4 * lane for lane in LANES], "far": [64 * lane for lane in LANES]}, 4
    )
    assert drawn.svg == again.svg


def plain(row, chunk):
    return 128 * row + 16 * chunk


def test_the_panel_drawn():
    def swizzled(row, chunk):
        return 128 * row + 16 * (chunk ^ row)

    drawn = multiprocessor.panel_drawn({"plain": plain, "swizzled": swizzled}, 2)
    assert "To read chunk 2 of every row takes: plain, 8 passes; swizzled, 1 pass" in drawn.alt
    assert drawn.svg == multiprocessor.panel_drawn({"plain": plain, "swizzled": swizzled}, 2).svg
    with pytest.raises(ValueError, match="folded does not put 64 chunks of 16 bytes into 1024 bytes"):
        multiprocessor.panel_drawn({"folded": lambda row, chunk: plain(row, chunk % 4)}, 2)


@pytest.mark.gpu
@pytest.mark.parametrize("shared", [0, 1000, 20000])
@pytest.mark.parametrize("threads", [32, 96, 256, 1024])
def test_the_driver_says_the_same(threads, shared):
    from cuda.core import Device

    gpu = gpu_of(torch.device("cuda"))
    if gpu.arch not in LIMITS:
        pytest.skip(f"the limits of {gpu.arch} are not known")
    Device(torch.cuda.current_device()).set_current()
    source = """template <typename T> __global__ void f(T* x) {
      extern __shared__ T s[];
      s[threadIdx.x] = x[threadIdx.x];
      __syncthreads();
      x[threadIdx.x] = s[0];
    }"""
    compiled = compile_cubin(source, ("f<float>",), target(gpu.capability))
    kernel = compiled.get_kernel("f<float>")
    system = 1024 if gpu.capability >= (8, 0) else 0
    registers = resource_usage(Binary(bytes(compiled.code), threads, shared))[0]
    ours = occupancy(gpu.arch, threads, registers, shared + system)
    assert kernel.occupancy.max_active_blocks_per_multiprocessor(threads, shared) == ours.blocks
