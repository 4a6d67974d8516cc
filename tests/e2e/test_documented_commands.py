"""Every command of README and docs is executed, page by page, in the order of the page.

What is changed: paths of the reader's own become data made here, and long work becomes
short (two rounds, cut studies), because what is tested is the command. What needs a
network or another machine, measures for minutes, or stays until it is stopped is in
`ELSEWHERE`, with the file that has, or tests, what is behind it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import tomli_w
from PIL import Image

from instahide_fl.data.pool_build import build_pool
from instahide_fl.data.pool_patches import PoolBuildOptions
from instahide_fl.run_folder import RunFolder
from tests.e2e.deployed import HAS_NGINX
from tests.library.pictures import write_hugging_face_folder
from tests.test_documentation import PAGES, ROOT, named

pytestmark = pytest.mark.slow

LINE = re.compile(
    r"^ {4,}(?:\$ )?((?:instahide-fl|python3?|pip|make|flwr|tensorboard|mlflow|"
    r"\.venv/bin/\w+) (?!=).*)$",
    re.MULTILINE,
)
ELSEWHERE = {
    r"(\.venv/bin/)?pip install|python3 -m venv": "tests/e2e/test_packages.py",
    r"make ": "tests/test_readme.py",
    r"flwr run": "tests/e2e/test_flower.py",
    r"instahide-fl deploy (server|client|run|status|stop)": (
        "tests/e2e/test_deployment.py"
    ),
    r"\.venv/bin/ray|.*resources\.ray-address": "tests/e2e/test_ray.py",
    r"tensorboard|mlflow ui": "tests/library/test_tracking.py",
    r".*data\.(download|root)=": "tests/library/test_datasets.py",
    r"python -m benchmarks": "benchmarks/deployment.py",
    r"python examples": "tests/test_documentation.py",
}
# The pages that `make test` follows; the others are for `make test-all`.
FIRST_PAGES = ("README.md", "docs/deploy-operator.md", "docs/tour.md")
SHORT_RUN = ["--set", "train.rounds=2"]
# One attack that is made of every run, where a page leaves the choice to the command.
QUICK_ATTACK = ["--attack", "soft_labels"]


def commands(page):
    """Yield each command of a page's code, without comments and explanations."""
    text = page.read_text().replace("\\\n", " ")
    for line in LINE.findall(text):
        told = line.partition(" #")[0].strip()
        if told.startswith("instahide-fl"):
            told = re.split(r"\s{2,}(?=[^-\s])", told)[0]
        yield told


def is_elsewhere(line):
    return any(re.match(pattern, line) for pattern in ELSEWHERE)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """What stands for the reader's own: data, photographs, short studies, a run."""
    place = tmp_path_factory.mktemp("material")
    classes = [str(i) for i in range(10)]
    write_hugging_face_folder(place / "cifar10", 200, (32, 32), classes=classes)
    write_photos(place / "photos", 40)
    for kind in ("zip", "tar"):
        shutil.make_archive(str(place / "photos"), kind, place / "photos")
    shutil.copytree(ROOT / "experiments", place / "checkout" / "experiments")
    shutil.copytree(ROOT / "docs" / "attacks", place / "checkout" / "docs" / "attacks")
    shutil.copy(ROOT / "docs" / "training.md", place / "checkout" / "docs")
    experiments = place / "checkout" / "experiments"
    cells = json.loads((experiments / "audits" / "decoding.json").read_text())
    for page in cells.values():  # what is measured already is not measured again
        list(page.values())[1].popitem()
    (experiments / "audits" / "decoding.json").write_text(json.dumps(cells))
    for source in (ROOT / "experiments").glob("*.toml"):
        values = shortened(tomllib.loads(source.read_text()), place)
        (experiments / source.name).write_text(tomli_w.dumps(values))
    return place


