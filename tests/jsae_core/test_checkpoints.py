"""Checkpoints: a state is whole, its own, or not there."""

import json
import random
import resource
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jsae_core.checkpoints import Checkpoint, State
from tests.killing import ended_before

TENSORS = {"weights": torch.randn(7, 5), "count": torch.tensor(3), "half": torch.ones(3, dtype=torch.bfloat16)}
VALUES = {"step": 12, "loss": 0.1 + 0.2, "name": "ü", "nothing": None, "several": [1, 2]}


@pytest.fixture
def said():
    return []


@pytest.fixture
def checkpoint(tmp_path, said):
    return Checkpoint(tmp_path / "new" / "folder" / "it.safetensors", "inputs", say=said.append)


def same(state: State, tensors=TENSORS, values=VALUES) -> bool:
    return state.values == values and all(
        torch.equal(state.tensors[name], tensor) and state.tensors[name].dtype == tensor.dtype
        for name, tensor in tensors.items()
    )


def test_what_was_saved_last_is_what_is_loaded(checkpoint):
    assert checkpoint.load() is None
    checkpoint.save({"other": torch.zeros(2)}, {})
    checkpoint.save(TENSORS, VALUES)
    assert same(checkpoint.load())
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["it.safetensors"]


def test_a_loaded_state_stays_as_it_is_when_the_file_is_replaced_or_removed(checkpoint):
    checkpoint.save(TENSORS, VALUES)
    state = checkpoint.load()
    checkpoint.save({"weights": torch.zeros(7, 5)}, {})
    checkpoint.remove()
    assert same(state)


def test_a_removed_checkpoint_is_gone_and_removing_it_again_is_no_error(checkpoint):
    checkpoint.save(TENSORS, VALUES)
    checkpoint.remove()
    checkpoint.remove()
    assert checkpoint.load() is None and not list(checkpoint.path.parent.iterdir())


def test_one_is_due_once_its_seconds_have_passed_since_the_last(tmp_path):
    always, seldom = (Checkpoint(tmp_path / "it", seconds=seconds) for seconds in (0, 3600))
    assert always.due() and not seldom.due()
    always.save(TENSORS, VALUES)
    assert always.due()


@pytest.mark.parametrize("differs", ["the digest", "the computation", "a setting of it"])
def test_a_state_of_something_else_is_ignored_with_a_word_and_replaced(checkpoint, said, differs):
    checkpoint.of("training", "k=3").save(TENSORS, VALUES)
    digest = "others" if differs == "the digest" else "inputs"
    parts = {"the computation": ("histogram", "k=3"), "a setting of it": ("training", "k=4")}
    other = Checkpoint(checkpoint.path, digest, say=said.append).of(*parts.get(differs, ("training", "k=3")))
    assert other.load() is None
    assert "other inputs, or with other settings" in said[-1] and str(checkpoint.path) in said[-1]
    other.save(TENSORS, {"step": 1})
    assert other.load().values == {"step": 1}
    assert checkpoint.of("training", "k=3").load() is None


def test_the_parts_that_describe_a_computation_are_told_apart(checkpoint):
    assert checkpoint.of("ab", "c").digest != checkpoint.of("a", "bc").digest != checkpoint.digest


