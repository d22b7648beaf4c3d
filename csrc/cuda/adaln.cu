// adaln: a block holds a row in registers: one read, the mean, then the squared distances from it, one write.
#include "kernel.cuh"
#include "launchers.h"

namespace varsr {
namespace {

constexpr int kMostThreads = 256;

template <class In, class Out, int kChunks>
__global__ __launch_bounds__(kMostThreads) void adaln_kernel(const In* __restrict__ x,      // (rows, C)
                                                             const In* __restrict__ scale,  // (rows / L, C)
                                                             const In* __restrict__ shift,  //
                                                             Out* __restrict__ out,         // (rows, C)
                                                             int64_t stride_scale, int64_t stride_shift, int L, int C,
                                                             float eps) {
  constexpr int N = kCommonVector<In, Out>;
  VARSR_SHARED(float, scratch, 64);
  const int64_t row = blockIdx.x, b = row / L;
  float values[kChunks][N], factor[kChunks][N], offset[kChunks][N];
  float sum = 0.f, squares = 0.f;

  wait_for_previous_kernel();
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int c = (i * blockDim.x + threadIdx.x) * N;
    fill(values[i], 0.f);
    if (c < C) {
      load<N>(x + row * C + c, values[i]);
      load<N>(scale + b * stride_scale + c, factor[i]);
      load<N>(shift + b * stride_shift + c, offset[i]);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) sum += values[i][j];
  }
  start_next_kernel();
  const float mean = block_sum(sum, scratch) / C;

#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    if ((i * blockDim.x + threadIdx.x) * N >= C) continue;  // what lies beyond the row must not enter the variance
#pragma unroll
    for (int j = 0; j < N; ++j) {
      values[i][j] -= mean;
      squares += values[i][j] * values[i][j];
    }
  }
  const float rstd = rsqrtf(block_sum(squares, scratch + 32) / C + eps);

#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int c = (i * blockDim.x + threadIdx.x) * N;
    if (c >= C) continue;
#pragma unroll
    for (int j = 0; j < N; ++j) values[i][j] = values[i][j] * rstd * (1.f + factor[i][j]) + offset[i][j];
    store<N>(out + row * C + c, values[i]);
  }
}

template <class In, class Out>
cudaError_t launch_adaln(const void* x, const void* scale, const void* shift, void* out, int64_t rows, int L, int C,
                         int64_t stride_scale, int64_t stride_shift, float eps, cudaStream_t stream) {
  const int vectors = C / kCommonVector<In, Out>;
  const int threads = vectors < kMostThreads ? whole_warps(vectors) : kMostThreads;
  const auto start = [&](auto kernel) {
    return launch(kernel, dim3(static_cast<unsigned>(rows)), threads, 0, stream, static_cast<const In*>(x),
                  static_cast<const In*>(scale), static_cast<const In*>(shift), static_cast<Out*>(out), stride_scale,
                  stride_shift, L, C, eps);
  };
  if (vectors <= kMostThreads) return start(adaln_kernel<In, Out, 1>);
  if (vectors <= 4 * kMostThreads) return start(adaln_kernel<In, Out, 4>);
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t adaln(const void* x, const void* scale, const void* shift, void* out, int64_t rows, int L, int C,
                  int64_t stride_scale, int64_t stride_shift, float eps, int in_dtype, int out_dtype,
                  cudaStream_t stream) {
  return with_dtype(in_dtype, [&](auto in) {
    using In = decltype(in);
    return with_dtype(out_dtype, [&](auto to) {
      using Out = decltype(to);
      if constexpr (std::is_same_v<In, float> || std::is_same_v<In, Out>) {
        return launch_adaln<In, Out>(x, scale, shift, out, rows, L, C, stride_scale, stride_shift, eps, stream);
      } else {
        return cudaErrorInvalidValue;  // 16-bit rows keep their dtype
      }
    });
  });
}

}  // namespace varsr
