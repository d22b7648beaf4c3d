// What both kernels of scale_attention share: the work's division, the softmax of a warp's 16 rows, parts that add up.
#pragma once

#include "kernel.cuh"

namespace varsr {

constexpr int kHeadDim = 64;
constexpr float kLog2E = 1.4426950408889634f;
// With a bound b, weights are 2^14 exp(s - b) in float16, which keeps them normal numbers; bfloat16 has the exponents.
template <class T>
constexpr float kHeadroom = std::is_same_v<T, __half> ? 14.f : 0.f;

template <class T>
struct AttentionArguments {
  const T *q, *k, *v;  // (B, H, L or S, 64)
  const float* bound;  // (H,) if static
  T* out;              // (B, L, H * 64) in rows
  float4* parts;       // of tiles that several blocks share: see store_part
  int* counters;       // zeros, one a warp's rows of a tile
  int64_t stride_qb, stride_qh, stride_ql, stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl;
  int64_t stride_ob, stride_ol;
  int H, L, S, row_tiles;
};

// All work in a line, tile behind tile, of each the blocks of keys one after the other: cut into equal `ranges`, one a
// block of threads. However many tiles there are, all multiprocessors then have the same number of blocks to within one.
struct Line {
  int units, blocks, ranges;  // blocks: of keys, a tile; units: tiles * blocks, at least `ranges`

  __device__ __forceinline__ int begin(int range) const {
    return static_cast<int>(static_cast<int64_t>(units) * range / ranges);
  }
  __device__ __forceinline__ int range_of(int unit) const {
    return static_cast<int>((static_cast<int64_t>(unit + 1) * ranges - 1) / units);
  }
};

// The part of a range that lies in one tile: blocks first..last - 1 of its keys.
struct Item {
  int tile, first, last;
};
__device__ __forceinline__ Item item_at(const Line& line, int unit, int end) {
  const int tile = unit / line.blocks, first = unit - tile * line.blocks;
  return {tile, first, min(line.blocks, end - tile * line.blocks)};
}

// A lane's share of 16 rows of a warp, those g and g + 8: with g = lane / 4, t = lane % 4, acc[4j + i] is row
// g + 8 (i / 2), column 8j + 2t + i % 2 of sum p v; norm is this lane's part of sum p; p are relative to 2^top.
template <class T, bool kStatic>
struct Attended {
  float acc[kHeadDim / 2], norm[2], top[2];

  __device__ __forceinline__ void start(const float* bound, int h) {
    fill(acc, 0.f);
    fill(norm, 0.f);
    fill(top, kStatic ? bound[h] * kLog2E - kHeadroom<T> : -INFINITY);
  }

  // Scores s, laid out as acc is, become their weights p. Gives what the sums so far are to be multiplied with, which is
  // left to `rescale`: a product may still be adding to them.
  template <int kCount>
  __device__ __forceinline__ void weigh(float (&s)[kCount], float (&shrink)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float shift = top[half];
      if constexpr (!kStatic) {
        float largest = -INFINITY;
#pragma unroll
        for (int j = 0; j < kCount / 4; ++j) {
          largest = fmaxf(largest, fmaxf(s[4 * j + 2 * half], s[4 * j + 2 * half + 1]));
        }
        largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
        const float before = top[half];
        top[half] = fmaxf(before, largest * kLog2E);
        shift = top[half] == -INFINITY ? 0.f : top[half];  // where no key was seen yet
        shrink[half] = exp2_fast(before - shift);
        norm[half] *= shrink[half];
      }
#pragma unroll
      for (int j = 0; j < kCount / 4; ++j) {
#pragma unroll
        for (int i = 4 * j + 2 * half; i < 4 * j + 2 * half + 2; ++i) s[i] = exp2_fast(fmaf(s[i], kLog2E, -shift));
        norm[half] += s[4 * j + 2 * half] + s[4 * j + 2 * half + 1];
      }
    }
  }

