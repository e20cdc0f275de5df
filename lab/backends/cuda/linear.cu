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

// Tiles for tensor cores: in shared memory a tile of an operand is made up of panels of 64 rows of 128 bytes, 64
// elements. A row of a panel is along k, and the panels follow each other across it, or the other way round, as the
// operand lies in memory. Chunk i of the 8 chunks of 16 bytes of row r lies at i ^ r % 8: then 8 rows' chunks of one
// column, which tensor cores read together, are in different banks ----------------------------------------------------

constexpr int PANEL = 64;
constexpr int PANEL_BYTES = PANEL * 128;

__device__ inline unsigned place_in_panel(int row, int chunk) { return row * 128 + ((chunk ^ row % 8) << 4); }

// Where the chunk begins that holds element (i, along) of a tile.
template <bool ALONG_K> __device__ inline unsigned place_in_tile(int i, int along) {
  unsigned place = ALONG_K ? place_in_panel(i % PANEL, along / 8) : place_in_panel(along, i % PANEL / 8);
  return i / PANEL * PANEL_BYTES + place;
}

// Row and column of a tile of c, both counted in tiles. Tiles are counted group by group, a group being `group` rows of
// them, and in a group column by column: those at work at the same time share what L2 holds.
struct TilePlace {
  int row, column;

  __device__ inline TilePlace(int tile, int tiles_m, int tiles_n, int group) {
    int first = tile / (group * tiles_n) * group, inside = tile % (group * tiles_n);
    int height = min(tiles_m - first, group);  // the last group may be lower
    row = first + inside % height, column = inside / height;
  }
};

template <typename T> constexpr bool IS_BFLOAT16 = false;
template <> constexpr bool IS_BFLOAT16<__nv_bfloat16> = true;

// Two neighbouring elements of c in a register.
template <typename T> __device__ inline unsigned pack(float low, float high) {
  Vector<T, 2> both = {{narrow<T>(low), narrow<T>(high)}};
  return *(const unsigned*)&both;
}

// c[row][column] and the element to its right, if they are there.
template <typename T> __device__ inline void store_pair(T* c, int64 row, int64 column, int64 m, int64 n, float first,
                                                        float second) {
  if (row >= m || column >= n) return;
  T* address = c + row * n + column;
  if (n % 2 == 0) {
    *(Vector<T, 2>*)address = {{narrow<T>(first), narrow<T>(second)}};
  } else {
    address[0] = narrow<T>(first);
    if (column + 1 < n) address[1] = narrow<T>(second);
  }
}

template <bool BIAS, typename T> __device__ inline float bias_of(const T* bias, int64 column, int64 n) {
  if constexpr (BIAS) return column < n ? widen(bias[column]) : 0.f;
  return 0;
}

// mma: a warp multiplies with tensor cores; tiles are copied into a ring of STAGES places in shared memory, past the
// registers, while the ones before are multiplied ---------------------------------------------------------------------

