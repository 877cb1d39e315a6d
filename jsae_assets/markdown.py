"""Text in what the UI takes for Markdown: descriptions, and metadata with pictures or code in it.

Here: how text that somebody else chose stays text there. Not here: what is said (the assets say that).
"""

from __future__ import annotations

import re

ACTIVE = re.compile(r"[\\`*_\[\]<&~|]")  # what begins something else than text within a line


def as_text(text: str) -> str:
    """The text in one line, as it is: no character of it is taken for Markdown or HTML."""
    return ACTIVE.sub(r"\\\g<0>", " ".join(text.split()))


def as_code(text: str) -> str:
    """A block that shows the text as it is: its fence is longer than any the text could close it with."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"
