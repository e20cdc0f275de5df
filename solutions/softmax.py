# %% [markdown]
# # Exercises: softmax
#
# Four kernels for what the softmax chapter explains. No GPU is needed: without one, Triton's interpreter runs your
# kernels on the CPU, and every answer can be checked in full. Below, `x` is `(rows, columns)` and
#
# $$y_i = \frac{e^{x_i}}{\sum_j e^{x_j}}$$
#
# with the sum over the columns of a row.
#
# **Checking.** Run the cell with `lab.check` under each exercise, or `lab check softmax` in a terminal (on
# `exercises/softmax.py`). A failing check names the property that does not hold and shows the smallest case where it
# does not: what you have, what was expected, and the launch. It holds back its hint until you ask:
# `lab.check("softmax.forward", forward).hint()`, or `lab check softmax.forward --hint`.
#
# **The budget** of an exercise says how often each tensor may cross device memory. Without a GPU the check counts the
# elements that your loads and stores touch; on a GPU it times your kernel against a copy of as many bytes.

# %%
import lab  # before triton: on a machine with no GPU it switches Triton to its interpreter
import torch
import triton
import triton.language as tl

# %% [markdown]
# ## 1. The stable softmax
#
# **Overview.** The exponential of 89 is already too large for float32, and attention scores may well be larger. So a row
# is moved first, by its maximum: that changes nothing in the quotient, and every exponential lies between 0 and 1. One
# program takes one row and holds all of it in registers.
#
# **Signature.** `forward(x) -> y`
#
# | argument | shape | strides | dtype |
# | --- | --- | --- | --- |
# | `x` | `(rows, columns)` | any between rows, 1 between columns | float16, bfloat16 (on a GPU), float32, float64 |
# | returns `y` | `(rows, columns)` | contiguous | as `x` |
#
# float16 and bfloat16 are computed in float32; float64 stays float64. An element that is -inf gives 0.
#
# **Budget.** Reads x once and writes y once.
#
# <details><summary>Tip: the lanes that are left over</summary>
#
# They take part in the maximum and in the sum. Which number, put there by the load, is never the maximum, and has an
# exponential that adds nothing?
#
# </details>
# <details><summary>Tip: one read</summary>
#
# The exponentials are needed twice, for the sum and for the quotient. They can stay where they are.
#
# </details>


