import base64
import hashlib
import os
import resource
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import wandb
from safetensors.torch import load_file, save_file
from wandb.proto import wandb_internal_pb2

from jsae_core.artifacts import (
    artifact_name,
    directory_digest,
    fetch_wandb_artifact,
    find_wandb_artifact,
    publish_pair,
)
from jsae_core.pair_format import PairConfig
from jsae_core.sae_pair import SAEPair
from jsae_core.wandb_client import WandbError
from tests import wandb_server
from tests.jsae_core.builders import contents, random_pair
from tests.wandb_server import WandbServer

PROJECT = ("ent", "proj")
PAIR = "ent/proj/pair"
SENTINEL = "5e471e15" * 5
WEIGHTS = bytes(range(256)) * 4000
FILES = {"cfg.json": b"{}", "sae_weights.safetensors": WEIGHTS}
PATIENCE = {
    "WANDB_HTTP_TIMEOUT": "1",
    "WANDB__GRAPHQL_RETRY_MAX": "1",
    "WANDB__GRAPHQL_RETRY_WAIT_MIN_SECONDS": "0.1",
    "WANDB__GRAPHQL_RETRY_WAIT_MAX_SECONDS": "0.1",
    "WANDB__FILE_TRANSFER_RETRY_MAX": "2",
    "WANDB__FILE_TRANSFER_RETRY_WAIT_MIN_SECONDS": "0.01",
    "WANDB_FILE_PUSHER_TIMEOUT": "1",
}


pytestmark = pytest.mark.usefixtures("no_wandb_process_left")


@pytest.fixture
def server(tmp_path, monkeypatch):
    with WandbServer(SENTINEL) as server:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        for name, value in (server.environment(tmp_path / "client") | PATIENCE).items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "folder"


def add_pair(server, files=FILES, **more):
    return server.add_artifact(*PROJECT, "pair", files, **more)


def operations(server):
    return [request.operation or request.kind for request in server.asked()]


def pair_files(tmp_path):
    random_pair().save(tmp_path / "made")
    return contents(tmp_path / "made")


def fetched_elsewhere(folder):
    """A fetch in a process of its own."""
    program = "import sys; from jsae_core.artifacts import fetch_wandb_artifact as f; print(f(*sys.argv[1:]).directory)"
    command = [sys.executable, "-c", program, f"{PAIR}:v0", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_file_requests(server, count):
    while len(server.asked("file")) < count:
        time.sleep(0.01)


def test_a_copy_elsewhere_has_the_same_digest(tmp_path):
    for name in ("here", "there"):
        random_pair().save(tmp_path / name)
    assert directory_digest(tmp_path / "here") == directory_digest(str(tmp_path / "there"))


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json"])
def test_one_changed_byte_changes_the_digest(tmp_path, name):
    random_pair().save(tmp_path)
    before = directory_digest(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1] + b"!")
    assert directory_digest(tmp_path) != before


