"""A federation of real processes: SuperLink, nginx, three SuperNodes, TLS and keys."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import tomllib

import datasets
import pytest
import tomli_w
from PIL import Image

from instahide_fl.app_files import app_root
from instahide_fl.config import Config
from instahide_fl.data.federated import load_federated_data
from instahide_fl.deployment.folder import open_federation
from instahide_fl.engine.bundle import stage_app
from instahide_fl.engine.deployment import LocalSuperLink, command, flower_environment
from instahide_fl.engine.inline import run_inline
from instahide_fl.engine.services import PROGRAM_FOLDERS
from instahide_fl.run_folder import RunFolder
from tests.e2e.support import COMMAND, SCRATCH

pytestmark = pytest.mark.slow

CLIENTS = ("east", "north", "west")
SETTINGS = {
    "partition.num-clients": 3,
    "train.clients-per-round": 3,
    "train.rounds": 5,
    "train.timeout": 150,
    "model.name": "mlp",
}
SEARCHED = os.pathsep.join([os.environ["PATH"], *PROGRAM_FOLDERS])
HAS_NGINX = shutil.which("nginx", path=SEARCHED) is not None


def free_ports(count):
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]


def cli(*arguments, timeout=300, **options):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=app_root(),
        capture_output=True,
        text=True,
        timeout=timeout,
        **options,
    )


@contextlib.contextmanager
def service(log, *arguments):
    """Run a command in the foreground of its own session, and end it as Ctrl-C does."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            cwd=app_root(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def await_text(path, text, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.5)
    raise AssertionError(f"{text!r} is not in {path}: {path.read_text()[-2000:]}")


def own_images(folder, split):
    """Give a client the images of a simulated one, in the same order."""
    rows = split.rows
    pixels = split.images[rows].squeeze(1).numpy()
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=[str(digit) for digit in range(10)]),
    )
    table = {
        "image": list(map(Image.fromarray, pixels)),
        "label": split.targets[rows].tolist(),
    }
    place = folder / "share/data/train-0.parquet"
    place.parent.mkdir(parents=True)
    datasets.Dataset.from_dict(table, features=features).to_parquet(place)


def edit(folder, **changes):
    path = folder / "client.toml"
    path.write_text(tomli_w.dumps(tomllib.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A federation of three clients, whose keys are those of a simulation."""
    root = tmp_path_factory.mktemp("deployed")
    fleet, superlink = free_ports(2)
    made = cli(
        *("deploy", "init", root / "federation", "--clients", *CLIENTS),
        *("--host", "127.0.0.1", "--port", fleet if HAS_NGINX else superlink),
        *("--superlink-port", superlink if HAS_NGINX else fleet),
    )
    assert made.returncode == 0, made.stderr
    data = load_federated_data(Config().with_values(SETTINGS))
    for number, name in enumerate(CLIENTS):
        folder = root / "federation/clients" / name
        own_images(folder, data.split(number))
        edit(
            folder,
            **{"data": "hf:share", "seeded-client": number},
            limits={"allow-seeded-keys": True},
        )
    return root


@pytest.fixture(scope="module")
def federation(place):
    """The federation, everybody online."""
    folder = place / "federation"
    proxy = [] if HAS_NGINX else ["--no-proxy"]
    with contextlib.ExitStack() as stack:
        log = place / "server.log"
        stack.enter_context(service(log, "deploy", "server", folder, *proxy))
        await_text(log, "Ctrl-C ends it")
        for name in CLIENTS:
            own = folder / "clients" / name
            log = place / f"{name}.log"
            stack.enter_context(service(log, "deploy", "client", own))
        await_online(folder)
        yield folder


def await_online(folder, seconds=90):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = cli("deploy", "status", folder)
        if status.returncode == 0:
            return
        time.sleep(1)
    raise AssertionError(status.stdout + status.stderr)


def deploy_run(federation, out, **changes):
    settings = {**SETTINGS, **changes}
    file = out.with_suffix(".toml")
    Config().with_values(settings)  # a mistake of the test would be a long one
    tables = {}
    for name, value in settings.items():
        table, key = name.split(".")
        tables.setdefault(table, {})[key] = value
    file.write_text(tomli_w.dumps(tables))
    return cli("deploy", "run", file, "--federation", federation, "--out", out)


def test_five_rounds_give_the_model_of_the_simulation(federation, place):
    done = deploy_run(federation, place / "run")
    assert done.returncode == 0, done.stderr
    config = Config().with_values(
        {**SETTINGS, "output.folder": str(place / "simulated")}
    )
    simulated = RunFolder.create(place / "simulated", config)
    run_inline(config, simulated)
    model = "model.safetensors"
    assert (place / "run" / model).read_bytes() == (simulated.path / model).read_bytes()
    rows = RunFolder(place / "run").metrics()
    assert [row["clients"] for row in rows] == 5 * [3]
    for name in CLIENTS:
        own = federation / "clients" / name
        beyond = {path.name for path in own.iterdir()} - {"state", "share"}
        assert beyond == {"README.md", "ca.crt", "client.toml", "node.key"}
        assert not list((own / "state").glob("unpacked-*"))


def test_a_client_refuses_what_its_settings_forbid_and_both_sides_read_why(
    federation, place
):
    done = deploy_run(federation, place / "weak", **{"instahide.method": "none"})
    assert done.returncode != 0
    reason = 'refuses this run: instahide.method = "none", it allows "instahide"'
    assert reason in done.stderr
    (named,) = [name for name in CLIENTS if f"client {name} {reason}" in done.stderr]
    assert f"client {named} {reason}" in (place / f"{named}.log").read_text()


def test_other_code_is_refused_before_it_is_unpacked(federation, place):
    folder = federation / "clients/west"
    before = (folder / "client.toml").read_text()
    edit(folder, **{"code-hash": "0" * 64})
    try:
        done = deploy_run(federation, place / "other")
    finally:
        (folder / "client.toml").write_text(before)
    assert done.returncode != 0
    refused = "client west refuses this run: the server sent the code"
    assert refused in done.stderr
    assert refused in (place / "west.log").read_text()


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
    before = LocalSuperLink(opened).runs()
    done = subprocess.run(
        [command("flwr"), "run", str(stage_app(tmp_path / "app")), "theirs"],
        cwd=tmp_path,
        env=flower_environment(home),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "403" in done.stdout + done.stderr
    assert LocalSuperLink(opened).runs() == before


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
