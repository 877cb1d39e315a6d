"""The sources of pairs, one class for each kind: trained here, in a directory, in wandb, or on the Hugging Face hub.

Here: the settings of each kind in a catalog, how it produces a pair, the pair's digest and version, and whether a name
on a server now points to another version. Not here: the catalog's other sections (`catalog.py`), Dagster, training and
loading pairs (the `Workshop` that a source is given does that), fetching files (`jsae_core`).

To add a kind of source, add a class here and list it in `KINDS` and `AnyPair`.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, WrapValidator

from jsae_assets.digests import SOURCE_DIGEST
from jsae_assets.problems import explained
from jsae_assets.sections import Layer, Name, Place, Section, at_layer, exactly_one, hub_name
from jsae_core.recipe import AntiBypass, AuxK, TrainingConfig, problems
from jsae_core.wandb_client import ARTIFACT_PATH

if TYPE_CHECKING:
    from jsae_core import SAEPair
    from jsae_core.artifacts import FetchedArtifact, FoundArtifact

# the entry of a stored pair's configuration that records the language model's weights, if its artifact contains them
LANGUAGE_MODEL_WEIGHTS = "language_model_weights"


class Workshop(Protocol):
    """What a source needs in order to produce the pair of one (model, layer) of a variant."""

    @property
    def layer(self) -> int: ...

    @property
    def downloads(self) -> Path:
        """The folder for downloaded files, which has a subfolder for each kind of source."""

    @property
    def entry_digest(self) -> str:
        """The digest of the catalog's entries that the pair is made from."""

    @property
    def say(self) -> Callable[[str], None]:
        """The function that writes a line to the log."""

    def train(self, recipe: Recipe) -> SAEPair: ...

    def load(self, directory: Path) -> SAEPair:
        """Load a pair in the artifact format, and check it against the model and the layer."""


@dataclass(frozen=True)
class Produced:
    """A pair with its data version and the record of its origin.

    Attributes:
        version: changes when the pair does.
        record: metadata that says where the pair came from, without paths of this machine.
    """

    pair: SAEPair
    version: str
    record: Mapping[str, Any]


class ExplainedVariance(Section):
    """The smallest share of variance that each SAE must explain on held-out tokens; otherwise the check `faithful`
    refuses the pair."""

    input: float = Field(default=0.5, le=1)
    output: float = Field(default=0.5, le=1)


