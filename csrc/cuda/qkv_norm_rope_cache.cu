// qkv_norm_rope_cache behind a library's product: bias, L2 norm, scale, rotation, write to q and into the cache.
// A thread takes 16 bytes of a head, and D / (elements of 16 bytes) neighbouring lanes share a head.
#include "kernel.cuh"
#include "launchers.h"

namespace varsr {
namespace {

constexpr int kThreads = 256;
constexpr float kNormFloor = 1e-12f;

template <class T>
struct Target {
  T* data;  // (B, H, L, D)
  int64_t stride_b, stride_h, stride_l;
};

template <class T>
__global__ __launch_bounds__(kThreads) void qkv_epilogue_kernel(
    const T* __restrict__ product,      // (B * L, parts * H * D)
    const T* __restrict__ bias,         // (parts * H * D,)
    const float* __restrict__ q_scale,  // (H,)
    const float* __restrict__ cos,      // (L, D / 2)
    const float* __restrict__ sin,      //
    Target<T> q, Target<T> k, Target<T> v,
    int total,       // vectors of 16 bytes in the product
    int row_vectors, int L,
    int first_part,  // of q, k, v: the first that the product holds
    int H, int D) {
  constexpr int N = kVector<T>;
  const int index = blockIdx.x * kThreads + threadIdx.x;
  const bool inside = index < total;  // lanes beyond the end take part in the sums
  const int row = inside ? index / row_vectors : 0, column = inside ? index % row_vectors * N : 0;
  const int head = column / D, d = column % D;  // over all parts
  const int part = first_part + head / H, h = head % H;
  const int b = row / L, token = row % L;

  wait_for_previous_kernel();
  float y[N], offset[N];
  load<N>(product + static_cast<int64_t>(row) * row_vectors * N + column, y);
  load<N>(bias + column, offset);
  start_next_kernel();
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    y[i] += offset[i];
    squares += y[i] * y[i];
  }
  squares = group_sum(squares, D / N);
  if (!inside) return;

  if (part < 2) {
    const float factor = (part == 0 ? q_scale[h] : 1.f) / fmaxf(sqrtf(squares), kNormFloor);
    float c[N / 2], s[N / 2];
    const int64_t angle = static_cast<int64_t>(token) * (D / 2) + d / 2;
    load<N / 2>(cos + angle, c);
    load<N / 2>(sin + angle, s);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const float even = y[2 * i] * factor, odd = y[2 * i + 1] * factor;
      y[2 * i] = even * c[i] - odd * s[i];
      y[2 * i + 1] = even * s[i] + odd * c[i];
    }
  }
  const Target<T> target = part == 0 ? q : part == 1 ? k : v;
  store<N>(target.data + b * target.stride_b + h * target.stride_h + token * target.stride_l + d, y);
}

}  // namespace

cudaError_t qkv_norm_rope_cache(const void* product, const void* bias, const float* q_scale, const float* cos,
                                const float* sin, void* q, void* k, void* v, int64_t stride_qb, int64_t stride_qh,
                                int64_t stride_ql, int64_t stride_kb, int64_t stride_kh, int64_t stride_kl,
                                int64_t stride_vb, int64_t stride_vh, int64_t stride_vl, int B, int L, int first_part,
                                int parts, int H, int D, int dtype, cudaStream_t stream) {
  return with_dtype(dtype, [&](auto value) {
    using T = decltype(value);
    const int row_vectors = parts * H * D / kVector<T>, total = B * L * row_vectors;
    const Target<T> to_q{static_cast<T*>(q), stride_qb, stride_qh, stride_ql};
    const Target<T> to_k{static_cast<T*>(k), stride_kb, stride_kh, stride_kl};
    const Target<T> to_v{static_cast<T*>(v), stride_vb, stride_vh, stride_vl};
    return launch(qkv_epilogue_kernel<T>, dim3(ceil_div(total, kThreads)), kThreads, 0, stream,
                  static_cast<const T*>(product), static_cast<const T*>(bias), q_scale, cos, sin, to_q, to_k, to_v,
                  total, row_vectors, L, first_part, H, D);
  });
}

}  // namespace varsr
