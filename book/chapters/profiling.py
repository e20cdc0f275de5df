# %% [markdown]
# # Where the time goes
#
# **What you will see.** Two clocks on one step of a model, and what lies between them. You count what a step launches,
# predict its time from that count, and hold the prediction against what was measured; you profile a small model here, read what
# the trace says and whose each microsecond is, and open the same run in NVIDIA's own profilers. At the end a compiled
# model turns out to be slower on the GPU than the one that nobody compiled, and you find out why.
#
# **What you need.** *The roofline*, *An LLM in three hundred lines*, and the first half of *Inference*. No GPU: its
# times are the published ones. **Reading time:** about 25 minutes, exercises apart.

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
import os

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or some versions of torch print when the profiler starts and stops

from dataclasses import replace

import torch
from matplotlib.figure import Figure as MplFigure
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from lab.backends.hardware import default_device
from lab.benchmark import records
from lab.benchmark.figures import figure, style
from lab.benchmark.model_runs import ForwardPass
from lab.benchmark.tables import Table
from lab.core import LLM, MODELS, KVCache
from lab.core.cost import operator_calls
from lab.notebook import code, show
from lab.profiling import profiler

device = default_device()
record = records.published("baseline_torch")
ceilings = record.ceilings
SMALL, SLICE = "llama3.2-1b", "llama3-8b-4-layers"


task = record.model_workload


def measured(workload, label="torch eager", by=record):
    return by.model_row(workload, label)


def name(workload):
    short = {SMALL: "1b", SLICE: "8b, 4 layers"}[workload.model]
    return f"{short}: {workload.part} {workload.phase}"


def times(workload, label="torch eager", by=record):
    """Microseconds by the host's clock, and of the GPU alone."""
    row = measured(workload, label, by)
    return row.timing.median_us, row.graph_us


MODEL_TASKS = [task(model, phase) for model in (SMALL, SLICE) for phase in ("decode", "prefill")]

# %% tags=["remove-input"]
with style():
    fig = MplFigure(figsize=(5.6, 4.4))
    axes = fig.subplots()
    names = [f"{workload.model}\n{workload.phase}" for workload in MODEL_TASKS]
    places = range(len(MODEL_TASKS))
    host = [measured(workload).timing.median_us / 1e3 for workload in MODEL_TASKS]
    graph = [measured(workload).graph_us / 1e3 for workload in MODEL_TASKS]
    for offset, values, label, tint in ((-0.2, host, "by the host's clock", "#E69F00"), (0.2, graph, "the GPU alone", "#56B4E9")):
        axes.barh([place + offset for place in places], values, height=0.38, color=tint, label=label)
        for place, value in zip(places, values):
            axes.text(1.22 * max(host), place + offset, f"{value:.1f}", fontsize=12, ha="right", va="center")
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.22 * max(host))
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel("milliseconds a step")
    axes.tick_params(left=False)
    fig.legend(loc="outside upper center", ncols=2)
    told = "; ".join(f"{workload.model} {workload.phase} {h:.1f} and {g:.1f}" for workload, h, g in zip(MODEL_TASKS, host, graph))
    show(figure(fig, f"Milliseconds a step in PyTorch's eager mode on {record.environment.gpu}, by the host's clock and on the GPU alone: {told}."))

# %% tags=["remove-input"]
show(
    f"One forward pass in PyTorch's eager mode, in bfloat16, on one {record.environment.gpu}: what its caller waits for, and what the "
    "GPU needs if it never has to wait."
)

# %% [markdown]
# ## Two clocks
#
# When Python calls a kernel, nothing has been computed by the time the call returns. The CPU has put a
# [launch](../glossary.md#launch) into a queue; the GPU takes from it in its own time. So a step has two durations. The
# *host's clock* runs from before the first call until the GPU has done all of it: this is what a user waits for. The
# *GPU alone* is the same kernels with nothing in between, and to see that they are recorded as a [CUDA
# graph](../glossary.md#cuda-graph), which the CPU submits as one. Which of the two decides?
#
# A prefill of a long prompt and a decode step of a few texts run the same code, the same calls in the same order. What
# they compute is very different:

