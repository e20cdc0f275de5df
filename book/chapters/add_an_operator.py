# %% [markdown]
# # Add an operator
#
# **What you will see.** Layer normalization, added to the package from nothing: three new files and no change to an old
# one. Then what an operator gets for being registered: the command line, the benchmarks, the roofline, and a few dozen
# tests, one of which found a mistake.
#
# **What you need.** The [RMSNorm chapter](rmsnorm.ipynb): its kernels are the pattern. No GPU. **Reading time:** about
# 15 minutes.

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

from lab.backends.hardware import default_device
from lab.backends.registry import implementations, operator
from lab.backends.torch import layernorm as torch_layernorm
from lab.backends.triton import layernorm as triton_layernorm
from lab.benchmark import records
from lab.benchmark.tables import Table
from lab.notebook import code, ladder_of, show
from lab.ops.layernorm import LayerNorm

# %% [markdown]
# ## Three files
#
# | file | what it says |
# | --- | --- |
# | `lab/ops/layernorm.py` | the contract: mathematics, checks, shapes, cost, error bound |
# | `lab/backends/torch/layernorm.py` | PyTorch's own |
# | `lab/backends/triton/layernorm.py` | the kernels |
#
# They are found by their names: nothing lists them. A CUDA version would be a fourth and a fifth file,
# `lab/backends/cuda/layernorm.cu` and its launcher.
#
# ## The contract
#
# Write the mathematics first, forward and backward, in the module's text, with the names that the code will use. For a
# row $x$ of $n$ columns:
#
# $$y = \hat{x}\, w + b, \qquad \hat{x} = (x - \bar{x})\, r, \qquad
# r = \frac{1}{\sqrt{\frac{1}{n}\sum_i (x_i - \bar{x})^2 + \varepsilon}}$$
#
# and with $g = w \cdot dy$, $\overline{v}$ being the mean of $v$ over the row:
#
# $$dx = r \left(g - \overline{g} - \hat{x}\; \overline{g \hat{x}}\right), \qquad
# dw = \sum_{rows} dy\, \hat{x}, \qquad db = \sum_{rows} dy$$
#
# Then a class with an attribute or a method for each thing that others ask of an operator. What is checked before
# anything is launched, and what is true by definition:

# %%
show(code(LayerNorm.check, LayerNorm.reference))

# %% [markdown]
# `reference` is plain PyTorch. In float64 it is what every kernel is compared with, so it should be the formula and
# nothing clever.
#
# **What does a kernel get to see?** Not the caller's tensors, which may have any number of dimensions and any strides.
# `canonical` gives rows of unit stride, `restore` puts the result back into the caller's shape, and `saved` picks what
# the backward pass needs. The `like_` methods give empty tensors of the results' shapes, which torch.compile asks for.

# %%
show(code(LayerNorm.canonical, LayerNorm.restore, LayerNorm.saved, LayerNorm.like_forward, LayerNorm.like_backward))

# %% [markdown]
# **What must it cost?** FLOPs and bytes, term by term, so that a reader can check the sum. From this come the floor that
# a benchmark compares with, and the roofline.

# %%
show(code(LayerNorm.forward_cost))

# %% [markdown]
# **How wrong may it be?** No more than PyTorch is in the same dtype, twice over, plus four units of roundoff times the
# sum of the absolute values of the terms. The last is for the operator to say. The subtraction is what to think about:
# of $x - \bar{x}$ the terms are $|x|$ and $\overline{|x|}$, however small the difference comes out.

# %%
show(code(LayerNorm.term_sums))

# %% [markdown]
# ## The backends
#
# PyTorch's file is the smallest that there can be. Its function is differentiable already, so it stands for both passes:

# %%
show(code(torch_layernorm.function), ladder_of("layernorm", "torch"), ladder_of("layernorm", "triton"))

# %% [markdown]
# Kernels are pure functions, tensors in and tensors out, in two passes; autograd is wired once for all operators. The
# first rung is the plainest thing that is right, the last is what a choice such as `"triton"` means:

# %%
show(code(triton_layernorm._layernorm_forward_one_pass, triton_layernorm.forward_one_pass))

