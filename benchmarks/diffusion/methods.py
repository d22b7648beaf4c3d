"""How peers turn pictures into pictures: an encoder, a denoiser for some steps, a decoder, each as their papers say.

A method takes `Pictures` on the device and gives (B, 3, S, S) float32 in [0, 1]. Nothing in it waits for the device
or reads a number from it, so that a CUDA graph can hold all of it. Noise comes from torch's generator of the device.
The state of a sampler is float32: a few thousand numbers, which costs nothing and keeps 200 steps finite in float16.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.diffusion import networks
from benchmarks.diffusion.sizes import SCALE, Sizes

TRAIN_STEPS = 1000
LAST = TRAIN_STEPS - 1


class Pictures(NamedTuple):
    """The input of every contestant, on the device."""

    low: Tensor  # (B, 3, S/4, S/4) float32 in [0, 1]
    resized: Tensor  # (B, 3, S, S) float32 in [0, 1]: low, bicubic


def resized(low: Tensor) -> Tensor:
    """low (B, 3, h, w) in [0, 1], four times as large, bicubic."""
    return F.interpolate(low, scale_factor=SCALE, mode="bicubic").clamp(0, 1)


def signal_levels() -> list[float]:
    """Products of (1 - beta) after each of the 1000 steps of Stable Diffusion's schedule (sqrt(beta) linear)."""
    first, last = 0.00085**0.5, 0.012**0.5
    levels, product = [], 1.0
    for i in range(TRAIN_STEPS):
        product *= 1 - (first + (last - first) * i / LAST) ** 2
        levels.append(product)
    return levels


LEVELS = signal_levels()


