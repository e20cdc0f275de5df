# %% [markdown]
# # How to time a kernel
#
# **What you will see.** Seven ways to get a wrong number for a kernel that is right, each beside the way in which this
# course measures: the same work, on the same GPU, in the same run. Some are off by orders of magnitude, which one
# notices. Others are off by a few percent, as much as one optimizes for. Then what a median is worth, and which times
# cannot be.
#
# **What you need.** [A GPU in one chapter](gpu.ipynb). No GPU: what is shown was recorded; on a GPU one cell measures
# it there. **Reading time:** about 25 minutes, exercises apart.

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
import math
import statistics
from itertools import accumulate

import torch

from lab.backends.registry import operator
from lab.benchmark import ceilings, figures, records, timing, traps
from lab.benchmark.tables import Table, shape_text, trap_table
from lab.notebook import Folded, code, show

record = records.published("timing")
found = {trap.name: trap for trap in record.traps}

# %% tags=["remove-input"]
show(figures.timing_errors(record))

# %% tags=["remove-input"]
show(
    f"What each wrong way says of some work on an {record.environment.gpu}, as a multiple of what the right one says of the "
    "same: blue is too short, orange too long. (B is the same kernel as A; it was only timed after it.)"
)

# %% [markdown]
# ## When is a kernel done?
#
# Read the clock, call a function, read the clock again. What has been measured? On a GPU a call is a request: it puts
# the kernel into a queue, which CUDA calls a *stream*, and returns. The GPU gets to it when it has done what was queued
# before. So a clock that is read when the call returns has measured the request. Three ways to read a clock; the last
# two are right:

# %% tags=["remove-input"]
show(code(traps.Tools.until_returned, traps.Tools.until_done, traps.Tools.between_events))

# %% [markdown]
# One can wait until the GPU has done everything, and read the host's clock then. Or one asks the GPU: an
# [event](../glossary.md#event) is a mark in the queue, which the GPU stamps with its own clock when it gets there.
#
# **Prediction:** a product of two 8192 x 8192 matrices is $2 \cdot 8192^3$ FLOPs, more than a millisecond for this GPU.
# A launch takes some microseconds, tens of them where PyTorch prepares it. So without waiting the
# time is too short by a factor of tens.

# %% tags=["remove-input"]
returned, events = found["no_synchronize"].ways
assert events.us > 10 * returned.us
product_flops = 2 * traps.SIZE**3
show(
    trap_table(found["no_synchronize"]),
    f"**Outcome:** a factor of {events.us / returned.us:.0f}. It can be noticed: at the time of the launch the GPU would compute "
    f"{product_flops / returned.us / 1e6:.0f} TFLOP/s, and its ceiling is "
    f"{record.ceilings.matmul_tflops:.0f}.",
)

# %% [markdown]
# (A [ceiling](../glossary.md#ceiling) is what the GPU was measured to reach with the plainest work.) It is not always
# as easy to see. The queue has an end: in a long loop it fills up, from then on each call waits until there is room,
# and the host's clock shows something between the launch and the kernel.

# %% tags=["remove-input"]
show(
    Folded(
        "Question: is what passes between two events the kernel, and nothing else?",
        (
            "No. If the queue is empty, the GPU stamps the first event at once, and then waits until the CPU has launched the "
            f"kernel: of the {events.us:.0f} us above that may be as much as {returned.us:.0f}. For a long kernel it hardly "
            "matters, for a short one it is most of the time. So something must keep the GPU busy until the kernel and the second "
            "event are queued. In this course that is the clearing of the cache, which is needed anyway.",
        ),
    )
)

# %% [markdown]
# ## The first call
#
# A kernel that has never run must be compiled, and loaded onto the GPU; a library may try several. Memory is
# allocated for the first time, and Triton and torch.compile compile once more for another dtype, or another shape.
# **Prediction:** compiling even a small kernel takes a good part of a second, running it some tens of microseconds by
# the host's clock.

