// guided_sample around a library's product: guidance before the head, bias and argmax behind it.
#include "argmax.cuh"
#include "launchers.h"

namespace varsr {
namespace {

constexpr int kThreads = 256;

// (1 + t) cond - t uncond in float32, rounded once: at strong guidance the difference is small.
template <class T>
__global__ __launch_bounds__(kThreads) void guidance_kernel(const float* __restrict__ cond,    // (B, size)
                                                            const float* __restrict__ uncond,  //
                                                            const float* __restrict__ ratio,   // (B,)
                                                            T* __restrict__ out, int vectors) {  // size / N
  constexpr int N = kVector<T>;
  const int index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= vectors) return;
  wait_for_previous_kernel();
  const float t = ratio[blockIdx.y];
  const int64_t at = (static_cast<int64_t>(blockIdx.y) * vectors + index) * N;
  float c[N], u[N], guided[N];
  load<N>(cond + at, c);
  load<N>(uncond + at, u);
#pragma unroll
  for (int i = 0; i < N; ++i) guided[i] = (1.f + t) * c[i] - t * u[i];
  store<N>(out + at, guided);
}

__device__ __forceinline__ uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

__device__ __forceinline__ uint64_t warp_largest(uint64_t key) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    key = larger(key, static_cast<uint64_t>(__shfl_xor_sync(kAllLanes, static_cast<unsigned long long>(key), offset)));
  }
  return key;
}

template <class T>
__global__ __launch_bounds__(kThreads) void bias_argmax_kernel(float* __restrict__ logits,  // (rows, V), + bias in place
                                                               const T* __restrict__ bias,  // (V,)
                                                               int64_t* __restrict__ tokens, int V) {
  VARSR_SHARED(uint64_t, scratch, kThreads / 32);
  float* row = logits + static_cast<int64_t>(blockIdx.x) * V;
  uint64_t best = 0;
  wait_for_previous_kernel();
  if (V % 4 == 0) {  // then every row is 16-byte aligned
    for (int v = threadIdx.x * 4; v < V; v += kThreads * 4) {
      float x[4], offset[4];
      load<4>(row + v, x);
      load<4>(bias + v, offset);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[i] += offset[i];
        best = larger(best, argmax_key(x[i], v + i));
      }
      store<4>(row + v, x);
    }
  } else {
    for (int v = threadIdx.x; v < V; v += kThreads) {
      row[v] += to_float(bias[v]);
      best = larger(best, argmax_key(row[v], v));
    }
  }
  best = warp_largest(best);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int warp = 1; warp < kThreads / 32; ++warp) best = larger(best, scratch[warp]);
  tokens[blockIdx.x] = static_cast<int64_t>(~static_cast<uint32_t>(best));
}

}  // namespace

cudaError_t guidance(const float* cond, const float* uncond, const float* ratio, void* out, int B, int64_t size,
                     int dtype, cudaStream_t stream) {
  return with_dtype(dtype, [&](auto value) {
    using T = decltype(value);
    const int vectors = static_cast<int>(size / kVector<T>);
    const dim3 grid(ceil_div(vectors, kThreads), B);
    return launch(guidance_kernel<T>, grid, kThreads, 0, stream, cond, uncond, ratio, static_cast<T*>(out), vectors);
  });
}

cudaError_t bias_argmax(float* logits, const void* bias, int64_t* tokens, int rows, int V, int dtype,
                        cudaStream_t stream) {
  return with_dtype(dtype, [&](auto value) {
    using T = decltype(value);
    return launch(bias_argmax_kernel<T>, dim3(rows), kThreads, 0, stream, logits, static_cast<const T*>(bias), tokens,
                  V);
  });
}

}  // namespace varsr
