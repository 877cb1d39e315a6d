"""Documents and tokens: where text comes from and how it becomes token ids.

Here: the text sources (Python's standard library, local files, Hugging Face datasets), which values count as a text,
and the only code that prepends BOS and cuts to the model's context. Not here: how each kind of file is read
(`text_files.py`), anything that runs a model (`activations.py`).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from jsae_core.text_files import Row, matching_files, read_rows

if TYPE_CHECKING:
    from torch import Tensor

PASSAGE_CHARACTERS = 700  # the longest passage of the standard library
HELD_OUT_SHARE = 10  # one file in ten is held out
EXCLUDED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}

PIECE_CHARACTERS = 2**16  # of a document that are processed at once
# The number of characters that are tokenised at once, and by how many of them two windows overlap. The difference is a
# multiple of most small numbers, so that both windows divide a run of equal characters, of which tokenizers join two,
# three or eight, at the same places.
WINDOW = 48 * 2**10
OVERLAP = 3 * 2**10
HUB_SECONDS = 30.0  # in which the hub must answer which commit a revision stands for

Split = Literal["train", "held_out"]
LongDocuments = Literal["cut", "truncate"]


def standard_library_files(split: Split) -> list[Path]:
    """The `.py` files of the running interpreter's standard library, without its test suites, sorted by relative path.

    A hash of a file's relative path decides whether it is held out, so the split is the same on every machine and a new
    Python release moves no file from one side to the other.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"standard library text: the split is {split!r}, expected 'train' or 'held_out'")
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, subfolders, names in os.walk(root):
        # pruned during the walk, since site-packages alone can be many times larger than the library
        subfolders[:] = [name for name in subfolders if name not in EXCLUDED_FOLDERS]
        files += [(Path(folder) / name).relative_to(root) for name in names if name.endswith(".py")]
    files.sort()
    held_out = {path: _stable_hash(path.as_posix()) % HELD_OUT_SHARE == 0 for path in files}
    return [root / path for path in files if held_out[path] == (split == "held_out")]


def standard_library(split: Split) -> Documents:
    """Passages of the standard library's source, at most `PASSAGE_CHARACTERS` long, in the order of a hash.

    Files are cut into passages because a file is far longer than a small model's context and its first lines are mostly
    licence and imports. The order is fixed and independent of the files, so the first passages are a fair sample of the
    library: standard errors over passages are right for it. They are too small for other Python code, since passages of
    one file are alike.
    """
    passages = [
        (f"{path.name}:{number}:{passage[:40]}", passage)
        for path in standard_library_files(split)
        for number, passage in enumerate(_passages(path.read_text(encoding="utf-8", errors="replace")))
    ]
    passages.sort(key=lambda item: _stable_hash(item[0]))
    return Documents(passages)


def _passages(text: str) -> Iterator[str]:
    """Cut a text at line ends into passages; a single line that is longer stays whole."""
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


class Documents(Iterator[str]):
    """An iterator over the documents of a source, in order. Rows without a text are left out.

    Attributes:
        missing: how many rows without a text were left out so far.
        revision: the commit of a dataset on the hub; None for other sources.

    Raises:
        ValueError: a row holds something other than a text. The message names the row.
    """

    def __init__(self, rows: Iterable[Row], revision: str | None = None):
        """Each row is its location, and its text, an iterator over the pieces of its text, or None."""
        self.missing = 0
        self.revision = revision
        self._pieces = self._of_rows(rows)

    def __next__(self) -> str:
        return "".join(next(self._pieces))

    def in_pieces(self) -> Iterator[Iterator[str]]:
        """The same documents, each as an iterator over its pieces, since a document may be larger than memory."""
        return self._pieces

    def _of_rows(self, rows: Iterable[Row]) -> Iterator[Iterator[str]]:
        for location, value in rows:
            if value is None:
                self.missing += 1
            elif isinstance(value, str):
                pieces = (value[i : i + PIECE_CHARACTERS] for i in range(0, len(value), PIECE_CHARACTERS))
                yield _clean(location, pieces)
            elif isinstance(value, Iterator):
                yield _clean(location, value)
            else:
                raise ValueError(f"{location}: is {type(value).__name__}, expected a string")


def _clean(location: str, pieces: Iterator[str]) -> Iterator[str]:
    """The pieces without a byte order mark at the beginning. Raises ValueError if one holds half of a surrogate pair,
    which UTF-8 cannot encode."""
    n_before = 0  # characters in the pieces before
    for piece in pieces:
        try:
            piece.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{location}: holds half of a surrogate pair, {ascii(piece[error.start])}, as character "
                f"{n_before + error.start}, which is not a character by itself; mend this text or leave it out"
            ) from error
        yield piece if n_before else piece.removeprefix("\ufeff")
        n_before += len(piece)


