"""The baseline of the speed comparisons: VARSR run the way the published implementation runs it.

Written from the specification alone. Plain nn.Modules and torch ops, op for op as published: K and V grown by
`torch.cat`, adaLN recomputed in every block at every step, sorting samplers, the refiner's full 2B rows. Nothing is
slowed down on purpose (the published checkpoint() wrappers, pure host cost, are left out) and nothing is saved.
One file on purpose: it shares no code with the engine but the config.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varsr_engine.config import ModelConfig
from varsr_engine.errors import CheckpointMismatchError

TIME_FEATURES = 256  # width of the refiner's sinusoidal time embedding, cosines and sines together

# --- condition encoder -------------------------------------------------------------------------------------


class ConditionEncoder(nn.Module):
    """Low-resolution image -> prefix map [B, C, p, p]: 3x3 convolutions, SiLU after all but the last."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = config.cond_channels
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for width, following in itertools.pairwise(widths):
            self.blocks.append(nn.Conv2d(width, width, 3, padding=1))
            self.blocks.append(nn.Conv2d(width, following, 3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(widths[-1], config.embed_dim, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = F.silu(self.conv_in(image))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)


# --- transformer -------------------------------------------------------------------------------------------


def rope_table(config: ModelConfig, device: torch.device) -> Tensor:
    """Complex rotations [ΣL, D/2] of all tokens: prefix, class token, scales 1..K-1; every scale on one grid."""
    D = config.head_dim
    frequencies = 1.0 / config.rope_base ** (torch.arange(0, D, 4, dtype=torch.float32) / D)
    sides = (config.latent_side, *config.patch_nums) if config.has_prefix else config.patch_nums
    tables = []
    for side in sides:
        position = torch.arange(side, dtype=torch.float32) / side * config.rope_grid
        row, column = torch.meshgrid(position, position, indexing="ij")
        angles = torch.cat([torch.outer(u.flatten(), frequencies) for u in (row, column)], dim=-1)
        tables.append(torch.polar(torch.ones_like(angles), angles))
    return torch.cat(tables).to(device)


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """RoPE on interleaved pairs as complex multiplication: x (B, H, L, D), rotations (L, D/2)."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotations).flatten(-2)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C, H = config.embed_dim, config.num_heads
        self.num_heads, self.max_log_scale = H, config.max_log_scale
        self.scale_mul_1H11 = nn.Parameter(torch.empty(1, H, 1, 1))
        self.q_bias = nn.Parameter(torch.empty(C))
        self.v_bias = nn.Parameter(torch.empty(C))
        self.register_buffer("zero_k_bias", torch.empty(C), persistent=False)
        self.mat_qkv = nn.Linear(C, 3 * C, bias=False)
        self.proj = nn.Linear(C, C)
        self.clear()

    def clear(self) -> None:
        self.cached_k: Tensor | None = None
        self.cached_v: Tensor | None = None

    def forward(self, x: Tensor, rotations: Tensor) -> Tensor:
        B, L, C = x.shape
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        qkv = F.linear(x, self.mat_qkv.weight, bias).view(B, L, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, L, D)
        scale = self.scale_mul_1H11.clamp_max(self.max_log_scale).exp()
        q = F.normalize(q, dim=-1).mul(scale)
        k = F.normalize(k, dim=-1)
        q, k = rotate(q, rotations), rotate(k, rotations)
        if self.cached_k is None or self.cached_v is None:
            self.cached_k, self.cached_v = k, v
        else:
            self.cached_k = torch.cat((self.cached_k, k), dim=2)
            self.cached_v = torch.cat((self.cached_v, v), dim=2)
        out = F.scaled_dot_product_attention(q, self.cached_k, self.cached_v, scale=1.0)
        return self.proj(out.transpose(1, 2).reshape(B, L, C))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C = config.embed_dim
        self.norm = nn.LayerNorm(C, eps=config.norm_eps, elementwise_affine=False)
        self.attn = Attention(config)
        self.ffn = FeedForward(C, config.mlp_ratio * C)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(C, 6 * C))

    def forward(self, x: Tensor, cond: Tensor, rotations: Tensor) -> Tensor:
        modulation = self.ada_lin(cond).view(-1, 1, 6, x.shape[-1])
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unbind(2)
        x = x + self.attn(self.norm(x).mul(scale1.add(1)).add(shift1), rotations).mul(gate1)
        return x + self.ffn(self.norm(x).mul(scale2.add(1)).add(shift2)).mul(gate2)


class HeadNorm(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C = config.embed_dim
        self.norm = nn.LayerNorm(C, eps=config.norm_eps, elementwise_affine=False)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(C, 2 * C))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.ada_lin(cond).view(-1, 1, 2, x.shape[-1]).unbind(2)
        return self.norm(x).mul(scale.add(1)).add(shift)


class Transformer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C = config.embed_dim
        self.pos_start = nn.Parameter(torch.empty(1, config.first_length, C))
        if config.has_prefix:
            self.con_embedding = ConditionEncoder(config)
        self.word_embed = nn.Linear(config.latent_channels, C)
        self.class_emb = nn.Embedding(config.class_rows, C)
        self.lvl_embed = nn.Embedding(config.num_scales, C)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.head_nm = HeadNorm(config)
        self.head = nn.Linear(C, config.vocab_size)
        self.decoder_norm = nn.LayerNorm(C, eps=config.norm_eps)
        self.diffloss = nn.ModuleDict({"net": RefinerNet(config)})

    def logits(self, x: Tensor, cond: Tensor) -> Tensor:
        """Of every position given, float32."""
        return self.head(self.head_nm(x.float(), cond).float()).float()


def sample(logits: Tensor, top_k: int, top_p: float, generator: torch.Generator | None) -> Tensor:
    """Tokens [B, L] by top-k, sort-based top-p and multinomial; fills `logits` [B, L, V] with -inf in place."""
    B, L, V = logits.shape
    if top_k > 0:
        threshold = logits.topk(min(top_k, V), dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
        logits.masked_fill_(logits < threshold, -torch.inf)
    if top_p > 0:
        ascending, order = logits.sort(dim=-1, descending=False)
        removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        removed[..., -1:] = False
        logits.masked_fill_(removed.scatter(-1, order, removed), -torch.inf)
    probabilities = logits.softmax(dim=-1).view(-1, V)
    return torch.multinomial(probabilities, 1, replacement=True, generator=generator).view(B, L)


# --- refiner -----------------------------------------------------------------------------------------------


class TimeEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = TIME_FEATURES // 2
        index = torch.arange(half, dtype=torch.float32, device=t.device)
        angles = t[:, None].float() * torch.exp(-math.log(10000.0) * index / half)[None]
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1))


class RefinerBlock(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, dim=-1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class RefinerFinal(nn.Module):
    def __init__(self, width: int, out: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, dim=-1)
        return self.linear(self.norm(x) * (1 + scale) + shift)


class RefinerNet(nn.Module):
    """Noise and variance prediction [N, 2Z] for rows x [N, Z] at times t [N], conditioned on z [N, C]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        W, Z, eps = config.refiner_width, config.latent_channels, config.norm_eps
        self.time_embed = TimeEmbed(W)
        self.cond_embed = nn.Linear(config.embed_dim, W)
        self.input_proj = nn.Linear(Z, W)
        self.res_blocks = nn.ModuleList([RefinerBlock(W, eps) for _ in range(config.refiner_depth)])
        self.final_layer = RefinerFinal(W, 2 * Z, eps)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        x = self.input_proj(x)
        y = self.time_embed(t) + self.cond_embed(z)
        for block in self.res_blocks:
            x = block(x, y)
        return self.final_layer(x, y)

    def guided(self, x: Tensor, t: Tensor, z: Tensor, guidance: float) -> Tensor:
        """Both branches see the first half of x; both halves of the result hold the guided noise prediction."""
        half = x[: len(x) // 2]
        out = self(torch.cat((half, half)), t, z)
        eps, variance = out.chunk(2, dim=-1)
        cond, uncond = eps.chunk(2)
        eps = (1 + guidance) * cond - guidance * uncond
        return torch.cat((torch.cat((eps, eps)), variance), dim=-1)


class Diffusion:
    """Respaced cosine schedule and its ancestral sampler; float64 arrays, taken to the device at each use."""

    def __init__(self, config: ModelConfig) -> None:
        T, steps = config.refiner_train_steps, config.refiner_steps
        u = np.arange(T + 1, dtype=np.float64) / T
        level = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
        cumulative = np.cumprod(1.0 - np.minimum(1.0 - level[1:] / level[:-1], 0.999))
        stride = (T - 1) / max(steps - 1, 1)
        self.timesteps = np.array([round(i * stride) for i in range(steps)])
        bar = cumulative[self.timesteps]
        previous = np.append(1.0, bar[:-1])
        beta = 1.0 - bar / previous
        self.log_beta = np.log(beta)
        self.inverse_root = np.sqrt(1.0 / bar)
        self.noise_factor = np.sqrt(1.0 / bar - 1.0)
        self.mean_x0 = beta * np.sqrt(previous) / (1.0 - bar)
        self.mean_xt = (1.0 - previous) * np.sqrt(1.0 - beta) / (1.0 - bar)
        self.variance = beta * (1.0 - previous) / (1.0 - bar)
        self.log_variance = np.log(np.append(self.variance[1:2], self.variance[1:]) if steps > 1 else beta)

    @staticmethod
    def _at(values: np.ndarray, t: Tensor) -> Tensor:
        return torch.from_numpy(values).to(t.device)[t].float()[:, None]

    def step(self, net: RefinerNet, x: Tensor, index: int, z: Tensor, guidance: float, noise: Tensor) -> Tensor:
        """x_{t-1} from x_t [2N, Z]. As published, all rows go through everything, and the posterior's fixed
        variance is looked up although the learned one is used."""
        t = torch.tensor([index] * len(x), device=x.device)
        out = net.guided(x, torch.from_numpy(self.timesteps).to(x.device)[t], z, guidance)
        eps, v = out.chunk(2, dim=-1)
        low, high = self._at(self.log_variance, t), self._at(self.log_beta, t)
        fraction = (v + 1) / 2
        log_variance = fraction * high + (1 - fraction) * low
        x0 = (self._at(self.inverse_root, t) * x - self._at(self.noise_factor, t) * eps).clamp(-1, 1)
        mean = self._at(self.mean_x0, t) * x0 + self._at(self.mean_xt, t) * x
        _unused = self._at(self.variance, t), self._at(self.log_variance, t)
        nonzero = (t != 0).float()[:, None]
        return mean + nonzero * torch.exp(0.5 * log_variance) * noise


# --- decoder -----------------------------------------------------------------------------------------------


class ResBlock(nn.Module):
    def __init__(self, config: ModelConfig, width: int, out: int) -> None:
        super().__init__()
        groups, eps = config.vae_norm_groups, config.norm_eps
        self.norm1 = nn.GroupNorm(groups, width, eps=eps)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out, eps=eps)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width, out, 1) if width != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class SpatialAttention(nn.Module):
    """Single head over the positions of a map: batched product, softmax, batched product."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.vae_norm_groups, width, eps=config.norm_eps)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        B, C, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(B, 3, C, height * width).unbind(1)
        weights = torch.bmm(q.transpose(1, 2), k).mul(C**-0.5).softmax(dim=2)
        h = torch.bmm(v, weights.transpose(1, 2)).view(B, C, height, width)
        return x + self.proj_out(h)


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class DecoderLevel(nn.Module):
    def __init__(self, config: ModelConfig, level: int, width: int) -> None:
        super().__init__()
        out, count = config.vae_channels * config.vae_multipliers[level], config.vae_res_blocks + 1
        last = level == len(config.vae_multipliers) - 1
        self.block = nn.ModuleList([ResBlock(config, width if j == 0 else out, out) for j in range(count)])
        self.attn = nn.ModuleList([SpatialAttention(config, out) for _ in range(count if last else 0)])
        self.upsample = Upsample(out) if level > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for j, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[j](x)
        return self.upsample(x)


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [config.vae_channels * m for m in config.vae_multipliers]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = nn.ModuleDict(
            {
                "block_1": ResBlock(config, widths[-1], widths[-1]),
                "attn_1": SpatialAttention(config, widths[-1]),
                "block_2": ResBlock(config, widths[-1], widths[-1]),
            }
        )
        above = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList([DecoderLevel(config, i, above[i]) for i in range(len(widths))])
        self.norm_out = nn.GroupNorm(config.vae_norm_groups, widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.conv_in(latent)
        for layer in self.mid.values():
            x = layer(x)
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Quantizer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        Z = config.latent_channels
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, Z)
        phis = nn.ModuleList([nn.Conv2d(Z, Z, 3, padding=1) for _ in range(config.num_phi)])
        self.quant_resi = nn.ModuleDict({"qresi_ls": phis})

    def residual(self, tokens: Tensor, step: int) -> Tensor:
        """What the step adds to f_hat: [B, Z, p, p]."""
        side, p = self.config.patch_nums[step], self.config.latent_side
        h = self.embedding(tokens).transpose(1, 2).reshape(len(tokens), -1, side, side)
        if step == self.config.num_scales - 1:
            return h
        h = F.interpolate(h, size=(p, p), mode="bicubic")
        phi, ratio = self.quant_resi["qresi_ls"][self.config.phi_index(step)], self.config.phi_ratio
        return h.mul(1 - ratio) + phi(h).mul(ratio)


class Autoencoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 3, padding=1)

    def image(self, f_hat: Tensor) -> Tensor:
        """[B, 3, 16p, 16p] in [0, 1]."""
        return self.decoder(self.post_quant_conv(f_hat)).clamp(-1, 1).mul(0.5).add(0.5)


# --- generation --------------------------------------------------------------------------------------------


@dataclass
class PublishedOutput:
    """What a generation computed. `f_hats[k]` is the sum after scale k, before the refiner; `latent` after it."""

    image: Tensor  # [B, 3, 16p, 16p] in [0, 1]
    latent: Tensor  # [B, Z, p, p]
    tokens: list[Tensor]  # [B, n_k] a scale
    f_hats: list[Tensor]  # [B, Z, p, p] a scale
    prefix: Tensor | None  # [B, p², C]; None for the class-to-image prior
    residual: Tensor  # [B·p², Z], scaled
    z: Tensor  # [2B·p², C], cond then uncond
    logits: list[Tensor] = field(default_factory=list)  # guided [B, n_k, V] a scale; empty unless kept


def _load(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> nn.Module:
    """Give the module (made on the meta device) the tensors under `prefix`, as parameters of the same storage."""
    names = [name for name, _ in module.named_parameters()]
    missing = [prefix + name for name in names if prefix + name not in tensors]
    if missing:
        raise CheckpointMismatchError(f"published_style: missing {len(missing)} tensors, first {missing[0]!r}")
    wrong = [prefix + name for name in names if tensors[prefix + name].dtype != torch.float32]
    if wrong:
        raise CheckpointMismatchError(f"published_style: weights must be float32, {wrong[0]!r} is not")
    # assign=True keeps the module's requires_grad=True, which autocast's cache of cast weights asks for.
    module.load_state_dict({name: tensors[prefix + name].detach() for name in names}, assign=True)
    return module.eval()


class PublishedStyle:
    """VARSR as published, in float32, or with `autocast` in fp16 under torch.autocast over float32 weights.

    `tensors` are named `transformer.<published name>` and `vae.<published name>`; they are shared, not copied, and
    their device is where everything runs.
    """

    def __init__(self, tensors: Mapping[str, Tensor], config: ModelConfig, *, autocast: bool = False) -> None:
        self.config, self.autocast = config, autocast
        with torch.device("meta"):
            transformer, autoencoder = Transformer(config), Autoencoder(config)
        self.transformer: Transformer = _load(transformer, tensors, "transformer.")
        self.autoencoder: Autoencoder = _load(autoencoder, tensors, "vae.")
        self.device = self.transformer.pos_start.device
        for block in self.transformer.blocks:
            block.attn.zero_k_bias = torch.zeros(config.embed_dim, device=self.device)
        self.rotations = rope_table(config, self.device)
        self.levels = torch.cat([torch.full((n,), k) for k, n in enumerate(config.step_lengths)]).to(self.device)
        self.diffusion = Diffusion(config)

    @torch.no_grad()  # not inference_mode: it would turn off autocast's cache, and cast each weight at every step
    def generate(
        self,
        lr: Tensor | None,
        labels: Sequence[int],
        guidance_scale: float,
        *,
        noise: Tensor | None = None,
        seed: int = 0,
        top_k: int = 1,
        top_p: float = 0.75,
        timer: Callable[[str], None] | None = None,
        keep_logits: bool = False,
    ) -> PublishedOutput:
        """Images from `lr` [B, 3, 16p, 16p] in [-1, 1] (None for the class-to-image prior) and one label an image.

        noise: [refiner_steps + 1, B, p², Z], the start and one a step; drawn from `seed` where None.
        timer: called as a stage's work has been issued, with "condition", "scale.0".., "refiner", "decoder"; on a
        GPU it has to synchronise or record an event itself.
        """
        if (lr is not None) != self.config.has_prefix:
            raise ValueError(f"generate: lr must be {'an image' if self.config.has_prefix else 'None'} for this model")
        if lr is not None and len(lr) != len(labels):
            raise ValueError(f"generate: labels must be one an image, {len(lr)}, got {len(labels)}")
        tick = timer or (lambda _: None)
        generator = torch.Generator(self.device).manual_seed(seed)
        try:
            with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.autocast):
                cond, x, prefix = self._start(lr, labels)
                tick("condition")
                out = self._scales(cond, x, guidance_scale, (top_k, top_p, generator), tick, keep_logits)
                tokens, f_hats, x, logits = out
                guidance = guidance_scale * self.config.guidance_ratio(self.config.num_scales - 1)
                z, residual = self._refine(x, tokens[-1], guidance, noise, generator)
                B, p = len(labels), self.config.latent_side
                latent = f_hats[-1] + residual.view(B, p * p, -1).transpose(1, 2).reshape(B, -1, p, p)
                tick("refiner")
                image = self.autoencoder.image(latent)
                tick("decoder")
        finally:
            for block in self.transformer.blocks:
                block.attn.clear()
        return PublishedOutput(image, latent, tokens, f_hats, prefix, residual, z, logits)

    def _start(self, lr: Tensor | None, labels: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """cond [2B, C], step 0's x [2B, L, C] without its level embedding, and the prefix [B, p², C]."""
        net = self.transformer
        label = torch.tensor(labels, device=self.device)
        cond = net.class_emb(torch.cat((label, torch.full_like(label, self.config.uncond_label))))
        x, prefix = cond.unsqueeze(1), None
        if lr is not None:
            prefix = net.con_embedding(lr.to(self.device)).flatten(2).transpose(1, 2)
            x = torch.cat((prefix.repeat(2, 1, 1), x), dim=1)
        return cond, x + net.pos_start, prefix

    def _scales(
        self,
        cond: Tensor,
        x: Tensor,
        guidance_scale: float,
        sampling: tuple[int, float, torch.Generator],
        tick: Callable[[str], None],
        keep_logits: bool,
    ) -> tuple[list[Tensor], list[Tensor], Tensor, list[Tensor]]:
        """All scales: tokens, f_hats, the last transformer output [2B, p², C], and the guided logits if kept."""
        config, net, quantizer = self.config, self.transformer, self.autoencoder.quantize
        B, p, last = len(cond) // 2, config.latent_side, config.num_scales - 1
        level = net.lvl_embed(self.levels)[None]
        x = x + level[:, : x.shape[1]]
        f_hat = torch.zeros(B, config.latent_channels, p, p, device=self.device)
        tokens, f_hats, kept, start = [], [], [], 0
        for step in range(config.num_scales):
            end = start + x.shape[1]
            for block in net.blocks:
                x = block(x, cond, self.rotations[start:end])
            logits = net.logits(x, cond)
            if step == 0:
                logits = logits[:, -1:]
            t = guidance_scale * config.guidance_ratio(step)
            guided = (1 + t) * logits[:B] - t * logits[B:]
            if keep_logits:
                kept.append(guided.clone())
            tokens.append(sample(guided, *sampling))
            if step == last:
                sample(logits, *sampling)  # over both branches, never used: so the published code
            f_hat = f_hat + quantizer.residual(tokens[-1], step)
            f_hats.append(f_hat)
            if step < last:
                start, side = end, config.patch_nums[step + 1]
                following = F.interpolate(f_hat, size=(side, side), mode="area")
                x = net.word_embed(following.view(B, -1, side * side).transpose(1, 2))
                x = (x + level[:, start : start + side * side]).repeat(2, 1, 1)
            tick(f"scale.{step}")
        return tokens, f_hats, x, kept

    def _refine(
        self, x: Tensor, tokens: Tensor, guidance: float, noise: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """z [2B·p², C] of the last scale's output x, and the residual [B·p², Z] drawn for it."""
        net, Z = self.transformer, self.config.latent_channels
        words = net.word_embed(self.autoencoder.quantize.embedding(tokens))
        z = net.decoder_norm(x + words.repeat(2, 1, 1)).flatten(0, 1)
        rows = len(z) // 2
        if noise is None:
            start = torch.randn(rows, Z, generator=torch.Generator().manual_seed(generator.initial_seed()))
        else:
            start = noise[0].reshape(rows, Z)
        state = torch.cat((start, start)).to(self.device)
        for step, index in enumerate(reversed(range(self.config.refiner_steps)), start=1):
            if noise is None:
                drawn = torch.randn(state.shape, generator=generator, device=self.device)
            else:
                drawn = noise[step].reshape(rows, Z).to(self.device).repeat(2, 1)
            state = self.diffusion.step(net.diffloss["net"], state, index, z, guidance, drawn)
        return z, state[:rows] * self.config.refiner_residual_scale
