# %% [markdown]
# # Exercises: how to time a kernel
#
# Four functions of a few lines each. No GPU is needed.
#
# **Checking.** Run the cell with `lab.check` under each exercise, or `lab check timing` in a terminal (on
# `exercises/timing.py`). A failing check names what does not hold and shows the first case where it does not. It holds
# back its hint until you ask: `lab.check("timing.verdict", verdict).hint()`, or `lab check timing.verdict --hint`.

# %%
import sys

if "google.colab" in sys.modules:  # get the course and install it, with the torch that Colab has
    import subprocess
    from pathlib import Path

    if not Path("/content/llm-kernel-lab").exists():  # this cell may run twice
        subprocess.run(["git", "clone", "--depth", "1", "https://github.com/OWNER/llm-kernel-lab", "/content/llm-kernel-lab"], check=True)
    install = [sys.executable, "-m", "pip", "install", "-q", "-e", "/content/llm-kernel-lab"]
    subprocess.run(install, check=True)
    sys.path.insert(0, "/content/llm-kernel-lab")

# %%
import math
import statistics

import lab

# %% [markdown]
# ## 1. A loop of launches, by the host's clock
#
# **Overview.** A loop launches one kernel `calls` times. Each launch keeps the CPU for `launch_us`; after that the GPU may
# begin with it, one kernel after the other, `kernel_us` each. The host's clock is read before the first launch, and again
# after the last one has returned, or, if `synchronized`, when the GPU has done everything. How many microseconds a call
# does that make?
#
# **Signature.** `loop_us(calls, launch_us, kernel_us, synchronized) -> float`


# %%
def loop_us(calls, launch_us, kernel_us, synchronized):
    # your code here
    pass


# %%
lab.check("timing.loop_us", loop_us)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# timing.loop_us: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          calls=1, launch_us=5, kernel_us=1000, synchronized=True
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("timing.loop_us", ...).hint(), or: lab check timing.loop_us --hint
# ```

# %% [markdown]
# ## 2. How sure is a median?
#
# **Overview.** Of `count` samples, sorted, the true median lies between `samples[low]` and `samples[-1 - low]`, unless
# at most `low` of them are below it, or at most `low` above it. A sample is below the median as often as a coin shows
# heads, whatever the distribution, so the number of those below it is that of heads in `count` throws. Return the largest
# `low` for which the interval misses the median with a probability of at most 0.05; if there is none, 0.
#
# **Signature.** `median_interval(count) -> int`


# %%
def median_interval(count):
    # your code here
    pass


# %%
lab.check("timing.median_interval", median_interval)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# timing.median_interval: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          count=6
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("timing.median_interval", ...).hint(), or: lab check
#                 timing.median_interval --hint
# ```

# %% [markdown]
# ## 3. What a drift does
#
# **Overview.** A GPU gets slower while it works: the n-th sample of a run, counted from 0, takes 1 + `drift` * n times as
# long as the first one. One and the same kernel is timed under two names, `count` samples each: first all of A and then
# all of B; or, `in_turns`, A and B alternately, A first. What is the median of B over the median of A?
#
# **Signature.** `apparent_ratio(count, drift, in_turns) -> float`


# %%
def apparent_ratio(count, drift, in_turns):
    # your code here
    pass


# %%
lab.check("timing.apparent_ratio", apparent_ratio)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# timing.apparent_ratio: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          count=1, drift=0.25, in_turns=False
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("timing.apparent_ratio", ...).hint(), or: lab check timing.apparent_ratio
#                 --hint
# ```

# %% [markdown]
# ## 4. A time that cannot be
#
# **Overview.** A kernel of `flops` operations, which moves `nbytes` at least, was timed at `us` microseconds. On that GPU
# a matrix product was measured at `tflops` TFLOP/s and a copy at `gbps` GB/s. The kernel's floor is its operations over
# the rate or its bytes over the bandwidth, whichever takes longer. Return `"impossible"` for a time below 0.9 times the
# floor, and `"possible"` for any other.
#
# **Signature.** `verdict(us, flops, nbytes, tflops, gbps) -> str`


# %%
def verdict(us, flops, nbytes, tflops, gbps):
    # your code here
    pass


# %%
lab.check("timing.verdict", verdict)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# timing.verdict: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          us=1500, flops=1099511627776, nbytes=402653184, tflops=800, gbps=3200
#   found         returned None; expected 'impossible' or 'possible'
#   held          runs
#   hint          lab.check("timing.verdict", ...).hint(), or: lab check timing.verdict --hint
# ```
