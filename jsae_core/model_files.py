"""Finding, checking and reading the files of a language model.

Here: a directory, or a model on the Hugging Face hub and its revision; weights, tokenizer. Code in a model's files is
never run and no pickle is read. Torch is imported only when weights are read, so that a catalog can be checked without
it. Not here: what is done with a model (`language_model.py`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsae_core.hub_errors import in_plain_words, silent
from jsae_core.lfs import is_lfs_pointer
from jsae_core.memory import in_bytes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
LONGEST_QUOTE = 500  # characters of a library's message that an error quotes
# the names that architectures give the number of their decoder's blocks. Names of architectures that also have an
# encoder come first, since these call the number of the encoder's blocks num_hidden_layers
LAYER_COUNT_NAMES = ("decoder_layers", "num_decoder_layers", "num_hidden_layers", "n_layer", "num_layers", "n_layers")
# the files of a hub repository that transformers reads, without copies of the weights in other formats
HUB_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "model.safetensors", "model-*-of-*.safetensors"]


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model on this machine.

    Attributes:
        name: the name or directory that was asked for.
        directory: the folder with the files.
        revision: the commit of a hub model; None for a directory.
    """

    name: str
    directory: Path
    revision: str | None = None

    def __str__(self) -> str:
        if self.revision is None:
            return f"{self.name} (local directory)"
        return f"{self.name} (model on the Hugging Face hub, commit {self.revision})"


def find_model(
    name_or_directory: str | Path, revision: str | None = None, say: Callable[[str], None] = print
) -> ModelFiles:
    """Find the files of a model in a directory or on the Hugging Face hub; files on the hub are downloaded if needed.

    Args:
        name_or_directory: a directory, given as a `Path`, or as text that starts with `.`, `/` or `~` or that names a
            folder with a config.json. Any other text is a name on the hub.
        revision: a revision on the hub. With it, text is a name on the hub even if there is a folder of that name.
        say: receives a message before a download: what is downloaded, from where, and how large it is.

    Raises:
        FileNotFoundError: the directory holds no config.json.
        ValueError: there are no weights that can be read; the hub has no such model or revision or cannot be reached;
            or a directory was given together with a revision.
    """
    name = str(name_or_directory)
    directory = Path(name).expanduser()
    looks_local = isinstance(name_or_directory, Path) or name.startswith((".", "~")) or directory.is_absolute()
    if revision is not None and looks_local:
        raise ValueError(f"{name}: the revision {revision!r} was given, but a directory has none; only hub models do")
    if looks_local or (revision is None and (directory / "config.json").is_file()):
        if not (directory / "config.json").is_file():
            raise FileNotFoundError(
                f"{name}: holds no config.json; expected a model in Hugging Face format (config.json, "
                "model.safetensors, tokenizer.json)"
            )
        files = ModelFiles(name, directory)
    else:
        snapshot = _snapshot(name, revision, say)
        files = ModelFiles(name, snapshot, snapshot.name)
    if not any((files.directory / file).is_file() for file in WEIGHTS):
        raise ValueError(
            f"{files} could not be loaded: it holds no model.safetensors. Weights that are kept as a pickle "
            "(pytorch_model.bin) are not read, since that can run any code; if you trust them, convert them: "
            f"AutoModelForCausalLM.from_pretrained({name!r}, use_safetensors=False).save_pretrained(directory), and "
            "AutoTokenizer likewise"
        )
    pointers = [path.name for path in sorted(files.directory.glob("*.safetensors")) if is_lfs_pointer(path)]
    if pointers:
        raise ValueError(
            f"{files} could not be loaded: {', '.join(pointers)} holds no weights but only a git-lfs pointer to them; "
            "run `git lfs pull` there"
        )
    return files


