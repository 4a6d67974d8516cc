"""What the server makes of its evaluations: validation, chance and divergence."""

from __future__ import annotations

import json
from functools import partial

import pytest

from instahide_fl.data.federated_data import load_federated_data
from instahide_fl.errors import ConfigError, DivergenceError, OutputError, PoolError
from instahide_fl.evaluation.clean import evaluate
from instahide_fl.evaluation.finished_run import open_finished_run
from instahide_fl.run_folder import MODEL, RunFolder
from instahide_fl.tensor_files import load_tensors
from server.evaluation import find_evaluator
from tests.apps.inline_runs import settings_over, start

SMALL = {
    "data.train-rows": "0:400",
    "instahide.method": "none",
    "model.name": "strided-cnn",
    "model.width": 4,
    "partition.num-clients": 3,
    "train.rounds": 4,
    "train.batch-size": 16,
    "train.evaluate-every": 1,
    "train.checkpoint-every": 2,
}


settings = partial(settings_over, SMALL)


def test_validation_images_are_evaluated_as_test_images_are(tmp_path):
    config = settings(data__validation_share=0.25, train__evaluate_every=2)
    folder = start(tmp_path / "run", config)
    rows, summary = folder.metrics(), folder.read_json("summary.json")
    assert ["validation_accuracy" in row for row in rows] == [False, True] * 2
    last = rows[-1]
    assert summary["validation_accuracy"] == last["validation_accuracy"]
    assert summary["validation_loss"] == last["validation_loss"]
    accuracies = {row["round"]: row.get("validation_accuracy", 0) for row in rows}
    best = summary["best_validation_round"]
    assert accuracies[best] == max(accuracies.values())
    assert summary["best_validation_accuracy"] == accuracies[best]
    at_best = summary["test_accuracy_at_best_validation"]
    assert at_best == rows[best - 1]["test_accuracy"]
    run = open_finished_run(folder.path)
    expected = (last["validation_accuracy"], last["validation_loss"])
    assert evaluate(run.model, run.dataset.validation) == expected
    partition = json.loads((folder.path / "partition.json").read_text())
    assert len(partition["held_out"]["validation"]) == len(run.dataset.validation)
    assert sum(map(len, partition["clients"])) == 400 - len(run.dataset.validation)


ENCODING = {"instahide__method": "instahide"}


@pytest.mark.parametrize("scope", ["cross", "inside"])
def test_evaluating_encodings_repeats_and_leaves_the_run_as_it_is(tmp_path, scope):
    config = settings(**ENCODING, instahide__scope=scope, train__rounds=2)
    clean = start(tmp_path / "clean", config)
    with_encodings = config.with_values({"train.evaluate-encodings": 2})
    runs = [start(tmp_path / name, with_encodings) for name in ("first", "second")]
    models = {(run.path / MODEL).read_bytes() for run in [clean, *runs]}
    assert len(models) == 1
    figures = [_figures(run) for run in [clean, *runs]]
    assert figures[1] == figures[2]
    for row, expected in zip(figures[1], figures[0], strict=True):
        assert 0 < row.pop("test_accuracy_encoded") < 1
        assert row == expected
    encoded = runs[0].metrics()[-1]["test_accuracy_encoded"]
    assert runs[0].summary()["final_accuracy_encoded"] == encoded
    assert "final_accuracy_encoded" not in clean.summary()


def _figures(folder):
    """The figures of each round that repeat: all but times."""
    return [
        {name: value for name, value in row.items() if "seconds" not in name}
        for row in folder.metrics()
    ]


