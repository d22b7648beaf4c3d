// Hopper's PTX: barriers in shared memory, TMA loads, wgmma. Tests put tests/cuda/host/hopper.cuh in its place.
#pragma once

#include <cuda.h>
#include <cuda_fp8.h>

#include "wgmma_shapes.h"

namespace varsr {

using TensorMap = CUtensorMap;
using Barrier = uint64_t;

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// --- barriers --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void barrier_init(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}
// Makes initialised barriers visible to TMA.
__device__ __forceinline__ void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void barrier_arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and announces as many bytes of TMA loads.
__device__ __forceinline__ void barrier_expect(Barrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Waits until the phase of this parity has ended.
__device__ __forceinline__ void barrier_wait(Barrier* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over:\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// --- TMA -------------------------------------------------------------------------------------------------------------

// The box of `map` at (column, row) into shared memory; its bytes arrive at the barrier.
__device__ __forceinline__ void tma_load(void* to, const TensorMap* map, Barrier* barrier, int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row)
      : "memory");
}

// The same of a map of heads: rows `row`... of head (b, h).
__device__ __forceinline__ void tma_load_rows(void* to, const TensorMap* map, Barrier* barrier, int row, int h, int b) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(0), "r"(row), "r"(h), "r"(b)
      : "memory");
}

// cuTensorMapEncodeTiled. The driver's function is found at run time: nothing links to libcuda.
using EncodeTiled = decltype(&cuTensorMapEncodeTiled);
inline cudaError_t find_encode(EncodeTiled* encode) {
  static EncodeTiled known = nullptr;
  if (known == nullptr) {
    cudaDriverEntryPointQueryResult found;
    void* function = nullptr;
    const cudaError_t status =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    if (status != cudaSuccess) return status;
    if (function == nullptr) return cudaErrorNotSupported;
    known = reinterpret_cast<EncodeTiled>(function);
  }
  *encode = known;
  return cudaSuccess;
}

