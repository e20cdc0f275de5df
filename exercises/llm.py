# %% [markdown]
# # Exercises: the model
#
# Four functions out of the model of the chapter "An LLM in three hundred lines", in plain PyTorch: no kernel to write, no
# GPU needed. The fourth puts the other three together into what happens when a model writes a token.
#
# **Checking.** Run the cell with `lab.check` under each exercise, or `lab check llm` in a terminal (on
# `exercises/llm.py`). A failing check names the property that does not hold and shows the smallest case where it does
# not: what you have and what was expected. It holds back its hint until you ask:
# `lab.check("llm.rope", turn).hint()`, or `lab check llm.rope --hint`.
#
# Arguments are passed by name, with the names of the signatures below. They come in float16, float32 and float64, and
# what comes out has the same dtype. Loops over sequences or heads are fine: here only the result counts.

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
# ## 1. RoPE
#
# **Overview.** A position is told to attention by turning the queries and keys: the numbers of a head are taken in pairs,
# and each pair, seen as a point in the plane, is turned by the position times a frequency of its own. The partner of a
# number lies half a head away. With the angle's cosine and sine:
#
# $$(a, b) \to (a \cos - b \sin,\; b \cos + a \sin), \qquad a = q_i,\; b = q_{i + d/2}$$
#
# **Signature.** `turn(q, cos, sin) -> turned`
#
# | argument | shape |
# | --- | --- |
# | `q` | `(batch, positions, heads, head_dim)` |
# | `cos`, `sin` | `(positions, head_dim / 2)` |
# | returns `turned` | as `q`, in memory of its own |
#
# <details><summary>Tip: two halves</summary>
#
# `q.chunk(2, dim=-1)` are views of the two halves of every head, `torch.cat` puts two halves together again.
#
# </details>
# <details><summary>Tip: broadcasting</summary>
#
# PyTorch aligns shapes at their ends: `(positions, head_dim / 2)` beside `(batch, positions, heads, head_dim / 2)`. Which
# dimension is missing in between?
#
# </details>


# %%
def turn(q, cos, sin):
    # your code here
    raise NotImplementedError("your code here")


# %%
lab.check("llm.rope", turn)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# llm.rope: FAILED at "runs"
#   The function runs on ordinary input.
#
#   smallest case q 1x1x1x8 float32, cos 1x4 float32, sin 1x4 float32
#   found         line 62: raise NotImplementedError("your code here")
#                 NotImplementedError: your code here
#   hint          lab.check("llm.rope", ...).hint(), or: lab check llm.rope --hint
# ```

# %% [markdown]
# ## 2. Grouped heads
#
# **Overview.** Several heads of q share one head of k and v: with 4 heads and 2 of k and v, q's heads 0 and 1 look at the
# first, 2 and 3 at the second. Each head takes
#
# $$y = \mathrm{softmax}\!\left(\frac{q\,k^T}{\sqrt{d}}\right) v$$
#
# where a query sees only keys up to its own position. There may be fewer queries than keys, because the keys of earlier
# tokens come out of a cache: the *last* query is at the last key's position.
#
# **Signature.** `grouped_attention(q, k, v) -> y`
#
# | argument | shape |
# | --- | --- |
# | `q` | `(batch, heads, queries, head_dim)` |
# | `k`, `v` | `(batch, kv_heads, keys, head_dim)`; `kv_heads` divides `heads`, `keys` is at least `queries` |
# | returns `y` | as `q` |
#
# All three may be views with any strides. Write the formula yourself, without `scaled_dot_product_attention`. (Its own
# causal flag, by the way, puts the *first* query at the first key.)
#
# <details><summary>Tip: the mask</summary>
#
# `torch.ones(queries, keys, dtype=torch.bool).tril(n)` is true where the column is at most `n` past the row. Which n lets
# the last row see everything?
#
# </details>
# <details><summary>Tip: no weight</summary>
#
# What must a score be for its exponential to be 0?
#
# </details>


# %%
def grouped_attention(q, k, v):
    # your code here
    raise NotImplementedError("your code here")