def local_files(patterns: str | Sequence[str], column: str = "text") -> Documents:
    """Documents of local files, in sorted order of their paths. The ending of a file's name, in upper or lower case,
    tells how it is read:

    - .txt: the file is one document;
    - .jsonl, .ndjson: one document in each line, under the key `column` of a JSON object;
    - .json: JSON lines, an array of strings or of objects, or an object of columns;
    - .csv, .tsv: one document in each row, in the column that the first line calls `column`;
    - .parquet: one document in each row of `column`, a column of strings;
    - any of these compressed, with .gz or .zst at the end of the name.

    Raises:
        ValueError: a pattern matches no file, or a file of another kind; when read: a file does not hold what its name
            promises. The message names the file and the line, row or byte.
    """
    return Documents(row for path in matching_files(patterns) for row in read_rows(path, column))


def hugging_face_dataset(
    name: str,
    config: str | None = None,
    split: str = "validation",
    column: str = "text",
    revision: str | None = None,
    say: Callable[[str], None] = print,
) -> Documents:
    """Documents of a dataset on the Hugging Face hub, streamed in the dataset's own order.

    Args:
        revision: a branch, tag or commit. The commit that it stands for is looked up first, and that commit is read.
        say: receives a message on what is read and from where, before reading begins.

    Raises:
        ValueError: the dataset cannot be reached or has no such config, split or column, or the name is also that of a
            local folder.
    """
    if os.path.exists(name) and not os.path.isabs(name):
        raise ValueError(
            f"Hugging Face dataset {name!r}: there is a folder of that name on this machine, too; rename it, or "
            "name its files as this model's text"
        )
    commit = _commit(name, revision)
    return Documents(_dataset_rows(name, config, split, column, commit or revision, say), commit)


