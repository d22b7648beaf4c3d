"""Options that several commands take, and the configuration of the engine that follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from varsr_engine.cli.app import FILES, GENERATION, MACHINE, MESSAGES, SIZE, option
from varsr_engine.cli.options import parse_backend, parse_bytes, parse_device

if TYPE_CHECKING:
    from varsr_engine.engine.params import EngineConfig

# What is upscaled, and how.
Model = Annotated[
    str | None,
    option(
        "-n",
        "--model",
        metavar="MODEL",
        help="A folder, a .safetensors file or a hub id. Default: VARSR_MODEL, else the packaged varsr-mini.",
        panel=GENERATION,
    ),
]
Scale = Annotated[
    float | None, option("-s", "--scale", help="Size of the output over the input's. Default: 4.", panel=SIZE)
]
LongestSide = Annotated[int | None, option("--longest-side", help="Longest side of the output in pixels.", panel=SIZE)]
Cfg = Annotated[float | None, option("--cfg", help="Strength of guidance. Default: the model's.", panel=GENERATION)]
Preset = Annotated[
    str | None,
    option(
        "--preset",
        metavar="quality|balanced|fast",
        help="quality is exact; the others are faster by fewer refiner steps and guided scales. Default: quality.",
        panel=GENERATION,
    ),
]
Steps = Annotated[
    int | None,
    option(
        "--steps",
        help="Of the refiner. Fewer than the model's (10): not exact. Default: the preset's.",
        panel=GENERATION,
    ),
]
ColorFix = Annotated[
    str | None,
    option("--color-fix", metavar="KIND", help="adain, wavelet or none. Default: the model's.", panel=GENERATION),
]
Fidelity = Annotated[
    float | None,
    option(
        "--fidelity",
        help="Share of the resized input in the output, 0 to 1; 0: none. Default: the model's.",
        panel=GENERATION,
    ),
]
StopAtScale = Annotated[
    int | None,
    option(
        "--stop-at-scale",
        metavar="N",
        help="A draft of the first N scales, fast, without the refiner.",
        panel=GENERATION,
    ),
]
ParamsFile = Annotated[
    Path | None,
    option("--params", metavar="FILE", help="TOML with any fields of UpscaleParams.", panel=GENERATION),
]

# What is written.
Quality = Annotated[int, option("--quality", min=1, max=100, help="Of JPEG and WebP.", panel=FILES, show_default=True)]
Overwrite = Annotated[bool, option("--overwrite", help="Replace files that exist.", panel=FILES)]

# What it runs on.
Device = Annotated[
    str | None,
    option("-g", "--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or N. Default: auto.", panel=MACHINE),
]
Dtype = Annotated[
    str | None,
    option("--dtype", metavar="TYPE", help="auto, fp32, fp16 or bf16. Default: auto (fp16 on a GPU).", panel=MACHINE),
]
BackendName = Annotated[
    str | None,
    option("--backend", metavar="NAME", help="auto, cuda, triton, cpu or torch. Default: auto.", panel=MACHINE),
]
Quantization = Annotated[
    str | None,
    option(
        "--quantization",
        metavar="TYPE",
        help="none, or fp8: faster on GPUs from compute capability 8.9 on, not exact. Default: none.",
        panel=MACHINE,
    ),
]
Numerics = Annotated[
    str | None,
    option(
        "--numerics",
        metavar="KIND",
        help="fast, or batch_invariant: the same bits whatever shares a batch. Default: fast.",
        panel=MACHINE,
    ),
]
BatchSize = Annotated[
    int | None,
    option(
        "-b",
        "--batch-size",
        min=1,
        help="Images, or tiles of an image, a forward pass. Default: 1 image; tiles by the model's size.",
        panel=MACHINE,
    ),
]
MemoryBudget = Annotated[
    str | None,
    option(
        "--memory-budget",
        "--vram-budget",
        metavar="BYTES",
        help="What batches and the decoder keep to, such as 8G or 512M. Default: what gains.",
        panel=MACHINE,
    ),
]
ConfigFile = Annotated[
    Path | None, option("--config", metavar="FILE", help="TOML with fields of EngineConfig.", panel=MACHINE)
]

# What is printed.
AsJson = Annotated[bool, option("--json", help="Print one JSON object on stdout.", panel=MESSAGES)]
Verbose = Annotated[bool, option("-v", "--verbose", help="Seconds a stage, and tracebacks of errors.", panel=MESSAGES)]
Quiet = Annotated[bool, option("-q", "--quiet", help="Only errors.", panel=MESSAGES)]


def engine_config(
    file: Path | None = None,
    *,
    device: str | None = None,
    backend: str | None = None,
    memory_budget: str | None = None,
    **fields: Any,
) -> EngineConfig:
    """What is typed, above a TOML file of EngineConfig's fields, above their defaults."""
    from varsr_engine.engine.params import EngineConfig  # not at the top: it takes torch

    return EngineConfig.resolve(
        file,
        device=parse_device(device),
        backend=parse_backend(backend),
        memory_budget=parse_bytes(memory_budget),
        **fields,
    )
