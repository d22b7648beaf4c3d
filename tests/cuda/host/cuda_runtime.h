// As much of CUDA's runtime, and of its C++, as the sources in csrc/cuda use, for a C++ compiler.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "emulator.h"

// --- language --------------------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

static emulator::Index &threadIdx = emulator::place.thread, &blockIdx = emulator::place.block;
static emulator::Index &blockDim = emulator::place.block_dim, &gridDim = emulator::place.grid_dim;

using std::max;
using std::min;

struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline void __syncthreads() { emulator::block_barrier(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  uint32_t words[2] = {0, 0};
  std::memcpy(words, &value, sizeof(T));
  const uint32_t* all = emulator::warp_exchange(words, 2);
  std::memcpy(&value, all + ((threadIdx.x % 32) ^ mask) * emulator::kWords, sizeof(T));
  return value;
}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  uint32_t words[2] = {0, 0};
  std::memcpy(words, &value, sizeof(T));
  const uint32_t* all = emulator::warp_exchange(words, 2);
  std::memcpy(&value, all + lane * emulator::kWords, sizeof(T));
  return value;
}
inline void __syncwarp() { emulator::warp_exchange(nullptr, 0); }

inline void __threadfence() {}  // blocks follow one another
inline int atomicAdd(int* p, int value) {
  const int before = *p;
  *p += value;
  return before;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}

inline unsigned long long atomicMax(unsigned long long* p, unsigned long long value) {
  const unsigned long long before = *p;
  *p = std::max(before, value);
  return before;
}

inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline void sincospif(float x, float* sine, float* cosine) {
  *sine = static_cast<float>(sin(M_PI * static_cast<double>(x)));
  *cosine = static_cast<float>(cos(M_PI * static_cast<double>(x)));
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32); }
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// --- runtime ---------------------------------------------------------------------------------------------------------

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchFailure = 719
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization };
struct CUstream_st;
using cudaStream_t = CUstream_st*;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  int numAttrs = 0;
};

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int);
cudaError_t cudaGetDevice(int*);
cudaError_t cudaSetDevice(int);
cudaError_t cudaGetLastError();
cudaError_t cudaRuntimeGetVersion(int*);
const char* cudaGetErrorName(cudaError_t);
const char* cudaGetErrorString(cudaError_t);

cudaError_t emulated_launch(const std::function<void()>& thread, const cudaLaunchConfig_t& config);

template <class... P>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), P... arguments) {
  return emulated_launch([=] { kernel(arguments...); }, *config);
}
