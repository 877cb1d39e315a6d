"""How assets are stored and read again: pairs, tensors, tables and figures."""

import gc
import json
import re
import socketserver
import threading
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pyarrow.dataset
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from upath import UPath

from jsae_assets.files.stored import StoredFigure, StoredTable, StoredTensors
from jsae_assets.io_managers import FigureStore, ParquetStore, SafetensorsStore
from jsae_assets.partitions import cell_key
from jsae_core import SAEPair, tensor_files
from jsae_core.figures import export
from tests.jsae_assets.conftest import address, installed_browser
from tests.jsae_core.builders import random_pair

STORES = {"tensors": SafetensorsStore, "tables": ParquetStore, "figures": FigureStore}
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([2**62], dtype=torch.int64)}
TABLE = pd.DataFrame(
    {
        "whole": np.array([1, 2, 3], dtype="int32"),
        "part": np.array([0.5, np.nan, -1], dtype="float32"),
        "word": ["a", "ü", ""],
        "flag": [True, False, True],
        "when": pd.to_datetime(["2025-01-01", "2025-01-02", "2025-01-03"]),
        "kind": pd.Categorical(["x", "y", "x"]),
    }
)
EXTENSION = {"tensors": "safetensors", "tables": "parquet", "figures": "json"}


def figure(height: float = 1.0) -> go.Figure:
    return go.Figure(go.Bar(x=["a", "b"], y=[height, 2.0])).update_layout(title="A figure")


VALUES = {"tensors": TENSORS, "tables": TABLE, "figures": figure()}
OTHERS = {
    "tensors": {"a": torch.zeros(1)},
    "tables": TABLE.drop(columns="word"),
    "figures": figure(3.0),
}


def layer_1(model: str) -> dg.StaticPartitionsDefinition:
    return dg.StaticPartitionsDefinition([cell_key(model, 1)])


def store(
    kind: str,
    value: object,
    base: Path | str,
    model: str = "tiny",
    source: str = "thin air",
    settings: dict | None = None,
    **configured,
):
    """Materialise one asset that gives `value`, at a (model, layer)."""

    @dg.asset(key=["some", kind], partitions_def=layer_1(model), io_manager_key=kind, code_version="7")
    def stored(context):
        yield dg.Output(value, metadata={"source": source, "settings": settings or {}})

    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize(
            [stored],
            instance=instance,
            resources={kind: STORES[kind](base_path=str(base), **configured)},
            partition_key=cell_key(model, 1),
            raise_on_error=True,
        )


def read(kind: str, base: Path | str, annotation: object, use: Callable = lambda value: value, model: str = "tiny"):
    """What `use` makes of the asset that `store` stored, in an asset whose input has this annotation."""
    seen = []

    def reader(value):
        seen.append(use(value))

    reader.__annotations__["value"] = annotation
    reads = dg.asset(ins={"value": dg.AssetIn(["some", kind])}, partitions_def=layer_1(model), name="reads")(reader)
    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize(
            [reads, dg.AssetSpec(["some", kind], partitions_def=layer_1(model)).with_io_manager_key(kind)],
            instance=instance,
            resources={kind: STORES[kind](base_path=str(base))},
            partition_key=cell_key(model, 1),
            selection=[reads],
        )
    return seen[0]


def place(kind: str, base: Path, model: str = "tiny") -> Path:
    return base / "some" / kind / "1" / f"{model}.{EXTENSION[kind]}"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def materialisation(result) -> dict:
    (event,) = result.get_asset_materialization_events()
    return {name: value.value for name, value in event.materialization.metadata.items()}


# Round trips


def test_a_pair_is_read_again_as_it_was_from_the_one_file_stored(tmp_path):
    pair = random_pair(activation="relu", dtype=torch.float32)
    store("tensors", pair, tmp_path)
    again = SAEPair.load(place("tensors", tmp_path))
    assert again.config.to_artifact() == pair.config.to_artifact()
    assert again.tensors().keys() == pair.tensors().keys()
    for name, tensor in pair.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)


