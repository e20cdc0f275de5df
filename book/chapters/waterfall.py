# %% [markdown]
# # From a kernel to a training step
#
# **What you will see.** A kernel has become faster. What does the layer gain that calls it, the block around that, the
# model, the training step? You derive the law that answers it, predict the shares of time from what each operator must
# at least do, and follow three swaps through five wholes, against PyTorch in eager mode and against torch.compile. Then
# you look at what the law did not foresee, at where torch.compile wins and why, and compute what would be worth
# optimizing next.
#
# **What you need.** *RMSNorm*, *Inference*, and *Where the time goes*, for its two clocks. No GPU: the times are the
# published ones. **Reading time:** about 25 minutes, exercises apart.

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
from collections import Counter
from math import fsum, inf

from lab.backends import registry
from lab.benchmark import records
from lab.benchmark.tables import NOTHING, Table
from lab.benchmark.waterfall import amdahl, gpu_us, kernels_us, steps, time_table, waterfall, waterfall_table
from lab.notebook import code, show

record = records.published("waterfall")
ceilings = record.ceilings
NORMS = ("rmsnorm", "add_rmsnorm")
SWAPS = {  # what is put in the place of PyTorch's operators
    "norms": "torch,rmsnorm=triton,add_rmsnorm=triton",
    "products": "torch,linear=cuda",
    "both": "torch,rmsnorm=triton,add_rmsnorm=triton,linear=cuda",
}
WITH = {"norms": "norms", "products": "products", "both": "norms and products"}  # in a sentence
SHORT = {"post_attention_layernorm": "norm", "mlp": "MLP", "training": "training step"}
WHOLES = {SHORT.get(workload.part, workload.part): workload for workload in record.model_workloads()}


def measured(whole, backend="torch", compiled=False):
    """The row of the record, or None if it has no time."""
    return next((row for row in record.models if row.timing and row.workload == WHOLES[whole]
                 and (row.backend, row.compiled) == (backend, compiled)), None)


def on_gpu(whole, backend="torch", compiled=False):
    """Microseconds; None where the record has none."""
    row = measured(whole, backend, compiled)
    return None if row is None else gpu_us(row)


def written(number, form=".2f"):
    return NOTHING if number is None else format(number, form)


def how(compiled):
    return "compiled" if compiled else "eager"


def listed(names):
    """a, b and c"""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def called(step):
    return SHORT.get(step.workload.part, step.workload.part)


# %% tags=["remove-input"]
show(waterfall(record, compiled=False))

# %% tags=["remove-input"]
show(
    f"Times as fast as PyTorch's eager mode on one {record.environment.gpu}, in bfloat16, at the shapes of Llama-3-8B with "
    f"{WHOLES['model'].config.num_hidden_layers} layers: first the kernels by themselves, then every whole that has them. It is "
    "the GPU's own time; a training step's is by the clock on the wall."
)

# %% [markdown]
# ## Five wholes with the same kernels in them
#
# A whole is one layer (the norm with the residual add, or the MLP), one block, a model that reads a prompt, or a step
# of training that model, its backward pass and its optimizer included. Which of the operators that have a kernel of
# ours does each call, and how often?

# %%
have_kernels = [op for op in registry.operators() if any(registry.ladder(op, backend) for backend in ("triton", "cuda"))]
rows = []
for op in have_kernels:
    counts = [sum(call.count for call in workload.calls if call.operator == op) for workload in WHOLES.values()]
    rows.append([op, *map(str, counts)])
show(Table(["calls of", *WHOLES], rows))
in_a_model = {call.operator for workload in WHOLES.values() for call in workload.calls}
assert in_a_model & set(have_kernels) == {*NORMS, "linear"}  # so says the text

# %% [markdown]
# So three operators matter here, two norms and the matrix product. Softmax is not among them, although attention
# computes one: it does so inside of its own kernel, where no other can be put. The softmax that is a kernel by itself
# draws the next token, and belongs to none of the five. The fastest softmax there is makes no whole here any faster.
# That much is known before anybody measures. How much more?
#
# ## Shares, before anything is measured
#
# Each operator's contract says how many bytes it must move and how many operations it must do, and the ceilings how
# fast that can go. Call this its floor. If every kernel ran at its floor, what share of the time would be whose?

