"""refiner_embed in Triton: a program takes the same columns of some tokens' rows in both branches."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from varsr_engine.kernels.panels import is_packed

TOKENS, COLUMNS = 32, 64
WIDEST = 128  # latent channels: a program holds all of them


@triton.jit(do_not_specialize=["M"])
def refiner_embed_fwd_kernel(
    cond_ptr,  # (2M, W)
    time_ptr,  # (W,)
    x_ptr,  # (M, Z)
    weight_ptr,  # (W, Z)
    bias_ptr,  # (W,)
    y_ptr,  # (2M, W)
    h_ptr,  # (2M, W)
    M,
    W,
    Z: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_Z: tl.constexpr,
):
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_w = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    offs_z = tl.arange(0, BLOCK_Z)
    mask_m, mask_w, mask_z = offs_m < M, offs_w < W, offs_z < Z
    x = tl.load(
        x_ptr + offs_m.to(tl.int64)[:, None] * Z + offs_z[None, :], mask=mask_m[:, None] & mask_z[None, :], other=0.0
    )
    w = tl.load(weight_ptr + offs_w[:, None] * Z + offs_z[None, :], mask=mask_w[:, None] & mask_z[None, :], other=0.0)
    bias = tl.load(bias_ptr + offs_w, mask=mask_w, other=0.0).to(tl.float32)
    time = tl.load(time_ptr + offs_w, mask=mask_w, other=0.0).to(tl.float32)
    h = tl.dot(x.to(weight_ptr.dtype.element_ty), w.T, input_precision="ieee") + bias[None, :]
    mask = mask_m[:, None] & mask_w[None, :]
    for branch in tl.static_range(2):
        offs = (branch * M + offs_m).to(tl.int64)[:, None] * W + offs_w[None, :]
        y = tl.load(cond_ptr + offs, mask=mask, other=0.0).to(tl.float32) + time[None, :]
        tl.store(y_ptr + offs, (y * tl.sigmoid(y)).to(y_ptr.dtype.element_ty), mask=mask)
        tl.store(h_ptr + offs, h.to(h_ptr.dtype.element_ty), mask=mask)


def why_not(
    cond: torch.Tensor, time: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> str | None:
    if is_packed(weight):
        return "the weight is packed for a CPU"
    return f"Z is {x.shape[1]}, more than {WIDEST}" if x.shape[1] > WIDEST else None


def refiner_embed_triton(
    cond: torch.Tensor, time: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    (M, Z), W = x.shape, weight.shape[0]
    y = torch.empty(2 * M, W, device=x.device, dtype=weight.dtype)
    h = torch.empty(2 * M, W, device=x.device, dtype=x.dtype)
    if y.numel() > 0:
        refiner_embed_fwd_kernel[(triton.cdiv(M, TOKENS), triton.cdiv(W, COLUMNS))](
            cond.contiguous(),
            time.contiguous(),
            x.contiguous(),
            weight.contiguous(),
            bias.contiguous(),
            y,
            h,
            M,
            W,
            Z=Z,
            BLOCK_M=TOKENS,
            BLOCK_W=COLUMNS,
            BLOCK_Z=max(16, triton.next_power_of_2(Z)),
            num_warps=4,
        )
    return y, h