# %% [markdown]
# <details><summary>Question: why is <code>value - mean</code> put to zero in the masked lanes?</summary>
#
# They were loaded as 0, and 0 - mean is -mean: each of them would add mean² to the sum of squares. RMSNorm takes no mean
# off, so there a zero stays one. In the backward pass the same lanes are harmless, because they are multiplied by
# a gradient that was loaded as 0.
#
# </details>
#
# ## What it gets for being registered
#
# The public function, on every backend, with gradients:

# %%
device = default_device()
x, w, b = operator("layernorm").make_inputs((4, 1000), torch.float32, device)
for tensor in (x, w, b):
    tensor.requires_grad_()
expected = torch.nn.functional.layer_norm(x, (1000,), w, b)
rows = []
for rung in implementations("layernorm"):
    with lab.trace() as calls:
        y = lab.get_op("layernorm", str(rung))(x, w, b)
        y.sum().backward()
    ran = ", ".join(f"{call.backend}:{call.rung} {call.direction}" for call in calls)
    rows.append([str(rung), str(torch.allclose(y, expected, atol=1e-5)), ran])
show(Table(["asked for", "as torch's", "what ran"], rows))

# %% [markdown]
# Its floor on a GPU that has a record, before anything was measured:

# %%
record = records.published("rmsnorm")
rows = []
for direction in ("forward", "both"):
    shape = operator("layernorm").shapes["gpt3-175b"]
    cost = operator("layernorm").cost(shape, torch.bfloat16, direction)
    floor_us = record.ceilings.floor_us(cost)
    rows.append([direction, f"{cost.bytes / 1e6:.0f} MB", f"{cost.intensity:.2f}", f"{floor_us:.0f} us"])
show(f"On an {record.environment.gpu}:", Table(["4096x12288, bfloat16", "bytes", "FLOPs a byte", "floor"], rows))

# %% [markdown]
# On the command line, with no further line of code:
#
# ```sh
# lab ops layernorm                        # its rungs, and what runs here
# lab ops layernorm --resources            # registers, spills and shared memory on seven architectures; no GPU needed
# lab bench --op layernorm --backend 'triton:*' --backend torch      # on a GPU
# python -m pytest tests -k layernorm
# ```
#
# ## What the tests found
#
# The last command runs what every operator is held to, because the tests walk the registry: gradients against finite
# differences in float64; the error rule in each dtype at sizes from 1 to 65,536 columns; strides; NaN and infinity;
# results that were poisoned with NaN before the kernel ran; inputs left unmodified; the same under torch.compile; and a
# compilation for every architecture.
#
# **What would you expect to fail?** The kernels were right at the first try. The launcher was not. It took dw and db out
# of one sum:
#
# ```python
# dw, db = partial.sum(0).to(weight.dtype)      # two rows of one tensor
# ```
#
# Both are views of one piece of memory. Autograd hands gradients to whoever asks, and a caller who changes one in place
# (gradient clipping does) has no reason to think that another tensor is behind it. Two tests said so: one asks whether
# the gradients of a call share memory, and torch.compile refuses a custom operator whose results do. The mended line:

# %%
show(code(triton_layernorm.backward_one_pass))

# %% [markdown]
# What is particular to an operator, its own tests say. Layer normalization has two things of its own
# (`tests/test_layernorm.py`): a mean far from zero, where $\overline{x^2} - \bar{x}^2$ would leave rounding errors only;
# and a bias, with its own errors.
#
# ## Take-away
#
# - An operator is a contract and, for each backend, one file. If a new one makes you edit an old file, the design is
#   wrong there: say so.
# - Write the mathematics and the cost before a kernel.
# - Run what all operators are held to before you write tests of your own.
#
# ## Where it loses
#
# These kernels have not been tuned, and there is no record of them: no number on this page is a measurement of layer
# normalization. To teach it, add an experiment, a chapter and exercises; `CONTRIBUTING.md` has the list.
#
# ## Exercise
#
# Add `relu_squared`, $y = \max(x, 0)^2$, elementwise. What are its dims, its cost, and what does its backward pass save:
# x or y? Which of the tests does it need of its own?
#
# ## References
#
# Ba, Kiros and Hinton 2016: see the [references](../references.md).
