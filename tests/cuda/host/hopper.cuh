// The twin of csrc/cuda/device/hopper.cuh on a CPU. TMA writes at once, the earliest that it may; wgmma reads its operands
// only where it is waited for, the latest that it may: a stage of a ring that is freed too early shows.
#pragma once

#include <deque>
#include <functional>
#include <vector>

#include "cuda_fp8.h"
#include "device.cuh"

#define __grid_constant__

namespace varsr {

// --- barriers --------------------------------------------------------------------------------------------------------

struct Barrier {  // 8 bytes, as on the GPU
  uint16_t arrivals, pending;
  uint32_t phase : 1, bytes : 31;  // bytes: announced and not yet loaded
};

inline void barrier_check(Barrier* barrier) {
  if (barrier->pending != 0 || barrier->bytes != 0) return;
  barrier->phase ^= 1;
  barrier->pending = barrier->arrivals;
  emulator::progressed();
}
inline void barrier_init(Barrier* barrier, int arrivals) {
  *barrier = {static_cast<uint16_t>(arrivals), static_cast<uint16_t>(arrivals), 0, 0};
}
inline void barriers_ready() {}
inline void barrier_arrive(Barrier* barrier) {
  --barrier->pending;
  barrier_check(barrier);
}
inline void barrier_expect(Barrier* barrier, int bytes) {
  barrier->bytes += bytes;
  barrier_arrive(barrier);
}
inline void barrier_wait(Barrier* barrier, int parity) {
  while (barrier->phase == static_cast<unsigned>(parity)) emulator::spin();
}

// --- TMA -------------------------------------------------------------------------------------------------------------

struct TensorMap {
  const unsigned char* data;
  int element_bytes, rows, columns, box_rows;
  int H = 1, B = 1;  // of a map of heads, with strides in bytes
  int64_t stride_b = 0, stride_h = 0, stride_row = 0;
};

template <class T>
constexpr int kMapType = 0;

inline cudaError_t make_tensor_map(TensorMap* map, const void* data, int, int element_bytes, int rows, int columns,
                                   int box_rows) {
  *map = {static_cast<const unsigned char*>(data), element_bytes, rows, columns, box_rows};
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && columns * element_bytes % 16 == 0;
  return aligned && box_rows <= 256 ? cudaSuccess : cudaErrorInvalidValue;  // as the driver's function
}

inline cudaError_t make_heads_map(TensorMap* map, const void* data, int, int element_bytes, int B, int H, int rows,
                                  int64_t stride_b, int64_t stride_h, int64_t stride_row, int box_rows) {
  *map = {static_cast<const unsigned char*>(data), element_bytes, rows, 128 / element_bytes, box_rows,
          H, B, stride_b, stride_h, stride_row};
  bool fine = reinterpret_cast<uintptr_t>(data) % 16 == 0 && box_rows <= 256;
  for (int64_t stride : {stride_b, stride_h, stride_row}) fine &= stride > 0 && stride % 16 == 0;
  return fine ? cudaSuccess : cudaErrorInvalidValue;
}

// Bits 4 to 6 of an address are swapped by bits 7 to 9.
inline unsigned char* swizzled(unsigned char* p) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  return reinterpret_cast<unsigned char*>(address ^ (address >> 7 & 7) << 4);
}

inline void tma_load(void* to, const TensorMap* map, Barrier* barrier, int column, int row) {
  auto* target = static_cast<unsigned char*>(to);
  const int64_t width = int64_t{map->columns} * map->element_bytes, first = int64_t{column} * map->element_bytes;
  for (int r = 0; r < map->box_rows; ++r) {
    for (int byte = 0; byte < 128; ++byte) {
      const bool inside = row + r < map->rows && first + byte < width;
      *swizzled(target + r * 128 + byte) = inside ? map->data[(row + r) * width + first + byte] : 0;
    }
  }
  barrier->bytes -= map->box_rows * 128;
  barrier_check(barrier);
}

inline void tma_load_rows(void* to, const TensorMap* map, Barrier* barrier, int row, int h, int b) {
  auto* target = static_cast<unsigned char*>(to);
  const auto* head = map->data + b * map->stride_b + h * map->stride_h;
  for (int r = 0; r < map->box_rows; ++r) {
    const bool inside = row + r < map->rows && h < map->H && b < map->B;
    for (int byte = 0; byte < 128; byte += 16) {
      if (inside) {
        std::memcpy(swizzled(target + r * 128 + byte), head + (row + r) * map->stride_row + byte, 16);
      } else {
        std::memset(swizzled(target + r * 128 + byte), 0, 16);
      }
    }
  }
  barrier->bytes -= map->box_rows * 128;
  barrier_check(barrier);
}

