"""ServerSettings: what is refused, and where values come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from varsr_engine.engine.params import EngineConfig
from varsr_engine.errors import InvalidParamsError
from varsr_engine.serving.settings import ServerSettings, read_api_keys


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": -1},
        {"port": 65_536},
        {"port": "80"},
        {"host": 5},
        {"request_timeout": 0},
        {"max_aspect": float("nan")},
        {"insecure": 1},
        {"api_keys": ("short",)},
        {"api_keys": ("with a space in it",)},
        {"api_keys": "a-long-secret"},
        {"cors_origins": (1,)},
        {"root_path": "prefix"},
        {"root_path": "/prefix/"},
    ],
)
def test_wrong_values(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidParamsError) as raised:
        ServerSettings(**wrong)
    assert next(iter(wrong)) in raised.value.message or "API key" in raised.value.message
    assert "secret" not in raised.value.message


def test_keys_are_not_shown() -> None:
    assert "a-long-secret" not in repr(ServerSettings(api_keys=("a-long-secret",)))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"])
def test_this_machine_needs_no_key(host: str) -> None:
    ServerSettings(host=host).require_protection()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", ""])
def test_other_machines_do(host: str) -> None:
    with pytest.raises(InvalidParamsError, match="VARSR_API_KEY"):
        ServerSettings(host=host).require_protection()
    ServerSettings(host=host, insecure=True).require_protection()
    ServerSettings(host=host, api_keys=("a-long-secret",)).require_protection()


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('port = 1\nmax_jobs = 2\ncors_origins = ["http://a.example"]\n')
    settings = ServerSettings.resolve(file, port=3, host=None)
    assert (settings.port, settings.max_jobs, settings.host) == (3, 2, "127.0.0.1")
    assert settings.cors_origins == ("http://a.example",)
    for text in ("prot = 1", "port =", "\xff"):
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(InvalidParamsError):
            ServerSettings.resolve(file)
    with pytest.raises(InvalidParamsError, match="cannot be read"):
        ServerSettings.resolve(tmp_path / "none")


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VARSR_API_KEY", raising=False)
    assert read_api_keys(None) == ()
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst-secret\n\n  second-secret\n")
    assert read_api_keys(file) == ("first-secret", "second-secret")
    monkeypatch.setenv("VARSR_API_KEY", "third-secret")
    assert read_api_keys(file)[0] == "third-secret"
    file.write_text("# none\n")
    monkeypatch.delenv("VARSR_API_KEY")
    with pytest.raises(InvalidParamsError, match="holds no key"):
        read_api_keys(file)


def test_the_engine_gets_no_wider_limits() -> None:
    settings = ServerSettings(max_side=100, max_input_pixels=1000, max_body_bytes=5000)
    config = settings.engine_config(EngineConfig(max_side=50, threaded=False))
    assert (config.max_side, config.max_input_pixels, config.max_input_bytes, config.threaded) == (50, 1000, 5000, True)
    assert config.stall_seconds
