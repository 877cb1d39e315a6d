import json
import tracemalloc

import datasets
import pyarrow
import pytest
import torch
from huggingface_hub import DatasetInfo, HfApi
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer, GPT2Tokenizer, GPTNeoXTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from jsae_core import text
from tests.jsae_core.builders import character_tokenizer
from tests.jsae_core.tokenizer_kinds import KINDS, sample, tokenizer_of_kind

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


# --- Hugging Face datasets ---


def test_a_dataset_s_documents_come_in_its_own_order(tmp_path):
    write(tmp_path / "train.jsonl", "".join(json.dumps({"text": f"document {n}"}) + "\n" for n in range(5)))
    said = []
    documents = text.hugging_face_dataset(str(tmp_path), split="train", say=said.append)
    assert said == []  # nothing is read yet
    assert list(documents) == [f"document {n}" for n in range(5)]
    (sentence,) = said
    assert sentence.startswith(
        f"Reading the Hugging Face dataset '{tmp_path}' (config None, split 'train') from https:"
    )


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


@pytest.mark.parametrize("absent", ['{"text": null}', '{"other": "x"}'])
def test_a_dataset_s_rows_without_a_text_are_left_out_and_counted(tmp_path, absent):
    write(tmp_path / "train.jsonl", f'{{"text": "a"}}\n{absent}\n{{"text": "b"}}\n')
    documents = text.hugging_face_dataset(str(tmp_path), split="train")
    assert list(documents) == ["a", "b"] and documents.missing == 1


@pytest.mark.parametrize("held", ["3", '["x"]', '{"a": "x"}'])
def test_a_dataset_s_row_that_is_no_text_is_refused_with_its_number(tmp_path, held):
    write(tmp_path / "train.jsonl", f'{{"text": {held}}}\n')
    with pytest.raises(ValueError, match=f"{tmp_path}.*row 1, 'text': is .*expected a string"):
        list(text.hugging_face_dataset(str(tmp_path), split="train"))


def test_the_commit_that_a_dataset_s_revision_stands_for_is_the_one_that_is_read(monkeypatch):
    asked, loaded = {}, {}

    def dataset_info(self, name, *, revision=None, timeout=None):
        asked.update(name=name, revision=revision)
        return DatasetInfo(id=name, sha="c0ffee", private=False, downloads=0, likes=0, tags=[])

    def load_dataset(name, config, **settings):
        loaded.update(settings)
        return [{"text": "a"}]

    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    documents = text.hugging_face_dataset("somebody/texts", split="train", revision="v1")
    assert list(documents) == ["a"] and documents.revision == "c0ffee"
    assert asked == {"name": "somebody/texts", "revision": "v1"} and loaded["revision"] == "c0ffee"


def test_a_dataset_whose_name_is_a_folder_s_too_is_refused(tmp_path, monkeypatch):
    (tmp_path / "somebody" / "texts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="'somebody/texts': there is a folder of that name"):
        text.hugging_face_dataset("somebody/texts")


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
    long_documents=st.sampled_from(["cut", "truncate"]),
)
def test_documents_are_cut_to_the_context_or_truncated_up_to_the_count(
    tokenizer, documents, context_size, max_tokens, long_documents
):
    expected, left = [], 10**9 if max_tokens is None else max_tokens
    for document in documents:
        parts = [document[at : at + context_size - 1] for at in range(0, len(document), context_size - 1)]
        for part in parts[: 1 if long_documents == "truncate" else None]:
            if left > 0:
                expected.append([0, *tokenizer(part[:left])["input_ids"]])
                left -= len(part)
    if expected:
        got = text.tokenise(iter(documents), tokenizer, context_size, max_tokens, long_documents)
        assert [document.tolist() for document in got] == expected
    else:
        with pytest.raises(
            ValueError, match=f"no document has a token besides BOS, of {len(documents)} that were read"
        ):
            text.tokenise(documents, tokenizer, context_size, max_tokens, long_documents)


def joined(documents) -> list[int]:
    return [token for document in documents for token in document[1:].tolist()]


