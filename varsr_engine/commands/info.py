"""`varsr info`: versions, devices, what runs where and why not, and what a model is and needs."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from dataclasses import asdict, dataclass
from typing import Any

import torch
import typer

import varsr_engine
import varsr_engine.kernels
from varsr_engine.checkpoint import Checkpoint, open_checkpoint
from varsr_engine.commands.selftest_cases import CASES, arguments
from varsr_engine.commands.terminal import human_bytes, print_json, stdout_console
from varsr_engine.dispatch import NO_SUCH_IMPLEMENTATION, OPS, ORDER
from varsr_engine.engine.memory import memory_plan
from varsr_engine.kernels import cuda_backend
from varsr_engine.kernels.cpu_library import instructions
from varsr_engine.kernels.linear import who_multiplies
from varsr_engine.packaged import default_model

# Parts of a model, by the first pattern that a parameter's name matches.
PARTS = {
    "adaLN, folded away": r"^transformer\..*ada_lin\.",
    "transformer blocks": r"^transformer\.blocks\.",
    "condition encoder": r"^transformer\.con_embedding\.",
    "refiner": r"^transformer\.diffloss\.",
    "embeddings and head": r"^transformer\.",
    "encoder, for training only": r"^vae\.(encoder|quant_conv)\.",
    "decoder": r"^vae\.(decoder|post_quant_conv)\.",
    "quantizer": r"^vae\.quantize\.",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """Which backend runs an op on a device, and why the others do not."""

    op: str
    device: str
    backend: str | None
    why_not: dict[str, str]


def versions() -> dict[str, str | None]:
    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {
        "varsr_engine": varsr_engine.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "cuda": torch.version.cuda,
        "cuda_kernels": cuda_backend.about_build(),
    }


def devices() -> dict[str, str]:
    """Every device that an engine can run on, described."""
    cpu = (platform.processor() or platform.machine(), instructions(), f"{torch.get_num_threads()} threads")
    found = {"cpu": f"{', '.join(cpu)}; products: {who_multiplies()}"}
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(i)
        found[f"cuda:{i}"] = f"{about.name}, {human_bytes(about.total_memory)}, compute {about.major}.{about.minor}"
    return found


def choices(device: str) -> list[Choice]:
    """For every op: the first backend that takes a small example in the device's usual dtype."""
    dtype = torch.float32 if device == "cpu" else torch.float16
    result = []
    with torch.inference_mode():
        for name, op in OPS.items():
            if name not in CASES:
                result.append(Choice(name, device, None, dict.fromkeys(ORDER, "no example to try it with")))
                continue
            args = arguments(name, torch.device(device), dtype)
            reasons = {backend: op.reason_unsupported(backend, *args) for backend in ORDER}
            runs = next((backend for backend in op.automatic if reasons[backend] is None), None)
            why_not: dict[str, str] = {backend: reason for backend, reason in reasons.items() if reason is not None}
            for backend in op.backends:  # one that could run, but that only a name chooses
                if backend not in (*op.automatic, *why_not):
                    why_not[backend] = "only when asked for by name"
            result.append(Choice(name, device, runs, why_not))
    return result


def part_sizes(checkpoint: Checkpoint) -> dict[str, int]:
    """Parameters of each part."""
    sizes = dict.fromkeys(PARTS, 0)
    for name, shape in checkpoint.shapes.items():
        part = next(part for part, pattern in PARTS.items() if re.search(pattern, name))
        sizes[part] += torch.Size(shape).numel()
    return {part: size for part, size in sizes.items() if size}


def memory_needs(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of the weights as the engine holds them, and of the KV cache of one image (both guidance branches)."""
    plan = memory_plan(checkpoint.config, checkpoint.shapes, 1, dtype)
    return {"weights": plan.weights, "kv_cache_per_image": plan.kv_cache}


def describe_model(model: str) -> dict[str, Any]:
    checkpoint = open_checkpoint(model)
    sizes = part_sizes(checkpoint)
    return {
        "name": checkpoint.path.name,
        "dtypes": sorted(set(checkpoint.dtypes.values())),
        "about": checkpoint.metadata,
        "config": checkpoint.config.to_dict(),
        "parameters": {**sizes, "total": checkpoint.num_parameters},
        "memory_bytes": {
            "fp32": memory_needs(checkpoint, torch.float32),
            "fp16": memory_needs(checkpoint, torch.float16),
        },
    }


def run_info(model: str | None, as_json: bool) -> None:
    """Print what is here. model: the default one where None."""
    about = versions()
    found = devices()
    ops = [choice for device in found for choice in choices(device)]
    described = describe_model(default_model(model))
    if as_json:
        entries = [asdict(choice) for choice in ops]
        return print_json({"versions": about, "devices": found, "ops": entries, "model": described})
    typer.echo(", ".join(f"{name} {version}" for name, version in about.items() if version is not None))
    typer.echo("\n".join(f"{device}: {text}" for device, text in found.items()))
    print_ops(ops)
    print_model(described)


def print_ops(ops: list[Choice]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("op", "device", "runs on", "why not the others")
    for choice in ops:
        present = ((b, reason) for b, reason in choice.why_not.items() if reason != NO_SUCH_IMPLEMENTATION)
        reasons = "; ".join(f"{backend}: {reason}" for backend, reason in present)
        table.add_row(choice.op, choice.device, choice.backend or "nothing", Text(reasons))
    stdout_console().print(table)


def print_model(described: dict[str, Any]) -> None:
    from rich.table import Table

    console = stdout_console()
    console.print(f"{described['name']}: {', '.join(described['dtypes'])}", markup=False)
    for key, text in described["about"].items():
        console.print(f"{key}: {text}", markup=False)
    settings = ", ".join(f"{key} {value}" for key, value in described["config"].items())
    console.print(settings, markup=False)
    parts = Table("part", "parameters")
    for part, size in described["parameters"].items():
        parts.add_row(part, f"{size:,}")
    console.print(parts)
    memory = Table("memory", "weights after folding", "KV cache an image")
    for dtype, needs in described["memory_bytes"].items():
        memory.add_row(dtype, human_bytes(needs["weights"]), human_bytes(needs["kv_cache_per_image"]))
    console.print(memory)