# %% tags=["remove-input"]
first, warmed = found["first_call"].ways
assert first.us > 100 * warmed.us
show(
    trap_table(found["first_call"]),
    f"**Outcome:** {first.us / 1e3:.0f} ms for the first call and {warmed.us:.0f} us for those after it, launch and waiting "
    f"included. A mean over the first thousand calls would still be {(first.us + 999 * warmed.us) / 1000 / warmed.us:.0f} times "
    "too long.",
)

# %% [markdown]
# So a few calls come first and are not counted. Who wants to know about the first one, because a server waits for it,
# times it by itself and says so; the records of this course have both.
#
# ## What is still in the cache
#
# A benchmark calls the same kernel on the same tensors, again and again. **Prediction:** a copy of 8 MiB touches 16,
# and the [L2 cache](../glossary.md#l2-cache) of an H100 holds 50. From the second call on it finds its input there, and
# need not wait for device memory. A copy of 1 GiB starts anew when its end is all that is left in L2: no difference.

# %% tags=["remove-input"]
warm = found["warm_cache"]
small, large = ([warm.way(f"{size}, {state} L2") for state in ("warm", "cold")] for size in ("small", "large"))
assert small[1].us > 1.2 * small[0].us and 1 < large[1].us / large[0].us < 1.02
later = large[1].us - large[0].us
show(
    trap_table(warm),
    f"**Outcome:** warm, the small copy takes {small[0].us / small[1].us:.2f} of its cold time, and the large one "
    f"{large[0].us / large[1].us:.3f} of it. Those last {later:.1f} us are the time in which memory moves "
    f"{later * record.ceilings.copy_gbps / 1e3:.1f} MB, of {2 * traps.LARGE_BYTES / 1e6:.0f}.",
)

# %% [markdown]
# Which is right? In a model, between a kernel and its next call come hundreds of others. Its weights have left the
# cache by then, but its input was written a moment ago, and may be there: neither warm nor cold. Cold is what can be
# said without knowing the model. And what is compared must at least be compared in the same state, so in this course
# each sample begins with an L2 that holds nothing of it.
#
# ### What clearing leaves behind
#
# To clear L2 one overwrites a buffer several times as large. That pushes out everything else, and leaves L2 full of the
# buffer's zeros, which device memory does not have yet: such a line is [dirty](../glossary.md#dirty-line). It is
# written back when its place is needed, which is while the timed kernel runs. The kernel pays for bytes that are not
# its own.
#
# A kernel that writes as well leaves dirty lines in its turn, for the next one to pay. One that only reads pays, and
# leaves nothing. The linear layers of a decoding step are such kernels: a whole weight is read for a few tokens. **How
# much can it be?** No more than L2 holds, and no more than the kernel reads:

# %%
L2_BYTES = 50 * 2**20  # of an H100
linear = operator("linear")
decode = linear.shapes["llama3-8b-up-decode"]
reading = {
    "reads 16 MiB": 16 * 2**20,
    f"linear {shape_text(decode)}": linear.cost(decode, torch.bfloat16, "forward").bytes,
    "reads 2 GiB": 2 * 2**30,
}
rows = []
for name, count in reading.items():
    back = min(count, L2_BYTES)
    share = 100 * count / (count + back)
    rows.append([name, f"{count / 1e6:.0f}", f"{back / 1e6:.0f}", f"{share:.0f}"])
show(Table(["", "MB counted", "MB written back, at most", "% of the ceiling then"], rows))

# %% [markdown]
# So such a kernel can look slow against its bytes over the bandwidth, and have nothing wrong with it. This is a bound:
# L2 need not be dirty all over when the clock starts, and how dirty it is, this record does not tell, for none of its
# kernels only reads. Before you tune a kernel that does, clear by *reading* a large buffer, and look whether it is
# still slow. (Why not always? In a model the kernel before has written too.)
#
# ## Shorter than its launch
#
# A kernel that adds 1 to 1024 numbers is done in the time of a few memory accesses. **Prediction:** about a microsecond
# for the GPU. In PyTorch, the CPU needs several times as long to launch it, so a loop of such calls measures the CPU. A
# [CUDA graph](../glossary.md#cuda-graph), recorded once and submitted as one, has no CPU between its kernels.

