"""VARSR behind LitServe: POST /predict {"image": base64, "scale": 4, "seed": 0} → {"image": base64 PNG, "seed": ...}.

    pip install varsr-engine litserve
    python examples/litserve_server.py

LitServe gives each request to the engine by itself, asynchronously; the engine makes the batches, so that one bad image
fails alone.
"""

from __future__ import annotations

import argparse
import base64
import binascii
from typing import Any

import litserve as ls
from fastapi import HTTPException

from varsr_engine import Engine, UpscaleResult, VarsrError

FIELDS = ("scale", "seed", "preset")


class VarsrAPI(ls.LitAPI):
    def __init__(self, model: str | None = None) -> None:
        super().__init__(max_batch_size=1, enable_async=True)
        self.model = model

    def setup(self, device: str) -> None:
        self.engine = Engine.from_pretrained(self.model, device=device)

    # LitServe hands the annotations of `request` and of the response to FastAPI. Without, both are plain JSON.
    async def decode_request(self, request) -> tuple[bytes, dict[str, Any]]:  # type: ignore[no-untyped-def]
        try:
            image = base64.b64decode(request["image"], validate=True)
        except (KeyError, TypeError, binascii.Error) as error:
            raise HTTPException(400, "image must be a base64 string") from error
        return image, {name: request[name] for name in FIELDS if name in request}

    async def predict(self, inputs: tuple[bytes, dict[str, Any]]) -> UpscaleResult:
        image, settings = inputs
        try:
            return await self.engine.aupscale(image, **settings)
        except VarsrError as error:
            raise HTTPException(error.http_status, f"{error.code}: {error.message}") from None

    async def encode_response(self, output: UpscaleResult):  # type: ignore[no-untyped-def]
        return {"image": base64.b64encode(output.encode("PNG")).decode(), "seed": output.seed, "size": output.size}


def main() -> None:
    parser = argparse.ArgumentParser(description="VARSR behind LitServe.")
    parser.add_argument("--model", help="a folder, a file or a hub id; default: varsr-mini")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--accelerator", default="auto")
    arguments = parser.parse_args()
    server = ls.LitServer(VarsrAPI(arguments.model), accelerator=arguments.accelerator, workers_per_device=1)
    server.run(host=arguments.host, port=arguments.port, generate_client_file=False)


if __name__ == "__main__":
    main()