def _snapshot(name: str, revision: str | None, say: Callable[[str], None]) -> Path:
    """Download a model from the hub, if needed, and return its folder in the client's cache. Raises ValueError if the
    hub does not give it."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import DryRunError, LocalEntryNotFoundError

    model = f"{name} (model on the Hugging Face hub{'' if revision is None else f', revision {revision}'})"
    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": HUB_FILES}
    why_not = silent(model)
    try:
        if why_not is None:
            found = snapshot_download(name, **wanted, dry_run=True)
            if missing := [file for file in found if file.will_download]:
                size = in_bytes(sum(file.file_size or 0 for file in missing))
                say(f"Fetching the model {name}@{missing[0].commit_hash} from {constants.ENDPOINT}: {size}")
            return Path(snapshot_download(name, **wanted))
    except DryRunError as error:  # the hub gives nothing now, but the cache may hold the model
        cause = error.__cause__
        why_not = in_plain_words(model, cause if isinstance(cause, Exception) else error)
    except Exception as error:  # huggingface_hub raises errors of its own, of its HTTP library, OSError and ValueError
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # an error of this machine, such as a full disk or a missing permission
        raise ValueError(in_plain_words(model, error)) from None
    try:
        return Path(snapshot_download(name, **wanted, local_files_only=True))
    except LocalEntryNotFoundError:
        raise ValueError(why_not) from None


def layer_count(directory: Path) -> int | None:
    """The number of the decoder's blocks by a model's config.json; None if config.json does not give it.

    Raises:
        ValueError: config.json cannot be read, or is not a JSON object.
    """
    config = _config(directory)
    decoder_config = config.get("text_config")  # present in models that take images too
    config = decoder_config if isinstance(decoder_config, dict) else config
    counts = (config.get(name) for name in LAYER_COUNT_NAMES)
    return next((count for count in counts if isinstance(count, int)), None)


def _config(directory: Path) -> dict:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object, the configuration of a model")
    return config


def read_model(files: ModelFiles, dtype: torch.dtype) -> PreTrainedModel:
    """Read the model on the CPU, in eval mode.

    Raises:
        ValueError: the model cannot be read, is not a causal language model, needs code of its own, has quantised
            weights, or has weights that do not fit its architecture.
    """
    from transformers import AutoModelForCausalLM

    _check_kind(files)
    with _explained(str(files), "Are config.json, model.safetensors and tokenizer.json complete?"):
        model, report = AutoModelForCausalLM.from_pretrained(
            files.directory,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the report names all of them
        )
    wrong = {
        "missing": report["missing_keys"],
        "unknown to it": report["unexpected_keys"],
        "of another shape": [name for name, *_ in report["mismatched_keys"]],
    }
    problems = [
        f"{len(names)} {problem}, such as {', '.join(sorted(map(str, names))[:3])}"
        for problem, names in wrong.items()
        if names
    ]
    if problems:
        raise ValueError(
            f"{files}: its weights do not fit a {type(model).__name__} with this config.json: {'; '.join(problems)}. "
            "Were they saved from another model, or with names of another library?"
        )
    return model.eval().requires_grad_(False)


def _check_kind(files: ModelFiles) -> None:
    """Raises ValueError if config.json does not describe a causal language model that transformers knows itself and
    whose weights are not quantised."""
    import transformers

    with _explained(str(files), "Is it complete?"):
        config = _config(files.directory)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        why = (
            f"the model_type in its config.json is {kind!r}, which transformers {transformers.__version__} does not "
            "know, and code that comes with a model is not run; a newer transformers may know it"
        )
    elif transformers.CONFIG_MAPPING[kind] not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        why = f"its architecture ({kind}) is not a causal language model; expected a decoder, such as llama or gpt2"
    elif config.get("quantization_config"):
        why = (
            "its weights are quantised (quantization_config in config.json); save it with plain weights first, as "
            "docs/models.md shows for a GGUF file"
        )
    else:
        return
    raise ValueError(f"{files} could not be loaded: {why}")


def read_tokenizer(files: ModelFiles, n_vocabulary: int) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a model with a vocabulary of `n_vocabulary` tokens.

    Raises:
        ValueError: there is no tokenizer, it has neither a BOS nor an EOS token to open documents with, or that token
            is outside the model's vocabulary.
    """
    from transformers import AutoTokenizer

    with _explained(f"the tokenizer of {files}", "Is tokenizer.json (or tokenizer.model) there and complete?"):
        tokenizer = AutoTokenizer.from_pretrained(files.directory, trust_remote_code=False, local_files_only=True)
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise ValueError(
            f"{files}: has no tokenizer; expected tokenizer.json (or tokenizer.model, or vocab.json and merges.txt) "
            "beside config.json"
        )
    opening = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    # a special token that the files lack is added by the tokenizer class under the next free id, which the model does
    # not know
    added = opening is not None and opening >= tokenizer.vocab_size
    if opening is None or added and tokenizer.convert_ids_to_tokens(opening) not in _added_tokens(files.directory):
        raise ValueError(
            f"the tokenizer of {files} has neither a BOS nor an EOS token, but one must open each document; set "
            "bos_token in tokenizer_config.json to a token of its vocabulary"
        )
    if opening >= n_vocabulary:
        raise ValueError(
            f"the tokenizer of {files} opens documents with token {opening}, but the model has a vocabulary of "
            f"{n_vocabulary}; is it another model's tokenizer?"
        )
    return tokenizer


def _added_tokens(directory: Path) -> set[str]:
    """The tokens that a tokenizer's files add to its base vocabulary."""

    def read(name: str) -> dict:
        path = directory / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    listed = [*read("tokenizer.json").get("added_tokens", [])]
    listed += read("tokenizer_config.json").get("added_tokens_decoder", {}).values()
    return {token["content"] for token in listed} | read("added_tokens.json").keys()


@contextlib.contextmanager
def _explained(what: str, hint: str) -> Iterator[None]:
    """Turn any error of reading into a ValueError that says what was read, and what to check."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # transformers, huggingface_hub, httpx and safetensors all raise errors of their own
        message = " ".join(str(error).split()).removesuffix(".")
        message = message if len(message) <= LONGEST_QUOTE else f"{message[:LONGEST_QUOTE]}..."
        raise ValueError(f"{what} could not be loaded: {type(error).__name__}: {message}. {hint}") from error