class Method(nn.Module):
    """seeded: whether noise is drawn, so that another seed gives another picture."""

    seeded = False
    takes_any_size = True  # False: built for pictures of one size, larger ones only by tiles

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("times", torch.arange(TRAIN_STEPS + 1), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def time(self, t: int) -> Tensor:
        """t as (1,) int64 on the device: a view, no copy from the host."""
        return self.times[t : t + 1]

    def heavy(self) -> list[nn.Module]:
        """The modules in which the time goes, and which torch.compile is given."""
        found: list[nn.Module] = []
        for part in self.children():
            halves = [getattr(part, name) for name in ("encoder", "decoder") if hasattr(part, name)]
            found += halves or [part]
        return found

    def signed(self, picture: Tensor) -> Tensor:
        """[0, 1] to [-1, 1], in the weights' dtype and memory format."""
        x = (picture * 2 - 1).to(self.dtype)
        first = next((m for m in self.modules() if isinstance(m, nn.Conv2d)), None)
        channels_last = first is not None and first.weight.is_contiguous(memory_format=torch.channels_last)
        return x.to(memory_format=torch.channels_last) if channels_last else x


def unsigned(x: Tensor) -> Tensor:
    return (x.float() / 2 + 0.5).clamp(0, 1)


class Latents(Method):
    """A method between Stable Diffusion's encoder and decoder, with a prompt that was embedded beforehand."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.vae = networks.vae(sizes)
        self.unet = networks.unet(sizes)
        self.register_buffer("prompt", networks.text(sizes.text_length, sizes.text_width), persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        latent: Tensor = self.vae.encode(x).latent_dist.mode().float()
        return latent * self.vae.config.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        return unsigned(self.vae.decode((latent / self.vae.config.scaling_factor).to(self.dtype)).sample)

    def noise_in(self, latent: Tensor, t: int, prompt: Tensor, **residuals: object) -> Tensor:
        """The UNet's prediction (B, 4, H, W) float32."""
        found: Tensor = self.unet(latent.to(self.dtype), self.time(t), encoder_hidden_states=prompt, **residuals).sample
        return found.float()


class OneStep(Latents):
    """x_0 = (z - sqrt(1 - a) eps(z, 999)) / sqrt(a), z the encoded picture: OSEDiff, PiSA-SR; S3Diff with two passes.

    Two passes: one for a positive prompt and one for a negative one, mixed by a guidance of 1.07.
    """

    GUIDANCE = 1.07

    def __init__(self, sizes: Sizes, passes: Literal[1, 2] = 1) -> None:
        super().__init__(sizes)
        self.passes = passes
        if passes == 2:
            self.register_buffer("negative", networks.text(sizes.text_length, sizes.text_width), persistent=False)

    def forward(self, pictures: Pictures) -> Tensor:
        z = self.encode(self.signed(pictures.resized))
        noise = self.noise_in(z, LAST, self.prompt.expand(len(z), -1, -1))
        if self.passes == 2:
            without = self.noise_in(z, LAST, self.negative.expand(len(z), -1, -1))
            noise = without + self.GUIDANCE * (noise - without)
        level = LEVELS[LAST]
        return self.decode((z - (1 - level) ** 0.5 * noise) / level**0.5)


class ManySteps(Latents):
    """Ancestral sampling (DDPM) in even steps, from the noised latent of the picture: StableSR, DiffBIR and SeeSR.

    control: a ControlNet that sees the picture ("picture"), or its latent beside the noisy one ("latent"). guidance
    above 0 doubles the batch: eps = eps_u + guidance (eps_c - eps_u).
    """

    seeded = True

    def __init__(
        self, sizes: Sizes, steps: int, control: Literal["picture", "latent"] | None = None, guidance: float = 0.0
    ) -> None:
        super().__init__(sizes)
        self.steps, self.control, self.guidance = sizes.steps(steps), control, guidance
        if control is not None:
            self.controlnet = networks.controlnet(sizes, latent_hint=control == "latent")
        if guidance:
            self.register_buffer("negative", networks.text(sizes.text_length, sizes.text_width), persistent=False)

    def forward(self, pictures: Pictures) -> Tensor:
        x = self.signed(pictures.resized)
        hint = self.encode(x)
        B, copies = len(x), 2 if self.guidance else 1
        prompt = self.prompt.expand(B, -1, -1)
        if self.guidance:
            prompt = torch.cat((self.negative.expand(B, -1, -1), prompt))
        state = LEVELS[LAST] ** 0.5 * hint + (1 - LEVELS[LAST]) ** 0.5 * torch.randn_like(hint)
        x, hint = (part.repeat(copies, 1, 1, 1) for part in (x, hint))
        times = [round(LAST - i * TRAIN_STEPS / self.steps) for i in range(self.steps)]
        for t, following in zip(times, [*times[1:], None], strict=True):
            noise = self._predict(state.repeat(copies, 1, 1, 1), t, prompt, x, hint)
            if self.guidance:
                without, noise = noise.chunk(2)
                noise = without + self.guidance * (noise - without)
            state = self._step(state, noise, LEVELS[t], 1.0 if following is None else LEVELS[following])
        return self.decode(state)

    def _predict(self, state: Tensor, t: int, prompt: Tensor, picture: Tensor, hint: Tensor) -> Tensor:
        if self.control is None:
            return self.noise_in(state, t, prompt)
        seen = torch.cat((state, hint), dim=1) if self.control == "latent" else state
        down, middle = self.controlnet(
            seen.to(self.dtype),
            self.time(t),
            encoder_hidden_states=prompt,
            controlnet_cond=picture,
            return_dict=False,
        )
        return self.noise_in(
            state, t, prompt, down_block_additional_residuals=down, mid_block_additional_residual=middle
        )

    @staticmethod
    def _step(state: Tensor, noise: Tensor, level: float, following: float) -> Tensor:
        """The posterior of the state at the following signal level; its mean alone at the last step."""
        alpha = level / following
        x0 = (state - (1 - level) ** 0.5 * noise) / level**0.5
        to_x0 = following**0.5 * (1 - alpha) / (1 - level)
        to_state = alpha**0.5 * (1 - following) / (1 - level)
        mean = to_x0 * x0 + to_state * state
        if following == 1.0:
            return mean
        deviation = ((1 - alpha) * (1 - following) / (1 - level)) ** 0.5
        return mean + deviation * torch.randn_like(state)


class ResShift(Method):
    """Residual shifting: a Markov chain from the encoded low-resolution picture to the high-resolution one.

    x_t ~ N(x_0 + eta_t (y - x_0), kappa^2 eta_t); each step predicts x_0. One step: SinSR.
    """

    seeded = True
    takes_any_size = False  # windows of attention are masked for one size
    KAPPA, POWER, MOST = 2.0, 0.3, 0.99

    def __init__(self, sizes: Sizes, steps: int, least: float = 0.04) -> None:
        """least: eta of the first step."""
        super().__init__()
        self.unet, self.vq = networks.swin_unet(sizes), networks.vq(sizes)
        steps = sizes.steps(steps)
        places = [(i / (steps - 1)) ** self.POWER for i in range(steps)] if steps > 1 else [1.0]
        self.etas = [least * (self.MOST / least) ** place for place in places]

    def forward(self, pictures: Pictures) -> Tensor:
        x = self.signed(pictures.resized)
        y = self.vq.encode(x).latents.float()
        lq = F.interpolate(x, size=y.shape[-2:], mode="bicubic")
        state = y + self.KAPPA * self.etas[-1] ** 0.5 * torch.randn_like(y)
        for t in range(len(self.etas) - 1, 0, -1):
            x0 = self.unet(state.to(self.dtype), self.time(t), lq).float()
            kept = self.etas[t - 1] / self.etas[t]
            deviation = self.KAPPA * (kept * (self.etas[t] - self.etas[t - 1])) ** 0.5
            state = kept * state + (1 - kept) * x0 + deviation * torch.randn_like(state)
        x0 = self.unet(state.to(self.dtype), self.time(0), lq)
        return unsigned(self.vq.decode(x0).sample)


class FlowStep(Method):
    """z - v(z, t = 1): one step of Stable Diffusion 3's flow, TSD-SR."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.transformer, self.vae = networks.sd3_transformer(sizes), networks.sd3_vae(sizes)
        self.register_buffer("prompt", networks.text(sizes.dit_text_length, sizes.dit_text_width), persistent=False)
        self.register_buffer("pooled", torch.randn(1, sizes.dit_pooled_width), persistent=False)

    def forward(self, pictures: Pictures) -> Tensor:
        latent = self.vae.encode(self.signed(pictures.resized)).latent_dist.mode()
        shift, scale, B = self.vae.config.shift_factor, self.vae.config.scaling_factor, len(latent)
        z = (latent - shift) * scale
        velocity = self.transformer(
            hidden_states=z,
            encoder_hidden_states=self.prompt.expand(B, -1, -1),
            pooled_projections=self.pooled.expand(B, -1),
            timestep=self.time(TRAIN_STEPS).expand(B),
        ).sample
        return unsigned(self.vae.decode((z - velocity) / scale + shift).sample)


class PrunedStep(Method):
    """decoder(unet(unshuffled picture)): AdcSR, which has no encoder and no latent in between."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.unet, self.decoder = networks.pruned_unet(sizes), networks.pruned_decoder(sizes)
        self.register_buffer("prompt", networks.text(1, sizes.pruned_text_width), persistent=False)

    def forward(self, pictures: Pictures) -> Tensor:
        x = F.pixel_unshuffle(self.signed(pictures.low), 2)
        features = self.unet(x, self.time(LAST), encoder_hidden_states=self.prompt.expand(len(x), -1, -1)).sample
        return unsigned(self.decoder(features))


class Regression(Method):
    """RRDBNet: no diffusion, the anchor."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.net = networks.rrdb(sizes)

    def heavy(self) -> list[nn.Module]:
        return [self.net]

    def forward(self, pictures: Pictures) -> Tensor:
        low = self.signed(pictures.low)
        return self.net((low + 1) / 2).float().clamp(0, 1)


class Bicubic(Method):
    """What all start from: no network."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def forward(self, pictures: Pictures) -> Tensor:
        return resized(pictures.low)