// 16 bytes from memory to shared memory, without waiting; zeros past the first `bytes` of them, and no others are read.
__device__ inline void copy_async(unsigned to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

__device__ inline void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of the groups of copies that this thread has closed are under way.
template <int PENDING> __device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8 x 8 matrices from shared memory; lane l gives the address of row l % 8 of matrix l / 8, and is left with the
// two elements 2 (l % 4) of row l / 4 of each, of its transpose if TRANSPOSE.
template <bool TRANSPOSE> __device__ inline void load_matrices(unsigned (&to)[4], unsigned address) {
  if constexpr (TRANSPOSE)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

// sums += a b, a of 16 x 16, b of 16 x 8. sums: elements 2 (lane % 4) and the next, of rows lane / 4 and 8 + lane / 4.
template <typename T>
__device__ inline void multiply_16x8x16(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  if constexpr (IS_BFLOAT16<T>)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Begins to copy a tile of WIDTH x PANEL elements: WIDTH across k from `first` on, along k from `start` on. What is
// contiguous begins at multiples of 16 bytes. Eight threads copy a row of a panel.
template <typename T, bool ALONG_K, int WIDTH, int THREADS>
__device__ inline void copy_tile(unsigned to, const T* x, int64 stride, int64 first, int64 size, int64 start, int64 k) {
  constexpr int AT_ONCE = THREADS / 8;
  int row = threadIdx.x / 8, chunk = threadIdx.x % 8;
  to += place_in_panel(row, chunk);
#pragma unroll
  for (int v = 0; v < WIDTH / AT_ONCE; ++v, row += AT_ONCE, to += AT_ONCE * 128) {
    int64 i = first + (ALONG_K ? row : row / PANEL * PANEL + chunk * 8);
    int64 along = start + (ALONG_K ? chunk * 8 : row % PANEL);
    int64 left = ALONG_K ? k - along : size - i;  // to the end of what is contiguous
    bool inside = i < size && along < k;
    copy_async(to, x + offset_of<ALONG_K>(i, along, stride), inside ? int(min(left, int64(8))) * 2 : 0);
  }
}

template <typename T, bool A_ALONG_K, bool B_ALONG_K, int BLOCK_M, int BLOCK_N, int WARPS_M, int WARPS_N, int STAGES,
          bool BIAS>
__global__ __launch_bounds__(32 * WARPS_M * WARPS_N) void linear_mma(const T* a, int64 a_stride, const T* b,
                                                                     int64 b_stride, const T* bias, T* c, int64 m,
                                                                     int64 n, int64 k, int64 group) {
  constexpr int THREADS = 32 * WARPS_M * WARPS_N, WARP_M = BLOCK_M / WARPS_M, WARP_N = BLOCK_N / WARPS_N;
  constexpr int A_BYTES = BLOCK_M * 128, STAGE_BYTES = A_BYTES + BLOCK_N * 128;
  extern __shared__ __align__(1024) unsigned char ring[];
  unsigned base = shared_address(ring);
  TilePlace tile(blockIdx.x, (m + BLOCK_M - 1) / BLOCK_M, (n + BLOCK_N - 1) / BLOCK_N, group);
  int64 first_row = int64(tile.row) * BLOCK_M, first_column = int64(tile.column) * BLOCK_N;
  int steps = (k + PANEL - 1) / PANEL;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int warp_row = warp / WARPS_N * WARP_M, warp_column = warp % WARPS_N * WARP_N;

  auto copy = [&](int step) {
    if (step < steps) {
      unsigned to = base + step % STAGES * STAGE_BYTES;
      copy_tile<T, A_ALONG_K, BLOCK_M, THREADS>(to, a, a_stride, first_row, m, int64(step) * PANEL, k);
      copy_tile<T, B_ALONG_K, BLOCK_N, THREADS>(to + A_BYTES, b, b_stride, first_column, n, int64(step) * PANEL, k);
    }
    close_copies();  // an empty group too, so that the number of groups tells which are done
  };
  for (int step = 0; step < STAGES - 1; ++step) copy(step);

  float sums[WARP_M / 16][WARP_N / 8][4] = {};
  for (int step = 0; step < steps; ++step) {
    wait_copies<STAGES - 2>();
    __syncthreads();  // this step's tiles are there for all threads, and all are done with the step before
    copy(step + STAGES - 1);
    unsigned of_a = base + step % STAGES * STAGE_BYTES, of_b = of_a + A_BYTES;
#pragma unroll
    for (int along = 0; along < PANEL; along += 16) {
      unsigned left[WARP_M / 16][4], right[WARP_N / 16][4];
      // Of the four 8 x 8 matrices of 16 x 16 elements the second is, for a, 8 further across k, and for b along k.
#pragma unroll
      for (int i = 0; i < WARP_M / 16; ++i) {
        int matrix = lane / 8, in_row = lane % 8;
        int across = warp_row + i * 16 + matrix % 2 * 8 + (A_ALONG_K ? in_row : 0);
        load_matrices<!A_ALONG_K>(
            left[i], of_a + place_in_tile<A_ALONG_K>(across, along + matrix / 2 * 8 + (A_ALONG_K ? 0 : in_row)));
      }
#pragma unroll
      for (int j = 0; j < WARP_N / 16; ++j) {
        int matrix = lane / 8, in_row = lane % 8;
        int across = warp_column + j * 16 + matrix / 2 * 8 + (B_ALONG_K ? in_row : 0);
        load_matrices<!B_ALONG_K>(
            right[j], of_b + place_in_tile<B_ALONG_K>(across, along + matrix % 2 * 8 + (B_ALONG_K ? 0 : in_row)));
      }
#pragma unroll
      for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
        for (int j = 0; j < WARP_N / 8; ++j)
          multiply_16x8x16<T>(sums[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
    }
  }
  wait_copies<0>();

#pragma unroll
  for (int j = 0; j < WARP_N / 8; ++j) {
    int64 column = first_column + warp_column + j * 8 + lane % 4 * 2;
    float first = bias_of<BIAS>(bias, column, n), second = bias_of<BIAS>(bias, column + 1, n);
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i) {
      int64 row = first_row + warp_row + i * 16 + lane / 4;
      store_pair(c, row, column, m, n, sums[i][j][0] + first, sums[i][j][1] + second);
      store_pair(c, row + 8, column, m, n, sums[i][j][2] + first, sums[i][j][3] + second);
    }
  }
}

// wgmma: Hopper's tensor cores read both operands in shared memory, for four warps at a time (a warpgroup), while these
// do something else. One warpgroup does nothing but ask the tensor memory accelerator (TMA) for tiles; the others
// multiply, each 64 rows of a tile. Blocks stay, and take every gridDim-th tile -------------------------------------

// What TMA knows of a matrix: cuTensorMapEncodeTiled makes it (compile.py).
struct alignas(64) TensorMap { unsigned char opaque[128]; };

// A barrier in shared memory that counts arrivals and bytes. Its phases end by turns; waiting is for the end of one of
// this parity, and so the first phase's is 0.
__device__ inline void barrier_init(unsigned barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// What was initialized is seen by the copy engine and the cluster's other blocks.
__device__ inline void barriers_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async;" ::: "memory");
}

__device__ inline void barrier_expect(unsigned barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ inline void barrier_wait(unsigned barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra over;\nbra again;\nover:\n}" ::"r"(
          barrier),
      "r"(parity)
      : "memory");
}

// Arrives at the same barrier of the cluster's block `rank`.
__device__ inline void barrier_arrive(unsigned barrier, unsigned rank) {
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Begins to copy a panel into shared memory, swizzled; the barrier counts its bytes. x is along its rows.
__device__ inline void load_panel(unsigned to, const TensorMap* map, int x, int y, unsigned barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}

// The same of a panel that is read only once. It should be the first to leave L2: then it makes way for its own kind,
// and what the kernels before wrote is neither lost to those that come after nor written back now.
__device__ inline void load_panel_once(unsigned to, const TensorMap* map, int x, int y, unsigned barrier) {
  asm volatile(
      "{\n.reg .b64 policy;\ncreatepolicy.fractional.L2::evict_first.b64 policy;\n"
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3}], [%4], policy;\n}" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}

// The same into every block of the cluster that has a bit in `blocks`; each counts the bytes.
__device__ inline void load_panel_for_all(unsigned to, const TensorMap* map, int x, int y, unsigned barrier,
                                          unsigned short blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(blocks)
      : "memory");
}

// Begins to copy a panel from shared memory into a matrix; what sticks out is left out.
__device__ inline void store_panel(const TensorMap* map, int x, int y, unsigned from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(x), "r"(y),
               "r"(from)
               : "memory");
}

