"""Every error class: its code, its status, and a round trip through pickle."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from varsr_engine import errors
from varsr_engine.errors import VarsrError

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, VarsrError)]
each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)


def test_all_classes_are_here() -> None:
    def below(cls: type[VarsrError]) -> set[type[VarsrError]]:
        return {cls}.union(*(below(c) for c in cls.__subclasses__()))

    assert {c for c in below(VarsrError) if c.__module__ == errors.__name__} == set(CLASSES)


@each_class
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_keeps_message_details_and_type(cls: type[VarsrError], protocol: int) -> None:
    error = cls("scale must be positive, got −1", name="scale", got=-1, allowed=[1, 2], nested={"a": None})
    for copied in (pickle.loads(pickle.dumps(error, protocol)), copy.deepcopy(error)):
        assert type(copied) is cls
        assert copied.message == str(copied) == "scale must be positive, got −1"
        assert copied.details == {"name": "scale", "got": -1, "allowed": [1, 2], "nested": {"a": None}}
        assert copied.args == (copied.message,)


@each_class
def test_without_details(cls: type[VarsrError]) -> None:
    copied = pickle.loads(pickle.dumps(cls("plain")))
    assert (type(copied), str(copied), copied.details) == (cls, "plain", {})


@each_class
def test_class_attributes(cls: type[VarsrError]) -> None:
    assert cls.code.isidentifier() and cls.code.islower()
    assert 400 <= cls.http_status <= 599
    assert isinstance(cls.retryable, bool)
    assert (cls.__doc__ or "").strip()


def test_codes_are_unique_among_leaves() -> None:
    codes = [c.code for c in CLASSES if "code" in vars(c)]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize(
    ("name", "code", "status", "retryable", "base"),
    [
        ("InvalidImageError", "invalid_image", 400, False, ValueError),
        ("UnsupportedFormatError", "unsupported_format", 415, False, ValueError),
        ("ImageTooLargeError", "image_too_large", 413, False, ValueError),
        ("PayloadTooLargeError", "payload_too_large", 413, False, ValueError),
        ("InvalidParamsError", "invalid_params", 422, False, ValueError),
        ("OutputError", "output_error", 500, False, OSError),
        ("ResourceExhaustedError", "resource_exhausted", 503, True, VarsrError),
        ("NumericalError", "numerical_error", 500, True, VarsrError),
        ("QueueFullError", "queue_full", 429, True, errors.AdmissionError),
        ("DrainingError", "draining", 503, True, errors.AdmissionError),
        ("DeadlineExceededError", "deadline_exceeded", 504, True, TimeoutError),
        ("RequestCancelled", "cancelled", 499, False, VarsrError),
        ("EngineDeadError", "engine_dead", 503, True, VarsrError),
        ("ModelNotFoundError", "model_not_found", 500, False, errors.ModelLoadError),
        ("UnsafeCheckpointError", "unsafe_checkpoint", 500, False, errors.ModelLoadError),
        ("CheckpointMismatchError", "checkpoint_mismatch", 500, False, errors.ModelLoadError),
        ("KernelUnavailableError", "kernel_unavailable", 500, False, ValueError),
    ],
)
def test_contract(name: str, code: str, status: int, retryable: bool, base: type[Exception]) -> None:
    """What servers and clients rely on."""
    cls = getattr(errors, name)
    assert (cls.code, cls.http_status, cls.retryable) == (code, status, retryable)
    assert issubclass(cls, base)
