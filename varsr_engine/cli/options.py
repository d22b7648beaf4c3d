"""Options as users of other tools type them, and the texts that stand for values."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from varsr_engine.errors import InvalidParamsError

if TYPE_CHECKING:
    from varsr_engine.engine.params import UpscaleParams

# Other spellings of each option; everywhere an underscore may stand for a dash.
ALIASES: dict[str, tuple[str, ...]] = {
    "--input": ("--input-image", "--in-path", "--init-img", "--img-dir", "--image-path"),
    "--output": ("--output-dir", "--out-path", "--outdir", "--save-dir", "--result-path"),
    "--scale": ("--upscale", "--outscale", "--sr-scale", "-u"),
    "--longest-side": ("--target-longest-side",),
    "--model": ("--model-name", "--model-path", "--ckpt", "--weights", "--pretrained-model-path"),
    "--num-samples": ("--n-samples",),
    "--cfg": ("--cfg-scale", "--guidance-scale"),
    "--steps": ("--ddpm-steps", "--num-steps", "--diff-steps"),
    "--color-fix": ("--align-method", "--colorfix-type", "--color-fix-type", "--color-correction"),
    "--device": ("--gpu-id", "--cuda-device"),
    "--dtype": ("--precision", "--mixed-precision"),
    "--batch-size": ("--bs",),
    "--skip-existing": ("--skip-if-exist",),
}
# Flags of other tools that stand for an option and its value.
FLAGS: dict[str, tuple[str, str]] = {"--fp32": ("--dtype", "fp32"), "--half": ("--dtype", "fp16")}

# Those of varsr_engine.dispatch, whose import takes torch.
BACKENDS = ("auto", "cuda", "triton", "cudnn", "flash", "cpu", "torch")

_SHORT = {"--scale": "-s"}
_LONG_ALIASES = {alias: name for name, aliases in ALIASES.items() for alias in aliases if alias.startswith("--")}
_SHORT_ALIASES = {alias: _SHORT[name] for name, aliases in ALIASES.items() for alias in aliases if len(alias) == 2}


def canonical_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line with every alias replaced by its option's own name. What follows `--` stays as it is."""
    result: list[str] = []
    for i, argument in enumerate(arguments):
        if argument == "--":
            return result + list(arguments[i:])
        name, equals, value = argument.partition("=")
        if argument.startswith("--"):
            name = name.replace("_", "-")
            if not equals and name in FLAGS:
                result += FLAGS[name]
            else:
                result.append(_LONG_ALIASES.get(name, name) + equals + value)
        else:
            result.append(_SHORT_ALIASES.get(argument[:2], argument[:2]) + argument[2:])
    return result


def alias_help() -> str:
    """All aliases, a line an option, for the end of a help page."""
    lines = [f"{name}: {', '.join(aliases)}" for name, aliases in ALIASES.items()]
    lines += [f"{' '.join(option)}: {flag}" for flag, option in FLAGS.items()]
    return "Also understood, with - or _ between words:\n\n" + "\n".join(lines)


class AliasCommand(TyperCommand):
    """A command that understands the aliases."""

    def parse_args(self, ctx, args):  # type: ignore[no-untyped-def]  # the type of ctx depends on typer's version
        return super().parse_args(ctx, canonical_arguments(args))


def parse_seed(text: str) -> int | None:
    """A seed; None, which draws one, for "random"."""
    if text == "random":
        return None
    if not re.fullmatch(r"-?[0-9]+", text):
        raise InvalidParamsError(f"seed must be an integer in [0, 2^63) or random, got {text!r}")
    return int(text)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(width, height) of "1920x1080"."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]+)[xX×]([0-9]+)", text)
    if match is None:
        raise InvalidParamsError(f"target_size must be WIDTHxHEIGHT in pixels, such as 1920x1080, got {text!r}")
    return int(match[1]), int(match[2])


def parse_device(text: str | None) -> str | None:
    """A device's name; a number is a GPU. Whether it exists is found out later: that takes torch."""
    if text is not None and not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?|[0-9]+", text):
        raise InvalidParamsError(f"device must be auto, cpu, cuda, cuda:N or N, got {text!r}")
    return f"cuda:{text}" if text is not None and text.isdigit() else text


def parse_bytes(text: str | None) -> int | None:
    """Bytes of "8G", "512M" or "1500000000"; K, M and G are powers of 1024."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMG]?)i?B?", text, re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise InvalidParamsError(f"memory_budget must be bytes, such as 8G or 512M, got {text!r}")
    return int(float(match[1]) * 1024 ** ("", "K", "M", "G").index(match[2].upper()))


def parse_backend(text: str | None) -> str | None:
    """A backend's name. Whether it can run is found out later."""
    if text is not None and text not in BACKENDS:
        raise InvalidParamsError(f"backend must be one of {', '.join(BACKENDS)}, got {text!r}")
    return text


def parse_color_fix(text: str | None) -> str | None:
    return "none" if text == "nofix" else text


def params_of(file: Path | None, **given: Any) -> UpscaleParams:
    """What is typed, above a TOML file of UpscaleParams' fields, above their defaults."""
    from varsr_engine.engine.params import UpscaleParams  # not at the top: most commands need none

    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text())
        except OSError as error:
            raise InvalidParamsError(f"{str(file)!r} cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidParamsError(f"{str(file)!r} is not valid TOML: {error}") from None
    return UpscaleParams.from_dict(values | {name: value for name, value in given.items() if value is not None})
