// out = epilogue(a (M, K) w (N, K)^T) on Hopper: persistent, one warpgroup loads by TMA, two or three multiply by wgmma.
// A tile is 64 rows a consumer and BN columns, any multiple of 8; a stage of the ring is 128 bytes of K of both operands.
#pragma once

#include "argmax.cuh"

#include <hopper.cuh>

namespace varsr {

constexpr int kStageBytes = 128;            // of a row
constexpr int kMostShared = 227 * 1024;
constexpr int kWarpgroup = 128;

template <class T_, int kConsumers_, int BN_>
struct Tile {
  using T = T_;
  static constexpr int kConsumers = kConsumers_, BM = 64 * kConsumers, BN = BN_;
  static constexpr int BK = kStageBytes / sizeof(T);
  static constexpr int kThreads = kWarpgroup * (kConsumers + 1);
  static constexpr int kBytes = (BM + BN) * kStageBytes;
  static constexpr int kStages = (kMostShared - 2048) / kBytes < 8 ? (kMostShared - 2048) / kBytes : 8;
  static constexpr int kShared = kStages * kBytes + 1024 + 2 * 8 * static_cast<int>(sizeof(Barrier));
  // Of 65,536 registers a multiprocessor: the loading warpgroup needs few, what it gives the others take.
  static constexpr int kProducerRegisters = kConsumers == 2 ? 40 : 32;
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 232 : 160;
  static_assert(kConsumers == 2 || kConsumers == 3);
  static_assert(BN % 8 == 0 && BN <= 256 && kStages >= 3);
};

// Where a stage of the ring is: which, and how often the ring has gone round.
struct Ring {
  int stage = 0, round = 0;

  template <int kStages>
  __device__ __forceinline__ void next() {
    if (++stage == kStages) {
      stage = 0;
      ++round;
    }
  }
};

template <class Tile, class Epilogue>
__global__ __launch_bounds__(Tile::kThreads, 1) void product_sm90_kernel(const __grid_constant__ TensorMap a_map,
                                                                         const __grid_constant__ TensorMap w_map,
                                                                         int M, int N, int K, Epilogue epilogue) {
  using T = typename Tile::T;
  constexpr int kStages = Tile::kStages;
  unsigned char* base = dynamic_shared<unsigned char>();
  base += (1024 - reinterpret_cast<uintptr_t>(base) % 1024) % 1024;  // the swizzle counts from multiples of 1024
  const auto a_of = [&](int stage) { return base + stage * Tile::kBytes; };
  const auto w_of = [&](int stage) { return base + stage * Tile::kBytes + Tile::BM * kStageBytes; };
  Barrier* full = reinterpret_cast<Barrier*>(base + kStages * Tile::kBytes);
  Barrier* empty = full + kStages;

  const int warpgroup = threadIdx.x / kWarpgroup, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(full + s, 1);
      barrier_init(empty + s, Tile::kConsumers * 4);  // a warp each
    }
    barriers_ready();
  }
  __syncthreads();

  // Rows vary first: tiles that run side by side share their weights.
  const int row_tiles = (M + Tile::BM - 1) / Tile::BM, column_tiles = (N + Tile::BN - 1) / Tile::BN;
  const int tiles = row_tiles * column_tiles, steps = (K + Tile::BK - 1) / Tile::BK;
  const int own = blockIdx.x;

  if (warpgroup == 0) {
    keep_registers<Tile::kProducerRegisters>();
    if (threadIdx.x != 0) return;
    // Weights are nobody's output: their first loads need not wait for the kernel ahead.
    const int early = min(kStages, steps);
    for (int i = 0; i < early; ++i) {
      barrier_expect(full + i, Tile::kBytes);
      tma_load(w_of(i), &w_map, full + i, i * Tile::BK, own / row_tiles * Tile::BN);
    }
    wait_for_previous_kernel();
    Ring ring;
    for (int tile = own; tile < tiles; tile += gridDim.x) {
      const int row = tile % row_tiles * Tile::BM, column = tile / row_tiles * Tile::BN;
      for (int i = 0; i < steps; ++i) {
        const int s = ring.stage;
        if (tile != own || i >= early) {
          if (ring.round > 0) barrier_wait(empty + s, (ring.round - 1) % 2);
          barrier_expect(full + s, Tile::kBytes);
          tma_load(w_of(s), &w_map, full + s, i * Tile::BK, column);
        }
        tma_load(a_of(s), &a_map, full + s, i * Tile::BK, row);
        ring.next<kStages>();
      }
    }
    return;
  }

  take_registers<Tile::kConsumerRegisters>();
  wait_for_previous_kernel();
  start_next_kernel();
  const int consumer = warpgroup - 1;
  Ring ring;
  for (int tile = own; tile < tiles; tile += gridDim.x) {
    float acc[Tile::BN / 2];
    for (int i = 0; i < steps; ++i) {
      const int s = ring.stage;
      barrier_wait(full + s, ring.round % 2);
      const uint64_t a = wgmma_operand(a_of(s) + consumer * 64 * kStageBytes), w = wgmma_operand(w_of(s));
      wgmma_begin();
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        Wgmma<Tile::BN, T>::run(acc, wgmma_advance(a, part * 32), wgmma_advance(w, part * 32), i > 0 || part > 0);
      }
      wgmma_commit();
      // The stage before this one is read to its end once only this one's products are under way.
      if (i > 0) {
        wgmma_wait<1>();
        if (lane == 0) barrier_arrive(empty + (s == 0 ? kStages : s) - 1);
      }
      ring.next<kStages>();
    }
    wgmma_wait<0>();
    wgmma_settle(acc);
    if (lane == 0) barrier_arrive(empty + (ring.stage == 0 ? kStages : ring.stage) - 1);

    const int row = tile % row_tiles * Tile::BM + consumer * 64 + threadIdx.x / 32 % 4 * 16 + lane / 4;
    const int column = tile / row_tiles * Tile::BN;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      epilogue.template row<Tile::BN>(acc, half, row + 8 * half, column, lane % 4);
    }
  }
}

