// Products with a weight in packed panels, and what follows them (finish.h).
//
// A panel holds kColumns rows of the weight side by side, [K][kColumns]. A thread packs a block of rows of `a` into
// tiles that stay in its second-level cache, and multiplies each panel with all of them while the panel's part is in
// the first. Sums of up to kChunk products come together in registers and are then added to those before: one running
// sum over thousands would round worse. Only finished sums leave the caches.
#include <omp.h>

#include "finish.h"
#include "simd.h"

namespace varsr {
namespace {

// Products that one sum takes, in tiles of kColumns. Measured on Zen 5 with AVX-512: 384 are 0 to 4 % faster than 256 and
// 20 % less exact; on Zen 3 with AVX2: 96 are as fast as 256 or, of deep rows, 10 % faster, and 35 % more exact.
constexpr int64_t kChunk = (kLanes == 16 ? 256 : 96) / kColumns;
constexpr int64_t kDepth = 1536 / kColumns;  // tiles of a packed row
constexpr int64_t kGroups = 12;              // groups of kRows rows in a packed block
constexpr int64_t kMinParallelFlops = 1 << 20;  // below, waking the other threads costs more than it saves

// Rows first..first+count of a (K wide), from column `column` on, as tiles [group][tile][kRows][kColumns].
void pack_rows(const float* a, int64_t K, int64_t first, int64_t count, int64_t column, int64_t tiles, float* packed) {
  for (int64_t row = 0; row < round_up(count, kRows); ++row) {
    float* to = packed + row / kRows * tiles * kTile + row % kRows * kColumns;
    const float* from = a + (first + row) * K + column;
    for (int64_t tile = 0; tile < tiles; ++tile, to += kTile, from += kColumns) {
      store(to, row < count ? load(from) : broadcast(0.0f));
      store(to + kLanes, row < count ? load(from + kLanes) : broadcast(0.0f));
    }
  }
}

inline void store_tile(const TileSums& sums, float* to) {
#pragma GCC unroll 14
  for (int row = 0; row < kRows; ++row, to += kColumns) {
    store(to, sums.left[row]);
    store(to + kLanes, sums.right[row]);
  }
}

inline void add_tile(const float* from, TileSums& sums) {
#pragma GCC unroll 14
  for (int row = 0; row < kRows; ++row, from += kColumns) {
    sums.left[row] = sums.left[row] + load(from);
    sums.right[row] = sums.right[row] + load(from + kLanes);
  }
}

// A thread's own memory, the same for every kind of product.
struct Buffers {
  Scratch<float> packed, unfinished;

  static Buffers& of_thread() {
    static thread_local Buffers buffers;
    return buffers;
  }
};

template <Kind kKind>
struct Product {
  const float *a, *panels;
  int64_t M, N, K;
  Finish finish;

  // Rows row0..row1 of the panels panel0..panel1. A deep product keeps the sums of a block of rows between its depths.
  void share(int64_t row0, int64_t row1, int64_t panel0, int64_t panel1) const {
    Buffers& buffers = Buffers::of_thread();
    const int64_t all_tiles = K / kColumns, kept = all_tiles > kDepth ? panel1 - panel0 : 1;
    float* packed = buffers.packed.get(std::min(kDepth, all_tiles) * kGroups * kTile);
    float* sums = buffers.unfinished.get(kept * kGroups * kTile);
    for (int64_t first = row0; first < row1; first += kGroups * kRows)
      for (int64_t tile = 0; tile < all_tiles; tile += kDepth) {
        const int64_t count = std::min(kGroups * kRows, row1 - first), tiles = std::min(kDepth, all_tiles - tile);
        pack_rows(a, K, first, count, tile * kColumns, tiles, packed);
        for (int64_t panel = panel0; panel < panel1; ++panel)
          multiply(packed, first, count, tile, tiles, panel, sums + (panel - panel0) % kept * kGroups * kTile);
      }
  }

  void multiply(const float* packed, int64_t first, int64_t count, int64_t tile, int64_t tiles, int64_t panel,
                float* unfinished) const {
    for (int64_t start = 0; start < tiles; start += kChunk) {
      const int chunk = static_cast<int>(std::min(kChunk, tiles - start));
      const float* columns = panels + (panel * K + (tile + start) * kColumns) * kColumns;
      const bool begun = tile + start > 0, last = (tile + start + chunk) * kColumns == K;
      for (int64_t row = 0; row < count; row += kRows) {
        TileSums sums;
        multiply_tiles<true>(chunk, packed + (row / kRows * tiles + start) * kTile, columns, sums);
        float* kept = unfinished + row * kColumns;
        if (begun) add_tile(kept, sums);
        if (last)
          finish_tile(sums, first + row, std::min<int64_t>(kRows, count - row), panel * kColumns);
        else
          store_tile(sums, kept);
      }
    }
  }

  void finish_tile(const TileSums& sums, int64_t row, int64_t rows, int64_t column) const {
#pragma GCC unroll 14
    for (int i = 0; i < kRows; ++i) {
      if (i == rows) return;
      const Finish::Row to = finish.template row<kKind>(row + i);
      finish.template store_finished<kKind>(sums.left[i], to, column);
      finish.template store_finished<kKind>(sums.right[i], to, column + kLanes);
    }
  }
};

}  // namespace
}  // namespace varsr

// Rows of a weight that a panel holds; the columns of a weight must be a multiple of it too.
extern "C" int64_t varsr_cpu_panel_width() { return varsr::kColumns; }

// weight (N, K) to panels [N / width][K][width].
extern "C" void varsr_cpu_pack_panels(const float* weight, float* panels, int64_t N, int64_t K) {
  using varsr::kColumns;
#pragma omp parallel for
  for (int64_t panel = 0; panel < N / kColumns; ++panel)
    for (int64_t k = 0; k < K; k += 8)
      for (int64_t j = 0; j < kColumns; j += 8) {
        __m256 block[8];
        for (int i = 0; i < 8; ++i) block[i] = _mm256_loadu_ps(weight + (panel * kColumns + j + i) * K + k);
        varsr::transpose_8x8(block);
        for (int i = 0; i < 8; ++i) _mm256_storeu_ps(panels + (panel * K + k + i) * kColumns + j, block[i]);
      }
}

// out (M, N) = finished a (M, K) w^T; see finish.h. N and K are multiples of the panel width, rows are contiguous.
// Threads share the rows, so that each packs only its own, or where there are few rows the panels.
extern "C" void varsr_cpu_product(const float* a, const float* panels, const float* bias, int64_t kind,
                                  const float* residual, const float* gate, int64_t gate_stride, int64_t rows_per,
                                  float* out, int64_t M, int64_t N, int64_t K) {
  using namespace varsr;
  for_kind(kind, [&](auto known) {
    const Product<decltype(known)::value> product{
        a, panels, M, N, K, {bias, residual, gate, gate_stride, rows_per, out, N}};
    const int64_t count = N / kColumns, groups = ceil_div(M, kRows);
    const bool alone = 2 * M * N * K < kMinParallelFlops;
#pragma omp parallel if (!alone)
    {
      const int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();
      if (groups >= team * kGroups)
        product.share(groups * thread / team * kRows, std::min(M, groups * (thread + 1) / team * kRows), 0, count);
      else
        product.share(0, M, count * thread / team, count * (thread + 1) / team);
    }
  });
}