def _commit(name: str, revision: str | None) -> str | None:
    """The commit that a dataset's revision stands for; None if the hub does not answer (reading then says why)."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, revision=revision, timeout=HUB_SECONDS).sha
    except Exception:  # huggingface_hub raises errors of its own, of httpx, and OSError
        return None


def _dataset_rows(
    name: str, config: str | None, split: str, column: str, revision: str | None, say: Callable[[str], None]
) -> Iterator[Row]:
    import datasets
    from huggingface_hub import constants

    at_revision = f", revision {revision!r}" if revision else ""
    where = f"Hugging Face dataset {name!r} (config {config!r}, split {split!r}{at_revision})"
    number = 0
    row: dict[str, Any] = {}
    say(f"Reading the {where} from {constants.ENDPOINT}, as much of it as is used")
    try:
        for number, row in enumerate(
            datasets.load_dataset(name, config, split=split, streaming=True, revision=revision), start=1
        ):
            if number == 1 and column not in row:
                break
            yield f"{where}, row {number}, {column!r}", row.get(column)
        else:
            return
    except Exception as error:  # datasets raises errors of its own, of huggingface_hub and httpx, and OSError
        raise ValueError(
            f"{where}: could not be opened or read ({type(error).__name__}: {error}). Check the name and the network, "
            "or name local files as this model's text"
        ) from error
    raise ValueError(f"{where}: has no column {column!r}, only {', '.join(row)}")


def tokenise(
    documents: Iterable[str],
    tokenizer,
    context_size: int,
    max_tokens: int | None = None,
    long_documents: LongDocuments = "cut",
) -> list[Tensor]:
    """Return all that `tokens_of` yields as a list; the arguments and errors are the same."""
    return list(tokens_of(documents, tokenizer, context_size, max_tokens, long_documents))


def tokens_of(
    documents: Iterable[str],
    tokenizer,
    context_size: int,
    max_tokens: int | None = None,
    long_documents: LongDocuments = "cut",
) -> Iterator[Tensor]:
    """Yield what `numbered_tokens_of` yields, without the numbers; the arguments and errors are the same."""
    for _, tokens in numbered_tokens_of(documents, tokenizer, context_size, max_tokens, long_documents):
        yield tokens


def numbered_tokens_of(
    documents: Iterable[str],
    tokenizer,
    context_size: int,
    max_tokens: int | None = None,
    long_documents: LongDocuments = "cut",
) -> Iterator[tuple[int, Tensor]]:
    """Tokenise the documents lazily and in order: yield their token ids, each document opened by BOS and no longer than
    the context.

    The name of a special token in a document counts as ordinary text. Where the tokenizer can encode that text only as
    the special token, the unknown token takes its place, or nothing if the tokenizer has no unknown token.

    Args:
        tokenizer: a Hugging Face tokenizer; its BOS token (or EOS, if it has no BOS) opens every document.
        context_size: the most tokens in a document, BOS included.
        max_tokens: stop once the documents hold this many tokens, without BOS; the last document is cut to fit.
        long_documents: how a document that is longer than the context is treated: "cut" divides it into several
            consecutive documents, "truncate" keeps only its beginning. Pieces of one document are alike, so measures
            are told their number (`MLPInputs.sources`).

    Yields:
        The number of the document that was read, from 1, and its tokens, a 1-d int64 tensor. Documents with fewer than
        two tokens (BOS and one more) are left out, since nothing is measured at BOS.

    Raises:
        ValueError: `documents` is a single string, no document with two tokens is left, `max_tokens` is below 1 or
            `context_size` below 2, or the tokenizer has neither BOS nor EOS, or no vocabulary besides special tokens.
    """
    import torch

    bos = _opening_token(tokenizer)
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}, expected at least 1")
    if context_size < 2:
        raise ValueError(f"context_size is {context_size}, expected at least 2: BOS and one more token")
    if long_documents not in get_args(LongDocuments):
        raise ValueError(f"long_documents is {long_documents!r}, expected 'cut' or 'truncate'")
    if isinstance(documents, str):
        raise ValueError("documents is one string, expected several: a list of them, or [text] for one")
    if not isinstance(documents, Documents):
        documents = Documents((f"document {number}", document) for number, document in enumerate(documents, start=1))
    n_read = n_yielded = 0
    remaining = sys.maxsize if max_tokens is None else max_tokens
    for pieces in documents.in_pieces():
        n_read += 1
        ids = token_ids(pieces, tokenizer)
        part = list(itertools.islice(ids, min(context_size - 1, remaining)))
        while part:
            n_yielded += 1
            yield n_read, torch.tensor([bos, *part], dtype=torch.int64)
            remaining -= len(part)
            if long_documents == "truncate":
                break
            part = list(itertools.islice(ids, min(context_size - 1, remaining)))
        if remaining <= 0:
            break
    if not n_yielded:
        missing = f"; {documents.missing} rows without a text were left out" if documents.missing else ""
        short = f"no document has a token besides BOS, of {n_read} that were read"
        raise ValueError(f"no text to measure: {short if n_read else 'there is no document'}{missing}")


def _opening_token(tokenizer) -> int:
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if bos is None:
        raise ValueError("the tokenizer has neither a BOS nor an EOS token to open a document with")
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        raise ValueError(
            "the tokenizer has no vocabulary, only special tokens; the model's folder or repository lacks its files, "
            "such as tokenizer.json"
        )
    return bos


def token_ids(pieces: Iterable[str], tokenizer) -> Iterator[int]:
    """The token ids of the joined pieces, without BOS or EOS, computed in bounded memory.

    The text is tokenised in windows of `WINDOW` characters that overlap by `OVERLAP`. Two windows agree if they give
    the same tokens at the same places in the middle half of their overlap, far from the ends of both. Then the first
    window's ids are taken up to that half, and the second window's ids from there on. So the ids are those of the whole
    text as long as a token depends on fewer than `OVERLAP` / 4 characters on either side of it. Windows may disagree on
    a longer run that cannot be split (a million equal letters, say); then the text is split where the first window
    ends. A tokenizer written in Python, which does not report the places of its tokens, is given the whole text.
    """
    special = {*tokenizer.all_special_ids, tokenizer.bos_token_id, tokenizer.eos_token_id} - {tokenizer.unk_token_id}
    unknown = tokenizer.unk_token_id
    if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        special.add(unknown)
        unknown = None
    for ids in _windows(iter(pieces), tokenizer):
        if special.isdisjoint(ids):
            yield from ids
        else:
            replaced = ((unknown if token in special else token) for token in ids)
            yield from (token for token in replaced if token is not None)


def _windows(pieces: Iterator[str], tokenizer) -> Iterator[list[int]]:
    """The ids that `token_ids` gives, before it replaces special tokens."""
    text = _filled("", pieces) if tokenizer.is_fast else "".join(pieces)
    if len(text) <= WINDOW or not tokenizer.is_fast:
        yield _encoded(text, tokenizer)["input_ids"]
        return
    step = WINDOW - OVERLAP
    tokens, first = _tokens(text, tokenizer), 0  # `first` is the index of the first token that was not yet yielded
    while len(text) > WINDOW:
        next_tokens = _tokens(text[step:], tokenizer)
        end, shared = _middle_of_overlap(tokens, step)
        start, next_shared = _middle_of_overlap(next_tokens, 0)
        if shared and shared == next_shared:
            yield [token for _, token in tokens[first:end]]
            text = _filled(text[step:], pieces)
            tokens, first = next_tokens, start
        else:
            yield [token for _, token in tokens[first:]]
            text = _filled(text[WINDOW:], pieces)
            tokens, first = _tokens(text, tokenizer), 0
    yield [token for _, token in tokens[first:]]


def _filled(text: str, pieces: Iterator[str]) -> str:
    """The text, extended with pieces until it holds two overlapping windows, or with all that are left."""
    while len(text) < 2 * WINDOW - OVERLAP and (piece := next(pieces, None)) is not None:
        text += piece
    return text


def _tokens(text: str, tokenizer) -> list[tuple[int, int]]:
    """The tokens of the text's first window, each as the index of its first character and its id."""
    encoded = _encoded(text[:WINDOW], tokenizer, return_offsets_mapping=True)
    return [(start, token) for (start, _), token in zip(encoded["offset_mapping"], encoded["input_ids"], strict=True)]


