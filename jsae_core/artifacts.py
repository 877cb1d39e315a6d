"""Where a pretrained pair comes from, and goes to: a directory in the artifact format, or an artifact in wandb.

Here: finding the files, saying what they are, fetching them from wandb whole and verified, publishing a pair there.
Not here: what is inside them (`sae_pair.py`), how wandb is reached (`wandb_client.py`).

Downloads do not go through the wandb client: it has no time-out, begins a cut file anew, keeps a corrupt one in its
cache for good, and does not check what it downloads. It is asked for addresses and digests, and the rest is done here.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jsae_core.locks import holding
from jsae_core.pace import in_bytes
from jsae_core.wandb_client import (
    ARTIFACT_PATH,
    WandbError,
    connect,
    explained,
    logged_run,
    unbroken,
)

if TYPE_CHECKING:
    import requests
    import wandb

    from jsae_core.pair_format import PairConfig
    from jsae_core.sae_pair import SAEPair

CHUNK = 1 << 16  # what is lost of a cut download is less than this
LONGEST_WAIT = 300.0  # seconds that a server may ask to wait for


def directory_digest(directory: str | Path) -> str:
    """sha256 over names and contents of a directory's files, in hexadecimal: which artifact this is, wherever it lies.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    root = Path(directory)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no directory; expected a pair's sae_weights.safetensors and cfg.json")
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
    """What wandb says of an artifact. `path` names this very version, by whatever alias it was asked for; `digest` is
    wandb's own, over names and contents; `size` is that of all its files, in bytes."""

    path: str
    version: str
    digest: str
    aliases: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class FetchedArtifact:
    """An artifact's files, whole and verified, in a directory that holds nothing else."""

    directory: Path
    path: str
    version: str
    digest: str


@dataclass(frozen=True)
class PublishedPair:
    """A run and its artifact. Offline, `directory` is what `wandb sync` uploads; online, `url` is the run's page."""

    run_id: str
    artifact: str
    directory: Path | None
    url: str | None


def find_wandb_artifact(path: str, folder: str | Path) -> FoundArtifact:
    """Which version of an artifact a path names now. Downloads nothing, so that a moved alias is cheap to notice.

    Args:
        path: entity/project/name:alias, the alias being a version (v0) or a name (latest).
        folder: where the wandb client keeps its own files.

    Raises:
        ValueError: the path is not of this form.
        WandbError: wandb does not answer, refuses the key, or has no such artifact.
    """
    return _found(_asked(path, folder))


def fetch_wandb_artifact(path: str, folder: str | Path, say: Callable[[str], None] = print) -> FetchedArtifact:
    """The files of an artifact, from `folder/<digest>/`, where they are downloaded to unless they are there already.

    Each file is checked against the size and the digest in the artifact's manifest, whether it was downloaded now or
    before. Until all are right, they are in `folder/<digest>.part/`; what an interrupted fetch leaves there, the next
    one continues. Two fetches of the same artifact at the same time wait for each other.

    How patient it is follows the environment, in the client's own names: WANDB__FILE_TRANSFER_RETRY_MAX (6 tries in
    a row that bring nothing, after the first), WANDB__FILE_TRANSFER_RETRY_WAIT_MIN_SECONDS (1) and _MAX_SECONDS (30),
    WANDB_FILE_PUSHER_TIMEOUT (60 seconds without a byte).

    Args:
        path, folder: as for `find_wandb_artifact`.
        say: is told what is downloaded and how large it is, before that begins; and which process it waits for, where
            another one fetches the same artifact.

    Raises:
        ValueError, WandbError: as `find_wandb_artifact` does; also if files do not come, or are not what the manifest
            says.
        OSError: the files cannot be stored.
    """
    artifact = _asked(path, folder)
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
        why = f"{error.strerror or error}; {found.path} could not be stored, what has arrived of it is kept"
        raise OSError(error.errno, why, str(error.filename or staging)) from error
    return FetchedArtifact(directory, found.path, found.version, found.digest)


