"""Malformed inputs, hundreds of them: refused with a sentence, or taken; never a crash.

Files are real ones with a few bytes or values changed; messages are made of values that
no client of ours would send. What is accepted may only be an `InstaHideError` (in the
command line: exit code 2 or 1 and no traceback), and no result may be left behind by a
command that failed.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from instahide_fl.config import Config, parse_assignment
from instahide_fl.deployment.doctor import examine_folder
from instahide_fl.flower.app_bundle import importable_app
from instahide_fl.flower.arrays import ArrayForm
from instahide_fl.flower.in_process_grid import become_server, name_message
from instahide_fl.study.settings import StudyConfig
from instahide_fl.wire.messages import (
    SCHEMA,
    ClientDescription,
    DescriptionQuery,
    RoundInstruction,
    UpdateHeader,
)
from tests.malformed import (
    SCALARS,
    damage,
    examples,
    only_our_errors,
)

# Settings


@examples(60)
@given(change=damage())
def test_settings_files(tmp_path_factory, change):
    path = tmp_path_factory.mktemp("settings") / "run.toml"
    path.write_bytes(change(Config().to_toml().encode()))
    with only_our_errors():
        Config.from_toml(path).with_absolute_paths(path.parent).resolved()


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
    DescriptionQuery: DescriptionQuery((3, 32, 32)).to_values(),
    UpdateHeader: UpdateHeader("0", "gradient", 1).to_values(),
    RoundInstruction: {
        **{
            "schema": SCHEMA,
            "round": 1,
            "pool-sha256": "",
            "learning-rate-factor": 1.0,
        },
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
            "schema": st.integers(3, SCHEMA),
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


def test_there_are_at_least_two_hundred():
    """As counted by hypothesis: the examples of this file and of the one beside it."""
    counts = [
        int(count)
        for name in ("test_malformed_inputs.py", "test_malformed_files.py")
        for count in re.findall(
            r"@examples\((\d+)\)", Path(__file__).with_name(name).read_text()
        )
    ]
    assert sum(counts) >= 200
