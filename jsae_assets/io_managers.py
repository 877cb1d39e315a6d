"""The IO managers, by which Dagster stores assets and reads them again: pairs and tensors, tables, figures, pages.

Here: refusing wrong types, the header of a file, the metadata of the materialisation about the file. Not here: where a
file lies and how it is read (`files/`), what the values mean.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

import dagster as dg
from upath import UPath

from jsae_assets.digests import digest_of, in_groups
from jsae_assets.files.storage import delete, files_below, one_writer_at_a_time, staged, storage, stored_at
from jsae_assets.files.stored import (
    COMPANIONS,
    PROVENANCE,
    SETTINGS,
    StoredFigure,
    StoredFile,
    StoredPages,
    StoredTable,
    StoredTensors,
)
from jsae_assets.partitions import SEPARATOR, split_cell
from jsae_core.sealed_files import DIGEST, UNSEALED, seal

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go
    from torch import Tensor

BYTES = "bytes"  # the size of what was stored, until it is shown in megabytes


class StoringIOManager(dg.IOManager):
    """The base class of the IO managers. A subclass says which types it accepts and how they are written and read.

    It is not Dagster's UPathIOManager, because that tells the path of a partition only within a run of its asset, and
    here the path is needed elsewhere too.

    Attributes:
        base: the folder of all stored files.
        url: the address at which a web server serves the pages and pictures of `base`, if one does; the UI shows them
            from there.
    """

    kind: ClassVar[type[StoredFile]]
    extension: ClassVar[str]
    accepts: ClassVar[str]

    def __init__(self, base: UPath, url: str | None = None):
        self.base = base
        self.url = url

    @abstractmethod
    def is_accepted(self, obj: Any) -> bool: ...

    @abstractmethod
    def size(self, obj: Any) -> int:
        """Return about how many bytes an accepted object takes when it is stored."""

    @abstractmethod
    def write(self, obj: Any, path: Path, header: Mapping[str, str]) -> None:
        """Write an accepted object to a local file that has the stored file's extension."""

    @abstractmethod
    def read(self, stored: StoredFile, input_type: Any) -> Any:
        """Return what an asset receives for an input that is annotated with the type `input_type`."""

    def stored(self, key: dg.AssetKey, partition: str | None = None) -> StoredFile:
        """Return the stored file of an asset's partition, which need not exist."""
        name = key.to_user_string() + ("" if partition is None else f" for {partition}")
        return self.kind(self.base, stored_at(key, partition, self.extension), name)

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        if not self.is_accepted(obj):
            raise TypeError(
                f"{context.asset_key.to_user_string()} returned a {type(obj).__name__}, but {type(self).__name__} "
                f"stores {self.accepts}. Nothing was written"
            )
        stored = self.stored(context.asset_key, _partition(context))
        metadata = self.store(obj, stored, _header(context))
        context.add_output_metadata(metadata | self._site_link(context.asset_key, _partition(context)))

    def _site_link(self, key: dg.AssetKey, partition: str | None) -> dict[str, dg.MetadataValue]:
        """Return a link to the page of the site that shows a cell, and for a figure to its position on that page. The
        dict is empty for other partitions, and if no web server serves the site."""
        if self.url is None or partition is None or SEPARATOR not in partition:
            return {}
        anchor = ".".join(key.path[1:]) if key.path[0] == "figures" else ""
        page = f"{self.url.rstrip('/')}/site/cells/{'/'.join(map(str, split_cell(partition)))}.html"
        return {"site": _linked("this on the site", f"{page}#{anchor}" if anchor else page)}

    def _link(self, relative: str) -> dg.MetadataValue:
        if self.url is None:
            return dg.MetadataValue.path(relative)
        return _linked("open the page", self._address(relative))

    def _address(self, relative: str) -> str:
        assert self.url is not None
        return f"{self.url.rstrip('/')}/{quote(relative)}"

    def store(self, obj: Any, stored: StoredFile, header: Mapping[str, str]) -> dict[str, Any]:
        """Store an accepted object and return the metadata of its materialisation. A damaged file of the same place
        that had been set aside is deleted."""
        metadata = self._put(obj, stored, header)
        delete(stored.set_aside_path)
        megabytes = float(f"{metadata.pop(BYTES) / 1e6:.3g}")
        place = {"path": dg.MetadataValue.path(stored.relative), "megabytes": megabytes}
        digest = {DIGEST: in_groups(metadata.pop(DIGEST))} if DIGEST in metadata else {}
        return metadata | place | digest  # the digest comes last, since nobody reads it

    def _put(self, obj: Any, stored: StoredFile, header: Mapping[str, str]) -> dict[str, Any]:
        """Write an object as one file with a digest in its header. Return the metadata, without the path, and with the
        size in bytes."""
        with staged(stored.path, self.size(obj)) as local:
            return self._write_sealed(obj, local, header)

    def _write_sealed(self, obj: Any, local: Path, header: Mapping[str, str]) -> dict[str, Any]:
        """Write an object to a local file, and put the file's digest into its header. Return the digest and the size in
        bytes."""
        self.write(obj, local, {**header, DIGEST: json.dumps(UNSEALED)})
        return {DIGEST: seal(local), BYTES: local.stat().st_size}

    def load_input(self, context: dg.InputContext) -> Any:
        """Return the object of one partition, or a dict by partition key if the input spans several, as Dagster's own
        IO managers do."""
        input_type = context.dagster_type.typing_type
        input_type = getattr(input_type, "__origin__", input_type)
        if not context.has_asset_partitions:
            return self.read(self.stored(context.asset_key), input_type)
        keys = context.asset_partition_keys
        loaded = {key: self.read(self.stored(context.asset_key, key), input_type) for key in keys}
        return loaded if len(keys) > 1 else loaded.get(keys[0])


