// scale_attention on Hopper, for many queries: a warpgroup brings blocks of 128 keys and values by TMA, two others of 64
// rows each multiply by wgmma, with queries and weights in registers. No op takes it: it has not run on a GPU.
#include "launchers.h"
#include "scale_attention.cuh"

#include <hopper.cuh>

namespace varsr {
namespace {

constexpr int kWarpgroup = 128, kConsumers = 2, kThreads = kWarpgroup * (kConsumers + 1);
constexpr int kRows = 64 * kConsumers, kWarpsWithRows = 4 * kConsumers;
constexpr int kKeys = 128;                               // of a block
constexpr int kRowBytes = 128, kBlockBytes = kKeys * kRowBytes;
constexpr int kStages = 4;
constexpr int kBarriers = 4 * kStages;                   // keys and values, each full and empty
constexpr int kShared = kStages * 2 * kBlockBytes + 1024 + kBarriers * static_cast<int>(sizeof(Barrier));
// Of 65,536 registers a multiprocessor: 168 a thread at the launch, shared out anew.
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;

// Where a ring of stages is.
struct Ring {
  int stage = 0, round = 0;

  __device__ __forceinline__ void next() {
    if (++stage == kStages) {
      stage = 0;
      ++round;
    }
  }
};

// Keys or values: a ring of stages of its own, as keys are done with a block before its values.
struct Blocks {
  unsigned char* stages;
  Barrier *full, *empty;

