# %% [markdown]
# # Linear: the first compute-bound operator
#
# **What you will see.** A product of two matrices, where nearly all arithmetic of a language model is. Here bytes are
# no longer the limit, as long as each that comes on chip is used often enough: first by a tile, then by a cache, then
# by tensor cores that must not wait. Seven Triton kernels and five in CUDA C++ climb from far below cuBLAS's speed to
# its neighbourhood. Then the same product with few rows, as in generating text, which is memory-bound after all.
#
# **What you need.** *A GPU in one chapter* and *The roofline*; RMSNorm for reading Triton. No GPU: without one the
# kernels run in Triton's interpreter, and the timings shown are the published ones. **Reading time:** about 45 minutes,
# exercises apart.

# %% tags=["hide-input"]
# In Colab this gets the course and keeps Colab's own torch; elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess
    from pathlib import Path

    repository = "https://github.com/OWNER/llm-kernel-lab"  # the address is configured in _config.yml
    if not Path("/content/llm-kernel-lab").exists():  # this cell may run twice
        subprocess.run(["git", "clone", "--depth", "1", repository, "/content/llm-kernel-lab"], check=True)
    install = [sys.executable, "-m", "pip", "install", "-q", "-e", "/content/llm-kernel-lab"]
    subprocess.run(install, check=True)
    sys.path.insert(0, "/content/llm-kernel-lab")

# %% tags=["hide-input"]
import lab  # before triton: with no GPU it switches Triton to its interpreter
import itertools
import statistics

import torch
import triton
import triton.language as tl

from lab.backends.cuda import linear as cuda_linear
from lab.backends.dry_run import launches_of
from lab.backends.hardware import ARCHITECTURES, default_device
from lab.backends.registry import ladder as rungs_of
from lab.backends.registry import operator
from lab.backends.triton import linear as triton_linear
from lab.backends.triton.linear import _linear_place
from lab.benchmark import records
from lab.benchmark.candidates import Workload
from lab.benchmark.figures import predictions
from lab.benchmark.models import ModelWorkload
from lab.benchmark.tables import Table, ladder_table, shape_text, table, trap_table
from lab.benchmark.waterfall import amdahl
from lab.notebook import Folded, Published, code, cuda_code, measure_here, show
from lab.profiling import multiprocessor, resources, roofline, tiles

record = records.published("linear")
published, HOPPER = Published(record), ARCHITECTURES["sm_90"]
device = default_device()
linear = operator("linear")
QUERY, UP, DOWN = (8192, 4096, 4096), (8192, 14336, 4096), (8192, 4096, 14336)  # m, n, k of Llama-3-8B's layers
DECODE = [(m, 14336, 4096) for m in (1, 16, 64)]
CUBLAS = "torch eager"


def percent(label, direction="forward", shape=QUERY, digits=0):
    """Of the ceiling."""
    return published.percent(label, "linear", direction, shape, digits)


def row_of(label, direction="forward", shape=QUERY):
    (row,) = record.select("linear", direction, shape, label)
    return row


def us(*which):
    return row_of(*which).timing.median_us


def speed(label, direction="forward", shape=QUERY):
    """Percent of cuBLAS's speed."""
    return 100 * us(CUBLAS, direction, shape) / us(label, direction, shape)


def tflops(*which):
    return row_of(*which).tflops


# What was predicted before any of the kernels had run on a GPU, in percent of cuBLAS's speed.
PREDICTED = {
    "triton:pipelined": (75, 90),
    "triton:persistent": (85, 95),
    "cuda:naive": (0, 2),
    "cuda:shared": (0, 2),
    "cuda:register": (5, 7),
    "cuda:mma": (50, 60),
    "cuda:wgmma": (90, 97),
}


def outcome(label, direction="forward", box=None):
    """The speed, and where it lies against the prediction."""
    found, (low, high) = speed(label, direction), box or PREDICTED[label]
    where = "less than predicted" if found < low else "more than predicted" if found > high else "as predicted"
    return f"{found:.0f}% of cuBLAS's speed, {where}" if found >= 10 else f"{found:.1f}% of cuBLAS's speed, {where}"


# %% tags=["remove-input"]
show(predictions(record, "linear", "forward", QUERY, PREDICTED))

# %% [markdown]
# Each bar is one version of the same product, 8192 tokens through a layer of 4096 by 4096, in bfloat16; the dashed line
# is cuBLAS, which PyTorch calls. A box is what was predicted of a version before any of them had run on a GPU. The
# boxes have not been touched since, and where the bar ends elsewhere, this chapter says why, as far as we know. A rung
# without a box had no prediction in numbers; for it there is only a count.
#
# ## What it computes, and where
#
# $$y = x\,w^T + b, \qquad x: m \times k, \quad w: n \times k, \quad y: m \times n$$
#
# $m$ is the number of tokens. In a model of the Llama family everything that has a weight matrix is this operator: queries,
# keys, values and output of attention, the three projections of the MLP, the output head.

# %% tags=["hide-input"]
for phase, batch, tokens in (("prefill", 1, 2048), ("decode", 8, 2047)):
    work = ModelWorkload("llama3-8b-4-layers", "model", None, phase, batch, tokens, "bfloat16")
    calls = [call for call in work.calls if call.operator == "linear"]
    flops = sum(call.count * call.cost(torch.bfloat16).flops for call in calls)
    print(f"{phase}: {sum(call.count for call in calls)} calls have {100 * flops / work.cost.flops:.0f}% of all FLOPs")

# %% [markdown]
# Backward, for the gradient $\mathrm{d}y$ of $y$:
#
# $$\mathrm{d}x = \mathrm{d}y\,w, \qquad \mathrm{d}w = \mathrm{d}y^T x, \qquad \mathrm{d}b = \sum_{\text{rows}} \mathrm{d}y$$
#
# **How many kernels does that take?** Write all three products as $c = a\,b$, with $a$ of $m \times k$ and $b$ of
# $k \times n$. What differs is which dimension of an operand lies contiguous in memory. A transpose is a view with its
# strides exchanged, so one kernel that takes both strides of each operand computes all three:

# %%
def contiguous_along(matrix, names):
    return names[matrix.stride().index(1)]


x, w, dy = torch.empty(2, 4), torch.empty(3, 4), torch.empty(2, 3)
products = {
    "y = x w^T": (x, w.mT),
    "dx = dy w": (dy, w),
    "dw = dy^T x": (dy.mT, x),
}
rows = [
    [name, contiguous_along(a, "mk"), contiguous_along(b, "kn")]
    for name, (a, b) in products.items()
]
show(Table(["product", "a contiguous along", "b contiguous along"], rows))

# %% [markdown]
# $k$ is whatever is summed over: the inputs of the layer in $y$, its outputs in $\mathrm{d}x$, the tokens in $\mathrm{d}w$.
#
# ## How fast can it be?

