"""A stored file as those that read it get it: nothing is opened before it is used, and no more is read than asked for.

What is read is compared with the digest that it carries, once a process. A file that is damaged is set aside, so that
nobody takes it for good and what made it is known to be missing. Here: tensors, tables and figures, and the header of
each, where its settings and what made it stand. Not here: where a file lies (`storage.py`), writing one
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

from jsae_assets.digests import file_digest, is_whole, may_carry_one
from jsae_assets.storage import is_local, last_changed, stored_at

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go
    import pyarrow.dataset
    from torch import Tensor

PROVENANCE, SETTINGS, DIGEST, COMPANIONS = "provenance", "settings", "digest", "companions"  # of a header, each JSON
_whole: set[str] = set()  # versions of files that this process has found to be whole


class DamagedFileError(ValueError):
    """A stored file is not what was written. The message names it, what is wrong, and what to do."""


def _version(path: UPath) -> str:
    return f"{path} {path.fs.ukey(path.path)}"


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
    def beside(self) -> list[str]:
        """Further files that belong to it, relative to the storage."""
        return []

    @property
    def digest(self) -> str:
        """The digest that it carries, "" if none. Raises as `header` does."""
        return json.loads(self.header.get(DIGEST, '""'))

    @property
    def aside(self) -> UPath:
        """Where it is put once it is found to be damaged."""
        return self.path.with_name(f"{self.path.name}.damaged")

    def damage(self) -> str | None:
        """What is wrong with it, if anything is: its bytes, or that it was made for another place. Of a file that was
        stored before files carried a digest nothing is known. Raises FileNotFoundError."""
        version = self.version
        if version in _whole:
            return None
        damage = self._damage_of(self._fetched)
        if damage is None:
            _whole.add(version)
        return damage

    def last_changed(self) -> float:
        """When it was written, or anything was done to it, in seconds since 1970. Raises FileNotFoundError."""
        return last_changed(self._existing())

    @property
    def version(self) -> str:
        """Which file this is: another one once it was written again. Raises FileNotFoundError."""
        return _version(self._existing())

    @cached_property
    def local(self) -> Path:
        """The file on this machine; a copy, if it is stored elsewhere, which goes with this object. Raises
        FileNotFoundError, or DamagedFileError."""
        version = self.version
        if damage := self.damage():
            self._refuse(damage, version)
        return self._fetched

    def _refuse(self, damage: str, version: str) -> None:
        said = f"{self.path} is damaged: {damage}. "
        with contextlib.suppress(OSError):
            if self.version == version:  # else it has just been made again
                self.path.fs.mv(self.path.path, self.aside.path)
                said += f"It was set aside as {self.aside.name}. "
        raise DamagedFileError(f"{said}Materialise {self._what} again: `jsae run` does")

    def _damage_of(self, local: Path) -> str | None:
        try:
            header = self._header_of(local)
        except ValueError as error:
            return str(error)
        carried = header.get(DIGEST, "").strip('"')
        if not carried and not may_carry_one(local):
            return None
        if not is_whole(local, carried):
            return "its bytes are not those that were written"
        made_by = json.loads(header.get(PROVENANCE, "{}"))
        if made_by:
            key, partition = dg.AssetKey.from_user_string(made_by["asset"]), made_by["partition"] or None
            if stored_at(key, partition, self.path.suffix) != self.relative:
                return f"it is the file of {made_by['asset']} for {partition}"
        return None

    @cached_property
    def _fetched(self) -> Path:
        path = self._existing()
        if is_local(path):
            return Path(path.path)
        folder = tempfile.TemporaryDirectory()
        self._copy = folder  # deleted with this object
        copy = Path(folder.name) / path.name
        path.fs.get(path.path, str(copy))
        return copy

    @abstractmethod
    def _header_of(self, local: Path) -> dict[str, str]:
        """What stands in the file beside its data. Raises ValueError where it cannot be read."""

    @property
    def header(self) -> dict[str, str]:
        """What stands in the file beside its data. Raises FileNotFoundError, or ValueError where that is damaged."""
        return self._header_of(self.local)

    @property
    def settings(self) -> dict[str, Any]:
        """What the data was made with: model, layer, variant, sizes. Raises as `header` does."""
        return json.loads(self.header.get(SETTINGS, "{}"))

    def _existing(self) -> UPath:
        if not self.path.exists():
            aside = f" (it was damaged, and was set aside as {self.aside.name})" if self.aside.exists() else ""
            raise FileNotFoundError(f"{self.path} is missing{aside}; materialise {self._what} first")
        return self.path


class StoredTensors(StoredFile, Mapping):
    """A stored safetensors file: a mapping from names to CPU tensors, each read when asked for."""

    @cached_property
    def _file(self):
        from jsae_core.tensor_files import open_tensors

        return open_tensors(self.local)

    @cached_property
    def header(self) -> dict[str, str]:
        """Only the header is read."""
        from jsae_core.tensor_files import read_header

        path = self._existing()
        with path.open("rb") as file:
            return read_header(file, str(path))

    def _header_of(self, local: Path) -> dict[str, str]:
        from jsae_core.tensor_files import open_tensors

        try:
            return open_tensors(local).metadata() or {}
        except ValueError as error:
            raise ValueError("it is no complete safetensors file") from error

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
        """To read some of its columns or rows. Raises FileNotFoundError, or DamagedFileError."""
        import pyarrow.dataset

        return pyarrow.dataset.dataset(self.local, format="parquet")

    def _header_of(self, local: Path) -> dict[str, str]:
        import pyarrow
        import pyarrow.parquet

        try:
            entries = pyarrow.parquet.read_metadata(local).metadata or {}
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"it is no complete parquet file ({error})") from error
        return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in entries.items()}


class StoredPages(StoredFile):
    """The page that opens a stored folder of pages."""

    def _header_of(self, local: Path) -> dict[str, str]:
        return {}

    def _damage_of(self, local: Path) -> str | None:
        return None  # pages carry no digest


class StoredFigure(StoredFile):
    """A stored figure's JSON."""

    @cached_property
    def figure(self) -> go.Figure:
        """Raises FileNotFoundError, or DamagedFileError."""
        import plotly.io

        return plotly.io.from_json(self.local.read_text(encoding="utf-8"))

    @property
    def page(self) -> UPath:
        return self.path.with_suffix(".html")

    @property
    def picture(self) -> UPath:
        """Which there is only where a browser could draw it."""
        return self.path.with_suffix(".png")

    @property
    def preview(self) -> UPath:
        """The picture, narrower, for the Dagster UI."""
        return self.path.with_name(f"{self.path.stem}~preview.png")  # no model's name has a ~

    @property
    def document(self) -> UPath:
        """The picture as PDF, for print, which there is where there is a picture."""
        return self.path.with_suffix(".pdf")

    @property
    def beside(self) -> list[str]:
        return [self.relative.removesuffix(self.path.suffix) + self.page.suffix]

    def exists(self) -> bool:
        return self.path.exists() and self.page.exists()

    @property
    def version(self) -> str:
        beside = (_version(path) for path in (self.page, self.picture, self.preview, self.document) if path.exists())
        return " ".join([super().version, *beside])

    def last_changed(self) -> float:
        beside = (
            last_changed(path) for path in (self.page, self.picture, self.preview, self.document) if path.exists()
        )
        return max(super().last_changed(), *beside)

    def _header_of(self, local: Path) -> dict[str, str]:
        try:
            meta = json.loads(local.read_text(encoding="utf-8"))["layout"].get("meta") or {}
            return {name: json.dumps(entry) for name, entry in meta.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no complete figure ({error})") from error

    def _damage_of(self, local: Path) -> str | None:
        return super()._damage_of(local) or next(self._damaged_companions(local), None)

    def _damaged_companions(self, local: Path) -> Iterator[str]:
        for suffix, digest in json.loads(self._header_of(local).get(COMPANIONS, "{}")).items():
            path = self.path.with_name(self.path.stem + suffix)
            if not path.exists():
                yield f"{path.name} beside it is gone"
            elif file_digest(path) != digest:
                yield f"the bytes of {path.name} beside it are not those that were written"
