import json

import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from jsae_core import text
from tests.jsae_core.builders import character_tokenizer

# all but the carriage return, which reading in text mode turns into a newline
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\r")
PRINTABLE = st.characters(min_codepoint=32, max_codepoint=126)


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer()


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library of the test's own making."""
    root = tmp_path / "lib"
    root.mkdir()
    monkeypatch.setattr(text.sysconfig, "get_path", lambda name: str(root))
    return root


def write(path, content: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8", newline="")
    return path


# --- the standard library ---


def test_every_file_of_the_standard_library_is_on_exactly_one_side_of_the_split(library):
    files = {write(library / f"package{n % 7}" / f"module{n}.py", "pass\n") for n in range(200)}
    train, held_out = text.standard_library_files("train"), text.standard_library_files("held_out")
    assert len(train) + len(held_out) == 200 and set(train) | set(held_out) == files
    assert 5 <= len(held_out) <= 40


def test_the_running_interpreter_s_library_has_text_on_both_sides():
    train, held_out = text.standard_library_files("train"), text.standard_library_files("held_out")
    assert len(train) > 100 and len(held_out) > 10 and set(train).isdisjoint(held_out)


def test_no_passage_is_served_on_both_sides(library):
    for n in range(60):
        write(library / f"module{n}.py", f"only in {n}\n" * 100)
    train, held_out = set(text.standard_library("train")), set(text.standard_library("held_out"))
    assert train and held_out and train.isdisjoint(held_out)


def test_a_file_s_side_depends_on_its_place_in_the_library_alone(library, tmp_path, monkeypatch):
    names = [f"module{n}.py" for n in range(60)]
    for name in names:
        write(library / name, "pass\n")
    before = {path.name for path in text.standard_library_files("held_out")}
    elsewhere = tmp_path / "another" / "python3.99"
    for name in [*names, *(f"new{n}.py" for n in range(20))]:
        write(elsewhere / name, "changed = True\n")
    monkeypatch.setattr(text.sysconfig, "get_path", lambda name: str(elsewhere))
    after = {path.name for path in text.standard_library_files("held_out")}
    assert {name for name in after if name in names} == before


@pytest.mark.parametrize("folder", ["site-packages/numpy", "test", "json/tests", "idlelib/idle_test", "__pycache__"])
def test_installed_packages_and_test_suites_are_no_part_of_the_library(library, folder):
    write(library / folder / "module.py", "pass\n")
    write(library / "kept.py", "pass\n")
    found = text.standard_library_files("train") + text.standard_library_files("held_out")
    assert [path.name for path in found] == ["kept.py"]


@given(lines=st.lists(st.text(CHARACTERS, max_size=300), max_size=30))
def test_cutting_into_passages_loses_no_character_and_passages_stay_short(lines, tmp_path_factory):
    # numbered lines, so that the shuffled passages can be put back in order
    content = "".join(f"{number:04}{line}\n" for number, line in enumerate(lines))
    root = tmp_path_factory.mktemp("library")
    write(root / "module.py", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text.sysconfig, "get_path", lambda name: str(root))
        passages = [*text.standard_library("train"), *text.standard_library("held_out")]
    places = [content.index(passage) for passage in passages]
    assert "".join(passage for _, passage in sorted(zip(places, passages, strict=True))) == content or not lines
    assert sum(map(len, passages)) == len(content)
    for passage in passages:
        assert len(passage) <= text.PASSAGE_CHARACTERS or len(passage.splitlines()) == 1


def test_a_line_longer_than_a_passage_stays_whole(library):
    long = "x" * (3 * text.PASSAGE_CHARACTERS)
    write(library / "module.py", f"before\n{long}\nafter\n")
    passages = [*text.standard_library("train"), *text.standard_library("held_out")]
    assert sorted(passages) == ["after\n", "before\n", long + "\n"]


def test_passages_come_in_the_same_order_every_time_but_not_in_the_files_order(library):
    for n in range(5):
        write(library / f"module{n}.py", "".join(f"{n} {line} {'-' * 60}\n" for line in range(100)))
    first, second = list(text.standard_library("train")), list(text.standard_library("train"))
    assert first == second and first != sorted(first)


def test_an_unknown_split_is_refused_naming_the_two_there_are():
    with pytest.raises(ValueError, match="'test'.*'train' or 'held_out'"):
        text.standard_library_files("test")


# --- local files ---


def test_text_files_are_one_document_each_in_the_order_of_their_paths(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        write(tmp_path / name, f"{name}\nsecond line")
    documents = list(text.local_files(str(tmp_path / "**" / "*.txt")))
    assert documents == [f"{name}\nsecond line" for name in ("a.txt", "b.txt", "sub/c.txt")]


def test_several_patterns_are_read_one_after_the_other(tmp_path):
    write(tmp_path / "a.txt", "first")
    write(tmp_path / "b.txt", "second")
    assert list(text.local_files([str(tmp_path / "b.txt"), str(tmp_path / "a*")])) == ["second", "first"]


def test_json_lines_are_one_document_a_line_in_order(tmp_path):
    lines = [json.dumps({"text": document, "other": 1}) for document in ("one", "two\nlines", "")]
    write(tmp_path / "a.jsonl", "\n".join([lines[0], "", *lines[1:]]))
    assert list(text.local_files(str(tmp_path / "a.jsonl"))) == ["one", "two\nlines", ""]


def test_parquet_rows_are_one_document_each_in_order_and_absent_ones_are_left_out(tmp_path):
    pandas.DataFrame({"text": ["one", None, "two"], "n": [1, 2, 3]}).to_parquet(tmp_path / "a.parquet")
    assert list(text.local_files(str(tmp_path / "a.parquet"))) == ["one", "two"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_column_can_have_another_name(tmp_path, kind):
    frame = pandas.DataFrame({"content": ["one", "two"]})
    if kind == "jsonl":
        frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    else:
        frame.to_parquet(tmp_path / "a.parquet")
    assert list(text.local_files(str(tmp_path / f"a.{kind}"), column="content")) == ["one", "two"]


def refused_file(path, column="text") -> str:
    with pytest.raises(ValueError) as caught:
        list(text.local_files(str(path), column))
    return str(caught.value)


def test_a_pattern_that_matches_nothing_is_refused_with_the_pattern(tmp_path):
    assert str(tmp_path / "*.txt") in refused_file(tmp_path / "*.txt")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_that_is_no_utf8_is_refused_with_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"text": "fine"}\n{"text": "\xff"}\n')
    message = refused_file(tmp_path / name)
    assert str(tmp_path / name) in message and "UTF-8" in message


@pytest.mark.parametrize("line", ["{broken", '{"other": "x"}', '["x"]', '"x"', "3", '{"text": 3}', '{"text": null}'])
def test_a_bad_json_line_is_refused_with_its_file_its_number_and_the_key(tmp_path, line):
    write(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n{line}\n')
    message = refused_file(tmp_path / "a.jsonl")
    assert f"{tmp_path / 'a.jsonl'}, line 2" in message and "'text'" in message


def test_a_parquet_file_without_the_column_is_refused_naming_those_it_has(tmp_path):
    pandas.DataFrame({"content": ["one"], "n": [1]}).to_parquet(tmp_path / "a.parquet")
    message = refused_file(tmp_path / "a.parquet")
    assert str(tmp_path / "a.parquet") in message and "'text'" in message and "content, n" in message


def test_a_parquet_column_that_holds_no_text_is_refused_with_its_type(tmp_path):
    pandas.DataFrame({"text": [1, 2]}).to_parquet(tmp_path / "a.parquet")
    message = refused_file(tmp_path / "a.parquet")
    assert str(tmp_path / "a.parquet") in message and "'text'" in message and "int64" in message


@pytest.mark.parametrize("kept", [0, 10, -10])
def test_a_truncated_parquet_file_is_refused_with_its_name(tmp_path, kept):
    path = tmp_path / "a.parquet"
    pandas.DataFrame({"text": ["one", "two"]}).to_parquet(path)
    path.write_bytes(path.read_bytes()[:kept])
    assert str(path) in refused_file(path)


# --- Hugging Face datasets ---


def test_a_dataset_s_documents_come_in_its_own_order(tmp_path):
    write(tmp_path / "train.jsonl", "".join(json.dumps({"text": f"document {n}"}) + "\n" for n in range(5)))
    documents = text.hugging_face_dataset(str(tmp_path), split="train")
    assert list(documents) == [f"document {n}" for n in range(5)]


def test_a_dataset_without_the_column_is_refused_naming_those_it_has(tmp_path):
    write(tmp_path / "train.jsonl", '{"content": "x"}\n')
    with pytest.raises(ValueError, match=r"split 'train'.*no column 'text', only content"):
        next(text.hugging_face_dataset(str(tmp_path), split="train"))


def test_a_dataset_without_the_split_is_refused_with_its_name(tmp_path):
    write(tmp_path / "train.jsonl", '{"text": "x"}\n')
    with pytest.raises(ValueError, match=f"{tmp_path}.*split 'validation'"):
        next(text.hugging_face_dataset(str(tmp_path), split="validation"))


def test_a_dataset_that_cannot_be_reached_is_refused_with_its_name_and_what_to_do():
    with pytest.raises(ValueError, match=r"(?s)'allenai/c4' \(config 'en', split 'validation'\).*network.*local files"):
        next(text.hugging_face_dataset("allenai/c4", "en"))


# --- tokens ---


def test_every_document_opens_with_bos_and_keeps_its_order(tokenizer):
    documents = text.tokenise(["ab", "c"], tokenizer, context_size=10)
    a = tokenizer("a")["input_ids"][0]
    assert [document.tolist() for document in documents] == [[0, a, a + 1], [0, a + 2]]
    assert all(document.dtype == torch.int64 for document in documents)


def test_eos_opens_documents_where_the_tokenizer_has_no_bos(tokenizer):
    without_bos = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="a", unk_token="a")
    (document,) = text.tokenise(["b"], without_bos, context_size=10)
    assert document.tolist() == tokenizer("ab")["input_ids"]


def test_a_tokenizer_with_neither_bos_nor_eos_is_refused(tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, unk_token="a")
    with pytest.raises(ValueError, match="neither a BOS nor an EOS"):
        text.tokenise(["b"], bare, context_size=10)


def test_a_tokenizer_that_adds_bos_by_itself_adds_no_second_one(tokenizer):
    from tokenizers.processors import TemplateProcessing

    eager = character_tokenizer()
    eager.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{eager.bos_token} $A", special_tokens=[(eager.bos_token, 0)]
    )
    assert eager("b")["input_ids"][0] == 0
    assert text.tokenise(["b"], eager, 10)[0].tolist() == [0, *tokenizer("b")["input_ids"]]


@given(
    documents=st.lists(st.text(PRINTABLE, max_size=12), min_size=1, max_size=8),
    context_size=st.integers(2, 8),
    max_tokens=st.none() | st.integers(1, 30),
)
def test_tokens_are_each_document_s_beginning_up_to_the_context_and_up_to_the_count(
    tokenizer, documents, context_size, max_tokens
):
    expected, left = [], float("inf") if max_tokens is None else max_tokens
    for document in documents:
        kept = document[: int(min(context_size - 1, left))]
        if kept:
            expected.append([0, *tokenizer(kept)["input_ids"]])
        left -= len(kept)
    if expected:
        got = text.tokenise(iter(documents), tokenizer, context_size, max_tokens)
        assert [document.tolist() for document in got] == expected
    else:
        with pytest.raises(ValueError, match=f"of {len(documents)} documents, {len(documents)} are shorter"):
            text.tokenise(documents, tokenizer, context_size, max_tokens)


def test_a_stream_is_read_no_further_than_the_tokens_asked_for(tokenizer):
    read = []

    def endless():
        while True:
            read.append("abcd")
            yield "abcd"

    assert len(text.tokenise(endless(), tokenizer, context_size=10, max_tokens=8)) == 2
    assert len(read) == 2


def test_empty_documents_are_left_out(tokenizer):
    assert len(text.tokenise(["", "a", ""], tokenizer, 10)) == 1


@pytest.mark.parametrize("documents", [[], [""], ["", ""]])
def test_text_without_a_single_token_is_refused_with_what_was_seen(tokenizer, documents):
    n = len(documents)
    with pytest.raises(ValueError, match=f"of {n} documents, {n} are shorter than two tokens"):
        text.tokenise(documents, tokenizer, 10)


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_joined_documents_are_split_again_as_they_were(lengths):
    documents = [torch.arange(length) + 10 * n for n, length in enumerate(lengths)]
    again = text.split_documents(text.join_documents(documents))
    assert [document.tolist() for document in again] == [document.tolist() for document in documents]


def test_asking_for_no_tokens_is_refused():
    with pytest.raises(ValueError, match="max_tokens is 0"):
        text.tokenise(["b"], character_tokenizer(), 10, max_tokens=0)