def test_a_stored_pair_has_the_artifact_format_s_tensor_names(tmp_path):
    store("tensors", random_pair(), tmp_path)
    with safe_open(place("tensors", tmp_path), framework="pt") as file:
        expected = {f"_{part}{side}" for part in ("W_enc", "b_enc", "W_dec", "b_dec") for side in ("", "_out")}
        assert set(file.keys()) == expected | {"mlp.W_in", "mlp.b_in", "mlp.W_out", "mlp.b_out"}


@pytest.mark.parametrize("annotation", [dict, dict[str, Tensor]])
def test_tensors_annotated_dict_are_read_whole(tmp_path, annotation):
    store("tensors", TENSORS, tmp_path)
    again = read("tensors", tmp_path, annotation)
    assert type(again) is dict
    assert again.keys() == TENSORS.keys()
    assert all(
        torch.equal(again[name], tensor) and again[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )


def test_a_view_and_a_tensor_in_strides_are_stored_as_what_they_show(tmp_path):
    grid = torch.arange(12.0).reshape(3, 4)
    store("tensors", {"t": grid.T, "part": grid[:, 1], "same": grid}, tmp_path)
    again = read("tensors", tmp_path, dict)
    assert torch.equal(again["t"], grid.T)
    assert torch.equal(again["part"], grid[:, 1])


def test_a_table_keeps_its_types(tmp_path):
    store("tables", TABLE, tmp_path)
    again = read("tables", tmp_path, pd.DataFrame)
    pd.testing.assert_frame_equal(again, TABLE)


def test_an_empty_table_keeps_its_columns(tmp_path):
    store("tables", TABLE.iloc[:0], tmp_path)
    assert list(read("tables", tmp_path, pd.DataFrame).columns) == list(TABLE.columns)


def test_a_figure_is_read_again_as_it_was(tmp_path):
    store("figures", figure(), tmp_path)
    again = read("figures", tmp_path, go.Figure)
    assert again.data == figure().data
    assert again.layout.title == figure().layout.title


@pytest.mark.parametrize("kind", STORES)
def test_materialising_again_replaces_what_was_there(tmp_path, kind):
    store(kind, OTHERS[kind], tmp_path)
    before = place(kind, tmp_path).read_bytes()
    store(kind, VALUES[kind], tmp_path)
    assert place(kind, tmp_path).read_bytes() != before


@pytest.mark.parametrize("kind", STORES)
def test_the_materialisation_names_the_file_relative_to_the_storage_and_its_size(tmp_path, kind):
    told = materialisation(store(kind, VALUES[kind], tmp_path))
    assert tmp_path / told["path"] == place(kind, tmp_path)
    assert not Path(told["path"]).is_absolute()
    assert told["megabytes"] == pytest.approx(place(kind, tmp_path).stat().st_size / 1e6, rel=5e-3)


@pytest.mark.parametrize("kind", STORES)
def test_models_whose_names_hold_dots_keep_files_of_their_own(tmp_path, kind):
    for model, value in {"pythia-1.4b": VALUES[kind], "pythia-1.5b": OTHERS[kind], "pythia-1": VALUES[kind]}.items():
        store(kind, value, tmp_path, model)
    names = {path.name for path in place(kind, tmp_path).parent.iterdir()}
    assert {f"{model}.{EXTENSION[kind]}" for model in ("pythia-1.4b", "pythia-1.5b", "pythia-1")} <= names
    if kind == "figures":
        assert {"pythia-1.4b.html", "pythia-1.5b.html", "pythia-1.html"} <= names


# Lazy reading


def test_tensors_are_read_lazily_only_those_asked_for(tmp_path, monkeypatch):
    store("tensors", TENSORS, tmp_path)
    asked = []
    real = tensor_files.open_tensors

    class Recording:
        def __init__(self, file):
            self._file = file

        def __getattr__(self, name):
            return getattr(self._file, name)

        def get_tensor(self, name):
            asked.append(name)
            return self._file.get_tensor(name)

    monkeypatch.setattr(tensor_files, "open_tensors", lambda path: Recording(real(path)))
    tensor = read("tensors", tmp_path, StoredTensors, lambda stored: (len(stored), stored["b"]))
    assert tensor[0] == 2
    assert torch.equal(tensor[1], TENSORS["b"])
    assert asked == ["b"]


def test_nothing_is_opened_before_it_is_used_so_that_a_missing_input_may_be_declined(tmp_path):
    stored = read("tensors", tmp_path, StoredTensors)
    assert isinstance(stored, StoredTensors)
    with pytest.raises(
        FileNotFoundError, match=r"tiny\.safetensors is missing; materialise some/tensors for tiny:1 first"
    ):
        stored["a"]


def test_a_name_that_is_not_stored_is_a_key_error(tmp_path):
    store("tensors", TENSORS, tmp_path)
    stored = read("tensors", tmp_path, StoredTensors)
    assert "a" in stored
    assert "c" not in stored
    with pytest.raises(KeyError, match="c"):
        stored["c"]


def test_a_table_without_an_annotation_is_opened_when_first_read(tmp_path):
    stored = read("tables", tmp_path, Any)
    assert isinstance(stored, StoredTable) and not stored.exists()
    with pytest.raises(FileNotFoundError, match=r"tiny\.parquet is missing; materialise some/tables for tiny:1 first"):
        _ = stored.frame
    store("tables", TABLE, tmp_path)
    assert stored.exists()
    pd.testing.assert_frame_equal(stored.frame, TABLE)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["on this machine", "elsewhere"])
