"""Clients with folders of their own: their settings rule, and bits are as simulated."""

from __future__ import annotations

import stat
from types import SimpleNamespace

import pytest
from flwr.app import Error
from PIL import Image

from instahide_fl.deployment.app_hash import app_hash_of_folder
from instahide_fl.engine.inline import run_inline
from instahide_fl.errors import RoundError
from instahide_fl.flower.app_bundle import importable_app
from instahide_fl.flower.app_files import app_root
from instahide_fl.run_folder import RunFolder
from instahide_fl.tensor_files import load_tensors
from instahide_fl.transcript.build_view import read_truths
from instahide_fl.transcript.recorded import read_transcript
from tests.apps.hospital import (
    CLASSES,
    CLIENTS,
    EACH,
    deployed,
    labels,
    node,
    seeded,
    settings,
)


def model_bytes(folder):
    return (folder.path / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "changes", [{}, {"instahide__refresh": 2, "train__mode": "update"}]
)
def test_seeded_clients_end_with_the_bits_of_a_simulation(tmp_path, hospital, changes):
    config = settings(hospital, **changes)
    simulated = RunFolder.create(tmp_path / "simulated", config)
    output = {"output.folder": str(simulated.path)}
    run_inline(config.with_values(output), simulated)
    real = deployed(tmp_path / "real", config, seeded(hospital, config))
    assert model_bytes(real) == model_bytes(simulated)


def test_other_clients_draw_their_keys_from_the_operating_system(tmp_path, hospital):
    config, nodes = settings(hospital), [node(hospital, name) for name in CLIENTS]
    first = deployed(tmp_path / "a", config, nodes)
    assert model_bytes(first) != model_bytes(deployed(tmp_path / "b", config, nodes))


RECORDS_TRUTH = {"record__rounds": "1", "record__truth": True}


@pytest.mark.parametrize(
    ("limits", "own", "changes", "code", "detail"),
    [
        ({}, {}, {"instahide__method": "none"}, r"limits \(instahide\.m", '"none"'),
        ({}, {}, {"instahide__num_mixed": 3}, r"limits \(instahide\.num", "mixed = 3"),
        ({}, {}, RECORDS_TRUTH, r"limits \(record\.truth\)", "record.truth = true"),
        ({"max-exposures": 9}, {}, {}, r"limits \(.*max-exp", "max-exposures = 0"),
        ({}, {"code-hash": "ab" * 32}, {}, "other-code", "it allows abababababab only"),
        ({}, {"classes": ["cat", "cow"]}, {}, "classes", "classes that are not among"),
        ({}, {"classes": ["cat", "dog", "cow"]}, {}, "parameters", "holds 3 classes"),
        ({}, {"pool": "secret-pool"}, {}, "pool", "secret-pool"),
        ({}, {"data": "imagefolder:secret"}, {}, "data", "secret"),
        ({}, {"server": "secret"}, {}, "settings", "server must be HOST:PORT"),
    ],
)
def test_the_server_reads_a_code_and_the_client_the_reason(
    tmp_path, hospital, limits, own, changes, code, detail
):
    tolerant = {"methods": ["none", "instahide"], "min-num-mixed": 1}
    tolerant["allow-truth"] = True
    nodes = [node(hospital, name, tolerant) for name in CLIENTS[:2]]
    nodes.append(node(hospital, "west", limits, **own))
    config = settings(hospital, train__rounds=1, **changes)
    with pytest.raises(RoundError, match=rf"refuses, code {code}") as failed:
        deployed(tmp_path / "run", config, nodes)
    text = str(failed.value)
    assert "client west" in text or code == "settings"
    # No path, no file, no value of its settings; all of it in the client's log.
    assert str(hospital) not in text
    assert "secret" not in text
    assert detail in (tmp_path / "run/logs/run.log").read_text()


def test_a_grey_client_of_a_coloured_federation_is_told_the_setting(
    tmp_path, hospital, images
):
    nodes = [node(hospital, name) for name in CLIENTS[:2]]
    nodes.append(node(hospital, "west", data="imagefolder:grey"))
    for row, pixels in enumerate(images[:EACH]):
        file = hospital / "clients/west/grey" / CLASSES[row % 2] / f"{row:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert("L").save(file)
    config = settings(hospital, train__rounds=1)
    with pytest.raises(RoundError, match=r"west .*code image-shape \(data\.channels\)"):
        deployed(tmp_path / "refused", config, nodes)
    run = deployed(tmp_path / "run", settings(hospital, data__channels=3), nodes)
    assert len(run.metrics()) == 2


def test_the_server_shows_a_reason_as_the_client_wrote_it():
    # As a client process of Flower's reports an exception.
    given = "<class 'instahide_fl.errors.PolicyError'>:<'client west refuses'>"
    with importable_app():
        from server.records import failure_reason

        failed = SimpleNamespace(error=Error(2, given))
        assert failure_reason(failed) == "client west refuses"


def test_the_pinned_code_is_the_code_that_runs(tmp_path, hospital):
    pinned = {"code-hash": app_hash_of_folder(app_root())}
    nodes = [node(hospital, name, **pinned) for name in CLIENTS]
    folder = deployed(tmp_path / "run", settings(hospital), nodes)
    assert folder.read_json("summary.json")["rounds"] == 2


def test_classes_keep_their_numbers_where_a_client_names_them(tmp_path, hospital):
    agreed = list(reversed(CLASSES))
    limits = {"allow-truth": True}
    nodes = [node(hospital, name, limits, classes=agreed) for name in CLIENTS]
    record = {"record__rounds": "1", "record__truth": True, "train__rounds": 1}
    folder = deployed(tmp_path / "run", settings(hospital, **record), nodes)
    # The truth is with the client, below its own folder, and not with the server.
    assert not (folder.path / "truth").exists()
    seen = [read_transcript(folder.path, 1)]
    for name in CLIENTS:
        state = hospital / "clients" / name / "state"
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        truths = read_truths(state, seen)
        own = [agreed.index(CLASSES[label]) for label in labels(EACH)]
        seen_rows = truths[1, name].rows.tolist()
        assert truths[1, name].targets.tolist() == [own[row] for row in seen_rows]


def test_exposures_are_counted_over_all_runs_of_a_client(tmp_path, hospital):
    nodes = [node(hospital, name, {"max-exposures": 3}) for name in CLIENTS]
    states = [hospital / "clients" / name / "state" for name in CLIENTS]
    for state in states:
        (state / "exposures.safetensors").unlink(missing_ok=True)
    config = settings(
        hospital,
        instahide__max_exposures=3,
        instahide__exposure_action="stop",
        train__batch_size=6,
        train__rounds=1,
    )
    # Each of six encodings takes two of twelve images.
    for number in (1, 2):
        deployed(tmp_path / f"run-{number}", config, nodes)
        for state in states:
            tensors, _ = load_tensors(state / "exposures.safetensors")
            assert tensors["1/counts"].sum() == 12 * number

    def use_up():
        for number in range(3, 12):
            deployed(tmp_path / f"run-{number}", config, nodes)

    with pytest.raises(RoundError, match="code exposures"):
        use_up()
