"""Which trackers a run has: noted in its folder, so that what comes later joins in.

A resumed training, an attack and an evaluation each find `tracking.json` in the run's
folder and show what they made where the training was shown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from instahide_fl.config import Config, Scalar
from instahide_fl.run_folder import RunFolder
from instahide_fl.tracking.event_files import EventFiles
from instahide_fl.tracking.mlflow_run import MlflowRun, open_experiment
from instahide_fl.tracking.tracker import State, Tracker, require

TRACKING = "tracking.json"


class Trackers:
    """All trackers of a run; none is as good as any number.

    Args:
        trackers: of them.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def log_round(self, row: Mapping[str, Any]) -> None:
        """Show a round, as metrics.jsonl has it."""
        for one in self._trackers:
            one.log_round(row)

    def log_results(
        self, name: str, figures: Mapping[str, float], files: Sequence[Path], step: int
    ) -> None:
        """Show figures and those files that are there; see `Tracker.log_results`."""
        present = [path for path in files if path.is_file()]
        for one in self._trackers:
            one.log_results(name, figures, present, step)

    def close(self, state: State | None) -> None:
        """Write what is left."""
        for one in self._trackers:
            one.close(state)


def check_tracking(config: Config) -> None:
    """Find mistakes before anything is started, and make MLflow's experiment.

    Made once here, it is not made by several runs of a study at the same moment.

    Raises:
        ConfigError: a package is not installed.
        OutputError: MLflow does not answer.
    """
    if config.output.tensorboard:
        require("tensorboard", "output.tensorboard", "tensorboard")
    if config.output.mlflow:
        require("mlflow", "output.mlflow", "mlflow")
        open_experiment(config.output.mlflow)


def tracking_settings(folder: RunFolder) -> dict[str, Scalar]:
    """Return the settings under which a run is tracked already."""
    noted = folder.read_json(TRACKING)
    return {
        "output.tensorboard": bool(noted.get("tensorboard")),
        "output.mlflow": noted.get("mlflow", {}).get("uri", ""),
    }


@contextlib.contextmanager
def tracked_training(
    folder: RunFolder, config: Config, done: int
) -> Iterator[Trackers]:
    """Give the trackers of a training, and tell them how it ended.

    Args:
        folder: of the run.
        config: its settings.
        done: rounds that are behind it; 0 for a new one.

    Raises:
        ConfigError: a package is not installed.
        OutputError: a tracker cannot be written.
    """
    check_tracking(config)
    trackers = Trackers(list(_trackers_for(folder, config, done)))
    try:
        yield trackers
    except Exception:
        trackers.close("FAILED")
        raise
    except BaseException:
        trackers.close("KILLED")
        raise
    trackers.close("FINISHED")


def _trackers_for(folder: RunFolder, config: Config, done: int) -> Iterator[Tracker]:
    noted = folder.read_json(TRACKING)
    if config.output.tensorboard:
        events = EventFiles(folder.path, done)
        if not noted.get("tensorboard"):
            events.log_settings(config.to_toml())
        noted["tensorboard"] = True
        yield events
    if config.output.mlflow:
        run = _mlflow_run(folder, config, noted.get("mlflow", {}))
        noted["mlflow"] = {"uri": run.uri, "run_id": run.run_id}
        yield run
    if noted:
        folder.write_json(TRACKING, noted)


def _mlflow_run(
    folder: RunFolder, config: Config, noted: Mapping[str, str]
) -> MlflowRun:
    uri = config.output.mlflow
    if noted.get("uri") == uri:
        run = MlflowRun(uri, noted["run_id"])
        run.resume()
        return run
    settings = {
        name: value
        for name, value in config.to_run_config().items()
        if not name.startswith("output.")
    }
    return MlflowRun.start(uri, _name(folder.path.absolute()), settings)


def _name(path: Path) -> str:
    """Return the folder's name; that of a study's audit begins with its run's."""
    if path.parent.name == "audits":
        return f"{path.parent.parent.name}/{path.name}"
    return path.name


def log_results(
    folder: RunFolder, name: str, figures: Mapping[str, float], files: Sequence[Path]
) -> None:
    """Show what came out after the training, if the run is tracked.

    Args:
        folder: of the run.
        name: of the results, for instance "attacks/first_layer".
        figures: by name.
        files: those of them that are there.

    Raises:
        ConfigError: a tracker's package is not installed any more.
        OutputError: a tracker cannot be written.
    """
    noted = folder.read_json(TRACKING)
    if not noted:
        return
    rounds = [int(row["round"]) for row in folder.metrics()]
    trackers: list[Tracker] = []
    if noted.get("tensorboard"):
        require("tensorboard", "output.tensorboard", "tensorboard")
        trackers.append(EventFiles(folder.path, None))
    if where := noted.get("mlflow"):
        require("mlflow", "output.mlflow", "mlflow")
        trackers.append(MlflowRun(where["uri"], where["run_id"]))
    every = Trackers(trackers)
    every.log_results(name, figures, files, max(rounds, default=0))
    every.close(None)
