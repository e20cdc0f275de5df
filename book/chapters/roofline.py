# %% [markdown]
# # The roofline
#
# **What you will see.** Before a kernel is written: how fast can it be? Two numbers of the operator answer that, the
# operations that it does and the bytes that it must move, with two of the GPU, which are measured. You count both for
# every operator of a Llama-style model, see which of the two binds it, and where the answer is wrong.
#
# **What you need.** PyTorch. No GPU: nothing is timed on this page. **Reading time:** about 25 minutes, exercises
# apart.

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
from dataclasses import replace

import torch

from lab.backends.registry import operator, operators
from lab.benchmark import records
from lab.benchmark.candidates import Workload
from lab.benchmark.tables import Table, shape_text
from lab.notebook import Folded, explore, show
from lab.profiling import roofline

record = records.published("rmsnorm")
ceilings = record.ceilings


def at(name, shape, direction="forward", dtype="bfloat16"):
    return roofline.of(record, Workload(name, shape, dtype, direction))


# Each operator at its first named shape, which is one of Llama-3-8B's or of a model as large.
first = {name: next(iter(op.shapes.values())) for name, op in operators().items()}
by_intensity = sorted(first, key=lambda name: at(name, first[name]).intensity)

# %% tags=["remove-input"]
show(roofline.places(record, {name: [Workload(name, first[name], "bfloat16", "forward")] for name in by_intensity}))

# %% tags=["remove-input"]
slow = [name for name in by_intensity if at(name, first[name]).bound == "memory"]
fast = [name for name in by_intensity if at(name, first[name]).bound == "compute"]
show(
    f"The forward pass of every operator in this course, at the sizes of a real model, on an {record.environment.gpu}. {len(slow)} of {len(first)} lie on "
    f"the slope: their time is the time that memory takes ({', '.join(slow)}). The others lie on the flat part, where "
    f"arithmetic takes longer than memory ({' and '.join(fast)}). The number beside each name is what places it there."
)

# %% [markdown]
# ## Two ceilings
#
# A GPU does two things at the same time: it moves bytes between its memory and its
# [multiprocessors](../glossary.md#multiprocessor), and it computes. How fast is each?
# A datasheet has an answer ([NVIDIA](../references.md)). But no program reaches it: memory has to be refreshed, and the clock falls where power runs short. So in this course
# both are measured, in the same run as the kernels that are held against them, with the plainest work there is: a copy of
# more bytes than any cache holds, and a product of two large matrices.

# %% tags=["remove-input"]
copied = f"a copy of {ceilings.copy_bytes / 2**30:.0f} GiB, read plus written"
# What NVIDIA states: GB/s of device memory, and TFLOP/s of dense bfloat16 products.
DATASHEETS = {"NVIDIA H100 80GB HBM3": (3350, 989), "NVIDIA H200": (4800, 989)}
stated = DATASHEETS.get(record.environment.gpu, ("-", "-"))
assert stated == ("-", "-") or (ceilings.copy_gbps < stated[0] and ceilings.matmul_tflops < stated[1])
product = f"a {ceilings.matmul_dtype} product of two {ceilings.matmul_size} x {ceilings.matmul_size} matrices"
show(
    f"On an {record.environment.gpu}:",
    Table(
        ["ceiling", "measured with", "reached", "datasheet"],
        [
            ["bandwidth, GB/s", copied, f"{ceilings.copy_gbps:.0f}", f"{stated[0]}"],
            ["rate, TFLOP/s", product, f"{ceilings.matmul_tflops:.0f}", f"{stated[1]}"],
        ],
    ),
)

