# %% [markdown]
# # Exercises: RMSNorm
#
# Five kernels for what the RMSNorm chapter explains. No GPU is needed: without one, Triton's interpreter runs your
# kernels on the CPU, and every answer but the last can be checked in full. Below, `x` is `(rows, columns)` and
#
# $$y = x \cdot r \cdot w, \qquad r = \frac{1}{\sqrt{\mathrm{mean}(x^2) + \varepsilon}}$$
#
# with the mean over the columns of a row.
#
# **Checking.** Run the cell with `lab.check` under each exercise, or `lab check rmsnorm` in a terminal (on
# `exercises/rmsnorm.py`). A failing check names the property that does not hold and shows the smallest case where it
# does not: what you have, what was expected, and the launch. It holds back its hint until you ask:
# `lab.check("rmsnorm.forward", forward).hint()`, or `lab check rmsnorm.forward --hint`.
#
# **The budget** of an exercise says how often each tensor may cross device memory. Without a GPU the check counts the
# elements that your loads and stores touch; on a GPU it times your kernel against a copy of as many bytes.

# %%
import lab  # before triton: on a machine with no GPU it switches Triton to its interpreter
import torch
import triton
import triton.language as tl

from lab.backends.cuda.compile import launch
from lab.backends.hardware import gpu_of

# %% [markdown]
# ## 1. The forward pass
#
# **Overview.** One program takes one row: it loads the row into registers once, sums the squares, and writes the
# normalized row. The block is the next power of two, so most rows leave some lanes over.
#
# **Signature.** `forward(x, weight, eps) -> y`
#
# | argument | shape | strides | dtype |
# | --- | --- | --- | --- |
# | `x` | `(rows, columns)` | any between rows, 1 between columns | float16, bfloat16 (on a GPU), float32, float64 |
# | `weight` | `(columns,)` | 1 | as `x` |
# | `eps` | a Python float | | |
# | returns `y` | `(rows, columns)` | contiguous | as `x` |
#
# float16 and bfloat16 are computed in float32; float64 stays float64 from the load to the store.
#
# **Budget.** Reads x once and writes y once. The weight is read by every program and stays in cache.
#
# <details><summary>Tip: which addresses are mine?</summary>
#
# `tl.program_id(0)` is the row. Row `r` of a matrix starts `r * stride` elements after its pointer, and `x.stride(0)` is
# not the number of columns when `x` is a slice. Make the row an int64 first (`.to(tl.int64)`): the offset of a row in a
# large tensor does not fit 32 bits.
#
# </details>
# <details><summary>Tip: the lanes that are left over</summary>
#
# A masked-off lane of a load holds whatever `other` says, and nothing defined if it says nothing. What must those lanes
# hold so that a sum does not notice them?
#
# </details>
# <details><summary>Tip: dtypes</summary>
#
# `.to(ACC)` right after the load. `EPS` is a `tl.constexpr` because a float argument would arrive as float32, which is
# not good enough for float64.
#
# </details>