# %%
def accumulator(x):
    """float64 is computed in float64, everything else in float32."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


@triton.jit
def forward_kernel(x, x_stride, y, columns, ACC: tl.constexpr, BLOCK: tl.constexpr):
    # BEGIN ANSWER: pass
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < columns
    value = tl.load(x + row * x_stride + column, mask, other=float("-inf")).to(ACC)
    e = tl.exp(value - tl.max(value))
    tl.store(y + row * columns + column, e / tl.sum(e), mask)
    # END ANSWER


def forward(x):
    rows, columns = x.shape
    y = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(columns)
    forward_kernel[(rows,)](x, x.stride(0), y, columns, ACC=accumulator(x), BLOCK=block)
    return y


# %%
lab.check("softmax.forward", forward)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# softmax.forward: FAILED at "output fully written"
#   Every element of every output is written.
#
#   smallest case x 1x8 float32
#   launch        forward_kernel[(1,)](x=float32[1,8], x_stride=8, y=float32[1,8], columns=8,
#                 ACC=fp32, BLOCK=8)
#   found         8 of 8 elements of y were never written; the first is y[0, 0]
#   held          runs, launches a kernel, outputs, inputs unmodified, fresh outputs
#   hint          lab.check("softmax.forward", ...).hint(), or: lab check softmax.forward --hint
# ```

# %% [markdown]
# ## 2. The online normalizer
#
# **Overview.** A row longer than a block passes through it piece by piece. Maximum first, sum second, quotient third: that
# is three reads. The first two can be one. Keep the largest number so far, `m`, and the sum so far of `exp(x - m)`; when a
# piece brings a larger maximum `n`, the sum so far was made with the wrong one, and is mended by the factor
# `exp(m - n)`.
#
# **Signature.** `online(x, block) -> y`, as in 1; `block` is a power of two, and no load or store may be wider. A row may
# be shorter than a block, longer, and no multiple of it. Whole blocks may be -inf, as a causal mask makes them.
#
# **Budget.** Reads x twice and writes y once. (On a GPU the second read mostly finds the row in cache.)
#
# <details><summary>Tip: every lane for itself</summary>
#
# A maximum over the block in every step costs a reduction in every step. Each lane can keep an `m` and a sum of its own,
# `tl.full([BLOCK], float("-inf"), ACC)` and `tl.zeros([BLOCK], ACC)`; after the loop, one reduction makes a common `m`,
# and the same factor brings each lane's sum to it.
#
# </details>
# <details><summary>Tip: where NaN comes from</summary>
#
# -inf less -inf. It happens as long as all that a lane has seen is -inf, be it masked or past the end of the row. What
# could be subtracted then instead?
#
# </details>


# %%
@triton.jit
def online_kernel(x, x_stride, y, columns, ACC: tl.constexpr, BLOCK: tl.constexpr):
    # BEGIN ANSWER: pass
    row = tl.program_id(0).to(tl.int64)
    m = tl.full([BLOCK], float("-inf"), ACC)
    total = tl.zeros([BLOCK], ACC)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * x_stride + column, column < columns, other=float("-inf")).to(ACC)
        n = tl.maximum(m, value)
        origin = tl.where(n == float("-inf"), 0, n)
        total = total * tl.exp(m - origin) + tl.exp(value - origin)
        m = n
    largest = tl.max(m)
    total = tl.sum(total * tl.exp(m - largest))
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        value = tl.load(x + row * x_stride + column, mask, other=float("-inf")).to(ACC)
        tl.store(y + row * columns + column, tl.exp(value - largest) / total, mask)
    # END ANSWER


def online(x, block):
    # BEGIN ANSWER: raise NotImplementedError("your code here")
    rows, columns = x.shape
    y = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    online_kernel[(rows,)](x, x.stride(0), y, columns, ACC=accumulator(x), BLOCK=block)
    return y
    # END ANSWER


# %%
lab.check("softmax.online", online)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# softmax.online: FAILED at "runs"
#   The function runs on ordinary input.
#
#   smallest case x 1x64 float32, block=64
#   found         line 133: raise NotImplementedError("your code here")
#                 NotImplementedError: your code here
#   hint          lab.check("softmax.online", ...).hint(), or: lab check softmax.online --hint
# ```

# %% [markdown]
# ## 3. The backward pass
#
# **Overview.** Every x moves every y of its row, because it is in the sum that all are divided by:
#
# $$dx_i = y_i \left( dy_i - \sum_j y_j\,dy_j \right)$$
#
# x itself is not needed: all that the forward pass must keep is y.
#
# **Signature.** `backward(dy, y) -> dx`
#
# | argument | shape | strides | dtype |
# | --- | --- | --- | --- |
# | `dy`, `y` | `(rows, columns)` | any between rows (each its own), 1 between columns | as in 1 |
# | returns `dx` | `(rows, columns)` | contiguous | as `y` |
#
# **Budget.** Reads dy and y once, writes dx once.
#
# <details><summary>Tip: where the sum comes from</summary>
#
# $\partial y_j / \partial x_i = y_j\,(\delta_{ij} - y_i)$. Multiply by $dy_j$, sum over j, and take $y_i$ out.
#
# </details>


# %%
@triton.jit
def backward_kernel(dy, dy_stride, y, y_stride, dx, columns, ACC: tl.constexpr, BLOCK: tl.constexpr):
    # BEGIN ANSWER: pass
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < columns
    grad = tl.load(dy + row * dy_stride + column, mask, other=0).to(ACC)
    value = tl.load(y + row * y_stride + column, mask, other=0).to(ACC)
    dot = tl.sum(value * grad)
    tl.store(dx + row * columns + column, value * (grad - dot), mask)
    # END ANSWER


def backward(dy, y):
    # BEGIN ANSWER: raise NotImplementedError("your code here")
    rows, columns = y.shape
    dx = torch.empty(rows, columns, dtype=y.dtype, device=y.device)
    backward_kernel[(rows,)](
        dy, dy.stride(0), y, y.stride(0), dx, columns, ACC=accumulator(y), BLOCK=triton.next_power_of_2(columns)
    )
    return dx
    # END ANSWER


# %%
lab.check("softmax.backward", backward)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# softmax.backward: FAILED at "runs"
#   The function runs on ordinary input.
#
#   smallest case dy 1x8 float32, y 1x8 float32
#   found         line 180: raise NotImplementedError("your code here")
#                 NotImplementedError: your code here
#   hint          lab.check("softmax.backward", ...).hint(), or: lab check softmax.backward --hint
# ```

# %% [markdown]
# ## 4. Several rows to a program
#
# **Overview.** A router chooses among eight experts, so its rows have eight columns. A program with 128 threads for eight
# numbers leaves most of them idle, and so many small programs take their time to start. Here a program takes a *tile*: a
# block of rows by a block of columns, reduced along its second dimension.
#
# **Signature.** `tiled(x, rows_per_program) -> y`, as in 1; `rows_per_program` is a power of two. The number of rows is
# any, and the last program may have fewer.
#
# **Budget.** Reads x once and writes y once.
#
# <details><summary>Tip: two dimensions</summary>
#
# `tl.arange(0, ROWS)[:, None]` and `tl.arange(0, BLOCK)[None, :]` are a column and a row of indices; added, they make a
# tile of them. `tl.max(tile, 1)` gives one number for each row of the tile, `[:, None]` makes a column of these again.
#
# </details>
# <details><summary>Tip: a row that is not there</summary>
#
# The last program's tile may reach past the last row. Such a row must not be loaded, and not be stored. What becomes of
# its numbers in between is nobody's concern.
#
# </details>


# %%
@triton.jit
def tiled_kernel(x, x_stride, y, rows, columns, ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    # BEGIN ANSWER: pass
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < columns)
    value = tl.load(x + row * x_stride + column, mask, other=float("-inf")).to(ACC)
    e = tl.where(mask, tl.exp(value - tl.max(value, 1)[:, None]), 0)
    tl.store(y + row * columns + column, e / tl.sum(e, 1)[:, None], mask)
    # END ANSWER


def tiled(x, rows_per_program):
    # BEGIN ANSWER: raise NotImplementedError("your code here")
    rows, columns = x.shape
    y = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    tiled_kernel[(triton.cdiv(rows, rows_per_program),)](
        x, x.stride(0), y, rows, columns,
        ACC=accumulator(x), ROWS=rows_per_program, BLOCK=triton.next_power_of_2(columns),
    )  # fmt: skip
    return y
    # END ANSWER


# %%
lab.check("softmax.tiled", tiled)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# softmax.tiled: FAILED at "runs"
#   The function runs on ordinary input.
#
#   smallest case x 1x8 float32, rows_per_program=4
#   found         line 228: raise NotImplementedError("your code here")
#                 NotImplementedError: your code here
#   hint          lab.check("softmax.tiled", ...).hint(), or: lab check softmax.tiled --hint
# ```
