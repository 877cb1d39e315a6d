"""The building blocks of a catalog's sections: the base class of entries, and the types of names and of paths.

Here: types of single settings, and the values that they refuse. Not here: the sections (`catalog.py`, `sources.py`),
the wording of pydantic's errors (`problems.py`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationInfo,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from jsae_assets.problems import explained
from jsae_core.model_files import find_model, layer_count
from jsae_core.recipe import LARGEST_SEED
from jsae_core.text_files import matching_files
from jsae_core.wandb_client import PROJECT_PATH

LONGEST_KEY = 100  # characters: a key becomes part of a file's name, which may have at most 255 bytes
LONGEST_TEXT = 1000
PLACEHOLDER = "{layer}"  # stands for the number of the layer in settings that differ between layers
FOLDER = "folder"  # key of the validation context: the catalog's own folder, at which relative paths start
RECORDED = "recorded"  # serialisation context: leave out paths of this machine, because the result is recorded
CHECKPOINTS = "checkpoints"  # the folder of the storage that holds checkpoints
RESERVED = ("catalog", CHECKPOINTS, "figures", "site", "sweep_runs", "tokens")


class Section(BaseModel):
    """The base class of a catalog's entries. They are immutable and refuse settings that are not declared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, entry, handler, info: ValidationInfo):
        return _explaining(cls)(entry, handler, info)

    @classmethod
    def _in_part(cls, valid: Mapping[str, Any], malformed: Iterable[str]) -> Section:
        entry = cls.model_construct(**valid)
        for name in set(malformed) - valid.keys():
            entry.__dict__.pop(name, None)  # its default value
        return entry

    def rules(self) -> Sequence[Callable[[], object]]:
        """Return checks of settings that depend on one another. Each raises ValueError with a line for each problem
        that it finds, and AttributeError if it asks for a setting that is malformed."""
        return ()

    def _contradictions(self, is_whole: bool) -> Iterator[str]:
        for rule in self.rules():
            try:
                rule()
            except ValueError as problem:
                yield from str(problem).splitlines()
            except AttributeError:
                if is_whole:
                    raise

    def canonical(self, exclude: set[str] | None = None) -> str:
        """Return the entry as JSON for digests: with paths as the catalog writes them, and without settings that have
        their default value, even if they are written out. So a digest depends neither on the catalog's folder nor on
        settings that a later version adds.

        If a default changes, assets of catalogs that leave the setting out change without a new digest: raise the code
        version of the assets that read it.
        """
        return self.model_dump_json(exclude=exclude, exclude_defaults=True)

    def recorded(self) -> str:
        """Return the entry as JSON for the record of assets made from it: without paths of this machine."""
        return self.model_dump_json(exclude_defaults=True, context=RECORDED)


@functools.cache
def _explaining(kind: type[Section]) -> Callable[[Any, Callable, ValidationInfo], Any]:
    types = {name: Annotated[field.annotation, field] for name, field in kind.model_fields.items()}
    return explained(types, kind._in_part, kind._contradictions)


def given(entry: Section, names: Iterable[str]) -> list[str]:
    """Return those of these settings that an entry has, even if malformed."""
    return [name for name in names if getattr(entry, name, "malformed") is not None]


def exactly_one(entry: Section, names: Iterable[str]) -> None:
    """Raise ValueError unless exactly one of these settings is given."""
    found = given(entry, names)
    if len(found) != 1:
        raise ValueError(f"expected exactly one of {', '.join(names)}; given: {', '.join(found) or 'none'}")


def _partition_key(key: str) -> str:
    # Dagster accepts "|" in partition keys but loses such partitions without a message; commas break backfills; "/" and
    # ".." would change the folder of the file
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", key) or ".." in key:
        raise ValueError(
            f"{key!r} cannot be a name: expected letters, digits, '.', '_' and '-', beginning with a letter or digit, "
            "without '..'"
        )
    return _short(key)


