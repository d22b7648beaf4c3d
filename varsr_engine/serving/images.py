"""What a server looks at before it decodes an image, and the types in which it answers."""

from __future__ import annotations

import io
import warnings
from typing import Literal, NamedTuple

from PIL import Image

from varsr_engine.engine.engine import Engine
from varsr_engine.engine.params import UpscaleParams
from varsr_engine.engine.tiling import tile_grid
from varsr_engine.errors import ImageTooLargeError, InvalidImageError, UnsupportedFormatError
from varsr_engine.imaging import ReadLimits
from varsr_engine.imaging.formats import sniff
from varsr_engine.serving.errors import NotAcceptableError
from varsr_engine.serving.settings import ServerSettings

Format = Literal["png", "jpeg", "webp"]
FORMATS: tuple[Format, ...] = ("png", "jpeg", "webp")
MOST_PIXELS_A_SIDE = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383}
EVENT_STREAM = "text/event-stream"
MAX_JPEG_SCANS = 64  # each is a pass over the picture; real files have about ten


class Bounds(NamedTuple):
    """What an output may be: that of an answer, or of a job."""

    pixels: int
    tiles: int
    advice: str


class Planned(NamedTuple):
    """What an image's header says of the work that it would be."""

    size: tuple[int, int]  # (width, height) of the input
    output: tuple[int, int]
    tiles: int

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1] + self.output[0] * self.output[1]


def plan(
    data: bytes, engine: Engine, params: UpscaleParams, format: Format, settings: ServerSettings, bounds: Bounds
) -> Planned:
    """Check an image by its header, and its output's size. Decodes nothing.

    Raises UnsupportedFormatError for anything but PNG, JPEG and WebP, InvalidImageError, ImageTooLargeError.
    """
    width, height = _header_size(data)
    ReadLimits(settings.max_input_pixels, settings.max_body_bytes, settings.max_side).check_size(width, height, "image")
    if max(width, height) > settings.max_aspect * min(width, height):
        raise ImageTooLargeError(
            f"image: {width}x{height}; one side may be at most {settings.max_aspect:g} times the other",
            width=width,
            height=height,
        )
    output = params.output_size(width, height)
    details = {"width": output[0], "height": output[1]}
    most = min(MOST_PIXELS_A_SIDE[format], engine.config.max_side, settings.max_side)
    if max(output) > most:
        raise ImageTooLargeError(
            f"the output would be {output[0]}x{output[1]}; {format} may have {most} pixels a side here", **details
        )
    if output[0] * output[1] > bounds.pixels:
        raise ImageTooLargeError(
            f"the output would be {output[0]}x{output[1]}; at most {bounds.pixels} pixels are allowed{bounds.advice}",
            **details,
        )
    grid = None if params.tile == "off" else tile_grid(engine.model_config, output, params.tile_overlap)
    tiles = 1 if grid is None else len(grid)
    if tiles > bounds.tiles:
        raise ImageTooLargeError(
            f"the output would take {tiles} tiles; at most {bounds.tiles} are allowed: lower scale or tile_overlap"
            f"{bounds.advice}",
            tiles=tiles,
        )
    return Planned((width, height), output, tiles)


def answer_bounds(settings: ServerSettings) -> Bounds:
    return Bounds(settings.max_output_pixels, settings.max_tiles, "; POST /v1/jobs takes larger ones")


def job_bounds(settings: ServerSettings) -> Bounds:
    return Bounds(settings.max_job_pixels, settings.max_job_tiles, "")


def _header_size(data: bytes) -> tuple[int, int]:
    if not data:
        raise InvalidImageError("image: the body is empty")
    kind = sniff(data)
    if kind is None or kind.lower() not in FORMATS:
        raise UnsupportedFormatError("image: not a PNG, JPEG or WebP image")
    if kind == "JPEG" and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise InvalidImageError(f"image: a JPEG with more than {MAX_JPEG_SCANS} scans")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limits here are lower
            with Image.open(io.BytesIO(data), formats=(kind,)) as image:
                return image.size
    except Image.DecompressionBombError:
        raise ImageTooLargeError("image: more pixels than any limit allows") from None
    except MemoryError:
        raise ImageTooLargeError("image: its header asks for more memory than there is") from None
    except Exception as error:  # Pillow raises nearly every type on corrupt data.
        raise InvalidImageError(f"image: starts like a {kind} image, but its header is corrupt") from error


def accepted(header: str | None, offered: tuple[str, ...]) -> str:
    """The best of the media types `offered`, in order of preference, by an Accept header.

    Raises NotAcceptableError where it allows none.
    """
    if header is None or not header.strip():
        return offered[0]
    ranges = []
    for part in header.split(",")[:32]:
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        ranges.append((media, quality))

    def quality_of(media: str) -> float:
        kind = media.partition("/")[0]
        for wanted in (media, f"{kind}/*", "*/*"):  # the most specific range decides
            matching = [quality for name, quality in ranges if name == wanted]
            if matching:
                return matching[0]
        return 0.0

    best = max(offered, key=quality_of)
    if not quality_of(best) > 0:
        raise NotAcceptableError(f"the Accept header allows none of {', '.join(offered)}", param="accept")
    return best
