// Gaussian noise from Philox4x32-10: kernels/philox/reference.py says what it computes.
#include <cmath>
#include <cstdint>

namespace {

struct Words {
  uint32_t w[4];
};

inline Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t seed) {
  auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = 0xD2511F53ull * c0, b = 0xCD9E8D57ull * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(b);
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// In [0, 1]: the sign bit mirrors the word, then it is scaled by 2^-31.
inline float to_uniform(uint32_t word) {
  return static_cast<float>(word >> 31 ? ~word : word) * 4.6566127342e-10f;
}

}  // namespace

// out (steps, B, N, count): elements of seeds[b] at positions[b * stride + n], times std[b] where it is given.
extern "C" void varsr_cpu_philox_normal(const int64_t* seeds, const int64_t* positions, int64_t position_stride,
                                        const float* std, int64_t first_step, int64_t steps, int64_t stream, float* out,
                                        int64_t B, int64_t N, int64_t count) {
#pragma omp parallel for if (steps * B * N * count >= 1 << 12)
  for (int64_t row = 0; row < steps * B * N; ++row) {
    const int64_t step = first_step + row / (B * N), b = row / N % B, n = row % N;
    const auto position = static_cast<uint32_t>(positions[b * position_stride + n]);
    const float scale = std ? std[b] : 1.0f;
    float* to = out + row * count;
    for (int64_t group = 0; 4 * group < count; ++group) {
      const Words words = philox(static_cast<uint32_t>(group), position, static_cast<uint32_t>(step),
                                 static_cast<uint32_t>(stream), static_cast<uint64_t>(seeds[b]));
      for (int64_t pair = 0; pair < 4 && 4 * group + pair < count; pair += 2) {
        const float first = std::fmax(to_uniform(words.w[pair]), 1e-7f);
        const float radius = std::sqrt(-2.0f * std::log(first));
        const float angle = 6.2831853071795865f * to_uniform(words.w[pair + 1]);
        to[4 * group + pair] = radius * std::cos(angle) * scale;
        if (4 * group + pair + 1 < count) to[4 * group + pair + 1] = radius * std::sin(angle) * scale;
      }
    }
  }
}