// --- epilogues: `row` sees a row's columns column + 8j + 2t + {0, 1} as acc[4j + 2 half + {0, 1}] --------------------
// Four neighbouring lanes share a row. All take part, those beyond M too, for sums over the row.

struct Bounds {
  int M, N;
};

template <class T>
__device__ __forceinline__ float bias_at(const T* bias, int column, int N) {
  return column < N ? to_float(bias[column]) : 0.f;
}

// out = acc + b, or its tanh-GELU.
template <class Out, class B, bool kGelu>
struct BiasEpilogue {
  Bounds bounds;
  const B* bias;
  Out* out;  // (M, N)
  const float *row_scale, *column_scale;  // of e4m3 operands, or null

  template <int BN>
  __device__ __forceinline__ void row(const float (&acc)[BN / 2], int half, int row, int column, int t) const {
    if (row >= bounds.M) return;
    const float scale = row_scale == nullptr ? 1.f : row_scale[row];
#pragma unroll
    for (int j = 0; j < BN / 8; ++j) {
      const int c = column + 8 * j + 2 * t;
      if (c >= bounds.N) break;
      float y[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float factor = column_scale == nullptr ? 1.f : scale * column_scale[c + i];
        y[i] = acc[4 * j + 2 * half + i] * factor + to_float(bias[c + i]);
        if (kGelu) y[i] = 0.5f * y[i] * (1.f + tanhf(0.7978845608f * (y[i] + 0.044715f * y[i] * y[i] * y[i])));
      }
      store<2>(out + static_cast<int64_t>(row) * bounds.N + c, y);
    }
  }
};

// residual += gate * (acc + b), in float32.
template <class B>
struct GatedResidualEpilogue {
  Bounds bounds;
  const B* bias;
  const float* gate;      // (M / L, N), rows stride_gate apart
  const float* residual;  // (M, N)
  float* out;             // (M, N), which may be `residual`
  int64_t stride_gate;
  int L;

  template <int BN>
  __device__ __forceinline__ void row(const float (&acc)[BN / 2], int half, int row, int column, int t) const {
    if (row >= bounds.M) return;
    const int64_t start = static_cast<int64_t>(row) * bounds.N;
    const float* own_gate = gate + row / L * stride_gate;
#pragma unroll
    for (int j = 0; j < BN / 8; ++j) {
      const int c = column + 8 * j + 2 * t;
      if (c >= bounds.N) break;
      float x[2];
      load<2>(residual + start + c, x);
#pragma unroll
      for (int i = 0; i < 2; ++i) x[i] += own_gate[c + i] * (acc[4 * j + 2 * half + i] + to_float(bias[c + i]));
      store<2>(out + start + c, x);
    }
  }
};

