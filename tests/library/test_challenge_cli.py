"""The commands `challenge ...` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from instahide_fl.attacks.base import Attack, Reconstruction, Recovered
from instahide_fl.attacks.registry import ATTACKS
from instahide_fl.transcript.threat_model import Knowledge
from tests.library.challenges import write_pictures, write_pool


class Folded(Attack):
    """Returns the first encodings without signs: something without any key."""

    name: ClassVar[str] = "carlini"
    summary: ClassVar[str] = "a stand-in"
    needs: ClassVar[frozenset[Knowledge]] = frozenset({Knowledge.ENCODINGS})
    cost: ClassVar[str] = "none"
    source: ClassVar[str] = "none"
    by_default: ClassVar[bool] = False
    threat_model: ClassVar[str] = "encodings-holder"

    def reconstruct(self, view, rng, progress):
        seen = view.observations[0]
        progress(1, 1)
        images = seen.encodings[:5].abs()
        return Reconstruction("private", (Recovered(seen.client, 0, images),))


@pytest.fixture
def challenge(command, monkeypatch, rng):
    monkeypatch.setenv("INSTAHIDE_FL_CACHE", "cache")
    make = [
        *("challenge", "make", "--dataset", write_pictures(Path("pictures"), rng)),
        *("--pool", write_pool(Path("pool"), rng), "--images", 20),
    ]

    def call(*arguments):
        return command(*make, *arguments)

    return call


def test_inside_an_auditor_decodes_everything(command, challenge):
    inside = ("--scope", "inside", "--num-mixed", 4, "--encodings", 10)
    code, out, _ = challenge(*inside, "--out", "c")
    assert code == 0
    assert "200 of 20 images" in out
    assert "operating-system" in out
    code, out, _ = command("challenge", "attack", "c", "--attack", "decode_encodings")
    assert code == 0
    assert "leaks to this adversary" in out
    assert "c/decryption.npy is by decode_encodings as auditor-of-encodings" in out
    result = json.loads(Path("c/attacks/decode_encodings.json").read_text())
    assert result["challenge"]
    assert result["encodings"] == 200
    assert result["control"]["succeeds"]
    code, out, _ = command("challenge", "score", "c")
    assert code == 0
    assert "Carlini v2" in out
    score = json.loads(Path("c/score.json").read_text())
    assert score["metrics"]["max_ssim"] > 0.95
    assert score["metrics"]["max_ssim"] > score["baseline"]["mean_image"]["max_ssim"]
    assert score["decryption"]["threat_model"] == "auditor-of-encodings"
    for picture in ("c/score.png", "c/attacks/decode_encodings.png"):
        assert Path(picture).read_bytes().startswith(b"\x89PNG")


def test_cross_is_scored_whatever_comes_out(command, challenge):
    assert challenge("--encodings", 6, "--seed", 3, "--out", "c")[0] == 0
    assert challenge("--encodings", 6, "--seed", 3, "--out", "same")[0] == 0
    assert (
        Path("c/encryption.npy").read_bytes()
        == Path("same/encryption.npy").read_bytes()
    )
    assert 'keys = "reproducible-insecure"' in Path("c/settings.toml").read_text()
    assert command("challenge", "attack", "c")[0] == 0
    assert command("challenge", "score", "c")[0] == 0
    score = json.loads(Path("c/score.json").read_text())
    assert score["metrics"]["max_ssim"] <= score["ceiling"]["max_ssim"]
    images = np.load("c/decryption.npy")
    np.save("mine.npy", (images * 255).round().astype(np.uint8))
    code, _, _ = command("challenge", "score", "c", "--decryption", "mine.npy")
    again = json.loads(Path("c/score.json").read_text())
    assert code == 0
    assert again["decryption"] == {"file": "mine.npy"}
    assert again["metrics"]["max_ssim"] == pytest.approx(
        score["metrics"]["max_ssim"], abs=0.02
    )


def test_without_the_truth_there_are_pictures_but_no_figures(
    command, challenge, monkeypatch
):
    challenge("--encodings", 6, "--out", "c")
    Path("c/truth").rename("kept")
    code, out, err = command("challenge", "attack", "c")
    assert (code, "no attack applies to the challenge" in err) == (2, True)
    assert "only truth/ tells" in out
    monkeypatch.setitem(ATTACKS, "carlini", Folded)
    Path("c/settings.toml").unlink()
    code, out, err = command("challenge", "attack", "c")
    assert code == 0
    assert "pixels mapped to [-1, 1] are assumed" in out
    assert "not scored" in out.replace("\n", " ")
    assert "the truth is not known" in err
    result = json.loads(Path("c/attacks/carlini.json").read_text())
    assert result["metrics"] == {}
    assert result["images"] == 5
    assert "not known" in result["control"]["absent"]
    assert Path("c/attacks/carlini.png").stat().st_size > 2000
    images = np.load("c/decryption.npy")
    assert images.shape == (120, 12, 12, 3)
    assert images.min() >= 0
    assert images.max() <= 1
    # A decryption by an ordinary adversary goes before the auditor's.
    Path("kept").rename("c/truth")
    _, out, _ = command("challenge", "attack", "c")
    assert "c/decryption.npy is by carlini as encodings-holder" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["score", "nowhere"], "encryption.npy is missing"),
        (["score", "c"], "decryption.npy is missing: run challenge attack"),
        (["score", "c", "--decryption", "c/label.npy"], "one image for each encoding"),
        (["attack", "c", "--attack", "dlg"], "consists of encodings"),
        (["attack", "c", "--attack", "none"], "must be one of"),
        (["attack", "c", "--threat-model", "server"], "must be one of honest-server"),
        (["attack", "c", "--pool", "nowhere"], "nowhere"),
        (["make", "--out", "c"], "c exists already"),
        (["make", "--out", "d", "--method", "magic"], "instahide.method must be"),
        (["make", "--out", "d", "--images", "3"], "--images must be at least 4"),
    ],
)
def test_a_users_mistake_ends_with_2_and_one_reason(
    command, challenge, arguments, expected
):
    assert challenge("--encodings", 2, "--out", "c")[0] == 0
    code, _, err = command("challenge", *arguments)
    assert (code, expected in err) == (2, True), err
    assert len(err.strip().splitlines()) == 1
    assert not Path("d").exists()


def test_a_pool_that_is_too_small_is_refused(command, challenge, rng):
    small = write_pool(Path("small"), rng, 3)
    code, _, err = challenge("--pool", small, "--out", "d")
    assert (code, "needs 4 distinct public images" in err) == (2, True), err
