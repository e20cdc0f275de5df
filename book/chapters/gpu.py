# %% [markdown]
# # A GPU in one chapter
#
# **What you will see.** What a GPU is made of, as far as a kernel has to know it: threads in warps, warps on
# multiprocessors, and four kinds of memory. Then two kernels that compute next to nothing, a vector add and a transpose,
# in Triton and in CUDA C++, and what the hardware makes of the addresses that they ask for.
#
# **What you need.** PyTorch. No GPU: what the kernels ask for is counted, and what they took was recorded. **Reading
# time:** about 30 minutes, exercises apart.

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
import torch
import triton
import triton.language as tl

from lab.backends.cuda import compile as cuda
from lab.backends.cuda import transpose as cuda_transpose
from lab.backends.hardware import ARCHITECTURES, default_device
from lab.backends.registry import operator
from lab.backends.triton import transpose as triton_transpose
from lab.benchmark import records
from lab.benchmark.figures import ladder
from lab.benchmark.tables import Table
from lab.notebook import Folded, code, cuda_code, ladder_of, show
from lab.profiling import multiprocessor, resources
from lab.profiling.multiprocessor import bank_passes, occupancy, occupancy_of, sectors

device = default_device()
record = records.published("transpose")
compiled = resources.published("transpose")
limits, here = multiprocessor.LIMITS["sm_90"], ARCHITECTURES["sm_90"]
M = N = 8192


def fraction(label, dtype):
    """Of the ceiling, on the record's GPU."""
    (row,) = (row for row in record.at("transpose", "forward", (M, N), dtype) if row.label == label)
    return row.fraction


# %% tags=["remove-input"]
show(ladder(record, "transpose", "forward", (M, N), dtype="bfloat16"))

# %% tags=["remove-input"]
ours = {row.label: row.fraction for row in record.at("transpose", "forward", (M, N), "bfloat16") if row.backend != "peer" and row.fraction}
show(
    f"A transpose of {M}x{N} elements of bfloat16 on an {record.environment.gpu}. It computes nothing, and all of these kernels "
    f"move the same elements; yet the best is {max(ours.values()) / min(ours.values()):.0f} times as fast as the worst. Each bar is "
    "its share of the speed of a plain copy. At the end of this chapter you can say where it went, before you run them."
)

# %% [markdown]
# ## Many threads, because memory is far
#
# A load from [device memory](../glossary.md#device-memory) takes hundreds of cycles, on a CPU as on a GPU. A CPU spends
# its area on making one thread wait less: large caches, and guesses about what comes next. A GPU lets it wait. It has
# many other threads, whose state is at hand all the time, and in each cycle it goes on with one that is ready.
#
# **How many must that be?** What counts is the bytes that are on their way. If a load takes the time $L$, and memory
# delivers $B$ bytes a second, then to keep it busy
#
# $$\text{bytes in flight} = B \cdot L$$
#
# have to be on their way at every moment ([Little 1961](../references.md)). Take half a microsecond for $L$, which is the
# right order of magnitude; $B$ was measured in the run that the figure is of.

# %% tags=["hide-input"]
LATENCY_S = 0.5e-6
in_flight = record.ceilings.copy_gbps * 1e9 * LATENCY_S
each = in_flight / record.environment.multiprocessors
show(
    f"On an {record.environment.gpu}, at {record.ceilings.copy_gbps:.0f} GB/s, that makes {in_flight / 1e6:.2f} MB, or "
    f"{each / 1e3:.1f} kB for each of its {record.environment.multiprocessors} multiprocessors: {each / 16:.0f} loads of 16 "
    f"bytes, at the same time, without a pause. It can hold {32 * limits.warps} threads on each."
)

# %% [markdown]
# So there are two ways to keep memory busy: many threads with a load each, or fewer with several loads each. Everything
# below is about one of the two, or about not wasting what is on its way.
#
# ## Four kinds of memory