  __device__ __forceinline__ unsigned char* at(const Ring& ring) const { return stages + ring.stage * kBlockBytes; }
  __device__ __forceinline__ void load(const Ring& ring, const TensorMap* map, int row, int h, int b) const {
    if (ring.round > 0) barrier_wait(empty + ring.stage, (ring.round - 1) % 2);
    barrier_expect(full + ring.stage, kBlockBytes);
    tma_load_rows(at(ring), map, full + ring.stage, row, h, b);
  }
  __device__ __forceinline__ void wait(const Ring& ring) const { barrier_wait(full + ring.stage, ring.round % 2); }
  // By each warp, once it has read the stage to its end.
  __device__ __forceinline__ void release(const Ring& ring) const {
    if (threadIdx.x % 32 == 0) barrier_arrive(empty + ring.stage);
  }
};

// s = q k^T, under way behind it.
template <class T>
__device__ __forceinline__ void score(float (&s)[kKeys / 2], const uint32_t (&q)[kHeadDim / 16][4],
                                      const unsigned char* keys) {
  const uint64_t k = wgmma_operand(keys);
#pragma unroll
  for (int i = 0; i < kHeadDim / 16; ++i) {
    WgmmaFromRegisters<kKeys, T, false>::run(s, q[i], wgmma_advance(k, 32 * i), i > 0);
  }
  wgmma_commit();
}

// acc += p v, under way behind it.
template <class T>
__device__ __forceinline__ void add_values(float (&acc)[kHeadDim / 2], const uint32_t (&p)[kKeys / 16][4],
                                           const unsigned char* values) {
  const uint64_t v = wgmma_operand(values);
#pragma unroll
  for (int i = 0; i < kKeys / 16; ++i) {
    WgmmaFromRegisters<kHeadDim, T, true>::run(acc, p[i], wgmma_advance(v, 16 * kRowBytes * i), 1);
  }
  wgmma_commit();
}

template <class T, bool kStatic>
__global__ __launch_bounds__(kThreads, 1) void scale_attention_sm90_kernel(const __grid_constant__ TensorMap k_map,
                                                                           const __grid_constant__ TensorMap v_map,
                                                                           AttentionArguments<T> a, Line line) {
  unsigned char* base = dynamic_shared<unsigned char>();
  base += (1024 - reinterpret_cast<uintptr_t>(base) % 1024) % 1024;  // the swizzle counts from multiples of 1024
  Barrier* barriers = reinterpret_cast<Barrier*>(base + kStages * 2 * kBlockBytes);
  const Blocks keys{base, barriers, barriers + kStages};
  const Blocks values{base + kStages * kBlockBytes, barriers + 2 * kStages, barriers + 3 * kStages};
  if (threadIdx.x == 0) {
    for (int i = 0; i < kBarriers; ++i) barrier_init(barriers + i, i / kStages % 2 == 0 ? 1 : kWarpsWithRows);
    barriers_ready();
  }
  __syncthreads();
  wait_for_previous_kernel();
  start_next_kernel();

  const int range = blockIdx.x, end = line.begin(range + 1), warpgroup = threadIdx.x / kWarpgroup;
  int unit = line.begin(range);
  if (warpgroup == 0) {
    keep_registers<kProducerRegisters>();
    if (threadIdx.x != 0) return;
    Ring ring;
    while (unit < end) {
      const Item item = item_at(line, unit, end);
      unit += item.last - item.first;
      const int head = item.tile / a.row_tiles, h = head % a.H, b = head / a.H;
      for (int block = item.first; block < item.last; ++block) {
        keys.load(ring, &k_map, block * kKeys, h, b);
        values.load(ring, &v_map, block * kKeys, h, b);
        ring.next();
      }
    }
    return;
  }

  take_registers<kConsumerRegisters>();
  const int warp = threadIdx.x / 32 - 4;  // of those with rows
  Ring ring, behind;                      // of keys; of values, which come one block later
  while (unit < end) {
    const Item item = item_at(line, unit, end);
    unit += item.last - item.first;
    const int head = item.tile / a.row_tiles, h = head % a.H, b = head / a.H;
    const int row = item.tile % a.row_tiles * kRows + 16 * warp;
    uint32_t q[kHeadDim / 16][4], p[kKeys / 16][4];
    load_queries(q, a, b, h, row);
    Attended<T, kStatic> rows;
    rows.start(a.bound, h);
    float s[kKeys / 2], shrink[2];

    keys.wait(ring);
    wgmma_begin();
    score<T>(s, q, keys.at(ring));
    wgmma_wait<0>();
    wgmma_settle(s);
    keys.release(ring);
    ring.next();
    if ((item.first + 1) * kKeys > a.S) hide_keys(s, item.first * kKeys, a.S);
    rows.weigh(s, shrink);  // nothing to rescale yet
    rows.pack(s, p);
    if (item.last - item.first > 1) keys.wait(ring);
    for (int block = item.first + 1; block < item.last; ++block) {
      // The tensor cores add the values of the block before up while weights of this one are computed.
      wgmma_begin();
      score<T>(s, q, keys.at(ring));
      values.wait(behind);
      wgmma_begin();
      add_values<T>(rows.acc, p, values.at(behind));
      wgmma_wait<1>();
      wgmma_settle(s);
      keys.release(ring);
      ring.next();
      if ((block + 1) * kKeys > a.S) hide_keys(s, block * kKeys, a.S);
      rows.weigh(s, shrink);
      // Here, as ptxas moves weights behind the wait for products that follows where no branch lies between.
      if (block + 1 < item.last) keys.wait(ring);
      wgmma_wait<0>();
      wgmma_settle(rows.acc);
      values.release(behind);
      behind.next();
      rows.rescale(shrink);
      rows.pack(s, p);  // not before: the products were reading p
    }
    values.wait(behind);
    wgmma_begin();
    add_values<T>(rows.acc, p, values.at(behind));
    wgmma_wait<0>();
    wgmma_settle(rows.acc);
    values.release(behind);
    behind.next();
    finish<kWarpsWithRows>(rows, a, line, item, range, warp, row);
  }
}

template <class T>
cudaError_t map_of(TensorMap* map, const void* data, int B, int H, int S, int64_t stride_b, int64_t stride_h,
                   int64_t stride_row) {
  constexpr int64_t kBytes = sizeof(T);
  return make_heads_map(map, data, kMapType<T>, kBytes, B, H, S, stride_b * kBytes, stride_h * kBytes,
                        stride_row * kBytes, kKeys);
}

}  // namespace

cudaError_t scale_attention_sm90(const void* q, const void* k, const void* v, const float* bound, void* out,
                                 void* parts, int* counters, int64_t stride_qb, int64_t stride_qh, int64_t stride_ql,
                                 int64_t stride_kb, int64_t stride_kh, int64_t stride_kl, int64_t stride_vb,
                                 int64_t stride_vh, int64_t stride_vl, int64_t stride_ob, int64_t stride_ol, int B,
                                 int H, int L, int S, int ranges, int dtype, cudaStream_t stream) {
  return with_attention(dtype, bound != nullptr, [&](auto value, auto bounded) {
    using T = decltype(value);
    TensorMap k_map, v_map;
    cudaError_t status = map_of<T>(&k_map, k, B, H, S, stride_kb, stride_kh, stride_kl);
    if (status == cudaSuccess) status = map_of<T>(&v_map, v, B, H, S, stride_vb, stride_vh, stride_vl);
    if (status != cudaSuccess) return status;
    const int row_tiles = ceil_div(L, kRows), blocks = ceil_div(S, kKeys);
    const AttentionArguments<T> a{static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v), bound,
                                  static_cast<T*>(out), static_cast<float4*>(parts), counters, stride_qb, stride_qh,
                                  stride_ql, stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl,
                                  stride_ob, stride_ol, H, L, S, row_tiles};
    return launch(scale_attention_sm90_kernel<T, decltype(bounded)::value>, dim3(ranges), kThreads, kShared, stream,
                  k_map, v_map, a, Line{B * H * row_tiles * blocks, blocks, ranges});
  });
}

}  // namespace varsr
