// The argmax as the largest of 64-bit keys, for reductions in any order.
#pragma once

#include "kernel.cuh"

namespace varsr {

// A key that orders as (value, then the lower index) do: the largest is the argmax. -0 is equal to 0, their bits are not.
__device__ __forceinline__ uint64_t argmax_key(float value, int index) {
  const uint32_t bits = __float_as_uint(value == 0.f ? 0.f : value);
  const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | ~static_cast<uint32_t>(index);
}

}  // namespace varsr
