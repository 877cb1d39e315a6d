"""Where pairs come from: a class for each kind of source.

Here: what a catalog says of each, how its pair is produced, its digest, its version, and whether what it names has
moved. Not here: the catalog's other sections (`catalog.py`), Dagster, training or loading themselves: those are done by
the `Workshop` that a source is given, and fetching by `jsae_core`.

A new kind of source is a class here, added to `AnyPair`.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, WrapValidator, model_validator

from jsae_assets.problems import explained
from jsae_assets.sections import Layer, Name, Place, Section, at_layer, hub_name
from jsae_core.recipe import AntiBypass, AuxK, TrainingConfig
from jsae_core.wandb_client import ARTIFACT_PATH

if TYPE_CHECKING:
    from jsae_core import SAEPair
    from jsae_core.artifacts import FetchedArtifact, FoundArtifact

LANGUAGE_MODEL_WEIGHTS = "language_model_weights"  # in a stored pair's configuration, if its artifact brought them


class Workshop(Protocol):
    """What makes a pair out of what a source names, for one (model, layer) of a variant."""

    @property
    def layer(self) -> int: ...

    @property
    def downloads(self) -> Path:
        """The folder below which what is fetched is kept, in a folder a kind of source."""

    @property
    def entry_digest(self) -> str:
        """Of the catalog's entries that the pair is made from."""

    @property
    def say(self) -> Callable[[str], None]:
        """What the log is told with."""

    def train(self, recipe: Recipe) -> SAEPair: ...

    def load(self, directory: Path) -> SAEPair:
        """From the artifact format, checked against the model and the layer."""


@dataclass(frozen=True)
class Produced:
    """A pair, which version of it this is, and what is recorded of where it came from. No path of this machine."""

    pair: SAEPair
    version: str
    record: Mapping[str, Any]


class ExplainedVariance(Section):
    """The least share of variance that each SAE must explain on held-out tokens, or the pair is refused."""

    input: float = Field(default=0.5, le=1)
    output: float = Field(default=0.5, le=1)


