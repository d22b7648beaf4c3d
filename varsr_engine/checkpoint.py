"""Reading and writing weights: the published .pth pair, or a safetensors file with its config.

A checkpoint is opened, validated by its header, and read tensor by tensor. Whatever the source, names are those of
the reference model: `transformer.<published name>` and `vae.<published name>`.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from varsr_engine.atomic import atomic_writer
from varsr_engine.config import ModelConfig
from varsr_engine.errors import (
    CheckpointMismatchError,
    InvalidParamsError,
    ModelLoadError,
    ModelNotFoundError,
    OutputError,
    UnsafeCheckpointError,
)
from varsr_engine.model.shapes import state_shapes
from varsr_engine.packaged import packaged_model

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
TRANSFORMER_FILES, AUTOENCODER_FILE = ("VARSR.pth", "VARSR_C2I.pth"), "VQVAE.pth"
TRANSFORMER_KEY, AUTOENCODER_KEY = ("trainer", "var_wo_ddp"), ("trainer", "vae_local")

# Buffers of the published checkpoints that no computation reads, and the part that only training needs.
IGNORED = re.compile(r"(lvl_1L|attn_bias_for_masking|zero_k_bias|ema_vocab_hit_SV)$")
TRAINING_ONLY = re.compile(r"^vae\.(encoder|quant_conv)\.")
# Optional beside the network: the map from latent cells to colours that latent previews are made with.
PREVIEW_WEIGHT, PREVIEW_BIAS = "preview.weight", "preview.bias"

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SAFETENSORS_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
TORCH_DTYPES = {name: dtype for dtype, name in SAFETENSORS_DTYPES.items()}
DISK_CHUNK = 32 * 1024 * 1024


class Checkpoint(ABC):
    """Weights on disk: their config, shapes and dtypes now, their values on demand."""

    def __init__(
        self, path: Path, config: ModelConfig | None, header: Mapping[str, tuple[tuple[int, ...], str]]
    ) -> None:
        kept = {name: entry for name, entry in header.items() if not IGNORED.search(name)}
        self.path = path
        self.metadata: dict[str, str] = {}  # what a file says of itself beside its config: name, commit, licence
        shapes = {name: shape for name, (shape, _) in kept.items()}
        self.preview_shapes = {name: shapes.pop(name) for name in (PREVIEW_WEIGHT, PREVIEW_BIAS) if name in shapes}
        self.shapes = shapes  # of the network
        self.dtypes = {name: dtype for name, (_, dtype) in kept.items()}
        self.config = config or ModelConfig.from_shapes(self.shapes)
        self._validate()

    @abstractmethod
    def open(self) -> Callable[[str], torch.Tensor]:
        """A reader of tensors on the CPU, in the file's dtype, mapped from the file where the format allows it.

        Memory stays mapped as long as the reader or one of its tensors lives: open one a purpose.
        """

    @property
    def has_encoder(self) -> bool:
        return any(TRAINING_ONLY.search(name) for name in self.shapes)

    def is_mapped_as(self, dtype: torch.dtype) -> bool:
        """Whether tensors of this dtype are the file's own pages, so that dropping them costs nothing."""
        return set(self.dtypes.values()) == {SAFETENSORS_DTYPES[dtype]}

    @property
    def num_parameters(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    def _validate(self) -> None:
        expected, found = state_shapes(self.config), self.shapes | self.preview_shapes
        if self.preview_shapes:
            expected |= {PREVIEW_WEIGHT: (3, self.config.latent_channels), PREVIEW_BIAS: (3,)}
        for name, shape in expected.items():
            if name not in found:
                if TRAINING_ONLY.search(name) and not self.has_encoder:
                    continue
                raise CheckpointMismatchError(f"{self.path.name}: tensor {name!r} is missing, expected shape {shape}")
            if found[name] != shape:
                raise CheckpointMismatchError(
                    f"{self.path.name}: tensor {name!r} has shape {found[name]}, expected {shape}"
                )
            if self.dtypes[name] not in TORCH_DTYPES:
                raise CheckpointMismatchError(
                    f"{self.path.name}: tensor {name!r} has dtype {self.dtypes[name]}, "
                    f"expected one of {', '.join(TORCH_DTYPES)}"
                )
        unexpected = sorted(set(found) - set(expected))
        if unexpected:
            raise CheckpointMismatchError(
                f"{self.path.name}: tensor {unexpected[0]!r} with shape {found[unexpected[0]]} is unexpected "
                f"for this config ({len(unexpected)} such tensors)"
            )


class SafetensorsCheckpoint(Checkpoint):
    """One .safetensors file; its config is beside it, in its metadata, or told by its shapes."""

    def __init__(self, path: Path, config_file: Path | None = None) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                header = {name: (tuple(s.get_shape()), str(s.get_dtype())) for name, s in slices.items()}
        except SafetensorError as error:
            raise ModelLoadError(
                f"{path.name}: not a complete safetensors file ({error}); it may be truncated, download it again"
            ) from None
        except OSError as error:
            raise ModelLoadError(f"{path.name}: cannot be read: {error.strerror or error}") from None
        config = None
        if config_file is not None:
            config = read_config(config_file)
        elif "config" in metadata:
            config = ModelConfig.from_dict(parse_json(metadata["config"], f"{path.name}: the config in its metadata"))
        super().__init__(path, config, header)
        self.metadata = {key: text for key, text in metadata.items() if key not in ("config", "format")}

    def open(self) -> Callable[[str], torch.Tensor]:
        get: Callable[[str], torch.Tensor] = safe_open(self.path, framework="pt").__enter__().get_tensor
        return get


class PublishedCheckpoint(Checkpoint):
    """A folder with the published VARSR.pth (or VARSR_C2I.pth) and VQVAE.pth, memory-mapped, tensors only."""

    def __init__(self, folder: Path, transformer_file: Path, config_file: Path | None) -> None:
        self._files = (
            (transformer_file, TRANSFORMER_KEY, "transformer."),
            (folder / AUTOENCODER_FILE, AUTOENCODER_KEY, "vae."),
        )
        tensors = self._load()
        header = {name: (tuple(t.shape), SAFETENSORS_DTYPES.get(t.dtype, str(t.dtype))) for name, t in tensors.items()}
        super().__init__(folder, read_config(config_file) if config_file else None, header)

    def _load(self) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        for file, key, prefix in self._files:
            for name, value in load_pickled_tensors(file, key).items():
                tensors[prefix + name] = value
        return tensors

    def open(self) -> Callable[[str], torch.Tensor]:
        return self._load().__getitem__


class TensorCheckpoint(Checkpoint):
    """Weights that are in memory already, by their names: a model in training, or made-up weights."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], config: ModelConfig, name: str) -> None:
        self._tensors = {key: tensor.detach().cpu() for key, tensor in tensors.items()}
        header = {
            key: (tuple(t.shape), SAFETENSORS_DTYPES.get(t.dtype, str(t.dtype))) for key, t in self._tensors.items()
        }
        super().__init__(Path(name), config, header)

    def open(self) -> Callable[[str], torch.Tensor]:
        return self._tensors.__getitem__


def parse_json(text: str, what: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ModelLoadError(f"{what} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ModelLoadError(f"{what} must be a JSON object, got {type(values).__name__}")
    return values


def read_config(path: Path) -> ModelConfig:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path.name}: cannot be read: {error}") from None
    try:
        return ModelConfig.from_dict(parse_json(text, path.name))
    except InvalidParamsError as error:
        raise ModelLoadError(error.message) from None


def load_pickled_tensors(path: Path, key: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The tensors under nested keys of a torch.save file, memory-mapped. Nothing but tensors is ever unpickled."""
    if not zipfile.is_zipfile(path):
        raise ModelLoadError(
            f"{path.name}: not a complete torch.save archive (a zip file); it may be truncated, download it again"
        )
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[-1].strip() or "unsupported object"
        raise UnsafeCheckpointError(
            f"{path.name}: refused, because unpickling it needs more than tensors and plain containers ({reason})"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ModelLoadError(f"{path.name}: cannot be read as a torch.save archive: {error}") from None
    for depth, part in enumerate(key):
        if not isinstance(values, Mapping) or part not in values:
            found = ", ".join(map(str, list(values)[:8])) if isinstance(values, Mapping) else type(values).__name__
            where = "".join(f"[{k!r}]" for k in key[: depth + 1])
            raise CheckpointMismatchError(f"{path.name}: expected weights under {where}, found: {found or 'nothing'}")
        values = values[part]
    if not isinstance(values, Mapping) or not all(isinstance(v, torch.Tensor) for v in values.values()):
        raise CheckpointMismatchError(f"{path.name}: expected only tensors under {key}")
    return dict(values)


HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


def open_checkpoint(
    source: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False
) -> Checkpoint:
    """Open weights: a folder (config.json + model.safetensors, or the published .pth pair), a file, a hub id, or
    "varsr-mini", which comes with the package.

    Raises ModelNotFoundError, UnsafeCheckpointError, CheckpointMismatchError or ModelLoadError, each naming the file
    or tensor, what was expected and what was found.
    """
    path = packaged_model(os.fspath(source)) or Path(source)
    if not path.exists():
        if HUB_ID.match(str(source)):
            path = download(str(source), revision=revision, local_files_only=local_files_only)
        else:
            raise ModelNotFoundError(f"no model at {str(source)!r}: expected a folder, a .safetensors file or a hub id")
    if path.is_file():
        if path.suffix == ".safetensors":
            beside = path.parent / CONFIG_FILE
            return SafetensorsCheckpoint(path, beside if path.name == WEIGHTS_FILE and beside.exists() else None)
        if path.suffix in (".pth", ".pt", ".ckpt", ".bin"):
            raise ModelLoadError(
                f"{path.name}: give the folder that holds both {TRANSFORMER_FILES[0]} and {AUTOENCODER_FILE}"
            )
        raise ModelLoadError(f"{path.name}: not a model: expected a .safetensors file or a folder")
    config_file = path / CONFIG_FILE if (path / CONFIG_FILE).exists() else None
    if (path / WEIGHTS_FILE).exists():
        return SafetensorsCheckpoint(path / WEIGHTS_FILE, config_file)
    for name in TRANSFORMER_FILES:
        if (path / name).exists():
            if not (path / AUTOENCODER_FILE).exists():
                raise ModelNotFoundError(
                    f"{path.name}: {name} is there, but {AUTOENCODER_FILE} is not: both are needed"
                )
            return PublishedCheckpoint(path, path / name, config_file)
    raise ModelNotFoundError(
        f"{str(path)!r} holds no model: expected {WEIGHTS_FILE} (with {CONFIG_FILE}), "
        f"or {TRANSFORMER_FILES[0]} and {AUTOENCODER_FILE}"
    )


def download(hub_id: str, *, revision: str | None, local_files_only: bool) -> Path:
    """The local folder of a Hugging Face Hub model, fetched if need be."""
    try:
        import huggingface_hub
    except ImportError:
        raise ModelNotFoundError(
            f"no folder {hub_id!r} here, and loading it as a hub id needs: pip install 'varsr-engine[hub]'"
        ) from None
    try:
        return Path(
            huggingface_hub.snapshot_download(
                hub_id,
                revision=revision,
                local_files_only=local_files_only,
                allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, *TRANSFORMER_FILES, AUTOENCODER_FILE],
            )
        )
    except Exception as error:  # the hub's client raises its own, its HTTP library's and the system's errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelNotFoundError(
            f"no folder {hub_id!r} here, and the hub did not give it ({reason}); "
            "offline, download the model first and pass its folder"
        ) from None


