"""The runs that a study consists of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from instahide_fl.config import Config, Scalar
from instahide_fl.errors import ConfigError
from instahide_fl.study.settings import (
    AuditConfig,
    MethodConfig,
    StudyConfig,
    fit_for_folder,
)
from instahide_fl.study.tuning import values_in_words

RUNS = "runs"
TUNING = "tuning"


@dataclass(frozen=True)
class PlannedRun:
    """One training, and the audits after it.

    Attributes:
        name: The name of the run, and of its folder.
        method: The method that the run belongs to.
        axes: The values of the varied settings, by dotted name.
        seed: The seed of the simulation.
        config: The run's settings, resolved.
        audits: The audits after the training, with the settings of their short runs.
        tuned: The settings that come from a trial, by dotted name.
        trial: The number of the trial, from 1; 0 for a run of the comparison itself.
    """

    name: str
    method: str
    axes: Mapping[str, Scalar]
    seed: int
    config: Config
    audits: tuple[tuple[AuditConfig, Config], ...]
    tuned: Mapping[str, Scalar] = field(default_factory=dict)
    trial: int = 0

    @property
    def folder(self) -> str:
        """The run's folder, inside that of the study."""
        return f"{TUNING if self.trial else RUNS}/{self.name}"

    @property
    def variant(self) -> str:
        """The method and the values of its axes, fit for a folder."""
        return variant_name(self.method, self.axes)


@dataclass(frozen=True)
class MethodVariant:
    """A method with one value of each setting that it is varied along.

    Attributes:
        method: The method.
        axes: The values of the varied settings, by dotted name.
    """

    method: MethodConfig
    axes: Mapping[str, Scalar]

    @property
    def name(self) -> str:
        """The method and the values, fit for a folder."""
        return variant_name(self.method.name, self.axes)

    def config(
        self, base: Config, changes: Mapping[str, Scalar], folder: Path
    ) -> Config:
        """Return the settings of a run.

        Args:
            base: The settings of all runs.
            changes: Values by dotted name, beside those of method and axes.
            folder: The folder that relative paths start from.

        Raises:
            ConfigError: the settings are not valid; the text names method and changes.
        """
        return _changed(base, self.method, {**self.axes, **changes}, folder)


def plan_runs(
    study: StudyConfig,
    folder: Path,
    chosen: Mapping[str, Mapping[str, Scalar]] | None = None,
) -> tuple[PlannedRun, ...]:
    """Combine methods, axes and seeds; equal runs of a method are planned once.

    Args:
        study: The study.
        folder: The folder that relative paths start from.
        chosen: The settings that tuning chose, by the name of the variant. A variant
            that is tuned but not yet chosen for is planned with those of its trial 1.

    Raises:
        ConfigError: a combination is not valid; the text says which, and why.
    """
    base = study.base_config(folder)
    runs: list[PlannedRun] = []
    for variant in method_variants(study, base, folder):
        first = next(iter(study.trials_of(variant.method)), {})
        tuned = (chosen or {}).get(variant.name, first)
        runs += _with_seeds(study, variant, tuned, base, folder)
    check_distinct_names(runs)
    return tuple(runs)


def check_distinct_names(runs: Sequence[PlannedRun]) -> None:
    """Refuse runs that would share a folder.

    Raises:
        ConfigError: two runs have the same name.
    """
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two runs of the study would have the name {name!r}")


def method_variants(
    study: StudyConfig, base: Config, folder: Path
) -> Iterator[MethodVariant]:
    """Yield each method with each value of the axes that make a difference to it.

    Args:
        study: The study.
        base: The settings of all runs.
        folder: The folder that relative paths start from.

    Raises:
        ConfigError: a combination is not valid.
    """
    for method in study.methods:
        for values in _combinations(study, method, base, folder):
            yield MethodVariant(method, values)


def variant_name(method: str, axes: Mapping[str, Scalar]) -> str:
    """Return a method and the values of its axes, fit for a folder."""
    parts = [method, *(f"{_short(name)}-{value}" for name, value in axes.items())]
    return "-".join(map(fit_for_folder, parts))


def _with_seeds(
    study: StudyConfig,
    variant: MethodVariant,
    tuned: Mapping[str, Scalar],
    base: Config,
    folder: Path,
) -> Iterator[PlannedRun]:
    method = variant.method
    for position, seed in enumerate(study.seeds):
        config = variant.config(base, {**tuned, "seed": seed}, folder)
        audits = tuple(
            (
                audit.with_effort(study.audit.effort),
                _audit_config(config, audit, method.name, folder),
            )
            for audit in study.audits
            if (audit.methods is None or method.name in audit.methods)
            and (audit.seeds == 0 or position < audit.seeds)
        )
        yield PlannedRun(
            name=f"{variant.name}-seed-{seed}",
            method=method.name,
            axes=variant.axes,
            seed=seed,
            config=config.resolved(),
            audits=audits,
            tuned=tuned,
        )


def _combinations(
    study: StudyConfig, method: MethodConfig, base: Config, folder: Path
) -> Iterator[dict[str, Scalar]]:
    """Yield the values of the axes that make a difference to a method."""
    candidates = list(study.axes) if method.axes is None else method.axes
    first = {name: study.axes[name][0] for name in candidates}
    axes = [
        name
        for name in candidates
        if method.axes is not None
        or _distinct(
            [
                _changed(base, method, {**first, name: value}, folder)
                for value in study.axes[name]
            ]
        )
    ]
    for values in itertools.product(*(study.axes[name] for name in axes)):
        yield dict(zip(axes, values, strict=True))


def _distinct(configs: list[Config]) -> bool:
    """Tell whether settings differ in anything that is used."""
    return len({_without_unused(config).to_toml() for config in configs}) > 1


def _without_unused(config: Config) -> Config:
    """Return settings without those of an encoding where nothing is encoded."""
    if config.instahide.method != "none":
        return config
    plain = {
        name: value
        for name, value in Config().to_run_config().items()
        if name.startswith("instahide.")
    }
    return config.with_values({**plain, "instahide.method": "none"})


def _changed(
    base: Config, method: MethodConfig, values: Mapping[str, Scalar], folder: Path
) -> Config:
    try:
        return base.with_values({**method.changes, **values}).with_absolute_paths(
            folder
        )
    except ConfigError as error:
        varied = f", {values_in_words(values)}" if values else ""
        raise ConfigError(f"method {method.name!r}{varied}: {error}") from None


def _audit_config(
    config: Config, audit: AuditConfig, method: str, folder: Path
) -> Config:
    if audit.start == "training":
        if not (config.record.rounds and config.record.truth):
            raise ConfigError(
                f"audit {audit.name!r} attacks the training of method {method!r}, "
                f"which records nothing: set record.rounds and record.truth = true in "
                f"base"
            )
        return config
    try:
        return config.with_values(audit.changes).with_absolute_paths(folder)
    except ConfigError as error:
        raise ConfigError(
            f"audit {audit.name!r} of method {method!r}: {error}"
        ) from None


def _short(setting: str) -> str:
    return setting.rpartition(".")[2]
