"""POST /v1/images/edits: OpenAI's API, as its SDK speaks it."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.engine.test_tiling import picture
from tests.serving.conftest import Running
from tests.serving.images import pixels, png
from tests.serving.test_upscale import events_of
from varsr_engine.engine.engine import Engine

PATH = "/v1/images/edits"


def edit(server: Running, data: bytes, name: str = "image", **fields: str) -> Any:
    return server.client.post(PATH, files={name: ("cat.png", data, "image/png")}, data={"prompt": "sharper"} | fields)


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_same_bytes_as_offline(server: Running, engine: Engine, photo: bytes, name: str) -> None:
    answer = edit(server, photo, name, model="gpt-image-1", user="me", quality="high", n="1", seed="4", scale="2")
    body = answer.json()
    assert answer.status_code == 200
    assert base64.b64decode(body["data"][0]["b64_json"]) == engine.upscale(photo, seed=4, scale=2).encode("PNG")
    assert (body["size"], body["output_format"], body["background"]) == ("16x16", "png", "opaque")
    assert body["usage"]["total_tokens"] == 0


def test_n_results_have_consecutive_seeds(server: Running, engine: Engine, photo: bytes) -> None:
    body = edit(server, photo, n="3", seed="7", size="20x10", output_format="webp", output_compression="60").json()
    expected = [engine.upscale(photo, seed=7 + i, target_size=(20, 10)).encode("WEBP", quality=60) for i in range(3)]
    assert [base64.b64decode(item["b64_json"]) for item in body["data"]] == expected


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_stream(server: Running, engine: Engine, count: int) -> None:
    """As many partial images as were asked for, then the bytes of the unary answer."""
    source = png(picture(20, 13))
    answer = edit(server, source, stream="true", partial_images=str(count))
    events = events_of(answer.text)
    assert [name for name, _ in events] == ["image_edit.partial_image"] * count + ["image_edit.completed"]
    assert [data["partial_image_index"] for _, data in events[:-1]] == list(range(count))
    assert all(pixels(base64.b64decode(data["b64_json"])).shape == (52, 80, 3) for _, data in events[:-1])
    assert all(name == data["type"] for name, data in events)
    assert base64.b64decode(events[-1][1]["b64_json"]) == engine.upscale(source).encode("PNG")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "url"}, "response_format"),
        ({"n": "5"}, "n"),
        ({"n": "2", "stream": "true"}, "n"),
        ({"partial_images": "2"}, "partial_images"),
        ({"size": "big"}, "size"),
        ({"size": "16x16", "scale": "2"}, None),
        ({"output_format": "gif"}, "output_format"),
        ({"sead": "1"}, "sead"),
        ({"seed": "-1"}, "seed"),
        ({"image_url": "http://127.0.0.1/x.png"}, "image_url"),
        ({"seed": str(2**63 - 1), "n": "2"}, "seed"),
    ],
)
def test_bad_parameters_are_400(server: Running, photo: bytes, fields: dict[str, str], param: str | None) -> None:
    answer = edit(server, photo, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (400, "invalid_params", "invalid_request_error")
    assert error["param"] == param


def test_files(server: Running, photo: bytes) -> None:
    """Exactly one, called image, and sent as a file: a text is no path and no URL."""
    two = server.client.post(PATH, files=[("image[]", photo), ("image[]", photo)], data={"prompt": "p"})
    mask = server.client.post(PATH, files={"image": photo, "mask": photo})
    none = server.client.post(PATH, files={"prompt": (None, "p")})
    text = server.client.post(PATH, files={"image": (None, "/etc/passwd")})
    url = server.client.post(f"{PATH}?image=http://x/y.png", files={"image": photo})
    for answer in (two, mask, none, text, url):
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_params"
    json = server.client.post(PATH, json={"image": "http://x/y.png", "prompt": "p"})
    assert (json.status_code, json.json()["error"]["code"]) == (415, "unsupported_format")


def test_openai_sdk(server: Running, photo: bytes) -> None:
    """The unmodified SDK: unary, array form, stream and errors."""
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        unary = client.images.edit(image=("cat.png", photo), prompt="", model="gpt-image-1")
        array = client.images.edit(image=[("cat.png", photo)], prompt="p", n=2, extra_body={"seed": 0, "refiner": "on"})
        assert unary.data[0].b64_json == array.data[0].b64_json != array.data[1].b64_json
        stream = client.images.edit(image=("cat.png", photo), prompt="p", stream=True, partial_images=3)
        events = list(stream)
        partial = [event for event in events if event.type == "image_edit.partial_image"]
        assert [event.partial_image_index for event in partial] == [0, 1, 2]
        assert type(events[-1]).__name__ == "ImageEditCompletedEvent"
        assert events[-1].b64_json == unary.data[0].b64_json
        assert events[-1].usage.total_tokens == 0
        assert [model.id for model in client.models.list()] == ["micro"]
        with pytest.raises(openai.BadRequestError) as raised:
            client.images.edit(image=("cat.png", photo), prompt="p", extra_body={"scale": 1000})
        assert (raised.value.code, raised.value.param) == ("invalid_params", "scale")
        with pytest.raises(openai.APIStatusError) as unsupported:
            client.images.edit(image=("cat.png", b"no image"), prompt="p")
        assert unsupported.value.status_code == 415
