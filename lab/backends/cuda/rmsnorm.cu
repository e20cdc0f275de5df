// RMSNorm in CUDA C++, in the order in which the chapter teaches it. The mathematics is in lab/ops/rmsnorm.py.
//
// Rows are reached through a row stride in elements; columns have unit stride; offsets are 64-bit. Residual and ds are
// null for rmsnorm; with ADD the forward kernels store and normalize the rounded sum s = x + residual, and the backward
// kernels add ds, the gradient of that sum, to dx.

#include "rows.cuh"

// naive: a block a row, an element at a time, a reduction tree in shared memory, the row read twice ------------------

template <typename A> __device__ inline A tree_sum(A value, A* tree) {
  tree[threadIdx.x] = value;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) tree[threadIdx.x] += tree[threadIdx.x + half];
    __syncthreads();
  }
  return tree[0];
}

template <typename T, bool ADD>
__global__ void rmsnorm_forward_naive(const T* x, int64 x_stride, const T* residual, int64 residual_stride,
                                      const T* weight, T* y, T* s, typename Accumulator<T>::type* rstd, int64 columns,
                                      double eps) {
  typedef typename Accumulator<T>::type A;
  __shared__ A tree[256];
  int64 row = blockIdx.x;
  A squares = 0;
  for (int64 c = threadIdx.x; c < columns; c += blockDim.x) {
    T value = x[row * x_stride + c];
    if (ADD) {
      value = narrow<T>(widen(value) + widen(residual[row * residual_stride + c]));
      s[row * columns + c] = value;
    }
    squares += widen(value) * widen(value);
  }
  A r = 1 / sqrt(tree_sum(squares, tree) / (A)columns + (A)eps);
  if (threadIdx.x == 0) rstd[row] = r;
  for (int64 c = threadIdx.x; c < columns; c += blockDim.x) {
    T value = ADD ? s[row * columns + c] : x[row * x_stride + c];
    y[row * columns + c] = narrow<T>(widen(value) * r * widen(weight[c]));
  }
}

template <typename T, bool ADD>
__global__ void rmsnorm_dx_naive(const T* dy, int64 dy_stride, const T* ds, int64 ds_stride, const T* x, int64 x_stride,
                                 const T* weight, const typename Accumulator<T>::type* rstd, T* dx, int64 columns) {
  typedef typename Accumulator<T>::type A;
  __shared__ A tree[256];
  int64 row = blockIdx.x;
  A products = 0;
  for (int64 c = threadIdx.x; c < columns; c += blockDim.x)
    products += widen(weight[c]) * widen(dy[row * dy_stride + c]) * widen(x[row * x_stride + c]);
  A r = rstd[row];
  A coefficient = r * r * r * (tree_sum(products, tree) / (A)columns);
  for (int64 c = threadIdx.x; c < columns; c += blockDim.x) {
    A out = r * widen(weight[c]) * widen(dy[row * dy_stride + c]) - coefficient * widen(x[row * x_stride + c]);
    if (ADD) out += widen(ds[row * ds_stride + c]);
    dx[row * columns + c] = narrow<T>(out);
  }
}

// A thread a column, down all rows: neighbouring threads read neighbouring columns. Sums of 32 rows are added up, since a
// single one over all rows would round each time in the size of the total.
template <typename T>
__global__ void rmsnorm_dw_naive(const T* dy, int64 dy_stride, const T* x, int64 x_stride,
                                 const typename Accumulator<T>::type* rstd, T* dw, int64 rows, int64 columns) {
  int64 c = blockIdx.x * (int64)blockDim.x + threadIdx.x;
  if (c >= columns) return;
  typename Accumulator<T>::type total = 0;
  for (int64 first = 0; first < rows; first += 32) {
    typename Accumulator<T>::type part = 0;
    for (int64 row = first; row < min(first + 32, rows); ++row)
      part += widen(dy[row * dy_stride + c]) * widen(x[row * x_stride + c]) * rstd[row];
    total += part;
  }
  dw[c] = narrow<T>(total);
}

// vectorized and one_pass, forward: 16-byte loads, warp shuffles. A row is KEPT in registers between its two uses, HELD
// vectors to a thread (one_pass), or read again, from L2 if it is still there (vectorized, and rows too long) ----------

