"""Training runs, from a project in wandb or from a local sweep, and the table with one row for each run.

Here: what a row holds, the names under which runs give their settings and metrics, the table.
Not here: fetching runs from wandb (`sweeps.py`), training (`training.py`), drawing.

A table depends only on the raw values of its runs, which it holds (`config_json`, `summary_json`). So runs that are
fetched one by one make the same table as runs that are fetched all at once.
"""

from __future__ import annotations

import ast
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from jsae_core.terms import AT_RECONSTRUCTION, THRESHOLDS

LARGEST_THRESHOLD = "0.04"  # of |J|, the largest at which the original's training counted elements
COUNTED_AT = (*map(str, THRESHOLDS), LARGEST_THRESHOLD)
JACOBIAN_METRICS = (*(f"above_{threshold}" for threshold in COUNTED_AT), "kurtosis", "l1_over_l2")

CONFIG_NAMES = {
    "model": ("model_name", "model"),
    "layer": ("hook_layer", "hook_point_layer", "layer"),
    "k": ("activation_fn_kwargs.k", "k"),
    "d_sae": ("d_sae",),
    "jacobian_coefficient": ("jacobian_coefficient",),
    "objective": ("sparsity_metric", "objective"),
    "seed": ("seed",),
    "randomize_llm_weights": ("randomize_llm_weights",),
}
HAS_JACOBIAN_TERM = ("use_jacobian_loss", "is_pair")  # the older and the newer name of this setting
TRUTHS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
NOT_GIVEN = ("", "none", "null")  # what launch scripts pass for a setting that is not given
METRIC_NAMES = {
    "ce_score_input": ("ce_score_input", "model_performance_preservation/ce_loss_score"),
    "ce_score_output": ("ce_score_output", "model_performance_preservation/ce_loss_score2"),
    "ce_score": (),
    "kl_score_input": ("kl_score_input", "model_behavior_preservation/kl_div_score"),
    "kl_score_output": ("kl_score_output", "model_behavior_preservation/kl_div_score2"),
    "explained_variance_input": (
        "explained_variance_input",
        "reconstruction_quality/explained_variance",
        "metrics/explained_variance",
    ),
    "explained_variance_output": (
        "explained_variance_output",
        "reconstruction_quality/explained_variance2",
        "metrics/explained_variance2",
    ),
    **{name: (name,) for name in JACOBIAN_METRICS},
    **{name + AT_RECONSTRUCTION: (name + AT_RECONSTRUCTION,) for name in JACOBIAN_METRICS},
    "kurtosis" + AT_RECONSTRUCTION: ("kurtosis" + AT_RECONSTRUCTION, "jacobian_sparsity/jac_kurtosis"),
    "accounted_share": ("accounted_share",),
    "seed_similarity_input": ("seed_similarity_input",),
    "seed_similarity_output": ("seed_similarity_output",),
}
ABOUT = ("run_id", "name", "state", "created_at", "updated_at", "url", "tags", "deleted")
RAW = ("config_json", "summary_json")
RUN_COLUMNS = (*ABOUT, *CONFIG_NAMES, "jacobian_at", *METRIC_NAMES)
"""The first columns of every table. The metrics of the summaries follow, then `config_json` and `summary_json`."""


@dataclass(frozen=True)
class TrainingRun:
    """A training run in a normal form, so that equal runs are equal values. Made by `run_row` or `local_run`."""

    run_id: str
    name: str
    state: str
    created_at: datetime
    updated_at: datetime | None
    url: str
    tags: tuple[str, ...]
    config_json: str
    summary_json: str
    deleted: bool = False