// --- wgmma -----------------------------------------------------------------------------------------------------------

struct WgmmaQueue {
  std::deque<std::vector<std::function<void()>>> groups;
  std::vector<std::function<void()>> open;
};
inline WgmmaQueue& wgmma_queue() {
  static std::vector<WgmmaQueue> queues(1024);
  return queues[emulator::thread_number()];
}

inline uint64_t wgmma_operand(const void* p) { return reinterpret_cast<uint64_t>(p); }
inline uint64_t wgmma_advance(uint64_t operand, int bytes) { return operand + bytes; }
inline void wgmma_begin() {}
inline void wgmma_commit() {
  wgmma_queue().groups.push_back(std::move(wgmma_queue().open));
  wgmma_queue().open.clear();
}
template <int kOpen>
void wgmma_wait() {
  auto& groups = wgmma_queue().groups;
  while (static_cast<int>(groups.size()) > kOpen) {
    for (const auto& product : groups.front()) product();
    groups.pop_front();
  }
  emulator::warp_exchange(nullptr, 0);  // a warp's lanes are done together: none may free what another still reads
}

template <int kCount>
void wgmma_settle(float (&)[kCount]) {}

template <class T>
float element(uint64_t operand, int row, int k) {
  auto* p = reinterpret_cast<unsigned char*>(operand) + row / 8 * 1024 + row % 8 * 128 + k * sizeof(T);
  T value;
  for (size_t i = 0; i < sizeof(T); ++i) reinterpret_cast<unsigned char*>(&value)[i] = *swizzled(p + i);
  if constexpr (sizeof(T) == 1) {
    return e4m3_to_float(value.bits);
  } else {
    return pair_element(value.bits, 0, T{});
  }
}

template <int N, class T>
struct Wgmma {
  static void run(float (&d)[N / 2], uint64_t a, uint64_t b, int add) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    float* sums = d;
    wgmma_queue().open.push_back([=] {
      constexpr int kDepth = 32 / sizeof(T);
      float rows[2][kDepth];
      for (int half = 0; half < 2; ++half) {
        for (int k = 0; k < kDepth; ++k) rows[half][k] = element<T>(a, 16 * warp + lane / 4 + 8 * half, k);
      }
      for (int pair = 0; pair < N / 4; ++pair) {  // of columns 8j + 2t + {0, 1}: both halves
        const int column = pair / 2 * 8 + lane % 4 * 2 + pair % 2;
        float sum[2] = {0.f, 0.f};
        for (int k = 0; k < kDepth; ++k) {
          const float w = element<T>(b, column, k);
          for (int half = 0; half < 2; ++half) sum[half] += rows[half][k] * w;
        }
        for (int half = 0; half < 2; ++half) {
          float& target = sums[pair / 2 * 4 + 2 * half + pair % 2];
          target = (add ? target : 0.f) + sum[half];
        }
      }
    });
  }
};

// Registers of `a`, too, are read where the products are waited for: the lanes hand them round then.
template <int N, class T, bool kColumns>
struct WgmmaFromRegisters {
  static void run(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int add) {
    static_assert(!kColumns || N == 64);
    const int lane = threadIdx.x % 32;
    float* sums = d;
    const uint32_t* own = a;
    wgmma_queue().open.push_back([=] {
      const uint32_t* all = emulator::warp_exchange(own, 4);
      float rows[2][16];
      for (int half = 0; half < 2; ++half) {
        for (int k = 0; k < 16; ++k) {
          const uint32_t* from = all + (lane / 4 * 4 + k % 8 / 2) * emulator::kWords;
          rows[half][k] = pair_element(from[half + k / 8 * 2], k % 2, T{});
        }
      }
      for (int pair = 0; pair < N / 4; ++pair) {
        const int column = pair / 2 * 8 + lane % 4 * 2 + pair % 2;
        float sum[2] = {0.f, 0.f};
        for (int k = 0; k < 16; ++k) {
          const float w = kColumns ? element<T>(b, k, column) : element<T>(b, column, k);
          for (int half = 0; half < 2; ++half) sum[half] += rows[half][k] * w;
        }
        for (int half = 0; half < 2; ++half) {
          float& target = sums[pair / 2 * 4 + 2 * half + pair % 2];
          target = (add ? target : 0.f) + sum[half];
        }
      }
    });
  }
};

template <int kRegisters>
void keep_registers() {}
template <int kRegisters>
void take_registers() {}

}  // namespace varsr