# %%
lab.check("llm.grouped_heads", grouped_attention)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# llm.grouped_heads: FAILED at "runs"
#   The function runs on ordinary input.
#
#   smallest case q 1x1x3x4 float32, k 1x1x3x4 float32, v 1x1x3x4 float32
#   found         line 119: raise NotImplementedError("your code here")
#                 NotImplementedError: your code here
#   hint          lab.check("llm.grouped_heads", ...).hint(), or: lab check llm.grouped_heads --hint
# ```

# %% [markdown]
# ## 3. The KV cache
#
# **Overview.** A cache has room for `capacity` tokens of each sequence, allocated once. When tokens come, their keys and
# values are stored after those that are there; and since prompts differ in length, that is another place in each
# sequence. Here all sequences get equally many new tokens.
#
# **Signature.** `append(k_cache, v_cache, k, v, lengths) -> new_lengths`
#
# | argument | shape |
# | --- | --- |
# | `k_cache`, `v_cache` | `(batch, kv_heads, capacity, head_dim)`: changed in place; may be parts of larger tensors |
# | `k`, `v` | `(batch, kv_heads, new, head_dim)` |
# | `lengths` | `(batch,)`, int64: how many tokens of each sequence are stored; not changed |
# | returns `new_lengths` | `(batch,)`, int64, a new tensor |
#
# If one of the sequences has no room for its new tokens: `ValueError`, and nothing is stored.
#
# <details><summary>Tip: without a loop</summary>
#
# A loop is fine. Without one, `k_cache[sequences, :, positions] = ...` stores at a list of places, and puts the
# dimensions of the two index tensors first: the right-hand side is `(batch, new, kv_heads, head_dim)`.
#
# </details>


# %%
def append(k_cache, v_cache, k, v, lengths):
    # your code here
    raise NotImplementedError("your code here")


# %%
lab.check("llm.cache", append)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# llm.cache: FAILED at "runs"
#   The function runs on ordinary input.
#
#   smallest case k_cache 1x1x4x2 float32, v_cache 1x1x4x2 float32, k 1x1x1x2 float32, v 1x1x1x2
#                 float32, lengths 1 int64 [0]
#   found         line 167: raise NotImplementedError("your code here")
#                 NotImplementedError: your code here
#   hint          lab.check("llm.cache", ...).hint(), or: lab check llm.cache --hint
# ```

# %% [markdown]
# ## 4. A decode step
#
# **Overview.** One new token of each sequence goes through an attention layer. Its query and key are turned by its own
# position, its key and value are stored, and its query looks at all keys of its sequence. The result must be what
# attention over the whole sequence, without a cache, gives for its last token. Your three functions do most of it.
#
# **Signature.** `decode(q, k, v, cos, sin, k_cache, v_cache, lengths) -> y`
#
# | argument | shape |
# | --- | --- |
# | `q` | `(batch, heads, head_dim)`: the new token's, not turned yet |
# | `k`, `v` | `(batch, kv_heads, head_dim)`: as `q` |
# | `cos`, `sin` | `(capacity, head_dim / 2)`: a row for each position that there can be |
# | `k_cache`, `v_cache`, `lengths` | as in 3; the keys in the cache are turned |
# | returns `y` | as `q` |
#
# There is room for the new tokens. The places of the cache that are not in use hold numbers of earlier texts.
#
# <details><summary>Tip: one sequence, many positions</summary>
#
# `turn` has one row of cos and sin for each position of a sequence. Seen the right way, the new tokens of several
# sequences are several positions of one: `q[None]` is `(1, batch, heads, head_dim)`.
#
# </details>


# %%
def decode(q, k, v, cos, sin, k_cache, v_cache, lengths):
    # your code here
    raise NotImplementedError("your code here")


# %%
lab.check("llm.decode", decode)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# llm.decode: FAILED at "runs"
#   The function runs on ordinary input.
#
#   smallest case q 1x1x4 float32, k 1x1x4 float32, v 1x1x4 float32, k_cache 1x1x4x4 float32, v_cache
#                 1x1x4x4 float32, cos 4x2 float32, sin 4x2 float32, lengths 1 int64 [0]
#   found         line 217: raise NotImplementedError("your code here")
#                 NotImplementedError: your code here
#   hint          lab.check("llm.decode", ...).hint(), or: lab check llm.decode --hint
# ```
