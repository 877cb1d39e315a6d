"""Where a pretrained pair comes from and is published to: a directory in the artifact format, or an artifact in wandb.

Here: finding the files, identifying them by digest, fetching them from wandb whole and verified, publishing a pair.
Not here: what is inside the files (`sae_pair.py`), how wandb is reached (`wandb_client.py`), how one file is downloaded
(`wandb_downloads.py`).

The wandb client only gives addresses and digests. It is not used for downloads, because it keeps a corrupt file in its
cache for ever and does not check what it downloads.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jsae_core.locks import holding
from jsae_core.memory import in_bytes
from jsae_core.wandb_client import (
    ARTIFACT_PATH,
    WandbError,
    connect,
    explained,
    logged_run,
    unbroken,
)
from jsae_core.wandb_downloads import Patience, download, size_of

if TYPE_CHECKING:
    import wandb

    from jsae_core.pair_format import PairConfig
    from jsae_core.sae_pair import SAEPair


def directory_digest(directory: str | Path) -> str:
    """sha256 over names and contents of a directory's files, in hexadecimal; it identifies an artifact in any place.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    root = Path(directory)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a directory; expected a pair's sae_weights.safetensors and cfg.json")
    digest = hashlib.sha256()
    for path in sorted(root.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            digest.update(f"{path.name}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def file_digest(path: str | Path) -> str:
    """sha256 of a file's contents, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class FoundArtifact:
    """An artifact's version as wandb describes it. `path` names this version, even if an alias was asked for; `digest`
    is wandb's own, over names and contents; `size` is the sum over all files, in bytes."""

    path: str
    version: str
    digest: str
    aliases: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class FetchedArtifact:
    """An artifact's files, whole and verified, in a directory that holds nothing else. `is_intact` verifies them
    again, since another program may have changed them by the time they were read."""

    directory: Path
    path: str
    version: str
    digest: str
    is_intact: Callable[[], bool]


@dataclass(frozen=True)
class PublishedPair:
    """A run and its artifact. Offline, `directory` is what `wandb sync` uploads; online, `url` is the run's page."""

    run_id: str
    artifact: str
    directory: Path | None
    url: str | None


def find_wandb_artifact(path: str, folder: str | Path) -> FoundArtifact:
    """Find which version of an artifact a path names now. This downloads nothing, so a moved alias is cheap to notice.

    Args:
        path: entity/project/name:alias, the alias being a version (v0) or a name (latest).
        folder: where the wandb client keeps its own files.

    Raises:
        ValueError: the path is not of this form.
        WandbError: wandb does not answer, refuses the key, or has no such artifact.
    """
    return _found(_request_artifact(path, folder))


def fetch_wandb_artifact(path: str, folder: str | Path, say: Callable[[str], None] = print) -> FetchedArtifact:
    """Download the files of an artifact to `folder/<digest>/`, unless they are there already.

    Each file is checked against the size and the digest in the artifact's manifest, whether it was downloaded now or
    before. Until all files are verified, they are in `folder/<digest>.part/`; the next fetch continues what an
    interrupted one left there. Of two fetches of the same artifact at the same time, one waits for the other.

    Retries and time limits follow the wandb client's environment variables (defaults in parentheses):
    WANDB__FILE_TRANSFER_RETRY_MAX (6 retries in a row without progress), WANDB__FILE_TRANSFER_RETRY_WAIT_MIN_SECONDS
    (1) and _MAX_SECONDS (30), WANDB_FILE_PUSHER_TIMEOUT (60 seconds without a byte).

    Args:
        path, folder: as for `find_wandb_artifact`.
        say: receives a message before a download (what, and how large), and if another process fetches the same
            artifact and this one has to wait for it.

    Raises:
        ValueError, WandbError: as `find_wandb_artifact` does; also if a file does not arrive, or differs from the
            manifest.
        OSError: the files cannot be stored.
    """
    artifact = _request_artifact(path, folder)
    found = _found(artifact)
    directory, staging = (Path(folder).absolute() / f"{found.digest}{suffix}" for suffix in ("", ".part"))
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with holding(directory.with_suffix(".lock"), f"fetches {found.path}", say):
            if not _is_intact(directory, found):
                if directory.exists():
                    shutil.rmtree(staging, ignore_errors=True)
                    directory.rename(staging)
                say(f"Fetching {found.path} from wandb: {in_bytes(found.size)}")
                _fetch_into(staging, artifact, found)
                staging.rename(directory)
    except OSError as error:
        reason = f"{error.strerror or error}; {found.path} could not be stored, what has arrived of it is kept"
        raise OSError(error.errno, reason, str(error.filename or staging)) from error
    return FetchedArtifact(directory, found.path, found.version, found.digest, lambda: _is_intact(directory, found))


def artifact_name(config: PairConfig) -> str:
    """The artifact name of a pair in wandb, as the paper forms it:
    sae_pair_{model}[-randomized]_layer{L}_{d_sae}_J{coef}_k{k}. A training objective other than mean |J| follows the
    coefficient."""
    model = Path(config.model_name).name + ("-randomized" if config.randomize_llm_weights else "")
    objective = config.extra.get("objective", "l1")
    coefficient = f"{config.jacobian_coefficient:.12g}" + ("" if objective == "l1" else str(objective))
    name = f"sae_pair_{model}_layer{config.layer}_{config.d_sae}_J{coefficient}_k{config.k}"
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)


def publish_pair(
    pair: SAEPair,
    project_path: str,
    name: str,
    folder: str | Path,
    offline: bool,
    language_model_weights: Path | None = None,
) -> PublishedPair:
    """Log a run with the pair's configuration, and the pair in the artifact format as its artifact of type `model`.

    Args:
        project_path: entity/project.
        name: name of the artifact, as `artifact_name` makes it.
        folder: where the wandb client keeps its files. Offline, these include a copy of the artifact; all of them must
            stay until `wandb sync` has uploaded them.
        offline: keep everything on this machine, and do not contact wandb.
        language_model_weights: safetensors file with the weights of the randomised language model that the pair was
            trained on, under TransformerLens's names.

    Raises:
        ValueError: the project path or the name is malformed, or weights are given for a pair whose language model was
            not randomised.
        FileNotFoundError: the file of weights is missing.
        WandbError: wandb does not answer, refuses the key, or does not accept the artifact.
    """
    from jsae_core.pair_format import LANGUAGE_MODEL_FILE

    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name):
        raise ValueError(f"{name!r} is not an artifact name; expected 1 to 128 letters, digits and characters of '_.-'")
    if language_model_weights is not None:
        if not pair.config.randomize_llm_weights:
            raise ValueError(f"{language_model_weights}: the pair's config says its language model was not randomised")
        if not language_model_weights.is_file():
            raise FileNotFoundError(f"{language_model_weights} is missing; expected the language model's weights")
    Path(folder).mkdir(parents=True, exist_ok=True)
    new_run = logged_run(project_path, name, "publish", pair.config.to_artifact(), folder, offline)
    with tempfile.TemporaryDirectory(dir=folder) as directory, new_run as run:
        pair.save(directory)
        files = {path.name: path for path in Path(directory).iterdir()}
        if language_model_weights is not None:
            files[LANGUAGE_MODEL_FILE] = language_model_weights
        with explained(f"publication of the artifact {name} in {project_path}"):
            return _logged(run, files, project_path, name, offline)


