# %% [markdown]
# # Inference: prefill and decode
#
# **What you will see.** A model that writes text does two kinds of work: it reads the prompt, and then writes one token
# after another. They are the same forward pass, and at their floors nothing that speeds up one helps the other. You predict
# both from bytes and FLOPs, look at what the GPU took, and find out where the difference went.
#
# **What you need.** *The roofline*, and *An LLM in three hundred lines*, of which this is the measured half. No GPU: the
# times are the published ones. **Reading time:** about 25 minutes.

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
from matplotlib.figure import Figure as MplFigure

from lab.benchmark import records
from lab.benchmark.figures import figure, style, tokens_per_second
from lab.benchmark.tables import Table, model_table
from lab.notebook import show

record = records.published("baseline_torch")
ceilings = record.ceilings
SMALL, SLICE = "llama3.2-1b", "llama3-8b-4-layers"


def measured(workload, label="torch eager"):
    return record.model_row(workload, label)


prefill, decode = (record.model_workload(SMALL, phase) for phase in ("prefill", "decode"))

# %% tags=["remove-input"]
show(tokens_per_second(record, decode))

# %% tags=["remove-input"]
show(
    f"New tokens a second of the Llama-3.2-1B shape in bfloat16, writing {decode.batch} texts at once on one {record.environment.gpu}, "
    "with PyTorch's own operators as they come and under torch.compile."
)

# %% [markdown]
# ## Two questions to one model
#
# A request is a prompt and a wish for more. **Prefill** runs the whole prompt through the model at once, stores its keys
# and values in the cache, and yields the first new token. **Decode** runs that one token through, stores its keys and
# values, and yields the next; and so on until the text ends. What must each of them move and compute?

# %%
for workload in (prefill, decode):
    cost, whole = workload.cost, workload.cost.bytes
    rows = [[term, f"{moved / 1e6:.1f}", f"{100 * moved / whole:.1f}"] for term, moved in cost.byte_terms.items() if moved]
    texts, tokens = f"text{'s' * (workload.batch > 1)}", f"new token{'s' * (workload.new > 1)}"
    what = f"{workload.phase}: {workload.batch} {texts}, {workload.new} {tokens} each after {workload.context}"
    show(Table([what, "MB", "%"], rows), Table(["GFLOP", "FLOPs a byte"], [[f"{cost.flops / 1e9:.1f}", f"{cost.intensity:.1f}"]]))

# %% tags=["remove-input"]
floors = {workload: ceilings.floor_us(workload.cost) / 1e3 for workload in (prefill, decode)}
fast = {workload: workload.batch * workload.new / floors[workload] * 1e3 for workload in (prefill, decode)}
show(
    f"**Prediction.** The prefill has {prefill.cost.intensity:.0f} FLOPs for each byte, so it is bound by compute: at least "
    f"{floors[prefill]:.2f} ms, {fast[prefill]:.0f} tokens a second. A decode step has {decode.cost.intensity:.1f}, so it is "
    f"bound by memory: at least {floors[decode]:.2f} ms for {decode.batch} tokens, {fast[decode]:.0f} a second. Same "
    "weights, same GPU; a token that is read costs a small part of a token that is written."
)

# %% [markdown]
# <details><summary>Question: in the decode step, which bytes would two more texts add, and which not?</summary>
#
# The weights are read once, however many texts there are. The keys and values are each text's own. So a batch divides the
# first term of the table and not the second.
#
# </details>
#
# ## What the GPU took

# %%
show(model_table(record, prefill), model_table(record, decode))

# %% tags=["remove-input"]
def said(workload):
    eager, compiled = measured(workload), measured(workload, "torch compiled")
    return (f"{100 * eager.fraction:.0f}% of the floor's speed in eager mode and {100 * compiled.fraction:.0f}% compiled")


show(f"**Outcome.** The prefill runs at {said(prefill)}; the decode step at {said(decode)}.")

# %% [markdown]
# The percentage is floor over time, so what is missing to a hundred is time that neither bytes nor FLOPs explain. The next
# sections look for it, first where more is missing.
#
# ## Where a decode step waits
#
# How many operators does a step call, and how long has each?

# %%
calls = sum(call.count for call in decode.calls)
eager = measured(decode)
print(f"{calls} calls of operators, {eager.timing.median_us / calls:.1f} us for each; at the floor it would be "
      f"{eager.floor_us / calls:.1f} us")

# %% [markdown]
# PyTorch needs some microseconds of the CPU's time to launch a kernel, more than one kernel for some of these calls, and
# the GPU cannot run what has not been launched. The record has a measurement that takes this apart: the same step inside
# a *CUDA graph*, which the CPU launches as a whole.

# %% tags=["remove-input"]
def graphed(row):
    if row.graph_us is None:
        return f"({row.label}: not captured, {'; '.join(row.notes)})"
    return (f"{row.label} takes {row.timing.median_us / 1e3:.2f} ms as called and {row.graph_us / 1e3:.2f} ms inside a graph")


show("**Outcome.** " + "; ".join(graphed(measured(decode, label)) for label in ("torch eager", "torch compiled")) + ".")

# %% [markdown]
# torch.compile does two things here: it fuses small operators into fewer kernels, and it launches those with less Python in
# between. What is left over in the graph of eager PyTorch is the kernels' own: products with few rows, attention over the
# cache, and the gaps between dependent kernels.

