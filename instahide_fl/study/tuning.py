"""The table `[tuning]`: each method gets its own best settings from a few trials."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from instahide_fl.config import Scalar, flatten_tables
from instahide_fl.config.base import CountOrZero, Table

VALIDATION_SHARE = "data.validation-share"
TUNABLE = ("model.", "train.", "server.", "defense.", "instahide.", "data.augment")
"""The beginnings of settings that may be tuned: how a method trains. Others say what is
compared: images, clients, seed and budget."""
BUDGET = "train.rounds"  # all methods have the same


def _hyphenated_names(values: object) -> object:
    """Return settings by dotted name, however the tables are written."""
    if not isinstance(values, Mapping):
        return values
    hyphenated: dict[str, object] = {}
    for name, column in flatten_tables(values).items():
        if (written := name.replace("_", "-")) in hyphenated:
            raise ValueError(f"settings that are written once each, {written} is twice")
        hyphenated[written] = column
    return hyphenated


def _one_value_a_trial(trials: dict[str, list[Scalar]]) -> dict[str, list[Scalar]]:
    for name, values in trials.items():
        if name == BUDGET or not name.startswith(TUNABLE):
            raise ValueError(
                f"settings of how a method trains, which {name} is not: it says what "
                f"is compared. Tunable are {', '.join(f'{k}*' for k in TUNABLE[:-1])} "
                f"(without {BUDGET}) and {TUNABLE[-1]}"
            )
        if not values:
            raise ValueError(f"lists of values, {name} has none")
    lengths = {name: len(values) for name, values in trials.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} has {count}" for name, count in lengths.items())
        raise ValueError(
            f"lists of the same length, because trial i takes the i-th value of each "
            f"setting: {counts}"
        )
    _check_distinct_trials(trial_values(trials))
    return trials


def _check_distinct_trials(trials: Sequence[Mapping[str, Scalar]]) -> None:
    for position, values in enumerate(trials):
        if values in trials[:position]:
            first = trials.index(values)
            raise ValueError(
                f"different in each trial, trials {first + 1} and {position + 1} are "
                f"both {values_in_words(values)}"
            )


TrialLists: TypeAlias = Annotated[
    dict[str, list[Scalar]],
    BeforeValidator(_hyphenated_names),
    AfterValidator(_one_value_a_trial),
]
"""Settings by dotted name, each with a list that holds its value in trial 1, 2, ..."""


class TuningConfig(Table):
    """How the settings of each method are chosen before its runs.

    A trial is a training of its own, on the training images without the validation
    images. The trial with the best accuracy on validation images gives the settings of
    all runs of its method.
    """

    section: ClassVar[str] = "tuning"

    validation_share: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.1
    """The share of training images to choose by: `data.validation-share` of all trials,
    runs and audits, so that all train on as many images."""
    seed: CountOrZero = 0
    """The seed of all trials."""
    rounds_share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    """The share of its method's rounds that a trial trains. Warm-up, milestones and the
    cosine schedule are scaled with it."""
    report: Literal["final", "best-validation"] = "final"
    """The figure that is chosen by, and reported. `final`: accuracy after the last
    round. `best-validation`: accuracy after the round that was best on validation
    images; of trials on validation images, of runs on test images."""
    allow_unequal: bool = False
    """Whether methods may have different numbers of trials. The report then says so."""
    trials: TrialLists = Field(default={})
    """The trials of methods without trials of their own: trial i takes the i-th value
    of each setting."""

    @property
    def figure(self) -> str:
        """The name in summary.json of the accuracy that trials are chosen by."""
        if self.report == "best-validation":
            return "best_validation_accuracy"
        return "validation_accuracy"


def trial_values(trials: Mapping[str, Sequence[Scalar]]) -> list[dict[str, Scalar]]:
    """Return the settings of each trial, by dotted name.

    Args:
        trials: The values of each setting, all of the same number.

    Example:
        >>> trial_values({"train.batch-size": [8, 16], "server.ema": [0.9, 0.99]})[1]
        {'train.batch-size': 16, 'server.ema': 0.99}
    """
    return [
        dict(zip(trials, values, strict=True))
        for values in zip(*trials.values(), strict=True)
    ]


def values_in_words(values: Mapping[str, Any]) -> str:
    """Write settings as a settings file does.

    Args:
        values: The values by dotted name.

    Example:
        >>> values_in_words({"train.batch-size": 16, "model.sign-invariant": True})
        'train.batch-size = 16, model.sign-invariant = true'
    """
    return ", ".join(f"{name} = {_as_toml(v)}" for name, v in values.items())


def _as_toml(value: object) -> str:
    is_word = isinstance(value, bool | str)
    return json.dumps(value, ensure_ascii=False) if is_word else str(value)
