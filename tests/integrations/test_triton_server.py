"""The model for NVIDIA Triton's Python backend, on a stub of its `triton_python_backend_utils`."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.engine.test_tiling import picture
from tests.integrations.conftest import EXAMPLES
from varsr_engine.engine.engine import Engine

FINAL = 1
FOLDER = "triton_model_repository/varsr"


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self.name, self._array = name, array

    def as_numpy(self) -> Any:
        return self._array


class TritonError(Exception):
    INVALID_ARG, UNAVAILABLE, CANCELLED, INTERNAL = range(4)

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Request:
    """A request, and its sender."""

    def __init__(self, **inputs: Any) -> None:
        self.inputs = {name: Tensor(name, np.asarray(value)) for name, value in inputs.items()}
        self.responses: list[Any] = []
        self.done = threading.Event()
        self.cancelled = False

    def get_response_sender(self) -> Request:
        return self

    def is_cancelled(self) -> bool:
        return self.cancelled

    def send(self, response: Any, flags: int) -> None:
        assert not self.done.is_set(), "a response after the final one"
        self.responses.append(response)
        if flags == FINAL:
            self.done.set()

    @property
    def shown(self) -> list[tuple[str, Any]]:
        """(stage, image) of each response."""
        assert self.done.wait(60)
        tensors = [{t.name: t.as_numpy() for t in response.output_tensors} for response in self.responses]
        return [(one["STAGE"][0].decode(), one["IMAGE"]) for one in tensors]

    @property
    def error(self) -> TritonError:
        assert self.done.wait(60)
        (response,) = self.responses
        assert isinstance(response.error, TritonError)
        return response.error


@pytest.fixture
def model(lend: Engine, stub_modules: Callable[..., ModuleType], example: Callable[[str], Any]) -> Iterator[Any]:
    stub_modules(
        "triton_python_backend_utils",
        get_input_tensor_by_name=lambda request, name: request.inputs.get(name),
        Tensor=Tensor,
        TritonError=TritonError,
        InferenceResponse=lambda output_tensors=(), error=None: SimpleNamespace(
            output_tensors=output_tensors, error=error
        ),
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
    )
    model = example(f"{FOLDER}/1/model.py").TritonPythonModel()
    config = json.dumps({"parameters": {"model": {"string_value": "varsr-mini"}}})
    model.initialize({"model_config": config, "model_instance_kind": "CPU", "model_instance_device_id": "0"})
    yield model
    model.finalize()


def test_requests_are_answered_as_they_are_done(model: Any, micro: Engine) -> None:
    requests = [Request(IMAGE=picture(8, 8), SEED=[seed], SCALE=[4.0]) for seed in range(3)]
    assert model.execute(requests) is None
    for seed, request in enumerate(requests):
        ((stage, image),) = request.shown
        expected = micro.upscale(picture(8, 8), seed=seed).array
        assert stage == "result" and image.dtype == np.uint8
        assert np.abs(image.astype(int) - expected).max() <= 1
        (tensor,) = [t for t in request.responses[0].output_tensors if t.name == "SEED"]
        assert tensor.as_numpy().tolist() == [seed]


def test_previews_come_first(model: Any) -> None:
    request = Request(IMAGE=picture(8, 8), PREVIEWS=[True])
    model.execute([request])
    *previews, (last, _) = request.shown
    assert last == "result" and previews[0][0] == "scale.0"
    assert all(image.shape == (32, 32, 3) for _, image in previews)


def test_a_bad_request_fails_alone(model: Any) -> None:
    bad, good = Request(IMAGE=np.zeros((0, 8, 3), np.uint8)), Request(IMAGE=picture(8, 8))
    model.execute([bad, good])
    assert str(bad.error).startswith("invalid_image: ") and bad.error.code == TritonError.INVALID_ARG
    assert good.shown[-1][0] == "result"


def test_a_cancelled_request_stops(model: Any, micro: Engine) -> None:
    before = micro.stats().cancelled
    request = Request(IMAGE=picture(8, 8))
    request.cancelled = True
    model.execute([request])
    assert request.error.code == TritonError.CANCELLED
    assert micro.stats().cancelled == before + 1


def test_the_config_names_what_the_model_reads_and_sends() -> None:
    config = (EXAMPLES / FOLDER / "config.pbtxt").read_text()
    code = (EXAMPLES / FOLDER / "1" / "model.py").read_text()
    named = set(re.findall(r'\{ name: "(\w+)"', config))
    read = set(re.findall(r'get_input_tensor_by_name\(request, "(\w+)"\)|optional\(request, "(\w+)"', code))
    assert named == {a or b for a, b in read} | set(re.findall(r'pb_utils\.Tensor\("(\w+)"', code))
    assert "decoupled: true" in config and "max_batch_size: 0" in config
