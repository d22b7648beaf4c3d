"""Parameters of a degradation: one `Stage` a pass of blur, resize, noise and JPEG; presets as named constructors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from varsr_engine.errors import InvalidParamsError

Range = tuple[float, float]
BlurKind = Literal["iso", "aniso", "generalised_iso", "generalised_aniso", "plateau_iso", "plateau_aniso"]
ResizeMode = Literal["area", "bilinear", "bicubic", "antialiased"]
Preset = Literal["second_order", "mild", "mild_fixed", "hard_fixed"]


def _check(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise InvalidParamsError(f"degradation: {name} must be {expected}, got {got!r}")


def _check_range(name: str, value: Range, low: float, high: float = float("inf")) -> None:
    ok = len(value) == 2 and low <= value[0] <= value[1] <= high
    _check(ok, name, f"(least, most) in [{low}, {high}]", value)


def _check_probabilities(name: str, values: tuple[float, ...], count: int) -> None:
    ok = len(values) == count and min(values) >= 0 and abs(sum(values) - 1) < 1e-6
    _check(ok, name, f"{count} probabilities that sum to 1", values)


@dataclass(frozen=True, slots=True)
class Stage:
    """One pass of blur, resize, noise and JPEG. The defaults are the first pass of the second-order pipeline.

    Sigmas of noise are in 1/255. The resize is relative to the picture that comes in, in the last stage to the
    low-resolution size. `antialiased` is the bicubic that averages over what it leaves out, as Pillow's does.
    """

    blur_probability: float = 1.0
    kernel_sizes: tuple[int, int] = (7, 21)  # odd
    kernel_probabilities: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)  # in the order of kernel_kinds
    blur_sigma: Range = (0.2, 3.0)
    beta_generalised: Range = (0.5, 4.0)
    beta_plateau: Range = (1.0, 2.0)
    sinc_probability: float = 0.1
    resize_probabilities: tuple[float, ...] = (0.2, 0.7, 0.1)  # up, down, keep
    resize_range: Range = (0.3, 1.5)
    resize_modes: tuple[ResizeMode, ...] = ("area", "bilinear", "bicubic")
    gaussian_probability: float = 0.5  # else Poisson
    gaussian_sigma: Range = (1.0, 15.0)
    poisson_scale: Range = (0.05, 2.0)
    gray_probability: float = 0.4  # one noise for the three channels
    jpeg_quality: tuple[int, int] = (60, 95)

    def __post_init__(self) -> None:
        for name in ("blur_probability", "sinc_probability", "gaussian_probability", "gray_probability"):
            value = getattr(self, name)
            _check(0 <= value <= 1, name, "in [0, 1]", value)
        _check_range("kernel_sizes", self.kernel_sizes, 1)
        _check(all(n % 2 for n in self.kernel_sizes), "kernel_sizes", "odd", self.kernel_sizes)
        _check_probabilities("kernel_probabilities", self.kernel_probabilities, len(self.kernel_kinds))
        _check_probabilities("resize_probabilities", self.resize_probabilities, 3)
        _check_range("blur_sigma", self.blur_sigma, 0.05)
        _check_range("gaussian_sigma", self.gaussian_sigma, 0)
        _check_range("poisson_scale", self.poisson_scale, 0)
        _check_range("jpeg_quality", self.jpeg_quality, 1, 100)
        for name in ("beta_generalised", "beta_plateau", "resize_range"):
            low, high = getattr(self, name)
            _check(0 < low <= 1 <= high, name, "a range around 1", (low, high))
        known = get_args(ResizeMode)
        ok = bool(self.resize_modes) and set(self.resize_modes) <= set(known)
        _check(ok, "resize_modes", f"some of {', '.join(known)}", self.resize_modes)

    @property
    def kernel_kinds(self) -> tuple[BlurKind, ...]:
        return get_args(BlurKind)


@dataclass(frozen=True, slots=True)
class DegradationParams:
    """Stages one after another, then the sinc filter and the JPEG of the last stage in either order.

    `jpeg_first_probability`: how often the last JPEG comes before the last resize and sinc, instead of after them.
    """

    stages: tuple[Stage, ...]
    final_sinc_probability: float = 0.8
    final_sinc_sizes: tuple[int, int] = (7, 21)
    jpeg_first_probability: float = 0.5

    def __post_init__(self) -> None:
        _check(len(self.stages) >= 1, "stages", "at least one", self.stages)
        for name in ("final_sinc_probability", "jpeg_first_probability"):
            value = getattr(self, name)
            _check(0 <= value <= 1, name, "in [0, 1]", value)
        _check_range("final_sinc_sizes", self.final_sinc_sizes, 1)
        _check(all(n % 2 for n in self.final_sinc_sizes), "final_sinc_sizes", "odd", self.final_sinc_sizes)

    @classmethod
    def preset(cls, name: str) -> DegradationParams:
        _check(name in get_args(Preset), "preset", f"one of {', '.join(get_args(Preset))}", name)
        params: DegradationParams = getattr(cls, name)()
        return params

    @classmethod
    def second_order(cls) -> DegradationParams:
        """Real-ESRGAN's two passes, with the somewhat gentler noise and JPEG that VARSR's kind of model trains on."""
        second = Stage(
            blur_probability=0.8,
            blur_sigma=(0.2, 1.5),
            resize_probabilities=(0.3, 0.4, 0.3),
            resize_range=(0.6, 1.2),
            gaussian_sigma=(1.0, 12.0),
            poisson_scale=(0.05, 1.0),
            jpeg_quality=(60, 100),
        )
        return cls((Stage(), second))

    @classmethod
    def mild(cls) -> DegradationParams:
        """Antialiased bicubic, a little Gaussian noise, a good JPEG."""
        return cls._plain(noise=(0.0, 4.0), quality=(80, 100))

    @classmethod
    def mild_fixed(cls) -> DegradationParams:
        """For evaluation: antialiased bicubic, noise of σ 2, JPEG 90."""
        return cls._plain(noise=(2.0, 2.0), quality=(90, 90))

    @classmethod
    def hard_fixed(cls) -> DegradationParams:
        """For evaluation: blur of σ 1.4, antialiased bicubic, noise of σ 7, JPEG 65."""
        return cls._plain(noise=(7.0, 7.0), quality=(65, 65), blur=1.4)

    @classmethod
    def _plain(cls, noise: Range, quality: tuple[int, int], blur: float | None = None) -> DegradationParams:
        """One pass in which only the noise, its strength and the JPEG quality are random."""
        stage = Stage(
            blur_probability=0.0 if blur is None else 1.0,
            kernel_sizes=(13, 13),
            kernel_probabilities=(1.0, 0.0, 0.0, 0.0, 0.0, 0.0),
            blur_sigma=(blur or 1.0, blur or 1.0),
            sinc_probability=0.0,
            resize_probabilities=(0.0, 0.0, 1.0),
            resize_modes=("antialiased",),
            gaussian_probability=1.0,
            gaussian_sigma=noise,
            gray_probability=0.0,
            jpeg_quality=quality,
        )
        return cls((stage,), final_sinc_probability=0.0, jpeg_first_probability=0.0)