// logits = acc + b, and of each row the largest key (value, then the lower index): `keys` start from 0.
template <class B>
struct ArgmaxEpilogue {
  Bounds bounds;
  const B* bias;
  float* logits;  // (M, N)
  unsigned long long* keys;  // (M,)

  template <int BN>
  __device__ __forceinline__ void row(const float (&acc)[BN / 2], int half, int row, int column, int t) const {
    unsigned long long best = 0;
#pragma unroll
    for (int j = 0; j < BN / 8; ++j) {
      const int c = column + 8 * j + 2 * t;
      if (row >= bounds.M || c >= bounds.N) break;
      float y[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        y[i] = acc[4 * j + 2 * half + i] + to_float(bias[c + i]);
        best = max(best, static_cast<unsigned long long>(argmax_key(y[i], c + i)));
      }
      store<2>(logits + static_cast<int64_t>(row) * bounds.N + c, y);
    }
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2) best = max(best, __shfl_xor_sync(kAllLanes, best, offset));
    if (t == 0 && row < bounds.M) atomicMax(keys + row, best);
  }
};

// q, k and v of whole heads of D: bias, L2 norm, scale, rotation, write to q and into the cache.
template <class T, int D>
struct QkvEpilogue {
  Bounds bounds;
  const T* bias;
  const float *q_scale, *cos, *sin;  // (H,), (L, D / 2)
  T *q, *k, *v;
  int64_t strides[3][3];  // of each, from batch to batch, head to head and token to token
  int L, first_query, H;

  template <int BN>
  __device__ __forceinline__ void row(const float (&acc)[BN / 2], int half, int row, int column, int t) const {
    static_assert(BN % D == 0);
    const bool inside = row < bounds.M;
    const int b = inside ? row / L : 0, token = inside ? row % L : 0;
#pragma unroll
    for (int first = 0; first < BN / 8; first += D / 8) {
      const int head = (column + 8 * first) / D, part = head / H, h = head % H;
      const bool known = part < 3;  // the last tile of columns may have heads of no part
      float y[D / 8][2], squares = 0.f;
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int c = column + 8 * (first + j) + 2 * t + i;
          y[j][i] = acc[4 * (first + j) + 2 * half + i] + (known ? to_float(bias[c]) : 0.f);
          squares += y[j][i] * y[j][i];
        }
      }
      squares = group_sum(squares, 4);
      const int query = token - first_query;
      if (!inside || !known || (part == 0 && query < 0)) continue;
      if (part < 2) {
        const float factor = (part == 0 ? q_scale[h] : 1.f) / fmaxf(sqrtf(squares), 1e-12f);
#pragma unroll
        for (int j = 0; j < D / 8; ++j) {
          const int64_t angle = static_cast<int64_t>(token) * (D / 2) + 4 * j + t;
          const float c = cos[angle], s = sin[angle], even = y[j][0] * factor, odd = y[j][1] * factor;
          y[j][0] = even * c - odd * s;
          y[j][1] = even * s + odd * c;
        }
      }
      T* target = part == 0 ? q : part == 1 ? k : v;
      target += b * strides[part][0] + h * strides[part][1] + (part == 0 ? query : token) * strides[part][2] + 2 * t;
#pragma unroll
      for (int j = 0; j < D / 8; ++j) store<2>(target + 8 * j, y[j]);
    }
  }
};

// --- launch ----------------------------------------------------------------------------------------------------------

// a (M, K) and w (N, K) of Tile::T, rows multiples of 16 bytes; on `multiprocessors` blocks at most.
template <class Tile, class Epilogue>
cudaError_t launch_product(const void* a, const void* w, int M, int N, int K, int multiprocessors, Epilogue epilogue,
                           cudaStream_t stream) {
  using T = typename Tile::T;
  TensorMap a_map, w_map;
  cudaError_t status = make_tensor_map(&a_map, a, kMapType<T>, sizeof(T), M, K, Tile::BM);
  if (status == cudaSuccess) status = make_tensor_map(&w_map, w, kMapType<T>, sizeof(T), N, K, Tile::BN);
  if (status != cudaSuccess) return status;
  const int tiles = ceil_div(M, Tile::BM) * ceil_div(N, Tile::BN);
  return launch(product_sm90_kernel<Tile, Epilogue>, dim3(tiles < multiprocessors ? tiles : multiprocessors),
                Tile::kThreads, Tile::kShared, stream, a_map, w_map, M, N, K, epilogue);
}

}  // namespace varsr