# %% tags=["remove-input"]
show(code(traps.launches, traps._capture))

# %% tags=["remove-input"]
loop, graph = found["launches"].ways
assert loop.us > 3 * graph.us
show(
    trap_table(found["launches"]),
    f"**Outcome:** {loop.us:.1f} us a call in the loop, {graph.us:.2f} us in the graph. In the loop the GPU idles for "
    f"{100 * (1 - graph.us / loop.us):.0f}% of the time, and a kernel twice as fast would change nothing.",
)

# %% [markdown]
# Here both numbers are true, and of two different things. Who compares kernels wants the GPU's. Who runs a model kernel
# by kernel waits for the loop's, and should know that before polishing the kernel. With both known, the time of a whole
# loop can be told: it is the first exercise.
#
# ## One number for many
#
# Ten samples of the small copy, and while one of them is taken somebody else's copy of 1 GiB gets in between: **what
# does it do to the result?**

# %% tags=["remove-input"]
mean, median = found["mean"].ways
assert mean.us > 2 * median.us
show(
    trap_table(found["mean"]),
    f"A mean takes in a tenth of what was added to that sample, and is {mean.us / median.us:.1f} times the median. The median "
    "asks only how many samples are above it and how many below; that one of them is far above makes no difference.",
)

# %% [markdown]
# (Triton's `do_bench`, which also clears L2 before each sample, returns the mean unless it is asked for something
# else.)
#
# <details><summary>Question: why not the minimum? Nothing can disturb a kernel into being faster.</summary>
#
# The minimum is the luckiest sample, and with more samples it can only fall: two minima of different counts cannot be
# compared. And some things do make a kernel faster: a clock that is high for a moment, or a cache that was not cleared.
#
# </details>
#
# ## How sure is it?
#
# Thirty samples have a median. Where would that of thirty others be? There is an answer that assumes nothing about the
# distribution ([Hoefler and Belli 2015](../references.md) have more of them). Each sample is as likely below the true
# median as above it. So how many of them are below it is like the number of heads in as many throws of a coin, and of
# that the probability is known. Between which of the sorted samples does the true median lie, if we want to be wrong at
# most one time in twenty? That is its [confidence interval](../glossary.md#confidence-interval):

# %% tags=["remove-input"]
show(code(timing.median_interval))

# %%
rows = []
for count in (6, 10, 30, 100, 1000):
    low, high = timing.median_interval(count)
    ways = sum(math.comb(count, below) for below in range(low + 1))
    missed = 2 * ways / 2**count
    share = (high - low) / count
    rows.append([f"{count}", f"{low + 1} to {high + 1}", f"{share:.2f}", f"{1 - missed:.3f}"])
show(Table(["samples", "the median is between", "share of them", "with probability"], rows))

# %% tags=["remove-input"]
cold = timing.summarize(small[1].samples_us)
show(
    f"For the cold copy of 8 MiB above: a median of {cold.median_us:.2f} us, and an interval from {cold.ci_low_us:.2f} to "
    f"{cold.ci_high_us:.2f} us. Twice as narrow takes four times as many "
    "samples; this course goes on sampling until the interval is narrow enough, or time is up."
)

# %% tags=["remove-input"]
sampled = timing.summarize(events.samples_us)
above = [sample for sample in events.samples_us if sample > 1.1 * sampled.median_us]
assert above and tuple(above) == events.samples_us[-len(above) :] and sampled.ci_high_us < 1.01 * sampled.median_us
show(
    "**What it does not say.** A throw of a coin knows nothing of the one before. A sample does: of the thirty products of the "
    f"first section, timed with events, the interval is from {sampled.ci_low_us:.0f} to {sampled.ci_high_us:.0f} us, and the last "
    f"{len(above)} took from {min(above):.0f} to {max(above):.0f}. Something had changed, and stayed changed. Had sampling begun "
    "there, the interval would be around those, and as sure of itself. And where sampling stops because the interval has become "
    "narrow, it is narrow by luck a little too often: then one may be a little less sure of it than said. The next two sections are about what changes."
)

