# %% [markdown]
# # Exercises: linear
#
# Five kernels for what the chapter on `linear` explains. No GPU is needed: without one, Triton's interpreter runs your
# kernels on the CPU, and every answer but the last can be checked in full. Below, `x` is `(m, k)`, `weight` is `(n, k)`,
# and
#
# $$y = x\,w^T, \qquad y_{ij} = \sum_p x_{ip}\,w_{jp}$$
#
# **Checking.** Run the cell with `lab.check` under each exercise, or `lab check linear` in a terminal (on
# `exercises/linear.py`). A failing check names the property that does not hold and shows the smallest case where it
# does not: what you have, what was expected, and the launch. It holds back its hint until you ask:
# `lab.check("linear.tiled", tiled).hint()`, or `lab check linear.tiled --hint`.
#
# **The budget** of an exercise says how often each tensor may cross device memory. Without a GPU the check counts the
# elements that your loads and stores touch; on a GPU it times your kernel against PyTorch's (on those from the A100 on:
# Triton uses no tensor cores on older ones).
#
# **Arguments** are passed by name. Every matrix has unit stride between columns and any stride between rows, its own; the
# others are contiguous. They come in float16, bfloat16 (on a GPU), float32 and float64. Products of float16 and bfloat16
# are summed in float32, products of float32 are not rounded to TF32, and float64 stays float64. What is returned is
# contiguous and has the dtype of the inputs, unless a signature says otherwise. `tile` is a power of two, 16 or more.

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
import lab  # before triton: on a machine with no GPU it switches Triton to its interpreter
import torch
import triton
import triton.language as tl

from lab.backends.cuda.compile import launch

# %% [markdown]
# ## 1. A tile of y to a program
#
# **Overview.** One element of y needs a row of x and a row of the weight. If every element fetched its own, how often
# would x be read? n times, once for each column of y. A program that computes a *tile* of y, `tile` rows by `tile`
# columns, fetches each row of x once for `tile` columns: x is read n / tile times and the weight m / tile times. The rows
# may be long, so they come in pieces, `tile` columns at a time, and the sum stays in registers from piece to piece.
#
# Write the product of one tile, `tile_product`, which exercises 2 and 3 use again; then the kernel that stores it; then
# its launch, on a grid of one program a tile.
#
# **Signature.** `tiled(x, weight, tile) -> y`
#
# | argument | shape |
# | --- | --- |
# | `x` | `(m, k)` |
# | `weight` | `(n, k)` |
# | returns `y` | `(m, n)` |
#
# m, n and k are any numbers, multiples of `tile` or not.
#
# **Budget.** Reads x once for every column of tiles, and the weight once for every row of tiles; writes y once.
#
# <details><summary>Tip: the weight's tile, transposed</summary>
#
# `tl.dot(a, b)` wants b as (k, columns of y), and the weight lies in memory as (columns of y, k). Nothing has to be moved:
# which index gets `[:, None]` and which `[None, :]` says where an element of the block comes from.
#
# </details>
# <details><summary>Tip: three edges</summary>
#
# The last tile may reach past the last row of x, past the last row of the weight, and, in the last piece, past the last
# column of both. What lies past an edge of y is only not to be stored. What lies past the end of k is added up: what must
# it be?
#
# </details>
# <details><summary>Tip: which precision?</summary>
#
# `tl.dot(a, b, acc, input_precision=..., out_dtype=...)` adds a product to `acc`, whose dtype is `out_dtype`. Of float32
# inputs the default, "tf32", sees three decimal digits; "ieee" sees all of them.
#
# </details>


