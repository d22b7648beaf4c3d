"""What a run measures: passed from the command to each part's process as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.diffusion.sizes import PUBLISHED, SMALL, Sizes

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FEW, SOME, MANY = 3, 10, 50  # timed calls of 50 steps and more, of 4 to 49, and of fewer


@dataclass(frozen=True)
class Settings:
    """smoke: small networks, two steps, on a CPU: proves that the program runs, and measures nothing."""

    device: str = "cuda"
    smoke: bool = False
    dtype: str = "fp16"  # of both sides; VARSR is published in fp16
    seed: int = 1
    batches: tuple[int, ...] = (1, 4, 8, 16)
    engine_backends: tuple[str, ...] = ("auto", "cuda", "torch")
    engine_fp8: bool = True
    tiled_times: int = 4  # a tiled picture's side, in tiles
    tile_overlap: float = 0.25  # of a tile's side
    tile_batch: int = 5  # tiles a call of a peer
    compile_mode: str = "max-autotune-no-cudagraphs"
    fewer_rounds: int | None = None  # at most so many of each; None: FEW, SOME and MANY
    peers: tuple[str, ...] | None = None  # None: all of a part
    weights: tuple[str, ...] = ()  # PEER=FOLDER
    model: str | None = None  # of VARSR; None: random weights
    pairs: str | None = None  # folder of pictures and their truths, for the part `quality`

    @classmethod
    def small(cls) -> Settings:
        return cls(
            device="cpu",
            smoke=True,
            dtype="fp32",
            batches=(2,),
            engine_backends=("auto", "torch"),
            engine_fp8=False,
            tiled_times=2,
            tile_batch=9,
            fewer_rounds=2,
        )

    @property
    def sizes(self) -> Sizes:
        return SMALL if self.smoke else PUBLISHED

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def tiled_side(self) -> int:
        """Pixels a side of the picture that is made of tiles."""
        return self.tiled_times * self.sizes.side

    def rounds(self, steps: int) -> int:
        """Timed calls of a contestant with so many calls of its denoiser."""
        wanted = FEW if steps >= 50 else SOME if steps >= 4 else MANY
        return wanted if self.fewer_rounds is None else min(wanted, self.fewer_rounds)

    def warmups(self, steps: int) -> int:
        """Calls before them, beside the first one and the two or three of the gates."""
        return 0 if self.smoke or steps >= 4 else 7

    def folder_of(self, peer: str) -> str | None:
        """Where the peer's real weights are; None: random ones."""
        return dict(entry.split("=", 1) for entry in self.weights).get(peer)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        values: dict[str, Any] = json.loads(text)
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