# %% [markdown]
# ## What the numbers are
#
# A tensor for a benchmark is made quickly with `torch.zeros`. **Prediction:** the product of zeros takes the same
# instructions, operations and bytes as that of random numbers, so the same time. Power and clock are read meanwhile,
# with nvidia-smi; the GPU was busy for a second and a half with each, and the second half counts.

# %% tags=["remove-input"]
nothing, numbers = found["zeros"].ways
power, clock = ([statistics.median(getattr(way, read)) for way in (nothing, numbers)] for read in ("power_w", "sm_clock_mhz"))
limit, highest = record.environment.power_limit_w, record.environment.sm_clock_mhz
cycles = [way.us * mhz / 1e6 for way, mhz in zip((nothing, numbers), clock)]
assert nothing.us < 0.95 * numbers.us and power[0] < 0.8 * limit < 0.95 * limit < power[1]
assert abs(cycles[0] / cycles[1] - 1) < 0.03 and clock[0] < 0.95 * highest
show(
    trap_table(found["zeros"]),
    f"**Outcome:** not the same time at all; zeros take {nothing.us / numbers.us:.2f} of it. Multiply times by clocks: "
    f"{cycles[0]:.2f} million cycles for zeros, {cycles[1]:.2f} million for random numbers. By these medians it is the same "
    "work, at another clock.",
)

# %% [markdown]
# A transistor takes power when it switches, and products of zeros switch little. A GPU that reaches its power limit
# lowers its clock until it stays there ([He 2024](../references.md)).

# %% tags=["remove-input"]
show(
    f"This one's limit is {limit:.0f} W: random numbers reach it. (Why zeros did not run at the highest clock, {highest:.0f} MHz, with "
    f"{limit - power[0]:.0f} W to spare, this record does not tell.)"
)

# %% tags=["remove-input"]
def over_time(way):
    return list(zip([ended / 1e3 for ended in accumulate(way.samples_us)], way.samples_us))


show(
    figures.in_order(
        {"the second half of each run": {way.label: over_time(way) for way in (nothing, numbers)}},
        "milliseconds",
        f"Microseconds of a matrix product over time: of zeros between {min(nothing.samples_us):.0f} and {max(nothing.samples_us):.0f}, of "
        f"random numbers between {min(numbers.samples_us):.0f} and {max(numbers.samples_us):.0f}, in steps.",
    )
)

# %% tags=["remove-input"]
calm, restless, told = (max(read) / min(read) - 1 for read in (nothing.samples_us, numbers.samples_us, numbers.sm_clock_mhz))
at_ceiling = product_flops / record.ceilings.matmul_tflops / 1e6
assert 10 * calm < restless and 2 * told < restless and nothing.us < at_ceiling < 0.95 * numbers.us
states = {
    f"{ceilings.SAMPLES} of random numbers, each behind a clear of L2: the ceiling": at_ceiling,
    f"the last {len(numbers.samples_us)} of {traps.BUSY_US / 1e6:g} s of random numbers": numbers.us,
    f"the last {len(nothing.samples_us)} of {traps.BUSY_US / 1e6:g} s of zeros": nothing.us,
}
show(
    f"The product of zeros takes the same time throughout, to {100 * calm:.1f}%. That of random numbers varies by "
    f"{100 * restless:.0f}%, in steps, and settles late: a power limit is kept by a controller, which looks and corrects. (The clock "
    f"that was read meanwhile varies by {100 * told:.0f}% only. So either nvidia-smi misses most of it, or the GPU slows down by "
    "something else as well.) What this product takes depends on how long the GPU has been at it. In this one record:",
    Table(
        ["the same product", "us", "TFLOP/s"],
        [[state, f"{us:.0f}", f"{product_flops / us / 1e6:.0f}"] for state, us in states.items()],
    ),
    "And zeros are above the ceiling. Benchmark with the numbers that a model has, and keep in mind what came before.",
)

