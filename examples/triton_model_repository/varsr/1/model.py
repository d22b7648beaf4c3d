"""VARSR for NVIDIA Triton's Python backend, decoupled: each request is submitted, and the engine makes the batches.

Images are uint8 tensors (H, W, 3). Cancelling a request stops its work at the next scale.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from varsr_engine import Engine, UpscaleResult, VarsrError

MAX_WAITING = 64  # requests that are followed at once; more wait for their turn to be answered
CODES = {400: "INVALID_ARG", 413: "INVALID_ARG", 415: "INVALID_ARG", 422: "INVALID_ARG"}
CODES |= {429: "UNAVAILABLE", 499: "CANCELLED", 503: "UNAVAILABLE"}


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"]).get("parameters", {})
        model = parameters["model"]["string_value"] if "model" in parameters else None
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        self.engine = Engine.from_pretrained(model, device=device)
        self.engine.warmup()
        self.followers = ThreadPoolExecutor(MAX_WAITING, thread_name_prefix="varsr-answer")

    def execute(self, requests: list[Any]) -> None:
        """Takes the requests, and returns at once: they are answered through their senders."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                image = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
                previews = "latent" if optional(request, "PREVIEWS", False) else "none"
                settings = {"scale": float(optional(request, "SCALE", 4.0)), "seed": int(optional(request, "SEED", 0))}
                handle = self.engine.submit(image, events=True, previews=previews, **settings)
            except VarsrError as error:
                send_error(sender, error)
            else:
                self.followers.submit(follow, sender, handle)

    def finalize(self) -> None:
        self.engine.drain()
        self.followers.shutdown()
        self.engine.close()


def optional(request: Any, name: str, default: Any) -> Any:
    """The one value of an input; the default where it is not given."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().reshape(-1)[0]


def follow(sender: Any, handle: Any) -> None:
    """Answer one request: its previews, then its result or its error."""
    try:
        for event in handle.events():
            if sender.is_cancelled():
                handle.cancel()  # which ends the loop with RequestCancelled
            elif isinstance(event, UpscaleResult):
                send(sender, event.picture.rgb, "result", event.seed, final=True)
            elif event.preview is not None:
                send(sender, np.asarray(event.preview.image) / np.float32(255), event.stage, -1, final=False)
    except VarsrError as error:
        send_error(sender, error)
    except Exception as error:
        send_error(sender, VarsrError(f"{type(error).__name__}: {error}"))


def send(sender: Any, rgb: Any, stage: str, seed: int, *, final: bool) -> None:
    """rgb: (H, W, 3) in [0, 1]."""
    tensors = [
        pb_utils.Tensor("IMAGE", np.rint(rgb * 255).astype(np.uint8)),
        pb_utils.Tensor("STAGE", np.array([stage.encode()], dtype=np.object_)),
        pb_utils.Tensor("SEED", np.array([seed], dtype=np.int64)),
    ]
    flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
    sender.send(pb_utils.InferenceResponse(output_tensors=tensors), flags=flags)


def send_error(sender: Any, error: VarsrError) -> None:
    code = getattr(pb_utils.TritonError, CODES.get(error.http_status, "INTERNAL"))
    response = pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{error.code}: {error.message}", code))
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