__device__ inline void close_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until all but PENDING of the groups of stores that this thread has closed have read their panels.
template <int PENDING> __device__ inline void wait_stores() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// What was written to shared memory is seen by the copy engine.
__device__ inline void fence_for_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A barrier for the threads of one warpgroup.
__device__ inline void warpgroup_barrier(int warpgroup) {
  asm volatile("bar.sync %0, 128;" ::"r"(warpgroup + 1) : "memory");
}

// Registers of a thread, from now on; for all threads of a warpgroup.
template <int COUNT> __device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> __device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// The description of a tile by which wgmma reads it: its address; how far it is from 8 rows of a panel to the next 8
// and, where rows are across k, from a panel to the next; and that chunks are swizzled in rows of 128 bytes.
template <bool ALONG_K> __device__ inline unsigned long long description(unsigned address) {
  constexpr unsigned long long EIGHT_ROWS = 8 * 128, NEXT = ALONG_K ? 16 : PANEL_BYTES, SWIZZLE_128 = 1;
  return (address & 0x3ffff) >> 4 | NEXT >> 4 << 16 | EIGHT_ROWS >> 4 << 32 | SWIZZLE_128 << 62;
}

// To stand before and after products: the compiler sees that sums change there.
template <int COUNT> __device__ inline void sums_change(float (&sums)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void close_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING of the groups of products that this warpgroup has closed are under way.
template <int PENDING> __device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define TEN(tens)                                                                                           \
  "%" #tens "0, %" #tens "1, %" #tens "2, %" #tens "3, %" #tens "4, %" #tens "5, %" #tens "6, %" #tens "7, %" #tens \
  "8, %" #tens "9, "
#define EIGHT(i)                                                                                             \
  "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), "+f"(sums[i + 5]), \
      "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define SIXTY_FOUR(i) \
  EIGHT(i), EIGHT(i + 8), EIGHT(i + 16), EIGHT(i + 24), EIGHT(i + 32), EIGHT(i + 40), EIGHT(i + 48), EIGHT(i + 56)
#define PRODUCT_128(TYPE)                                                                           \
  asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, 1, 1;\n"                                       \
               "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" TEN() TEN(1) TEN(2) TEN(3) TEN(4) \
                   TEN(5) "%60, %61, %62, %63}, %64, %65, add, 1, 1, %66, %67;\n}"                  \
               : SIXTY_FOUR(0)                                                                      \
               : "l"(a), "l"(b), "n"(!A_ALONG_K), "n"(!B_ALONG_K)                                   \
               : "memory")