def _asset_prefix(key: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", key) or key in RESERVED:
        raise ValueError(
            f"{key!r} cannot name a variant: expected lower-case letters, digits and '_' (the name becomes part of "
            f"asset names), and none of {', '.join(RESERVED)}, which are other folders of the storage"
        )
    return _short(key)


def _short(key: str) -> str:
    if len(key) > LONGEST_KEY:
        raise ValueError(
            f"{key[:20]}... has {len(key)} characters; expected at most {LONGEST_KEY}, because files get this name"
        )
    return key


def hub_name(name: str) -> str:
    """Return the name, if it can be that of a model or dataset on the Hugging Face hub.

    Raises:
        ValueError: it cannot.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # a slow import that few catalogs need

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"{name!r} cannot be a name on the Hugging Face hub; expected organisation/name, of letters, digits, '-', "
            "'_' and '.', as in the address of its page"
        ) from error
    return name


def _colour(given: Any) -> Any:
    if given is None or isinstance(given, str) and not re.fullmatch(r"#[0-9a-fA-F]{6}", given):
        raise ValueError(
            f"{'is empty' if given is None else f'is {given!r}'}, expected a colour of six hexadecimal digits, such "
            'as "#D55E00", in quotes, because YAML takes unquoted text after # for a comment'
        )
    return given


def at_layer(text: str, layer: int) -> str:
    """Return the text with the number of the layer in place of `{layer}`.

    Raises:
        ValueError: the text contains another placeholder.
    """
    filled = text.replace(PLACEHOLDER, str(layer))
    if unknown := re.search(r"\{[^{}]*\}", filled):
        raise ValueError(f"{text!r} contains {unknown[0]}, but the only placeholder is {PLACEHOLDER}")
    return filled


def project_path(path: str) -> str:
    """Return the path, if it has the form of a wandb project. Raises ValueError if not."""
    if not PROJECT_PATH.fullmatch(path):
        raise ValueError(f"{path!r} is not a wandb project; expected entity/project")
    return path


Key = Annotated[str, AfterValidator(_partition_key)]
VariantKey = Annotated[str, AfterValidator(_asset_prefix)]
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]  # of a repository, revision, column and the like
HubName = Annotated[Name, AfterValidator(hub_name)]
Colour = Annotated[str, BeforeValidator(_colour)]
Label = Annotated[str, Field(min_length=1, max_length=LONGEST_KEY)]  # shown in figures
Layer = Annotated[int, Field(ge=0, strict=True)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]


@dataclass(frozen=True)
class Place:
    """A path that a catalog names: of a file or directory, or a pattern that matches several files.

    Attributes:
        path: the absolute path, which may contain `{layer}` or wildcards.
        written: the path relative to the catalog's folder if it lies below it, else as written in the catalog. Digests
            are made from this, so that a catalog can be moved together with the files in its folder.
    """

    path: Path
    written: str

    def __str__(self) -> str:
        return str(self.path)

    @property
    def label(self) -> str:
        """The path as it may be recorded, without the names of this machine's folders or users."""
        if Path(self.written).is_absolute() or self.written.startswith("~"):
            return f".../{self.path.name}"
        return self.written

    def at(self, layer: int) -> Place:
        """Return the path with the number of the layer in place of `{layer}`. Raises ValueError if it contains another
        placeholder."""
        written = at_layer(self.written, layer)
        return Place(Path(str(self.path).replace(PLACEHOLDER, str(layer))), written)

    def directory(self) -> Place:
        """Return this path, if it is a directory.

        Raises:
            ValueError: it is not.
        """
        if not self.path.is_dir():
            problem = "is not a directory" if self.path.exists() else "does not exist; expected a directory"
            raise ValueError(f"{self.path} {problem}. Relative paths start at the catalog's own folder")
        return self

    def language_model(self) -> Place:
        """Return this path, if it is a directory with the files of a language model.

        Raises:
            ValueError: it is not a directory, or has no config.json or no weights that can be read.
        """
        self.directory()
        try:
            find_model(self.path)
        except FileNotFoundError as error:
            raise ValueError(str(error)) from error
        layer_count(self.path)
        return self

    def files(self) -> Place:
        """Return this path, if it is a file of documents, or a pattern that matches at least one.

        Raises:
            ValueError: there is no such file.
        """
        try:
            matching_files(str(self))
        except ValueError as error:
            raise ValueError(f"{error}. Relative paths start at the catalog's own folder") from error
        return self

    @classmethod
    def _from_text(cls, written: str, info: ValidationInfo) -> Place:
        if "://" in written:
            raise ValueError(
                f"{written!r} is an address, expected a path on this machine: download what lies there first"
            )
        folder = (info.context or {}).get(FOLDER, Path.cwd())
        try:
            path = (folder / Path(written).expanduser()).resolve()
        except (RuntimeError, ValueError, OSError) as error:  # an unknown user, a zero byte, a loop of symbolic links
            raise ValueError(f"{written!r} cannot be a path: {error}") from error
        return cls(path, path.relative_to(folder).as_posix() if path.is_relative_to(folder) else written)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_after_validator_function(
            cls._from_text,
            core_schema.str_schema(min_length=1, max_length=LONGEST_TEXT),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda place, info: place.label if info.context == RECORDED else place.written, info_arg=True
            ),
        )


ModelDirectory = Annotated[Place, AfterValidator(Place.language_model)]
Files = Annotated[Place, AfterValidator(Place.files)]