# %%
def accumulator(x):
    """float64 is computed in float64, everything else in float32."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


@triton.jit
def forward_kernel(x, x_stride, weight, y, columns, EPS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    # BEGIN ANSWER: pass
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < columns
    value = tl.load(x + row * x_stride + column, mask, other=0).to(ACC)
    w = tl.load(weight + column, mask, other=0).to(ACC)
    r = 1 / tl.sqrt(tl.sum(value * value) / columns + EPS)
    tl.store(y + row * columns + column, value * r * w, mask)
    # END ANSWER


def forward(x, weight, eps):
    rows, columns = x.shape
    y = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(columns)
    forward_kernel[(rows,)](x, x.stride(0), weight, y, columns, EPS=eps, ACC=accumulator(x), BLOCK=block)
    return y


# %%
lab.check("rmsnorm.forward", forward)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# rmsnorm.forward: FAILED at "output fully written"
#   Every element of every output is written.
#
#   smallest case x 1x8 float32, weight 8 float32, eps=1e-06
#   launch        forward_kernel[(1,)](x=float32[1,8], x_stride=8, weight=float32[8], y=float32[1,8],
#                 columns=8, EPS=1e-06, ACC=fp32, BLOCK=8)
#   found         8 of 8 elements of y were never written; the first is y[0, 0]
#   held          runs, launches a kernel, outputs, inputs unmodified, fresh outputs
#   hint          lab.check("rmsnorm.forward", ...).hint(), or: lab check rmsnorm.forward --hint
# ```

# %% [markdown]
# ## 2. The residual add, fused
#
# **Overview.** A transformer block adds its output to the residual stream and normalizes the sum for the next block.
# As two kernels, the sum is written, and read again. Here one kernel does both. Write the kernel and its launch.
#
# **Signature.** `add_forward(x, residual, weight, eps) -> (y, s)`, with `s = x + residual` and `y` the RMSNorm of `s`.
#
# | argument | shape | strides | dtype |
# | --- | --- | --- | --- |
# | `x`, `residual` | `(rows, columns)` | any between rows (each its own), 1 between columns | as in 1 |
# | `weight` | `(columns,)` | 1 | as `x` |
# | returns `y`, `s` | `(rows, columns)` | contiguous | as `x` |
#
# `s` is rounded to `x`'s dtype, and that rounded `s` is what is normalized: the next layer will add to what is stored.
#
# **Budget.** Reads x and residual once, writes y and s once.
#
# <details><summary>Tip: rounding</summary>
#
# The sum of two float16 values is float16. If you add in float32, round with `.to(s.dtype.element_ty)` before you go on.
#
# </details>
# <details><summary>Tip: whose stride?</summary>
#
# Four matrices, three row strides: those of `x` and `residual`, and `columns` for what you allocate.
#
# </details>


# %%
@triton.jit
def add_kernel(
    x, x_stride, residual, residual_stride, weight, y, s, columns,
    EPS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # BEGIN ANSWER: pass
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < columns
    total = tl.load(x + row * x_stride + column, mask, other=0)
    total += tl.load(residual + row * residual_stride + column, mask, other=0)
    tl.store(s + row * columns + column, total, mask)
    value = total.to(ACC)
    w = tl.load(weight + column, mask, other=0).to(ACC)
    r = 1 / tl.sqrt(tl.sum(value * value) / columns + EPS)
    tl.store(y + row * columns + column, value * r * w, mask)
    # END ANSWER


def add_forward(x, residual, weight, eps):
    # BEGIN ANSWER: raise NotImplementedError("your code here")
    rows, columns = x.shape
    y = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    s = torch.empty_like(y)
    add_kernel[(rows,)](
        x, x.stride(0), residual, residual.stride(0), weight, y, s, columns,
        EPS=eps, ACC=accumulator(x), BLOCK=triton.next_power_of_2(columns),
    )  # fmt: skip
    return y, s
    # END ANSWER


# %%
lab.check("rmsnorm.add", add_forward)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# rmsnorm.add: FAILED at "runs"
#   The function runs on ordinary input.
#
#   smallest case x 1x8 float32, residual 1x8 float32, weight 8 float32, eps=1e-06
#   found         line 158: raise NotImplementedError("your code here")
#                 NotImplementedError: your code here
#   hint          lab.check("rmsnorm.add", ...).hint(), or: lab check rmsnorm.add --hint
# ```

# %% [markdown]
# ## 3. The backward pass
#
# **Overview.** With $g = w \cdot dy$,
#
# $$dx = r\,g - x\,r^3\,\mathrm{mean}(g\,x), \qquad dw = \sum_{\mathrm{rows}} dy \cdot x \cdot r$$
#
# `dx` needs one row at a time, `dw` needs all of them. Few programs take many rows each: a program keeps its part of
# `dw` in registers from row to row, and writes it once at the end. The launch below sums those parts.
#
# **Signature.** `backward(dy, x, weight, rstd) -> (dx, dw)`
#
# | argument | shape | strides | dtype |
# | --- | --- | --- | --- |
# | `dy`, `x` | `(rows, columns)` | any between rows (each its own), 1 between columns | as in 1 |
# | `weight` | `(columns,)` | 1 | as `x` |
# | `rstd` | `(rows,)` | 1 | r of each row: float32, or float64 for float64 inputs |
# | returns `dx` | `(rows, columns)` | contiguous | as `x` |
# | returns `dw` | `(columns,)` | 1 | as `x` |
#
# **Budget.** Reads dy and x once, writes dx once. The parts of `dw` may cost a tenth of that on top, which rules out an
# atomic addition for every row.
#
# <details><summary>Tip: the rows of a program</summary>
#
# `for row in tl.range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):` takes every row exactly once, whatever
# the numbers are.
#
# </details>
# <details><summary>Tip: where the second term comes from</summary>
#
# Each element of x appears in y twice: as itself, and inside r. The sum over the row of what r passes on is
# `mean(g x)`, one number for a row.
#
# </details>


# %%
@triton.jit
def backward_kernel(
    dy, dy_stride, x, x_stride, weight, rstd, dx, partial, rows, columns, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    """partial: (programs, columns), in ACC: each program's part of dw."""
    # BEGIN ANSWER: pass
    column = tl.arange(0, BLOCK)
    mask = column < columns
    w = tl.load(weight + column, mask, other=0).to(ACC)
    total = tl.zeros([BLOCK], ACC)
    for row in tl.range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        grad = tl.load(dy + row * dy_stride + column, mask, other=0).to(ACC)
        value = tl.load(x + row * x_stride + column, mask, other=0).to(ACC)
        r = tl.load(rstd + row)
        g = w * grad
        dot = tl.sum(g * value) / columns
        tl.store(dx + row * columns + column, r * g - value * (r * r * r * dot), mask)
        total += grad * value * r
    tl.store(partial + tl.program_id(0) * columns + column, total, mask)
    # END ANSWER


