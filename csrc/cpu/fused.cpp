// The elementwise passes between matrix products, each in one sweep over memory: what torch needs three to eight for.
// Rows are split between the threads of torch's own OpenMP pool.
#include <cmath>
#include <cstdint>

#include "finish.h"
#include "simd.h"

namespace {

// Rows below which waking a second thread costs more than it saves (measured on two Zen 3 cores: about 5 us a region).
constexpr int64_t kMinFloatsPerThread = 1 << 14;

inline bool worth_threads(int64_t rows, int64_t width) { return rows > 1 && rows * width >= 2 * kMinFloatsPerThread; }

inline float sum_squares(const float* x, int64_t n, float mean) {
  __m256 total = _mm256_setzero_ps();
  for (int64_t i = 0; i < n; i += 8) {
    const __m256 centred = _mm256_sub_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(mean));
    total = _mm256_fmadd_ps(centred, centred, total);
  }
  return varsr::sum(total);
}

inline float sum(const float* x, int64_t n) {
  __m256 total = _mm256_setzero_ps();
  for (int64_t i = 0; i < n; i += 8) total = _mm256_add_ps(total, _mm256_loadu_ps(x + i));
  return varsr::sum(total);
}

// Rotates the pairs (x[2j], x[2j+1]) of eight values by four angles given as cosines and sines.
inline __m256 rotate(__m256 x, const float* cos, const float* sin) {
  const __m128 c = _mm_loadu_ps(cos), s = _mm_loadu_ps(sin);
  const __m256 cc = _mm256_set_m128(_mm_unpackhi_ps(c, c), _mm_unpacklo_ps(c, c));
  const __m256 ss = _mm256_set_m128(_mm_unpackhi_ps(s, s), _mm_unpacklo_ps(s, s));
  return _mm256_addsub_ps(_mm256_mul_ps(x, cc), _mm256_mul_ps(_mm256_permute_ps(x, 0xB1), ss));
}

}  // namespace

extern "C" {

// out[r] = (layer_norm(x[r]) * norm_weight + norm_bias) * (1 + scale[r / rows_per]) + shift[r / rows_per].
// Norm weights may be null. Statistics in two passes over a row that stays in the first-level cache.
void varsr_cpu_modulated_norm(const float* x, const float* norm_weight, const float* norm_bias, const float* scale,
                              const float* shift, int64_t scale_stride, int64_t shift_stride, int64_t rows_per,
                              float* out, int64_t rows, int64_t width, float eps) {
#pragma omp parallel for if (worth_threads(rows, width))
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * width;
    const float* a = scale + r / rows_per * scale_stride;
    const float* b = shift + r / rows_per * shift_stride;
    const float mean = sum(row, width) / width;
    const __m256 m = _mm256_set1_ps(mean);
    const __m256 rstd = _mm256_set1_ps(1.0f / std::sqrt(sum_squares(row, width, mean) / width + eps));
    for (int64_t i = 0; i < width; i += 8) {
      __m256 y = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(row + i), m), rstd);
      if (norm_weight) y = _mm256_fmadd_ps(y, _mm256_loadu_ps(norm_weight + i), _mm256_loadu_ps(norm_bias + i));
      y = _mm256_fmadd_ps(y, _mm256_add_ps(_mm256_set1_ps(1.0f), _mm256_loadu_ps(a + i)), _mm256_loadu_ps(b + i));
      _mm256_storeu_ps(out + r * width + i, y);
    }
  }
}

// What follows a product that torch's library made: out = finished sums (R, N); see finish.h.
void varsr_cpu_finish(const float* sums, const float* bias, int64_t kind, const float* residual, const float* gate,
                      int64_t gate_stride, int64_t rows_per, float* out, int64_t rows, int64_t width) {
  const varsr::Finish finish{bias, residual, gate, gate_stride, rows_per, out, width};
  varsr::for_kind(kind, [&](auto known) {
    constexpr varsr::Kind kKind = decltype(known)::value;
#pragma omp parallel for if (worth_threads(rows, width))
    for (int64_t r = 0; r < rows; ++r) {
      const varsr::Finish::Row to = finish.row<kKind>(r);
      for (int64_t i = 0; i < width; i += 8) finish.store_finished<kKind>(_mm256_loadu_ps(sums + r * width + i), to, i);
    }
  });
}