# %%
def floors(workload):
    """{operator: microseconds that all its calls take at least}; in training AdamW's as well."""
    found = Counter()
    for call in workload.calls:
        found[call.operator] += call.count * ceilings.floor_us(call.cost(workload.torch_dtype, workload.direction))
    if workload.level == "training":
        found["AdamW"] = ceilings.memory_us(workload.cost)  # these bytes are weights and moments
    return found


least = {whole: floors(workload) for whole, workload in WHOLES.items()}
operators = list(dict.fromkeys(op for found in least.values() for op in found))
rows = []
for op in operators:
    shares = [100 * found[op] / found.total() if op in found else None for found in least.values()]
    rows.append([op, *(written(share, ".1f") for share in shares)])
rows.append(["all, us", *(f"{found.total():.0f}" for found in least.values())])
show(Table(["% of the floors", *WHOLES], rows))

# %% [markdown]
# A norm reads and writes a few numbers for each that it computes; a product does thousands of operations for each. In a
# model they stand side by side, and time is what they share.
#
# ## What is left of a gain
#
# **A part has the share $s$ of the time, and becomes $g$ times as fast. How many times as fast does the whole become?**
# Try it with numbers: the whole takes 100, the part 20 of them, and becomes twice as fast.
#
# <details><summary>Answer</summary>
#
# The part takes 10 now, and the rest still 80, so the whole takes 90. Old time over new, 100 / 90: it is a ninth faster.
# In general the rest, $1 - s$, stays, and the part shrinks to $s / g$:
#
# $$G = \frac{1}{1 - s + s / g}.$$
#
# </details>
#
# This is Amdahl's law ([Amdahl 1967](../references.md)), and here it is as this chapter computes it:

# %% tags=["remove-input"]
show(code(amdahl))

# %% [markdown]
# Its use is its limit. A kernel that takes no time at all leaves the rest, so no kernel brings more than
# $1 / (1 - s)$. Put the shares of the floors into it:

# %%
def share_of_floors(whole, *ops):
    return fsum(least[whole][op] for op in ops if op in least[whole]) / least[whole].total()


PARTS = {"norms": NORMS, "products": ("linear",)}
rows = []
for g in (1.1, 1.5, 2, inf):
    gains = [amdahl(share_of_floors(whole, *ops), g) for ops in PARTS.values() for whole in ("block", "training step")]
    rows.append(["no time at all" if g == inf else f"{g:g} times as fast", *(f"{gain:.3f}" for gain in gains)])
show(Table(["the kernels take", *(f"{part}, {whole}" for part in PARTS for whole in ("block", "training step"))], rows))

# %% tags=["remove-input"]
norms, products = (share_of_floors("training step", *ops) for ops in PARTS.values())
assert amdahl(products, 1.1) > amdahl(norms, inf) and amdahl(products, 1 / 1.1) * amdahl(norms, inf) < 1
show(
    f"**Prediction.** Norms have {100 * norms:.1f}% of a training step's floors: if they took no time at all, the step would be "
    f"{amdahl(norms, inf):.3f} times as fast. Products have {100 * products:.0f}%. A product that is a tenth faster is "
    f"worth more than norms that take no time, and one that is a tenth slower loses more than they could bring."
)

# %% [markdown]
# ## Shares, measured
#
# The record has the kernels by themselves, at each shape that the wholes give them, and the wholes. Kernels times calls
# is an operator's time; what is missing to the whole is *the rest*: attention, RoPE, SwiGLU, in training the loss and
# AdamW, and the gaps between kernels.

# %%
show(time_table(record, WHOLES["model"]), time_table(record, WHOLES["training step"]))

# %%
def share_of_time(whole, *ops, compiled=False):
    """Of PyTorch's time on the whole, that of its own kernels; None where the record does not say."""
    row = measured(whole, compiled=compiled)
    found = kernels_us(record, row) if row else {}
    ops = [op for op in ops if op in least[whole]]
    if not ops or not all(op in found for op in ops) or not gpu_us(row):
        return None
    return fsum(found[op] for op in ops) / gpu_us(row)


