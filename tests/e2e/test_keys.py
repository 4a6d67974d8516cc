"""Seeded keys fall, secure ones do not, and no file gives them away."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest

import instahide_fl.rng
from instahide_fl.attacks.base import ignore_progress
from instahide_fl.attacks.key_replay.attack import KeyReplay
from instahide_fl.audit.recorded_run import open_recorded_run
from instahide_fl.audit.run_attacks import run_attack
from instahide_fl.engine.inline import run_inline
from instahide_fl.transcript.threat_model import threat_model
from tests.e2e.support import model_bytes, start

RECORDED = {
    "seed": 11,
    "record.rounds": "all",
    "record.truth": True,
    "train.rounds": 2,
    "partition.num-clients": 2,
    "train.clients-per-round": 2,
    "train.batch-size": 30,
    "data.train-rows": "0:60",
    "model.name": "mlp",
}


def searched(folder):
    model = threat_model(KeyReplay.threat_model)
    run = open_recorded_run(folder.path)
    return run_attack(run, KeyReplay(seeds=50), model, 0, ignore_progress)


def test_a_seeded_simulation_loses_its_keys_and_images(tmp_path):
    result = searched(start(run_inline, tmp_path / "run", **RECORDED))
    assert result.scores.keys.correct == result.scores.keys.count == 2 * 2 * 30
    assert result.verdict == "leaks"
    assert result.reconstruction.diagnostics["seed"] == 11
    # Four encodings for each unknown image part on average, but not for each image.
    assert result.scores.private.attack.ssim.mean > 0.5
    assert json.loads(json.dumps(result.to_json()))["metrics"]["keys"]["found"] == 120


@pytest.mark.parametrize("refresh", ["epoch", 2])
def test_secure_keys_are_not_found_and_are_in_no_file(tmp_path, monkeypatch, refresh):
    drawn = []
    draw = instahide_fl.rng.secrets.token_bytes

    def overheard(count):
        drawn.append(draw(count))
        return drawn[-1]

    monkeypatch.setattr(instahide_fl.rng.secrets, "token_bytes", overheard)
    secure = {"instahide.keys": "secure", "instahide.refresh": refresh}
    folder = start(run_inline, tmp_path / "run", **RECORDED, **secure)
    assert len(drawn) >= 2 * 2  # each client in each round
    secrets = [form for secret in drawn for form in forms(secret)]
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    # The truth holds keys, in simulations that ask for it, but not where they are from.
    assert {path.parent.name for path in files} >= {"transcript", "checkpoint"}
    for path in files:
        content = path.read_bytes()
        assert not any(form in content for form in secrets), path
        assert b"bit_generator" not in content
    result = searched(folder)
    assert result.scores.keys.correct == result.scores.keys.named == 0
    assert result.verdict == "no leak found by this attack (not a proof)"
    again = start(run_inline, tmp_path / "again", **RECORDED, **secure)
    assert model_bytes(folder) != model_bytes(again)


def forms(secret):
    """A secret as it might be written down, and the key of an unnamed stream of it."""
    digest = instahide_fl.rng._digest()
    for part in (secret, hashlib.sha256(secret + digest).digest()):
        number = int.from_bytes(part, "little")
        yield from (part, part.hex().encode(), base64.b64encode(part))
        yield str(number).encode()