# %% [markdown]
# A GB is $10^9$ bytes here, and a TFLOP $10^{12}$ operations. KiB, MiB and GiB, the powers of two, are for sizes in
# memory.
#
# ## Count the operations
#
# What does `swiglu(gate, up)`, which is `silu(gate) * up`, compute for one element? With $g$ and $u$ the two inputs,
#
# $$y = \frac{g}{1 + e^{-g}} \cdot u$$
#
# An exponential, an addition, a division, a multiplication: four floating-point operations, or
# [FLOPs](../glossary.md#flop). (The sign is part of the exponential's argument.) An exponential is more work than an
# addition, and a division too, but that will not matter. In a matrix product each multiplication comes with an
# addition, and the hardware does both at once; they count as **two**. So $y = x\,w^T$, with $x$ of $m \times k$ and $w$
# of $n \times k$, takes $2mnk$.
#
# ## Count the bytes
#
# Of all the memory on a GPU, only [device memory](../glossary.md#device-memory) is slow enough to matter here. What is
# the least that must cross it? Every input once, every output once. What lies between may stay in
# [registers](../glossary.md#register) and caches, and a good kernel keeps it there. An element of bfloat16 takes two
# bytes.
#
# Each operator of the package states both counts, term by term. Here are SwiGLU and a linear layer:

# %%
for name in ("swiglu", "linear"):
    cost = operator(name).cost(first[name], torch.bfloat16, "forward")
    rows = [[term, f"{count / 1e6:.2f}", "-"] for term, count in cost.flop_terms.items()]
    rows += [[term, "-", f"{count / 1e6:.2f}"] for term, count in cost.byte_terms.items()]
    show(Table([f"{name} {shape_text(first[name])}", "MFLOP", "MB"], rows))

# %% [markdown]
# (For a linear layer of $x$ by $w$, the sizes are $m$, $n$ and $k$.) SwiGLU has hardly more operations than bytes; the
# linear layer has thousands for each.
#
# ## One number for the operator, one for the GPU
#
# With $F$ operations and $B$ bytes, the time is at least
#
# $$t \ge \max\left(\frac{F}{\text{rate}}, \frac{B}{\text{bandwidth}}\right)$$
#
# because the two can overlap, but neither can be left out. This is the operator's **floor**. Which of the two is
# larger? Divide: the operator has an **intensity** of $I = F / B$ FLOPs a byte, the GPU a **ridge** of rate over
# bandwidth, the operations that it can do in the time that a byte takes. Below the ridge memory takes longer, and the
# operator is **memory-bound**; above it, **compute-bound**. Turned round, the most that an operator can do in a second
# is
#
# $$\frac{F}{t} \le \min(\text{rate},\; I \cdot \text{bandwidth})$$
#
# which, drawn over $I$ with both axes logarithmic, is the roof in the figure above: a slope that ends at the ridge,
# then a flat line ([Williams, Waterman and Patterson 2009](../references.md)).

# %% tags=["remove-input"]
ridge = at("swiglu", first["swiglu"]).ridge
places = {name: at(name, first[name]) for name in ("swiglu", "linear")}
show(
    f"On this GPU the ridge is at **{ridge:.0f} FLOPs a byte**.\n\n"
    + "\n".join(
        f"- {name}: {here.cost.flops / 1e6:.1f} MFLOP / {here.cost.bytes / 1e6:.1f} MB = {here.intensity:.4g} FLOPs a byte, so "
        f"{here.bound}-bound, and its floor is {here.floor_us:.1f} us."
        for name, here in places.items()
    )
)

# %% [markdown]
# <details><summary>Question: SwiGLU needs four operations an element. Would a cheaper approximation of the exponential make
# it faster?</summary>
#
# No. The multiprocessors wait for memory as it is. With three operations instead of four they would wait a little
# longer.
#
# </details>
#
# ## Where the operators lie
#
# **Prediction:** what multiplies a matrix by a matrix is compute-bound, everything else memory-bound, backward as well as
# forward.

# %% tags=["remove-input"]
show(roofline.table(record, [Workload(n, first[n], "bfloat16", way) for n in by_intensity for way in ("forward", "backward")]))

# %% tags=["remove-input"]
products = {"linear", "attention"}
assert all((at(name, shape, way).bound == "compute") == (name in products) for name, shape in first.items() for way in ("forward", "backward"))
others = [at(name, shape, way).intensity for name, shape in first.items() for way in ("forward", "backward") if name not in products]
assert 20 * max(others) < ridge
show(
    f"**Outcome:** so it is, at these shapes. And there is nothing in between: the memory-bound ones have "
    f"{min(others):.2g} to {max(others):.2g} FLOPs a byte, {ridge / max(others):.0f} times below the ridge and more, so no "
    "trick of arithmetic would help any of them. All that helps is to move fewer bytes, which is what fusing two operators into one "
    "kernel does."
)