# %%
def accumulation_dtype(x):
    """float64 is summed in float64, everything else in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def accumulator(x):
    return tl.float64 if x.dtype == torch.float64 else tl.float32


@triton.jit
def tile_product(
    x, x_stride, weight, weight_stride, row, column, m, n, first, last, ACC: tl.constexpr, TILE: tl.constexpr
):
    """The sum of x[row, p] weight[column, p] for p from `first` to `last` - 1: (TILE, TILE), in ACC. row, column: (TILE,)
    indices into x and weight, some of them perhaps past m and n."""
    # your code here
    return tl.zeros([TILE, TILE], ACC)


@triton.jit
def tiled_kernel(x, x_stride, weight, weight_stride, y, m, n, k, ACC: tl.constexpr, TILE: tl.constexpr):
    # your code here
    pass


def tiled(x, weight, tile):
    # your code here
    raise NotImplementedError("your code here")


# %%
lab.check("linear.tiled", tiled)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# linear.tiled: FAILED at "runs"
#   The function runs on ordinary input.
#
#   smallest case x 16x16 float32, weight 16x16 float32, tile=16
#   found         line 114: raise NotImplementedError("your code here")
#                 NotImplementedError: your code here
#   hint          lab.check("linear.tiled", ...).hint(), or: lab check linear.tiled --hint
# ```

# %% [markdown]
# ## 2. Programs in groups
#
# **Overview.** What a program loads stays in L2 for a while, and programs with neighbouring numbers run at about the same
# time. Suppose that 64 run at once, and that y has 64 columns of tiles. Numbered along the rows of y, they share one row
# of tiles of x, and each needs a row of tiles of the weight of its own: how many rows of tiles do they need together? 65.
# An 8 by 8 block of tiles has as many programs and needs 8 of x and 8 of the weight: 16.
#
# So the programs are numbered in *groups* of `group` rows of tiles. A group's numbers go down its first column of tiles,
# then down its second, and so on to the last; then comes the next group. The last group has the rows that are left. For
# 5 rows of 3 tiles in groups of 2:
#
# ```text
#  0  2  4
#  1  3  5
#  6  8 10
#  7  9 11
# 12 13 14
# ```
#
# The kernel and its launch are there; write `place`, which tells a program its tile. (`tile_product` is yours, of exercise 1.)
#
# **Signature.** `grouped(x, weight, tile, group) -> (y, order)`
#
# | argument | shape |
# | --- | --- |
# | `x`, `weight`, `tile`, `y` | as in 1 |
# | `group` | an int |
# | returns `order` | (rows of tiles, columns of tiles), int32: which program computed the tile |
#
# `order` is there so that you and the check can see the numbering: print it.
#
# **Budget.** As in 1: grouping changes where a read is served from, and not how many there are.
#
# <details><summary>Tip: whole groups first</summary>
#
# How many programs does a whole group have? Quotient and remainder of the program's number by that say which group it is
# in and which of the group's numbers it has. A second quotient and remainder make a row and a column of the latter.
#
# </details>
# <details><summary>Tip: the last group</summary>
#
# The groups before it are whole, so the first row of the last group is where it always is. What is different is how many
# rows are left: `tl.minimum(...)`.
#
# </details>


# %%
@triton.jit
def place(program, tiles_m, tiles_n, GROUP: tl.constexpr):
    """(row, column) of the program's tile, out of tiles_m by tiles_n."""
    # your code here
    return 0, program


@triton.jit
def grouped_kernel(
    x, x_stride, weight, weight_stride, y, order, m, n, k, ACC: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr
):
    tiles_m, tiles_n = tl.cdiv(m, TILE), tl.cdiv(n, TILE)
    tile_row, tile_column = place(tl.program_id(0), tiles_m, tiles_n, GROUP)
    row = (tile_row * TILE + tl.arange(0, TILE)).to(tl.int64)
    column = (tile_column * TILE + tl.arange(0, TILE)).to(tl.int64)
    acc = tile_product(x, x_stride, weight, weight_stride, row, column, m, n, 0, k, ACC, TILE)
    tl.store(y + row[:, None] * n + column[None, :], acc, (row[:, None] < m) & (column[None, :] < n))
    tl.store(order + tile_row * tiles_n + tile_column, tl.program_id(0))


def grouped(x, weight, tile, group):
    (m, k), n = x.shape, weight.shape[0]
    tiles_m, tiles_n = triton.cdiv(m, tile), triton.cdiv(n, tile)
    y = torch.empty(m, n, dtype=x.dtype, device=x.device)
    order = torch.empty(tiles_m, tiles_n, dtype=torch.int32, device=x.device)
    grouped_kernel[(tiles_m * tiles_n,)](
        x, x.stride(0), weight, weight.stride(0), y, order, m, n, k, ACC=accumulator(x), TILE=tile, GROUP=group
    )
    return y, order


