# %% [markdown]
# # Exercises: from kernel to training step
#
# Six functions that predict what a faster kernel brings to a model, from what can be known before the model is run: a line
# or two each, numbers in, a number out. No GPU is needed, and none is used. *How many times as fast* is old time over new
# time, here for kernels as for wholes: 2 is twice as fast, and below 1 is slower.
#
# **Checking.** Run the cell with `lab.check` under each exercise, or `lab check waterfall` in a terminal (on
# `exercises/waterfall.py`). A failing check names what does not hold and shows the first case where it does not. It holds
# back its hint until you ask: `lab.check("waterfall.whole", whole).hint()`, or `lab check waterfall.whole --hint`.

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
import lab

# %% [markdown]
# ## 1. The share
#
# **Overview.** A forward pass takes `whole_us` microseconds of the GPU's time. It calls an operator `calls` times, and each
# call takes `kernel_us` of them. Which share of the whole, between 0 and 1, is the operator's?
#
# **Signature.** `share(calls, kernel_us, whole_us) -> float`


# %%
def share(calls, kernel_us, whole_us):
    # your code here
    pass


# %%
lab.check("waterfall.share", share)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# waterfall.share: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          calls=1, kernel_us=10, whole_us=80
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("waterfall.share", ...).hint(), or: lab check waterfall.share --hint
# ```

# %% [markdown]
# ## 2. What is left of it
#
# **Overview.** Predict the gain: the kernels that have the share `share` of the time become `kernel` times as fast, and all
# else stays as it is. How many times as fast is the whole?
#
# **Signature.** `whole(share, kernel) -> float`


# %%
def whole(share, kernel):
    # your code here
    pass


# %%
lab.check("waterfall.whole", whole)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# waterfall.whole: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          share=0.5, kernel=2
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("waterfall.whole", ...).hint(), or: lab check waterfall.whole --hint
# ```

# %% [markdown]
# ## 3. The most there is
#
# **Overview.** Before you write a kernel at all: an operator has the share `share`, less than 1, of the time. How many times
# as fast can the whole become, whatever takes the operator's place?
#
# **Signature.** `at_most(share) -> float`


# %%
def at_most(share):
    # your code here
    pass


# %%
lab.check("waterfall.at_most", at_most)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# waterfall.at_most: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          share=0.5
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("waterfall.at_most", ...).hint(), or: lab check waterfall.at_most --hint
# ```

# %% [markdown]
# ## 4. The kernel that a goal takes
#
# **Overview.** The other way round: the whole is to be `whole` times as fast. How many times as fast must the kernels be that
# have the share `share` of its time? A goal that no kernel reaches has the answer `None`.
#
# **Signature.** `kernel_needed(share, whole) -> float or None`
#
# <details><summary>Tip: in times</summary>
#
# Say that the whole took 1. How much of it may the kernels still take, when the goal is met and the rest has stayed?
#
# </details>


# %%
def kernel_needed(share, whole):
    # your code here
    pass


# %%
lab.check("waterfall.kernel_needed", kernel_needed)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# waterfall.kernel_needed: FAILED at "value"
#   The value is right.
#
#   case          share=0.5, whole=1.25
#   found         yours None, expected 1.66666667
#   held          runs, answers
#   hint          lab.check("waterfall.kernel_needed", ...).hint(), or: lab check
#                 waterfall.kernel_needed --hint
# ```

# %% [markdown]
# ## 5. Two operators at once
#
# **Overview.** Two operators are replaced in the same model, with the shares `share` and `other_share` of its time before
# either was. One becomes `kernel` times as fast, the other `other_kernel` times. How many times as fast is the whole?
#
# **Signature.** `together(share, kernel, other_share, other_kernel) -> float`


# %%
def together(share, kernel, other_share, other_kernel):
    # your code here
    pass


# %%
lab.check("waterfall.together", together)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# waterfall.together: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          share=0.5, kernel=2, other_share=0.25, other_kernel=2
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("waterfall.together", ...).hint(), or: lab check waterfall.together --hint
# ```

# %% [markdown]
# ## 6. What the caller sees
#
# **Overview.** A block takes `gpu_us` microseconds of the GPU's time, and with better kernels `faster_us`. Each way the CPU
# makes `launches` launches, of `launch_us` each, ahead of the GPU where it can. Whichever of the two is slower is what the
# caller waits for; leave out how the first launch starts and the last kernel ends. How many times as fast does the caller
# see the block become?
#
# **Signature.** `seen(gpu_us, faster_us, launches, launch_us) -> float`


# %%
def seen(gpu_us, faster_us, launches, launch_us):
    # your code here
    pass


# %%
lab.check("waterfall.seen", seen)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# waterfall.seen: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          gpu_us=1500, faster_us=1200, launches=20, launch_us=10
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("waterfall.seen", ...).hint(), or: lab check waterfall.seen --hint
# ```