# %% [markdown]
# ## Look around
#
# Every operator, at every shape that it names. In Jupyter and in Colab a chooser comes first: pick the operator, shape,
# dtype and direction. The roof for computing was measured in bfloat16; in float32 the true one is lower.

# %% tags=["hide-input"]
explore(record)

# %% [markdown]
# ## The same layer on both sides
#
# Attention and `linear` have shapes on either side of the ridge. What makes the difference? A linear layer of $m$
# tokens reads a weight of $n \times k$ elements for any $m$. At two bytes an element,
#
# $$I = \frac{2mnk}{2(mk + nk + mn)}$$
#
# and as long as $m$ is small against $n$ and $k$, the weight is most of the bytes, and $I \approx m$. The intensity of
# a linear layer is its batch. **Prediction:** it turns compute-bound a little after $m$ passes the ridge.

# %%
n, k = 14336, 4096  # the up projection of Llama-3-8B's MLP
batches = [1, 16, 64, 256, 1024, 4096]
show(roofline.table(record, [Workload("linear", (m, n, k), "bfloat16", "forward") for m in batches]))

# %% tags=["remove-input"]
turn = next(m for m in range(1, 10_000) if at("linear", (m, n, k)).bound == "compute")
one, many = at("linear", (1, n, k)), at("linear", (64, n, k))
show(
    f"**Outcome:** from {turn} tokens on. Below that a batch costs what its weight costs to read: one token takes "
    f"{one.floor_us:.1f} us at the least, 64 tokens {many.floor_us:.1f} us. That is why a server that generates text "
    "collects requests: the second one is almost free."
)

# %% [markdown]
# ## Questions
#
# Take the ceilings from above, and a pencil; then open the answer.

# %% tags=["hide-input"]
SCORES = (16384, 4096)
scores = at("softmax", SCORES)
faster = roofline.Roofline(scores.cost, replace(ceilings, matmul_tflops=2 * ceilings.matmul_tflops))
fused, norm = at("add_rmsnorm", SCORES), at("rmsnorm", SCORES)
add_us = ceilings.memory_us(replace(norm.cost, byte_terms={"read x, read residual, write s": 3 * 2 * SCORES[0] * SCORES[1]}))
prompt, step = at("attention", operator("attention").shapes["llama3-8b"]), at("attention", operator("attention").shapes["llama3-8b-decode"])
narrow, wide = at("swiglu", first["swiglu"]), at("swiglu", first["swiglu"], dtype="float32")
doubled = replace(ceilings, copy_gbps=2 * ceilings.copy_gbps)
gains = {name: at(name, shape).floor_us / doubled.floor_us(at(name, shape).cost) for name, shape in first.items()}
assert all(round(gain, 6) == (2 if name in slow else 1) for name, gain in gains.items())

show(
    Folded(
        "How long does softmax over 16384 rows of 4096 bfloat16 take at the least? How long on a GPU that computes twice as fast?",
        (
            f"It reads and writes every element once: {scores.cost.bytes / 1e6:.0f} MB, which take {scores.floor_us:.1f} us. On the "
            f"other GPU {faster.floor_us:.1f} us: the copy is what takes the time.",
        ),
    ),
    Folded(
        "A residual add and the RMSNorm after it, one kernel each, or fused into one that also stores the sum: by how much is the floor lower?",
        (
            f"The add reads two tensors and writes one, the norm reads that and writes one: five units, {add_us + norm.floor_us:.1f} us. "
            f"Fused, the sum need not be read back: four units, {fused.floor_us:.1f} us, "
            f"{fused.floor_us / (add_us + norm.floor_us):.2f} of it.",
        ),
    ),
    Folded(
        "Attention over a prompt is compute-bound. Why is it not when one token is generated?",
        (
            f"A prompt has {prompt.intensity:.0f} FLOPs a byte: each key and value, once read, meets thousands of queries. A step has "
            f"one query for each head, and four heads share a key: {step.intensity:.1f} FLOPs a byte. The cache of keys and values is "
            f"read for it from end to end, {step.cost.bytes / 1e9:.2f} GB, so {step.floor_us:.0f} us.",
        ),
    ),
    Folded(
        "What does SwiGLU in float32 cost, compared with bfloat16?",
        (f"Twice the bytes, so twice the time: {wide.floor_us:.1f} us in place of {narrow.floor_us:.1f} us.",),
    ),
    Folded(
        "Next year's GPU has twice the bandwidth and the same rate. Which operators gain, and how much?",
        (
            "The ridge falls to half, to "
            f"{ridge / 2:.0f} FLOPs a byte. What is left of it takes half the time: {', '.join(slow)}. What is right of it gains "
            f"nothing: {', '.join(fast)}.",
        ),
    ),
)

