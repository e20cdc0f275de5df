# %% [markdown]
# # RMSNorm
#
# **What you will see.** The smallest operator of a Llama-style model that still needs a real kernel: a sum along each
# row, then a multiplication. It does almost no arithmetic, so all that counts is how often each byte crosses device
# memory. You take it from PyTorch through five Triton kernels to four in CUDA C++, forward and backward, predict each
# step, and look at what it did.
#
# **What you need.** PyTorch. No GPU: without one the kernels run in Triton's interpreter, and the timings shown are
# the published ones. **Reading time:** about 40 minutes, exercises apart.

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

from lab.backends.cuda import rmsnorm as cuda_rmsnorm
from lab.backends.registry import operator
from lab.backends.triton import rmsnorm as triton_rmsnorm
from lab.benchmark import records
from lab.benchmark.figures import ladder
from lab.benchmark.tables import Table, ladder_table, table
from lab.notebook import Published, code, cuda_code, ladder_of, measure_here, show
from lab.profiling import resources, roofline

record = records.published("rmsnorm")
published = Published(record)
rmsnorm, add_rmsnorm = operator("rmsnorm"), operator("add_rmsnorm")
SMALL, WIDE = (16384, 4096), (4096, 16384)  # rows and columns: Llama-3-8B's and 405B's hidden sizes
TRAIN, TRAIN_WIDE, LONG = (65536, 4096), (16384, 16384), (4096, 65536)


def percent(label, direction="forward", shape=SMALL, of="rmsnorm", digits=0):
    return published.percent(label, of, direction, shape, digits)


# %% tags=["remove-input"]
show(ladder(record, "rmsnorm", "both", TRAIN))

# %% tags=["remove-input"]
show(
    "The whole ladder at a glance, forward and backward together, for 65536 rows of 4096 columns: each bar is one version of the "
    f"same operator, as a share of what the memory of this GPU allows, an {record.environment.gpu}. The rest of the chapter climbs it."
)

# %% [markdown]
# ## What it computes, and where
#
# Each block of a Llama-style model normalizes its input twice, before attention and before the MLP, and the model once
# more at the end. For every token, a row $x$ of $n$ columns (the hidden size), with one learned weight $w$ a column
# ([Zhang and Sennrich 2019](../references.md)):
#
# $$y = x \cdot r \cdot w, \qquad r = \frac{1}{\sqrt{\frac{1}{n}\sum_i x_i^2 + \varepsilon}}$$
#
# Unlike layer norm it subtracts no mean, so a row needs just one sum.

# %%
x, w = rmsnorm.make_inputs((4, 8), torch.float32)
y = x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6) * w
print("same as torch's:", torch.allclose(y, torch.nn.functional.rms_norm(x, (8,), w, 1e-6)))

# %% [markdown]
# ## How fast can it be?
#
# Before any kernel: **what is the least time that this can take?** Count the floating-point operations, and the bytes
# that must cross device memory at least once, at 16384 rows of 4096 columns in bfloat16.

# %%
cost = rmsnorm.cost(SMALL, torch.bfloat16, "forward")
flops = [[term, f"{count / 1e6:.2f} million"] for term, count in cost.flop_terms.items()]
moved = [[term, f"{count / 2**20:.2f} MiB"] for term, count in cost.byte_terms.items()]
show(Table(["FLOPs", "how many"], flops), Table(["bytes", "how many"], moved))

# %%
here = roofline.roofline(record, "rmsnorm", SMALL, "forward")
show(
    f"That is **{here.intensity:.2f} FLOPs a byte**. In the run that this chapter reports, a large copy went at "
    f"{record.ceilings.copy_gbps:.0f} GB/s and a large bfloat16 matrix product at {record.ceilings.matmul_tflops:.0f} "
    f"TFLOP/s, so this GPU can do {here.ridge:.0f} FLOPs in the time that a byte takes. RMSNorm asks for less than a "
    f"hundredth of that: it is **{here.bound}-bound**, and its floor is bytes over bandwidth, "
    f"**{here.floor_us:.1f} us**. Every percentage below is that floor over the measured time."
)

# %% [markdown]
# <details><summary>Question: would it help to compute in bfloat16 rather than in float32?</summary>
#
# No. The arithmetic is nowhere near the limit, and squares summed in bfloat16 would lose the result: with 8 bits of
# mantissa, adding 1 to 256 changes nothing. The kernels load bfloat16, compute in float32, and store bfloat16.
#
# </details>
#
# ## The baseline
#
# `torch.nn.functional.rms_norm` is one fused CUDA kernel in eager mode, not a chain of small ones. **Prediction:** one
# read and one write, so near the floor.

