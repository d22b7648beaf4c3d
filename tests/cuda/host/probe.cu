// What tests ask of the emulator itself: conversions, the tensor cores' layout, and kernels with planted faults.
#include "kernel.cuh"

namespace varsr {

bool programmatic_launches = false;

namespace {

enum Fault { kNone, kNoBarrier, kHalfAtBarrier, kHalfAtShuffle, kOverrun, kUnwritten };

// out[i] = the value of thread 63 - i, through shared memory.
__global__ void mirror_kernel(const float* in, float* out, int fault) {
  float* shared = dynamic_shared<float>();
  const int i = threadIdx.x;
  if (fault == kHalfAtBarrier && i >= 32) return;
  if (fault != kUnwritten || i != 5) shared[i] = in[i];
  if (fault == kOverrun && i == 0) shared[64] = 1.f;
  if (fault != kNoBarrier) __syncthreads();
  float value = shared[63 - i];
  if (fault != kHalfAtShuffle || i % 2 == 0) value += 0.f * __shfl_xor_sync(kAllLanes, value, 2);
  out[i] = value;
}

template <class T>
__global__ void product_kernel(const uint32_t* a, const uint32_t* b, float* d) {  // fragments, lane by lane
  const int lane = threadIdx.x;
  uint32_t a_pairs[4], b_pairs[2];
  for (int i = 0; i < 4; ++i) a_pairs[i] = a[lane * 4 + i];
  for (int i = 0; i < 2; ++i) b_pairs[i] = b[lane * 2 + i];
  float sum[4] = {0.f, 0.f, 0.f, 0.f};
  mma_16x8x16(sum, a_pairs, b_pairs, T{});
  for (int i = 0; i < 4; ++i) d[lane * 4 + i] = sum[i];
}

}  // namespace
}  // namespace varsr

#define EXPORTED extern "C" __attribute__((visibility("default")))
using namespace varsr;

EXPORTED int probe_mirror(const float* in, float* out, int fault) {
  return launch(mirror_kernel, dim3(1), 64, 64 * sizeof(float), nullptr, in, out, fault);
}
EXPORTED int probe_product(const uint32_t* a, const uint32_t* b, float* d, int bfloat16) {
  if (bfloat16) return launch(product_kernel<__nv_bfloat16>, dim3(1), 32, 0, nullptr, a, b, d);
  return launch(product_kernel<__half>, dim3(1), 32, 0, nullptr, a, b, d);
}
EXPORTED void probe_convert(const uint16_t* half, float* wide, const float* in, uint16_t* to_half, uint16_t* to_bfloat16,
                            int count) {
  for (int i = 0; i < count; ++i) {
    wide[i] = __half2float({half[i]});
    to_half[i] = __float2half_rn(in[i]).bits;
    to_bfloat16[i] = __float2bfloat16_rn(in[i]).bits;
  }
}
EXPORTED const char* probe_failure() { return cudaGetErrorString(cudaErrorLaunchFailure); }