def _logged(run: wandb.Run, files: dict[str, Path], project_path: str, name: str, offline: bool) -> PublishedPair:
    import wandb

    artifact = wandb.Artifact(name, type="model")
    for file_name, path in files.items():
        artifact.add_file(str(path), name=file_name)
    run.log_artifact(artifact)
    if offline:
        return PublishedPair(run.id, f"{project_path}/{name}", Path(run.dir).parent, None)
    artifact.wait()
    return PublishedPair(run.id, f"{project_path}/{name}:{artifact.version}", None, run.url)


def _request_artifact(path: str, folder: str | Path) -> wandb.Artifact:
    match = ARTIFACT_PATH.fullmatch(path)
    if not match:
        raise ValueError(f"{path!r} is not an artifact path; expected entity/project/name:alias, such as e/p/pair:v0")
    api = connect(match["entity"], folder)
    return unbroken(f"the artifact {path}", lambda: api.artifact(path))


def _found(artifact: wandb.Artifact) -> FoundArtifact:
    collection = artifact.name.partition(":")[0]
    path = f"{artifact.entity}/{artifact.project}/{collection}:{artifact.version}"
    if not re.fullmatch(r"[0-9a-f]{16,}", artifact.digest):  # it becomes the name of a directory
        raise WandbError(f"{path}: wandb says its digest is {artifact.digest!r}; expected hexadecimal digits")
    return FoundArtifact(path, artifact.version, artifact.digest, tuple(artifact.aliases), artifact.size)