def backward(dy, x, weight, rstd):
    rows, columns = x.shape
    programs = min(rows, 4 * gpu_of(x.device).multiprocessors)
    dx = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    partial = torch.empty(programs, columns, dtype=rstd.dtype, device=x.device)
    backward_kernel[(programs,)](
        dy, dy.stride(0), x, x.stride(0), weight, rstd, dx, partial, rows, columns,
        ACC=accumulator(x), BLOCK=triton.next_power_of_2(columns),
    )  # fmt: skip
    return dx, partial.sum(0).to(weight.dtype)


# %%
lab.check("rmsnorm.backward", backward)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# rmsnorm.backward: FAILED at "output fully written"
#   Every element of every output is written.
#
#   smallest case dy 1x8 float32, x 1x8 float32, weight 8 float32, rstd 1 float32
#   launch        backward_kernel[(1,)](dy=float32[1,8], dy_stride=8, x=float32[1,8], x_stride=8,
#                 weight=float32[8], rstd=float32[1], dx=float32[1,8], partial=float32[1,8], rows=1,
#                 columns=8, ACC=fp32, BLOCK=8)
#   found         8 of 8 elements of dx were never written; the first is dx[0, 0]
#   held          runs, launches a kernel, outputs, inputs unmodified, fresh outputs
#   hint          lab.check("rmsnorm.backward", ...).hint(), or: lab check rmsnorm.backward --hint
# ```

# %% [markdown]
# ## 4. A row longer than a block
#
# **Overview.** A row of 65,536 columns, widened to float32, would fill a multiprocessor's registers. So the block's length is given, the row
# passes through it piece by piece, and it passes twice: first for the sum of squares, then to be normalized.
#
# **Signature.** `long_rows(x, weight, eps, block) -> y`, as in 1; `block` is a power of two, and no load or store may be
# wider. A row may be shorter than a block, longer, and no multiple of it.
#
# **Budget.** Reads x twice and writes y once. (On a GPU the second read mostly finds the row in cache.)
#
# <details><summary>Tip: a sum over pieces</summary>
#
# Keep a block of partial sums, `tl.zeros([BLOCK], ACC)`, add the squares of each piece to it, and reduce it once, after
# the loop.
#
# </details>


# %%
@triton.jit
def long_rows_kernel(x, x_stride, weight, y, columns, EPS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    # BEGIN ANSWER: pass
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([BLOCK], ACC)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * x_stride + column, column < columns, other=0).to(ACC)
        squares += value * value
    r = 1 / tl.sqrt(tl.sum(squares) / columns + EPS)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        value = tl.load(x + row * x_stride + column, mask, other=0).to(ACC)
        w = tl.load(weight + column, mask, other=0).to(ACC)
        tl.store(y + row * columns + column, value * r * w, mask)
    # END ANSWER


