"""Stored files, for reading: a file is opened only when it is used, and only the parts that are used are read.

The first read in a process compares a file with the digest that it carries. A damaged file is set aside under another
name, so that it is not used again and its asset counts as missing. Here: tensors, tables and figures, and their
headers, which hold the settings and what made the file. Not here: where a file lies (`storage.py`), writing one
(`io_managers.py`).
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from upath import UPath

from jsae_assets.digests import digest_of
from jsae_assets.files.storage import information, is_local, last_changed, stored_at, time_of_change
from jsae_core.sealed_files import DIGEST, carried_digest, is_undamaged

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go
    import pyarrow.dataset
    from torch import Tensor

# the names of a header's entries beside the digest, each JSON
PROVENANCE, SETTINGS, COMPANIONS = "provenance", "settings", "companions"
WHOLE_DOCUMENTS = "whole_documents"  # among the settings: how many a result was measured on, pieces of one taken as one
_undamaged: set[str] = set()  # versions of files that this process has found to be undamaged


class DamagedFileError(ValueError):
    """A stored file is damaged. The message names the file, the damage, and what to do."""


def _version(path: UPath) -> str:
    return f"{path} {path.fs.ukey(path.path)}"


class StoredFile(ABC):
    """The stored file of an asset's partition, which need not exist.

    Attributes:
        path: where it is stored.
        relative: its path relative to the storage. Records hold this path, since a storage can be moved.
    """

    def __init__(self, base: UPath, relative: str, name: str):
        """`name` is what messages call it: the asset and the partition."""
        self.path = base / relative
        self.relative = relative
        self._name = name

    def exists(self) -> bool:
        return self.path.exists()

    @property
    def companions(self) -> list[str]:
        """The further files without which it counts as missing, relative to the storage."""
        return []

    @property
    def digest(self) -> str:
        """The digest that the file carries, "" if it carries none. Raises as `header` does."""
        return json.loads(self.header.get(DIGEST, '""'))

    @property
    def set_aside_path(self) -> UPath:
        """Where the file is moved when it is found to be damaged."""
        return self.path.with_name(f"{self.path.name}.damaged")

    def damage(self) -> str | None:
        """Return what is wrong with the file: changed bytes, or that it belongs to another place. Return None if it is
        undamaged, or if it is so old that it carries no digest. Raises FileNotFoundError."""
        return self._damage_of_version(self.version)

    def _damage_of_version(self, version: str) -> str | None:
        if version in _undamaged:
            return None
        damage = self._damage_of(self._fetched)
        if damage is None:
            _undamaged.add(version)
        return damage

    def last_changed(self) -> float:
        """Return when the file or its attributes were last changed, in seconds since 1970. Raises FileNotFoundError."""
        with self._explained_if_missing():
            return last_changed(self.path)

    @property
    def version(self) -> str:
        """An identifier of the file's content, which changes each time the file is written. Raises
        FileNotFoundError."""
        with self._explained_if_missing():
            return _version(self.path)

    @cached_property
    def local(self) -> Path:
        """The path of the file on this machine. For remote storage it is a copy, which is deleted with this object.
        Raises FileNotFoundError, or DamagedFileError."""
        version = self.version
        if damage := self._damage_of_version(version):
            self._refuse(damage, version)
        return self._fetched

    def _refuse(self, damage: str, version: str) -> None:
        message = f"{self.path} is damaged: {damage}. "
        with contextlib.suppress(OSError):
            if self.version == version:  # otherwise it has just been written again
                self.path.fs.mv(self.path.path, self.set_aside_path.path)
                message += f"It was set aside as {self.set_aside_path.name}. "
        raise DamagedFileError(f"{message}Materialise {self._name} again: `jsae run` does")

    def _damage_of(self, local: Path) -> str | None:
        try:
            header = self._header_of(local)
        except ValueError as error:
            return str(error)
        carried = carried_digest(local, header)
        if carried is None:
            return None
        if not is_undamaged(local, carried):
            return "its bytes are not those that were written"
        provenance = json.loads(header.get(PROVENANCE, "{}"))
        if provenance:
            key, partition = dg.AssetKey.from_user_string(provenance["asset"]), provenance["partition"] or None
            if stored_at(key, partition, self.path.suffix) != self.relative:
                return f"it is the file of {provenance['asset']} for {partition}"
        return None

    @cached_property
    def _fetched(self) -> Path:
        if is_local(self.path):
            return Path(self.path.path)
        folder = tempfile.TemporaryDirectory()
        self._copy = folder  # deleted with this object
        copy = Path(folder.name) / self.path.name
        with self._explained_if_missing():
            self.path.fs.get_file(self.path.path, str(copy))
        return copy

    @abstractmethod
    def _header_of(self, local: Path) -> dict[str, str]:
        """Read the header of a local file. Raises ValueError if it cannot be read."""

    @property
    def header(self) -> dict[str, str]:
        """The entries of the file beside its data, each JSON. Raises FileNotFoundError, or ValueError if the header is
        damaged."""
        return self._header_of(self.local)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the data was made with: model, layer, variant, sizes. Raises as `header` does."""
        return json.loads(self.header.get(SETTINGS, "{}"))

    @contextlib.contextmanager
    def _explained_if_missing(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            aside = (
                f" (it was damaged, and was set aside as {self.set_aside_path.name})"
                if self.set_aside_path.exists()
                else ""
            )
            raise FileNotFoundError(f"{self.path} is missing{aside}; materialise {self._name} first") from error


class StoredTensors(StoredFile, Mapping):
    """A stored safetensors file: a mapping from names to CPU tensors, each read when asked for."""

    @cached_property
    def _file(self):
        from jsae_core.tensor_files import open_tensors

        return open_tensors(self.local)

    @cached_property
    def header(self) -> dict[str, str]:
        """As for every stored file, but without reading the tensors."""
        from jsae_core.tensor_files import read_header

        with self._explained_if_missing(), self.path.open("rb") as file:
            return read_header(file, str(self.path))

    def _header_of(self, local: Path) -> dict[str, str]:
        from jsae_core.tensor_files import open_tensors

        try:
            return open_tensors(local).metadata() or {}
        except ValueError as error:
            raise ValueError("it is not a complete safetensors file") from error

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
        """The whole table. Raises as `dataset` does."""
        return self.dataset.to_table().to_pandas()

    @cached_property
    def dataset(self) -> pyarrow.dataset.Dataset:
        """The table as a pyarrow dataset, to read only some columns or rows. Raises FileNotFoundError, or
        DamagedFileError."""
        import pyarrow.dataset

        return pyarrow.dataset.dataset(self.local, format="parquet")

    def _header_of(self, local: Path) -> dict[str, str]:
        import pyarrow
        import pyarrow.parquet

        try:
            entries = pyarrow.parquet.read_metadata(local).metadata or {}
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"it is not a complete parquet file ({error})") from error
        return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in entries.items()}


