// refiner_update: final layer, guidance, posterior and noise of a few tokens in one block. The normalised rows of both
// branches lie in shared memory, in the weights' dtype; a warp multiplies them with eight output channels at a time.
#include "launchers.h"
#include "philox.cuh"

namespace varsr {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTokens = 8;         // a block: with both branches the 16 rows of a tensor core's tile
constexpr int kRows = 2 * kTokens;
constexpr int kLaneElements = 8;   // of a row that a lane takes at a time
constexpr int kChunk = 32 * kLaneElements;
constexpr int kMostOutputs = 128;  // 2 Z

struct Step {
  float x0_from_x, x0_from_eps, mean_from_x0, mean_from_x, log_beta, log_beta_tilde;
};

struct Draw {  // of noise, where `noise` is null
  const int64_t *seeds, *positions;
  const float* std;
  int64_t stride_pb, stride_pn;
  uint32_t step, stream;
};

// Elements from one row in shared memory to the next: eight lanes that read 16 bytes of two rows meet in no bank.
template <class T>
__host__ __device__ constexpr int row_stride(int W) {
  return sizeof(T) == 2 ? (W + 63) / 64 * 64 + 32 : W + 4;
}

// Row `row` of shared memory: layer_norm(hidden) * (1 + scale) + shift. By one warp.
template <class T, class M, int kChunks>
__device__ __forceinline__ void normalise_row(const float* hidden, const M* scale, const M* shift, T* row, int W,
                                              float eps) {
  constexpr int N = kLaneElements;
  const int lane = threadIdx.x % 32;
  float values[kChunks][N];
  float sum = 0.f, squares = 0.f;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int c = i * kChunk + lane * N;
    fill(values[i], 0.f);
    if (c < W) load<N>(hidden + c, values[i]);
#pragma unroll
    for (int j = 0; j < N; ++j) sum += values[i][j];
  }
  const float mean = warp_sum(sum) / W;
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    if (i * kChunk + lane * N >= W) continue;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      values[i][j] -= mean;
      squares += values[i][j] * values[i][j];
    }
  }
  const float rstd = rsqrtf(warp_sum(squares) / W + eps);
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int c = i * kChunk + lane * N;
    if (c >= W) continue;
    float factor[N], offset[N];
    load<N>(scale + c, factor);
    load<N>(shift + c, offset);
#pragma unroll
    for (int j = 0; j < N; ++j) values[i][j] = values[i][j] * rstd * (1.f + factor[j]) + offset[j];
    store<N>(row + c, values[i]);
  }
}

// predicted[row][o] = rows[row] . weight[o], by tensor cores: a warp takes 8 channels of all 16 rows. The order of k
// inside 32 is free as long as both operands keep to it: a lane's 16 bytes are its pairs of two steps.
template <class T>
__device__ __forceinline__ void multiply(const T* rows, const T* weight, float* predicted, int outputs, int W) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, stride = row_stride<T>(W);
  for (int n = threadIdx.x / 32 * 8; n < outputs; n += kWarps * 8) {
    const T* column = weight + static_cast<int64_t>(n + g) * W + 8 * t;
    const T* upper = rows + g * stride + 8 * t;
    const T* lower = upper + 8 * stride;
    float acc[4] = {0.f, 0.f, 0.f, 0.f}, other[4] = {0.f, 0.f, 0.f, 0.f};  // two sums: none waits for the other
#pragma unroll 4
    for (int k = 0; k < W; k += 32) {
      const uint4 w = *reinterpret_cast<const uint4*>(column + k);
      const uint4 a = *reinterpret_cast<const uint4*>(upper + k), b = *reinterpret_cast<const uint4*>(lower + k);
      mma_16x8x16(acc, {a.x, b.x, a.y, b.y}, {w.x, w.y}, T{});
      mma_16x8x16(other, {a.z, b.z, a.w, b.w}, {w.z, w.w}, T{});
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) predicted[(g + i / 2 * 8) * kMostOutputs + n + 2 * t + i % 2] = acc[i] + other[i];
  }
}

// The same in float32, for those who want it: a thread takes one channel of one row.
template <>
__device__ __forceinline__ void multiply<float>(const float* rows, const float* weight, float* predicted, int outputs,
                                                int W) {
  for (int i = threadIdx.x; i < kRows * outputs; i += kThreads) {
    const int row = i % kRows, n = i / kRows;
    float acc[4] = {0.f, 0.f, 0.f, 0.f};
    for (int k = 0; k < W; k += 4) {
      float a[4], w[4];
      load<4>(rows + row * row_stride<float>(W) + k, a);
      load<4>(weight + static_cast<int64_t>(n) * W + k, w);
#pragma unroll
      for (int j = 0; j < 4; ++j) acc[j] += a[j] * w[j];
    }
    predicted[row * kMostOutputs + n] = (acc[0] + acc[1]) + (acc[2] + acc[3]);
  }
}

