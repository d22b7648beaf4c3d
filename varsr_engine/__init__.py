"""varsr_engine: exact and fast inference for VARSR, visual autoregressive image super-resolution.

Importing this package imports no torch: public names load on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Engine": "varsr_engine.engine.engine",
    "EngineConfig": "varsr_engine.engine.params",
    "Generation": "varsr_engine.engine.generation",
    "UpscaleParams": "varsr_engine.engine.params",
    "UpscaleResult": "varsr_engine.engine.result",
    "ModelConfig": "varsr_engine.config",
    "VarsrError": "varsr_engine.errors",
    "use_backend": "varsr_engine.dispatch",
    "upscale": "varsr_engine.engine.engine",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from varsr_engine.config import ModelConfig as ModelConfig
    from varsr_engine.dispatch import use_backend as use_backend
    from varsr_engine.engine.engine import Engine as Engine
    from varsr_engine.engine.engine import upscale as upscale
    from varsr_engine.engine.generation import Generation as Generation
    from varsr_engine.engine.params import EngineConfig as EngineConfig
    from varsr_engine.engine.params import UpscaleParams as UpscaleParams
    from varsr_engine.engine.result import UpscaleResult as UpscaleResult
    from varsr_engine.errors import VarsrError as VarsrError


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'varsr_engine' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
