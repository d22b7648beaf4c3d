// Winograd's 1-D transforms.
#pragma once

#include "simd.h"

namespace varsr {

// The 1-D algorithm F(M, 3): evaluates at kPoints and infinity; `input` is B^T, `output` is A^T, all scaling is in G.
template <int M>
struct Filter;

template <>
struct Filter<2> {
  static constexpr double kPoints[] = {0, 1, -1};

  static void input(const Vec* d, int s, Vec* v, int t) {
    v[0] = d[2 * s] - d[0];
    v[t] = d[2 * s] + d[s];
    v[2 * t] = d[2 * s] - d[s];
    v[3 * t] = d[3 * s] - d[s];
  }

  static void output(const Vec* m, int s, Vec* y, int t) {
    y[0] = m[0] + (m[s] + m[2 * s]);
    y[t] = m[3 * s] + (m[s] - m[2 * s]);
  }
};

template <>
struct Filter<4> {
  // The usual points 1 and 2 double the error of these, the best of a search over sixteenths for 32 channels; their
  // products are exact in float32.
  static constexpr double kNear = 0.6875, kFar = 1.5;
  static constexpr double kPoints[] = {0, kNear, -kNear, kFar, -kFar};

  static void input(const Vec* d, int s, Vec* v, int t) {
    const Vec near = broadcast(kNear), far = broadcast(kFar);
    const Vec near2 = broadcast(kNear * kNear), far2 = broadcast(kFar * kFar);
    const Vec sum = near2 + far2, product = near2 * far2;
    const Vec even_near = fnma(far2, d[2 * s], d[4 * s]), odd_near = fnma(far2, d[s], d[3 * s]);
    const Vec even_far = fnma(near2, d[2 * s], d[4 * s]), odd_far = fnma(near2, d[s], d[3 * s]);
    v[0] = fma(product, d[0], fnma(sum, d[2 * s], d[4 * s]));
    v[t] = fma(near, odd_near, even_near);
    v[2 * t] = fnma(near, odd_near, even_near);
    v[3 * t] = fma(far, odd_far, even_far);
    v[4 * t] = fnma(far, odd_far, even_far);
    v[5 * t] = fma(product, d[s], fnma(sum, d[3 * s], d[5 * s]));
  }

  static void output(const Vec* m, int s, Vec* y, int t) {
    const Vec sum_near = m[s] + m[2 * s], sum_far = m[3 * s] + m[4 * s];
    const Vec odd_near = (m[s] - m[2 * s]) * broadcast(kNear), odd_far = (m[3 * s] - m[4 * s]) * broadcast(kFar);
    const Vec near2 = broadcast(kNear * kNear), far2 = broadcast(kFar * kFar);
    y[0] = m[0] + (sum_near + sum_far);
    y[t] = odd_near + odd_far;
    y[2 * t] = fma(near2, sum_near, far2 * sum_far);
    y[3 * t] = m[5 * s] + fma(near2, odd_near, far2 * odd_far);
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
