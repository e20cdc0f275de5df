# %% [markdown]
# # Softmax
#
# **What you will see.** A row of numbers becomes a row of weights that sum to one: in attention, in a router, at the
# output. First a row whose naive softmax is NaN, and the cure; then how maximum and sum can be found in one look at the
# row; then the rows that make a kernel slow: very short ones, and those too long for one block.
#
# **What you need.** The RMSNorm chapter, or that you know what a Triton program and a mask are. No GPU: without one the
# kernels run in Triton's interpreter, and the timings shown are the published ones. **Reading time:** about 35 minutes,
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
import torch

from lab.backends.cuda import softmax as cuda_softmax
from lab.backends.dry_run import launches_of
from lab.backends.hardware import ARCHITECTURES
from lab.backends.registry import ladder as rungs_of
from lab.backends.registry import operator
from lab.backends.triton import softmax as triton_softmax
from lab.benchmark import records
from lab.benchmark.figures import ladder
from lab.benchmark.models import ModelWorkload
from lab.benchmark.tables import Table, ladder_table, table
from lab.notebook import Published, code, cuda_code, measure_here, show
from lab.profiling import resources, roofline

record = records.published("softmax")
published = Published(record)
softmax = operator("softmax")
ROW, WIDE, LONG, LONGEST = (16384, 4096), (8192, 16384), (4096, 65536), (2048, 131072)
TRAIN, TRAIN_LONG, ROUTER = (65536, 4096), (16384, 65536), (4194304, 8)


def percent(label, direction="forward", shape=ROW, digits=0):
    return published.percent(label, "softmax", direction, shape, digits)


# %% tags=["remove-input"]
show(ladder(record, "softmax", "forward", LONG))

# %% [markdown]
# One row of 65,536 scores, forward: each bar is one version of the same operator, as a share of what the memory of this
# GPU allows. (The RMSNorm chapter may show another GPU: compare shares, not microseconds.)
#
# ## What it computes, and where
#
# $$y_i = \frac{e^{x_i}}{\sum_j e^{x_j}}$$
#
# In attention a row is what one token thinks of all tokens before it: as long as the context. In a router of experts it
# has 8 to 256 columns. At the output it is as long as the vocabulary. So this operator meets rows of every length, and
# that is what this chapter is about.
#
# ## A formula that does not work
#
# Type the formula, and try it on larger numbers:

# %%
def typed(x):
    e = torch.exp(x)
    return e / e.sum(-1, keepdim=True)


for scale in (1, 10, 100):
    x = scale * torch.tensor([1.0, 2.0, 3.0])
    print(x.tolist(), "->", typed(x).tolist())

# %% [markdown]
# <details><summary>Question: where does the NaN come from?</summary>
#
# e^100 is more than float32 holds, so it is infinite, and infinity over infinity is NaN. (In float16 it happens from
# e^12 on.) Attention scores of 100 are not exotic.
#
# </details>
#
# The quotient does not change when all x of a row are moved by the same number, because $e^{x-m} = e^x / e^m$ above and
# below. Move by the largest: every exponential is then between 0 and 1, and at least one of them is 1.

# %%
def stable(x):
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True)


x = 100 * torch.tensor([1.0, 2.0, 3.0])
print(stable(x).tolist(), torch.softmax(x, -1).tolist())

# %% [markdown]
# The price is a third look at the row: maximum, sum, quotient. The rest of the chapter pays it back.
#
# One case is left. A mask writes -inf, so a row of -inf only has the maximum -inf, and -inf less -inf is NaN. PyTorch
# returns NaN there, and so do all kernels below: a test holds each of them to PyTorch on rows with NaN, +inf, and -inf
# in part and throughout, and a kernel without the maximum fails it.
#
# ## How fast can it be?

# %%
cost = softmax.cost(ROW, torch.bfloat16, "forward")
here = roofline.roofline(record, "softmax", ROW, "forward")
flops = [[term, f"{count / 1e6:.2f} million"] for term, count in cost.flop_terms.items()]
moved = [[term, f"{count / 2**20:.2f} MiB"] for term, count in cost.byte_terms.items()]
show(Table(["FLOPs", "how many"], flops), Table(["bytes", "how many"], moved))

