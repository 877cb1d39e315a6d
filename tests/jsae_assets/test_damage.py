"""Stored files that are no longer what was written are found, named, set aside, and made again."""

import json
import re
from pathlib import Path

import dagster as dg
import pandas as pd
import plotly.graph_objects as go
import pyarrow
import pyarrow.parquet
import pytest
import torch

from jsae_assets.digests import out_of_groups
from jsae_assets.files import stored as stored_files
from jsae_assets.files.stored import DamagedFileError
from jsae_core import SAEPair
from jsae_core.tensor_files import write_tensors
from tests.jsae_assets.test_io_managers import OTHERS, STORES, VALUES, figure, place, read, store, stored_file
from tests.jsae_core.builders import random_pair

WANTED = {"tensors": dict, "tables": pd.DataFrame, "figures": go.Figure}
STRIDE = {"tensors": 2, "tables": 11, "figures": 61}  # how many bytes apart, of small files


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0b00010000
    path.write_bytes(content)


@pytest.mark.parametrize("kind", STORES)
def test_a_flipped_bit_anywhere_in_a_file_is_found(tmp_path, kind):
    store(kind, VALUES[kind], tmp_path, settings={"k": 3})
    path = place(kind, tmp_path)
    assert stored_file(kind, tmp_path).damage() is None
    for at in [*range(0, path.stat().st_size, STRIDE[kind]), path.stat().st_size - 1]:
        flip(path, at)
        assert stored_file(kind, tmp_path).damage(), at
        flip(path, at)
    assert stored_file(kind, tmp_path).damage() is None


@pytest.mark.parametrize("kind", STORES)
def test_a_file_that_was_cut_off_anywhere_or_emptied_is_found(tmp_path, kind):
    store(kind, VALUES[kind], tmp_path)
    path = place(kind, tmp_path)
    content = path.read_bytes()
    for length in [0, 1, 7, 8, *range(9, len(content), STRIDE[kind]), len(content) - 1]:
        path.write_bytes(content[:length])
        assert stored_file(kind, tmp_path).damage(), length


@pytest.mark.parametrize("elsewhere", [False, True], ids=["on this machine", "elsewhere"])
@pytest.mark.parametrize("kind", STORES)
def test_reading_a_damaged_file_names_it_says_what_to_do_and_sets_it_aside(tmp_path, kind, elsewhere):
    base = f"memory://{tmp_path.name}-{kind}" if elsewhere else tmp_path
    store(kind, VALUES[kind], base)
    file = stored_file(kind, base)
    content = bytearray(file.path.read_bytes())
    content[-20] ^= 1
    file.path.write_bytes(bytes(content))
    with pytest.raises(DamagedFileError) as caught:
        read(kind, base, WANTED[kind])
    for words in (
        str(file.path),
        f"set aside as {file.path.name}.damaged",
        f"Materialise some/{kind} for tiny:1 again",
    ):
        assert words in str(caught.value)
    with pytest.raises(FileNotFoundError, match="is missing .it was damaged, and was set aside"):
        read(kind, base, WANTED[kind])
    store(kind, VALUES[kind], base)
    assert not file.set_aside_path.exists()
    read(kind, base, WANTED[kind])


@pytest.mark.parametrize("kind", STORES)
def test_a_file_that_lies_in_the_place_of_another_is_found(tmp_path, kind):
    store(kind, VALUES[kind], tmp_path, model="tiny")
    store(kind, OTHERS[kind], tmp_path, model="other")
    place(kind, tmp_path, "other").replace(place(kind, tmp_path, "tiny"))
    with pytest.raises(DamagedFileError, match=f"it is the file of some/{kind} for other:1"):
        read(kind, tmp_path, WANTED[kind])


@pytest.mark.parametrize("harm", ["a flipped bit", "gone"])
def test_a_figure_is_damaged_with_its_page(tmp_path, harm):
    store("figures", figure(), tmp_path)
    page = place("figures", tmp_path).with_suffix(".html")
    flip(page, 1000) if harm == "a flipped bit" else page.unlink()
    assert "tiny.html next to it" in stored_file("figures", tmp_path).damage()


def test_files_that_were_stored_before_they_carried_a_digest_are_read(tmp_path):
    for kind in STORES:
        place(kind, tmp_path).parent.mkdir(parents=True)
    write_tensors(VALUES["tensors"], place("tensors", tmp_path), {"settings": "{}"})
    pyarrow.parquet.write_table(pyarrow.Table.from_pandas(VALUES["tables"]), place("tables", tmp_path))
    place("figures", tmp_path).write_text(figure().update_layout(meta={"settings": {}}).to_json())
    place("figures", tmp_path).with_suffix(".html").write_text("<html></html>")
    assert torch.equal(read("tensors", tmp_path, dict)["a"], VALUES["tensors"]["a"])
    pd.testing.assert_frame_equal(read("tables", tmp_path, pd.DataFrame), VALUES["tables"])
    assert read("figures", tmp_path, go.Figure).data == figure().data


def test_a_stored_pair_with_a_flipped_bit_anywhere_is_refused_where_it_is_loaded_without_the_platform(tmp_path):
    store("tensors", random_pair(), tmp_path)
    path = place("tensors", tmp_path)
    SAEPair.load(path)
    header_length = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    for at in [*range(8, header_length, 13), *range(header_length, path.stat().st_size, 1009)]:
        flip(path, at)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            SAEPair.load(path)
        flip(path, at)
    flip(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match="its bytes are not those that were written.*`jsae run` does"):
        SAEPair.load(path)
    assert path.exists()


def test_pairs_that_carry_no_digest_are_loaded(tmp_path):
    pair = random_pair()
    pair.save(tmp_path / "artifact")
    cfg = json.dumps(pair.config.to_artifact())
    write_tensors(pair.tensors(), tmp_path / "stored before.safetensors", {"cfg": cfg, "settings": "{}"})
    for path in (tmp_path / "artifact", tmp_path / "stored before.safetensors"):
        assert torch.equal(SAEPair.load(path).output_sae.W_dec, pair.output_sae.W_dec)


def test_a_file_is_looked_at_once_a_process_until_it_is_written_again(tmp_path, monkeypatch):
    looks, real = [], stored_files.is_undamaged
    monkeypatch.setattr(stored_files, "is_undamaged", lambda *arguments: looks.append(arguments) or real(*arguments))
    store("tensors", VALUES["tensors"], tmp_path)
    for _ in range(3):
        read("tensors", tmp_path, dict)
    assert len(looks) == 1
    store("tensors", VALUES["tensors"], tmp_path)
    read("tensors", tmp_path, dict)
    assert len(looks) == 2


def test_the_materialisation_says_the_digest_that_the_file_carries(tmp_path):
    result = store("tables", VALUES["tables"], tmp_path)
    (event,) = result.get_asset_materialization_events()
    said = event.materialization.metadata["digest"].value
    assert stored_file("tables", tmp_path).digest == out_of_groups(said)
    assert max(map(len, said.split())) <= 24  # what cannot be broken would widen the UI's table, and cut its values
    assert isinstance(event.materialization.metadata["megabytes"], dg.FloatMetadataValue)