// Two blocks a multiprocessor, which shared memory allows anyway: left alone, ptxas spills a register to fit more.
template <class T, class M, int kChunks>
__global__ __launch_bounds__(kThreads, 2) void refiner_update_kernel(const float* __restrict__ hidden,  // (2, tokens, W)
                                                                  const M* __restrict__ shift,       //
                                                                  const M* __restrict__ scale,       //
                                                                  const T* __restrict__ weight,      // (2Z, W)
                                                                  const T* __restrict__ bias,        // (2Z,)
                                                                  const float* __restrict__ x,       // (tokens, Z)
                                                                  const float* __restrict__ ratio,   // (B,)
                                                                  const float* __restrict__ noise,   // (tokens, Z)
                                                                  Draw draw, float* __restrict__ out,
                                                                  int64_t stride_shift, int64_t stride_scale,
                                                                  int tokens, int N, int W, int Z, float eps, Step s,
                                                                  bool last) {
  T* rows = dynamic_shared<T>();
  float* predicted = reinterpret_cast<float*>(rows + kRows * row_stride<T>(W));
  const int first = blockIdx.x * kTokens, warp = threadIdx.x / 32;
  wait_for_previous_kernel();
  if (first + warp < tokens) {  // rows beyond the last token stay as they are: a row's products are its own
#pragma unroll
    for (int branch = 0; branch < 2; ++branch) {
      const int64_t row = static_cast<int64_t>(branch) * tokens + first + warp;
      normalise_row<T, M, kChunks>(hidden + row * W, scale + row * stride_scale, shift + row * stride_shift,
                                   rows + (branch * kTokens + warp) * row_stride<T>(W), W, eps);
    }
  }
  start_next_kernel();
  __syncthreads();
  multiply<T>(rows, weight, predicted, last ? Z : 2 * Z, W);  // the last step has no variance
  __syncthreads();

  for (int i = threadIdx.x; i < kTokens * Z / 4; i += kThreads) {
    const int local = i / (Z / 4), z = i % (Z / 4) * 4, token = first + local;
    if (token >= tokens) continue;
    const int b = token / N;
    const float t = ratio[b];
    const int64_t place = static_cast<int64_t>(token) * Z + z;
    float now[4], offset[4], mean[4];
    load<4>(x + place, now);
    load<4>(bias + z, offset);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float cond = predicted[local * kMostOutputs + z + j] + offset[j];
      const float uncond = predicted[(kTokens + local) * kMostOutputs + z + j] + offset[j];
      const float guided = (1.f + t) * cond - t * uncond;
      const float x0 = fminf(fmaxf(s.x0_from_x * now[j] - s.x0_from_eps * guided, -1.f), 1.f);
      mean[j] = s.mean_from_x0 * x0 + s.mean_from_x * now[j];
    }
    if (!last) {
      float normal[4];
      if (noise != nullptr) {
        load<4>(noise + place, normal);
      } else {
        const int64_t n = token % N;
        const uint32_t position = static_cast<uint32_t>(draw.positions[b * draw.stride_pb + n * draw.stride_pn]);
        normals_of_words(philox_words(draw.seeds[b], z / 4, position, draw.step, draw.stream), normal);
        const float deviation = draw.std == nullptr ? 1.f : draw.std[b];
#pragma unroll
        for (int j = 0; j < 4; ++j) normal[j] *= deviation;
      }
      load<4>(bias + Z + z, offset);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float upper = (predicted[local * kMostOutputs + Z + z + j] + offset[j] + 1.f) / 2.f;
        mean[j] += expf(0.5f * (upper * s.log_beta + (1.f - upper) * s.log_beta_tilde)) * normal[j];
      }
    }
    store<4>(out + place, mean);
  }
}

}  // namespace

cudaError_t refiner_update(const float* hidden, const void* shift, const void* scale, const void* weight,
                           const void* bias, const float* x, const float* ratio, const float* noise,
                           const int64_t* seeds, const int64_t* positions, const float* std, float* out,
                           int64_t stride_shift, int64_t stride_scale, int64_t stride_pb, int64_t stride_pn, int B,
                           int N, int W, int Z, float eps, float x0_from_x, float x0_from_eps, float mean_from_x0,
                           float mean_from_x, float log_beta, float log_beta_tilde, bool last, uint32_t step,
                           uint32_t stream_id, int weight_dtype, int modulation_dtype, cudaStream_t stream) {
  const Step s{x0_from_x, x0_from_eps, mean_from_x0, mean_from_x, log_beta, log_beta_tilde};
  const Draw draw{seeds, positions, std, stride_pb, stride_pn, step, stream_id};
  return with_dtype(weight_dtype, [&](auto weight_value) {
    using T = decltype(weight_value);
    return with_dtype(modulation_dtype, [&](auto modulation_value) {
      using M = decltype(modulation_value);
      if constexpr (std::is_same_v<M, float> || std::is_same_v<M, T>) {
        const auto start = [&](auto kernel) {
          const size_t shared = kRows * row_stride<T>(W) * sizeof(T) + kRows * kMostOutputs * sizeof(float);
          return launch(kernel, dim3(ceil_div(B * N, kTokens)), kThreads, shared, stream, hidden,
                        static_cast<const M*>(shift), static_cast<const M*>(scale), static_cast<const T*>(weight),
                        static_cast<const T*>(bias), x, ratio, noise, draw, out, stride_shift, stride_scale, B * N, N,
                        W, Z, eps, s, last);
        };
        if (W <= kChunk) return start(refiner_update_kernel<T, M, 1>);
        if (W <= 4 * kChunk) return start(refiner_update_kernel<T, M, 4>);
      }
      return cudaErrorInvalidValue;
    });
  });
}

}  // namespace varsr