@pytest.mark.parametrize("kind", STORES)
def test_what_a_file_was_made_with_is_read_from_its_header(tmp_path, kind, elsewhere):
    base = f"memory://{tmp_path.name}" if elsewhere else tmp_path
    settings = {"model": "ü|", "k": 3, "λ": 0.5}
    store(kind, VALUES[kind], base, settings=settings)
    assert stored_file(kind, base).settings == settings


def test_the_settings_of_tensors_are_read_without_the_tensors(tmp_path):
    store("tensors", {"large": torch.zeros(10**6)}, tmp_path, settings={"k": 3})
    path = place("tensors", tmp_path)
    path.write_bytes(path.read_bytes()[:2000])  # most of the tensor is gone
    assert stored_file("tensors", tmp_path).settings == {"k": 3}


def test_a_file_that_holds_no_whole_header_is_refused_by_name(tmp_path):
    store("tensors", TENSORS, tmp_path)
    for length in (0, 5, 50):
        path = place("tensors", tmp_path)
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ValueError, match="is not a complete safetensors file") as caught:
            _ = stored_file("tensors", tmp_path).settings
        assert str(path) in str(caught.value)


def stored_file(kind: str, base: Path | str) -> StoredTensors | StoredTable | StoredFigure:
    reader = {"tensors": StoredTensors, "tables": StoredTable, "figures": StoredFigure}[kind]
    return reader(UPath(base), f"some/{kind}/1/tiny.{EXTENSION[kind]}", f"some/{kind}")


@pytest.mark.parametrize("elsewhere", [False, True], ids=["on this machine", "elsewhere"])
def test_a_file_is_another_version_once_it_was_written_again(tmp_path, elsewhere):
    base = f"memory://{tmp_path.name}-version" if elsewhere else tmp_path
    store("tensors", TENSORS, base)
    first = stored_file("tensors", base).version
    assert stored_file("tensors", base).version == first
    store("tensors", OTHERS["tensors"], base)
    assert stored_file("tensors", base).version != first


def test_a_stored_table_reads_the_columns_asked_for_and_no_others(tmp_path):
    store("tables", TABLE, tmp_path)
    filtered = read("tables", tmp_path, StoredTable).dataset.to_table(
        columns=["whole"], filter=pyarrow.dataset.field("flag")
    )
    assert filtered.to_pydict() == {"whole": [1, 3]}