def long_rows(x, weight, eps, block):
    rows, columns = x.shape
    y = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    long_rows_kernel[(rows,)](x, x.stride(0), weight, y, columns, EPS=eps, ACC=accumulator(x), BLOCK=block)
    return y


# %%
lab.check("rmsnorm.long_rows", long_rows)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# rmsnorm.long_rows: FAILED at "output fully written"
#   Every element of every output is written.
#
#   smallest case x 1x64 float32, weight 64 float32, eps=1e-06, block=64
#   launch        long_rows_kernel[(1,)](x=float32[1,64], x_stride=64, weight=float32[64],
#                 y=float32[1,64], columns=64, EPS=1e-06, ACC=fp32, BLOCK=64)
#   found         64 of 64 elements of y were never written; the first is y[0, 0]
#   held          runs, launches a kernel, outputs, inputs unmodified, fresh outputs
#   hint          lab.check("rmsnorm.long_rows", ...).hint(), or: lab check rmsnorm.long_rows --hint
# ```

# %% [markdown]
# ## 5. The forward pass in CUDA C++
#
# **Overview.** What Triton did for you: a block of 256 threads takes a row, thread `t` takes columns `t`, `t + 256`, ...,
# the threads add their sums through shared memory, and each normalizes its own columns.
#
# **Signature.** `cuda_forward(x, weight, eps) -> y` as in 1, for float32 and float16. The launch asks your source for a
# kernel named `rmsnorm_forward`, a template over the element type (`float` or `__half`):
#
# | kernel argument | C++ type |
# | --- | --- |
# | `x`, `weight`, `y` | `const T*`, `const T*`, `T*` |
# | `x_stride`, `columns` | `long long` |
# | `eps` | `double` |
#
# The kernel compiles on any machine. It runs only where a GPU is: elsewhere the check says that it was compiled and
# not run, which is not the same as passed.
#
# **Budget.** Reads x once from device memory (a second look at a row finds it in cache) and writes y once.
#
# <details><summary>Tip: adding across threads</summary>
#
# `__shared__ float sums[256];` holds one number a thread. Halve the number of adding threads in each step, with
# `__syncthreads()` between the steps, outside of any `if` that only some threads enter.
#
# </details>
# <details><summary>Tip: two element types</summary>
#
# `(float)v` reads a float or a `__half`, and `(T)f` rounds a float to either.
#
# </details>

# %%
SOURCE = r"""
#include <cuda_fp16.h>

// BEGIN ANSWER
template <typename T>
__global__ void rmsnorm_forward(const T* x, long long x_stride, const T* weight, T* y, long long columns, double eps) {
  __shared__ float sums[256];
  x += blockIdx.x * x_stride;
  y += blockIdx.x * columns;

  float squares = 0;
  for (long long c = threadIdx.x; c < columns; c += blockDim.x) squares += (float)x[c] * (float)x[c];
  sums[threadIdx.x] = squares;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }

  float r = 1 / sqrtf(sums[0] / columns + (float)eps);
  for (long long c = threadIdx.x; c < columns; c += blockDim.x) y[c] = (T)((float)x[c] * r * (float)weight[c]);
}
// END ANSWER
"""


def cuda_forward(x, weight, eps):
    rows, columns = x.shape
    y = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    element = {torch.float32: "float", torch.float16: "__half"}[x.dtype]
    launch(SOURCE, f"rmsnorm_forward<{element}>", rows, 256, x, x.stride(0), weight, y, columns, eps)
    return y


# %%
lab.check("rmsnorm.cuda", cuda_forward)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# rmsnorm.cuda: FAILED at "compiles"
#   NVRTC compiles the kernel, in every dtype.
#
#   smallest case x 1x8 float32, weight 8 float32
#   found         the launch asks for a kernel that the source does not have
#                 __nv_name_map(2): error: identifier "rmsnorm_forward" is undefined
#   hint          lab.check("rmsnorm.cuda", ...).hint(), or: lab check rmsnorm.cuda --hint
# ```
