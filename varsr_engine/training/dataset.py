"""Crops to train on, from synthetic images or any folder of images, and pairs made of them.

Everything is a pure function of (seed, index): no epoch, no shuffling, no state. A run that resumes at a step sees what
it would have seen.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from varsr_engine.atomic import atomic_writer, output_error
from varsr_engine.errors import InputError, InvalidParamsError
from varsr_engine.imaging import READABLE_EXTENSIONS, ReadLimits, read_picture, resize_rgb, to_network_input
from varsr_engine.imaging.samples import to_uint8
from varsr_engine.training import degradation, poor_targets, synthetic
from varsr_engine.training.degradation_params import Preset
from varsr_engine.training.textures import generator

__all__ = ["CropDataset", "Crops", "FolderImages", "Sample", "SyntheticImages", "loader"]

Pixels = NDArray[np.uint8]  # (H, W, 3)
Degrade = Callable[[Tensor, np.random.Generator, Preset], Tensor]
PoorTarget = Callable[[Tensor, np.random.Generator], Tensor]

_SHRINK_PROBABILITY = 0.5
_LARGEST_SHRINK = 2.0
_SWAP_PROBABILITY = 0.5
_SATURATION_PROBABILITY = 0.5
_SMOOTH_PROBABILITY = 0.25
_SMOOTH_SIZES = (3, 5)  # of a median filter
_FADE_PROBABILITY = 0.4
_LARGEST_FADE = 0.4
_REMEMBERED_BYTES = 256 << 20  # of decoded pictures that a process keeps
_LIMITS = ReadLimits(max_pixels=150_000_000, max_bytes=1 << 30, max_side=65_535)
_DRAWS = 32  # of files, before the next usable one in order is taken


class Crops(Protocol):
    """A source of square crops."""

    def crop(self, index: int, side: int, seed: int) -> Pixels:
        """The crop (side, side, 3) that belongs to (seed, index)."""
        ...


class Sample(TypedDict):
    """hr, lr: (3, S, S) in [-1, 1]. label: 0 for a good target, 1 for a poor one. Batched: (B, 3, S, S) and (B,)."""

    hr: Tensor
    lr: NotRequired[Tensor]
    label: int


class SyntheticImages:
    """`pool_size` dead leaves images of side × side pixels, made when they are first needed.

    cache: a folder that keeps them as .npy files for later runs and other processes, the version of the generator in
    their names; None: each process keeps its own in memory. The same images either way.
    """

    def __init__(self, pool_size: int, side: int, seed: int, cache: str | os.PathLike[str] | None = None) -> None:
        if pool_size < 1 or side < synthetic.SMALLEST_SIDE or seed < 0:
            raise InvalidParamsError(
                f"synthetic images: pool_size must be ≥ 1, side ≥ {synthetic.SMALLEST_SIDE} and seed ≥ 0, "
                f"got {pool_size}, {side} and {seed}"
            )
        self.pool_size = pool_size
        self.side = side
        self.seed = seed
        self.cache = None if cache is None else _created(Path(cache))
        self._made: dict[int, Pixels] = {}

    def path(self, number: int) -> Path | None:
        """The file that holds image `number`, or will; None without a cache."""
        if self.cache is None:
            return None
        return self.cache / f"leaves-v{synthetic.VERSION}-{self.side}-{self.seed}-{number:06d}.npy"

    def image(self, number: int) -> Pixels:
        """Image `number` of the pool, (side, side, 3); from the cache it is a read-only view of the file."""
        if not 0 <= number < self.pool_size:
            raise IndexError(f"synthetic images: number must be in [0, {self.pool_size}), got {number}")
        path = self.path(number)
        if path is not None:
            return _kept(path, lambda: self._make(number), (self.side, self.side, 3))
        if number not in self._made:
            self._made[number] = self._make(number)
        return self._made[number]

    def crop(self, index: int, side: int, seed: int) -> Pixels:
        """See `Crops`. Raises InvalidParamsError if side exceeds the images'."""
        if side > self.side:
            raise InvalidParamsError(f"synthetic images have {self.side} pixels a side: too small for crops of {side}")
        rng = generator(seed, index)
        square = _cut(self.image(int(rng.integers(self.pool_size))), side, rng)
        return _recolour(_calm(square, rng), rng)

    def _make(self, number: int) -> Pixels:
        return synthetic.dead_leaves(self.side, self.seed * 1_000_003 + number)