# %% [markdown]
# ## Who goes first
#
# To compare two kernels one times the first, then the second. If the GPU slows down meanwhile, whoever comes second
# looks worse. How much? Take the same kernel twice, as A and as B: first all samples of A and then all of B; and again,
# after a rest, in turns. **Prediction:** a rested GPU starts fast and gets slower, so B is behind A by some percent; in
# turns no difference.

# %% tags=["remove-input"]
drift = found["drift"]
first_a, then_b, turn_a, turn_b = drift.ways
apart, together = then_b.us / first_a.us, turn_b.us / turn_a.us
assert abs(apart - 1) > 3 * abs(together - 1)
show(trap_table(drift))
show(
    figures.in_order(
        {
            "one after the other": {
                "A": list(enumerate(first_a.samples_us)),
                "B": list(enumerate(then_b.samples_us, len(first_a.samples_us))),
            },
            "in turns": {
                "A": [(2 * index, us) for index, us in enumerate(turn_a.samples_us)],
                "B": [(2 * index + 1, us) for index, us in enumerate(turn_b.samples_us)],
            },
        },
        "sample",
        f"Microseconds of each sample in its order. One after the other: the median of B is {apart:.3f} of A's. In turns: "
        f"{together:.3f}; A and B rise and fall together.",
    )
)

# %% tags=["remove-input"]
TEN = 10
early = statistics.median(then_b.samples_us[:TEN]) / statistics.median(first_a.samples_us[:TEN])
late = statistics.median(then_b.samples_us[-TEN:]) / statistics.median(first_a.samples_us[-TEN:])
assert early < 1 < late
apart_by = [abs(b - a) for a, b in zip(turn_a.samples_us, turn_b.samples_us)]
spread = max(turn_a.samples_us) - min(turn_a.samples_us)
assert 10 * statistics.median(apart_by) < spread
show(
    f"**Outcome:** one after the other, B over A is {apart:.3f}; in turns, {together:.3f}. That is little, and the picture says "
    "why: the GPU does not simply get slower. Its pace changes in steps, up and down, and who meets which is chance. "
    f"By the first {TEN} samples of each, B over A is {early:.3f}; by the last {TEN}, {late:.3f}. It could have become a result in either "
    "direction, of a kernel compared with itself.",
    f"In turns the steps are as high, {spread:.0f} us from the least to the most of A, but both meet them: half of the time A and "
    f"the B right after it are less than {statistics.median(apart_by):.1f} us apart.",
)

# %% [markdown]
# In this course everything that is compared is measured in turns, one sample of each in every round. A little is left:
# B is always one sample later. (It is the third exercise to find out how much.)
#
# <details><summary>Question: would it not be better to fix the clock?</summary>
#
# It makes times steadier, and `nvidia-smi --lock-gpu-clocks` does it, for an administrator; in Colab and on most rented
# machines you are none. And at a clock so low that the power limit is never met, one learns how fast the kernels are on
# a slower GPU: those that compute a lot lose by it, those that wait for memory, which has a clock of its own, do not.
#
# </details>
#
# ## Too fast to be true
#
# A kernel must move its bytes and do its operations. The time that these take at the bandwidth of a large copy, or at
# the rate of a large matrix product, whichever is longer, is its [floor](../glossary.md#floor); the [roofline
# chapter](roofline.ipynb) is about that. A time below it is a mistake in measuring, or a kernel that does not do its
# work. The ceilings are measured as well, and something may be left in L2 when the clock stops; so this course lets a
# tenth pass, and takes anything below for an error and not for a record. **Which of the wrong ways does it catch?**

