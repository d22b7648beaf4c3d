"""What is measured of a picture, by which variant of which metric, and what to do where one cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from varsr_engine.evaluation.full_reference import MS_SSIM_LEAST_SIDE, ms_ssim_y, psnr_rgb, psnr_y, ssim_y
from varsr_engine.evaluation.luminance import Pixels
from varsr_engine.evaluation.niqe import NiqeParams, TooFewBlocks, niqe

Better = Literal["higher", "lower", "nearer 1"]
ARROWS: dict[Better, str] = {"higher": "↑", "lower": "↓", "nearer 1": "→1"}

NO_TRUTH = "no ground truth"
NO_NIQE_PARAMS = (
    "no parameters of pristine photographs: estimate them with 'python -m varsr_engine.evaluation.fit_niqe FOLDER -o "
    "niqe.npz', or take BasicSR's niqe_pris_params.npz, and give them with --niqe-params FILE"
)
NO_REFERENCE = "no other outputs to compare with: give their folder with --reference FOLDER"
NO_SEAMS = "where tiles meet is known of pictures that this run makes, not of files (--outputs)"


class NotMeasured(Exception):
    """A metric that this picture, or this run, cannot have; the message says why and what to do."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A result and what it is compared with; pictures are (H, W, 3) uint8, all of one size.

    reference: another implementation's result. seam_score: of the engine; None for a single tile.
    """

    picture: Pixels
    truth: Pixels | None = None
    reference: Pixels | None = None
    seam_score: float | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """What a metric is called. key: in files. heading: of its column. variant: which of the metrics of that name it is.

    digits: after the point, as papers print it.
    """

    key: str
    heading: str
    variant: str
    better: Better
    digits: int

    @property
    def title(self) -> str:
        """The heading, with the direction that is better."""
        return f"{self.heading} {ARROWS[self.better]}"


@dataclass(frozen=True, slots=True)
class Metric(Label):
    """One number of a picture. `score` raises NotMeasured."""

    score: Callable[[Sample], float]


@dataclass(slots=True)
class Suite:
    """The metrics of a run, and those it cannot have: key to reason."""

    metrics: list[Metric] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, metric: Metric, reason: str | None = None) -> None:
        """Add a metric, or, where there is a reason why it cannot run at all, that."""
        if reason is None:
            self.metrics.append(metric)
        else:
            self.skipped[metric.key] = reason

    def extend(self, other: Suite) -> None:
        """Add all that another suite has, and lacks."""
        self.metrics += other.metrics
        self.skipped |= other.skipped

    def measure(self, sample: Sample) -> tuple[dict[str, float | None], dict[str, str]]:
        """Scores by key, None where a metric cannot be had of this sample; and the reasons for those."""
        scores: dict[str, float | None] = {}
        reasons: dict[str, str] = {}
        for metric in self.metrics:
            try:
                scores[metric.key] = metric.score(sample)
            except NotMeasured as reason:
                scores[metric.key], reasons[metric.key] = None, str(reason)
        return scores, reasons


def offline_suite(
    *, has_truth: bool = True, niqe_params: NiqeParams | None = None, has_reference: bool = False, seams: bool = True
) -> Suite:
    """The metrics that need nothing but this package. What is not there is skipped, with the reason.

    has_truth: at least one pair has. seams: the engine makes the pictures, so that it knows where tiles meet.
    """
    no_truth = None if has_truth else f"{NO_TRUTH} in any pair"
    suite = Suite()
    suite.add(Metric("psnr_y", "PSNR-Y dB", "BT.601 Y, no border cut", "higher", 2, _compared(psnr_y)), no_truth)
    ssim = "BT.601 Y in whole levels, Gaussian 11×11 σ 1.5, no border cut"
    suite.add(Metric("ssim_y", "SSIM-Y", ssim, "higher", 4, _compared(ssim_y)), no_truth)
    scales = "SSIM-Y's window at 5 scales, weights of the paper"
    suite.add(Metric("ms_ssim_y", "MS-SSIM-Y", scales, "higher", 4, _ms_ssim), no_truth)

    def naturalness(sample: Sample) -> float:
        assert niqe_params is not None
        try:
            return niqe(sample.picture, niqe_params)
        except TooFewBlocks as error:
            raise NotMeasured(str(error)) from None

    variant = "of Y, blocks of 96×96, parameters of --niqe-params"
    without = NO_NIQE_PARAMS if niqe_params is None else None
    suite.add(Metric("niqe", "NIQE", variant, "lower", 3, naturalness), without)
    parity = "of RGB, to the picture of the same name in --reference"
    no_reference = None if has_reference else NO_REFERENCE
    suite.add(Metric("parity_psnr", "parity dB", parity, "higher", 2, _parity), no_reference)
    edges = "gradients where tiles meet over those around"
    suite.add(Metric("seam_score", "seams", edges, "nearer 1", 3, _seams), None if seams else NO_SEAMS)
    return suite


def truth_of(sample: Sample) -> Pixels:
    """The sample's truth. Raises NotMeasured where it has none."""
    if sample.truth is None:
        raise NotMeasured(NO_TRUTH)
    return sample.truth


def _compared(metric: Callable[[Pixels, Pixels], float]) -> Callable[[Sample], float]:
    return lambda sample: metric(sample.picture, truth_of(sample))


def _ms_ssim(sample: Sample) -> float:
    truth = truth_of(sample)
    height, width = truth.shape[:2]
    if min(height, width) < MS_SSIM_LEAST_SIDE:
        raise NotMeasured(f"MS-SSIM needs {MS_SSIM_LEAST_SIDE} pixels a side for its 5 scales, got {width}×{height}")
    return ms_ssim_y(sample.picture, truth)


def _parity(sample: Sample) -> float:
    if sample.reference is None:
        raise NotMeasured("no picture of that name in --reference")
    return psnr_rgb(sample.picture, sample.reference)


def _seams(sample: Sample) -> float:
    if sample.seam_score is None:
        raise NotMeasured("one tile: there are no seams")
    return sample.seam_score
