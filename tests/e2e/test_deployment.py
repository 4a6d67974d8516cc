"""A federation of real processes: SuperLink, nginx, two SuperNodes, TLS and keys."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib

import pytest
import tomli_w

from instahide_fl.config import Config
from instahide_fl.deployment.federation import open_federation
from instahide_fl.deployment.superlink import LocalSuperLink
from instahide_fl.engine.inline import run_inline
from instahide_fl.flower.app_bundle import stage_app
from instahide_fl.flower.command import command, deployed_environment
from instahide_fl.run_folder import RunFolder
from tests.e2e.deployed import (
    HAS_NGINX,
    SETTINGS,
    cli,
    deploy_run,
    edit,
    everybody_online,
    free_ports,
    make_federation,
)
from tests.e2e.support import SCRATCH

pytestmark = pytest.mark.slow

CLIENTS = ("east", "west")
TWO = {"partition.num-clients": 2, "train.clients-per-round": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("deployed")
    make_federation(root, clients=CLIENTS)
    return root


@pytest.fixture(scope="module")
def federation(place):
    with everybody_online(place, CLIENTS) as folder:
        yield folder


def test_rounds_give_the_model_of_the_simulation(federation, place):
    done = deploy_run(federation, place / "run", **TWO)
    assert done.returncode == 0, done.stderr
    config = Config().with_values(
        {**SETTINGS, **TWO, "output.folder": str(place / "simulated")}
    )
    simulated = RunFolder.create(place / "simulated", config)
    run_inline(config, simulated)
    model = "model.safetensors"
    assert (place / "run" / model).read_bytes() == (simulated.path / model).read_bytes()
    rows = RunFolder(place / "run").metrics()
    assert [row["clients"] for row in rows] == 2 * [2]
    for name in CLIENTS:
        own = federation / "clients" / name
        beyond = {path.name for path in own.iterdir()} - {"state", "share"}
        assert beyond == {"README.md", "ca.crt", "client.toml", "node.key", "peers"}
        assert not list((own / "state").glob("unpacked-*"))


def test_clients_refuse_other_settings_and_other_code_and_both_sides_read_why(
    federation, place
):
    folder = federation / "clients/west"
    before = (folder / "client.toml").read_text()
    edit(folder, **{"code-hash": "0" * 64})
    try:
        done = deploy_run(
            federation, place / "weak", **{**TWO, "instahide.method": "none"}
        )
    finally:
        (folder / "client.toml").write_text(before)
    assert done.returncode != 0
    codes = {"east": "limits (instahide.method)", "west": "other-code"}
    refusals = [f"client {name} refuses, code {codes[name]}" for name in CLIENTS]
    assert any(refusal in done.stderr for refusal in refusals), done.stderr
    details = {
        "east": 'instahide.method = "none", it allows "instahide"',
        "west": "the server sent the code",
    }
    for name in CLIENTS:
        refusal = f"client {name} refuses this run: {details[name]}"
        assert refusal in (place / f"{name}.log").read_text()


@pytest.mark.skipif(not HAS_NGINX, reason="needs nginx")
def test_a_stranger_cannot_start_a_run(federation, tmp_path):
    opened = open_federation(federation)
    home = tmp_path / "home"
    home.mkdir()
    connection = {
        "address": opened.config.server,
        "root-certificates": str(federation / "server/ca.crt"),
    }
    settings = {"superlink": {"default": "theirs", "theirs": connection}}
    (home / "config.toml").write_text(tomli_w.dumps(settings))
    before = LocalSuperLink(opened).flwr().runs()
    done = subprocess.run(
        [command("flwr"), "run", str(stage_app(tmp_path / "app")), "theirs"],
        cwd=tmp_path,
        env=deployed_environment(home),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "403" in done.stdout + done.stderr
    assert LocalSuperLink(opened).flwr().runs() == before


def test_an_unregistered_key_is_refused(federation, place):
    stranger = place / "stranger"
    shutil.copytree(
        federation / "clients/east", stranger, ignore=shutil.ignore_patterns("state")
    )
    (stranger / "node.key").unlink()
    key = ("ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "")
    subprocess.run([*key, "-f", str(stranger / "node.key")], check=True)
    done = cli("deploy", "client", stranger, timeout=120)
    assert done.returncode != 0
    assert "SuperNode ended" in done.stderr


def test_a_server_that_is_not_there_is_named(place, tmp_path):
    folder = tmp_path / "elsewhere"
    shutil.copytree(place / "federation", folder)
    config = folder / "federation.toml"
    (port,) = free_ports(1)
    tables = tomllib.loads(config.read_text()) | {"superlink-port": port}
    config.write_text(tomli_w.dumps(tables))
    done = cli("deploy", "status", folder)
    assert done.returncode != 0
    assert "start it with instahide-fl deploy server" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_is_left_in_the_scratch_folder():
    assert not [name for name in os.listdir(SCRATCH) if name.startswith("ihfl-")]
