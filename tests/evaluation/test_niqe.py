"""NIQE: the fit of its distribution, its features, its parameters, and that it tells good pictures from poor ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.pictures import blurred, gray, noisy, save, scene
from varsr_engine.errors import InvalidParamsError
from varsr_engine.evaluation import fit_niqe as script
from varsr_engine.evaluation.full_reference import gaussian_weights
from varsr_engine.evaluation.luminance import Plane, luminance
from varsr_engine.evaluation.niqe import NiqeParams, TooFewBlocks, fit_niqe, niqe
from varsr_engine.evaluation.scene_statistics import block_features, fit_aggd, half_size, normalised

WINDOW = gaussian_weights(7, 7 / 6)


def aggd_samples(shape: float, left: float, right: float, count: int = 400_000) -> Plane:
    """(1, count) draws: |x| is β·G^(1/α) with G of a gamma distribution, and each side has its β's share."""
    rng = np.random.default_rng(0)
    sizes = rng.gamma(1 / shape, size=count) ** (1 / shape)
    is_left = rng.random(count) < left / (left + right)
    return np.where(is_left, -left * sizes, right * sizes)[None]


@pytest.fixture(scope="module")
def params() -> NiqeParams:
    return fit_niqe([scene(480, 480, seed) for seed in range(3)], sharpness=0)[0]


@pytest.mark.parametrize(("shape", "left", "right"), [(0.5, 1, 1), (1, 0.5, 2), (2, 3, 3), (2, 1, 0.4), (4, 0.2, 0.3)])
def test_the_fit_finds_what_samples_were_drawn_with(shape: float, left: float, right: float) -> None:
    fitted = [float(value[0]) for value in fit_aggd(aggd_samples(shape, left, right))]
    assert fitted == pytest.approx([shape, left, right], rel=0.04)


def test_the_fit_scales_and_mirrors_with_the_samples() -> None:
    samples = aggd_samples(1.3, 0.5, 1.5, 20_000)
    shape, left, right = fit_aggd(samples)
    for factor in (1e-3, 50.0):
        assert np.allclose(fit_aggd(factor * samples), [shape, factor * left, factor * right], rtol=1e-9)
    assert np.allclose(fit_aggd(-samples), [shape, right, left], rtol=1e-9)


def test_one_sided_samples_have_no_fit() -> None:
    assert np.isnan(fit_aggd(np.abs(aggd_samples(1, 1, 1, 100)))[0]).all()
    assert np.isnan(fit_aggd(np.zeros((1, 9)))[0]).all()


def test_features() -> None:
    features, sharpness = block_features(luminance(scene(200, 300)))
    assert features.shape == (2 * 3, 36) and sharpness.shape == (6,)
    assert np.isfinite(features).all() and (sharpness > 0).all()
    with pytest.raises(ValueError, match="at least 96×96"):
        block_features(np.zeros((95, 200)))


def test_features_of_noise() -> None:
    """White noise has the light tails of a Gaussian held between bounds; a window's mean that has each pixel in it
    leaves neighbours that lean against each other; and no direction differs from another."""
    y = 128 + np.random.default_rng(0).normal(0, 20, (288, 288))
    fine = block_features(y)[0][:, :18].mean(axis=0)
    shape, products = fine[0], fine[2:].reshape(4, 4)
    assert 2 < shape < 3.5
    assert np.allclose(products[:, 0], 1, atol=0.1)  # a product of two Gaussians is nearly Laplacian
    assert (products[:, 1] < 0).all() and (products[:, 1] > -0.2).all()
    assert np.ptp(products, axis=0).max() < 0.1


def test_flat_blocks_have_no_features() -> None:
    y = luminance(scene(96, 192))
    y[:, 96 - 8 :] = 100
    features, sharpness = block_features(y)
    assert np.isfinite(features[0]).all() and np.isnan(features[1]).any() and sharpness[0] > 10 * sharpness[1]


def test_brightness_does_not_count_and_contrast_hardly_does() -> None:
    y = np.random.default_rng(0).normal(100, 30, (96, 96))
    values, deviation = normalised(y, WINDOW, WINDOW)
    assert np.allclose(normalised(y + 50, WINDOW, WINDOW)[0], values, atol=1e-6)
    assert np.abs(normalised(2 * (y - 100) + 100, WINDOW, WINDOW)[0] - values).mean() < 0.02
    assert deviation.shape == y.shape and not normalised(np.full((9, 9), 7.0), WINDOW, WINDOW)[0].any()


def test_flat_places_are_exactly_zero_and_count_for_neither_side() -> None:
    """Rounding would give each of them a sign, and scores would depend on the order of sums."""
    rng = np.random.default_rng(0)
    flat = np.repeat(np.repeat(rng.uniform(0, 255, (6, 6)), 16, axis=0), 16, axis=1)
    values, _ = normalised(flat, WINDOW, WINDOW)
    inner = values.reshape(6, 16, 6, 16)[:, 3:-3, :, 3:-3]
    assert not inner.any() and np.count_nonzero(values) > 0.5 * values.size
    assert np.allclose(block_features(flat)[0], block_features(flat + 0.1)[0], rtol=1e-6)


