"""Suggestions for names that do not exist: of a setting, an asset, an environment variable.

Here: finding and wording a suggestion. Not here: which names exist.
"""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: object, names: Iterable[object]) -> str | None:
    """Return the one of `names` that is spelt most like `name`, whatever its case; None if none is similar."""
    by_lower_case = {str(known).lower(): str(known) for known in names}
    found = get_close_matches(str(name).lower(), by_lower_case, n=1)
    return by_lower_case[found[0]] if found else None


def advice(name: object, names: Iterable[object]) -> str:
    """Return the last clause of an error message about a name that is not among `names`: "did you mean tanh?" if one of
    them is spelt like it, else a list of all of them."""
    known = list(map(str, names))
    if meant := nearest(name, known):
        return f"did you mean {meant}?"
    return f"expected one of {', '.join(known)}" if known else "none are defined yet"
