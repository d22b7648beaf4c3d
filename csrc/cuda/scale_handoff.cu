// scale_handoff in float32: one kernel writes f_hat, a row of the map and some channels a block; the next reads all of
// it. The upsampled map is never stored: a block makes the three rows of it under its window.
#include "kernel.cuh"
#include "launchers.h"

namespace varsr {
namespace {

// --- f_hat += (1 - r) h + r phi(h) -----------------------------------------------------------------------------------

constexpr int kThreads = 128;
constexpr int kOutputs = 16;             // channels of f_hat a block, four a warp
constexpr int kOutputStride = 20;        // of a place of the window in shared memory: fewer threads meet in a bank
constexpr int kMostSide = 32;            // p: a lane takes a column

// Floats of a block's shared memory.
struct Parts {
  int up, rows, stretched, phi, total;
};
__host__ __device__ inline Parts parts_of(int Z, int P, int side) {
  Parts at{};
  at.rows = 0;                                       // (3, side, Z): rows y - 1, y, y + 1 before they are stretched
  at.stretched = at.rows + 3 * side * Z;             // (3, Z, P + 3): behind a column of zeros, before another
  at.phi = (at.stretched + 3 * Z * (P + 3) + 3) / 4 * 4;  // (Z, 9, kOutputStride)
  at.up = at.phi + 9 * Z * kOutputStride;            // (P, side)
  at.total = at.up + P * side;
  return at;
}

__global__ __launch_bounds__(kThreads) void handoff_accumulate_kernel(
    const int64_t* __restrict__ tokens,    // (B, side * side)
    const float* __restrict__ codebook,    // (V, Z)
    const float* __restrict__ upsample,    // (P, side)
    const float* __restrict__ phi,         // (Z, Z, 3, 3)
    const float* __restrict__ phi_bias,    // (Z,)
    float ratio, float* __restrict__ f_hat,  // (B, Z, P, P)
    int64_t stride_fb, int64_t stride_fz, int64_t stride_fy, int64_t stride_fx, int Z, int P, int side) {
  const Parts at = parts_of(Z, P, side);
  float* shared = dynamic_shared<float>();
  float *rows = shared + at.rows, *stretched = shared + at.stretched, *window = shared + at.phi, *up = shared + at.up;
  const int y = blockIdx.x, first = blockIdx.y * kOutputs;
  const int64_t b = blockIdx.z;
  const int columns = P + 3;

  wait_for_previous_kernel();
  for (int i = threadIdx.x; i < P * side; i += kThreads) up[i] = upsample[i];
  // r phi + (1 - r): the identity is a window with 1 in its centre.
  for (int i = threadIdx.x; i < kOutputs * 9 * Z; i += kThreads) {
    const int o = i / (9 * Z), place = i % (9 * Z), z = place / 9;
    float w = 0.f;
    if (first + o < Z) {
      w = ratio * phi[static_cast<int64_t>(first + o) * 9 * Z + place];
      if (place % 9 == 4 && z == first + o) w += 1.f - ratio;
    }
    window[place * kOutputStride + o] = w;
  }
  for (int i = threadIdx.x; i < 3 * Z; i += kThreads) {
    stretched[i * columns] = 0.f;
    stretched[i * columns + P + 1] = 0.f;
  }
  // A token's code is read once for the three rows; most of a row's weights are 0.
  for (int i = threadIdx.x; i < side * Z / 4; i += kThreads) {
    const int s = i / (Z / 4), z = i % (Z / 4) * 4;
    float sum[3][4];
#pragma unroll
    for (int r = 0; r < 3; ++r) fill(sum[r], 0.f);
    for (int row = 0; row < side; ++row) {
      float weight[3];
#pragma unroll
      for (int r = 0; r < 3; ++r) {
        const int from = y + r - 1;
        weight[r] = from >= 0 && from < P ? upsample[from * side + row] : 0.f;
      }
      if (weight[0] == 0.f && weight[1] == 0.f && weight[2] == 0.f) continue;
      float code[4];
      load<4>(codebook + tokens[(b * side + row) * side + s] * Z + z, code);
#pragma unroll
      for (int r = 0; r < 3; ++r) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[r][j] += weight[r] * code[j];
      }
    }
#pragma unroll
    for (int r = 0; r < 3; ++r) store<4>(rows + (r * side + s) * Z + z, sum[r]);
  }
  start_next_kernel();
  __syncthreads();

  for (int i = threadIdx.x; i < P * Z; i += kThreads) {
    const int column = i / Z, z = i % Z;
    float sum[3] = {0.f, 0.f, 0.f};
    for (int s = 0; s < side; ++s) {
      const float weight = up[column * side + s];
      if (weight == 0.f) continue;
#pragma unroll
      for (int r = 0; r < 3; ++r) sum[r] += weight * rows[(r * side + s) * Z + z];
    }
#pragma unroll
    for (int r = 0; r < 3; ++r) stretched[(r * Z + z) * columns + column + 1] = sum[r];
  }
  __syncthreads();

