// What every kernel shares: dtypes, 16-byte loads and stores, sums over warps and blocks, launches.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <device.cuh>

namespace varsr {

constexpr unsigned kAllLanes = 0xffffffffu;

// --- dtypes: kernels compute in float32 ------------------------------------------------------------------------------

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// Elements of T in 16 bytes.
template <class T>
constexpr int kVector = 16 / sizeof(T);

// Elements a thread takes at a time where it reads In and writes Out: 16 bytes of the narrower.
template <class In, class Out>
constexpr int kCommonVector = kVector<In> > kVector<Out> ? kVector<In> : kVector<Out>;

// --- memory ----------------------------------------------------------------------------------------------------------

template <int kBytes>
using Word = std::conditional_t<kBytes >= 16, uint4, std::conditional_t<kBytes == 8, uint2, uint32_t>>;

// N elements from p, which is aligned to them or to 16 bytes.
template <int N, class T>
__device__ __forceinline__ void load(const T* p, float (&x)[N]) {
  using W = Word<N * sizeof(T)>;
  constexpr int kPer = sizeof(W) / sizeof(T);
  static_assert(N % kPer == 0);
#pragma unroll
  for (int i = 0; i < N / kPer; ++i) {
    const W word = reinterpret_cast<const W*>(p)[i];
    T values[kPer];
    memcpy(values, &word, sizeof(W));
#pragma unroll
    for (int j = 0; j < kPer; ++j) x[i * kPer + j] = to_float(values[j]);
  }
}

template <int N, class T>
__device__ __forceinline__ void store(T* p, const float (&x)[N]) {
  using W = Word<N * sizeof(T)>;
  constexpr int kPer = sizeof(W) / sizeof(T);
  static_assert(N % kPer == 0);
#pragma unroll
  for (int i = 0; i < N / kPer; ++i) {
    T values[kPer];
#pragma unroll
    for (int j = 0; j < kPer; ++j) values[j] = from_float<T>(x[i * kPer + j]);
    W word;
    memcpy(&word, values, sizeof(W));
    reinterpret_cast<W*>(p)[i] = word;
  }
}

template <int N>
__device__ __forceinline__ void fill(float (&x)[N], float value) {
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = value;
}

// --- sums, the same in every lane ------------------------------------------------------------------------------------

// Over groups of `lanes` neighbouring lanes, a power of two.
__device__ __forceinline__ float group_sum(float x, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

// Over a block of whole warps. Two calls in a row need a `scratch` (32 floats in shared memory) each.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
  x = warp_sum(x);
  const int warps = blockDim.x / 32, lane = threadIdx.x % 32;
  if (warps == 1) return x;
  if (lane == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  return warp_sum(lane < warps ? scratch[lane] : 0.f);
}

// --- launches --------------------------------------------------------------------------------------------------------

enum class Dtype : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// f(a value of the type that `dtype` names).
template <class F>
cudaError_t with_dtype(int dtype, F f) {
  switch (static_cast<Dtype>(dtype)) {
    case Dtype::kFloat32: return f(float{});
    case Dtype::kFloat16: return f(__half{});
    case Dtype::kBFloat16: return f(__nv_bfloat16{});
  }
  return cudaErrorInvalidValue;
}

inline int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }
inline int whole_warps(int threads) { return ceil_div(threads, 32) * 32; }

// Whether kernels may start before the one ahead of them in the stream has ended: Hopper, and only when switched on.
extern bool programmatic_launches;

constexpr size_t kSharedWithoutAsking = 48 * 1024;

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, int threads, size_t shared, cudaStream_t stream, A... arguments) {
  if (shared > kSharedWithoutAsking) {
    const cudaError_t status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                    cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
    if (status != cudaSuccess) return status;
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = programmatic_launches ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...);
}

}  // namespace varsr