# %% [markdown]
# ## Where it loses
#
# The model's floor is a bound, not a forecast. Four things stand between it and a clock.
#
# **It counts the fewest bytes; a kernel may move more.** A kernel that reads its input twice has a floor of its own,
# and stays under the same roof for reasons that the roof does not show. The first kernel of the [RMSNorm
# chapter](rmsnorm.ipynb) is one.

# %% tags=["remove-input"]
LARGE, SMALL = (16384, 4096), (64, 4096)
naive = record.select("rmsnorm", "forward", LARGE, "triton:naive")[0]
show(f"It takes {naive.timing.median_us:.0f} us, where the floor is {naive.floor_us:.0f} us.")

# %% [markdown]
# **Small work is over before memory is busy.** A [launch](../glossary.md#launch) takes its time, on the CPU and on the
# GPU; then come a load, a sum and a store, each of which waits for the one before. Bandwidth is what many loads in
# flight reach together; one that is alone pays for its [latency](../glossary.md#latency). Take RMSNorm for 64 tokens,
# the fastest of all that were measured:

# %% tags=["remove-input"]
timed = [row for row in record.select("rmsnorm", "forward", SMALL) if row.timing and row.graph_us and row.launch_us]
best = min(timed, key=lambda row: row.timing.median_us)
assert best.floor_us < best.graph_us < best.timing.median_us < best.launch_us
show(
    Table(
        [f"rmsnorm forward {shape_text(SMALL)}, {best.label}", "us"],
        [
            ["floor", f"{best.floor_us:.2f}"],
            ["in a CUDA graph, caches warm", f"{best.graph_us:.2f}"],
            ["alone, caches cold", f"{best.timing.median_us:.2f}"],
            ["CPU time of a call", f"{best.launch_us:.2f}"],
        ],
    )
)

# %% [markdown]
# **Caches.** What the kernel before has just written may still be in [L2](../glossary.md#l2-cache), and then does not
# cross device memory at all: such a kernel can even beat its floor. In this course every sample starts with a cold
# cache, so that it cannot.
#
# **The flat part is not one ceiling.** The rate was measured with a matrix product on
# [tensor cores](../glossary.md#tensor-core). Whatever is no product runs on other units, which are far slower: for sums
# the [datasheets](../references.md) of the H100 and the H200 have 67 TFLOP/s for float32. <!-- datasheet -->
# Exponentials are slower still: a multiprocessor begins 16 of them in a cycle, and 128 additions. For an operator of a few
# FLOPs a byte that is still plenty; attention, which needs a softmax between two products, must hide the one behind the
# others.
#
# ## Take-away
#
# - Count FLOPs and bytes before writing code. The larger of the two times is the floor, and every kernel is judged by it.
# - What is no product of matrices is memory-bound, and by far. There, fewer bytes are the only gain.
# - A linear layer's intensity is about its batch: the same layer is compute-bound in training and memory-bound in decoding.
# - The roof says how fast it can be, not how fast it is. Far below the roof, look for bytes read twice, work too small to
#   fill the GPU, and units that the roof does not know.
#
# ## Exercises
#
# Six functions to write, of a line or two each, checked without a GPU: `exercises/roofline.ipynb` in the repository, or
# `exercises/roofline.py` with `lab check roofline` in a terminal.
#
# ## References
#
# Williams, Waterman and Patterson 2009 for the model; Grattafiori and others 2024 for the shapes of Llama 3. Both are
# on the [references page](../references.md).