  const int column = threadIdx.x % 32, o = threadIdx.x / 32 * 4;
  if (column >= P) return;
  float sum[4] = {0.f, 0.f, 0.f, 0.f};
  for (int z = 0; z < Z; ++z) {
#pragma unroll
    for (int place = 0; place < 9; ++place) {
      const float h = stretched[(place / 3 * Z + z) * columns + column + place % 3];
      float w[4];
      load<4>(window + (z * 9 + place) * kOutputStride + o, w);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j] += w[j] * h;
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int z = first + o + j;
    if (z < Z) f_hat[b * stride_fb + z * stride_fz + y * stride_fy + column * stride_fx] += sum[j] + ratio * phi_bias[z];
  }
}

// --- x = area(f_hat) W^T + b -----------------------------------------------------------------------------------------

constexpr int kEmbedThreads = 256;
constexpr int kBlockC = 256;               // channels a block, four a thread
constexpr int kWeightStride = kBlockC + 4;
constexpr int kTile = 8;                   // columns a thread: 4 groups of threads take the 32 of the widest map

__global__ __launch_bounds__(kEmbedThreads) void handoff_pool_embed_kernel(
    const float* __restrict__ f_hat,  // (B, Z, P, P)
    int64_t stride_fb, int64_t stride_fz, int64_t stride_fy, int64_t stride_fx,
    const float* __restrict__ downsample,  // (next, P)
    const float* __restrict__ weight,      // (C, Z)
    const float* __restrict__ bias,        // (C,)
    float* __restrict__ out,               // (copies, B, next * next, C)
    int Z, int P, int next, int C, int copies) {
  float* weights = dynamic_shared<float>();      // (Z, kWeightStride): transposed, so that a thread's four are neighbours
  float* band = weights + Z * kWeightStride;     // (Z, P): row y, pooled over rows only
  float* pooled = band + Z * kMostSide;          // (next, Z)
  const int first = blockIdx.x * kBlockC, y = blockIdx.y;
  const int64_t b = blockIdx.z;

  wait_for_previous_kernel();
  for (int i = threadIdx.x; i < kBlockC * Z / 4; i += kEmbedThreads) {
    const int c = i / (Z / 4), z = i % (Z / 4) * 4;
    float w[4] = {0.f, 0.f, 0.f, 0.f};
    if (first + c < C) load<4>(weight + static_cast<int64_t>(first + c) * Z + z, w);
#pragma unroll
    for (int j = 0; j < 4; ++j) weights[(z + j) * kWeightStride + c] = w[j];
  }
  for (int i = threadIdx.x; i < Z * P; i += kEmbedThreads) {
    const int z = i / P, column = i % P;
    const float* from = f_hat + b * stride_fb + z * stride_fz + column * stride_fx;
    float sum = 0.f;
    for (int row = 0; row < P; ++row) {
      const float w = downsample[y * P + row];
      if (w != 0.f) sum += w * from[row * stride_fy];
    }
    band[i] = sum;
  }
  start_next_kernel();
  __syncthreads();
  for (int i = threadIdx.x; i < next * Z; i += kEmbedThreads) {
    const int column = i / Z, z = i % Z;
    float sum = 0.f;
    for (int p = 0; p < P; ++p) {
      const float w = downsample[column * P + p];
      if (w != 0.f) sum += w * band[z * P + p];
    }
    pooled[i] = sum;
  }
  __syncthreads();

  const int c = threadIdx.x % (kBlockC / 4) * 4, left = threadIdx.x / (kBlockC / 4) * kTile;
  if (first + c >= C) return;
  float sum[kTile][4], offset[4];
  load<4>(bias + first + c, offset);
#pragma unroll
  for (int i = 0; i < kTile; ++i) fill(sum[i], 0.f);
  for (int z = 0; z < Z; z += 4) {
    float w[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) load<4>(weights + (z + k) * kWeightStride + c, w[k]);
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      if (left + i >= next) break;
      float value[4];
      load<4>(pooled + (left + i) * Z + z, value);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += value[k] * w[k][j];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kTile; ++i) {
    if (left + i >= next) break;
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[i][j] += offset[j];
#pragma unroll 1
    for (int copy = 0; copy < copies; ++copy) {
      const int64_t row = ((static_cast<int64_t>(copy) * gridDim.z + b) * next + y) * next + left + i;
      store<4>(out + row * C + first + c, sum[i]);
    }
  }
}

}  // namespace

cudaError_t handoff_accumulate(const int64_t* tokens, const float* codebook, const float* upsample, const float* phi,
                               const float* phi_bias, float ratio, float* f_hat, int64_t stride_fb, int64_t stride_fz,
                               int64_t stride_fy, int64_t stride_fx, int B, int Z, int P, int side,
                               cudaStream_t stream) {
  const dim3 grid(P, ceil_div(Z, kOutputs), B);
  return launch(handoff_accumulate_kernel, grid, kThreads, parts_of(Z, P, side).total * sizeof(float), stream, tokens,
                codebook, upsample, phi, phi_bias, ratio, f_hat, stride_fb, stride_fz, stride_fy, stride_fx, Z, P,
                side);
}

cudaError_t handoff_pool_embed(const float* f_hat, int64_t stride_fb, int64_t stride_fz, int64_t stride_fy,
                               int64_t stride_fx, const float* downsample, const float* weight, const float* bias,
                               float* out, int B, int Z, int P, int next, int C, int copies, cudaStream_t stream) {
  const dim3 grid(ceil_div(C, kBlockC), next, B);
  const size_t shared = static_cast<size_t>(Z) * (kWeightStride + kMostSide + kMostSide) * sizeof(float);
  return launch(handoff_pool_embed_kernel, grid, kEmbedThreads, shared, stream, f_hat, stride_fb, stride_fz, stride_fy,
                stride_fx, downsample, weight, bias, out, Z, P, next, C, copies);
}

}  // namespace varsr