def artifact_name(config: PairConfig) -> str:
    """The name that the paper's pairs have in wandb: sae_pair_{model}[-randomized]_layer{L}_{d_sae}_J{coef}_k{k}, with
    the training objective after the coefficient where it is not the mean of |J|."""
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
        name: the artifact's; `artifact_name` makes it.
        folder: where the wandb client keeps its files. Offline, a copy of the artifact's is among them, and both must
            stay until `wandb sync` has uploaded them.
        offline: keep everything on this machine, and ask nothing of wandb.
        language_model_weights: of the randomised language model that the pair was trained on, a safetensors file in
            TransformerLens's names.

    Raises:
        ValueError: the project path or the name is none, or weights come with a pair whose language model was not
            randomised.
        FileNotFoundError: there is no file of weights.
        WandbError: wandb does not answer, refuses the key, or does not take the artifact.
    """
    from jsae_core.pair_format import LANGUAGE_MODEL_FILE

    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name):
        raise ValueError(f"{name!r} is no artifact name; expected 1 to 128 letters, digits and characters of '_.-'")
    if language_model_weights is not None:
        if not pair.config.randomize_llm_weights:
            raise ValueError(f"{language_model_weights}: the pair's config says its language model was not randomised")
        if not language_model_weights.is_file():
            raise FileNotFoundError(f"{language_model_weights} is missing; expected the language model's weights")
    Path(folder).mkdir(parents=True, exist_ok=True)
    begun = logged_run(project_path, name, "publish", pair.config.to_artifact(), folder, offline)
    with tempfile.TemporaryDirectory(dir=folder) as directory, begun as run:
        pair.save(directory)
        files = {path.name: path for path in Path(directory).iterdir()}
        if language_model_weights is not None:
            files[LANGUAGE_MODEL_FILE] = language_model_weights
        with explained(f"room for the artifact {name} in {project_path}"):
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


def _asked(path: str, folder: str | Path) -> wandb.Artifact:
    match = ARTIFACT_PATH.fullmatch(path)
    if not match:
        raise ValueError(f"{path!r} is no artifact path; expected entity/project/name:alias, such as e/p/pair:v0")
    api = connect(match["entity"], folder)
    return unbroken(f"the artifact {path}", lambda: api.artifact(path))


def _found(artifact: wandb.Artifact) -> FoundArtifact:
    collection = artifact.name.partition(":")[0]
    path = f"{artifact.entity}/{artifact.project}/{collection}:{artifact.version}"
    if not re.fullmatch(r"[0-9a-f]{16,}", artifact.digest):  # it becomes the name of a directory
        raise WandbError(f"{path}: wandb says its digest is {artifact.digest!r}; expected hexadecimal digits")
    return FoundArtifact(path, artifact.version, artifact.digest, tuple(artifact.aliases), artifact.size)


def _is_intact(directory: Path, found: FoundArtifact) -> bool:
    """Whether the files there are still those of the artifact: read whole, since anyone may have written to them."""
    if not directory.is_dir():
        return False
    files = {path.relative_to(directory).as_posix(): path for path in _files_in(directory)}
    if sum(path.stat().st_size for path in files.values()) != found.size:
        return False
    digests = {name: _digests(path) for name, path in files.items()}
    return any(found.digest in _manifest_digests({name: by[i] for name, by in digests.items()}) for i in range(2))


def _manifest_digests(digests: Mapping[str, str]) -> tuple[str, str]:
    """What wandb's digest of an artifact may be, by the digest of each of its files: md5 and xxh128 of these lines."""
    import xxhash

    lines = "".join(f"{name}:{digests[name]}\n" for name in sorted(digests))
    manifest = f"wandb-artifact-manifest-v1\n{lines}".encode()
    return hashlib.md5(manifest).hexdigest(), xxhash.xxh128_hexdigest(manifest)