def run_row(
    run_id: str,
    name: str,
    state: str,
    created_at: datetime | str,
    updated_at: datetime | str | None,
    url: str,
    tags: Sequence[str],
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
) -> TrainingRun:
    """Make a run from plain values. Times without a zone are in UTC.

    Raises:
        ValueError: a value has the wrong type, or JSON cannot hold it.
    """
    if not isinstance(run_id, str) or not run_id:
        raise ValueError(f"the run's id is {run_id!r}, expected a name")
    if not isinstance(state, str) or not state:
        raise ValueError(f"the state is {state!r}, expected a word like finished or running")
    if not all(isinstance(tag, str) for tag in tags):
        raise ValueError(f"the tags are {tags!r}, expected words")
    return TrainingRun(
        run_id=run_id,
        name=name or run_id,
        state=state,
        created_at=utc_time(created_at),
        updated_at=None if updated_at is None else utc_time(updated_at),
        url=url,
        tags=tuple(tags),
        config_json=_json_object("configuration", config),
        summary_json=_json_object("summary", summary),
    )


def local_run(
    run_id: str,
    name: str,
    model: str,
    layer: int,
    config: Mapping[str, Any],
    quality: Mapping[str, float],
    created_at: datetime | str,
    url: str = "",
) -> TrainingRun:
    """Make a finished run of a local sweep.

    Args:
        config: the recipe: d_sae, k, jacobian_coefficient, ...
        quality: the numbers that `pair_quality` returns, and any others that were measured.

    Raises:
        ValueError: as for `run_row`.
    """
    settings = {**config, "model_name": model, "hook_layer": layer}
    return run_row(run_id, name, "finished", created_at, created_at, url, (), settings, quality)


def runs_table(runs: Iterable[TrainingRun]) -> pd.DataFrame:
    """A table with one row for each run, ordered by the time of creation and then by id.

    Returns:
        First `RUN_COLUMNS`: times are UTC timestamps; layer, k, d_sae and seed are integers that may be missing;
        `objective` is the name of the function that lambda weighs, "l1" if the run does not give it. The metrics are
        numbers, NaN if unknown: `above_{t}` is a share of the k*k elements, `ce_score` the mean of both sides' scores,
        `l1_over_l2` mean |J| over the root of mean J^2, `accounted_share` as in `latent_accounting`, and
        `seed_similarity_{side}` the similarity of the latents to those of the same recipe with other seeds
        (`similarity.py`).
        `jacobian_at` tells at which input the Jacobian was evaluated for `above_{t}`, `kurtosis` and `l1_over_l2`:
        "input" (the MLP's true input, as everywhere here) or "reconstruction" (the input SAE's reconstruction, as in
        the original's logs). It is missing if these metrics are. Where these metrics are known at the reconstruction,
        they are also in the columns `{name}_at_reconstruction`.
        Then every other metric of the summaries under its own name: numbers, truth values or text (JSON, if values are
        lists or of several types). The names of nested metrics are joined with ".".
        Last `config_json` and `summary_json`, the complete raw values.

    Raises:
        ValueError: two runs have one id.
    """
    ordered = sorted(runs, key=lambda run: (run.created_at, run.run_id))
    repeated = [run_id for run_id, count in Counter(run.run_id for run in ordered).items() if count > 1]
    if repeated:
        raise ValueError(f"{repeated[0]!r} is the id of more than one run")
    configs = [_settings(json.loads(run.config_json)) for run in ordered]
    summaries = [_flat(json.loads(run.summary_json)) for run in ordered]
    metrics = [_metrics(summary, config["k"]) for summary, config in zip(summaries, configs, strict=True)]
    other_names = sorted({name for summary in summaries for name in summary} - {*RUN_COLUMNS, *RAW})
    dtypes = dict.fromkeys(("run_id", "name", "state", "url", *RAW, "model", "objective", "jacobian_at"), "str")
    dtypes |= dict.fromkeys(("created_at", "updated_at"), "datetime64[us, UTC]")
    dtypes |= {"tags": "object", "deleted": "bool", "randomize_llm_weights": "bool"}
    dtypes |= dict.fromkeys(("layer", "k", "d_sae", "seed"), "Int64")
    values = {name: [getattr(run, name) for run in ordered] for name in (*ABOUT, *RAW)}
    values["tags"] = [list(tags) for tags in values["tags"]]
    values |= {name: [config[name] for config in configs] for name in CONFIG_NAMES}
    values |= {name: [of_run[name] for of_run in metrics] for name in ("jacobian_at", *METRIC_NAMES)}
    columns = {name: pd.Series(values[name], dtype=dtypes.get(name, "float64")) for name in RUN_COLUMNS}
    columns |= {name: _typed([summary.get(name) for summary in summaries]) for name in other_names}
    return pd.DataFrame(columns | {name: pd.Series(values[name], dtype=dtypes[name]) for name in RAW})


