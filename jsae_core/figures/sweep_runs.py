"""The runs of a sweep that figures draw: which of a table's runs they are, and which of them belong together.

Here: what a run must have to be drawn, impossible numbers, the one definition of shares that all drawn runs have, and
groups of runs with the same settings. Not here: drawing them (`sweep.py`), making the table
(`jsae_core.training_runs`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from jsae_core.terms import AT_RECONSTRUCTION

SPARSITY = ("l1_over_l2", "kurtosis", "above_0.005", "above_0.01", "above_0.02")
QUALITY = ("ce_score", "kl_score", "explained_variance_output", "accounted_share")
LAMBDA, SHARE, SCORE, ACCOUNTED = "jacobian_coefficient", "above_0.01", "ce_score", "accounted_share"
DEFINITION = "jacobian_at"  # the column that says where a run's Jacobian was evaluated
EVALUATED = {"input": "at the true input", "reconstruction": "at the input SAE's reconstruction"}
# the settings, besides λ, in which runs may differ, and how their values are introduced; equal runs form a group
SETTINGS = {
    "model": "",
    "layer": "layer ",
    "k": "k = ",
    "d_sae": "d_sae = ",
    "objective": "",
    "randomize_llm_weights": "",
}
TEXTS = ("model", "objective")  # the settings that are text, not numbers


def drawn_runs(
    runs: pd.DataFrame, required: Sequence[str], numbers: Sequence[str], reported: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, str]:
    """Select the runs to draw: the finished ones that have all `required` columns, with the columns `numbers` as
    floats. Also return a remark on these runs and on those left out. The definition of the shares depends on the
    reported runs, which are drawn beside them. Raises ValueError if no run is left."""
    missing = [name for name in ["name", "state", "deleted", DEFINITION, *SETTINGS, *required] if name not in runs]
    if missing:
        raise ValueError(f"the table of runs lacks {', '.join(missing)}")
    if runs.empty:
        raise ValueError("the table of runs has no run; expected at least one")
    finished = runs[runs["state"] == "finished"].reset_index(drop=True)
    if finished.empty:
        raise ValueError(f"none of the {len(runs)} runs is finished; expected at least one")
    finished, definition = _of_one_definition(finished, reported)
    odd = odd_runs(finished, numbers)
    possible = finished.drop(index=odd.index)
    if possible.empty:
        raise ValueError(f"none of the {len(finished)} finished runs has possible numbers: {', '.join(odd[:3])}")
    possible = possible.assign(**{name: possible[name].astype(float) for name in [LAMBDA, *numbers]})
    drawn = possible.dropna(subset=required).reset_index(drop=True)
    if drawn.empty:
        raise ValueError(f"no finished run has {' and '.join(required)}; expected at least one")
    return drawn, definition + _remark_on_runs(drawn, len(runs) - len(finished), len(possible) - len(drawn), odd)


def _of_one_definition(finished: pd.DataFrame, reported: pd.DataFrame | None) -> tuple[pd.DataFrame, str]:
    """The runs with their measures of the Jacobian by a single definition, so that no axis mixes two: at the
    reconstruction if any run, reported ones included, is only known there. And a remark on it for the subtitle."""
    named = {*finished[DEFINITION].dropna(), *(() if reported is None else reported[DEFINITION])}
    if "reconstruction" not in named:
        return finished, f" · J {EVALUATED['input']}" if named else ""
    only_at_reconstruction = finished[DEFINITION] == "reconstruction"
    unknown = pd.Series(np.nan, finished.index)
    name_at_reconstruction = {name: f"{name}{AT_RECONSTRUCTION}" for name in finished}
    of_jacobian = [
        name for name in name_at_reconstruction if name in SPARSITY or name_at_reconstruction[name] in finished
    ]
    at_reconstruction = {
        name: finished[name].where(only_at_reconstruction, finished.get(name_at_reconstruction[name], unknown))
        for name in of_jacobian
    }
    return finished.assign(**at_reconstruction), f" · J {EVALUATED['reconstruction']}"


def odd_runs(runs: pd.DataFrame, numbers: Sequence[str] = ()) -> pd.Series:
    """The finished runs with an impossible λ, share or other measure, which these figures do not draw. The series has
    the index of the table and names the impossible number of each run ("above_0.01 = 8.2").

    Args:
        numbers: columns to check besides those that the figures always show.
    """
    finished = runs[runs["state"] == "finished"]
    at_reconstruction = [f"{name}{AT_RECONSTRUCTION}" for name in SPARSITY]
    known = dict.fromkeys(
        [LAMBDA, *SPARSITY, *at_reconstruction, *QUALITY, "kl_score_input", "kl_score_output", *numbers]
    )
    complaints = {
        name: _impossible(name, finished[name].astype(float)).map(f"{name} = {{:g}}".format)
        for name in known
        if name in finished
    }
    return pd.concat(complaints.values()).groupby(level=0).first() if complaints else pd.Series(dtype="str")


def _impossible(name: str, numbers: pd.Series) -> pd.Series:
    """The numbers that no run can have: infinite ones, a λ below 0, a share outside [0, 1]."""
    wrong = np.isinf(numbers)
    wrong |= (numbers < 0) if name == LAMBDA or name.startswith("above_") else False
    wrong |= (numbers > 1) if name.startswith("above_") else False
    return numbers[wrong]


def _remark_on_runs(drawn: pd.DataFrame, unfinished: int, incomplete: int, odd: pd.Series) -> str:
    remark = f" · {len(drawn)} run{'s' if len(drawn) > 1 else ''}"
    deleted = int(drawn["deleted"].sum())
    remark += f", {deleted} of them deleted upstream" if deleted else ""
    examples = ", ".join(odd[:1]) + (", …" if len(odd) > 1 else "")
    reasons = ((unfinished, "not finished"), (incomplete, "incomplete"), (len(odd), f"odd ({examples})"))
    left_out = [f"{n} {reason}" for n, reason in reasons if n]
    return remark + (f"; left out: {', '.join(left_out)}" if left_out else "")


def checked_reported(reported: pd.DataFrame) -> pd.DataFrame:
    """The reported runs with their numbers as floats. Raises ValueError if a column is missing, or a number is missing
    or impossible."""
    names = [LAMBDA, SHARE, SCORE]
    missing = [name for name in [*names, DEFINITION] if name not in reported]
    if missing:
        raise ValueError(f"the table of reported runs lacks {', '.join(missing)}")
    reported = reported.assign(**{name: reported[name].astype(float) for name in names})
    for name in names:
        impossible = _impossible(name, reported[name])
        if not impossible.empty:
            raise ValueError(f"the table of reported runs holds {name} = {impossible.iloc[0]:g}, which is impossible")
    if reported[names].isna().any(axis=None):
        raise ValueError("the table of reported runs holds NaN")
    return reported


def groups_of(runs: pd.DataFrame) -> pd.Series:
    """The name of each run's group, a category."""
    if_missing = dict.fromkeys(TEXTS, "?") | {"randomize_llm_weights": False}
    settings = runs[list(SETTINGS)].fillna(if_missing).astype({name: float for name in SETTINGS if name not in TEXTS})
    differing = [name for name in SETTINGS if settings[name].nunique(dropna=False) > 1]
    numbers = settings.groupby(list(SETTINGS), dropna=False).ngroup()
    names = []
    for _, group in settings[differing].groupby(numbers):
        names.append(", ".join(_setting(name, group[name].iloc[0]) for name in differing))
    return pd.Series(pd.Categorical.from_codes(numbers, names), index=runs.index)


def _setting(name: str, value: str | float) -> str:
    if name in TEXTS:
        return str(value)
    if name == "randomize_llm_weights":
        return "randomised LM" if value == 1 else "pretrained LM"
    return SETTINGS[name] + ("?" if np.isnan(value) else f"{value:.0f}")
