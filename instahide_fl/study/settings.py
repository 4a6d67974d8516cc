"""The settings of a study: what is compared, what is varied, what is attacked."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, field_validator, model_validator

from instahide_fl.config import Config, Scalar, flatten_tables
from instahide_fl.config.base import CountOrZero, Table
from instahide_fl.errors import ConfigError
from instahide_fl.study.tuning import (
    VALIDATION_SHARE,
    TrialLists,
    TuningConfig,
    trial_values,
)

Effort: TypeAlias = Literal["quick", "full"]


class MethodConfig(Table):
    """A method that is compared: a row of the tables, a colour of the plots."""

    section: ClassVar[str] = "methods"

    name: Annotated[str, Field(min_length=1)]
    """The name in tables and plots."""
    settings: dict[str, Any] = Field(default={})
    """The settings that differ from the base, as TOML tables."""
    axes: list[str] | None = None
    """The axes that the method is varied along; without it, all that matter to it."""
    trials: TrialLists | None = None
    """The method's own trials, in place of those of the table `[tuning.trials]`."""

    @property
    def changes(self) -> dict[str, Scalar]:
        """The method's settings by dotted name."""
        return flatten_tables(self.settings)


class EffortConfig(Table):
    """How much the attacks of a study may cost."""

    section: ClassVar[str] = "audit"

    effort: Effort = "full"
    """`full`: attacks with their default settings. `quick`: fewer iterations, for a
    first answer; an attack that finds nothing then says less."""


class AuditConfig(Table):
    """Attacks after the training of each method, most often on a short run of its own.

    Attacks on gradients are measured at batch sizes that nobody trains with, so they do
    not work on the training itself. Whatever defends the training defends this run.
    """

    section: ClassVar[str] = "audits"

    name: Annotated[str, Field(min_length=1)]
    """The name in the report, for instance "gradients, batch 1"."""
    attacks: Annotated[list[str], Field(min_length=1)]
    """The attacks that are tried, by the names of `instahide-fl attack --list`."""
    start: Literal["initial", "trained", "training"] = "initial"
    """The parameters that the short run starts from: those that the training started
    from, or its result. Gradients of a fresh network leak most. `training`: there is no
    short run; the recorded rounds of the training itself are attacked."""
    threat_model: str = ""
    """The adversary; empty takes each attack's own."""
    settings: dict[str, Any] = Field(default={})
    """The settings that differ from the method's, as TOML tables. Without
    `record.rounds`, all its rounds are recorded."""
    attack_settings: dict[str, dict[str, Scalar]] = Field(default={})
    """The settings of attacks, by attack; they go before those of the effort."""
    effort: Effort | None = None
    """As `audit.effort` of the study, for this audit alone."""
    methods: list[str] | None = None
    """The methods that are audited; without it, all."""
    seeds: CountOrZero = 0
    """The number of seeds that are audited, from the study's first; 0 takes all."""

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        if self.start == "training" and self.settings:
            raise ValueError(
                f"audits: {self.name!r} attacks the training itself (start = "
                f'"training"), which has the settings of its method: leave out settings'
            )
        return self

    def with_effort(self, effort: Effort) -> AuditConfig:
        """Return the audit with the study's effort, unless it has its own."""
        if self.effort is not None:
            return self
        return self.model_copy(update={"effort": effort})

    @property
    def changes(self) -> dict[str, Scalar]:
        """The audit's settings by dotted name, with all that an audit needs."""
        recorded: dict[str, Scalar] = {"record.rounds": "all", "record.truth": True}
        return {**recorded, **flatten_tables(self.settings)}

    @property
    def folder(self) -> str:
        """The audit's name, fit for a folder."""
        return fit_for_folder(self.name)