# %% tags=["remove-input"]
show(
    f"**Outcome:** {percent('torch eager')} of the ceiling at 4096 columns, {percent('torch eager', shape=WIDE)} at "
    f"16384, and forward plus backward {percent('torch eager', 'both', TRAIN)}. The wider the row, the worse. Its "
    "kernel reads a row for the sum and again for the product; that the second read no longer finds a long row in cache "
    "would explain it. The Triton kernels below do both, so we can see."
)

# %% [markdown]
# ## Triton, naive
#
# A Triton kernel is one *program*, run many times side by side; each learns from `tl.program_id` which part of the
# work is its own, and works on blocks of elements at once. The first version does what you would write in eager
# PyTorch: a kernel for `r`, then a kernel for the product.

# %% tags=["remove-input"]
show(code(triton_rmsnorm._rmsnorm_rstd_naive, triton_rmsnorm._rmsnorm_scale_naive))

# %% [markdown]
# Three habits to keep from it. Columns past the end of the row are masked, because blocks have power-of-two sizes and
# rows do not; a masked load gives 0, which adds nothing to the sum. The row offset is 64-bit: in a tensor of more than
# 2^31 elements a 32-bit one overflows. And the sum is kept in float32 (`ACC`).
#
# **Prediction:** x crosses device memory twice and y once, three units where two are needed. So at most two thirds of
# the ceiling.

# %% tags=["remove-input"]
show(f"**Outcome:** {percent('triton:naive')}, and {percent('triton:naive', shape=WIDE)} for the wide rows.")

# %% [markdown]
# ## Fused: one kernel
#
# If the same program does both steps, its second look at the row comes right after the first, and the row may still be
# in cache. **Prediction:** the second read is served by L2, so close to the ceiling.

# %% tags=["remove-input"]
show(code(triton_rmsnorm._rmsnorm_forward_fused))

# %% tags=["remove-input"]
show(
    f"**Outcome:** {percent('triton:fused')} at 4096 columns, but {percent('triton:fused', shape=WIDE)} at 16384. "
    "A program reads its row in blocks of 1024, one block after the other, and can load nothing for the second "
    "look before the first is done. A long row means a long chain of waits, and more rows in flight than L2 can hold."
)

# %% [markdown]
# (`ADD` is the same kernel with the residual add fused in; skip it for now.)
#
# ## One pass: the row in registers
#
# Why look twice at all? A row of 4096 bfloat16 is 8 KiB, and a multiprocessor has 256 KiB of registers. One block as
# wide as the row holds all of it: load once, sum, multiply, store. All loads of the row are issued at once, so their
# latency is paid once. **Prediction:** two units of traffic, so the ceiling less the launch and the last, half-empty
# wave of programs: above 90%.

# %% tags=["remove-input"]
show(code(triton_rmsnorm._rmsnorm_forward_one_pass))

# %% tags=["remove-input"]
show(
    f"**Outcome:** {percent('triton:one_pass')} and {percent('triton:one_pass', shape=WIDE)}. What is missing is a "
    "constant of a few microseconds, start and tail: at twice the size it is "
    f"{percent('triton:one_pass', shape=(16384, 8192))}."
)

# %% [markdown]
# ## Prefetch: a good idea that lost
#
# Can that constant be hidden? Launch just as many programs as the GPU holds, let each loop over rows, and load the
# next rows while it works on one (`num_stages` asks Triton's compiler for that, through shared memory). The weight is
# then read once by each program, too. **Prediction:** a few percent more.

# %% tags=["remove-input"]
show(code(triton_rmsnorm._rmsnorm_forward_rows))

# %% tags=["remove-input"]
show(
    f"**Outcome:** {percent('triton:prefetch')}, less than the {percent('triton:one_pass')} without. Memory was "
    "already kept busy by the many independent programs of the version before. Now rows are dealt out in advance: "
    "a program that falls behind keeps its rows, where the hardware's scheduler would have given them to another; and "
    "each row takes a detour through shared memory. Forward there is nothing to win by loading ahead. Keep the kernel in "
    "mind, though: backward it wins."
)

# %% [markdown]
# ## Tuned
#
# The last Triton rung adds no idea. It takes, for each pass and each length of row, the faster of the two before, and
# gives rows too long for registers the two-look kernel with large blocks and a request to the cache to keep the row
# between its looks.

