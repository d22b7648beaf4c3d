"""`varsr info --memory`: what batches of a model take on a GPU, and which fit on those that are here."""

from __future__ import annotations

from typing import Any

import torch
import typer

from varsr_engine.checkpoint import DTYPES, open_checkpoint
from varsr_engine.commands.terminal import human_bytes, print_json, stdout_console
from varsr_engine.engine.memory import available_bytes, largest_batch, memory_plan
from varsr_engine.errors import InvalidParamsError
from varsr_engine.packaged import default_model

BATCHES = (1, 2, 4, 8)


def describe_memory(model: str, dtype: str) -> dict[str, Any]:
    """Planned bytes by batch size, and for each GPU what it has left and the largest batch that fits."""
    if dtype not in DTYPES:
        raise InvalidParamsError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    checkpoint, compute = open_checkpoint(model), DTYPES[dtype]
    config, shapes = checkpoint.config, checkpoint.shapes
    plans = [memory_plan(config, shapes, batch, compute) for batch in BATCHES]
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        available = available_bytes(torch.device("cuda", index)) or 0
        fits = largest_batch(config, shapes, compute, available)
        gpus.append({"device": f"cuda:{index}", "available": available, "largest_batch": fits})
    return {
        "model": checkpoint.path.name,
        "dtype": dtype,
        "plans": [
            {"batch": p.batch, "weights": p.weights, "kv_cache": p.kv_cache, "stages": p.stages, "peak": p.peak}
            for p in plans
        ],
        "gpus": gpus,
    }


def run_memory(model: str | None, dtype: str | None, as_json: bool) -> None:
    described = describe_memory(default_model(model), dtype or "fp16")
    if as_json:
        return print_json(described)
    from rich.table import Table

    stages = list(described["plans"][0]["stages"])
    table = Table(
        "batch", "weights", "KV cache", *stages, "peak", title="{model} on a GPU, {dtype}".format(**described)
    )
    for plan in described["plans"]:
        sizes = (plan["weights"], plan["kv_cache"], *plan["stages"].values(), plan["peak"])
        table.add_row(str(plan["batch"]), *map(human_bytes, sizes))
    stdout_console().print(table)
    typer.echo("scales hold the KV cache; the peak is the weights and the largest stage, for stages share memory")
    for gpu in described["gpus"]:
        typer.echo(f"{gpu['device']}: {human_bytes(gpu['available'])} available, largest batch {gpu['largest_batch']}")
    if not described["gpus"]:
        typer.echo("no GPU is here")