class FolderImages:
    """The images of a folder and its subfolders, in order of their names; transparency is dropped.

    cache: a folder that keeps decoded images as .npy files, so that a large one is decoded once and not for every crop;
    it takes 3 bytes a pixel. What cannot be read, or is smaller than the crop, is left out with a warning. Raises
    InvalidParamsError if the folder is absent or holds no image, and at a crop if none is usable.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        cache: str | os.PathLike[str] | None = None,
        limits: ReadLimits | None = None,
    ) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InvalidParamsError(f"training images: {str(folder)!r} is not a folder")
        self.files = sorted(_image_files(self.folder))
        if not self.files:
            kinds = ", ".join(sorted(READABLE_EXTENSIONS))
            raise InvalidParamsError(f"training images: no image in {str(folder)!r} (looked for {kinds})")
        self.cache = None if cache is None else _created(Path(cache))
        self.limits = limits if limits is not None else _LIMITS
        self._unusable: dict[int, float] = {}  # file → the crop's side from which on it is of no use
        self._memory: OrderedDict[int, Pixels] = OrderedDict()
        self._remembered = 0

    def crop(self, index: int, side: int, seed: int) -> Pixels:
        """See `Crops`. Where the first file drawn is unusable, others are drawn, by (seed, index) too."""
        rng = generator(seed, index)
        drawn = rng.integers(0, len(self.files), _DRAWS).tolist()
        after = ((drawn[-1] + i) % len(self.files) for i in range(1, len(self.files) + 1))
        for number in itertools.chain(drawn, after):
            picture = self._usable(number, side)
            if picture is not None:
                return _cut(picture, side, rng)
        raise InvalidParamsError(
            f"training images: none of the {len(self.files)} images in {str(self.folder)!r} is readable "
            f"and at least {side}x{side} pixels"
        )

    def _usable(self, number: int, side: int) -> Pixels | None:
        if side >= self._unusable.get(number, float("inf")):
            return None
        try:
            picture = self._read(number)
        except InputError as error:
            self._leave_out(number, 0, str(error))
            return None
        smaller = min(picture.shape[:2])
        if smaller < side:
            size = f"{picture.shape[1]}x{picture.shape[0]}"
            self._leave_out(number, smaller + 1, f"{str(self.files[number])!r} has {size} pixels: too few for {side}")
            return None
        return picture

    def _leave_out(self, number: int, from_side: int, reason: str) -> None:
        self._unusable[number] = from_side
        warnings.warn(f"training images: left out: {reason}", stacklevel=4)

    def _read(self, number: int) -> Pixels:
        if self.cache is not None:
            return _kept(self.cache / f"{_identity(self.files[number])}.npy", lambda: self._decode(number))
        picture = self._memory.get(number)
        if picture is None:
            picture = self._memory[number] = self._decode(number)
            self._remembered += picture.nbytes
            while self._remembered > _REMEMBERED_BYTES and len(self._memory) > 1:
                self._remembered -= self._memory.popitem(last=False)[1].nbytes
        self._memory.move_to_end(number)
        return picture

    def _decode(self, number: int) -> Pixels:
        return to_uint8(read_picture(self.files[number], self.limits).rgb)


def _created(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    return folder


def _kept(path: Path, make: Callable[[], Pixels], shape: tuple[int, ...] | None = None) -> Pixels:
    """The picture in `path`, as a read-only view of the file; made and written if it is absent or damaged."""
    try:
        stored = np.load(path, mmap_mode="r")
        fits = stored.shape == shape if shape is not None else stored.ndim == 3 and stored.shape[2] == 3
        if fits and stored.dtype == np.uint8:
            return cast(Pixels, stored)
    except (OSError, ValueError, EOFError):
        pass
    picture = make()
    with atomic_writer(path) as file:  # processes that make it at the same time write the same bytes
        np.save(file, picture)
    return picture


def _identity(file: Path) -> str:
    """Changes when the file is replaced; what does not exist has one too, and fails when it is read."""
    try:
        info = os.stat(file)
        state = f"{info.st_size} {info.st_mtime_ns}"
    except OSError:
        state = ""
    return hashlib.sha256(f"{file.resolve()} {state}".encode(errors="surrogateescape")).hexdigest()[:32]


def _image_files(folder: Path) -> Iterator[Path]:
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in READABLE_EXTENSIONS:
                yield Path(parent, name)


def _cut(picture: Pixels, side: int, rng: np.random.Generator) -> Pixels:
    """A random square of the picture, turned and mirrored; sometimes a larger one made smaller."""
    height, width = picture.shape[:2]
    largest = min(_LARGEST_SHRINK, min(height, width) / side)
    factor = float(rng.uniform(1, largest)) if rng.random() < _SHRINK_PROBABILITY else 1.0
    window = min(round(side * factor), height, width)
    top, left = int(rng.integers(height - window + 1)), int(rng.integers(width - window + 1))
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    square = picture[top : top + window, left : left + window]
    if window != side:
        # Pillow's BOX takes one pixel here and two there; HAMMING is as sharp and even.
        square = np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.HAMMING))
    square = np.rot90(square, turns)
    return np.array(square[:, ::-1] if mirrored else square, order="C")


def _calm(square: Pixels, rng: np.random.Generator) -> Pixels:
    """Some crops without their fine texture, some with less contrast: photographs have calm places, leaves have few.

    Without it a network's best is to learn what to do with detail that no degradation leaves (measured: 23 dB between
    input and target, where photographs have 24 to 27).
    """
    if rng.random() < _SMOOTH_PROBABILITY:
        size = int(rng.choice(_SMOOTH_SIZES))
        square = np.array(Image.fromarray(square).filter(ImageFilter.MedianFilter(size)))
    if rng.random() < _FADE_PROBABILITY:
        factor = np.float32(rng.uniform(_LARGEST_FADE, 1))
        values = square.astype(np.float32)
        mean = values.mean(axis=(0, 1), keepdims=True)
        square = (mean + factor * (values - mean) + np.float32(0.5)).astype(np.uint8)
    return square


def _recolour(square: Pixels, rng: np.random.Generator) -> Pixels:
    """Channels swapped, colours made stronger or weaker, each for some crops.

    A pool has few palettes, mostly along one axis of colour: an autoencoder that learns from them as they are drops the
    others (measured: red came out as orange).
    """
    if rng.random() < _SWAP_PROBABILITY:
        square = square[..., rng.permutation(3)]
    if rng.random() < _SATURATION_PROBABILITY:
        factor = np.float32(np.exp(rng.uniform(np.log(0.6), np.log(2.5))))
        values = square.astype(np.float32)
        gray = values.mean(axis=2, keepdims=True)
        square = np.clip(gray + factor * (values - gray) + np.float32(0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(square)


class CropDataset(Dataset[Sample]):
    """Sample i is a function of (seed, i), for every i ≥ 0: there is no end, and no length.

    The input (lr) is degraded from the crop to side // scale pixels, rounded to 8 bits and resized to the tile as the
    engine does at inference. With probability poor_fraction the label is 1 and the target (hr) is made poor; the input
    still comes from the good crop. mild_fraction: share of inputs with the degradation "mild"; the others have
    "second_order". paired=False: no lr is made, as for an autoencoder.
    """

    def __init__(
        self,
        source: Crops,
        side: int,
        seed: int = 0,
        *,
        poor_fraction: float = 0.2,
        mild_fraction: float = 0.25,
        paired: bool = True,
        degrade: Degrade = degradation.degrade,
        poor_target: PoorTarget = poor_targets.poor_target,
    ) -> None:
        for name, value in (("poor_fraction", poor_fraction), ("mild_fraction", mild_fraction)):
            if not 0 <= value <= 1:
                raise InvalidParamsError(f"crops: {name} must be in [0, 1], got {value}")
        if side < 1 or seed < 0:
            raise InvalidParamsError(f"crops: side must be ≥ 1 and seed ≥ 0, got {side} and {seed}")
        self.source = source
        self.side = side
        self.seed = seed
        self.poor_fraction = poor_fraction
        self.mild_fraction = mild_fraction
        self.paired = paired
        self._degrade = degrade
        self._poor_target = poor_target

    def __getitem__(self, index: int) -> Sample:
        if index < 0:
            raise IndexError(f"crops: index must be ≥ 0, got {index}")
        crop = self.source.crop(index, self.side, self.seed)
        good = torch.from_numpy(crop).permute(2, 0, 1).contiguous().float().div_(255)
        rng = generator(self.seed, index, 1)
        label = int(rng.random() < self.poor_fraction)
        preset: Preset = "mild" if rng.random() < self.mild_fraction else "second_order"
        input_rng, target_rng = rng.spawn(2)
        target = self._poor_target(good, target_rng) if label else good
        sample: Sample = {"hr": target * 2 - 1, "label": label}
        if self.paired:
            sample["lr"] = self._network_input(self._degrade(good, input_rng, preset))
        return sample

    def _network_input(self, small: Tensor) -> Tensor:
        """What `Engine` makes of the 8-bit file that holds this picture."""
        rgb = small.clamp(0, 1).permute(1, 2, 0).contiguous().numpy()
        rgb = to_uint8(rgb).astype(np.float32) / np.float32(255)
        return to_network_input(resize_rgb(rgb, (self.side, self.side), eight_bit=True))[0]


class _Steps:
    """Indices of the batches of step start, start + 1, … of one of `ranks` processes."""

    def __init__(self, batch_size: int, start: int, rank: int, ranks: int) -> None:
        self.batch_size, self.start, self.rank, self.ranks = batch_size, start, rank, ranks

    def __iter__(self) -> Iterator[list[int]]:
        first = (self.start * self.ranks + self.rank) * self.batch_size
        while True:
            yield list(range(first, first + self.batch_size))
            first += self.ranks * self.batch_size


def loader(
    dataset: CropDataset, batch_size: int, start_step: int = 0, workers: int = 0, *, rank: int = 0, ranks: int = 1
) -> Iterator[dict[str, Tensor]]:
    """Batches of step start_step, start_step + 1, … without end; step s holds samples s·B to s·B + B - 1.

    workers: processes that make them, one thread each; 0: this process does. Of `ranks` processes that train together,
    each with B samples a step, process `rank` gets its share of the ranks·B samples of a step.
    """
    if batch_size < 1 or start_step < 0 or workers < 0 or not 0 <= rank < ranks:
        raise InvalidParamsError(
            "loader: batch_size must be ≥ 1, start_step and workers ≥ 0 and rank in [0, ranks), "
            f"got {batch_size}, {start_step}, {workers} and {rank} of {ranks}"
        )
    batches: DataLoader[Sample] = DataLoader(
        dataset,
        batch_sampler=_Steps(batch_size, start_step, rank, ranks),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    return iter(cast("DataLoader[dict[str, Tensor]]", batches))
