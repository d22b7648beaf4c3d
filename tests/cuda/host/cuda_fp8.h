// e4m3 on a CPU: sign, four bits of exponent with bias 7, three of fraction; no infinity.
#pragma once

#include "cuda_runtime.h"

struct __nv_fp8_e4m3 {
  uint8_t bits;
};

inline float e4m3_to_float(uint8_t bits) {
  const int exponent = bits >> 3 & 15, fraction = bits & 7;
  const float magnitude = (bits & 0x7f) == 0x7f ? NAN
                          : exponent == 0       ? std::ldexp(static_cast<float>(fraction), -9)
                                                : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
  return bits & 0x80 ? -magnitude : magnitude;
}
