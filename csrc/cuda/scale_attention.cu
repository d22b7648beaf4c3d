// scale_attention by mma.sync, for every shape and both architectures: four warps share blocks of 64 keys and values,
// which cp.async brings ahead. Few queries: 16 rows, of which each warp takes a quarter of the keys; else 16 rows each.
#include "launchers.h"
#include "scale_attention.cuh"

namespace varsr {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kKeys = 64;                                         // of a block
constexpr int kRowBytes = 128, kBlockBytes = kKeys * kRowBytes;   // of keys, or of values
constexpr int kStages = 3, kShared = kStages * 2 * kBlockBytes;   // 48 KiB: as much as needs no asking
constexpr int kBlocksResident = 3;                                // a multiprocessor; an A100's memory has room for no more

// Where chunk `chunk` of 16 bytes of a row lies: eight rows of a matrix meet in no bank.
__device__ __forceinline__ int place_of(int row, int chunk) { return row * kRowBytes + ((chunk ^ (row % 8)) << 4); }

template <class T>
__device__ __forceinline__ void copy_block(unsigned char* to, const T* from, int64_t stride, int first, int S) {
#pragma unroll
  for (int i = 0; i < kKeys * 8 / kThreads; ++i) {
    const int row = threadIdx.x / 8 + i * (kThreads / 8), chunk = threadIdx.x % 8, key = first + row;
    const bool inside = key < S;
    copy_async(to + place_of(row, chunk), from + (inside ? key : 0) * stride + chunk * 8, inside);
  }
}

// The warp's keys own..own + kOwn - 1 of a block that lies in shared memory, of which `first` is the number of the first.
template <int kOwn, class T, bool kStatic>
__device__ __forceinline__ void attend(Attended<T, kStatic>& rows, const uint32_t (&q)[kHeadDim / 16][4],
                                       const unsigned char* keys, const unsigned char* values, int own, int first,
                                       int S) {
  const int lane = threadIdx.x % 32;
  float s[kOwn / 2];
  fill(s, 0.f);
#pragma unroll
  for (int j = 0; j < kOwn / 8; ++j) {
    float(&eight)[4] = *reinterpret_cast<float(*)[4]>(s + 4 * j);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t k[4];
      load_matrices(k, keys + place_of(own + 8 * j + lane % 8, 4 * half + lane / 8));
      mma_16x8x16(eight, q[2 * half], {k[0], k[1]}, T{});
      mma_16x8x16(eight, q[2 * half + 1], {k[2], k[3]}, T{});
    }
  }
  if (first + kKeys > S) hide_keys(s, first + own, S);
  uint32_t p[kOwn / 16][4];
  float shrink[2];
  rows.weigh(s, shrink);
  rows.rescale(shrink);
  rows.pack(s, p);
#pragma unroll
  for (int step = 0; step < kOwn / 16; ++step) {
#pragma unroll
    for (int pair = 0; pair < kHeadDim / 16; ++pair) {
      uint32_t v[4];
      const int row = own + 16 * step + lane / 8 % 2 * 8 + lane % 8;
      load_matrices_transposed(v, values + place_of(row, 2 * pair + lane / 16));
      mma_16x8x16(*reinterpret_cast<float(*)[4]>(rows.acc + 8 * pair), p[step], {v[0], v[1]}, T{});
      mma_16x8x16(*reinterpret_cast<float(*)[4]>(rows.acc + 8 * pair + 4), p[step], {v[2], v[3]}, T{});
    }
  }
}

