"""What is said of a name that is none of those that it can be: of a setting, an asset, an environment variable.

Here: the one wording. Not here: which names there are.
"""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: object, names: Iterable[object]) -> str | None:
    """Return that one of `names` that `name` was probably meant for; None if it resembles none."""
    by_lower_case = {str(known).lower(): str(known) for known in names}
    found = get_close_matches(str(name).lower(), by_lower_case, n=1)
    return by_lower_case[found[0]] if found else None


def advice(name: object, names: Iterable[object]) -> str:
    """Return what to do about a name that is none of `names`, to follow a clause that says so: "did you mean tanh?" or,
    where it resembles none of them, which there are."""
    known = list(map(str, names))
    if meant := nearest(name, known):
        return f"did you mean {meant}?"
    return f"expected one of {', '.join(known)}" if known else "there are none yet"
