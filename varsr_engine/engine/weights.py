"""Weights as the engine uses them: classes folded into tables, biases joined, constants between scales precomputed.

Nothing here changes what the network computes; design and sizes are in docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from varsr_engine.checkpoint import Checkpoint
from varsr_engine.config import ModelConfig
from varsr_engine.engine.quantization import Fp8Switches
from varsr_engine.kernels.linear import prepare_linear
from varsr_engine.kernels.quantized import QuantizedWeight, quantize_weight
from varsr_engine.kernels.refiner_block import RefinerBlockWeights
from varsr_engine.kernels.scale_attention import static_bound
from varsr_engine.kernels.scale_handoff import Handoff
from varsr_engine.model.refiner import time_embedding
from varsr_engine.model.rope import rope_tables
from varsr_engine.model.transformer import q_scales, qkv_bias

Get = Callable[[str], torch.Tensor]


class Reader:
    """Reads parameters onto a device, in float32 or in the compute dtype."""

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, get: Get | None = None, prefix: str = ""
    ) -> None:
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self._get = get or checkpoint.open()
        self._prefix = prefix

    @property
    def config(self) -> ModelConfig:
        return self.checkpoint.config

    def compute(self, name: str) -> torch.Tensor:
        """In the compute dtype; the file's own memory where nothing changes."""
        return self._get(self._prefix + name).to(self.device, self.dtype)

    def exact(self, name: str) -> torch.Tensor:
        """In float32."""
        return self._get(self._prefix + name).to(self.device, torch.float32)

    def factor(self, name: str, parts: int = 1) -> torch.Tensor:
        """A matrix in the compute dtype, in the form that this machine multiplies with (`prepare_linear`)."""
        return prepare_linear(self.compute(name), parts)

    def linear(self, name: str) -> Linear:
        """Weight and bias of a linear layer, in the compute dtype; the bias does not hold on to the file's mapping."""
        return Linear(self.factor(name + ".weight"), self.compute(name + ".bias").clone())

    def quantized(self, name: str) -> QuantizedWeight:
        """A matrix as e4m3 with a scale a row, from the file's own values and not through the compute dtype."""
        return quantize_weight(self.exact(name))

    def quantized_linear(self, name: str) -> QuantizedLinear:
        return QuantizedLinear(self.quantized(name + ".weight"), self.compute(name + ".bias").clone())

    def under(self, prefix: str) -> Reader:
        """The same reader for names under a prefix."""
        return Reader(self.checkpoint, self.device, self.dtype, self._get, self._prefix + prefix)

    def transient(self) -> Reader:
        """A reader with a mapping of its own: what it maps goes when it and its tensors go."""
        return Reader(self.checkpoint, self.device, self.dtype, None, self._prefix)


class Linear(NamedTuple):
    weight: torch.Tensor  # (out, in) or its panels
    bias: torch.Tensor  # (out,)


class QuantizedLinear(NamedTuple):
    weight: QuantizedWeight  # (out, in)
    bias: torch.Tensor  # (out,), in the compute dtype


class Products(NamedTuple):
    """The linear layers of a block that may be quantized."""

    qkv: Linear | QuantizedLinear
    fc1: Linear | QuantizedLinear
    fc2: Linear | QuantizedLinear


class BlockWeights(NamedTuple):
    """One transformer block; its adaLN linear is folded away."""

    qkv: Linear | QuantizedLinear
    q_scale: torch.Tensor  # (H,) float32
    score_bound: torch.Tensor | None  # q_scale, where attention may rely on it: keys have length 1
    proj: Linear
    fc1: Linear | QuantizedLinear
    fc2: Linear | QuantizedLinear


