// Attention of one scale's queries over every cached key: softmax(Q K^T) V, exact, without a mask.
//
// A thread takes a range of queries of one head and walks the keys block by block (online softmax). Both products are
// made of one micro-kernel, tiles of kRows rows times panels of kColumns columns, so that scores come out of the
// first in the very layout in which the second reads its weights: nothing is transposed or packed between the two.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>

#include "simd.h"

namespace {

using varsr::ceil_div, varsr::kColumns, varsr::kLanes, varsr::kRows, varsr::kTile, varsr::Vec;

constexpr int kMaxDepth = 128;
// A panel of values and the weights of a group of queries stay in L1 together: 17 + 6.5 KB (AVX2), 28 + 12.5 (AVX-512).
// An odd number of tiles spreads the tiles of successive groups over the cache sets. More are no faster.
constexpr int kKeyTiles = kLanes == 8 ? 17 : 7, kKeys = kKeyTiles * kColumns;
// Queries that share a panel of keys while it is in L1; their scores (102 or 200 KB) stay in L2. 8 to 24 groups are
// within 1 %.
constexpr int kBlockGroups = 16;
// At most 1056 queries are a unit of work: the largest scale in one, as packing the keys again for a second costs 2 %.
constexpr int kUnitGroups = 1056 / kRows;
// FLOPs that take one core 13 us: below, waking the other threads (about 5 us) costs more than they save.
constexpr int64_t kMinParallelFlops = 1 << 20;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Head {
  const float *q, *k, *v;
  float* out;
  int64_t q_stride, k_stride, v_stride, out_stride;
  int64_t keys;
  int depth, depth_tiles;
};

// What a thread works in. Rows of tiles are dense: [group][tile][kRows][kColumns].
struct Workspace {
  alignas(64) float queries[kUnitGroups * kRows * kMaxDepth];
  alignas(64) float outputs[kUnitGroups * kRows * kMaxDepth];
  alignas(64) float keys[kKeys * kMaxDepth];    // [key tile][depth][kColumns]
  alignas(64) float values[kKeys * kMaxDepth];  // [depth tile][key][kColumns]
  alignas(64) float scores[kBlockGroups * kKeyTiles * kTile];
  alignas(64) Vec block_max[kBlockGroups * kRows];
  float row_max[kUnitGroups * kRows], row_sum[kUnitGroups * kRows];
};

void score_tile(int depth_tiles, const float* queries, const float* keys, float* scores, Vec* maxima) {
  varsr::TileSums sums;
  varsr::multiply_tiles(depth_tiles, queries, keys, sums);
#pragma GCC unroll 14
  for (int row = 0; row < kRows; ++row) {
    varsr::store(scores + row * kColumns, sums.left[row]);
    varsr::store(scores + row * kColumns + kLanes, sums.right[row]);
    maxima[row] = varsr::max(maxima[row], varsr::max(sums.left[row], sums.right[row]));
  }
}

// Sums over the keys of a block before it adds to the output: a single running sum over thousands of keys rounds worse.
void add_weighted_values(int key_tiles, const float* weights, const float* values, float* output) {
  varsr::TileSums sums;
  varsr::multiply_tiles(key_tiles, weights, values, sums);
#pragma GCC unroll 14
  for (int row = 0; row < kRows; ++row, output += kColumns) {
    varsr::store(output, varsr::load(output) + sums.left[row]);
    varsr::store(output + kLanes, varsr::load(output + kLanes) + sums.right[row]);
  }
}

// kColumns values of a row, filled up with zeros past the depth; all zeros for a row that is not there (null).
inline void copy_tile_row(const float* row, int tile, int depth, float* to) {
  for (int d = tile * kColumns; d < (tile + 1) * kColumns; d += 8, to += 8) {
    _mm256_store_ps(to, row && d < depth ? _mm256_loadu_ps(row + d) : _mm256_setzero_ps());
  }
}

void pack_queries(const Head& head, int64_t first, int count, int groups, float* packed) {
  for (int row = 0; row < groups * kRows; ++row) {
    const float* from = row < count ? head.q + (first + row) * head.q_stride : nullptr;
    float* to = packed + row / kRows * head.depth_tiles * kTile + row % kRows * kColumns;
    for (int tile = 0; tile < head.depth_tiles; ++tile) copy_tile_row(from, tile, head.depth, to + tile * kTile);
  }
}

// Columns past the last key repeat it: their scores leave the maximum as it is, until hide_padding takes them out.
void pack_keys(const Head& head, int64_t first, int key_tiles, float* packed) {
  const int padded_depth = head.depth_tiles * kColumns;
  for (int column = 0; column < key_tiles * kColumns; column += 8) {
    float* to = packed + column / kColumns * padded_depth * kColumns + column % kColumns;
    const float* from[8];
    for (int i = 0; i < 8; ++i) from[i] = head.k + std::min(first + column + i, head.keys - 1) * head.k_stride;
    for (int d = 0; d < head.depth; d += 8) {
      __m256 block[8];
      for (int i = 0; i < 8; ++i) block[i] = _mm256_loadu_ps(from[i] + d);
      varsr::transpose_8x8(block);
      for (int i = 0; i < 8; ++i) _mm256_store_ps(to + (d + i) * kColumns, block[i]);
    }
    for (int d = head.depth; d < padded_depth; ++d) _mm256_store_ps(to + d * kColumns, _mm256_setzero_ps());
  }
}

void pack_values(const Head& head, int64_t first, int key_tiles, float* packed) {
  const int padded_keys = key_tiles * kColumns;
  for (int key = 0; key < padded_keys; ++key) {
    const float* from = first + key < head.keys ? head.v + (first + key) * head.v_stride : nullptr;
    for (int tile = 0; tile < head.depth_tiles; ++tile) {
      copy_tile_row(from, tile, head.depth, packed + (tile * padded_keys + key) * kColumns);
    }
  }
}

void score_block(int groups, int key_tiles, int depth_tiles, const float* queries, Workspace& work) {
  std::fill_n(work.block_max, groups * kRows, varsr::broadcast(-kInfinity));
  for (int tile = 0; tile < key_tiles; ++tile) {
    const float* keys = work.keys + tile * depth_tiles * kColumns * kColumns;
    for (int group = 0; group < groups; ++group) {
      score_tile(depth_tiles, queries + group * depth_tiles * kTile, keys,
                 work.scores + (group * kKeyTiles + tile) * kTile, work.block_max + group * kRows);
    }
  }
}

void hide_padding(int groups, int key_tiles, int hidden, float* scores) {
  for (int row = 0; row < groups * kRows; ++row) {
    float* tile_row = scores + (row / kRows * kKeyTiles + key_tiles - 1) * kTile + row % kRows * kColumns;
    std::fill_n(tile_row + kColumns - hidden, hidden, -kInfinity);
  }
}

// scores = e^(scores - maximum) in place, for one row of tiles; returns their sum.
inline float exponentiate_row(int key_tiles, float maximum, float* scores) {
  const Vec shift = varsr::broadcast(maximum);
  Vec sums[2] = {varsr::broadcast(0.0f), varsr::broadcast(0.0f)};
  for (int tile = 0; tile < key_tiles; ++tile, scores += kTile) {
    for (int half = 0; half < 2; ++half) {
      const Vec weights = varsr::exp_nonpositive(varsr::load(scores + half * kLanes) - shift);
      varsr::store(scores + half * kLanes, weights);
      sums[half] = sums[half] + weights;
    }
  }
  return varsr::sum(sums[0] + sums[1]);
}

void scale_row(int depth_tiles, float factor, float* output) {
  for (int tile = 0; tile < depth_tiles; ++tile, output += kTile) {
    for (int column = 0; column < kColumns; ++column) output[column] *= factor;
  }
}

// Scores to weights relative to the running maximum; where that grew, what was summed before shrinks to match.
void weigh_block(int first_row, int rows, int key_tiles, int depth_tiles, Workspace& work) {
  for (int row = 0; row < rows; ++row) {
    float& maximum = work.row_max[first_row + row];
    float& sum = work.row_sum[first_row + row];
    const float block_max = varsr::max(work.block_max[row]);
    if (block_max > maximum) {
      const float shrink = std::exp(maximum - block_max);
      const int group = (first_row + row) / kRows;
      scale_row(depth_tiles, shrink, work.outputs + group * depth_tiles * kTile + row % kRows * kColumns);
      sum *= shrink;
      maximum = block_max;
    }
    sum += exponentiate_row(key_tiles, maximum, work.scores + row / kRows * kKeyTiles * kTile + row % kRows * kColumns);
  }
}

void attend_block(int first_group, int groups, int key_tiles, int hidden, int depth_tiles, Workspace& work) {
  score_block(groups, key_tiles, depth_tiles, work.queries + first_group * depth_tiles * kTile, work);
  if (hidden > 0) hide_padding(groups, key_tiles, hidden, work.scores);
  weigh_block(first_group * kRows, groups * kRows, key_tiles, depth_tiles, work);
  for (int tile = 0; tile < depth_tiles; ++tile) {
    const float* values = work.values + tile * key_tiles * kColumns * kColumns;
    for (int group = 0; group < groups; ++group) {
      add_weighted_values(key_tiles, work.scores + group * kKeyTiles * kTile, values,
                          work.outputs + ((first_group + group) * depth_tiles + tile) * kTile);
    }
  }
}

void write_outputs(const Head& head, int64_t first, int count, const Workspace& work) {
  for (int row = 0; row < count; ++row) {
    const float* from = work.outputs + (row / kRows * head.depth_tiles) * kTile + row % kRows * kColumns;
    float* to = head.out + (first + row) * head.out_stride;
    const __m256 inverse = _mm256_set1_ps(1.0f / work.row_sum[row]);
    for (int d = 0; d < head.depth; d += 8) {
      _mm256_storeu_ps(to + d, _mm256_mul_ps(_mm256_load_ps(from + d / kColumns * kTile + d % kColumns), inverse));
    }
  }
}

void attend(const Head& head, int64_t first, int count, Workspace& work) {
  const int groups = static_cast<int>(ceil_div(count, kRows));
  pack_queries(head, first, count, groups, work.queries);
  std::fill_n(work.outputs, groups * head.depth_tiles * kTile, 0.0f);
  std::fill_n(work.row_max, groups * kRows, -kInfinity);
  std::fill_n(work.row_sum, groups * kRows, 0.0f);
  for (int64_t key = 0; key < head.keys; key += kKeys) {
    const int keys = static_cast<int>(std::min<int64_t>(kKeys, head.keys - key));
    const int key_tiles = static_cast<int>(ceil_div(keys, kColumns));
    pack_keys(head, key, key_tiles, work.keys);
    pack_values(head, key, key_tiles, work.values);
    const int hidden = key_tiles * kColumns - keys;
    for (int group = 0; group < groups; group += kBlockGroups) {
      attend_block(group, std::min(kBlockGroups, groups - group), key_tiles, hidden, head.depth_tiles, work);
    }
  }
  write_outputs(head, first, count, work);
}

// Into how many units the queries of a head are cut: as few as fit, unless threads would be left without one.
int64_t units_per_head(int64_t heads, int64_t queries) {
  const int64_t fewest = ceil_div(queries, kUnitGroups * kRows), most = ceil_div(queries, kBlockGroups * kRows);
  return std::max(fewest, std::min(most, omp_get_max_threads() / heads));
}

}  // namespace