@pytest.mark.parametrize(("kind", "annotation"), [("tables", pd.DataFrame), ("figures", go.Figure), ("tensors", dict)])
def test_what_was_never_stored_is_missing_by_name(tmp_path, kind, annotation):
    with pytest.raises(FileNotFoundError, match=rf"is missing; materialise some/{kind} for tiny:1 first"):
        read(kind, tmp_path, annotation)


@pytest.mark.parametrize(("kind", "annotation"), [("tables", pd.DataFrame), ("tensors", dict)])
def test_a_truncated_file_is_refused_by_name(tmp_path, kind, annotation):
    store(kind, VALUES[kind], tmp_path)
    path = place(kind, tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="is not a complete") as caught:
        read(kind, tmp_path, annotation)
    assert str(path) in str(caught.value)


# Refusals, and writes that fail


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("tensors", None),
        ("tensors", {"a": np.zeros(3)}),
        ("tensors", {1: torch.zeros(3)}),
        ("tensors", torch.zeros(3)),
        ("tables", {"a": [1]}),
        ("tables", pd.DataFrame({0: [1]})),
        ("tables", pd.Series([1], name="a")),
        ("figures", {"data": []}),
        ("figures", "<html>"),
    ],
)
def test_a_wrong_type_is_refused_before_anything_is_created(tmp_path, kind, value):
    base = tmp_path / "storage"
    with pytest.raises(TypeError, match=f"some/{kind} returned a {type(value).__name__}.*Nothing was written"):
        store(kind, value, base)
    assert not base.exists()


@pytest.mark.parametrize("kind", STORES)
def test_a_wrong_type_leaves_what_is_stored_untouched(tmp_path, kind):
    store(kind, VALUES[kind], tmp_path)
    before = files(tmp_path)
    with pytest.raises(TypeError):
        store(kind, object(), tmp_path)
    assert files(tmp_path) == before


def unwritable(kind: str) -> object:
    """Of the right type, but its serialisation raises."""
    if kind == "tensors":
        return {"a": torch.zeros(3), "b": torch.zeros(3).to_sparse()}
    if kind == "tables":
        return pd.DataFrame({"a": [object(), 1]})
    return go.Figure(layout={"meta": {"cannot": object()}}, data=[go.Bar(y=[1], customdata=[object()])])


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("is_there", [True, False])
def test_a_failed_write_leaves_the_file_already_there_untouched_and_no_part_behind(tmp_path, kind, is_there):
    if is_there:
        store(kind, VALUES[kind], tmp_path)
    before = files(tmp_path)
    with pytest.raises(Exception, match=r".+"):
        store(kind, unwritable(kind), tmp_path)
    assert files(tmp_path) == before


@pytest.fixture
def picture(monkeypatch):
    """A browser that draws in no time; calling it sets the picture that it draws next."""

    def draws(data: bytes) -> bytes:
        drawn = export.Pictures(data, data, None)
        monkeypatch.setattr("jsae_core.figures.export.pictures", lambda figure: (drawn, ""))
        return data

    draws(b"\x89PNG first")
    return draws


@pytest.mark.parametrize("broken", ["json", "html", "png"])
def test_of_a_figures_files_none_changes_if_one_cannot_be_written(tmp_path, monkeypatch, picture, broken):
    store("figures", figure(), tmp_path)
    before = files(tmp_path)
    assert {Path(name).suffix for name in before} >= {".json", ".html", ".png"}
    picture(b"\x89PNG second")

    def failing(write):
        def write_or_fail(self, *args, **kwargs):
            if self.suffix == f".{broken}":
                raise OSError(28, "No space left on device")
            return write(self, *args, **kwargs)

        return write_or_fail

    monkeypatch.setattr(Path, "write_text", failing(Path.write_text))
    monkeypatch.setattr(Path, "write_bytes", failing(Path.write_bytes))
    with pytest.raises(OSError, match="No space left"):
        store("figures", figure(9.0), tmp_path)
    monkeypatch.undo()
    assert files(tmp_path) == before


# Provenance


class ProvenanceOfPage(HTMLParser):
    found = None

    def handle_starttag(self, tag, attrs):
        if tag == "meta" and dict(attrs).get("name") == "provenance":
            self.found = json.loads(dict(attrs)["content"])