# %%
decode, prefill = task(SMALL, "decode"), task(SMALL, "prefill")
rows = []
for workload in (decode, prefill):
    sizes = [workload.batch, workload.new, workload.cost.flops / 1e9, measured(workload).floor_us]
    rows.append([workload.phase, *(f"{size:.0f}" for size in sizes)])
show(Table([SMALL, "texts", "new tokens of each", "GFLOP", "floor us"], rows))

# %% [markdown]
# **Prediction:** if the GPU decides, the prefill takes several times as long. If the CPU decides, both take the same.

# %% tags=["remove-input"]
def ms(us):
    return f"{us / 1e3:.2f} ms"


(d_host, d_graph), (p_host, p_graph) = times(decode), times(prefill)
assert p_host / d_host < 1.3 < p_graph / d_graph and d_host > 3 * d_graph and p_host > 1.2 * p_graph
show(
    f"**Outcome.** By the host's clock {ms(d_host)} and {ms(p_host)}: the prefill has {prefill.cost.flops / decode.cost.flops:.0f} times "
    f"the FLOPs and takes {p_host / d_host:.2f} times as long. The GPU alone needs {ms(d_graph)} and {ms(p_graph)}. So both steps wait "
    f"for the CPU. In the decode step the GPU has nothing to do for {100 * (1 - d_graph / d_host):.0f}% of the time."
)

# %% [markdown]
# This is what the first measurement of any model should be: the same step by both clocks. Where they agree, look at
# kernels. Where they do not, no faster kernel will help, only fewer launches or cheaper ones.
#
# ## What a step launches
#
# How much does the CPU have to do? Count the operations that PyTorch dispatches, views left out: most of them are
# launches. This can be done on any machine, with a small model, because the number does not depend on a size.

