"""Local files as documents: every kind of file, and what is wrong with them."""

import csv
import gzip
import json

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsae_core.text import local_files


def write(path, content: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8", newline="")
    return path


DOCUMENT = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda document: document[0] != "\ufeff")


def frame(documents) -> pandas.DataFrame:
    return pandas.DataFrame({"number": range(len(documents)), "text": documents}, dtype=object)


def table(documents, kind) -> bytes:
    texts = pyarrow.array(documents, pyarrow.string())
    texts = texts.dictionary_encode() if kind == "dictionary" else texts.cast(kind)
    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"number": range(len(documents)), "text": texts}), buffer)
    return buffer.getvalue().to_pybytes()


def objects(documents) -> list[dict]:
    return [{"text": document, "number": number} for number, document in enumerate(documents)]


def lines(documents) -> str:
    return "".join(f"{json.dumps(item, ensure_ascii=number % 2)}\n" for number, item in enumerate(objects(documents)))


FORMATS = {
    "lines.jsonl": lines,
    "lines.ndjson": lines,
    "lines.json": lines,
    "objects.json": lambda documents: json.dumps(objects(documents), indent=1),
    "array.json": json.dumps,
    "columns.json": lambda documents: json.dumps({"number": [], "text": documents}),
    "pandas.json": lambda documents: frame(documents).to_json(),
    "a.csv": lambda documents: frame(documents).to_csv(quoting=csv.QUOTE_ALL),
    "a.tsv": lambda documents: frame(documents).to_csv(sep="\t", quoting=csv.QUOTE_ALL),
    "string.parquet": lambda documents: table(documents, pyarrow.string()),
    "large.parquet": lambda documents: table(documents, pyarrow.large_string()),
    "view.parquet": lambda documents: table(documents, pyarrow.string_view()),
    "dictionary.parquet": lambda documents: table(documents, "dictionary"),
}


def save(path, content: str | bytes):
    """Compressed as the name says."""
    content = content if isinstance(content, bytes) else content.encode("utf-8")
    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())
    with pyarrow.output_stream(str(path), compression=compression) as file:
        file.write(content)
    return path


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", FORMATS)
@given(documents=st.lists(st.none() | DOCUMENT, min_size=2, max_size=6))
def test_the_same_documents_come_back_from_every_kind_of_file(tmp_path, name, compression, documents):
    read = local_files(str(save(tmp_path / (name + compression), FORMATS[name](documents))))
    assert list(read) == [document for document in documents if document is not None]
    assert read.missing == documents.count(None)


