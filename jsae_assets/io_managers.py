"""What Dagster calls to store an asset and to read it again: pairs and tensors, tables, figures.

Here: refusing wrong types, what stands in a file beside its data, what the materialisation says of the file. Not here:
where a file lies (`storage.py`), how it is read (`stored.py`), what the values mean.
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

from jsae_assets.digests import UNSEALED, file_digest, seal
from jsae_assets.partitions import SEPARATOR, split_cell
from jsae_assets.storage import files_below, in_turn, staged, storage, stored_at
from jsae_assets.stored import (
    COMPANIONS,
    DIGEST,
    PROVENANCE,
    SETTINGS,
    StoredFigure,
    StoredFile,
    StoredPages,
    StoredTable,
    StoredTensors,
)

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go
    from torch import Tensor


class StoringIOManager(dg.IOManager):
    """What all stores share. A subclass says which types it takes and how one is written and read.

    Not Dagster's UPathIOManager: that says where a partition lies to a run of its asset alone, and here others ask too.

    Attributes:
        base: the folder that all stored files are below.
        url: where a web server gives out the pages and pictures of the base folder, if one does; the UI then shows
            them from there.
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
        """About how many bytes it takes to store what is accepted."""

    @abstractmethod
    def write(self, obj: Any, path: Path, header: Mapping[str, str]) -> None:
        """Write to a local file, whose name ends as the stored file's does."""

    @abstractmethod
    def read(self, stored: StoredFile, wanted: Any) -> Any:
        """What an asset is given whose input is annotated `wanted`."""

    def stored(self, key: dg.AssetKey, partition: str | None = None) -> StoredFile:
        """An asset's partition, whether it is there or not."""
        what = key.to_user_string() + ("" if partition is None else f" for {partition}")
        return self.kind(self.base, stored_at(key, partition, self.extension), what)

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        if not self.is_accepted(obj):
            raise TypeError(
                f"{context.asset_key.to_user_string()} gave a {type(obj).__name__}; {type(self).__name__} stores "
                f"{self.accepts}. Nothing was written"
            )
        stored = self.stored(context.asset_key, _partition(context))
        said = self.store(obj, stored, _header(context))
        context.add_output_metadata(said | self._shown_at(context.asset_key, _partition(context)))

    def _shown_at(self, key: dg.AssetKey, partition: str | None) -> dict[str, dg.MetadataValue]:
        """The page of the site that shows a cell; of a figure, the place on it."""
        if self.url is None or partition is None or SEPARATOR not in partition:
            return {}
        anchor = ".".join(key.path[1:]) if key.path[0] == "figures" else ""
        page = f"{self.url.rstrip('/')}/site/cells/{'/'.join(map(str, split_cell(partition)))}.html"
        return {"site": dg.MetadataValue.url(f"{page}#{anchor}" if anchor else page)}

    def _link(self, relative: str) -> dg.MetadataValue:
        if self.url is None:
            return dg.MetadataValue.path(relative)
        return dg.MetadataValue.url(f"{self.url.rstrip('/')}/{quote(relative)}")

    def store(self, obj: Any, stored: StoredFile, header: Mapping[str, str]) -> dict[str, Any]:
        """Write what is accepted to its place; gives what the materialisation says of it. What was set aside there as
        damaged goes."""
        said = self._put(obj, stored, header)
        stored.aside.unlink(missing_ok=True)
        megabytes = stored.path.stat().st_size / 1e6
        where = {"path": dg.MetadataValue.path(stored.relative), "megabytes": float(f"{megabytes:.3g}")}
        digest = {DIGEST: said.pop(DIGEST)} if DIGEST in said else {}
        return said | where | digest  # what nobody reads comes last

    def _put(self, obj: Any, stored: StoredFile, header: Mapping[str, str]) -> dict[str, Any]:
        """Write it as one file with a digest in its header; gives what is to be said of it beside path and size."""
        with staged(stored.path, self.size(obj)) as local:
            return {DIGEST: self._sealed(obj, local, header)}

    def _sealed(self, obj: Any, local: Path, header: Mapping[str, str]) -> str:
        self.write(obj, local, {**header, DIGEST: json.dumps(UNSEALED)})
        return seal(local)

    def load_input(self, context: dg.InputContext) -> Any:
        """As Dagster has it: what one partition holds; of several, a dict by their keys."""
        wanted = context.dagster_type.typing_type
        wanted = getattr(wanted, "__origin__", wanted)
        if not context.has_asset_partitions:
            return self.read(self.stored(context.asset_key), wanted)
        keys = context.asset_partition_keys
        loaded = {key: self.read(self.stored(context.asset_key, key), wanted) for key in keys}
        return loaded if len(keys) > 1 else loaded.get(keys[0])


class SafetensorsIOManager(StoringIOManager):
    """Stores an SAEPair or a dict of tensors. Read as `StoredTensors` (lazy) or, annotated `dict`, all at once."""

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

    def read(self, stored: StoredTensors, wanted: Any) -> StoredTensors | dict[str, Tensor]:
        return dict(stored) if wanted is dict else stored


class ParquetIOManager(StoringIOManager):
    """Stores a pandas DataFrame. Read as `StoredTable` (lazy) or, annotated `pandas.DataFrame`, all at once."""

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
            # what is in the schema is written twice, once encoded
            writer.add_key_value_metadata({DIGEST: header[DIGEST]})

    def read(self, stored: StoredTable, wanted: Any) -> StoredTable | pandas.DataFrame:
        import pandas

        return stored.frame if wanted is pandas.DataFrame else stored


