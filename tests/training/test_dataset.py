"""Crops and pairs depend on (seed, index) alone; folders and the cache survive what happens to files."""

from __future__ import annotations

import pickle
import warnings
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from varsr_engine.errors import InvalidParamsError, OutputError
from varsr_engine.imaging import resize_rgb, to_network_input
from varsr_engine.training import dataset, synthetic
from varsr_engine.training.dataset import CropDataset, Crops, FolderImages, Pixels, SyntheticImages, loader


class Ramps:
    """A source without images: each crop shows its index."""

    def crop(self, index: int, side: int, seed: int) -> Pixels:
        ramp = np.arange(side * side * 3, dtype=np.int64).reshape(side, side, 3)
        return ((ramp * (index + 1) + seed) % 256).astype(np.uint8)


def quarter(hr: torch.Tensor, rng: np.random.Generator, preset: str) -> torch.Tensor:
    """Every fourth pixel, a little brighter: not a multiple of 1/255."""
    return (hr[:, ::4, ::4] + 0.001).clamp(0, 1)


def dark(hr: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    return hr * 0.25


def pairs(source: Crops | None = None, **options: Any) -> CropDataset:
    return CropDataset(source or Ramps(), 16, 3, **(dict(degrade=quarter, poor_target=dark) | options))


def save(path: Path, width: int, height: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


# --- synthetic images ---------------------------------------------------------------------------------------


def test_cached_and_remembered_images_are_the_same(tmp_path: Path) -> None:
    remembered, cached = SyntheticImages(3, 48, 7), SyntheticImages(3, 48, 7, tmp_path / "a" / "b")
    for number in range(3):
        assert np.array_equal(remembered.image(number), cached.image(number))
        assert np.array_equal(cached.image(number), SyntheticImages(3, 48, 7, tmp_path / "a" / "b").image(number))
    assert not np.array_equal(remembered.image(0), remembered.image(1))
    assert not np.array_equal(remembered.image(0), SyntheticImages(3, 48, 8).image(0))


def test_cache_files_carry_the_generators_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SyntheticImages(1, 48, 7, tmp_path)
    pool.image(0)
    monkeypatch.setattr(synthetic, "VERSION", synthetic.VERSION + 1)
    pool.image(0)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"leaves-v{v}-48-7-000000.npy" for v in (synthetic.VERSION - 1, synthetic.VERSION)]


@pytest.mark.parametrize("damage", [b"", b"no array", "cut short", "another shape"])
def test_a_damaged_cache_file_is_made_anew(tmp_path: Path, damage: bytes | str) -> None:
    pool = SyntheticImages(1, 48, 7, tmp_path)
    good, path = pool.image(0).copy(), pool.path(0)
    assert path is not None
    if damage == "another shape":
        np.save(path, np.zeros((4, 4, 3), np.uint8))
    else:
        path.write_bytes(path.read_bytes()[:500] if isinstance(damage, str) else damage)
    assert np.array_equal(pool.image(0), good)
    assert np.array_equal(np.load(path), good)


def test_an_interrupted_image_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(file: Any, picture: Pixels) -> None:
        file.write(picture.tobytes()[:100])
        raise KeyboardInterrupt

    pool = SyntheticImages(1, 48, 7, tmp_path)
    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.image(0)
    assert list(tmp_path.iterdir()) == []


def test_processes_share_a_cache(tmp_path: Path) -> None:
    pool = SyntheticImages(2, 48, 7, tmp_path)
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as workers:
        images = list(workers.map(pool.image, [0, 0, 1, 1]))
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[2], images[3])
    assert len(list(tmp_path.iterdir())) == 2


