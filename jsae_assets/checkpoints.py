"""Where the checkpoints of long steps lie: at <storage>/checkpoints/, under the name of what is made.

Here: their places, on this machine or elsewhere. Not here: what a checkpoint is (`jsae_core.checkpoints`), what a step
keeps in one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

from jsae_assets.io_managers import StoringIOManager
from jsae_assets.resources import Compute
from jsae_assets.sections import CHECKPOINTS
from jsae_assets.storage import is_local, staged, stored_at
from jsae_core.checkpoints import Checkpoint


def checkpoint_of(
    manager: StoringIOManager,
    key: dg.AssetKey,
    partition: str | None,
    digest: str,
    compute: Compute,
    say: Callable[[str], None],
) -> Checkpoint:
    """The checkpoint of an asset's partition, or of a part of it.

    Args:
        manager: which stores the asset; the checkpoint lies in the same storage.
        digest: of the catalog's entries that it is made from.
    """
    path = manager.base / CHECKPOINTS / stored_at(key, partition, ".safetensors")
    if is_local(path):
        return Checkpoint(Path(path.path), digest, compute.checkpoint_seconds, say)
    path_elsewhere: Any = path  # it has a path's methods
    return _CheckpointElsewhere(path_elsewhere, digest, compute.checkpoint_seconds, say)


class _CheckpointElsewhere(Checkpoint):
    """In a storage that is not on this machine: files come and go as a whole."""

    def _remove_folders(self) -> None:
        folder: Any = self._folder
        if folder.exists():
            folder.fs.rm(folder.path, recursive=True)

    @contextmanager
    def _local_copy(self, path: Any) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / path.name
            path.fs.get(path.path, str(local))
            yield local

    @contextmanager
    def _replaced(self, path: Any) -> Iterator[Path]:
        with staged(path) as local:
            yield local