# %%
lab.check("linear.grouped", grouped)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# linear.grouped: FAILED at "formula"
#   y[i, j] is the sum over p of x[i, p] weight[j, p].
#
#   smallest case x 16x16 float32, weight 16x16 float32, tile=16, group=2
#   launch        grouped_kernel[(1,)](x=float32[16,16], x_stride=16, weight=float32[16,16],
#                 weight_stride=16, y=float32[16,16], order=int32[1,1], m=16, n=16, k=16, ACC=fp32,
#                 TILE=16, GROUP=2)
#   found         y[0, 0]: yours 0, expected -3, difference 3 (allowed: 7.9e-06)
#                 248 of 256 elements of y are wrong
#   held          runs, launches a kernel, outputs, inputs unmodified, fresh outputs, output fully
#                 written
#   hint          lab.check("linear.grouped", ...).hint(), or: lab check linear.grouped --hint
# ```

# %% [markdown]
# ## 3. Few rows: split k
#
# **Overview.** While an LLM writes, x has one row for each text, 16 say. With tiles of 64 and a weight of 4096 rows that
# makes 64 tiles of y. How much of a GPU with 132 multiprocessors reads the weight then? Less than half. There is no more
# of y to share out; what is left is k. Cut k into parts, let each program sum one part of one tile, and add the parts up
# afterwards.
#
# Adding them with atomics would need no second step. But atomics add in the order in which programs happen to finish, and
# the rounding of a sum depends on its order: the same x would give another y from run to run. So every part gets memory of
# its own, in the accumulation dtype, and a second kernel, or `torch.sum`, adds the parts.
#
# **Signature.** `split_k(x, weight, tile, parts) -> y`
#
# | argument | shape |
# | --- | --- |
# | `x`, `weight`, `tile`, `y` | as in 1 |
# | `parts` | an int: into how many parts k is cut |
#
# One launch has `parts` programs for every tile of y. A part is a whole number of pieces of `tile` columns; the last parts
# may be shorter than the others, or empty.
#
# **Budget.** As in 1: a part reads its own columns of x and of the weight. The sums of the parts may cost a tenth on top.
#
# <details><summary>Tip: which columns?</summary>
#
# k has `cdiv(k, tile)` pieces, and a part takes `cdiv(pieces, parts)` of them. `tile_product` takes a first and a last
# column: where does part number i begin, and where does it end if it is the last?
#
# </details>
# <details><summary>Tip: a part with nothing to do</summary>
#
# Its sum is added to the others too.
#
# </details>


# %%
@triton.jit
def split_k_kernel(
    x, x_stride, weight, weight_stride, partial, m, n, k, columns_of_part, ACC: tl.constexpr, TILE: tl.constexpr
):
    """partial: (parts, m, n), in ACC."""
    # your code here
    pass


def split_k(x, weight, tile, parts):
    # your code here
    raise NotImplementedError("your code here")


# %%
lab.check("linear.split_k", split_k)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# linear.split_k: FAILED at "runs"
#   The function runs on ordinary input.
#
#   smallest case x 16x32 float32, weight 16x32 float32, tile=16, parts=2
#   found         line 283: raise NotImplementedError("your code here")
#                 NotImplementedError: your code here
#   hint          lab.check("linear.split_k", ...).hint(), or: lab check linear.split_k --hint
# ```

# %% [markdown]
# ## 4. The gradients of weight and bias
#
# **Overview.** For the gradient dy of $y = x\,w^T + b$,
#
# $$dw = dy^T x, \qquad db = \sum_{\mathrm{rows}} dy$$
#
# Over what does this product sum? Over the rows, of which training has many thousands; the result is as large as the
# weight. A program takes a tile of dw and goes through the rows of dy and x in pieces, `tile` rows at a time. db is the
# sum of a matrix that passes through registers anyway: the programs of one column of tiles can take it along.
#
# **Signature.** `weight_gradients(dy, x, tile) -> (dw, db)`
#
# | argument | shape |
# | --- | --- |
# | `dy` | `(m, n)` |
# | `x` | `(m, k)` |
# | returns `dw` | `(n, k)` |
# | returns `db` | `(n,)` |
#
# **Budget.** Reads dy once for every column of tiles of dw, and x once for every row of tiles; writes dw and db once. A
# kernel of its own for db would read dy once too often.
#
# <details><summary>Tip: dy, transposed</summary>
#
# Rows of dw are columns of dy. A block (columns of dy, rows of dy) can be loaded as such, as the weight's was in 1, or be
# turned with `tl.trans`.
#
# </details>
# <details><summary>Tip: who stores db?</summary>
#
# All programs of a row of tiles see the same columns of dy. One of them has to write: `if tl.program_id(1) == 0:`.
#
# </details>