def test_text_files_are_one_document_each_in_the_order_of_their_paths(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        write(tmp_path / name, f"{name}\nsecond line")
    documents = list(local_files(str(tmp_path / "**" / "*.txt")))
    assert documents == [f"{name}\nsecond line" for name in ("a.txt", "b.txt", "sub/c.txt")]


def test_several_patterns_are_read_one_after_the_other(tmp_path):
    write(tmp_path / "a.txt", "first")
    write(tmp_path / "b.txt", "second")
    assert list(local_files([str(tmp_path / "b.txt"), str(tmp_path / "a*")])) == ["second", "first"]


def test_json_lines_are_one_document_a_line_in_order(tmp_path):
    lines = [json.dumps({"text": document, "other": 1}) for document in ("one", "two\nlines", "")]
    write(tmp_path / "a.jsonl", "\n".join([lines[0], "", *lines[1:]]))
    assert list(local_files(str(tmp_path / "a.jsonl"))) == ["one", "two\nlines", ""]


def test_parquet_rows_are_one_document_each_in_order_and_absent_ones_are_left_out(tmp_path):
    pandas.DataFrame({"text": ["one", None, "two"], "n": [1, 2, 3]}).to_parquet(tmp_path / "a.parquet")
    assert list(local_files(str(tmp_path / "a.parquet"))) == ["one", "two"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_column_can_have_another_name(tmp_path, kind):
    frame = pandas.DataFrame({"content": ["one", "two"]})
    if kind == "jsonl":
        frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    else:
        frame.to_parquet(tmp_path / "a.parquet")
    assert list(local_files(str(tmp_path / f"a.{kind}"), column="content")) == ["one", "two"]


def refused_file(path, column="text") -> str:
    with pytest.raises(ValueError) as caught:
        list(local_files(str(path), column))
    return str(caught.value)


def test_a_pattern_that_matches_nothing_is_refused_with_the_pattern(tmp_path):
    assert str(tmp_path / "*.txt") in refused_file(tmp_path / "*.txt")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_that_is_no_utf8_is_refused_with_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"text": "fine"}\n{"text": "\xff"}\n')
    message = refused_file(tmp_path / name)
    assert str(tmp_path / name) in message and "UTF-8" in message


@pytest.mark.parametrize("line", ["{broken", '["x"]', '"x"', "3", '{"text": 3}', '{"text": ["x"]}'])
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


# --- kinds ---


@pytest.mark.parametrize(
    "name", ["A.TXT", "a.Txt.GZ", "c4.00000-of-00008.jsonl.gz", "a.JSONL.Zst", "A.CSV", "a.Parquet"]
)
def test_kinds_are_told_by_the_suffix_whatever_its_case(tmp_path, name):
    lower = name.lower()
    content = "x" if ".txt" in lower else FORMATS[next(kind for kind in FORMATS if kind.split(".")[1] in lower)](["x"])
    assert list(local_files(str(save(tmp_path / name, content)))) == ["x"]


@pytest.mark.parametrize("name", ["page.html", "notes.md", "README", "a.gz", "a.xlsx.gz", "data.jsonl.bz2", "a.pdf"])
def test_other_kinds_are_refused_before_anything_is_read_with_the_kinds_there_are(tmp_path, name):
    write(tmp_path / "a.txt", "fine")
    write(tmp_path / name, "x")
    with pytest.raises(ValueError) as caught:
        next(local_files([str(tmp_path / "a.txt"), str(tmp_path / name)]))
    assert str(tmp_path / name) in str(caught.value)
    assert all(kind in str(caught.value) for kind in (".txt", ".jsonl", ".json", ".csv", ".parquet", ".gz", ".zst"))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.zst", "a.csv.gz", "a.parquet.zst", "a.json.gz"])
@pytest.mark.parametrize("broken", ["not compressed", "truncated"])
def test_a_broken_compressed_file_is_refused_with_its_name(tmp_path, name, broken):
    content = FORMATS.get({"a.jsonl.gz": "lines.jsonl", "a.json.gz": "array.json"}.get(name, ""), lines)(["x" * 1000])
    path = save(tmp_path / name, content)
    path.write_bytes(b"plain text" if broken == "not compressed" else path.read_bytes()[:-12])
    assert str(path) in refused_file(path)


def test_compressed_files_that_were_joined_are_read_to_the_end(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n') + gzip.compress(b'{"text": "b"}\n'))
    assert list(local_files(str(tmp_path / "a.jsonl.gz"))) == ["a", "b"]


def test_windows_line_ends_become_line_ends_wherever_a_piece_ends(tmp_path):
    content = "a\r\nb\rc\n" * 30_000
    (document,) = local_files(str(write(tmp_path / "a.txt", content)))
    assert document == content.replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize("name", ["a.txt", "lines.jsonl", "lines.json", "array.json", "a.csv"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    content = "first" if name == "a.txt" else FORMATS[name](["first", "second"])
    write(tmp_path / name, "\ufeff" + content)
    assert next(local_files(str(tmp_path / name))) == "first"


@pytest.mark.parametrize("name", ["lines.jsonl", "string.parquet"])
def test_a_byte_order_mark_that_a_row_begins_with_is_no_text(tmp_path, name):
    assert list(local_files(str(save(tmp_path / name, FORMATS[name](["\ufeffa", "b\ufeff"]))))) == ["a", "b\ufeff"]


def test_a_text_file_that_is_no_utf8_is_refused_with_the_byte_in_the_file(tmp_path):
    content = "ü" * 100_000
    (tmp_path / "a.txt").write_bytes(content.encode() + b"\xff" + content.encode())
    assert "at byte 200000" in refused_file(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes("ü".encode()[:1])
    assert "at byte 0" in refused_file(tmp_path / "a.txt")


@pytest.mark.parametrize("name, place", [("lines.jsonl", "line 2"), ("array.json", "item 2"), ("lines.json", "line 2")])
def test_half_a_surrogate_pair_is_refused_with_file_and_place(tmp_path, name, place):
    content = json.dumps(["a", "b\ud83d c"]) if name == "array.json" else '{"text": "a"}\n{"text": "b\\ud83d c"}\n'
    message = refused_file(write(tmp_path / name, content))
    assert f"{tmp_path / name}, {place}" in message and r"'\ud83d', as character 1" in message


@pytest.mark.parametrize("absent", ['{"text": null}', '{"other": 1}', "{}"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_row_without_a_text_is_left_out_and_counted(tmp_path, name, absent):
    read = local_files(str(write(tmp_path / name, f'{{"text": "a"}}\n{absent}\n')))
    assert list(read) == ["a"] and read.missing == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "objects.json", "columns.json", "a.csv", "a.parquet"])
def test_a_column_that_no_row_has_is_refused_with_those_there_are(tmp_path, name):
    contents = {
        "objects.json": '[{"body": "x", "n": 1}]',
        "columns.json": '{"body": ["x"], "n": [1]}',
        "a.csv": "body,n\n",
    }
    if name == "a.parquet":
        frame(["x"]).rename(columns={"text": "body", "number": "n"}).to_parquet(tmp_path / name)
    else:
        write(tmp_path / name, contents.get(name, '{"body": "x", "n": 1}\n{"body": "y", "n": 1}\n'))
    message = refused_file(tmp_path / name)
    assert str(tmp_path / name) in message and "'text'" in message and "body" in message


@pytest.mark.parametrize(
    "content, said",
    [
        ('[{"text": "a"}, {"text": 3}]', "item 2, 'text': is int, expected a string"),
        ('["a", ["b"]]', "item 2: is list, expected a string"),
        ('{"text": ["a", 3]}', "'text' item 2: is int"),
        ('{"text": {"0": "a", "1": true}}', "'text' at '1': is bool"),
        ("3", "is a number, expected an array"),
        ('"a"', "is a string, expected an array"),
        ("", "neither JSON nor JSON lines"),
        ('{"text": "a"', "neither JSON nor JSON lines"),
        ('{"text": "a"}\n{"text"', "line 2"),
        ("[" * 100_000, "neither JSON nor JSON lines"),
    ],
)
def test_json_of_another_shape_is_refused_with_what_it_is(tmp_path, content, said):
    message = refused_file(write(tmp_path / "a.json", content))
    assert str(tmp_path / "a.json") in message and said in message


def test_one_json_object_over_several_lines_is_one_document(tmp_path):
    assert list(local_files(str(write(tmp_path / "a.json", json.dumps({"text": "a\nb"}, indent=2))))) == ["a\nb"]


# --- tables ---


@pytest.mark.parametrize(
    "content, said",
    [
        ("n,text\n1,a\n2,b,c\n", "line 3: has 3 fields, but the first line has 2"),
        ('n,text\n1,"a\nb"\n2,b,c\n', "line 4: has 3 fields"),
        ('n,text\n1,"a\n', "line 2"),
        ("text,text\na,b\n", "2 columns 'text'"),
        ("", "no column 'text'"),
    ],
)
def test_a_table_whose_rows_do_not_fit_its_first_line_is_refused_with_the_line(tmp_path, content, said):
    message = refused_file(write(tmp_path / "a.csv", content))
    assert str(tmp_path / "a.csv") in message and said in message


def test_fields_of_a_table_may_be_long_and_hold_several_lines(tmp_path):
    document = 'a "quoted", line\n' * 50_000
    frame([document]).to_csv(tmp_path / "a.csv")
    assert list(local_files(str(tmp_path / "a.csv"))) == [document]


def test_a_parquet_column_without_any_text_is_all_rows_missing(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.nulls(3)}), tmp_path / "a.parquet")
    read = local_files(str(tmp_path / "a.parquet"))
    assert list(read) == [] and read.missing == 3


@pytest.mark.parametrize(
    "columns, said",
    [
        ([("text", ["a"]), ("text", ["b"])], "2 columns 'text'"),
        ([("text", [{"en": "a"}])], "holds struct<en: string>, expected strings"),
        ([("text", [["a"]])], "list<"),
        ([("text", [b"a"])], "binary"),
    ],
)
def test_a_parquet_column_that_is_double_or_nested_is_refused_in_one_sentence(tmp_path, columns, said):
    names, values = zip(*columns, strict=True)
    made = pyarrow.Table.from_arrays([pyarrow.array(value) for value in values], list(names))
    pyarrow.parquet.write_table(made, tmp_path / "a.parquet")
    message = refused_file(tmp_path / "a.parquet")
    assert str(tmp_path / "a.parquet") in message and said in message


def test_a_parquet_row_that_is_no_utf8_is_refused_with_its_number(tmp_path):
    bad = pyarrow.StringArray.from_buffers(
        2, pyarrow.array([0, 1, 2], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(b"a\xff")
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": bad}), tmp_path / "a.parquet")
    assert f"{tmp_path / 'a.parquet'}, row 2: is not UTF-8 text" in refused_file(tmp_path / "a.parquet")


# --- patterns ---


@pytest.mark.parametrize("folder", ["runs [2026]", "[a]", "a[!b]c"])
@pytest.mark.parametrize("pattern", ["{folder}/*.txt", "{folder}/a.txt", "*/{folder}/a.txt", "{folder}/[ab].txt"])
def test_brackets_in_the_name_of_a_folder_are_no_pattern(tmp_path, folder, pattern):
    inside = tmp_path / "deep" / folder if pattern.startswith("*") else tmp_path / folder
    write(inside / "a.txt", "found")
    assert list(local_files(str(tmp_path / pattern.format(folder=folder)))) == ["found"]


def test_a_tilde_is_the_home_of_whoever_runs_this(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("ab")
    assert list(local_files("~/*.txt")) == ["ab"]


def test_brackets_that_are_a_pattern_stay_one(tmp_path):
    for name in ("shard1.txt", "shard2.txt", "shard3.txt"):
        write(tmp_path / name, name)
    assert list(local_files(str(tmp_path / "shard[12].txt"))) == ["shard1.txt", "shard2.txt"]


def test_a_folder_is_refused_with_how_to_name_the_files_in_it(tmp_path):
    assert "*.jsonl" in refused_file(tmp_path)