# %% tags=["remove-input"]
product_floor = product_flops / record.ceilings.matmul_tflops / 1e6
copy_floor = {size: 2 * size / record.ceilings.copy_gbps / 1e3 for size in (traps.SMALL_BYTES, traps.LARGE_BYTES)}
held = [
    (returned, product_floor),
    (nothing, product_floor),
    (small[0], copy_floor[traps.SMALL_BYTES]),
    (large[0], copy_floor[traps.LARGE_BYTES]),
]
caught = [way.us < timing.FLOOR_TOLERANCE * floor for way, floor in held]
assert caught == [True, False, False, False]
show(
    Table(
        ["too short", "us", "floor, us", "floor over time", "verdict"],
        [
            [way.label, f"{way.us:.1f}", f"{floor:.1f}", f"{floor / way.us:.2f}", "impossible" if is_caught else "possible"]
            for (way, floor), is_caught in zip(held, caught)
        ],
    )
)

# %% [markdown]
# The coarse one alone. The product of zeros stays within the tolerance, and the small copy stays above its floor even
# when it finds everything in L2: so short a kernel has other things to wait for. A guard like this finds a tensor that
# was left out, or a wait that was forgotten. It need not find a warm cache.
#
# ## All of it together
#
# One sample, with L2 cleared, and its launch hidden behind the clearing; and samples in turns:

# %% tags=["remove-input"]
show(code(timing.ColdSampler.__call__, timing._rounds))

# %% [markdown]
# | what goes wrong | what is done |
# | --- | --- |
# | the launch is timed, not the kernel | two events; the CPU is ahead of the GPU, or the sample is taken again |
# | the first call compiles | three rounds that are not counted |
# | the last sample's data are in L2 | L2 is overwritten before each sample |
# | the kernel is shorter than its launch | its time in a CUDA graph as well, there with a warm cache |
# | somebody else's work gets in between | the median, and its interval |
# | numbers that need no power | random ones, as the operator's contract makes them |
# | the GPU's pace changes | in turns, and ratios of what was measured in the same run |
# | the kernel does less than it should | results are checked first; a time below the floor is an error |
#
# ## On your machine
#
# This cell measures. With a GPU it sets the first five traps there; without one it shows the published tables. (The
# other two are for a GPU that nobody else uses. Where L2 is smaller than 16 MiB the small copy does not fit, and warm
# is as slow as cold.)

# %% tags=["nbval-ignore-output"]
names = list(found)[:5]
if torch.cuda.is_available():
    show(f"On this {torch.cuda.get_device_name()}:")
    show(*(trap_table(traps.measure(name, 10)) for name in names))
else:
    show(f"No GPU here. Published, on {record.environment.gpu}:")
    show(*(trap_table(found[name]) for name in names))

# %% [markdown]
# ## Where it loses
#
# - **It is not the model.** A kernel by itself, with a cold cache and its launch hidden, is the same for everybody.
#   What a model gains by it is another measurement, of the model; the [RMSNorm chapter](rmsnorm.ipynb) has both, and
#   they differ.
# - **The ceiling has a state, too.** That of the matrix product is taken in short runs, with a clear of L2 before each
#   sample. Under steady load the same product is slower, as above; and a model that trains is a steady load.
# - **A median hides a second mode.** If a kernel is slow one time in three, the median does not say so. Look at the
#   samples, or at the 80th percentile, which the records have.
# - **It is one GPU on one day.** Another one of the same name may run at another clock under load. Ratios within a run
#   carry over better than times; `lab reproduce` tells how well.
#
# ## Take-away
#
# - A call returns when the kernel is queued. Let the GPU read the clock, and give it something to do while the CPU
#   launches.
# - State the state: cold or warm, what was written before, how long the GPU was busy, and with which numbers.
# - Median and interval, not the mean. But the interval takes samples for independent, and on a GPU at its power limit
#   they are not.
# - What is to be compared is measured in turns. A few percent between two runs is nothing yet.
# - Hold each time against its floor. Then be suspicious of the good ones, too.
#
# ## Exercises
#
# Four functions of a few lines each, checked without a GPU: `exercises/timing.ipynb` in the repository, or
# `exercises/timing.py` with `lab check timing` in a terminal.
#
# ## References
#
# Hoefler and Belli 2015 for medians, intervals and how to report them; He 2024 for zeros and power; NVIDIA's CUDA C++
# Programming Guide for streams, events and graphs. All are on the [references page](../references.md).