# %% tags=["remove-input"]
show(
    f"**{here.intensity:.2f} FLOPs a byte**, where this GPU can do {here.ridge:.0f}: {here.bound}-bound. The floor is "
    f"{here.floor_us:.1f} us at {record.ceilings.copy_gbps:.0f} GB/s, and every percentage below is that floor over the "
    "measured time."
)

# %% [markdown]
# An exponential is counted as one FLOP here, and with that count no arithmetic will ever matter. Remember that; the
# chapter comes back to it.
#
# ## The baseline
#
# **Prediction:** `torch.softmax` is one fused kernel; it has to find maximum and sum before it writes. If it holds the row
# on chip it is near the ceiling, if it reads the row three times, at half of it: four units of traffic where two are
# needed.

# %% tags=["remove-input"]
show(f"**Outcome:** {percent('torch eager')} at 4096 columns, {percent('torch eager', shape=WIDE)} at 16384, "
     f"{percent('torch eager', shape=LONG)} at 65536. On long rows that is half, as of three reads; at 4096 columns it is less than "
     "three reads explain, and we do not know why.")
assert 0.4 < min(float(percent("torch eager", shape=shape).rstrip("%")) / 100 for shape in (WIDE, LONG)) < 0.6
assert float(percent("torch eager").rstrip("%")) < 40

# %% [markdown]
# ## Triton, naive
#
# A kernel for each step. **Prediction:** three reads and a write, four units where two are needed: at most half.

# %% tags=["remove-input"]
show(code(triton_softmax._softmax_max_naive, triton_softmax._softmax_sum_naive, triton_softmax._softmax_scale_naive))

# %% tags=["remove-input"]
show(f"**Outcome:** {percent('triton:naive')}.")

# %% [markdown]
# ## One pass: the row in registers
#
# As in the RMSNorm chapter: a block as wide as the row, one load, two reductions, one store. Masked lanes load as -inf:
# they are never the maximum, and their exponential is 0. **Prediction:** as RMSNorm's one pass at the same shape, a
# little less for the second reduction.

# %% tags=["remove-input"]
show(code(triton_softmax._softmax_forward_one_pass))

# %% tags=["remove-input"]
show(f"**Outcome:** {percent('triton:one_pass')} at 4096 columns and {percent('triton:one_pass', shape=WIDE)} at 16384; "
     f"but at 8 columns {percent('triton:one_pass', shape=ROUTER)}.")

# %% [markdown]
# ## Tiled: several short rows to a program
#
# A program of 128 threads for a row of eight numbers leaves 120 of them idle, and moves 32 bytes for the price of a whole
# program. **Prediction:** a tile of rows by columns, 2048 elements to a program, is bound by memory again. Up to 4096
# columns the same kernel serves, at the end with a tile of one row; where a row fills its block it needs no masks.

# %% tags=["remove-input"]
show(code(triton_softmax._softmax_forward_tiled))

# %% tags=["remove-input"]
show(f"**Outcome:** {percent('triton:tiled', shape=ROUTER)} at 8 columns, "
     f"{percent('triton:tiled', shape=(262144, 128))} at 128.")

# %% [markdown]
# What is `ALIGN` for? Of a number that a kernel is given, Triton asks only whether it is 1 and whether 16 divides it.
#
# <details><summary>Question: what does that do to rows of eight numbers of 16 bits?</summary>
#
# Eight of them are 16 bytes, one load of a thread, if every row starts at a multiple of 16 bytes. With a stride of 8 it
# does; but all that the compiler knows of the stride is that 16 does not divide it. It could be 7. So it loads and stores
# number by number. Our first tile was compiled like that and took almost twice as long at 8 columns as now, at 16 and
# more a few hundredths longer at most (outside of any record); for a while we blamed the arithmetic of addresses. Now
# stride and columns arrive divided by `ALIGN` and are multiplied again in the kernel, where the compiler sees that `ALIGN`
# divides the product. A test counts the instructions.
#
# </details>