def _files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


@dataclass(frozen=True)
class _File:
    """A file as wandb lists it. `url` is signed: who has it needs no key, and it holds for some time only."""

    name: str
    size: int
    digest: str
    url: str


def _fetch_into(staging: Path, artifact: wandb.Artifact, found: FoundArtifact) -> None:
    """Every file of the artifact, verified, and nothing else."""
    files = _listed(artifact, found)
    _check_list(files, found)
    patience = _Patience.of_client()
    for stray in set(_files_in(staging)) - {staging / name for name in files}:
        stray.unlink()
    for file in files.values():
        target = staging / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        what = f"{file.name} of {found.path}"

        def fresh_url(name: str = file.name) -> str:
            return _listed(artifact, found, [name])[name].url

        if _size(target) >= file.size and file.digest not in _digests(target):  # overwritten since it was fetched
            target.unlink()
        _download(what, file, target, fresh_url, patience)
        if file.digest not in _digests(target):
            target.unlink()
            raise WandbError(
                f"{what} arrived with other contents than its manifest says ({file.size} bytes, digest {file.digest}) "
                "and was deleted. Run it again; if it goes on, the file is damaged in wandb, or a proxy alters it"
            )


def _listed(artifact: wandb.Artifact, found: FoundArtifact, names: list[str] | None = None) -> dict[str, _File]:
    """One request for every 50 files."""
    try:
        return unbroken(
            f"the files of {found.path}",
            lambda: {
                file.name: _File(file.name, file.size, file.digest or file.md5, file.direct_url)
                for file in artifact.files(names=names)
            },
        )
    except AttributeError:  # the client's, of an empty answer
        raise WandbError(f"{found.path} is no longer in wandb; was it deleted just now?") from None


def _check_list(files: dict[str, _File], found: FoundArtifact) -> None:
    if not files:
        raise WandbError(f"{found.path} has no files; expected a pair's sae_weights.safetensors and cfg.json")
    # a list that gives the artifact's digest says what the manifest says
    if found.digest not in _manifest_digests({name: file.digest for name, file in files.items()}):
        raise WandbError(
            f"{found.path}: wandb's list of its {len(files)} files does not give its digest, {found.digest}, so it is "
            "not this artifact's whole manifest. Run it again; if it goes on, look at the artifact's page in wandb"
        )
    for file in files.values():
        if not _is_below_a_folder(file.name):
            raise WandbError(
                f"{found.path} holds a file {file.name!r}, which would lie outside of its directory, or not where it "
                "seems to"
            )
        if urlsplit(file.url).scheme not in ("http", "https"):
            raise WandbError(f"{found.path}: {file.name} is a reference to a file elsewhere, which cannot be fetched")


def _is_below_a_folder(name: str) -> bool:
    """Whether a file of this name lies below the folder that it is put in, on any system."""
    parts = name.split("/")
    is_plain = name.isprintable() and "\\" not in name and not re.match(r"[A-Za-z]:", name)
    return is_plain and not any(part in ("", ".", "..") for part in parts)


def _digests(path: Path) -> tuple[str, str]:
    """A file's digests by md5 and xxh128, the algorithms that a manifest may be written with, as it writes them."""
    import xxhash

    hashers: list[Any] = [hashlib.md5(), xxhash.xxh128()]
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            for hasher in hashers:
                hasher.update(chunk)
    by_md5, by_xxh128 = (base64.b64encode(hasher.digest()).decode() for hasher in hashers)
    return by_md5, by_xxh128