template <typename T, int VEC, int THREADS, bool KEPT, int HELD, bool ADD>
__global__ __launch_bounds__(THREADS) void rmsnorm_forward(const T* x, int64 x_stride, const T* residual,
                                                           int64 residual_stride, const T* weight, T* y, T* s,
                                                           typename Accumulator<T>::type* rstd, int64 columns,
                                                           double eps) {
  typedef typename Accumulator<T>::type A;
  typedef Vector<T, VEC> V;
  __shared__ A scratch[32];
  int64 row = blockIdx.x, vectors = columns / VEC;
  x += row * x_stride, y += row * columns, s += row * columns;
  if (ADD) residual += row * residual_stride;

  auto load = [&](int64 v) {
    V value = *(const V*)(x + v * VEC);
    if constexpr (ADD) {
      V other = *(const V*)(residual + v * VEC);
#pragma unroll
      for (int i = 0; i < VEC; ++i) value.at[i] = narrow<T>(widen(value.at[i]) + widen(other.at[i]));
    }
    return value;
  };
  A squares = 0;
  auto add_squares = [&](const V& value) {
#pragma unroll
    for (int i = 0; i < VEC; ++i) squares += widen(value.at[i]) * widen(value.at[i]);
  };
  auto finish = [&]() {
    A r = 1 / sqrt(block_sum<THREADS>(squares, scratch) / (A)columns + (A)eps);
    if (threadIdx.x == 0) rstd[row] = r;
    return r;
  };
  auto write = [&](int64 v, const V& value, A r) {
    V w = *(const V*)(weight + v * VEC), out;
#pragma unroll
    for (int i = 0; i < VEC; ++i) out.at[i] = narrow<T>(widen(value.at[i]) * r * widen(w.at[i]));
    store_streaming(y + v * VEC, out);
    if (ADD) store_streaming(s + v * VEC, value);
  };

  // HELD loads are issued before the first is used, so that HELD x 16 bytes a thread are under way at once.
  V held[HELD];
  if constexpr (KEPT) {
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
      int64 v = threadIdx.x + k * THREADS;
      if (v < vectors) held[k] = load(v);
    }
#pragma unroll
    for (int k = 0; k < HELD; ++k)
      if (threadIdx.x + k * THREADS < vectors) add_squares(held[k]);
    stay_packed(held);
    A r = finish();
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
      int64 v = threadIdx.x + k * THREADS;
      if (v < vectors) write(v, held[k], r);
    }
  } else {
    for (int64 start = threadIdx.x; start < vectors; start += HELD * THREADS) {
#pragma unroll
      for (int k = 0; k < HELD; ++k)
        if (start + k * THREADS < vectors) held[k] = load(start + k * THREADS);
#pragma unroll
      for (int k = 0; k < HELD; ++k) {
        if (start + k * THREADS < vectors) add_squares(held[k]);
      }
    }
    A r = finish();
    for (int64 v = threadIdx.x; v < vectors; v += THREADS) write(v, load(v), r);
  }
}

// vectorized and one_pass, backward: a block takes every gridDim.x-th row and adds its dw into its own row of `partial`:
// KEPT: x, dy and dw stay in registers. Else x and dy are read again, and dw is added up in global memory (`partial` then
// starts as zeros) ---------------------------------------------------------------------------------------------------

