// Philox4x32-10 and its normals: the words of kernels/philox/reference.py, bit for bit.
#pragma once

#include "kernel.cuh"

namespace varsr {

struct Words {
  uint32_t w[4];
};

// The words of counter (group, position, step, stream), key = seed.
__device__ __forceinline__ Words philox_words(uint64_t seed, uint32_t group, uint32_t position, uint32_t step,
                                              uint32_t stream) {
  uint32_t c0 = group, c1 = position, c2 = step, c3 = stream;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high_a = __umulhi(0xD2511F53u, c0), low_a = 0xD2511F53u * c0;
    const uint32_t high_b = __umulhi(0xCD9E8D57u, c2), low_b = 0xCD9E8D57u * c2;
    c0 = high_b ^ c1 ^ k0;
    c1 = low_b;
    c2 = high_a ^ c3 ^ k1;
    c3 = low_a;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// float32 in [0, 1]: the sign bit mirrors the word, then it is scaled by 2^-31.
__device__ __forceinline__ float uniform_of_word(uint32_t word) {
  return static_cast<float>(static_cast<int32_t>(word >> 31 ? ~word : word)) * 4.6566127342e-10f;
}

// Four normals by the Box-Muller transform. sincospi: of 2 u, and without a table for angles that do not occur.
__device__ __forceinline__ void normals_of_words(const Words& words, float (&normal)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const float radius = sqrtf(-2.f * logf(fmaxf(uniform_of_word(words.w[i]), 1e-7f)));
    float sine, cosine;
    sincospif(2.f * uniform_of_word(words.w[i + 1]), &sine, &cosine);
    normal[i] = radius * cosine;
    normal[i + 1] = radius * sine;
  }
}

}  // namespace varsr