def of_the_whole(tokenizer, document: str) -> list[int]:
    return tokenizer(document, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3)
@given(data=st.data())
def test_a_long_document_cut_into_pieces_has_the_tokens_that_it_has_as_a_whole(kind, data):
    tokenizer, source = tokenizer_of_kind(kind), sample()
    slices = st.tuples(st.integers(0, 100_000), st.integers(15_000, 30_000), st.text(CHARACTERS, max_size=40))
    parts = data.draw(st.lists(slices, min_size=6, max_size=8))
    document = "x" + "".join(source[start : start + length] + between for start, length, between in parts)
    assert len(document) > 1.5 * text.WINDOW
    documents = text.tokenise([document], tokenizer, context_size=100)
    assert joined(documents) == of_the_whole(tokenizer, document)
    assert {len(document) for document in documents[:-1]} <= {100}
    assert {int(document[0]) for document in documents} == {tokenizer.bos_token_id}


@pytest.mark.parametrize("kind", ["gpt_neox", "llama"])
@pytest.mark.parametrize("run", [" ", "=", "x", "7", "\n", "ab", "é", "🙂"])
def test_a_long_run_of_one_character_has_the_tokens_that_it_has_as_a_whole(kind, run):
    tokenizer = tokenizer_of_kind(kind)
    assert joined(text.tokenise([run * 100_000], tokenizer, 100)) == of_the_whole(tokenizer, run * 100_000)


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.given: list[int] = []

    def __call__(self, document, **settings):
        self.given.append(len(document))
        return self.tokenizer(document, **settings)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize("long_documents", ["cut", "truncate"])
