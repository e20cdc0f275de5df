// Softmax in CUDA C++, in the order in which the chapter teaches it. The mathematics is in lab/ops/softmax.py.
//
// Rows are reached through a row stride in elements; columns have unit stride; offsets are 64-bit. A maximum passes
// over NaN (fmax does); the sum does not, so a NaN anywhere in a row makes all of it NaN.

#include <math_constants.h>

#include "rows.cuh"

// naive: a block a row, an element at a time, a reduction tree in shared memory, the row read three times -------------

template <typename A, typename F> __device__ inline A tree_reduce(A value, A* tree, F combine) {
  __syncthreads();  // all have read what the tree held before
  tree[threadIdx.x] = value;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) tree[threadIdx.x] = combine(tree[threadIdx.x], tree[threadIdx.x + half]);
    __syncthreads();
  }
  return tree[0];
}

template <typename T> __global__ void softmax_forward_naive(const T* x, int64 x_stride, T* y, int64 columns) {
  typedef typename Accumulator<T>::type A;
  __shared__ A tree[256];
  x += blockIdx.x * x_stride, y += blockIdx.x * columns;
  A m = -CUDART_INF, s = 0;
  for (int64 c = threadIdx.x; c < columns; c += blockDim.x) m = fmax(m, widen(x[c]));
  m = tree_reduce(m, tree, [](A a, A b) { return fmax(a, b); });
  for (int64 c = threadIdx.x; c < columns; c += blockDim.x) s += exp(widen(x[c]) - m);
  s = tree_reduce(s, tree, [](A a, A b) { return a + b; });
  for (int64 c = threadIdx.x; c < columns; c += blockDim.x) y[c] = narrow<T>(exp(widen(x[c]) - m) / s);
}

template <typename T>
__global__ void softmax_backward_naive(const T* dy, int64 dy_stride, const T* y, T* dx, int64 columns) {
  typedef typename Accumulator<T>::type A;
  __shared__ A tree[256];
  dy += blockIdx.x * dy_stride, y += blockIdx.x * columns, dx += blockIdx.x * columns;
  A d = 0;
  for (int64 c = threadIdx.x; c < columns; c += blockDim.x) d += widen(y[c]) * widen(dy[c]);
  d = tree_reduce(d, tree, [](A a, A b) { return a + b; });
  for (int64 c = threadIdx.x; c < columns; c += blockDim.x) dx[c] = narrow<T>(widen(y[c]) * (widen(dy[c]) - d));
}

// e^v: a dozen instructions, or FAST four, as the square of 2^(v log2(e) / 2), with an error that 16-bit results do not
// show. (Squared, because the instruction gives 0 where the exponent of a small result could still say more.)
template <bool FAST, typename A> __device__ inline A power(A v) {
  if constexpr (!FAST) return exp(v);
  float root;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"((float)v * 0.7213475204444817f));
  return root * root;
}

// The largest of VEC elements, in their own dtype; 16-bit ones two at a time. As fmax, it passes over NaN.
template <typename T, int VEC> __device__ inline T largest(const Vector<T, VEC>& v) {
  T m = v.at[0];
#pragma unroll
  for (int i = 1; i < VEC; ++i) m = fmax(m, v.at[i]);
  return m;
}
template <int VEC> __device__ inline __half largest(const Vector<__half, VEC>& v) {
  if constexpr (VEC == 1) return v.at[0];
  __half2 m = *(const __half2*)v.at;
#pragma unroll
  for (int i = 2; i < VEC; i += 2) m = __hmax2(m, *(const __half2*)(v.at + i));
  return __hmax(m.x, m.y);
}
template <int VEC> __device__ inline __nv_bfloat16 largest(const Vector<__nv_bfloat16, VEC>& v) {
  if constexpr (VEC == 1) return v.at[0];
  __nv_bfloat162 m = *(const __nv_bfloat162*)v.at;
#pragma unroll
  for (int i = 2; i < VEC; i += 2) m = __hmax2(m, *(const __nv_bfloat162*)(v.at + i));
  return __hmax(m.x, m.y);
}

// The online normalizer: the maximum m of a part of a row, and the sum s of e^(x - m) over that part. Where two parts
// meet, their sums are scaled to the larger maximum ------------------------------------------------------------------