def test_encodings_are_evaluated_where_there_are_any(tmp_path):
    plain = start(tmp_path / "run", settings(train__evaluate_encodings=2))
    assert "test_accuracy_encoded" not in plain.metrics()[-1]
    encoded = {**ENCODING, "train__evaluate_encodings": 2}
    with pytest.raises(
        ConfigError, match=r"cannot reach instahide\.min-private-weight"
    ):
        settings(**encoded, instahide__min_private_weight=0.7)
    config = settings(**encoded)
    dataset = load_federated_data(config).dataset
    with pytest.raises(PoolError, match=r"that of the clients has 0123456789ab: copy"):
        find_evaluator(None, None, dataset, config, pool_sha256="0123456789abcdef")


def test_a_run_is_not_resumed_with_another_validation_share(tmp_path):
    config = settings(data__validation_share=0.25)
    folder = start(tmp_path / "run", config)
    (folder.path / "summary.json").unlink()
    for share in (0.5, 0.0):
        with pytest.raises(OutputError, match="changed since the run began"):
            start(folder.path, settings(data__validation_share=share), resume=True)
    start(folder.path, config, resume=True)


@pytest.mark.parametrize(("rounds", "trained"), [(3, False), (60, True)])
def test_a_summary_says_whether_anything_was_learned(tmp_path, rounds, trained):
    config = settings(
        train__rounds=rounds, train__chance_check=2, train__evaluate_every=3
    )
    folder = start(tmp_path / "run", config)
    summary = folder.read_json("summary.json")
    assert summary["trained"] is trained
    assert (summary["final_accuracy"] > summary["chance_bound"]) is trained
    # The first evaluation from round 2 on; a run's last round is not "on the way".
    at_chance = [row["round"] for row in folder.metrics() if row.get("at_chance")]
    assert at_chance == ([3] if rounds > 3 else [])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"server__learning_rate": 1e12},
            r"round 1: the loss of the global model on test images is not finite: "
            r"lower server\.learning-rate \(now 1e\+12\); there is no checkpoint yet",
        ),
        (
            {"train__mode": "update", "train__learning_rate": 1e5},
            r"round 1: 0 of 3 clients .*; training diverged on clients 0, 1, 2: lower "
            r"train\.learning-rate \(now 100000\); there is no checkpoint yet",
        ),
        (
            {
                "train__mode": "update",
                "train__learning_rate": 1e5,
                "secure_aggregation__enabled": True,
            },
            r"value of nan cannot be masked.*; training diverged on clients 0, 1, 2: ",
        ),
    ],
)
def test_a_run_that_diverges_ends_with_round_clients_and_remedy(
    tmp_path, changes, reason
):
    changes = {
        key.replace("secure_aggregation", "secure-aggregation"): value
        for key, value in changes.items()
    }
    with pytest.raises(DivergenceError, match=reason):
        start(tmp_path / "run", settings(**changes))
    folder = RunFolder(tmp_path / "run")
    assert isinstance(folder.failure(), DivergenceError)
    assert "NaN" not in json.dumps(folder.metrics())


def test_a_model_and_a_checkpoint_from_before_the_divergence_are_there(
    tmp_path, monkeypatch
):
    """The learning rate explodes in round 4, behind a checkpoint and an evaluation."""
    from instahide_fl.config import TrainConfig

    monkeypatch.setattr(
        TrainConfig,
        "learning_rate_factor",
        lambda self, number: 1e14 if number == 4 else 1.0,
    )
    config = settings(train__rounds=6, train__evaluate_every=3)
    message = r"round 4: .* the checkpoint before it is kept, and .* of round 3"
    with pytest.raises(DivergenceError, match=message):
        start(tmp_path / "run", config)
    folder = RunFolder(tmp_path / "run")
    assert [row["round"] for row in folder.metrics()] == [1, 2, 3]
    assert not folder.finished
    tensors, about = load_tensors(folder.path / "checkpoint/state.safetensors")
    assert about["round"] == "2"
    model, _ = load_tensors(folder.path / MODEL)
    for arrays in (tensors, model):
        assert all(array.abs().max() < 10 for array in arrays.values())
    monkeypatch.undo()
    start(folder.path, config, resume=True)
    assert folder.finished
