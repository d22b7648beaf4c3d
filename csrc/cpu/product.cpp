// Products with a weight: c = a w^T + bias, for a weight in packed panels.
//
// A panel holds kColumns rows of the weight side by side, [K][kColumns]. A thread takes a share of the panels, packs a
// block of rows of `a` into tiles that stay in its second-level cache, and multiplies each panel with all of them while
// the panel's part is in the first. Sums of up to kChunk products come together in registers and are then added to c:
// one running sum over thousands would round worse.
#include <omp.h>

#include "simd.h"

namespace varsr {
namespace {

// Measured on two Zen 5 cores at VARSR's shapes; sums of 384 are 0 to 4 % faster and 20 % less exact.
constexpr int64_t kChunk = 256 / kColumns;   // tiles of kColumns products that one sum takes
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

// c[rows][kColumns] = sums + bias, or c += sums where a sum was begun before.
inline void add_tile(const TileSums& sums, const float* bias, bool begun, int64_t rows, float* c, int64_t width) {
  const Vec zero = broadcast(0.0f);
  const Vec left = bias ? load(bias) : zero, right = bias ? load(bias + kLanes) : zero;
#pragma GCC unroll 14
  for (int row = 0; row < kRows; ++row, c += width) {
    if (row == rows) return;
    store(c, sums.left[row] + (begun ? load(c) : left));
    store(c + kLanes, sums.right[row] + (begun ? load(c + kLanes) : right));
  }
}

struct Product {
  const float *a, *panels, *bias;
  float* c;
  int64_t M, N, K;

  void share(int64_t panel0, int64_t panel1) const {
    static thread_local Scratch<float> scratch;
    const int64_t block = kGroups * kRows, all_tiles = K / kColumns;
    float* packed = scratch.get(std::min(kDepth, all_tiles) * kGroups * kTile);
    for (int64_t first = 0; first < M; first += block)
      for (int64_t tile = 0; tile < all_tiles; tile += kDepth) {
        const int64_t count = std::min(block, M - first), tiles = std::min(kDepth, all_tiles - tile);
        pack_rows(a, K, first, count, tile * kColumns, tiles, packed);
        for (int64_t panel = panel0; panel < panel1; ++panel) multiply(packed, first, count, tile, tiles, panel);
      }
  }

  void multiply(const float* packed, int64_t first, int64_t count, int64_t tile, int64_t tiles, int64_t panel) const {
    for (int64_t start = 0; start < tiles; start += kChunk) {
      const int chunk = static_cast<int>(std::min(kChunk, tiles - start));
      const float* columns = panels + (panel * K + (tile + start) * kColumns) * kColumns;
      for (int64_t row = 0; row < count; row += kRows) {
        TileSums sums;
        multiply_tiles<true>(chunk, packed + (row / kRows * tiles + start) * kTile, columns, sums);
        add_tile(sums, bias ? bias + panel * kColumns : nullptr, tile + start > 0, std::min<int64_t>(kRows, count - row),
                 c + (first + row) * N + panel * kColumns, N);
      }
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

// c (M, N) = a (M, K) w^T + bias; bias may be null. N and K are multiples of the panel width, rows are contiguous.
extern "C" void varsr_cpu_product(const float* a, const float* panels, const float* bias, float* c, int64_t M,
                                  int64_t N, int64_t K) {
  const varsr::Product product{a, panels, bias, c, M, N, K};
  const int64_t count = N / varsr::kColumns;
  const bool alone = 2 * M * N * K < varsr::kMinParallelFlops;
#pragma omp parallel if (!alone)
  {
    const int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();
    product.share(count * thread / team, count * (thread + 1) / team);
  }
}