def test_half_size_is_an_antialiased_bicubic() -> None:
    y = np.random.default_rng(0).uniform(0, 255, (40, 60))
    ours = half_size(y)
    pillow = np.asarray(Image.fromarray(y.astype(np.float32)).resize((30, 20), Image.Resampling.BICUBIC))
    assert ours.shape == (20, 30)
    assert np.allclose(ours[2:-2, 2:-2], pillow[2:-2, 2:-2], atol=1e-3)  # at edges Pillow cuts the kernel
    assert np.allclose(half_size(np.full((8, 8), 42.0)), 42)


def test_scores_rise_with_blur_and_noise(params: NiqeParams) -> None:
    clean = scene(384, 384, 99)
    scores = [niqe(clean, params)]
    assert scores[0] < 8
    for series in ([blurred(clean, s) for s in (1, 2, 4)], [noisy(clean, s) for s in (10, 25, 60)]):
        values = scores + [niqe(picture, params) for picture in series]
        assert np.all(np.diff(values) > 0), values


def test_a_picture_needs_two_blocks(params: NiqeParams) -> None:
    with pytest.raises(TooFewBlocks, match="a picture of 190×100 has 1"):
        niqe(scene(100, 190), params)
    with pytest.raises(TooFewBlocks, match="not flat, of 4 there are 0"):
        niqe(gray(100, 192), params)
    assert np.isfinite(niqe(scene(96, 192), params))


def test_parameters_as_a_file(params: NiqeParams, tmp_path: Path) -> None:
    params.save(tmp_path / "niqe.npz")
    loaded = NiqeParams.load(tmp_path / "niqe.npz")
    for name in ("mean", "covariance", "window"):
        assert np.array_equal(getattr(loaded, name), getattr(params, name))
    image = scene(192, 192, 5)
    assert niqe(image, loaded) == niqe(image, params)


def test_parameters_that_are_none(params: NiqeParams, tmp_path: Path) -> None:
    path = tmp_path / "niqe.npz"
    good = {"mu_pris_param": params.mean, "cov_pris_param": params.covariance, "gaussian_window": params.window}
    bad: list[tuple[dict[str, object], str]] = [
        ({**good, "mu_pris_param": np.zeros(18)}, r"mean must be \(36,\)"),
        ({**good, "cov_pris_param": np.full((36, 36), np.nan)}, "finite"),
        ({**good, "gaussian_window": np.eye(7) / 7}, "separable"),
        ({**good, "mu_pris_param": np.array([{}], dtype=object)}, r"must be an \.npz file"),  # a pickle: not loaded
        ({"mu_pris_param": params.mean}, "with mu_pris_param, cov_pris_param and gaussian_window"),
    ]
    for arrays, message in bad:
        np.savez(path, **arrays)  # type: ignore[arg-type]
        with pytest.raises(InvalidParamsError, match=message):
            NiqeParams.load(path)
    path.write_text("not numpy's")
    for wrong in (path, tmp_path / "absent.npz"):
        with pytest.raises(InvalidParamsError, match=r"must be an \.npz file"):
            NiqeParams.load(wrong)


def test_the_fit_takes_sharp_blocks() -> None:
    half_blurred = scene(480, 960, 7)
    half_blurred[:, 480:] = blurred(half_blurred, 8)[:, 480:]
    counts = [fit_niqe([half_blurred, scene(480, 480, 8)], sharpness)[1] for sharpness in (0, 0.2)]
    assert counts[0] == 75 and 37 <= counts[1] <= 55  # none of the 25 that were made soft
    with pytest.raises(InvalidParamsError, match=r"have 25 sharp blocks .* more than 36 are needed"):
        fit_niqe([scene(480, 480), scene(90, 90)], sharpness=0)
    with pytest.raises(InvalidParamsError, match="share in"):
        fit_niqe([], sharpness=2)


def test_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(2):
        save(scene(480, 480, seed), tmp_path / "photographs" / f"{seed}.png")
    (tmp_path / "photographs" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    out = tmp_path / "niqe.npz"
    script.main([str(tmp_path / "photographs"), "-o", str(out), "--sharpness", "0"])
    printed = capsys.readouterr()
    assert "from 50 blocks" in printed.out and "left out" in printed.err and "broken.png" in printed.err
    assert NiqeParams.load(out).mean.shape == (36,)
    with pytest.raises(SystemExit, match="more than 36 are needed"):
        script.main([str(tmp_path / "photographs"), "-o", str(out), "--sharpness", "1"])
