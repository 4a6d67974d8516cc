"""Runs with defences, in one process: what the server sees, and what is claimed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from instahide_fl.config import Config
from instahide_fl.defenses.accounting import gaussian_epsilon, tight_epsilon
from instahide_fl.defenses.transforms import l2_norm
from instahide_fl.errors import ConfigError
from instahide_fl.models.arrays import get_arrays, load_arrays
from instahide_fl.models.registry import build_model
from instahide_fl.training.losses import soft_cross_entropy
from instahide_fl.transcript.recorded import read_transcript
from instahide_fl.transcript.truth import read_truth
from tests.apps.inline_runs import start
from tests.apps.test_rounds import model_bytes, run_tampered

SMALL = {
    "train.rounds": 2,
    "train.batch-size": 8,
    "partition.num-clients": 4,
    "model.width": 4,
    "server.aggregation": "mean",
}


def settings(**changes):
    dotted = {key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()}
    return Config().with_values({**SMALL, **dotted})


@pytest.mark.parametrize(
    "changes",
    [
        {"defense__transforms": "prune, sign, clip, noise"},
        {"defense__differential_privacy": "dp-sgd"},
        {
            "data__train_rows": "0:200",
            "defense__differential_privacy": "dp-sgd",
            "train__mode": "update",
            "train__batch_size": 25,
        },
        {"defense__differential_privacy": "central", "train__clients_per_round": 1},
        {
            "data__train_rows": "0:200",
            "defense__differential_privacy": "local",
            "train__mode": "update",
            "train__batch_size": 25,
        },
    ],
)
def test_a_defended_run_repeats_byte_for_byte(tmp_path, changes):
    first = start(tmp_path / "a", settings(**changes))
    assert model_bytes(first) == model_bytes(start(tmp_path / "b", settings(**changes)))


def plain_gradient(folder, number, client):
    """What the client would have sent without any defence."""
    config, seen = folder.config(), read_transcript(folder.path, number)
    truth = read_truth(folder.path, number, client)
    model = build_model(config.network, seen.image_shape, seen.num_classes, config.seed)
    load_arrays(model, seen.parameters)
    soft_cross_entropy(model(truth.encodings), truth.soft_targets).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_the_transcript_holds_what_is_left_after_the_transforms(tmp_path):
    changes = {"defense__transforms": "prune, clip", "defense__clip_norm": 0.01}
    config = settings(record__rounds="1", record__truth=True, **changes)
    folder = start(tmp_path / "run", config)
    for client, update in read_transcript(folder.path, 1).updates.items():
        assert l2_norm(update.arrays) == pytest.approx(0.01, rel=1e-5)
        plain = plain_gradient(folder, 1, client)
        for name, array in update.arrays.items():
            zeros = int((array == 0).sum())
            assert zeros >= int(0.9 * array.numel())
            scaled = torch.where(array == 0, torch.zeros_like(array), plain[name])
            cosine = torch.nn.functional.cosine_similarity
            if zeros < array.numel():
                similar = cosine(array.flatten(), scaled.flatten(), dim=0)
                assert float(similar) == pytest.approx(1.0, abs=1e-4)


def test_dp_sgd_of_one_image_sends_its_clipped_gradient_and_no_loss(tmp_path):
    config = settings(
        instahide__method="none",
        record__rounds="1",
        record__truth=True,
        defense__differential_privacy="dp-sgd",
        defense__noise_multiplier=0.0,
        defense__max_gradient_norm=0.05,
        train__batch_size=2,
    )
    folder = start(tmp_path / "run", config)
    sizes = set()
    for client, update in read_transcript(folder.path, 1).updates.items():
        encodings = len(read_truth(folder.path, 1, client).encodings)
        sizes.add(encodings)
        assert update.num_examples == 2  # whatever the sample's size
        assert update.metrics.keys() == {"seconds"}
        assert l2_norm(update.arrays) <= encodings * 0.05 / 2 * (1 + 1e-5)
        if encodings == 0:
            assert l2_norm(update.arrays) == 0
    assert len(sizes) > 1
    assert [row["train_loss"] for row in folder.metrics()] == [None, None]
    assert "noise-multiplier is 0" in folder.read_json("summary.json")["epsilon_absent"]


def test_epsilon_is_in_every_row_and_in_the_summary(tmp_path):
    config = settings(
        instahide__method="none",
        train__rounds=3,
        train__clients_per_round=2,
        defense__differential_privacy="dp-sgd",
    )
    folder = start(tmp_path / "run", config)
    rows, summary = folder.metrics(), folder.read_json("summary.json")
    assert rows[0]["epsilon"] == gaussian_epsilon(1.0, 8 / 1000, 1, 1e-5)
    assert rows[-1]["epsilon"] == summary["epsilon_rdp"] >= rows[0]["epsilon"]
    assert 0 < summary["epsilon"] < summary["epsilon_rdp"]
    assert (summary["delta"], summary["privacy_unit"]) == (1e-5, "example")
    assert "epsilon_absent" not in summary


def test_a_server_refuses_noise_that_is_too_small_for_the_epsilon(tmp_path):
    """Engines that are started with other noise than computed, and deployments."""
    config = settings(
        instahide__method="none",
        train__mode="gradient",
        defense__differential_privacy="dp-sgd",
        defense__target_epsilon=2.0,
        defense__noise_multiplier=0.1,
    )
    with pytest.raises(ConfigError, match=r"set defense.noise-multiplier = ") as error:
        start(tmp_path / "run", config)
    enough = float(str(error.value).rsplit("= ", 1)[1])
    kept = config.with_values({"defense.noise-multiplier": enough})
    summary = start(tmp_path / "kept", kept).read_json("summary.json")
    assert 1.9 < summary["epsilon"] <= 2.0


def test_no_epsilon_is_claimed_for_private_images_behind_encodings(tmp_path):
    folder = start(tmp_path / "a", settings(defense__differential_privacy="dp-sgd"))
    summary = folder.read_json("summary.json")
    assert "epsilon" not in summary
    assert "no formal guarantee for private images" in summary["epsilon_absent"]
    assert [row["epsilon"] for row in folder.metrics()] == [None, None]
    plain = start(tmp_path / "b", settings()).read_json("summary.json")
    assert "no formal guarantee" in plain["epsilon_absent"]


def test_central_noise_is_on_the_mean_over_the_expected_cohort(tmp_path):
    config = settings(
        record__rounds="1-6",
        train__rounds=6,
        train__clients_per_round=2,
        defense__differential_privacy="central",
        defense__clip_norm=0.01,
        defense__noise_multiplier=3.0,
    )
    folder = start(tmp_path / "run", config)
    cohorts = []
    for number in range(1, 7):
        seen = read_transcript(folder.path, number)
        cohorts.append(len(seen.updates))
        updates = [one.arrays for one in seen.updates.values()]
        assert all(l2_norm(one) <= 0.01 * (1 + 1e-5) for one in updates)
        noise = [
            array - sum((one[name] for one in updates), torch.zeros_like(array)) / 2
            for name, array in seen.aggregate.items()
        ]
        deviation = float(torch.cat([one.flatten() for one in noise]).std())
        assert deviation == pytest.approx(3.0 * 0.01 / 2, rel=0.05)
    assert len(set(cohorts)) > 1  # Poisson
    epsilon = folder.read_json("summary.json")["epsilon_rdp"]
    assert epsilon == gaussian_epsilon(3.0, 0.5, 6, 1e-5)


def test_local_noise_is_on_every_update_and_the_clients_differ(tmp_path):
    config = settings(
        record__rounds="2",
        defense__differential_privacy="local",
        defense__clip_norm=0.01,
        defense__noise_multiplier=3.0,
    )
    folder = start(tmp_path / "run", config)
    flat = [
        torch.cat([array.flatten() for array in one.arrays.values()]).numpy()
        for one in read_transcript(folder.path, 2).updates.values()
    ]
    assert [float(one.std()) for one in flat] == pytest.approx([0.03] * 4, rel=0.05)
    assert np.abs(np.corrcoef(flat) - np.eye(4)).max() < 0.1
    summary = folder.read_json("summary.json")
    assert summary["epsilon_rdp"] == gaussian_epsilon(1.5, 1.0, 2, 1e-5)
    assert summary["epsilon_per_release"] == tight_epsilon(1.5, 1.0, 1, 1e-5)


@pytest.mark.parametrize("kind", ["local", "central"])
def test_real_clients_noise_does_not_repeat_with_the_seed(tmp_path, kind):
    """Nothing else is left to chance: batches of all images, no encoding."""
    nodes = [{"client-name": f"hospital-{i}"} for i in "ab"]
    config = settings(
        partition__num_clients=2,
        instahide__method="none",
        train__batch_size=4000,
        train__rounds=1,
        defense__differential_privacy=kind,
    )
    runs = [
        run_tampered(tmp_path / str(i), config, lambda n, r, m: r, nodes)
        for i in range(2)
    ]
    assert model_bytes(runs[0]) != model_bytes(runs[1])


def test_a_number_names_no_real_client(tmp_path):
    nodes = [{"client-name": "7"}, {"client-name": "b"}]
    with pytest.raises(Exception, match="client 7 refuses, code settings"):
        run_tampered(
            tmp_path, settings(partition__num_clients=2), lambda n, r, m: r, nodes
        )
    log = (tmp_path / "log").read_text()
    assert "client-name must not be a number" in log


def test_an_empty_cohort_steps_with_noise_alone(tmp_path):
    """One of four clients on average: in some round there is none."""
    config = settings(
        train__rounds=8,
        train__clients_per_round=1,
        defense__differential_privacy="central",
    )
    folder = start(tmp_path / "run", config)
    counts = [row["clients"] for row in folder.metrics()]
    assert 0 in counts
    assert folder.metrics()[counts.index(0)]["bytes_up"] == 0
    initial = build_model(config.network, (1, 28, 28), 10, config.seed)
    assert get_arrays(initial).keys() == folder.load_model().keys()