def test_the_file_itself_says_what_made_it(tmp_path, picture):
    runs = {kind: store(kind, VALUES[kind], tmp_path, source=f"the {kind} & <more>").run_id for kind in STORES}
    with safe_open(place("tensors", tmp_path), framework="pt") as file:
        tensors = json.loads(file.metadata()["provenance"])
    table = json.loads(pyarrow.parquet.read_schema(place("tables", tmp_path)).metadata[b"provenance"])
    drawn = json.loads(place("figures", tmp_path).read_text(encoding="utf-8"))["layout"]["meta"]["provenance"]
    for kind, said in {"tensors": tensors, "tables": table, "figures": drawn}.items():
        assert said == {
            "asset": f"some/{kind}",
            "partition": "tiny:1",
            "run": runs[kind],
            "code_version": "7",
            "source": f"the {kind} & <more>",
        }
    assert [stored_file(kind, tmp_path).header["provenance"] for kind in STORES] == [
        json.dumps(said) for said in (tensors, table, drawn)
    ]
    page = ProvenanceOfPage()
    page.feed(place("figures", tmp_path).with_suffix(".html").read_text(encoding="utf-8"))
    assert page.found == drawn


def test_the_figure_given_is_not_changed_by_storing_it(tmp_path):
    mine = figure()
    store("figures", mine, tmp_path)
    assert mine == figure()


# Pages and pictures


def test_a_page_is_small_and_finds_the_shared_plotly_js_beside_the_storage(tmp_path):
    told = materialisation(store("figures", figure(), tmp_path))
    page = tmp_path / told["page"]
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 100_000
    (script,) = re.findall(r'<script[^>]* src="([^"]+)"', text)
    assert not script.startswith(("http", "/"))
    assert (page.parent / script).resolve().stat().st_size > 1_000_000


def test_pages_share_one_plotly_js(tmp_path):
    for model in ("one", "two"):
        store("figures", figure(), tmp_path, model)
    assert len(list(tmp_path.rglob("plotly*.js"))) == 1


def test_a_page_is_a_link_where_a_web_server_gives_out_the_storage(tmp_path):
    result = store("figures", figure(), tmp_path, model="a model", url="https://example.org/jsae/")
    (event,) = result.get_asset_materialization_events()
    page = event.materialization.metadata["page"]
    assert isinstance(page, dg.MarkdownMetadataValue)
    assert address(page.value) == "https://example.org/jsae/some/figures/1/a%20model.html"


def test_a_picture_is_shown_from_that_web_server_and_not_kept_in_the_event_log(tmp_path, picture):
    told = materialisation(store("figures", figure(), tmp_path, url="https://example.org/jsae/"))
    assert told["picture"].endswith("](https://example.org/jsae/some/figures/1/tiny~preview.png)")
    assert told["picture"].startswith("![") and len(told["picture"]) < 1000  # the UI folds longer ones away
    assert (tmp_path / "some/figures/1/tiny.png").exists()


@pytest.fixture
def this_machines_browser(tmp_path, monkeypatch):
    """The browser that is installed, with every name on the web given the address of a port here; gives what arrives
    there."""
    installed, asked = installed_browser(), []

    class Web(socketserver.BaseRequestHandler):
        def handle(self):
            asked.append(self.request.recv(1024))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Web) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        rule = f"MAP * 127.0.0.1:{web.server_address[1]}"
        script = tmp_path / "browser"
        script.write_text(f'#!/bin/sh\nexec {installed} --host-resolver-rules="{rule}" "$@"\n', encoding="utf-8")
        script.chmod(0o755)
        monkeypatch.setenv("BROWSER_PATH", str(script))
        export.browser.close()
        yield asked
        export.browser.close()
        web.shutdown()