template <typename A> struct Normalizer { A m, s; };

template <typename A> __device__ inline Normalizer<A> nothing() { return {A(-CUDART_INF), A(0)}; }

// What to subtract in the exponent. -inf less -inf would be NaN; with 0 instead, e^-inf is the 0 that it should be.
template <typename A> __device__ inline A origin_of(A m) { return m == A(-CUDART_INF) ? A(0) : m; }

template <bool FAST, typename A> __device__ inline Normalizer<A> merge(Normalizer<A> a, Normalizer<A> b) {
  A m = fmax(a.m, b.m), origin = origin_of(m);
  return {m, a.s * power<FAST>(a.m - origin) + b.s * power<FAST>(b.m - origin)};
}

// Over LANES neighbouring threads of a warp (a power of two), returned to each of them. The maximum first: then every
// sum is scaled only once.
template <bool FAST, int LANES, typename A> __device__ inline Normalizer<A> warp_merge(Normalizer<A> mine) {
  A m = mine.m;
  for (int offset = LANES / 2; offset > 0; offset /= 2) m = fmax(m, __shfl_xor_sync(0xffffffff, m, offset));
  return {m, warp_sum<LANES>(mine.s * power<FAST>(mine.m - origin_of(m)))};
}

// How the warps of a row's CLUSTER blocks tell each other their parts: each writes its own into every block's shared
// memory. In a cluster it travels as a message, whose bytes the receiver's barrier counts. So a block goes on as soon as
// it has all parts, where a barrier of the cluster would make it wait until every thread of every block is there.
template <typename P, int WARPS, int CLUSTER> struct Exchange {
  P parts[WARPS * CLUSTER];
  unsigned long long arrived;  // the barrier

  // To be called first of all, by all threads: nobody may write into a block that is not ready for it.
  __device__ inline void open() {
    if constexpr (CLUSTER > 1) {
      if (threadIdx.x == 0)
        asm volatile(
            "mbarrier.init.shared::cta.b64 [%0], 1;\n"
            "fence.mbarrier_init.release.cluster;\n"
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&arrived)),
            "n"(sizeof(parts))
            : "memory");
      cluster_arrive_relaxed();
    }
  }

  // Once: the part of each warp (the same in all of its lanes), after which every thread finds all in `parts`.
  __device__ inline void gather(P part) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if constexpr (CLUSTER == 1) {
      if (lane == 0) parts[warp] = part;
      __syncthreads();
    } else {
      cluster_wait();  // all are open
      if (lane < CLUSTER) send(parts + cluster_rank() * WARPS + warp, lane, part);
      asm volatile(
          "{\n"
          ".reg .pred done;\n"
          "again:\n"
          "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0;\n"
          "@!done bra again;\n"
          "}\n" ::"r"(shared_address(&arrived))
          : "memory");
    }
  }

  // *local = part, in the shared memory of the cluster's block `rank`.
  template <typename A> __device__ inline void send(A* local, unsigned rank, A part) {
    unsigned place, counter;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(place) : "r"(shared_address(local)), "r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(counter) : "r"(shared_address(&arrived)), "r"(rank));
    if constexpr (sizeof(A) == 4)
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(place),
                   "f"((float)part), "r"(counter)
                   : "memory");
    else
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f64 [%0], %1, [%2];" ::"r"(place),
                   "d"((double)part), "r"(counter)
                   : "memory");
  }
  template <typename A> __device__ inline void send(Normalizer<A>* local, unsigned rank, Normalizer<A> part) {
    send(&local->m, rank, part.m), send(&local->s, rank, part.s);
  }
};

// Over all threads of all CLUSTER blocks, returned to every thread.
template <bool FAST, int WARPS, int CLUSTER, typename A>
__device__ inline Normalizer<A> cluster_merge(Normalizer<A> mine, Exchange<Normalizer<A>, WARPS, CLUSTER>& exchange) {
  exchange.gather(warp_merge<FAST, 32>(mine));
  mine = nothing<A>();
  for (int i = threadIdx.x % 32; i < WARPS * CLUSTER; i += 32) mine = merge<FAST>(mine, exchange.parts[i]);
  return warp_merge<FAST, 32>(mine);
}

