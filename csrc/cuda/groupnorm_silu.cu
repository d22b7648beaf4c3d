// groupnorm_silu, channels-last: moments of groups over chunks of pixels, then a sweep that merges them and normalises.
// A thread keeps to 16 bytes of channels and walks over pixels. Each map is read twice and written once.
#include "kernel.cuh"
#include "launchers.h"

namespace varsr {
namespace {

constexpr int kMostThreads = 256;

// How a block lies on a chunk: `columns` threads side by side on a pixel, `rows` pixels at a time.
struct Layout {
  int columns, rows;
  __host__ __device__ int threads() const { return columns * rows; }
};

template <class T>
__host__ __device__ inline Layout layout_of(int C) {
  const int columns = C / kVector<T>;
  return {columns, kMostThreads / columns};
}

// One walk with a running mean: no difference of large numbers, whatever the mean.
template <int N>
struct Moments {
  float mean[N], squares[N];  // sum of squared distances from the mean
  int count = 0;

  __device__ __forceinline__ Moments() {
    fill(mean, 0.f);
    fill(squares, 0.f);
  }
  __device__ __forceinline__ void add(const float (&x)[N]) {
    const float share = 1.f / ++count;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float delta = x[i] - mean[i];
      mean[i] += delta * share;
      squares[i] += delta * (x[i] - mean[i]);
    }
  }
};

template <class T>
__global__ __launch_bounds__(kMostThreads) void group_moments_kernel(const T* __restrict__ x,      // (B, P, C)
                                                                     float* __restrict__ moments,  // (B, chunks, G, 2)
                                                                     int P, int C, int G, int chunk_pixels) {
  constexpr int N = kVector<T>;
  const Layout layout = layout_of<T>(C);
  float* means = dynamic_shared<float>();  // (rows, C)
  float* squares = means + layout.rows * C;
  const int chunk = blockIdx.x, size = C / G;
  const int first = chunk * chunk_pixels, count = min(chunk_pixels, P - first);
  const int column = threadIdx.x % layout.columns, row = threadIdx.x / layout.columns;
  const T* pixels = x + (static_cast<int64_t>(blockIdx.y) * P + first) * C + column * N;

  wait_for_previous_kernel();
  if (row < layout.rows) {  // the last warp may have more threads than the layout
    Moments<N> own;
#pragma unroll 4
    for (int p = row; p < count; p += layout.rows) {
      float values[N];
      load<N>(pixels + static_cast<int64_t>(p) * C, values);
      own.add(values);
    }
    store<N>(means + row * C + column * N, own.mean);
    store<N>(squares + row * C + column * N, own.squares);
  }
  start_next_kernel();
  __syncthreads();

  // A warp merges a group: its channels in every row of threads, each with as many pixels as that row has seen.
  const int lane = threadIdx.x % 32;
  for (int g = threadIdx.x / 32; g < G; g += blockDim.x / 32) {
    float sum = 0.f, spread = 0.f;
    for (int i = lane; i < layout.rows * size; i += 32) {
      const int r = i / size, seen = (count - r + layout.rows - 1) / layout.rows;
      sum += seen * means[r * C + g * size + i % size];
    }
    const float mean = warp_sum(sum) / (static_cast<float>(count) * size);
    for (int i = lane; i < layout.rows * size; i += 32) {
      const int r = i / size, seen = (count - r + layout.rows - 1) / layout.rows, at = r * C + g * size + i % size;
      const float delta = means[at] - mean;
      spread += squares[at] + seen * delta * delta;
    }
    spread = warp_sum(spread);
    if (lane == 0) {
      float* to = moments + ((static_cast<int64_t>(blockIdx.y) * gridDim.x + chunk) * G + g) * 2;
      to[0] = mean;
      to[1] = spread;
    }
  }
}

template <class T, bool kSilu>
__global__ __launch_bounds__(kMostThreads) void group_normalise_kernel(const T* x,  // (B, P, C), which may be `out`
                                                                       const float* __restrict__ moments,
                                                                       const T* __restrict__ weight,  // (C,)
                                                                       const T* __restrict__ bias,    //
                                                                       T* out, int P, int C, int G, int chunk_pixels,
                                                                       int chunks, int block_pixels, float eps) {
  constexpr int N = kVector<T>;
  const Layout layout = layout_of<T>(C);
  float* group_mean = dynamic_shared<float>();  // (G,)
  float* group_rstd = group_mean + G;
  const int size = C / G, lane = threadIdx.x % 32;
  const float* own = moments + static_cast<int64_t>(blockIdx.y) * chunks * G * 2;

  wait_for_previous_kernel();
  for (int g = threadIdx.x / 32; g < G; g += blockDim.x / 32) {
    float sum = 0.f, spread = 0.f;
    for (int c = lane; c < chunks; c += 32) {
      sum += min(chunk_pixels, P - c * chunk_pixels) * own[(static_cast<int64_t>(c) * G + g) * 2];
    }
    const float mean = warp_sum(sum) / P;
    for (int c = lane; c < chunks; c += 32) {
      const float* at = own + (static_cast<int64_t>(c) * G + g) * 2;
      const float delta = at[0] - mean, pixels = min(chunk_pixels, P - c * chunk_pixels);
      spread += at[1] + pixels * size * delta * delta;
    }
    spread = warp_sum(spread);
    if (lane == 0) {
      group_mean[g] = mean;
      group_rstd[g] = rsqrtf(spread / P / size + eps);
    }
  }
  start_next_kernel();
  __syncthreads();

  const int column = threadIdx.x % layout.columns, row = threadIdx.x / layout.columns;
  if (row >= layout.rows) return;
  float mean[N], factor[N], offset[N];
  load<N>(weight + column * N, factor);
  load<N>(bias + column * N, offset);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int g = (column * N + i) / size;
    mean[i] = group_mean[g];
    factor[i] *= group_rstd[g];
  }
  const int first = blockIdx.x * block_pixels, end = min(first + block_pixels, P);
  const int64_t base = static_cast<int64_t>(blockIdx.y) * P * C + column * N;
#pragma unroll 4
  for (int p = first + row; p < end; p += layout.rows) {
    float values[N];
    load<N>(x + base + static_cast<int64_t>(p) * C, values);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      values[i] = (values[i] - mean[i]) * factor[i] + offset[i];
      if (kSilu) values[i] /= 1.f + expf(-values[i]);
    }
    store<N>(out + base + static_cast<int64_t>(p) * C, values);
  }
}

}  // namespace

