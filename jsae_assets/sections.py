"""What every section of a catalog is made of: the base of its entries, names, and places on this machine.

Here: types of single settings, and what they refuse. Not here: the sections (`catalog.py`, `sources.py`), how what
pydantic refuses is said (`problems.py`).
"""

from __future__ import annotations

import re
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

LONGEST_KEY = 100  # a key becomes a file's name, with an ending, and file systems take 255 bytes
LONGEST_TEXT = 1000
PLACEHOLDER = "{layer}"  # in a setting that is another one for each layer
FOLDER = "folder"  # in the context of validation: the catalog's own folder, which relative places start at
RECORDED = "recorded"  # the context of writing out what may be recorded
CHECKPOINTS = "checkpoints"  # the folder of the storage that holds them
RESERVED = ("catalog", CHECKPOINTS, "figures", "site", "sweep_runs", "tokens")


class Section(BaseModel):
    """An entry of a catalog. What is not declared is refused, and what is there does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, entry, handler):
        return explained(cls.model_fields)(entry, handler)

    def canonical(self, exclude: set[str] | None = None) -> str:
        """The entry as digests see it: places as the catalog writes them, and no setting that has its default value,
        whether it is written out or not. So a digest depends neither on where the catalog lies nor on settings that
        were not there yet when it was made.

        A default that changes is a changed asset for everyone who left it out: raise the code version of what reads it.
        """
        return self.model_dump_json(exclude=exclude, exclude_defaults=True)

    def recorded(self) -> str:
        """The entry as it may be recorded beside what was made from it: without a path of this machine."""
        return self.model_dump_json(exclude_defaults=True, context=RECORDED)


def exactly_one(entry: Section, names: tuple[str, ...]) -> None:
    """Raises ValueError unless one of these settings is given, and no two."""
    given = [name for name in names if getattr(entry, name) is not None]
    if len(given) != 1:
        raise ValueError(f"expected exactly one of {', '.join(names)}; given: {', '.join(given) or 'none'}")


def _partition_key(key: str) -> str:
    # Dagster accepts a|b and then silently loses it, commas break backfills, the rest would leave its folder
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", key) or ".." in key:
        raise ValueError(
            f"{key!r} cannot be a name: expected letters, digits, '.', '_' and '-', beginning with a letter or digit, "
            "without '..'"
        )
    return _short(key)


def _asset_prefix(key: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", key) or key in RESERVED:
        raise ValueError(
            f"{key!r} cannot name a variant: expected small letters, digits and '_' (it prefixes assets), and none of "
            f"{', '.join(RESERVED)}, which are other folders of the storage"
        )
    return _short(key)


def _short(key: str) -> str:
    if len(key) > LONGEST_KEY:
        raise ValueError(f"{key[:20]}... has {len(key)} characters; a name has at most {LONGEST_KEY}, as files bear it")
    return key


def hub_name(name: str) -> str:
    """The name, if there can be a model or dataset of that name on the Hugging Face hub.

    Raises:
        ValueError: there cannot.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # takes a while, and few catalogs need it

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"{name!r} cannot be a name on the Hugging Face hub; expected organisation/name, of letters, digits, '-', "
            "'_' and '.', as its page's address has it"
        ) from error
    return name


def _colour(given: Any) -> Any:
    if given is None or isinstance(given, str) and not re.fullmatch(r"#[0-9a-fA-F]{6}", given):
        raise ValueError(
            f"{'is empty' if given is None else f'is {given!r}'}, expected a colour of six hexadecimal digits, in "
            'quotes, since YAML takes what follows # for a comment: "#D55E00"'
        )
    return given


def at_layer(text: str, layer: int) -> str:
    """The text with `{layer}` filled in.

    Raises:
        ValueError: it holds another placeholder.
    """
    filled = text.replace(PLACEHOLDER, str(layer))
    if unknown := re.search(r"\{[^{}]*\}", filled):
        raise ValueError(f"{text!r} holds {unknown[0]}, which stands for nothing; the one placeholder is {PLACEHOLDER}")
    return filled


def project_path(path: str) -> str:
    """A project in wandb. Raises ValueError where it cannot be one."""
    if not PROJECT_PATH.fullmatch(path):
        raise ValueError(f"{path!r} is no wandb project; expected entity/project")
    return path


Key = Annotated[str, AfterValidator(_partition_key)]
VariantKey = Annotated[str, AfterValidator(_asset_prefix)]
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]  # of something on a hub
HubName = Annotated[Name, AfterValidator(hub_name)]
Colour = Annotated[str, BeforeValidator(_colour)]
Label = Annotated[str, Field(min_length=1, max_length=LONGEST_KEY)]  # of figures
Layer = Annotated[int, Field(ge=0, strict=True)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]


@dataclass(frozen=True)
class Place:
    """A file or directory that a catalog names, or a pattern of several.

    Attributes:
        path: where it is, absolute; it may still hold `{layer}`, or wildcards.
        written: relative to the catalog's folder if it lies there, else as the catalog writes it. Digests are made of
            this, so that a catalog and what lies beside it can move.
    """

    path: Path
    written: str

    def __str__(self) -> str:
        return str(self.path)

    @property
    def label(self) -> str:
        """What may be recorded: it tells nothing of this machine or who uses it."""
        if Path(self.written).is_absolute() or self.written.startswith("~"):
            return f".../{self.path.name}"
        return self.written

    def at(self, layer: int) -> Place:
        """With `{layer}` filled in. Raises ValueError if it holds another placeholder."""
        written = at_layer(self.written, layer)
        return Place(Path(str(self.path).replace(PLACEHOLDER, str(layer))), written)

    def directory(self) -> Place:
        """This place, if it is a directory.

        Raises:
            ValueError: it is none.
        """
        if not self.path.is_dir():
            what = "is no directory" if self.path.exists() else "does not exist; expected a directory"
            raise ValueError(f"{self.path} {what}. Relative places start at the catalog's own folder")
        return self

    def language_model(self) -> Place:
        """This place, if it is a directory with the files of a language model.

        Raises:
            ValueError: it is none, or has no config.json or no weights that can be read.
        """
        self.directory()
        try:
            find_model(self.path)
        except FileNotFoundError as error:
            raise ValueError(str(error)) from error
        layer_count(self.path)
        return self

    def files(self) -> Place:
        """This place, if there is a file of documents of this name, or one that the pattern matches.

        Raises:
            ValueError: there is none.
        """
        try:
            matching_files(str(self))
        except ValueError as error:
            raise ValueError(f"{error}. Relative places start at the catalog's own folder") from error
        return self

    @classmethod
    def _named(cls, written: str, info: ValidationInfo) -> Place:
        folder = (info.context or {}).get(FOLDER, Path.cwd())
        try:
            path = (folder / Path(written).expanduser()).resolve()
        except (RuntimeError, ValueError, OSError) as error:  # no such user, a zero byte, a circle of links
            raise ValueError(f"{written!r} names no place: {error}") from error
        return cls(path, path.relative_to(folder).as_posix() if path.is_relative_to(folder) else written)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_after_validator_function(
            cls._named,
            core_schema.str_schema(min_length=1, max_length=LONGEST_TEXT),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda place, info: place.label if info.context == RECORDED else place.written, info_arg=True
            ),
        )


ModelDirectory = Annotated[Place, AfterValidator(Place.language_model)]
Files = Annotated[Place, AfterValidator(Place.files)]