# %%
cost = linear.cost(QUERY, torch.bfloat16, "forward")
flops = [[term, f"{count / 1e9:.2f}"] for term, count in cost.flop_terms.items()]
moved = [[term, f"{count / 2**20:.2f}"] for term, count in cost.byte_terms.items()]
show(Table(["FLOPs", "thousand million"], flops), Table(["bytes", "MiB"], moved))

# %% tags=["remove-input"]
here = roofline.roofline(record, "linear", QUERY, "forward")
show(
    f"**{here.intensity:.0f} FLOPs a byte**, where the ridge is at {here.ridge:.0f}: **{here.bound}-bound**. The floor is FLOPs "
    f"over the rate of a large matrix product, {record.ceilings.matmul_tflops:.0f} TFLOP/s in this run: {here.floor_us:.0f} us.",
)

# %% [markdown]
# Beside softmax on the same roof, and beside itself with the few rows that it has while text is generated:

# %% tags=["remove-input"]
show(
    roofline.places(
        record,
        {
            "softmax": [Workload("softmax", (16384, 4096), "bfloat16", "forward")],
            "linear, 8192 rows": [Workload("linear", shape, "bfloat16", "forward") for shape in (QUERY, UP, DOWN)],
            **{f"linear, {shape[0]} row{'s' * (shape[0] > 1)}": [Workload("linear", shape, "bfloat16", "forward")] for shape in DECODE},
        },
    )
)

# %% [markdown]
# The memory-bound chapters asked how often a byte crosses device memory. Here that is not the question: even a kernel
# that read everything several times would not wait for device memory. The question is how to feed the units that
# multiply.
#
# ## Tensor cores
#
# What a kernel of the earlier chapters computes, it computes by lanes: a multiprocessor has 128, each with a
# multiply-and-add a cycle. By far the larger part of what it can do is in its four [tensor
# cores](../glossary.md#tensor-core). One instruction gives them two small matrices, such as 16 x 16 and 16 x 8, and
# adds the product to a third.

# %% tags=["hide-input"]
LANES = 128 * 2  # FLOPs of a multiprocessor in a cycle: a multiply-and-add for each lane
TENSOR = 4096  # by tensor cores, in bfloat16 (NVIDIA's datasheet: the peak rate over multiprocessors and clock)
SHARED = 128  # bytes that shared memory delivers in a cycle: 32 banks of 4
LANES_SHARE = LANES / TENSOR
show(
    f"In a cycle a multiprocessor of Hopper's does {LANES} FLOPs by its lanes, and {TENSOR} by its tensor cores in bfloat16, "
    f"{TENSOR // LANES} times as many. A kernel that does not use them cannot reach more than "
    f"{100 * LANES_SHARE:.2f} percent of their peak, however well it is written. (No product reaches that peak, so of cuBLAS's speed it may be a little more.)"
)

# %% [markdown]
# Their operands are float16 or bfloat16 here, their sums float32. In float32 there are tensor cores too, but they see
# TF32, a float32 whose fraction is cut from 23 bits to 10. What does that lose? Round the inputs, and do the rest in
# float64:

# %%
def rounded(x, bits):
    """float32 with `bits` bits of fraction."""
    unit = 1 << (23 - bits)
    return ((x.view(torch.int32) + unit // 2) & -unit).view(torch.float32)


generator = torch.Generator().manual_seed(0)
a, b = torch.randn(2, 256, 256, generator=generator)
exact = a.double() @ b.double()
for name, bits in (("bfloat16", 7), ("TF32", 10), ("float32", 23)):
    product = rounded(a, bits).double() @ rounded(b, bits).double()
    error = (product - exact).abs().max() / exact.abs().max()
    print(f"{name:9} {bits:2} bits: off by {error:.1e} of the largest element")

# %% [markdown]
# PyTorch leaves TF32 off unless asked (`torch.backends.cuda.matmul.allow_tf32`), and so do these kernels:
# `input_precision="ieee"` in the source below. So float32 goes by the lanes, at their rate, and everything measured
# here is bfloat16.
#
# **Random numbers, not zeros.** A unit that multiplies takes power whenever a bit in it flips, and zeros flip few. On
# zeros the same kernel, doing the same instructions, takes less power, and the clock need not fall.

# %% tags=["remove-input"]
timing = records.published("timing")
trap = next(trap for trap in timing.traps if trap.name == "zeros")
show(f"From the record of the course's timing traps, on an {timing.environment.gpu}:", trap_table(trap))

# %% tags=["remove-input"]
zero, random = trap.ways
watts, clock = ([statistics.median(getattr(way, name)) for way in trap.ways] for name in ("power_w", "sm_clock_mhz"))
assert zero.us < random.us and watts[0] < watts[1] and clock[0] > clock[1]
show(
    f"Zeros look {random.us / zero.us:.2f} times as fast. The random product draws {watts[1]:.0f} W, against a limit of "
    f"{timing.environment.power_limit_w:.0f}, and the clock gives way. So a kernel is tested and timed on random numbers here. It also "
    "means that the ceiling is no constant: it is another product's rate, at the clock that this one left to the GPU. So a percentage may be a little above a hundred."
)

# %% [markdown]
# ## The baseline
#
# `torch.nn.functional.linear` calls cuBLAS, where NVIDIA keeps a tuned kernel for every kind of shape.
# **Prediction:** the ceiling itself was measured with it, so all of the ceiling.

# %% tags=["remove-input"]
show(
    f"**Outcome:** {percent(CUBLAS)} of the ceiling at {shape_text(QUERY)}, {percent(CUBLAS, shape=UP)} at {shape_text(UP)} and "
    f"{percent(CUBLAS, shape=DOWN)} at {shape_text(DOWN)}; backward {percent(CUBLAS, 'backward')}, {percent(CUBLAS, 'backward', UP)} and "
    f"{percent(CUBLAS, 'backward', DOWN)}. Here the thing to beat is the baseline."
)

# %% [markdown]
# ## A tile
#
# One element of $c$ needs a row of $a$ and a column of $b$: two numbers for a multiplication and an addition. If a
# program computes a [*tile*](../glossary.md#tile) of $c$ instead, each number that it fetches meets a whole row or
# column of the tile.

# %% tags=["remove-input"]
show(tiles.tile_drawn(2048, 4096, 2048, 128, 256, 64))

# %% [markdown]
# Blue, what one tile of $c$ needs; orange, what one step along $k$ takes of it. With $B_m \times B_n$ elements in the
# tile,
# $2 B_m B_n$ FLOPs come for each $B_m + B_n$ elements: the intensity of the tile, against whatever level of memory the
# operands come from. **How large must it be?** At the ceiling's rate, this is what all programs together would ask for:

# %% tags=["hide-input"]
rows = []
for side_m, side_n in ((1, 1), (16, 16), (32, 32), (64, 64), (128, 128), (128, 256), (256, 256)):
    ratio = tiles.intensity(side_m, side_n, 2)
    rows.append([f"{side_m} x {side_n}", f"{ratio:.1f}", f"{record.ceilings.matmul_tflops / ratio:.1f}", f"{side_m * side_n * 4 / 1024:.0f}"])
show(Table(["tile", "FLOPs a byte", "TB/s to feed the ceiling's rate", "KiB of float32 sums"], rows))

# %% [markdown]
# Device memory delivers few of these TB/s, as the ceiling for copies says. So the operands must come from L2 most of
# the time, and the tile should be as large as fits. The last column says what limits it: the sums stay in registers, of
# which a multiprocessor has 256 KiB. 128 x 256 takes half of them, and the next one all.
#
# ## Triton, naive
#
# A tile of 32 x 32 to a program, a step of 32 along $k$ at a time, a mask for every load.

# %% tags=["remove-input"]
show(code(triton_linear._linear_naive))

# %% [markdown]
# `tl.dot` multiplies two blocks and adds to a third. Which instruction that becomes is the compiler's choice, by the
# blocks' sizes and the number of warps: here `mma.sync`, with which one warp multiplies 16 x 16 by 16 x 8.

# %% tags=["remove-input"]
show(
    f"**Outcome:** {speed('triton:naive'):.0f}% of cuBLAS's speed, {tflops('triton:naive'):.0f} TFLOP/s. At its "
    f"{tiles.intensity(32, 32, 2):.0f} FLOPs a byte that is {tflops('triton:naive') / tiles.intensity(32, 32, 2):.1f} TB/s of tiles: "
    f"more than the {record.ceilings.copy_gbps / 1e3:.1f} of device memory. It lives on caches, and still most of its instructions fetch, mask and wait."
)

# %% [markdown]
# ## Tiled: as large as the registers allow
#
# 128 x 256 elements to a program of eight warps, 64 along $k$ at a time. Where 64 divides $k$, no load needs a mask
# along it (`WHOLE`).

# %% tags=["remove-input"]
show(code(triton_linear._linear_sum, triton_linear._linear_tiled))

# %% [markdown]
# The sums take 128 registers of each thread. With so large a tile and eight warps Triton takes Hopper's own
# instruction, `wgmma`: four warps, a [*warpgroup*](../glossary.md#warpgroup), start a product of 64 x 16 by 16 x 256
# whose operands lie in shared memory.

# %% tags=["remove-input"]
assert speed("triton:tiled") < 60
show(
    f"**Outcome:** {speed('triton:tiled'):.0f}%. {speed('triton:tiled') / speed('triton:naive'):.1f} times as fast as naive, and yet tensor "
    "cores idle more than half of the time: a step loads, waits, writes to shared memory, waits, multiplies, waits. There is one program "
    "on each multiprocessor, so nobody else fills the gaps."
)

# %% [markdown]
# ### Occupancy, and why it may be low
#
# One program on a multiprocessor: is that not a bad sign?

# %% tags=["remove-input"]
forward = [row for row in resources.published("linear").rows if row.arch == "sm_90" and row.direction == "forward"]
show(multiprocessor.occupancy_table(forward))

# %% [markdown]
# The slowest kernels of the chapter fill the multiprocessor with warps, and the fastest hold an eighth or a fifth of
# them. [Occupancy](../glossary.md#occupancy) is one way to have work at hand while something is waited for. The other
# is to ask ahead, and then few warps with many registers are better, because their tiles are larger. The rest of the
# ladder goes that way.
#
# ## Grouped: in which order?
#
# Programs start in the order of their numbers, and 132 of these run at a time, one on each of Hopper's
# multiprocessors. Those share what L2 holds.
# Numbered row by row, 132 tiles cover two rows of $c$ and a bit, if $c$ is wide: few rows of $a$, and all of $b$. In
# groups of eight rows, column by column, they cover something nearer to a square:

# %% tags=["remove-input"]
show(code(_linear_place))

# %% tags=["hide-input"]
@triton.jit
def numbers(order, m, n, tiles, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr, ALL: tl.constexpr):
    program = tl.minimum(tl.arange(0, ALL), tiles - 1)  # one program asks for all
    row, column = _linear_place(program, m, n, BLOCK_M, BLOCK_N, GROUP)
    tl.store(order + row // BLOCK_M * tl.cdiv(n, BLOCK_N) + column // BLOCK_N, program)


def order_of(shape, group, block_m=128, block_n=256):
    """For every tile of c the number of its program: the kernels' own function, asked."""
    order = torch.empty(triton.cdiv(shape[0], block_m), triton.cdiv(shape[1], block_n), dtype=torch.int32, device=device)
    every = triton.next_power_of_2(order.numel())
    numbers[(1,)](order, *shape[:2], order.numel(), BLOCK_M=block_m, BLOCK_N=block_n, GROUP=group, ALL=every)
    return order.tolist()


show(tiles.waves_drawn({"row by row": order_of(UP, 1), "groups of 8 rows": order_of(UP, triton_linear.GROUP)}, HOPPER.multiprocessors))

# %% [markdown]
# The tiles of $c$ at 8192 x 14336. Darkest, those that run first; orange, the rows of $a$ and columns of $b$ that they
# read. Going along $k$ in step, they find most of it in L2, where a neighbour has just had it fetched from device
# memory. **How much must device memory deliver then?** Those rows and columns, once, in the time of 132 tiles:

# %%
def tb_per_s(shape, group, block_m=128, block_n=256):
    """From device memory, at the ceiling's rate; k cancels out."""
    rows, columns = tiles.needed(order_of(shape, group), HOPPER.multiprocessors)
    fetched = 2 * (rows * block_m + columns * block_n)
    flops = 2 * HOPPER.multiprocessors * block_m * block_n
    return fetched * record.ceilings.matmul_tflops / flops


rows = []
for shape in (QUERY, UP, DOWN):
    counted = (tb_per_s(shape, group) for group in (1, triton_linear.GROUP))
    rows.append([shape_text(shape), *(f"{rate:.2f}" for rate in counted)])
show(Table(["TB/s", "row by row", "groups of 8"], rows))

# %% tags=["remove-input"]
assert tb_per_s(QUERY, triton_linear.GROUP) > 0.9 * tb_per_s(QUERY, 1) and tb_per_s(UP, triton_linear.GROUP) < tb_per_s(UP, 1) / 2
assert abs(speed("triton:grouped") - speed("triton:tiled")) < 5
show(
    f"**Outcome:** at {shape_text(QUERY)}, {speed('triton:grouped'):.0f}% against {speed('triton:tiled'):.0f}%: nothing gained. The count says "
    f"why not here: only {QUERY[1] // 256} columns of tiles are there, so row by row already covers a block. Where c is wide, row by row would ask for "
    f"a large part of what device memory has, {record.ceilings.copy_gbps / 1e3:.2f} TB/s, once tensor cores are kept busy; so far they are not. The order costs nothing, and all later "
    "rungs keep it."
)

# %% [markdown]
# ## Pipelined: ask ahead
#
# Since Ampere a thread can ask for 16 bytes to be copied from memory into shared memory and go on (`cp.async`); the
# bytes never pass through its registers. So a ring of places in shared memory can be filled ahead: while one step is
# multiplied, the next ones are on their way. In Triton it is an argument of the launch, `num_stages`, and the kernel is
# the same. Four places of 48 KiB take nearly all shared memory. **Prediction:** 75 to 90% of cuBLAS's speed.

# %% tags=["remove-input"]
show(code(triton_linear._product_tiled))

# %% tags=["remove-input"]
assert speed("triton:pipelined") < 75 < 85 < speed("triton:pipelined", "backward")
copies = (128 + 256) * 64 * 2 // 16 // 256
show(
    f"**Outcome:** {outcome('triton:pipelined')}. Backward, with the same kernel, {speed('triton:pipelined', 'backward'):.0f}%. What is different "
    "forward? Both operands lie along k there, so of the "
    f"{copies} copies of 16 bytes that a thread begins in each step, every one lies in another row. The compiled loop computes as many 64-bit "
    "addresses and masks anew in each step, in front of its copies; where an operand lies across k, several copies share a row, and the loop is "
    "a quarter to a third shorter. We read that in the machine code, and have not profiled it. But the next rung tests it: it has the same tile, "
    "the same ring and the same products, and computes no addresses."
)

# %% [markdown]
# ## Persistent: programs that stay, and TMA
#
# Three changes. The *tensor memory accelerator* (TMA, the [bulk copy engine](../glossary.md#bulk-copy-engine)), told
# once where a matrix lies, fetches a whole tile for one instruction of one thread, zeros where it sticks out, and
# writes one as well. As many programs as fit start, and each works through tile after tile. And the loop over tiles is
# made one with the loop over $k$ (`flatten`), so that the next tile's loads are under way while $c$ is written.

# %% tags=["remove-input"]
show(code(triton_linear._linear_persistent))

# %% [markdown]
# **Prediction:** 85 to 95% of cuBLAS's speed.

# %% tags=["remove-input"]
assert speed("triton:persistent") > 90
show(
    f"**Outcome:** {outcome('triton:persistent')}; backward {speed('triton:persistent', 'backward'):.0f}%. Forward and backward agree now, as they "
    "should if addresses were what was in the way. What a tile would lose at its beginning, waiting for its first loads, the flattened loop hides. That may be what the prediction had left room for."
)

# %% tags=["remove-input"]
waves = {shape: triton.cdiv(shape[0], 128) * triton.cdiv(shape[1], 256) / HOPPER.multiprocessors for shape in (QUERY, UP)}
idle = {shape: 100 * (1 - wave / -(-wave // 1)) for shape, wave in waves.items()}
show(
    Folded(
        f"Question: {HOPPER.multiprocessors} programs share {QUERY[0] // 128 * (QUERY[1] // 256)} tiles. How much is lost at the end?",
        (
            f"They go round {waves[QUERY]:.1f} times, so {-(-waves[QUERY] // 1):.0f}, and in the last round some have nothing to do: "
            f"{idle[QUERY]:.0f}% of all the time, and {idle[UP]:.0f}% at {shape_text(UP)}. Whoever has tiles of this size loses it, programs that stay or not.",
        ),
    )
)

# %% [markdown]
# **What TMA refuses.** An address or a distance between rows that is not a multiple of 16 bytes. So the launcher looks
# first, and copies an operand that TMA would not take; $c$ gets padded rows.

# %% tags=["remove-input"]
show(code(triton_linear._padded, triton_linear._for_tma))

# %%
whole = torch.zeros(16, 24, dtype=torch.bfloat16)
matrices = {
    "16 x 24": whole,
    "its transpose": whole.mT,
    "without its first column": whole[:, 1:],
    "without its first row": whole[1:],
    "16 x 13": torch.zeros(16, 13, dtype=torch.bfloat16),
}
for name, matrix in matrices.items():
    taken, transposed = triton_linear._for_tma(matrix)
    how = "as it lies" if taken.data_ptr() == matrix.data_ptr() else "copied"
    print(f"{name:24} {how}{', transposed' * transposed}")

# %% [markdown]
# **specialized** goes one further: some warps only load, the others only multiply, and barriers in shared memory tell
# when a place is full or free. Triton has a switch for it (`warp_specialize`). Here $c$ leaves in one piece, which
# takes the shared memory of one stage.

# %% tags=["remove-input"]
assert speed("triton:specialized") < speed("triton:persistent")
show(
    f"**Outcome:** {speed('triton:specialized'):.0f}%, backward {speed('triton:specialized', 'backward'):.0f}%: below the "
    f"{speed('triton:persistent'):.0f}% and {speed('triton:persistent', 'backward'):.0f}% without. With TMA the loads are a few instructions of one "
    "thread, so there was little left to take off the other warps; and one place of the ring is gone. We have not looked further. "
    "**split_k**, the last rung, is this same kernel here; it changes something where c is small, and comes below."
)

# %% [markdown]
# ### Plans instead of a search
#
# Where do 128, 256, 64, 8 and 4 come from? Triton can search for them (`autotune`): run a list of configurations at the
# first call and keep the fastest. These kernels have a table instead.

# %% tags=["remove-input"]
show(code(triton_linear.plan))

# %% [markdown]
# A search costs seconds at the first call of each shape, and its winner depends on what else ran then; another tile
# sums in another order, so the last bits of a result change from run to run. With a table the same product always runs
# the same way, on every machine of a kind. The price is that somebody must have made the table, from a sweep, for each
# kind.
#
# ## CUDA C++: naive
#
# A thread an element of $c$. **Prediction:** under 2% of cuBLAS's speed.

# %% tags=["remove-input"]
SOURCE = cuda_linear.SOURCE
show(cuda_code(SOURCE, "template <typename T, bool A_ALONG_K, bool B_ALONG_K, bool BIAS>", "// shared"))

# %% [markdown]
# A warp has two rows and sixteen columns of $c$. **Which sectors does it touch for one $k$?** That depends on how the
# operands lie, which is all that differs forward and backward:

# %%
def naive_sectors(a_along_k, b_along_k, stride=4096):
    """Of a warp's two loads for one k, in bfloat16."""
    a = [lane // 16 * (stride if a_along_k else 1) * 2 for lane in range(32)]
    b = [lane % 16 * (stride if b_along_k else 1) * 2 for lane in range(32)]
    return multiprocessor.sectors(a, 2), multiprocessor.sectors(b, 2)


rows = []
for name, (a, b) in products.items():
    along_k = contiguous_along(a, "mk") == "k", contiguous_along(b, "kn") == "k"
    rows.append([name, *map(str, naive_sectors(*along_k))])
show(Table(["a warp, one k", "sectors of a", "sectors of b"], rows))

# %% tags=["remove-input"]
twice = linear.cost(QUERY, torch.bfloat16, "backward").flops / linear.cost(QUERY, torch.bfloat16, "forward").flops
show(
    f"**Outcome:** {outcome('cuda:naive')}, {tflops('cuda:naive'):.1f} TFLOP/s. Backward has {twice:.0f} times the FLOPs and runs at "
    f"{tflops('cuda:naive', 'backward'):.1f} TFLOP/s, because there a warp's load of b is of neighbours. Same kernel, same arithmetic, other strides."
)

# %% [markdown]
# ## Shared, and register: tiles twice
#
# **shared** takes tiles of 32 x 32 of both operands into shared memory, read along whichever dimension is contiguous.
# Each thread still computes one element, so for each multiply-and-add it fetches two floats. **Prediction:** under 2%.

# %% tags=["remove-input"]
show(cuda_code(SOURCE, "  A sum = 0;", "  int64 row = first_row + threadIdx.x / 32"))

# %% tags=["remove-input"]
lanes_tflops = LANES * HOPPER.multiprocessors * record.environment.sm_clock_mhz * 1e-6
show(
    f"**Outcome:** {outcome('cuda:shared')}, {tflops('cuda:shared'):.1f} TFLOP/s. Shared memory delivers {SHARED // 4} floats in a cycle, "
    f"a row of them in one load and a single one for the whole warp in the other: two loads for 32 multiply-and-adds, where the lanes could do "
    f"{2 * LANES // 2}. At the highest clock that bounds it to {lanes_tflops / 8:.1f} TFLOP/s."
)

# %% [markdown]
# So the argument of the tile applies once more, between shared memory and registers. **register** gives each thread 8 x
# 8 elements: for 16 floats from shared memory it does 64 multiply-and-adds. And the next tile is on its way, 16 bytes
# at a time, into registers. **Prediction:** 5 to 7%: near what the lanes can do at all.

# %% tags=["remove-input"]
show(cuda_code(SOURCE, "  for (int64 start = 0; start < k; start += DEPTH) {", "#pragma unroll"))
show(cuda_code(SOURCE, "    for (int i = 0; i < DEPTH; ++i) {", "    __syncthreads();"))

# %% tags=["remove-input"]
show(
    f"**Outcome:** {outcome('cuda:register')}, {tflops('cuda:register'):.0f} TFLOP/s, {100 * tflops('cuda:register') / lanes_tflops:.0f}% of what the lanes "
    f"do at the highest clock. This is a good kernel for float32, and the two rungs above use it for that. For bfloat16 it is the end of the road "
    "without tensor cores."
)

# %% [markdown]
# ## mma: tensor cores by the warp
#
# A tile of 128 x 256, eight warps with 64 x 64 of it each, and a ring of three places that `cp.async` fills. The
# operands go from shared memory to registers by `ldmatrix`: a warp reads four matrices of 8 x 8 at once, each of its
# eight rows 16 bytes. **What about banks?** A row of the tile is 64 elements of $k$, 128 bytes, all 32 banks. The eight
# rows of a matrix are therefore in the same four banks. One word more in each row, as in the transpose, would break the
# alignment that 16-byte copies need. So the chunks of 16 bytes change places within their row: chunk $i$ of row $r$
# lies at $i$ xor $r$.

# %% tags=["remove-input"]
show(cuda_code(SOURCE, "__device__ inline unsigned place_in_panel", "// Where the chunk"))

# %%
def plain(row, chunk):
    return row * 128 + chunk * 16


def swizzled(row, chunk):
    return row * 128 + ((chunk ^ row % 8) << 4)


layouts = {"plain": plain, "swizzled": swizzled}
show(multiprocessor.panel_drawn(layouts, wanted=2))

# %% [markdown]
# The numbers are chunks of $k$, the columns groups of four banks; in colour, what `ldmatrix` reads together. It works
# for every chunk, costs one instruction, and writing a whole row stays in different banks as well. TMA and `wgmma` know
# this [*swizzle*](../glossary.md#swizzle) as one of their modes. **Prediction:** 50 to 60% of cuBLAS's speed.

# %% tags=["remove-input"]
show(cuda_code(SOURCE, "  for (int step = 0; step < steps; ++step) {", "  wait_copies<0>();"))

# %% [markdown]
# Two things stand against it. On Hopper `mma.sync` reaches only some three fifths of the tensor cores' peak even alone
# (Luo et al. 2024). And the operands pass through registers, so each warp reads all rows and columns of its own part. A
# count of cycles, for one step of 64 along $k$ of a tile:

# %%
def cycles(block_m, block_n, readers, part_m, part_n, depth=64):
    """Of tensor cores, and of shared memory: the tile written once, and each reader's
    part of it read."""
    multiply = 2 * block_m * block_n * depth / TENSOR
    elements = (block_m + block_n + readers * (part_m + part_n)) * depth
    return multiply, 2 * elements / SHARED


rows = []
for name, sizes in {
    "128 x 256, mma: 8 warps' 64 x 64": (128, 256, 8, 64, 64),
    "128 x 256, wgmma: 2 warpgroups' 64 x 256": (128, 256, 2, 64, 256),
    "128 x 128, wgmma: 2 warpgroups' 64 x 128": (128, 128, 2, 64, 128),
}.items():
    multiply, move = cycles(*sizes)
    rows.append([name, f"{multiply:.0f}", f"{move:.0f}", f"{move / multiply:.2f}"])
show(Table(["cycles of", "tensor cores", "shared memory", "ratio"], rows))

# %% tags=["remove-input"]
assert speed("cuda:mma") < 50
multiply, move = cycles(128, 256, 8, 64, 64)
show(
    f"**Outcome:** {outcome('cuda:mma')}; backward {speed('cuda:mma', 'backward'):.0f}%. The first reason alone would leave room for the prediction; the second takes it: at "
    f"three fifths of the peak the products of a step take some {multiply / 0.6:.0f} cycles, and shared memory is busy for {move:.0f} of them. They would have to overlap almost entirely, and "
    "two warps to each scheduler, which stop at a barrier in each step, do not manage that. (A count, again, and not a profile.)"
)

# %% [markdown]
# ## wgmma: tensor cores that read shared memory
#
# Hopper's `wgmma` takes both operands from shared memory, for four warps at once, and runs on while these do something
# else. Now the sums are all that registers hold, and the table above says that a tile of 128 x 256 is the least that
# keeps shared memory in step. One warpgroup gives its registers to the others (`setmaxnreg`), and of it a single thread
# asks TMA for tiles:

# %% tags=["remove-input"]
show(cuda_code(SOURCE, "        for (int64 start = first; start < last; start += PANEL, at.advance()) {", "  } else {"))

# %% [markdown]
# Each place of the ring has two barriers in shared memory. TMA counts bytes into `full`; who multiplies waits for it,
# and arrives at `empty` when done. Two blocks form a *cluster* and work on tiles below each other, so they need the
# same part of
# $b$: each fetches half and TMA delivers it to both (`load_panel_for_all`). For L2 that makes a tile of 256 x 256. And this is
# what the other two warpgroups do:

# %% tags=["remove-input"]
show(cuda_code(SOURCE, "      for (int64 start = first; start < last; start += PANEL, at.advance()) {", "      wait_products<0>();"))

# %% [markdown]
# A step's four products are begun; then those of the step before are waited for, and their place in the ring given
# back. So the tensor cores always have the next step in their queue. Blocks stay, as in Triton; $c$ leaves through
# shared memory by TMA, while the next tile begins. **Prediction:** 90 to 97% of cuBLAS's speed.

# %% tags=["remove-input"]
assert speed("cuda:wgmma") > 90
show(
    f"**Outcome:** {outcome('cuda:wgmma')}, {tflops('cuda:wgmma'):.0f} TFLOP/s; at {shape_text(UP)} {speed('cuda:wgmma', shape=UP):.0f}% and at "
    f"{shape_text(DOWN)} {speed('cuda:wgmma', shape=DOWN):.0f}%. That is what {len(rungs_of('linear', 'cuda')) - 1} rungs were for: "
    f"{tflops('cuda:wgmma') / tflops('cuda:naive'):.0f} times the speed of the first."
)

# %% [markdown]
# **And the bias?** It is a few kilobytes, and cost far more time than these take. At first each thread loaded it at the end of
# a tile: 64 loads of 2 bytes, in several rounds, for whose answers the tensor cores waited in every tile. Beginning the sums
# with the bias, instead of zeros, won next to nothing: then the first product waits for the same loads. Now each thread of a warp
# asks for two neighbours of every 64 columns before the products, and the threads hand each other what they need after them.

# %% tags=["remove-input"]
show(cuda_code(SOURCE, "template <typename T, bool BIAS, int COLUMNS> struct HeldBias {", "// How a tile of c"))

# %% [markdown]
# **Prediction:** a bias then costs nothing. So it was, nearly, in a sweep beside this record.
#
# ## Backward
#
# $\mathrm{d}x$ and $\mathrm{d}w$ are the same kernels with other strides. For tensor cores a transposed operand is no matter:
# `ldmatrix` transposes as it reads, `wgmma` is told by a bit, and TMA fetches panels the way they lie. Only
# $\mathrm{d}b$, a sum down the columns of $\mathrm{d}y$, is a kernel of its own, and memory-bound: slabs of rows first,
# then the slabs' sums, in the same order in every run, as for the weight of RMSNorm.

# %% tags=["remove-input"]
show(code(triton_linear._rung))

# %% [markdown]
# **Prediction:** 85 to 95% of cuBLAS's speed for $\mathrm{d}x$ and for $\mathrm{d}w$, with `wgmma`.

# %% tags=["remove-input"]
backward = linear.cost(QUERY, torch.bfloat16, "backward")
bias_us = 2 * QUERY[0] * QUERY[1] / record.ceilings.copy_gbps / 1e3
show(
    f"**Outcome,** for both together and db: {outcome('cuda:wgmma', 'backward', (85, 95))}. Reading dy once more for db takes {bias_us:.0f} us at "
    f"the ceiling, {100 * bias_us / us('cuda:wgmma', 'backward'):.0f}% of the whole.",
    Folded(f"All rungs, backward at {shape_text(QUERY)}", (ladder_table(record, "linear", "backward", QUERY),)),
)

# %% [markdown]
# ## One token, or sixteen: decoding
#
# While text is generated, $m$ is the number of texts: 1 to 64, say. The weight is read for them all the same.
# **Prediction:** memory-bound; from 1 row to 64 the time hardly changes, and everybody who reads the weight well is
# equally fast.

# %% tags=["remove-input"]
PEERS = [CUBLAS, "triton:pipelined", "triton:split_k", "cuda:wgmma"]
small = [shape for shape in dict.fromkeys(row.shape for row in record.select("linear", "forward")) if shape[0] <= 64]
rows = []
for shape in small:
    found = {row.label: row.timing.median_us for row in record.select("linear", "forward", shape) if row.timing}
    floor = roofline.roofline(record, "linear", shape, "forward").floor_us
    rows.append([shape_text(shape), f"{floor:.1f}", *(f"{found[label]:.1f}" if label in found else "-" for label in PEERS)])
show(Table(["us", "floor", *PEERS], rows))

# %% tags=["remove-input"]
one, many = (us(CUBLAS, "forward", shape) for shape in (DECODE[0], DECODE[-1]))
show(
    f"**Outcome:** the first half holds: cuBLAS takes {many / one:.2f} times as long for {DECODE[-1][0]} rows as for one. The second does not: `cuda:wgmma` "
    f"has {speed('cuda:wgmma', shape=DECODE[1]):.0f}% of its speed at {DECODE[1][0]}. And nobody is near the floor: {percent(CUBLAS, shape=DECODE[1])} of the ceiling is cuBLAS's."
)

# %% [markdown]
# **Why does nobody reach the floor?** Partly because of how it is timed. Before each sample the course's timer
# overwrites a large buffer, so that nothing of the operands is left in L2. That leaves L2 full of lines that have been
# written and are not in memory yet. Reading the weight pushes them out, and so the call pays for writes that are not
# its own. In a model it is the same, though less: the operator before has written something too. How much can it be? At
# most an L2 full:

# %% tags=["remove-input"]
MEBIBYTES = {"NVIDIA H100 80GB HBM3": 50, "NVIDIA H200": 60}  # of L2, as the driver says
L2 = MEBIBYTES[record.environment.gpu] * 2**20
rows = []
for shape in small:
    floor, dirty = roofline.roofline(record, "linear", shape, "forward").floor_us, L2 / record.ceilings.copy_gbps / 1e3
    best = min(row.timing.median_us for row in record.select("linear", "forward", shape) if row.timing)
    rows.append([shape_text(shape), f"{floor:.1f}", f"{floor + dirty:.1f}", f"{best:.1f}"])
show(Table(["us", "floor", "and an L2 full of writes", "the fastest of all"], rows))

# %% [markdown]
# So a product that only reads has a higher floor here than its bytes say, the same for all that are compared. Unless it can
# leave the others' lines where they are: a load may say that what it fetches should be the first to leave L2
# (`evict_first`). The weight, of which each byte is used once, then makes way for itself. The `wgmma` rung does so where
# $c$ is one tile high:

# %% tags=["remove-input"]
show(cuda_code(SOURCE, "// The same of a panel that is read only once.", "// The same into every block"))

# %% tags=["remove-input"]
hinted, plain_loads = (", ".join(f"{speed(label, shape=shape):.0f}%" for shape in DECODE) for label in ("cuda:wgmma", "cuda:mma"))
show(
    f"It has {hinted} of cuBLAS's speed at {', '.join(str(shape[0]) for shape in DECODE)} rows; mma, which has neither the hint nor TMA, {plain_loads}. "
    "How much of that is the hint's, this record cannot tell: it has no wgmma without."
)

# %% [markdown]
# In a sweep beside this record most of the lead over cuBLAS at 16 rows was the hint's. Two more things were found there, by
# timing the same kernels behind an L2 that was cleared by reading:
#
# - **Boxes as tall as x.** One row took wgmma longer than 64 rows. TMA fetched x in boxes of 64 rows, of which 63 stuck out; the
#   zeros for those took longer than copies would have. Now a box has as many rows as x. The others of the tile hold anything,
#   and so do the rows of $c$ that they make, which nobody writes.
# - **No more than is asked for.** L2 can fetch 256 bytes where TMA asks for 128, and where the weight lies along $k$ the others
#   are the next step's. Without that it is faster. We expected it of written lines, whose places these bytes take before
#   their time; but it is so behind a clean L2 as well, and why we do not know.

# %% tags=["remove-input"]
show(code(cuda_linear._maps))

# %% tags=["remove-input"]
show(
    Folded(
        "What was tried and lost",
        (
            "A shorter ring, so that fewer bytes under way push out fewer written lines: with six places in place of eight no faster, with four or three slower, with two far slower.",
            "Leaving the order in which lines leave L2 unchanged (evict_unchanged), in place of evict_first: hardly better than no hint with TMA, and worse with loads by threads.",
            "Loads of 16 bytes straight into registers for mma.sync, x in shared memory, parts of k added up inside a cluster: with one row ahead of the wgmma of that "
            "time; with 16, where all of x must be there before the first product, behind.",
            "wgmma's parts of k added up inside a cluster, through each other's shared memory, in place of a second kernel: with two parts a little faster for up to 16 rows "
            "and slower for 64; with four parts much slower. We think that clusters of four blocks, each filling a multiprocessor, do not all fit at once.",
            "evict_first in Triton's split_k: no difference.",
        ),
    )
)

# %% [markdown]
# ### Split k
#
# With few rows there is a second difficulty. A tile of $c$ is as tall as there are rows, so there are only as many
# tiles as the weight's rows make. **Are they enough for 132 multiprocessors?** Where they are not, the sum over $k$ is
# split: several programs sum a part of it each, and a second kernel adds the parts up, in order. What the launchers
# would do for the layers of a decode step of 16 texts:

# %%
def launched(shape):
    """Programs and parts of k, in Triton and in CUDA, of what the best rung launches."""
    of_triton, of_cuda = (
        launches_of(rungs_of("linear", backend)[-1], shape, torch.bfloat16, "forward", HOPPER)[0].grid
        for backend in ("triton", "cuda")
    )
    parts = of_triton[1] if len(of_triton) > 1 else 1
    depth = cuda_linear.plan_wgmma(*shape, HOPPER).depth
    return of_triton[0] * parts, parts, of_cuda[0], triton.cdiv(shape[2], depth)


step = ModelWorkload("llama3-8b-4-layers", "model", None, "decode", 16, 2047, "bfloat16")
calls = [call for call in step.calls if call.operator == "linear"]
layers = {call.shape: call.module.rpartition(".")[2] for call in calls}
rows = [[f"{name} {shape_text(shape)}", *map(str, launched(shape))] for shape, name in layers.items()]
show(Table(["layer", "Triton: programs", "parts of k", "CUDA: blocks", "parts of k"], rows))

# %% tags=["remove-input"]
FEW_DOWN = (16, 4096, 14336)
assert launched(DECODE[1])[1] == launched(DECODE[1])[3] == 1 and launched(FEW_DOWN)[1] > 1
show(
    code(triton_linear._split),
    f"**Outcome:** at {shape_text(FEW_DOWN)} {speed('triton:split_k', shape=FEW_DOWN):.0f}% of cuBLAS's speed for split_k, against "
    f"{speed('triton:pipelined', shape=FEW_DOWN):.0f}% for pipelined and {speed('triton:persistent', shape=FEW_DOWN):.0f}% for persistent, which do not split; "
    f"{speed('cuda:mma', shape=FEW_DOWN):.0f}% for mma, which does not either, and {speed('cuda:wgmma', shape=FEW_DOWN):.0f}% for wgmma, which does.",
)

# %% [markdown]
# The up projection has nearly tiles enough, and there split_k does what pipelined does; the layers with 4096 outputs or fewer need
# it. (The kernel is that of tiled, with a second program index, for the part.) The parts cost little: partial sums of 16
# rows, in float32, are nothing beside the weight. Adding them up by atomics would save the second kernel, and would make
# the last bits of the result depend on who comes first.
#
# ## The roofline

# %%
show(roofline.plot(record, "linear", QUERY, "forward"))

# %% [markdown]
# ## Who wins where
#
# Percent of the ceiling, everything measured in turns in one run, the best of each row in bold.

# %%
PEERS = [CUBLAS, "torch.compile", "triton:split_k", "cuda:wgmma"]
for direction in record.directions("linear"):
    show(table(record, "linear", direction, PEERS))

# %% tags=["remove-input"]
OURS = ("triton:persistent", "triton:split_k", "cuda:wgmma")
large = {(direction, shape): max(speed(label, direction, shape) for label in OURS) for direction in ("forward", "backward") for shape in (QUERY, UP, DOWN)}
behind = [place for place, found in large.items() if found < 100]
worst, least = min(large.items(), key=lambda item: item[1])
by_hand, by_triton = (", ".join(f"{speed(label, shape=shape):.0f}%" for shape in (QUERY, UP, DOWN)) for label in ("cuda:wgmma", "triton:persistent"))
few = ", ".join(f"{max(speed(label, shape=shape) for label in OURS):.0f}%" for shape in DECODE)
show(
    "**Where it loses.**\n\n"
    f"- Of the {len(large)} large products above, forward and backward, cuBLAS is ahead of the best of ours in {len(behind)}, by the most at "
    f"{worst[0]} {shape_text(worst[1])}, where ours has {least:.0f}% of its speed. What it does better there we do not know.\n"
    f"- At {', '.join(map(shape_text, (QUERY, UP, DOWN)))} forward, `cuda:wgmma` has {by_hand} of cuBLAS's speed, and `triton:persistent` {by_triton}.\n"
    f"- With few rows nobody is near the floor of the bytes: not cuBLAS, and not the best of ours, which has {few} of its speed at {', '.join(str(shape[0]) for shape in DECODE)} rows.\n"
    "- Each call describes its matrices to TMA anew: `cuda:wgmma` on the CPU, Triton on the GPU. Where a product is short and the CPU is not ahead of the GPU, that may show.\n"
    "- `wgmma` is Hopper's alone. On Ampere and Ada the ladder ends at `mma`, on later GPUs too: Blackwell's own instructions are other ones."
)

# %% [markdown]
# ## What remains in the model
#
# Of a norm's gain a model keeps little, because a norm is a small part of it. A product is nearly all of it. **So should
# the model not follow it, up and down?** The experiment `replace_linear` runs a model of Llama-3-8B's layers with
# PyTorch's product, with Triton's and with that of CUDA C++, all else being PyTorch's.
#
# **Prediction,** by Amdahl's law: with a share s of the time g times as fast, the whole takes 1 - s + s/g. g is what the MLP
# gains by itself, which is three products and little else. s is the MLP's time, times as much as the least time that all
# products of the model can take is more than that of the MLP's three, over the model's time.

# %% tags=["hide-input"]
inside = records.published("replace_linear")
BACKENDS = {"Triton": "torch,linear=triton", "CUDA": "torch,linear=cuda"}


def model_row(backend, compiled, part, phase):
    workload = inside.model_workload("llama3-8b-4-layers", phase, part)
    return inside.model_row(workload, f"{backend} {'compiled' if compiled else 'eager'}")


def products_us(workload):
    """The least time that its products can take."""
    calls = [call for call in workload.calls if call.operator == "linear"]
    return sum(call.count * inside.ceilings.floor_us(call.cost(workload.torch_dtype)) for call in calls)


remains = {}  # gain of the MLP, share, predicted, in a graph, as called
for phase, compiled in itertools.product(("prefill", "decode"), (False, True)):
    mlp, whole = (model_row("torch", compiled, part, phase) for part in ("mlp", "model"))
    share = min(1, mlp.graph_us * products_us(whole.workload) / products_us(mlp.workload) / whole.graph_us)
    for name, backend in BACKENDS.items():
        mlp_here, here = (model_row(backend, compiled, part, phase) for part in ("mlp", "model"))
        gain, called = mlp.graph_us / mlp_here.graph_us, whole.timing.median_us / here.timing.median_us
        case = f"{phase}, {'compiled' if compiled else 'eager'}, {name}"
        remains[case] = gain, share, amdahl(share, gain), whole.graph_us / here.graph_us, called
rows = [[case, f"{gain:.3f}", f"{100 * share:.0f}", *(f"{n:.3f}" for n in wholes)] for case, (gain, share, *wholes) in remains.items()]
show(Table([whole.workload.model, "MLP alone", "share %", "predicted", "in a graph", "as called"], rows))

# %% tags=["remove-input"]
def listed(cases):
    return "; ".join(f"{case} {number:.2f}" for case, number in cases.items())


off = {case: in_graph / predicted - 1 for case, (_, _, predicted, in_graph, _) in remains.items()}
furthest = max(off, key=lambda case: abs(off[case]))
faster, slower = ({case: row[3] for case, row in remains.items() if sign * (row[3] - 1) > 0.01} for sign in (1, -1))
lost = {case: row[4] for case, row in remains.items() if row[4] < row[3] - 0.03}
most_predicted = max(abs(predicted - 1) for _, _, predicted, *_ in remains.values())
more_than_half = sum(share > 0.5 for _, share, *_ in remains.values())
show(
    f"Times as fast as with PyTorch's product, on {inside.environment.gpu}. *In a graph* is the GPU's work alone; *as called* is what the caller waits for, "
    "Python and launches included.\n\n"
    f"**Outcome:** the products' share is more than half in {more_than_half} of the {len(remains)} cases, and what is measured in a graph lies within "
    f"{100 * abs(off[furthest]):.1f}% of the prediction, furthest in: {furthest}. "
    + f"The changes that were predicted are {100 * most_predicted:.1f}% at most, so as a test of the law that says little. "
    + (f"More than a percent is gained in: {listed(faster)}. " if faster else "More than a percent is gained nowhere. ")
    + (f"More than a percent is lost in: {listed(slower)}. " if slower else "More than a percent is lost nowhere. ")
    + (f"As called, less remains than in a graph in: {listed(lost)}. There the launches show, which take more of the CPU's time through our registry "
       "than from PyTorch." if lost else "As called, no less remains than in a graph: the launches of our products do not show.")
)

# %% [markdown]
# ## On your machine
#
# This cell measures. With a GPU it times the kernels on it; without one it shows the published row.

# %% tags=["nbval-ignore-output"]
choices = ("triton:*", "cuda:register", "cuda:mma", "cuda:wgmma")  # without the slowest
measure_here(record, "linear", "forward", QUERY, choices)

# %% [markdown]
# And this one checks, on whatever is here, that every Triton rung computes the same as PyTorch, where nothing divides
# anything:

# %%
inputs = linear.make_inputs((33, 70, 45), torch.float32)
x, w, b = (tensor.to(device) for tensor in inputs)
expected = torch.nn.functional.linear(x.double(), w.double(), b.double())
for rung in rungs_of("linear", "triton"):
    if reason := rung.unavailable(device):
        print(rung, reason)
        continue
    y = lab.ops.linear(x, w, b, backend=str(rung)).double()
    print(rung, "ok" if torch.allclose(y, expected, atol=1e-4) else "WRONG")

# %% [markdown]
# ## Take-away
#
# - Intensity is a property of a level. Device memory asks it of the operator, L2 of a block's tile, shared memory of a warp's,
#   registers of a thread's: the same formula each time.
# - Tensor cores are nearly all of the rate, and everything else in the kernel is there so that they do not wait.
# - Low occupancy is no fault where much is asked ahead.
# - Write a prediction down before you measure. Two of ours were too high, and for each there is a term that it left out:
#   addresses in one, shared memory in the other.
# - The same operator with few rows is another one: memory-bound, short of tiles, and timed differently.
#
# ## Exercises
#
# Five kernels to write yourself, checked with or without a GPU: `exercises/linear.ipynb` in the repository, or
# `exercises/linear.py` with `lab check linear` in a terminal.
#
# ## References
#
# NVIDIA's CUTLASS for tiles at every level, rings and warps that only load; Tillet, Kung and Cox 2019 for Triton and
# its grouped order; Luo et al. 2024 for what Hopper's tensor cores reach; Osama et al. 2023 for splitting k evenly;
# Volkov 2010 for low occupancy; Williams, Waterman and Patterson 2009 for the roofline. All are on the [references
# page](../references.md).