def _settings_of(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def _config_in_part(valid: Mapping[str, Any], malformed: Iterable[str]) -> SimpleNamespace:
    defaults = {field.name: field.default for field in fields(TrainingConfig) if field.default is not MISSING}
    settings = defaults | dict(valid)
    return SimpleNamespace(**{name: settings[name] for name in settings if name in valid or name not in malformed})


ExplainedConfig = Annotated[
    TrainingConfig,
    WrapValidator(
        explained(
            get_type_hints(TrainingConfig),
            _config_in_part,
            lambda config, is_whole: problems(vars(config)),
            {"auxk": _settings_of(AuxK), "anti_bypass": _settings_of(AntiBypass)},
        )
    ),
]


class Recipe(Section):
    """How to train a pair here: on the first `tokens` tokens of the text `text`, with the settings `config` of
    `jsae_core.TrainingConfig`."""

    text: str
    tokens: int = Field(ge=1)
    config: ExplainedConfig

    def rules(self):
        return (self._enough_tokens,)

    def _enough_tokens(self) -> None:
        needed, config = self.config.steps * self.config.batch_tokens, self.config
        if config.batch_tokens > self.tokens:
            raise ValueError(
                f"tokens is {self.tokens:,}, but batch_tokens is {config.batch_tokens:,}: a batch would contain tokens "
                "several times. Give more tokens, or smaller batches"
            )
        if self.tokens > config.buffer_tokens and needed > self.tokens:
            raise ValueError(
                f"tokens is {self.tokens:,}, but {config.steps:,} steps of {config.batch_tokens:,} tokens need "
                f"{needed:,}. Tokens are used once only, not in several epochs, if there are more of them than "
                f"buffer_tokens ({config.buffer_tokens:,}). Give more tokens or fewer steps"
            )


class PairEntry(Section):
    """What every entry of a pair says: which variant's pairs they are, at which layers of which model."""

    variant: str
    model: str
    layers: list[Layer] = Field(min_length=1)
    least_explained_variance: ExplainedVariance = ExplainedVariance()


class Pair(PairEntry):
    """The pairs of one variant at some layers of one model. Each kind of source is a subclass; an entry of the catalog
    belongs to the subclass whose `kind` is the name of one of its settings. `{layer}` in a setting stands for the
    layer."""

    kind: ClassVar[str]

    @property
    def text(self) -> str | None:
        """The name of the text that the pair is trained on, or None if it is not trained here."""
        return None

    @abstractmethod
    def produce(self, workshop: Workshop) -> Produced:
        """Make the pair of the workshop's layer."""

    def language_model_weights(
        self, layer: int, downloads: Path, say: Callable[[str], None], record: Mapping[str, str]
    ) -> Path:
        """Return the file with the weights of the randomised language model that came with a stored pair's artifact. It
        is fetched again if it is no longer on this machine.

        Args:
            record: the entry `LANGUAGE_MODEL_WEIGHTS` of the stored pair's configuration.

        Raises:
            ValueError: the catalog no longer names that artifact, or it holds other weights.
        """
        raise ValueError(
            f"the stored {self.variant} pair of {self.model} at layer {layer} came from {record['source']}, which the "
            f"catalog no longer names; materialise {self.variant}/sae_pair again"
        )


class TrainedPair(Pair):
    """A pair that is trained here, by a recipe."""

    kind = "train"

    train: Recipe

    @property
    def text(self) -> str:
        return self.train.text

    def produce(self, workshop: Workshop) -> Produced:
        from jsae_core.tensor_files import content_digest

        pair = workshop.train(self.train)
        record = {"source": f"trained on text {self.train.text}", SOURCE_DIGEST: workshop.entry_digest}
        return Produced(pair, content_digest(pair.tensors()), record)


class FetchedPair(Pair):
    """A pair that exists already, as files in the artifact format."""

    @abstractmethod
    def address(self, layer: int) -> str:
        """Return the directory, artifact or repository that the catalog names for a layer."""

    @abstractmethod
    def fetch(
        self, layer: int, downloads: Path, say: Callable[[str], None], version: str | None = None
    ) -> FetchedArtifact:
        """Fetch the files of a layer's pair: of the version that the catalog names now, or of a given earlier one."""

    def version(self, fetched: FetchedArtifact, pair: SAEPair) -> str:
        """Return the data version, which changes when the pair does."""
        return fetched.digest

    def rules(self):
        return (self._layers_have_different_pairs,)

    def _layers_have_different_pairs(self) -> None:
        if self.address(0) == self.address(1) and len(self.layers) > 1:
            raise ValueError(f"{self.kind} contains no '{{layer}}', so {len(self.layers)} layers would share one pair")

    def produce(self, workshop: Workshop) -> Produced:
        fetched = self.fetch(workshop.layer, workshop.downloads, workshop.say)
        pair = workshop.load(fetched.directory)
        record = {"source": f"{self.kind} {fetched.path}", SOURCE_DIGEST: fetched.digest}
        if fetched.version:
            record["artifact_version"] = fetched.version
        pair = _with_weights(pair, fetched, record["source"])
        if not fetched.is_intact():
            raise ValueError(
                f"{fetched.directory}: another program changed the files of the pair while they were read, so the pair "
                "is not stored. Materialise it again, once nothing writes there: `jsae run` does"
            )
        return Produced(pair, self.version(fetched, pair), record)

    def language_model_weights(
        self, layer: int, downloads: Path, say: Callable[[str], None], record: Mapping[str, str]
    ) -> Path:
        from jsae_core.artifacts import file_digest
        from jsae_core.pair_format import LANGUAGE_MODEL_FILE

        if not record["source"].startswith(f"{self.kind} "):
            return super().language_model_weights(layer, downloads, say, record)
        directory = downloads / self.kind / record["artifact"]  # jsae_core keeps a fetched artifact here
        if not directory.is_dir():
            directory = self.fetch(layer, downloads, say, record["version"]).directory
        path = directory / LANGUAGE_MODEL_FILE
        if not path.is_file() or file_digest(path) != record["sha256"]:
            raise ValueError(
                f"{path} {'holds other weights' if path.is_file() else 'is missing'}; expected the language model's "
                f"weights that came with the stored pair from {record['source']} (sha256 {record['sha256']}). "
                f"Materialise {self.variant}/sae_pair of {self.model} at layer {layer} again"
            )
        return path


def _with_weights(pair: SAEPair, fetched: FetchedArtifact, source: str) -> SAEPair:
    """Return the pair. If its artifact contains a language model's weights, its configuration gets a record of them, by
    which the measures on the pair find them."""
    from jsae_core.artifacts import file_digest
    from jsae_core.pair_format import LANGUAGE_MODEL_FILE

    extra = {name: value for name, value in pair.config.extra.items() if name != LANGUAGE_MODEL_WEIGHTS}
    weights = fetched.directory / LANGUAGE_MODEL_FILE
    if weights.is_file():
        record = {"source": source, "version": fetched.version, "artifact": fetched.digest}
        extra[LANGUAGE_MODEL_WEIGHTS] = record | {"sha256": file_digest(weights)}
    pair.config = replace(pair.config, extra=extra)
    return pair


def _place_of_any_layer(place: Place) -> Place:
    place.at(0)  # raises ValueError if it contains another placeholder
    return place


def _of_any_layer(text: str) -> str:
    at_layer(text, 0)  # raises ValueError if it contains another placeholder
    return text


class PairInDirectory(FetchedPair):
    """A pair in a directory of this machine."""

    kind = "directory"

    directory: Annotated[Place, AfterValidator(_place_of_any_layer)]

    def rules(self):
        return (*super().rules(), self._directories_exist)

    def _directories_exist(self) -> None:
        missing = []
        for layer in self.layers:
            try:
                self.directory.at(layer).directory()
            except ValueError as error:
                missing.append(f"directory of layer {layer}: {error}")
        if missing:
            raise ValueError("\n".join(missing))

    def address(self, layer: int) -> str:
        return str(self.directory.at(layer))

    def fetch(
        self, layer: int, downloads: Path, say: Callable[[str], None], version: str | None = None
    ) -> FetchedArtifact:
        from jsae_core.artifacts import FetchedArtifact, directory_digest

        place = self.directory.at(layer)
        digest = directory_digest(place.path)
        return FetchedArtifact(place.path, place.label, "", digest, lambda: directory_digest(place.path) == digest)

    def version(self, fetched: FetchedArtifact, pair: SAEPair) -> str:
        from jsae_core.tensor_files import content_digest

        return content_digest(pair.tensors())


class PairOnServer(FetchedPair):
    """A pair on a server, under a name that can point to another version later."""

    @property
    @abstractmethod
    def moves(self) -> bool:
        """Whether the name that the catalog gives can point to another version later, as an alias or a branch can."""

    @abstractmethod
    def find(self, layer: int, downloads: Path) -> FoundArtifact:
        """Return the artifact that the catalog's name points to now, without downloading it."""


def _artifact_path(path: str) -> str:
    if not ARTIFACT_PATH.fullmatch(path):
        raise ValueError(f"{path!r} is not a wandb artifact; expected entity/project/name:alias, such as e/p/pair:v0")
    return _of_any_layer(path)


class PairInWandb(PairOnServer):
    """A pair that is an artifact in wandb, named by a version, or by an alias, which can move to another version."""

    kind = "wandb"

    wandb: Annotated[str, AfterValidator(_artifact_path)]

    def address(self, layer: int) -> str:
        return at_layer(self.wandb, layer)

    @property
    def moves(self) -> bool:
        return not re.fullmatch(r"v\d+", self.wandb.rpartition(":")[2])

    def find(self, layer: int, downloads: Path) -> FoundArtifact:
        from jsae_core.artifacts import find_wandb_artifact

        return find_wandb_artifact(self.address(layer), downloads / self.kind)

    def fetch(
        self, layer: int, downloads: Path, say: Callable[[str], None], version: str | None = None
    ) -> FetchedArtifact:
        from jsae_core.artifacts import fetch_wandb_artifact

        collection, _, alias = self.address(layer).rpartition(":")
        return fetch_wandb_artifact(f"{collection}:{version or alias}", downloads / self.kind, say)

    def version(self, fetched: FetchedArtifact, pair: SAEPair) -> str:
        return f"{fetched.version} {fetched.digest}"


def _repository(name: str) -> str:
    hub_name(at_layer(name, 0))
    if "/" not in name:
        raise ValueError(f"{name!r} is not a repository on the hub; expected organisation/name")
    return name


def _folder_of_repository(path: str) -> str:
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(
            f"{path!r} is not a folder of the repository; expected a name, or several with '/' between them"
        )
    return _of_any_layer(path)


class PairOnHub(PairOnServer):
    """A pair in a repository on the Hugging Face hub, or in a folder of one, at a revision: a commit, or a branch or
    tag, which can move to another commit."""

    kind = "hub"

    hub: Annotated[Name, AfterValidator(_repository)]
    revision: Annotated[Name, AfterValidator(_of_any_layer)] = "main"
    subfolder: Annotated[Name, AfterValidator(_folder_of_repository)] | None = None

    def address(self, layer: int) -> str:
        return " ".join(self._location(layer))

    def _location(self, layer: int) -> list[str]:
        """Return repository, revision and folder."""
        return [at_layer(part, layer) for part in (self.hub, self.revision, self.subfolder or "")]

    @property
    def moves(self) -> bool:
        return not re.fullmatch(r"[0-9a-f]{40}", self.revision)

    def find(self, layer: int, downloads: Path) -> FoundArtifact:
        from jsae_core.hub import find_hub_pair

        return find_hub_pair(*self._location(layer))

    def fetch(
        self, layer: int, downloads: Path, say: Callable[[str], None], version: str | None = None
    ) -> FetchedArtifact:
        from jsae_core.hub import fetch_hub_pair

        repository, revision, subfolder = self._location(layer)
        return fetch_hub_pair(repository, version or revision, subfolder, downloads / self.kind, say)


KINDS = {kind.kind: kind for kind in (PairInDirectory, TrainedPair, PairInWandb, PairOnHub)}
UNCLEAR = "unclear"


class PairOfUnclearSource(PairEntry):
    """An entry that names no source of its pairs, or several. It is always refused, with whatever else is wrong."""

    directory: Any = None
    train: Any = None
    wandb: Any = None
    hub: Any = None
    revision: Any = None
    subfolder: Any = None

    def rules(self):
        return (lambda: exactly_one(self, KINDS),)


def _kind_of(entry: Any) -> str:
    if isinstance(entry, Pair):
        return entry.kind
    given = [kind for kind in KINDS if kind in entry]
    return given[0] if len(given) == 1 else UNCLEAR


def _with_settings(entry: Any) -> Any:
    if isinstance(entry, Pair):
        return entry
    if not isinstance(entry, dict):
        raise ValueError("expected the settings of a pair: variant, model, layers, and where the pair comes from")
    return {name: value for name, value in entry.items() if name not in KINDS or value is not None}


if TYPE_CHECKING:
    AnyPair = Pair  # one of unclear source is always refused
else:
    # the brackets tell tags from settings in the places that pydantic's errors name
    AnyPair = Annotated[
        Annotated[PairInDirectory, Tag("[directory]")]
        | Annotated[TrainedPair, Tag("[train]")]
        | Annotated[PairInWandb, Tag("[wandb]")]
        | Annotated[PairOnHub, Tag("[hub]")]
        | Annotated[PairOfUnclearSource, Tag(f"[{UNCLEAR}]")],
        Discriminator(lambda entry: f"[{_kind_of(entry)}]"),
        BeforeValidator(_with_settings),
    ]
