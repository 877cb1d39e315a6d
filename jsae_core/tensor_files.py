"""safetensors files: read whole or lazily, written with the permissions of any other file.

Not here: what the tensors mean.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from jsae_core.lfs import is_lfs_pointer


def open_tensors(path: Path):
    """Open a file with safetensors' lazy reader. Raises ValueError naming the file if it is truncated or not a
    safetensors file."""
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise _incomplete(path, error) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return all tensors and the metadata of the header. Raises ValueError as `open_tensors` does."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}


def read_copies(path: Path) -> dict[str, Tensor]:
    """Return copies of all tensors, for files that other programs may overwrite in place: the tensors of `read_tensors`
    lie in the file itself, change with it, and end the process if the file becomes shorter. Raises ValueError as
    `open_tensors` does."""
    try:
        return load(path.read_bytes())
    except SafetensorError as error:
        raise _incomplete(path, error) from error


def read_header(file: BinaryIO, name: str) -> dict[str, str]:
    """Read the header's metadata from an open safetensors file, but not its tensors. (The format: a little-endian
    64-bit length, as many bytes of JSON, then the tensors.) Raises ValueError with the file's name if the header is
    incomplete.

    Args:
        file: local or remote; only its beginning is read.
        name: what the error calls the file.
    """
    try:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)).get("__metadata__", {})
    except (struct.error, ValueError, OverflowError, AttributeError) as error:
        raise _incomplete(name, error) from error


def _incomplete(name: str | Path, error: Exception) -> ValueError:
    if isinstance(name, Path) and is_lfs_pointer(name):
        return ValueError(f"{name}: holds no tensors but only a git-lfs pointer to them; run `git lfs pull` there")
    return ValueError(f"{name}: is not a complete safetensors file ({error}); fetch or make it again")


def text_tensor(texts: list[str]) -> Tensor:
    """Pack texts into a tensor of UTF-8 bytes, since safetensors holds only tensors."""
    return torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8)


def tensor_text(tensor: Tensor) -> list[str]:
    """Return the texts that `text_tensor` packed."""
    return json.loads(bytes(tensor.tolist()))


def write_tensors(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str] | None = None) -> None:
    """Write CPU copies of the tensors, and `header` as the file's metadata."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(ready, path, metadata=dict(header or {}))
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)  # safetensors makes files that only their owner may read


def content_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and values, in hexadecimal: equal for equal tensors, whatever file holds
    them."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():  # the strides of an empty tensor may forbid a view as bytes
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
