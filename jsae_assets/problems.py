"""Error messages about a catalog's entries, as plain sentences.

Here: the wording of pydantic's errors, and finding all that is wrong with an entry at once. Not here: the rules
themselves (`catalog.py`, `sections.py`, `sources.py`), which raise ValueError with sentences of their own.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from jsae_core.names import advice, nearest

LONGEST_QUOTE = 100  # characters of a value that a message quotes
EXPLAINED = "explained"  # the type of an error whose message is already a plain sentence
IN_PART = "in part"  # the key of an error's context under which stands what is known of the entry
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


@dataclass(frozen=True, repr=False)
class InPart:
    """What is known of an entry that is malformed: an object with those of its settings that are valid. To ask it for
    another one raises AttributeError."""

    entry: Any


def explained(
    types: Mapping[str, Any],
    in_part: Callable[[Mapping[str, Any], Iterable[str]], Any],
    contradictions: Callable[[Any, bool], Iterator[str]],
    inner: Mapping[str, Iterable[str]] | None = None,
) -> Callable[[Any, Callable, ValidationInfo], Any]:
    """Return a pydantic wrap validator for a kind of entry, which finds all that is wrong with an entry, in plain
    sentences: what is malformed, and what contradicts itself in the rest. A setting that is missing under its name
    because the name is misspelt is told once.

    Args:
        types: the types of the kind's settings, by their names.
        in_part: makes an entry from those settings that are valid, and the names of those that are not.
        contradictions: yields a sentence for each contradiction in an entry; told whether all of the entry is known.
        inner: for each setting that is itself an entry of another kind, the names of that one's settings.
    """

    def validated(entry: Any, handler: Callable, info: ValidationInfo) -> Any:
        try:
            known, errors = handler(entry), []
        except ValidationError as error:
            errors, known = error.errors(include_url=False), None
        if not isinstance(entry, Mapping):
            return _raise(type(entry).__name__, [_plain(item, ()) for item in errors]) if errors else known
        misspelt = _misspelt(entry, errors, types, inner or {})
        malformed = {str(item["loc"][0]) for item in errors if item["loc"]} | set(misspelt.get((), ()))
        problems = [
            _plain(item, _names(item["loc"], types, inner or {}))
            for item in errors
            # that no setting is wrong by itself but several are together is found below
            if item["loc"] and not (item["type"] == "missing" and item["loc"][-1] in misspelt.get(item["loc"][:-1], ()))
        ]
        if known is None:
            known = in_part(_valid(entry, errors, types, malformed, info.context), malformed)
        of_entry = {name: given for name, given in entry.items() if name not in malformed}
        problems += [
            (place, f"{_shown(given)}, expected {UNROUNDED}", given)
            for place, given in _converted_to_integers(of_entry, known)
        ]
        problems += [((), line, entry) for line in contradictions(known, not errors)]
        return _raise(type(known).__name__, problems, InPart(known)) if problems else known

    return validated


def _plain(item: ErrorDetails, names: Iterable[str]) -> tuple[tuple[int | str, ...], str, Any]:
    return item["loc"], sentence(item, names), item["input"]


def _raise(title: str, problems: Iterable[tuple[tuple[int | str, ...], str, Any]], known: InPart | None = None) -> Any:
    """Raise a ValidationError with these problems: place, sentence and input each."""
    context = {} if known is None else {IN_PART: known}
    raise ValidationError.from_exception_data(
        title,
        [
            InitErrorDetails(type=PydanticCustomError(EXPLAINED, line, context), loc=place, input=given)
            for place, line, given in problems
        ],
    ) from None


def _names(place: tuple[int | str, ...], types: Mapping[str, Any], inner: Mapping[str, Iterable[str]]) -> Iterable[str]:
    """Return the names of the settings of the entry in which a place lies."""
    return inner.get(str(place[0]), types) if len(place) > 1 else types


def _misspelt(
    entry: Mapping, errors: Iterable[ErrorDetails], types: Mapping[str, Any], inner: Mapping[str, Iterable[str]]
) -> dict[tuple[int | str, ...], list[str]]:
    """Return the settings that unknown ones were probably meant for, and that are not given themselves, by the place of
    their entry."""
    meant: dict[tuple[int | str, ...], list[str]] = {}
    for item in errors:
        *outer, name = item["loc"] or [""]
        if item["type"] in UNKNOWN:
            given = entry[outer[0]] if outer else entry
            near = nearest(name, _names(item["loc"], types, inner))
            meant.setdefault(tuple(outer), []).extend(known for known in near if known not in given)
    return meant


def _valid(
    entry: Mapping, errors: Iterable[ErrorDetails], types: Mapping[str, Any], malformed: Iterable[str], context: Any
) -> dict[str, Any]:
    """Return those settings of an entry that are valid, and what is known of those that are entries themselves."""
    valid = {
        str(item["loc"][0]): item["ctx"][IN_PART].entry
        for item in errors
        if len(item["loc"]) > 0 and IN_PART in item.get("ctx", {})
    }
    for name in entry.keys() & types.keys() - set(malformed):
        valid[name] = _adapter(types[name]).validate_python(entry[name], context=context)
    return valid


def in_part(kind: TypeAdapter, entry: Any, context: Mapping[str, Any]) -> Any:
    """Return an entry or, if it is malformed, what is known of it; None if that is nothing."""
    try:
        return kind.validate_python(entry, context=context)
    except ValidationError as error:
        known = (item["ctx"][IN_PART].entry for item in error.errors() if IN_PART in item.get("ctx", {}))
        return next(known, None)


@functools.cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


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
    if isinstance(given, TruthValue):
        return f"the name {given}" if kind == "invalid_key" or item["loc"][-1:] == ("[key]",) else str(given)
    if kind in UNKNOWN:
        return f"there is no such setting; {advice(item['loc'][-1], settings)}"
    if kind == "missing":
        return "is missing, but required"
    if kind not in EXPECTED:
        return item["msg"].removeprefix("Value error, ")
    example = f", such as [{_in_yaml(given)}]" if kind == "list_type" and isinstance(given, (str, int, float)) else ""
    return f"{_shown(given)}, expected {EXPECTED[kind].format_map(limits)}{example}"


def _in_yaml(given: str | float) -> str:
    return json.dumps(given, ensure_ascii=False) if isinstance(given, str) else str(given)


@dataclass(frozen=True, repr=False)
class TruthValue:
    """A truth value of a catalog, as it is written there. No setting is one, and none accepts this; pydantic would take
    `true` for the number 1."""

    word: str

    def __repr__(self) -> str:  # as pydantic writes a name in the place of an error
        return self.word

    def __str__(self) -> str:
        return (
            f"is {self.word}, a truth value, but no setting of a catalog is one. YAML reads yes, no, on and off as "
            "truth values too: write text in quotes"
        )


def _shown(given: Any) -> str:
    if given is None or given == "" or given == [] or given == {}:
        return "is empty"
    if isinstance(given, dict):
        return f"holds settings ({', '.join(map(str, given))})"
    if isinstance(given, str) and len(given) > LONGEST_QUOTE:
        return f"begins with {given[:LONGEST_QUOTE]!r} and has {len(given):,} characters"
    return "is a list" if isinstance(given, list) else f"is {given!r}"
