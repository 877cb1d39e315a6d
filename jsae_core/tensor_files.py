"""safetensors files: whole or lazily read, written with the permissions of any other file.

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
from safetensors.torch import save_file
from torch import Tensor


def open_tensors(path: Path):
    """safetensors' own lazy reader. Raises ValueError naming the file if it is truncated or no safetensors file."""
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path}: is no complete safetensors file ({error}); fetch or make it again") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the header's metadata. Raises ValueError as `open_tensors` does."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}


def read_header(file: BinaryIO, name: str) -> dict[str, str]:
    """The header's metadata of a safetensors file that may lie anywhere; its tensors are not read. (The format: a
    little-endian 64-bit length and as many bytes of JSON, then the tensors.) Raises ValueError naming the file if it
    has no whole header."""
    try:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)).get("__metadata__", {})
    except (struct.error, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(f"{name}: is no complete safetensors file ({error}); fetch or make it again") from error


def text_tensor(texts: list[str]) -> Tensor:
    """Texts as a tensor of UTF-8 bytes, since safetensors holds nothing else."""
    return torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8)


def tensor_text(tensor: Tensor) -> list[str]:
    """What `text_tensor` packed."""
    return json.loads(bytes(tensor.tolist()))


def write_tensors(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str] | None = None) -> None:
    """Write CPU copies of the tensors, with strings for the header."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(ready, path, metadata=dict(header or {}))
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)  # safetensors makes files that only their owner may read


def content_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and values, in hexadecimal: the same for the same tensors in any file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():  # an empty one may have strides that cannot be looked at so
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