class SafetensorsIOManager(StoringIOManager):
    """Stores an SAEPair or a dict of tensors. An input annotated `dict` is read at once, any other as `StoredTensors`,
    which reads each tensor when it is used."""

    kind = StoredTensors
    extension = ".safetensors"
    accepts = "an SAEPair or a dict of tensors"

    def is_accepted(self, obj: Any) -> bool:
        import torch

        from jsae_core import SAEPair

        is_tensors = isinstance(obj, dict) and all(
            isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in obj.items()
        )
        return isinstance(obj, SAEPair) or is_tensors

    def size(self, obj: Any) -> int:
        return sum(tensor.nbytes for tensor in (obj if isinstance(obj, dict) else obj.tensors()).values())

    def write(self, obj: Any, path: Path, header: Mapping[str, str]) -> None:
        from jsae_core.tensor_files import write_tensors

        if isinstance(obj, dict):
            write_tensors(obj, path, header)
        else:
            write_tensors(obj.tensors(), path, {**header, "cfg": json.dumps(obj.config.to_artifact())})

    def read(self, stored: StoredTensors, input_type: Any) -> StoredTensors | dict[str, Tensor]:
        return dict(stored) if input_type is dict else stored


class ParquetIOManager(StoringIOManager):
    """Stores a pandas DataFrame. An input annotated `pandas.DataFrame` is read at once, any other as `StoredTable`,
    which reads when it is used."""

    kind = StoredTable
    extension = ".parquet"
    accepts = "a pandas DataFrame with columns named by strings"

    def is_accepted(self, obj: Any) -> bool:
        import pandas

        return isinstance(obj, pandas.DataFrame) and all(isinstance(name, str) for name in obj.columns)

    def size(self, obj: pandas.DataFrame) -> int:
        return int(obj.memory_usage(deep=True).sum())

    def write(self, obj: pandas.DataFrame, path: Path, header: Mapping[str, str]) -> None:
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.Table.from_pandas(obj, preserve_index=False)
        others = {name: entry for name, entry in header.items() if name != DIGEST}
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **others})
        with pyarrow.parquet.ParquetWriter(path, table.schema) as writer:
            writer.write_table(table)
            # not in the schema's metadata, which is written twice, once encoded: the digest must stand there only once
            writer.add_key_value_metadata({DIGEST: header[DIGEST]})

    def read(self, stored: StoredTable, input_type: Any) -> StoredTable | pandas.DataFrame:
        import pandas

        return stored.frame if input_type is pandas.DataFrame else stored


class FigureIOManager(StoringIOManager):
    """Stores a Plotly figure as JSON, as HTML that opens offline, and, if Chrome is installed, as PNG and PDF. Inputs
    are read as Plotly figures.

    The HTML pages share one copy of plotly.js in the base folder.
    """

    kind = StoredFigure
    extension = ".json"
    accepts = "a Plotly figure"

    def is_accepted(self, obj: Any) -> bool:
        import plotly.graph_objects as go

        return isinstance(obj, go.Figure)

    def size(self, obj: go.Figure) -> int:
        return len(obj.to_json())

    def write(self, obj: go.Figure, path: Path, header: Mapping[str, str]) -> None:
        import plotly.graph_objects as go

        figure = go.Figure(obj)
        entries = {name: json.loads(entry) for name, entry in header.items()}
        figure.update_layout(meta={**(obj.layout.meta or {}), **entries})
        path.write_text(figure.to_json(), encoding="utf-8")

    def _put(self, obj: go.Figure, stored: StoredFigure, header: Mapping[str, str]) -> dict[str, Any]:
        import plotly.offline

        from jsae_core.figures.export import page, pictures

        drawn, reason = pictures(obj)
        script = f"plotly-{plotly.offline.get_plotlyjs_version()}.min.js"
        # the path of the script is relative, so that the folder can be moved
        text = page(obj, "../" * stored.relative.count("/") + script, json.loads(header[PROVENANCE]))
        companions = {stored.page: text.encode()}
        if drawn is not None:
            companions |= {stored.picture: drawn.png, stored.preview: drawn.preview}
            companions |= {} if drawn.pdf is None else {stored.document: drawn.pdf}
        # the stack moves the files to their places only when all are written
        with one_writer_at_a_time(stored.path.parent), contextlib.ExitStack() as stack:
            digests = {}
            for path, content in companions.items():
                local = stack.enter_context(staged(path, len(content)))
                local.write_bytes(content)
                digests[path.name.removeprefix(stored.path.stem)] = digest_of(content)
            local = stack.enter_context(staged(stored.path, self.size(obj)))
            written = self._write_sealed(obj, local, {**header, COMPANIONS: json.dumps(digests)})
            self._provide_script(script)
        for path in {stored.picture, stored.preview, stored.document} - set(companions):
            delete(path)  # a picture of an older figure
        without_suffix = stored.relative.removesuffix(self.extension)
        return {
            "picture": dg.MetadataValue.text(reason)
            if drawn is None
            else self._shown_picture(f"{without_suffix}~preview.png"),
            "page": self._link(f"{without_suffix}.html"),
            **written,
        }

    def _provide_script(self, name: str) -> None:
        """Write plotly.js into the base folder, for all pages, unless this version is there already."""
        import plotly.offline

        if not (self.base / name).exists():
            content = plotly.offline.get_plotlyjs().encode()
            with staged(self.base / name, len(content)) as local:
                local.write_bytes(content)

    def _shown_picture(self, relative: str) -> dg.MetadataValue:
        """Return metadata by which the UI shows a picture from the web server, or a text while the server does not
        answer. (A picture in the event log would be folded away, like all Markdown of 1,000 characters and more.)"""
        if self.url is None:
            return dg.MetadataValue.path(relative)
        alternative = f"The picture is served at {self.url} while `jsae ui` runs"
        return dg.MetadataValue.md(f"![{alternative}]({self._address(relative)})")

    def read(self, stored: StoredFigure, input_type: Any) -> go.Figure:
        return stored.figure