# %%
class Operations(TorchDispatchMode):
    """Counts what PyTorch runs below autograd, but for views."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += not operation.is_view
        return operation(*args, **kwargs or {})


def operations(workload):
    """Of the pass that the record timed."""
    small = replace(workload, model="tiny", batch=2, tokens=16, dtype="float32")
    call = ForwardPass(small, torch.device("cpu"), seed=0).call_of("torch", compile=False)
    with Operations() as counted:
        call()
    if workload.level != "model":
        return counted.count
    layers = workload.config.num_hidden_layers - small.config.num_hidden_layers  # that the small model lacks
    return counted.count + layers * operations(replace(workload, level="block"))


counts = {row.workload: operations(row.workload) for row in record.models if not row.compiled}
price = times(decode)[0] / counts[decode]
print(f"{counts[decode]} operations in a decode step, {price:.1f} us of the CPU for each")

# %% [markdown]
# Some of that price is the launch itself, a few microseconds; most is Python, the registry and PyTorch's dispatcher on
# the way there, and so it depends on the CPU of the machine more than on its GPU.
#
# ## Launch-bound, GPU-bound
#
# Now take the simplest model of a step: the CPU launches one operation after another, each at that price; the GPU runs
# them in order, each as soon as it has been launched and the one before is done.

# %%
def timeline(count, launch_us, kernel_us):
    """When each operation is launched, starts and ends."""
    rows, free = [], 0.0
    for index in range(count):
        launched = (index + 1) * launch_us
        start = max(launched, free)
        free = start + kernel_us
        rows.append((launched, start, free))
    return rows


# %% tags=["remove-input"]
mlp = task(SLICE, "prefill", "mlp")
panels = [(workload, price, times(workload)[1] / counts[workload]) for workload in (decode, mlp)]
with style():
    fig = MplFigure(figsize=(5.6, 4.2))
    for axes, (workload, launch_us, kernel_us) in zip(fig.subplots(2, 1), panels):
        rows = timeline(8, launch_us, kernel_us)
        axes.broken_barh([(launched - launch_us, 0.92 * launch_us) for launched, _, _ in rows], (1.1, 0.8), color="#E69F00")
        axes.broken_barh([(start, 0.92 * (end - start)) for _, start, end in rows], (0.1, 0.8), color="#56B4E9")
        axes.set_yticks([0.5, 1.5], ["GPU", "CPU"])
        axes.set_xlim(0, rows[-1][2])
        axes.locator_params(axis="x", nbins=5)
        axes.tick_params(left=False)
        axes.set_title(f"{workload.model} {workload.part} {workload.phase}", loc="left")
    axes.set_xlabel("microseconds")
    told = "; ".join(f"{w.model} {w.part} {w.phase}: CPU {launch:.0f} and GPU {kernel:.0f} each" for w, launch, kernel in panels)
    show(figure(fig, f"The first eight operations on the CPU and on the GPU, all at their average, in microseconds: {told}."))

# %% [markdown]
# Above, the GPU is done with each kernel long before the next one is launched: this is
# [launch-bound](../glossary.md#launch-bound). Below, launches run ahead and wait in the queue, and the CPU does not
# matter: *GPU-bound*. With $n$ operations at a price $p$ each, and a time $g$ of the GPU alone, the step takes
#
# $$T \approx \max(n p,\ g).$$
#
# The price comes from one row of the record. **Prediction:** then this formula gives all the others. (In bold: the
# longer of the two, which is the prediction. The last column is measured over predicted.)

# %%
rows, predicted = [], set()
for index, (workload, count) in enumerate(counts.items()):
    host, graph = times(workload)
    prediction = max(count * price, graph)
    numbers = [count, count * price, graph, host]
    rows.append([name(workload), *(f"{number:.0f}" for number in numbers), f"{host / prediction:.2f}"])
    predicted.add((index, 2 if count * price > graph else 3))
header = ["eager", "operations", "launches us", "GPU us", "measured us", "times"]
show(Table(header, rows, best=frozenset(predicted)))

# %% tags=["remove-input"]
ratios = {workload: times(workload)[0] / max(counts[workload] * price, times(workload)[1]) for workload in counts if workload != decode}
worst = max(ratios, key=ratios.get)
near = {workload for workload, ratio in ratios.items() if 3 / 4 < ratio < 4 / 3}
assert near >= set(MODEL_TASKS) - {decode} and ratios[worst] > 1
show(
    f"**Outcome.** Of {len(ratios)} predictions {len(near)} are within a third of what was measured, those of whole models among "
    f"them. The worst is for '{name(worst)}', which took {ratios[worst]:.2f} times as long."
)

# %% [markdown]
# Where it is off there are two reasons. In a short pass of many small operations and a few long ones launches and kernels
# hardly overlap: what it takes is then nearer to the sum of both columns than to the longer of them. And a price is an
# average: what writes into a cache, or prepares attention, takes more of the CPU's time than a norm does. The formula says
# what a step is bound by; how long it takes to the microsecond it does not say.
#
# <details><summary>Question: torch.compile makes the launch-bound steps faster. Through better kernels?</summary>
#
# Hardly. It fuses small operations, so there are fewer to launch, and it launches them from code that it has generated,
# at a lower price. CUDA graphs go further and launch the step as one; `mode="reduce-overhead"` asks for both.
#
# </details>
#
# ## A profiler
#
# Two clocks say that time is lost, not where. `torch.profiler` notes when each operation began and ended on the CPU,
# and on a GPU the same for each kernel, with the operation that launched it. Operations have names such as `aten::mm`,
# and a model has hundreds of these. What one wants to know is *which* product it was. So the lab opens a range around
# every module and every operator that the registry runs:

# %% tags=["remove-input"]
show(code(profiler.named_ranges, profiler._range))

# %% [markdown]
# The same name goes to two listeners: to torch.profiler, and as an [NVTX range](../glossary.md#nvtx-range) to NVIDIA's
# tools, which know nothing of PyTorch. With that, a kernel's time belongs to the innermost operator that it was
# launched in, and the rest is said to be outside. Here is a decode step of a tiny model, profiled on the machine that
# runs this page:

# %% tags=["nbval-ignore-output"]
torch.set_num_threads(1)  # or the operators wait for one another's threads
torch.manual_seed(0)
tiny, texts, context = MODELS["tiny"], 4, 64
with device:
    model = LLM(tiny).use("torch")
    ids = torch.randint(tiny.vocab_size, (texts, context))
cache = KVCache(tiny, texts, context + 1, device=device, dtype=torch.float32)


@torch.no_grad()
def step():
    model(ids[:, :1], cache)
    cache.trim([context] * texts)


with torch.no_grad():
    model(ids, cache)
found = profiler.profile(model, step)
rows = []
for row in found.rows:
    rows.append([row.operator, f"{row.calls:.0f}", f"{row.us:.0f}", f"{100 * row.share:.0f}"])
show(Table([f"on {found.device}", "calls", "us a step", "%"], rows))

# %% [markdown]
# On the CPU, and in so small a model, much may be outside of the operators: Python, the hooks, and the ranges
# themselves.
#
# Times differ from run to run and from machine to machine, so the table above is one of the few on these pages that
# nobody compares. What does not differ is the number of calls, and that is the first thing to check in any profile. Is
# it the one that the model's shape asks for?

# %%
expected = {}
for call in operator_calls(tiny, texts, 1, context):
    expected[call.operator] = expected.get(call.operator, 0) + call.count
print(expected)
print("as profiled:", expected == {row.operator: row.calls for row in found.rows if row.backend})

# %% [markdown]
# In a terminal this is `lab profile`, for any shape, phase, and choice of backends; `--trace` writes the trace of the
# same steps.
#
# ```sh
# lab profile --model llama3.2-1b --phase decode --batch 8 --tokens 2047
# lab profile --model llama3.2-1b --phase train --tokens 2048 --backend torch,rmsnorm=triton --trace trace.json.gz
# ```
#
# ## Reading a trace
#
# A [trace](../glossary.md#trace) is a list of ranges with a start and an end, and the viewer (https://ui.perfetto.dev,
# or `chrome://tracing`) draws what lies inside of another range below it. One row is a CPU thread, with modules,
# operators and operations nested; on a GPU machine another one is a stream, with kernels. Without the times, this is
# one thread's view of an MLP:

# %%
NO_WORK = ("t", "transpose", "view", "reshape", "_unsafe_view", "resolve_conj")


def outline(event, depth=0):
    """An event and what lies inside of it, but for what computes nothing."""
    print("  " * depth + event.name)
    for inside in sorted(event.cpu_children, key=lambda event: event.time_range.start):
        if inside.name.removeprefix("aten::") not in NO_WORK:
            outline(inside, depth + 1)


on_cpu = [torch.profiler.ProfilerActivity.CPU]
with profiler.named_ranges(model), torch.profiler.profile(activities=on_cpu) as trace:
    step()
events = {event.name: event for event in trace.events()}
outline(events["module: layers.1.mlp"])

# %% [markdown]
# Five questions to put to a trace, in this order:
#
# 1. **Is it the right step?** Not the first: that one compiles, allocates and picks algorithms. `lab profile` runs two
#    before it looks.
# 2. **Is the GPU's row full or full of holes?** Full: GPU-bound, go on to 4.
# 3. **What is the CPU doing during a hole?** If it launches: too many operations, or too dear. If it stands in
#    `cudaStreamSynchronize`, or a copy to the host: somebody has asked for a value. (`.item()`, `print`, an `if` on a
#    tensor.)
# 4. **Which operator has most of the time?** Sum all its kernels: many short ones hide behind one long one.
# 5. **How much of that time must it take?** Hold it against its floor. What takes the most time need not have the most
#    to give.
#
# The last one is the question that profilers do not ask. Here it is for a block of the 8B shape in a decode step, on
# the GPU alone:

# %%
def shares(phase):
    whole, rows = times(task(SLICE, phase, "block"))[1], []
    for part in ("self_attn", "mlp"):
        graph, floor = times(task(SLICE, phase, part))[1], measured(task(SLICE, phase, part)).floor_us
        rows.append([part, *(f"{number:.0f}" for number in (graph, 100 * graph / whole, floor, graph - floor))])
    return Table([f"{SLICE} block {phase}", "us", "%", "floor us", "above it us"], rows)


show(shares("decode"), shares("prefill"))

# %% tags=["remove-input"]
attention, feed = (task(SLICE, "decode", part) for part in ("self_attn", "mlp"))
above = {workload: times(workload)[1] - measured(workload).floor_us for workload in (attention, feed)}
assert above[attention] > 3 * above[feed]
show(
    f"In the decode step attention takes {times(attention)[1]:.0f} us and the MLP {times(feed)[1]:.0f}. But the MLP is "
    f"near its floor, and a perfect one would save {above[feed]:.0f} us. A perfect attention would save {above[attention]:.0f}."
)

# %% [markdown]
# ## The same run in Nsight
#
# torch.profiler sees what goes through PyTorch and what CUDA tells it. NVIDIA's two profilers see more, each in its
# way.
#
# **Nsight Systems** draws the whole machine on one time line: threads, the driver's calls, kernels, copies, NCCL. It is
# for holes: who waits for whom. `--mark` makes `lab profile` run two steps and then one more between two marks, inside
# of the same named ranges, and look on in no other way (two profilers at a time get in each other's way):
#
# ```sh
# nsys profile --trace=cuda,nvtx --capture-range=cudaProfilerApi --output=decode \
#     python -m lab profile --model llama3.2-1b --phase decode --batch 8 --mark
# nsys stats --report nvtx_sum,cuda_gpu_kern_sum decode.nsys-rep
# nsys-ui decode.nsys-rep  # the same in a window
# ```
#
# **Nsight Compute** looks at one kernel at a time: it runs it alone, if need be several times over, and reads the GPU's
# counters: bytes from memory, bank conflicts, why warps stood still. It is for question 5. Its times say nothing about
# the step, since nothing overlaps any more.
#
# ```sh
# ncu --set full --nvtx --profile-from-start off --launch-count 20 --export decode \
#     python -m lab profile --model llama3.2-1b --phase decode --batch 8 --mark
# ```
#
# A counter is worth most beside a number that was expected. For every call of an operator, the lab's contract says how
# many bytes must cross device memory. Of the decode step of the record:

# %% tags=["hide-input"]
rows = []
for call in operator_calls(decode.config, decode.batch, decode.new, decode.context, last_only=True):
    least = call.count * call.cost(decode.torch_dtype).bytes
    rows.append((least, [call.operator, call.module, f"{call.count}", f"{least / 1e6:.2f}", f"{least / ceilings.copy_gbps / 1e3:.0f}"]))
show(Table(["operator", "in", "calls", "contract MB", "at least us"], [cells for _, cells in sorted(rows, reverse=True)]))

# %% [markdown]
# `lab profile --ncu` has Nsight Compute count the bytes of every kernel of a step, gives each to the call in whose
# range it was launched, and prints them beside that column:
#
# ```sh
# lab profile --model llama3.2-1b --phase decode --batch 8 --tokens 2047 --ncu
# ```
#
# **Prediction:** linear layers are close to their contract, since weights are read once. Operators that PyTorch makes
# of several kernels are far above it: each kernel reads what the one before has written. Try it where you have a GPU;
# the table's last column is the ratio.
#
# <details><summary>Question: can fewer bytes be counted than the contract asks for?</summary>
#
# Yes, of those written. They go to the L2 cache first, and a small output may still be there when the kernel ends; it
# is then written while nobody counts. Reads can't be fewer, because L2 is emptied before each kernel.
#
# </details>
#
# Counters are a privilege: another program's traffic could be read from them. Where the driver keeps them to
# administrators, as in most rented containers, Nsight Compute answers `ERR_NVGPUCTRPERM`, and `lab profile --ncu` says
# so before it makes a model. Nsight Systems and torch.profiler need no such permission.
#
# ## A graph that was slower
#
# In an earlier version of `lab.core`, torch.compile made a decode step faster by the host's clock. And on the GPU alone?
# That version has a record of its own:

# %%
earlier = records.published("one_cache")
SLICED, BLOCK = task(SLICE, "decode"), task(SLICE, "decode", "block")
rows = []
for workload in (decode, SLICED, BLOCK):
    eager, compiled = measured(workload, by=earlier), measured(workload, "torch compiled", earlier)
    peaks = [f"{row.peak_memory / 1e6:.0f}" for row in (eager, compiled)]
    rows.append([name(workload), f"{eager.graph_us:.0f}", f"{compiled.graph_us:.0f}", *peaks])
show(Table(["GPU alone", "eager us", "compiled us", "eager MB", "compiled MB"], rows))

# %% [markdown]
# A compiled block is faster than an eager one; a compiled model of such blocks is slower. So what has the model that
# the block has not? The last columns, memory beyond weights and cache, say it: the compiled model needs some, the
# others hardly any. How much is that beside its cache of keys and values?

# %%
def cache_bytes(workload):
    config, positions = workload.config, workload.batch * (workload.context + workload.new)
    keys = config.num_hidden_layers * config.num_key_value_heads * config.head_dim * positions
    return 2 * keys * workload.torch_dtype.itemsize


for workload in (decode, SLICED):
    peak = measured(workload, "torch compiled", earlier).peak_memory
    cache_mb = cache_bytes(workload) / 1e6
    print(f"{workload.model}: cache {cache_mb:.0f} MB, {peak / cache_bytes(workload):.2f} times that beside it")

# %% [markdown]
# More than the cache itself. The cache of that version was one tensor, and each layer wrote its new tokens into its part
# of it. A compiler cannot reason about writing in place, so PyTorch first rewrites the step without it: every write
# becomes an operation that returns a new tensor. For two layers of such a cache:

# %%
def made_by(write, *arguments):
    """What the rewritten function makes."""
    traced = make_fx(torch.func.functionalize(write), tracing_mode="fake")(*arguments)
    for node in traced.graph.nodes:
        made = str(node.target).removesuffix(".default")
        if made in ("aten.index_put", "aten.select_scatter", "aten.copy_"):
            print(f"{made:<20} makes {tuple(node.meta['val'].shape)}")


def write_tokens(cache, token):
    """cache: (layers, tokens, width), or for each layer (tokens, width)."""
    for layer in cache:
        layer.index_put_((torch.tensor([2]),), token)
    return sum(layer.sum() for layer in cache)


made_by(write_tokens, torch.zeros(2, 5, 3), torch.ones(3))

# %% [markdown]
# Each layer's write makes a new layer (`index_put`), and then a new cache of all layers (`select_scatter`). The
# compiler may turn that back into a write in place where it can prove that nobody looks at the old one. In the graph
# that Inductor compiled of our model both were still there, for keys and for values in every layer (in torch 2.13, where
# `TORCH_LOGS=post_grad_graphs` prints it). What would that cost, if each were a copy: read all, write all?

# %% tags=["remove-input"]
def copies_us(workload):
    """Of the whole cache in every layer, and of a layer in every layer, read and written."""
    return (workload.config.num_hidden_layers + 1) * 2 * cache_bytes(workload) / earlier.ceilings.copy_gbps / 1e3


def graph(workload, label, by):
    return times(workload, label, by)[1]


for workload in (decode, SLICED):
    assert times(workload, "torch compiled", earlier)[0] < times(workload, by=earlier)[0]  # as is said above
saved = SLICED.config.num_hidden_layers * (graph(BLOCK, "torch eager", earlier) - graph(BLOCK, "torch compiled", earlier))
longer = {workload: graph(workload, "torch compiled", earlier) - graph(workload, "torch eager", earlier) for workload in (decode, SLICED)}
assert all(us > 0 for us in longer.values()) and saved > 0
show(
    f"For {SLICE} about {copies_us(SLICED):.0f} us. The compiled graph was {longer[SLICED]:.0f} us slower, although its blocks should "
    f"have made it {saved:.0f} us faster: together {longer[SLICED] + saved:.0f}. For {SMALL}, with four times as many layers and twice the "
    f"cache, it would be {copies_us(decode):.0f} us; the compiled graph was {longer[decode]:.0f} us slower, plus what fusing had saved, "
    "which the record does not tell."
)

# %% [markdown]
# So copies would explain the size of what is missing, and of the memory. The remedy that suggests itself is a tensor for
# each layer. Then the rewritten step makes layers, and no cache of all of them:

# %%
made_by(lambda first, second, token: write_tokens((first, second), token), torch.zeros(5, 3), torch.zeros(5, 3), torch.ones(3))

# %% [markdown]
# **Prediction:** with that alone changed, a compiled step needs hardly any memory beside its cache, like an eager one, and
# its graph is the faster one. (This is the cache of `lab.core` today.)

# %% tags=["remove-input"]
def outcome():
    """Of the change, if the record of the model is of the same GPU and has it: its compiled steps need no second cache."""
    tasks = (decode, SLICED)
    mended = all(measured(each, "torch compiled").peak_memory < cache_bytes(each) / 2 for each in tasks)
    if not mended or record.environment.gpu != earlier.environment.gpu:
        show("No record holds the two caches against each other on one GPU yet, so this stays a prediction.")
        return
    rows = []
    for each in tasks:
        for said, by in (("one tensor", earlier), ("a tensor for each layer", record)):
            eager, compiled = measured(each, by=by), measured(each, "torch compiled", by)
            numbers = eager.graph_us, compiled.graph_us, compiled.timing.median_us, compiled.peak_memory / 1e6
            rows.append([f"{name(each)}, {said}", *(f"{number:.0f}" for number in numbers)])
    show(Table(["GPU alone", "eager us", "compiled us", "by the host's clock", "compiled MB"], rows, long_names=True))
    gains = [f"{graph(each, 'torch compiled', earlier) / graph(each, 'torch compiled', record):.2f}" for each in tasks]
    hosts = [f"{times(each, 'torch compiled', earlier)[0] / times(each, 'torch compiled')[0]:.2f}" for each in tasks]
    faster = all(graph(each, "torch compiled", record) < graph(each, "torch eager", record) for each in tasks)
    show(
        f"**Outcome.** The compiled graphs are {gains[0]} and {gains[1]} times as fast as they were, and {'' if faster else 'not both '}"
        f"faster than the eager ones. By the host's clock the compiled steps are {hosts[0]} and {hosts[1]} times as fast; but these are "
        "two runs, each on a host of its own, so the GPU's time is the one to compare."
    )


outcome()

# %% [markdown]
# Nobody had seen it by the host's clock, where the compiled model was faster all the same. That is what two clocks are
# for.
#
# ## Where it loses
#
# - **A profiler is in the way.** Noting every operation takes time of the CPU too, so a launch-bound step is slower
#   under torch.profiler, and its holes are larger than they were. Kernel times are right. For the length of a step use
#   a clock.
# - **Launch costs are the CPU's.** The price above is that of one machine, a virtual one at that. On a faster CPU the
#   same model may be GPU-bound; the GPU's column of the record travels better than the host's.
# - **Counted operations are not kernels.** A fused operation of the GPU build is several on the CPU, on which they were
#   counted, and one operation may be two kernels. As an estimate of what the CPU has to do, that is good enough; for
#   the number of kernels look into a trace.
# - **Under torch.compile the names are gone.** Ranges sit around calls of operators, and a compiled step has none. Its
#   kernels have the compiler's names.
# - **A graph's time is an idle machine's.** Its caches are warm from the replay before, and its inputs do not move.
#
# ## Take-away
#
# - Time a step by two clocks before anything else. Their ratio says whether kernels matter at all.
# - A step takes about the longer of its launches and its kernels. Count the operations; the price of one is some tens
#   of microseconds in eager PyTorch.
# - Name what you run, and a profile answers in your words rather than in the library's.
# - The bottleneck is not where the time is but where time is missing: hold it against the floor.
# - Bytes counted beside bytes expected tell a wasteful kernel from a busy one.
#
# ## Exercises
#
# Find the bottleneck in a trace, and whose the gaps are: six functions, checked without a GPU.
# `exercises/profiling.ipynb` in the repository, or `exercises/profiling.py` with `lab check profiling` in a terminal.
#
# ## References
#
# NVIDIA's guides to Nsight Systems and Nsight Compute; Ansel et al. 2024 for torch.compile; Williams, Waterman and
# Patterson 2009 for the floor: on the [references page](../references.md).