#define PRODUCT_256(TYPE)                                                                           \
  asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, 1, 1;\n"                                       \
               "wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE " {" TEN() TEN(1) TEN(2) TEN(3) TEN(4) \
                   TEN(5) TEN(6) TEN(7) TEN(8) TEN(9) TEN(10) TEN(11) "%120, %121, %122, %123, %124, %125, %126, " \
               "%127}, %128, %129, add, 1, 1, %130, %131;\n}"                                       \
               : SIXTY_FOUR(0), SIXTY_FOUR(64)                                                      \
               : "l"(a), "l"(b), "n"(!A_ALONG_K), "n"(!B_ALONG_K)                                   \
               : "memory")

// Begins sums += a b, a of 64 x 16, b of 16 x N, both in shared memory. sums: for warp w of the warpgroup, of rows
// 16 w + lane / 4 and that + 8, in every 8 columns elements 2 (lane % 4) and the next; 4 sums for 8 columns.
template <typename T, bool A_ALONG_K, bool B_ALONG_K, int N>
__device__ inline void begin_product(float (&sums)[N / 2], unsigned long long a, unsigned long long b) {
  static_assert(N == 128 || N == 256, "128 or 256 columns");
  if constexpr (N == 128) {
    if constexpr (IS_BFLOAT16<T>) PRODUCT_128("bf16");
    else PRODUCT_128("f16");
  } else {
    if constexpr (IS_BFLOAT16<T>) PRODUCT_256("bf16");
    else PRODUCT_256("f16");
  }
}

// Four 8 x 8 matrices to shared memory, as load_matrices has them from there.
__device__ inline void store_matrices(unsigned address, unsigned m0, unsigned m1, unsigned m2, unsigned m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(m0), "r"(m1),
               "r"(m2), "r"(m3)
               : "memory");
}

// The bias of COLUMNS columns from `first` on, shared out over a warp, two neighbours of every 64 to a thread. Asked for
// before a tile is multiplied and first used after, it keeps nobody waiting.
template <typename T, bool BIAS, int COLUMNS> struct HeldBias {
  T low[COLUMNS / 64] = {}, high[COLUMNS / 64] = {};

  __device__ inline HeldBias(const T* bias, int64 first, int64 n) {
    if constexpr (BIAS) {
#pragma unroll
      for (int i = 0; i < COLUMNS / 64; ++i) {
        int64 column = first + i * 64 + threadIdx.x % 32 * 2;
        if (column < n) low[i] = bias[column];
        if (column + 1 < n) high[i] = bias[column + 1];
      }
    }
  }
  // Of the two columns that a thread has sums of among the 8 from `column` on. For all threads of the warp.
  __device__ inline Vector<float, 2> of(int column) const {
    if constexpr (BIAS) {
      Vector<T, 2> mine = {{low[column / 64], high[column / 64]}};
      unsigned theirs = __shfl_sync(0xffffffff, *(const unsigned*)&mine, column % 64 / 2 + threadIdx.x % 4);
      mine = *(const Vector<T, 2>*)&theirs;
      return {{widen(mine.at[0]), widen(mine.at[1])}};
    }
    return {};
  }
};

// How a tile of c gets to memory. TO_TMA: through shared memory and TMA, which goes on while the next tile is
// multiplied. DIRECT: by each thread, where c's rows do not begin at multiples of 16 bytes. SPLIT: in float, one c for
// each part of k.
enum Output { TO_TMA, DIRECT, SPLIT };

