"""The settings of a server: plain, frozen, validated data. Needs no part of the extra `server`."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varsr_engine.config import reject_unknown_keys
from varsr_engine.engine.params import EngineConfig, is_integer, is_number
from varsr_engine.errors import InvalidParamsError

MiB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server listens on, whom it serves, and what it refuses. Sizes in bytes and pixels, times in seconds.

    host, port: where it listens; port 0 takes a free one. root_path: the prefix that a proxy strips.
    api_keys: any of them is accepted as `Authorization: Bearer KEY`; needed where host is not this machine alone,
    unless insecure. cors_origins: origins whose pages may call the server; others are refused.

    max_body_bytes, max_input_pixels, max_side, max_aspect: of an image that is sent, checked before it is decoded.
    max_output_pixels, max_tiles: of an answer that is waited for; max_job_pixels, max_job_tiles: of a job.
    max_decoder_bytes: of tile="published". max_held_bytes: of all bodies and pictures that requests hold at a time.
    max_requests, max_connections: at a time. max_header_bytes: of a request's head.

    request_timeout: from a request's head to its answer; a request may ask for less. body_grace: until a body must
    have come, plus a second for every body_rate bytes of it. header_timeout: until a connection's next head is
    complete. write_timeout: without a client reading on. keep_alive: of an idle connection. heartbeat: between signs
    of life in an event stream. drain_timeout: for what is in flight after SIGTERM.

    decode_threads, encode_threads: for images in and out. max_jobs: unfinished ones; max_finished_jobs: kept for
    job_ttl. job_folder: where their results lie, in a private folder that the server deletes; the system's temporary
    folder if None.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    root_path: str = ""
    api_keys: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    insecure: bool = False
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 32 * MiB
    max_input_pixels: int = 16 * MiB
    max_side: int = 16_384
    max_aspect: float = 32.0
    max_output_pixels: int = 16 * MiB
    max_tiles: int = 4096
    max_job_pixels: int = 256 * MiB
    max_job_tiles: int = 65_536
    max_decoder_bytes: int = 2048 * MiB
    max_held_bytes: int = 2048 * MiB
    max_requests: int = 256
    max_connections: int = 1024
    max_header_bytes: int = 16_384
    request_timeout: float = 120.0
    body_grace: float = 10.0
    body_rate: int = 16_384
    header_timeout: float = 10.0
    write_timeout: float = 30.0
    keep_alive: float = 15.0
    heartbeat: float = 10.0
    drain_timeout: float = 60.0
    decode_threads: int = 2
    encode_threads: int = 2
    max_jobs: int = 16
    max_finished_jobs: int = 64
    job_ttl: float = 3600.0
    job_folder: str | None = None

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            _check(f.name, str(f.type), getattr(self, f.name))
            if f.type == "tuple[str, ...]":
                object.__setattr__(self, f.name, tuple(getattr(self, f.name)))
        if self.port > 65_535:
            raise InvalidParamsError(f"port must be in [0, 65535], got {self.port}")
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise InvalidParamsError(f"root_path must start with / and not end with it, got {self.root_path!r}")
        for key in self.api_keys:
            if not key.isascii() or not key.isprintable() or " " in key or len(key) < 8:
                raise InvalidParamsError("an API key must be at least 8 printable ASCII characters without spaces")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"

    def require_protection(self) -> None:
        """Raise InvalidParamsError where the network could use the server without a key."""
        if not (self.loopback or self.api_keys or self.insecure):
            raise InvalidParamsError(
                f"host {self.host!r} lets other machines in: set VARSR_API_KEY or --api-key-file, or --insecure where "
                "something in front of the server checks who asks"
            )

    def engine_config(self, config: EngineConfig) -> EngineConfig:
        """The same engine, with no wider limits than the server's, and a queue of its own thread."""
        return dataclasses.replace(
            config,
            threaded=True,
            max_input_bytes=min(config.max_input_bytes, self.max_body_bytes),
            max_input_pixels=min(config.max_input_pixels, self.max_input_pixels),
            max_output_pixels=min(config.max_output_pixels, max(self.max_output_pixels, self.max_job_pixels)),
            max_side=min(config.max_side, self.max_side),
            max_decoder_bytes=min(config.max_decoder_bytes, self.max_decoder_bytes),
            stall_seconds=config.stall_seconds or 600,
        )

    @classmethod
    def resolve(cls, file: str | os.PathLike[str] | None = None, **overrides: Any) -> ServerSettings:
        """Settings by precedence: overrides that are not None > TOML file > defaults."""
        known = {f.name for f in dataclasses.fields(cls)}
        values: dict[str, Any] = _read_toml(file) if file else {}
        reject_unknown_keys(f"server settings {str(file)!r}", values, known)
        reject_unknown_keys("server settings", overrides, known)
        return cls(**(values | {name: value for name, value in overrides.items() if value is not None}))


_ZERO_ALLOWED = ("port", "max_finished_jobs")


def _check(name: str, kind: str, value: object) -> None:
    low = 0 if name in _ZERO_ALLOWED else 1
    checks: Mapping[str, tuple[bool, str]] = {
        "int": (is_integer(value, low), f"an integer >= {low}"),
        "float": (is_number(value) and value > 0, "a number > 0"),  # type: ignore[operator]
        "bool": (isinstance(value, bool), "true or false"),
        "str": (isinstance(value, str), "a text"),
        "str | None": (value is None or isinstance(value, str), "a text"),
        "tuple[str, ...]": (
            isinstance(value, (tuple, list)) and all(isinstance(v, str) for v in value),
            "a list of texts",
        ),
    }
    ok, expected = checks[kind]
    if not ok:
        shown = "something else" if name == "api_keys" else repr(value)
        raise InvalidParamsError(f"{name} must be {expected}, got {shown}")


def _read_toml(file: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(file).read_text())
    except OSError as error:
        raise InvalidParamsError(f"server settings {str(file)!r} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidParamsError(f"server settings {str(file)!r} are not valid TOML: {error}") from None


def read_api_keys(file: str | os.PathLike[str] | None) -> tuple[str, ...]:
    """Keys of VARSR_API_KEY in the environment and of a file, one a line; blank lines and # comments are left out."""
    keys = [os.environ.get("VARSR_API_KEY", "")]
    if file is not None:
        try:
            keys += Path(file).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise InvalidParamsError(f"API key file {str(file)!r} cannot be read: {reason}") from None
    found = tuple(key for key in (key.strip() for key in keys) if key and not key.startswith("#"))
    if file is not None and not found:
        raise InvalidParamsError(f"API key file {str(file)!r} holds no key")
    return found
