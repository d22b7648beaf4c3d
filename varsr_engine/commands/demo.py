"""`varsr demo`: the Gradio page, on this machine alone."""

from __future__ import annotations

import os
import socket

from varsr_engine.commands.terminal import say
from varsr_engine.engine.params import EngineConfig
from varsr_engine.errors import InvalidParamsError
from varsr_engine.packaged import default_model, packaged_model

# Gradio and the hub's client, which it imports, read these once: no telemetry, no look-ups, no history in the browser.
SILENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
MAX_UPLOAD = "64mb"


def run_demo(model: str | None, config: EngineConfig, *, host: str, port: int, browser: bool) -> None:
    """Serve until Ctrl-C. Raises ModelLoadError and its kinds, InvalidParamsError."""
    os.environ.update(SILENT)
    if os.path.exists(default_model(model)) or packaged_model(default_model(model)):  # else the hub is wanted
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from varsr_engine.integrations.gradio import build_demo
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("varsr_engine"):
            raise
        raise InvalidParamsError(f"varsr demo needs {error.name}: pip install 'varsr-engine[gradio]'") from None
    import gradio as gr

    from varsr_engine.engine.engine import Engine

    port = port or free_port(host)
    with Engine.from_pretrained(model, config=config) as engine:
        say(f"http://{host}:{port}  (Ctrl-C ends it)")
        build_demo(engine).launch(
            server_name=host,
            server_port=port,
            inbrowser=browser,
            share=False,
            ssr_mode=False,
            enable_monitoring=False,
            quiet=True,
            show_error=True,
            max_file_size=MAX_UPLOAD,
            theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        )


def free_port(host: str) -> int:
    """A port that was free a moment ago. Raises InvalidParamsError."""
    try:
        with socket.create_server((host, 0)) as server:
            return int(server.getsockname()[1])
    except OSError as error:
        raise InvalidParamsError(f"host must be an address of this machine, got {host!r}: {error.strerror}") from None
