"""How assets are stored: safetensors, parquet, figures; on any fsspec path.

Here: refusing wrong types, writing beside the place and moving there when complete, provenance inside the file, lazy
reading. Not here: what the values mean.

All paths are <base>/<asset key>/<layer>/<model>.<extension>, or <base>/<asset key>/<partition>.<extension> for what is
not of a layer.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import uuid
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import dagster as dg
from upath import UPath

from jsae_assets.partitions import stored_below

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go
    import pyarrow.dataset
    from torch import Tensor

PROVENANCE = "provenance"


class StoredFile:
    """A stored file. Nothing is opened before the first use, so an asset may decline a partition whose inputs do not
    exist."""

    def __init__(self, path: UPath, what: str):
        self._remote = path
        self._what = what

    @cached_property
    def path(self) -> Path:
        """The file on this machine (a copy, if it is stored elsewhere). Raises FileNotFoundError."""
        stored = self._existing()
        if _is_local(stored):
            return Path(stored.path)
        folder = tempfile.TemporaryDirectory()
        self._copy = folder  # deleted with this object
        copy = Path(folder.name) / stored.name
        stored.fs.get(stored.path, str(copy))
        return copy

    def exists(self) -> bool:
        return self._remote.exists()

    def _existing(self) -> UPath:
        if not self.exists():
            raise FileNotFoundError(f"{self._remote} is missing; materialise {self._what} first")
        return self._remote


class StoredTensors(StoredFile, Mapping):
    """A stored safetensors file: a mapping from names to CPU tensors, each read when asked for."""

    @cached_property
    def _file(self):
        from jsae_core.tensor_files import open_tensors

        return open_tensors(self.path)

    @property
    def header(self) -> dict[str, str]:
        """The file's own metadata: its provenance and, for a pair, its configuration."""
        return self._file.metadata() or {}

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
        """All of it; `frame.attrs` is what it was stored with."""
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


class StoringIOManager(dg.UPathIOManager):
    """What all stores share. A subclass says which types it takes and how one is written to a local file."""

    accepts: str

    @property
    def base_path(self) -> UPath:
        """The folder that all stored paths are below."""
        return self._base_path

    def get_path_for_partition(self, context: dg.InputContext | dg.OutputContext, path: UPath, partition: str) -> UPath:
        return path / stored_below(partition)

    def path_of(self, key: dg.AssetKey, partition: str | None) -> UPath:
        """Where an asset, at a partition if it has any, is stored, whether it is there or not."""
        place = [*key.path, stored_below(partition)] if partition else key.path
        return self.base_path / ("/".join(place) + self.extension)

    @abstractmethod
    def is_accepted(self, obj: Any) -> bool: ...

    @abstractmethod
    def write(self, obj: Any, path: Path, provenance: Mapping[str, str]) -> None:
        """Write to a local file, whose name ends as the stored file's does."""

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        if not self.is_accepted(obj):
            raise TypeError(
                f"{context.asset_key.to_user_string()} gave a {type(obj).__name__}; {type(self).__name__} stores "
                f"{self.accepts}. Nothing was written"
            )
        super().handle_output(context, obj)

    def dump_to_path(self, context: dg.OutputContext, obj: Any, path: UPath) -> None:
        with staged(path) as local:
            self.write(obj, local, provenance(context))
        context.add_output_metadata({"size": dg.MetadataValue.int(path.stat().st_size)})


class SafetensorsIOManager(StoringIOManager):
    """Stores an SAEPair or a dict of tensors. Read as `StoredTensors` (lazy) or, annotated `dict`, all at once."""

    extension = ".safetensors"
    accepts = "an SAEPair or a dict of tensors"

    def is_accepted(self, obj: Any) -> bool:
        import torch

        from jsae_core import SAEPair

        is_tensors = isinstance(obj, dict) and all(
            isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in obj.items()
        )
        return isinstance(obj, SAEPair) or is_tensors

    def write(self, obj: Any, path: Path, provenance: Mapping[str, str]) -> None:
        from jsae_core.tensor_files import write_tensors

        header = {PROVENANCE: json.dumps(provenance)}
        if isinstance(obj, dict):
            tensors = obj
        else:
            tensors = obj.tensors()
            header["cfg"] = json.dumps(obj.config.to_published())
        write_tensors(tensors, path, header)

    def load_from_path(self, context: dg.InputContext, path: UPath) -> Any:
        stored = StoredTensors(path, described(context))
        return dict(stored) if _origin(context) is dict else stored


class ParquetIOManager(StoringIOManager):
    """Stores a pandas DataFrame. Read as `StoredTable` (lazy) or, annotated `pandas.DataFrame`, all at once."""

    extension = ".parquet"
    accepts = "a pandas DataFrame with columns named by strings"

    def is_accepted(self, obj: Any) -> bool:
        import pandas

        return isinstance(obj, pandas.DataFrame) and all(isinstance(name, str) for name in obj.columns)

    def write(self, obj: pandas.DataFrame, path: Path, provenance: Mapping[str, str]) -> None:
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.Table.from_pandas(obj, preserve_index=False)
        metadata = (table.schema.metadata or {}) | {PROVENANCE.encode(): json.dumps(provenance).encode()}
        pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)

    def load_from_path(self, context: dg.InputContext, path: UPath) -> Any:
        import pandas

        stored = StoredTable(path, described(context))
        return stored.frame if _origin(context) is pandas.DataFrame else stored


