"""MLflow: a run of the experiment `instahide-fl`, on a server or in a database file."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from instahide_fl.errors import OutputError
from instahide_fl.tracking.tracker import State, round_figures

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger("instahide_fl.tracking")

EXPERIMENT = "instahide-fl"
SQLITE = "sqlite:///"
EVERY_ROUND = "seconds"  # which each round has: the last one logged is read off it
PARAMS_AT_ONCE = 100  # MLflow takes no more

T = TypeVar("T")


class MlflowRun:
    """Logs to one run of MLflow.

    Args:
        uri: of the tracking server or database.
        run_id: MLflow's.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        self._client = connect(uri)
        history = _asked(
            uri, lambda: self._client.get_metric_history(run_id, EVERY_ROUND)
        )
        self._done = max((one.step for one in history), default=0)
        self._waiting: list[Mapping[str, Any]] = []

    @classmethod
    def start(cls, uri: str, name: str, settings: Mapping[str, Any]) -> MlflowRun:
        """Begin a run.

        Args:
            uri: of the tracking server or database.
            name: that MLflow shows.
            settings: of the run, flat.

        Raises:
            OutputError: the server does not answer, or the database cannot be opened.
        """
        from mlflow.entities import Param

        client, experiment = connect(uri), open_experiment(uri)
        run_id = _asked(
            uri, lambda: str(client.create_run(experiment, run_name=name).info.run_id)
        )
        params = [Param(key, str(value)) for key, value in settings.items() if value]
        for first in range(0, len(params), PARAMS_AT_ONCE):
            few = params[first : first + PARAMS_AT_ONCE]
            _asked(uri, partial(client.log_batch, run_id, params=few))
        return cls(uri, run_id)

    def resume(self) -> None:
        """Mark the run as running again."""
        _asked(self.uri, lambda: self._client.update_run(self.run_id, "RUNNING"))

    def log_round(self, row: Mapping[str, Any]) -> None:
        """Log a round once, also where a resumed run repeats it.

        A server that does not answer must not end a training: the rounds wait for it.
        """
        if row["round"] <= self._done:
            return
        self._waiting.append(row)
        try:
            self._log_waiting()
        except OutputError as error:
            log.warning("round %d waits: %s", row["round"], error)

    def _log_waiting(self) -> None:
        while self._waiting:
            row = self._waiting[0]
            self._log_figures(round_figures(row), row["round"])
            self._done = row["round"]
            self._waiting.pop(0)

    def _log_figures(self, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in figures.items()]
        _asked(self.uri, lambda: self._client.log_batch(self.run_id, metrics=metrics))

    def log_results(
        self,
        name: str,
        figures: Mapping[str, float],
        files: Sequence[Path],
        step: int,
    ) -> None:
        """Log figures, and files in a folder of this name; the newest are shown."""
        if figures:
            self._log_figures({f"{name}/{k}": v for k, v in figures.items()}, step)
        folder = name.rpartition("/")[0] or None
        for path in files:
            log_artifact = partial(self._client.log_artifact, self.run_id)
            _asked(self.uri, partial(log_artifact, str(path), folder))

    def close(self, state: State | None) -> None:
        """Log rounds that wait, and how the training ended."""
        try:
            self._log_waiting()
            if state is not None:
                _asked(
                    self.uri,
                    lambda: self._client.set_terminated(self.run_id, status=state),
                )
        except OutputError as error:
            log.warning("the end of the run is not logged: %s", error)


def connect(uri: str) -> MlflowClient:
    """Return a client of a tracking server or database.

    Raises:
        OutputError: MLflow cannot use this address.
    """
    # MLflow reports its use to its makers unless told not to; experiments on privacy
    # must not, and whoever wants to can set the variable.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if uri.startswith(SQLITE):
        Path(uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    return _asked(uri, lambda: MlflowClient(tracking_uri=uri))


def open_experiment(uri: str) -> str:
    """Return the id of the experiment, which is made if it is not there.

    Raises:
        OutputError: the server does not answer, or the database cannot be opened.
    """
    client = connect(uri)
    found = _asked(uri, lambda: client.get_experiment_by_name(EXPERIMENT))
    if found is not None:
        return str(found.experiment_id)
    # Files lie beside the database, wherever the process happens to work.
    place = (
        (Path(uri.removeprefix(SQLITE)).absolute().parent / "mlruns").as_uri()
        if uri.startswith(SQLITE)
        else None
    )
    return _asked(uri, lambda: str(client.create_experiment(EXPERIMENT, place)))


def _asked(uri: str, question: Callable[[], T]) -> T:
    """Return what MLflow answers.

    Raises:
        OutputError: it cannot be reached, or refuses.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return question()
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise OutputError(
            f"MLflow at {uri} (output.mlflow): {reason}: give the file of a database "
            f"such as mlflow.db, or the address of a tracking server"
        ) from error
