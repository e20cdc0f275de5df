# %% [markdown]
# # Exercises: the roofline
#
# Six functions for what the roofline chapter explains: a line or two each, numbers in, a number out. No GPU is needed, and
# none is used. Throughout, `y = x @ weight.T` is a *linear layer*, with `x` of `(m, k)`, `weight` of `(n, k)` and `y` of
# `(m, n)`; `bits` is the size of an element, 16 for bfloat16.
#
# **Checking.** Run the cell with `lab.check` under each exercise, or `lab check roofline` in a terminal (on
# `exercises/roofline.py`). A failing check names what does not hold and shows the first case where it does not. It holds
# back its hint until you ask: `lab.check("roofline.bound", bound).hint()`, or `lab check roofline.bound --hint`.

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

import lab

# %% [markdown]
# ## 1. Operations
#
# **Overview.** How many floating-point operations does a linear layer take? Count a
# multiplication and an addition for each product, the first addition to zero included.
#
# **Signature.** `linear_flops(m, n, k) -> int`


# %%
def linear_flops(m, n, k):
    # your code here
    pass


# %%
lab.check("roofline.linear_flops", linear_flops)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# roofline.linear_flops: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          m=2, n=3, k=5
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("roofline.linear_flops", ...).hint(), or: lab check roofline.linear_flops
#                 --hint
# ```

# %% [markdown]
# ## 2. Bytes
#
# **Overview.** How many bytes must a linear layer move at the least? What has been read once stays at hand.
#
# **Signature.** `linear_bytes(m, n, k, bits) -> float`


# %%
def linear_bytes(m, n, k, bits):
    # your code here
    pass


# %%
lab.check("roofline.linear_bytes", linear_bytes)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# roofline.linear_bytes: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          m=2, n=3, k=5, bits=16
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("roofline.linear_bytes", ...).hint(), or: lab check roofline.linear_bytes
#                 --hint
# ```

# %% [markdown]
# ## 3. Intensity
#
# **Overview.** SwiGLU, `silu(gate) * up` on tensors of as many elements each, does four operations an element: an
# exponential, an addition, a division, a multiplication. What is its intensity, in FLOPs a byte?
#
# **Signature.** `swiglu_intensity(elements, bits) -> float`


# %%
def swiglu_intensity(elements, bits):
    # your code here
    pass


# %%
lab.check("roofline.swiglu_intensity", swiglu_intensity)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# roofline.swiglu_intensity: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          elements=1, bits=16
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("roofline.swiglu_intensity", ...).hint(), or: lab check
#                 roofline.swiglu_intensity --hint
# ```

# %% [markdown]
# ## 4. Memory or compute
#
# **Overview.** A pass does `flops` operations and moves `nbytes` bytes, on a GPU that computes `tflops` TFLOP/s and copies
# `gbps` GB/s. What bounds it?
#
# **Signature.** `bound(flops, nbytes, tflops, gbps) -> "memory" or "compute"`


# %%
def bound(flops, nbytes, tflops, gbps):
    # your code here
    pass


# %%
lab.check("roofline.bound", bound)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# roofline.bound: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          flops=1000000, nbytes=10000000, tflops=800, gbps=3200
#   found         returned None; expected 'compute' or 'memory'
#   held          runs
#   hint          lab.check("roofline.bound", ...).hint(), or: lab check roofline.bound --hint
# ```

# %% [markdown]
# ## 5. The floor
#
# **Overview.** The least time that the same pass takes on the same GPU, in microseconds.
#
# **Signature.** `floor_us(flops, nbytes, tflops, gbps) -> float`


# %%
def floor_us(flops, nbytes, tflops, gbps):
    # your code here
    pass


# %%
lab.check("roofline.floor_us", floor_us)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# roofline.floor_us: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          flops=1000000, nbytes=10000000, tflops=800, gbps=3200
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("roofline.floor_us", ...).hint(), or: lab check roofline.floor_us --hint
# ```

# %% [markdown]
# ## 6. Where a layer turns
#
# **Overview.** One token through a linear layer is memory-bound, thousands may be compute-bound. From which number of
# tokens `m` on is a layer of `n` by `k` compute-bound? A layer that never is has the answer `None`.
#
# **Signature.** `turning_batch(n, k, bits, tflops, gbps) -> int or None`
#
# <details><summary>Tip: an equation for m</summary>
#
# Set the intensity of exercises 1 and 2 equal to the ridge, and bring all that has an m in it to one side. When is there
# no positive m left that solves it?
#
# </details>


# %%
def turning_batch(n, k, bits, tflops, gbps):
    # your code here
    pass


# %%
lab.check("roofline.turning_batch", turning_batch)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# roofline.turning_batch: FAILED at "value"
#   The value is right.
#
#   case          n=4096, k=4096, bits=16, tflops=800, gbps=3200
#   found         yours None, expected 285
#   held          runs, answers
#   hint          lab.check("roofline.turning_batch", ...).hint(), or: lab check
#                 roofline.turning_batch --hint
# ```
