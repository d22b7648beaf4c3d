"""Every kernel against its reference in float64, at the shapes of real images, by the rules of the tests.

An error of 1 is the limit: twice what plain torch in the same dtype gets wrong plus one rounding, a few roundings in
the mean square, and 1.1 times a single rounding's mean square for kernels that round once.
"""

from __future__ import annotations

import contextlib
import math
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_suite.calls import Arguments, Call, by_name, dtypes_in, every_call, in_dtype
from benchmarks.gpu_suite.contestants import LIBRARY_BACKENDS
from benchmarks.gpu_suite.settings import Settings, torch_dtype
from benchmarks.gpu_suite.values import real_arguments
from benchmarks.gpu_suite.work import Clock, Item, NotRun, Result
from tests.interpreter import exact_e4m3
from tests.kernels.harness import poisoned_memory, to_float64
from tests.numerics import rms
from varsr_engine.commands.selftest import error_fraction, tensors_in
from varsr_engine.dispatch import OPS, Backend, use_backend
from varsr_engine.kernels.guided_sample.reference import draw
from varsr_engine.kernels.quantized import QuantizedRows, dequantize

# Ops that round once, and the backends of them that do not (a sweep after cuDNN's convolution): as in their tests.
ROUNDS_ONCE: dict[str, tuple[str, ...]] = {
    "adaln": (),
    "conv3x3": ("triton",),
    "groupnorm_silu": (),
    "mlp": (),
    "upsample_conv": ("triton",),
}
WINOGRAD = ("conv3x3", "upsample_conv")  # on a CPU, whose rounding random values here and there take past the bound
ONCE_SLACK = 1.1
RECORDED = torch.float16  # the compute dtype: not float32, which is also that of what every engine keeps in it
# Arguments of ops whose float64 references run image by image: scores and maps of a whole batch take tens of gigabytes.
BY_IMAGE = {
    "scale_attention": ("q", "k", "v", "out"),
    "block_causal_attention": ("q", "k", "v"),
    "conv3x3": ("x", "residual", "out"),
    "upsample_conv": ("x",),
    "groupnorm_silu": ("x", "out"),
}
CHANGED = {"qkv_norm_rope_cache": ("k_cache", "v_cache"), "scale_handoff": ("f_hat",)}  # written beside the result
SAME_TOKENS = 0.99  # of sampled tokens, against torch on the kernel's own logits: logarithms differ in their last bit


def items(settings: Settings, clock: Clock) -> list[Item]:
    found = []
    for batch in settings.check_batches:
        calls = every_call(settings.config, batch, RECORDED, fp8=not settings.dry_run)
        if batch != settings.check_batches[0]:  # training's do not depend on the batch
            calls = [call for call in calls if call.stage != "training"]
        for dtype in settings.check_dtypes:
            wanted = calls if dtype == settings.check_dtypes[0] else [call for call in calls if not call.is_fp8]
            for call in in_dtype(wanted, RECORDED, torch_dtype(dtype)):
                found += backends(call, dtype, settings)
    return found


def backends(call: Call, dtype: str, settings: Settings) -> list[Item]:
    """An item for each backend but the reference, which is what they are compared with."""
    names = [name for name in OPS[call.op].backends if name != "torch"]
    if settings.device == "cuda" or call.op in WINOGRAD:
        names = [name for name in names if name != "cpu"]
    return [Item(f"{call.name} {dtype} {name}", partial(check, call, name, settings)) for name in names]


