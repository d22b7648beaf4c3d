"""A ComfyUI node pack: VARSR Loader and VARSR Upscale, with progress, previews and interrupts (docs/integrations.md).

Link or copy this folder into ComfyUI's custom_nodes. Importing it needs no ComfyUI: its nodes are made when asked for.
"""

from __future__ import annotations

from typing import Any


async def comfy_entrypoint() -> Any:
    """What ComfyUI calls for the nodes (its V3 API)."""
    from .nodes import VarsrExtension

    return VarsrExtension()