def write_checkpoint(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    names: Mapping[str, tuple[int, ...]],
    read: Callable[[str], torch.Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write config.json and model.safetensors, one tensor in memory at a time; each file appears only when complete.

    on_progress is called with (bytes written, bytes in all).
    """
    folder = Path(folder)
    weights = folder / WEIGHTS_FILE
    if not overwrite:
        refuse_to_replace(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {str(folder)!r}: {error.strerror}", path=str(folder)) from error
    write_weights(weights, config, names, read, dtype=dtype, metadata=metadata, on_progress=on_progress)
    with atomic_writer(folder / CONFIG_FILE) as file:
        file.write(config.to_json().encode())
    return folder


def refuse_to_replace(folder: Path) -> None:
    """Raise OutputError if a folder holds a model."""
    if (folder / WEIGHTS_FILE).exists() or (folder / CONFIG_FILE).exists():
        raise OutputError(f"{str(folder)!r} already holds a model; pass overwrite to replace it", path=str(folder))


def save_model(
    path: str | os.PathLike[str],
    config: ModelConfig,
    tensors: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype = torch.float16,
    encoder: bool = False,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model as one .safetensors file that `open_checkpoint` takes, its config in the file's metadata.

    tensors: the state of a reference model, by its names; encoder: keep the autoencoder's encoder, which only training
    needs. metadata: other texts to keep in the file: name, commit, licence. The file appears only when complete.
    Raises CheckpointMismatchError if a tensor is missing or has the wrong shape, or a value does not fit the dtype,
    OutputError if the file exists or cannot be written.
    """
    path = Path(path)
    kept = {name: t for name, t in tensors.items() if encoder or not TRAINING_ONLY.search(name)}
    checkpoint = TensorCheckpoint(kept, config, path.name)
    read, shapes = checkpoint.open(), checkpoint.shapes | checkpoint.preview_shapes
    for name in shapes:
        if not torch.isfinite(read(name).to(dtype)).all():
            raise CheckpointMismatchError(f"{path.name}: tensor {name!r} has values that are not finite in {dtype}")
    write_weights(path, config, shapes, read, dtype=dtype, metadata=metadata, overwrite=overwrite)
    return path


def write_weights(
    path: Path,
    config: ModelConfig,
    names: Mapping[str, tuple[int, ...]],
    read: Callable[[str], torch.Tensor],
    *,
    dtype: torch.dtype,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write one .safetensors file, one tensor in memory at a time, with the config in its metadata."""
    about = {"format": "pt", "config": json.dumps(config.to_dict()), **(metadata or {})}
    header: dict[str, Any] = {"__metadata__": about}
    size, offset = torch.empty(0, dtype=dtype).element_size(), 0
    for name, shape in names.items():
        end = offset + torch.Size(shape).numel() * size
        header[name] = {"dtype": SAFETENSORS_DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_writer(path, overwrite=overwrite) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        done = 0
        for name in names:
            data = memoryview(read(name).to(dtype).contiguous().flatten().view(torch.uint8).numpy().data)
            for start in range(0, len(data), DISK_CHUNK):
                done += file.write(data[start : start + DISK_CHUNK])
                if on_progress is not None:
                    on_progress(done, offset)


def convert_checkpoint(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    dtype: str = "fp32",
    overwrite: bool = False,
    fit_preview: Callable[[Checkpoint], Mapping[str, torch.Tensor]] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Rewrite any checkpoint as config.json + model.safetensors. In fp32 every value of a float32 source is kept.

    fit_preview: makes the tensors of a preview map (`PreviewMap.tensors`), to take the place of the source's own.
    """
    if dtype not in DTYPES:
        raise InvalidParamsError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    checkpoint = open_checkpoint(source)
    if Path(folder).resolve() in (checkpoint.path.resolve(), checkpoint.path.resolve().parent):
        raise OutputError(f"the converted model must go to another folder than its source, got {str(folder)!r}")
    if not overwrite:
        refuse_to_replace(Path(folder))  # before a fit that may take minutes
    own = {} if fit_preview is None else dict(fit_preview(checkpoint))
    get = checkpoint.open()
    shapes = checkpoint.shapes | checkpoint.preview_shapes | {name: tuple(t.shape) for name, t in own.items()}
    return write_checkpoint(
        folder,
        checkpoint.config,
        shapes,
        lambda name: own[name] if name in own else get(name),
        dtype=DTYPES[dtype],
        metadata={"source": checkpoint.path.name},
        overwrite=overwrite,
        on_progress=on_progress,
    )
