"""Malformed inputs, hundreds of them: refused with a sentence, or taken; never a crash.

Files are real ones with a few bytes or values changed; messages are made of values that
no client of ours would send. What is accepted may only be an `InstaHideError` (in the
command line: exit code 2 or 1 and no traceback), and no result may be left behind by a
command that failed.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instahide_fl import cli
from instahide_fl.config import Config, parse_assignment
from instahide_fl.data.pool import MixingPool
from instahide_fl.deployment.doctor import examine_folder
from instahide_fl.engine.arrays import ArrayForm
from instahide_fl.engine.bundle import importable_app
from instahide_fl.engine.grid import become_server, name_message
from instahide_fl.engine.inline import run_inline
from instahide_fl.errors import InstaHideError
from instahide_fl.report.recorded_run import open_recorded_run
from instahide_fl.run_folder import RunFolder
from instahide_fl.study.settings import StudyConfig
from instahide_fl.wire import ClientDescription, RoundInstruction, UpdateHeader
from tests.library.challenges import write_pictures, write_pool


def examples(count):
    """Return hypothesis's settings: the same inputs in every run of the tests."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# What is put in the place of a value.
SCALARS = st.one_of(
    st.sampled_from(
        [
            *(None, True, "", "x", "nan", "a\0b", "../..", [], {}, [[]]),
            *(0, -1, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308),
            *map(float, ("nan", "inf", "-inf")),
        ]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
    st.binary(max_size=20),
)
WORDS = st.sampled_from(
    [
        "nan",
        "inf",
        "-1",
        "0",
        "1e999",
        "9" * 40,
        '""',
        "[]",
        "{}",
        "null",
        "true",
        "=",
        "[",
    ]
)


@st.composite
def damage(draw):
    """Draw what happens to a file: a function from bytes to bytes."""
    kind = draw(st.sampled_from(["cut", "flip", "insert", "word", "empty", "random"]))
    place, seed = draw(st.floats(0, 1)), draw(st.integers(0, 2**32 - 1))
    extra, word = draw(st.binary(min_size=1, max_size=40)), draw(WORDS)

    def change(data):
        at = int(place * max(0, len(data) - 1))
        if kind == "cut":
            return data[:at]
        if kind == "flip" and data:
            return data[:at] + bytes([data[at] ^ (1 + seed % 255)]) + data[at + 1 :]
        if kind == "insert":
            return data[:at] + extra + data[at:]
        if kind == "word":
            return replace_value(data, place, word.encode())
        if kind == "random":
            return np.random.default_rng(seed).bytes(len(data) or 1)
        return b""

    return change


def replace_value(data, place, word):
    """Replace one of the numbers and words of a text, or of a header, by another."""
    found = list(re.finditer(rb"[-\w.]+", data[:20_000]))
    if not found:
        return word
    one = found[int(place * (len(found) - 1))]
    return data[: one.start()] + word + data[one.end() :]


@contextlib.contextmanager
def only_our_errors():
    with contextlib.suppress(InstaHideError):
        yield


@contextlib.contextmanager
def damaged(original, name, change):
    """Give a copy of a folder in which one file was changed."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(original, copy)
        path = copy / name
        path.write_bytes(change(path.read_bytes()))
        yield copy


def command(*arguments):
    """Run the command line in this process; anything but an exit is a traceback."""
    before = sys.argv
    sys.argv = ["instahide-fl", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as ended:
        return ended.code or 0, out.getvalue() + err.getvalue()
    finally:
        sys.argv = before
    return 0, out.getvalue() + err.getvalue()


# Settings ----------------------------------------------------------------------------


@examples(60)
@given(change=damage())
def test_settings_files(tmp_path_factory, change):
    path = tmp_path_factory.mktemp("settings") / "run.toml"
    path.write_bytes(change(Config().to_toml().encode()))
    with only_our_errors():
        Config.from_toml(path).located(path.parent).resolved()


KEYS = sorted(Config().to_run_config())


@examples(150)
@given(key=st.sampled_from([*KEYS, "", ".", "a.b.c", "train"]), value=SCALARS)
def test_values_of_settings(key, value):
    with only_our_errors():
        Config().with_values({key: value}).resolved().to_toml()


@examples(60)
@given(
    text=st.one_of(
        st.text(max_size=40),
        st.builds("{}={}".format, st.sampled_from(KEYS), st.text(max_size=12)),
    )
)
def test_assignments(text):
    with only_our_errors():
        Config().with_values(dict([parse_assignment(text)])).to_toml()


@examples(40)
@given(change=damage())
def test_study_files(tmp_path_factory, change):
    path = tmp_path_factory.mktemp("study") / "study.toml"
    text = (Path(__file__).parents[1] / "experiments").glob("*.toml")
    studies = [one for one in sorted(text) if "[[" in one.read_text()]
    path.write_bytes(change(studies[0].read_bytes()))
    with only_our_errors():
        StudyConfig.from_toml(path)


CLIENT = """server = "127.0.0.1:1"
data = "imagefolder:pictures"
pool = "photos"
code-hash = "0000"

[limits]
max-exposures = 100
methods = ["instahide"]
min-num-mixed = 4
allow-truth = false
"""
FEDERATION = """name = "hospitals"
hosts = ["127.0.0.1", "example.org"]
fleet-port = 9443
superlink-port = 9444
clients = ["ward", "lab"]
"""


@examples(40)
@given(name=st.sampled_from(["client.toml", "federation.toml"]), change=damage())
def test_files_of_a_deployment(tmp_path_factory, name, change):
    folder = tmp_path_factory.mktemp("deployment")
    text = CLIENT if name == "client.toml" else FEDERATION
    (folder / name).write_bytes(change(text.encode()))
    with only_our_errors():
        assert all(one.text for one in examine_folder(folder))


# Messages ----------------------------------------------------------------------------

MESSAGES = {
    ClientDescription: ClientDescription("0", 8, "a", "b").to_values(),
    UpdateHeader: UpdateHeader("0", "gradient", 1).to_values(),
    RoundInstruction: {
        **{"schema": 3, "round": 1, "pool-sha256": "", "learning-rate-factor": 1.0},
        **{"mean": [0.5], "std": [0.2]},
    },
}


@examples(150)
@given(
    kind=st.sampled_from(list(MESSAGES)),
    changes=st.dictionaries(
        st.sampled_from(sorted({key for one in MESSAGES.values() for key in one})),
        st.one_of(SCALARS, st.just(...)),
        max_size=3,
    ),
)
def test_values_of_messages(kind, changes):
    values = {**MESSAGES[kind], **changes}
    with only_our_errors():
        kind.from_values({k: v for k, v in values.items() if v is not ...})


ARRAYS = st.builds(
    lambda values, shape, dtype, stype, data: (values, shape, dtype, stype, data),
    st.sampled_from([np.zeros((2, 3), np.float32), np.full((2, 3), np.nan, np.float32)])
    | st.builds(lambda n: np.zeros(n), st.integers(0, 5)),
    st.sampled_from([None, (2, 3), (), (10**12,), (-1,), (0,)]),
    st.sampled_from([None, "float32", "object", "", "<f4", "float31"]),
    st.sampled_from(["numpy.ndarray", "pickle", ""]),
    st.one_of(st.none(), st.binary(max_size=200), damage()),
)
METRICS = st.dictionaries(
    st.sampled_from(
        ["num-examples", "train_loss", "seconds", "exposures_max", "other"]
    ),
    st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats()),
)


def made_array(drawn):
    values, shape, dtype, stype, data = drawn
    whole = Array(values)
    if callable(data):
        data = data(whole.data)
    return Array(
        whole.dtype if dtype is None else dtype,
        tuple(whole.shape) if shape is None else shape,
        stype,
        whole.data if data is None else data,
    )


@examples(150)
@given(
    arrays=st.dictionaries(st.sampled_from(["w", "b"]), ARRAYS, max_size=2),
    metrics=METRICS,
    header=st.fixed_dictionaries(
        {},
        optional={
            "schema": st.integers(2, 4),
            "client": st.text(max_size=3),
            "kind": st.sampled_from(["gradient", "delta", ""]),
            "round": st.integers(-1, 3),
        },
    ),
    left_out=st.sets(st.sampled_from(["arrays", "about", "metrics"]), max_size=1),
)
def test_updates_of_clients(arrays, metrics, header, left_out):
    with importable_app():
        from server.records import Sender, UpdateReader
    become_server()
    form = ArrayForm((2, 3), "float32")
    reader = UpdateReader(
        {"w": form}, "gradient", "weighted-mean", 1, {7: Sender("0", 8)}
    )
    asked = Message(RecordDict(), 7, "train")
    name_message(asked)
    content = {
        "arrays": ArrayRecord({name: made_array(one) for name, one in arrays.items()}),
        "about": ConfigRecord(
            {**UpdateHeader("0", "gradient", 1).to_values(), **header}
        ),
        "metrics": MetricRecord({"num-examples": 8, "train_loss": 1.0, **metrics}),
    }
    content = {name: one for name, one in content.items() if name not in left_out}
    reply = Message(RecordDict(content), reply_to=asked)
    with only_our_errors():
        update = reader.read(reply)
        assert torch.isfinite(update.arrays["w"]).all()
        assert update.arrays["w"].shape == (2, 3)
        assert 1 <= update.num_examples <= 8
        assert all(np.isfinite(list(update.metrics.values())))


# Files -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("malformed")


@pytest.fixture(scope="module")
def pool_folder(place):
    rng = np.random.default_rng(0)
    return Path(write_pool(place / "pool", rng))


@pytest.fixture(scope="module")
def challenge_folder(place, pool_folder):
    rng = np.random.default_rng(0)
    code, said = command(
        *("challenge", "make", "--dataset", write_pictures(place / "pictures", rng)),
        *("--pool", pool_folder, "--images", 20, "--encodings", 2),
        *("--out", place / "challenge"),
    )
    assert code == 0, said
    return place / "challenge"


@pytest.fixture(scope="module")
def run_folder(place, pool_folder):
    rng = np.random.default_rng(0)
    config = Config().with_values(
        {
            "data.dataset": write_pictures(place / "pictures-of-run", rng),
            "pool.source": str(pool_folder),
            "partition.num-clients": 2,
            "model.name": "mlp",
            "train.rounds": 2,
            "train.batch-size": 2,
            "train.checkpoint-every": 1,
            "record.rounds": "1",
            "record.truth": True,
            "output.folder": str(place / "run"),
        }
    )
    folder = RunFolder.create(place / "run", config)
    run_inline(config, folder)
    assert folder.finished
    return folder.path


@examples(50)
@given(name=st.sampled_from(["manifest.json", "images.npy"]), change=damage())
def test_pools(pool_folder, name, change):
    with damaged(pool_folder, name, change) as copy, only_our_errors():
        pool = MixingPool.open(copy)
        pool.verify()
        pool.check_fits((3, 12, 12), 2)


@examples(50)
@given(
    name=st.sampled_from(["encryption.npy", "label.npy", "settings.toml"]),
    change=damage(),
)
def test_challenges(challenge_folder, name, change):
    with damaged(challenge_folder, name, change) as copy:
        code, said = command("challenge", "score", copy)
        assert code in (0, 1, 2), said
        assert code == 0 or not (copy / "score.json").exists()


@examples(50)
@given(
    name=st.sampled_from(
        [
            *("config.toml", "provenance.json", "metrics.jsonl", "summary.json"),
            *("model.safetensors", "checkpoint/state.safetensors"),
            *("transcript/round-00001.safetensors", "partition.json"),
            *("truth/round-00001/client-1.safetensors",),
        ]
    ),
    change=damage(),
)
def test_run_folders(run_folder, name, change):
    with damaged(run_folder, name, change) as copy:
        for read in (
            lambda: open_recorded_run(copy),
            lambda: RunFolder(copy).metrics(),
            lambda: RunFolder(copy).load_model(),
            lambda: RunFolder(copy).config(),
            lambda: RunFolder(copy).failure(),
        ):
            with only_our_errors():
                read()
        before = (copy / "metrics.jsonl").read_bytes()
        try:
            RunFolder(copy).load_checkpoint()
        except InstaHideError:
            assert (copy / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "values",
    [
        {"round": "one"},
        {"image_shape": [1, 2]},
        {"image_shape": None},
        {"mean": "x"},
        {"clients": []},
        {"clients": {"0": {}}},
        {"num_classes": None},
        {"schema": 99},
        {"learning_rate_factor": "fast"},
        {"images_held": {"0": None}},
    ],
)
def test_transcripts_that_describe_themselves_wrongly(run_folder, values):
    from instahide_fl.tensor_files import load_tensors, save_tensors

    name = "transcript/round-00001.safetensors"
    with damaged(run_folder, name, lambda data: data) as copy:
        tensors, metadata = load_tensors(copy / name)
        about = {**json.loads(metadata["about"]), **values}
        save_tensors(copy / name, tensors, {"about": json.dumps(about)})
        with pytest.raises(InstaHideError):
            open_recorded_run(copy)


@examples(16)
@given(
    name=st.sampled_from(
        [
            *("config.toml", "metrics.jsonl", "transcript/round-00001.safetensors"),
            *("summary.json", "truth/round-00001/client-0.safetensors"),
            *("provenance.json", "model.safetensors", "checkpoint/state.safetensors"),
        ]
    ),
    change=damage(),
    subcommand=st.sampled_from(["attack", "report", "evaluate", "resume"]),
)
def test_commands_on_damaged_runs(run_folder, name, change, subcommand):
    with damaged(run_folder, name, change) as copy:
        arguments = {
            "attack": ("attack", copy, "--attack", "soft_labels"),
            "report": ("report", copy),
            "evaluate": ("evaluate", copy),
            "resume": ("run", "--engine", "inline", "--resume", copy),
        }[subcommand]
        code, said = command(*arguments)
        assert code in (0, 1, 2), said
        assert "Traceback" not in said
        assert not list(copy.rglob("*.part"))


def test_there_are_at_least_two_hundred():
    """As counted by hypothesis: the examples of this file."""
    counts = re.findall(r"@examples\((\d+)\)", Path(__file__).read_text())
    assert sum(map(int, counts)) >= 200