  // Weights in pairs: the left operand of the product with v.
  template <int kCount>
  static __device__ __forceinline__ void pack(const float (&s)[kCount], uint32_t (&p)[kCount / 8][4]) {
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) p[i / 4][i % 4] = pack_pair(s[2 * i], s[2 * i + 1], T{});
  }

  __device__ __forceinline__ void rescale(const float (&shrink)[2]) {
    if constexpr (!kStatic) {
#pragma unroll
      for (int i = 0; i < kHeadDim / 2; ++i) acc[i] *= shrink[i / 2 % 2];
    }
  }

  // A part is kFloats4 values of 16 bytes a lane, 32 lanes side by side.
  static constexpr int kFloats4 = kHeadDim / 8 + 1;

  __device__ __forceinline__ void store_part(float4* part) const {
    part += threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) {
      part[32 * i] = float4{acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]};
    }
    part[32 * (kFloats4 - 1)] = float4{norm[0], norm[1], top[0], top[1]};
  }

  // kGlobal: another block's, past the first-level cache.
  template <bool kGlobal>
  __device__ __forceinline__ void add_part(const float4* part) {
    const auto at = [&](int i) {
      const float4* p = part + threadIdx.x % 32 + 32 * i;
      if constexpr (kGlobal) return __ldcg(p);
      return *p;
    };
    const float4 last = at(kFloats4 - 1);
    const float their_norm[2] = {last.x, last.y}, their_top[2] = {last.z, last.w};
    float mine[2], theirs[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      mine[half] = theirs[half] = 1.f;
      if constexpr (!kStatic) {
        const float both = fmaxf(top[half], their_top[half]), shift = both == -INFINITY ? 0.f : both;
        mine[half] = exp2_fast(top[half] - shift);
        theirs[half] = exp2_fast(their_top[half] - shift);
        top[half] = both;
      }
      norm[half] = norm[half] * mine[half] + their_norm[half] * theirs[half];
    }
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) {
      const float4 four = at(i);
      const float values[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int n = 0; n < 4; ++n) acc[4 * i + n] = acc[4 * i + n] * mine[n / 2] + values[n] * theirs[n / 2];
    }
  }

  // Rows row + g and row + g + 8 of head h, those below L.
  __device__ __forceinline__ void write(const AttentionArguments<T>& a, int b, int h, int row) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float factor = 1.f / group_sum(norm[half], 4);
      const int l = row + lane / 4 + 8 * half;
      if (l >= a.L) continue;
      T* to = a.out + b * a.stride_ob + l * a.stride_ol + h * kHeadDim + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; ++j) {
        const float y[2] = {acc[4 * j + 2 * half] * factor, acc[4 * j + 2 * half + 1] * factor};
        store<2>(to + 8 * j, y);
      }
    }
  }
};

// Whether this warp is the last of `count` at its counter, which is 0 again behind it. What the others' warps wrote
// before they came is then there to be read.
__device__ __forceinline__ bool arrives_last(int* counter, int count) {
  __threadfence();
  __syncwarp();
  int before = 0;
  if (threadIdx.x % 32 == 0) {
    before = atomicAdd(counter, 1);
    if (before == count - 1) *counter = 0;
  }
  __threadfence();
  return __shfl_sync(kAllLanes, before, 0) == count - 1;
}

// A warp's rows of an item are done: it writes them, or its part of them, or as the last of several adds all parts up,
// in the order of the keys, so that the sum does not depend on who came last. `warp` of kWarps that have rows.
template <int kWarps, class T, bool kStatic>
__device__ __forceinline__ void finish(Attended<T, kStatic>& rows, const AttentionArguments<T>& a, const Line& line,
                                       const Item& item, int range, int warp, int row) {
  const int head = item.tile / a.row_tiles, h = head % a.H, b = head / a.H;
  if (item.first > 0 || item.last < line.blocks) {
    const int start = item.tile * line.blocks, first = line.range_of(start);
    const int last = line.range_of(start + line.blocks - 1);
    // A range ends one tile at most and begins one.
    const auto part = [&](int of_range, bool begins) {
      return a.parts + (static_cast<int64_t>(2 * of_range + begins) * kWarps + warp) * (32 * rows.kFloats4);
    };
    rows.store_part(part(range, item.first == 0));
    if (!arrives_last(a.counters + item.tile * kWarps + warp, last - first + 1)) return;
    fill(rows.acc, 0.f);
    fill(rows.norm, 0.f);
    if constexpr (!kStatic) fill(rows.top, -INFINITY);
    for (int other = first; other <= last; ++other) {
      rows.template add_part<true>(part(other, line.begin(other) <= start));
    }
  }
  rows.write(a, b, h, row);
}

// q's rows row + g and row + g + 8 as the left operand of four products of 16 columns; zeros beyond L.
template <class T>
__device__ __forceinline__ void load_queries(uint32_t (&q)[kHeadDim / 16][4], const AttentionArguments<T>& a, int b,
                                             int h, int row) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int l = row + lane / 4 + 8 * half;
    const T* from = a.q + b * a.stride_qb + h * a.stride_qh + l * a.stride_ql + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) {
      q[i / 2][i % 2 * 2 + half] = l < a.L ? *reinterpret_cast<const uint32_t*>(from + 8 * i) : 0;
    }
  }
}

// Scores of keys from S on, columns column + 8j + 2t + {0, 1} of s, become those of no key.
template <int kCount>
__device__ __forceinline__ void hide_keys(float (&s)[kCount], int column, int S) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (column + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2 >= S) s[i] = -INFINITY;
  }
}

// f(float16 or bfloat16, whether there is a bound as a type).
template <class F>
cudaError_t with_attention(int dtype, bool bounded, F f) {
  const auto typed = [&](auto value) { return bounded ? f(value, std::true_type{}) : f(value, std::false_type{}); };
  if (dtype == static_cast<int>(Dtype::kFloat16)) return typed(__half{});
  if (dtype == static_cast<int>(Dtype::kBFloat16)) return typed(__nv_bfloat16{});
  return cudaErrorInvalidValue;
}

}  // namespace varsr
