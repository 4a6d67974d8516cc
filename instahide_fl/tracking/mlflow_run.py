"""MLflow: runs of the experiment `instahide-fl`, on a server or in a database file."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from instahide_fl.environment import proxy_exceptions
from instahide_fl.errors import OutputError
from instahide_fl.tracking.mlflow_store import SQLITE, check_store, unusable_store
from instahide_fl.tracking.tracker import State, round_figures

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger("instahide_fl.tracking")

EXPERIMENT = "instahide-fl"
EVERY_ROUND = "seconds"  # a figure of each round: its steps are the rounds logged
MAX_PARAMS = 100  # that MLflow takes in one call
RETRY_SECONDS = 60.0  # from one try to reach a silent server to the next

T = TypeVar("T")


class MlflowRun:
    """Logs to one run of MLflow.

    Args:
        uri: The address of the tracking server or database.
        run_id: The id that MLflow gave the run.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        self._client = connect(uri)
        history = _call(
            uri, lambda: self._client.get_metric_history(run_id, EVERY_ROUND)
        )
        self._last_round = max((metric.step for metric in history), default=0)
        self._waiting: list[Mapping[str, Any]] = []
        self._silent_until = 0.0  # on the monotonic clock

    @classmethod
    def start(cls, uri: str, name: str, settings: Mapping[str, Any]) -> MlflowRun:
        """Begin a run.

        Args:
            uri: The address of the tracking server or database.
            name: The name that MLflow shows.
            settings: The run's settings, by dotted name.

        Raises:
            OutputError: the server does not answer, or the database cannot be opened.
        """
        from mlflow.entities import Param

        client, experiment = connect(uri), open_experiment(uri)
        run_id = _call(
            uri, lambda: str(client.create_run(experiment, run_name=name).info.run_id)
        )
        params = [Param(key, str(value)) for key, value in settings.items() if value]
        for first in range(0, len(params), MAX_PARAMS):
            batch = params[first : first + MAX_PARAMS]
            _call(uri, partial(client.log_batch, run_id, params=batch))
        return cls(uri, run_id)

    def resume(self) -> None:
        """Mark the run as running again."""
        _call(self.uri, lambda: self._client.update_run(self.run_id, "RUNNING"))

    def log_round(self, row: Mapping[str, Any]) -> None:
        """Log a round once, also where a resumed run repeats it.

        A server that does not answer must not end a training: the rounds wait here.
        """
        if row["round"] <= self._last_round:
            return
        self._waiting.append(row)
        if time.monotonic() < self._silent_until:
            return
        try:
            self._log_waiting()
        except OutputError as error:
            self._silent_until = time.monotonic() + RETRY_SECONDS
            log.warning("round %d waits: %s", row["round"], error)

    def _log_waiting(self) -> None:
        if self._waiting:
            check_store(self.uri)
        while self._waiting:
            row = self._waiting[0]
            self._log_figures(round_figures(row), row["round"])
            self._last_round = row["round"]
            self._waiting.pop(0)

    def _log_figures(self, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in figures.items()]
        _call(self.uri, lambda: self._client.log_batch(self.run_id, metrics=metrics))

    def log_results(
        self,
        name: str,
        figures: Mapping[str, float],
        files: Sequence[Path],
        step: int,
    ) -> None:
        """Log figures, and files in a folder of this name; see `Tracker.log_results`.

        MLflow shows the newest.
        """
        if figures:
            named = {f"{name}/{figure}": value for figure, value in figures.items()}
            self._log_figures(named, step)
        folder = name.rpartition("/")[0] or None
        for path in files:
            log_artifact = partial(self._client.log_artifact, self.run_id)
            _call(self.uri, partial(log_artifact, str(path), folder))

    def close(self, state: State | None) -> None:
        """Log the rounds that wait, and how the training ended."""
        try:
            check_store(self.uri)
            self._log_waiting()
            if state is not None:
                _call(
                    self.uri,
                    lambda: self._client.set_terminated(self.run_id, status=state),
                )
        except OutputError as error:
            log.warning("the end of the run is not logged: %s", error)


def connect(uri: str) -> MlflowClient:
    """Return a client of a tracking server or database.

    Args:
        uri: The address of the tracking server or database.

    Raises:
        OutputError: MLflow cannot use this address.
    """
    os.environ.update(proxy_exceptions(os.environ))
    check_store(uri)
    # MLflow reports its use to its makers by default. Experiments on privacy must not;
    # whoever wants it can set the variable.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return _call(uri, lambda: MlflowClient(tracking_uri=uri))


def open_experiment(uri: str) -> str:
    """Return the id of the experiment, which is made if it does not exist.

    Args:
        uri: The address of the tracking server or database.

    Raises:
        OutputError: the server does not answer, or the database cannot be opened.
    """
    client = connect(uri)
    experiment = _call(uri, lambda: client.get_experiment_by_name(EXPERIMENT))
    if experiment is not None:
        return str(experiment.experiment_id)
    # Artifacts lie beside the database, whatever the working directory is.
    artifacts = (
        (Path(uri.removeprefix(SQLITE)).absolute().parent / "mlruns").as_uri()
        if uri.startswith(SQLITE)
        else None
    )
    return _call(uri, lambda: str(client.create_experiment(EXPERIMENT, artifacts)))


def _call(uri: str, request: Callable[[], T]) -> T:
    """Return MLflow's answer to a request.

    Raises:
        OutputError: the server or database cannot be reached, or refuses.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return request()
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise unusable_store(uri, str(error).splitlines()[0]) from error
