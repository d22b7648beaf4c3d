// GroupNorm followed by SiLU over NHWC float32: one pass for the statistics of each group, one that normalises.
#include <omp.h>

#include <cmath>

#include "simd.h"

namespace varsr {
namespace {

constexpr int64_t kChunk =
    512;  // pixels between two steps back; single pixels defeat the prefetcher (2.5 times slower)
constexpr int64_t kSerialValues = 32768;  // below it, waking threads takes longer (about 5 us) than they save

// float64 sums per channel: a large mean cancels in sum(x^2) - sum(x)^2 / n, of which float64 has 29 bits more to give.
struct ChannelSums {
  double *value, *square;
};

void add_vector(Vec x, VecD (&value)[2], VecD (&square)[2]) {
  const VecD halves[2] = {widen_low(x), widen_high(x)};
  for (int h = 0; h < 2; ++h) {
    value[h] = value[h] + halves[h];
    square[h] = fma(halves[h], halves[h], square[h]);
  }
}

// Adds a pixel to the sums, which are padded to a multiple of kLanes channels.
void add_pixel(const float* x, int64_t C, const ChannelSums& sums) {
  for (int64_t c = 0; c < C; c += kLanes) {
    VecD value[2] = {load(sums.value + c), load(sums.value + c + kLanes / 2)};
    VecD square[2] = {load(sums.square + c), load(sums.square + c + kLanes / 2)};
    add_vector(c + kLanes <= C ? load(x + c) : load(x + c, lanes_below(C, c)), value, square);
    for (int h = 0; h < 2; ++h) {
      store(sums.value + c + kLanes / 2 * h, value[h]);
      store(sums.square + c + kLanes / 2 * h, square[h]);
    }
  }
}

struct Norm {
  const float *weight, *bias;
  int64_t HW, C, groups;
  float eps;
};

// Channel c becomes x * scale[c] + shift[c]; `partial` holds the sums of each thread, `stride` doubles apart.
void fold_statistics(const Norm& norm, const double* partial, int64_t threads, int64_t padded, float* scale,
                     float* shift) {
  const int64_t width = norm.C / norm.groups;
  const double count = static_cast<double>(norm.HW * width);
  for (int64_t g = 0; g < norm.groups; ++g) {
    double value = 0, square = 0;
    for (int64_t t = 0; t < threads; ++t)
      for (int64_t c = g * width; c < (g + 1) * width; ++c) {
        value += partial[2 * t * padded + c];
        square += partial[(2 * t + 1) * padded + c];
      }
    const double mean = value / count, variance = std::max(square / count - mean * mean, 0.0);
    const double inverse = 1 / std::sqrt(variance + norm.eps);
    for (int64_t c = g * width; c < (g + 1) * width; ++c) {
      scale[c] = static_cast<float>(norm.weight[c] * inverse);
      shift[c] = static_cast<float>(norm.bias[c] - norm.weight[c] * inverse * mean);
    }
  }
}

template <bool kSilu>
Vec normalize(Vec x, Vec scale, Vec shift) {
  const Vec y = fma(x, scale, shift);
  return kSilu ? y / (broadcast(1.0f) + exp_ps(-y)) : y;
}

template <bool kSilu>
void normalize_pixel(const float* x, float* out, int64_t C, const float* scale, const float* shift) {
  int64_t c = 0;
  for (; c + kLanes <= C; c += kLanes)
    store(out + c, normalize<kSilu>(load(x + c), load(scale + c), load(shift + c)));
  if (c < C) {
    const Mask mask = lanes_below(C, c);
    store(out + c, normalize<kSilu>(load(x + c, mask), load(scale + c), load(shift + c)), mask);
  }
}

template <bool kSilu>
void groupnorm(const float* x, float* out, int64_t B, const Norm& norm) {
  static thread_local Scratch<double> sum_scratch;
  static thread_local Scratch<float> fold_scratch;
  const int64_t C = norm.C, padded = round_up(C, kLanes), size = norm.HW * C;
  const int64_t threads = size < kSerialValues ? 1 : omp_get_max_threads();
  double* partial = sum_scratch.get(2 * threads * padded);
  float* scale = fold_scratch.get(2 * padded);
  float* shift = scale + padded;
  for (int64_t b = 0; b < B; ++b) {
    const float* from = x + b * size;
    float* to = out + b * size;
    std::fill_n(partial, 2 * threads * padded, 0.0);
#pragma omp parallel num_threads(threads)
    {
      // A team can be smaller than asked for, hence the share by its real size.
      const int64_t t = omp_get_thread_num(), team = omp_get_num_threads();
      const int64_t first = norm.HW * t / team, end = norm.HW * (t + 1) / team;
      double* mine = partial + 2 * t * padded;
      for (int64_t p = first; p < end; ++p) add_pixel(from + p * C, C, {mine, mine + padded});
#pragma omp barrier
#pragma omp single
      fold_statistics(norm, partial, team, padded, scale, shift);
      // The last chunk first: the pixels read last are still in the cache.
      for (int64_t last = end; last > first; last -= kChunk)
        for (int64_t p = std::max(first, last - kChunk); p < last; ++p)
          normalize_pixel<kSilu>(from + p * C, to + p * C, C, scale, shift);
    }
  }
}

}  // namespace
}  // namespace varsr

// out = silu(group_norm(x)), or the norm alone; x and out are (B, HW, C), and may be the same.
extern "C" void varsr_cpu_groupnorm_silu(const float* x, const float* weight, const float* bias, float* out, int64_t B,
                                         int64_t HW, int64_t C, int64_t groups, float eps, int64_t silu) {
  const varsr::Norm norm{weight, bias, HW, C, groups, eps};
  (silu ? varsr::groupnorm<true> : varsr::groupnorm<false>)(x, out, B, norm);
}
