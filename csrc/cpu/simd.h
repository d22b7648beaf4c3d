// Building blocks that the CPU kernels share. Every source is compiled twice, for AVX2 and for AVX-512, into a library
// each: `Vec` is the widest register of the one at hand. Sweeps that memory bounds are written for AVX2's in both.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace varsr {

// `like(x, v)`: v in every lane of a register as wide as x. a + b, a - b and a * b are the compiler's own.
inline __m256 like(__m256, float v) { return _mm256_set1_ps(v); }
inline __m256 fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
inline __m256 fnma(__m256 a, __m256 b, __m256 c) { return _mm256_fnmadd_ps(a, b, c); }
inline __m256 min(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
inline __m256 max(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
inline __m256 div(__m256 a, __m256 b) { return _mm256_div_ps(a, b); }
// -|x|; and `negative` in the lanes where the sign bit of x is set, `positive` in the others.
inline __m256 negative_abs(__m256 x) { return _mm256_or_ps(x, _mm256_set1_ps(-0.0f)); }
inline __m256 by_sign(__m256 x, __m256 negative, __m256 positive) { return _mm256_blendv_ps(positive, negative, x); }
// x * 2^n for n in the low bits of `shifted`.
inline __m256 add_exponent(__m256 x, __m256 shifted) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent));
}
inline float sum(__m256 x) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
inline float max(__m256 x) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

#ifdef __AVX512F__
using Vec = __m512;
using VecD = __m512d;
using Mask = __mmask16;
constexpr int kLanes = 16;
constexpr int kRows = 14;  // of a tile: see multiply_tiles

inline Vec like(Vec, float v) { return _mm512_set1_ps(v); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec negative_abs(Vec x) { return _mm512_or_ps(x, _mm512_set1_ps(-0.0f)); }
inline Vec by_sign(Vec x, Vec negative, Vec positive) {
  return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x)), positive, negative);
}
inline Vec add_exponent(Vec x, Vec shifted) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), exponent));
}
inline float sum(Vec x) { return _mm512_reduce_add_ps(x); }
inline float max(Vec x) { return _mm512_reduce_max_ps(x); }
inline Vec broadcast(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec load(const float* p, Mask mask) { return _mm512_maskz_loadu_ps(mask, p); }
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
inline void store(float* p, Vec x, Mask mask) { _mm512_mask_storeu_ps(p, mask, x); }
inline VecD load(const double* p) { return _mm512_loadu_pd(p); }
inline void store(double* p, VecD x) { _mm512_storeu_pd(p, x); }
inline VecD fma(VecD a, VecD b, VecD c) { return _mm512_fmadd_pd(a, b, c); }
inline VecD widen_low(Vec x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
inline VecD widen_high(Vec x) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)); }
inline Mask first_lanes(int count) { return static_cast<Mask>((1u << count) - 1); }
#else
using Vec = __m256;
using VecD = __m256d;
using Mask = __m256i;
constexpr int kLanes = 8;
constexpr int kRows = 6;

inline Vec broadcast(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec load(const float* p, Mask mask) { return _mm256_maskload_ps(p, mask); }
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
inline void store(float* p, Vec x, Mask mask) { _mm256_maskstore_ps(p, mask, x); }
inline VecD load(const double* p) { return _mm256_loadu_pd(p); }
inline void store(double* p, VecD x) { _mm256_storeu_pd(p, x); }
inline VecD fma(VecD a, VecD b, VecD c) { return _mm256_fmadd_pd(a, b, c); }
inline VecD widen_low(Vec x) { return _mm256_cvtps_pd(_mm256_castps256_ps128(x)); }
inline VecD widen_high(Vec x) { return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)); }
inline Mask first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

// The lanes of a vector at `first` that lie below `count`; all of them for a whole vector.
inline Mask lanes_below(int64_t count, int64_t first) {
  return first_lanes(static_cast<int>(std::min<int64_t>(count - first, kLanes)));
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t n, int64_t multiple) { return ceil_div(n, multiple) * multiple; }

