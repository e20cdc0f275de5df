"""What is particular to softmax: masked rows, infinities, large numbers, long rows and short ones."""

import math
import os
import re
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl
from rules import check_error, check_many_rows, check_non_finite, random_grads
from test_errors import BACKENDS
from test_numerics import COLUMNS, DEVICE, HALF, HERE, ON_GPU

import lab
from lab.backends import registry
from lab.backends.dry_run import launches_of
from lab.backends.hardware import ARCHITECTURES
from lab.backends.implementation import Implementation

SOFTMAX = registry.operator("softmax")
every = pytest.mark.parametrize("implementation", [rung for rung in HERE if rung.operator == "softmax"], ids=str)
# PyTorch's fused GPU kernels are not held to what it does on the CPU: see check_non_finite.
ours = pytest.mark.parametrize(
    "implementation",
    [rung for rung in HERE if rung.operator == "softmax" and not (ON_GPU and rung.backend == "torch")],
    ids=str,
)


def refused(implementation, x) -> bool:
    return implementation.refuses(*SOFTMAX.canonical(x)) is not None


def special_rows(columns: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Rows of `columns` that hold, or are masked by, what is not a number."""
    row = torch.randn(columns, device=DEVICE).to(dtype)
    half = torch.arange(columns, device=DEVICE) < columns // 2
    return {
        "-inf only": torch.full_like(row, -math.inf),
        "+inf": row.index_fill(0, torch.tensor([columns // 2], device=DEVICE), math.inf),
        "NaN": row.index_fill(0, torch.tensor([columns - 1], device=DEVICE), math.nan),
        "masked at the start": row.masked_fill(half, -math.inf),
        "masked at the end": row.masked_fill(~half, -math.inf),
        "all but one masked": torch.full_like(row, -math.inf).index_fill(0, torch.tensor([0], device=DEVICE), 3.0),
        "both infinities": torch.where(half, -math.inf, math.inf),
        "ordinary": row,
    }


def check_as_torchs(implementation, columns: int, seed: int, dtype: torch.dtype = torch.float32) -> None:
    torch.manual_seed(seed)
    x = torch.stack(list(special_rows(columns, dtype).values()))
    grads = random_grads(SOFTMAX, (x,), seed)
    check_non_finite(implementation, (x,), grads)
    expected = torch.softmax(x.double(), -1)
    finite = ~expected.isnan().any(-1)
    found = lab.get_op("softmax", str(implementation))(x)[finite].double()
    rtol = max(1e-5, torch.finfo(dtype).eps)
    assert torch.allclose(found, expected[finite], rtol=rtol, atol=1e-7), str(implementation)


@every
@pytest.mark.parametrize("columns", [2, 8, 100, 2000])
def test_special_rows_are_as_torchs(implementation, columns, seed):
    check_as_torchs(implementation, columns, seed)


@ours
@pytest.mark.parametrize("columns", [1, 64, 2000])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_special_rows_of_every_dtype_are_as_torchs(implementation, columns, dtype, seed):
    """16-bit numbers have a maximum and an exponential of their own in CUDA; a row of one column is its own maximum."""
    check_as_torchs(implementation, columns, seed, dtype)


@every
@pytest.mark.parametrize("columns", [40000, 65537, 131072])
def test_special_long_rows_are_as_torchs(implementation, columns, seed):
    """The mask of a row's first half covers whole blocks of the online kernels."""
    if not refused(implementation, torch.empty(1, columns, device=DEVICE)):
        check_as_torchs(implementation, columns, seed)


@every
@pytest.mark.parametrize("columns", [65537, 131072])
@pytest.mark.parametrize("dtype", [torch.float32, HALF[-1]], ids=str)
def test_long_rows(implementation, columns, dtype, seed):
    tensors = SOFTMAX.make_inputs((3 if ON_GPU else 1, columns), dtype, DEVICE, seed)
    if not refused(implementation, *tensors):
        check_error(implementation, tensors, random_grads(SOFTMAX, tensors, seed))


@every
@pytest.mark.parametrize("columns", [1, 3, 8, 16, 100, 128, 256])
def test_many_short_rows(implementation, columns, seed):
    """More rows than a program takes, and a last program that is not full."""
    tensors = SOFTMAX.make_inputs((1001 if ON_GPU or columns < 16 else 37, columns), torch.float32, DEVICE, seed)
    check_error(implementation, tensors, random_grads(SOFTMAX, tensors, seed))


@pytest.mark.cpu
def test_short_rows_in_triton_are_loaded_16_bytes_at_once():
    """Rows of 8 and 24 columns, whose length 16 does not divide, take no more instructions than rows of 16 and 32."""
    program = """if True:
        import torch, lab
        from lab.backends import registry
        from lab.backends.dry_run import launches_of
        from lab.backends.hardware import ARCHITECTURES
        from lab.profiling.resources import instructions
        tiled = next(rung for rung in registry.ladder("softmax", "triton") if rung.rung == "tiled")
        for columns in (8, 16, 24, 32):
            launches = launches_of(tiled, (1 << 16, columns), torch.bfloat16, "both", ARCHITECTURES["sm_90"])
            print(*(instructions(launch.compile()) for launch in launches))
    """
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    of_8, of_16, of_24, of_32 = ([int(word) for word in line.split()] for line in done.stdout.splitlines())
    for short, whole in ((of_8, of_16), (of_24, of_32)):
        assert len(short) == 2 and all(n < 1.2 * m for n, m in zip(short, whole, strict=True)), done.stdout


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_more_than_2_to_the_31_rows(backend, seed, much_memory):
    """Not only a row's place in memory, its number needs 64 bits."""
    best = [rung for rung in HERE if rung.operator == "softmax" and rung.backend == backend][-1]
    check_many_rows(best, (2**31 + 3, 2), torch.bfloat16, DEVICE, seed)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, HALF[0]], ids=str)