@dataclass(frozen=True)
class _Patience:
    """When a download is given up.

    Attributes:
        retries: tries in a row, after the first, that may bring nothing.
        shortest, longest: seconds between tries.
        timeout: seconds without a byte that end a try.
    """

    retries: int
    shortest: float
    longest: float
    timeout: float

    @classmethod
    def of_client(cls) -> _Patience:
        import wandb

        settings = wandb.setup().settings
        given = (
            (settings.x_file_transfer_retry_max, 6),
            (settings.x_file_transfer_retry_wait_min_seconds, 1.0),
            (settings.x_file_transfer_retry_wait_max_seconds, 30.0),
            (settings.x_file_transfer_timeout_seconds, 60.0),
        )
        values: list[Any] = [default if value is None else value for value, default in given]
        return cls(*values)


@dataclass(frozen=True)
class _Trouble:
    """Why no more of a file came.

    Attributes:
        refused: its address is no longer accepted; a new one may be.
        final: trying again would change nothing.
        wait: seconds before the next try.
    """

    why: str
    refused: bool = False
    final: bool = False
    wait: float = 0.0


def _download(what: str, file: _File, target: Path, fresh_url: Callable[[], str], patience: _Patience) -> None:
    """Until the file has its size, going on from what is there of it."""
    url, most, tries_without_progress, refused = file.url, _size(target), 0, False
    while _size(target) < file.size:
        trouble = _continue(url, target, patience.timeout)
        have = _size(target)
        if have >= file.size:
            return
        if have > most:
            most, tries_without_progress, refused = have, 0, False
        else:
            tries_without_progress += 1
        if trouble.final or tries_without_progress > patience.retries or (refused and trouble.refused):
            raise WandbError(
                f"{what} could not be downloaded: {trouble.why}. {max(have, 0)} of its {file.size} bytes have "
                "arrived and are kept. Run it again later: it goes on from there"
            )
        if trouble.refused:
            refused, url = True, fresh_url()
        else:
            longer = patience.shortest * 2 ** max(tries_without_progress - 1, 0)
            time.sleep(max(trouble.wait, min(longer, patience.longest)))


def _size(path: Path) -> int:
    """-1 if there is no such file, so that an empty one is made, too."""
    return path.stat().st_size if path.exists() else -1


def _continue(url: str, target: Path, timeout: float) -> _Trouble:
    """Add to a file what comes from an address in one go, and say why it ended if that was too early."""
    import requests

    have = max(_size(target), 0)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    silence = _Trouble(f"nothing came for {timeout:g} seconds")
    try:
        # a signed address needs no key, and an authorisation that does nothing keeps requests from taking netrc's
        with requests.get(url, headers=headers, stream=True, timeout=timeout, auth=lambda asked: asked) as answer:
            if answer.status_code not in (200, 206):
                return _refusal(answer)
            with target.open("ab" if answer.status_code == 206 else "wb") as out:
                for chunk in answer.iter_content(CHUNK):
                    out.write(chunk)
    except requests.Timeout:
        return silence
    except requests.RequestException as error:
        # its words hold the signed address, so they are not quoted
        broken = _Trouble(f"there was no connection, or it was cut ({type(error).__name__})")
        return silence if _ran_out_of_time(error) else broken
    return _Trouble("the answer ended early")


def _ran_out_of_time(error: BaseException | None) -> bool:
    """Whether the network's own TimeoutError is what an error was made of: requests calls it a ConnectionError where it
    comes in the middle of an answer."""
    while error is not None and not isinstance(error, TimeoutError):
        error = error.__cause__ or error.__context__
    return error is not None


def _refusal(answer: requests.Response) -> _Trouble:
    status = answer.status_code
    if status in (400, 401, 403):  # what stores answer when a signed address has run out
        return _Trouble(f"the store refuses the address that wandb gave for it (HTTP {status})", refused=True)
    if status in (408, 429) or status >= 500:
        return _Trouble(f"the store answers HTTP {status}", wait=_wait_asked_for(answer.headers.get("Retry-After", "")))
    return _Trouble(f"the store answers HTTP {status}", final=True)


def _wait_asked_for(retry_after: str) -> float:
    """Seconds, from a number of them or from a date."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT)
