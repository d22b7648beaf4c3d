"""Stage 1: the autoencoder and its codebook (paper section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from varsr_engine.model.autoencoder import Autoencoder
from varsr_engine.training.config import TrainConfig
from varsr_engine.training.initialise import initialise_autoencoder
from varsr_engine.training.losses import color_loss, gradient_loss
from varsr_engine.training.quantization import CodebookUse, quantise, usage
from varsr_engine.training.stage import Batch, Stage


class AutoencoderStage(Stage):
    """Colour + gradient loss of what is decoded from quantised and from continuous latents, + the codebook's loss."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config.autoencoder
        self.model_config = config.model
        self.vae = Autoencoder(config.model)
        initialise_autoencoder(self.vae)
        self.codebook_use = CodebookUse(config.model.vocab_size)
        self._revive_until = round(config.optimizer.steps * config.autoencoder.revive_until)
        self._looked_up: torch.Tensor | None = None
        self._usage: list[float] = []
        self._revived = 0

    def forward(self, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        settings, hr = self.config, batch["hr"]
        latent = self.vae.encode(hr).float()
        with torch.autocast(latent.device.type, enabled=False):  # distances to the codebook decide tokens
            quantised = quantise(self.vae.quantize, latent, settings.commitment)
        split = round(hr.shape[0] * settings.continuous_fraction)
        noise = settings.latent_noise * latent.detach().std() * torch.randn_like(latent[:split])
        decoded = self.vae.decoder(
            self.vae.post_quant_conv(torch.cat((latent[:split] + noise, quantised.latent[split:])))
        ).float()
        error = color_loss(decoded, hr)
        loss = error + settings.gradient_weight * gradient_loss(decoded, hr)
        loss = loss + settings.codebook_weight * quantised.loss + settings.latent_penalty * latent.square().mean()
        self.codebook_use.count(quantised.tokens)
        self._looked_up = quantised.residuals
        self._usage = usage(quantised.tokens, self.model_config.vocab_size)
        return loss, {
            "loss": loss.item(),
            "color": error.item(),
            "psnr": psnr(decoded[:split], hr[:split]),
            "psnr_quantised": psnr(decoded[split:], hr[split:]),
            "codebook": quantised.loss.item(),
            "latent_std": latent.std().item(),
        }

    def after_step(self, step: int) -> None:
        due = (step + 1) % self.config.revive_every == 0 and step < self._revive_until
        if due and self._looked_up is not None:
            codebook = self.vae.quantize.embedding.weight
            self._revived += self.codebook_use.revive(codebook, self._looked_up, self.config.revive_below)
            if torch.distributed.is_initialized():  # each process drew its own replacements
                for tensor in (codebook.data, self.codebook_use.hits):
                    torch.distributed.broadcast(tensor, 0)

    def report(self) -> dict[str, object]:
        """The share of the codebook that each scale used in the last batch, and entries revived so far."""
        return {"usage": [round(u, 4) for u in self._usage], "revived": self._revived}

    def preview(self, batch: Batch) -> list[torch.Tensor]:
        """The image, decoded from its continuous latent, and from its quantised one."""
        hr = batch["hr"]
        latent = self.vae.encode(hr)
        quantised = quantise(self.vae.quantize, latent, 0.0).latent
        decoded = [self.vae.decode(latents) * 2 - 1 for latents in (latent, quantised)]
        return [hr, *decoded]


def psnr(output: torch.Tensor, target: torch.Tensor) -> float:
    """In dB, of values in [-1, 1], over the whole batch; nan for none."""
    if output.numel() == 0:
        return float("nan")
    error = F.mse_loss(output.detach().float().clamp(-1, 1), target.float())
    return float(10 * torch.log10(4 / error))