// The same of a sum. (`cluster_sum` of rows.cuh can be called again and again; this one once, and is faster.)
template <int WARPS, int CLUSTER, typename A>
__device__ inline A cluster_sum_once(A mine, Exchange<A, WARPS, CLUSTER>& exchange) {
  exchange.gather(warp_sum(mine));
  mine = 0;
  for (int i = threadIdx.x % 32; i < WARPS * CLUSTER; i += 32) mine += exchange.parts[i];
  return warp_sum(mine);
}

// vectorized: 16-byte loads, warp shuffles, maximum and sum in one look; the row is read again for the quotient -------

template <typename T, int VEC, int THREADS>
__global__ __launch_bounds__(THREADS) void softmax_forward_vectorized(const T* x, int64 x_stride, T* y, int64 columns) {
  typedef typename Accumulator<T>::type A;
  typedef Vector<T, VEC> V;
  __shared__ Exchange<Normalizer<A>, THREADS / 32, 1> exchange;
  int64 vectors = columns / VEC;
  x += blockIdx.x * x_stride, y += blockIdx.x * columns;
  Normalizer<A> row = nothing<A>();
  for (int64 v = threadIdx.x; v < vectors; v += THREADS) {
    V value = *(const V*)(x + v * VEC);
    Normalizer<A> part = nothing<A>();
    part.m = fmax(part.m, widen(largest(value)));
#pragma unroll
    for (int i = 0; i < VEC; ++i) part.s += power<false>(widen(value.at[i]) - origin_of(part.m));
    row = merge<false>(row, part);
  }
  row = cluster_merge<false>(row, exchange);
  A origin = origin_of(row.m), inverse = 1 / row.s;
  for (int64 v = threadIdx.x; v < vectors; v += THREADS) {
    V value = *(const V*)(x + v * VEC), out;
#pragma unroll
    for (int i = 0; i < VEC; ++i) out.at[i] = narrow<T>(power<false>(widen(value.at[i]) - origin) * inverse);
    store_streaming(y + v * VEC, out);
  }
}

template <typename T, int VEC, int THREADS>
__global__ __launch_bounds__(THREADS) void softmax_backward_vectorized(const T* dy, int64 dy_stride, const T* y, T* dx,
                                                                       int64 columns) {
  typedef typename Accumulator<T>::type A;
  typedef Vector<T, VEC> V;
  __shared__ A scratch[THREADS / 32];
  int64 vectors = columns / VEC;
  dy += blockIdx.x * dy_stride, y += blockIdx.x * columns, dx += blockIdx.x * columns;
  A d = 0;
  for (int64 v = threadIdx.x; v < vectors; v += THREADS) {
    V value = *(const V*)(y + v * VEC), grad = *(const V*)(dy + v * VEC);
#pragma unroll
    for (int i = 0; i < VEC; ++i) d += widen(value.at[i]) * widen(grad.at[i]);
  }
  d = block_sum<THREADS>(d, scratch);
  for (int64 v = threadIdx.x; v < vectors; v += THREADS) {
    V value = *(const V*)(y + v * VEC), grad = *(const V*)(dy + v * VEC), out;
#pragma unroll
    for (int i = 0; i < VEC; ++i) out.at[i] = narrow<T>(widen(value.at[i]) * (widen(grad.at[i]) - d));
    store_streaming(dx + v * VEC, out);
  }
}

// one_pass, fast_exp and cluster: the row is read once, at most HELD vectors to a thread. A short row is shared by LANES threads
// of a warp, so that a block takes several rows; a long one by all threads of a block, LANES = THREADS; a longer one by
// all threads of CLUSTER blocks, a slice to each block ---------------------------------------------------------------

// A thread's row, and the vectors of it that are this thread's: at(k) where has(k). None if there is no such row: the
// last block may have fewer than the others.
template <int THREADS, int LANES, int CLUSTER> struct Share {
  static_assert(LANES == THREADS || (LANES <= 32 && CLUSTER == 1), "threads of one warp share a row, or whole blocks");
  int64 row;
  int first, end;

  __device__ inline Share(int64 rows, int64 vectors) {
    int slice = (vectors + CLUSTER - 1) / CLUSTER, rank = 0;
    if constexpr (CLUSTER > 1) rank = cluster_rank();
    row = blockIdx.x / CLUSTER * int64(THREADS / LANES) + threadIdx.x / LANES;
    first = rank * slice + threadIdx.x % LANES;
    end = row < rows ? min((rank + 1) * slice, int(vectors)) : 0;
  }
  __device__ inline int at(int k) const { return first + k * LANES; }
  __device__ inline bool has(int k) const { return at(k) < end; }
};