def write_photos(folder, count):
    """Save pictures with enough of detail to be cut into a pool."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((160, 160), Image.Resampling.NEAREST)
        image.save(folder / f"{number}.jpg")


def shortened(values, place):
    """Return settings, or a study, that take seconds on the data made here."""
    if "methods" not in values:
        return values
    base = values.setdefault("base", {})
    base.setdefault("train", {}).update({"rounds": 2, "evaluate-every": 2})
    if "dataset" in base.get("data", {}):
        base["data"] = {"dataset": f"hf:{place / 'cifar10'}"}
        base.pop("pool", None)
    if "rounds" in base.get("record", {}):
        base["record"]["rounds"] = "all"
    values |= {"seeds": [0], "methods": values["methods"][:2]}
    kept = {method["name"] for method in values["methods"]}
    values["axes"] = {key: some[:1] for key, some in values.get("axes", {}).items()}
    audits = [one for one in values["audits"] if kept & set(one.get("methods", kept))]
    values["audits"] = audits[:1]
    for audit in values["audits"]:
        audit["attacks"] = audit["attacks"][:1]
        [attack] = audit["attacks"]
        settings = audit.get("attack-settings", {}).get(attack, {})
        if attack == "inverting_gradients":
            settings |= {"iterations": 2}
        audit["attack-settings"] = {attack: settings}
        if "methods" in audit:
            audit["methods"] = [one for one in audit["methods"] if one in kept]
    return values


def own(line, material):
    """Put data made here where a page names the reader's."""
    cifar = f"hf:{material / 'cifar10'}"
    for pattern, value in {
        r"hf:(path/to/cifar10|uoft-cs/cifar10|PATH-OF-CIFAR-10)": cifar,
        r"--data cifar10": f"--data {cifar}",
        r"/data/imagenet/train": str(material / "photos"),
        r"pictures\.zip": str(material / "photos.zip"),
        r"shards/train-\S+\.tar": str(material / "photos.tar"),
        r"--pool POOL": "--pool photos",
        # The images made here are too few for it: tests/library/test_carlini.py.
        r" --attack carlini\b.*": "",
        r"(leakage_by_exposure.py .*)": r"\1 --images 10 --seeds 1",
        r"\bRUN_DIR\b": "runs/interrupted",
        r"clients-per-round=N\b": "clients-per-round=2",
        r"num-clients=1000(?=.*hf:)": "num-clients=20",
        r" (CLIENT_DIR|FEDERATION_DIR)\b": "",
    }.items():
        line = re.sub(pattern, value, line)
    return line


def shortened_command(words):
    """Return a command that does the same on less."""
    if words[0] == "run" and "--resume" not in words:
        engine = [] if "--engine" in words else ["--engine", "inline"]
        # A page may record rounds that a short run does not have.
        late = [word for word in words if re.match(r"record\.rounds=\d\d", word)]
        recorded = ["--set", "record.rounds=all"] if late else []
        return [*words, *engine, *SHORT_RUN, *recorded]
    if words[0] == "attack" and not {"--attack", "--list"} & set(words):
        return [*words, *QUICK_ATTACK]
    if words[:2] == ["challenge", "make"] and "--images" not in words:
        return [*words, "--images", "20", "--encodings", "10"]
    if words[:2] == ["challenge", "attack"]:
        return [*words, "--attack", "decode_encodings"]
    return words


def expanded(word, folder):
    """Return the files that a shell would put in the place of NAME/*."""
    if not word.endswith("/*"):
        return [word]
    return sorted(str(one.relative_to(folder)) for one in folder.glob(word))


def prepare(words, command, folder):
    """Make the runs that a command of this page takes from another page."""
    for before, word in zip(["", *words], words, strict=False):
        path = folder / word
        if not word.startswith("runs/") or before == "--out":
            continue
        if not (path / "config.toml").exists():
            code, out, err = command(
                *("run", "--engine", "inline", "--out", word, *SHORT_RUN),
                *("--set", "record.rounds=1", "--set", "record.truth=true"),
                *("--set", "train.batch-size=1", "--set", "model.name=mlp"),
                *("--set", "train.clients-per-round=1"),
            )
            assert code == 0, out + err
        if before == "--resume":  # as if it had been interrupted
            (path / "summary.json").unlink(missing_ok=True)
            assert RunFolder(path).resumable


@pytest.fixture
def an_nginx(tmp_path_factory, monkeypatch):
    """Something that the doctor takes for nginx, where the machine has none."""
    if not HAS_NGINX:
        folder = tmp_path_factory.mktemp("programs")
        (folder / "nginx").symlink_to(shutil.which("true"))
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page, marks=[] if named(page) in FIRST_PAGES else [pytest.mark.long]
        )
        for page in PAGES
        if not all(map(is_elsewhere, commands(page)))
    ],
    ids=named,
)
@pytest.mark.usefixtures("an_nginx")
def test_the_commands_of_a_page(page, command, material, tmp_path):
    shutil.copytree(material / "checkout", tmp_path, dirs_exist_ok=True)
    for line in commands(page):
        if is_elsewhere(line):
            continue
        if "pools/imagenet" in line and "pool build" not in line:
            pool = tmp_path / "pools" / "imagenet"
            if not pool.exists():
                build_pool(material / "photos", pool, PoolBuildOptions())
        program, *words = shlex.split(own(line, material))
        words = [one for word in words for one in expanded(word, tmp_path)]
        if program == "python":
            ended = subprocess.run(
                [sys.executable, *words],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
            )
            assert ended.returncode == 0, (line, ended.stderr)
            continue
        prepare(words, command, tmp_path)
        code, out, err = command(*shortened_command(words))
        assert code == 0, (line, out, err)


def test_what_is_executed_elsewhere_is_there():
    for path in ELSEWHERE.values():
        assert (ROOT / path).is_file(), path
