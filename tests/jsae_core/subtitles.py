"""What stands below a figure's title: the answer to its question, on lines of its own, then what it was made from."""

import html
import re


def details(figure) -> str:
    """What it was made from and how to read it."""
    text = figure.layout.title.subtitle.text.replace("<br>", " ").replace("\xa0", " ")
    answer = html.escape(figure.layout.meta["answer"], quote=False)
    assert answer.endswith(".") and text.startswith(answer)
    return re.sub(r"^ ", "", text.removeprefix(answer))


def answer(figure) -> str:
    return figure.layout.meta["answer"]
