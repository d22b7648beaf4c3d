// philox_normal: four normals a thread, from one counter.
#include "launchers.h"
#include "philox.cuh"

namespace varsr {
namespace {

constexpr int kThreads = 256;

__global__ __launch_bounds__(kThreads) void philox_normal_kernel(const int64_t* __restrict__ seeds,      // (B,)
                                                                 const int64_t* __restrict__ positions,  // (B, N)
                                                                 const float* __restrict__ std,  // (B,), or null
                                                                 float* __restrict__ out,  // (steps, B, N, count)
                                                                 int B, int N, int count, int64_t stride_seed,
                                                                 int64_t stride_pb, int64_t stride_pn,
                                                                 uint32_t first_step, uint32_t stream_id) {
  const int groups = (count + 3) / 4;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, b = blockIdx.y % B;
  const uint32_t step = first_step + blockIdx.y / B;
  if (index >= static_cast<int64_t>(N) * groups) return;
  const int64_t n = index / groups;
  const int group = static_cast<int>(index % groups);
  wait_for_previous_kernel();
  const uint32_t position = static_cast<uint32_t>(positions[b * stride_pb + n * stride_pn]);
  float normal[4];
  normals_of_words(philox_words(static_cast<uint64_t>(seeds[b * stride_seed]), group, position, step, stream_id),
                   normal);
  const float deviation = std == nullptr ? 1.f : std[b];
#pragma unroll
  for (int i = 0; i < 4; ++i) normal[i] *= deviation;
  float* to = out + (static_cast<int64_t>(blockIdx.y) * N + n) * count + 4 * group;
  if (count % 4 == 0) {
    store<4>(to, normal);
  } else {
    for (int i = 0; i < 4 && 4 * group + i < count; ++i) to[i] = normal[i];
  }
}

}  // namespace

cudaError_t philox_normal(const int64_t* seeds, const int64_t* positions, const float* std, float* out, int steps, int B,
                          int N, int count, int64_t stride_seed, int64_t stride_pb, int64_t stride_pn,
                          uint32_t first_step, uint32_t stream_id, cudaStream_t stream) {
  const dim3 grid(ceil_div(static_cast<int64_t>(N) * ceil_div(count, 4), kThreads), steps * B);
  return launch(philox_normal_kernel, grid, kThreads, 0, stream, seeds, positions, std, out, B, N, count, stride_seed,
                stride_pb, stride_pn, first_step, stream_id);
}

}  // namespace varsr