# %% [markdown]
# ## Online softmax: maximum and sum in one look
#
# A row of 65,536 does not fit the registers of a program. Maximum, sum, quotient: three looks, of which the second and
# third may find the row in L2. Can the first two be one?
#
# <details><summary>Question: you have summed e^(x-m) over half a row, and now comes a larger maximum n. What to do?</summary>
#
# Multiply the sum by e^(m-n): each of its terms then is what it would have been with n from the start. So a running
# maximum and a running sum are enough, mended whenever the maximum grows: the *online normalizer*.
#
# </details>
#
# Here each lane keeps its own, so that the loop needs no reduction; they meet after it. The line with `origin` is for the
# lane that has seen nothing but -inf.

# %% tags=["remove-input"]
show(code(triton_softmax._softmax_forward_online))

# %% [markdown]
# **Prediction:** two looks. If L2 serves the second one, near the ceiling: 132 programs of 128 KiB are 17 MiB, which L2
# holds. If it does not, two thirds.

# %% tags=["remove-input"]
show(f"**Outcome:** {percent('triton:online', shape=LONG)} at 65536 columns, {percent('triton:online', shape=LONGEST)} at "
     "131072. That is not even two thirds, so L2 alone does not decide: a program with a multiprocessor to itself loads, or "
     "computes, or stores. The next sections take that apart.")
assert max(float(percent("triton:online", shape=shape).rstrip("%")) for shape in (LONG, LONGEST)) < 66

# %% [markdown]
# ## CUDA C++
#
# **naive** and **vectorized** are the steps of the RMSNorm chapter again; the reduction now carries a pair, and this is
# its rule:

# %% tags=["remove-input"]
SOURCE = cuda_softmax.SOURCE
show(cuda_code(SOURCE, "template <typename A> struct Normalizer", "// Over LANES neighbouring threads"))

# %% [markdown]
# **one_pass** keeps the row in registers. `LANES` threads share a row: one thread for eight columns, a warp for a
# thousand, a whole block for more; a block of 1024 threads holds 65,536 columns of 16 bits. Of a short row a thread takes
# two vectors of 16 bytes, but not both of a row that has no more: its neighbour's row would begin 32 bytes further on, and
# each load of a warp would use half of every [sector](../glossary.md#sector) it touches. At 16 columns that took 1.3 times
# as long (outside of any record). **Prediction:** as Triton's one pass, and as its tiles for short rows; and no cliff
# before 65,536.

# %% tags=["remove-input"]
show(cuda_code(SOURCE, "template <typename T, int VEC, int THREADS, int LANES, int HELD, int CLUSTER, bool FAST>", "template <typename T, int VEC, int THREADS, int LANES, int HELD, int CLUSTER>"))

# %% tags=["remove-input"]
show(f"**Outcome:** {percent('cuda:one_pass')} at 4096 columns, {percent('cuda:one_pass', shape=ROUTER)} at 8, and "
     f"{percent('cuda:one_pass', shape=LONG)} at 65536.")

# %% [markdown]
# ## What an exponential costs
#
# One block to a multiprocessor loads, or computes, or stores. So whatever it computes is time in which its memory is
# idle, unless other blocks fill it. How much does it compute?
#
# **Question:** how many instructions can an element have, before they and not memory are the limit?

# %% tags=["remove-input"]
gpu = record.environment
lanes, elements = gpu.multiprocessors * 128 * gpu.sm_clock_mhz * 1e6, record.ceilings.copy_gbps * 1e9 / 4
budget = lanes / elements
show(
    "<details><summary>Answer</summary>\n\n"
    f"A multiprocessor starts four warps' instructions a cycle, 128 lanes; {gpu.multiprocessors} of them at "
    f"{gpu.sm_clock_mhz / 1e3:.2f} GHz at most start {lanes / 1e12:.0f} million million lanes' instructions a second. An "
    "element of 16 bits is read and written, four bytes. Divide the ceiling by four: at full speed, "
    f"{elements / 1e12:.2f} million million elements a second. That leaves some {budget:.0f} instructions for each.\n\n"
    "</details>"
)

# %% [markdown]
# The compiled kernel says how many it has:

# %%
def instructions_per_element(rung):
    (implementation,) = [made for made in rungs_of("softmax", "cuda") if made.rung == rung]
    (launch,) = launches_of(implementation, LONG, torch.bfloat16, "forward", ARCHITECTURES["sm_90"])
    return resources.instructions(launch.compile()) / (LONG[1] / launch.options["block"])