def test_crops_of_synthetic_images_are_repeatable_and_vary(tmp_path: Path) -> None:
    pool, again = SyntheticImages(2, 64, 0), SyntheticImages(2, 64, 0, tmp_path)
    crops = [pool.crop(index, 16, 4) for index in range(8)]
    for index in reversed(range(8)):  # in any order
        crop = again.crop(index, 16, 4)
        assert crop.shape == (16, 16, 3)
        assert crop.flags.c_contiguous
        assert crop.flags.writeable
        assert np.array_equal(crop, crops[index])
    assert len({crop.tobytes() for crop in crops}) == 8
    assert not np.array_equal(pool.crop(0, 16, 5), crops[0])


def test_calm_crops_lose_contrast_and_texture_but_not_their_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SWAP_PROBABILITY", "_SATURATION_PROBABILITY"):
        monkeypatch.setattr(dataset, name, 0.0)
    pool, spread = SyntheticImages(2, 64, 0), {}
    for smooth, fade in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        monkeypatch.setattr(dataset, "_SMOOTH_PROBABILITY", smooth)
        monkeypatch.setattr(dataset, "_FADE_PROBABILITY", fade)
        crops = np.stack([pool.crop(index, 32, 4) for index in range(8)]).astype(np.float64)
        spread[smooth, fade] = crops.std(), np.abs(np.diff(crops, axis=2)).mean(), crops.mean()
    plain, smoothed, faded = spread.values()
    assert smoothed[1] < 0.8 * plain[1]
    assert faded[0] < 0.95 * plain[0]
    assert abs(faded[2] - plain[2]) < 2


@pytest.fixture
def as_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """No crop is changed beyond its cut."""
    monkeypatch.setattr(dataset, "_SMOOTH_PROBABILITY", 0.0)
    monkeypatch.setattr(dataset, "_FADE_PROBABILITY", 0.0)
    monkeypatch.setattr(dataset, "_SWAP_PROBABILITY", 0.0)
    monkeypatch.setattr(dataset, "_SATURATION_PROBABILITY", 0.0)


@pytest.mark.usefixtures("as_cut")
def test_a_crop_may_be_as_large_as_the_image() -> None:
    pool = SyntheticImages(1, 32, 0)
    whole = pool.crop(0, 32, 0)
    turned = [np.rot90(image, k) for image in (pool.image(0), pool.image(0)[:, ::-1]) for k in range(4)]
    assert any(np.array_equal(whole, image) for image in turned)
    with pytest.raises(InvalidParamsError, match="too small for crops of 33"):
        pool.crop(0, 33, 0)


@pytest.mark.usefixtures("as_cut")
def test_all_turns_and_mirrors_occur() -> None:
    pool = SyntheticImages(1, 16, 0)
    assert len({pool.crop(index, 16, 0).tobytes() for index in range(80)}) == 8


@pytest.mark.parametrize("size, side, seed", [(0, 64, 0), (1, 8, 0), (1, 64, -1)])
def test_pool_arguments_are_checked(size: int, side: int, seed: int) -> None:
    with pytest.raises(InvalidParamsError, match="pool_size must be"):
        SyntheticImages(size, side, seed)


def test_a_cache_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot write"):
        SyntheticImages(1, 32, 0, tmp_path / "file")


# --- folders ------------------------------------------------------------------------------------------------


def test_folder_crops_come_from_all_images_and_are_repeatable(tmp_path: Path) -> None:
    for i, name in enumerate(("a.png", "b/c.png", "b/d.tif")):
        Image.new("RGB", (40, 30), (i, 0, 0)).save(tmp_path / name) if i == 0 else save_plain(tmp_path / name, i)
    save(tmp_path / ".hidden.png", 40, 30)
    (tmp_path / "notes.txt").write_text("no image")
    images = FolderImages(tmp_path)
    assert [path.name for path in images.files] == ["a.png", "c.png", "d.tif"]
    crops = [images.crop(index, 16, 0) for index in range(30)]
    assert {int(crop[0, 0, 0]) for crop in crops} == {0, 1, 2}
    again = FolderImages(tmp_path)
    assert all(np.array_equal(again.crop(index, 16, 0), crops[index]) for index in (29, 3, 11))


