"""Local files of documents: which kinds are read, and how each becomes rows.

Here: file names, compression, decoding, one reader for each kind of file. A row is a location (for messages) and a
value of any type. Not here: which values count as a text (`text.py`, the same for every source), tokens.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import glob
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, BinaryIO

# the location, for messages; and the value: a string, an iterator over the pieces of a string, None, or anything else
Row = tuple[str, object]

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
PIECE_BYTES = 2**16  # that are read at once from a text file, which may be larger than memory
PARQUET_ROWS = 64  # that are decoded at once


def matching_files(patterns: str | Sequence[str]) -> list[Path]:
    """The files that the patterns match, in the order of the patterns, sorted by path within each. No file is read.

    Brackets in a name that exists exactly as written are not a pattern; `~` is the home folder of the current user.

    Raises:
        ValueError: a pattern matches no file, or a file of a kind that is not read.
    """
    paths: list[Path] = []
    for unexpanded in [patterns] if isinstance(patterns, str) else patterns:
        pattern = os.path.expanduser(unexpanded)
        names = glob.glob(_literal_beginning(pattern), recursive=True)
        if not names and "[" in pattern:
            names = glob.glob(pattern.replace("[", "[[]"), recursive=True)
        found = [Path(name) for name in sorted(names) if Path(name).is_file()]
        if not found:
            raise ValueError(f"text files: nothing matches {pattern!r}; {_expected_instead(pattern)}")
        paths += found
    for path in paths:
        _reader(path)
    return paths


def _expected_instead(pattern: str) -> str:
    if Path(pattern).is_dir():
        return f"it is a folder: name the files in it, as in {Path(pattern) / '*.jsonl'}"
    if "://" in pattern:
        return "it is an address, expected a path on this machine: download what lies there first"
    return f"expected files there: {KNOWN_ENDINGS}"


def largest_text(patterns: str | Sequence[str]) -> int | None:
    """An upper bound of the bytes of text in these files, from their sizes alone; None if a file is compressed.

    One byte is added for each file, for the blank that some tokenizers put before a document.

    Raises:
        ValueError: as for `matching_files`.
    """
    paths = matching_files(patterns)
    if any(path.suffix.lower() in {*COMPRESSIONS, ".parquet"} for path in paths):  # parquet files are compressed inside
        return None
    return sum(path.stat().st_size + 1 for path in paths)


def _literal_beginning(pattern: str) -> str:
    """The pattern, with those leading folders escaped that exist exactly as written: brackets in them are literal."""
    parts = Path(pattern).parts
    folder = Path()
    for number, part in enumerate(parts):
        if not os.path.exists(folder / part):
            return str(Path(glob.escape(str(folder)), *parts[number:]))
        folder /= part
    return glob.escape(str(folder))


def read_rows(path: Path, column: str) -> Iterator[Row]:
    """The rows of a file, in order. A text file is one row; other kinds give the value of `column` in each line, row or
    item.

    Files are streamed, except .json files that hold a single JSON value, which are read whole.

    Raises:
        ValueError: the file cannot be read, is not what its name promises or has no such column.
    """
    try:
        yield from _reader(path)(path, column)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ValueError:
    return ValueError(f"{path}: cannot be read ({error})")


def _reader(path: Path) -> Callable[[Path, str], Iterator[Row]]:
    suffix = path.with_suffix("").suffix if path.suffix.lower() in COMPRESSIONS else path.suffix
    if suffix.lower() not in READERS:
        raise ValueError(f"{path}: files of this kind are not read; expected {KNOWN_ENDINGS}")
    return READERS[suffix.lower()]


def _open(path: Path) -> BinaryIO:
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        return path.open("rb")
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression=compression))


# --- text ---


def _text(path: Path, column: str) -> Iterator[Row]:
    with _open(path) as stream:
        yield str(path), _pieces(path, stream)


def _pieces(path: Path, stream: BinaryIO) -> Iterator[str]:
    """The text of a file in pieces, with line ends translated as Python does."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    n_bytes_read = 0
    while True:
        undecoded = len(decoder.getstate()[0])
        try:
            piece = stream.read(PIECE_BYTES)
            text = decoder.decode(piece, final=not piece)
        except OSError as error:
            raise _unreadable(path, error) from error
        except UnicodeDecodeError as error:
            byte = n_bytes_read - undecoded + error.start
            raise ValueError(f"{path}: is not UTF-8 text ({error.reason} at byte {byte})") from error
        yield newlines.decode(text, final=not piece)
        if not piece:
            return
        n_bytes_read += len(piece)


