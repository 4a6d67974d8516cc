"""The command `attack`, on real recorded runs."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from instahide_fl.audit.recorded_run import open_recorded_run
from instahide_fl.cli import app
from instahide_fl.engine.inline import run_inline
from instahide_fl.errors import (
    AttackError,
    ConfigError,
    OutputError,
    ThreatModelError,
    TranscriptError,
)
from instahide_fl.transcript.recorded import transcript_path
from tests.e2e.support import start

pytestmark = pytest.mark.slow

RECORDED = {
    "record.rounds": "all",
    "record.truth": True,
    "train.batch-size": 1,
    "train.clients-per-round": 3,
    "train.evaluate-every": 1,
    "partition.num-clients": 100,
    "model.name": "mlp",
    "model.width": 4,
    "instahide.num-mixed": 4,
    "model.sign-invariant": False,  # encodings come back with their signs
}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoded") / "run"
    return start(run_inline, path, **RECORDED, **{"train.rounds": 2})


@pytest.fixture(scope="module")
def decodable(tmp_path_factory):
    """One client with six images, whose encodings return round after round."""
    path = tmp_path_factory.mktemp("decodable") / "run"
    changes = {
        "train.rounds": 60,
        "train.evaluate-every": 60,
        "train.clients-per-round": 0,
        "partition.num-clients": 1,
        "data.train-rows": "0:6",
        "instahide.scope": "inside",
        "model.sign-invariant": "auto",  # absolute values are all that decoders need
        # So that gradients are those of a network that has hardly been trained.
        "server.learning-rate": 1e-6,
    }
    return start(run_inline, path, **{**RECORDED, **changes})


def attack(folder, *arguments):
    done = CliRunner().invoke(app, ["attack", str(folder.path), *arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def result(folder, name):
    return json.loads((folder.path / "attacks" / f"{name}.json").read_text())


def test_the_server_reads_encodings_and_labels_but_not_the_images(encoded):
    output = attack(encoded, "--attack", "first_layer", "--attack", "soft_labels")
    first, labels = result(encoded, "first_layer"), result(encoded, "soft_labels")
    assert first["metrics"]["encoding"]["ssim"]["mean"] > 0.999
    assert first["metrics"]["private"]["sign_best"]["ssim"]["mean"] < 0.5
    assert first["control"]["succeeds"]
    assert labels["metrics"]["labels"]["soft"]["max_error"] < 1e-5
    assert labels["verdict"] == "leaks"
    assert "method instahide: leaks" in output
    assert [row["round"] for row in first["by_round"]] == [1, 2]
    assert all(row["test_accuracy"] is not None for row in first["by_round"])
    for picture in ("first_layer.png", "first_layer-rounds.png"):
        assert (encoded.path / "attacks" / picture).stat().st_size > 5000
    before = (encoded.path / "attacks" / "first_layer.json").read_bytes()
    other = ("--attack", "first_layer", "--threat-model", "eavesdropper")
    attack(encoded, *other, "--no-control")
    found = result(encoded, "first_layer-as-eavesdropper")
    assert found["threat_model"] == "eavesdropper"
    assert (encoded.path / "attacks" / "first_layer.json").read_bytes() == before


def test_without_a_name_all_that_apply_are_run(encoded):
    few = ("--rounds", "1", "--set", "inverting_gradients.iterations=5")
    output = attack(encoded, *few)
    assert "imprint: left out" in output
    assert not (encoded.path / "attacks" / "dlg.json").exists()
    assert result(encoded, "inverting_gradients")["round"] == 1


def test_mapping_and_several_rounds_give_the_private_images(decodable):
    attack(decodable, "--attack", "two_step", "--attack", "decode_encodings")
    for name in ("two_step", "decode_encodings"):
        found = result(decodable, name)
        # Digits on black are harder on the decoder's sign coherence than photographs.
        assert found["metrics"]["private"]["sign_best"]["ssim"]["mean"] > 0.5
        assert found["verdict"] == "leaks to this adversary"


def test_a_control_that_cannot_be_repeated_is_left_out_with_the_reason(tmp_path):
    changes = {"model.name": "cnn-dropout", "train.rounds": 1}
    folder = start(run_inline, tmp_path / "run", **{**RECORDED, **changes})
    attack(folder, "--attack", "soft_labels")
    found = result(folder, "soft_labels")
    assert "drops units at random" in found["control"]["absent"]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (["--rounds", "9"], TranscriptError, "round 9 .*recorded: 1-2"),
        (["--attack", "guess"], ConfigError, "must be one of soft_labels"),
        (["--threat-model", "nobody"], ConfigError, "must be one of honest-server"),
        (["--set", "dlg.iterations=3"], ConfigError, "add --attack dlg"),
        (
            ["--attack", "dlg", "--set", "dlg.iteration=3"],
            ConfigError,
            "did you mean dlg.iterations",
        ),
        (["--set", "iterations=3"], ConfigError, "ATTACK.KEY"),
        (
            ["--attack", "two_step", "--threat-model", "participant"],
            ThreatModelError,
            "single updates .* participant withholds",
        ),
        (["--attack", "imprint"], AttackError, "crafted"),
    ],
)
def test_mistakes_are_one_line(encoded, arguments, error, text):
    with pytest.raises(error, match=text):
        attack(encoded, *arguments)


def test_runs_that_cannot_be_attacked_say_why(encoded, tmp_path):
    with pytest.raises(OutputError, match="not a run folder"):
        open_recorded_run(tmp_path)
    silent = start(
        run_inline,
        tmp_path / "silent",
        **{**RECORDED, "record.truth": False, "train.rounds": 1},
    )
    with pytest.raises(TranscriptError, match=r"record\.truth=true"):
        open_recorded_run(silent.path)
    path = transcript_path(silent.path, 1)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TranscriptError, match="cannot read"):
        open_recorded_run(silent.path)
