"""`varsr serve`: the HTTP server."""

from __future__ import annotations

import dataclasses
import logging
import sys

from varsr_engine.commands.terminal import say
from varsr_engine.engine.params import EngineConfig
from varsr_engine.errors import InvalidParamsError
from varsr_engine.serving.settings import ServerSettings


def run_serve(
    model: str | None, config: EngineConfig, settings: ServerSettings, *, invariant_on_cpu: bool, quiet: bool
) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises ModelLoadError and its kinds, InvalidParamsError.

    invariant_on_cpu: numerics="batch_invariant" where the device is a CPU, which gains little from batches.
    """
    settings.require_protection()
    try:
        from varsr_engine.serving.app import create_app
        from varsr_engine.serving.lifecycle import Lifecycle
        from varsr_engine.serving.server import listen, serve
        from varsr_engine.serving.service import Service
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("varsr_engine"):
            raise
        raise InvalidParamsError(f"varsr serve needs {error.name}: pip install 'varsr-engine[server]'") from None
    from varsr_engine.engine.device import resolve_device
    from varsr_engine.engine.engine import Engine

    log_to_stderr(quiet)
    sock = listen(settings)
    with sock:
        host, port = sock.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}{settings.root_path}"

        def load() -> Engine:
            own = settings.engine_config(config)
            if invariant_on_cpu and resolve_device(own.device).type == "cpu":
                own = dataclasses.replace(own, numerics="batch_invariant")
            return Engine.from_pretrained(model, config=own)

        lifecycle = Lifecycle(load)
        service = Service(lifecycle, settings)
        lifecycle.on_change(lambda: say(f"{lifecycle.state}: {url}"))
        say(f"loading: {url}")
        serve(create_app(service), service, sock)
    if lifecycle.error is not None:
        raise lifecycle.error


def log_to_stderr(quiet: bool) -> None:
    """One JSON line a request unless quiet; what goes wrong always."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("varsr_engine.serving.access").setLevel(logging.WARNING if quiet else logging.INFO)