def _settings_of(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


FURTHER_TERMS = {"auxk": _settings_of(AuxK), "anti_bypass": _settings_of(AntiBypass)}


class Recipe(Section):
    """Train a pair here: `tokens` tokens of a text, and a `jsae_core.TrainingConfig`."""

    text: str
    tokens: int = Field(ge=1)
    config: Annotated[TrainingConfig, WrapValidator(explained(_settings_of(TrainingConfig), FURTHER_TERMS))]

    @model_validator(mode="after")
    def _enough(self):
        asked, config = self.config.steps * self.config.batch_tokens, self.config
        if config.batch_tokens > self.tokens:
            raise ValueError(
                f"tokens is {self.tokens:,}, but batch_tokens is {config.batch_tokens:,}: a batch would hold tokens "
                "several times. Give more tokens, or smaller batches"
            )
        if self.tokens > config.buffer_tokens and asked > self.tokens:
            raise ValueError(
                f"tokens is {self.tokens:,}, but {config.steps:,} steps of {config.batch_tokens:,} take {asked:,}: "
                f"more tokens than buffer_tokens ({config.buffer_tokens:,}) are gone through once. Give more tokens or "
                "fewer steps"
            )
        return self


class Pair(Section):
    """The pairs of one variant at some layers of one model. Each kind of source is a class below this one, told by
    the setting of the same name as its `kind`. `{layer}` stands for the layer."""

    kind: ClassVar[str]

    variant: str
    model: str
    layers: list[Layer] = Field(min_length=1)
    least_explained_variance: ExplainedVariance = ExplainedVariance()

    @property
    def text(self) -> str | None:
        """The entry of the text section that the pair is made from, if there is one."""
        return None

    @abstractmethod
    def produce(self, workshop: Workshop) -> Produced:
        """The pair of the workshop's layer."""

    def language_model_weights(
        self, layer: int, downloads: Path, say: Callable[[str], None], record: Mapping[str, str]
    ) -> Path:
        """The file of the randomised language model that a stored pair's artifact brought, by what was recorded of it;
        fetched again if it is no longer here."""
        raise ValueError(
            f"the stored {self.variant} pair of {self.model} at layer {layer} came from {record['source']}, which the "
            f"catalog no longer names; materialise {self.variant}/sae_pair again"
        )


class TrainedPair(Pair):
    """Trained here."""

    kind = "train"

    train: Recipe

    @property
    def text(self) -> str:
        return self.train.text

    def produce(self, workshop: Workshop) -> Produced:
        from jsae_core.tensor_files import content_digest

        pair = workshop.train(self.train)
        record = {"source": f"trained on text {self.train.text}", "source_digest": workshop.entry_digest}
        return Produced(pair, content_digest(pair.tensors()), record)


class FetchedPair(Pair):
    """In the artifact format, somewhere."""

    @abstractmethod
    def named(self, layer: int) -> str:
        """What the catalog names for one layer."""

    @abstractmethod
    def fetch(
        self, layer: int, downloads: Path, say: Callable[[str], None], version: str | None = None
    ) -> FetchedArtifact:
        """Its files, whole: what the catalog names now, or a version that it named once."""

    def version(self, fetched: FetchedArtifact, pair: SAEPair) -> str:
        """Changes when the pair does."""
        return fetched.digest

    @model_validator(mode="after")
    def _layers_apart(self):
        if self.named(0) == self.named(1) and len(self.layers) > 1:
            raise ValueError(f"{self.kind} holds no '{{layer}}', so {len(self.layers)} layers would share one pair")
        return self

    def produce(self, workshop: Workshop) -> Produced:
        fetched = self.fetch(workshop.layer, workshop.downloads, workshop.say)
        pair = workshop.load(fetched.directory)
        record = {"source": f"{self.kind} {fetched.path}", "source_digest": fetched.digest}
        if fetched.version:
            record["artifact_version"] = fetched.version
        return Produced(_with_weights(pair, fetched, record["source"]), self.version(fetched, pair), record)

    def language_model_weights(
        self, layer: int, downloads: Path, say: Callable[[str], None], record: Mapping[str, str]
    ) -> Path:
        from jsae_core.artifacts import file_digest
        from jsae_core.pair_format import LANGUAGE_MODEL_FILE

        if not record["source"].startswith(f"{self.kind} "):
            return super().language_model_weights(layer, downloads, say, record)
        directory = downloads / self.kind / record["artifact"]  # where what is fetched is kept
        if not directory.is_dir():
            directory = self.fetch(layer, downloads, say, record["version"]).directory
        path = directory / LANGUAGE_MODEL_FILE
        if not path.is_file() or file_digest(path) != record["sha256"]:
            raise ValueError(
                f"{path} {'holds other weights' if path.is_file() else 'is missing'}; expected the language model's "
                f"that came with the stored pair from {record['source']} (sha256 {record['sha256']}). Materialise "
                f"{self.variant}/sae_pair of {self.model} at layer {layer} again"
            )
        return path


def _with_weights(pair: SAEPair, fetched: FetchedArtifact, source: str) -> SAEPair:
    """The pair; if its artifact brought a language model's weights, with a record of which they are in its
    configuration, where what is measured on it finds it."""
    from jsae_core.artifacts import file_digest
    from jsae_core.pair_format import LANGUAGE_MODEL_FILE

    extra = {name: value for name, value in pair.config.extra.items() if name != LANGUAGE_MODEL_WEIGHTS}
    weights = fetched.directory / LANGUAGE_MODEL_FILE
    if weights.is_file():
        record = {"source": source, "version": fetched.version, "artifact": fetched.digest}
        extra[LANGUAGE_MODEL_WEIGHTS] = record | {"sha256": file_digest(weights)}
    pair.config = replace(pair.config, extra=extra)
    return pair


class PairInDirectory(FetchedPair):
    """In a directory of this machine."""

    kind = "directory"

    directory: Place

    @model_validator(mode="after")
    def _there(self):
        for layer in self.layers:
            try:
                self.directory.at(layer).directory()
            except ValueError as error:
                raise ValueError(f"directory of layer {layer}: {error}") from error
        return self

    def named(self, layer: int) -> str:
        return str(self.directory.at(layer))

    def fetch(
        self, layer: int, downloads: Path, say: Callable[[str], None], version: str | None = None
    ) -> FetchedArtifact:
        from jsae_core.artifacts import FetchedArtifact, directory_digest

        place = self.directory.at(layer)
        return FetchedArtifact(place.path, place.label, "", directory_digest(place.path))

    def version(self, fetched: FetchedArtifact, pair: SAEPair) -> str:
        from jsae_core.tensor_files import content_digest

        return content_digest(pair.tensors())


class PairOnServer(FetchedPair):
    """On a server, by a name that may become that of another pair without the entry being edited."""

    @property
    @abstractmethod
    def moves(self) -> bool:
        """Whether the entry's name can: not where it is that of one version."""

    @abstractmethod
    def find(self, layer: int, downloads: Path) -> FoundArtifact:
        """What the entry names now. Downloads nothing."""


def _artifact_path(path: str) -> str:
    if not ARTIFACT_PATH.fullmatch(path):
        raise ValueError(f"{path!r} is no wandb artifact; expected entity/project/name:alias, such as e/p/pair:v0")
    return path


class PairInWandb(PairOnServer):
    """An artifact in wandb, by a version or by an alias, which may move."""

    kind = "wandb"

    wandb: Annotated[str, AfterValidator(_artifact_path)]

    def named(self, layer: int) -> str:
        return at_layer(self.wandb, layer)

    @property
    def moves(self) -> bool:
        return not re.fullmatch(r"v\d+", self.wandb.rpartition(":")[2])

    def find(self, layer: int, downloads: Path) -> FoundArtifact:
        from jsae_core.artifacts import find_wandb_artifact

        return find_wandb_artifact(self.named(layer), downloads / self.kind)

    def fetch(
        self, layer: int, downloads: Path, say: Callable[[str], None], version: str | None = None
    ) -> FetchedArtifact:
        from jsae_core.artifacts import fetch_wandb_artifact

        collection, _, alias = self.named(layer).rpartition(":")
        return fetch_wandb_artifact(f"{collection}:{version or alias}", downloads / self.kind, say)

    def version(self, fetched: FetchedArtifact, pair: SAEPair) -> str:
        return f"{fetched.version} {fetched.digest}"


def _repository(name: str) -> str:
    hub_name(at_layer(name, 0))
    if "/" not in name:
        raise ValueError(f"{name!r} is no repository on the hub; expected organisation/name")
    return name


def _folder_of_repository(path: str) -> str:
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"{path!r} is no folder of the repository; expected a name, or several with '/' between them")
    return path


