"""Error messages about a catalog's entries, as plain sentences.

Here: the wording of pydantic's errors, and the search for truth values, which no setting accepts. Not here: the rules
themselves (`catalog.py`, `sections.py`, `sources.py`), which raise ValueError with sentences of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

LONGEST_QUOTE = 100  # characters of a value that a message quotes
EXPLAINED = "explained"  # the type of an error whose message is already a plain sentence
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
    """Return a pydantic wrap validator for an entry with these settings, which words its errors as plain sentences.

    Args:
        settings: the names of the entry's settings.
        inner: for each setting that is itself an entry, the names of that entry's settings.
    """

    def _settings_at(place: tuple[int | str, ...]) -> Iterable[str]:
        return (inner or {}).get(str(place[0]), settings) if len(place) > 1 else settings

    def validated(entry: Any, handler: Callable) -> Any:
        try:
            validated_entry = handler(entry)
        except ValidationError as error:
            errors = [
                InitErrorDetails(
                    type=PydanticCustomError(EXPLAINED, sentence(item, _settings_at(item["loc"]))),
                    loc=item["loc"],
                    input=item["input"],
                )
                for item in error.errors(include_url=False)
            ]
            raise ValidationError.from_exception_data(error.title, errors) from None
        if errors := [
            InitErrorDetails(
                type=PydanticCustomError(EXPLAINED, f"{_shown(given)}, expected {UNROUNDED}"), loc=place, input=given
            )
            for place, given in _converted_to_integers(entry, validated_entry)
        ]:
            raise ValidationError.from_exception_data(type(validated_entry).__name__, errors)
        return validated_entry

    return validated


def _converted_to_integers(
    entry: Any, validated_entry: Any, place: tuple[int | str, ...] = ()
) -> Iterator[tuple[tuple[int | str, ...], Any]]:
    """Yield the place and the value of each fraction or text that pydantic converted to a whole number."""
    if isinstance(entry, Mapping):
        for name, given in entry.items():
            yield from _converted_to_integers(given, getattr(validated_entry, str(name), None), (*place, name))
    elif isinstance(entry, list) and isinstance(validated_entry, list):
        for number, (given, value) in enumerate(zip(entry, validated_entry, strict=True)):
            yield from _converted_to_integers(given, value, (*place, number))
    elif isinstance(entry, float | str) and isinstance(validated_entry, int):
        yield place, entry


def sentence(item: ErrorDetails, settings: Iterable[str] = ()) -> str:
    """Return a sentence for one of pydantic's errors, in an entry that has these settings."""
    kind, given, limits = item["type"], item["input"], item.get("ctx", {})
    if kind in UNKNOWN:
        return f"there is no such setting; the settings are: {', '.join(settings)}"
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
    """Yield a sentence for each truth value in a catalog as read from YAML. No setting accepts one, but pydantic would
    take `true` for the number 1.

    Args:
        place: where the entry stands in the catalog.
        seen: the ids of containers that were searched already. An alias of YAML can make a container appear many times,
            even within itself, so each is searched once.
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
            f"{subject} is {str(value).lower()}, a truth value, but no setting of a catalog is one. YAML reads yes, "
            "no, on and off as truth values too: write text in quotes"
        )