template <class T, bool kStatic, int kRowWarps>
__global__ __launch_bounds__(kThreads, kBlocksResident) void scale_attention_kernel(AttentionArguments<T> a,
                                                                                   Line line) {
  constexpr int kOwn = kKeys / (kWarps / kRowWarps), kRows = 16 * kRowWarps;
  unsigned char* stages = dynamic_shared<unsigned char>();
  const int warp = threadIdx.x / 32, own = kRowWarps == 1 ? warp * kOwn : 0, range = blockIdx.x;
  wait_for_previous_kernel();
  start_next_kernel();
  const int end = line.begin(range + 1);
  for (int unit = line.begin(range); unit < end;) {
    const Item item = item_at(line, unit, end);
    unit += item.last - item.first;
    const int head = item.tile / a.row_tiles, h = head % a.H, b = head / a.H;
    const int row = item.tile % a.row_tiles * kRows + (kRowWarps == 1 ? 0 : 16 * warp);
    const bool active = row < a.L;  // a warp beyond the last row helps to copy
    const T* keys = a.k + b * a.stride_kb + h * a.stride_kh;
    const T* values = a.v + b * a.stride_vb + h * a.stride_vh;
    const auto copy = [&](int block) {
      if (block < item.last) {
        unsigned char* stage = stages + (block - item.first) % kStages * 2 * kBlockBytes;
        copy_block(stage, keys, a.stride_kl, block * kKeys, a.S);
        copy_block(stage + kBlockBytes, values, a.stride_vl, block * kKeys, a.S);
      }
      copy_commit();
    };
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) copy(item.first + i);
    uint32_t q[kHeadDim / 16][4];
    load_queries(q, a, b, h, row);
    Attended<T, kStatic> rows;
    rows.start(a.bound, h);
    for (int block = item.first; block < item.last; ++block) {
      copy_wait<kStages - 2>();
      __syncthreads();  // everyone's copies of this block are there, and the block before it is read
      copy(block + kStages - 1);
      const unsigned char* stage = stages + (block - item.first) % kStages * 2 * kBlockBytes;
      if (active) attend<kOwn>(rows, q, stage, stage + kBlockBytes, own, block * kKeys, a.S);
    }
    copy_wait<0>();
    __syncthreads();  // the stages are free: for the next item, or for parts
    if constexpr (kRowWarps == 1) {
      float4* parts = reinterpret_cast<float4*>(stages);
      if (warp > 0) rows.store_part(parts + (warp - 1) * 32 * rows.kFloats4);
      __syncthreads();
      if (warp == 0) {
#pragma unroll 1
        for (int i = 0; i < kWarps - 1; ++i) rows.template add_part<false>(parts + i * 32 * rows.kFloats4);
        finish<1>(rows, a, line, item, range, 0, row);
      }
      __syncthreads();
    } else if (active) {
      finish<kRowWarps>(rows, a, line, item, range, warp, row);
    }
  }
}

}  // namespace

cudaError_t scale_attention(const void* q, const void* k, const void* v, const float* bound, void* out, void* parts,
                            int* counters, int64_t stride_qb, int64_t stride_qh, int64_t stride_ql, int64_t stride_kb,
                            int64_t stride_kh, int64_t stride_kl, int64_t stride_vb, int64_t stride_vh,
                            int64_t stride_vl, int64_t stride_ob, int64_t stride_ol, int B, int H, int L, int S,
                            int rows, int ranges, int dtype, cudaStream_t stream) {
  return with_attention(dtype, bound != nullptr, [&](auto value, auto bounded) {
    using T = decltype(value);
    constexpr bool kStatic = decltype(bounded)::value;
    const int row_tiles = ceil_div(L, rows), blocks = ceil_div(S, kKeys);
    const AttentionArguments<T> a{static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v), bound,
                                  static_cast<T*>(out), static_cast<float4*>(parts), counters, stride_qb, stride_qh,
                                  stride_ql, stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl,
                                  stride_ob, stride_ol, H, L, S, row_tiles};
    const Line line{B * H * row_tiles * blocks, blocks, ranges};
    const auto start = [&](auto kernel) { return launch(kernel, dim3(ranges), kThreads, kShared, stream, a, line); };
    if (rows == 16) return start(scale_attention_kernel<T, kStatic, 1>);
    if (rows == 16 * kWarps) return start(scale_attention_kernel<T, kStatic, kWarps>);
    return cudaErrorInvalidValue;
  });
}

}  // namespace varsr