cudaError_t group_moments(const void* x, float* moments, int B, int P, int C, int G, int chunk_pixels, int dtype,
                          cudaStream_t stream) {
  return with_dtype(dtype, [&](auto value) {
    using T = decltype(value);
    const Layout layout = layout_of<T>(C);
    const size_t shared = static_cast<size_t>(layout.rows) * C * 2 * sizeof(float);
    return launch(group_moments_kernel<T>, dim3(ceil_div(P, chunk_pixels), B), whole_warps(layout.threads()), shared,
                  stream, static_cast<const T*>(x), moments, P, C, G, chunk_pixels);
  });
}

cudaError_t group_normalise(const void* x, const float* moments, const void* weight, const void* bias, void* out,
                            int B, int P, int C, int G, int chunk_pixels, int block_pixels, float eps, bool silu,
                            int dtype, cudaStream_t stream) {
  return with_dtype(dtype, [&](auto value) {
    using T = decltype(value);
    const auto start = [&](auto kernel) {
      return launch(kernel, dim3(ceil_div(P, block_pixels), B), whole_warps(layout_of<T>(C).threads()),
                    size_t(2) * G * sizeof(float), stream, static_cast<const T*>(x), moments,
                    static_cast<const T*>(weight), static_cast<const T*>(bias), static_cast<T*>(out), P, C, G,
                    chunk_pixels, ceil_div(P, chunk_pixels), block_pixels, eps);
    };
    return silu ? start(group_normalise_kernel<T, true>) : start(group_normalise_kernel<T, false>);
  });
}

}  // namespace varsr