def test_a_renamed_an_added_and_a_removed_file_change_the_digest(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    seen = [directory_digest(tmp_path)]
    (tmp_path / "b").rename(tmp_path / "c")
    seen.append(directory_digest(tmp_path))
    (tmp_path / "d").write_bytes(b"")
    seen.append(directory_digest(tmp_path))
    (tmp_path / "a").unlink()
    seen.append(directory_digest(tmp_path))
    assert len(set(seen)) == 4


def test_hidden_files_are_no_part_of_an_artifact(tmp_path):
    random_pair().save(tmp_path)
    before = directory_digest(tmp_path)
    (tmp_path / ".cache").write_bytes(b"x")
    assert directory_digest(tmp_path) == before


def test_the_digest_is_a_sha256_in_hexadecimal(tmp_path):
    assert len(bytes.fromhex(directory_digest(tmp_path))) == 32


def test_a_missing_directory_is_refused_with_its_name_and_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*sae_weights\.safetensors and cfg\.json"):
        directory_digest(tmp_path / "nowhere")


def test_an_artifact_is_found_by_its_alias_and_named_by_its_version(server, folder):
    add_pair(server)
    add_pair(server, FILES | {"cfg.json": b"[]"}, aliases=["best"])
    found = find_wandb_artifact(f"{PAIR}:best", folder)
    assert (found.path, found.version) == (f"{PAIR}:v1", "v1")
    assert (set(found.aliases), found.size) == ({"latest", "best"}, len(WEIGHTS) + 2)
    assert found.digest == wandb.Api().artifact(f"{PAIR}:v1").manifest.digest()


def test_finding_costs_three_small_requests_and_no_download(server, folder):
    add_pair(server)
    find_wandb_artifact(f"{PAIR}:latest", folder)
    assert operations(server) == ["Viewer", "ServerFeaturesQuery", "ArtifactMembershipByName"]


def test_a_fetched_pair_is_byte_for_byte_the_one_in_wandb_and_loads(server, folder, tmp_path):
    files = pair_files(tmp_path)
    add_pair(server, files)
    fetched = fetch_wandb_artifact(f"{PAIR}:latest", folder)
    assert contents(fetched.directory) == files
    assert SAEPair.load(fetched.directory).config == SAEPair.load(tmp_path / "made").config
    found = find_wandb_artifact(f"{PAIR}:latest", folder)
    assert (fetched.path, fetched.version, fetched.digest) == (found.path, found.version, found.digest)
    assert fetched.path == f"{PAIR}:v0"


def test_fetching_costs_two_small_requests_more_and_one_a_file(server, folder):
    add_pair(server)
    fetch_wandb_artifact(f"{PAIR}:v0", folder)
    finding = ["Viewer", "ServerFeaturesQuery", "ArtifactMembershipByName"]
    assert operations(server) == [*finding, "ServerFeaturesQuery", "ArtifactMembershipFiles", "file", "file"]


def test_what_was_fetched_once_is_not_downloaded_again_by_whatever_name(server, folder):
    add_pair(server)
    server.add_artifact(*PROJECT, "twin", FILES)
    first = fetch_wandb_artifact(f"{PAIR}:v0", folder)
    server.forget()
    again = [fetch_wandb_artifact(path, folder) for path in (f"{PAIR}:v0", f"{PAIR}:latest", "ent/proj/twin:v0")]
    assert {fetched.directory for fetched in again} == {first.directory}
    assert [fetched.path for fetched in again] == [f"{PAIR}:v0", f"{PAIR}:v0", "ent/proj/twin:v0"]
    assert operations(server) == ["Viewer", "ServerFeaturesQuery", "ArtifactMembershipByName"] * 3


def test_an_alias_that_moved_brings_the_new_version_and_the_old_one_stays(server, folder):
    add_pair(server)
    old = fetch_wandb_artifact(f"{PAIR}:latest", folder)
    add_pair(server, FILES | {"cfg.json": b'{"new": 1}'})
    found, new = find_wandb_artifact(f"{PAIR}:latest", folder), fetch_wandb_artifact(f"{PAIR}:latest", folder)
    assert (found.version, new.version, new.digest) == ("v1", "v1", found.digest)
    assert new.digest != old.digest
    assert contents(new.directory)["cfg.json"] == b'{"new": 1}'
    assert contents(old.directory) == FILES


def test_a_copy_that_lost_a_file_or_a_part_of_one_since_is_mended(server, folder):
    add_pair(server)
    directory = fetch_wandb_artifact(f"{PAIR}:v0", folder).directory
    (directory / "cfg.json").unlink()
    with (directory / "sae_weights.safetensors").open("r+b") as file:
        file.truncate(1000)
    (directory / "notes.txt").write_text("mine")
    server.forget()
    assert contents(fetch_wandb_artifact(f"{PAIR}:v0", folder).directory) == FILES
    assert [request.range for request in server.asked("file")] == [None, "bytes=1000-"]


@pytest.mark.parametrize("name", FILES)
def test_a_copy_that_was_overwritten_by_as_many_other_bytes_is_not_used_but_mended(server, folder, name):
    add_pair(server)
    fetched = fetch_wandb_artifact(f"{PAIR}:v0", folder)
    assert fetched.is_intact()
    (fetched.directory / name).write_bytes(bytes(byte ^ 1 for byte in FILES[name]))
    assert not fetched.is_intact()
    server.forget()
    assert contents(fetch_wandb_artifact(f"{PAIR}:v0", folder).directory) == FILES
    assert len(server.asked("file")) == 1


def test_files_in_folders_empty_ones_and_more_than_a_page_of_them_arrive(server, folder):
    files = {f"part/{i:02d}.bin": bytes([i]) * i for i in range(60)}
    add_pair(server, files)
    directory = fetch_wandb_artifact(f"{PAIR}:v0", folder).directory
    assert {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.bin")} == files
    assert operations(server).count("ArtifactMembershipFiles") == 2


def test_a_randomised_models_weights_come_along(server, folder):
    add_pair(server, FILES | {"randomized_llm_weights.safetensors": b"weights"})
    directory = fetch_wandb_artifact(f"{PAIR}:v0", folder).directory
    assert (directory / "randomized_llm_weights.safetensors").read_bytes() == b"weights"


def test_a_manifest_of_xxh128_digests_is_checked_by_them(server, folder, monkeypatch):
    from wandb.sdk.lib.hashutil import xxh128_string

    monkeypatch.setattr(wandb_server, "_md5", lambda data: xxh128_string(data.decode("latin-1")))
    text = {"cfg.json": b"{}", "a.txt": b"hello"}
    add_pair(server, text)
    assert contents(fetch_wandb_artifact(f"{PAIR}:v0", folder).directory) == text
    add_pair(server, text | {"a.txt": b"other"})
    server.fail("corrupt", on="file", times=1)
    with pytest.raises(WandbError, match=r"a\.txt of ent/proj/pair:v1 arrived with other contents"):
        fetch_wandb_artifact(f"{PAIR}:v1", folder)


@pytest.mark.parametrize("absent", ["md5", "digest"])
def test_one_of_the_two_fields_in_which_a_files_digest_is_told_is_enough(server, folder, monkeypatch, absent):
    fields = wandb_server._file_fields
    monkeypatch.setattr(wandb_server, "_file_fields", lambda *a: fields(*a) | {absent: None})
    add_pair(server)
    assert contents(fetch_wandb_artifact(f"{PAIR}:v0", folder).directory) == FILES


@pytest.mark.parametrize(("file", "after"), [("cfg.json", 0), ("sae_weights.safetensors", 1)])
def test_a_corrupt_file_is_named_and_deleted_nothing_usable_is_left_and_the_next_fetch_heals(
    server, folder, file, after
):
    add_pair(server)
    digest = find_wandb_artifact(f"{PAIR}:v0", folder).digest
    server.fail("corrupt", on="file", after=after)
    with pytest.raises(WandbError, match=f"{file} of {PAIR}:v0 arrived with other contents .* was deleted"):
        fetch_wandb_artifact(f"{PAIR}:v0", folder)
    assert not (folder / digest).exists() and not list(folder.rglob(file))
    assert contents(fetch_wandb_artifact(f"{PAIR}:v0", folder).directory) == FILES


@pytest.mark.parametrize("fault", [{"what": "cut"}, {"what": "stall", "seconds": 0.2}, {"what": "stall"}], ids=str)
def test_a_download_that_breaks_off_goes_on_where_it_stopped(server, folder, fault):
    add_pair(server)
    server.fail(**fault, on="file", after=1)
    assert contents(fetch_wandb_artifact(f"{PAIR}:v0", folder).directory) == FILES
    whole, first, rest = (request.range for request in server.asked("file"))
    assert (whole, first) == (None, None)
    # at most one unfinished chunk of the half that came is asked for again
    assert len(WEIGHTS) // 2 - 65536 < int(rest.removeprefix("bytes=").removesuffix("-")) <= len(WEIGHTS) // 2


def test_a_short_answer_is_completed(server, folder):
    add_pair(server)
    server.fail("short", on="file", after=1)
    assert contents(fetch_wandb_artifact(f"{PAIR}:v0", folder).directory) == FILES
    assert server.asked("file")[-1].range == f"bytes={len(WEIGHTS) - 1}-"


def test_a_store_that_always_cuts_ends_in_an_error_and_the_next_fetch_goes_on_from_there(server, folder):
    add_pair(server)
    server.fail("cut", on="file", after=1, times=None)
    with pytest.raises(WandbError, match=r"sae_weights.* could not be downloaded.*bytes have arrived and are kept"):
        fetch_wandb_artifact(f"{PAIR}:v0", folder)
    server.heal()
    server.forget()
    assert contents(fetch_wandb_artifact(f"{PAIR}:v0", folder).directory) == FILES
    (request,) = server.asked("file")
    assert int(request.range.removeprefix("bytes=").removesuffix("-")) > len(WEIGHTS) / 2


def test_what_a_killed_process_left_is_continued_by_the_next(server, folder):
    add_pair(server)
    server.fail("stall", on="file", after=1)
    process = fetched_elsewhere(folder)
    wait_for_file_requests(server, 2)
    while not [path for path in folder.rglob("sae_weights*") if path.stat().st_size]:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not [path for path in folder.rglob("sae_weights*") if not path.parent.name.endswith(".part")]
    server.forget()
    assert contents(fetch_wandb_artifact(f"{PAIR}:v0", folder).directory) == FILES
    (request,) = server.asked("file")
    assert request.range.startswith("bytes=")


def test_processes_that_fetch_at_once_download_once_and_both_end_with_the_whole(server, folder):
    add_pair(server)
    server.fail("stall", on="file", after=1, seconds=0.5)
    processes = [fetched_elsewhere(folder) for _ in range(2)]
    ends = [process.communicate() for process in processes]
    directories = {Path(out.splitlines()[-1]) for out, _ in ends}
    assert len(directories) == 1, ends
    (waited,) = [(process.pid, out) for process, (out, _) in zip(processes, ends, strict=True) if "Waiting" in out]
    (other,) = {process.pid for process in processes} - {waited[0]}
    assert f"Waiting for process {other} on " in waited[1] and f", which fetches {PAIR}:v0 (its lock: " in waited[1]
    assert contents(directories.pop()) == FILES
    assert len(server.asked("file")) == 3


def test_threads_that_fetch_at_once_download_once_and_all_end_with_the_whole(server, folder):
    add_pair(server)
    server.fail("stall", on="file", after=1, seconds=0.2)
    directories = []
    threads = [
        threading.Thread(target=lambda: directories.append(fetch_wandb_artifact(f"{PAIR}:v0", folder).directory))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(directories) == 3 and len(set(directories)) == 1
    assert contents(directories[0]) == FILES
    assert len(server.asked("file")) == 3


@pytest.mark.parametrize("status", [429, 500, 503, 408])
def test_a_store_that_fails_for_a_while_is_outlived(server, folder, status):
    add_pair(server)
    server.fail(status, on="file", times=2)
    assert contents(fetch_wandb_artifact(f"{PAIR}:v0", folder).directory) == FILES
    assert len(server.asked("file")) == 4


@pytest.mark.parametrize("retry_after", [1, "Wed, 01 Jan 2020 00:00:00 GMT", "soon"], ids=str)
def test_a_store_that_asks_to_wait_is_waited_for(server, folder, retry_after, monkeypatch):
    add_pair(server)
    server.fail(429, on="file", retry_after=retry_after)
    waits = []
    monkeypatch.setattr("jsae_core.wandb_downloads.time.sleep", waits.append)
    assert contents(fetch_wandb_artifact(f"{PAIR}:v0", folder).directory) == FILES
    assert (max(waits) >= 1) == (retry_after == 1)


@pytest.mark.parametrize(
    ("fault", "asked", "message"),
    [
        ({"what": 404}, 1, "the store answers HTTP 404"),
        ({"what": 410}, 1, "the store answers HTTP 410"),
        ({"what": 403}, 2, "the store refuses the address that wandb gave for it .HTTP 403"),
        ({"what": 500}, 3, "the store answers HTTP 500"),
        ({"what": 429}, 3, "the store answers HTTP 429"),
        ({"what": "hang"}, 3, "nothing came for 1 seconds"),
    ],
    ids=str,
)
def test_a_store_that_goes_on_failing_ends_in_an_error_that_names_file_artifact_and_cause(
    server, folder, fault, asked, message
):
    add_pair(server)
    server.fail(**fault, on="file", times=None)
    with pytest.raises(WandbError, match=rf"cfg\.json of {PAIR}:v0 could not be downloaded: {message}") as error:
        fetch_wandb_artifact(f"{PAIR}:v0", folder)
    assert len(server.asked("file")) == asked
    assert server.signature not in str(error.value)


def test_an_address_that_ran_out_in_the_middle_is_replaced_and_the_download_goes_on(server, folder):
    add_pair(server)
    server.fail("stall", on="file", after=1, seconds=0.5)

    def expire():
        wait_for_file_requests(server, 2)
        server.expire_links()

    expiry = threading.Thread(target=expire)
    expiry.start()
    assert contents(fetch_wandb_artifact(f"{PAIR}:v0", folder).directory) == FILES
    expiry.join()
    assert [request.status for request in server.asked("file")] == [200, 0, 403, 206]
    fresh = server.asked("artifact")[-1]
    assert (fresh.operation, fresh.variables["fileNames"]) == ("ArtifactMembershipFiles", ["sae_weights.safetensors"])


def test_an_artifact_deleted_while_it_is_fetched_is_an_error_that_says_so(server, folder):
    add_pair(server)
    server.fail("stall", on="file", seconds=0.5)

    def delete():
        wait_for_file_requests(server, 1)
        server.delete_artifact(*PROJECT, "pair", 0)
        server.expire_links()

    deletion = threading.Thread(target=delete)
    deletion.start()
    with pytest.raises(WandbError, match=f"{PAIR}:v0 is no longer in wandb"):
        fetch_wandb_artifact(f"{PAIR}:v0", folder)
    deletion.join()


@pytest.mark.parametrize(
    ("path", "words"),
    [("ent/proj/pair:v7", "pair:v7"), ("ent/proj/pair:best", "pair:best"), ("ent/proj/nope:v0", "nope:v0")],
)
def test_a_version_an_alias_and_an_artifact_that_are_not_there_are_named(server, folder, path, words):
    add_pair(server)
    for ask in (find_wandb_artifact, fetch_wandb_artifact):
        with pytest.raises(WandbError, match=f"(?s){path}.*nothing of this name.*{words}"):
            ask(path, folder)


def test_a_project_that_is_not_there_is_named(server, folder):
    with pytest.raises(WandbError, match="(?s)ent/nope/pair:v0.*nothing of this name"):
        find_wandb_artifact("ent/nope/pair:v0", folder)


@pytest.mark.parametrize("path", ["pair:v0", "proj/pair:v0", "ent/proj/pair", "ent/proj/pair:", "a/b/c/d:v0", ""])
def test_a_path_of_another_form_is_refused_without_a_request(server, folder, path):
    with pytest.raises(ValueError, match="expected entity/project/name:alias"):
        find_wandb_artifact(path, folder)
    assert not server.requests


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"what": 401}, "refuses the API key"),
        ({"what": 429}, "HTTP 429"),
        ({"what": 500}, "HTTP 500"),
        ({"what": "hang"}, "did not answer in time"),
    ],
    ids=str,
)
@pytest.mark.parametrize("where", [0, 1], ids=["artifact", "its files"])
def test_a_wandb_that_goes_on_failing_ends_in_an_error_and_nothing_is_left(server, folder, fault, message, where):
    add_pair(server)
    server.fail(**fault, on="artifact", after=where, times=None)
    with pytest.raises(WandbError, match=f"(?s){PAIR}:v0.*{message}"):
        fetch_wandb_artifact(f"{PAIR}:v0", folder)
    assert not list(folder.rglob("sae_weights*"))


