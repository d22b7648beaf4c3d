"""Who competes at a call of an op: every backend of the engine, torch's composition of it, and what libraries offer."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_suite.calls import Arguments, Call, by_name
from varsr_engine.dispatch import OPS
from varsr_engine.kernels.panels import as_matrix
from varsr_engine.kernels.quantized import QuantizedRows, QuantizedWeight

Contestant = Callable[[Arguments], Any]
Named = dict[str, Any]

REFERENCE = "torch eager"  # the op's reference: a composition of torch's own kernels
SDPA = {
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
}
LIBRARY_BACKENDS = ("cudnn", "flash")  # the engine's, but a library's code: what that refuses is no fault of a kernel
FLASH_MODULES = ("flash_attn_interface", "flash_attn")


def backends(call: Call, args: Arguments) -> dict[str, Contestant]:
    """The engine's implementations that can run the call, and the reference."""
    op = OPS[call.op]

    def on(backend: str) -> Contestant:
        return lambda args: op(*args, backend=backend)

    able = [b for b in op.backends if op.reason_unsupported(b, *args) is None]
    return {REFERENCE if b == "torch" else b: on(b) for b in able}


def automatic_choice(call: Call, args: Arguments) -> str:
    """The contestant that the engine takes by itself."""
    op = OPS[call.op]
    for backend in op.automatic:
        if op.reason_unsupported(backend, *args) is None:
            return REFERENCE if backend == "torch" else str(backend)
    return REFERENCE


def libraries(call: Call) -> dict[str, Contestant]:
    """Kernels of libraries for the call, or for the heaviest part of it: the name says which."""
    found = LIBRARIES[call.op]() if call.op in LIBRARIES else {}

    def on_names(run: Callable[[Named], Any]) -> Contestant:
        return lambda args: run(by_name(call.op, args))

    return {name: on_names(run) for name, run in found.items() if not call.is_fp8 or "fp8" in name}


def product_parts(a: Named) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rows, matrix, bias) of an op that multiplies."""
    x = a["cond"].to(a["weight"].dtype) if "cond" in a else a["x"]
    return x.flatten(0, -2), as_matrix(a["weight"]), a["bias"]


def addmm(a: Named) -> Any:
    """The matrix product alone, with its bias: what the op cannot be faster than if it takes the library's."""
    x, weight, bias = product_parts(a)
    return torch.addmm(bias, x, weight.t())


def addmm_gelu(a: Named) -> Any:
    x, weight, bias = product_parts(a)
    return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)


class Fp8Product:
    """torch._scaled_mm with a scale a row and a column; both factors are in fp8 beforehand, once for each input set."""

    def __init__(self) -> None:
        self._ready: dict[int, tuple[torch.Tensor, ...]] = {}

    def __call__(self, a: Named) -> Any:
        key = id(a["weight"])
        if key not in self._ready:
            self._ready[key] = self._prepare(a)
        x, weight, of_rows, of_columns = self._ready[key]
        return torch._scaled_mm(
            x, weight.t(), scale_a=of_rows, scale_b=of_columns, out_dtype=torch.bfloat16, use_fast_accum=True
        )

    @staticmethod
    def _prepare(a: Named) -> tuple[torch.Tensor, ...]:
        if isinstance(a["x"], QuantizedRows) and isinstance(a["weight"], QuantizedWeight):
            x, weight = a["x"].values.flatten(0, -2), a["weight"].values
        else:
            x, weight = (t.to(torch.float8_e4m3fn) for t in product_parts(a)[:2])
        rows, columns = (x.shape[0], 1), (1, weight.shape[0])
        return x, weight, *(torch.ones(size, device=x.device) for size in (rows, columns))


def pinned(backend: SDPBackend) -> Callable[[Named], Any]:
    """torch's fused attention by one library, without the copy into the layout that follows it in the engine."""

    def attend(a: Named) -> Any:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(a["q"], a["k"], a["v"], scale=1.0)

    return attend


def flash(module: str) -> Callable[[Named], Any]:
    def attend(a: Named) -> Any:
        q, k, v = (a[name].transpose(1, 2) for name in ("q", "k", "v"))
        return importlib.import_module(module).flash_attn_func(q, k, v, softmax_scale=1.0)

    return attend


def searched_convolution(a: Named) -> Any:
    """cuDNN with its own search for the fastest algorithm; without the addition or the activation that follows."""
    weights = a["weights"]
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):  # without its first argument flags turns cuDNN off
        return F.conv2d(a["x"], weights.weight, weights.bias, a.get("stride", 1), padding=1)


def enlarged_convolution(a: Named) -> Any:
    """As published: the convolution of the enlarged map."""
    weights = a["weights"]
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        enlarged = F.interpolate(a["x"], scale_factor=2, mode="nearest")
        return F.conv2d(enlarged, weights.weight, weights.bias, padding=1)


def products() -> dict[str, Callable[[Named], Any]]:
    return {"cuBLASLt, product alone": addmm, "cuBLASLt fp8, product alone": Fp8Product()}


def attention() -> dict[str, Callable[[Named], Any]]:
    found: dict[str, Callable[[Named], Any]] = {name: pinned(backend) for name, backend in SDPA.items()}
    return found | {name: flash(name) for name in FLASH_MODULES if importlib.util.find_spec(name) is not None}


LIBRARIES: dict[str, Callable[[], dict[str, Callable[[Named], Any]]]] = {
    "linear": products,
    "qkv_norm_rope_cache": products,
    "gated_residual": products,
    "mlp": lambda: {"cuBLASLt with GELU": addmm_gelu, **products()},
    "guided_sample": lambda: {"cuBLASLt, product alone": addmm},
    "scale_attention": attention,
    "conv3x3": lambda: {"cuDNN, searched": searched_convolution},
    "upsample_conv": lambda: {"enlarged, cuDNN searched": enlarged_convolution},
}
