"""What `Engine.upscale` returns: the picture, how to reproduce it, and how long each stage took.

`Engine.upscale_to` returns the same without the pixels, which are in the file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from varsr_engine.imaging import Picture, encode_picture, write_picture
from varsr_engine.imaging.writing import pillow_image

if TYPE_CHECKING:
    import torch
    from PIL import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleReport:
    """How an image was upscaled. `seed` reproduces it with the same parameters where `numerics` is the same."""

    size: tuple[int, int]  # (width, height) of the output, in pixels
    source_size: tuple[int, int]
    seed: int
    model_id: str
    engine_version: str
    numerics: str  # the engine's fingerprint: which arithmetic made the pixels (`engine/fingerprint.py`)
    seconds: dict[str, float] = field(default_factory=dict)  # by stage: shared by a batch's images, summed over tiles
    warnings: tuple[str, ...] = ()
    tiles: int = 1
    seam_score: float | None = None  # of several tiles: gradients where they meet over those elsewhere; 1 is seamless
    stop_at_scale: int | None = None  # of a draft: how many scales ran

    def stats(self) -> dict[str, Any]:
        """Everything but the pixels, as JSON types."""
        draft = {} if self.stop_at_scale is None else {"stop_at_scale": self.stop_at_scale}
        return {
            "size": list(self.size),
            "source_size": list(self.source_size),
            "seed": self.seed,
            "model": self.model_id,
            "version": self.engine_version,
            "numerics": self.numerics,
            "tiles": self.tiles,
            "seam_score": None if self.seam_score is None else round(self.seam_score, 4),
            "seconds": {stage: round(value, 4) for stage, value in self.seconds.items()},
            "warnings": list(self.warnings),
            **draft,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleResult(UpscaleReport):
    """An upscaled picture, and how it was upscaled."""

    picture: Picture  # float RGB and alpha, with the metadata of the source

    @property
    def image(self) -> Image.Image:
        """The picture as a PIL image, 8 bits a channel: RGB or RGBA, L for a gray source."""
        return pillow_image(self.picture, "PNG")

    @property
    def array(self) -> NDArray[np.uint8]:
        """(H, W, 3) or, with alpha, (H, W, 4) uint8; (H, W) for a gray source."""
        return np.asarray(self.image)

    @property
    def tensor(self) -> torch.Tensor:
        """(3, H, W) float32 in [0, 1], without the rounding to 8 bits."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(self.picture.rgb.transpose(2, 0, 1)))

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        format: str | None = None,
        quality: int = 95,
        overwrite: bool = False,
    ) -> list[str]:
        """Write the picture, completely or not at all. Returns what the format could not keep, as sentences."""
        return write_picture(path, self.picture, format=format, quality=quality, overwrite=overwrite)

    def encode(self, format: str = "PNG", *, quality: int = 95) -> bytes:
        """The picture as PNG, JPEG, WEBP or TIFF bytes."""
        return encode_picture(self.picture, format, quality=quality)
