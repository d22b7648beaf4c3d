"""What a run measures, and where: passed from the session to its worker processes as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from varsr_engine.config import ModelConfig

DTYPES = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Settings:
    """dry_run: tiny shapes on a CPU, timed by the wall clock; proves that the program runs, and measures nothing."""

    device: str = "cuda"
    dry_run: bool = False
    check_dtypes: tuple[str, ...] = ("fp16", "bf16")
    check_batches: tuple[int, ...] = (1, 8)
    ops_batches: tuple[int, ...] = (1, 8)
    engine_batches: tuple[int, ...] = (1, 2, 4, 8)
    baseline_batches: tuple[int, ...] = (1, 8)
    parity_dtypes: tuple[str, ...] = ("fp32", "fp16", "bf16", "fp8")
    compute_dtype: str = "fp16"  # of ops, engine and baselines
    rounds: int = 50  # interleaved runs of each contestant, at least; fewer only where time is short, and recorded

    @classmethod
    def dry(cls) -> Settings:
        return cls(
            device="cpu",
            dry_run=True,
            check_dtypes=("fp32",),
            check_batches=(1,),
            ops_batches=(1,),
            engine_batches=(1, 2),
            baseline_batches=(1,),
            parity_dtypes=("fp32", "fp8"),
            compute_dtype="fp32",
            rounds=3,
        )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        values: dict[str, Any] = json.loads(text)
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**values)

    @property
    def config(self) -> ModelConfig:
        """The published network, or one of the same parts that a CPU runs in milliseconds."""
        from varsr_engine.config import ModelConfig

        if not self.dry_run:
            return ModelConfig.varsr_d24()
        return ModelConfig(
            depth=2,
            embed_dim=64,
            num_heads=1,
            patch_nums=(1, 2, 3),
            vocab_size=64,
            latent_channels=16,
            cond_channels=(8, 8, 16, 16, 16),
            vae_channels=8,
            vae_norm_groups=8,
            refiner_width=32,
            refiner_depth=1,
            refiner_steps=2,
        )

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device(self.device)


def torch_dtype(name: str) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]
