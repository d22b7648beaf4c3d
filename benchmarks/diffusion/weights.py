"""A peer's real weights in the place of random ones, offline: diffusers' folders, and Real-ESRGAN's own file."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ModelMixin
from safetensors.torch import load_file
from torch import nn

from benchmarks.diffusion.costs import parameters_of
from benchmarks.diffusion.methods import Method, Regression
from benchmarks.diffusion.peers import PEERS, Peer
from benchmarks.diffusion.rrdb import RRDBNet, own_name

PROMPTS = "prompts.safetensors"  # embeddings by the name of the method's buffer: prompt, negative, pooled


def load_weights(method: Method, peer: Peer, folder: Path) -> None:
    """Load every network of the method from <folder>/<unet, vae, ...>/, and its prompts from prompts.safetensors.

    Of RRDBNet it is no folder but the published file, .pth (of which only tensors are read) or .safetensors.
    Raises ValueError where the peer is an emulation that no published weights fit, FileNotFoundError for what is
    missing, and what diffusers raises for a damaged file. Nothing is downloaded.
    """
    if not peer.loadable:
        able = ", ".join(other.name for other in PEERS.values() if other.loadable)
        raise ValueError(f"weights: {peer.name} has no published weights for the networks here; these have: {able}")
    if isinstance(method, Regression):
        load_rrdb(method.net, folder)
        return
    for name, part in list(method.named_children()):
        setattr(method, name, loaded(part, folder / name))
    prompts = {name: buffer for name, buffer in method.named_buffers(recurse=False) if name != "times"}
    if prompts:
        load_prompts(method, prompts, folder / PROMPTS)


def loaded(part: nn.Module, folder: Path) -> nn.Module:
    """The network of that folder. Raises ValueError where it is of another size than `part`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"weights: expected a folder {str(folder)!r} with .safetensors files; it is not there")
    assert isinstance(part, ModelMixin)  # of whatever peer is loadable
    found = type(part).from_pretrained(folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False)
    if parameters_of(found) != parameters_of(part):
        raise ValueError(
            f"weights: {str(folder)!r} must hold {parameters_of(part)} parameters, got {parameters_of(found)}"
        )
    return found.eval().requires_grad_(False)


def load_rrdb(net: RRDBNet, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"weights: expected the file {str(path)!r}, such as RealESRGAN_x4plus.pth; it is not there"
        )
    if path.suffix == ".safetensors":
        tensors = load_file(path)
    else:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        tensors = tensors.get("params_ema", tensors.get("params", tensors))
    blocks = len(net.body) - 1
    try:
        net.load_state_dict({own_name(name, blocks): tensor for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise ValueError(f"weights: {str(path)!r} is not RRDBNet of {blocks} blocks: {error}") from None


def load_prompts(method: Method, buffers: dict[str, torch.Tensor], path: Path) -> None:
    if not path.is_file():
        names = ", ".join(f"{name} {tuple(buffer.shape)}" for name, buffer in buffers.items())
        raise FileNotFoundError(
            f"weights: expected {str(path)!r} with the prompt embeddings {names}; write it with the peer's text encoder"
        )
    tensors = load_file(path)
    for name, buffer in buffers.items():
        if name not in tensors or tuple(tensors[name].shape) != tuple(buffer.shape):
            got = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise ValueError(f"weights: {name} in {str(path)!r} must be {tuple(buffer.shape)}, got {got}")
        buffer.copy_(tensors[name])