@given(st.data())
def test_a_file_that_was_cut_or_changed_anywhere_is_ignored(tmp_path_factory, data):
    said: list[str] = []
    checkpoint = Checkpoint(tmp_path_factory.mktemp("checkpoint") / "it", "inputs", say=said.append)
    checkpoint.save(TENSORS, VALUES)
    whole = bytearray(checkpoint.path.read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        checkpoint.path.write_bytes(whole[:at])
    else:
        whole[at] ^= 1 << data.draw(st.integers(0, 7))
        checkpoint.path.write_bytes(whole)
    state = checkpoint.load()
    # a flipped bit may leave JSON that means the same
    assert state is None and "is not used" in said[-1] or same(state)


def test_a_file_of_another_kind_is_ignored(checkpoint, said):
    checkpoint.save(TENSORS, VALUES)
    checkpoint.path.write_bytes(b"\x80\x04\x95 a pickle, say")
    assert checkpoint.load() is None and "not a complete safetensors file" in said[-1]


def test_a_full_disk_leaves_the_state_before_and_is_said_while_the_computation_goes_on(checkpoint, said):
    checkpoint.save(TENSORS, VALUES)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # no file may grow beyond, as on a full disk
    try:
        checkpoint.save({"weights": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "400,000 bytes could not be written" in said[-1] and str(checkpoint.path) in said[-1]
    assert same(checkpoint.load())
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["it.safetensors"]


@pytest.fixture
def growing(checkpoint):
    """A checkpoint that was saved as two lists grew, and the lists."""
    rows, names = [torch.arange(3), torch.zeros(0, 4)], [torch.tensor(7)]
    checkpoint.save(TENSORS, VALUES, {"of rows": rows, "names": names, "empty": []})
    rows.append(torch.randn(2, 2))
    checkpoint.save(TENSORS, VALUES, {"of rows": rows, "names": names, "empty": []})
    return checkpoint, {"of rows": rows, "names": names, "empty": []}


def pieces(checkpoint: Checkpoint) -> list[Path]:
    return sorted((checkpoint.path.parent / "it.parts").glob("*"))


def has(state: State, lists) -> bool:
    return list(state.lists) == list(lists) and all(
        len(state.lists[name]) == len(of) and all(map(torch.equal, state.lists[name], of)) for name, of in lists.items()
    )


def test_lists_that_grow_are_loaded_whole_and_in_order(growing):
    checkpoint, lists = growing
    state = Checkpoint(checkpoint.path, "inputs").load()
    assert same(state) and has(state, lists)


def test_what_is_in_a_file_already_is_neither_asked_for_nor_written_again(growing):
    checkpoint, lists = growing
    before = {path: path.stat().st_mtime_ns for path in pieces(checkpoint)}
    assert len(before) == 2

    class Last(list):
        def __getitem__(self, place):
            assert place == 3
            return super().__getitem__(place)

    for resumed in (checkpoint, Checkpoint(checkpoint.path, "inputs")):
        resumed.load()
        resumed.save(TENSORS, {}, lists | {"of rows": Last([*lists["of rows"], torch.tensor(1)])})
        assert {path: path.stat().st_mtime_ns for path in pieces(checkpoint) if path in before} == before
        assert len(resumed.load().lists["of rows"]) == 4


def test_large_lists_are_written_to_several_files(checkpoint, monkeypatch):
    monkeypatch.setattr("jsae_core.checkpoints.PIECES_BYTES", 100)
    lists = {name: [torch.randn(5, dtype=torch.float64) for _ in range(7)] for name in ("one", "other")}
    checkpoint.save({}, {}, lists)
    assert len(pieces(checkpoint)) == 5  # of 40 bytes each, three go into one
    assert has(checkpoint.load(), lists)


@pytest.mark.parametrize("damage", ["missing", "cut", "swapped"])
def test_a_checkpoint_with_a_file_that_is_missing_or_damaged_is_ignored(growing, said, damage):
    checkpoint, lists = growing
    first, second = pieces(checkpoint)
    if damage == "missing":
        second.unlink()
    elif damage == "cut":
        second.write_bytes(second.read_bytes()[:-1])
    else:
        second.write_bytes(first.read_bytes())
    assert checkpoint.load() is None
    assert str(second) in said[-1] and "Beginning anew" in said[-1]
    checkpoint.save({}, {"new": 1}, {"of rows": lists["of rows"][:1]})
    assert has(checkpoint.load(), {"of rows": lists["of rows"][:1]})


def test_a_full_disk_leaves_the_lists_before(growing, said):
    checkpoint, lists = growing
    there = pieces(checkpoint)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        checkpoint.save(TENSORS, {}, lists | {"of rows": [*lists["of rows"], torch.zeros(100_000)]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "bytes could not be written" in said[-1] and pieces(checkpoint) == there
    state = checkpoint.load()
    assert same(state) and has(state, lists)


def test_a_part_has_a_file_of_its_own_and_goes_with_the_whole(growing):
    checkpoint, lists = growing
    part = checkpoint.part("further")
    assert part.load() is None
    part.save({}, {"part": 1}, {"rows": [torch.ones(1)]})
    assert part.load().values == {"part": 1} and has(checkpoint.load(), lists)
    checkpoint.remove()
    assert not list(checkpoint.path.parent.iterdir())


def count_for_ever(path: Path, heard: Path) -> None:
    """Saves step after step, and writes down each that was saved."""
    checkpoint = Checkpoint(path, seconds=0)
    state = checkpoint.load()
    step = state.values["step"] if state else 0
    with heard.open("a") as file:
        while True:
            step += 1
            checkpoint.save({"steps": torch.full((200_000,), step)}, {"step": step})
            file.write(f"{step}\n")
            file.flush()


def test_a_process_that_is_killed_while_it_writes_leaves_a_whole_state_of_its_last_step(tmp_path):
    path, heard = tmp_path / "it.safetensors", tmp_path / "heard"
    delays, steps = random.Random(0), []
    for _ in range(8):
        assert not ended_before(delays.uniform(0.1, 0.4), count_for_ever, path, heard)
        state = Checkpoint(path).load()
        if state is not None:
            step = state.values["step"]
            # killed between saving and saying it, or after
            assert step - int(heard.read_text().split()[-1]) in (0, 1)
            assert set(state.tensors["steps"].tolist()) == {step}
            steps.append(step)
    assert len(steps) > 2 and steps == sorted(steps) and steps[-1] > steps[0]


def test_nothing_of_a_checkpoint_is_a_pickle(checkpoint):
    checkpoint.save(TENSORS, VALUES)
    raw = checkpoint.path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["__metadata__"]["values"] == json.dumps(VALUES)


@pytest.mark.parametrize("lengths", [(29, 60), (59, 59), (5, 200), (100, 29), (30, 30)])
def test_computations_of_one_result_lose_no_more_together_than_one_would(tmp_path, monkeypatch, lengths):
    clock = [0]
    monkeypatch.setattr("jsae_core.checkpoints.time", SimpleNamespace(monotonic=lambda: clock[0]))
    first = Checkpoint(tmp_path / "it.safetensors", seconds=60).for_one_of(2)
    lost = {}
    for checkpoint, length in zip((first, first.part("second")), lengths, strict=True):
        for _ in range(length):
            clock[0] += 1
            lost[checkpoint.path] = lost.get(checkpoint.path, 0) + 1
            if checkpoint.due():
                checkpoint.save({}, {})
                lost[checkpoint.path] = 0
            assert sum(lost.values()) <= 60
        if checkpoint.exists():  # then it is kept as a whole
            lost[checkpoint.path] = 0
