"""Full-reference metrics of 8-bit RGB pictures, in float64: PSNR-Y, SSIM-Y, GMSD, high-frequency energy, colour error.

Each takes the picture and the truth, (H, W, 3) uint8 of one size. No border is cut off.
"""

from __future__ import annotations

import numpy as np

from varsr_engine.evaluation.full_reference import WINDOW, psnr_y, ssim_terms
from varsr_engine.evaluation.luminance import Pixels, Plane, check_pair, luminance

__all__ = [
    "METRICS",
    "Pixels",
    "Plane",
    "chrominance",
    "color_error",
    "gmsd",
    "high_frequency_energy",
    "psnr_y",
    "ssim_y",
]

GMSD_C = 0.0026  # 170 / 255²: the constant of Xue et al., for luminance in [0, 1]
LOW_RESOLUTION_NYQUIST = 1 / 8  # cycles per pixel that a picture four times smaller can hold


def full_luminance(rgb: Pixels) -> Plane:
    """(H, W, 3) uint8 → 0.299 R + 0.587 G + 0.114 B in [0, 1]."""
    return (rgb.astype(np.float64) @ np.array([0.299, 0.587, 0.114])) / 255


def chrominance(rgb: Pixels) -> Plane:
    """(H, W, 3) uint8 → (H, W, 2): Cb and Cr of full-range BT.601, in [-127.5, 127.5]."""
    weights = np.array([[-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    return rgb.astype(np.float64) @ weights.T


def ssim_y(picture: Pixels, truth: Pixels) -> float:
    """Mean of (2μμ' + c₁)(2σσ' + c₂) / ((μ² + μ'² + c₁)(σ² + σ'² + c₂)) over Gaussian windows, 11×11 of σ 1.5.

    On unrounded Y, as the paper has it (Wang et al. 2004); that of `varsr eval` is rounded to whole levels and clamped,
    as pyiqa's is. The results kept in benchmarks/results are of this one.
    """
    check_pair("metrics", picture, truth, WINDOW)
    means, structure = ssim_terms(luminance(picture), luminance(truth))
    return float(np.mean(means * structure))


def gmsd(picture: Pixels, truth: Pixels) -> float:
    """Standard deviation of (2gg' + c) / (g² + g'² + c), with g the gradient magnitudes (Prewitt); 0 is best.

    On luminance in [0, 1] after 2×2 averaging, c = 0.0026, without the outermost pixels. Source: Xue et al. 2014.
    """
    check_pair("metrics", picture, truth, WINDOW)
    g, h = (_gradient_magnitude(_halved(full_luminance(image))) for image in (picture, truth))
    return float(np.std((2 * g * h + GMSD_C) / (g * g + h * h + GMSD_C)))


def high_frequency_energy(picture: Pixels, truth: Pixels) -> float:
    """Luminance energy above 1/8 cycle a pixel (radial), what the ×4 smaller picture cannot hold: ratio to the truth's.

    The mean is taken out and a Hann window applied, so that the borders' jump does not count. 1 is best.
    """
    check_pair("metrics", picture, truth, WINDOW)
    return _energy_above(full_luminance(picture)) / max(_energy_above(full_luminance(truth)), 1e-12)


def color_error(picture: Pixels, truth: Pixels) -> float:
    """Root of the mean squared error of Cb and Cr averaged over 8×8 pixels, in 1/255: hallucinated colour."""
    check_pair("metrics", picture, truth, WINDOW)
    difference = chrominance(picture) - chrominance(truth)
    h, w = (n // 8 * 8 for n in difference.shape[:2])
    blocks = difference[:h, :w].reshape(h // 8, 8, w // 8, 8, 2).mean(axis=(1, 3))
    return float(np.sqrt(np.mean(blocks**2)))


def _halved(plane: Plane) -> Plane:
    h, w = (n // 2 * 2 for n in plane.shape)
    result: Plane = plane[:h, :w].reshape(h // 2, 2, w // 2, 2).mean(axis=(1, 3))
    return result


def _gradient_magnitude(plane: Plane) -> Plane:
    """√(gx² + gy²) of Prewitt's filters (each side sums to 1), without the outermost pixels."""
    columns = (plane[:-2] + plane[1:-1] + plane[2:]) / 3
    rows = (plane[:, :-2] + plane[:, 1:-1] + plane[:, 2:]) / 3
    gx, gy = columns[:, 2:] - columns[:, :-2], rows[2:] - rows[:-2]
    return np.sqrt(gx * gx + gy * gy)


def _energy_above(plane: Plane) -> float:
    height, width = plane.shape
    window = np.hanning(height)[:, None] * np.hanning(width)[None, :]
    spectrum = np.abs(np.fft.fft2((plane - plane.mean()) * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    return float(spectrum[radius > LOW_RESOLUTION_NYQUIST].sum()) / plane.size


METRICS = {
    "psnr_y": psnr_y,
    "ssim_y": ssim_y,
    "gmsd": gmsd,
    "energy": high_frequency_energy,
    "color": color_error,
}