// 64-byte aligned floats or doubles that grow on demand and are reused between calls.
template <typename T>
class Scratch {
 public:
  T* get(int64_t count) {
    if (count > capacity_) {
      // Zeros: rows that only pad a block must not hold denormals, which are slow.
      const auto bytes = static_cast<size_t>(round_up(count * sizeof(T), 64));
      void* fresh = std::aligned_alloc(64, bytes);
      if (!fresh) throw std::bad_alloc();
      std::memset(fresh, 0, bytes);
      data_.reset(static_cast<T*>(fresh));
      capacity_ = count;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t capacity_ = 0;
};

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

// e^x as 2^n * e^r, |r| <= ln(2) / 2, for -87 <= x <= 88, where the exponent fits. Within 1 ulp near 0; taking
// n * ln(2) off in one product, with ln(2) rounded, lets that grow to 2 ulp at |x| = 35 and 5 at the ends.
template <typename V>
inline V exp_in_range(V x) {
  const V rounder = like(x, 12582912.0f);  // 1.5 * 2^23: adding it rounds, and leaves n in the low bits
  const V shifted = fma(x, like(x, 1.44269504f), rounder);
  const V r = fnma(shifted - rounder, like(x, 0.693147181f), x);
  V power = like(x, 0x1.6a4150p-10f);  // minimax of relative error 3e-09, exact at 0
  for (const float term : {0x1.1238eap-7f, 0x1.5558bap-5f, 0x1.555494p-3f, 0x1.fffffcp-2f, 1.0f, 1.0f})
    power = fma(power, r, like(x, term));
  return add_exponent(power, shifted);
}

// Limits come first in min and max so that a NaN stays a NaN: they return their second operand then.
template <typename V>
inline V exp_ps(V x) {
  return exp_in_range(max(like(x, -87.0f), min(like(x, 88.0f), x)));
}

// For x <= 0. Below -80 it stays at e^-80 = 1.8e-35: nothing beside the 1 that the maximum of a softmax contributes,
// yet far enough from the denormals that products with it do not get slow.
template <typename V>
inline V exp_nonpositive(V x) {
  return exp_in_range(max(like(x, -80.0f), x));
}

// 1 / (1 + e^-x), from the exponential of -|x|, which cannot overflow.
template <typename V>
inline V sigmoid(V x) {
  const V one = like(x, 1.0f), decay = exp_nonpositive(negative_abs(x));
  return div(by_sign(x, decay, one), one + decay);
}

template <typename V>
inline V silu(V x) {
  return x * sigmoid(x);
}

// x * sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3): the tanh form of GELU, rearranged to one exponential.
template <typename V>
inline V gelu(V x) {
  return x * sigmoid(like(x, 1.5957691216057308f) * (x + like(x, 0.044715f) * (x * (x * x))));
}

// A tile: 6 x 16 (AVX2) or 14 x 32 (AVX-512) sums fill the registers, beside two vectors of columns and a broadcast.
constexpr int kColumns = 2 * kLanes, kTile = kRows * kColumns;
constexpr int kPrefetch = 16 * kColumns;  // floats ahead in a panel that streams from L2 or beyond: some 100 cycles

inline void prefetch_columns(const float* columns) {
  for (int i = 0; i < kColumns; i += 16) _mm_prefetch(reinterpret_cast<const char*>(columns + i), _MM_HINT_T0);
}

struct TileSums {
  Vec left[kRows], right[kRows];
};

// sums = rows * panel, for tiles [tile][kRows][kColumns] of rows and a panel [tile][kColumns][kColumns], which streams
// from L2 or beyond, or lies in L1.
template <bool kStreams = false>
__attribute__((always_inline)) inline void multiply_tiles(int tiles, const float* rows, const float* panel,
                                                          TileSums& sums) {
#pragma GCC unroll 14
  for (int row = 0; row < kRows; ++row) sums.left[row] = sums.right[row] = broadcast(0.0f);
  for (int tile = 0; tile < tiles; ++tile, rows += kTile, panel += kColumns * kColumns) {
#pragma GCC unroll 16
    for (int step = 0; step < kColumns; ++step) {
      const float* column = panel + step * kColumns;
      const Vec left = load(column), right = load(column + kLanes);
      if (kStreams) prefetch_columns(column + kPrefetch);
#pragma GCC unroll 14
      for (int row = 0; row < kRows; ++row) {
        const Vec factor = broadcast(rows[row * kColumns + step]);
        sums.left[row] = fma(factor, left, sums.left[row]);
        sums.right[row] = fma(factor, right, sums.right[row]);
      }
    }
  }
}

}  // namespace varsr
