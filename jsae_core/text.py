"""Documents and tokens: where text comes from and how it becomes token ids.

Here: the text sources (Python's standard library, local files, Hugging Face datasets), and the one place that
prepends BOS and truncates to the model's context. Not here: anything that runs a model (`activations.py`).
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

PASSAGE_CHARACTERS = 700
HELD_OUT_SHARE = 10  # one file in ten
EXCLUDED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}

Split = Literal["train", "held_out"]


def standard_library_files(split: Split) -> list[Path]:
    """The `.py` files of the running interpreter's standard library, by relative path, without its test suites.

    A file is held out if a hash of its relative path says so, so the split is the same on every machine and a new
    Python release moves no file from one side to the other.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"standard library text: the split is {split!r}, expected 'train' or 'held_out'")
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, subfolders, names in os.walk(root):
        # pruned here, since site-packages alone can be many times the library
        subfolders[:] = [name for name in subfolders if name not in EXCLUDED_FOLDERS]
        files += [(Path(folder) / name).relative_to(root) for name in names if name.endswith(".py")]
    files.sort()
    held_out = {path: _stable_hash(path.as_posix()) % HELD_OUT_SHARE == 0 for path in files}
    return [root / path for path in files if held_out[path] == (split == "held_out")]


def standard_library(split: Split) -> Iterator[str]:
    """Passages of the standard library's source, at most `PASSAGE_CHARACTERS` long, in an order shuffled by hash.

    Files are cut into passages, since a file is far longer than a small model's context and its first lines are
    mostly licence and imports. The order is fixed, so a prefix of the stream is a fair sample of the library.
    """
    passages = [
        (f"{path.name}:{number}:{passage[:40]}", passage)
        for path in standard_library_files(split)
        for number, passage in enumerate(_passages(path.read_text(encoding="utf-8", errors="replace")))
    ]
    passages.sort(key=lambda item: _stable_hash(item[0]))
    yield from (passage for _, passage in passages)


def _passages(text: str) -> Iterator[str]:
    """Cut at line ends; a single longer line stays whole."""
    passage: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        if passage and size + len(line) > PASSAGE_CHARACTERS:
            yield "".join(passage)
            passage, size = [], 0
        passage.append(line)
        size += len(line)
    if passage:
        yield "".join(passage)


def _stable_hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def local_files(patterns: str | Sequence[str], column: str = "text") -> Iterator[str]:
    """Documents of local files, in sorted order of their paths: a text file is one document, a `.jsonl` file one a
    line and a `.parquet` file one a row, both taken from `column`.

    Raises:
        ValueError: a pattern matches no file, or a file does not hold what its name promises.
    """
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if Path(name).is_file()]
        if not paths:
            raise ValueError(f"text files: nothing matches {pattern!r}; expected .txt, .jsonl or .parquet files there")
        for path in paths:
            if path.suffix in (".jsonl", ".ndjson"):
                yield from _json_lines(path, column)
            elif path.suffix == ".parquet":
                yield from _parquet_rows(path, column)
            else:
                yield _utf8(path)


def _utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no UTF-8 text ({error.reason} at byte {error.start})") from error


def _json_lines(path: Path, column: str) -> Iterator[str]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[column]
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: is no UTF-8 text ({error.reason})") from error
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: expected a JSON object with the key {column!r}") from error
            if not isinstance(text, str):
                raise ValueError(f"{path}, line {number}: {column!r} is {type(text).__name__}, expected a string")
            yield text


def _parquet_rows(path: Path, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: is no readable parquet file ({error})") from error
    if column not in table.schema_arrow.names:
        raise ValueError(f"{path}: has no column {column!r}, only {', '.join(table.schema_arrow.names)}")
    kind = table.schema_arrow.field(column).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise ValueError(f"{path}: the column {column!r} holds {kind}, expected strings")
    for batch in table.iter_batches(columns=[column]):
        yield from (text for text in batch.column(0).to_pylist() if text is not None)


def hugging_face_dataset(
    name: str, config: str | None = None, split: str = "validation", column: str = "text"
) -> Iterator[str]:
    """Documents of a dataset on the Hugging Face hub, streamed in the dataset's own order.

    Raises:
        ValueError: the dataset cannot be reached or has no such config, split or column.
    """
    import datasets

    where = f"Hugging Face dataset {name!r} (config {config!r}, split {split!r})"
    try:
        for row in datasets.load_dataset(name, config, split=split, streaming=True):
            if column not in row:
                break
            yield row[column]
        else:
            return
    except Exception as error:  # datasets raises its own, huggingface_hub's, httpx's and OSError alike
        raise ValueError(
            f"{where}: could not be opened or read ({type(error).__name__}: {error}). Check the name and the network, "
            "or name local files as this model's text"
        ) from error
    raise ValueError(f"{where}: has no column {column!r}, only {', '.join(row)}")


def tokenise(documents: Iterable[str], tokenizer, context_size: int, max_tokens: int | None = None) -> list[Tensor]:
    """Token ids of each document: BOS first, truncated to the context, documents in order.

    Args:
        tokenizer: a Hugging Face tokenizer; its BOS token (or EOS, where it has no BOS) opens every document.
        context_size: the most tokens a document keeps, BOS counted.
        max_tokens: stop once the documents hold this many tokens, BOS left out; the last one is cut to fit.

    Returns:
        1-d int64 tensors. Documents with fewer than two tokens (BOS and one more) are left out: nothing is measured
        at BOS, so they hold nothing.

    Raises:
        ValueError: no document with two tokens is left, `max_tokens` is below 1, or the tokenizer has neither BOS nor
            EOS.
    """
    import torch

    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}, expected at least 1")
    if bos is None:
        raise ValueError("the tokenizer has neither a BOS nor an EOS token to open a document with")
    kept: list[Tensor] = []
    seen = too_short = 0
    remaining = max_tokens
    for document in documents:
        seen += 1
        room = context_size - 1 if remaining is None else min(context_size - 1, remaining)
        ids = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"][:room]
        if not ids:
            too_short += 1
            continue
        kept.append(torch.tensor([bos, *ids], dtype=torch.int64))
        if remaining is not None:
            remaining -= len(ids)
            if remaining <= 0:
                break
    if not kept:
        raise ValueError(
            f"no text to measure: of {seen} documents, {too_short} are shorter than two tokens with BOS counted"
        )
    return kept


def first_tokens(documents: Sequence[Tensor], n_tokens: int) -> list[Tensor]:
    """The first documents, until they hold `n_tokens` tokens, BOS left out; the last one is cut to fit."""
    kept: list[Tensor] = []
    for document in documents:
        if n_tokens < 1:
            break
        kept.append(document[: n_tokens + 1])
        n_tokens -= len(kept[-1]) - 1
    return kept


def join_documents(documents: Sequence[Tensor]) -> dict[str, Tensor]:
    """Documents as two tensors that a file can hold: `tokens`, all of them end to end, and `lengths`, one each."""
    import torch

    return {"tokens": torch.cat(list(documents)), "lengths": torch.tensor([len(document) for document in documents])}


def split_documents(stored: Mapping[str, Tensor]) -> list[Tensor]:
    """What `join_documents` joined."""
    return list(stored["tokens"].split(stored["lengths"].tolist()))
