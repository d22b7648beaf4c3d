"""The published model on a fake GPU: every launch of an image at its real shapes."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch

from tests.live_bytes import LiveBytes
from varsr_engine.checkpoint import SAFETENSORS_DTYPES, Checkpoint, TensorCheckpoint
from varsr_engine.config import ModelConfig
from varsr_engine.engine import weights
from varsr_engine.engine.generation import Pipeline
from varsr_engine.engine.quantization import Fp8Switches
from varsr_engine.engine.request import BatchRequest
from varsr_engine.model.varsr import VARSR

DEVICE = torch.device("meta")


class FakeCheckpoint(TensorCheckpoint):
    """Weights without values, on the fake GPU already."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        with DEVICE:
            self._tensors = {name: t.to(dtype) for name, t in VARSR(config).state_dict().items()}
        header = {name: (tuple(t.shape), SAFETENSORS_DTYPES[dtype]) for name, t in self._tensors.items()}
        Checkpoint.__init__(self, Path("fake"), config, header)


def fake_pipeline(config: ModelConfig, dtype: torch.dtype = torch.float16, fp8: Fp8Switches | None = None) -> Pipeline:
    """The engine's pipeline on weights without values. Call within `fake_gpu`."""
    with mock.patch.object(weights, "static_bound", lambda bound: bound):  # decided from values, once at load
        pipeline = Pipeline(FakeCheckpoint(config, dtype), DEVICE, dtype, fp8=fp8)
        for part in (pipeline._condition, pipeline._refiner, pipeline._decoder):
            part.run(lambda loaded: None)
    return pipeline


def fake_request(batch: int, *, greedy: bool = True) -> BatchRequest:
    def per_image(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty(batch, *shape, dtype=dtype, device=DEVICE)

    whole, real = torch.int64, torch.float32
    return BatchRequest(
        labels=per_image(whole),
        guidance=per_image(real),
        seeds=per_image(whole),
        top_k=per_image(whole),
        top_p=per_image(real),
        temperature=per_image(real),
        refiner_temperature=per_image(real),
        origins=per_image(whole, 2),
        greedy=greedy,
    )


def run_image(pipeline: Pipeline, lr: torch.Tensor, request: BatchRequest) -> torch.Tensor:
    """What a graph captures: from the prepared input to the images (B, 3, S, S)."""
    with torch.inference_mode():
        latent, _ = pipeline._latent(lr, request, request.seeds, None, True)
        return pipeline._decoded(latent)


def stage_peaks(pipeline: Pipeline, lr: torch.Tensor, request: BatchRequest) -> dict[str, int]:
    """Most bytes that live tensors hold in each stage, inputs and weights excepted."""
    peaks: dict[str, int] = {}
    with torch.inference_mode(), LiveBytes(DEVICE.type) as live:

        def ended(stage: str, latent: torch.Tensor | None = None) -> None:
            name = "scales" if stage.startswith("scale.") else stage
            peaks[name] = max(peaks.get(name, 0), live.peak)
            live.peak = live.now

        latent, _ = pipeline._latent(lr, request, request.seeds, None, True, clock=ended)
        pipeline._decoded(latent)
        ended("decoder")
    return peaks