# %% tags=["remove-input"]
show(ladder_of("rmsnorm", "triton"), code(triton_rmsnorm.forward_tuned, triton_rmsnorm.backward_tuned))

# %% [markdown]
# ## CUDA C++: the same ideas by hand
#
# In CUDA you write what one *thread* does. Triton's compiler chose how a block of columns spreads over threads, how
# wide each load is, and how threads add up their parts. Now that is yours.
#
# **naive.** A block of 256 threads takes a row, each thread every 256th element, two bytes at a time; a tree in shared
# memory adds up. **Prediction:** the traffic of the fused Triton kernel, with eight times its load instructions: worse.

# %%
SOURCE = cuda_rmsnorm.SOURCE
show(cuda_code(SOURCE, "template <typename A> __device__ inline A tree_sum", "template <typename T, bool ADD>"))
show(cuda_code(SOURCE, "__global__ void rmsnorm_forward_naive", "template <typename T, bool ADD>"))

# %% tags=["remove-input"]
show(f"**Outcome:** {percent('cuda:naive')}, and {percent('cuda:naive', shape=WIDE)} for wide rows.")

# %% [markdown]
# **vectorized.** Each load takes 16 bytes, the most that one thread can ask for, and warps add up by shuffles: registers
# passed between threads, one barrier in place of nine. The row is still read twice. **one_pass** keeps it in registers,
# as in Triton. One template serves both; `KEPT` says whether a row stays between its two uses.

# %% tags=["remove-input"]
show(cuda_code(SOURCE.with_name("rows.cuh"), "// Sum over LANES", "// Clusters"))
show(cuda_code(SOURCE, "template <typename T, int VEC, int THREADS, bool KEPT, int HELD", "// vectorized and one_pass, backward"))

# %% tags=["remove-input"]
show(
    f"**Prediction** for vectorized: as Triton's fused. **Outcome:** {percent('cuda:vectorized')} and "
    f"{percent('cuda:vectorized', shape=WIDE)}. **Prediction** for one_pass: as Triton's. **Outcome:** "
    f"{percent('cuda:one_pass')} and {percent('cuda:one_pass', shape=WIDE)}.",
    "Where CUDA earns its keep is the longest row. Triton widens what it loads to 32 bits. A row of 65536 columns would "
    "fill all registers so, and Triton has to read it twice. CUDA keeps it as it was loaded, two numbers to a register (`stay_packed` tells "
    "the compiler not to widen them early), 65536 columns to a block of 1024 threads. At 65536 columns: "
    f"{percent('triton:tuned', shape=LONG)} for Triton, {percent('cuda:one_pass', shape=LONG)} for CUDA.",
)

# %% [markdown]
# ## Backward
#
# Given $\mathrm{d}y$, with $g = w \cdot \mathrm{d}y$:
#
# $$\mathrm{d}x = r\,g - x\,r^3\,\frac{1}{n}\sum_i g_i x_i, \qquad \mathrm{d}w = \sum_{\text{rows}} \mathrm{d}y \cdot x \cdot r$$
#
# <details><summary>Where does the second term of dx come from?</summary>
#
# $y_j = x_j\,r\,w_j$, and $r$ depends on every $x_i$: $\partial r / \partial x_i = -r^3 x_i / n$. So
# $\mathrm{d}x_i = r\,w_i\,\mathrm{d}y_i + \sum_j \mathrm{d}y_j\,w_j\,x_j \cdot (-r^3 x_i / n)$.
#
# </details>
#
# dx is like the forward pass: one sum along the row. dw is the new problem: a sum **down the rows**, across all the
# programs, and it must be the same on every run.

# %%
backward = rmsnorm.cost(TRAIN, torch.bfloat16, "backward")
show(Table(["bytes", "how many"], [[term, f"{count / 2**20:.2f} MiB"] for term, count in backward.byte_terms.items()]))

# %% [markdown]
# Three ways to add up dw, each a rung:
#
# - **naive:** a kernel of its own, a program for each group of columns that walks down all rows. It reads x and dy a third
#   time, and has too few programs to fill the GPU.
# - **fused:** every row adds its share to one array with atomics. No third read, but each element of dw gets one atomic
#   addition per row, and their order, so the last bits of the result, changes from run to run.
# - **one_pass and later:** a program takes many rows and keeps its own sum in registers; at the end each writes one partial
#   row, and a small kernel adds those up, always in the same order.