// One step of the ancestral sampler on rows of Z: eps = (1 + t) cond - t uncond, t = ratio[r / rows_per];
// x0 = clamp(x0_from_x x - x0_from_eps eps, -1, 1); out = mean_from_x0 x0 + mean_from_x x, and without noise no more than
// that; else + e^(log_variance / 2) noise, its variance interpolated by what follows eps in a row of cond.
void varsr_cpu_denoise(const float* cond, int64_t cond_stride, const float* uncond, const float* ratio, const float* x,
                       const float* noise, float* out, int64_t rows, int64_t rows_per, int64_t Z, float x0_from_x,
                       float x0_from_eps, float mean_from_x0, float mean_from_x, float log_beta, float log_beta_tilde) {
  const auto all = [](float value) { return _mm256_set1_ps(value); };
  const __m256 one = all(1.0f), half = all(0.5f);
#pragma omp parallel for if (worth_threads(rows, Z))
  for (int64_t r = 0; r < rows; ++r) {
    const __m256 t = all(ratio[r / rows_per]);
    for (int64_t i = 0; i < Z; i += 8) {
      const float* c = cond + r * cond_stride + i;
      const __m256 state = _mm256_loadu_ps(x + r * Z + i);
      const __m256 eps = (one + t) * _mm256_loadu_ps(c) - t * _mm256_loadu_ps(uncond + r * Z + i);
      const __m256 x0 = varsr::max(-one, varsr::min(one, all(x0_from_x) * state - all(x0_from_eps) * eps));
      __m256 y = all(mean_from_x0) * x0 + all(mean_from_x) * state;
      if (noise) {
        const __m256 upper = (_mm256_loadu_ps(c + Z) + one) * half;
        const __m256 log_variance = upper * all(log_beta) + (one - upper) * all(log_beta_tilde);
        y = varsr::fma(varsr::exp_ps(half * log_variance), _mm256_loadu_ps(noise + r * Z + i), y);
      }
      _mm256_storeu_ps(out + r * Z + i, y);
    }
  }
}

// dst[b, h, l] = source[b, l, h] + bias[h]; where cos is given, normalised to length scale[h] (1 if null) and rotated.
// source (B, L, H, D) contiguous; dst (B, H, L, D) with strides of b and h, rows contiguous.
void varsr_cpu_split_heads(const float* source, const float* bias, const float* scale, const float* cos,
                           const float* sin, float* dst, int64_t B, int64_t L, int64_t H, int64_t D, int64_t stride_b,
                           int64_t stride_h) {
#pragma omp parallel for if (worth_threads(B * L, H * D))
  for (int64_t row = 0; row < B * L; ++row) {
    const int64_t b = row / L, l = row % L;
    for (int64_t h = 0; h < H; ++h) {
      const float* x = source + (row * H + h) * D;
      float* y = dst + b * stride_b + h * stride_h + l * D;
      __m256 squares = _mm256_setzero_ps();
      for (int64_t i = 0; i < D; i += 8) {
        const __m256 value = _mm256_add_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(bias + h * D + i));
        squares = _mm256_fmadd_ps(value, value, squares);
        _mm256_storeu_ps(y + i, value);
      }
      if (!cos) continue;
      const float norm = std::fmax(std::sqrt(varsr::sum(squares)), 1e-12f);
      const __m256 factor = _mm256_set1_ps((scale ? scale[h] : 1.0f) / norm);
      for (int64_t i = 0; i < D; i += 8) {
        const __m256 value = _mm256_mul_ps(_mm256_loadu_ps(y + i), factor);
        _mm256_storeu_ps(y + i, rotate(value, cos + (l * D + i) / 2, sin + (l * D + i) / 2));
      }
    }
  }
}

}  // extern "C"
