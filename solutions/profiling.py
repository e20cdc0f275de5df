# %% [markdown]
# # Exercises: where the time goes
#
# Six functions that find the bottleneck in a trace. No GPU is needed, and none is used. A *trace* is a tuple of kernels in
# the order in which the CPU launched them. Each kernel is a tuple of four: its operator, and three times in microseconds,
# when the kernel was *queued* (from then on the GPU could start it), when it *started* and when it *ended*. Kernels on
# different streams may overlap.
#
# **Checking.** Run the cell with `lab.check` under each exercise, or `lab check profiling` in a terminal (on
# `exercises/profiling.py`). A failing check names what does not hold and shows the first case where it does not. It holds
# back its hint until you ask: `lab.check("profiling.share", share).hint()`, or `lab check profiling.share --hint`.

# %%
import lab

TRACE = (
    ("rmsnorm", 0, 5, 7),
    ("linear", 20, 20, 27),
    ("rope", 45, 48, 51),
    ("rope", 65, 65, 67),
    ("attention", 80, 85, 90),
)

# %% [markdown]
# ## 1. The bottleneck
#
# **Overview.** Which operator takes most of the GPU's time? An operator may have many kernels.
#
# **Signature.** `bottleneck(trace) -> str`


# %%
def bottleneck(trace):
    # BEGIN ANSWER: pass
    total = {}
    for operator, _, started, ended in trace:
        total[operator] = total.get(operator, 0) + ended - started
    return max(total, key=total.get)
    # END ANSWER


# %%
lab.check("profiling.bottleneck", bottleneck)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# profiling.bottleneck: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          trace=(('rmsnorm', 0, 5, 9), ('linear', 4, 10, 50), ('swiglu', 8, 51, 56),
#                 ('linear', 12, 57, 97))
#   found         returned None; expected 'attention' or 'linear' or 'rope'
#   held          runs
#   hint          lab.check("profiling.bottleneck", ...).hint(), or: lab check profiling.bottleneck
#                 --hint
# ```

# %% [markdown]
# ## 2. Its share
#
# **Overview.** Which fraction of the kernels' time is an operator's? One that the trace does not have has none.
#
# **Signature.** `share(trace, operator) -> float`


# %%
def share(trace, operator):
    # BEGIN ANSWER: pass
    its = sum(ended - started for name, _, started, ended in trace if name == operator)
    return its / sum(ended - started for name, _, started, ended in trace)
    # END ANSWER


# %%
lab.check("profiling.share", share)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# profiling.share: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          trace=(('rmsnorm', 0, 5, 9), ('linear', 4, 10, 50), ('swiglu', 8, 51, 56),
#                 ('linear', 12, 57, 97)), operator=swiglu
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("profiling.share", ...).hint(), or: lab check profiling.share --hint
# ```

# %% [markdown]
# ## 3. The gaps
#
# **Overview.** How many microseconds is the GPU idle, between the start of the first kernel and the end of the last?
#
# **Signature.** `idle_us(trace) -> int`
#
# <details><summary>Tip: walk through time</summary>
#
# Go through the kernels in the order in which they start, and keep in mind until when the GPU is busy with those that you
# have seen.
#
# </details>


# %%
def idle_us(trace):
    # BEGIN ANSWER: pass
    in_order = sorted(trace, key=lambda kernel: kernel[2])
    idle, busy_until = 0, in_order[0][2]
    for _, _, started, ended in in_order:
        idle += max(0, started - busy_until)
        busy_until = max(busy_until, ended)
    return idle
    # END ANSWER


# %%
lab.check("profiling.idle_us", idle_us)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# profiling.idle_us: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          trace=(('rmsnorm', 0, 5, 9), ('linear', 4, 10, 50), ('swiglu', 8, 51, 56),
#                 ('linear', 12, 57, 97))
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("profiling.idle_us", ...).hint(), or: lab check profiling.idle_us --hint
# ```

# %% [markdown]
# ## 4. Who waits for whom
#
# **Overview.** In how many of those microseconds had the kernel that comes next not been queued yet? Only these are the
# launches' fault.
#
# **Signature.** `waiting_us(trace) -> int`


# %%
def waiting_us(trace):
    # BEGIN ANSWER: pass
    in_order = sorted(trace, key=lambda kernel: kernel[2])
    waiting, busy_until = 0, in_order[0][3]
    for _, queued, _started, ended in in_order[1:]:
        waiting += max(0, queued - busy_until)
        busy_until = max(busy_until, ended)
    return waiting
    # END ANSWER


# %%
lab.check("profiling.waiting_us", waiting_us)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# profiling.waiting_us: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          trace=(('rmsnorm', 0, 5, 9), ('linear', 4, 10, 50), ('swiglu', 8, 51, 56),
#                 ('linear', 12, 57, 97))
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("profiling.waiting_us", ...).hint(), or: lab check profiling.waiting_us
#                 --hint
# ```

# %% [markdown]
# ## 5. Launches or GPU
#
# **Overview.** Launches take longer than kernels in many a step; they rule it where the GPU waits for them longer than it
# is busy. Say so here: then a step is bound by launches, else by the GPU.
#
# **Signature.** `bound(trace) -> "launches" or "GPU"`


# %%
def bound(trace):
    # BEGIN ANSWER: pass
    first, last = min(kernel[2] for kernel in trace), max(kernel[3] for kernel in trace)
    busy = last - first - idle_us(trace)
    return "launches" if waiting_us(trace) > busy else "GPU"
    # END ANSWER


# %%
lab.check("profiling.bound", bound)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# profiling.bound: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          trace=(('rmsnorm', 0, 5, 9), ('linear', 4, 10, 50), ('swiglu', 8, 51, 56),
#                 ('linear', 12, 57, 97))
#   found         returned None; expected 'GPU' or 'launches'
#   held          runs
#   hint          lab.check("profiling.bound", ...).hint(), or: lab check profiling.bound --hint
# ```

# %% [markdown]
# ## 6. What a CUDA graph would leave
#
# **Overview.** Launched as a CUDA graph, all kernels of a step are queued before the first one starts. How long is it then
# from the start of the first to the end of the last, if every kernel takes as long as before, and every other gap stays?
#
# **Signature.** `graph_us(trace) -> int`


# %%
def graph_us(trace):
    # BEGIN ANSWER: pass
    first, last = min(kernel[2] for kernel in trace), max(kernel[3] for kernel in trace)
    return last - first - waiting_us(trace)
    # END ANSWER


# %%
lab.check("profiling.graph_us", graph_us)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# profiling.graph_us: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          trace=(('rmsnorm', 0, 5, 9), ('linear', 4, 10, 50), ('swiglu', 8, 51, 56),
#                 ('linear', 12, 57, 97))
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("profiling.graph_us", ...).hint(), or: lab check profiling.graph_us --hint
# ```