# %% tags=["remove-input"]
show(code(triton_rmsnorm._rmsnorm_backward_rows))

# %% [markdown]
# **Prediction:** naive below 40%, because it moves eight units where three are needed; atomics better; partial sums
# close to the ceiling. Loading ahead (`STAGES`) should matter now: a program works on one row at a time, and between the
# load of a row and its sum it has nothing else to do.

# %%
show(ladder_table(record, "rmsnorm", "backward", TRAIN), ladder_table(record, "rmsnorm", "backward", TRAIN_WIDE))

# %% tags=["remove-input"]
show(
    f"**Outcome:** at 4096 columns as predicted, from {percent('triton:naive', 'backward', TRAIN)} over "
    f"{percent('triton:fused', 'backward', TRAIN)} (atomics) and {percent('triton:one_pass', 'backward', TRAIN)} to "
    f"{percent('triton:prefetch', 'backward', TRAIN)} with loads ahead. At 16384 columns it is the other way round: "
    f"{percent('triton:one_pass', 'backward', TRAIN_WIDE)} without, {percent('triton:prefetch', 'backward', TRAIN_WIDE)} "
    "with. There one row is 64 KiB of x and dy: a single row in flight already keeps memory busy, and the copy through "
    "shared memory only costs."
)

# %% [markdown]
# **CUDA, pipelined (Hopper).** Since Hopper a single thread can ask the *bulk copy engine* for a whole row; the engine
# writes it into shared memory and signals a barrier there (an *mbarrier*) when it has arrived. Here a ring of two to
# four rows is always under way. Rows longer than one block can hold are shared out over a *cluster*: blocks that may
# write into each other's shared memory, and so add up their sums without going through device memory.

# %% tags=["remove-input"]
show(cuda_code(SOURCE, "template <typename T, int THREADS, int HELD, int STAGES, int CLUSTER, bool ADD>", "#endif"))

# %% tags=["remove-input"]
show(
    f"**Prediction:** as Triton's prefetch, without its registers. **Outcome:** "
    f"{percent('cuda:pipelined', 'backward', TRAIN)} at 4096 columns, against {percent('cuda:one_pass', 'backward', TRAIN)} "
    f"for one_pass and {percent('triton:tuned', 'backward', TRAIN)} for the best of Triton; "
    f"{percent('cuda:pipelined', 'backward', TRAIN_WIDE)} at 16384."
)

# %% [markdown]
# The slot of a row is read twice, before the sum and after it. The first version kept x and dy in registers in between;
# at 16384 columns that needed a cluster of two blocks, whose barrier cost more than it saved. Reading the slot again
# left the registers to dw, and one block was enough.
#
# ## What the compilers made of it
#
# How many rows can be under way at once? A multiprocessor has 65,536 registers and, on an H100, 228 KiB of shared memory;
# its blocks share both. So what a block takes says how many fit. The compilers tell it without a GPU, for every
# architecture: registers of a thread, then bytes spilled to memory if any, then KiB of shared memory of a block.

# %%
taken = [row for row in resources.published("rmsnorm").rows if row.operator == "rmsnorm" and row.arch in ("sm_75", "sm_90", "sm_120")]
show(resources.table(taken))

# %% tags=["remove-input"]
assert not any(row.spilled for row in taken if row.arch == "sm_90")


def blocks_by_registers(rung, kernel):
    row = next(r for r in taken if (r.implementation, r.kernel.partition("<")[0], r.arch) == (rung, kernel, "sm_90"))
    return f"{row.registers} registers for each of {row.threads} threads, so {65536 // (row.registers * row.threads)} blocks"


show(
    "Nothing spills on sm_90. Forward, `triton:one_pass` takes "
    f"{blocks_by_registers('triton:one_pass', '_rmsnorm_forward_one_pass')} fit, each with a row under way: plenty. "
    f"Backward, `triton:one_pass` takes {blocks_by_registers('triton:one_pass', '_rmsnorm_backward_rows')} "
    "fit at most, because the sums of dw live in registers; and the launcher starts only one, lest there be more partial "
    "rows to add up. That is why loads ahead matter there: few rows are under way otherwise. `cuda:pipelined` takes "
    f"{blocks_by_registers('cuda:pipelined', 'rmsnorm_backward_pipelined')} by registers; there it is the ring that fills "
    "shared memory."
)

