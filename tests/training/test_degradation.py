"""The degradation pipeline: its kernels, the statistics of what it draws, its noise, its JPEG, its contract."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
import torch

from varsr_engine.errors import InvalidParamsError
from varsr_engine.training import degradation
from varsr_engine.training.blur_kernels import (
    blur_kernel,
    draw_beta,
    draw_blur_kernel,
    draw_final_sinc,
    draw_size,
    fast_length,
    filter_image,
    sinc_kernel,
)
from varsr_engine.training.degradation import DegradationParams, Preset, Stage, degrade, poor_target
from varsr_engine.training.degradation_params import BlurKind
from varsr_engine.training.picture_faults import (
    add_gaussian_noise,
    add_poisson_noise,
    jpeg,
    luminance,
    resize,
)
from varsr_engine.training.poor_targets import guided_filter

KINDS = get_args(BlurKind)
PRESETS = get_args(Preset)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the loader's workers; where other programs keep the cores busy, a team of threads waits for itself."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    """A smooth colour pattern with an edge and some texture, in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(height) / 16, torch.arange(width) / 16, indexing="ij")
    texture = torch.from_numpy(rng(seed).random((3, height, width), dtype=np.float32)) * 0.2
    waves = torch.stack([torch.sin(x + y), torch.cos(x - y), (x > 2).float() * 2 - 1])
    return (0.5 + 0.3 * waves + texture - 0.1).clamp(0, 1)


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().mean().sqrt())


# --- kernels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [7, 13, 21])
def test_kernels_sum_to_one_and_are_symmetric(kind: BlurKind, size: int) -> None:
    kernel = blur_kernel(kind, size, 2.0, 0.7, 0.5, 1.7)
    assert kernel.shape == (size, size)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert kernel.min() >= 0
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-8)  # a turn by 180°
    round_one = np.allclose(kernel, kernel.T, atol=1e-8) and np.allclose(kernel, kernel[::-1], atol=1e-8)
    assert round_one == kind.endswith("iso") * (not kind.endswith("aniso"))


def test_gaussian_has_its_standard_deviations_along_its_axes() -> None:
    angle = 0.6
    kernel = blur_kernel("aniso", 41, 3.0, 1.5, angle, 1.0)
    grid = np.arange(41) - 20
    x, y = np.meshgrid(grid, grid)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    assert math.sqrt((kernel * along**2).sum()) == pytest.approx(3.0, rel=1e-3)
    assert math.sqrt((kernel * across**2).sum()) == pytest.approx(1.5, rel=1e-3)


def test_beta_of_one_is_the_gaussian_and_a_larger_one_is_flatter() -> None:
    plain = blur_kernel("iso", 21, 2.5, 2.5, 0, 1)
    np.testing.assert_allclose(blur_kernel("generalised_iso", 21, 2.5, 2.5, 0, 1.0), plain, atol=1e-7)
    flat = blur_kernel("generalised_iso", 21, 2.5, 2.5, 0, 4.0)
    assert flat[10, 11] / flat[10, 10] > plain[10, 11] / plain[10, 10]


def test_sinc_passes_below_its_cutoff_and_stops_above() -> None:
    cutoff = math.pi / 2
    response = np.abs(np.fft.fft2(sinc_kernel(101, cutoff), s=(256, 256)))
    radius = 2 * math.pi * np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)[None, :])
    assert response[0, 0] == pytest.approx(1, abs=1e-5)
    assert np.abs(response[radius < 0.8 * cutoff] - 1).max() < 0.1
    assert response[(radius > 1.2 * cutoff) & (radius < math.pi)].max() < 0.1
    kernel = sinc_kernel(21, 1.0)
    np.testing.assert_allclose(kernel, kernel.T, atol=1e-8)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert kernel.min() < 0  # it rings