// Steps through the places of the ring, with the parity of the phases in which they are filled.
template <int STAGES> struct RingPlace {
  int stage = 0, parity = 0;

  __device__ inline void advance() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

// Items of work are the tiles of c, CLUSTER rows of them at once, for each `depth` of k. Blocks of a cluster work on
// tiles below each other, which need the same tile of b: each loads a part of it for all. Where a has fewer rows than a
// panel, a's map has boxes of as many: the panel's other rows hold anything, and so do the rows of c that they make,
// which are never written.
template <typename T, bool A_ALONG_K, bool B_ALONG_K, int BLOCK_N, int CONSUMERS, int STAGES, int CLUSTER, bool BIAS,
          Output OUTPUT>
__global__ __launch_bounds__(128 * (CONSUMERS + 1), 1) void linear_wgmma(
    void* out, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
    const __grid_constant__ TensorMap c, const T* bias, int64 m, int64 n, int64 k, int64 depth, int64 group) {
  constexpr int BLOCK_M = CONSUMERS * PANEL, B_PANELS = BLOCK_N / PANEL;
  constexpr int A_BYTES = CONSUMERS * PANEL_BYTES, STAGE_BYTES = A_BYTES + B_PANELS * PANEL_BYTES;
  constexpr int OUTPUT_BYTES = OUTPUT == TO_TMA ? 2 * CONSUMERS * PANEL_BYTES : 0;
  extern __shared__ __align__(1024) unsigned char memory[];  // the ring, two panels of c a warpgroup, the barriers
  unsigned ring = shared_address(memory), panels = ring + STAGES * STAGE_BYTES;
  unsigned full = panels + OUTPUT_BYTES, empty = full + STAGES * 8;
  int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / 128, 0), rank = 0;  // so the compiler sees: one for a warp
  if constexpr (CLUSTER > 1) rank = cluster_rank();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < STAGES; ++stage) {
      barrier_init(full + stage * 8, 1);
      barrier_init(empty + stage * 8, 4 * CONSUMERS * CLUSTER);  // every warp that multiplies what the block loads
    }
    barriers_ready();
  }
  if constexpr (CLUSTER > 1) cluster_barrier();
  else __syncthreads();

  int tiles_m = (m + BLOCK_M * CLUSTER - 1) / (BLOCK_M * CLUSTER), tiles_n = (n + BLOCK_N - 1) / BLOCK_N;
  int tiles = tiles_m * tiles_n, items = tiles * int((k + depth - 1) / depth);
  RingPlace<STAGES> at;
  if (warpgroup == CONSUMERS) {
    if constexpr (CONSUMERS == 2) give_registers<40>();
    if (threadIdx.x % 128 == 0) {
      int missing = A_ALONG_K ? PANEL - int(min(m, int64(PANEL))) : 0;  // rows of a panel of a
      for (int item = blockIdx.x / CLUSTER; item < items; item += gridDim.x / CLUSTER) {
        TilePlace tile(item % tiles, tiles_m, tiles_n, group);
        int row = (tile.row * CLUSTER + rank) * BLOCK_M, column = tile.column * BLOCK_N;
        int64 first = item / tiles * depth, last = min(k, first + depth);
        for (int64 start = first; start < last; start += PANEL, at.advance()) {
          unsigned to = ring + at.stage * STAGE_BYTES, arrived = full + at.stage * 8;
          barrier_wait(empty + at.stage * 8, at.parity ^ 1);  // the first time round at once
          barrier_expect(arrived, STAGE_BYTES - CONSUMERS * missing * 128);
#pragma unroll
          for (int p = 0; p < CONSUMERS; ++p) {
            int i = row + p * PANEL;
            load_panel(to + p * PANEL_BYTES, &a, A_ALONG_K ? start : i, A_ALONG_K ? i : start, arrived);
          }
#pragma unroll
          for (int part = 0; part < B_PANELS / CLUSTER; ++part) {
            int p = rank * (B_PANELS / CLUSTER) + part, i = column + p * PANEL;
            unsigned place = to + A_BYTES + p * PANEL_BYTES;
            int x = B_ALONG_K ? start : i, y = B_ALONG_K ? i : start;
            if constexpr (CLUSTER > 1) load_panel_for_all(place, &b, x, y, arrived, (1 << CLUSTER) - 1);
            else if (tiles_m == 1) load_panel_once(place, &b, x, y, arrived);
            else load_panel(place, &b, x, y, arrived);
          }
        }
      }
    }
  } else {
    if constexpr (CONSUMERS == 2) take_registers<232>();
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    auto release = [&](int stage) {  // to those that load into it
      if (lane < CLUSTER) barrier_arrive(empty + stage * 8, lane);
    };
    for (int item = blockIdx.x / CLUSTER; item < items; item += gridDim.x / CLUSTER) {
      TilePlace tile(item % tiles, tiles_m, tiles_n, group);
      int64 row = (int64(tile.row) * CLUSTER + rank) * BLOCK_M + warpgroup * PANEL;
      int64 column = int64(tile.column) * BLOCK_N;
      int split = item / tiles;
      int64 first = split * depth, last = min(k, first + depth);
      HeldBias<T, BIAS, BLOCK_N> held(bias, column, n);
      float sums[BLOCK_N / 2] = {};
      int before = -1;
      for (int64 start = first; start < last; start += PANEL, at.advance()) {
        barrier_wait(full + at.stage * 8, at.parity);
        unsigned of_a = ring + at.stage * STAGE_BYTES + warpgroup * PANEL_BYTES;
        unsigned of_b = ring + at.stage * STAGE_BYTES + A_BYTES;
        sums_change(sums);
        begin_products();
#pragma unroll
        for (int along = 0; along < PANEL; along += 16)  // in a row 32 bytes further, or 16 rows
          begin_product<T, A_ALONG_K, B_ALONG_K, BLOCK_N>(
              sums, description<A_ALONG_K>(of_a + along * (A_ALONG_K ? 2 : 128)),
              description<B_ALONG_K>(of_b + along * (B_ALONG_K ? 2 : 128)));
        close_products();
        wait_products<1>();  // for those of the step before
        if (before >= 0) release(before);
        before = at.stage;
      }
      wait_products<0>();
      sums_change(sums);
      release(before);

      if constexpr (OUTPUT == TO_TMA) {
#pragma unroll
        for (int p = 0; p < B_PANELS; ++p) {
          unsigned panel = panels + (warpgroup * 2 + p % 2) * PANEL_BYTES;
          if (threadIdx.x % 128 == 0) wait_stores<1>();  // of what this panel held before
          warpgroup_barrier(warpgroup);
#pragma unroll
          for (int j = 0; j < PANEL; j += 16) {
            const float* s = sums + (p * PANEL + j) / 2;
            Vector<float, 2> left = held.of(p * PANEL + j), right = held.of(p * PANEL + j + 8);
            store_matrices(panel + place_in_panel(warp * 16 + lane % 16, j / 8 + lane / 16),
                           pack<T>(s[0] + left.at[0], s[1] + left.at[1]), pack<T>(s[2] + left.at[0], s[3] + left.at[1]),
                           pack<T>(s[4] + right.at[0], s[5] + right.at[1]),
                           pack<T>(s[6] + right.at[0], s[7] + right.at[1]));
          }
          fence_for_copies();
          warpgroup_barrier(warpgroup);
          if (threadIdx.x % 128 == 0) {
            if (row < m && column + p * PANEL < n) store_panel(&c, column + p * PANEL, row, panel);
            close_stores();
          }
        }
      } else {
#pragma unroll
        for (int j = 0; j < BLOCK_N; j += 8) {
          const float* s = sums + j / 2;
          int64 at_column = column + j + lane % 4 * 2, at_row = row + warp * 16 + lane / 4;
          if constexpr (OUTPUT == DIRECT) {
            Vector<float, 2> b = held.of(j);
            store_pair((T*)out, at_row, at_column, m, n, s[0] + b.at[0], s[1] + b.at[1]);
            store_pair((T*)out, at_row + 8, at_column, m, n, s[2] + b.at[0], s[3] + b.at[1]);
          } else {
            store_pair((float*)out + split * m * n, at_row, at_column, m, n, s[0], s[1]);
            store_pair((float*)out + split * m * n, at_row + 8, at_column, m, n, s[2], s[3]);
          }
        }
      }
    }
    if constexpr (OUTPUT == TO_TMA)
      if (threadIdx.x % 128 == 0) wait_stores<0>();
  }
  if constexpr (CLUSTER > 1) cluster_barrier();  // nobody leaves while another may still arrive at its barriers
}

// c = the sum of partial (splits, m, n) in the order of the splits, so that it is the same in every run.
template <typename T, bool BIAS>
__global__ void linear_add_splits(const float* partial, const T* bias, T* c, int64 elements, int64 n, int64 splits) {
  int64 i = int64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= elements) return;
  float sum = 0;
  for (int64 split = 0; split < splits; ++split) sum += partial[split * elements + i];
  if constexpr (BIAS) sum += widen(bias[i % n]);
  c[i] = narrow<T>(sum);
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
