"""refiner_update in Triton: one kernel, whose programs take a few tokens with both branches and all output channels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from varsr_engine.kernels.philox.triton_kernel import philox_normal_triton
from varsr_engine.kernels.refiner_update.reference import DenoiseStep, Noise

TOKENS = 8  # a program: with both branches the 16 rows that a tensor core takes, and 128 programs for 1024 tokens
WIDEST = 128  # latent channels: the weights of as many are a step's tile


@triton.jit
def row_statistics(x_rows, mask_m, eps, W: tl.constexpr, ROWS: tl.constexpr, BLOCK_W: tl.constexpr):
    """Mean and 1 / standard deviation (ROWS,) of rows of W elements, by parts of BLOCK_W whose moments are merged."""
    mean = tl.zeros((ROWS,), tl.float32)
    square = tl.zeros((ROWS,), tl.float32)  # sum of squared distances from the mean
    for start in range(0, W, BLOCK_W):
        offs_w = start + tl.arange(0, BLOCK_W)
        mask = mask_m[:, None] & (offs_w < W)[None, :]
        x = tl.load(x_rows[:, None] + offs_w[None, :], mask=mask, other=0.0).to(tl.float32)
        count = min(W - start, BLOCK_W)
        part = tl.sum(x, axis=1) / count
        centred = tl.where((offs_w < W)[None, :], x - part[:, None], 0.0)
        delta = part - mean
        share = count / (start + count)
        square += tl.sum(centred * centred, axis=1) + delta * delta * (start * share)
        mean += delta * share
    return mean, tl.rsqrt(square / W + eps)


@triton.jit(do_not_specialize=["M", "N"])
def refiner_update_fwd_kernel(
    hidden_ptr,  # (2, M, W)
    scale_ptr,  # (2 * M, W), rows stride_scale apart
    shift_ptr,
    weight_ptr,  # (2Z, W)
    bias_ptr,  # (2Z,)
    x_ptr,  # (M, Z)
    ratio_ptr,  # (B,)
    noise_ptr,  # (M, Z)
    out_ptr,  # (M, Z)
    stride_scale,
    stride_shift,
    M,
    N,  # tokens an image: M = B * N
    eps,
    x0_from_x,
    x0_from_eps,
    mean_from_x0,
    mean_from_x,
    log_beta,
    log_beta_tilde,
    W: tl.constexpr,
    Z: tl.constexpr,
    LAST: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_Z: tl.constexpr,
):
    # Rows 0 to TOKENS - 1 are the conditional branch, the others the unconditional one of the same tokens.
    rows = tl.arange(0, 2 * TOKENS)
    token = tl.program_id(0) * TOKENS + rows % TOKENS
    mask_m = token < M
    row = ((rows // TOKENS) * M + token).to(tl.int64)
    mean, rstd = row_statistics(hidden_ptr + row * W, mask_m, eps, W, 2 * TOKENS, BLOCK_W)

    offs_z = tl.arange(0, BLOCK_Z)
    mask_z = offs_z < Z
    noise_estimate = tl.zeros((2 * TOKENS, BLOCK_Z), tl.float32)
    variance = tl.zeros((2 * TOKENS, BLOCK_Z), tl.float32)
    for start in range(0, W, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K)
        mask_k = offs_k < W
        mask = mask_m[:, None] & mask_k[None, :]
        x = tl.load(hidden_ptr + row[:, None] * W + offs_k[None, :], mask=mask, other=0.0).to(tl.float32)
        scale = tl.load(scale_ptr + row[:, None] * stride_scale + offs_k[None, :], mask=mask, other=0.0)
        shift = tl.load(shift_ptr + row[:, None] * stride_shift + offs_k[None, :], mask=mask, other=0.0)
        y = (x - mean[:, None]) * rstd[:, None] * (1.0 + scale.to(tl.float32)) + shift.to(tl.float32)
        h = y.to(weight_ptr.dtype.element_ty)
        w_offs = offs_z[None, :] * W + offs_k[:, None]  # beyond W the weights are zero, whatever h is
        w_mask = mask_k[:, None] & mask_z[None, :]
        w = tl.load(weight_ptr + w_offs, mask=w_mask, other=0.0)
        noise_estimate = tl.dot(h, w, noise_estimate, input_precision="ieee")
        if not LAST:
            w = tl.load(weight_ptr + Z * W + w_offs, mask=w_mask, other=0.0)
            variance = tl.dot(h, w, variance, input_precision="ieee")

    bias = tl.load(bias_ptr + offs_z, mask=mask_z, other=0.0).to(tl.float32)
    ratio = tl.load(ratio_ptr + token // N, mask=mask_m, other=0.0).to(tl.float32)
    branch = rows // TOKENS
    factor = tl.where(branch == 0, 1.0 + ratio, -ratio)
    guided = tl.sum(tl.reshape(factor[:, None] * (noise_estimate + bias[None, :]), (2, TOKENS, BLOCK_Z)), axis=0)

    offs_m = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    mask = (offs_m < M)[:, None] & mask_z[None, :]
    offs = offs_m.to(tl.int64)[:, None] * Z + offs_z[None, :]
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    x0 = x0_from_x * x - x0_from_eps * guided
    x0 = tl.minimum(tl.maximum(x0, -1.0), 1.0)
    result = mean_from_x0 * x0 + mean_from_x * x
    if not LAST:
        bias = tl.load(bias_ptr + Z + offs_z, mask=mask_z, other=0.0).to(tl.float32)
        v = tl.where(branch[:, None] == 0, variance + bias[None, :], 0.0)  # the other branch's is not used
        upper = (tl.sum(tl.reshape(v, (2, TOKENS, BLOCK_Z)), axis=0) + 1.0) / 2.0
        noise = tl.load(noise_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        result += tl.exp(0.5 * (upper * log_beta + (1.0 - upper) * log_beta_tilde)) * noise
    tl.store(out_ptr + offs, result.to(out_ptr.dtype.element_ty), mask=mask)


def why_not(
    hidden: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    x: torch.Tensor,
    ratio: torch.Tensor,
    step: DenoiseStep,
    noise: torch.Tensor | Noise | None,
    eps: float = 1e-6,
) -> str | None:
    return f"Z is {x.shape[-1]}, more than {WIDEST}" if x.shape[-1] > WIDEST else None


def rows_of(t: torch.Tensor) -> torch.Tensor:
    """The rows (2 B N, W) of a modulation, a view where they are evenly spaced, as in a slice of a wider matrix."""
    rows = t.flatten(0, 2)
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def refiner_update_triton(
    hidden: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    x: torch.Tensor,
    ratio: torch.Tensor,
    step: DenoiseStep,
    noise: torch.Tensor | Noise | None,
    eps: float = 1e-6,
) -> torch.Tensor:
    (B, N, Z), W = x.shape, hidden.shape[-1]
    x, shift, scale = x.contiguous(), rows_of(shift), rows_of(scale)
    out = torch.empty_like(x)
    if out.numel() == 0:
        return out
    if isinstance(noise, Noise):
        steps = range(noise.step, noise.step + 1)
        noise = philox_normal_triton(noise.seeds, noise.positions, Z, steps, noise.stream, noise.std)[0]
    refiner_update_fwd_kernel[(triton.cdiv(B * N, TOKENS),)](
        hidden.contiguous(),
        scale,
        shift,
        weight.contiguous(),
        bias.contiguous(),
        x,
        ratio.contiguous(),
        x if step.last or noise is None else noise.contiguous(),  # the last step reads none
        out,
        scale.stride(0),
        shift.stride(0),
        B * N,
        N,
        eps,
        *step[1:-1],
        W=W,
        Z=Z,
        LAST=step.last,
        TOKENS=TOKENS,
        BLOCK_W=min(triton.next_power_of_2(W), 512),
        BLOCK_K=128 if weight.element_size() == 2 else 32,
        BLOCK_Z=max(16, triton.next_power_of_2(Z)),
        num_warps=4,
        num_stages=3,
    )
    return out