compared = [(part, whole) for part in PARTS for whole in ("block", "model", "training step")]
rows = []
for part, whole in compared:
    shares = [share_of_floors(whole, *PARTS[part]), *(share_of_time(whole, *PARTS[part], compiled=c) for c in (False, True))]
    rows.append([f"{part} in the {whole}", *(written(None if share is None else 100 * share, ".1f") for share in shares)])
show(Table(["share %", "of the floors", "of eager", "of compiled"], rows))

# %% tags=["remove-input"]
def told(part):
    """Which way the measured shares are off, and why that is so."""
    pairs = [(share_of_floors(whole, *PARTS[part]), share_of_time(whole, *PARTS[part])) for one, whole in compared if one == part]
    ratios = [found / predicted for predicted, found in pairs if found]
    if not ratios:
        return f"of the {part} the record has no share"
    between = f"{min(ratios):.2f} to {max(ratios):.2f} times what the floors say"
    if min(ratios) > 1:
        return f"the {part}, further from their floor than the rest, have {between}"
    if max(ratios) < 1:
        return f"the {part}, nearer to their floor than the rest, have {between}"
    return f"the {part} have {between}"


show(f"**Outcome.** Of PyTorch's eager time {'; '.join(map(told, PARTS))}.")

# %% [markdown]
# A share of the floors is a guess: that all parts are equally good. A part that is further from its floor than the
# others has a larger share than that, and more to give.
#
# ## What is noise
#
# The gains of whole models are small numbers, so ask first how small a difference can be and still be one. The record
# has some things twice: a norm's layer has no products, so *norms* and *both* run the same kernels in it, and in the MLP
# *products* and *both* do. They were timed as different candidates all the same.

# %%
again = {}  # how far two timings of the same kernels are apart
for whole, name in (("norm", "norms"), ("MLP", "products")):
    for compiled in (False, True):
        once, twice = (on_gpu(whole, SWAPS[each], compiled) for each in (name, "both"))
        if once and twice:
            again.setdefault(whole, []).append(abs(once / twice - 1))
for whole, apart in again.items():
    print(f"{whole}: the same kernels, timed twice, differ by {' and '.join(f'{100 * each:.2f}%' for each in apart)}")

# %% [markdown]
# For one kernel twice that can be much. The candidates' graphs are replayed in turns, so a drift of the clock meets all
# of them; but a matrix product runs as fast as power allows just then (*How to time a kernel*), and how much power is
# left depends on what ran before it. Below that difference, and below half of one percent in any case, a difference counts
# as noise here: for the norm's layer by its own pairs; for whatever is longer by the MLP's, of a training step also by
# the confidence intervals of its medians.

# %%
NOISE = {whole: max([0.005, *again.get("norm" if whole == "norm" else "MLP", [])]) for whole in WHOLES}
intervals = [1.96 * row.timing.relative_error for row in record.models if row.timing and row.workload.level == "training"]
NOISE["training step"] = max([NOISE["training step"], *intervals])
show(Table(["noise", *NOISE], [["%", *(f"{100 * noise:.2f}" for noise in NOISE.values())]]))

# %% [markdown]
# ## The waterfall, eager
#
# Now both numbers are there: $s$ from above, and $g$ from the kernels' own times. *Amdahl* is the prediction, *measured*
# what the GPU took; the last column is the gain by the clock on the wall.

# %%
for backend in SWAPS.values():
    show(waterfall_table(record, backend, compiled=False))

# %% tags=["remove-input"]
def outcome(compiled):
    """How well Amdahl's law did on every whole, and what it comes to at the end."""
    found = [(name, step) for name, backend in SWAPS.items() for step in steps(record, backend, compiled)
             if step.expected and step.measured]
    if not found:
        return f"**Outcome.** The record has no {how(compiled)} whole whose kernels it has times of."
    near = [each for each in found if abs(each[1].measured / each[1].expected - 1) <= NOISE[called(each[1])]]
    name, worst = max(found, key=lambda each: abs(each[1].measured / each[1].expected - 1))
    text = (
        f"**Outcome.** Of {len(found)} rows {len(near)} are what was predicted, but for noise. Furthest off is the "
        f"{called(worst)} with our {WITH[name]}: expected {worst.expected:.3f}, measured {worst.measured:.3f}."
    )
    unchanged = [each for each in found if abs(each[1].measured - 1) <= NOISE[called(each[1])]]
    text += (
        f" Mind how little that proves: \"nothing changes\" is right in {len(unchanged)} of the {len(found)} rows as well. Most of the "
        "changes that the law predicts are smaller than the noise."
    )
    for name, step in found:
        if called(step) == "training step":
            text += (
                f" With our {WITH[name]} these kernels became {step.kernel:.2f} times as fast by themselves, and the "
                f"training step {step.measured:.3f} times."
            )
    return text


