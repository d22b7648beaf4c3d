"""The RealESRGANer adapter: layouts, dtypes, sizes and modes are those of the class it stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from varsr_engine.engine.engine import Engine
from varsr_engine.errors import InvalidImageError, InvalidParamsError
from varsr_engine.integrations.realesrgan import RealESRGANer


@pytest.fixture(scope="module")
def upsampler(micro: Engine) -> RealESRGANer:
    return RealESRGANer(4, engine=micro)


def pixels(*shape: int, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("shape", "mode"), [((6, 8), "L"), ((6, 8, 3), "RGB"), ((6, 8, 4), "RGBA")])
def test_layout_and_dtype_are_kept(upsampler: RealESRGANer, shape: tuple[int, ...], mode: str, dtype: Any) -> None:
    output, got = upsampler.enhance(pixels(*shape, dtype=dtype))
    assert got == mode
    assert output.shape == (24, 32, *shape[2:]) and output.dtype == dtype


def test_channels_are_bgr(upsampler: RealESRGANer, micro: Engine) -> None:
    image = pixels(8, 8, 3)
    output, _ = upsampler.enhance(image)
    expected = micro.upscale(np.ascontiguousarray(image[..., ::-1]), scale=4).array
    assert np.array_equal(output[..., ::-1], expected)


def test_sixteen_bits_are_more_than_eight(upsampler: RealESRGANer) -> None:
    output, _ = upsampler.enhance(pixels(8, 8, 3, dtype=np.uint16))
    assert len(np.unique(output % 257)) > 1  # 8 bits widened would all be multiples of 257


@pytest.mark.parametrize(("outscale", "size"), [(None, (28, 20)), (2, (14, 10)), (1.5, (10, 7)), (3.3, (23, 16))])
def test_sides_are_rounded_down(upsampler: RealESRGANer, outscale: float | None, size: tuple[int, int]) -> None:
    output, _ = upsampler.enhance(pixels(5, 7, 3), outscale)
    assert (output.shape[1], output.shape[0]) == size


def test_alpha(upsampler: RealESRGANer) -> None:
    """Resized, a flat alpha stays flat; by the network it is that of a gray image."""
    image = pixels(8, 8, 4)
    image[..., 3] = 200
    resized, _ = upsampler.enhance(image)
    generated, _ = upsampler.enhance(image, alpha_upsampler="realesrgan")
    assert np.all(resized[..., 3] == 200)
    assert np.array_equal(resized[..., :3], generated[..., :3])
    alone, mode = upsampler.enhance(np.ascontiguousarray(image[..., 3]))
    assert mode == "L" and np.array_equal(generated[..., 3], alone)


def test_parameters_reach_the_engine(micro: Engine) -> None:
    image = pixels(8, 8, 3)
    first, second = (RealESRGANer(4, engine=micro, seed=seed).enhance(image)[0] for seed in (1, 2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("name", ["model", "dni_weight"])
def test_networks_of_the_original_are_refused(micro: Engine, name: str) -> None:
    with pytest.raises(InvalidParamsError, match=f"{name} must be None"):
        RealESRGANer(4, engine=micro, **{name: object()})  # type: ignore[arg-type]


@pytest.mark.parametrize("image", [pixels(8, 8, 3).astype(np.float32), [[0]], pixels(2, 2, 2, 3)])
def test_bad_arrays(upsampler: RealESRGANer, image: Any) -> None:
    with pytest.raises(InvalidImageError, match="img must be a uint8 or uint16 array"):
        upsampler.enhance(image)


def test_bad_scale(upsampler: RealESRGANer) -> None:
    with pytest.raises(InvalidParamsError, match="scale must be"):
        upsampler.enhance(pixels(8, 8, 3), outscale=-1)


def test_loads_a_model_itself() -> None:
    upsampler = RealESRGANer(2, device="cpu", half=False, tile=400, tile_pad=10, pre_pad=0)
    assert (upsampler.engine.model_id, upsampler.engine.device.type) == ("varsr-mini", "cpu")
