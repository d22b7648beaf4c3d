"""The model that comes with the package: what it says of itself, and that it upscales a photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from varsr_engine.checkpoint import open_checkpoint
from varsr_engine.engine.engine import Engine
from varsr_engine.imaging import resize_rgb
from varsr_engine.packaged import packaged_model

PHOTO = Path(__file__).parents[1] / "examples" / "photo.jpg"


def test_it_is_small_and_says_what_it_is() -> None:
    path = packaged_model("varsr-mini")
    assert path is not None and path.stat().st_size <= 16 * 2**20
    checkpoint = open_checkpoint("varsr-mini")
    assert checkpoint.num_parameters <= 8_000_000 and set(checkpoint.dtypes.values()) == {"F16"}
    assert {"name", "commit", "licence"} <= set(checkpoint.metadata)


@pytest.mark.parametrize("box", [(0, 0, 24, 24), (40, 40, 104, 72)])
def test_it_upscales_a_photograph(box: tuple[int, int, int, int]) -> None:
    source = Image.open(PHOTO).crop(box)
    result = Engine.from_pretrained("varsr-mini", device="cpu").upscale(source)
    bicubic = resize_rgb(np.asarray(source, dtype=np.float32) / 255, result.size)
    assert np.abs(result.picture.rgb - bicubic).mean() <= 0.06  # the same picture, whatever detail it gained
    if result.tiles > 1:
        assert result.seam_score is not None and result.seam_score <= 1.2