# %% tags=["remove-input"]
if measured(decode, "torch compiled").graph_us > 1.5 * measured(decode, "torch eager").graph_us:
    show(
        "But inside a graph the compiled step is the slower one. That is no price of compiling; it moves bytes that nobody asked "
        "for, because of how the model kept its cache when this record was made. The chapter *Where the time goes* finds it out."
    )

# %% [markdown]
# ## Layer by layer
#
# The four-layer slice of the 8B shape was timed whole, as one block, and in three of the block's layers:

# %%
def layers(phase):
    rows = []
    for part in ("model", "block", "self_attn", "post_attention_layernorm", "mlp"):
        try:
            workload = record.model_workload(SLICE, phase, part)
        except ValueError:
            continue
        eager, compiled = measured(workload), measured(workload, "torch compiled")
        rows.append([part, f"{eager.floor_us:.1f}", *(f"{row.timing.median_us:.1f}" for row in (eager, compiled)),
                     *(f"{100 * row.fraction:.0f}" for row in (eager, compiled))])
    return Table([f"{SLICE} {phase}", "floor us", "eager us", "compiled us", "eager %", "compiled %"], rows)


show(layers("prefill"), layers("decode"))

# %% [markdown]
# <details><summary>Question: in the prefill the block's floor is less than the sum of its layers' floors. Why?</summary>
#
# A floor is the longer of two times, for bytes and for FLOPs, and each is counted as if it were one kernel. As one kernel
# the block is compute-bound, and could move the bytes of its norms while it computes products. What one layer hands to
# the next would lower the floor of a memory-bound whole as well; in the decode step it is too little to show.
#
# </details>
#
# ## What a batch buys
#
# If the weights are read once for all texts, then as many texts as possible should be written at once. How many? Here the
# floor alone, no measurement: tokens a second against texts at once, for three lengths of context.

# %%
BATCHES, CONTEXTS = [2**n for n in range(10)], (512, 2048, 8192)


def at_the_floor(batch, context):
    workload = replace(decode, batch=batch, tokens=context)
    return batch / ceilings.floor_us(workload.cost) * 1e6


# %% tags=["remove-input"]
with style():
    fig = MplFigure(figsize=(5.6, 3.8))
    axes = fig.subplots()
    curves = {context: [at_the_floor(batch, context) for batch in BATCHES] for context in CONTEXTS}
    for (context, values), marker in zip(curves.items(), "os^"):
        axes.loglog(BATCHES, values, marker=marker, markersize=6, base=2, label=f"after {context} tokens")
    axes.set(xlabel="texts at once", ylabel="tokens a second, at the floor")
    axes.set_xticks(BATCHES[::3], labels=[str(batch) for batch in BATCHES[::3]])
    axes.set_yticks([2**n for n in range(10, 20, 3)], labels=[f"{2**n}" for n in range(10, 20, 3)])
    axes.minorticks_off()
    axes.grid(axis="y")
    axes.legend(loc="upper left")
    told = "; ".join(f"after {context} tokens {values[0]:.0f} to {values[-1]:.0f}" for context, values in curves.items())
    show(figure(fig, f"Tokens a second of {SMALL} at the floor, 1 to {BATCHES[-1]} texts at once: {told}."))

# %% tags=["remove-input"]
def half(context):
    """The batch at which the cache is as many bytes as the weights."""
    terms = replace(decode, batch=1, tokens=context).cost.byte_terms
    return terms["read weights"] / terms["read keys and values of the context"]


cache = {context: replace(decode, batch=1, tokens=context).cost.byte_terms["read keys and values of the context"] for context in CONTEXTS}
show(
    "At first the curves double with the batch: the weights are free for the second text. They bend where the cache has as "
    "many bytes as the weights, at "
    + ", ".join(f"{half(context):.0f} texts of {context} tokens" for context in CONTEXTS)
    + ". Beyond that a text costs its own cache, and nothing shares that. It also has to fit: "
    + ", ".join(f"{cache[context] / 1e6:.0f} MB a text after {context}" for context in CONTEXTS)
    + "."
)

# %% [markdown]
# <details><summary>Question: what would the curves be with as many key heads as query heads?</summary>
#
# The cache of this shape serves a group of heads with each key head. Without groups it would be that many times as large,
# and the bend would come at that many times fewer texts. That is what grouped-query attention is for.
#
# </details>
#
# ## Where it loses
#
# - **The floor is not the time of any kernel.** It takes the model as one operator. Nobody's kernels hold a whole model on
#   chip; what they hand to one another crosses memory, in the prefill many times what the table above lists.
# - **One length for all.** The texts of the record all have the same context. With different ones the longest is what the
#   step waits for, unless the kernel splits the cache of long texts.
# - **A step is not a service.** Requests come and go; a server fills places that have become free, mixes prefill and decode
#   so that one uses the compute that the other leaves idle, and pages the cache. None of that is here.
#
# ## Take-away
#
# - Reading a prompt is bound by compute, writing by memory: predict each from its own ceiling.
# - A decode step is mostly the weights, read for a handful of tokens; so batch, quantize, or guess several tokens at once.
# - Small steps are lost between kernels. Fewer launches first, then better kernels.
# - The longer the context, the more the cache counts, and it is shared by no one.
#
# ## Exercises
#
# The cache's update and grouped heads are exercises of the chapter on the model: `exercises/llm.ipynb` in the repository,
# or `exercises/llm.py` with `lab check llm` in a terminal. Floors to compute by hand are those of `lab check roofline`.
#
# ## References
#
# Kwon et al. 2023 for serving with a paged cache; Ainslie et al. 2023 for grouped heads; Williams, Waterman and Patterson 2009
# for the roofline: on the [references page](../references.md).
