"""What the transformer is fed in training: its own tokens are those it generates, noisy ones are near."""

from __future__ import annotations

import pytest
import torch

from varsr_engine.model.varsr import VARSR
from varsr_engine.training.config import TrainConfig
from varsr_engine.training.feeding import NEAR, mixed, noisy, own_tokens
from varsr_engine.training.initialise import initialise_transformer


@pytest.fixture
def model(config: TrainConfig) -> VARSR:
    torch.manual_seed(0)
    model = VARSR(config.model)
    initialise_transformer(model.transformer, local_heads=True)
    return model.eval()


def test_own_tokens_are_generated_ones(model: VARSR) -> None:
    config = model.config
    lr = torch.rand(2, 3, config.image_side, config.image_side) * 2 - 1
    labels = torch.tensor([0, 1])
    noise = torch.zeros(config.refiner_steps + 1, 2, config.latent_side**2, config.latent_channels)
    _, trace = model.generate(lr, labels, 0.0, noise)
    own = own_tokens(model, lr, labels)
    assert len(own) == config.num_scales - 1
    assert all(torch.equal(a, b) for a, b in zip(own, trace.tokens, strict=False))


def test_noisy_tokens_are_near_and_as_many_as_asked_for(model: VARSR) -> None:
    quantizer = model.vae.quantize
    torch.manual_seed(1)
    vectors = torch.randn(64, 100, model.config.latent_channels)
    nearest = quantizer.nearest(vectors)
    fed = noisy(quantizer, 0.5)(0, vectors, nearest)
    changed = fed != nearest
    assert changed.float().mean().item() == pytest.approx(0.25 * (NEAR - 1) / NEAR, abs=0.04)
    distance = (vectors[:, :, None] - quantizer.embedding.weight).square().sum(-1)
    rank = (distance < distance.gather(-1, fed[..., None])).sum(-1)
    assert rank.max() < NEAR


def test_mixed_rows(model: VARSR) -> None:
    own = [torch.full((1, 4), 7)]
    nearest, vectors = torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3, 4, 8)
    assert mixed(own, None)(0, vectors, nearest).tolist() == [[7] * 4, [0] * 4, [0] * 4]
    others = mixed(own, lambda step, vectors, nearest: nearest + 1)
    assert others(0, vectors, nearest).tolist() == [[7] * 4, [1] * 4, [1] * 4]


def test_a_local_head_looks_at_its_own_place(model: VARSR, config: TrainConfig) -> None:
    """In the first block, whatever the tokens hold, most of the first head's weight is near the query's coordinates."""
    from varsr_engine.kernels.adaln import adaln
    from varsr_engine.kernels.qkv_norm_rope_cache.reference import qkv_norm_rope
    from varsr_engine.model.rope import token_coordinates
    from varsr_engine.model.transformer import Block, q_scales, qkv_bias

    net = model.transformer
    block = net.blocks[0]
    assert isinstance(block, Block)
    x = torch.randn(1, sum(config.model.step_lengths), config.model.embed_dim)
    shift, scale = (block.ada_lin(net.class_emb(torch.tensor([0]))).chunk(6, dim=-1)[i] for i in (4, 2))
    attention = block.attn
    q, k, _ = qkv_norm_rope(
        adaln(x, scale, shift, 1e-6),
        attention.mat_qkv.weight,
        qkv_bias(attention.q_bias, attention.v_bias),
        q_scales(attention.scale_mul_1H11, config.model.max_log_scale),
        net.rope_cos,
        net.rope_sin,
    )
    place = token_coordinates(config.model).float()
    distance = torch.cdist(place, place)
    near = (distance <= config.model.rope_grid / config.model.latent_side).float()
    weights = (q @ k.mT).softmax(dim=-1)[0].detach()
    local, other = (float((weights[head] * near).sum(dim=-1).mean()) for head in (0, 1))
    uniform = float(near.mean())
    assert local > 5 * uniform and other < 2 * uniform
