// The compiled tiles of product_sm90.cuh, and what fits them: see kernels/cuda_product.py, which chooses among them.
// None has run on a GPU: no op takes them.
#include "launchers.h"
#include "product_sm90.cuh"

namespace varsr {
namespace {

// What a shape may choose from, by 1000 * rows + columns. Each costs seconds to compile.
template <class T, int... kTiles, class F>
cudaError_t with_tile(int tile, std::integer_sequence<int, kTiles...>, F f) {
  cudaError_t status = cudaErrorInvalidValue;
  const auto try_one = [&](auto t) {
    constexpr int kTile = decltype(t)::value;
    if (tile == kTile) status = f(Tile<T, kTile / 1000 / 64, kTile % 1000>{});
  };
  (try_one(std::integral_constant<int, kTiles>{}), ...);
  return status;
}

using PlainTiles = std::integer_sequence<int, 128128, 128160, 192128, 192144>;
using GatedTiles = std::integer_sequence<int, 128112, 128128, 192128>;
using QkvTiles = std::integer_sequence<int, 128128, 128192, 192128>;
using HeadTiles = std::integer_sequence<int, 128128>;
using NarrowTiles = std::integer_sequence<int, 128128, 192128>;  // e4m3

// f(a value of the type): float16 or bfloat16.
template <class F>
cudaError_t with_half(int dtype, F f) {
  if (dtype == static_cast<int>(Dtype::kFloat16)) return f(__half{});
  if (dtype == static_cast<int>(Dtype::kBFloat16)) return f(__nv_bfloat16{});
  return cudaErrorInvalidValue;
}

constexpr int kThreads = 256;

__global__ __launch_bounds__(kThreads) void tokens_of_keys_kernel(const unsigned long long* keys, int64_t* tokens,
                                                                  int M) {
  wait_for_previous_kernel();
  const int row = blockIdx.x * kThreads + threadIdx.x;
  if (row < M) tokens[row] = static_cast<int64_t>(~static_cast<uint32_t>(keys[row]));
}

}  // namespace

cudaError_t product_sm90(const void* x, const void* weight, const void* bias, void* out, const float* row_scale,
                         const float* column_scale, int M, int N, int K, bool gelu, bool e4m3, int dtype, int tile,
                         int multiprocessors, cudaStream_t stream) {
  return with_half(dtype, [&](auto value) {
    using Out = decltype(value);
    const auto run = [&](auto chosen) {
      const auto with = [&](auto epilogue) {
        return launch_product<decltype(chosen)>(x, weight, M, N, K, multiprocessors, epilogue, stream);
      };
      const Bounds bounds{M, N};
      const auto* b = static_cast<const Out*>(bias);
      auto* to = static_cast<Out*>(out);
      if (gelu) return with(BiasEpilogue<Out, Out, true>{bounds, b, to, row_scale, column_scale});
      return with(BiasEpilogue<Out, Out, false>{bounds, b, to, row_scale, column_scale});
    };
    if (e4m3) return with_tile<__nv_fp8_e4m3>(tile, NarrowTiles{}, run);
    return with_tile<Out>(tile, PlainTiles{}, run);
  });
}

cudaError_t product_gated_residual_sm90(const void* x, const void* weight, const void* bias, const float* gate,
                                        const float* residual, float* out, int64_t stride_gate, int L, int M, int N,
                                        int K, int dtype, int tile, int multiprocessors, cudaStream_t stream) {
  return with_half(dtype, [&](auto value) {
    using T = decltype(value);
    const GatedResidualEpilogue<T> epilogue{{M, N}, static_cast<const T*>(bias), gate, residual, out, stride_gate, L};
    return with_tile<T>(tile, GatedTiles{}, [&](auto chosen) {
      return launch_product<decltype(chosen)>(x, weight, M, N, K, multiprocessors, epilogue, stream);
    });
  });
}

cudaError_t product_qkv_sm90(const void* x, const void* weight, const void* bias, const float* q_scale,
                             const float* cos, const float* sin, void* q, void* k, void* v, int64_t stride_qb,
                             int64_t stride_qh, int64_t stride_ql, int64_t stride_kb, int64_t stride_kh,
                             int64_t stride_kl, int64_t stride_vb, int64_t stride_vh, int64_t stride_vl, int M, int L,
                             int first_query, int H, int dtype, int tile, int multiprocessors, cudaStream_t stream) {
  constexpr int D = 64;
  return with_half(dtype, [&](auto value) {
    using T = decltype(value);
    const QkvEpilogue<T, D> epilogue{{M, 3 * H * D},
                                     static_cast<const T*>(bias),
                                     q_scale,
                                     cos,
                                     sin,
                                     static_cast<T*>(q),
                                     static_cast<T*>(k),
                                     static_cast<T*>(v),
                                     {{stride_qb, stride_qh, stride_ql},
                                      {stride_kb, stride_kh, stride_kl},
                                      {stride_vb, stride_vh, stride_vl}},
                                     L,
                                     first_query,
                                     H};
    return with_tile<T>(tile, QkvTiles{}, [&](auto chosen) {
      return launch_product<decltype(chosen)>(x, weight, M, 3 * H * D, H * D, multiprocessors, epilogue, stream);
    });
  });
}

cudaError_t product_argmax_sm90(const void* x, const void* weight, const void* bias, float* logits, uint64_t* keys,
                                int64_t* tokens, int M, int N, int K, int dtype, int tile, int multiprocessors,
                                cudaStream_t stream) {
  return with_half(dtype, [&](auto value) {
    using T = decltype(value);
    auto* own = reinterpret_cast<unsigned long long*>(keys);
    const ArgmaxEpilogue<T> epilogue{{M, N}, static_cast<const T*>(bias), logits, own};
    const cudaError_t status = with_tile<T>(tile, HeadTiles{}, [&](auto chosen) {
      return launch_product<decltype(chosen)>(x, weight, M, N, K, multiprocessors, epilogue, stream);
    });
    if (status != cudaSuccess) return status;
    return launch(tokens_of_keys_kernel, dim3(ceil_div(M, kThreads)), kThreads, 0, stream, own, tokens, M);
  });
}

}  // namespace varsr
