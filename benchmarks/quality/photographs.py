"""The held-out photographs: natural colour pictures that two pip packages carry inside. Nothing is downloaded.

Crop rule: the central 256×256 pixels at the photograph's own resolution (its offset rounded down). Never train on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.quality.metrics import Pixels

CROP = 256
# (package, path inside it). What skimage.data needs a download for, and what is no photograph, is left out.
BUNDLED = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}


@dataclass(frozen=True, slots=True)
class Photograph:
    """A name and its (H, W, 3) uint8 pixels: the truth that a degraded copy is compared with."""

    name: str
    pixels: Pixels


def central_crop(image: Image.Image, side: int = CROP) -> Pixels:
    """The central side×side pixels of a picture, as (side, side, 3) uint8."""
    width, height = image.size
    if min(width, height) < side:
        raise ValueError(f"photographs: a picture must have at least {side}×{side} pixels, got {width}×{height}")
    left, top = (width - side) // 2, (height - side) // 2
    return np.array(image.convert("RGB").crop((left, top, left + side, top + side)))


def bundled_photographs(side: int = CROP) -> list[Photograph]:
    """The seven photographs inside scikit-image and scikit-learn, cropped."""
    result = []
    for name, (package, path) in BUNDLED.items():
        with Image.open(_package_folder(package) / path) as image:
            result.append(Photograph(name, central_crop(image, side)))
    return result


def _package_folder(package: str) -> Path:
    """Where a package is installed; it is not imported, which would take seconds."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is missing: pip install -c constraints.txt -e '.[eval]'")
    return Path(spec.submodule_search_locations[0])


def folder_photographs(folder: Path, side: int = CROP) -> list[Photograph]:
    """Every PNG, JPEG and WebP picture of a folder, cropped, by name."""
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    if not paths:
        raise FileNotFoundError(f"photographs: no PNG, JPEG or WebP picture in {folder}")
    result = []
    for path in paths:
        with Image.open(path) as image:
            result.append(Photograph(path.stem, central_crop(image, side)))
    return result