def check(call: Call, backend: Backend, settings: Settings) -> Result:
    device = settings.torch_device
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), use_backend(backend):
        if call.backward:
            return check_gradients(call, backend, device)
        with torch.inference_mode():
            result = check_results(call, backend, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # other processes check beside this one
    return result


def check_results(call: Call, backend: Backend, device: torch.device) -> Result:
    """Results, and arguments that the op writes, of the backend, of plain torch in the same dtype, and exact ones."""
    op = OPS[call.op]
    reason = op.reason_unsupported(backend, *real_arguments(call, device))
    if reason is not None:
        raise NotRun(reason)
    exact = written(call, to_float64(real_arguments(call, device)), "torch")
    eager = written(call, real_arguments(call, device), "torch")
    args = real_arguments(call, device)
    try:
        with poisoned_memory(), exact_e4m3() if device.type == "cpu" else contextlib.nullcontext():
            mine = written(call, args, backend)
    except RuntimeError as error:
        if backend not in LIBRARY_BACKENDS:
            raise
        raise NotRun(f"the library refuses: {error}"[:300]) from error
    about = compare(call, backend, mine, eager, exact)
    if call.op == "guided_sample":
        about |= tokens_follow(mine, by_name(call.op, args)["sampling"])
    bad = not about["error"] <= 1 or about.get("tokens_equal", 1.0) < SAME_TOKENS
    return {**about, "status": "FAILED" if bad else "ok", "error": finite(about["error"]), **identity(call)}


def written(call: Call, args: Arguments, backend: Backend) -> list[torch.Tensor]:
    """Run the op: its results, FP8 ones as the numbers that they stand for, then the arguments that it wrote."""
    if backend == "torch" and call.op in BY_IMAGE and args[0].dtype == torch.float64:
        return image_by_image(call, args)
    return written_by(call, args, OPS[call.op](*args, backend=backend))


def written_by(call: Call, args: Arguments, result: Any) -> list[torch.Tensor]:
    """What a run of the op on these arguments left: in its result, and in the arguments."""
    found = [dequantize(result)] if isinstance(result, QuantizedRows) else tensors_in(result)
    named = by_name(call.op, args)
    return found + [named[name] for name in CHANGED.get(call.op, ())]


def image_by_image(call: Call, args: Arguments) -> list[torch.Tensor]:
    """The reference's result, of one image after another."""
    parts = []
    for i in range(args[0].shape[0]):
        of_image = by_name(call.op, args)
        for name in BY_IMAGE[call.op]:
            if of_image[name] is not None:
                of_image[name] = of_image[name][i : i + 1]
        parts.append(OPS[call.op](*of_image.values(), backend="torch").clone())
    return [torch.cat(parts)]


def identity(call: Call) -> dict[str, Any]:
    return {"op": call.op, "stage": call.stage, "batch": call.batch}


def finite(error: float) -> float | str:
    """JSON has no infinity."""
    return round(error, 4) if math.isfinite(error) else "not finite"


def coarsest_eps(call: Call, results: list[torch.Tensor]) -> float:
    """Of arguments and results. FP8 operands are what they are, with their scales: only results are rounded to FP8."""
    dtypes = {d for d in dtypes_in((*call.args, *results)) if d.is_floating_point and d.itemsize > 1}
    if isinstance(call.named.get("out"), QuantizedRows):
        dtypes.add(torch.float8_e4m3fn)
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def compare(
    call: Call, backend: Backend, mine: list[torch.Tensor], eager: list[torch.Tensor], exact: list[torch.Tensor]
) -> dict[str, Any]:
    """The largest error of the floating-point results, as a fraction of what is allowed, and of one rounding."""
    worst, roundings = 0.0, 0.0
    eps = coarsest_eps(call, mine)
    for i, (actual, plain, truth) in enumerate(zip(mine, eager, exact, strict=True)):
        if not actual.is_floating_point() or actual.numel() == 0:
            continue
        truth = truth.double()
        worst = max(worst, error_fraction(actual, plain, truth, eps))
        once = backend not in ROUNDS_ONCE.get(call.op, (backend,)) and not call.is_fp8
        if once and i == 0 and actual.element_size() == 2 and actual.numel() >= 256:
            rounding = rms(truth.to(actual.dtype).double() - truth)
            roundings = max(roundings, rms(actual.double() - truth) / rounding)
            worst = max(worst, roundings / ONCE_SLACK)
    return {"error": worst, **({"of_one_rounding": round(roundings, 4)} if roundings else {})}


def tokens_follow(mine: list[torch.Tensor], sampling: Any) -> dict[str, Any]:
    """Share of tokens that torch draws too, from the kernel's own logits: of greedy ones all must agree."""
    tokens, logits = mine[:2]
    expected, _ = draw(logits, sampling)
    equal = (tokens == expected).double().mean().item()
    if sampling is None and equal < 1.0:
        raise ValueError(f"{equal:.2%} of the tokens are the argmax of the logits that came with them")
    return {"tokens_equal": equal}


def check_gradients(call: Call, backend: Backend, device: torch.device) -> Result:
    """Result and gradients of block_causal_attention for one sequence, against float64."""
    op = OPS[call.op]
    args = tuple(t[:1] if isinstance(t, torch.Tensor) else t for t in real_arguments(call, device))
    reason = op.reason_unsupported(backend, *args)
    if reason is not None:
        raise NotRun(reason)
    generator = torch.Generator(device).manual_seed(1)
    B, H, S, D = args[0].shape
    gradient = torch.randn(B, S, H * D, generator=generator, device=device).to(args[0].dtype)

    def passes(args: Arguments, backend: Backend) -> list[torch.Tensor]:
        q, k, v = (t.detach().requires_grad_() for t in args[:3])
        out = op(q, k, v, args[3], backend=backend)
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), gradient.to(out.dtype))]

    with poisoned_memory():
        mine = passes(args, backend)
    about = compare(call, backend, mine, passes(args, "torch"), passes(to_float64(args), "torch"))
    bad = not about["error"] <= 1
    return {**about, "status": "FAILED" if bad else "ok", "error": finite(about["error"]), **identity(call)}
