"""Kernels: one folder an op, each with its public function, its torch reference and its faster implementations.

Importing this package registers every op, so that `varsr_engine.dispatch.OPS` lists them all.
"""

from varsr_engine.kernels.adaln import adaln as adaln
from varsr_engine.kernels.block_causal_attention import block_causal_attention as block_causal_attention
from varsr_engine.kernels.conv3x3 import conv3x3 as conv3x3
from varsr_engine.kernels.gated_residual import gated_residual as gated_residual
from varsr_engine.kernels.groupnorm_silu import groupnorm_silu as groupnorm_silu
from varsr_engine.kernels.guided_sample import guided_sample as guided_sample
from varsr_engine.kernels.linear import linear as linear
from varsr_engine.kernels.mlp import mlp as mlp
from varsr_engine.kernels.philox import philox_normal as philox_normal
from varsr_engine.kernels.qkv_norm_rope_cache import qkv_norm_rope_cache as qkv_norm_rope_cache
from varsr_engine.kernels.refiner_block import refiner_block as refiner_block
from varsr_engine.kernels.refiner_embed import refiner_embed as refiner_embed
from varsr_engine.kernels.refiner_update import refiner_update as refiner_update
from varsr_engine.kernels.scale_attention import scale_attention as scale_attention
from varsr_engine.kernels.scale_handoff import scale_handoff as scale_handoff
from varsr_engine.kernels.upsample_conv import upsample_conv as upsample_conv
