"""Suggestions for names that do not exist: of a setting, an asset, an environment variable.

Here: finding and wording a suggestion. Not here: which names exist.
"""

from collections.abc import Iterable
from difflib import SequenceMatcher

SIMILAR = 0.6  # the least ratio of a SequenceMatcher at which a name may have been meant: difflib's own default
ABOUT_AS_NEAR = 0.05  # names whose ratio is less than the largest one by no more than this are told together


def nearest(name: object, names: Iterable[object]) -> list[str]:
    """Return those of `names`, in their order, that are spelt most like `name`, whatever their case: several if they
    are about equally similar, none if none is similar."""
    matcher = SequenceMatcher(b=str(name).lower())  # which keeps what it found out about `b`
    ratios: dict[str, float] = {}
    for known in map(str, names):
        matcher.set_seq1(known.lower())
        ratios[known] = matcher.ratio()
    least = max(SIMILAR, max(ratios.values(), default=0) - ABOUT_AS_NEAR)
    return [known for known, ratio in ratios.items() if ratio >= least]


def advice(name: object, names: Iterable[object]) -> str:
    """Return the last clause of an error message about a name that is not among `names`: "did you mean tanh?" if one of
    them, or several, are spelt like it, else a list of all of them."""
    known = list(map(str, names))
    if meant := nearest(name, known):
        *others, last = meant
        return f"did you mean {', '.join(others)}{' or ' if others else ''}{last}?"
    return f"expected one of {', '.join(known)}" if known else "none are defined yet"
