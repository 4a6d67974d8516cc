"""A view holds what its threat model permits, and nothing else."""

from __future__ import annotations

import pytest
import torch

from instahide_fl.attacks.registry import ATTACKS
from instahide_fl.config import Config, parse_rounds
from instahide_fl.errors import ConfigError, ThreatModelError
from instahide_fl.transcript.aggregate import ALL_CLIENTS
from instahide_fl.transcript.build_view import build_view
from instahide_fl.transcript.recorded import (
    RoundTranscript,
    read_transcript,
    write_transcript,
)
from instahide_fl.transcript.threat_model import THREAT_MODELS, Knowledge, threat_model
from instahide_fl.transcript.truth import ClientTruth, read_truth, write_truth
from instahide_fl.types import ChannelStatistics, ClientUpdate, EncodingKey

CONFIG = Config().with_values(
    {"instahide.num-mixed": 3, "train.batch-size": 2, "partition.num-clients": 2}
)
ALL = set(Knowledge) - {Knowledge.CRAFTED}


def round_and_truth():
    arrays = {"weight": torch.rand(3, 2), "norm.running_mean": torch.rand(3)}
    update = ClientUpdate(dict(arrays), 2, "gradient", {"train_loss": 1.0})
    seen = RoundTranscript(
        round=1,
        parameters=arrays,
        updates={"7": update},
        aggregate=dict(arrays),
        kind="gradient",
        statistics=ChannelStatistics((0.5,), (0.2,)),
        image_shape=(1, 28, 28),
        num_classes=10,
        learning_rate_factor=1.0,
        pool_sha256="abc",
    )
    key = EncodingKey(
        torch.full((2, 3), 1 / 3),
        torch.tensor([[4, 9], [9, 4]]),
        torch.tensor([[0], [1]]),
        (1, 28, 28),
        torch.zeros(2, 98, dtype=torch.uint8),
        None,
    )
    truth = ClientTruth(
        1,
        "7",
        torch.zeros(2, 1, 28, 28, dtype=torch.uint8),
        torch.tensor([3, 5]),
        torch.tensor([4, 9]),
        torch.rand(2, 1, 28, 28),
        torch.rand(2, 10),
        key,
        (2,),
        torch.zeros(1, 1, 28, 28, dtype=torch.uint8),
        torch.tensor([7]),
    )
    return seen, truth


def known(view):
    """What a view really holds."""
    held = set()
    for one in view.observations:
        sent = Knowledge.AGGREGATE if one.client == ALL_CLIENTS else Knowledge.UPDATES
        held |= {
            kind
            for kind, there in (
                (Knowledge.PARAMETERS, one.parameters),
                (sent, one.update),
                (Knowledge.ENCODINGS, one.encodings),
                (Knowledge.LABELS, one.soft_targets),
                (Knowledge.MAPPING, one.mapping),
            )
            if there is not None
        }
        arrays = {**(one.parameters or {}), **(one.update or {})}
        if "norm.running_mean" in arrays:
            held.add(Knowledge.BUFFERS)
    if view.rounds:
        held |= {Knowledge.PARAMETERS, Knowledge.AGGREGATE}
        if any("norm.running_mean" in one.parameters for one in view.rounds):
            held.add(Knowledge.BUFFERS)
    if view.pool is not None:
        held.add(Knowledge.POOL)
    return held


@pytest.mark.parametrize("name", THREAT_MODELS)
def test_a_view_holds_exactly_what_its_threat_model_permits(name):
    seen, truth = round_and_truth()
    model = threat_model(name)
    view = build_view(model, CONFIG, [seen], {(1, "7"): truth}, ["norm.running_mean"])
    assert known(view) == model.knows & ALL


def test_no_view_holds_signs_or_images_and_public_choices_only_with_the_pool():
    seen, truth = round_and_truth()
    for model in THREAT_MODELS.values():
        view = build_view(model, CONFIG, [seen], {(1, "7"): truth}, [])
        for one in view.observations:
            texts = {name for name in dir(one) if not name.startswith("_")}
            assert not texts & {"key", "images", "targets", "sign_bits", "truth"}
            if one.mapping is not None:
                given = one.mapping.public_index is not None
                assert given == (Knowledge.POOL in model.knows)


def test_what_is_withheld_is_named_and_so_is_who_has_it():
    seen, _ = round_and_truth()
    view = build_view(threat_model("participant"), CONFIG, [seen], {}, [])
    for attack in ATTACKS.values():
        if attack.on_aggregates:
            view.require(attack.name, attack.needs, attack.needs_on_aggregates())
        if attack.needs <= view.threat_model.knows:
            view.require(attack.name, attack.needs)
        else:
            with pytest.raises(
                ThreatModelError, match="which the threat model participant"
            ):
                view.require(attack.name, attack.needs)
        assert attack.needs <= THREAT_MODELS[attack.threat_model].knows
    with pytest.raises(ThreatModelError, match=r"only a simulation knows"):
        build_view(threat_model("auditor"), CONFIG, [seen], {}, [])
    with pytest.raises(ConfigError, match="must be one of"):
        threat_model("nobody")


# The aggregate, the update and the parameters share memory here, as they may with krum.
def test_rounds_and_truth_come_back_from_disk_as_they_were(tmp_path):
    seen, truth = round_and_truth()
    write_transcript(tmp_path, seen)
    write_truth(tmp_path, truth)
    again, hidden = read_transcript(tmp_path, 1), read_truth(tmp_path, 1, "7")
    assert torch.equal(again.updates["7"].arrays["weight"], seen.parameters["weight"])
    assert again.statistics == seen.statistics
    assert again.updates["7"].num_examples == 2
    assert torch.equal(hidden.encodings, truth.encodings)
    assert torch.equal(hidden.key.private_index, truth.key.private_index)
    assert hidden.components.tolist() == [[0, 1], [1, 0]]
    assert torch.equal(hidden.key.sign_bits, truth.key.sign_bits)


def test_rounds_are_written_as_numbers_and_ranges():
    config = Config().with_values({"record.rounds": "1, 5-7"})
    assert [n for n in range(1, 10) if config.record.includes_round(n)] == [1, 5, 6, 7]
    assert Config().with_values({"record.rounds": "all"}).record.includes_round(10**6)
    assert not Config().record.includes_round(1)
    assert parse_rounds("3") == [(3, 3)]
    for text in ("0", "7-5", "a", "1--2"):
        with pytest.raises(ConfigError, match=r"record\.rounds"):
            Config().with_values({"record.rounds": text})
    with pytest.raises(ConfigError, match=r"record\.truth needs rounds"):
        Config().with_values({"record.truth": True})