for rung in ("one_pass", "fast_exp"):
    print(f"{rung:9} {instructions_per_element(rung):.0f} instructions an element")

# %% [markdown]
# CUDA's `exp` is exact to the last bit or two of a float, and takes a dozen instructions; each element needs it twice. But
# a result of 16 bits shows no more than its first three digits. The hardware has an instruction for $2^v$ alone, good to
# some 22 bits, and $e^v = 2^{v \log_2 e}$. **fast_exp** is the kernel above with

# %% tags=["remove-input"]
show(cuda_code(SOURCE, "// e^v: a dozen instructions", "// The largest of VEC elements"))

# %% [markdown]
# <details><summary>Question: why not fold the maximum in, and compute 2^(x c - m c) with one multiply-add?</summary>
#
# That was the first version, and it was an instruction faster. It fails twice. The product m c is rounded once, and e^x of
# different threads is relative to different m: where their sums meet, the roundings do not cancel. (For x around 60,000
# that is an error in the third digit.) And masks are often made of the largest number there is: c times that is infinity,
# and the row NaN, where PyTorch returns equal weights. A test caught each.
#
# </details>
#
# Triton's `tl.exp` is the short kind from the start, for 32 bits too. **Prediction:** where many blocks share a
# multiprocessor, little changes: one computes while another loads. At 65536 columns, with one block to each, the whole
# saving should show.

# %% tags=["remove-input"]
show(f"**Outcome:** {percent('cuda:fast_exp')} at 4096 columns against {percent('cuda:one_pass')}; at 65536 "
     f"{percent('cuda:fast_exp', shape=LONG)} against {percent('cuda:one_pass', shape=LONG)}.")

# %% [markdown]
# ## Cluster: a row for several blocks
#
# Past 65,536 columns one block cannot hold a row, and up to there it is alone on its multiprocessor. On Hopper, blocks can
# form a *cluster*: they run at the same time, near one another, and can write into each other's shared memory. **cluster**
# shares a row out over two to eight blocks, which exchange maximum and sum that way: the long row is read once, by many.
# **Prediction:** 65,536 and 131,072 columns as near to the ceiling as 16,384.
#
# <details><summary>Question: each block has written its parts into all the others. How does a block know that it has theirs?</summary>
#
# By a barrier of the whole cluster: when everybody has arrived there, everybody has written. So the first version did it.
# But then a block also waits for those whose parts it already has, and with a row or two to a multiprocessor nothing else
# runs meanwhile. What is needed is less: *my* parts are here. A message to another block can count its bytes at a barrier
# in that block's own memory, so each waits for what it needs and for no more.
#
# </details>

# %% tags=["remove-input"]
show(cuda_code(SOURCE, "// How the warps of a row's CLUSTER blocks", "// The same of a sum."))

# %% tags=["remove-input"]
show(f"**Outcome:** {percent('cuda:cluster', shape=WIDE)} at 16384 columns, {percent('cuda:cluster', shape=LONG)} at 65536 "
     f"and {percent('cuda:cluster', shape=LONGEST)} at 131072, where fast_exp, back to reading the row twice, has "
     f"{percent('cuda:fast_exp', shape=LONGEST)}.")

# %% [markdown]
# ## Backward
#
# $$\mathrm{d}x_i = y_i \Bigl(\mathrm{d}y_i - \sum_j y_j\,\mathrm{d}y_j\Bigr)$$
#
# <details><summary>Where does the sum come from?</summary>
#
# $\partial y_j / \partial x_i = y_j\,(\delta_{ij} - y_i)$, because x_i is in every denominator of the row. Multiply by
# dy_j and sum over j.
#
# </details>
#
# One reduction, no maximum, no exponential: easier than forward, with three units of traffic. x is not needed, so the
# forward pass keeps y alone. **Prediction:** forward plus backward above the copy's speed: it reads three units and writes
# two, and reading is what memory does best.

# %%
show(ladder_table(record, "softmax", "backward", TRAIN), ladder_table(record, "softmax", "backward", TRAIN_LONG))

