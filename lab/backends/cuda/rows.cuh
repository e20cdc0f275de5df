// What the kernels on rows share: dtypes, wide loads and stores, sums over a warp, a block or a cluster of blocks.
// Included as text (`source_of` in compile.py).

#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef long long int64;

// Low precision is accumulated in float, double stays double.
template <typename T> struct Accumulator { typedef float type; };
template <> struct Accumulator<double> { typedef double type; };

__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(__half v) { return __half2float(v); }
__device__ inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T> __device__ inline T narrow(float v);
template <> __device__ inline float narrow<float>(float v) { return v; }
template <> __device__ inline __half narrow<__half>(float v) { return __float2half_rn(v); }
template <> __device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }
template <typename T> __device__ inline T narrow(double v) { return (T)v; }

// VEC elements that are loaded and stored with one instruction: 16 bytes, or a single element where rows are unaligned.
template <typename T, int VEC> struct alignas(sizeof(T) * VEC) Vector { T at[VEC]; };

// What is written is not read again by the same kernel, so it should be the first to leave the cache.
template <typename T, int VEC> __device__ inline void store_streaming(T* address, const Vector<T, VEC>& v) {
  if constexpr (sizeof(v) == 16) {
    __stcs((int4*)address, *(const int4*)&v);
  } else {
    *(Vector<T, VEC>*)address = v;
  }
}

// To stand between two uses of what a thread holds: low precision then stays as it was loaded. Otherwise the compiler
// keeps the widened values for the next use, in twice the registers, and spills, all to save a few conversions.
template <typename T, int VEC, int HELD> __device__ inline void stay_packed(Vector<T, VEC> (&held)[HELD]) {
  if constexpr (sizeof(held[0]) == 16) {
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
      int4& words = *(int4*)&held[k];
      asm("" : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w));
    }
  }
}

// Sum over LANES neighbouring threads of a warp (a power of two), returned to each of them.
template <int LANES = 32, typename A> __device__ inline A warp_sum(A value) {
  for (int offset = LANES / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffff, value, offset);
  return value;
}

// Sum over all threads of the block, returned to every thread; `scratch` holds one value a warp. One barrier: callers
// alternate between two scratch arrays, so that a fast warp's next sum cannot overwrite what a slow one still reads.
template <int THREADS, typename A> __device__ inline A block_sum(A value, A* scratch) {
  value = warp_sum(value);
  if constexpr (THREADS > 32) {
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    value = warp_sum(threadIdx.x % 32 < THREADS / 32 ? scratch[threadIdx.x % 32] : A(0));
  }
  return value;
}

// Clusters (Hopper): blocks that may write into each other's shared memory. A kernel that calls none of these functions
// compiles for any GPU -----------------------------------------------------------------------------------------------

__device__ inline unsigned shared_address(const void* pointer) { return (unsigned)__cvta_generic_to_shared(pointer); }

// This block's place in its cluster.
__device__ inline unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// A barrier for all threads of the cluster: what they wrote before it, they read after it.
__device__ inline void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// One in two halves that publishes nothing. Nobody writes into a block that has not started: each says that it has, and
// waits for the others where it first writes.
__device__ inline void cluster_arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }

__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// *local = value, in the shared memory of the cluster's block `rank`.
template <typename A> __device__ inline void store_in_block(A* local, unsigned rank, A value) {
  unsigned address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(local)), "r"(rank));
  if constexpr (sizeof(A) == 4)
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"((float)value) : "memory");
  else
    asm volatile("st.shared::cluster.f64 [%0], %1;" ::"r"(address), "d"((double)value) : "memory");
}

// Sum over all threads of all CLUSTER blocks, returned to every thread; scratch: one value a warp of the cluster.
template <int THREADS, int CLUSTER, typename A> __device__ inline A cluster_sum(A value, A* scratch) {
  if constexpr (CLUSTER == 1) {
    return block_sum<THREADS>(value, scratch);
  } else {
    constexpr int WARPS = THREADS / 32;
    value = warp_sum(value);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (lane < CLUSTER) store_in_block(scratch + cluster_rank() * WARPS + warp, lane, value);
    cluster_barrier();
    value = 0;
    for (int i = lane; i < WARPS * CLUSTER; i += 32) value += scratch[i];
    return warp_sum(value);
  }
}
