"""Clients count exposures over rounds, stop where told to, and survive a resume."""

from __future__ import annotations

import pytest
import torch
from flwr.app import RecordDict

from instahide_fl.errors import RoundError
from instahide_fl.flower.app_bundle import importable_app
from instahide_fl.flower.in_process_grid import client_context
from instahide_fl.run_folder import RunFolder
from instahide_fl.tensor_files import load_tensors
from instahide_fl.transcript.build_view import read_truths
from instahide_fl.transcript.recorded import read_transcript
from tests.apps.test_rounds import model_bytes, settings, start


def exposures(folder):
    return [row["exposures"] for row in folder.metrics()]


def rounds_written(path, client):
    tensors, _ = load_tensors(path / "exposures" / f"client-{client}.safetensors")
    return {int(name.split("/")[0]) for name in tensors}


def counters(folder, client):
    path = folder.path / "exposures" / f"client-{client}.safetensors"
    tensors, _ = load_tensors(path)
    return tensors[f"{max(rounds_written(folder.path, client))}/counts"]


def test_counters_hold_all_rounds_and_slots(tmp_path):
    record = {"record__rounds": "all", "record__truth": True}
    folder = start(tmp_path / "run", settings(**record))
    seen = [read_transcript(folder.path, number) for number in (1, 2, 3, 4)]
    truths = read_truths(folder.path, seen)
    for client in "0123":
        own = [truth for (_, name), truth in truths.items() if name == client]
        slots = torch.cat([truth.key.private_index.flatten() for truth in own])
        assert torch.equal(counters(folder, client), torch.bincount(slots, None, 1000))
    # Four rounds of eight encodings with two private images, of a thousand each.
    assert [one["mean"] for one in exposures(folder)] == pytest.approx(
        [0.016, 0.032, 0.048, 0.064]
    )
    assert exposures(folder)[-1]["max"] == max(
        int(counters(folder, client).max()) for client in "0123"
    )
    assert folder.read_json("summary.json")["exposures"] == exposures(folder)[-1]


SCARCE = {
    "data__train_rows": "0:80",
    "train__batch_size": 20,
    "train__clients_per_round": 3,
    "train__rounds": 7,
    "train__checkpoint_every": 3,
}


@pytest.mark.parametrize(
    ("action", "limit", "cohort"), [("warn", 4, 3), ("stop", 12, 3), ("warn", 4, 0)]
)
def test_a_resumed_run_counts_as_if_never_interrupted(
    tmp_path, monkeypatch, action, limit, cohort
):
    changes = {
        "instahide__max_exposures": limit,
        "instahide__exposure_action": action,
        "train__clients_per_round": cohort,
    }
    config = settings(**{**SCARCE, **changes})
    whole = start(tmp_path / "whole", config)
    with importable_app() as (_, server):
        original = server.Strategy.run_round

        def interrupted(self, grid, number):
            outcome = original(self, grid, number)
            if number == 5:  # clients have counted, the server has not noted it
                raise KeyboardInterrupt
            return outcome

        monkeypatch.setattr(server.Strategy, "run_round", interrupted)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path / "part", config)
        monkeypatch.undo()
    written = set().union(*(rounds_written(tmp_path / "part", c) for c in "0123"))
    # Where all clients take part in all rounds, only the checkpoint's can be needed.
    assert (written == {3}) if cohort == 0 else {4, 5} < written
    start(tmp_path / "part", config, resume=True)
    part = RunFolder(tmp_path / "part")
    assert exposures(part) == exposures(whole)
    assert model_bytes(part) == model_bytes(whole)
    counts = torch.stack([counters(part, client) for client in "0123"])
    assert (counts >= limit).any()
    if action == "stop":  # an image that is left out before a round stays as it is
        assert counts.max() < limit + 20


def test_clients_without_images_left_end_the_run_with_the_reason(tmp_path):
    changes = {"instahide__max_exposures": 1, "instahide__exposure_action": "stop"}
    config = settings(**{**SCARCE, **changes})
    with pytest.raises(RoundError, match=r"its 20 images have reached instahide\.max"):
        start(tmp_path / "run", config)


def test_images_at_the_limit_are_in_no_later_encoding(tmp_path):
    record = {"record__rounds": "all", "record__truth": True}
    limited = {"instahide__max_exposures": 6, "instahide__exposure_action": "stop"}
    config = settings(**{**SCARCE, "train__rounds": 4}, **record, **limited)
    folder = start(tmp_path / "run", config)
    seen = [read_transcript(folder.path, number) for number in (1, 2, 3, 4)]
    truths = read_truths(folder.path, seen)
    left_out = 0
    for client in "0123":
        counts = torch.zeros(20, dtype=torch.int64)
        for number in (1, 2, 3, 4):
            if (truth := truths.get((number, client))) is None:
                continue
            slots = torch.bincount(truth.key.private_index.flatten(), minlength=20)
            assert not slots[counts >= 6].any()
            left_out += int((counts >= 6).sum())
            counts += slots
            assert truth.rows.tolist() == slots.nonzero()[:, 0].tolist()
        assert torch.equal(counters(folder, client), counts)
    assert left_out


def test_a_real_client_counts_over_its_runs_and_never_draws_from_a_seed(
    tmp_path, split
):
    with importable_app():
        from clients.exposures import read_exposures, store_exposures
        from clients.node import ClientNode
    path = tmp_path / "exposures.safetensors"
    node = ClientNode("ward", settings(), split, None, None, simulated=False)
    assert not node.seeded

    def context():
        config = {"client-name": "ward", "exposures-file": str(path)}
        return client_context(1, config, RecordDict(), {})

    first = read_exposures(node, context(), 1)
    first.counts[3] = 7
    store_exposures(node, context(), 9, first)
    again = read_exposures(node, context(), 1)
    assert again.counts.tolist() == first.counts.tolist()
    fewer = ClientNode(
        "ward", settings(), split.subset(torch.arange(5)), None, None, False
    )
    with pytest.raises(RoundError, match="of another data set"):
        read_exposures(fewer, context(), 1)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(RoundError, match="move the file away"):
        read_exposures(node, context(), 1)
