from __future__ import annotations

import socket
import sqlite3
import time
from contextlib import closing

import pytest
from typer.testing import CliRunner

from instahide_fl.cli import app
from instahide_fl.config import Config
from instahide_fl.errors import ConfigError, OutputError
from instahide_fl.run_folder import RunFolder
from instahide_fl.tracking import mlflow_store
from instahide_fl.tracking.mlflow_run import MlflowRun
from instahide_fl.tracking.tracked import check_tracking, tracked_training

QUICK = [
    *("partition.num-clients=2", "train.clients-per-round=2", "model.name=mlp"),
    *("train.mode=gradient", "train.batch-size=1", "record.rounds=1"),
    *("record.truth=true", "train.checkpoint-every=1", "train.evaluate-every=1"),
]


def command(*arguments, code=0):
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == code, done.output
    return done.output


def train(folder, rounds, *arguments, code=0):
    settings = [*QUICK, f"train.rounds={rounds}"]
    sets = [part for one in settings for part in ("--set", one)]
    return command(
        *("run", "--engine", "inline", *sets, "--out", folder, *arguments), code=code
    )


def curves(folder):
    """Return what TensorBoard shows of a run: scalars by step, and images."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    scalars = {
        name: {one.step: one.value for one in events.Scalars(name)}
        for name in events.Tags()["scalars"]
    }
    return scalars, set(events.Tags()["images"])


def open_store(database):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    (experiment,) = client.search_experiments(filter_string="name = 'instahide-fl'")
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run of two rounds, attacked, tracked by both."""
    place = tmp_path_factory.mktemp("tracked")
    folder, database = place / "run", place / "mlflow.db"
    train(folder, 2, "--tensorboard", "--mlflow", database)
    command("attack", folder, "--attack", "first_layer", "--no-control")
    return folder, database


def test_tensorboard_shows_rounds_and_attacks(tracked):
    folder, _ = tracked
    scalars, images = curves(folder)
    logged = {row["round"]: row["test_accuracy"] for row in RunFolder(folder).metrics()}
    assert scalars["test_accuracy"] == pytest.approx(logged, abs=1e-6)
    # The network sees absolute values, so an encoding is recovered up to its signs.
    assert scalars["attacks/first_layer/encoding_ssim_mean"][2] < 0.5
    assert scalars["attacks/first_layer/encoding_folded_ssim_mean"][2] > 0.9
    assert {"partition", "attacks/first_layer"} <= images


def test_mlflow_has_settings_rounds_and_files(tracked):
    _, database = tracked
    client, run = open_store(database)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.name"] == "mlp"
    history = client.get_metric_history(run.info.run_id, "test_accuracy")
    assert [one.step for one in history] == [1, 2]
    files = {one.path for one in client.list_artifacts(run.info.run_id, "attacks")}
    assert "attacks/first_layer.png" in files


def test_a_continued_training_continues_its_curves(tmp_path):
    folder, database = tmp_path / "run", tmp_path / "mlflow.db"
    config = Config().with_values(
        {"output.tensorboard": True, "output.mlflow": f"sqlite:///{database}"}
    )
    run = RunFolder.create(folder, config)

    def interrupted():
        with tracked_training(run, config, 0) as trackers:
            for number in (1, 2, 3):
                trackers.log_round({"round": number, "seconds": 1.0, "test_loss": None})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert open_store(database)[1].info.status == "KILLED"
    # The checkpoint was that of round 2, so that round 3 comes once more.
    with tracked_training(run, config, 2) as trackers:
        for number in (3, 4):
            trackers.log_round({"round": number, "seconds": 2.0, "test_loss": None})
    scalars, _ = curves(folder)
    assert scalars == {"seconds": {1: 1.0, 2: 1.0, 3: 2.0, 4: 2.0}}
    client, kept = open_store(database)
    history = client.get_metric_history(kept.info.run_id, "seconds")
    assert [one.step for one in history] == [1, 2, 3, 4]


def test_what_is_not_asked_for_is_not_there(tmp_path):
    train(tmp_path / "run", 1)
    assert not list((tmp_path / "run").glob("events.out*"))
    assert not (tmp_path / "run" / "tracking.json").exists()


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = Config().with_values({"output.tensorboard": True})
    with pytest.raises(ConfigError, match=r"pip install 'instahide-fl\[tensorboard\]'"):
        check_tracking(config)


@pytest.mark.parametrize("silent", [True, False])
def test_a_server_that_does_not_answer_is_an_error_before_training(monkeypatch, silent):
    """It accepts connections and says nothing, or nobody listens there."""
    monkeypatch.setattr(mlflow_store, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        if not silent:
            server.close()
        started = time.monotonic()
        config = Config().with_values({"output.mlflow": address})
        with pytest.raises(OutputError, match=f"MLflow at {address} .* no answer"):
            check_tracking(config)
    assert time.monotonic() - started < 5


def test_what_is_no_database_is_refused_at_once(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.db").write_text("not a database, and long enough to tell" * 9)
    started = time.monotonic()
    for path, expected in (
        ("folder", r"is a folder: give the file .*folder/mlflow\.db"),
        ("text.db", "file is not a database"),
        ("text.db/mlflow.db", "Not a directory|File exists"),
    ):
        config = Config().with_values({"output.mlflow": f"sqlite:///{tmp_path / path}"})
        with pytest.raises(OutputError, match=expected):
            check_tracking(config)
    assert time.monotonic() - started < 5


def test_rounds_wait_for_a_database_without_delaying_the_training(
    tmp_path, monkeypatch
):
    database = tmp_path / "mlflow.db"
    monkeypatch.setattr(mlflow_store, "ANSWER_SECONDS", 0.2)
    run = MlflowRun.start(f"sqlite:///{database}", "run", {"seed": 1})
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        for number in range(1, 21):
            run.log_round({"round": number, "seconds": 1.0})
        assert time.monotonic() - started < 5
    run.close("FINISHED")
    client, logged = open_store(database)
    history = client.get_metric_history(logged.info.run_id, "seconds")
    assert [metric.step for metric in history] == list(range(1, 21))


def test_an_address_holds_no_password():
    with pytest.raises(ConfigError, match="must hold no password"):
        Config().with_values({"output.mlflow": "http://me:secret@host"})