def runs_of(table: pd.DataFrame) -> list[TrainingRun]:
    """The runs from which a table was made.

    Raises:
        ValueError: it is not a table of training runs.
    """
    missing = [name for name in (*ABOUT, *RAW) if name not in table.columns]
    if missing:
        raise ValueError(f"the table has no column {', '.join(missing)}: it is not a table of training runs")
    return [
        TrainingRun(
            **{name: row[name] for name in ("run_id", "name", "state", "url", *RAW)},
            created_at=row["created_at"].to_pydatetime(),
            updated_at=None if pd.isna(row["updated_at"]) else row["updated_at"].to_pydatetime(),
            tags=tuple(row["tags"]),
            deleted=bool(row["deleted"]),
        )
        for row in table[[*ABOUT, *RAW]].to_dict("records")
    ]


# --- Values


def utc_time(value: datetime | str) -> datetime:
    """Convert a time to UTC; a time without a zone is taken as UTC.

    Raises:
        ValueError: the text is not a time.
    """
    try:
        time = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{value!r} is not a time; expected one like 2026-07-01T12:00:00Z") from error
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _json_object(what: str, values: Mapping[str, Any]) -> str:
    """JSON text with sorted keys, so that it does not depend on the order of the values. NaN and infinities are written
    as NaN, Infinity and -Infinity."""
    try:
        return json.dumps(values, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"its {what} cannot be written as JSON ({error})") from error


def _flat(nested: dict[str, Any]) -> dict[str, Any]:
    """Flatten nested settings, joining names with "."; of two equal names the less nested one counts."""
    flat: dict[str, Any] = {}
    level = {"": nested}
    while level:
        inner = {}
        for prefix, part in level.items():
            for name, value in part.items():
                if isinstance(value, dict):
                    inner[f"{prefix}{name}."] = value
                else:
                    flat.setdefault(_text(f"{prefix}{name}"), value)
        level = inner
    return flat


def _number(value: Any) -> float | None:
    """The value as a float if it is a number, or a NaN or infinity, which wandb writes as text; otherwise None."""
    if isinstance(value, bool) or not (isinstance(value, int | float) or value in ("NaN", "Infinity", "-Infinity")):
        return None
    return float(str(value))  # through text, which turns an integer too large for a float into infinity


def _lenient_number(value: Any) -> float | None:
    """As `_number`, but also reads a number from text, as launch scripts and older clients pass it."""
    if isinstance(value, str) and "_" not in value:
        with suppress(ValueError):
            return float(value)
    return _number(value)


def _lenient_truth(value: Any) -> bool | None:
    """The value as a bool if it is a truth value, also one written as text or as a number; otherwise None."""
    return TRUTHS.get(str(value).strip().lower().removesuffix(".0"))


def _is_given(value: Any) -> bool:
    return value is not None and not (isinstance(value, str) and value.strip().lower() in NOT_GIVEN)