// out (B, L, H * D) = softmax(q k^T) v for q (B, H, L, D) and k, v (B, H, S, D) with a contiguous last dimension, D a
// multiple of 8 up to 128, S at least 1. strides, in elements: batch, head and row of q, then of k, then of v.
extern "C" void varsr_cpu_scale_attention(const float* q, const float* k, const float* v, float* out, int64_t B,
                                          int64_t H, int64_t L, int64_t S, int64_t D, const int64_t* strides) {
  if (B * H * L == 0) return;
  const int64_t parts = units_per_head(B * H, L), rows = ceil_div(L, parts);
#pragma omp parallel for schedule(dynamic) if (4 * B * H * L * S * D >= kMinParallelFlops)
  for (int64_t unit = 0; unit < B * H * parts; ++unit) {
    static thread_local const std::unique_ptr<Workspace> work(new Workspace);
    const int64_t b = unit / parts / H, h = unit / parts % H, first = unit % parts * rows;
    const Head head{q + b * strides[0] + h * strides[1], k + b * strides[3] + h * strides[4],
                    v + b * strides[6] + h * strides[7], out + b * L * H * D + h * D,
                    strides[2], strides[5], strides[8], H * D,
                    S, static_cast<int>(D), static_cast<int>(ceil_div(D, kColumns))};
    if (first < L) attend(head, first, static_cast<int>(std::min(rows, L - first)), *work);
  }
}