show(outcome(compiled=False))

# %% tags=["remove-input"]
def by_swap(pairs):
    """Names of wholes, for each swap: "norms in the block and model; products in the MLP"."""
    found = {name: [whole for one, whole in pairs if one == name] for name, _ in pairs}
    said = {name: listed(["norm's layer" if whole == "norm" else whole for whole in wholes]) for name, wholes in found.items()}
    return "; ".join(f"{WITH[name]} in the {wholes}" for name, wholes in said.items())


slower = [(name, called(step)) for name, backend in SWAPS.items() for step in steps(record, backend, False)
          if step.measured and step.measured < 1 - NOISE[called(step)]]
if slower:
    show(f"Slower than PyTorch's eager mode: {by_swap(slower)}. The law works both ways: a small share hides a loss as it hides a gain, a large one shows both.")
else:
    show("No swap has made a whole slower than PyTorch's eager mode, but for noise.")

# %% [markdown]
# <details><summary>Question: the gain of both, is it the product of the two gains?</summary>
#
# No. Once the products take less time, the norms have a larger share of what is left; once they take more, a smaller
# one. What adds up is the time saved, not the factors. For small gains the difference is small as well.
#
# </details>
#
# ## The waterfall against torch.compile
#
# Eager PyTorch is an easy opponent: it runs every addition as a kernel of its own. The one to beat is torch.compile. So
# here is everything at once, in microseconds of the GPU, the least time of each whole in bold:

# %% tags=["hide-input"]
CANDIDATES = [("torch", "torch"), *SWAPS.items()]
rows, columns = [], {whole: [] for whole in WHOLES}
for name, backend in CANDIDATES:
    for compiled in (False, True):
        times = [on_gpu(whole, backend, compiled) for whole in WHOLES]
        rows.append([f"{'our ' if name in PARTS else ''}{name}, {how(compiled)}", *(written(us, ".0f") for us in times)])
        for whole, us in zip(WHOLES, times):
            columns[whole].append(inf if us is None else us)
best = {(us.index(min(us)), column) for column, us in enumerate(columns.values(), start=1) if min(us) < inf}
show(Table(["us", *WHOLES], rows, best=frozenset(best)))

# %% tags=["remove-input"]
def least_of(whole, *who):
    """The least time of the candidates for which there is one, else None."""
    times = [us for us in (on_gpu(whole, backend, compiled) for backend, compiled in who) if us is not None]
    return min(times, default=None)


OURS = [(backend, compiled) for backend in SWAPS.values() for compiled in (False, True)]
races = {whole: (least_of(whole, ("torch", True)), least_of(whole, *OURS)) for whole in WHOLES}
races = {whole: (theirs, ours) for whole, (theirs, ours) in races.items() if theirs and ours}
lost = [whole for whole, (theirs, ours) in races.items() if ours / theirs - 1 > NOISE[whole]]
won = [whole for whole, (theirs, ours) in races.items() if theirs / ours - 1 > NOISE[whole]]
even = [whole for whole in races if whole not in lost + won]
sentences = []
if lost:
    sentences.append(f"torch.compile alone, with no kernel of ours, wins: {listed(lost)}.")
if won:
    gains = [f"{whole} ({races[whole][0] / races[whole][1]:.3f} times as fast)" for whole in won]
    sentences.append(f"The best candidate with kernels of ours wins: {listed(gains)}.")
if even:
    sentences.append(f"No difference but noise: {listed(even)}.")
if races and not won:
    sentences.append("By the GPU's time, no swap here is worth making once the model is compiled.")