class StudyConfig(Table):
    """A study: methods that are compared, varied and attacked."""

    title: Annotated[str, Field(min_length=1)]
    """The title of the report."""
    question: str = ""
    """The question that the study answers, in a paragraph."""
    seeds: list[CountOrZero] = Field(default=[0], min_length=1)
    """The seeds: each method is run once with each of them."""
    base: dict[str, Any] = Field(default={})
    """The settings of all runs, as TOML tables."""
    methods: Annotated[list[MethodConfig], Field(min_length=1)]
    """The methods that are compared."""
    axes: dict[str, list[Scalar]] = Field(default={})
    """The settings that are varied, by dotted name, with their values."""
    audits: list[AuditConfig] = Field(default=[])
    """The audits of each method."""
    audit: EffortConfig = EffortConfig()
    """What holds for all audits."""
    tuning: TuningConfig | None = None
    """How the settings of each method are chosen; without it, they are as written."""
    reference: str = ""
    """The method that accuracy is compared with; empty takes the first one that hides
    nothing and defends nothing."""

    @field_validator("axes")
    @classmethod
    def _no_empty_axis(cls, axes: dict[str, list[Scalar]]) -> dict[str, list[Scalar]]:
        for name, values in axes.items():
            if not values or len(set(values)) < len(values):
                raise ValueError(
                    f"{name!r} needs a list of different values, got {values}"
                )
        return axes

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        _check_distinct("methods", [method.name for method in self.methods])
        _check_distinct("audits", [audit.name for audit in self.audits])
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ, got {self.seeds}")
        methods = {method.name for method in self.methods}
        for audit in self.audits:
            for name in audit.methods or []:
                if name not in methods:
                    raise ValueError(
                        f"audits: {audit.name!r} is for the method {name!r}, which the "
                        f"study does not have"
                    )
        return self

    @model_validator(mode="after")
    def _check_axes(self) -> Self:
        fixed = {"seed": "the list seeds"} if "seed" in self.axes else {}
        for method in self.methods:
            for name in method.axes or []:
                if name not in self.axes:
                    raise ValueError(
                        f"methods: {method.name!r} names the axis {name!r}, which "
                        f"[axes] lacks"
                    )
            varied = self.axes if method.axes is None else method.axes
            for name in varied:
                if name in method.changes:
                    fixed[name] = f"the method {method.name!r}"
        for name, source in fixed.items():
            raise ValueError(
                f"axes: {name} contradicts {source}, which sets it too: leave it out "
                f"of one of them, or list the method's own axes (axes = [])"
            )
        return self

    @model_validator(mode="after")
    def _check_reference(self) -> Self:
        names = [method.name for method in self.methods]
        if self.reference and self.reference not in names:
            raise ValueError(
                f"reference must be the name of a method ({', '.join(names)}), got "
                f"{self.reference!r}"
            )
        return self

    @model_validator(mode="after")
    def _check_tuning(self) -> Self:
        for method in self.methods:
            if self.tuning is None and method.trials is not None:
                raise ValueError(
                    f"methods: {method.name!r} has trials, which need the table "
                    f"[tuning]"
                )
        if self.tuning is not None:
            self._check_set_once()
            self._check_num_trials(self.tuning)
        return self

    def _check_set_once(self) -> None:
        """Refuse settings that tuning and another table of the study give."""
        for method in self.methods:
            axes = self.axes if method.axes is None else method.axes
            fixed = {
                **dict.fromkeys(axes, "an axis"),
                **dict.fromkeys(method.changes, "the method's settings"),
            }
            for values in self.trials_of(method)[:1]:
                for name in values:
                    if name in fixed:
                        raise ValueError(
                            f"tuning: {name} is in the trials of method "
                            f"{method.name!r} and in {fixed[name]}: leave it out of one"
                        )
            if VALIDATION_SHARE in {*fixed, *flatten_tables(self.base)}:
                raise ValueError(
                    f"tuning: validation-share sets {VALIDATION_SHARE} of all runs: "
                    f"leave the latter out of base, methods and axes"
                )

    def _check_num_trials(self, tuning: TuningConfig) -> None:
        """Refuse methods with different numbers of trials."""
        counts = {method.name: len(self.trials_of(method)) for method in self.methods}
        if not any(counts.values()):
            raise ValueError(
                "tuning: no method has trials: write them into [tuning.trials], or "
                "[methods.trials] for one method"
            )
        if len(set(counts.values())) > 1 and not tuning.allow_unequal:
            listed = ", ".join(f"{name!r} {count}" for name, count in counts.items())
            raise ValueError(
                f"tuning: methods need the same number of trials, because more trials "
                f"make a method look better, got {listed} (to compare them all the "
                f"same, and have the report say so, set allow-unequal = true)"
            )

    def trials_of(self, method: MethodConfig) -> list[dict[str, Scalar]]:
        """Return the settings of each trial of a method, by dotted name.

        Args:
            method: A method of the study.
        """
        if self.tuning is None:
            return []
        own = method.trials
        return trial_values(self.tuning.trials if own is None else own)

    @classmethod
    def from_toml(cls, path: Path) -> StudyConfig:
        """Read a study file.

        Args:
            path: The study file.

        Raises:
            ConfigError: the file is missing, is not TOML, or holds a bad setting.
        """
        try:
            with path.open("rb") as file:
                tables = tomllib.load(file)
        except OSError as error:
            raise ConfigError(
                f"cannot read the study file {path}: {error.strerror}"
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from None
        try:
            return cls(**tables)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def base_config(self, folder: Path) -> Config:
        """Return the settings that all runs share.

        Args:
            folder: The folder that relative paths start from.

        Raises:
            ConfigError: a setting is unknown or not valid.
        """
        try:
            config = Config.from_run_config(flatten_tables(self.base))
            if self.tuning is not None:
                share = self.tuning.validation_share
                config = config.with_values({VALIDATION_SHARE: share})
            return config.with_absolute_paths(folder)
        except ConfigError as error:
            raise ConfigError(f"base: {error}") from None


def fit_for_folder(name: str) -> str:
    """Return a name in lower case, with hyphens for all that paths may not hold."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "unnamed"


def _check_distinct(what: str, names: Sequence[str]) -> None:
    """Refuse names that would give the same folder."""
    for position, name in enumerate(names):
        for other in names[:position]:
            if fit_for_folder(name) == fit_for_folder(other):
                raise ValueError(f"{what}: {other!r} and {name!r} have the same name")