class StoredPages(StoredFile):
    """The start page (index.html) of a stored folder of pages."""

    def _header_of(self, local: Path) -> dict[str, str]:
        return {}

    def _damage_of(self, local: Path) -> str | None:
        return None  # pages carry no digest


class StoredFigure(StoredFile):
    """The JSON file of a stored figure; its page and its pictures lie next to it."""

    @cached_property
    def figure(self) -> go.Figure:
        """The Plotly figure. Raises FileNotFoundError, or DamagedFileError."""
        import plotly.io

        return plotly.io.from_json(self.local.read_text(encoding="utf-8"))

    @property
    def page(self) -> UPath:
        return self.path.with_suffix(".html")

    @property
    def picture(self) -> UPath:
        """The figure as PNG, which exists only if a browser was there to draw it."""
        return self.path.with_suffix(".png")

    @property
    def preview(self) -> UPath:
        """A narrower picture for the Dagster UI."""
        return self.path.with_name(f"{self.path.stem}~preview.png")  # names of models do not contain a ~

    @property
    def document(self) -> UPath:
        """The figure as PDF, for print, which exists if `picture` does."""
        return self.path.with_suffix(".pdf")

    @property
    def companions(self) -> list[str]:
        return [self.relative.removesuffix(self.path.suffix) + self.page.suffix]

    def exists(self) -> bool:
        return {self.path, self.page} <= set(information([self.path, self.page]))

    @property
    def version(self) -> str:
        return " ".join(f"{path} {info}" for path, info in self._files().items())

    def last_changed(self) -> float:
        return max(map(time_of_change, self._files().values()))

    def _files(self) -> Mapping[UPath, Mapping[str, Any]]:
        """Return fsspec's information on the file, and on its page and pictures as far as they exist."""
        found = information([self.path, self.page, self.picture, self.preview, self.document])
        with self._explained_if_missing():
            if self.path not in found:
                raise FileNotFoundError(self.path)
        return found

    def _header_of(self, local: Path) -> dict[str, str]:
        try:
            meta = json.loads(local.read_text(encoding="utf-8"))["layout"].get("meta") or {}
            return {name: json.dumps(entry) for name, entry in meta.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is not a complete figure ({error})") from error

    def _damage_of(self, local: Path) -> str | None:
        return super()._damage_of(local) or next(self._damaged_companions(local), None)

    def _damaged_companions(self, local: Path) -> Iterator[str]:
        for suffix, digest in json.loads(self._header_of(local).get(COMPANIONS, "{}")).items():
            path = self.path.with_name(self.path.stem + suffix)
            try:
                if digest_of(path.fs.cat_file(path.path)) != digest:
                    yield f"the bytes of {path.name} next to it are not those that were written"
            except FileNotFoundError:
                yield f"{path.name} next to it is missing"
