"""A whole cell and the site with the storage elsewhere: on an S3 server on loopback."""

from collections import Counter

import boto3
import dagster as dg
import pandas as pd
import pytest
from s3fs import S3FileSystem
from upath import UPath

from benchmarks.remote import counted_requests
from jsae_assets.command import figure_pages, open_site
from jsae_assets.files.storage import files_below
from jsae_assets.io_managers import ParquetStore, StoringIOManager, header
from jsae_assets.site.serving import URL
from tests.jsae_assets.conftest import address, materialised, metadata
from tests.s3_server import BUCKET, s3_server

# Of a cell, what shows each way of storing: pairs, tensors, tables, figures; several are measured on each pair.
MEASURES = ("sae_pair", "jacobian_histogram", "jacobian_examples", "latent_accounting", "function_shapes")
MADE = {f"{variant}/{name}" for variant in ("traditional", "jsae") for name in MEASURES} | {
    f"figures/jsae/{name}" for name in ("jacobian_histogram", "edge_curve")
}


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
    from_s3 = S3FileSystem._get_file

    async def _get_file(self, rpath, lpath, **options):
        paths.append(rpath)
        return await from_s3(self, rpath, lpath, **options)

    monkeypatch.setattr(S3FileSystem, "_get_file", _get_file)
    return paths


def test_a_cell_and_the_site_are_made_on_s3_each_pair_is_fetched_once_and_pages_have_addresses(
    s3, entries, graph, fetched, monkeypatch, capsys
):
    base = s3
    monkeypatch.setenv("JSAE_STORAGE", base)
    tiny = graph(entries())
    tiny.tokenise()
    result = tiny.measure(1, *MADE, raise_on_error=True)
    assert materialised(result) == MADE
    pairs = [path for path in fetched if "sae_pair" in path and "checkpoints" not in path]
    assert len(pairs) == len(set(pairs)) == 2
    told = metadata(result, "figures/jsae/jacobian_histogram")
    assert address(told["page"]) == f"{URL}/figures/jsae/jacobian_histogram/1/tiny.html"  # where `jsae ui` gives it out
    assert (UPath(base) / address(told["page"]).removeprefix(f"{URL}/")).exists() and (
        UPath(base) / told["path"]
    ).exists()
    tiny.definitions.resolve_job_def("make_site").execute_in_process(instance=tiny.instance)
    capsys.readouterr()
    assert open_site(tiny.instance) == 0
    assert capsys.readouterr().out == f"{base}/site/index.html\n"
    assert "tiny, layer 1" in UPath(f"{base}/site/index.html").read_text(encoding="utf-8")
    assert figure_pages(tiny.catalog, tiny.instance) == [f"{base}/figures/jsae/<figure>/<layer>/<model>.html"]
    assert list(tiny.storage.rglob("*.html")) == []


KEY, CELL = dg.AssetKey(["some", "table"]), "tiny:1"


@pytest.fixture
def tables(s3) -> StoringIOManager:
    with dg.DagsterInstance.ephemeral() as instance:
        return ParquetStore(base_path=s3).manager_of(instance)


def store(tables: StoringIOManager, value: int) -> None:
    tables.store(pd.DataFrame({"value": [value]}), tables.stored(KEY, CELL), header(KEY, CELL, "run", "1"))


def kinds(asked) -> dict[str, int]:
    found = Counter()
    for (_, kind), number in asked.items():
        found[kind] += number
    return dict(found)


def test_a_table_is_stored_on_s3_with_one_upload_and_read_with_one_look_and_one_download(tables):
    with counted_requests() as asked:
        store(tables, 1)
    assert kinds(asked) == {"PUT": 1, "DELETE": 1}  # the latter of a damaged one that may have been set aside
    with counted_requests() as asked:
        assert tables.stored(KEY, CELL).frame["value"].tolist() == [1]
    assert kinds(asked) == {"HEAD": 1, "GET": 1}


def test_what_another_machine_stores_on_s3_is_seen_though_the_storage_was_listed_before(tables):
    store(tables, 1)
    there = boto3.client("s3")  # as another process, of which this one knows nothing
    (key,) = [entry["Key"] for entry in there.list_objects_v2(Bucket=BUCKET)["Contents"]]
    of_another = there.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    store(tables, 2)
    files_below(tables.base)
    before = tables.stored(KEY, CELL).version
    there.put_object(Bucket=BUCKET, Key=key, Body=of_another)
    assert tables.stored(KEY, CELL).version != before
    assert tables.stored(KEY, CELL).frame["value"].tolist() == [1]