def _encoded(text: str, tokenizer, **settings):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False, **settings)


def _middle_of_overlap(tokens: list[tuple[int, int]], begin: int) -> tuple[int, list[tuple[int, int]]]:
    """For the overlap that begins at character `begin`: the index of the first token in its middle half, and the tokens
    in that half, with characters counted from `begin`."""
    low, high = begin + OVERLAP // 4, begin + OVERLAP * 3 // 4
    indices = [index for index, (start, _) in enumerate(tokens) if low <= start < high]
    return indices[0] if indices else len(tokens), [(tokens[i][0] - begin, tokens[i][1]) for i in indices]


def first_tokens(documents: Sequence[Tensor], n_tokens: int) -> list[Tensor]:
    """The first documents that together hold `n_tokens` tokens, without BOS; the last one is cut to fit."""
    first: list[Tensor] = []
    for document in documents:
        if n_tokens < 1:
            break
        first.append(document[: n_tokens + 1])
        n_tokens -= len(first[-1]) - 1
    return first


def join_documents(documents: Sequence[Tensor], sources: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Join documents into tensors that a file can hold: `tokens`, all of them end to end, and their `lengths`; and
    `sources`, the number of the whole document that each is from, if some are pieces of one. Raises ValueError for
    sources that do not fit the documents, as `document_numbers` does."""
    import torch

    document_numbers(len(documents), sources)

    joined = {"tokens": torch.cat(list(documents)), "lengths": torch.tensor([len(document) for document in documents])}
    has_pieces = sources is not None and len(set(sources)) < len(sources)
    return joined | {"sources": torch.tensor(sources)} if has_pieces else joined


def split_documents(stored: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the documents that `join_documents` joined."""
    return list(stored["tokens"].split(stored["lengths"].tolist()))


def split_sources(stored: Mapping[str, Tensor]) -> list[int]:
    """Return the number of the whole document that each of these documents is from. A file without `sources` holds no
    pieces, or was written before they were numbered: then each document counts as whole."""
    return stored["sources"].tolist() if "sources" in stored else list(range(len(stored["lengths"])))


def document_numbers(n: int, sources: Sequence[int] | None) -> list[int]:
    """The number, from 0 on, of the document that each of n documents counts as: itself, or the whole document that it
    is a piece of. If all are pieces of a single one, each counts: how much documents differ cannot be told then, but
    how much the pieces do.

    Args:
        sources: the number of the whole document that each is from, ascending. None: none is a piece.

    Raises:
        ValueError: `sources` has not one number for each document, or they do not ascend.
    """
    if sources is None:
        return list(range(n))
    of_each = [int(source) for source in sources]
    if len(of_each) != n or of_each != sorted(of_each):
        raise ValueError(
            f"sources has {len(of_each)} numbers{'' if len(of_each) != n else ' that do not ascend'}; expected one for "
            f"each of the {n} documents, ascending, and the same for the pieces of one whole document: those that "
            "jsae_core.text.numbered_tokens_of yields with the documents, or split_sources reads with stored ones"
        )
    places = {source: place for place, source in enumerate(dict.fromkeys(of_each))}
    return list(range(n)) if len(places) == 1 else [places[source] for source in of_each]
