"""The LitServe example, on a stub of LitServe's class, and served by LitServe itself where it is installed."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.engine.test_tiling import picture
from tests.integrations.conftest import EXAMPLES
from varsr_engine.commands.demo import free_port
from varsr_engine.engine.engine import Engine

fastapi = pytest.importorskip("fastapi")


class LitAPI:
    def __init__(self, max_batch_size: int, enable_async: bool) -> None:
        assert max_batch_size == 1 and enable_async  # the engine makes the batches


def encoded(width: int = 8, height: int = 8) -> str:
    file = io.BytesIO()
    Image.fromarray(picture(width, height)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def decoded(response: dict[str, Any]) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(response["image"]))), int)


@pytest.fixture
def api(lend: Engine, stub_modules: Callable[..., ModuleType], example: Callable[[str], Any]) -> Iterator[Any]:
    stub_modules("litserve", LitAPI=LitAPI)
    api = example("litserve_server.py").VarsrAPI()
    api.setup("cpu")
    yield api


async def answered(api: Any, request: dict[str, Any]) -> dict[str, Any]:
    """What LitServe's asynchronous loop does with one request."""
    response: dict[str, Any] = await api.encode_response(await api.predict(await api.decode_request(request)))
    return response


def test_requests_at_once_get_their_own_images(api: Any, micro: Engine) -> None:
    async def all_of() -> list[Any]:
        return await asyncio.gather(*(answered(api, {"image": encoded(), "seed": seed}) for seed in range(3)))

    for seed, response in enumerate(asyncio.run(all_of())):
        assert response["seed"] == seed and response["size"] == (32, 32)
        assert np.abs(decoded(response) - micro.upscale(picture(8, 8), seed=seed).array).max() <= 1


@pytest.mark.parametrize(
    ("request_", "status", "detail"),
    [
        ({}, 400, "image must be a base64 string"),
        ({"image": "%"}, 400, "image must be a base64 string"),
        ({"image": base64.b64encode(b"no image").decode()}, 415, "unsupported_format: "),
        ({"image": encoded(), "scale": -1}, 422, "invalid_params: scale must be"),
    ],
)
def test_bad_requests(api: Any, request_: dict[str, Any], status: int, detail: str) -> None:
    with pytest.raises(fastapi.HTTPException) as caught:
        asyncio.run(answered(api, request_))
    assert caught.value.status_code == status and caught.value.detail.startswith(detail)


def post(url: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    body = urllib.request.Request(url, json.dumps(request).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(body, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.slow
def test_the_host_serves_it() -> None:
    pytest.importorskip("litserve")
    port = free_port("127.0.0.1")
    script = str(EXAMPLES / "litserve_server.py")
    process = subprocess.Popen([sys.executable, script, "--port", str(port), "--accelerator", "cpu"])
    try:
        started = time.monotonic()
        while True:
            assert process.poll() is None and time.monotonic() - started < 120
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                    break
            except OSError:
                time.sleep(0.5)
        url = f"http://127.0.0.1:{port}/predict"
        status, response = post(url, {"image": encoded(16, 16), "seed": 5})
        assert status == 200 and response["seed"] == 5
        expected = Engine.from_pretrained(device="cpu").upscale(picture(16, 16), seed=5).array
        assert np.abs(decoded(response) - expected).max() <= 1
        status, response = post(url, {"image": encoded(16, 16), "scale": -1})
        assert status == 422 and "invalid_params" in json.dumps(response)
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
