import os
import stat

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jsae_core.tensor_files import (
    content_digest,
    open_tensors,
    read_header,
    read_tensors,
    tensor_text,
    text_tensor,
    write_tensors,
)

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7), "c": torch.ones(3, dtype=torch.bfloat16)}


def test_what_is_written_is_read_with_its_header(tmp_path):
    write_tensors(TENSORS, tmp_path / "file", {"key": "value"})
    tensors, header = read_tensors(tmp_path / "file")
    assert header == {"key": "value"} and tensors.keys() == TENSORS.keys()
    with (tmp_path / "file").open("rb") as file:
        assert read_header(file, "file") == header
    assert all(
        torch.equal(tensors[name], TENSORS[name]) and tensors[name].dtype == TENSORS[name].dtype for name in TENSORS
    )


def test_texts_pass_through_a_tensor():
    texts = ["def", " f", "\n", "ü", "", '"', "😀"]
    assert tensor_text(text_tensor(texts)) == texts


def test_a_file_may_be_read_by_whom_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        write_tensors(TENSORS, tmp_path / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_truncated_file_is_refused_with_its_name(tmp_path):
    write_tensors(TENSORS, tmp_path / "file")
    whole = (tmp_path / "file").read_bytes()
    for length in (0, 4, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut: is not a complete safetensors file"):
            open_tensors(tmp_path / "cut")


def test_the_digest_is_that_of_the_contents_wherever_and_in_whatever_order_they_lie(tmp_path):
    write_tensors(TENSORS, tmp_path / "file")
    reordered = dict(reversed(read_tensors(tmp_path / "file")[0].items()))
    assert content_digest(reordered) == content_digest(TENSORS)


@given(st.sampled_from(["name", "value", "shape", "dtype"]))
def test_the_digest_changes_with_any_part_of_the_contents(part):
    changed = {
        "name": {"A": TENSORS["a"]} | {name: TENSORS[name] for name in "bc"},
        "value": TENSORS | {"b": torch.tensor(8)},
        "shape": TENSORS | {"a": TENSORS["a"].view(3, 2)},
        "dtype": TENSORS | {"c": torch.ones(3, dtype=torch.float16)},
    }
    assert content_digest(changed[part]) != content_digest(TENSORS)
