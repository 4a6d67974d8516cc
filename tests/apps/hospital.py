"""A small federation of clients with folders of their own, in one process."""

from __future__ import annotations

import tomli_w

from instahide_fl.config import Config
from instahide_fl.data.federated_data import load_federated_data
from instahide_fl.engine.logs import logging_to
from instahide_fl.flower.app_bundle import importable_app
from instahide_fl.flower.in_process_grid import InProcessGrid, server_context
from instahide_fl.run_folder import RunFolder
from tests.library.pictures import write_parquet

CLIENTS = ("east", "north", "west")  # in this order the server adds them up
CLASSES = ("cat", "dog")
EACH = 12  # images of a client


def labels(count):
    return [number * len(CLASSES) // count for number in range(count)]


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
        # Batches of these tests are small.
        "limits": {"min-batch-size": 1, **(limits or {})},
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


def deployed(path, config, nodes, grid=InProcessGrid):
    folder = RunFolder.create(path, config)
    config = config.with_values({"output.folder": str(path)})
    run_config = config.to_run_config()
    with importable_app() as (clients, server), logging_to(path / "logs/run.log"):
        federation = grid(clients.app, nodes, run_config)
        server.app(federation, server_context(run_config))
    return folder
