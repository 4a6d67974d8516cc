"""The trials that a study consists of, where its methods are tuned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from instahide_fl.config import Config, Scalar
from instahide_fl.errors import ConfigError
from instahide_fl.study.plan import (
    MethodVariant,
    PlannedRun,
    check_distinct_names,
    method_variants,
    plan_runs,
)
from instahide_fl.study.settings import StudyConfig
from instahide_fl.study.tuning import TuningConfig, values_in_words

CLIENT_LEARNING_RATE = "train.learning-rate"


def plan_trials(study: StudyConfig, folder: Path) -> tuple[PlannedRun, ...]:
    """Plan the trials of each method, with each value of its axes.

    The runs that each trial may lead to are checked too, so that no choice is refused
    after the trials.

    Args:
        study: The study; without the table `[tuning]` it has no trials.
        folder: The folder that relative paths start from.

    Raises:
        ConfigError: settings of a trial are not valid; the text says which, and why.
    """
    if study.tuning is None:
        return ()
    base = study.base_config(folder)
    trials = [
        trial
        for variant in method_variants(study, base, folder)
        for trial in _trials_of(study, study.tuning, variant, base, folder)
    ]
    check_distinct_names(trials)
    _check_runs(study, trials, folder)
    return tuple(trials)


def _check_runs(study: StudyConfig, trials: Sequence[PlannedRun], folder: Path) -> None:
    """Plan the runs that each trial would lead to, to find mistakes in them."""
    by_number: dict[int, dict[str, Mapping[str, Scalar]]] = {}
    for trial in trials:
        by_number.setdefault(trial.trial, {})[trial.variant] = trial.tuned
    for chosen in by_number.values():
        plan_runs(study, folder, chosen)


def _trials_of(
    study: StudyConfig,
    tuning: TuningConfig,
    variant: MethodVariant,
    base: Config,
    folder: Path,
) -> Iterator[PlannedRun]:
    for number, values in enumerate(study.trials_of(variant.method), start=1):
        config = variant.config(base, {**values, "seed": tuning.seed}, folder)
        _check_used(variant, values, config)
        yield PlannedRun(
            name=f"{variant.name}/trial-{number}",
            method=variant.method.name,
            axes=variant.axes,
            seed=tuning.seed,
            config=_shortened(config, tuning.rounds_share).resolved(),
            audits=(),
            tuned=values,
            trial=number,
        )


def _check_used(
    variant: MethodVariant, values: Mapping[str, Scalar], config: Config
) -> None:
    """Refuse the learning rate of the side that takes no steps: a frequent mistake."""
    if CLIENT_LEARNING_RATE in values and config.train.mode == "gradient":
        raise ConfigError(
            f"method {variant.method.name!r}, {values_in_words(values)}: "
            f"{CLIENT_LEARNING_RATE} acts on local steps, of which mode gradient has "
            f"none: tune server.learning-rate, or set train.mode"
        )


def _shortened(config: Config, share: float) -> Config:
    """Return settings of a share of the rounds, with the schedule scaled."""
    train = config.train
    changes: dict[str, Scalar] = {
        "train.rounds": _scaled(train.rounds, share),
        "train.warmup-rounds": _scaled(train.warmup_rounds, share),
    }
    if milestones := train.milestones.replace(",", " ").split():
        scaled = [_scaled(int(milestone), share) for milestone in milestones]
        changes["train.milestones"] = ", ".join(map(str, scaled))
    return config.with_values(changes)


def _scaled(num_rounds: int, share: float) -> int:
    """Return a share of a number of rounds, 0 only where it is 0 already."""
    return max(min(num_rounds, 1), round(num_rounds * share))
