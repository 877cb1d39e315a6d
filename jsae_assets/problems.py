"""What is wrong with a catalog's entries, in plain sentences.

Here: the words for what pydantic finds, and truth values, which no setting takes. Not here: the rules themselves
(`catalog.py`, `sections.py`, `sources.py`), which raise ValueError with sentences of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

LONGEST_QUOTE = 100  # characters of what was given
SAID = "said"  # the type of an error whose message is such a sentence already
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
SETTINGS, WHOLE, NUMBER = "settings, each as `name: value`", "a whole number", "a number"
UNROUNDED = "a whole number, in digits without a point or quotes (YAML reads 3.000 as 3)"
EXPECTED = {
    "dict_type": SETTINGS,
    "model_type": SETTINGS,
    "dataclass_type": SETTINGS,
    "list_type": "a list",
    "string_type": "text (in quotes, if YAML would take it for something else)",
    "int_type": WHOLE,
    "int_parsing": WHOLE,
    "int_from_float": WHOLE,
    "float_type": NUMBER,
    "float_parsing": NUMBER,
    "finite_number": "a finite number",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length}",
    "string_too_short": "at least {min_length} character",
    "string_too_long": "at most {max_length} characters",
    "literal_error": "{expected}",
}


def explained(
    settings: Iterable[str], inner: Mapping[str, Iterable[str]] | None = None
) -> Callable[[Any, Callable], Any]:
    """A wrap validator of an entry that has these settings: what is wrong in it is said in sentences.

    Args:
        inner: the settings of those of them that are entries themselves.
    """

    def _settings_at(place: tuple[int | str, ...]) -> Iterable[str]:
        return (inner or {}).get(str(place[0]), settings) if len(place) > 1 else settings

    def validated(entry: Any, handler: Callable) -> Any:
        try:
            made = handler(entry)
        except ValidationError as error:
            said = [
                InitErrorDetails(
                    type=PydanticCustomError(SAID, sentence(item, _settings_at(item["loc"]))),
                    loc=item["loc"],
                    input=item["input"],
                )
                for item in error.errors(include_url=False)
            ]
            raise ValidationError.from_exception_data(error.title, said) from None
        if fractions := [
            InitErrorDetails(
                type=PydanticCustomError(SAID, f"{_shown(given)}, expected {UNROUNDED}"), loc=place, input=given
            )
            for place, given in _made_whole(entry, made)
        ]:
            raise ValidationError.from_exception_data(type(made).__name__, fractions)
        return made

    return validated


def _made_whole(
    entry: Any, made: Any, place: tuple[int | str, ...] = ()
) -> Iterator[tuple[tuple[int | str, ...], Any]]:
    """Where a fraction, or text, was given for what pydantic made a whole number of, and what was given."""
    if isinstance(entry, Mapping):
        for name, given in entry.items():
            yield from _made_whole(given, getattr(made, str(name), None), (*place, name))
    elif isinstance(entry, list) and isinstance(made, list):
        for number, (given, one) in enumerate(zip(entry, made, strict=True)):
            yield from _made_whole(given, one, (*place, number))
    elif isinstance(entry, float | str) and isinstance(made, int):
        yield place, entry


def sentence(item: ErrorDetails, settings: Iterable[str] = ()) -> str:
    """What pydantic found at one place, of an entry that has these settings."""
    kind, given, limits = item["type"], item["input"], item.get("ctx", {})
    if kind in UNKNOWN:
        return f"there is no such setting; there are: {', '.join(settings)}"
    if kind == "missing":
        return "is missing, but required"
    if kind not in EXPECTED:
        return item["msg"].removeprefix("Value error, ")
    example = f", such as [{given}]" if kind == "list_type" and isinstance(given, (str, int, float)) else ""
    return f"{_shown(given)}, expected {EXPECTED[kind].format_map(limits)}{example}"


def _shown(given: Any) -> str:
    if given is None or given == "" or given == [] or given == {}:
        return "is empty"
    if isinstance(given, dict):
        return f"holds settings ({', '.join(map(str, given))})"
    if isinstance(given, str) and len(given) > LONGEST_QUOTE:
        return f"begins with {given[:LONGEST_QUOTE]!r} and has {len(given):,} characters"
    return "is a list" if isinstance(given, list) else f"is {given!r}"


def truth_values(entry: Any, place: str = "", seen: set[int] | None = None) -> Iterator[str]:
    """A sentence for each truth value in a catalog as YAML reads it. No setting is one, but as a number `true` would
    count as 1.

    What stands at several places by an alias of YAML is looked at once: it may hold itself, or be more than could ever
    be gone through.
    """
    seen = set() if seen is None else seen
    if id(entry) in seen:
        return
    if isinstance(entry, dict | list):
        seen.add(id(entry))
    if isinstance(entry, dict):
        for name, value in entry.items():
            inner = f"{place}.{name}".lstrip(".")
            yield from _truth_value(name, f"{inner}: the name")
            yield from truth_values(value, inner, seen)
    elif isinstance(entry, list):
        for number, value in enumerate(entry):
            yield from truth_values(value, f"{place}[{number}]", seen)
    else:
        yield from _truth_value(entry, f"{place}:")


def _truth_value(value: Any, subject: str) -> Iterator[str]:
    if isinstance(value, bool):
        yield (
            f"{subject} is {str(value).lower()}, a truth value, which nothing in a catalog is. YAML reads yes, no, on "
            "and off as truth values too: write text in quotes"
        )