class FigureIOManager(StoringIOManager):
    """Stores a Plotly figure as JSON, as HTML that opens offline, and as PNG where a Chrome is installed.

    The pages share one copy of plotly.js in the base folder. Read as a Plotly figure.
    """

    extension = ".json"
    accepts = "a Plotly figure"

    def is_accepted(self, obj: Any) -> bool:
        import plotly.graph_objects as go

        return isinstance(obj, go.Figure)

    def write(self, obj: go.Figure, path: Path, provenance: Mapping[str, str]) -> None:
        import plotly.graph_objects as go

        figure = go.Figure(obj)
        figure.update_layout(meta={PROVENANCE: dict(provenance)})
        path.write_text(figure.to_json(), encoding="utf-8")

    def dump_to_path(self, context: dg.OutputContext, obj: go.Figure, path: UPath) -> None:
        from jsae_core.figures.export import page, png

        html, image = path.with_suffix(".html"), path.with_suffix(".png")
        picture, reason = png(obj)
        with contextlib.ExitStack() as stack:  # all are written before the first takes its place
            self.write(obj, stack.enter_context(staged(path)), provenance(context))
            text = page(obj, self._plotly_js(path), provenance(context))
            stack.enter_context(staged(html)).write_text(text, encoding="utf-8")
            if picture is not None:
                stack.enter_context(staged(image)).write_bytes(picture)
        if picture is None:
            image.unlink(missing_ok=True)  # it showed an older figure
        shown = dg.MetadataValue.text(reason) if picture is None else dg.MetadataValue.md(_inline(picture, image))
        context.add_output_metadata(
            {"picture": shown, "page": _link(html), "size": dg.MetadataValue.int(path.stat().st_size)}
        )

    def _plotly_js(self, path: UPath) -> str:
        """Where a page finds plotly.js, written once a version; relative, so that the folder can be moved."""
        import plotly.offline

        script = self.base_path / f"plotly-{plotly.offline.get_plotlyjs_version()}.min.js"
        if not script.exists():
            with staged(script) as local:
                local.write_text(plotly.offline.get_plotlyjs(), encoding="utf-8")
        depth = len(path.parent.parts) - len(self.base_path.parts)
        return "../" * depth + script.name

    def load_from_path(self, context: dg.InputContext, path: UPath) -> go.Figure:
        import plotly.io

        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; materialise {described(context)} first")
        return plotly.io.from_json(path.read_text(encoding="utf-8"))


class Store(dg.ConfigurableIOManagerFactory):
    """Where one kind of file is kept: any fsspec path, by default the instance's own storage folder."""

    manager: ClassVar[type[StoringIOManager]]
    base_path: str | None = None

    def create_io_manager(self, context: dg.InitResourceContext) -> StoringIOManager:
        return self.manager_of(context.instance)

    def manager_of(self, instance: dg.DagsterInstance) -> StoringIOManager:
        return self.manager(UPath(self.base_path or instance.storage_directory()))


class SafetensorsStore(Store):
    manager = SafetensorsIOManager


class ParquetStore(Store):
    manager = ParquetIOManager


class FigureStore(Store):
    manager = FigureIOManager


def text_tensor(texts: list[str]) -> Tensor:
    """Texts as a tensor of UTF-8 bytes, since safetensors holds nothing else."""
    import torch

    return torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8)


def tensor_text(tensor: Tensor) -> list[str]:
    """What `text_tensor` packed."""
    return json.loads(bytes(tensor.tolist()))


def provenance(context: dg.OutputContext) -> dict[str, str]:
    """What made this file: asset, partition, run, code version and (as the asset says in its metadata) source."""
    source = context.output_metadata.get("source")
    return {
        "asset": context.asset_key.to_user_string(),
        "partition": context.partition_key if context.has_partition_key else "",
        "run": context.run_id,
        "code_version": context.asset_spec.code_version or "",
        "source": "" if source is None else str(source.value),
    }


def described(context: dg.InputContext) -> str:
    """The asset and, if it is read from a single one, the partition an input comes from, in words."""
    keys = context.asset_partition_keys if context.has_asset_partitions else []
    return context.asset_key.to_user_string() + (f" for {keys[0]}" if len(keys) == 1 else "")


@contextlib.contextmanager
def staged(path: UPath) -> Iterator[Path]:
    """A local file to write to; it takes the place of `path` once the block ends without an error, and else is gone.

    On this machine it lies beside its place, so the move is atomic. Elsewhere it is uploaded beside it and renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.part{path.suffix}")
    if _is_local(path):
        local = Path(part.path)
        try:
            yield local
            local.replace(path.path)
        finally:
            local.unlink(missing_ok=True)
    else:
        folder = Path(tempfile.mkdtemp())
        try:
            yield folder / part.name
            path.fs.put(str(folder / part.name), part.path)
            path.fs.mv(part.path, path.path)
        finally:
            shutil.rmtree(folder)
            if part.exists():
                part.unlink()


def _is_local(path: UPath) -> bool:
    return path.protocol in ("", "file", "local")


def _origin(context: dg.InputContext) -> Any:
    annotation = context.dagster_type.typing_type
    return getattr(annotation, "__origin__", annotation)


def _link(path: UPath) -> dg.MetadataValue:
    return dg.MetadataValue.path(path.path) if _is_local(path) else dg.MetadataValue.url(str(path))


def _inline(picture: bytes, path: UPath) -> str:
    """Markdown with the picture in it. It lives in the event log, so it must stay small."""
    import base64

    if len(picture) > 100_000:
        return f"The picture has {len(picture):,} bytes, too many to show here: {path}"
    return f"![{path.stem}](data:image/png;base64,{base64.b64encode(picture).decode()})"