def test_a_wrong_key_is_refused(server, folder, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    with pytest.raises(WandbError, match="API key") as error:
        find_wandb_artifact(f"{PAIR}:v0", folder)
    assert "f" * 40 not in str(error.value)


def test_an_artifact_without_files_is_refused(server, folder):
    add_pair(server, {})
    with pytest.raises(WandbError, match=rf"{PAIR}:v0 has no files; expected .*sae_weights\.safetensors and cfg\.json"):
        fetch_wandb_artifact(f"{PAIR}:v0", folder)


@pytest.mark.parametrize(
    "name",
    ["../../evil", "/etc/evil", "a/../../../evil", "..", ".", "a//b", "C:/evil", "c:evil", "..\\evil", "a\0b", "a\nb"],
)
def test_a_file_that_would_lie_outside_of_the_directory_is_refused_before_any_download(server, folder, name):
    add_pair(server, {"cfg.json": b"{}", name: b"x"})
    with pytest.raises(WandbError, match="which would lie outside") as refused:
        fetch_wandb_artifact(f"{PAIR}:v0", folder)
    assert repr(name) in str(refused.value)
    assert not server.asked("file") and not list(folder.parent.rglob("*evil*"))


def test_a_reference_to_a_file_elsewhere_is_refused_before_any_download(server, folder, monkeypatch):
    fields = wandb_server._file_fields
    monkeypatch.setattr(wandb_server, "_file_fields", lambda *a: fields(*a) | {"directUrl": f"s3://bucket/{a[-1]}"})
    add_pair(server)
    with pytest.raises(WandbError, match=r"cfg\.json is a reference to a file elsewhere"):
        fetch_wandb_artifact(f"{PAIR}:v0", folder)


def test_a_list_of_files_that_is_not_the_whole_manifest_is_refused_before_any_download(server, folder, monkeypatch):
    monkeypatch.setattr(wandb_server.Version, "digest", property(lambda version: "0123456789abcdef" * 2))
    add_pair(server)
    with pytest.raises(WandbError, match="list of its 2 files does not give its digest, 0123456789abcdef"):
        fetch_wandb_artifact(f"{PAIR}:v0", folder)
    assert not server.asked("file")


def test_a_digest_that_is_none_is_refused(server, folder, monkeypatch):
    monkeypatch.setattr(wandb_server.Version, "digest", property(lambda version: "../../elsewhere"))
    add_pair(server)
    with pytest.raises(WandbError, match="expected hexadecimal digits"):
        find_wandb_artifact(f"{PAIR}:v0", folder)


def test_a_full_disk_is_an_error_that_names_artifact_and_place_and_room_made_lets_it_go_on(server, folder):
    add_pair(server)
    find_wandb_artifact(f"{PAIR}:v0", folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"File too large; {PAIR}:v0 could not be stored.*{folder}"):
            fetch_wandb_artifact(f"{PAIR}:v0", folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(fetch_wandb_artifact(f"{PAIR}:v0", folder).directory) == FILES
    assert server.asked("file")[-1].range == "bytes=300000-"


def test_the_key_is_in_no_error_and_no_file_and_goes_to_no_signed_address(server, folder, tmp_path, monkeypatch, capfd):
    netrc = tmp_path / "netrc"
    # wandb looks for the host with its port, requests for the host alone; without a port they are the same
    hosts = ("127.0.0.1", server.url.removeprefix("http://"))
    netrc.write_text("".join(f"machine {host} login api password {SENTINEL}\n" for host in hosts))
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.delenv("WANDB_API_KEY")
    wandb.teardown()
    add_pair(server)
    errors = []
    for fault, message in (
        ({"what": 403, "on": "file"}, "could not be downloaded"),
        ({"what": 401, "on": "artifact"}, "refuses the API key"),
        ({"what": "corrupt", "on": "file"}, "arrived with other contents"),
    ):
        server.fail(**fault, times=3)
        with pytest.raises(WandbError, match=message) as error:
            fetch_wandb_artifact(f"{PAIR}:v0", folder)
        errors.append(str(error.getrepr(style="long", chain=True)))
        server.heal()
    fetched = fetch_wandb_artifact(f"{PAIR}:v0", folder)
    assert contents(fetched.directory) == FILES
    assert all(request.authorized for request in server.asked("artifact"))
    assert not any(request.authorized for request in server.asked("file"))
    told = "".join([*errors, *capfd.readouterr(), repr(fetched)])
    assert SENTINEL not in told and server.signature not in told
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != netrc]
    assert written and not [path for path in written if SENTINEL.encode() in path.read_bytes()]


def records(run_directory):
    """What a run's log file holds: records in blocks of 32 KiB, each part with its checksum, length and kind."""
    (path,) = run_directory.glob("*.wandb")
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def published(run_directory):
    """The run's record and, by name, the bytes and the digest of each file of its artifact."""
    (run,) = [record.run for record in records(run_directory) if record.HasField("run")]
    (artifact,) = [record.artifact for record in records(run_directory) if record.HasField("artifact")]
    files = {entry.path: (Path(entry.local_path).read_bytes(), entry.digest) for entry in artifact.manifest.contents}
    return run, artifact, files


def test_publishing_offline_keeps_a_run_whose_artifact_holds_the_artifact_format_s_files_and_asks_nothing(
    server, folder, tmp_path, monkeypatch
):
    monkeypatch.delenv("WANDB_API_KEY")
    files = pair_files(tmp_path)
    made = publish_pair(random_pair(), "ent/proj", "sae_pair_tiny", folder, offline=True)
    run, artifact, held = published(made.directory)
    assert {name: data for name, (data, _) in held.items()} == files
    for data, digest in held.values():
        assert base64.b64encode(hashlib.md5(data).digest()).decode() == digest
    assert (artifact.name, artifact.type, artifact.entity, artifact.project) == ("sae_pair_tiny", "model", *PROJECT)
    assert (run.run_id, run.entity, run.project) == (made.run_id, *PROJECT)
    config = {update.key: update.value_json for update in run.config.update}
    assert (config["d_sae"], config["activation_fn_kwargs"], config["hook_layer"]) == ("20", '{"k":4}', "1")
    assert (made.artifact, made.url) == ("ent/proj/sae_pair_tiny", None)
    assert folder in made.directory.parents and made.directory.name.startswith("offline-run-")
    assert not server.requests
    assert "WANDB_SERVICE" not in os.environ


def test_a_randomised_models_weights_are_published_with_the_pair(server, folder, tmp_path):
    weights = tmp_path / "llm.safetensors"
    save_file({"embed.W_E": torch.ones(2, 3)}, weights)
    pair = random_pair()
    pair.config = replace(pair.config, randomize_llm_weights=True)
    made = publish_pair(pair, "ent/proj", "pair", folder, offline=True, language_model_weights=weights)
    _, _, held = published(made.directory)
    assert held.keys() == {"cfg.json", "sae_weights.safetensors", "randomized_llm_weights.safetensors"}
    (tmp_path / "copy").write_bytes(held["randomized_llm_weights.safetensors"][0])
    assert load_file(tmp_path / "copy").keys() == {"embed.W_E"}


def test_what_was_published_comes_back_as_the_same_pair(server, folder):
    pair = random_pair()
    made = publish_pair(pair, "ent/proj", artifact_name(pair.config), folder, offline=True)
    _, artifact, held = published(made.directory)
    server.add_artifact(*PROJECT, artifact.name, {name: data for name, (data, _) in held.items()})
    fetched = fetch_wandb_artifact("ent/proj/sae_pair_tiny_layer1_20_J0_k4:v0", folder)
    assert fetched.digest == artifact.digest
    again = SAEPair.load(fetched.directory)
    assert all(torch.equal(again.tensors()[name], tensor) for name, tensor in pair.tensors().items())


def test_publishing_twice_makes_two_runs_and_leaves_a_run_that_is_going_on_alone(server, folder):
    with wandb.init(entity="ent", project="proj", mode="offline", dir=str(folder), settings={"silent": True}) as mine:
        made = [publish_pair(random_pair(), "ent/proj", "pair", folder, offline=True) for _ in range(2)]
        assert wandb.run is mine
        mine.log({"still": 1})
    assert len({mine.id, *(one.run_id for one in made)}) == 3


@pytest.mark.parametrize("project", ["proj", "ent/", "/proj", "ent/proj/more", "e nt/a", ""])
def test_a_project_path_of_another_form_is_refused(folder, project):
    with pytest.raises(ValueError, match="expected entity/project"):
        publish_pair(random_pair(), project, "pair", folder, offline=True)


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "a b", "a" * 129])
def test_a_name_that_wandb_would_not_take_is_refused(folder, name):
    with pytest.raises(ValueError, match="is not an artifact name"):
        publish_pair(random_pair(), "ent/proj", name, folder, offline=True)