class PagesIOManager(StoringIOManager):
    """Stores a folder of pages in the asset's folder. index.html is written last, and files of an earlier version that
    are no longer part of the folder are deleted."""

    kind = StoredPages
    extension = "/index.html"
    accepts = "a folder with an index.html"

    def is_accepted(self, obj: Any) -> bool:
        return isinstance(obj, Path) and (obj / "index.html").is_file()

    def _put(self, obj: Path, stored: StoredFile, header: Mapping[str, str]) -> dict[str, Any]:
        folder = stored.path.parent
        files = sorted(path.relative_to(obj).as_posix() for path in obj.rglob("*") if path.is_file())
        with one_writer_at_a_time(folder):
            old = files_below(folder)
            for name in sorted(files, key=lambda name: name == "index.html"):
                with staged(folder / name, (obj / name).stat().st_size) as local:
                    self.write(obj / name, local, header)
            for name in set(old) - set(files):
                delete(folder / name)
        return {"page": self._link(stored.relative), "files": len(files), BYTES: self.size(obj)}

    def size(self, obj: Path) -> int:
        return sum(path.stat().st_size for path in obj.rglob("*") if path.is_file())

    def write(self, obj: Path, path: Path, header: Mapping[str, str]) -> None:
        shutil.copyfile(obj, path)

    def read(self, stored: StoredFile, input_type: Any) -> StoredFile:
        return stored


class Store(dg.ConfigurableIOManagerFactory):
    """A store for one kind of file: below any fsspec path, by default in the instance's own storage folder."""

    manager: ClassVar[type[StoringIOManager]]
    base_path: str | None = None
    url: str | None = None

    def create_io_manager(self, context: dg.InitResourceContext) -> StoringIOManager:
        return self.manager_of(context.instance)

    def manager_of(self, instance: dg.DagsterInstance) -> StoringIOManager:
        return self.manager(storage(self.base_path, instance), self.url)


class SafetensorsStore(Store):
    manager = SafetensorsIOManager


class ParquetStore(Store):
    manager = ParquetIOManager


class FigureStore(Store):
    manager = FigureIOManager


class PagesStore(Store):
    manager = PagesIOManager


def _linked(words: str, address: str) -> dg.MetadataValue:
    """Return metadata with a link. An address that is written out would widen the table in which the UI shows it."""
    return dg.MetadataValue.md(f"[{words}]({address})")


def _partition(context: dg.OutputContext) -> str | None:
    return context.partition_key if context.has_partition_key else None


def header(
    key: dg.AssetKey,
    partition: str | None,
    run: str,
    code_version: str | None,
    source: str = "",
    settings: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Return the header of a stored file: what made it, and the settings that it was made with. Each entry is JSON."""
    provenance = {
        "asset": key.to_user_string(),
        "partition": partition or "",
        "run": run,
        "code_version": code_version or "",
        "source": source,
    }
    return {PROVENANCE: json.dumps(provenance), SETTINGS: json.dumps(dict(settings or {}))}


def _header(context: dg.OutputContext) -> dict[str, str]:
    """Return the header for an asset's output, with the source and the settings that the output's metadata names."""
    metadata = {name: value.value for name, value in context.output_metadata.items() if name in ("source", SETTINGS)}
    return header(
        context.asset_key,
        _partition(context),
        context.run_id,
        context.asset_spec.code_version,
        str(metadata.get("source", "")),
        metadata.get(SETTINGS),
    )
