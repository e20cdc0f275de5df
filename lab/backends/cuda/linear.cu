// Linear in CUDA C++, in the order in which the chapter teaches it. The mathematics is in lab/ops/linear.py.
//
// One product c = a b (+ bias), a of m x k and b of k x n, is y, dx and dweight: a transpose is another way to read.
// a and b have unit stride along k (A_ALONG_K, B_ALONG_K) or along their other dimension, in which c has as many
// elements, and any stride, in elements, in the one that is left. c is contiguous. Offsets are 64-bit. Tiles may stick
// out of a, b and c: what lies outside is read as zero, which adds nothing to a sum, and never written.

#include "rows.cuh"

// Element (i, along) of an operand, i along m or n.
template <bool ALONG_K> __device__ inline int64 offset_of(int64 i, int64 along, int64 stride) {
  return ALONG_K ? i * stride + along : along * stride + i;
}

// naive: a thread an element of c -------------------------------------------------------------------------------------

template <typename T, bool A_ALONG_K, bool B_ALONG_K, bool BIAS>
__global__ void linear_naive(const T* a, int64 a_stride, const T* b, int64 b_stride, const T* bias, T* c, int64 m,
                             int64 n, int64 k) {
  int64 tiles_n = (n + 15) / 16;
  int64 row = blockIdx.x / tiles_n * 16 + threadIdx.x / 16, column = blockIdx.x % tiles_n * 16 + threadIdx.x % 16;
  if (row >= m || column >= n) return;
  typename Accumulator<T>::type sum = 0;
  for (int64 i = 0; i < k; ++i)
    sum += widen(a[offset_of<A_ALONG_K>(row, i, a_stride)]) * widen(b[offset_of<B_ALONG_K>(column, i, b_stride)]);
  if constexpr (BIAS) sum += widen(bias[column]);
  c[row * n + column] = narrow<T>(sum);
}

// shared: a block reads tiles of 32 x 32 into shared memory, in the order in which they lie in memory, and uses every
// element 32 times ----------------------------------------------------------------------------------------------------

template <typename T, bool ALONG_K, typename A>
__device__ inline void load_square(A (*tile)[33], const T* x, int64 stride, int64 first, int64 size, int64 start,
                                   int64 k) {
  int fast = threadIdx.x % 32, slow = threadIdx.x / 32;
  int i = ALONG_K ? slow : fast, along = ALONG_K ? fast : slow;
  bool inside = first + i < size && start + along < k;
  tile[along][i] = inside ? widen(x[offset_of<ALONG_K>(first + i, start + along, stride)]) : A(0);
}

template <typename T, bool A_ALONG_K, bool B_ALONG_K, bool BIAS>
__global__ __launch_bounds__(1024) void linear_shared(const T* a, int64 a_stride, const T* b, int64 b_stride,
                                                      const T* bias, T* c, int64 m, int64 n, int64 k) {
  typedef typename Accumulator<T>::type A;
  __shared__ A left[32][33];
  __shared__ A right[32][33];
  int64 tiles_n = (n + 31) / 32;
  int64 first_row = blockIdx.x / tiles_n * 32, first_column = blockIdx.x % tiles_n * 32;
  A sum = 0;
  for (int64 start = 0; start < k; start += 32) {
    load_square<T, A_ALONG_K>(left, a, a_stride, first_row, m, start, k);
    load_square<T, B_ALONG_K>(right, b, b_stride, first_column, n, start, k);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 32; ++i) sum += left[i][threadIdx.x / 32] * right[i][threadIdx.x % 32];
    __syncthreads();
  }
  int64 row = first_row + threadIdx.x / 32, column = first_column + threadIdx.x % 32;
  if (row >= m || column >= n) return;
  if constexpr (BIAS) sum += widen(bias[column]);
  c[row * n + column] = narrow<T>(sum);
}

// register: a thread has 8 x 8 elements of c, and uses 8 times what it reads from shared memory; the next tile is under
// way from memory, 16 bytes at a time, while this one is multiplied ---------------------------------------------------

constexpr int SIDE = 128;  // of the tile of c that a block of 16 x 16 threads has

// A thread's part of a tile of SIDE x DEPTH elements of an operand, on its way from memory to shared memory.
template <typename T, bool ALONG_K, int VEC, int DEPTH> struct Piece {
  typedef typename Accumulator<T>::type A;
  static constexpr int VECTORS = SIDE * DEPTH / VEC / 256;
  Vector<T, VEC> held[VECTORS];

  __device__ inline static int place(int vector) {  // its first element is place / DEPTH or % SIDE, and the other
    return (threadIdx.x + vector * 256) * VEC;
  }
  __device__ inline static int across(int vector) { return ALONG_K ? place(vector) / DEPTH : place(vector) % SIDE; }
  __device__ inline static int along(int vector) { return ALONG_K ? place(vector) % DEPTH : place(vector) / SIDE; }

  // VEC divides the length of what is contiguous: a vector lies inside or outside as a whole.
  __device__ inline void load(const T* x, int64 stride, int64 first, int64 size, int64 start, int64 k) {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      int64 i = first + across(v), at = start + along(v);
      held[v] = Vector<T, VEC>{};
      if (i < size && at < k) held[v] = *(const Vector<T, VEC>*)(x + offset_of<ALONG_K>(i, at, stride));
    }
  }
  __device__ inline void store(A (*tile)[SIDE + 4]) const {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v)