def test_large_numbers_do_not_overflow(implementation, dtype, seed):
    x = SOFTMAX.make_inputs((4, 300), dtype, DEVICE, seed)[0] * 100
    x[1] += 60000
    x[2] -= 60000
    check_error(implementation, (x,), random_grads(SOFTMAX, (x,), seed))
    assert not lab.get_op("softmax", str(implementation))(x).isnan().any()


@pytest.mark.parametrize("rung", ["one_pass", "fast_exp", "cluster"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("columns", [*COLUMNS, 3, 8, 16, 40, 64, 50257, 65537, 131072, 524288, 524289])
def test_the_launches_of_cuda_have_room_for_every_row_and_column(rung, direction, columns):
    """A kernel that keeps a row in registers does not notice what it has no register for. (`tests/test_resources.py`
    compiles them; only a GPU runs them.)"""
    rows, implementation = 1001, next(r for r in registry.ladder("softmax", "cuda") if r.rung == rung)
    for dtype in (torch.float16, torch.float32, torch.float64):
        (launch,) = launches_of(implementation, (rows, columns), dtype, direction, ARCHITECTURES["sm_90"])
        whole = re.fullmatch(rf"softmax_{direction}<\w+, (\d+), (\d+), (\d+), (\d+), (\d+)(, \w+)?>", launch.kernel)
        if whole is None:  # too long for registers: any length will do
            assert "_vectorized<" in launch.kernel and columns > 4096 and launch.grid == (rows,)
            continue
        vec, threads, lanes, held, cluster = map(int, whole.groups()[:5])
        assert whole[6] == (
            None if direction == "backward" else f", {str(rung != 'one_pass' and dtype.itemsize == 2).lower()}"
        )
        assert columns % vec == 0 and cluster * lanes * held * vec >= columns
        assert vec == 1 or lanes >= min(2, columns // vec)  # a warp's 16 bytes each fill sectors, which are 32
        assert launch.grid[0] // cluster * (threads // lanes) >= rows and launch.grid[0] % cluster == 0
        assert (launch.options["block"], launch.options["cluster"]) == (threads, cluster)


@triton.jit
def _without_maximum(x, x_stride, y, columns, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    e = tl.exp(tl.load(x + row * x_stride + column, column < columns, other=float("-inf")))
    tl.store(y + row * columns + column, e / tl.sum(e), column < columns)


def without_maximum(x):
    y = torch.empty_like(x)
    _without_maximum[(len(x),)](x, x.stride(0), y, x.shape[1], BLOCK=triton.next_power_of_2(x.shape[1]))
    return (y,)


def unguarded_online(x, block=16):
    """The online normalizer, without care for a maximum that is still -inf."""
    m, s = torch.full_like(x[:, :1], -math.inf), torch.zeros_like(x[:, :1])
    for part in x.split(block, dim=-1):
        larger = torch.maximum(m, part.amax(-1, keepdim=True))
        s = s * torch.exp(m - larger) + torch.exp(part - larger).sum(-1, keepdim=True)
        m = larger
    return (torch.exp(x - m) / s,)


@pytest.mark.parametrize(
    "mistake, check",
    [
        (without_maximum, lambda wrong: test_large_numbers_do_not_overflow(wrong, torch.float32, 0)),
        (without_maximum, lambda wrong: check_as_torchs(wrong, 100, 0)),
        (unguarded_online, lambda wrong: check_as_torchs(wrong, 100, 0)),
    ],
)
def test_mistake_is_caught(mistake, check):
    x = torch.randn(3, 100, device=DEVICE)
    assert torch.allclose(mistake(x)[0], torch.softmax(x, -1), atol=1e-6)  # right where nothing special is
    backward = registry.ladder("softmax", "torch")[-1].backward
    registry.register_backend("wrong", {"softmax": Implementation(mistake, backward)})
    try:
        with pytest.raises(AssertionError):
            check(registry.ladder("softmax", "wrong")[0])
    finally:
        del registry._ladders["wrong"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "x, kind, says",
    [
        (lambda: torch.ones(2, 8, dtype=int, device=DEVICE), TypeError, "x has dtype torch.int64; expected one of"),
        (lambda: [1.0], TypeError, "x is a list; expected a torch.Tensor"),
        (lambda: torch.tensor(1.0, device=DEVICE), ValueError, "x has no dimensions; expected at least one"),
    ],
)
def test_bad_input(backend, x, kind, says):
    with lab.trace() as calls, pytest.raises(kind, match=f"softmax: {says}"):
        lab.ops.softmax(x(), backend=backend)
    assert calls == []
