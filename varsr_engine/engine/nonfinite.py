"""NaN and infinity: found row by row, computed again in float32 where a 16-bit type gave them, else an error.

float16 overflows beyond 65504. Images whose numbers do are rare, and not to blame: such an image, or tile, or window of
the decoder, is computed again in float32 by itself, on weights that are read when first needed, and its result says so.
What is not finite in float32 either fails.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from varsr_engine.checkpoint import DTYPES, Checkpoint
from varsr_engine.dispatch import active_backend, use_backend
from varsr_engine.engine.convolutions import Convolutional
from varsr_engine.engine.group_statistics import Moments
from varsr_engine.engine.memory import available_bytes, weight_bytes
from varsr_engine.engine.parts import Part
from varsr_engine.errors import NumericalError

# A float32 model that takes at most this part of a device's memory is kept after its use; a larger one is dropped.
KEEP_SHARE = 8

OnAgain = Callable[[], None]


def finite_rows(values: torch.Tensor, wait: bool = True) -> torch.Tensor:
    """(N,) bool on the CPU: whether rows (N, ...) are finite. wait=False: valid after the next wait for the device."""
    return torch.isfinite(values).flatten(1).all(dim=1).to("cpu", non_blocking=not wait)


def bad_rows(finite: torch.Tensor) -> list[int]:
    """The rows that are not finite."""
    return [] if bool(finite.all()) else (~finite).nonzero().flatten().tolist()


def not_finite(rows: list[int], *tried: str) -> NumericalError:
    """The error of a batch's `rows`, by which the queue finds whose they are; tried: the dtypes, by name."""
    dtypes = " and in ".join(tried)
    message = f"the network gave NaN or infinity in {dtypes} for image(s) or tile(s) {rows} of a batch"
    return NumericalError(message, rows=rows, dtypes=[*tried])


def run_again(what: str, dtype: torch.dtype) -> str:
    """The warning of a result of which `what` was run again."""
    return f"{what} gave NaN in {name_of(dtype)} and was run again in fp32"


def name_of(dtype: torch.dtype) -> str:
    """fp32, fp16 or bf16."""
    return next(name for name, each in DTYPES.items() if each == dtype)


def keeps_float32(checkpoint: Checkpoint, device: torch.device) -> bool:
    """Whether a float32 model stays in memory after its first use, as told when the engine is made."""
    available = available_bytes(device)
    needed = weight_bytes(checkpoint.config, checkpoint.shapes, torch.float32)
    return available is not None and KEEP_SHARE * needed <= available


@contextlib.contextmanager
def float32_backend() -> Iterator[None]:
    """The backend that was asked for, if it computes float32; cuda, cudnn and flash are for 16 bits."""
    backend = active_backend()
    with use_backend(backend if backend in ("triton", "cpu", "torch") else None):
        yield


class DecoderWithFloat32:
    """A decoder whose windows that are not finite are decoded again in float32, by the statistics of the same image.

    It stands in for a `Convolutional` and for its statistics. A window's moments are learned apart from the others', so
    that one of NaN is not among them.
    """

    def __init__(self, decoder: Convolutional, precise: Part[Convolutional], on_again: OnAgain | None) -> None:
        """on_again: called before the first window is decoded again."""
        self._decoder, self._precise, self._on_again = decoder, precise, on_again
        self._learning: Moments | None = None
        self._shared: Moments | None = None

    @property
    def statistics(self) -> DecoderWithFloat32:
        return self

    @contextlib.contextmanager
    def learning(self) -> Iterator[Moments]:
        """As `GroupStatistics.learning`."""
        self._learning = Moments()
        try:
            yield self._learning
        finally:
            self._learning = None

    @contextlib.contextmanager
    def shared(self, moments: Moments) -> Iterator[None]:
        """As `GroupStatistics.shared`."""
        self._shared = moments
        try:
            yield
        finally:
            self._shared = None

    def __call__(self, latent: torch.Tensor) -> torch.Tensor:
        pixels = self._run(self._decoder, latent)
        if pixels is None:
            if self._on_again is not None:
                self._on_again()
                self._on_again = None
            with float32_backend():
                pixels = self._precise.run(lambda decoder: self._run(decoder, latent))
        if pixels is None:
            raise not_finite([0], name_of(self._decoder.dtype), "fp32")
        return pixels

    def _run(self, decoder: Convolutional, latent: torch.Tensor) -> torch.Tensor | None:
        """The pixels; None, and nothing learned, if one is not finite."""
        moments = None
        with contextlib.ExitStack() as stack:
            if self._shared is not None:
                stack.enter_context(decoder.statistics.shared(self._shared))
            elif self._learning is not None:
                moments = stack.enter_context(decoder.statistics.learning())
            pixels: torch.Tensor = decoder(latent)
        if not bool(torch.isfinite(pixels).all()):
            return None
        if self._learning is not None and moments is not None:
            self._learning.join(moments)
        return pixels
