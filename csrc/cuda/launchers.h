// The launchers of all kernels: raw device pointers, sizes, a stream. Whoever calls has checked shapes, dtypes, strides
// and alignment (kernels/<op>/cuda_kernel.py). A dtype is 0 float32, 1 float16, 2 bfloat16. Strides count elements.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace varsr {

cudaError_t adaln(const void* x, const void* scale, const void* shift, void* out, int64_t rows, int L, int C,
                  int64_t stride_scale, int64_t stride_shift, float eps, int in_dtype, int out_dtype,
                  cudaStream_t stream);

cudaError_t qkv_norm_rope_cache(const void* product, const void* bias, const float* q_scale, const float* cos,
                                const float* sin, void* q, void* k, void* v, int64_t stride_qb, int64_t stride_qh,
                                int64_t stride_ql, int64_t stride_kb, int64_t stride_kh, int64_t stride_kl,
                                int64_t stride_vb, int64_t stride_vh, int64_t stride_vl, int B, int L, int first_part,
                                int parts, int H, int D, int dtype, cudaStream_t stream);

cudaError_t guidance(const float* cond, const float* uncond, const float* ratio, void* out, int B, int64_t size,
                     int dtype, cudaStream_t stream);

cudaError_t bias_argmax(float* logits, const void* bias, int64_t* tokens, int rows, int V, int dtype,
                        cudaStream_t stream);

cudaError_t philox_normal(const int64_t* seeds, const int64_t* positions, const float* std, float* out, int steps, int B,
                          int N, int count, int64_t stride_seed, int64_t stride_pb, int64_t stride_pn,
                          uint32_t first_step, uint32_t stream_id, cudaStream_t stream);

// noise, or seeds and the rest of a Philox draw, or neither at the last step.
cudaError_t refiner_update(const float* hidden, const void* shift, const void* scale, const void* weight,
                           const void* bias, const float* x, const float* ratio, const float* noise,
                           const int64_t* seeds, const int64_t* positions, const float* std, float* out,
                           int64_t stride_shift, int64_t stride_scale, int64_t stride_pb, int64_t stride_pn, int B,
                           int N, int W, int Z, float eps, float x0_from_x, float x0_from_eps, float mean_from_x0,
                           float mean_from_x, float log_beta, float log_beta_tilde, bool last, uint32_t step,
                           uint32_t stream_id, int weight_dtype, int modulation_dtype, cudaStream_t stream);

// moments (B, ceil(P / chunk_pixels), G, 2) float32: a group's mean in a chunk, and its sum of squared distances from it.
cudaError_t group_moments(const void* x, float* moments, int B, int P, int C, int G, int chunk_pixels, int dtype,
                          cudaStream_t stream);
cudaError_t group_normalise(const void* x, const float* moments, const void* weight, const void* bias, void* out,
                            int B, int P, int C, int G, int chunk_pixels, int block_pixels, float eps, bool silu,
                            int dtype, cudaStream_t stream);

cudaError_t handoff_accumulate(const int64_t* tokens, const float* codebook, const float* upsample, const float* phi,
                               const float* phi_bias, float ratio, float* f_hat, int64_t stride_fb, int64_t stride_fz,
                               int64_t stride_fy, int64_t stride_fx, int B, int Z, int P, int side,
                               cudaStream_t stream);
cudaError_t handoff_pool_embed(const float* f_hat, int64_t stride_fb, int64_t stride_fz, int64_t stride_fy,
                               int64_t stride_fx, const float* downsample, const float* weight, const float* bias,
                               float* out, int B, int Z, int P, int next, int C, int copies, cudaStream_t stream);

// Heads of 64, S > 0, L > 0. bound may be null. A tile is `rows` (16 or 64) queries of a head; `ranges` blocks, at most as
// many as tiles times ceil(S / 64). parts: 2 * ranges * rows / 16 of 4,608 bytes; counters: zeros, rows / 16 a tile.
cudaError_t scale_attention(const void* q, const void* k, const void* v, const float* bound, void* out, void* parts,
                            int* counters, int64_t stride_qb, int64_t stride_qh, int64_t stride_ql, int64_t stride_kb,
                            int64_t stride_kh, int64_t stride_kl, int64_t stride_vb, int64_t stride_vh,
                            int64_t stride_vl, int64_t stride_ob, int64_t stride_ol, int B, int H, int L, int S,
                            int rows, int ranges, int dtype, cudaStream_t stream);
// On Hopper: tiles of 128 queries, blocks of 128 keys; strides of k and v are positive.
cudaError_t scale_attention_sm90(const void* q, const void* k, const void* v, const float* bound, void* out,
                                 void* parts, int* counters, int64_t stride_qb, int64_t stride_qh, int64_t stride_ql,
                                 int64_t stride_kb, int64_t stride_kh, int64_t stride_kl, int64_t stride_vb,
                                 int64_t stride_vh, int64_t stride_vl, int64_t stride_ob, int64_t stride_ol, int B,
                                 int H, int L, int S, int ranges, int dtype, cudaStream_t stream);

// --- Hopper's products (product_sm90.cu), x (M, K) by weight (N, K): float16 or bfloat16, `tile` 1000 rows + columns ---

// x and weight may be e4m3, with a scale a row and a column; bias and out are of `dtype`.
cudaError_t product_sm90(const void* x, const void* weight, const void* bias, void* out, const float* row_scale,
                         const float* column_scale, int M, int N, int K, bool gelu, bool e4m3, int dtype, int tile,
                         int multiprocessors, cudaStream_t stream);
cudaError_t product_gated_residual_sm90(const void* x, const void* weight, const void* bias, const float* gate,
                                        const float* residual, float* out, int64_t stride_gate, int L, int M, int N,
                                        int K, int dtype, int tile, int multiprocessors, cudaStream_t stream);
// Heads of 64.
cudaError_t product_qkv_sm90(const void* x, const void* weight, const void* bias, const float* q_scale,
                             const float* cos, const float* sin, void* q, void* k, void* v, int64_t stride_qb,
                             int64_t stride_qh, int64_t stride_ql, int64_t stride_kb, int64_t stride_kh,
                             int64_t stride_kl, int64_t stride_vb, int64_t stride_vh, int64_t stride_vl, int M, int L,
                             int first_query, int H, int dtype, int tile, int multiprocessors, cudaStream_t stream);
// keys (M,) are zeros.
cudaError_t product_argmax_sm90(const void* x, const void* weight, const void* bias, float* logits, uint64_t* keys,
                                int64_t* tokens, int M, int N, int K, int dtype, int tile, int multiprocessors,
                                cudaStream_t stream);

}  // namespace varsr