def test_filter_image_is_a_mirrored_convolution() -> None:
    image, kernel = picture(19, 30), blur_kernel("aniso", 9, 2.0, 0.8, 0.3, 1.0)
    padded = torch.nn.functional.pad(image[None], (4, 4, 4, 4), mode="reflect").transpose(0, 1)
    expected = torch.nn.functional.conv2d(padded, torch.from_numpy(kernel)[None, None]).transpose(0, 1)[0]
    torch.testing.assert_close(filter_image(image, kernel), expected, atol=2e-6, rtol=0)
    assert filter_image(picture(3, 4), sinc_kernel(21, 1.0)).shape == (3, 3, 4)  # smaller than the kernel


@pytest.mark.parametrize(("n", "length"), [(1, 2), (7, 8), (11, 12), (97, 100), (148, 150)])
def test_fast_length(n: int, length: int) -> None:
    assert fast_length(n) == length


# --- what is drawn -----------------------------------------------------------------------------------------


def assert_shares(counts: Counter[object], expected: dict[object, float]) -> None:
    """Each share within 4.5 standard deviations of its probability."""
    total = sum(counts.values())
    assert set(counts) <= set(expected)
    for value, p in expected.items():
        assert abs(counts[value] / total - p) <= 4.5 * math.sqrt(p * (1 - p) / total) + 1e-12, value


def test_kernels_are_drawn_with_their_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: Counter[object] = Counter()
    sizes: Counter[object] = Counter()
    cutoffs = []

    def count_blur(kind: str, size: int, sigma_x: float, sigma_y: float, angle: float, beta: float) -> str:
        drawn[kind] += 1
        sizes[size] += 1
        assert min(sigma_x, sigma_y) >= 0.2 and max(sigma_x, sigma_y) <= 3
        assert (1 if kind.startswith("plateau") else 0.5) <= beta <= (2 if kind.startswith("plateau") else 4)
        return "kernel"

    def count_sinc(size: int, cutoff: float) -> str:
        drawn["sinc"] += 1
        sizes[size] += 1
        cutoffs.append((size, cutoff))
        return "kernel"

    monkeypatch.setattr("varsr_engine.training.blur_kernels.blur_kernel", count_blur)
    monkeypatch.setattr("varsr_engine.training.blur_kernels.sinc_kernel", count_sinc)
    generator = rng()
    for _ in range(6000):
        draw_blur_kernel(Stage(), generator)
    shares = dict(zip(KINDS, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03), strict=True))
    assert_shares(drawn, {k: 0.9 * p for k, p in shares.items()} | {"sinc": 0.1})
    assert_shares(sizes, dict.fromkeys(range(7, 22, 2), 1 / 8))
    assert all((math.pi / 3 if size < 13 else math.pi / 5) <= cutoff <= math.pi for size, cutoff in cutoffs)
    assert min(cutoff for _, cutoff in cutoffs) < math.pi / 3


def test_final_sinc_and_betas() -> None:
    generator = rng()
    assert {draw_final_sinc((7, 21), generator).shape[0] for _ in range(200)} == set(range(7, 22, 2))
    assert {draw_size((5, 5), generator) for _ in range(5)} == {5}
    betas = np.array([draw_beta((0.5, 4), generator) for _ in range(2000)])
    assert betas.min() >= 0.5 and betas.max() <= 4
    assert_shares(Counter((betas < 1).tolist()), {True: 0.5, False: 0.5})


