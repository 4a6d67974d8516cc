"""The runs that a study consists of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from instahide_fl.config import Config, Scalar
from instahide_fl.errors import ConfigError
from instahide_fl.study.settings import (
    AuditConfig,
    MethodConfig,
    StudyConfig,
    fit_for_folder,
)


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
    """

    name: str
    method: str
    axes: Mapping[str, Scalar]
    seed: int
    config: Config
    audits: tuple[tuple[AuditConfig, Config], ...]


def plan_runs(study: StudyConfig, folder: Path) -> tuple[PlannedRun, ...]:
    """Combine methods, axes and seeds; equal runs of a method are planned once.

    Args:
        study: The study.
        folder: The folder that relative paths start from.

    Raises:
        ConfigError: a combination is not valid; the text says which, and why.
    """
    base = study.base_config(folder)
    runs = [
        run
        for method in study.methods
        for values in _combinations(study, method, base, folder)
        for run in _with_seeds(study, method, values, base, folder)
    ]
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two runs of the study would have the name {name!r}")
    return tuple(runs)


def _with_seeds(
    study: StudyConfig,
    method: MethodConfig,
    values: Mapping[str, Scalar],
    base: Config,
    folder: Path,
) -> Iterator[PlannedRun]:
    for position, seed in enumerate(study.seeds):
        config = _changed(base, method, {**values, "seed": seed}, folder)
        parts = [method.name, *(f"{_short(k)}-{v}" for k, v in values.items())]
        name = "-".join(map(fit_for_folder, [*parts, f"seed-{seed}"]))
        audits = tuple(
            (audit, _audit_config(config, audit, method.name, folder))
            for audit in study.audits
            if (audit.methods is None or method.name in audit.methods)
            and (audit.seeds == 0 or position < audit.seeds)
        )
        yield PlannedRun(
            name=name,
            method=method.name,
            axes=values,
            seed=seed,
            config=config.resolved(),
            audits=audits,
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
        varied = "".join(f", {name} = {value}" for name, value in values.items())
        raise ConfigError(f"method {method.name!r}{varied}: {error}") from None


def _audit_config(
    config: Config, audit: AuditConfig, method: str, folder: Path
) -> Config:
    try:
        return config.with_values(audit.changes).with_absolute_paths(folder)
    except ConfigError as error:
        raise ConfigError(
            f"audit {audit.name!r} of method {method!r}: {error}"
        ) from None


def _short(setting: str) -> str:
    return setting.rpartition(".")[2]