class TransformerWeights(NamedTuple):
    class_embedding: torch.Tensor  # (classes, C)
    first_constant: torch.Tensor  # (L_0, C): positions and level of step 0
    adaln: torch.Tensor  # (classes, layers, 6, C): gates, scales, shifts of both halves of each block
    head_adaln: torch.Tensor  # (classes, 2, C): scale, shift
    blocks: list[BlockWeights]
    fp8_blocks: list[BlockWeights]  # the same, but for quantized layers; those of the steps in fp8_steps
    fp8_steps: frozenset[int]
    head: Linear
    codebook: torch.Tensor  # (V, Z)
    codebook_embedding: torch.Tensor  # (V, C): word_embed(codebook)
    handoffs: list[Handoff]  # K - 1
    final_norm: Linear  # decoder_norm, (C,) each
    rope_cos: torch.Tensor  # (S, D/2)
    rope_sin: torch.Tensor


class RefinerWeights(NamedTuple):
    time_embeddings: torch.Tensor  # (train steps, W) float32: one row a timestep
    cond_embed: Linear
    input_proj: Linear
    modulation: Linear  # ((3 depth + 2) W, W): every block's shift, scale, gate, then the final layer's shift, scale
    blocks: list[RefinerBlockWeights]
    final: Linear  # a matrix, of too few rows for panels to matter


def resampling_matrix(mode: str, source: int, target: int) -> torch.Tensor:
    """(target, source) matrix of a one-dimensional resize: torch's own, applied to unit vectors."""
    basis = torch.eye(source)[None, :, :, None]
    if mode == "area":
        return F.interpolate(basis, size=(target, 1), mode="area")[0, :, :, 0].t()
    return F.interpolate(basis, size=(target, 1), mode="bicubic", align_corners=False)[0, :, :, 0].t()


def fold_class_linear(read: Reader, name: str, cond: torch.Tensor, parts: int) -> torch.Tensor:
    """Linear(SiLU(class_emb)) for every class, (classes, parts, C) float32: the class is all that this layer sees.

    Runs on a transient mapping, so that the folded matrix never stays in memory.
    """
    transient = read.transient()
    table = F.linear(F.silu(cond), transient.exact(name + ".weight"), transient.exact(name + ".bias"))
    return table.unflatten(-1, (parts, cond.shape[-1]))


def load_products(read: Reader, name: str, *, fp8: bool) -> Products:
    bias = qkv_bias(read.compute(f"{name}.attn.q_bias"), read.compute(f"{name}.attn.v_bias"))
    qkv, fc1, fc2 = f"{name}.attn.mat_qkv.weight", f"{name}.ffn.fc1", f"{name}.ffn.fc2"
    if fp8:
        weight = read.quantized(qkv)
        return Products(QuantizedLinear(weight, bias), read.quantized_linear(fc1), read.quantized_linear(fc2))
    return Products(Linear(read.factor(qkv, parts=3), bias), read.linear(fc1), read.linear(fc2))


def load_block(read: Reader, name: str, config: ModelConfig, *, fp8: bool = False) -> BlockWeights:
    q_scale = q_scales(read.exact(f"{name}.attn.scale_mul_1H11"), config.max_log_scale)
    return BlockWeights(
        q_scale=q_scale,
        score_bound=static_bound(q_scale),
        proj=read.linear(f"{name}.attn.proj"),
        **load_products(read, name, fp8=fp8)._asdict(),
    )


def load_handoff(read: Reader, quantizer: Reader, config: ModelConfig, step: int) -> Handoff:
    """Constants between scale `step` and the next."""
    side, next_side, p = config.patch_nums[step], config.patch_nums[step + 1], config.latent_side
    phi = f"quant_resi.qresi_ls.{config.phi_index(step)}"
    return Handoff(
        upsample=resampling_matrix("bicubic", side, p).to(read.device).contiguous(),
        phi_weight=quantizer.exact(f"{phi}.weight"),
        phi_bias=quantizer.exact(f"{phi}.bias"),
        phi_ratio=config.phi_ratio,
        downsample=resampling_matrix("area", p, next_side).to(read.device).contiguous(),
        embed_weight=read.exact("word_embed.weight"),
        embed_bias=read.exact("word_embed.bias") + read.exact("lvl_embed.weight")[step + 1],
    )