show("**Outcome.** " + " ".join(sentences or ["The record has no time of a compiled whole."]))

# %% [markdown]
# ### What torch.compile does better
#
# First, where does it save time itself? Its gain over eager mode, taken apart as above:

# %% tags=["hide-input"]
rows, saved = [], {}
for whole in ("block", "model", "training step"):
    before, after = measured(whole), measured(whole, compiled=True)
    if not (before and after and gpu_us(before) and gpu_us(after)):
        continue
    eager, compiled = kernels_us(record, before), kernels_us(record, after)
    parts = {part: [op for op in ops if op in least[whole]] for part, ops in PARTS.items()}
    if not all(op in eager and op in compiled for ops in parts.values() for op in ops):
        continue
    us = {part: fsum(eager[op] - compiled[op] for op in ops) for part, ops in parts.items()}
    all_of_it = gpu_us(before) - gpu_us(after)
    saved[whole] = us | {"rest": all_of_it - fsum(us.values())}
    rows.append([whole, *(f"{n:.0f}" for n in (*saved[whole].values(), all_of_it)), f"{gpu_us(before) / gpu_us(after):.3f}"])
show(Table(["us saved in", "norms", "products", "the rest", "all", "times as fast"], rows))

# %% tags=["remove-input"]
faster = {whole: us for whole, us in saved.items() if fsum(us.values()) > 0}
if faster:
    most = [f"{max(us, key=us.get)} ({whole})" for whole, us in faster.items()]
    show(f"Most of what it saves is saved in: {listed(most)}.")
for whole in [whole for whole in saved if whole not in faster]:
    show(f"On the GPU the compiled {whole} is no faster than the eager one; by the clock on the wall it may be.")

# %% [markdown]
# The rest is where this course has no kernel yet: SwiGLU, RoPE, in training the loss. The compiler fuses each of them
# with what stands beside it. A norm becomes one kernel with the addition before it. Products it leaves to cuBLAS, and
# attention to the kernels that eager mode has.
#
# And now ours in a compiled whole, against PyTorch's in the same compiled whole. *Kernels* holds ours against the
# kernel that torch.compile makes of the operator by itself:

# %% tags=["remove-input"]
if any(step.measured and step.kernel for backend in SWAPS.values() for step in steps(record, backend, True)):
    show(waterfall(record, compiled=True))

# %%
for backend in SWAPS.values():
    show(waterfall_table(record, backend, compiled=True))

# %%
def why(step):
    """Why a swap loses in a compiled whole, as far as the record tells."""
    if step.kernel is None or step.expected is None:
        return "not known"
    below = step.measured < step.expected * (1 - NOISE[called(step)])
    if step.kernel < 1:
        return "slower kernel, and more" if below else "slower kernel"
    return "lost around the kernel" if below else "not known"


compiled_steps = [(name, step) for name, backend in SWAPS.items() for step in steps(record, backend, True) if step.measured]
losing = [(name, step) for name, step in compiled_steps if step.measured < 1 - NOISE[called(step)]]
rows = [[f"{called(step)}, {name}", written(step.kernel, ".3f"), written(step.expected, ".3f"), written(step.measured, ".3f"), why(step)]
        for name, step in losing]
show(Table(["torch.compile wins", "kernels", "Amdahl", "measured", "because"], rows))

# %% tags=["remove-input"]
reasons = Counter(why(step) for _, step in losing)
winning = [(name, called(step)) for name, step in compiled_steps if step.measured > 1 + NOISE[called(step)]]
show(
    f"Of {len(compiled_steps)} rows torch.compile wins {len(losing)}"
    + (f" ({'; '.join(f'{reason}: {count}' for reason, count in reasons.items())})" if losing else "")
    + (f". A swap wins {len(winning)}: {by_swap(winning)}." if winning else ". A swap wins none.")
)

