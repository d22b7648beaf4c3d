// The twin of csrc/cuda/device/device.cuh on a CPU.
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <vector>

#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace varsr {

#define VARSR_SHARED(type, name, count)   \
  static const char name##_key_ = 0;      \
  type* name = static_cast<type*>(emulator::static_shared(&name##_key_, sizeof(type) * (count)))

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(emulator::dynamic_shared());
}

inline void wait_for_previous_kernel() {}
inline void start_next_kernel() {}

inline float pair_element(uint32_t pair, int i, __half) { return __half2float({uint16_t(pair >> 16 * i)}); }
inline float pair_element(uint32_t pair, int i, __nv_bfloat16) { return __bfloat162float({uint16_t(pair >> 16 * i)}); }

// By the layout that PTX documents for mma.m16n8k16, element by element.
template <class T>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T type) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const uint32_t* all = emulator::warp_exchange(words, 6);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    float sum = d[i];
    for (int k = 0; k < 16; ++k) {
      const uint32_t* from_a = all + (row % 8 * 4 + k % 8 / 2) * emulator::kWords;
      const uint32_t* from_b = all + (column * 4 + k % 8 / 2) * emulator::kWords;
      sum += pair_element(from_a[row / 8 + k / 8 * 2], k % 2, type) * pair_element(from_b[4 + k / 8], k % 2, type);
    }
    d[i] = sum;
  }
}

inline uint32_t pack_pair(float low, float high, __half) {
  return __float2half_rn(low).bits | uint32_t{__float2half_rn(high).bits} << 16;
}
inline uint32_t pack_pair(float low, float high, __nv_bfloat16) {
  return __float2bfloat16_rn(low).bits | uint32_t{__float2bfloat16_rn(high).bits} << 16;
}

inline float exp2_fast(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.f : y;
}

// Element `i` of row `row` of matrix `matrix`, whose rows are where the lanes say.
inline uint32_t matrix_element(const uint32_t* all, int matrix, int row, int i) {
  const unsigned char* p;
  std::memcpy(&p, all + (8 * matrix + row) * emulator::kWords, sizeof(p));
  uint16_t value;
  std::memcpy(&value, p + 2 * i, sizeof(value));
  return value;
}
inline const uint32_t* exchange_rows(const void* row) {
  uint32_t words[2];
  static_assert(sizeof(words) == sizeof(row));
  std::memcpy(words, &row, sizeof(row));
  return emulator::warp_exchange(words, 2);
}
inline void load_matrices(uint32_t (&r)[4], const void* row) {
  const uint32_t* all = exchange_rows(row);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int m = 0; m < 4; ++m) r[m] = matrix_element(all, m, g, 2 * t) | matrix_element(all, m, g, 2 * t + 1) << 16;
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  const uint32_t* all = exchange_rows(row);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int m = 0; m < 4; ++m) r[m] = matrix_element(all, m, 2 * t, g) | matrix_element(all, m, 2 * t + 1, g) << 16;
}

// Every other thread copies at once, the earliest that a GPU may, the rest where the copy is waited for, the latest: a
// buffer that is overwritten too early shows, and one that is read too early.
struct CopyQueue {
  std::deque<std::vector<std::function<void()>>> groups;
  std::vector<std::function<void()>> open;
};
inline CopyQueue& copy_queue() {
  static std::vector<CopyQueue> queues(1024);
  return queues[emulator::thread_number()];
}
inline void copy_async(void* to, const void* from, bool inside) {
  const auto copy = [=] {
    if (inside) {
      std::memcpy(to, from, 16);
    } else {
      std::memset(to, 0, 16);
    }
  };
  if (emulator::thread_number() % 2 == 0) {
    copy();
  } else {
    copy_queue().open.push_back(copy);
  }
}
inline void copy_commit() {
  copy_queue().groups.push_back(std::move(copy_queue().open));
  copy_queue().open.clear();
}
template <int kOpen>
void copy_wait() {
  auto& groups = copy_queue().groups;
  while (static_cast<int>(groups.size()) > kOpen) {
    for (const auto& copy : groups.front()) copy();
    groups.pop_front();
  }
}

}  // namespace varsr