def test_where_a_browser_is_installed_it_draws_a_picture_900_px_wide_and_a_pdf_with_no_script_of_the_web(
    tmp_path, this_machines_browser
):
    shown = materialisation(store("figures", figure(), tmp_path))["picture"]
    picture = place("figures", tmp_path).with_suffix(".png")
    for path, width in ((picture, 900), (tmp_path / shown, 350)):
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width == width
    assert picture.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    # a browser itself may look for updates; MathJax would come from here
    assert not any(b"cdnjs.cloudflare.com" in hello for hello in this_machines_browser)


def test_without_a_browser_a_figure_is_stored_all_the_same_and_says_how_to_get_pictures(tmp_path):
    shown = materialisation(store("figures", figure(), tmp_path))["picture"]
    assert "chromium" in shown
    assert "BROWSER_PATH" in shown
    assert not list(tmp_path.rglob("*.png"))
    assert place("figures", tmp_path).with_suffix(".html").exists()


def test_a_picture_of_an_older_figure_goes_when_there_is_no_newer(tmp_path, monkeypatch, picture):
    store("figures", figure(), tmp_path)
    assert list(tmp_path.rglob("*.png"))
    monkeypatch.undo()
    store("figures", figure(3.0), tmp_path)
    assert not list(tmp_path.rglob("*.png"))


# Elsewhere than on this machine


def test_tensors_can_be_stored_on_any_fsspec_path_and_read_from_there(tmp_path):
    base = f"memory://{tmp_path.name}-tensors"
    store("tensors", random_pair(), base)
    store("tensors", TENSORS, base)
    assert torch.equal(read("tensors", base, dict)["a"], TENSORS["a"])
    assert torch.equal(read("tensors", base, StoredTensors, lambda stored: stored["b"]), TENSORS["b"])


def test_the_local_copy_of_tensors_stored_elsewhere_lasts_as_long_as_what_reads_it(tmp_path):
    base = f"memory://{tmp_path.name}-copy"
    store("tensors", TENSORS, base)
    stored = stored_file("tensors", base)
    copy = stored.local
    assert copy.exists()
    assert torch.equal(stored["b"], TENSORS["b"])
    del stored
    gc.collect()
    assert not copy.exists()


def test_a_pair_stored_elsewhere_is_loaded_from_its_local_copy(tmp_path):
    base, pair = f"memory://{tmp_path.name}-pair", random_pair()
    store("tensors", pair, base)
    again = read("tensors", base, StoredTensors, lambda stored: SAEPair.load(stored.local))
    assert torch.equal(again.input_sae.W_enc, pair.input_sae.W_enc)


def test_tables_can_be_stored_on_any_fsspec_path_and_read_from_there(tmp_path):
    base = f"memory://{tmp_path.name}-tables"
    store("tables", TABLE, base)
    pd.testing.assert_frame_equal(read("tables", base, pd.DataFrame), TABLE)
    assert read("tables", base, StoredTable).dataset.count_rows() == 3


def test_figures_can_be_stored_on_any_fsspec_path_and_read_from_there(tmp_path, picture):
    base = f"memory://{tmp_path.name}-figures"
    store("figures", figure(), base)
    assert read("figures", base, go.Figure).data == figure().data
    names = sorted(path.name for path in (UPath(base) / "some" / "figures" / "1").iterdir())
    assert names == ["tiny.html", "tiny.json", "tiny.png", "tiny~preview.png"]
    (script,) = [path for path in UPath(base).iterdir() if path.suffix == ".js"]
    page = (UPath(base) / "some" / "figures" / "1" / "tiny.html").read_text()
    assert f'src="../../../{script.name}"' in page


@pytest.mark.parametrize("kind", STORES)
def test_a_failed_write_elsewhere_leaves_what_is_there_untouched_and_nothing_behind(tmp_path, kind):
    base = f"memory://{tmp_path.name}-failed-{kind}"
    store(kind, VALUES[kind], base)

    def everything() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in UPath(base).rglob("*") if path.is_file()}

    before = everything()
    with pytest.raises(Exception, match=r".+"):
        store(kind, unwritable(kind), base)
    assert everything() == before


def test_without_a_base_path_files_lie_in_the_instances_storage(measured):
    assert measured.graph.file("jsae/sae_pair").is_file()
