"""Every error that users meet: one class, one code, one HTTP status, and whether trying again can help.

Messages say what was wrong, what was expected and what to do. All of them survive pickling, because servers
move exceptions between processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar


def _rebuild(cls: type[VarsrError], message: str, details: dict[str, Any]) -> VarsrError:
    return cls(message, **details)


class VarsrError(Exception):
    """Base of all errors raised on purpose. `details` holds machine-readable context (JSON types only)."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def __reduce__(self) -> tuple[Callable[..., VarsrError], tuple[Any, ...]]:
        return _rebuild, (type(self), self.message, self.details)


class InputError(VarsrError, ValueError):
    """The caller's data cannot be used."""

    http_status = 400


class InvalidImageError(InputError):
    """The image is corrupt, empty, animated, or holds values that are not numbers."""

    code = "invalid_image"


class UnsupportedFormatError(InputError):
    """The bytes are not an image in a format that this build reads or writes."""

    code = "unsupported_format"
    http_status = 415


class ImageTooLargeError(InputError):
    """The image, or what it would become, exceeds a size limit. Checked before decoding."""

    code = "image_too_large"
    http_status = 413


class PayloadTooLargeError(InputError):
    """The file has more bytes than the limit."""

    code = "payload_too_large"
    http_status = 413


class InvalidParamsError(InputError):
    """A parameter has the wrong name, type or range."""

    code = "invalid_params"
    http_status = 422


class OutputError(VarsrError, OSError):
    """The result could not be written: no permission, no space, or the file exists already."""

    code = "output_error"


class ResourceExhaustedError(VarsrError):
    """Not enough memory for this request."""

    code = "resource_exhausted"
    http_status = 503
    retryable = True


class NumericalError(VarsrError):
    """The network produced NaN or infinity."""

    code = "numerical_error"
    retryable = True


class AdmissionError(VarsrError):
    """The request was not taken, and nothing of it was run: the same request can be sent again, or elsewhere."""

    http_status = 503
    retryable = True


class QueueFullError(AdmissionError):
    """More tiles wait than the queue's limit allows. `details["retry_after_s"]` estimates when there is room."""

    code = "queue_full"
    http_status = 429


class DrainingError(AdmissionError):
    """The engine finishes what it has, or is closed, and takes nothing new."""

    code = "draining"


class DeadlineExceededError(VarsrError, TimeoutError):
    """The request's deadline passed before its result was ready."""

    code = "deadline_exceeded"
    http_status = 504
    retryable = True


class RequestCancelled(VarsrError):
    """The caller, or the closing of the engine, cancelled the request."""

    code = "cancelled"
    http_status = 499


class EngineDeadError(VarsrError):
    """The engine can run nothing more: the device was lost, or its scheduler failed. Another process may serve it."""

    code = "engine_dead"
    http_status = 503
    retryable = True


class ModelLoadError(VarsrError):
    """The weights could not be loaded."""

    code = "model_load"


class ModelNotFoundError(ModelLoadError):
    """No such file, folder or (offline) hub model."""

    code = "model_not_found"


class UnsafeCheckpointError(ModelLoadError):
    """The file is a pickle that needs more than tensors and plain containers."""

    code = "unsafe_checkpoint"


class CheckpointMismatchError(ModelLoadError):
    """A tensor is missing, unexpected, or has the wrong shape or dtype."""

    code = "checkpoint_mismatch"


class KernelUnavailableError(VarsrError, ValueError):
    """A backend was asked for by name and cannot run this call on this machine."""

    code = "kernel_unavailable"