def load_transformer(
    root: Reader, on_progress: Callable[[int, int], None] | None = None, fp8: Fp8Switches | None = None
) -> TransformerWeights:
    """Everything the scale loop needs. on_progress is called with (blocks done, blocks in all).

    fp8: where it is not every step, a quantized layer is held twice.
    """
    config, read, quantizer = root.config, root.under("transformer."), root.under("vae.quantize.")
    cond, codebook = read.exact("class_emb.weight"), quantizer.exact("embedding.weight")
    fp8 = fp8 or Fp8Switches(frozenset(), frozenset())
    always = len(fp8.steps) == config.num_scales
    tables, blocks, fp8_blocks = [], [], []
    for i in range(config.depth):
        tables.append(fold_class_linear(read, f"blocks.{i}.ada_lin.1", cond, 6))
        name, transient, quantized = f"blocks.{i}", read.transient(), i in fp8.layers  # panels do not keep the mapping
        block = load_block(transient, name, config, fp8=quantized and always)
        blocks.append(block)
        if quantized and fp8.steps and not always:
            products = load_products(transient, name, fp8=True)
            block = block._replace(qkv=products.qkv, fc1=products.fc1, fc2=products.fc2)
        fp8_blocks.append(block)
        if on_progress is not None:
            on_progress(i + 1, config.depth)
    cos, sin = rope_tables(config)
    return TransformerWeights(
        class_embedding=cond,
        first_constant=read.exact("pos_start")[0] + read.exact("lvl_embed.weight")[0],
        adaln=torch.stack(tables, dim=1),
        head_adaln=fold_class_linear(read, "head_nm.ada_lin.1", cond, 2),
        blocks=blocks,
        fp8_blocks=fp8_blocks,
        fp8_steps=fp8.steps if fp8.layers else frozenset(),
        head=read.transient().linear("head"),
        codebook=codebook,
        codebook_embedding=F.linear(codebook, read.exact("word_embed.weight"), read.exact("word_embed.bias")),
        handoffs=[load_handoff(read, quantizer, config, step) for step in range(config.num_scales - 1)],
        final_norm=Linear(read.exact("decoder_norm.weight"), read.exact("decoder_norm.bias")),
        rope_cos=cos.to(root.device),
        rope_sin=sin.to(root.device),
    )


def load_refiner(root: Reader) -> RefinerWeights:
    """The refiner, its modulation linears stacked into one."""
    read = root.under("transformer.diffloss.net.")
    names = [f"res_blocks.{i}" for i in range(root.config.refiner_depth)]
    modulations = [f"{name}.adaLN_modulation.1" for name in (*names, "final_layer")]
    modulation = torch.cat([read.transient().compute(f"{name}.weight") for name in modulations])
    times = time_embedding(torch.arange(root.config.refiner_train_steps, device=root.device))
    hidden = F.linear(times, read.exact("time_embed.mlp.0.weight"), read.exact("time_embed.mlp.0.bias"))
    embeddings = F.linear(F.silu(hidden), read.exact("time_embed.mlp.2.weight"), read.exact("time_embed.mlp.2.bias"))
    return RefinerWeights(
        time_embeddings=embeddings,
        cond_embed=read.linear("cond_embed"),
        input_proj=read.linear("input_proj"),
        modulation=Linear(
            prepare_linear(modulation, parts=3 * len(names) + 2),
            torch.cat([read.compute(f"{name}.bias") for name in modulations]),
        ),
        blocks=[
            RefinerBlockWeights(
                norm_weight=read.exact(f"{name}.in_ln.weight"),
                norm_bias=read.exact(f"{name}.in_ln.bias"),
                in_weight=read.factor(f"{name}.mlp.0.weight"),
                in_bias=read.compute(f"{name}.mlp.0.bias"),
                out_weight=read.factor(f"{name}.mlp.2.weight"),
                out_bias=read.compute(f"{name}.mlp.2.bias"),
            )
            for name in names
        ],
        final=Linear(read.compute("final_layer.linear.weight"), read.compute("final_layer.linear.bias")),
    )
