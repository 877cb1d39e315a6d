"""The checkpoints of long steps, stored at <storage>/checkpoints/<asset key>/, in local or remote storage.

Here: their paths, and moving them to and from remote storage. Not here: what a checkpoint is (`jsae_core.checkpoints`),
what a step keeps in one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from upath import UPath

from jsae_assets.files.storage import delete, files_below, is_local, staged, stored_at
from jsae_assets.sections import CHECKPOINTS
from jsae_core.checkpoints import Checkpoint


def checkpoint_of(
    base: UPath, key: dg.AssetKey, partition: str | None, digest: str, seconds: float, say: Callable[[str], None]
) -> Checkpoint:
    """Return the checkpoint for making an asset's partition, or a part of it.

    Args:
        base: the storage folder in which the asset is stored.
        digest: stands for what the partition is made from; a checkpoint of another digest is not used.
        seconds: the time after which the next checkpoint is due.
    """
    path = base / CHECKPOINTS / stored_at(key, partition, ".safetensors")
    if is_local(path):
        return Checkpoint(Path(path.path), digest, seconds, say)
    remote_path: Any = path  # a UPath has the methods of a Path
    return _RemoteCheckpoint(remote_path, digest, seconds, say)


class _RemoteCheckpoint(Checkpoint):
    """A checkpoint in remote storage: its files are downloaded and uploaded as a whole."""

    def remove(self) -> None:
        path: Any = self.path
        delete(path)
        self._remove_folders()

    def _remove_folders(self) -> None:
        folder: Any = self._folder
        for name in files_below(folder):
            delete(folder / name)

    @contextmanager
    def _local_copy(self, path: Any) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / path.name
            path.fs.get_file(path.path, str(local))
            yield local

    @contextmanager
    def _replaced(self, path: Any) -> Iterator[Path]:
        with staged(path) as local:
            yield local