class FigureIOManager(StoringIOManager):
    """Stores a Plotly figure as JSON, as HTML that opens offline, and as PNG and PDF where a Chrome is installed.

    The pages share one copy of plotly.js in the base folder. Read as a Plotly figure.
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
        figure.update_layout(meta={**(obj.layout.meta or {}), **{name: json.loads(of) for name, of in header.items()}})
        path.write_text(figure.to_json(), encoding="utf-8")

    def _put(self, obj: go.Figure, stored: StoredFigure, header: Mapping[str, str]) -> dict[str, Any]:
        import plotly.offline

        from jsae_core.figures.export import page, pictures

        drawn, reason = pictures(obj)
        script = f"plotly-{plotly.offline.get_plotlyjs_version()}.min.js"
        # relative, so that the folder can be moved
        text = page(obj, "../" * stored.relative.count("/") + script, json.loads(header[PROVENANCE]))
        beside = {stored.page: text.encode()}
        if drawn is not None:
            beside |= {stored.picture: drawn.png, stored.preview: drawn.preview}
            beside |= {} if drawn.pdf is None else {stored.document: drawn.pdf}
        with in_turn(stored.path.parent), contextlib.ExitStack() as stack:  # all are written before one takes its place
            digests = {}
            for path, content in beside.items():
                local = stack.enter_context(staged(path, len(content)))
                local.write_bytes(content)
                digests[path.name.removeprefix(stored.path.stem)] = file_digest(local)
            local = stack.enter_context(staged(stored.path, self.size(obj)))
            digest = self._sealed(obj, local, {**header, COMPANIONS: json.dumps(digests)})
            self._provide_script(script)
        for path in {stored.picture, stored.preview, stored.document} - set(beside):
            path.unlink(missing_ok=True)  # it showed an older figure
        without_suffix = stored.relative.removesuffix(self.extension)
        return {
            "picture": dg.MetadataValue.text(reason) if drawn is None else self._shown(f"{without_suffix}~preview.png"),
            "page": self._link(f"{without_suffix}.html"),
            DIGEST: digest,
        }

    def _provide_script(self, name: str) -> None:
        """plotly.js, for all pages: written once a version."""
        import plotly.offline

        if not (self.base / name).exists():
            content = plotly.offline.get_plotlyjs().encode()
            with staged(self.base / name, len(content)) as local:
                local.write_bytes(content)

    def _shown(self, relative: str) -> dg.MetadataValue:
        """The picture, which the UI shows unfolded where the web server answers, else the words in its place. (In the
        event log itself it would be folded away: that is done to all Markdown of 1,000 characters.)"""
        link = self._link(relative)
        if not isinstance(link, dg.UrlMetadataValue):
            return link
        return dg.MetadataValue.md(f"![The picture is given out at {self.url}, by `jsae ui`]({link.value})")

    def read(self, stored: StoredFigure, wanted: Any) -> go.Figure:
        return stored.figure


class PagesIOManager(StoringIOManager):
    """Stores a folder of pages, a file each: below the asset's own folder, the page that opens it last. What is there
    from before and no longer part of it goes."""

    kind = StoredPages
    extension = "/index.html"
    accepts = "a folder with an index.html"

    def is_accepted(self, obj: Any) -> bool:
        return isinstance(obj, Path) and (obj / "index.html").is_file()

    def _put(self, obj: Path, stored: StoredFile, header: Mapping[str, str]) -> dict[str, Any]:
        folder = stored.path.parent
        files = sorted(path.relative_to(obj).as_posix() for path in obj.rglob("*") if path.is_file())
        with in_turn(folder):
            old = files_below(folder)
            for name in sorted(files, key=lambda name: name == "index.html"):
                with staged(folder / name, (obj / name).stat().st_size) as local:
                    self.write(obj / name, local, header)
            for name in set(old) - set(files):
                (folder / name).unlink()
        return {"page": self._link(stored.relative), "files": len(files), "megabytes": round(self.size(obj) / 1e6, 1)}

    def size(self, obj: Path) -> int:
        return sum(path.stat().st_size for path in obj.rglob("*") if path.is_file())

    def write(self, obj: Path, path: Path, header: Mapping[str, str]) -> None:
        shutil.copyfile(obj, path)

    def read(self, stored: StoredFile, wanted: Any) -> StoredFile:
        return stored


class Store(dg.ConfigurableIOManagerFactory):
    """Where one kind of file is kept: any fsspec path, by default the instance's own storage folder."""

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
    """What stands in a file beside its data, each entry JSON: what made it, and the settings that it was made with."""
    made_by = {
        "asset": key.to_user_string(),
        "partition": partition or "",
        "run": run,
        "code_version": code_version or "",
        "source": source,
    }
    return {PROVENANCE: json.dumps(made_by), SETTINGS: json.dumps(dict(settings or {}))}


def _header(context: dg.OutputContext) -> dict[str, str]:
    """The header of what an asset gave, which says its source and its settings in its metadata."""
    said = {name: value.value for name, value in context.output_metadata.items() if name in ("source", SETTINGS)}
    return header(
        context.asset_key,
        _partition(context),
        context.run_id,
        context.asset_spec.code_version,
        str(said.get("source", "")),
        said.get(SETTINGS),
    )