# %% [markdown]
# There are two ways to lose. A **slower kernel** is slower by itself, and that can be mended in the kernel (*and
# more*: the whole loses more than this explains). **Lost around the kernel** means that the kernel is no slower, and the
# whole is. In a block or a model that can be a lost fusion: torch.compile sees into its own norm, and may let what stands
# before or behind it run in the same kernel; ours is one operator to it, whose input has been written to memory, and whose
# output will be read from there. In a layer by itself nothing stands there, and it is one of the reasons below: the kernels
# were timed with a cold cache, the layer with a warm one. In a compiled model a kernel of one's own pays where it does what
# the compiler does not do, and hardly where it does the same.
#
# ## Where the law is off, and why
#
# Amdahl's law is arithmetic, so it can't be wrong; what can be wrong are the two numbers put into it, and the sentence
# *the rest stays as it is*. Three ways:
#
# ### The rest does not stay
#
# If a swapped kernel is in the way of a fusion, the rest grows. Time measured, less the time that the law expects, for
# each call of a norm:

# %% tags=["hide-input"]
rows, shrunk, grown = [], [], {False: [], True: []}
for compiled in (False, True):
    for step in steps(record, SWAPS["norms"], compiled):
        if not (step.expected and step.measured):
            continue
        whole = called(step)
        expected, found = on_gpu(whole, "torch", compiled) / step.expected, on_gpu(whole, SWAPS["norms"], compiled)
        calls = sum(call.count for call in step.workload.calls if call.operator in NORMS)
        rows.append([f"{whole}, {how(compiled)}", f"{calls}", *(f"{n:.1f}" for n in (expected, found, (found - expected) / calls)),
                     f"{100 * (found / expected - 1):.2f}"])
        if found / expected - 1 > NOISE[whole]:
            grown[compiled].append(whole)
        elif found / expected - 1 < -NOISE[whole]:
            shrunk.append(f"{whole}, {how(compiled)}")
show(Table(["our norms", "calls", "expected us", "measured us", "more, us a call", "%"], rows))

# %% tags=["remove-input"]
only_compiled = [whole for whole in grown[True] if whole not in grown[False]]
if grown[False]:
    show(f"Longer than the law says, by more than noise, in eager mode: {listed(grown[False])}. Nothing is fused there, so this has another reason.")
fused = [whole for whole in only_compiled if WHOLES[whole].level != "layer"]
if fused:
    show(f"Longer when compiled, and only then: {listed(fused)}. That is what a lost fusion looks like.")
if len(only_compiled) > len(fused):
    show("The norm's layer takes longer too when it is compiled. By itself it has nothing to fuse with: it is the call that costs more.")
if not only_compiled:
    show("No whole takes longer than the law says only when it is compiled: this record shows no lost fusion that is larger than noise.")
if shrunk:
    show(f"Shorter than the law says: {'; '.join(shrunk)}. There our kernels save more than they do by themselves. Caches, next, are one reason.")

# %% [markdown]
# ### Cold caches, and a cool GPU
#
# A kernel by itself is timed behind a clear of the L2 cache. In a whole, its input has just been written, and may still
# be there; and a CUDA graph of one small layer finds everything there from the replay before. So kernels by themselves can
# add up to more than the whole of which they are a part.
#
# <details><summary>Question: can they also add up to less than their share?</summary>
#
# Between two samples of a kernel the GPU clears and waits. A graph is replayed without a pause, and products in it, one
# after the other, reach the power limit: the clock comes down, and all of them take longer than by themselves.
#
# </details>
#
# For the layers, eager; the last column is what the floors say of the same kernels:

# %% tags=["hide-input"]
rows, ratios = [], {}
for whole in [whole for whole, workload in WHOLES.items() if workload.level == "layer"]:
    for name, backend in CANDIDATES:
        row = measured(whole, backend)
        alone = fsum(kernels_us(record, row).values()) if row else None
        if not row or not gpu_us(row) or not alone:
            continue
        ratios[whole, name] = alone / gpu_us(row), share_of_floors(whole, *kernels_us(record, row))
        rows.append([f"{whole}, {name}", f"{alone:.1f}", f"{gpu_us(row):.1f}", *(f"{n:.2f}" for n in ratios[whole, name])])
show(Table(["eager", "kernels alone, us", "whole, us", "kernels over whole", "by the floors"], rows))

