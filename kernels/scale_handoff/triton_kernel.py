"""scale_handoff in Triton: one kernel writes f_hat, a row of the map a program; the next reads all of it.

The upsampled map is never stored. A row of it needs few rows of tokens, those to which the matrix gives a weight, and
the convolution runs before the row is stretched: phi is linear, and it is cheaper on p_k columns than on p.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from varsr_engine.kernels.scale_handoff.reference import Handoff

WIDEST = 64  # p and Z, which set the tiles; beyond 32 channels these spill


@triton.jit
def occupied(weights, offs):
    """First and last of `offs` with a weight other than 0; a dense row has all of them."""
    used = weights != 0.0
    return tl.min(tl.where(used, offs, offs.shape[0]), axis=0), tl.max(tl.where(used, offs, -1), axis=0)


@triton.jit
def phi_weight(phi_ptr, offs_z, offs_o, ratio, ROW: tl.constexpr, COLUMN: tl.constexpr, Z: tl.constexpr):
    """(in, out) of r phi + (1 - r) at one place of the window: the identity is a window with 1 in its centre."""
    mask = (offs_z < Z)[:, None] & (offs_o < Z)[None, :]
    place = phi_ptr + offs_o[None, :] * (9 * Z) + offs_z[:, None] * 9 + (3 * ROW + COLUMN)
    weight = ratio * tl.load(place, mask=mask, other=0.0).to(tl.float32)
    if ROW == 1 and COLUMN == 1:
        weight += tl.where(offs_z[:, None] == offs_o[None, :], 1.0 - ratio, 0.0)
    return weight


@triton.jit
def conv_rows(phi_ptr, above, here, below, offs_z, offs_o, ratio, COLUMN: tl.constexpr, Z: tl.constexpr):
    """(S, out): three rows (S, in) under one column of the window."""
    w = phi_weight(phi_ptr, offs_z, offs_o, ratio, 0, COLUMN, Z)
    acc = tl.dot(above, w, input_precision="ieee")
    w = phi_weight(phi_ptr, offs_z, offs_o, ratio, 1, COLUMN, Z)
    acc = tl.dot(here, w, acc, input_precision="ieee")
    w = phi_weight(phi_ptr, offs_z, offs_o, ratio, 2, COLUMN, Z)
    return tl.dot(below, w, acc, input_precision="ieee")


@triton.jit
def stretch(upsample_ptr, offs_p, offs_s, P: tl.constexpr, SIDE: tl.constexpr):
    """(P, S): rows offs_p of the upsampling matrix, zeros for those beyond the map."""
    mask = ((offs_p >= 0) & (offs_p < P))[:, None] & (offs_s < SIDE)[None, :]
    return tl.load(upsample_ptr + offs_p[:, None] * SIDE + offs_s[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def accumulate_fwd_kernel(
    tokens_ptr,  # (B, SIDE * SIDE)
    codebook_ptr,  # (V, Z)
    upsample_ptr,  # (P, SIDE)
    phi_ptr,  # (Z, Z, 3, 3)
    phi_bias_ptr,  # (Z,)
    ratio,
    f_hat_ptr,  # (B, Z, P, P), written in place
    stride_fb,
    stride_fz,
    stride_fy,
    stride_fx,
    Z: tl.constexpr,
    P: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK_Z: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Row y of f_hat += (1 - r) h + r phi(h), BLOCK_O channels of it."""
    y, b = tl.program_id(0), tl.program_id(2).to(tl.int64)
    offs_o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    offs_z, offs_p, offs_s = tl.arange(0, BLOCK_Z), tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_S)
    mask_z, mask_o, mask_p, mask_s = offs_z < Z, offs_o < Z, offs_p < P, offs_s < SIDE

    # Rows y - 1, y and y + 1 of h before they are stretched, (S, Z) each.
    row_weights = upsample_ptr + y * SIDE + offs_s
    up = tl.load(row_weights - SIDE, mask=mask_s & (y > 0), other=0.0).to(tl.float32)
    mid = tl.load(row_weights, mask=mask_s, other=0.0).to(tl.float32)
    down = tl.load(row_weights + SIDE, mask=mask_s & (y < P - 1), other=0.0).to(tl.float32)
    above = tl.zeros((BLOCK_S, BLOCK_Z), tl.float32)
    here = tl.zeros((BLOCK_S, BLOCK_Z), tl.float32)
    below = tl.zeros((BLOCK_S, BLOCK_Z), tl.float32)
    first, last = occupied(tl.abs(up) + tl.abs(mid) + tl.abs(down), offs_s)
    for i in range(first, last + 1):
        tokens = tl.load(tokens_ptr + (b * SIDE + i) * SIDE + offs_s, mask=mask_s, other=0)
        codes = tl.load(
            codebook_ptr + tokens[:, None] * Z + offs_z[None, :], mask=mask_s[:, None] & mask_z[None, :], other=0.0
        ).to(tl.float32)
        above += tl.sum(tl.where(offs_s == i, up, 0.0), axis=0) * codes
        here += tl.sum(tl.where(offs_s == i, mid, 0.0), axis=0) * codes
        below += tl.sum(tl.where(offs_s == i, down, 0.0), axis=0) * codes

    # Columns x - 1, x and x + 1 of the window, each stretched to its own place.
    left = conv_rows(phi_ptr, above, here, below, offs_z, offs_o, ratio, 0, Z)
    acc = tl.dot(stretch(upsample_ptr, offs_p - 1, offs_s, P, SIDE), left, input_precision="ieee")
    centre = conv_rows(phi_ptr, above, here, below, offs_z, offs_o, ratio, 1, Z)
    acc = tl.dot(stretch(upsample_ptr, offs_p, offs_s, P, SIDE), centre, acc, input_precision="ieee")
    right = conv_rows(phi_ptr, above, here, below, offs_z, offs_o, ratio, 2, Z)
    acc = tl.dot(stretch(upsample_ptr, offs_p + 1, offs_s, P, SIDE), right, acc, input_precision="ieee")
    bias = tl.load(phi_bias_ptr + offs_o, mask=mask_o, other=0.0).to(tl.float32)
    acc += ratio * bias[None, :]

    place = f_hat_ptr + b * stride_fb + y * stride_fy + offs_p[:, None] * stride_fx + offs_o[None, :] * stride_fz
    mask = mask_p[:, None] & mask_o[None, :]
    f_hat = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, (f_hat + acc).to(f_hat_ptr.dtype.element_ty), mask=mask)


