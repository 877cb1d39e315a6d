"""What the documentation holds, for its tests: pages, blocks of code, commands and links.

Not here: what is asked of them (`jsae_assets/test_documentation.py`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES.append(ROOT / "jsae_core" / "embedded_model" / "README.md")
COMMAND = re.compile(r"(\S+/)?(jsae|make|pip|python3?) ")  # at the beginning of code within a line


@dataclass(frozen=True)
class Block:
    """Some code, where it stands, and in which language: an indented block is shell, a fence says, or is mere text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def _tokens(page: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> list[Block]:
    return [
        Block(
            page, token.map[0] + 1, "sh" if token.type == "code_block" else token.info.strip() or "text", token.content
        )
        for token in _tokens(page)
        if token.type in ("fence", "code_block") and token.map
    ]


def commands(page: Path) -> Iterator[Block]:
    """Those of shell blocks, a line each, and those that are named in the text."""
    for block in blocks(page):
        if block.language == "sh":
            for number, line in enumerate(block.text.replace("\\\n", " ").splitlines()):
                if words(line):
                    yield Block(page, block.line + number, "sh", line)
    for token in _tokens(page):
        for child in token.children or ():
            if child.type == "code_inline" and COMMAND.match(child.content):
                yield Block(page, token.map[0] + 1 if token.map else 0, "sh", child.content)


def words(command: str) -> list[str]:
    """As the shell would split it, without comments."""
    return shlex.split(command, comments=True)


def links(page: Path) -> set[str]:
    """The targets of links and pictures, those of HTML among them, without those elsewhere on the web."""
    found = set()
    for token in _tokens(page):
        for child in [token, *(token.children or ())]:
            found |= {str(child.attrs[name]) for name in ("href", "src") if name in child.attrs}
            if child.type.startswith("html"):
                found |= set(re.findall(r'(?:href|src)="([^"]+)"', child.content))
    return {target for target in found if "://" not in target}


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them: small letters, no punctuation, a hyphen for each space."""
    tokens = _tokens(page)
    titles = [after.content for token, after in zip(tokens, tokens[1:], strict=False) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
