"""Transcripts: exactly what crossed the wire, whoever runs the clients."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import safetensors
import torch

from instahide_fl.config import Config
from instahide_fl.engine.inline import run_inline
from instahide_fl.errors import TranscriptError
from instahide_fl.models.arrays import get_arrays, load_arrays
from instahide_fl.models.registry import build_model
from instahide_fl.run_folder import RunFolder
from instahide_fl.training.losses import soft_cross_entropy
from instahide_fl.transcript.recorded import (
    read_transcript,
    recorded_rounds,
    transcript_path,
)
from instahide_fl.transcript.truth import TRUTH, read_truth, truth_path
from tests.e2e.support import model_bytes, start

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow

RECORD = {"record.rounds": "1, 3", "record.truth": True}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("recorded") / "run"
    return start(run_inline, path, **RECORD)


def test_recording_changes_nothing(recorded, tmp_path):
    plain = start(run_inline, tmp_path / "plain")
    assert model_bytes(plain) == model_bytes(recorded)
    assert recorded_rounds(recorded.path) == [1, 3]


def test_an_update_is_the_gradient_on_the_encodings_in_truth(recorded):
    config = recorded.config()
    seen = read_transcript(recorded.path, 3)
    assert len(seen.updates) == 3
    client, update = next(iter(seen.updates.items()))
    truth = read_truth(recorded.path, 3, client)
    model = build_model(config.network, seen.image_shape, seen.num_classes, config.seed)
    load_arrays(model, seen.parameters)
    assert get_arrays(model).keys() == update.arrays.keys()
    soft_cross_entropy(model(truth.encodings), truth.soft_targets).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, update.arrays[name])
    own = truth.images[truth.components[:, 0]]
    assert own.shape == truth.encodings.shape
    assert truth.batch_sizes == (16,)


def test_nothing_of_the_truth_reaches_the_transcript(recorded, tmp_path):
    silent = start(run_inline, tmp_path / "silent", **{"record.rounds": "1, 3"})
    assert not (silent.path / TRUTH).exists()
    for number in (1, 3):
        files = [transcript_path(run.path, number) for run in (recorded, silent)]
        with safetensors.safe_open(files[0], framework="pt") as file:
            kinds = {name.split("/")[0] for name in file.keys()}  # noqa: SIM118
        assert kinds == {"global", "update", "aggregate"}
        one, other = (read_transcript(run.path, number) for run in (recorded, silent))
        assert one.updates.keys() == other.updates.keys()
        for client, update in one.updates.items():
            assert_same(update.arrays, other.updates[client].arrays)
            told = update.metrics.keys()
            assert told == other.updates[client].metrics.keys()
            assert told <= {
                *("train_loss", "seconds"),
                *("exposures_max", "exposures_mean"),
            }


def test_the_server_never_opens_the_truth():
    for path in sorted((ROOT / "server").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert "truth" not in (node.module or ""), path
    text = (ROOT / "instahide_fl" / "transcript" / "recorded.py").read_text()
    assert "transcript.truth" not in text


def test_damaged_and_missing_rounds_are_named(recorded, tmp_path):
    with pytest.raises(TranscriptError, match=r"round 2 .*recorded: 1, 3"):
        read_transcript(recorded.path, 2)
    whole = transcript_path(recorded.path, 1).read_bytes()
    cut = transcript_path(tmp_path, 1)
    cut.parent.mkdir(parents=True)
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TranscriptError, match="record it again"):
        read_transcript(tmp_path, 1)
    with pytest.raises(TranscriptError, match=r"record\.truth=true"):
        read_truth(tmp_path, 1, "0")


def test_local_steps_are_recorded_step_by_step(tmp_path):
    changes = {
        **RECORD,
        "data.train-rows": "0:200",
        "train.mode": "update",
        "train.local-epochs": 2,
    }
    folder = start(run_inline, tmp_path / "run", **changes)
    seen = read_transcript(folder.path, 1)
    client, update = next(iter(seen.updates.items()))
    truth = read_truth(folder.path, 1, client)
    assert seen.kind == "delta"
    assert sum(truth.batch_sizes) == 2 * update.num_examples == len(truth.encodings)


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert torch.equal(array, right[name]), name


def test_a_run_folder_without_a_transcript_says_how_to_get_one(tmp_path):
    RunFolder.create(tmp_path / "run", Config())
    with pytest.raises(TranscriptError, match=r"--set record\.rounds"):
        read_transcript(tmp_path / "run", 1)
    assert not truth_path(tmp_path / "run", 1, "0").exists()