template <typename T, int VEC, int THREADS, int LANES, int HELD, int CLUSTER, bool FAST>
__global__ __launch_bounds__(THREADS) void softmax_forward(const T* x, int64 x_stride, T* y, int64 rows,
                                                           int64 columns) {
  typedef typename Accumulator<T>::type A;
  typedef Vector<T, VEC> V;
  __shared__ Exchange<Normalizer<A>, (LANES + 31) / 32, CLUSTER> exchange;
  exchange.open();
  Share<THREADS, LANES, CLUSTER> share(rows, columns / VEC);
  x += share.row * x_stride, y += share.row * columns;

  V held[HELD];
#pragma unroll
  for (int k = 0; k < HELD; ++k)
    if (share.has(k)) held[k] = *(const V*)(x + share.at(k) * VEC);
  Normalizer<A> row = nothing<A>();
#pragma unroll
  for (int k = 0; k < HELD; ++k) {
    if (share.has(k)) row.m = fmax(row.m, widen(largest(held[k])));
  }
  stay_packed(held);
#pragma unroll
  for (int k = 0; k < HELD; ++k) {
    if (!share.has(k)) continue;
#pragma unroll
    for (int i = 0; i < VEC; ++i) row.s += power<FAST>(widen(held[k].at[i]) - origin_of(row.m));
  }
  stay_packed(held);
  if constexpr (LANES <= 32) {
    row = warp_merge<FAST, LANES>(row);
  } else {
    row = cluster_merge<FAST>(row, exchange);
  }
  A origin = origin_of(row.m), inverse = 1 / row.s;
#pragma unroll
  for (int k = 0; k < HELD; ++k) {
    if (!share.has(k)) continue;
    V out;
#pragma unroll
    for (int i = 0; i < VEC; ++i) out.at[i] = narrow<T>(power<FAST>(widen(held[k].at[i]) - origin) * inverse);
    *(V*)(y + share.at(k) * VEC) = out;  // not streaming: no row is left in L2 to protect
  }
}

template <typename T, int VEC, int THREADS, int LANES, int HELD, int CLUSTER>
__global__ __launch_bounds__(THREADS) void softmax_backward(const T* dy, int64 dy_stride, const T* y, T* dx, int64 rows,
                                                            int64 columns) {
  typedef typename Accumulator<T>::type A;
  typedef Vector<T, VEC> V;
  __shared__ Exchange<A, (LANES + 31) / 32, CLUSTER> exchange;
  exchange.open();
  Share<THREADS, LANES, CLUSTER> share(rows, columns / VEC);
  dy += share.row * dy_stride, y += share.row * columns, dx += share.row * columns;

  V value[HELD], grad[HELD];
#pragma unroll
  for (int k = 0; k < HELD; ++k) {
    if (!share.has(k)) continue;
    value[k] = *(const V*)(y + share.at(k) * VEC);
    grad[k] = *(const V*)(dy + share.at(k) * VEC);
  }
  A d = 0;
#pragma unroll
  for (int k = 0; k < HELD; ++k) {
    if (!share.has(k)) continue;
#pragma unroll
    for (int i = 0; i < VEC; ++i) d += widen(value[k].at[i]) * widen(grad[k].at[i]);
  }
  stay_packed(value), stay_packed(grad);
  if constexpr (LANES <= 32) {
    d = warp_sum<LANES>(d);
  } else {
    d = cluster_sum_once(d, exchange);
  }
#pragma unroll
  for (int k = 0; k < HELD; ++k) {
    if (!share.has(k)) continue;
    V out;
#pragma unroll
    for (int i = 0; i < VEC; ++i) out.at[i] = narrow<T>(widen(value[k].at[i]) * (widen(grad[k].at[i]) - d));
    store_streaming(dx + share.at(k) * VEC, out);
  }
}
