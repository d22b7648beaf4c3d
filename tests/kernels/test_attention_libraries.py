"""scale_attention by cuDNN and flash-attn: what we hand over and take back. Stand-ins compute where no GPU does."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from tests.kernels.harness import normal
from varsr_engine.dispatch import OPS
from varsr_engine.kernels import scale_attention
from varsr_engine.kernels.scale_attention import libraries


def views() -> tuple[Tensor, Tensor, Tensor]:
    """Queries, and keys and values as the engine gives them: the valid part of a longer cache."""
    q, k, v = normal(2, 3, 5, 16), normal(2, 3, 12, 16), normal(2, 3, 12, 16)
    return q, k[:, :, :7], v[:, :, :7]


def test_cudnn_gets_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own CPU kernel stands in for cuDNN, which is what `sdpa_kernel` would otherwise pin."""
    monkeypatch.setattr(libraries, "CUDNN", SDPBackend.MATH)
    q, k, v = views()
    expected = scale_attention(q, k, v, backend="torch")
    assert torch.allclose(libraries.cudnn_attention(q, k, v), expected, atol=1e-6)
    out = torch.full_like(expected, float("nan"))
    assert libraries.cudnn_attention(q, k, v, out) is out
    assert torch.allclose(out, expected, atol=1e-6)


def test_cudnn_is_not_replaced_in_silence() -> None:
    q, k, v = views()
    with pytest.raises(RuntimeError):
        libraries.cudnn_attention(q, k, v)  # on a CPU nothing but cuDNN is allowed, and there is none


@pytest.fixture(params=[*libraries.FLASH_MODULES, "with statistics"])
def flash(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A flash-attn of one of its versions; the list holds the keywords of each call."""
    name = "flash_attn" if request.param == "with statistics" else request.param
    calls: list[dict[str, Any]] = []

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, **keywords: Any) -> Tensor | tuple[Tensor, Tensor]:
        calls.append(keywords)
        assert all(t.stride(-1) == 1 for t in (q, k, v))
        weights = (torch.einsum("blhd,bshd->bhls", q, k) * keywords["softmax_scale"]).softmax(-1)
        attended = torch.einsum("bhls,bshd->blhd", weights, v)
        return (attended, weights) if request.param == "with statistics" else attended

    for part in libraries.FLASH_MODULES:
        monkeypatch.setitem(sys.modules, part, None)  # nothing else is installed
    parent = name.split(".")[0]
    for part in dict.fromkeys((parent, name)):
        module = types.ModuleType(part)
        module.__spec__ = types.SimpleNamespace(name=part)  # type: ignore[assignment]
        module.__path__ = []
        monkeypatch.setitem(sys.modules, part, module)
    sys.modules[name].flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    libraries._flash_function.cache_clear()
    yield calls
    libraries._flash_function.cache_clear()


def test_flash_gets_the_call(flash: list[dict[str, Any]]) -> None:
    q, k, v = views()
    expected = scale_attention(q, k, v, backend="torch")
    assert torch.allclose(libraries.flash_attention(q, k, v), expected, atol=1e-6)
    assert flash == [{"softmax_scale": 1.0, "causal": False}]
    out = torch.full_like(expected, float("nan"))
    assert libraries.flash_attention(q, k, v, out) is out
    assert torch.allclose(out, expected, atol=1e-6)


class OnGPU:
    """What `why_not` looks at, of a tensor on a GPU."""

    def __init__(self, dtype: torch.dtype = torch.float16, shape: tuple[int, ...] = (2, 3, 5, 64)) -> None:
        self.dtype, self.shape, self.is_cuda, self.device = dtype, torch.Size(shape), True, torch.device("meta")

    def numel(self) -> int:
        return self.shape.numel()


@pytest.mark.parametrize(
    ("q", "reason"),
    [
        (torch.zeros(1, 1, 1, 64), "the tensors are on cpu, not on a CUDA device"),
        (OnGPU(torch.float32), "the tensors are torch.float32; the library takes float16 and bfloat16"),
        (OnGPU(shape=(1, 1, 4, 256)), "a head dimension of 256 is not a multiple of 8 up to 128"),
        (OnGPU(shape=(1, 1, 4, 20)), "a head dimension of 20 is not a multiple of 8 up to 128"),
        (OnGPU(shape=(0, 1, 4, 64)), "there is no query"),
    ],
)
def test_reasons(q: Any, reason: str) -> None:
    assert libraries.why_not_cudnn(q, q, q) == reason
    assert libraries.why_not_flash(q, q, q) == reason


def test_flash_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "_flash_function", lambda: None)
    q: Any = OnGPU()
    assert libraries.why_not_flash(q, q, q) == "flash-attn is not installed: pip install 'varsr-engine[flash]'"


def test_neither_is_chosen_unasked() -> None:
    assert not {"cudnn", "flash"} & set(OPS["scale_attention"].automatic)