template <typename T, int VEC, int THREADS, bool KEPT, int HELD, bool ADD>
__global__ __launch_bounds__(THREADS) void rmsnorm_backward(const T* dy, int64 dy_stride, const T* ds, int64 ds_stride,
                                                            const T* x, int64 x_stride, const T* weight,
                                                            const typename Accumulator<T>::type* rstd, T* dx,
                                                            typename Accumulator<T>::type* partial, int64 rows,
                                                            int64 columns) {
  typedef typename Accumulator<T>::type A;
  typedef Vector<T, VEC> V;
  __shared__ A scratch[2][32];
  int64 vectors = columns / VEC;
  partial += blockIdx.x * columns;

  auto add_products = [](A& products, const V& value, const V& grad, const V& w) {
#pragma unroll
    for (int i = 0; i < VEC; ++i) products += widen(w.at[i]) * widen(grad.at[i]) * widen(value.at[i]);
  };
  auto write = [&](int64 row, int64 v, const V& value, const V& grad, const V& w, A r, A coefficient) {
    V out, sum;
    if (ADD) sum = *(const V*)(ds + row * ds_stride + v * VEC);
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      A d = r * widen(w.at[i]) * widen(grad.at[i]) - coefficient * widen(value.at[i]);
      if (ADD) d += widen(sum.at[i]);
      out.at[i] = narrow<T>(d);
    }
    store_streaming(dx + row * columns + v * VEC, out);
  };

  int parity = 0;
  if constexpr (KEPT) {
    V w[HELD];
    A total[HELD][VEC] = {};
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
      int64 v = threadIdx.x + k * THREADS;
      if (v < vectors) w[k] = *(const V*)(weight + v * VEC);
    }
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x, parity ^= 1) {
      V value[HELD], grad[HELD];
      A r = rstd[row], products = 0;
#pragma unroll
      for (int k = 0; k < HELD; ++k) {
        int64 v = threadIdx.x + k * THREADS;
        if (v >= vectors) continue;
        value[k] = *(const V*)(x + row * x_stride + v * VEC);
        grad[k] = *(const V*)(dy + row * dy_stride + v * VEC);
      }
#pragma unroll
      for (int k = 0; k < HELD; ++k)
        if (threadIdx.x + k * THREADS < vectors) add_products(products, value[k], grad[k], w[k]);
      A coefficient = r * r * r * (block_sum<THREADS>(products, scratch[parity]) / (A)columns);
#pragma unroll
      for (int k = 0; k < HELD; ++k) {
        int64 v = threadIdx.x + k * THREADS;
        if (v >= vectors) continue;
        write(row, v, value[k], grad[k], w[k], r, coefficient);
#pragma unroll
        for (int i = 0; i < VEC; ++i) total[k][i] += widen(grad[k].at[i]) * widen(value[k].at[i]) * r;
      }
    }
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
      int64 v = threadIdx.x + k * THREADS;
      if (v >= vectors) continue;
#pragma unroll
      for (int i = 0; i < VEC; ++i) partial[v * VEC + i] = total[k][i];
    }
  } else {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x, parity ^= 1) {
      const T *x_row = x + row * x_stride, *dy_row = dy + row * dy_stride;
      A r = rstd[row], products = 0;
      for (int64 v = threadIdx.x; v < vectors; v += THREADS)
        add_products(products, *(const V*)(x_row + v * VEC), *(const V*)(dy_row + v * VEC),
                     *(const V*)(weight + v * VEC));
      A coefficient = r * r * r * (block_sum<THREADS>(products, scratch[parity]) / (A)columns);
      for (int64 v = threadIdx.x; v < vectors; v += THREADS) {
        V value = *(const V*)(x_row + v * VEC), grad = *(const V*)(dy_row + v * VEC);
        write(row, v, value, grad, *(const V*)(weight + v * VEC), r, coefficient);
#pragma unroll
        for (int i = 0; i < VEC; ++i) partial[v * VEC + i] += widen(grad.at[i]) * widen(value.at[i]) * r;
      }
    }
  }
}

// dw = sum of the blocks' partial sums: 32 columns a block, 32 warps that each take every 32nd partial row.
template <typename T>
__global__ void rmsnorm_sum_partials(const typename Accumulator<T>::type* partial, T* dw, int64 blocks, int64 columns) {
  typedef typename Accumulator<T>::type A;
  __shared__ A sums[32][33];  // 33: a column of it then touches 32 different banks
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64 c = blockIdx.x * 32LL + lane;
  A total = 0;
  if (c < columns)
    for (int64 block = warp; block < blocks; block += 32) total += partial[block * columns + c];
  sums[warp][lane] = total;
  __syncthreads();
  total = warp_sum(sums[lane][warp]);
  c = blockIdx.x * 32LL + warp;
  if (lane == 0 && c < columns) dw[c] = narrow<T>(total);
}

// pipelined (Hopper), backward: while one row is worked on, the copy engine loads the next into a ring of slots in shared
// memory; a row too long for one block is shared out over a cluster of blocks ----------------------------------------

#if __CUDA_ARCH__ >= 900

__device__ inline void barrier_init(unsigned long long* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)));
}

__device__ inline void barrier_expect(unsigned long long* barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

__device__ inline void barrier_wait(unsigned long long* barrier, unsigned phase) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(phase)
      : "memory");
}

