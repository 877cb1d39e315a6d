"""Escaping of text for places where the UI renders Markdown: descriptions, and metadata with pictures or code.

Here: how text from catalogs and documents stays plain text. Not here: the descriptions themselves (`assets/`).
"""

from __future__ import annotations

import re

SPECIAL = re.compile(r"[\\`*_\[\]<&~|]")  # characters that can begin formatting within a line


def as_text(text: str) -> str:
    """Return the text in one line, escaped so that it is shown as it is, not rendered as Markdown or HTML."""
    return SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))


def as_code(text: str) -> str:
    """Return a Markdown code block with the text. Its fence is longer than any run of backticks in the text, so that
    the text cannot end the block."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"