# %% tags=["remove-input"]
above = [f"{whole} ({name})" for (whole, name), (ratio, _) in ratios.items() if ratio > 1]
below = [f"{whole} ({name})" for (whole, name), (ratio, floor) in ratios.items() if ratio < 0.95 * floor]
if above:
    show(f"More than all of it: {listed(above)}, as of warm caches. Where that is so for PyTorch's kernels, the share counts as one.")
if below:
    show(f"Less than the floors say: {listed(below)}. What else is in there may be further from its floor; and the clock may have "
         "come down. If it has, the products' shares above are too small, and what is counted as *the rest* is in part theirs.")
if not (above or below):
    show("In no layer are they more than the whole, or much less than the floors say.")

# %% [markdown]
# ### The clock on the wall
#
# All of this was the GPU's time. The caller waits for the CPU as well, which has to launch everything (*Where the time
# goes*). Milliseconds by both clocks; a training step has one only:

# %% tags=["hide-input"]
rows, waits = [], {}
for whole in WHOLES:
    for name, backend in CANDIDATES:
        cells, known = [], False
        for compiled in (False, True):
            row = measured(whole, backend, compiled)
            times = (row.timing.median_us, row.graph_us) if row else (None, None)
            cells += [written(None if us is None else us / 1e3) for us in times]
            if row and row.graph_us:
                known, waits[whole, name, compiled] = True, times[0] / times[1]
        if known and name in ("torch", "both"):
            rows.append([f"{whole}, {name}", *cells])
show(Table(["ms", "eager, clock", "eager, GPU", "compiled, clock", "compiled, GPU"], rows))

# %% tags=["remove-input"]
LATE = 1.1  # from there on the GPU has waited for the CPU
late = {by: [f"{whole}, {how(compiled)}" for (whole, name, compiled), ratio in waits.items() if ratio > LATE and name == by]
        for by in ("torch", "both")}
if late["torch"] or late["both"]:
    theirs_late, ours_late = ("; ".join(late[by]) or "none" for by in ("torch", "both"))
    show(f"The GPU waits for the CPU here, with PyTorch's operators: {theirs_late}. With ours: {ours_late}. What counts there is how many calls "
         "there are, and what one costs the CPU.")
else:
    show("Here the GPU is never kept waiting by much, and both clocks tell the same gains.")
theirs, ours = measured("norm"), measured("norm", SWAPS["norms"])
if theirs and ours:
    pair = f"{theirs.timing.median_us:.0f} us with PyTorch's operators and {ours.timing.median_us:.0f} us with ours"
    if ours.timing.median_us > theirs.timing.median_us:
        show(f"The norm's layer takes its caller {pair}: a call through our registry, Python around a launch, costs the CPU more than PyTorch's.")
    else:
        show(f"The norm's layer takes its caller {pair}.")
turned = [(name, called(step)) for name, backend in SWAPS.items() for step in steps(record, backend, False)
          if step.measured and step.measured > 1 + NOISE[called(step)] and step.clock < 1 - NOISE[called(step)]]
if turned:
    show(f"Faster on the GPU and slower by the clock, in eager mode: {by_swap(turned)}. A CUDA graph takes that price away, a larger batch hides it; torch.compile "
         "makes PyTorch's launches cheaper, and ours not.")
else:
    show("No swap that makes an eager whole faster on the GPU makes it slower by the clock.")

# %% [markdown]
# ## What would be worth optimizing next?
#
# The worst kernel? The largest share? Neither alone. A part with the share $s$ that takes $g$ times its floor can
# become $g$ times as fast and no more, so the most that is to be had is Amdahl's law with just these two numbers:
# largest share times what is possible. Starting from the fastest candidate of the record:

