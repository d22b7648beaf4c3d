// Helpers of the convolution and normalisation kernels: masks, scratch, and Winograd's 1-D transforms.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace varsr {

constexpr int64_t kLanes = 8;  // floats in an AVX2 register

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// The lanes of a vector at `first` that lie below `count`; all of them for a whole vector.
inline __m256i lanes_below(int64_t count, int64_t first) {
  const int left = static_cast<int>(std::min(count - first, kLanes));
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(left), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

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

// The 1-D algorithm F(M, 3): evaluates at kPoints and infinity; `input` is B^T, `output` is A^T, all scaling is in G.
template <int M>
struct Filter;

template <>
struct Filter<2> {
  static constexpr double kPoints[] = {0, 1, -1};

  static void input(const __m256* d, int s, __m256* v, int t) {
    v[0] = _mm256_sub_ps(d[2 * s], d[0]);
    v[t] = _mm256_add_ps(d[2 * s], d[s]);
    v[2 * t] = _mm256_sub_ps(d[2 * s], d[s]);
    v[3 * t] = _mm256_sub_ps(d[3 * s], d[s]);
  }

  static void output(const __m256* m, int s, __m256* y, int t) {
    y[0] = _mm256_add_ps(m[0], _mm256_add_ps(m[s], m[2 * s]));
    y[t] = _mm256_add_ps(m[3 * s], _mm256_sub_ps(m[s], m[2 * s]));
  }
};

template <>
struct Filter<4> {
  // The usual points 1 and 2 double the error of these, the best of a search over sixteenths for 32 channels; their
  // products are exact in float32.
  static constexpr double kNear = 0.6875, kFar = 1.5;
  static constexpr double kPoints[] = {0, kNear, -kNear, kFar, -kFar};

  static void input(const __m256* d, int s, __m256* v, int t) {
    const __m256 near = _mm256_set1_ps(kNear), far = _mm256_set1_ps(kFar);
    const __m256 near2 = _mm256_set1_ps(kNear * kNear), far2 = _mm256_set1_ps(kFar * kFar);
    const __m256 sum = _mm256_add_ps(near2, far2), product = _mm256_mul_ps(near2, far2);
    const __m256 even_near = _mm256_fnmadd_ps(far2, d[2 * s], d[4 * s]);
    const __m256 odd_near = _mm256_fnmadd_ps(far2, d[s], d[3 * s]);
    const __m256 even_far = _mm256_fnmadd_ps(near2, d[2 * s], d[4 * s]);
    const __m256 odd_far = _mm256_fnmadd_ps(near2, d[s], d[3 * s]);
    v[0] = _mm256_fmadd_ps(product, d[0], _mm256_fnmadd_ps(sum, d[2 * s], d[4 * s]));
    v[t] = _mm256_fmadd_ps(near, odd_near, even_near);
    v[2 * t] = _mm256_fnmadd_ps(near, odd_near, even_near);
    v[3 * t] = _mm256_fmadd_ps(far, odd_far, even_far);
    v[4 * t] = _mm256_fnmadd_ps(far, odd_far, even_far);
    v[5 * t] = _mm256_fmadd_ps(product, d[s], _mm256_fnmadd_ps(sum, d[3 * s], d[5 * s]));
  }

  static void output(const __m256* m, int s, __m256* y, int t) {
    const __m256 sum_near = _mm256_add_ps(m[s], m[2 * s]), sum_far = _mm256_add_ps(m[3 * s], m[4 * s]);
    const __m256 odd_near = _mm256_mul_ps(_mm256_sub_ps(m[s], m[2 * s]), _mm256_set1_ps(kNear));
    const __m256 odd_far = _mm256_mul_ps(_mm256_sub_ps(m[3 * s], m[4 * s]), _mm256_set1_ps(kFar));
    const __m256 near2 = _mm256_set1_ps(kNear * kNear), far2 = _mm256_set1_ps(kFar * kFar);
    y[0] = _mm256_add_ps(m[0], _mm256_add_ps(sum_near, sum_far));
    y[t] = _mm256_add_ps(odd_near, odd_far);
    y[2 * t] = _mm256_fmadd_ps(near2, sum_near, _mm256_mul_ps(far2, sum_far));
    y[3 * t] = _mm256_add_ps(m[5 * s], _mm256_fmadd_ps(near2, odd_near, _mm256_mul_ps(far2, odd_far)));
  }
};

// G: the filter's values at the points, divided by the product of the differences to the other points.
template <int M>
inline void filter_matrix(double (*g)[3]) {
  for (int i = 0; i < M + 1; ++i) {
    const double p = Filter<M>::kPoints[i];
    double scale = 1;
    for (int j = 0; j < M + 1; ++j)
      if (j != i) scale *= p - Filter<M>::kPoints[j];
    for (int k = 0; k < 3; ++k) g[i][k] = (k == 0 ? 1 : k == 1 ? p : p * p) / scale;
  }
  g[M + 1][0] = g[M + 1][1] = 0;
  g[M + 1][2] = 1;
}

}  // namespace varsr
