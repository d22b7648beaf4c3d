"""Requests that mean harm, as raw bytes: what is sent, and which answers are right."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tests.engine.test_tiling import picture
from tests.serving.images import chunk, encoded, png, png_claiming

MAX_BODY = 256 * 1024  # of the server that the cases are for
CLOSED = 0  # "status" of a connection that is closed without an answer
PAUSE = None  # in a list of pieces: send nothing for a while


@dataclass(frozen=True)
class Case:
    name: str
    pieces: list[bytes | None]  # what is sent
    expected: frozenset[int]


def request(
    method: str,
    target: str,
    body: bytes = b"",
    content_type: str | None = None,
    headers: str = "",
    host: str = "localhost",
) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}", "Connection: close"]
    if content_type is not None:
        lines.append(f"Content-Type: {content_type}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n" + headers.encode("latin-1") + b"\r\n" + body


def multipart(parts: list[tuple[str, bytes]], boundary: str = "b0undary") -> bytes:
    """parts: (Content-Disposition and more headers, content)."""
    joined = b"".join(
        f"--{boundary}\r\n{head}\r\n\r\n".encode("latin-1") + content + b"\r\n" for head, content in parts
    )
    return joined + f"--{boundary}--\r\n".encode()


FORM = "multipart/form-data; boundary=b0undary"
IMAGE_PART = 'Content-Disposition: form-data; name="image"; filename="x.png"\r\nContent-Type: image/png'


def field(name: str, value: str) -> tuple[str, bytes]:
    return f'Content-Disposition: form-data; name="{name}"', value.encode()


def case(name: str, *pieces: bytes | None, expect: Any) -> Case:
    return Case(name, list(pieces), frozenset([expect] if isinstance(expect, int) else expect))


def bad_images() -> Iterator[tuple[str, bytes, int]]:
    """(name, bytes, status)"""
    good = {kind: encoded(picture(24, 24), kind) for kind in ("PNG", "JPEG", "WEBP")}
    dice = random.Random(5)
    yield "empty", b"", 400
    for size in (1, 7, 100, 5000):
        yield f"noise of {size}", bytes([1]) + dice.randbytes(size - 1), 415
    for kind, data in good.items():
        for share in (0.02, 0.1, 0.3, 0.5, 0.8):
            cut = data[: max(12, int(len(data) * share))]
            yield f"{kind} cut to {share}", cut, 400
    yield "PNG signature alone", b"\x89PNG\r\n\x1a\n", 400
    yield "half a signature", b"\x89PNG", 415
    for width, height in (
        (8000, 8000),
        (30_000, 30_000),
        (100_000, 100_000),
        (2**31 - 1, 2**31 - 1),
        (2**32 - 1, 5),
        (65_535, 1),
        (1, 16_385),
        (8000, 100),
        (5000, 5000),
    ):
        yield f"PNG that claims {width}x{height}", png_claiming(width, height), 413
    for width, height in ((0, 0), (0, 5)):
        yield f"PNG that claims {width}x{height}", png_claiming(width, height), 400
    yield "PNG of 15 million pixels without them", png_claiming(4000, 3800), 413
    yield "PNG of 100x100 without its pixels", png_claiming(100, 100), 400
    yield "PNG of depth 3", png_claiming(10, 10, depth=3), 400
    yield "PNG of colour 9", png_claiming(10, 10, color=9), 400
    bomb = zlib.compress(b"\0" * 80_000_000, 9)
    yield "zTXt bomb", png_claiming(10, 10, extra=chunk(b"zTXt", b"Comment\0\0" + bomb)), 400
    yield "iTXt bomb", png_claiming(10, 10, extra=chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb)), 400
    yield "iCCP bomb", png_claiming(10, 10, extra=chunk(b"iCCP", b"icc\0\0" + bomb)), 400
    data = bytearray(good["PNG"])
    data[29] ^= 0xFF
    yield "PNG with a wrong checksum", bytes(data), 400
    yield "PNG signature, JPEG inside", b"\x89PNG\r\n\x1a\n" + good["JPEG"], 400
    yield "JPEG signature, HTML inside", b"\xff\xd8\xff<html><script>alert(1)</script></html>", 400
    yield "JPEG signature, PNG inside", b"\xff\xd8\xff" + good["PNG"], 400
    yield "WebP signature, zip inside", b"RIFF\x20\0\0\0WEBPPK\x03\x04" + b"\0" * 40, 400
    size = struct.pack(">HH", 65_000, 65_000)
    yield "JPEG that claims 65000x65000", _jpeg_with_size(good["JPEG"], size), 413
    yield "JPEG of 200 scans", good["JPEG"][:-2] + b"\xff\xda\x00\x02" * 200 + b"\xff\xd9", 400
    canvas = struct.pack("<I", 16_383)[:3] * 2
    yield "WebP that claims 16384x16384", b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + canvas, 413
    frames = [Image.fromarray(picture(8, 8, seed=n)) for n in range(3)]
    for kind in ("PNG", "WEBP"):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        yield f"animated {kind}", buffer.getvalue(), 400
    for kind in ("GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "PCX"):
        yield f"a {kind}", encoded(np.ascontiguousarray(picture(16, 16)), kind), 415
    for name, start in {
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "HTML": b"<!doctype html><img src=http://127.0.0.1/>",
        "PDF": b"%PDF-1.7\n1 0 obj",
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1",
        "ELF": b"\x7fELF\x02\x01\x01" + b"\0" * 60,
        "zip": b"PK\x03\x04" + b"\0" * 60,
        "gzip": b"\x1f\x8b\x08" + b"\0" * 60,
        "AVIF": b"\0\0\0\x20ftypavif" + b"\0" * 60,
        "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 60,
        "PSD": b"8BPS\0\1" + b"\0" * 60,
        "FITS": b"SIMPLE  =                    T" + b" " * 60,
        "GIF with PHP": b"GIF89a<?php system($_GET['c']); ?>",
        "pickle": b"\x80\x04cposix\nsystem\n",
        "a path": b"/etc/passwd",
        "a URL": b"http://169.254.169.254/latest/meta-data/",
        "a data URL": b"data:image/png;base64,iVBORw0KGgo=",
        "JSON": b'{"image": "https://example.com/x.png"}',
    }.items():
        yield name, start, 415


def _jpeg_with_size(data: bytes, size: bytes) -> bytes:
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + size + data[place + 4 :]


BAD_QUERIES: dict[str, int] = {
    **{f"scale={value}": 422 for value in ("0", "-1", "nan", "inf", "-inf", "1e309", "65", "abc", "", "0x10", "1,5")},
    **{f"scale={value}": 422 for value in ("1;2", "%00", "%0d%0aX-Evil:1", "4e400", "9" * 400, "%F0%9F%92%A3")},
    **{f"target_size={v}": 422 for v in ("0x0", "5", "5x", "x5", "-1x5", "5x5x5", "1e3x5", "9" * 99 + "x5", "5%20x5")},
    "target_size=99999x99999": 413,
    "target_size=8000x8000": 413,
    **{f"longest_side={v}": 422 for v in ("0", "-5", "1.5", "99999999999999999999", "abc", "%D9%A1")},
    "longest_side=60000": 413,
    **{f"seed={v}": 422 for v in ("-1", "9223372036854775808", "1e5", "0x1", "rand", "%D9%A1%D9%A2", "9" * 5000)},
    **{f"top_p={v}": 422 for v in ("0", "2", "-0.1", "nan")},
    **{f"{name}=-1": 422 for name in ("cfg", "label", "top_k", "temperature", "steps", "fidelity", "tile_overlap")},
    **{f"{name}=maybe": 422 for name in ("refiner", "color_fix", "alpha", "tile", "previews", "format", "quality")},
    "steps=1001": 422,
    "quality=101": 422,
    "format=gif": 422,
    "format=../../etc/passwd": 422,
    "preview_max_side=1000000": 422,
    "timeout_s=0": 422,
    "timeout_s=0.001": 422,
    "target_size=7x51761": 413,
    "timeout_s=1e999": 422,
    "tile_overlap=1000": 422,
    "scale=2&scale=3": 422,
    "scale=2&target_size=5x5": 422,
    "image=http://169.254.169.254/": 422,
    "url=file:///etc/passwd": 422,
    "path=/etc/passwd": 422,
    "model=../../secret": 422,
    "device=cuda": 422,
    "__class__=x": 422,
    "seed[]=1": 422,
    "&=&=": 422,
    "x=" + "y" * 10_000: 422,
}

BAD_TYPES = (
    "text/plain",
    "application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "image/gif",
    "image/svg+xml",
    "image/",
    "*/*",
    "text/html",
    "application/octet-streamx",
    "image/png2",
    ";image/png",
)


def cases() -> Iterator[Case]:
    """All of them. /v1/jobs finds out later what a header does not tell: there such an image may be taken."""
    photo = png(picture(8, 8))
    for name, data, status in bad_images():
        yield case(f"{name}, raw", request("POST", "/v1/upscale", data, "image/png"), expect=status)
        form = multipart([(IMAGE_PART, data), field("prompt", "p")])
        yield case(f"{name}, form", request("POST", "/v1/images/edits", form, FORM), expect=status)
    for name, data, status in list(bad_images())[::4]:
        job = request("POST", "/v1/jobs?scale=2", data, "image/png")
        yield case(f"{name}, job", job, expect={status, 202})
        streamed = request("POST", "/v1/upscale", data, "image/png", "Accept: text/event-stream\r\n")
        yield case(f"{name}, events", streamed, expect=status)
    for query, status in BAD_QUERIES.items():
        yield case(f"?{query[:40]}", request("POST", f"/v1/upscale?{query}", photo, "image/png"), expect=status)
    for query in list(BAD_QUERIES)[::7]:
        yield case(f"job ?{query[:40]}", request("POST", f"/v1/jobs?{query}", photo, "image/png"), expect={422, 413})
    for kind in BAD_TYPES:
        yield case(f"type {kind}", request("POST", "/v1/upscale", photo, kind), expect=415)
    yield case("no type", request("POST", "/v1/upscale", photo), expect=415)
    yield from bad_forms(photo)
    yield from bad_http(photo)
    yield from bad_targets()


def bad_forms(photo: bytes) -> Iterator[Case]:
    def edit(name: str, body: bytes, kind: str = FORM, expect: Any = 400) -> Case:
        return case(f"form: {name}", request("POST", "/v1/images/edits", body, kind), expect=expect)

    image = (IMAGE_PART, photo)
    good = multipart([image])
    yield edit("empty", b"")
    yield edit("no boundary", good, "multipart/form-data")
    yield edit("another boundary", good, "multipart/form-data; boundary=other")
    yield edit("boundary of 5000", good, "multipart/form-data; boundary=" + "x" * 5000)
    yield edit("cut", good[: len(good) // 2])
    yield edit("without its end", good[:-6])
    yield edit("noise", random.Random(1).randbytes(3000))
    yield edit("no name", multipart([("Content-Disposition: form-data", photo)]))
    yield edit("no disposition", multipart([("Content-Type: image/png", photo)]))
    yield edit("header without colon", multipart([("Content-Disposition", photo)]))
    yield edit("100 fields", multipart([image, *(field(f"f{n}", "1") for n in range(100))]))
    yield edit("20 images", multipart([image] * 20))
    yield edit("2 images", multipart([image] * 2))
    yield edit("field of 100 kB", multipart([image, field("prompt", "x" * 100_000)]))
    yield edit("prompt of 40 kB", multipart([image, field("prompt", "x" * 40_000)]))
    yield edit("field twice", multipart([image, field("seed", "1"), field("seed", "2")]))
    yield edit("image as text", multipart([field("image", "http://127.0.0.1/x.png")]))
    yield edit("mask", multipart([image, (IMAGE_PART.replace('"image"', '"mask"'), photo)]))
    yield edit("charset", good, FORM + "; charset=no-such", expect={200, 400})
    yield edit("header of 100 kB", multipart([(IMAGE_PART + "\r\nX: " + "y" * 100_000, photo)]), expect={200, 400})
    yield edit(
        "path as file name", multipart([(IMAGE_PART.replace("x.png", "../../../etc/passwd"), photo)]), expect=200
    )
    for name, value in {
        "seed": "1e400",
        "n": "1000000000000",
        "size": "1x1x1",
        "stream": "perhaps",
        "partial_images": "-1",
        "response_format": "url",
        "output_format": "../x",
        "output_compression": "NaN",
        "image_url": "file:///etc/passwd",
        "scale": "Infinity",
        "mask_url": "http://[::1]/",
        "\\u0000": "x",
    }.items():
        yield edit(f"{name}={value}", multipart([image, field(name, value)]))
    for name, body in {
        "bad JSON": b'{"image": ',
        "deep JSON": b"[" * 100_000,
        "huge number": b'{"n": ' + b"9" * 100_000 + b"}",
        "JSON with URL": b'{"image": "http://127.0.0.1/x.png", "prompt": "x"}',
    }.items():
        yield edit(name, body, "application/json", 415)


def bad_http(photo: bytes) -> Iterator[Case]:
    def raw(name: str, *pieces: bytes | None, expect: Any) -> Case:
        return case(f"http: {name}", *pieces, expect=expect)

    head = b"POST /v1/upscale HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    yield raw("noise", random.Random(2).randbytes(200) + b"\r\n\r\n", expect=400)
    yield raw("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200, expect={400, CLOSED})
    yield raw("HTTP/0.9", b"GET /\r\n\r\n", expect=400)
    yield raw("HTTP/3.0", b"GET /nowhere HTTP/3.0\r\nHost: localhost\r\n\r\n", expect={400, 404})
    yield raw("no host", b"GET /v1/models HTTP/1.1\r\n\r\n", expect=400)
    yield raw("two hosts", b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", expect=400)
    yield raw("foreign host", request("GET", "/v1/models", host="evil.example"), expect=403)
    yield raw("foreign origin", request("POST", "/v1/upscale", photo, "image/png", "Origin: http://e\r\n"), expect=403)
    yield raw("negative length", head + b"Content-Length: -5\r\n\r\n", expect=400)
    yield raw("length of letters", head + b"Content-Length: five\r\n\r\n", expect=400)
    yield raw("two lengths", head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", expect=400)
    yield raw("length too large", head + b"Content-Length: 99999999999\r\n\r\n", expect=413)
    yield raw("length of 30 digits", head + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", expect={400, 413})
    waiting = b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"
    yield raw("length too large, waiting", head + waiting, expect=413)
    yield raw(
        "body too large", head + f"Content-Length: {MAX_BODY + 1}\r\n\r\n".encode() + b"x" * (MAX_BODY + 1), expect=413
    )
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    piece = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    yield raw("endless chunks", chunked + piece * (MAX_BODY // 0x4000 + 4), expect=413)
    yield raw("chunk of letters", chunked + b"zz\r\nhello\r\n0\r\n\r\n", expect={400, 415, 408})
    yield raw("chunk of -1", chunked + b"-1\r\nhello\r\n0\r\n\r\n", expect={400, 415, 408})
    yield raw("chunk of 2^64", chunked + b"ffffffffffffffffff\r\nhello", expect={400, 408})
    yield raw("chunk that is cut", chunked + b"ff\r\nhello", expect=408)
    yield raw("unknown coding", head + b"Transfer-Encoding: gzip\r\n\r\nhello", expect={400, 415, 501})
    smuggled = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/models HTTP/1.1\r\n\r\n"
    yield raw("length and chunks", head + smuggled, expect=400)
    yield raw("slow body", head + b"Content-Length: 1000\r\n\r\n" + photo[:10], PAUSE, expect=408)
    yield raw("dripping body", head + b"Content-Length: 1000\r\n\r\n", *[b"x", PAUSE] * 8, expect=408)
    slow_form = (
        f"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM}\r\nContent-Length: 9999\r\n\r\n"
    )
    yield raw("slow form", slow_form.encode(), PAUSE, expect=408)
    yield raw("slow job", head.replace(b"upscale", b"jobs") + b"Content-Length: 1000\r\n\r\nx", PAUSE, expect=408)
    yield raw("slow head", b"POST /v1/upscale HTTP/1.1\r\n", PAUSE, expect=CLOSED)
    yield raw("dripping head", b"GET / HTTP/1.1\r\n", *[b"X: y\r\n", PAUSE] * 8, expect=CLOSED)
    yield raw("silence", PAUSE, expect=CLOSED)
    yield raw("head of 100 kB", b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000, expect={400, 431})
    yield raw("1000 headers", b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000, expect={400, 431})
    yield raw("target of 100 kB", b"GET /" + b"y" * 100_000 + b" HTTP/1.1\r\n", expect={400, 414})
    yield raw("NUL in a header", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n", expect=400)
    yield raw("space before colon", b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", expect=400)
    yield raw("CR alone", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\rY: b\r\n\r\n", expect=400)
    upgrade = "Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n"
    yield raw(
        "websocket",
        request("GET", "/v1/upscale", headers=upgrade).replace(b"Connection: close\r\n", b""),
        expect={400, 404, 405},
    )
    injected = "X-Request-Id: a%0d%0aX-Evil: 1\r\nAccept: image/png\r\n"
    yield raw("request id", request("POST", "/v1/upscale", b"", "image/png", injected), expect=400)
    many = "Accept: " + ",".join(["image/png;q=0"] * 1000) + "\r\n"
    yield raw("a long Accept", request("POST", "/v1/upscale", photo, "image/png", many), expect=406)
    yield raw("a broken Accept", request("POST", "/v1/upscale", photo, "image/png", "Accept: ;;q=,\r\n"), expect=406)
    for method in ("BREW", "TRACE", "OPTIONS", "PUT", "DELETE", "PATCH", "GET"):
        yield raw(f"{method} /v1/upscale", request(method, "/v1/upscale"), expect=405)


def bad_targets() -> Iterator[Case]:
    for target in (
        "/v1/../../../etc/passwd",
        "/static/../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/etc/passwd",
        "/static/..%2f..%2fapp.py",
        "/static/%00",
        "/static/app.py",
        "//etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/models/" + "x" * 5000,
        "/v1/upscale/",
        "/V1/UPSCALE",
        "/.git/config",
        "/docs",
        "/%ff%fe",
        "/v1/jobs/aaaaaaaaaaaaaaaaaaaaaa",
        "/v1/jobs/aaaaaaaaaaaaaaaaaaaaaa/result",
        "/v1/jobs/..%2f..%2fetc%2fpasswd",
        "http://169.254.169.254/latest/meta-data/",
    ):
        yield case(f"GET {target[:50]}", request("GET", target), expect=404)
    for job in ("x" * 100, "%00", "a.b", "..", "%F0%9F%92%A3", "a%20b"):
        yield case(f"GET /v1/jobs/{job[:20]}", request("GET", f"/v1/jobs/{job}"), expect={404, 422})
        yield case(f"DELETE /v1/jobs/{job[:20]}", request("DELETE", f"/v1/jobs/{job}"), expect={404, 405, 422})