class PairOnHub(PairOnServer):
    """A repository on the Hugging Face hub, or a folder in one, at a revision: a commit, or a branch or tag, which may
    move."""

    kind = "hub"

    hub: Annotated[Name, AfterValidator(_repository)]
    revision: Name = "main"
    subfolder: Annotated[Name, AfterValidator(_folder_of_repository)] | None = None

    def named(self, layer: int) -> str:
        return " ".join(self._address(layer))

    def _address(self, layer: int) -> list[str]:
        """Repository, revision and folder."""
        return [at_layer(part, layer) for part in (self.hub, self.revision, self.subfolder or "")]

    @property
    def moves(self) -> bool:
        return not re.fullmatch(r"[0-9a-f]{40}", self.revision)

    def find(self, layer: int, downloads: Path) -> FoundArtifact:
        from jsae_core.hub import find_hub_pair

        return find_hub_pair(*self._address(layer))

    def fetch(
        self, layer: int, downloads: Path, say: Callable[[str], None], version: str | None = None
    ) -> FetchedArtifact:
        from jsae_core.hub import fetch_hub_pair

        repository, revision, subfolder = self._address(layer)
        return fetch_hub_pair(repository, version or revision, subfolder, downloads / self.kind, say)


KINDS = {kind.kind: kind for kind in (PairInDirectory, TrainedPair, PairInWandb, PairOnHub)}


def _kind_of(entry: Any) -> str:
    return entry.kind if isinstance(entry, Pair) else next(kind for kind in KINDS if kind in entry)


def _of_one_kind(entry: Any) -> Any:
    if isinstance(entry, Pair):
        return entry
    if not isinstance(entry, dict):
        raise ValueError("expected a pair's settings: variant, model, layers, and where it comes from")
    settings = {name: value for name, value in entry.items() if name not in KINDS or value is not None}
    given = [kind for kind in KINDS if kind in settings]
    if len(given) != 1:
        raise ValueError(f"expected exactly one of {', '.join(KINDS)}; given: {', '.join(given) or 'none'}")
    return settings


# in brackets, a tag is told from a setting where an error names its place
AnyPair = Annotated[
    Annotated[PairInDirectory, Tag("[directory]")]
    | Annotated[TrainedPair, Tag("[train]")]
    | Annotated[PairInWandb, Tag("[wandb]")]
    | Annotated[PairOnHub, Tag("[hub]")],
    Discriminator(lambda entry: f"[{_kind_of(entry)}]"),
    BeforeValidator(_of_one_kind),
]