// Boxes of `box_rows` rows of 128 bytes, swizzled, of a row-major matrix; what lies beyond it reads as 0.
inline cudaError_t make_tensor_map(TensorMap* map, const void* data, CUtensorMapDataType type, int element_bytes,
                                   int rows, int columns, int box_rows) {
  EncodeTiled encode;
  const cudaError_t status = find_encode(&encode);
  if (status != cudaSuccess) return status;
  const cuuint64_t sizes[2] = {cuuint64_t(columns), cuuint64_t(rows)};
  const cuuint64_t strides[1] = {cuuint64_t(columns) * element_bytes};
  const cuuint32_t box[2] = {cuuint32_t(128 / element_bytes), cuuint32_t(box_rows)}, steps[2] = {1, 1};
  const CUresult result =
      encode(map, type, 2, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// Boxes of `box_rows` rows of a head, of a tensor (B, H, rows, 128 bytes) with strides in bytes, multiples of 16.
inline cudaError_t make_heads_map(TensorMap* map, const void* data, CUtensorMapDataType type, int element_bytes, int B,
                                  int H, int rows, int64_t stride_b, int64_t stride_h, int64_t stride_row,
                                  int box_rows) {
  EncodeTiled encode;
  const cudaError_t status = find_encode(&encode);
  if (status != cudaSuccess) return status;
  const cuuint64_t sizes[4] = {cuuint64_t(128 / element_bytes), cuuint64_t(rows), cuuint64_t(H), cuuint64_t(B)};
  const cuuint64_t strides[3] = {cuuint64_t(stride_row), cuuint64_t(stride_h), cuuint64_t(stride_b)};
  const cuuint32_t box[4] = {cuuint32_t(128 / element_bytes), cuuint32_t(box_rows), 1, 1}, steps[4] = {1, 1, 1, 1};
  const CUresult result =
      encode(map, type, 4, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <class T>
constexpr CUtensorMapDataType kMapType = std::is_same_v<T, __half>          ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                         : std::is_same_v<T, __nv_bfloat16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                                            : CU_TENSOR_MAP_DATA_TYPE_UINT8;

// --- wgmma -----------------------------------------------------------------------------------------------------------

// Rows of 128 bytes, swizzled by 128 in groups of eight: 1024 bytes from group to group.
__device__ __forceinline__ uint64_t wgmma_operand(const void* p) {
  const uint64_t address = shared_address(p);
  return (address & 0x3FFFF) >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}
// `bytes` further along the rows.
__device__ __forceinline__ uint64_t wgmma_advance(uint64_t operand, int bytes) { return operand + (bytes >> 4); }

__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most kOpen groups are under way.
template <int kOpen>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kOpen) : "memory");
}

// Keeps the compiler from using accumulators ahead of the wait for them: to it they are ready at once.
template <int kCount>
__device__ __forceinline__ void wgmma_settle(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// d (64, N) = a (64, 32 bytes) b (N, 32 bytes)^T, + d if `add`, by a warpgroup, float32 sums. With g = lane / 4 and
// t = lane % 4: d[4j + i] is row 16 warp + g + 8 (i / 2), column 8j + 2t + i % 2.
template <int N, class T>
struct Wgmma;

#define VARSR_UNPACK(...) __VA_ARGS__
#define VARSR_WGMMA(TYPE, SUFFIX, TAIL, N_, TEXT, ACC, A, B, ADD)                                                  \
  template <>                                                                                                      \
  struct Wgmma<N_, TYPE> {                                                                                         \
    static __device__ __forceinline__ void run(float (&d)[N_ / 2], uint64_t a, uint64_t b, int add) {              \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N_ SUFFIX    \
                   " {" TEXT "}, " A ", " B ", p, 1, 1" TAIL ";\n}"                                                \
                   : VARSR_UNPACK ACC                                                                              \
                   : "l"(a), "l"(b), "r"(add));                                                                    \
    }                                                                                                              \
  };
#define VARSR_WGMMA_HALF(...) VARSR_WGMMA(__half, "k16.f32.f16.f16", ", 0, 0", __VA_ARGS__)
#define VARSR_WGMMA_BFLOAT16(...) VARSR_WGMMA(__nv_bfloat16, "k16.f32.bf16.bf16", ", 0, 0", __VA_ARGS__)
#define VARSR_WGMMA_E4M3(...) VARSR_WGMMA(__nv_fp8_e4m3, "k32.f32.e4m3.e4m3", "", __VA_ARGS__)
VARSR_WGMMA_SHAPES(VARSR_WGMMA_HALF)
VARSR_WGMMA_SHAPES(VARSR_WGMMA_BFLOAT16)
VARSR_WGMMA_SHAPES(VARSR_WGMMA_E4M3)

// The same with a (64, 16) in registers, a warp's 16 rows as of mma_16x8x16. kColumns: b (16, N) lies in rows of k, 64
// columns each, so that a step of k is 16 rows of 128 bytes further. Registers of `a` are read until the products end.
template <int N, class T, bool kColumns>
struct WgmmaFromRegisters;

#define VARSR_WGMMA_A(TYPE, SUFFIX, N_, TEXT, ACC, A0, A1, A2, A3, B, ADD, COLUMNS, FLAG)                             \
  template <>                                                                                                         \
  struct WgmmaFromRegisters<N_, TYPE, COLUMNS> {                                                                      \
    static __device__ __forceinline__ void run(float (&d)[N_ / 2], const uint32_t (&a)[4], uint64_t b, int add) {     \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N_ "k16" SUFFIX \
                   " {" TEXT "}, {" A0 ", " A1 ", " A2 ", " A3 "}, " B ", p, 1, 1, " FLAG ";\n}"                      \
                   : VARSR_UNPACK ACC                                                                                 \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                                   \
    }                                                                                                                 \
  };
#define VARSR_WGMMA_A_BOTH(TYPE, SUFFIX)                                                                              \
  VARSR_WGMMA_A(TYPE, SUFFIX, 64, VARSR_TEXT_8, (VARSR_ACC_8), "%32", "%33", "%34", "%35", "%36", "%37", true, "1")   \
  VARSR_WGMMA_A(TYPE, SUFFIX, 128, VARSR_TEXT_16, (VARSR_ACC_16), "%64", "%65", "%66", "%67", "%68", "%69", false, "0")
VARSR_WGMMA_A_BOTH(__half, ".f32.f16.f16")
VARSR_WGMMA_A_BOTH(__nv_bfloat16, ".f32.bf16.bf16")

// --- registers of a warpgroup ----------------------------------------------------------------------------------------

template <int kRegisters>
__device__ __forceinline__ void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace varsr
