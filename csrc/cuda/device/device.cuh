// What only a GPU can do: PTX and shared memory. Tests put tests/cuda/host/device.cuh, the same in C++, in its place.
#pragma once

#include <cstdint>

namespace varsr {

// `type name[count]` in a block's shared memory.
#define VARSR_SHARED(type, name, count) __shared__ type name[count]

// The shared memory that a launch asks for, 16-byte aligned.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char varsr_dynamic_shared[];
  return reinterpret_cast<T*>(varsr_dynamic_shared);
}

// Programmatic dependent launch. A kernel waits before it touches what an earlier one may have written or still reads;
// it starts the next one early, whose own wait is for this one's end.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void start_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// d (16, 8) += a (16, 16) b (16, 8) by a warp, float32 sums. With g = lane / 4 and t = lane % 4, each register a pair:
// a = rows (g, g + 8, g, g + 8) at k = (2t, 2t, 2t + 8, 2t + 8); b = column g at k = (2t, 2t + 8);
// d = row g, columns 2t and 2t + 1, then row g + 8.
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                            __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace varsr