#pragma unroll
      for (int e = 0; e < VEC; ++e)
        tile[along(v) + (ALONG_K ? e : 0)][across(v) + (ALONG_K ? 0 : e)] = widen(held[v].at[e]);
  }
};

template <typename T, bool A_ALONG_K, bool B_ALONG_K, int A_VEC, int B_VEC, bool BIAS>
__global__ __launch_bounds__(256) void linear_register(const T* a, int64 a_stride, const T* b, int64 b_stride,
                                                       const T* bias, T* c, int64 m, int64 n, int64 k) {
  typedef typename Accumulator<T>::type A;
  typedef Vector<A, 4> Four;
  constexpr int DEPTH = 64 / sizeof(A);
  __shared__ alignas(32) A left[DEPTH][SIDE + 4];
  __shared__ alignas(32) A right[DEPTH][SIDE + 4];
  int64 tiles_n = (n + SIDE - 1) / SIDE;
  int64 first_row = blockIdx.x / tiles_n * SIDE, first_column = blockIdx.x % tiles_n * SIDE;
  int y = threadIdx.x / 16 * 4, x = threadIdx.x % 16 * 4;  // rows y to y + 3 and SIDE / 2 + y to ...; columns likewise
  A sums[8][8] = {};
  Piece<T, A_ALONG_K, A_VEC, DEPTH> of_a;
  Piece<T, B_ALONG_K, B_VEC, DEPTH> of_b;
  of_a.load(a, a_stride, first_row, m, 0, k), of_b.load(b, b_stride, first_column, n, 0, k);
  for (int64 start = 0; start < k; start += DEPTH) {
    of_a.store(left), of_b.store(right);
    __syncthreads();
    if (start + DEPTH < k) {
      of_a.load(a, a_stride, first_row, m, start + DEPTH, k);
      of_b.load(b, b_stride, first_column, n, start + DEPTH, k);
    }
#pragma unroll
    for (int i = 0; i < DEPTH; ++i) {
      Four rows[2] = {*(const Four*)&left[i][y], *(const Four*)&left[i][SIDE / 2 + y]};
      Four columns[2] = {*(const Four*)&right[i][x], *(const Four*)&right[i][SIDE / 2 + x]};
#pragma unroll
      for (int r = 0; r < 8; ++r)
#pragma unroll
        for (int s = 0; s < 8; ++s) sums[r][s] += rows[r / 4].at[r % 4] * columns[s / 4].at[s % 4];
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    int64 row = first_row + r / 4 * (SIDE / 2) + y + r % 4;
    if (row >= m) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int64 column = first_column + half * (SIDE / 2) + x;
      Vector<T, 4> out;
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        A sum = sums[r][half * 4 + s];
        if constexpr (BIAS) sum += column + s < n ? widen(bias[column + s]) : A(0);
        out.at[s] = narrow<T>(sum);
      }
      if (n % 4 == 0) {
        if (column < n) *(Vector<T, 4>*)(c + row * n + column) = out;
      } else {
        for (int s = 0; s < 4; ++s)
          if (column + s < n) c[row * n + column + s] = out.at[s];
      }
    }
  }
}

// dbias: the sums of columns. A block sums 32 VEC columns of a slab of rows, its 8 warps every 8th row each; what is
// left is one row for each slab.
template <typename T, typename R, int VEC>
__global__ __launch_bounds__(256) void linear_column_sums(const T* x, int64 stride, R* sums, int64 rows, int64 columns,
                                                          int64 slab) {
  typedef typename Accumulator<T>::type A;
  __shared__ A of_warps[8][32 * VEC];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64 blocks = (columns + 32 * VEC - 1) / (32 * VEC);
  int64 column = (blockIdx.x % blocks * 32 + lane) * VEC, first = blockIdx.x / blocks * slab;
  int64 last = min(rows, first + slab);
  A sum[VEC] = {};
  if (column < columns) {
#pragma unroll 4
    for (int64 row = first + warp; row < last; row += 8) {
      Vector<T, VEC> part = *(const Vector<T, VEC>*)(x + row * stride + column);
#pragma unroll
      for (int e = 0; e < VEC; ++e) sum[e] += widen(part.at[e]);
    }
  }
#pragma unroll
  for (int e = 0; e < VEC; ++e) of_warps[warp][lane * VEC + e] = sum[e];
  __syncthreads();
  for (int i = threadIdx.x; i < 32 * VEC; i += 256) {
    A total = 0;
    for (int w = 0; w < 8; ++w) total += of_warps[w][i];
    int64 at = blockIdx.x % blocks * (32 * VEC) + i;
    if (at < columns) sums[blockIdx.x / blocks * columns + at] = narrow<R>(total);
  }
}
