"""Learned metrics through pyiqa, where it and its weights are on this machine. Nothing is ever downloaded.

pyiqa fetches what it lacks, so its caches are looked at first, and while one of its metrics is made or runs no host
name can be resolved. It is under a non-commercial licence (PolyForm), which whoever installs it accepts; nothing here
needs it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from varsr_engine.evaluation.luminance import Pixels
from varsr_engine.evaluation.metrics import Better, Label, Metric, NotMeasured, Sample, Suite, truth_of

NOT_INSTALLED = (
    "pyiqa is not installed: pip install --no-deps pyiqa and what it imports, into an environment of its own"
)


@dataclass(frozen=True, slots=True)
class LearnedMetric:
    """A metric of pyiqa, by its name there, and the files that it loads.

    files: below torch's hub folder. models: of timm, in the Hugging Face cache.
    """

    name: str
    heading: str
    variant: str
    better: Better
    digits: int
    needs_truth: bool
    files: tuple[str, ...]
    models: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")

    @property
    def label(self) -> Label:
        return Label(self.key, self.heading, self.variant, self.better, self.digits)


_VIT = "timm/vit_base_patch8_224.augreg2_in21k_ft_in1k"
_VGG16, _ALEXNET = "checkpoints/vgg16-397923af.pth", "checkpoints/alexnet-owt-7be5be79.pth"
LEARNED = (
    LearnedMetric(
        "lpips", "LPIPS", "pyiqa lpips: AlexNet, v0.1", "lower", 4, True,
        ("pyiqa/LPIPS_v0.1_alex-df73285e.pth", _ALEXNET),
    ),
    LearnedMetric(
        "dists", "DISTS", "pyiqa dists", "lower", 4, True, ("pyiqa/DISTS_weights-f5e65c96.pth", _VGG16)
    ),
    LearnedMetric("musiq", "MUSIQ", "pyiqa musiq: KonIQ-10k", "higher", 2, False,
                  ("pyiqa/musiq_koniq_ckpt-e95806b9.pth",)),
    LearnedMetric("maniqa", "MANIQA", "pyiqa maniqa: KonIQ-10k", "higher", 4, False,
                  ("pyiqa/ckpt_koniq10k.pt",), (_VIT,)),
    LearnedMetric("maniqa-pipal", "MANIQA-PIPAL", "pyiqa maniqa-pipal", "higher", 4, False,
                  ("pyiqa/MANIQA_PIPAL-ae6d356b.pth",), (_VIT,)),
    LearnedMetric("clipiqa", "CLIPIQA", "pyiqa clipiqa: CLIP RN50", "higher", 4, False, ("clip/RN50.pt",)),
)  # fmt: skip
FID = LearnedMetric(
    "fid", "FID", "pyiqa fid, of a whole set", "lower", 2, True, ("pyiqa/pt_inception-2015-12-05-6726825d.pth",)
)


def learned_suite(device: torch.device, *, has_truth: bool = True) -> Suite:
    """Every learned metric of single pictures that can run here; the others are skipped, with the reason."""
    suite = Suite()
    for metric in LEARNED:
        reason = why_not(metric, has_truth)
        model: Any = None
        if reason is None:
            model, reason = _made(metric, device)
        entry = Metric(
            metric.key, metric.heading, metric.variant, metric.better, metric.digits, _scorer(metric, model, device)
        )
        suite.add(entry, reason)
    return suite


def fid_of_folders(device: torch.device, *, has_truth: bool = True) -> tuple[Callable[[Path, Path], float] | None, str]:
    """A function of the folders of results and of truths that gives their FID; or None and the reason."""
    reason = why_not(FID, has_truth)
    model: Any = None
    if reason is None:
        model, reason = _made(FID, device)
    if reason is not None:
        return None, reason

    def fid(results: Path, truths: Path) -> float:
        with offline():
            return float(model(str(results), str(truths), num_workers=0, verbose=False))

    return fid, ""


def why_not(metric: LearnedMetric, has_truth: bool = True) -> str | None:
    """Why a metric cannot run here: no ground truth, no pyiqa, or files that it would download. None if it can."""
    if metric.needs_truth and not has_truth:
        return "no ground truth in any pair"
    if importlib.util.find_spec("pyiqa") is None:
        return NOT_INSTALLED
    hub = Path(torch.hub.get_dir())
    missing = [str(hub / file) for file in metric.files if not (hub / file).is_file()]
    cache = hugging_face_cache()
    for model in metric.models:
        folder = cache / f"models--{model.replace('/', '--')}"
        if not any(folder.glob("snapshots/*/*")):
            missing.append(f"{folder} (the Hugging Face model {model})")
    if missing:
        return f"pyiqa's weights are not here and nothing is downloaded; missing: {', '.join(missing)}"
    return None


def hugging_face_cache() -> Path:
    """Where huggingface_hub keeps models, by the rules of its environment variables."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """No download within the block: Hugging Face's switches are set, and no host name can be resolved."""

    def refuse(*arguments: object, **settings: object) -> Any:
        raise OSError("evaluation is offline: a metric tried to download what it lacks")

    switches = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with patch.dict(os.environ, switches), patch.object(socket, "getaddrinfo", refuse):
        yield


def _made(metric: LearnedMetric, device: torch.device) -> tuple[Any, str | None]:
    """pyiqa's metric, or why it could not be made: any error of another package's is one, and stops no other metric."""
    try:
        with offline(), contextlib.redirect_stdout(None):
            return importlib.import_module("pyiqa").create_metric(metric.name, device=device), None
    except Exception as error:
        return None, f"pyiqa cannot make {metric.name!r}: {type(error).__name__}: {error}"


def _scorer(metric: LearnedMetric, model: Any, device: torch.device) -> Callable[[Sample], float]:
    def score(sample: Sample) -> float:
        pictures = [sample.picture, truth_of(sample)] if metric.needs_truth else [sample.picture]
        try:
            with offline(), torch.inference_mode():
                return float(model(*(_batch(pixels, device) for pixels in pictures)))
        except Exception as error:  # of another package, say of a picture too small for it
            raise NotMeasured(f"pyiqa {metric.name!r}: {type(error).__name__}: {error}") from error

    return score


def _batch(pixels: Pixels, device: torch.device) -> torch.Tensor:
    """(H, W, 3) uint8 → (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device, torch.float32) / 255