# %% tags=["remove-input"]
registers = 4 * multiprocessor.REGISTERS
show(
    Table(
        ["on an H100", "size", "who sees it", "who fills it"],
        [
            ["registers", f"{registers // 1024} KiB a multiprocessor, {registers * here.multiprocessors / 2**20:.0f} MiB in all", "one thread", "the compiler"],
            ["shared memory", f"up to {limits.shared // 1024} KiB a multiprocessor, {limits.shared * here.multiprocessors / 2**20:.0f} MiB in all", "one block", "the kernel"],
            ["L2 cache", "50 MB", "everybody", "the hardware"],
            ["device memory", "80 GB", "everybody", "everybody"],
        ],
    )
)

# %% [markdown]
# From top to bottom each is farther away and slower than the one before, and more threads see it. Registers hold more than
# shared memory, which surprises those who know CPUs: they are where a kernel keeps what it works on.
# [Shared memory](../glossary.md#shared-memory) has its storage together with the L1 cache. And all of them are made for
# being asked for much at a time: the next sections say what *much* means.
#
# ## The smallest kernel
#
# `z = x + y`, for vectors of any length. In Triton a kernel describes one [program](../glossary.md#program), which works
# on a block of elements at once:

# %%
@triton.jit
def add(x, y, z, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    tl.store(z + at, tl.load(x + at, mask) + tl.load(y + at, mask), mask)


x, y = torch.randn(2, 1000, device=device)
z = torch.empty_like(x)
programs = triton.cdiv(1000, 256)
add[(programs,)](x, y, z, 1000, BLOCK=256)
print(f"{programs} programs; the same as torch's: {torch.equal(z, x + y)}")

# %% [markdown]
# `add[(4,)](...)` launches four programs. Each asks for its number, and with it finds its part of the vectors: `x` is a
# pointer to the first element, `x + at` are 256 pointers. A block's length is a power of two and fixed when the kernel is
# compiled, a vector's length is neither, so the last program has [lanes](../glossary.md#lane) with nothing to do. The
# [mask](../glossary.md#mask) keeps them away from memory that is not theirs.
#
# <details><summary>Question: which lanes of which program does the mask switch off?</summary>
#
# The last 24 lanes of program 3: it starts at element 768, and element 1000 would be its lane 232.
#
# </details>
#
# In CUDA C++ a kernel describes one [thread](../glossary.md#thread), which works on one element. Here it is with what
# launches it; NVRTC compiles it, for any GPU and without one.

# %%
ADD = """
__global__ void add(const float* x, const float* y, float* z, long long n) {
  long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (at < n) z[at] = x[at] + y[at];
}
"""

if device.type == "cuda":
    cuda.launch(ADD, "add", 4, 256, x, y, z.zero_(), 1000)  # 4 blocks of 256 threads
    assert torch.equal(z, x + y)
for gpu in ARCHITECTURES.values():
    cuda.compile_cubin(ADD, ("add",), cuda.target(gpu.capability))
print("compiles for", ", ".join(ARCHITECTURES))

# %% [markdown]
# The same four parts of 256, the same mask as an `if`. What is different is who decides which thread does what: here
# you did, in Triton the compiler does.
#
# ## Where a program runs
#
# | in Triton | in CUDA C++ | in the hardware |
# | --- | --- | --- |
# | program | block of threads | stays on one multiprocessor from its first instruction to its last |
# | `num_warps` | threads of a block / 32 | [warps](../glossary.md#warp): 32 threads that run one instruction at a time, together |
# | an element of a block | what you write | a register of some thread; a block of 1024 on 4 warps is 8 elements a thread |
# | `tl.load` of a block | a load, in a loop | one or several loads a warp, of up to 16 bytes a thread |
# | `tl.sum`, `tl.trans` | shuffles, shared memory, barriers | threads exchange what they hold |
# | grid | grid | the blocks that do not fit wait, and start in no order that you may count on |
#
# A [multiprocessor](../glossary.md#multiprocessor) takes as many blocks as it has room for, and has four schedulers,
# each of which picks a ready warp in every cycle. Switching costs nothing, since the registers of all those warps are
# there all the time.
#
# **What does the warp mean for an `if`?** Its 32 threads share one instruction. Where they disagree, the warp goes
# through both sides, one after the other, with the threads that do not take part switched off.
#
# <details><summary>Question: of 256 threads half do A, the others B. Which is better, <code>threadIdx.x % 2</code> or
# <code>threadIdx.x &lt; 128</code>?</summary>
#
# The second. With `% 2` every warp has both kinds, and all eight go through A and through B. With `< 128` four warps do A
# and four do B, and none does both.
#
# </details>
#
# ## What a warp asks of memory
#
# One load of a warp has 32 addresses. Memory is not read by the byte, but in [sectors](../glossary.md#sector) of 32
# bytes, aligned to 32. The hardware looks at all addresses of the warp together, and fetches each sector that they touch
# once. This is [coalescing](../glossary.md#coalescing), and so the question for each load and store of a kernel is: **how
# many sectors do its 32 addresses touch?** That needs no GPU:

# %%
show(code(sectors))

# %% [markdown]
# **Prediction:** neighbours of four bytes each: 32 x 4 = 128 bytes, 4 sectors. Every second element: twice as many. And
# from a distance of eight elements on, each of the 32 has a sector to itself, of which it needs an eighth.

# %%
rows = []
for distance in (1, 2, 4, 8, 8192):
    cells = [f"{distance}"]
    for size in (4, 2):
        touched = sectors([lane * distance * size for lane in range(32)], size)
        cells += [f"{touched}", f"{100 * size / touched:.3g}"]
    rows.append(cells)
show(Table(["elements apart", "float32: sectors", "% of them wanted", "bfloat16: sectors", "% of them wanted"], rows))

# %% tags=["remove-input"]
show(multiprocessor.sectors_drawn({"neighbours": [4 * lane for lane in range(32)], "8192 elements apart": [4 * 8192 * lane for lane in range(32)]}, 4))

# %% [markdown]
# **Outcome:** as predicted for float32. In bfloat16 it is worse: neighbours touch half as many sectors, but lanes far
# apart still take one each, and use a sixteenth of it. Small types lose the most.
#
# <details><summary>Question: and what if the neighbours start at byte 4 in place of byte 0?</summary>
#
# Then 128 bytes lie in five sectors rather than four. That is little; and the next warp asks for the fifth one too, and
# may find it in the L1 cache. Alignment costs much less than distance. (It has another price: a load of 16 bytes a thread
# must be aligned to 16 bytes.)
#
# </details>
#
# ## A transpose does nothing else
#
# `y = x.T.contiguous()` has no arithmetic at all. Each element is read once and written once, so its floor is that of a
# copy. But what is a row of `x` is a column of `y`:

# %% tags=["hide-input"]
transpose = operator("transpose")
cost = transpose.cost((M, N), torch.bfloat16, "forward")
x = torch.arange(6, dtype=torch.float32).view(2, 3)
print(x)
print(lab.ops.transpose(x, backend="torch"))
show(Table([f"transpose {M}x{N}, bfloat16", "MiB"], [[term, f"{count / 2**20:.0f}"] for term, count in cost.byte_terms.items()]))

# %% [markdown]
# The naive kernel reads along a row. In Triton, and in CUDA C++:

# %% tags=["remove-input"]
show(code(triton_transpose._transpose_rows), cuda_code(cuda_transpose.SOURCE, "// naive", "// tiled"))

# %% [markdown]
# **Prediction:** the loads are of neighbours, the stores go down a column, a row of `y` apart. So 32 sectors for each
# store of a warp, in float32 and in bfloat16. A kernel that reads down a column and writes along a row would have it the
# other way round; what cannot be is both along a row.

# %%
def naive_accesses(size):
    """Byte addresses of the first warp's load from x and store to y."""
    return [lane * size for lane in range(32)], [lane * M * size for lane in range(32)]


rows = []
for dtype, size in (("float32", 4), ("bfloat16", 2)):
    load, store = naive_accesses(size)
    touched = sectors(load, size), sectors(store, size)
    rows.append([dtype, f"{touched[0]}", f"{touched[1]}", f"{sum(touched) / (2 * size):.1f}"])
show(Table(["a warp of the naive kernel", "sectors read", "sectors written", "times those needed"], rows))

# %% [markdown]
# **Outcome:** as predicted. Is device memory then that many times busier? Not quite, and counting cannot tell: the
# warps of the rows below write the other parts of the same sectors soon after, and if L2 still holds a sector by then, it
# goes to device memory once. What is certain is that each store sends 32 sectors to L2. How much time that costs is for a
# measurement to say:

# %% tags=["remove-input"]
counted = {row[0]: float(row[3]) for row in rows}
longer = {dtype: 1 / fraction("cuda:naive", dtype) for dtype in counted}
assert all(counted[dtype] < longer[dtype] < 2 * counted[dtype] for dtype in counted)
show(
    f"Measured, `cuda:naive` takes {longer['float32']:.1f} times as long as a copy in float32, and {longer['bfloat16']:.1f} times in "
    f"bfloat16. Counted were {counted['float32']:.1f} and {counted['bfloat16']:.1f} times the sectors. So the sectors are most of "
    "it, and not all."
)

# %% [markdown]
# On your own GPU `lab bench --op transpose --shape 8192x8192 --peers` measures every kernel of this page, and PyTorch's.
#
# ## Through shared memory
#
# How can both be along a row? Not by one thread: what it reads from a row of `x` belongs into a column of `y`. But the
# threads of a block can exchange elements. They read a square of `x` along its rows, and put it down in shared memory.
# Then each takes from there an element that another thread has read, so that a warp holds what belongs side by side in
# `y`.

# %% tags=["remove-input"]
show(cuda_code(cuda_transpose.SOURCE, "// tiled", "// vectorized"))

# %% [markdown]
# `__shared__` declares the tile; one for each block. `__syncthreads()` is a [barrier](../glossary.md#barrier): no thread
# of the block passes before all have arrived.
#
# <details><summary>Question: what happens without the barrier?</summary>
#
# A fast warp reads elements of the tile that a slow one has not written yet. Often it goes well: this is a race, and a
# lucky run does not show it; NVIDIA's compute-sanitizer does. In Triton the compiler puts the barriers where they belong.
#
# </details>
#
# The template's `PITCH` is how far the tile's rows are apart, and with 32 it is a plain square: this is the rung `tiled`.
# Both accesses to device memory are of 32 neighbours now. And those to shared memory?
#
# ## Banks
#
# Shared memory has no sectors. It has 32 [banks](../glossary.md#bank), and word $i$ of four bytes lies in bank
# $i \bmod 32$. In each cycle a bank delivers one word. If the 32 threads of a warp want words of 32 different banks, one
# pass is enough; if two different words lie in one bank, two passes; and so on. (The same word for several threads is one
# word.)
#
# **Prediction:** along a row of the tile, 32 neighbours, one pass. Down a column, rows are 32 words apart: all in the
# same bank, 32 passes. With one more word in each row, the next row starts one bank further, and it is one pass again.

# %%
rows = []
for pitch in (32, 33):
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        along = bank_passes([lane * size for lane in range(32)], size)
        down = bank_passes([lane * pitch * size for lane in range(32)], size)
        rows.append([f"{dtype}, rows of {pitch}", f"{along}", f"{down}"])
show(Table(["passes of a warp", "along a row", "down a column"], rows))

# %% [markdown]
# **Outcome:** as predicted, for float32. In bfloat16 two elements share a word, so 32 elements are 16 words, and a column
# of the plain tile meets two banks: 16 passes. One element more in each row mends that too. So the rung `padded` differs
# from `tiled` in a single number, 33 in place of 32, for 32 elements of shared memory that nobody reads.
#
# <details><summary>Question: would rows of 34 do in float32? Of 48? Of 31?</summary>
#
# 34: two passes, since lanes 0 and 16 meet in bank 0. 48: 16 passes; only two banks are met. 31: one pass; any odd number
# will do, for it has no factor in common with 32. But a row of 31 does not hold 32 elements.
#
# </details>
#
# And the clock?

# %% tags=["remove-input"]
gain = {dtype: fraction("cuda:padded", dtype) / fraction("cuda:tiled", dtype) for dtype in counted}
assert gain["float32"] > 1.3 > gain["bfloat16"] > 1
show(
    f"In float32 `padded` is {gain['float32']:.2f} times as fast as `tiled`. In bfloat16 it is {gain['bfloat16']:.2f} times: half as "
    "many passes are saved, and something else holds it back, at which we get below."
)

# %% [markdown]
# ## The same in Triton
#
# A Triton program has no threads, so it does not say who exchanges what. It loads a square, and stores its transpose;
# that the two want the elements in different threads is for the compiler to see, and the detour through shared memory
# and its layout without bank conflicts are its business:

# %% tags=["remove-input"]
show(code(triton_transpose._transpose_tiles), ladder_of("transpose", "triton"))

# %% [markdown]
# `row[:, None]` is a column of indices, `column[None, :]` a row of them; their sum is a square of pointers. On the CPU, in
# Triton's interpreter, or on your GPU:

# %%
x = torch.randn(130, 70, device=device)
for rung in ("triton:rows", "triton:tiles"):
    print(rung, "is right:", torch.equal(lab.ops.transpose(x, backend=rung), x.T))

# %% [markdown]
# ## More bytes on their way
#
# A load of a warp of `padded` is for 32 bfloat16, 64 bytes: two sectors, and every instruction costs its cycle in a
# scheduler. The last rung asks for 16 bytes a thread. **Prediction:** 512 bytes and 16 sectors for each load of a warp,
# all of them wanted, so an eighth of the loads. And it asks for two such pieces before it waits for the first.

# %% tags=["remove-input"]
show(cuda_code(cuda_transpose.SOURCE, "// vectorized"), ladder_of("transpose", "cuda"))

# %% tags=["hide-input"]
def vectorized_accesses(m):
    """Byte addresses of a warp's load, or store, of 16 bytes a thread, in a matrix of bfloat16 with rows of m; and of the
    elements that its threads gather first, one of eight each, in a tile with rows of 66."""
    lanes = [(thread // 8, thread % 8 * 8) for thread in range(32)]
    return [2 * (row * m + column) for row, column in lanes], [2 * (column * 66 + row) for row, column in lanes]


wide, gathered = vectorized_accesses(M)
show(
    f"**Outcome:** {sectors(wide, 16)} sectors, and {32 * 16} bytes wanted of {32 * sectors(wide, 16)}. To gather an element for "
    f"each thread takes {bank_passes(gathered, 2)} passes: the tile's rows are a bank longer than 64 elements, and two of its rows "
    "still meet in each bank. Shared memory has the time: "
    f"`vectorized` reaches {100 * fraction('cuda:vectorized', 'bfloat16'):.0f}% of the ceiling, where `padded` has "
    f"{100 * fraction('cuda:padded', 'bfloat16'):.0f}%."
)
assert fraction("cuda:vectorized", "bfloat16") > 1.5 * fraction("cuda:padded", "bfloat16")

# %% [markdown]
# Each thread puts the eight elements that it has read into a row of the tile, and gathers eight others down a column, one
# by one, so as to store 16 bytes at once. (In float32 it is four.) `#pragma unroll` makes an array that lives in registers of what looks like
# memory: registers have no addresses, so every index must be known to the compiler.
#
# ## What the compiler says
#
# How many registers does a thread take, and how much shared memory a block? That is told without a GPU too, for every
# architecture, by the compilers themselves: registers of a thread / KiB of shared memory of a block. A number after a plus
# would be bytes [spilled](../glossary.md#spill), to memory, for want of registers. (bfloat16; on sm_75, which lacks it,
# float16.)

# %% tags=["remove-input"]
forward = [row for row in compiled.rows if row.direction == "forward"]
assert not any(row.spilled for row in forward) and all(row.shared for row in forward if row.implementation == "triton:rows")
show(
    f"With {', '.join(f'{name} {version}' for name, version in compiled.compilers.items())}:",
    resources.table(forward),
)

# %% [markdown]
# No kernel spills. The naive Triton kernel takes shared memory as well, although it has no tile: the compiler loads
# eight neighbours a thread, and stores elements in another order, so it exchanges them in between. Since Ampere the system
# takes a KiB of each block for itself; from sm_90 on compilers count it, for kernels that use shared memory at all.
#
# ## How many blocks fit
#
# A multiprocessor takes a block if it has room for its warps, for its registers and for its shared memory, and if it has
# not reached its number of blocks. What runs out first decides. (Registers are given out by eights to a thread: one that
# takes 33 has 40.) The warps that are on it, of the most that it can hold, are the kernel's
# [occupancy](../glossary.md#occupancy). For an H100:

# %% tags=["remove-input"]
show(
    Table(
        ["a multiprocessor of an H100 holds", "at most"],
        [
            ["warps", f"{limits.warps}"],
            ["blocks", f"{limits.blocks}"],
            ["registers of 32 bits", f"{multiprocessor.REGISTERS}"],
            ["KiB of shared memory", f"{limits.shared // 1024}"],
        ],
    ),
    multiprocessor.occupancy_table([row for row in forward if row.arch == "sm_90"]),
)

# %% tags=["remove-input"]
best = next(row for row in forward if row.arch == "sm_90" and row.implementation == "cuda:vectorized")
blocks = -(-M // 64) * -(-N // 64)
at_once = occupancy_of(best).blocks * here.multiprocessors
greedy = occupancy("sm_90", 256, 255, 1024)
show(
    Folded(
        f"Question: cuda:vectorized launches {blocks} blocks for {M}x{N}. How many waves are that on an H100?",
        (
            f"{occupancy_of(best).blocks} blocks on each of {here.multiprocessors} multiprocessors are {at_once} at once, so "
            f"{blocks / at_once:.1f} waves. The last one fills the GPU in part; with so many it does not matter, with one and "
            "a half it would.",
        ),
    ),
    Folded(
        "Question: and if a kernel took 255 registers a thread, with 256 threads a block?",
        (f"Then {greedy.blocks} block would fit, {greedy.warps} warps, {100 * greedy.fraction:.3g}% of all, for want of {greedy.bound}.",),
    ),
)

# %% [markdown]
# **Is more always better?** No. Occupancy is one of the two ways to have bytes on their way, and the other one is more
# bytes a thread. A kernel with a quarter of the warps, each with four times the loads, does as well
# ([Volkov 2010](../references.md)); the fastest matrix products hold few warps and hundreds of registers each. Look at
# occupancy when it is low *and* a thread has little on its way.
#
# ## Where it loses
#
# **The picture** counts requests, not time. Three things that it leaves out: the caches, which turn a second request into a
# cheap one; the order in which blocks run, which decides what is still in a cache; and everything that happens between
# launches. So it says where to look, and a clock has the last word.

# %% tags=["remove-input"]
behind = {dtype: [100 * fraction(label, dtype) for label in ("cuda:vectorized", "triton:tiles")] for dtype in counted}
assert all(cuda_best < triton_best for cuda_best, triton_best in behind.values())
show(
    f"**Our CUDA C++** stays behind Triton's tile: at {behind['bfloat16'][0]:.0f}% to {behind['bfloat16'][1]:.0f}% in bfloat16, "
    f"{behind['float32'][0]:.0f}% to {behind['float32'][1]:.0f}% in float32. By the count both are as good. In bfloat16 it gathers "
    "twice as many elements one by one for the same bytes; whether that is the reason was not measured."
)

# %% [markdown]
# ## Take-away
#
# - A GPU hides latency with work in flight: many warps, or many bytes for each.
# - A warp's 32 addresses cost the 32-byte sectors that they touch. Neighbouring lanes want neighbouring addresses, in
#   loads and in stores.
# - What must change hands between threads goes through shared memory; there, count banks.
# - A Triton program is a block of threads whose inside the compiler arranges. The addresses remain yours.
# - Registers and shared memory of a block decide how many of them a multiprocessor holds. The compiler tells you both
#   without a GPU.
#
# ## Exercises
#
# Four calculations and a kernel, checked without a GPU: `exercises/gpu.ipynb` in the repository, or `exercises/gpu.py`
# with `lab check gpu` in a terminal. The kernel is a transpose whose every load and store must be of neighbours.
#
# ## References
#
# NVIDIA's CUDA C++ Programming Guide for the machine; Tillet, Kung and Cox 2019 for Triton; Ruetsch and Micikevicius 2009
# for the transpose; Volkov 2010 and Little 1961 for what is in flight. All are on the [references
# page](../references.md).
