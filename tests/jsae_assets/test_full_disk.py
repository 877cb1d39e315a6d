"""A disk that is really full: what could not be written leaves nothing, and the message says what to do.

And what killed processes were writing is deleted, what living ones are writing is not.
"""

import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from upath import UPath

from jsae_assets.files.storage import FullDiskError, clear_parts, staged
from jsae_core.measures import jacobian_histogram
from jsae_core.memory import TemporaryFileError
from tests.jsae_assets.conftest import REPOSITORY
from tests.jsae_assets.test_io_managers import STORES, VALUES, files, place, store
from tests.jsae_core.builders import random_pair

MIB = 2**20
ROOM = 8 * MIB  # plotly.js fits in it
LARGE = {
    "tensors": {"a": torch.zeros(3 * MIB)},
    "tables": pd.DataFrame({"a": np.random.default_rng(0).random(2 * MIB)}),
    "figures": go.Figure(go.Scatter(y=np.random.default_rng(0).random(2 * MIB))),
}


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A folder with room for 8 MiB: a file system of its own, where this user may mount one; else no file may be
    larger, which takes another way through the system to the same errors."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode == 0:
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
        try:
            yield folder
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("kind", STORES)
def test_a_full_disk_leaves_nothing_half_written_and_says_which_file_how_much_where_and_what_to_do(
    small_disk, kind, is_there
):
    if is_there:
        store(kind, VALUES[kind], small_disk)
    before = files(small_disk)
    with pytest.raises(FullDiskError) as caught:
        store(kind, LARGE[kind], small_disk)
    assert files(small_disk) == before
    said = str(caught.value)
    assert f"{place(kind, small_disk).with_suffix('')}." in said  # of a figure it may be the page
    needed = int(re.search(r"It takes about ([\d,]+) bytes", said)[1].replace(",", ""))
    assert ROOM < needed < 4 * ROOM
    assert re.search(rf"[\d,]+ are free in {place(kind, small_disk).parent}\b", said)
    assert "set JSAE_STORAGE to a folder on a larger disk" in said
    store(kind, VALUES[kind], small_disk)  # once there is room again


def test_a_full_disk_of_this_machine_is_told_from_the_storage_elsewhere(small_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    base = UPath(f"memory://{tmp_path.name}")
    with pytest.raises(FullDiskError, match="set TMPDIR, where the file is written first, to a folder"):
        store("tensors", LARGE["tensors"], str(base))
    assert not [path for path in base.rglob("*") if path.is_file()] and not list(small_disk.iterdir())


def test_a_full_disk_of_the_histogram_s_temporary_file_leaves_nothing_and_says_what_to_do(small_disk, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    pair = random_pair()
    stream = [torch.randn(2**14, pair.config.d_in, dtype=pair.mlp.W_in.dtype) for _ in range(8)]
    with pytest.raises(TemporaryFileError, match=rf"temporary file in {small_disk}: after [\d,]+ bytes") as caught:
        jacobian_histogram(pair, stream, "l2t", memory_bytes=0)
    assert "TMPDIR" in str(caught.value)
    assert not list(small_disk.iterdir())


# Parts

WRITER = """
import sys, time
from upath import UPath
from jsae_assets.files.storage import staged

with staged(UPath(sys.argv[1]) / "written.bin", 10) as local:
    local.write_bytes(b"half of it")
    print("is writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def writer(tmp_path) -> Iterator[subprocess.Popen]:
    """Another process, which is writing a file in folder/below."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "folder" / "below")], cwd=REPOSITORY, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"is writing\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def half_written(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "folder").rglob("written.bin") if path.parent.name.startswith(".")]


@pytest.mark.parametrize("by", ["looking everywhere", "the next write"])
def test_what_a_killed_process_was_writing_is_deleted(tmp_path, writer, by):
    assert half_written(tmp_path)
    assert clear_parts(UPath(tmp_path / "folder"), below=True) == 0  # it is alive
    assert half_written(tmp_path)
    writer.kill()
    writer.wait()
    if by == "looking everywhere":
        assert clear_parts(UPath(tmp_path / "folder"), below=True) == 1
        assert clear_parts(UPath(tmp_path / "folder"), below=True) == 0
    else:
        with staged(UPath(tmp_path / "folder" / "below" / "other.bin"), 5) as local:
            local.write_bytes(b"whole")
    assert not half_written(tmp_path)


def test_a_part_without_a_lock_is_deleted_once_it_is_old(tmp_path):
    part = tmp_path / ".1234.part.safetensors"
    part.write_bytes(b"half of it")
    assert clear_parts(UPath(tmp_path)) == 0
    assert part.exists()
    in_two_days = os.stat(part).st_ctime + 2 * 24 * 3600
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jsae_assets.files.storage.time.time", lambda: in_two_days)
        assert clear_parts(UPath(tmp_path)) == 1
    assert not part.exists()