def _is_intact(directory: Path, found: FoundArtifact) -> bool:
    """Whether the directory still holds exactly the artifact's files. They are read whole, since anyone may have
    changed them."""
    if not directory.is_dir():
        return False
    files = {path.relative_to(directory).as_posix(): path for path in _files_in(directory)}
    if sum(path.stat().st_size for path in files.values()) != found.size:
        return False
    digests = {name: _digests(path) for name, path in files.items()}  # by md5 and by xxh128
    return any(found.digest in _manifest_digests({name: pair[i] for name, pair in digests.items()}) for i in range(2))


def _manifest_digests(digests: Mapping[str, str]) -> tuple[str, str]:
    """The two digests that wandb may give an artifact with files of these digests: md5 and xxh128 of its manifest."""
    import xxhash

    lines = "".join(f"{name}:{digests[name]}\n" for name in sorted(digests))
    manifest = f"wandb-artifact-manifest-v1\n{lines}".encode()
    return hashlib.md5(manifest).hexdigest(), xxhash.xxh128_hexdigest(manifest)


def _files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


@dataclass(frozen=True)
class _File:
    """A file as wandb lists it. `url` is a signed address: it works without an API key, but only for some time."""

    name: str
    size: int
    digest: str
    url: str


def _fetch_into(staging: Path, artifact: wandb.Artifact, found: FoundArtifact) -> None:
    """Download every file of the artifact into `staging` and verify it; delete other files there."""
    files = _listed(artifact, found)
    _check_list(files, found)
    patience = Patience.of_client()
    for stray in set(_files_in(staging)) - {staging / name for name in files}:
        stray.unlink()
    for file in files.values():
        target = staging / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        what = f"{file.name} of {found.path}"

        def fresh_url(name: str = file.name) -> str:
            return _listed(artifact, found, [name])[name].url

        if size_of(target) >= file.size and file.digest not in _digests(target):  # changed since it was fetched
            target.unlink()
        download(what, file.url, file.size, target, fresh_url, patience)
        if file.digest not in _digests(target):
            target.unlink()
            raise WandbError(
                f"{what} arrived with other contents than its manifest says ({file.size} bytes, digest {file.digest}) "
                "and was deleted. Run it again; if this happens again, the file is damaged in wandb, or a proxy alters "
                "it"
            )


def _listed(artifact: wandb.Artifact, found: FoundArtifact, names: list[str] | None = None) -> dict[str, _File]:
    """The files of the artifact (or those with these names) by name, as wandb lists them; one request for every 50."""
    try:
        return unbroken(
            f"the files of {found.path}",
            lambda: {
                file.name: _File(file.name, file.size, file.digest or file.md5, file.direct_url)
                for file in artifact.files(names=names)
            },
        )
    except AttributeError:  # what the client raises on an empty answer
        raise WandbError(f"{found.path} is no longer in wandb; was it deleted just now?") from None


def _check_list(files: dict[str, _File], found: FoundArtifact) -> None:
    if not files:
        raise WandbError(f"{found.path} has no files; expected a pair's sae_weights.safetensors and cfg.json")
    # the artifact's digest follows from its manifest, so a list that gives this digest agrees with the manifest
    if found.digest not in _manifest_digests({name: file.digest for name, file in files.items()}):
        raise WandbError(
            f"{found.path}: wandb's list of its {len(files)} files does not give its digest, {found.digest}, so the "
            "list is not the whole manifest. Run it again; if this happens again, look at the artifact's page in wandb"
        )
    for file in files.values():
        if not _is_below_a_folder(file.name):
            raise WandbError(
                f"{found.path} holds a file {file.name!r}, which would lie outside of its directory, or elsewhere than "
                "its name suggests"
            )
        if urlsplit(file.url).scheme not in ("http", "https"):
            raise WandbError(f"{found.path}: {file.name} is a reference to a file elsewhere, which cannot be fetched")


def _is_below_a_folder(name: str) -> bool:
    """Whether a file of this name stays below the folder that it is stored in, on any operating system."""
    parts = name.split("/")
    is_plain = name.isprintable() and "\\" not in name and not re.match(r"[A-Za-z]:", name)
    return is_plain and not any(part in ("", ".", "..") for part in parts)


def _digests(path: Path) -> tuple[str, str]:
    """A file's digests by md5 and xxh128, the two algorithms that a manifest may use, in base64 like these."""
    import xxhash

    hashers: list[Any] = [hashlib.md5(), xxhash.xxh128()]
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            for hasher in hashers:
                hasher.update(chunk)
    by_md5, by_xxh128 = (base64.b64encode(hasher.digest()).decode() for hasher in hashers)
    return by_md5, by_xxh128