# %% [markdown]
# <details><summary>Question: a row of 4096 columns fits the registers. Can it be better not to keep it there?</summary>
#
# torch.compile's kernel does not. It looks at the row twice, half of it at a time, and the second look finds it in L1,
# which lies in the multiprocessor as the registers do. A thread then needs few registers, so more of them are there to
# wait for memory at the same time.
#
# </details>
#
# So Triton's last rung takes rows of 2049 to 4096 columns in two looks backward. **Prediction:** a little better than
# one_pass. Forward, where the second look computes every exponential again, it has not been tried.

# %% tags=["remove-input"]
show(f"**Outcome:** {percent('triton:online', 'backward', TRAIN, 1)} against {percent('triton:one_pass', 'backward', TRAIN, 1)}; "
     f"torch.compile has {percent('torch.compile', 'backward', TRAIN, 1)}.")

# %% [markdown]
# ## The roofline

# %%
show(roofline.plot(record, "softmax", TRAIN, "both"))

# %% [markdown]
# ## Who wins where

# %%
PEERS = ["torch eager", "torch.compile", "liger", "quack", "triton:online", "cuda:cluster"]
show(*(table(record, "softmax", direction, PEERS) for direction in ("forward", "both", "backward")))

# %% tags=["remove-input"]
trained = {shape: [max(100 * row.fraction for row in record.at("softmax", direction, shape) if row.timing and row.backend != "peer")
                   for direction in ("backward", "both")] for shape in (TRAIN, TRAIN_LONG)}
assert all(backward > 101 and 98.5 < both < backward for backward, both in trained.values())
show("**Outcome,** of forward plus backward: " + " and ".join(f"{both:.1f}%" for _, both in trained.values()) + ", at the copy's speed. "
     "Backward alone, with two reads to a write, is above it, " + " and ".join(f"{backward:.1f}%" for backward, _ in trained.values()) + "; forward is below.")

# %% tags=["remove-input"]
def faster_peers(direction):
    """Per shape: the fastest of the others, and how many percent longer the best of ours takes, where that is over one."""
    found = {}
    for shape in {row.shape: None for row in record.select("softmax", direction)}:
        rows = [row for row in record.select("softmax", direction) if row.shape == shape and row.timing]
        ours = min(row.timing.median_us for row in rows if row.backend != "peer")
        peer = min((row for row in rows if row.backend == "peer"), key=lambda row: row.timing.median_us)
        if ours > 1.01 * peer.timing.median_us:
            found[shape] = peer.label, 100 * (ours / peer.timing.median_us - 1)
    return found


NAMES = {"forward": "Forward", "both": "Forward and backward", "backward": "Backward"}
lost = [
    f"- {name} at {rows}x{columns}: {peer} is ahead of the best of ours by {longer:.1f}%."
    for direction, name in NAMES.items()
    for (rows, columns), (peer, longer) in faster_peers(direction).items()
]
far_off = {label: percent(label, shape=ROUTER) for label in ("torch eager", "liger", "quack")}
assert all(float(far.rstrip("%")) < 0.5 * float(percent("cuda:cluster", shape=ROUTER).rstrip("%")) for far in far_off.values())
show(
    "**Where it loses.** Where the best of the others is ahead of the best of ours by more than a hundredth:\n\n"
    + ("\n".join(lost) or "- None.")
    + "\n\nAnd two kinds of row for which a whole kernel is no good:\n\n"
    "- Of 8 columns, for the others: " + ", ".join(f"{label} reaches {far}" for label, far in far_off.items()) + ". Only "
    "torch.compile, which writes a kernel for the shape, is with ours.\n"
    f"- Of 65536 columns, for ours: Triton has no clusters, and drops to {percent('triton:online', shape=LONG)}."
)

