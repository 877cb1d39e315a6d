"""Pairs in the artifact format on the Hugging Face hub: which pair a revision names, and fetching its files, verified.

Here: requests to the hub, and the folder of fetched files. Not here: what is inside the files (`pair_format.py`), the
client's errors in plain words (`hub_errors.py`), wandb (`artifacts.py`).

`huggingface_hub` finds and downloads files. Of a downloaded file it checks the size alone, so digests are checked here.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jsae_core.artifacts import FetchedArtifact, FoundArtifact
from jsae_core.hub_errors import in_plain_words, silent
from jsae_core.locks import holding
from jsae_core.memory import in_bytes

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

LONGEST_WAIT = 20.0  # seconds for an answer; without it some calls of the client would wait for ever


class HubError(RuntimeError):
    """The Hugging Face hub did not give what was requested. The message says what, why, and what to do."""


def find_hub_pair(repository: str, revision: str = "main", subfolder: str = "") -> FoundArtifact:
    """Find the pair that a revision names now. Nothing is downloaded, so noticing a moved branch is cheap.

    Its `version` is the commit. Its `digest` is the sha256 of the names and digests of the pair's own files, so a
    commit that changes only other files does not change it.

    Args:
        repository: organisation/name.
        revision: a branch, a tag, or a commit.
        subfolder: the repository's folder with the pair's files; "" for its root.

    Raises:
        HubError: the hub does not answer or refuses the token, there is no such repository or revision, or a file of
            the artifact format is missing there.
    """
    return _found(repository, revision, subfolder)[0]


def fetch_hub_pair(
    repository: str, revision: str, subfolder: str, folder: str | Path, say: Callable[[str], None] = print
) -> FetchedArtifact:
    """Fetch the files of a pair into `folder/<digest>/`, unless they are there already.

    Each file is compared with the digest that the hub lists, whether it was downloaded now or before. Downloads go to
    `folder/<digest>.part/` until all files are right. Two fetches of the same pair wait for each other.

    The client's own variables HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT say how long it waits for an answer (10
    seconds unless set).

    Args:
        repository, revision, subfolder: as for `find_hub_pair`.
        say: receives a message on what is downloaded, from where and how large it is, before that begins; and on the
            process that it waits for, if another one fetches the same pair.

    Raises:
        HubError: as `find_hub_pair` does; also if a file does not come, or arrives with other contents.
        OSError: the files cannot be stored.
    """
    found, files = _found(repository, revision, subfolder)
    directory, staging = (Path(folder).absolute() / f"{found.digest}{suffix}" for suffix in ("", ".part"))
    directory.parent.mkdir(parents=True, exist_ok=True)

    def is_intact() -> bool:
        return all(_is_intact(directory / name, file) for name, file in files.items())

    with holding(directory.with_suffix(".lock"), f"fetches {found.path}", say):
        if directory.exists() and not is_intact():
            shutil.rmtree(directory)
        if not directory.exists():
            shutil.rmtree(staging, ignore_errors=True)
            say(f"Fetching {found.path} from {_endpoint()}: {in_bytes(found.size)}")
            _download(repository, found, files, staging)
            (staging / subfolder).rename(directory)
            shutil.rmtree(staging, ignore_errors=True)
    return FetchedArtifact(directory, found.path, found.version, found.digest, is_intact)


def _found(repository: str, revision: str, subfolder: str) -> tuple[FoundArtifact, dict[str, RepoSibling]]:
    """The pair that the hub lists, and its files by their names in its folder. One request."""
    from huggingface_hub import HfApi

    from jsae_core.pair_format import CONFIG_FILE, LANGUAGE_MODEL_FILE, WEIGHTS_FILE

    place = "/".join(part for part in (f"{repository}@{revision}", subfolder) if part)
    with _explained(place):
        info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=LONGEST_WAIT)
    listed = {file.rfilename: file for file in info.siblings or ()}
    prefix = f"{subfolder}/" if subfolder else ""
    names = (WEIGHTS_FILE, CONFIG_FILE, LANGUAGE_MODEL_FILE)
    files = {name: listed[prefix + name] for name in names if prefix + name in listed}
    missing = [name for name in (WEIGHTS_FILE, CONFIG_FILE) if name not in files]
    if missing:
        raise HubError(
            f"{place} holds no {' and no '.join(missing)}; expected a pair in the artifact format, {WEIGHTS_FILE} and "
            f"{CONFIG_FILE}. Check the repository's folders, and name the pair's as subfolder"
        )
    lines = "".join(f"{name}\0{_listed_digest(files[name])}\n" for name in sorted(files))
    path = "/".join(part for part in (f"{repository}@{info.sha}", subfolder) if part)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    size = sum(file.size for file in files.values())
    return FoundArtifact(path, info.sha, digest, (revision,), size), files


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _download(repository: str, found: FoundArtifact, files: dict[str, RepoSibling], staging: Path) -> None:
    from huggingface_hub import hf_hub_download

    with _explained(found.path):
        for file in files.values():
            hf_hub_download(repository, file.rfilename, revision=found.version, local_dir=staging)
    shutil.rmtree(staging / ".cache", ignore_errors=True)  # the client's own records
    for name, file in files.items():
        if not _is_intact(staging / file.rfilename, file):
            shutil.rmtree(staging, ignore_errors=True)
            raise HubError(
                f"{name} of {found.path} arrived with other contents than the hub lists ({file.size} bytes, digest "
                f"{_listed_digest(file)}) and was deleted. Run it again; if it goes on, a proxy or mirror alters it"
            )


def _listed_digest(file: RepoSibling) -> str:
    """Large files are listed with their sha256, others with git's own digest of a file."""
    return file.lfs.sha256 if file.lfs else file.blob_id


def _is_intact(path: Path, file: RepoSibling) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    if file.lfs:
        with path.open("rb") as contents:
            return hashlib.file_digest(contents, "sha256").hexdigest() == file.lfs.sha256
    whole = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(whole) + whole).hexdigest() == file.blob_id


@contextmanager
def _explained(place: str) -> Iterator[None]:
    """Turn any error of the client into a `HubError`. If the hub did not answer just now, it is not asked."""
    if words := silent(place):
        raise HubError(words)
    try:
        yield
    except Exception as error:  # the client raises its own, its HTTP library's, OSError and ValueError alike
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # an error of this machine, such as a full disk or a missing permission
        # from None, because errors are stored with their causes, and the client's may quote a signed address
        raise HubError(in_plain_words(place, error)) from None
