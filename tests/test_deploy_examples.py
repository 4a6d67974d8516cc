"""The examples in deploy/ are valid, and say what the docs say they do."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
UNITS = sorted((ROOT / "deploy").glob("*.service"))
PROGRAM = "/opt/instahide-fl/bin/instahide-fl"


def directives(unit):
    lines = unit.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"[A-Za-z]+=", line))


def test_each_role_has_a_unit():
    assert [unit.stem.rsplit("-", 1)[1] for unit in UNITS] == ["client", "server"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_starts_again_until_flower_lets_it_in(unit):
    found = directives(unit)
    assert (found["Restart"], found["RestartSec"]) == ("always", "10")
    assert found["StartLimitIntervalSec"] == "0"
    assert found["UMask"] == "0077"
    role = unit.stem.rsplit("-", 1)[1]
    assert found["ExecStart"].startswith(f"{PROGRAM} deploy {role} ")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_no_fault_with_a_unit(unit, tmp_path):
    # It looks for the program, which is not installed there.
    text = unit.read_text().replace(PROGRAM, "/bin/true")
    copy = tmp_path / unit.name
    copy.write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    about = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, about) == (0, []), done.stderr


def test_compose_confines_both_and_opens_the_fleet_port_alone():
    services = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    assert services["server"]["ports"] == ["9443:9443"]
    assert "ports" not in services["client"]
    for role, service in services.items():
        assert service["command"][:2] == ["deploy", role]
        assert service["restart"] == "always"
        assert service["cap_drop"] == ["ALL"]
        assert service["user"].split(":")[0] != "0"
        assert (ROOT / "deploy" / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_the_image_does_not_run_as_root():
    lines = (ROOT / "deploy/Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["instahide"]
    assert 'ENTRYPOINT ["instahide-fl"]' in lines


@pytest.mark.parametrize(
    "page", ["docs/deploy-operator.md", "docs/deploy-client.md", "SECURITY.md"]
)
def test_what_a_page_links_to_exists(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
