"""Pairs on the Hugging Face hub: found and fetched by the real client from a hub on loopback."""

import threading
import time

import pytest

from jsae_core import SAEPair
from jsae_core.hub import HubError, fetch_hub_pair, find_hub_pair
from tests.jsae_core.builders import artifact_config, mlp_tensors, random_mlp, random_sae_tensors, write_artifact

REPOSITORY = "lab/pairs"
WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("pair") / "artifact"
    tensors = random_sae_tensors() | mlp_tensors(random_mlp())
    write_artifact(folder, tensors, artifact_config(mlp_activation="gelu"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def contents(directory) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*")}


def test_a_pair_is_fetched_whole_and_nothing_else_of_its_repository(hub, files, tmp_path):
    commit = hub.commit(REPOSITORY, files | {"README.md": b"words", "checkpoint.bin": b"x" * 5000})
    fetched = fetch_hub_pair(REPOSITORY, "main", "", tmp_path)
    assert contents(fetched.directory) == files
    assert (fetched.version, fetched.path) == (commit, f"{REPOSITORY}@{commit}")
    assert fetched.directory == tmp_path / fetched.digest
    SAEPair.load(fetched.directory)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [fetched.digest]


def test_layers_lie_in_folders_of_their_own(hub, files, tmp_path):
    others = files | {CONFIG: files[CONFIG] + b"\n"}
    commit = hub.commit(
        REPOSITORY, {f"a/layer{n}/{name}": d for n, f in enumerate((files, others)) for name, d in f.items()}
    )
    for layer, expected in enumerate((files, others)):
        fetched = fetch_hub_pair(REPOSITORY, "main", f"a/layer{layer}", tmp_path)
        assert contents(fetched.directory) == expected
        assert fetched.path == f"{REPOSITORY}@{commit}/a/layer{layer}"


def test_a_revision_is_obeyed_whether_branch_tag_or_commit(hub, files, tmp_path):
    older = files | {CONFIG: files[CONFIG] + b"\n"}
    first = hub.commit(REPOSITORY, older, "main", "v1")
    second = hub.commit(REPOSITORY, files, "main")
    for revision, commit, expected in (("v1", first, older), (first, first, older), ("main", second, files)):
        fetched = fetch_hub_pair(REPOSITORY, revision, "", tmp_path)
        assert fetched.version == commit
        assert contents(fetched.directory) == expected


def test_a_branch_that_moved_is_noticed_without_a_download(hub, files):
    hub.commit(REPOSITORY, files)
    before = find_hub_pair(REPOSITORY)
    hub.commit(REPOSITORY, files | {CONFIG: files[CONFIG] + b"\n"})
    after = find_hub_pair(REPOSITORY)
    assert before.digest != after.digest and before.version != after.version
    assert hub.downloads() == []


def test_a_commit_that_leaves_the_pairs_files_alone_is_the_same_pair(hub, files, tmp_path):
    hub.commit(REPOSITORY, files)
    first = fetch_hub_pair(REPOSITORY, "main", "", tmp_path)
    hub.commit(REPOSITORY, files | {"README.md": b"better words"})
    downloaded = len(hub.downloads())
    again = fetch_hub_pair(REPOSITORY, "main", "", tmp_path)
    assert (again.digest, again.directory) == (first.digest, first.directory)
    assert again.version != first.version
    assert len(hub.downloads()) == downloaded


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_file_of_the_format_that_is_missing_is_named(hub, files, tmp_path, name):
    hub.commit(REPOSITORY, {file: data for file, data in files.items() if file != name})
    for ask in (lambda: find_hub_pair(REPOSITORY), lambda: fetch_hub_pair(REPOSITORY, "main", "", tmp_path)):
        with pytest.raises(HubError, match=f"{REPOSITORY}@main holds no {name}; expected .*subfolder"):
            ask()


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_file_that_arrives_with_other_contents_is_refused_and_not_kept(hub, files, tmp_path, name):
    hub.commit(REPOSITORY, files)
    hub.corrupt.add(name)
    with pytest.raises(HubError, match=f"{name} of {REPOSITORY}@.* arrived with other contents .* was deleted"):
        fetch_hub_pair(REPOSITORY, "main", "", tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    hub.corrupt.clear()
    assert contents(fetch_hub_pair(REPOSITORY, "main", "", tmp_path).directory) == files


def test_a_kept_file_that_was_changed_since_is_noticed_and_fetched_again(hub, files, tmp_path):
    hub.commit(REPOSITORY, files)
    directory = fetch_hub_pair(REPOSITORY, "main", "", tmp_path).directory
    data = bytearray(files[WEIGHTS])
    data[-1] ^= 1
    (directory / WEIGHTS).write_bytes(data)
    assert contents(fetch_hub_pair(REPOSITORY, "main", "", tmp_path).directory) == files
    (directory / CONFIG).unlink()
    assert contents(fetch_hub_pair(REPOSITORY, "main", "", tmp_path).directory) == files


def test_a_download_that_is_cut_leaves_nothing_that_looks_whole(hub, files, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's own tries
    hub.commit(REPOSITORY, files)
    hub.cut.add(WEIGHTS)
    with pytest.raises(HubError, match=f"did not give {REPOSITORY}@.*not to the end"):
        fetch_hub_pair(REPOSITORY, "main", "", tmp_path)
    assert not any(len(path.name) == 64 for path in tmp_path.iterdir())
    hub.cut.clear()
    assert contents(fetch_hub_pair(REPOSITORY, "main", "", tmp_path).directory) == files


def test_two_fetches_of_a_pair_at_the_same_time_download_it_once(hub, files, tmp_path):
    commit = hub.commit(REPOSITORY, files)
    found, said = [], []

    def fetch():
        found.append(fetch_hub_pair(REPOSITORY, "main", "", tmp_path, said.append).directory)

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len(set(found)) == 1
    assert len(hub.downloads()) == len(files)
    (fetching,) = [sentence for sentence in said if sentence.startswith("Fetching ")]
    assert fetching.startswith(f"Fetching {REPOSITORY}@{commit} from {hub.url}: ") and fetching.endswith(" kB")
    said.remove(fetching)
    assert all(f", which fetches {REPOSITORY}@{commit} (its lock: " in sentence for sentence in said)


def test_files_of_a_repository_that_would_lie_elsewhere_are_left_there(hub, files, tmp_path):
    odd = {name: b"x" for name in ("../evil", "/etc/evil", "a/../../evil", "C:/evil", "..\\evil")}
    hub.commit(REPOSITORY, files | odd)
    fetched = fetch_hub_pair(REPOSITORY, "main", "", tmp_path / "folder")
    assert contents(fetched.directory) == files
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize(
    ("repository", "revision", "expected"),
    [
        ("lab/nothing", "main", "no such repository, or it is private"),
        (REPOSITORY, "v9", "no such revision"),
        ("a/b/c", "main", "organisation/name"),
    ],
)
def test_what_is_not_there_is_told_apart(hub, files, tmp_path, repository, revision, expected):
    hub.commit(REPOSITORY, files)
    with pytest.raises(HubError, match=expected) as caught:
        fetch_hub_pair(repository, revision, "", tmp_path)
    assert f"{hub.url} did not give {repository}@{revision}" in str(caught.value)


def test_a_private_repository_is_read_with_the_token_and_the_token_stays_out_of_errors(
    hub, files, tmp_path, monkeypatch
):
    hub.commit(REPOSITORY, files)
    hub.private_to = "hf_" + "s" * 34
    with pytest.raises(HubError, match="private.*HF_TOKEN"):
        fetch_hub_pair(REPOSITORY, "main", "", tmp_path)
    monkeypatch.setenv("HF_TOKEN", hub.private_to)
    assert contents(fetch_hub_pair(REPOSITORY, "main", "", tmp_path).directory) == files
    hub.status = 403
    with pytest.raises(HubError, match="HTTP 403") as caught:
        fetch_hub_pair(REPOSITORY, "main", "", tmp_path)
    assert hub.private_to not in str(caught.value)


def test_a_hub_that_fails_or_does_not_answer_is_told_apart_from_one_that_may_not_be_asked(hub, files, monkeypatch):
    hub.commit(REPOSITORY, files)
    hub.status = 503
    with pytest.raises(HubError, match="the hub answers HTTP 503. Run it again later"):
        find_hub_pair(REPOSITORY)
    hub.stop()
    with pytest.raises(HubError, match="the hub did not answer.*network"):
        find_hub_pair(REPOSITORY)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids"):
        find_hub_pair(REPOSITORY)


def test_a_folder_that_cannot_be_written_is_named(hub, files, tmp_path):
    hub.commit(REPOSITORY, files)
    (tmp_path / "taken").write_text("by a file")
    with pytest.raises(OSError, match="taken"):
        fetch_hub_pair(REPOSITORY, "main", "", tmp_path / "taken")


def test_a_hub_that_does_not_answer_is_waited_for_once_and_asked_again_after_a_while(hub, files, tmp_path, monkeypatch):
    monkeypatch.setattr("jsae_core.hub.LONGEST_WAIT", 0.2)
    for name in (REPOSITORY, "lab/others"):
        hub.commit(name, files)
    hub.silent = True
    with pytest.raises(HubError, match="the hub did not answer"):
        find_hub_pair(REPOSITORY)
    assert len(hub.requests) == 1
    for ask in (lambda: find_hub_pair("lab/others"), lambda: fetch_hub_pair(REPOSITORY, "main", "", tmp_path)):
        with pytest.raises(HubError, match="it did not answer .* ago, and is not asked again .* Check the network"):
            ask()
    assert len(hub.requests) == 1
    hub.silent = False
    monkeypatch.setattr("jsae_core.silence.SECONDS", 0)
    assert find_hub_pair("lab/others").size > 0
