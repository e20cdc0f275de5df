// The transpose in CUDA C++, in the order in which the chapter teaches it. The mathematics is in lab/ops/transpose.py.
//
// Rows of x are reached through a row stride in elements; columns have unit stride; y is contiguous. Offsets are 64-bit.
// The kernels move bits: T is an element's size, whatever its dtype.

typedef long long int64;

// naive: a block reads neighbours of a row, an element a thread, and writes them down a column ------------------------

template <typename T>
__global__ void transpose_naive(const T* x, int64 x_stride, T* y, int64 rows, int64 columns) {
  unsigned pieces = (columns + blockDim.x - 1) / blockDim.x;  // of a row
  int64 row = blockIdx.x / pieces, column = int64(blockIdx.x % pieces) * blockDim.x + threadIdx.x;
  if (column < columns) y[column * rows + row] = x[row * x_stride + column];
}

// tiled and padded: a warp reads 32 neighbours of a row into shared memory, and writes 32 neighbours of a column out of
// it. Rows of the tile lie PITCH elements apart: 32, or one more, so that a column is spread over all banks -----------

template <typename T, int PITCH>
__global__ void transpose_tiled(const T* x, int64 x_stride, T* y, int64 rows, int64 columns) {
  __shared__ T tile[32][PITCH];
  unsigned across = (columns + 31) / 32;  // tiles side by side
  int64 top = int64(blockIdx.x / across) * 32, left = int64(blockIdx.x % across) * 32;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int i = warp; i < 32; i += warps)
    if (top + i < rows && left + lane < columns) tile[i][lane] = x[(top + i) * x_stride + left + lane];
  __syncthreads();
  for (int j = warp; j < 32; j += warps)
    if (left + j < columns && top + lane < rows) y[(left + j) * rows + top + lane] = tile[lane][j];
}

// vectorized: the same with 16-byte loads and stores. A thread stores VEC neighbours of a column, which it gathers from
// as many rows of the tile ---------------------------------------------------------------------------------------------

template <typename T, int VEC> struct alignas(sizeof(T) * VEC) Vector { T at[VEC]; };

template <typename T, int VEC, int TILE, int THREADS>
__global__ __launch_bounds__(THREADS) void transpose_vectorized(const T* x, int64 x_stride, T* y, int64 rows,
                                                                int64 columns) {
  typedef Vector<T, VEC> V;
  constexpr int LANES = TILE / VEC, STEP = THREADS / LANES;  // threads to a row of the tile, and rows at a time
  constexpr int PITCH = TILE + (sizeof(T) < 4 ? 4 / sizeof(T) : 1);  // a bank more than a row
  __shared__ T tile[TILE][PITCH];
  unsigned across = (columns + TILE - 1) / TILE;
  int64 top = int64(blockIdx.x / across) * TILE, left = int64(blockIdx.x % across) * TILE;
  int first = threadIdx.x / LANES, at = threadIdx.x % LANES * VEC;
  V held[TILE / STEP];  // all loads are on their way before the first is waited for
#pragma unroll
  for (int k = 0; k < TILE / STEP; ++k) {
    int i = first + k * STEP;
    if (top + i < rows && left + at < columns) held[k] = *(const V*)(x + (top + i) * x_stride + left + at);
  }
#pragma unroll
  for (int k = 0; k < TILE / STEP; ++k) {
#pragma unroll
    for (int v = 0; v < VEC; ++v) tile[first + k * STEP][at + v] = held[k].at[v];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < TILE / STEP; ++k) {
    int j = first + k * STEP;
    V out;
#pragma unroll
    for (int v = 0; v < VEC; ++v) out.at[v] = tile[at + v][j];
    if (left + j < columns && top + at < rows) *(V*)(y + (left + j) * rows + top + at) = out;
  }
}