# %%
def next_table(whole):
    """The table of the fastest candidate, what has most to give first; that part, and the whole's gain; the part that is
    furthest from its floor; what the rest consists of."""
    everyone = [row for row in record.models if row.workload == WHOLES[whole] and not row.of_peer and row.timing and gpu_us(row)]
    if not everyone:
        return None
    row = min(everyone, key=gpu_us)
    found = kernels_us(record, row)
    parts = {op: (us, least[whole][op]) for op, us in found.items()}
    others = [op for op in least[whole] if op not in found]
    rest = gpu_us(row) - fsum(found.values())
    if rest > 0 and others:
        parts["the rest"] = rest, fsum(least[whole][op] for op in others)
    gains = {part: amdahl(us / gpu_us(row), us / floor) for part, (us, floor) in parts.items()}
    order = sorted(parts, key=gains.get, reverse=True)
    cells = [[part, f"{100 * us / gpu_us(row):.1f}", f"{us:.0f}", f"{floor:.0f}", f"{us / floor:.2f}", f"{gains[part]:.3f}"]
             for part in order for us, floor in [parts[part]]]
    name = next((name for name, backend in CANDIDATES if backend == row.backend), row.backend)
    table = Table([f"{whole}: {name}, {how(row.compiled)}", "share %", "us", "floor us", "over floor", "at the floor"], cells)
    return table, order[0], gains[order[0]], max(parts, key=lambda part: parts[part][0] / parts[part][1]), others


next_steps = {whole: found for whole in ("model", "training step") if (found := next_table(whole))}
show(*(found[0] for found in next_steps.values()))

# %% tags=["remove-input"]
for whole, (_, first, gain, furthest, others) in next_steps.items():
    text = f"In the {whole} the most is to be had in {first}: at its floor the whole would be {gain:.3f} times as fast."
    if furthest != first:
        text += f" Furthest from its floor is {furthest}, which has less to give: its share is smaller."
    if first == "the rest":
        text += f" It is {listed(others)}, each at its own floor, with every gap between kernels; to see whose it is takes a profiler."
    show(text)

# %% [markdown]
# (AdamW's floor is one pass over weights and moments; *Training it* counts the passes that clipping and a separate copy of
# the weights take, and with those less is to be had in the step's rest.)
#
# The last column is the whole's gain if that part came down to its floor and all else stayed: an upper bound, and for
# a product near the ceiling or a norm near the copy one that cannot be had in full. It is also short of one thing: a
# floor belongs to an operator. Two operators in one kernel have a lower one than two kernels, and that is what
# torch.compile lives on.
#
# ## Where it loses
#
# - **A share is a snapshot.** It belongs to a shape, a batch and a GPU. Decode has other shares, and another bound, than
#   the prefill here (*Inference*); with longer texts attention's share grows.
# - **Four layers are not a model.** The head and the loss come once, whatever the number of layers; here their share is larger
#   than in the whole 8B.
# - **Shares of compiled wholes are estimates.** What torch.compile makes of an operator by itself is not the kernel that
#   it makes in the model, where it may be half of another.
# - **The kernels of a training step are timed alone.** Ours are their two passes one after the other, PyTorch's go through
#   autograd; and in a step the backward pass comes long after the forward one, its input no longer in a cache.
# - **A step by one clock.** AdamW is not captured in a graph, so of a training step it cannot be told here what the GPU
#   waited for.
# - **Time is not all.** The loss over the whole vocabulary is a matter of memory before it is one of time. A kernel that
#   saves memory pays in batch size, which no column here has.
#
# ## On your machine
#
# `lab reproduce waterfall` measures all of this again. For one of the wholes:
#
# ```sh
# lab bench --level block --model llama3-8b-4-layers --phase prefill --backend torch,rmsnorm=triton,add_rmsnorm=triton --compile
# ```
#
# ## Take-away
#
# - The whole gains what the share allows: $1 / (1 - s + s / g)$, and never more than $1 / (1 - s)$. Know $s$ before you
#   write the kernel.
# - Shares can be predicted from contracts. What has been measured differs by how badly each part is done.
# - Hold a kernel against torch.compile, in a compiled model. By itself it can win and still lose there.
# - Times add up, speeds do not; and a slower kernel with a large share undoes many faster ones.
# - What is worth doing next is the part whose time above its floor is largest. It is seldom the kernel that one would
#   like to write.
#
# ## Exercises
#
# Six functions that predict what a faster kernel brings, checked without a GPU: `exercises/waterfall.ipynb` in the
# repository, or `exercises/waterfall.py` with `lab check waterfall` in a terminal.
#
# ## References
#
# Amdahl 1967 for the law; Ansel et al. 2024 for torch.compile; Williams, Waterman and Patterson 2009 for the floor: on
# the [references page](../references.md).