def _settings_in_text(value: Any) -> Any:
    """The settings that a text holds as JSON or as a Python literal; any other value unchanged."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        for read in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                found = read(value.strip())
                return found if isinstance(found, dict) and all(isinstance(name, str) for name in found) else value
    return value


def _whole(value: Any) -> int | None:
    number = _lenient_number(value)
    return int(number) if number is not None and abs(number) < 2**53 and number.is_integer() else None


def _typed(values: list[Any]) -> pd.Series:
    """A column of numbers, truth values or text, whichever type loses nothing of the values."""
    given = [value for value in values if value is not None]
    if given and all(isinstance(value, bool) for value in given):
        return pd.Series(values, dtype="boolean")
    if all(isinstance(value, bool) or _number(value) is not None for value in given):
        return pd.Series([float(v) if isinstance(v, bool) else _number(v) for v in values], dtype="float64")
    return pd.Series([None if value is None else _text(value) for value in values], dtype="str")


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    # JSON can hold half of a surrogate pair, but it cannot be stored
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


# --- Settings and metrics by their standard names


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run by the names in CONFIG_NAMES; None if a setting is unknown."""
    config = _flat({name: _settings_in_text(value) for name, value in config.items()})
    first = {
        column: next((config[name] for name in names if _is_given(config.get(name))), None)
        for column, names in CONFIG_NAMES.items()
    }
    return {
        "model": None if first["model"] is None else _text(first["model"]),
        **{column: _whole(first[column]) for column in ("layer", "k", "d_sae", "seed")},
        "objective": "l1" if first["objective"] is None else _text(first["objective"]),
        # without this term in the loss, the coefficient in the configuration is only the default
        "jacobian_coefficient": (
            0.0
            if any(_lenient_truth(config.get(name)) is False for name in HAS_JACOBIAN_TERM)
            else _lenient_number(first["jacobian_coefficient"])
        ),
        # older configurations lack this setting, and their models were not randomised
        "randomize_llm_weights": _lenient_truth(first["randomize_llm_weights"]) is True,
    }


def _metrics(summary: dict[str, Any], k: int | None) -> dict[str, Any]:
    """The metrics of a run by the names in METRIC_NAMES; None if a metric is unknown or not finite, so that every value
    can be drawn. And `jacobian_at`."""
    # if a metric is given by its minimum, maximum and last value, the last one counts
    summary = {name.removesuffix(".last"): value for name, value in summary.items() if name.endswith(".last")} | summary
    numbers = {name: number for name, value in summary.items() if (number := _lenient_number(value)) is not None}
    values = {
        column: next((numbers[name] for name in names if name in numbers), None)
        for column, names in METRIC_NAMES.items()
    }
    if k:  # the original logs these metrics at the reconstruction
        logged = _shares_above(numbers, k) | {"l1_over_l2": _l1_over_l2(numbers, k)}
        at_reconstruction = {name + AT_RECONSTRUCTION: number for name, number in logged.items()}
        values |= {name: number for name, number in at_reconstruction.items() if values[name] is None}
    jacobian_at = None
    if any(values[name] is not None for name in JACOBIAN_METRICS):
        jacobian_at = "input"
    elif any(values[name + AT_RECONSTRUCTION] is not None for name in JACOBIAN_METRICS):
        jacobian_at = "reconstruction"
        values |= {name: values[name + AT_RECONSTRUCTION] for name in JACOBIAN_METRICS}
    input_score, output_score = values["ce_score_input"], values["ce_score_output"]
    values["ce_score"] = None if input_score is None or output_score is None else (input_score + output_score) / 2
    finite = {column: value if value is not None and math.isfinite(value) else None for column, value in values.items()}
    return finite | {"jacobian_at": jacobian_at}


def _shares_above(numbers: dict[str, float], k: int) -> dict[str, float]:
    """The shares `above_{t}` of the k*k elements, from the counts per token under both generations of names.

    Some runs logged the count at their last threshold under every `jac_above_*`. If all of these are equal, they are
    taken as that one count.
    """
    older, newer = (_with_prefix(numbers, f"jacobian_sparsity/{name}_above_") for name in ("jac", "jac_abs"))
    if len(older) > 1 and len(set(older.values())) == 1:
        older = {LARGEST_THRESHOLD: next(iter(older.values()))}
    return {f"above_{t}": count / k**2 for t, count in (older | newer).items() if t in COUNTED_AT}


def _with_prefix(numbers: dict[str, float], prefix: str) -> dict[str, float]:
    """The numbers whose names start with the prefix, under their names without it."""
    return {name.removeprefix(prefix): number for name, number in numbers.items() if name.startswith(prefix)}


def _l1_over_l2(numbers: dict[str, float], k: int) -> float | None:
    """Mean |J| over the root of mean J^2. The logs hold the means of a token's sum of |J| and of a batch's root of mean
    J^2, so this is a ratio of means, not a mean of ratios."""
    total, root = (numbers.get(f"jacobian_sparsity/{name}") for name in ("jac_l1", "jac_l2b_norm_"))
    return total / k**2 / root if total is not None and root else None