# %% [markdown]
# ## The residual add comes along for free
#
# In the model the input of the norm is itself a sum, `x + residual`, and the sum is needed again later. By itself that
# add reads two tensors and writes one, and the norm reads it back. **Prediction:** fused, that last read goes away:
# four units instead of five, so the pair takes four fifths of the time.

# %% tags=["remove-input"]
show(
    table(record, "add_rmsnorm", "forward", columns=["torch eager", "torch.compile", "liger", "quack", "triton:tuned", "cuda:pipelined"]),
    f"**Outcome:** eager PyTorch takes {published.ratio('torch eager', 'triton:tuned', 'add_rmsnorm', 'forward', SMALL)} "
    "times as long as the fused kernel. More than the five fourths, because its norm was not at the floor to begin with.",
)

# %% [markdown]
# ## The roofline

# %%
show(roofline.plot(record, "rmsnorm", TRAIN, "both"))

# %% [markdown]
# All rungs do the same arithmetic on the same minimal bytes, so they stand above one another, far left of the ridge:
# no amount of compute would help. What separates them is how often they move a byte, and how many are under way at once.
#
# ## Who wins where, and where it loses
#
# Percent of the ceiling, everything measured in turns in one run, the best of each row in bold. torch.compile, Liger and
# QuACK are called as their users call them.

# %%
PEERS = ["torch eager", "torch.compile", "liger", "quack", "triton:tuned", "cuda:pipelined"]
show(table(record, "rmsnorm", "forward", PEERS), table(record, "rmsnorm", "both", PEERS))

# %% tags=["remove-input"]
most_of_ours = max(100 * row.fraction for row in record.at("rmsnorm", "forward", WIDE) if row.timing and row.backend != "peer")
show(
    "**Where it loses.**\n\n"
    f"- Forward at 65536 columns QuACK, which gives each row to a cluster of blocks, reaches {percent('quack', shape=LONG, digits=1)}; "
    f"ours, which gives it to one block, {percent('cuda:pipelined', shape=LONG, digits=1)}. Clusters of two to eight blocks were "
    "tried here too, and the row in shared memory, and a ring of rows as in our backward pass: all were slower, outside of any record.\n"
    f"- At 16384 columns no variant of ours got past {most_of_ours:.1f}%; torch.compile has "
    f"{percent('torch.compile', shape=WIDE, digits=1)}.\n"
    f"- At 64 rows (a decode step) a kernel is done before memory is busy: {percent('triton:tuned', shape=(64, 4096))} of the ceiling is "
    "what ours has. It starts, loads, adds and stores, each waiting for the one before. And the launch, which is not in this time, takes "
    "the CPU longer than all that. So what helps is less of it: CUDA graphs, or fusing into a neighbour.\n"
    f"- At 16384x8192 forward torch.compile is ahead by a hair, {percent('torch.compile', shape=(16384, 8192), digits=1)} "
    f"to {percent('triton:tuned', shape=(16384, 8192), digits=1)}. Its kernel is compiled for exactly this shape, ours for any; whether that is the reason, we do not know.\n"
    f"- Triton's backward at 16384 columns ({percent('triton:tuned', 'backward', TRAIN_WIDE)}) beats our own CUDA "
    f"({percent('cuda:pipelined', 'backward', TRAIN_WIDE)}): more hand-written code is not more speed."
)

# %% [markdown]
# ## What remains of the gain in the model
#
# A norm is a small part of a model. **If it takes a share s of the time and becomes g times as fast, what becomes of the
# whole?** The rest stays, so the time shrinks to 1 - s + s/g (Amdahl). Both numbers can be had before the model is run:
# the norm's own times from the layer, the share from how often a model calls it.

# %%
inside = records.published("triton_rmsnorm")
MODEL, OURS = "llama3-8b-4-layers", "torch,rmsnorm=triton,add_rmsnorm=triton"


def us(part, phase, backend, compiled, time):
    (row,) = [row for row in inside.models if row.backend == backend and row.compiled == compiled
              and (row.workload.model, row.workload.part, row.workload.phase) == (MODEL, part, phase)]
    return row.timing.median_us if time == "timing" else row.graph_us


def norms(phase):
    (workload,) = {row.workload for row in inside.models
                   if (row.workload.model, row.workload.part, row.workload.phase) == (MODEL, "model", phase)}
    return sum(call.count for call in workload.calls if "rmsnorm" in call.operator)