def test_of_a_long_document_only_what_is_used_is_tokenised(tokenizer, long_documents):
    def given(characters: int) -> list[int]:
        counting = Counting(tokenizer)
        text.tokenise(["abc " * (characters // 4)], counting, 32, 31, long_documents)
        return counting.given

    assert sum(given(100_000)) == sum(given(5_000_000)) <= 2 * text.WINDOW


def test_a_document_that_is_used_whole_is_tokenised_once_in_pieces_of_bounded_size(tokenizer):
    counting = Counting(tokenizer)
    text.tokenise(["abc " * 100_000], counting, 1000)
    assert max(counting.given) <= text.WINDOW and sum(counting.given) < 1.1 * 400_000


@pytest.mark.parametrize("name", ["book.txt", "book.txt.gz", "book.txt.zst"])
def test_the_memory_that_a_text_file_takes_does_not_grow_with_it(tokenizer, tmp_path, name):
    path = str(tmp_path / name)

    def peak(megabytes: int) -> int:
        with pyarrow.output_stream(path) as file:  # compressed as the name says
            for _ in range(megabytes):
                file.write(b"abc " * 250_000)
        tracemalloc.start()
        try:
            text.tokenise(text.local_files(path), tokenizer, 32, 1000)
            for pieces in text.local_files(path).in_pieces():
                assert sum(map(len, pieces)) == megabytes * 1_000_000
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # what is imported and kept at the first time
    assert peak(5) < 1.2 * peak(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("written", ["<s>", "</s>", "<|endoftext|>", "<unk>"])
def test_a_special_token_that_is_written_in_a_text_never_becomes_one(kind, written):
    tokenizer = tokenizer_of_kind(kind)
    (document,) = text.tokenise([f"a {written} b{written}c"], tokenizer, 100)
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert document[0] == tokenizer.bos_token_id and special.isdisjoint(document[1:].tolist())


@pytest.mark.parametrize("kind", ["gpt_neox", "llama"])
def test_a_special_token_that_is_written_in_a_text_is_read_back_as_text(kind):
    tokenizer = tokenizer_of_kind(kind)
    written = f"a {tokenizer.bos_token} b{tokenizer.eos_token}c"
    (document,) = text.tokenise([written], tokenizer, 100)
    assert tokenizer.decode(document[1:]) == written


def test_a_character_whose_only_token_is_bos_is_left_out(tokenizer):
    assert text.tokenise(["aéb"], tokenizer, 10)[0].tolist() == [0, *tokenizer("ab")["input_ids"]]


def test_a_tokenizer_in_python_gives_the_tokens_of_the_whole_text():
    tokenizer = ByT5Tokenizer()
    document = "Füße " * 20_000
    assert joined(text.tokenise([document], tokenizer, 1000)) == of_the_whole(tokenizer, document)


@pytest.mark.parametrize("empty", [GPTNeoXTokenizer, LlamaTokenizer, GPT2Tokenizer])
def test_a_tokenizer_without_a_vocabulary_is_refused(empty):
    with pytest.raises(ValueError, match=r"no vocabulary.*tokenizer\.json"):
        text.tokenise(["hello"], empty(), 8)


def test_documents_that_are_none_are_left_out_and_other_things_refused_with_their_number(tokenizer):
    assert len(text.tokenise(["a", None, "b"], tokenizer, 10)) == 2
    with pytest.raises(ValueError, match="document 2: is int, expected a string"):
        text.tokenise(["a", 3], tokenizer, 10)


def test_half_a_surrogate_pair_is_refused_with_its_document_and_place(tokenizer):
    with pytest.raises(ValueError, match=r"document 2: holds half of a surrogate pair, '\\ud83d', as character 100000"):
        text.tokenise(["a", "b" * 100_000 + "\ud83d"], tokenizer, 10)


def test_text_whose_rows_are_all_without_one_is_refused_with_how_many_there_were(tokenizer):
    with pytest.raises(ValueError, match="there is no document; 2 rows without a text"):
        text.tokenise([None, None], tokenizer, 10)


def test_a_stream_is_read_no_further_than_the_tokens_asked_for(tokenizer):
    read = []

    def endless():
        while True:
            read.append("abcd")
            yield "abcd"

    assert len(text.tokenise(endless(), tokenizer, context_size=10, max_tokens=8)) == 2
    assert len(read) == 2


def test_one_string_is_refused_since_its_letters_would_be_the_documents(tokenizer):
    with pytest.raises(ValueError, match=r"one string, expected several: a list of them, or \[text\] for one"):
        text.tokenise("hello", tokenizer, 10)


def test_empty_documents_are_left_out(tokenizer):
    assert len(text.tokenise(["", "a", ""], tokenizer, 10)) == 1


@pytest.mark.parametrize("documents", [[], [""], ["", ""]])
def test_text_without_a_single_token_is_refused_with_what_was_seen(tokenizer, documents):
    n = len(documents)
    with pytest.raises(
        ValueError, match=f"no document has a token besides BOS, of {n} that were read" if n else "there is no document"
    ):
        text.tokenise(documents, tokenizer, 10)


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_joined_documents_are_split_again_as_they_were(lengths):
    documents = [torch.arange(length) + 10 * n for n, length in enumerate(lengths)]
    again = text.split_documents(text.join_documents(documents))
    assert [document.tolist() for document in again] == [document.tolist() for document in documents]


@given(n_pieces=st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_stored_pieces_know_their_whole_document_and_a_file_without_pieces_is_as_it_was(n_pieces):
    numbers = [number for number, n in enumerate(n_pieces, start=1) for _ in range(n)]
    documents = [torch.arange(2)] * len(numbers)
    stored = text.join_documents(documents, numbers)
    assert ("sources" in stored) == (max(n_pieces) > 1)
    again = text.split_sources(stored)
    assert [again.count(number) for number in dict.fromkeys(again)] == n_pieces


def test_tokens_that_were_stored_without_the_numbers_of_their_documents_count_each_as_whole():
    stored = {"tokens": torch.arange(5), "lengths": torch.tensor([2, 3])}
    assert text.split_sources(stored) == [0, 1]


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"context_size": 1}, "context_size is 1"),
        ({"long_documents": "split"}, "'split', expected 'cut' or 'truncate'"),
    ],
)
def test_settings_out_of_bounds_are_refused_with_their_value(tokenizer, settings, said):
    with pytest.raises(ValueError, match=said):
        text.tokenise(["b"], tokenizer, **{"context_size": 10} | settings)
