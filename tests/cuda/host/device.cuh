// The twin of csrc/cuda/device/device.cuh on a CPU.
#pragma once

#include <cstdint>

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

}  // namespace varsr
