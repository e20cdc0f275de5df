# %% [markdown]
# # Exercises: a GPU in one chapter
#
# Four calculations, of a line or two each, and a kernel. No GPU is needed: without one the kernel runs in Triton's
# interpreter, on the CPU, where every load and store can be looked at.
#
# **Checking.** Run the cell with `lab.check` under each exercise, or `lab check gpu` in a terminal (on
# `exercises/gpu.py`). A failing check names what does not hold and shows the first case where it does not. It holds back
# its hint until you ask: `lab.check("gpu.sectors", sectors).hint()`, or `lab check gpu.sectors --hint`.

# %%
import math

import lab
import torch
import triton
import triton.language as tl

# %% [markdown]
# ## 1. Sectors
#
# **Overview.** The 32 lanes of a warp load one element of `bits` bits each, `distance` elements apart; the first one
# starts a sector. How many sectors of 32 bytes does the load touch? (No element crosses the end of a sector.)
#
# **Signature.** `sectors(distance, bits) -> int`


# %%
def sectors(distance, bits):
    # BEGIN ANSWER: pass
    first_bytes = [lane * distance * bits // 8 for lane in range(32)]
    return len({first // 32 for first in first_bytes})
    # END ANSWER


# %%
lab.check("gpu.sectors", sectors)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# gpu.sectors: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          distance=1, bits=32
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("gpu.sectors", ...).hint(), or: lab check gpu.sectors --hint
# ```

# %% [markdown]
# ## 2. Banks
#
# **Overview.** A tile of float32 lies in shared memory, its rows `pitch` words apart. Each lane of a warp reads the
# element of one column in a row of its own, 32 rows in all. In how many passes?
#
# **Signature.** `bank_passes(pitch) -> int`


# %%
def bank_passes(pitch):
    # BEGIN ANSWER: pass
    banks = [lane * pitch % 32 for lane in range(32)]
    return max(banks.count(bank) for bank in banks)
    # END ANSWER


# %%
lab.check("gpu.bank_passes", bank_passes)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# gpu.bank_passes: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          pitch=33
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("gpu.bank_passes", ...).hint(), or: lab check gpu.bank_passes --hint
# ```

# %% [markdown]
# ## 3. Loads in flight
#
# **Overview.** Memory delivers `gbps` GB/s, and a load takes `latency_ns` nanoseconds. On each of the `multiprocessors`
# there are `threads` threads, which load 16 bytes at a time. How many loads must each of them have on its way at least,
# so that memory is always busy?
#
# **Signature.** `loads_in_flight(gbps, latency_ns, multiprocessors, threads) -> int`


# %%
def loads_in_flight(gbps, latency_ns, multiprocessors, threads):
    # BEGIN ANSWER: pass
    in_flight = gbps * latency_ns  # 1e9 bytes a second, times 1e-9 seconds
    each = in_flight / (multiprocessors * threads)
    return math.ceil(each / 16)
    # END ANSWER


# %%
lab.check("gpu.loads_in_flight", loads_in_flight)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# gpu.loads_in_flight: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          gbps=3200, latency_ns=500, multiprocessors=100, threads=1024
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("gpu.loads_in_flight", ...).hint(), or: lab check gpu.loads_in_flight
#                 --hint
# ```

# %% [markdown]
# ## 4. Blocks on a multiprocessor
#
# **Overview.** A multiprocessor holds 2048 threads, 32 blocks, 65,536 registers and 228 KiB of shared memory. A block of
# `threads` threads takes `registers` registers for each of them, a multiple of eight, and `shared` bytes of shared memory.
# How many blocks does it hold at a time?
#
# **Signature.** `blocks(threads, registers, shared) -> int`


# %%
def blocks(threads, registers, shared):
    # BEGIN ANSWER: pass
    by_registers = 65536 // (threads * registers)
    by_shared = 228 * 1024 // shared
    return min(2048 // threads, 32, by_registers, by_shared)
    # END ANSWER


# %%
lab.check("gpu.blocks", blocks)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# gpu.blocks: FAILED at "answers"
#   The function returns what it is asked for.
#
#   case          threads=256, registers=16, shared=1024
#   found         returned None; expected a number
#   held          runs
#   hint          lab.check("gpu.blocks", ...).hint(), or: lab check gpu.blocks --hint
# ```

# %% [markdown]
# ## 5. A transpose whose loads and stores are of neighbours
#
# **Overview.** Write `y = x.T` in Triton, `y` contiguous. Each load and each store must touch at most twice the sectors
# that its elements would fill. Nothing is computed: every bit arrives as it was.
#
# **Signature.** `transpose(x) -> y`, with `x` of `(rows, columns)`, float16, bfloat16, float32 or float64. Rows of `x`
# may lie further apart than they are long (`x.stride(0)`); neighbours in a row lie side by side.
#
# <details><summary>Tip: two dimensions</summary>
#
# `row[:, None]` of shape `(BLOCK, 1)` and `column[None, :]` of shape `(1, BLOCK)` make, added, a square of offsets.
# `tl.trans` exchanges its two dimensions.
#
# </details>


# %%
@triton.jit
def transpose_kernel(x, x_stride, y, rows, columns, BLOCK: tl.constexpr):
    # BEGIN ANSWER: pass
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = (row[:, None] < rows) & (column[None, :] < columns)
    tile = tl.load(x + row[:, None] * x_stride + column[None, :], mask)
    tl.store(y + column[:, None] * rows + row[None, :], tl.trans(tile), tl.trans(mask))
    # END ANSWER


def transpose(x):
    # BEGIN ANSWER: pass
    rows, columns = x.shape
    y = torch.empty(columns, rows, dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(rows, 64), triton.cdiv(columns, 64))
    transpose_kernel[grid](x, x.stride(0), y, rows, columns, BLOCK=64, num_warps=8)
    return y
    # END ANSWER


# %%
lab.check("gpu.transpose", transpose)

# %% [markdown]
# Unsolved, it prints:
#
# ```text
# gpu.transpose: FAILED at "launches a kernel"
#   The work is done by a kernel of yours.
#
#   smallest case x 1x1 float32
#   found         no Triton kernel was launched
#   held          runs
#   hint          lab.check("gpu.transpose", ...).hint(), or: lab check gpu.transpose --hint
# ```