def test_weights_that_do_not_go_with_the_pair_or_are_not_there_are_refused(folder, tmp_path):
    pair, weights = random_pair(), tmp_path / "llm.safetensors"
    with pytest.raises(ValueError, match=r"llm\.safetensors: .*not randomised"):
        publish_pair(pair, "ent/proj", "pair", folder, offline=True, language_model_weights=weights)
    pair.config = replace(pair.config, randomize_llm_weights=True)
    with pytest.raises(FileNotFoundError, match=r"llm\.safetensors is missing"):
        publish_pair(pair, "ent/proj", "pair", folder, offline=True, language_model_weights=weights)


def test_publishing_online_is_refused_at_once_where_the_key_is(server, folder, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    with pytest.raises(WandbError, match="API key"):
        publish_pair(random_pair(), "ent/proj", "pair", folder, offline=False)
    assert not list(folder.rglob("*run-*"))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "sae_pair_pythia-70m-deduped_layer3_16384_J1_k32"),
        ({"model_name": "EleutherAI/pythia-70m-deduped"}, "sae_pair_pythia-70m-deduped_layer3_16384_J1_k32"),
        ({"jacobian_coefficient": 0.0}, "sae_pair_pythia-70m-deduped_layer3_16384_J0_k32"),
        ({"jacobian_coefficient": 0.125, "k": 16}, "sae_pair_pythia-70m-deduped_layer3_16384_J0.125_k16"),
        ({"randomize_llm_weights": True}, "sae_pair_pythia-70m-deduped-randomized_layer3_16384_J1_k32"),
        ({"model_name": "/home/me/my model (2)"}, "sae_pair_my-model--2-_layer3_16384_J1_k32"),
    ],
)
def test_an_artifact_is_named_as_the_paper_s_are(changes, name):
    config = PairConfig(model_name="pythia-70m-deduped", layer=3, d_in=512, d_sae=16384, k=32, jacobian_coefficient=1)
    assert artifact_name(replace(config, **changes)) == name
