"""`varsr selftest`: this machine's kernels, random numbers and whole engine, held to the reference."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import typer

import varsr_engine.kernels  # noqa: F401 (registers every op)
from varsr_engine.commands.selftest_cases import CASES, arguments, missing_cases
from varsr_engine.commands.selftest_model import selftest_checkpoint
from varsr_engine.commands.terminal import EXIT_FAILED, print_json, stdout_console
from varsr_engine.dispatch import OPS, ORDER, Backend
from varsr_engine.engine.device import resolve_device, resolve_dtype
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.noise import REFINER_STREAM, map_positions
from varsr_engine.engine.params import DTYPE_NAMES, EngineConfig
from varsr_engine.errors import InvalidParamsError
from varsr_engine.kernels.philox.reference import philox4x32, philox_normal_reference
from varsr_engine.model.varsr import VARSR

Status = Literal["ok", "FAILED", "not run"]

# Relative RMS error of an op in units of its coarsest dtype's eps: each rounding adds about 0.2.
ROUNDINGS = 4.0
ENGINE_TOLERANCE = 1e-4
# Counter, key and words, from the authors' library Random123 (file kat_vectors).
PHILOX_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    backend: str
    status: Status
    error: float | None = None  # as a fraction of what is allowed: 1 is the limit
    note: str = ""


def map_tensors(value: Any, f: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`value` with f applied to every tensor in nested (named) tuples; one that appears twice stays one."""
    done: dict[int, torch.Tensor] = {}

    def visit(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return done.setdefault(id(value), f(value))
        if isinstance(value, tuple):
            return value._make(map(visit, value)) if hasattr(value, "_make") else tuple(map(visit, value))
        return value

    return visit(value)


def tensors_in(*values: Any) -> list[torch.Tensor]:
    """Every tensor in nested tuples, once."""
    found: dict[int, torch.Tensor] = {}
    map_tensors(values, lambda t: found.setdefault(id(t), t))
    return list(found.values())


def in_float64(value: Any) -> Any:
    return map_tensors(value, lambda t: t.double() if t.is_floating_point() else t.clone())


def written(case: str, args: tuple[Any, ...], backend: Backend) -> list[torch.Tensor]:
    """Run an op; all it may have written: its results and its arguments."""
    result = OPS[case.split(".")[0]](*args, backend=backend)
    return [t.cpu() for t in tensors_in(result, args)]


def error_fraction(
    actual: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor, eps: float, sums: float = 0.0
) -> float:
    """The error of `actual` over what is allowed, the larger of two.

    Largest error: twice plain torch's in the same dtype, and one rounding. RMS error: a few roundings. sums: the eps of
    the sums inside, where that is coarser.
    """
    if not torch.isfinite(actual.double()).all():
        return float("inf")
    error = (actual.double() - exact).abs()
    own_eps = max(torch.finfo(actual.dtype).eps, sums)
    bound = 2 * (eager.double() - exact).abs().max() + own_eps * exact.abs().max()
    largest = error.max() / bound.clamp_min(torch.finfo(torch.float64).tiny)
    size = exact.square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    return max(largest.item(), (error.square().mean().sqrt() / size / (ROUNDINGS * max(eps, own_eps))).item())


def check_op(case: str, backend: Backend, device: torch.device, dtype: torch.dtype) -> Check:
    """One op on one backend, against its reference in float64 on the same, already rounded, inputs."""
    reason = OPS[case.split(".")[0]].reason_unsupported(backend, *arguments(case, device, dtype))
    if reason is not None:
        return Check(case, backend, "not run", note=reason)
    exact = written(case, in_float64(arguments(case, device, dtype)), "torch")
    eager = written(case, arguments(case, device, dtype), "torch")
    actual = written(case, arguments(case, device, dtype), backend)
    # FP8 operands are exact with their scales; Hopper adds them up in about 14 bits.
    eps = max(torch.finfo(t.dtype).eps for t in actual if t.is_floating_point() and t.element_size() > 1)
    sums = 2.0**-11 if case.endswith(".fp8") and device.type == "cuda" and backend == "triton" else 0.0
    worst, note = 0.0, ""
    for mine, plain, truth in zip(actual, eager, exact, strict=True):
        if mine.is_floating_point():
            worst = max(worst, error_fraction(mine, plain, truth, eps, sums))
        elif not torch.equal(mine, truth):
            differing = int((mine != truth).sum())
            if dtype == torch.float32:
                worst, note = float("inf"), f"{differing} of {mine.numel()} tokens differ"
            else:  # rounding decides between nearly equal logits
                note = f"{differing} of {mine.numel()} tokens differ, as 16-bit logits may"
    return Check(case, backend, "ok" if worst <= 1 else "FAILED", worst, note)


def op_checks(
    device: torch.device, dtype: torch.dtype, cases: Iterable[str] = CASES, backends: Sequence[str] = ORDER
) -> Iterator[Check]:
    """Every one of the backends, of every op."""
    for case in cases:
        for backend in backends:
            if backend in OPS[case.split(".")[0]].backends:
                try:
                    yield check_op(case, backend, device, dtype)
                except Exception as error:
                    yield Check(case, backend, "FAILED", note=f"{type(error).__name__}: {error}")


def philox_check(device: torch.device) -> Check:
    """Known answers of the random number generator."""

    def words(values: tuple[int, ...]) -> Any:
        return tuple(torch.tensor(v, device=device) for v in values)

    for counter, key, expected in PHILOX_ANSWERS:
        got = tuple(int(word) for word in philox4x32(words(counter), words(key)))
        if got != expected:
            return Check("philox known answers", "torch", "FAILED", note=f"counter {counter}: got {got}")
    return Check("philox known answers", "torch", "ok", 0.0)


def engine_check(device: torch.device) -> Check:
    """The whole engine in float32 on an untrained model, against the reference model on the CPU."""
    checkpoint = selftest_checkpoint()
    config, read = checkpoint.config, checkpoint.open()
    model = VARSR(config).eval()
    model.load_state_dict({name: read(name) for name in checkpoint.shapes})
    positions, seeds = map_positions(config.latent_side, torch.device("cpu")), torch.tensor([7])
    side = config.image_side
    rows = torch.arange(side) / side
    lr = torch.stack([torch.sin(9 * rows)[:, None] * torch.cos(k * rows) for k in (3, 5, 8)])[None]
    steps = range(config.refiner_steps + 1)
    noise = philox_normal_reference(seeds, positions, config.latent_channels, steps, REFINER_STREAM)
    image, expected = model.generate(lr, torch.tensor([0]), config.guidance_scale, noise)
    engine = Engine(checkpoint, EngineConfig(device=str(device), dtype="fp32"))
    result = engine.generate(lr, seed=7, trace=True)
    assert result.trace is not None
    pairs = zip(result.trace.tokens, expected.tokens, strict=True)
    wrong = [config.patch_nums[k] for k, (a, b) in enumerate(pairs) if not torch.equal(a.cpu(), b)]
    error = ((result.images.cpu() - image).norm() / image.norm()).item()
    note = f"tokens differ at scale(s) {wrong}" if wrong else f"all tokens equal, image relative error {error:.1e}"
    status: Status = "ok" if not wrong and error <= ENGINE_TOLERANCE else "FAILED"
    return Check(f"whole engine, {side}x{side}, fp32", "auto", status, error / ENGINE_TOLERANCE, note)


def all_checks(device: torch.device, dtype: torch.dtype) -> Iterator[Check]:
    with torch.inference_mode():
        yield from op_checks(device, dtype)
        yield philox_check(device)
    for name in missing_cases():
        yield Check(name, "", "FAILED", note="no case of it in selftest_cases.py")
    yield engine_check(device)


def run_selftest(device_name: str, dtype_name: str, as_json: bool) -> None:
    """Run every check and print a table or JSON. Raises typer.Exit(1) if one failed."""
    if dtype_name not in DTYPE_NAMES:
        raise InvalidParamsError(f"dtype must be one of {', '.join(DTYPE_NAMES)}, got {dtype_name!r}")
    device = resolve_device(device_name)
    dtype = resolve_dtype(dtype_name, device)
    start = time.perf_counter()
    checks = list(all_checks(device, dtype))
    failed = sum(check.status == "FAILED" for check in checks)
    about = {"device": str(device), "dtype": str(dtype).removeprefix("torch."), "torch": torch.__version__}
    seconds = round(time.perf_counter() - start, 2)
    if as_json:
        entries = [{**asdict(check), "error": finite(check.error)} for check in checks]
        print_json({**about, "passed": not failed, "failed": failed, "seconds": seconds, "checks": entries})
    else:
        print_table(checks, ", ".join(about.values()))
        typer.echo(f"{failed} of {len(checks)} checks failed" if failed else f"all passed in {seconds} s")
    if failed:
        raise typer.Exit(EXIT_FAILED)


def finite(error: float | None) -> float | None:
    """JSON has no infinity."""
    return error if error is None or math.isfinite(error) else None


def print_table(checks: list[Check], title: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "backend", "result", "error / allowed", "note", title=title, title_justify="left")
    for check in checks:
        error = "" if check.error is None else f"{check.error:.3f}"
        status = Text(check.status, style={"ok": "green", "FAILED": "bold red", "not run": "dim"}[check.status])
        table.add_row(check.name, check.backend, status, error, Text(check.note))
    stdout_console().print(table)
