"""A language model's files: found where they were said to be, read as they are, refused where something is missing.

Here: a directory or a model on the Hugging Face hub and its revision, weights, tokenizer. No code that a model brings
is run and no pickle is read. Torch is imported only when weights are read, so that a catalog can be checked without it.
Not here: what is done with a model (`language_model.py`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jsae_core.hub_errors import in_plain_words
from jsae_core.pace import in_bytes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
LFS_POINTER = b"version https://git-lfs"  # what git leaves in the place of a large file
LONGEST_QUOTE = 500  # characters of a library's own words in an error
# what architectures call the number of their decoder's blocks; those that have an encoder, too, come first, since they
# call the number of its blocks num_hidden_layers
LAYER_COUNT_NAMES = ("decoder_layers", "num_decoder_layers", "num_hidden_layers", "n_layer", "num_layers", "n_layers")
# of a repository on the hub: what transformers reads, none of the copies in other formats
HUB_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "model.safetensors", "model-*-of-*.safetensors"]


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies on this machine.

    Attributes:
        name: as it was asked for.
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
    """A `Path` is a directory, and so is text that starts with `.`, `/` or `~` or names a folder with a config.json.
    Other text, and any text with a revision, is a name on the hub, whatever folders there are. What the hub has and
    this machine has not is fetched; `say` is told what, from where and how large it is, before that begins.

    Raises:
        FileNotFoundError: the directory holds no config.json.
        ValueError: it holds no weights that can be read; the hub has no such model or revision or cannot be reached; or
            a directory was given a revision.
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
    pointers = [path.name for path in sorted(files.directory.glob("*.safetensors")) if _is_pointer(path)]
    if pointers:
        raise ValueError(
            f"{files} could not be loaded: {', '.join(pointers)} holds no weights but says where git keeps them; run "
            "`git lfs pull` there"
        )
    return files


def _snapshot(name: str, revision: str | None, say: Callable[[str], None]) -> Path:
    """The folder of a model from the hub, in the client's cache. Raises ValueError."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import DryRunError

    try:
        with contextlib.suppress(DryRunError):  # the hub cannot be asked, but the cache may hold it
            found = snapshot_download(name, revision=revision, allow_patterns=HUB_FILES, dry_run=True)
            if missing := [file for file in found if file.will_download]:
                size = in_bytes(sum(file.file_size or 0 for file in missing))
                say(f"Fetching the model {name}@{missing[0].commit_hash} from {constants.ENDPOINT}: {size}")
        return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES))
    except Exception as error:  # its own, its HTTP library's, OSError and ValueError alike
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # of this machine: no room, no permission
        wanted = f"{name} (model on the Hugging Face hub{'' if revision is None else f', revision {revision}'})"
        raise ValueError(
            f"{in_plain_words(wanted, error)}. Or download the model, and name its directory instead"
        ) from None


def _is_pointer(path: Path) -> bool:
    if not path.is_file():  # a link that leads nowhere: reading says so
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def layer_count(directory: Path) -> int | None:
    """How many blocks the config.json of a model's directory says its decoder has; None where it does not say.

    Raises:
        ValueError: config.json cannot be read, or is no JSON object.
    """
    config = _config(directory)
    of_decoder = config.get("text_config")  # of a model that takes images too
    config = of_decoder if isinstance(of_decoder, dict) else config
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
    """The model on the CPU, in eval mode.

    Raises:
        ValueError: it cannot be read, is no causal language model, needs code of its own, or its weights are quantised
            or not those of its architecture.
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
            ignore_mismatched_sizes=True,  # so that the report names them
        )
    wrong = {
        "missing": report["missing_keys"],
        "unknown to it": report["unexpected_keys"],
        "of another shape": [name for name, *_ in report["mismatched_keys"]],
    }
    said = [
        f"{len(names)} {what}, such as {', '.join(sorted(map(str, names))[:3])}"
        for what, names in wrong.items()
        if names
    ]
    if said:
        raise ValueError(
            f"{files}: its weights are not those of a {type(model).__name__} with this config.json: {'; '.join(said)}. "
            "Were they saved from another model, or with names of another library?"
        )
    return model.eval().requires_grad_(False)


def _check_kind(files: ModelFiles) -> None:
    """Raises ValueError: what config.json describes is no causal language model with plain weights that transformers
    itself knows."""
    import transformers

    with _explained(str(files), "Is it complete?"):
        config = _config(files.directory)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        why = (
            f"the model_type in its config.json is {kind!r}, which transformers {transformers.__version__} does not "
            "know, and code that a model brings is not run; a newer transformers may know it"
        )
    elif transformers.CONFIG_MAPPING[kind] not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        why = f"its architecture ({kind}) is no causal language model; expected a decoder, such as llama or gpt2"
    elif config.get("quantization_config"):
        why = (
            "its weights are quantised (quantization_config in config.json); save it with plain weights first, as "
            "docs/models.md shows for a GGUF file"
        )
    else:
        return
    raise ValueError(f"{files} could not be loaded: {why}")


def read_tokenizer(files: ModelFiles, n_vocabulary: int) -> PreTrainedTokenizerBase:
    """Its tokenizer; `n_vocabulary` is how many tokens the model knows.

    Raises:
        ValueError: there is none, or it has no token to open a document with that the model knows.
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
    # what its files lack, a tokenizer class adds under the next free number, which means nothing to the model
    added = opening is not None and opening >= tokenizer.vocab_size
    if opening is None or added and tokenizer.convert_ids_to_tokens(opening) not in _added_tokens(files.directory):
        raise ValueError(
            f"the tokenizer of {files} has neither a BOS nor an EOS token, but one must open each document; name "
            "a token that it has as bos_token in tokenizer_config.json"
        )
    if opening >= n_vocabulary:
        raise ValueError(
            f"the tokenizer of {files} opens documents with token {opening}, but the model has a vocabulary of "
            f"{n_vocabulary}; is it another model's tokenizer?"
        )
    return tokenizer


def _added_tokens(directory: Path) -> set[str]:
    """The tokens that its files add to the vocabulary proper."""

    def read(name: str) -> dict:
        path = directory / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    listed = [*read("tokenizer.json").get("added_tokens", [])]
    listed += read("tokenizer_config.json").get("added_tokens_decoder", {}).values()
    return {token["content"] for token in listed} | read("added_tokens.json").keys()


@contextlib.contextmanager
def _explained(what: str, hint: str) -> Iterator[None]:
    """Makes any error of reading one that says what was read, and what to look at."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # transformers, huggingface_hub, httpx and safetensors each raise their own
        words = " ".join(str(error).split()).removesuffix(".")
        words = words if len(words) <= LONGEST_QUOTE else f"{words[:LONGEST_QUOTE]}..."
        raise ValueError(f"{what} could not be loaded: {type(error).__name__}: {words}. {hint}") from error
