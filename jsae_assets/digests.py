"""Digests as metadata shows them, and of whole files. Not here: files that carry a digest of themselves
(`jsae_core/sealed_files.py`)."""

from __future__ import annotations

import xxhash

SOURCE_DIGEST = "source_digest"  # the metadata with the digest of what a pair or a text was made from


def in_groups(digest: str) -> str:
    """Return a digest as metadata shows it: in groups, so that it does not widen the table that it stands in."""
    before, colon, digits = digest.rpartition(":")
    groups = [digits[start : start + 8] for start in range(0, len(digits), 8)]
    return " ".join(filter(None, [before + colon, *groups]))


def out_of_groups(shown: str) -> str:
    """Return the digest that metadata shows, in groups or not."""
    return "".join(shown.split())


def digest_of(content: bytes) -> str:
    """Return the xxh3_128 of a whole file's content, for files that carry no digest themselves."""
    return xxhash.xxh3_128(content).hexdigest()
