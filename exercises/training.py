# %% [markdown]
# # Exercises: training
#
# A test that finds wrong gradients, in two steps, and three calculations about a training step. They are plain Python and
# PyTorch: no kernel to write, no GPU needed.
#
# **Checking.** Run the cell with `lab.check` under each exercise, or `lab check training` in a terminal (on
# `exercises/training.py`). A failing check names what does not hold and shows the first case where it does not. It holds
# back its hint until you ask: `lab.check("training.slope", slope).hint()`, or `lab check training.slope --hint`.

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
import torch

# %% [markdown]
# ## 1. A slope
#
# **Overview.** A derivative can be had without calculus: how much does the loss change if one weight moves a little up and
# a little down, and the others stay? Return that change for each unit that the weight was moved.
#
# **Signature.** `slope(loss, weights, index, step) -> float`
#
# | argument | |
# | --- | --- |
# | `loss` | a function: `loss(weights)` is a number |
# | `weights` | a tuple of numbers |
# | `index` | of the weight that moves |
# | `step` | how far it moves, up and down |


# %%
def slope(loss, weights, index, step):
    # your code here
    pass


# %%
lab.check("training.slope", slope)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# training.slope: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          loss=w0**3, weights=(2.0,), index=0, step=0.5
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("training.slope", ...).hint(), or: lab check training.slope --hint
# ```

# %% [markdown]
# ## 2. Which gradient is wrong?
#
# **Overview.** Somebody wrote the backward passes of nine layers by hand. In some of them a mistake has been made, in one of
# the gradients; a model with such a layer still trains, only worse. Write the test that finds it. You cannot see into a
# layer, and neither can autograd; but you can call it.
#
# **Signature.** `wrong_gradient(layer) -> str`: the name of the wrong gradient, or `"none"`
#
# | a layer has | |
# | --- | --- |
# | `layer.names` | of its inputs, such as `("x", "weight")` |
# | `layer.inputs()` | a tuple of float64 tensors, one for each name |
# | `layer.forward(*inputs)` | the output y |
# | `layer.backward(dy, *inputs)` | a tuple: the gradient of the loss with respect to each input, if that with respect to y is `dy` |
#
# <details><summary>Tip: a loss</summary>
#
# For any `dy` there is a loss whose gradient with respect to y is `dy`: `(dy * y).sum()`.
#
# </details>
# <details><summary>Tip: how large a step, how near a result</summary>
#
# Steps of about `1e-6` of the inputs' size leave some nine digits in float64. `torch.allclose` asks for five, and takes
# what is below `1e-8` for nothing.
#
# </details>


# %%
def wrong_gradient(layer):
    # your code here
    pass


# %%
lab.check("training.wrong_gradient", wrong_gradient)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# training.wrong_gradient: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          layer=rmsnorm 1
#   found         returned None; expected 'bias' or 'gate' or 'none' or 'table' or 'up' or 'weight' or
#                 'x'
#   held          runs
#   hint          lab.check("training.wrong_gradient", ...).hint(), or: lab check
#                 training.wrong_gradient --hint
# ```

# %% [markdown]
# ## 3. A batch in parts
#
# **Overview.** A batch that does not fit into memory is trained on in parts, whose gradients are added up. A part's loss is
# the mean over its own tokens, and parts need not have equally many. What is the loss of the whole batch, the mean over all
# of its tokens?
#
# **Signature.** `accumulated(losses, tokens) -> float`, with the loss and the number of tokens of each part


# %%
def accumulated(losses, tokens):
    # your code here
    pass


# %%
lab.check("training.accumulated", accumulated)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# training.accumulated: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          losses=(3.0, 5.0), tokens=(100, 300)
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("training.accumulated", ...).hint(), or: lab check training.accumulated
#                 --hint
# ```

# %% [markdown]
# ## 4. What a weight takes
#
# **Overview.** How many bytes do a model's weights, their gradients and AdamW's numbers take? The weights have `bits` bits, 32
# or 16. The gradients and the optimizer are in float32 in any case, and steps are added to weights in float32; where the
# model's own are not, there is a copy.
#
# **Signature.** `state_bytes(parameters, bits) -> int`


# %%
def state_bytes(parameters, bits):
    # your code here
    pass


# %%
lab.check("training.state_bytes", state_bytes)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# training.state_bytes: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          parameters=1000000, bits=32
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("training.state_bytes", ...).hint(), or: lab check training.state_bytes
#                 --hint
# ```

# %% [markdown]
# ## 5. Model FLOPs utilization
#
# **Overview.** A model whose `parameters` are all weights of matrix products is trained on `tokens` tokens in `seconds`. Which
# fraction of `peak_tflops`, the most that the GPU can do, is that? Count the products alone, forward and backward.
#
# **Signature.** `mfu(parameters, tokens, seconds, peak_tflops) -> float`
#
# <details><summary>Tip: one token, one weight</summary>
#
# In the forward pass each token multiplies each weight once, and adds the product to something.
#
# </details>


# %%
def mfu(parameters, tokens, seconds, peak_tflops):
    # your code here
    pass


# %%
lab.check("training.mfu", mfu)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# training.mfu: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          parameters=1000000000, tokens=8192, seconds=0.2, peak_tflops=700
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("training.mfu", ...).hint(), or: lab check training.mfu --hint
# ```
