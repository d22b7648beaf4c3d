"""Full-reference metrics of 8-bit RGB pictures, in float64: PSNR-Y, SSIM-Y, GMSD, high-frequency energy, colour error.

Each takes the picture and the truth, (H, W, 3) uint8 of one size. No border is cut off.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Plane = NDArray[np.float64]

GMSD_C = 0.0026  # 170 / 255²: the constant of Xue et al., for luminance in [0, 1]
LOW_RESOLUTION_NYQUIST = 1 / 8  # cycles per pixel that a picture four times smaller can hold


def luminance(rgb: Pixels) -> Plane:
    """(H, W, 3) uint8 → Y of BT.601 in [16, 235], as papers (MATLAB's rgb2ycbcr) compute it, unrounded."""
    return 16 + (rgb.astype(np.float64) @ np.array([65.481, 128.553, 24.966])) / 255


def full_luminance(rgb: Pixels) -> Plane:
    """(H, W, 3) uint8 → 0.299 R + 0.587 G + 0.114 B in [0, 1]."""
    return (rgb.astype(np.float64) @ np.array([0.299, 0.587, 0.114])) / 255


def chrominance(rgb: Pixels) -> Plane:
    """(H, W, 3) uint8 → (H, W, 2): Cb and Cr of full-range BT.601, in [-127.5, 127.5]."""
    weights = np.array([[-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    return rgb.astype(np.float64) @ weights.T


def psnr_y(picture: Pixels, truth: Pixels) -> float:
    """10 log₁₀(255² / mean((Y - Y')²)); infinite for equal pictures."""
    _check(picture, truth)
    error = float(np.mean((luminance(picture) - luminance(truth)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim_y(picture: Pixels, truth: Pixels) -> float:
    """Mean of (2μμ' + c₁)(2σσ' + c₂) / ((μ² + μ'² + c₁)(σ² + σ'² + c₂)) over Gaussian windows, 11×11 of σ 1.5.

    On Y, c₁ = (0.01·255)², c₂ = (0.03·255)², windows wholly inside the picture. Source: Wang et al. 2004.
    """
    _check(picture, truth)
    x, y = luminance(picture), luminance(truth)
    mean_x, mean_y = _gaussian(x), _gaussian(y)
    var_x = _gaussian(x * x) - mean_x**2
    var_y = _gaussian(y * y) - mean_y**2
    covariance = _gaussian(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))))


def gmsd(picture: Pixels, truth: Pixels) -> float:
    """Standard deviation of (2gg' + c) / (g² + g'² + c), with g the gradient magnitudes (Prewitt); 0 is best.

    On luminance in [0, 1] after 2×2 averaging, c = 0.0026, without the outermost pixels. Source: Xue et al. 2014.
    """
    _check(picture, truth)
    g, h = (_gradient_magnitude(_halved(full_luminance(image))) for image in (picture, truth))
    return float(np.std((2 * g * h + GMSD_C) / (g * g + h * h + GMSD_C)))


def high_frequency_energy(picture: Pixels, truth: Pixels) -> float:
    """Luminance energy above 1/8 cycle a pixel (radial), what the ×4 smaller picture cannot hold: ratio to the truth's.

    The mean is taken out and a Hann window applied, so that the borders' jump does not count. 1 is best.
    """
    _check(picture, truth)
    return _energy_above(full_luminance(picture)) / max(_energy_above(full_luminance(truth)), 1e-12)


def color_error(picture: Pixels, truth: Pixels) -> float:
    """Root of the mean squared error of Cb and Cr averaged over 8×8 pixels, in 1/255: hallucinated colour."""
    _check(picture, truth)
    difference = chrominance(picture) - chrominance(truth)
    h, w = (n // 8 * 8 for n in difference.shape[:2])
    blocks = difference[:h, :w].reshape(h // 8, 8, w // 8, 8, 2).mean(axis=(1, 3))
    return float(np.sqrt(np.mean(blocks**2)))


def _check(picture: Pixels, truth: Pixels) -> None:
    for name, image in (("picture", picture), ("truth", truth)):
        if image.dtype != np.uint8:
            raise TypeError(f"metrics: {name} must be uint8, got {image.dtype}")
        if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 11:
            raise ValueError(f"metrics: {name} must be (H, W, 3) of at least 11×11 pixels, got {image.shape}")
    if picture.shape != truth.shape:
        raise ValueError(f"metrics: picture must have the shape of the truth {truth.shape}, got {picture.shape}")


def _gaussian(plane: Plane, size: int = 11, sigma: float = 1.5) -> Plane:
    """Gaussian mean of each size×size window inside the plane: (H - size + 1, W - size + 1)."""
    weights = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    height, width = (n - size + 1 for n in plane.shape)
    rows = sum(w * plane[i : i + height] for i, w in enumerate(weights))
    result: Plane = sum(w * rows[:, i : i + width] for i, w in enumerate(weights))
    return result


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
