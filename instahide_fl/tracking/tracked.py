"""The trackers of a run, which tracking.json in its folder lists.

A resumed training, an attack and an evaluation read it and show their results where the
training was shown.
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
    """All trackers of a run, which may be none.

    Args:
        trackers: The trackers.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def log_round(self, row: Mapping[str, Any]) -> None:
        """Show a round, as metrics.jsonl has it."""
        for tracker in self._trackers:
            tracker.log_round(row)

    def log_results(
        self, name: str, figures: Mapping[str, float], files: Sequence[Path], step: int
    ) -> None:
        """Show figures, and the files that exist; see `Tracker.log_results`."""
        present = [path for path in files if path.is_file()]
        for tracker in self._trackers:
            tracker.log_results(name, figures, present, step)

    def close(self, state: State | None) -> None:
        """Write what is left; see `Tracker.close`."""
        for tracker in self._trackers:
            tracker.close(state)


def check_tracking(config: Config) -> None:
    """Check the trackers' settings before a run, and make MLflow's experiment.

    The experiment is made here, once, so that several runs of a study do not make it at
    the same moment.

    Args:
        config: The run's settings.

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
    tracking = folder.read_json(TRACKING)
    return {
        "output.tensorboard": bool(tracking.get("tensorboard")),
        "output.mlflow": tracking.get("mlflow", {}).get("uri", ""),
    }


@contextlib.contextmanager
def tracked_training(
    folder: RunFolder, config: Config, last_round: int
) -> Iterator[Trackers]:
    """Open the trackers of a training, and tell them how it ended.

    Args:
        folder: The run's folder.
        config: The run's settings.
        last_round: The last round that is trained already; 0 for a new run.

    Yields:
        The trackers.

    Raises:
        ConfigError: a package is not installed.
        OutputError: a tracker cannot be written.
    """
    check_tracking(config)
    trackers = Trackers(list(_trackers_for(folder, config, last_round)))
    try:
        yield trackers
    except Exception:
        trackers.close("FAILED")
        raise
    except BaseException:
        trackers.close("KILLED")
        raise
    trackers.close("FINISHED")


def _trackers_for(
    folder: RunFolder, config: Config, last_round: int
) -> Iterator[Tracker]:
    """Yield the trackers that the settings ask for, and note them in tracking.json."""
    tracking = folder.read_json(TRACKING)
    if config.output.tensorboard:
        events = EventFiles(folder.path, last_round)
        if not tracking.get("tensorboard"):
            events.log_settings(config.to_toml())
        tracking["tensorboard"] = True
        yield events
    if config.output.mlflow:
        run = _mlflow_run(folder, config, tracking.get("mlflow", {}))
        tracking["mlflow"] = {"uri": run.uri, "run_id": run.run_id}
        yield run
    if tracking:
        folder.write_json(TRACKING, tracking)


def _mlflow_run(
    folder: RunFolder, config: Config, earlier: Mapping[str, str]
) -> MlflowRun:
    """Resume the run that the folder was tracked as, or start one."""
    uri = config.output.mlflow
    if earlier.get("uri") == uri:
        run = MlflowRun(uri, earlier["run_id"])
        run.resume()
        return run
    settings = {
        name: value
        for name, value in config.to_run_config().items()
        if not name.startswith("output.")
    }
    return MlflowRun.start(uri, _name(folder.path.absolute()), settings)


def _name(path: Path) -> str:
    """Return the folder's name; an audit's begins with the name of its run."""
    if path.parent.name == "audits":
        return f"{path.parent.parent.name}/{path.name}"
    return path.name


def log_results(
    folder: RunFolder, name: str, figures: Mapping[str, float], files: Sequence[Path]
) -> None:
    """Show results that were made after the training, if the run is tracked.

    Args:
        folder: The run's folder.
        name: The name of the results, for instance "attacks/first_layer".
        figures: The figures by name.
        files: The files to show; those that do not exist are skipped.

    Raises:
        ConfigError: a tracker's package is not installed any more.
        OutputError: a tracker cannot be written.
    """
    tracking = folder.read_json(TRACKING)
    if not tracking:
        return
    trackers: list[Tracker] = []
    if tracking.get("tensorboard"):
        require("tensorboard", "output.tensorboard", "tensorboard")
        trackers.append(EventFiles(folder.path, None))
    if mlflow := tracking.get("mlflow"):
        require("mlflow", "output.mlflow", "mlflow")
        trackers.append(MlflowRun(mlflow["uri"], mlflow["run_id"]))
    last_round = max((int(row["round"]) for row in folder.metrics()), default=0)
    every_tracker = Trackers(trackers)
    every_tracker.log_results(name, figures, files, last_round)
    every_tracker.close(None)