def save_plain(path: Path, red: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (40, 30), (red, 0, 0)).save(path)


def test_unusable_files_are_left_out_with_one_warning_each(tmp_path: Path) -> None:
    save(tmp_path / "good.png", 40, 40)
    save(tmp_path / "small.png", 40, 12)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    images = FolderImages(tmp_path)
    with pytest.warns(UserWarning) as seen:
        crops = [images.crop(index, 16, 0) for index in range(20)]
    messages = sorted(str(warning.message) for warning in seen)
    assert len(messages) == 2
    assert "broken.jpg" in messages[0]
    assert "small.png" in messages[1]
    assert "has 40x12 pixels: too few for 16" in messages[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images.crop(3, 12, 0)  # the small one is large enough for this
        only_known = FolderImages(tmp_path)
    with pytest.warns(UserWarning):  # what another process knows already does not change the crops
        assert all(np.array_equal(only_known.crop(index, 16, 0), crops[index]) for index in reversed(range(20)))


def test_a_folders_cache_changes_nothing_but_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "in" / "a.png", 40, 30, 1)
    save(tmp_path / "in" / "b.png", 30, 50, 2)
    plain, cached = FolderImages(tmp_path / "in"), FolderImages(tmp_path / "in", tmp_path / "cache")
    crops = [plain.crop(index, 16, 0) for index in range(8)]
    assert all(np.array_equal(cached.crop(index, 16, 0), crops[index]) for index in range(8))
    assert len(list((tmp_path / "cache").iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(FolderImages, "_decode", None)  # not called any more
        again = FolderImages(tmp_path / "in", tmp_path / "cache")
        assert all(np.array_equal(again.crop(index, 16, 0), crops[index]) for index in range(8))
    save(tmp_path / "in" / "b.png", 31, 50, 3)
    replaced = FolderImages(tmp_path / "in", tmp_path / "cache")
    assert any(not np.array_equal(replaced.crop(index, 16, 0), crops[index]) for index in range(8))


def test_folders_without_usable_images_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InvalidParamsError, match="is not a folder"):
        FolderImages(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InvalidParamsError, match=r"no image in .*\.jpg"):
        FolderImages(tmp_path)
    save(tmp_path / "small.png", 8, 8)
    images = FolderImages(tmp_path)
    for _ in range(2):
        with warnings.catch_warnings(), pytest.raises(InvalidParamsError, match=r"none of the 1 images .* 16x16"):
            warnings.simplefilter("ignore")
            images.crop(0, 16, 0)


# --- pairs --------------------------------------------------------------------------------------------------


def test_a_sample_is_a_pair_as_the_engine_would_read_it() -> None:
    sample = pairs(poor_fraction=0.0)[5]
    crop = Ramps().crop(5, 16, 3).astype(np.float32) / np.float32(255)
    assert sample["label"] == 0
    assert torch.equal(sample["hr"], to_network_input(crop)[0])
    # The engine reads the low-resolution file (8 bits) and resizes it to the tile.
    file = np.asarray(Image.fromarray((crop[::4, ::4] * 255 + 0.001 * 255 + 0.5).clip(0, 255).astype(np.uint8)))
    tile = resize_rgb(file.astype(np.float32) / np.float32(255), (16, 16), eight_bit=True)
    assert torch.equal(sample["lr"], to_network_input(tile)[0])
    assert sample["lr"].dtype == sample["hr"].dtype == torch.float32


def test_poor_targets_have_label_1_and_an_input_from_the_good_crop() -> None:
    good, poor = pairs(poor_fraction=0.0), pairs(poor_fraction=1.0)
    for index in range(4):
        assert poor[index]["label"] == 1
        assert torch.allclose(poor[index]["hr"] + 1, (good[index]["hr"] + 1) * 0.25, atol=1e-6)
        assert torch.equal(poor[index]["lr"], good[index]["lr"])


def test_fractions_of_labels_and_presets_hold() -> None:
    presets: list[str] = []

    def degrade(hr: torch.Tensor, rng: np.random.Generator, preset: str) -> torch.Tensor:
        presets.append(preset)
        return quarter(hr, rng, preset)

    dataset = pairs(degrade=degrade, poor_fraction=0.3, mild_fraction=0.6)
    labels = [dataset[index]["label"] for index in range(600)]
    assert 0.24 < np.mean(labels) < 0.36
    assert set(presets) == {"mild", "second_order"}
    assert 0.54 < presets.count("mild") / 600 < 0.66


def test_without_pairs_nothing_is_degraded() -> None:
    def fail(*_: object) -> torch.Tensor:
        raise AssertionError

    sample = pairs(degrade=fail, paired=False, poor_fraction=0.0)[2]
    assert set(sample) == {"hr", "label"}
    assert torch.equal(sample["hr"], pairs(poor_fraction=0.0)[2]["hr"])


def test_the_degradation_is_repeatable_and_differs_from_sample_to_sample() -> None:
    source = SyntheticImages(1, 32, 0)
    dataset = CropDataset(source, 32, 1)
    first, second = dataset[0], CropDataset(source, 32, 1)[0]
    assert torch.equal(first["lr"], second["lr"])
    assert torch.equal(first["hr"], second["hr"])
    for value in (first["hr"], first["lr"]):
        assert value.shape == (3, 32, 32)
        assert torch.isfinite(value).all()
        assert value.abs().max() <= 1
    assert not torch.equal(first["lr"], dataset[1]["lr"])
    assert not torch.equal(first["lr"], CropDataset(source, 32, 2)[0]["lr"])


@pytest.mark.parametrize("options", [dict(poor_fraction=1.5), dict(mild_fraction=-0.1)])
def test_fractions_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(InvalidParamsError, match=r"_fraction must be in \[0, 1\]"):
        pairs(**options)


def test_a_dataset_can_be_sent_to_a_spawned_worker() -> None:
    dataset = CropDataset(SyntheticImages(1, 32, 0), 16, 1)
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3]["hr"], dataset[3]["hr"])


