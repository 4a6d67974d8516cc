"""Clients with folders of their own: their settings rule, and bits are as simulated."""

from __future__ import annotations

import stat
from types import SimpleNamespace

import numpy as np
import pytest
import tomli_w
from flwr.app import Error
from PIL import Image

from instahide_fl.config import Config
from instahide_fl.data.federated_data import load_federated_data
from instahide_fl.deployment.app_hash import app_hash_of_folder
from instahide_fl.engine.inline import run_inline
from instahide_fl.engine.logs import logging_to
from instahide_fl.errors import RoundError
from instahide_fl.flower.app_bundle import importable_app
from instahide_fl.flower.app_files import app_root
from instahide_fl.flower.in_process_grid import InProcessGrid, server_context
from instahide_fl.run_folder import RunFolder
from instahide_fl.tensor_files import load_tensors
from instahide_fl.transcript.build_view import read_truths
from instahide_fl.transcript.recorded import read_transcript
from tests.library.pictures import write_parquet

CLIENTS = ("east", "north", "west")  # in this order the server adds them up
CLASSES = ("cat", "dog")
EACH = 12  # images of a client


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)


def labels(count):
    return [number * len(CLASSES) // count for number in range(count)]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory, images):
    """Each client's images in folders, and all of them in one data set."""
    root = tmp_path_factory.mktemp("hospital")
    for number, name in enumerate(CLIENTS):
        own = images[number * EACH : (number + 1) * EACH]
        for row, (pixels, label) in enumerate(zip(own, labels(EACH), strict=True)):
            file = root / "clients" / name / "images" / CLASSES[label] / f"{row:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    owners = [name for name in CLIENTS for _ in range(EACH)]
    for part, pixels, classes, clients in (
        ("train", images[: len(owners)], len(CLIENTS) * labels(EACH), owners),
        ("test", images[-4:], labels(4), ["nobody"] * 4),
    ):
        path = root / "all/data" / f"{part}-00000-of-00001.parquet"
        write_parquet(path, pixels, classes, CLASSES, client=clients)
    return root


def settings(hospital, **changes):
    dotted = {key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()}
    return Config().with_values(
        {
            "data.dataset": f"hf:{hospital / 'all'}",
            "data.client-column": "client",
            "partition.scheme": "natural-id",
            "partition.num-clients": 3,
            "partition.min-size": 2,
            "model.width": 4,
            "train.rounds": 2,
            "train.batch-size": 4,
            **dotted,
        }
    )


def node(hospital, name, limits=None, **changes):
    """A client's folder, as `deploy init` makes it and its owner fills it in."""
    folder = hospital / "clients" / name
    table = {
        "name": name,
        "server": "localhost:9443",
        "data": "imagefolder:images",
        **changes,
        "limits": limits or {},
    }
    (folder / "client.toml").write_text(tomli_w.dumps(table))
    return {"client-folder": str(folder)}


def seeded(hospital, config):
    """Clients with the images of simulated ones, in the same order, and their seed."""
    data = load_federated_data(config)
    nodes = []
    for number, name in enumerate(CLIENTS):
        split = data.split(number)
        pixels = split.images[split.rows].permute(0, 2, 3, 1).numpy()
        path = hospital / "clients" / name / "share/data/train-0.parquet"
        write_parquet(path, pixels, split.targets[split.rows].tolist(), CLASSES)
        own = {"data": "hf:share", "seeded-client": number}
        nodes.append(node(hospital, name, {"allow-seeded-keys": True}, **own))
    return nodes


def deployed(path, config, nodes):
    folder = RunFolder.create(path, config)
    config = config.with_values({"output.folder": str(path)})
    run_config = config.to_run_config()
    with importable_app() as (clients, server), logging_to(path / "logs/run.log"):
        grid = InProcessGrid(clients.app, nodes, run_config)
        server.app(grid, server_context(run_config))
    return folder


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


@pytest.mark.parametrize(
    ("limits", "own", "changes", "message"),
    [
        ({}, {}, {"instahide__method": "none"}, 'instahide.method = "none"'),
        ({}, {}, {"instahide__num_mixed": 3}, "instahide.num-mixed = 3"),
        ({}, {}, {"record__rounds": "1", "record__truth": True}, "record.truth = true"),
        ({"max-exposures": 9}, {}, {}, "instahide.max-exposures = 0"),
        ({}, {"code-hash": "ab" * 32}, {}, "it allows abababababab only"),
        ({}, {"classes": ["cat", "cow"]}, {}, "classes that are not among"),
        ({}, {"classes": ["cat", "dog", "cow"]}, {}, "holds 3 classes of 3x16x16"),
        ({}, {"pool": "nowhere"}, {}, "nowhere"),
    ],
)
def test_both_sides_learn_why_a_client_refuses(
    tmp_path, hospital, limits, own, changes, message
):
    tolerant = {"methods": ["none", "instahide"], "min-num-mixed": 1}
    tolerant["allow-truth"] = True
    nodes = [node(hospital, name, tolerant) for name in CLIENTS[:2]]
    nodes.append(node(hospital, "west", limits, **own))
    config = settings(hospital, train__rounds=1, **changes)
    with pytest.raises(RoundError, match=message) as failed:
        deployed(tmp_path / "run", config, nodes)
    assert message == "nowhere" or "client west" in str(failed.value)


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
    with pytest.raises(RoundError, match=r"west .* 1x16x16 .*set data\.channels = 3"):
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

    with pytest.raises(RoundError, match=r"have reached instahide\.max-exposures = 3"):
        use_up()