@triton.jit
def pool_embed_fwd_kernel(
    f_hat_ptr,  # (B, Z, P, P)
    stride_fb,
    stride_fz,
    stride_fy,
    stride_fx,
    downsample_ptr,  # (NEXT, P)
    weight_ptr,  # (C, Z)
    bias_ptr,  # (C,)
    out_ptr,  # (COPIES, B, NEXT * NEXT, C)
    C,
    Z: tl.constexpr,
    P: tl.constexpr,
    NEXT: tl.constexpr,
    BLOCK_Z: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
    COPIES: tl.constexpr,
):
    """One row of the next scale, BLOCK_C channels: the pooling is small enough for each of them to do it again."""
    y, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    offs_z, offs_p, offs_x = tl.arange(0, BLOCK_Z), tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_X)
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_z, mask_p, mask_x, mask_c = offs_z < Z, offs_p < P, offs_x < NEXT, offs_c < C

    weights = tl.load(downsample_ptr + y * P + offs_p, mask=mask_p, other=0.0).to(tl.float32)
    place = f_hat_ptr + b * stride_fb + offs_p[:, None] * stride_fx + offs_z[None, :] * stride_fz
    mask = mask_p[:, None] & mask_z[None, :]
    band = tl.zeros((BLOCK_P, BLOCK_Z), tl.float32)
    first, last = occupied(weights, offs_p)
    for i in range(first, last + 1):
        row = tl.load(place + i * stride_fy, mask=mask, other=0.0).to(tl.float32)
        band += tl.sum(tl.where(offs_p == i, weights, 0.0), axis=0) * row

    columns = downsample_ptr + offs_x[:, None] * P + offs_p[None, :]
    columns = tl.load(columns, mask=mask_x[:, None] & mask_p[None, :], other=0.0).to(tl.float32)
    pooled = tl.dot(columns, band, input_precision="ieee")
    embed = weight_ptr + offs_c[None, :] * Z + offs_z[:, None]
    embed = tl.load(embed, mask=mask_z[:, None] & mask_c[None, :], other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
    out = tl.dot(pooled, embed, input_precision="ieee") + bias[None, :]
    rows = ((b * NEXT + y) * NEXT + offs_x).to(tl.int64)
    place = out_ptr + rows[:, None] * C + offs_c[None, :]
    for copy in tl.static_range(COPIES):
        behind = tl.num_programs(2).to(tl.int64) * (copy * NEXT * NEXT) * C
        tl.store(place + behind, out.to(out_ptr.dtype.element_ty), mask=mask_x[:, None] & mask_c[None, :])


def why_not(
    tokens: torch.Tensor, codebook: torch.Tensor, constants: Handoff, f_hat: torch.Tensor, copies: int = 1
) -> str | None:
    _, Z, p, _ = f_hat.shape
    side, next_side = constants.upsample.shape[1], constants.downsample.shape[0]
    if max(p, side, next_side, Z) > WIDEST:
        return f"(Z, p, p_k, p_(k+1)) is {(Z, p, side, next_side)}, more than {WIDEST}"
    return None


def block(size: int) -> int:
    """A tile's side: a power of two that tensor cores and tl.dot take."""
    return max(triton.next_power_of_2(size), 16)


def scale_handoff_triton(
    tokens: torch.Tensor, codebook: torch.Tensor, constants: Handoff, f_hat: torch.Tensor, copies: int = 1
) -> torch.Tensor:
    c, (B, Z, p, _) = constants, f_hat.shape
    side, next_side, C = c.upsample.shape[1], c.downsample.shape[0], c.embed_weight.shape[0]
    out = torch.empty(copies * B, next_side * next_side, C, device=f_hat.device, dtype=f_hat.dtype)
    if B == 0:
        return out
    BLOCK_O = 16  # float32 products keep their operands in registers: 32 channels would spill
    accumulate_fwd_kernel[(p, triton.cdiv(Z, BLOCK_O), B)](
        tokens.contiguous(),
        codebook.contiguous(),
        c.upsample.contiguous(),
        c.phi_weight.contiguous(),
        c.phi_bias.contiguous(),
        float(c.phi_ratio),
        f_hat,
        *f_hat.stride(),
        Z=Z,
        P=p,
        SIDE=side,
        BLOCK_Z=block(Z),
        BLOCK_P=block(p),
        BLOCK_S=block(side),
        BLOCK_O=BLOCK_O,
        num_warps=8,
    )
    BLOCK_C = 64
    pool_embed_fwd_kernel[(triton.cdiv(C, BLOCK_C), next_side, B)](
        f_hat,
        *f_hat.stride(),
        c.downsample.contiguous(),
        c.embed_weight.contiguous(),
        c.embed_bias.contiguous(),
        out,
        C,
        Z=Z,
        P=p,
        NEXT=next_side,
        BLOCK_Z=block(Z),
        BLOCK_P=block(p),
        BLOCK_X=block(next_side),
        BLOCK_C=BLOCK_C,
        COPIES=copies,
        num_warps=4,
    )
    return out