# --- loader -------------------------------------------------------------------------------------------------


def test_a_step_holds_its_samples() -> None:
    dataset = pairs()
    step_2 = next(loader(dataset, 3, start_step=2))
    for row, index in enumerate((6, 7, 8)):
        assert torch.equal(step_2["hr"][row], dataset[index]["hr"])
        assert torch.equal(step_2["lr"][row], dataset[index]["lr"])
        assert step_2["label"][row] == dataset[index]["label"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_continues_identically(workers: int) -> None:
    dataset = pairs(poor_fraction=0.5)
    whole = list(islice(loader(dataset, 2), 6))
    rest = list(islice(loader(dataset, 2, 3, workers), 3))
    for before, after in zip(whole[3:], rest, strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_processes_that_train_together_share_a_step() -> None:
    dataset = pairs()
    together = loader(dataset, 4, 1)
    shares = [loader(dataset, 2, 1, rank=rank, ranks=2) for rank in range(2)]
    for _ in range(2):
        parts = torch.cat([next(share)["hr"] for share in shares])
        assert torch.equal(parts, next(together)["hr"])


@pytest.mark.parametrize("arguments", [(0, 0, 0), (1, -1, 0), (1, 0, -1)])
def test_loader_arguments_are_checked(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidParamsError, match="loader: batch_size"):
        loader(pairs(), *arguments)


def test_crops_have_every_hue(tmp_path: Path) -> None:
    """Recoloured: each channel is the strongest, and the weakest, in a good part of the crops of one image."""
    images = SyntheticImages(1, 64, seed=4)
    means = np.stack([images.crop(index, 32, seed=0).mean(axis=(0, 1)) for index in range(120)])
    for ranks in (means.argmax(axis=1), means.argmin(axis=1)):
        assert np.bincount(ranks, minlength=3).min() >= 12