def test_resize_noise_and_jpeg_are_drawn_with_their_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small picture through the pipeline many times, with each step replaced by one that counts."""
    seen: dict[str, list[object]] = {}

    def note(name: str):  # type: ignore[no-untyped-def]
        def step(image: torch.Tensor, *args: object) -> torch.Tensor:
            seen.setdefault(name, []).append(args)
            return image

        return step

    for name in ("filter_image", "add_gaussian_noise", "add_poisson_noise", "jpeg"):
        monkeypatch.setattr(degradation, name, note(name))

    def note_resize(image: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
        seen.setdefault("resize", []).append((image.shape[-1], size[1], mode))
        return image.new_zeros(3, *size)

    monkeypatch.setattr(degradation, "resize", note_resize)
    generator, hr, runs = rng(), torch.zeros(3, 1600, 4), 2000
    hr = hr.transpose(1, 2).contiguous()  # 4 × 1600: factors can be read from the width
    for _ in range(runs):
        degrade(hr, generator)
    first, second, final = (seen["resize"][i::3] for i in range(3))
    assert_shares(
        Counter(int(np.sign(out - inn)) for inn, out, _ in first),  # type: ignore[misc]
        {1: 0.2, -1: 0.7, 0: 0.1},
    )
    assert_shares(
        Counter(int(np.sign(out - 400)) for _, out, _ in second),  # type: ignore[misc]
        {1: 0.3, -1: 0.4, 0: 0.3},
    )
    assert all(480 <= out <= 2400 for _, out, _ in first)  # type: ignore[misc]
    assert all(240 <= out <= 480 for _, out, _ in second)  # type: ignore[misc]
    assert all(out == 400 for _, out, _ in final)  # type: ignore[misc]
    modes = dict.fromkeys(("area", "bilinear", "bicubic"), 1 / 3)
    assert_shares(Counter(mode for _, _, mode in first + second + final), modes)  # type: ignore[misc]
    # 1 first blur, 0.8 second blurs, 0.8 final sincs a run
    assert len(seen["filter_image"]) / runs == pytest.approx(2.6, abs=4.5 * math.sqrt(0.32 / runs))
    gaussian, poisson = seen["add_gaussian_noise"], seen["add_poisson_noise"]
    assert_shares(Counter({"g": len(gaussian), "p": len(poisson)}), {"g": 0.5, "p": 0.5})
    assert_shares(Counter(gray for _, gray, _ in gaussian + poisson), {True: 0.4, False: 0.6})  # type: ignore[misc]
    sigmas, scales = ([a[0] for a in args] for args in (gaussian, poisson))  # type: ignore[index]
    assert min(sigmas) >= 1 and 12 < max(sigmas) <= 15 and min(scales) >= 0.05 and 1 < max(scales) <= 2
    qualities = [[a[0] for a in seen["jpeg"][i::2]] for i in range(2)]  # type: ignore[index]
    assert set(qualities[0]) == set(range(60, 96)) and set(qualities[1]) == set(range(60, 101))


def test_both_final_orders_occur(monkeypatch: pytest.MonkeyPatch) -> None:
    orders: Counter[object] = Counter()
    steps: list[str] = []
    real_jpeg, real_resize = degradation.jpeg, degradation.resize
    monkeypatch.setattr(degradation, "jpeg", lambda *a: (steps.append("jpeg"), real_jpeg(*a))[1])
    monkeypatch.setattr(degradation, "resize", lambda *a: (steps.append("resize"), real_resize(*a))[1])
    generator, hr = rng(), picture(16, 16)
    for _ in range(300):
        steps.clear()
        degrade(hr, generator)
        orders[steps[-1]] += 1
    assert_shares(orders, {"jpeg": 0.5, "resize": 0.5})


# --- noise, JPEG, resizing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise_has_its_standard_deviation(gray: bool) -> None:
    image = torch.full((3, 200, 200), 0.5)
    noise = add_gaussian_noise(image, 10, gray, rng()) - image
    assert float(noise.std()) * 255 == pytest.approx(10, rel=0.02)
    assert abs(float(noise.mean())) * 255 < 0.2
    between = float(torch.corrcoef(noise.flatten(1))[0, 1])
    assert between == pytest.approx(1 if gray else 0, abs=0.03)


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_poisson_noise_grows_with_the_root_of_brightness(gray: bool, scale: float) -> None:
    for value in (0.1, 0.4):
        image = torch.full((3, 200, 200), value)
        noise = add_poisson_noise(image, scale, gray, rng()) - image
        assert float(noise.std()) == pytest.approx(scale * math.sqrt(value / 255), rel=0.03)
        assert bool((noise[0] == noise[1]).all()) == gray


def test_noise_leaves_black_black_under_poisson_and_stays_in_range() -> None:
    black = torch.zeros(3, 8, 8)
    assert torch.equal(add_poisson_noise(black, 2.0, False, rng()), black)
    noisy = add_gaussian_noise(black, 50, False, rng())
    assert float(noisy.min()) >= 0 and float(noisy.max()) <= 1


def test_jpeg_loses_more_at_lower_quality_and_takes_odd_sizes() -> None:
    image = picture(65, 51)
    errors = [error(jpeg(image, quality), image) for quality in (10, 40, 70, 95)]
    assert errors == sorted(errors, reverse=True)
    assert jpeg(image, 80).shape == image.shape and jpeg(image, 80).dtype == torch.float32
    gray = torch.full((3, 16, 16), 100 / 255)
    torch.testing.assert_close(jpeg(gray, 90), gray, atol=1 / 255, rtol=0)


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic", "antialiased"])
def test_resize_keeps_a_constant_and_the_size_asked_for(mode: str) -> None:
    image = torch.full((3, 20, 31), 0.25)
    resized = resize(image, (7, 40), mode)  # type: ignore[arg-type]
    torch.testing.assert_close(resized, torch.full((3, 7, 40), 0.25))
    assert resize(image, (20, 31), mode) is image  # type: ignore[arg-type]


def test_luminance() -> None:
    assert float(luminance(torch.tensor([1.0, 0, 0]).view(3, 1, 1))) == pytest.approx(0.299)


# --- the pipeline ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 47), (4, 4), (7, 130)])
def test_size_range_and_eight_bit_values(preset: Preset, height: int, width: int) -> None:
    hr = picture(height, width)
    before = hr.clone()
    for seed in range(5):
        lr = degrade(hr, rng(seed), preset)
        assert lr.shape == (3, height // 4, width // 4) and lr.dtype == torch.float32
        assert float(lr.min()) >= 0 and float(lr.max()) <= 1
        torch.testing.assert_close(lr * 255, (lr * 255).round(), atol=1e-4, rtol=0)
    assert torch.equal(hr, before)


@pytest.mark.parametrize("preset", PRESETS)
def test_degrade_is_a_function_of_the_generator(preset: Preset) -> None:
    hr = picture()
    a, b = rng(3), rng(3)
    for _ in range(4):
        assert torch.equal(degrade(hr, a, preset), degrade(hr, b, preset))
    assert a.random() == b.random()
    assert not torch.equal(degrade(hr, rng(4), preset), degrade(hr, rng(5), preset))


def test_presets_are_ordered_by_severity() -> None:
    hr = picture(128, 128)
    small = resize(hr, (32, 32), "antialiased")
    mean = {p: np.mean([error(degrade(hr, rng(s), p), small) for s in range(20)]) for p in PRESETS}
    assert mean["mild"] < mean["hard_fixed"] and mean["mild_fixed"] < mean["hard_fixed"]
    assert mean["mild"] < mean["second_order"]


def test_degrade_keeps_place_and_brightness() -> None:
    """Ramps stay where they are, in the mean over many draws: nothing is shifted, brightened or tinted."""
    ramp = torch.linspace(0.1, 0.9, 128)
    hr = torch.stack([ramp.expand(128, 128), ramp[:, None].expand(128, 128), torch.full((128, 128), 0.5)])
    generator = rng()
    mean = torch.stack([degrade(hr, generator) for _ in range(100)]).mean(0)
    offset = (mean - resize(hr, (32, 32), "area"))[:, 8:24, 8:24].mean((1, 2))
    step = 0.8 / 32  # a shift by one low-resolution pixel
    assert offset.abs().max() < 0.1 * step


def test_other_scales_and_own_parameters() -> None:
    assert degrade(picture(60, 60), rng(), "mild", scale=3).shape == (3, 20, 20)
    plain = DegradationParams.mild_fixed()
    assert torch.equal(degrade(picture(), rng(), plain), degrade(picture(), rng(), "mild_fixed"))
    three = DegradationParams((Stage(), Stage(), *DegradationParams.second_order().stages[1:]))
    assert degrade(picture(), rng(), three).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (torch.zeros(1, 8, 8), ValueError, r"degrade: hr must be \(3, H, W\)"),
        (torch.zeros(3, 0, 8), ValueError, "not empty"),
        (torch.zeros(1, 3, 8, 8), ValueError, r"got \(1, 3, 8, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), TypeError, "floating point"),
        (torch.full((3, 8, 8), -1.0), ValueError, r"in \[0, 1\]"),
        (torch.full((3, 8, 8), 255.0), ValueError, r"in \[0, 1\]"),
        (torch.full((3, 8, 8), math.nan), ValueError, r"in \[0, 1\]"),
        (torch.zeros(3, 3, 8), ValueError, "shorter side of 3×8, got 4"),
    ],
)
def test_wrong_pictures(image: torch.Tensor, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        degrade(image, rng())


def test_wrong_parameters() -> None:
    with pytest.raises(InvalidParamsError, match="preset must be one of second_order, mild"):
        degrade(picture(), rng(), "severe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale must be from 1"):
        degrade(picture(), rng(), scale=0)
    for wrong in (
        dict(kernel_sizes=(7, 20)),
        dict(kernel_probabilities=(0.5, 0.5)),
        dict(resize_probabilities=(0.5, 0.5, 0.5)),
        dict(blur_sigma=(3.0, 0.2)),
        dict(gray_probability=1.5),
        dict(jpeg_quality=(0, 90)),
        dict(resize_range=(1.2, 1.5)),
        dict(resize_modes=("nearest",)),
        dict(resize_modes=()),
    ):
        with pytest.raises(InvalidParamsError, match=f"degradation: {next(iter(wrong))} must be"):
            Stage(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidParamsError, match="stages must be at least one"):
        DegradationParams(())
    with pytest.raises(InvalidParamsError, match="final_sinc_probability"):
        DegradationParams((Stage(),), final_sinc_probability=-0.1)
    with pytest.raises(InvalidParamsError, match="final_sinc_sizes"):
        DegradationParams((Stage(),), final_sinc_sizes=(6, 8))


# --- poor targets ------------------------------------------------------------------------------------------


def test_poor_targets_are_plainly_worse_and_differ() -> None:
    hr = picture(96, 80)
    generator = rng()
    targets = [poor_target(hr, generator) for _ in range(60)]
    errors = [error(t, hr) * 255 for t in targets]
    assert all(t.shape == hr.shape and t.dtype == torch.float32 for t in targets)
    assert all(float(t.min()) >= 0 and float(t.max()) <= 1 for t in targets)
    assert min(errors) > 3
    assert np.std(errors) > 1
    again = rng()
    assert all(torch.equal(t, poor_target(hr, again)) for t in targets)


def test_poor_target_of_odd_and_tiny_sizes_and_errors() -> None:
    for seed in range(20):
        assert poor_target(picture(5, 9), rng(seed)).shape == (3, 5, 9)
    with pytest.raises(ValueError, match="poor_target: hr must be"):
        poor_target(torch.zeros(8, 8), rng())


def test_guided_filter_smooths_texture_and_keeps_edges() -> None:
    step = torch.zeros(3, 32, 32)
    step[:, :, 16:] = 1
    texture = torch.from_numpy(rng().normal(0, 0.02, (3, 32, 32)).astype(np.float32))
    out = guided_filter(step * 0.8 + 0.1 + texture, 3, 0.1**2)
    assert float((out - step * 0.8 - 0.1)[:, :, :10].std()) < 0.01
    assert float((out[:, :, 16] - out[:, :, 15]).mean()) > 0.7