rows = []
for phase in ("prefill", "decode"):
    for compiled in (False, True):
        for how, time in (("as called", "timing"), ("in a graph", "graph_us")):
            norm, whole = us("post_attention_layernorm", phase, "torch", compiled, time), us("model", phase, "torch", compiled, time)
            gain = norm / us("post_attention_layernorm", phase, OURS, compiled, time)
            share = norms(phase) * norm / whole
            found = whole / us("model", phase, OURS, compiled, time)
            numbers = gain, 100 * share, 1 / (1 - share + share / gain), found
            assert (gain > 1.05) == (how == "in a graph" and not compiled)  # what is said of it below
            rows.append([f"{phase}, {'compiled' if compiled else 'eager'}, {how}", *(f"{number:.2f}" for number in numbers)])
show(f"On an {inside.environment.gpu}:", Table([MODEL, "norm alone", "share %", "predicted", "measured"], rows))

# %% [markdown]
# Speedups over PyTorch's operators; *norm alone* is the layer with the residual add, as the model calls it. *As called* is
# what the caller waits for, Python and launches included; *in a graph* is the GPU's work alone, launched at once.
#
# As called, the faster kernel loses. Everything here is so short that the CPU cannot launch it as fast as the GPU
# finishes it, and a call through our registry, Python around a Triton launch, costs more CPU time than PyTorch's. In a
# graph, against eager PyTorch, the norm's gain is there, and of the model's time it is the few percent that its share
# allows, as predicted. As called, the law does not hold: CPU and GPU work side by side in a model, so what the norm's caller
# waits for is no share of what the model's waits for. Under torch.compile PyTorch's norm is a kernel that the compiler may fuse with its neighbours,
# while ours stays as it is and lets nothing in; by itself it is no faster there.

# %% tags=["remove-input"]
def compiled_prefill(record):
    """How many times as fast the compiled model is in a graph with our norms."""
    (theirs,), (ours,) = ([row.graph_us for row in record.models if row.backend == backend and row.compiled
                           and (row.workload.part, row.workload.phase) == ("model", "prefill")] for backend in ("torch", OURS))
    return theirs / ours


once, twice = map(compiled_prefill, (inside, records.published("waterfall")))
assert abs(once - twice) > abs(min(once, twice, key=lambda gain: abs(gain - 1)) - 1)  # as is said: more apart than from 1
show(
    f"The compiled prefill in a graph came out {once:.2f} times as fast with them, which says nothing: another record has {twice:.2f} for "
    "the same. What such a difference can be by chance is a question of *From a kernel to a training step*."
)

# %% [markdown]
# ## On your machine
#
# This cell measures. With a GPU it times the kernels on it; without one it shows the published row.

# %% tags=["nbval-ignore-output"]
measure_here(record, "rmsnorm", "forward", SMALL, ("triton:*", "cuda:*"))

# %% [markdown]
# And this one checks, on whatever is here, that every rung computes the same as PyTorch:

# %%
x, w = rmsnorm.make_inputs((3, 1000), torch.float32)
expected = torch.nn.functional.rms_norm(x, (1000,), w, 1e-6)
for rung in ("naive", "fused", "one_pass", "prefetch", "tuned"):
    x_here, w_here = (t.cuda() if torch.cuda.is_available() else t for t in (x, w))
    with lab.trace() as calls:
        y = lab.ops.rmsnorm(x_here, w_here, backend=f"triton:{rung}").cpu()
    print(f"{calls[0].backend}:{calls[0].rung}", "ok" if torch.allclose(y, expected, atol=1e-5) else "WRONG")

# %% [markdown]
# ## Take-away
#
# - Count bytes first. For a memory-bound operator the floor is known before the first line of code, and every version is
#   judged by how near it comes.
# - Read once. Most of the gain is keeping the row between its two uses, as near as it fits.
# - Keep enough loads under way. Many small independent programs do that by themselves; where there is one big one, load
#   ahead.
# - Predict, then measure: loading ahead won in one pass and lost in the other, on the same GPU.
#
# ## Exercises
#
# Five kernels to write yourself, checked with or without a GPU: `exercises/rmsnorm.ipynb` in the repository, or
# `exercises/rmsnorm.py` with `lab check rmsnorm` in a terminal.
#
# ## References
#
# Zhang and Sennrich 2019 for the operator; Williams, Waterman and Patterson 2009 for the roofline; the Liger and QuACK
# kernels for the state of the art that this chapter measures itself against. All are on the
# [references page](../references.md).
