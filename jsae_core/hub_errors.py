"""Errors of the Hugging Face hub's client in plain words: why a request failed, and what to do.

Here: the meaning of the client's errors. Not here: requests to the hub (`hub.py`, `model_files.py`, `text.py`).
"""

from __future__ import annotations

import re

from jsae_core import silence

QUERIES = re.compile(r"\?[^\s\"'?]*=[^\s\"']*")
LONGEST_QUOTE = 300  # characters of the client's own message in an error
# classes of errors, by name because httpx and requests each have their own, that mean that nobody answered
NO_ANSWER = {"ConnectError", "ConnectionError", "Timeout", "TimeoutError", "TimeoutException"}
CHECK_NETWORK = "Check the network, proxies and HF_ENDPOINT"
ELSEWHERE = "or download it elsewhere and name its directory instead"


def silent(place: str) -> str | None:
    """A message like that of `in_plain_words` if the hub is not to be asked for `place`, because it did not answer just
    now; else None."""
    from huggingface_hub import constants

    ago = silence.since(constants.ENDPOINT)
    return ago and f"{constants.ENDPOINT} did not give {place}: {ago}. {CHECK_NETWORK}; {ELSEWHERE}"


def in_plain_words(place: str, error: Exception) -> str:
    """A message that says what the hub did not give, why, what to do, and quotes the client without the query of a
    signed address. That the hub did not answer is remembered (`silence.py`)."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the reason why the hub could not be reached, which is what the user can mend
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        why, advice = "its owner asks for an agreement first", "Accept it on the repository's page, and set HF_TOKEN"
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = "there is no such repository, or it is private"
        advice = "Check its name; for a private one set HF_TOKEN, or run `hf auth login`"
    elif isinstance(error, errors.RevisionNotFoundError):
        why, advice = "there is no such revision", "Name a branch, a tag or a whole commit of the repository"
    elif isinstance(error, errors.HFValidationError):
        why, advice = "the hub knows no such names", "Expected organisation/name, as in the repository's address"
    elif constants.HF_HUB_OFFLINE:
        why, advice = "the environment's HF_HUB_OFFLINE forbids to ask", "Unset it"
    elif status in (401, 403):
        why, advice = f"the hub refuses the token (HTTP {status})", "Set HF_TOKEN, or run `hf auth login` again"
    elif status is not None:
        why, advice = f"the hub answers HTTP {status}", "Run it again later (https://status.huggingface.co may say why)"
    else:
        why, advice = "the hub did not answer, or not to the end", CHECK_NETWORK
        if NO_ANSWER & {kind.__name__ for kind in type(error).__mro__}:
            silence.remember(constants.ENDPOINT)
    words = " ".join(QUERIES.sub("", f"{type(error).__name__}: {error}").split())
    words = words if len(words) <= LONGEST_QUOTE else f"{words[:LONGEST_QUOTE]}..."
    return f"{constants.ENDPOINT} did not give {place}: {why}. {advice}; {ELSEWHERE}. The client's words: {words}"
