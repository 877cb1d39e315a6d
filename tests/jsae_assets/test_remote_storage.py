"""A whole cell with the storage elsewhere: in memory, and on an S3 server on loopback."""

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from s3fs import S3FileSystem
from upath import UPath

from jsae_assets.io_managers import FigureStore, ParquetStore, SafetensorsStore
from tests.jsae_assets.conftest import CELL_FIGURES, PER_VARIANT, materialised, metadata
from tests.s3_server import BUCKET, s3_server


@pytest.fixture
def s3(monkeypatch):
    """An S3 server, which everything here is pointed at."""
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        yield f"s3://{BUCKET}/storage"
        S3FileSystem.clear_instance_cache()


@pytest.fixture
def fetched(monkeypatch):
    """The paths that were fetched as whole files."""
    paths: list[str] = []
    in_memory, from_s3 = MemoryFileSystem.get_file, S3FileSystem._get_file

    def get_file(self, rpath, lpath, **options):
        paths.append(rpath)
        return in_memory(self, rpath, lpath, **options)

    async def _get_file(self, rpath, lpath, **options):
        paths.append(rpath)
        return await from_s3(self, rpath, lpath, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    monkeypatch.setattr(S3FileSystem, "_get_file", _get_file)
    return paths


@pytest.mark.parametrize("place", ["memory", "s3"])
def test_a_cell_is_made_wherever_the_storage_is_and_each_pair_is_fetched_once_a_run(
    request, entries, graph, fetched, tmp_path, place
):
    base = f"memory://{tmp_path.name}" if place == "memory" else request.getfixturevalue("s3")
    stores = {"tensors": SafetensorsStore, "tables": ParquetStore, "figures": FigureStore}
    tiny = graph(entries(), **{kind: store(base_path=base) for kind, store in stores.items()})
    tiny.tokenise()
    result = tiny.measure(1, raise_on_error=True)
    assert len(materialised(result)) == 2 * len(PER_VARIANT) + len(CELL_FIGURES)
    pairs = [path for path in fetched if "sae_pair" in path and "checkpoints" not in path]
    assert len(pairs) == len(set(pairs)) == 2
    told = metadata(result, "figures/jsae/jacobian_histogram")
    assert told["page"] == "figures/jsae/jacobian_histogram/1/tiny.html"
    assert (UPath(base) / told["page"]).exists() and (UPath(base) / told["path"]).exists()
    assert str(UPath(base) / told["page"]).startswith(f"{place}://")