def _lines(path: Path, stream: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: is not UTF-8 text ({error.reason})") from error


# --- JSON ---


def _json_lines(path: Path, column: str) -> Iterator[Row]:
    with _open(path) as stream:
        yield from _from_objects(path, column, _parsed_lines(path, column, _lines(path, stream)))


def _parsed_lines(path: Path, column: str, lines: Iterable[str]) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        location = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{location}: expected a JSON object with the key {column!r} ({error})") from error
        if not isinstance(value, dict):
            raise ValueError(f"{location}: is {_kind(value)}, expected a JSON object with the key {column!r}")
        yield location, value


def _from_objects(path: Path, column: str, items: Iterable[tuple[str, object]]) -> Iterator[Row]:
    """Rows from items that are objects or texts. An object without the key `column` is a row without a text; if no
    object has the key, it must be misspelt, and ValueError is raised."""
    found, first_object = False, None
    for location, item in items:
        if isinstance(item, dict):
            found = found or column in item
            first_object = first_object or item
            location, item = f"{location}, {column!r}", item.get(column)
        yield location, item
    if first_object is not None and not found:
        raise ValueError(f"{path}: no object in this file has the key {column!r}, {_only(first_object)}")


def _json(path: Path, column: str) -> Iterator[Row]:
    """A file with a single JSON value, or with JSON lines, which are often called .json, too."""
    with _open(path) as stream:
        lines = (line for line in _lines(path, stream) if line.strip())
        is_json_lines = _is_object(next(lines, "")) and next(lines, None) is not None
    if is_json_lines:
        yield from _json_lines(path, column)
        return
    with _open(path) as stream:
        content = "".join(_lines(path, stream))
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is neither JSON nor JSON lines ({error})") from error
    yield from _from_json(path, column, value)


def _is_object(line: str) -> bool:
    try:
        return line.lstrip().startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _from_json(path: Path, column: str, value: object) -> Iterator[Row]:
    """Rows of a JSON value: an array of texts or objects; an object of columns (arrays, or objects by index, as pandas
    writes them); or an object with a single text."""
    if isinstance(value, list):
        items = ((f"{path}, item {number}", item) for number, item in enumerate(value, start=1))
        yield from _from_objects(path, column, items)
    elif not isinstance(value, dict):
        raise ValueError(f"{path}: is {_kind(value)}, expected an array of texts or objects, or an object of columns")
    elif column not in value:
        raise ValueError(f"{path}: has no key {column!r}, {_only(value)}")
    elif isinstance(value[column], dict):
        yield from ((f"{path}, {column!r} at {index!r}", item) for index, item in value[column].items())
    elif isinstance(value[column], list):
        yield from ((f"{path}, {column!r} item {number}", item) for number, item in enumerate(value[column], start=1))
    else:
        yield str(path), value[column]


# --- tables ---


def _comma_separated(path: Path, column: str) -> Iterator[Row]:
    yield from _separated(path, column, "excel")


def _tab_separated(path: Path, column: str) -> Iterator[Row]:
    yield from _separated(path, column, "excel-tab")


def _separated(path: Path, column: str, dialect: str) -> Iterator[Row]:
    """Rows of a .csv or .tsv file. An empty field counts as a row without a text, since these files do not distinguish
    the two."""
    csv.field_size_limit(2**31 - 1)  # the default, 131,072 characters, is shorter than many documents
    with _open(path) as stream:
        rows = csv.reader(_lines(path, stream), dialect, strict=True)
        line = 1
        try:
            header = next(rows, [])
            _check_column(path, column, header)
            index = header.index(column)
            line = rows.line_num + 1
            for row in rows:
                location, line = f"{path}, line {line}", rows.line_num + 1
                if len(row) > len(header):
                    raise ValueError(
                        f"{location}: has {len(row)} fields, but the first line has {len(header)}; quote the texts"
                    )
                if row:
                    yield location, (row[index] or None) if index < len(row) else None
        except csv.Error as error:
            raise ValueError(f"{path}, line {line}: fields are not separated as expected ({error})") from error


def _parquet(path: Path, column: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        try:
            table = stack.enter_context(pyarrow.parquet.ParquetFile(_seekable(path, stack)))
            _check_column(path, column, table.schema_arrow.names)
            kind = table.schema_arrow.field(column).type
            values = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
            if not (_is_text(values) or pyarrow.types.is_null(values)):
                raise ValueError(f"{path}: the column {column!r} holds {kind}, expected strings")
            number = 0
            for batch in table.iter_batches(PARQUET_ROWS, columns=[column]):
                for item in batch.column(column):
                    number += 1
                    yield f"{path}, row {number}", _parquet_text(path, number, item)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}: is not a readable parquet file ({error})") from error


def _is_text(kind) -> bool:
    import pyarrow

    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_string_view(kind)


def _parquet_text(path: Path, number: int, item) -> str | None:
    try:
        return item.as_py()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, row {number}: is not UTF-8 text ({error.reason} at byte {error.start})") from error


def _seekable(path: Path, stack: contextlib.ExitStack) -> Path | IO[bytes]:
    """The file, or an unpacked temporary copy of a compressed file, since parquet is read from its end."""
    if path.suffix.lower() not in COMPRESSIONS:
        return path
    unpacked = stack.enter_context(tempfile.TemporaryFile())
    with _open(path) as packed:
        shutil.copyfileobj(packed, unpacked)
    return unpacked


def _check_column(path: Path, column: str, names: Sequence[str]) -> None:
    if column not in names:
        raise ValueError(f"{path}: has no column {column!r}, {_only(names)}")
    if list(names).count(column) > 1:
        raise ValueError(f"{path}: has {list(names).count(column)} columns {column!r}; rename all but one of them")


def _only(names: Iterable[str]) -> str:
    return f"only {', '.join(names)}" if names else "nor any other"


def _kind(value: object) -> str:
    """The JSON name of a value's type."""
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".txt": _text,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
    ".parquet": _parquet,
}
KNOWN_ENDINGS = f"{', '.join(READERS)}, each also with {' or '.join(COMPRESSIONS)} after it"