# %%
@triton.jit
def weight_gradients_kernel(
    dy, dy_stride, x, x_stride, dw, db, m, n, k, ACC: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    # your code here
    pass


def weight_gradients(dy, x, tile):
    # your code here
    raise NotImplementedError("your code here")


# %%
lab.check("linear.dw", weight_gradients)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# linear.dw: FAILED at "runs"
#   The function runs on ordinary input.
#
#   smallest case dy 16x16 float32, x 16x16 float32, tile=16
#   found         line 349: raise NotImplementedError("your code here")
#                 NotImplementedError: your code here
#   hint          lab.check("linear.dw", ...).hint(), or: lab check linear.dw --hint
# ```

# %% [markdown]
# ## 5. A tile in shared memory, in CUDA C++
#
# **Overview.** What Triton did for you: a block of 256 threads computes a tile of y of 16 rows by 16 columns, a thread an
# element. If each thread read its own row of x and of the weight, how often would a block fetch an element of x? 16 times,
# once for each column of the tile. So the threads first carry a tile of x and one of the weight into shared memory
# together, each thread one element of each; then each reads from there what it needs; then come the next 16 columns.
#
# **Signature.** `cuda_tiled(x, weight) -> y` as in 1, for float32 and float16, summed in float32. The launch asks your
# source for a kernel named `linear_forward`, a template over the element type (`float` or `__half`):
#
# | kernel argument | C++ type |
# | --- | --- |
# | `x`, `x_stride` | `const T*`, `long long` |
# | `weight`, `weight_stride` | `const T*`, `long long` |
# | `y` | `T*` |
# | `m`, `n`, `k` | `long long` |
#
# The grid has one dimension, with one block a tile, along the rows of tiles; a block has 256 threads in one dimension too.
#
# The kernel compiles on any machine, and there the check sees how much shared memory it has. It runs only where a GPU is:
# elsewhere the check says that it was compiled and not run, which is not the same as passed.
#
# <details><summary>Tip: two barriers</summary>
#
# Two `__syncthreads()` for each pair of tiles: no thread may read a tile before all have written their element of it, and
# none may write the next while another still reads this one. All threads must reach both, those past the edge of y as
# well. Without the second one the numbers are mostly right, so that the check may not notice; it is a mistake all the
# same. `compute-sanitizer --tool racecheck` finds it.
#
# </details>
# <details><summary>Tip: neighbours</summary>
#
# Threads with neighbouring numbers should read neighbouring columns of device memory. In shared memory it is the other way
# round: 16 threads that read one column of a 16 by 16 tile at once find its elements in two of the 32 banks, and wait for
# one another. In rows of 17 they lie in 16 different ones.
#
# </details>

# %%
SOURCE = r"""
#include <cuda_fp16.h>

// your code here
"""


def cuda_tiled(x, weight):
    (m, k), n = x.shape, weight.shape[0]
    y = torch.empty(m, n, dtype=x.dtype, device=x.device)
    blocks = triton.cdiv(m, 16) * triton.cdiv(n, 16)
    element = {torch.float32: "float", torch.float16: "__half"}[x.dtype]
    launch(
        SOURCE, f"linear_forward<{element}>", blocks, 256,
        x, x.stride(0), weight, weight.stride(0), y, m, n, k,
    )  # fmt: skip
    return y


# %%
lab.check("linear.tile_cuda", cuda_tiled)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# linear.tile_cuda: FAILED at "compiles"
#   NVRTC compiles the kernel, in every dtype.
#
#   smallest case x 16x16 float32, weight 16x16 float32
#   found         the launch asks for a kernel that the source does not have
#                 __nv_name_map(2): error: identifier "linear_forward" is undefined
#   hint          lab.check("linear.tile_cuda", ...).hint(), or: lab check linear.tile_cuda --hint
# ```
