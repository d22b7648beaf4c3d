// AVX2 building blocks that the CPU kernels share.
#pragma once

#include <immintrin.h>

namespace varsr {

inline void transpose_8x8(__m256 (&rows)[8]) {
  __m256 pairs[8], quads[8];
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xEE);
    quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}

inline float sum_ps(__m256 x) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

inline float max_ps(__m256 x) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

// e^x as 2^n * e^r, |r| <= ln(2) / 2, for -87 <= x <= 88, where the exponent fits. Within 1 ulp near 0; taking
// n * ln(2) off in one product, with ln(2) rounded, lets that grow to 2 ulp at |x| = 35 and 5 at the ends.
inline __m256 exp_in_range(__m256 x) {
  const __m256 rounder = _mm256_set1_ps(12582912.0f);  // 1.5 * 2^23: adding it rounds, and leaves n in the low bits
  const __m256 shifted = _mm256_fmadd_ps(x, _mm256_set1_ps(1.44269504f), rounder);
  const __m256 r = _mm256_fnmadd_ps(_mm256_sub_ps(shifted, rounder), _mm256_set1_ps(0.693147181f), x);
  __m256 power = _mm256_set1_ps(0x1.6a4150p-10f);  // minimax of relative error 3e-09, exact at 0
  power = _mm256_fmadd_ps(power, r, _mm256_set1_ps(0x1.1238eap-7f));
  power = _mm256_fmadd_ps(power, r, _mm256_set1_ps(0x1.5558bap-5f));
  power = _mm256_fmadd_ps(power, r, _mm256_set1_ps(0x1.555494p-3f));
  power = _mm256_fmadd_ps(power, r, _mm256_set1_ps(0x1.fffffcp-2f));
  power = _mm256_fmadd_ps(power, r, _mm256_set1_ps(1.0f));
  power = _mm256_fmadd_ps(power, r, _mm256_set1_ps(1.0f));
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(power), exponent));
}

// Limits come first in min and max so that a NaN stays a NaN: they return their second operand then.
inline __m256 exp_ps(__m256 x) {
  return exp_in_range(_mm256_max_ps(_mm256_set1_ps(-87.0f), _mm256_min_ps(_mm256_set1_ps(88.0f), x)));
}

// For x <= 0. Below -80 it stays at e^-80 = 1.8e-35: nothing beside the 1 that the maximum of a softmax contributes,
// yet far enough from the denormals that products with it do not get slow.
inline __m256 exp_nonpositive(__m256 x) { return exp_in_range(_mm256_max_ps(_mm256_set1_ps(-80.0f), x)); }

// 6 x 16 fills the registers: 12 accumulators, two vectors of columns, one broadcast.
constexpr int kRows = 6, kColumns = 16, kTile = kRows * kColumns;

struct TileSums {
  __m256 left[kRows], right[kRows];
};

// sums = rows * panel, for tiles [tile][6][16] of rows and a panel [tile][16][16].
__attribute__((always_inline)) inline void multiply_tiles(int tiles, const float* rows, const float* panel,
                                                          TileSums& sums) {
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) sums.left[row] = sums.right[row] = _mm256_setzero_ps();
  for (int tile = 0; tile < tiles; ++tile, rows += kTile, panel += kColumns * kColumns) {
#pragma GCC unroll 16
    for (int step = 0; step < kColumns; ++step) {
      const __m256 left = _mm256_load_ps(panel + step * kColumns), right = _mm256_load_ps(panel + step * kColumns + 8);
#pragma GCC unroll 6
      for (int row = 0; row < kRows; ++row) {
        const __m256 factor = _mm256_broadcast_ss(rows + row * kColumns + step);
        sums.left[row] = _mm256_fmadd_ps(factor, left, sums.left[row]);
        sums.right[row] = _mm256_fmadd_ps(factor, right, sums.right[row]);
      }
    }
  }
}

}  // namespace varsr