// One contiguous, 16-byte-aligned piece of a row, by the copy engine.
__device__ inline void copy_row(void* to, const void* from, unsigned bytes, unsigned long long* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

// Each cluster takes every clusters-th row, each of its blocks one of CLUSTER equal slices of the columns. A slot holds
// the slice of x, of dy and with ADD of ds. It is read twice, before and after the sum, rather than kept in registers,
// which dw needs; so it is loaded anew only when all threads have passed the next row's sum.
template <typename T, int THREADS, int HELD, int STAGES, int CLUSTER, bool ADD>
__global__ __launch_bounds__(THREADS) void rmsnorm_backward_pipelined(
    const T* dy, int64 dy_stride, const T* ds, int64 ds_stride, const T* x, int64 x_stride, const T* weight,
    const typename Accumulator<T>::type* rstd, T* dx, typename Accumulator<T>::type* partial, int64 rows,
    int64 columns) {
  static_assert(STAGES >= 2, "a slot is refilled one row late");
  typedef typename Accumulator<T>::type A;
  constexpr int VEC = 16 / sizeof(T);
  typedef Vector<T, VEC> V;
  extern __shared__ __align__(128) unsigned char ring[];
  __shared__ alignas(8) unsigned long long full[STAGES];
  __shared__ A scratch[2][THREADS / 32 * CLUSTER];

  int64 slice = columns / CLUSTER, rank = CLUSTER == 1 ? 0 : cluster_rank();
  int vectors = slice / VEC;
  unsigned bytes = slice * sizeof(T), slot_bytes = bytes * (ADD ? 3 : 2);
  int64 first = blockIdx.x / CLUSTER, step = gridDim.x / CLUSTER;
  x += rank * slice, dy += rank * slice, ds += rank * slice, weight += rank * slice, dx += rank * slice;

  auto load = [&](int64 row, int stage) {
    if (row >= rows) return;
    unsigned char* slot = ring + stage * slot_bytes;
    barrier_expect(&full[stage], slot_bytes);
    copy_row(slot, x + row * x_stride, bytes, &full[stage]);
    copy_row(slot + bytes, dy + row * dy_stride, bytes, &full[stage]);
    if (ADD) copy_row(slot + 2 * bytes, ds + row * ds_stride, bytes, &full[stage]);
  };

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < STAGES; ++stage) barrier_init(&full[stage]);
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async;" ::: "memory");
    for (int stage = 0; stage < STAGES; ++stage) load(first + stage * step, stage);
  }
  V w[HELD];
  A total[HELD][VEC] = {};
#pragma unroll
  for (int k = 0; k < HELD; ++k) {
    int v = threadIdx.x + k * THREADS;
    if (v < vectors) w[k] = *(const V*)(weight + v * VEC);
  }
  __syncthreads();
  if (CLUSTER > 1) cluster_barrier();  // nobody writes into a block that has not started

  int stage = 0, phase = 0, parity = 0;
  A r_next = first < rows ? rstd[first] : A(0);
  for (int64 row = first; row < rows; row += step, parity ^= 1) {
    A r = r_next;
    r_next = row + step < rows ? rstd[row + step] : A(0);  // a row ahead: its latency would otherwise be waited for
    const V* slot = (const V*)(ring + stage * slot_bytes);
    barrier_wait(&full[stage], phase);
    A products = 0;
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
      int v = threadIdx.x + k * THREADS;
      if (v >= vectors) continue;
      V value = slot[v], grad = slot[vectors + v];
#pragma unroll
      for (int i = 0; i < VEC; ++i) products += widen(w[k].at[i]) * widen(grad.at[i]) * widen(value.at[i]);
    }
    A coefficient = r * r * r * (cluster_sum<THREADS, CLUSTER>(products, scratch[parity]) / (A)columns);
    if (threadIdx.x == 0 && row != first) load(row + (STAGES - 1) * step, stage == 0 ? STAGES - 1 : stage - 1);
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
      int v = threadIdx.x + k * THREADS;
      if (v >= vectors) continue;
      V out, value = slot[v], grad = slot[vectors + v], sum;
      if constexpr (ADD) sum = slot[2 * vectors + v];
#pragma unroll
      for (int i = 0; i < VEC; ++i) {
        A scaled = r * widen(grad.at[i]);
        A d = scaled * widen(w[k].at[i]) - coefficient * widen(value.at[i]);
        if constexpr (ADD) d += widen(sum.at[i]);
        out.at[i] = narrow<T>(d);
        total[k][i] += scaled * widen(value.at[i]);
      }
      store_streaming(dx + row * columns + v * VEC, out);
    }
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }
  partial += blockIdx.x / CLUSTER * columns + rank * slice;
#pragma unroll
  for (int k = 0; k < HELD; ++k) {
    int v = threadIdx.x + k * THREADS;
    if (v >= vectors) continue;
#pragma unroll
    for (int i = 0; i < VEC; ++i) partial[v * VEC + i] = total[k][i];
  }
  if (CLUSTER > 1) cluster_barrier();  // nobody leaves while others may still write to it
}

#endif