# %% [markdown]
# **What was tried and lost,** outside of any record. At 16384x4096: Liger's kernel, with its hints to the caches, with each of them alone and
# with neither, with four, eight and sixteen warps; a warp to a row, which needs no barrier; two and four rows to a program;
# programs that stay and load the next row before they store this one; the copy engine, which brings the row to shared
# memory, once and in a ring. None was ahead of ours by as much as a hundredth: one warp count more or less, or a hint to
# a Triton kernel, changes next to nothing, Liger's kernel is slightly behind, and those through shared memory are by far.
# A plain copy of these tensors is a little faster, and short of the ceiling too: most of what is missing here is the price
# of starting and ending, the same for all.
#
# Forward, streaming stores, which ask L2 to let go of a line at once: half a hundredth to two hundredths slower than plain
# ones at every length of row from 64 columns on, though nothing reads what was written. Perhaps because L2 is also where
# writes wait until memory takes a run of them, and a line that leaves early leaves alone. So the kernels that keep their
# row store plainly forward; backward, where there are two reads to a write, it made no difference.
#
# On long rows: sixteen blocks to a cluster, the copy engine again, less than 96 KiB of loads to a multiprocessor, and to
# keep the exponentials in registers instead of computing them twice; those registers cost more blocks than they saved
# instructions. Backward at 65536x4096: every hint to the caches, programs that stay, the copy engine.
#
# On rows of 8 to 256 columns: 256 and 512 threads to a CUDA block, two to seven hundredths slower than 128; the maximum over
# all of a row's threads before the first exponential, no gain; and to keep the exponentials, for which these rows do leave
# registers: three hundredths faster at 16 columns, one at 32, nothing from 64 on. Not enough for a second kernel.

# %% [markdown]
# ## What remains of the gain in the model
#
# Where does a decoder call softmax? Twice, and one of the two is not a call. In attention the scores are as many as tokens
# times tokens; storing them, only to read them back for softmax and again for the product with the values, would move
# more than all the rest. So an attention kernel keeps a tile of scores on chip and carries the online normalizer of this
# chapter from tile to tile (Dao et al. 2022). What remains is the draw of a token: one row as long as the vocabulary for
# each text.

# %%
step = ModelWorkload("llama3.2-1b", "model", None, "decode", batch=8, tokens=2047, dtype="bfloat16").cost
draw = softmax.cost((8, 128256), torch.bfloat16, "forward")
print(f"of the bytes of a decode step of 8 texts, the draw's softmax moves {100 * draw.bytes / step.bytes:.2f}%")

# %% [markdown]
# <details><summary>Question: so what is a fast softmax kernel good for?</summary>
#
# For routers, for attention that is not of the usual form, for losses that need the probabilities. And for its parts: the
# normalizer and the fast exponential go into attention and cross-entropy, where the same arithmetic has to keep up.
#
# </details>
#
# ## On your machine
#
# This cell measures. With a GPU it times the kernels on it; without one it shows the published row.

# %% tags=["nbval-ignore-output"]
measure_here(record, "softmax", "forward", ROW, ("triton:*", "cuda:*"))

# %% [markdown]
# And this one checks, on whatever is here, that every rung computes the same as PyTorch, masks included:

# %%
(x,) = softmax.make_inputs((4, 1000), torch.float32)
x[1, 500:] = torch.finfo(x.dtype).min
for rung in ("naive", "one_pass", "tiled", "online"):
    x_here = x.cuda() if torch.cuda.is_available() else x
    with lab.trace() as calls:
        y = lab.ops.softmax(x_here, backend=f"triton:{rung}").cpu()
    print(f"{calls[0].backend}:{calls[0].rung}", "ok" if torch.allclose(y, torch.softmax(x, -1), atol=1e-6) else "WRONG")

# %% [markdown]
# ## Take-away
#
# - Subtract the maximum. It costs a look at the row, and the online normalizer gives it back.
# - FLOPs are not instructions. A kernel far left of the ridge can still wait for its exponentials.
# - The length of the row decides the kernel: several rows to a program, a row to a program, a row to a cluster.
# - Infinity is an input like any other: think through -inf before the first masked batch does it for you.
#
# ## Exercises
#
# Four kernels to write yourself, checked with or without a GPU: `exercises/softmax.ipynb` in the repository, or
# `exercises/softmax.py` with `lab check softmax` in a terminal.
#
# ## References
#
# Milakov and Gimelshein 2018 for the online normalizer; Dao et al. 2022 for attention that carries it; Williams, Waterman and Patterson 2009 for the roofline; the Liger
# and QuACK kernels, which this chapter measures itself against. All are on the [references page](../references.md).
