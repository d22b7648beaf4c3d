// What is done with the sums of a product before they are written: the end of every op that multiplies.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simd.h"

namespace varsr {

enum class Kind : int64_t { kPlain, kGelu, kSilu, kGated };  // in step with kernels/linear/cpu_kernel.py

template <typename V>
inline V load_as(const float* p) {
  V value;
  std::memcpy(&value, p, sizeof(V));
  return value;
}

// out[r] = f(sums[r] + bias), f the identity, GELU (tanh form) or SiLU; or residual[r] + gate[r / rows_per] * (sums[r] +
// bias), where out may be residual. bias may be null.
struct Finish {
  const float *bias, *residual, *gate;
  int64_t gate_stride, rows_per;
  float* out;
  int64_t width;

  struct Row {
    float* out;
    const float *residual, *gate;
  };

  template <Kind kind>
  Row row(int64_t r) const {
    if (kind != Kind::kGated) return {out + r * width, nullptr, nullptr};
    return {out + r * width, residual + r * width, gate + (rows_per == 1 ? r : r / rows_per) * gate_stride};
  }

  // A register of sums of `row`, from `column` on.
  template <Kind kind, typename V>
  void store_finished(V sums, const Row& row, int64_t column) const {
    if (bias) sums = sums + load_as<V>(bias + column);
    if (kind == Kind::kGelu) sums = gelu(sums);
    if (kind == Kind::kSilu) sums = silu(sums);
    if (kind == Kind::kGated) sums = fma(load_as<V>(row.gate + column), sums, load_as<V>(row.residual + column));
    std::memcpy(row.out + column, &sums, sizeof(V));
  }
};

// run(std::integral_constant<Kind, kind>()): the kind as a constant, so that each has a loop of its own.
template <typename Run>
void for_kind(int64_t kind, const Run& run) {
  switch (static_cast<Kind>(kind)) {
    case Kind::kPlain: return run(std::integral_constant<Kind, Kind::kPlain>());
    case Kind::kGelu: return run(std::integral_constant<Kind, Kind::kGelu>());
    case Kind::kSilu: return run(std::integral_constant<Kind, Kind::kSilu>());
    case Kind::kGated: return run(std::integral_constant<Kind, Kind::kGated>());
  }
}

}  // namespace varsr
