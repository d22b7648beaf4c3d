"""Stage 2: the transformer and the refiner, on the tokens of a frozen autoencoder (paper sections 3.1 to 3.4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from varsr_engine.engine.engine import Engine
from varsr_engine.model.quantizer import Feed
from varsr_engine.model.varsr import VARSR, TeacherForced
from varsr_engine.training import feeding
from varsr_engine.training.config import TrainConfig
from varsr_engine.training.initialise import initialise_transformer
from varsr_engine.training.losses import DiffusionLoss, token_loss
from varsr_engine.training.stage import Batch, Stage


class TransformerStage(Stage):
    """Cross-entropy of the tokens of every scale + refiner_weight x the refiner's diffusion loss."""

    def __init__(self, config: TrainConfig, autoencoder: Mapping[str, torch.Tensor]) -> None:
        """autoencoder: its weights, by their names in `Autoencoder`."""
        super().__init__()
        self.config = config.transformer
        self.model = VARSR(config.model)
        initialise_transformer(self.model.transformer, self.config.local_heads)
        self.model.vae.load_state_dict(autoencoder)
        self.model.vae.requires_grad_(False)
        self.diffusion = DiffusionLoss(self.model.transformer.diffloss.schedule)

    def forward(self, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        settings, labels = self.config, batch["label"]
        encoded = self._encode(batch, step)
        forced = self.model.forced(batch["lr"], *encoded, labels)
        tokens = token_loss(forced.logits, forced.targets)
        noise, bound = self._refiner_loss(forced)
        loss = tokens + settings.refiner_weight * (noise + settings.variance_weight * bound)
        with torch.no_grad():
            right = (forced.logits.argmax(dim=-1) == forced.targets).float()
            last = self.model.config.latent_side**2
        return loss, {
            "loss": loss.item(),
            "tokens": tokens.item(),
            "refiner": noise.item(),
            "bound": bound.item(),
            "right": right.mean().item(),
            "right_last": right[:, -last:].mean().item(),
            "residual_std": forced.refiner_target.std().item(),
        }

    @torch.no_grad()
    def _encode(self, batch: Batch, step: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        settings, hr = self.config, batch["hr"]
        latent = self.model.vae.encode(hr).float()
        quantize = self.model.vae.quantize
        feed: Feed | None = feeding.noisy(quantize, settings.token_noise) if settings.token_noise > 0 else None
        rows = round(hr.shape[0] * settings.self_fed) if step >= settings.self_fed_from else 0
        if rows > 0:
            own = feeding.own_tokens(self.model, batch["lr"][:rows], batch["label"][:rows])
            feed = feeding.mixed(own, feed)
        with torch.autocast(latent.device.type, enabled=False):  # distances to the codebook decide tokens
            return quantize.encode(latent, feed)

    def _refiner_loss(self, forced: TeacherForced) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise-prediction error and variational bound, at several random timesteps a token."""
        config, times, diffusion = self.model.config, self.config.timesteps, self.diffusion
        x0 = (forced.refiner_target.float() / config.refiner_residual_scale).flatten(0, 1).repeat(times, 1)
        z = forced.refiner_z.flatten(0, 1).repeat(times, 1)
        timesteps = torch.randint(config.refiner_train_steps, (x0.shape[0],), device=x0.device)
        noise = torch.randn_like(x0)
        xt = diffusion.noised(x0, noise, timesteps)
        output = self.model.transformer.diffloss.net(xt, timesteps, z)
        return diffusion(output, x0, xt, noise, timesteps)

    def preview(self, batch: Batch) -> list[torch.Tensor]:
        """The input, what the engine makes of it with the model's default settings, and the target."""
        engine = Engine.from_model(self.model, device=str(batch["lr"].device), dtype="fp32")
        images = engine.generate(batch["lr"].float(), labels=0, seed=0).images
        return [batch["lr"], images.to(batch["lr"].device) * 2 - 1, batch["hr"]]
