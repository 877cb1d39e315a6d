"""A stored file as those that read it get it: nothing is opened before it is used, and no more is read than asked for.

Here: tensors, tables and figures, and the header of each, where its settings and what made it stand. Not here: where a
file lies (`storage.py`), writing one (`io_managers.py`).
"""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upath import UPath

from jsae_assets.storage import is_local

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go
    import pyarrow.dataset
    from torch import Tensor

PROVENANCE, SETTINGS = "provenance", "settings"  # entries of a header, each JSON


class StoredFile(ABC):
    """A stored file, which need not be there.

    Attributes:
        path: where it is stored.
        relative: the same, relative to the storage: what is recorded of it, since a storage can be moved.
    """

    def __init__(self, base: UPath, relative: str, what: str):
        self.path = base / relative
        self.relative = relative
        self._what = what

    def exists(self) -> bool:
        return self.path.exists()

    @property
    def version(self) -> str:
        """Which file this is: another one once it was written again. Raises FileNotFoundError."""
        path = self._existing()
        return f"{path} {path.fs.ukey(path.path)}"

    @cached_property
    def local(self) -> Path:
        """The file on this machine; a copy, if it is stored elsewhere, which goes with this object. Raises
        FileNotFoundError."""
        path = self._existing()
        if is_local(path):
            return Path(path.path)
        folder = tempfile.TemporaryDirectory()
        self._copy = folder  # deleted with this object
        copy = Path(folder.name) / path.name
        path.fs.get(path.path, str(copy))
        return copy

    @property
    @abstractmethod
    def header(self) -> dict[str, str]:
        """What stands in the file beside its data; only that is read. Raises FileNotFoundError, or ValueError where the
        file is not whole."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the data was made with: model, layer, variant, sizes. Raises as `header` does."""
        return json.loads(self.header.get(SETTINGS, "{}"))

    def _existing(self) -> UPath:
        if not self.exists():
            raise FileNotFoundError(f"{self.path} is missing; materialise {self._what} first")
        return self.path


class StoredTensors(StoredFile, Mapping):
    """A stored safetensors file: a mapping from names to CPU tensors, each read when asked for."""

    @cached_property
    def _file(self):
        from jsae_core.tensor_files import open_tensors

        return open_tensors(self.local)

    @cached_property
    def header(self) -> dict[str, str]:
        from jsae_core.tensor_files import read_header

        path = self._existing()
        with path.open("rb") as file:
            return read_header(file, str(path))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._file.keys():
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.keys())

    def __len__(self) -> int:
        return len(self._file.keys())


class StoredTable(StoredFile):
    """A stored parquet file."""

    @cached_property
    def frame(self) -> pandas.DataFrame:
        """All of it. Raises as `dataset` does."""
        return self.dataset.to_table().to_pandas()

    @cached_property
    def dataset(self) -> pyarrow.dataset.Dataset:
        """To read some of its columns or rows. Raises FileNotFoundError, or ValueError where it is no parquet file."""
        import pyarrow
        import pyarrow.dataset

        path = self._existing()
        try:
            return pyarrow.dataset.dataset(path.path, filesystem=path.fs, format="parquet")
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path}: is no complete parquet file ({error}); materialise it again") from error

    @property
    def header(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in (self.dataset.schema.metadata or {}).items()}


class StoredPages(StoredFile):
    """The page that opens a stored folder of pages."""

    @property
    def header(self) -> dict[str, str]:
        return {}


class StoredFigure(StoredFile):
    """A stored figure's JSON."""

    @cached_property
    def figure(self) -> go.Figure:
        """Raises FileNotFoundError."""
        import plotly.io

        return plotly.io.from_json(self._existing().read_text(encoding="utf-8"))

    @property
    def header(self) -> dict[str, str]:
        return {name: json.dumps(entry) for name, entry in (self.figure.layout.meta or {}).items()}
