"""A run's folder: what it holds, and how it is written so that it can be trusted.

config.toml         every setting
provenance.json     versions, git revision, hash of imported code, pool, seed, command
data-report.json    what the server read of its data set and left out, and warnings
partition.json      which client held which training image
partition.png       how many images of which class each client held
metrics.jsonl       one object a round
checkpoint/         newest complete state, and the one before
model.safetensors   final global parameters
summary.json        written last: a folder without it is not finished
evaluation.json     accuracy on encodings of test images (`instahide-fl evaluate`)
failure.json        why a run ended early
exposures/          how often simulated clients encoded each image; theirs alone
controls/           simulated clients' control variates, if there are any
transcript/         recorded rounds, as the server saw them (record.rounds)
truth/              what simulated clients hid in them (record.truth)
attacks/            the results of `instahide-fl attack`
logs/               logs of Flower, Ray and the apps
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors

from instahide_fl.checkpoints import ROUND, newest_checkpoint
from instahide_fl.config import Config, Scalar
from instahide_fl.errors import ConfigError, InstaHideError, OutputError, error_named
from instahide_fl.files import explained, remove_leftovers, write_text
from instahide_fl.run_summary import check_summary
from instahide_fl.tensor_files import load_tensors, save_checked_tensors, save_tensors

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "config.toml"
PROVENANCE = "provenance.json"
DATA_REPORT = "data-report.json"
PARTITION = "partition.json"
PARTITION_PICTURE = "partition.png"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint/state.safetensors"
PREVIOUS_CHECKPOINT = "checkpoint/previous.safetensors"
MODEL = "model.safetensors"
SUMMARY = "summary.json"
EVALUATION = "evaluation.json"
EVALUATION_PICTURE = "evaluation.png"
FAILURE = "failure.json"
ATTACK_RESULTS = "attacks"
LOGS = "logs"
LAST_SETTING = "resources.ray-address"  # ends every config.toml

SETTINGS_OF_EARLIER_VERSIONS: dict[str, Scalar] = {"model.sign-invariant": False}
"""What runs did of which the settings file of an earlier version does not speak."""


@dataclass(frozen=True)
class RunFolder:
    """Reads and writes one run's folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def create(cls, path: Path, config: Config) -> RunFolder:
        """Start a folder for a new run.

        Raises:
            OutputError: the folder holds something already, or cannot be written.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputError(
                f"{path} exists already: choose another --out, or continue an "
                f"interrupted run with --resume {path}"
            )
        with explained(path):
            (path / LOGS).mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        write_text(path / CONFIG, config.to_toml())
        return folder

    @classmethod
    def open_interrupted(cls, path: Path) -> RunFolder:
        """Open the folder of a run that did not finish, to continue it.

        Raises:
            OutputError: there is no run, or it is finished.
            ConfigError: its settings are not valid, or are of another network than it
                was started with.
        """
        folder = cls(path)
        if not (path / CONFIG).is_file():
            raise OutputError(f"--resume: {path} is not a run folder (no {CONFIG})")
        if folder.finished:
            raise OutputError(
                f"--resume: the run in {path} is finished; its result is in {SUMMARY}"
            )
        folder.check_same_network(folder.config())
        return folder

    @classmethod
    def open_finished(cls, path: Path) -> RunFolder:
        """Open the folder of a finished run, to look at its result.

        Raises:
            OutputError: there is no run, or it is not finished.
        """
        folder = cls(path)
        if not (path / CONFIG).is_file():
            raise OutputError(f"{path} is not a run folder (no {CONFIG})")
        if not folder.finished:
            raise OutputError(
                f"the run in {path} is not finished: continue it with instahide-fl run "
                f"--resume {path}"
            )
        return folder

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / SUMMARY).is_file()

    @property
    def resumable(self) -> bool:
        """Whether there is a checkpoint to continue from."""
        names = (CHECKPOINT, PREVIOUS_CHECKPOINT)
        return any((self.path / name).is_file() for name in names)

    def config(self) -> Config:
        """Read the settings.

        Raises:
            ConfigError: they are missing, not valid, or the file ends too early.
        """
        return Config.from_toml(
            self.path / CONFIG,
            absent=SETTINGS_OF_EARLIER_VERSIONS,
            required=LAST_SETTING,
        )

    def check_same_network(self, config: Config) -> None:
        """Refuse to continue with a network that sees its images in another way.

        Args:
            config: The settings to continue with.

        Raises:
            ConfigError: `model.sign-invariant` is another than at the run's start.
        """
        started_with = self.read_json(PROVENANCE).get("sign_invariant", False)
        if self.resumable and started_with != config.sign_invariant:
            was, now = (
                str(value).lower() for value in (started_with, config.sign_invariant)
            )
            raise ConfigError(
                f"--resume: the run was started with model.sign-invariant = {was}, and "
                f"{self.path / CONFIG} now says {now}: put it back, or start a new run"
            )

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write one of the JSON files.

        Args:
            name: The name of the file.
            value: The content.

        Raises:
            OutputError: the file cannot be written.
        """
        write_text(self.path / name, json.dumps(value, indent=2) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read one of the JSON files; an absent one is empty.

        Args:
            name: The name of the file.

        Raises:
            OutputError: the file is damaged.
        """
        try:
            text = (self.path / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise OutputError(f"cannot read {self.path / name}: {error}") from None
        try:
            content = json.loads(text)
        except ValueError as error:
            raise OutputError(f"{self.path / name} is damaged: {error}") from None
        if not isinstance(content, dict):
            raise OutputError(f"{self.path / name} is damaged: it is no JSON object")
        return content

    def summary(self) -> dict[str, Any]:
        """Read what the run reached; empty if it did not finish.

        Raises:
            OutputError: summary.json is damaged.
        """
        is_finished = self.finished
        content = self.read_json(SUMMARY)
        if is_finished and not content:
            raise OutputError(f"{self.path / SUMMARY} is damaged: it is empty")
        try:
            check_summary(content)
        except ValueError as error:
            raise OutputError(f"{self.path / SUMMARY} is damaged: {error}") from None
        return content

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a round's line to metrics.jsonl.

        Args:
            row: The figures of the round, with its number as "round".

        Raises:
            OutputError: the file cannot be written.
        """
        path = self.path / METRICS
        with explained(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Read the complete lines of metrics.jsonl, oldest first.

        Raises:
            OutputError: the file is damaged.
        """
        try:
            text = (self.path / METRICS).read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise OutputError(f"cannot read {self.path / METRICS}: {error}") from None
        complete = text[: text.rfind("\n") + 1]
        try:
            rows = [json.loads(line) for line in complete.splitlines()]
        except ValueError as error:
            raise OutputError(f"{self.path / METRICS} is damaged: {error}") from None
        if not all(isinstance(row, dict) and "round" in row for row in rows):
            raise OutputError(f"{self.path / METRICS} is damaged: a line is no round")
        return rows

    def save_checkpoint(self, round_number: int, tensors: Mapping[str, Tensor]) -> None:
        """Replace the checkpoint, in one step, and keep the one before.

        Args:
            round_number: The last completed round.
            tensors: The state of the server's optimizer, by name.

        Raises:
            OutputError: the file cannot be written.
        """
        # First the lines of its rounds: without them a checkpoint is of no use.
        with explained(self.path / METRICS), (self.path / METRICS).open("a") as file:
            os.fsync(file.fileno())
        save_checked_tensors(
            self.path / CHECKPOINT,
            tensors,
            {ROUND: str(round_number)},
            previous=self.path / PREVIOUS_CHECKPOINT,
        )

    def load_checkpoint(self) -> tuple[int, dict[str, Tensor]]:
        """Return the last completed round and the tensors of the checkpoint.

        Where the newest is damaged, it is the one before. Lines of metrics.jsonl from
        later rounds are dropped: these rounds will be trained again.

        Returns:
            The round and the tensors by name; 0 and nothing if the run was interrupted
            before its first checkpoint.

        Raises:
            OutputError: no checkpoint can be read, or it does not go with the rest.
        """
        remove_leftovers(self.path)
        last_round, tensors = newest_checkpoint(
            self.path / CHECKPOINT, self.path / PREVIOUS_CHECKPOINT
        )
        rows = [row for row in self.metrics() if row["round"] <= last_round]
        if [row["round"] for row in rows] != list(range(1, last_round + 1)):
            raise OutputError(
                f"{self.path / METRICS} does not hold each round up to {last_round}, "
                f"that of the checkpoint: put the file back, or start the run anew"
            )
        write_text(self.path / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
        return last_round, tensors

    def save_model(self, parameters: Mapping[str, Tensor]) -> None:
        """Write the final global parameters.

        Args:
            parameters: The parameters by name.

        Raises:
            OutputError: the file cannot be written.
        """
        save_tensors(self.path / MODEL, parameters, {"format": "pt"})

    def load_model(self) -> dict[str, Tensor]:
        """Read the final global parameters, by name, on the CPU.

        Raises:
            OutputError: the file is missing or damaged.
        """
        path = self.path / MODEL
        try:
            return load_tensors(path)[0]
        except (OSError, safetensors.SafetensorError) as error:
            raise OutputError(f"cannot read the model {path}: {error}") from None

    def record_failure(self, error: BaseException) -> None:
        """Write down why the run ended early, for the process that started it.

        Nothing is raised here: the error itself is being raised and says more.
        """
        name = type(error).__name__
        text = str(error) if isinstance(error, InstaHideError) else f"{name}: {error}"
        try:
            self.write_json(FAILURE, {"error": name, "message": text})
        except OutputError:
            return

    def clear_failure(self) -> None:
        """Remove the reason why an earlier attempt ended, before a new one starts.

        Raises:
            OutputError: the folder cannot be written.
        """
        with explained(self.path / FAILURE):
            (self.path / FAILURE).unlink(missing_ok=True)

    def failure(self) -> InstaHideError | None:
        """Return the recorded failure, or None."""
        try:
            row = json.loads((self.path / FAILURE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        try:
            return error_named(str(row["error"]), str(row["message"]))
        except (KeyError, TypeError):
            return error_named("EngineError", "the run failed")


def free_run_folder(parent: Path, config: Config) -> Path:
    """Return parent/DATASET-METHOD, or with -2, -3, ... behind it if that exists."""
    name = f"{Path(config.data.dataset).name}-{config.instahide.method}"
    path, number = parent / name, 1
    while path.exists():
        number += 1
        path = parent / f"{name}-{number}"
    return path
