"""Blur kernels of the Real-ESRGAN degradation: Gaussians, generalised and plateau forms, and the ideal low pass.

Source: "Real-ESRGAN: Training Real-World Blind Super-Resolution …" (arXiv 2107.10833), section 3.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from varsr_engine.training.degradation_params import BlurKind, Stage

Kernel = NDArray[np.float32]


def squared_distance(size: int, sigma_x: float, sigma_y: float, angle: float) -> NDArray[np.float64]:
    """xᵀ Σ⁻¹ x on a size×size grid around 0, Σ with standard deviations sigma_x, sigma_y rotated by `angle`."""
    grid = np.arange(size, dtype=np.float64) - (size - 1) / 2
    x, y = grid[None, :], grid[:, None]
    c, s = math.cos(angle), math.sin(angle)
    along, across = c * x + s * y, c * y - s * x
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2


def blur_kernel(kind: BlurKind, size: int, sigma_x: float, sigma_y: float, angle: float, beta: float) -> Kernel:
    """exp(-q/2), generalised exp(-q^β/2) or plateau 1/(1 + q^β), with q = xᵀ Σ⁻¹ x; sums to 1.

    An isotropic kind uses sigma_x alone. β = 1 makes a generalised kernel the Gaussian; larger is flatter.
    """
    if kind.startswith("iso") or kind.endswith("_iso"):
        sigma_y, angle = sigma_x, 0.0
    q = squared_distance(size, sigma_x, sigma_y, angle)
    if kind.startswith("generalised"):
        values = np.exp(-0.5 * q**beta)
    elif kind.startswith("plateau"):
        values = 1 / (1 + q**beta)
    else:
        values = np.exp(-0.5 * q)
    return (values / values.sum()).astype(np.float32)


def sinc_kernel(size: int, cutoff: float) -> Kernel:
    """ω J₁(ω r) / (2π r), the ideal circular low pass of cutoff ω radians a pixel; sums to 1. It rings."""
    grid = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    radius = torch.sqrt(grid[None, :] ** 2 + grid[:, None] ** 2)
    values = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius)
    values[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return (values / values.sum()).numpy().astype(np.float32)


def draw_size(sizes: tuple[int, int], rng: np.random.Generator) -> int:
    """An odd size, each of those in the closed range equally likely."""
    return int(rng.integers(sizes[0] // 2, sizes[1] // 2 + 1)) * 2 + 1


def draw_beta(limits: tuple[float, float], rng: np.random.Generator) -> float:
    """Below and above 1 equally often, uniform in each half, as the paper's code does."""
    low, high = limits
    return float(rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high))


def draw_blur_kernel(stage: Stage, rng: np.random.Generator) -> Kernel:
    """One kernel of `stage`: a sinc with its probability, else one of the six kinds."""
    size = draw_size(stage.kernel_sizes, rng)
    if rng.random() < stage.sinc_probability:
        # A small kernel cannot hold a low cutoff.
        return sinc_kernel(size, float(rng.uniform(math.pi / (3 if size < 13 else 5), math.pi)))
    kinds = stage.kernel_kinds
    kind = kinds[int(rng.choice(len(kinds), p=stage.kernel_probabilities))]
    sigma_x, sigma_y = rng.uniform(*stage.blur_sigma, size=2)
    angle = float(rng.uniform(-math.pi, math.pi))
    beta = draw_beta(stage.beta_plateau if kind.startswith("plateau") else stage.beta_generalised, rng)
    return blur_kernel(kind, size, float(sigma_x), float(sigma_y), angle, beta)


def draw_final_sinc(sizes: tuple[int, int], rng: np.random.Generator) -> Kernel:
    """The sinc filter that ends the pipeline: cutoff uniform from π/3 to π."""
    return sinc_kernel(draw_size(sizes, rng), float(rng.uniform(math.pi / 3, math.pi)))


def filter_image(image: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    """Convolve each channel of (C, H, W) with an odd square kernel; borders are mirrored.

    By FFT: the padded picture is convolved circularly, and only what the wrap does not reach is kept.
    """
    height, width = image.shape[-2:]
    r = kernel.shape[0] // 2
    mode = "reflect" if r < min(height, width) else "replicate"
    padded = F.pad(image[None], (r, r, r, r), mode=mode)[0]
    shape = (fast_length(height + 2 * r), fast_length(width + 2 * r))
    spectrum = torch.fft.rfft2(padded, s=shape) * torch.fft.rfft2(torch.from_numpy(kernel).to(image), s=shape)
    return torch.fft.irfft2(spectrum, s=shape)[..., 2 * r : 2 * r + height, 2 * r : 2 * r + width]


def fast_length(n: int) -> int:
    """The least even 2^a·3^b·5^c ≥ n: FFTs of other lengths are slower."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1 and n % 2 == 0:
            return n
        n += 1
