"""Damaged files of pools, challenges and runs: refused with a sentence, or read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instahide_fl.audit.recorded_run import open_recorded_run
from instahide_fl.config import Config
from instahide_fl.data.pool import MixingPool
from instahide_fl.engine.inline import run_inline
from instahide_fl.errors import InstaHideError
from instahide_fl.run_folder import RunFolder
from tests.library.challenges import write_pictures, write_pool
from tests.malformed import (
    command,
    damage,
    damaged,
    examples,
    only_our_errors,
)


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


@pytest.mark.parametrize(
    "values",
    [
        {"trained": False, "chance_bound": None},
        {"trained": False, "final_accuracy": None},
        {"trained": "no"},
        {"final_accuracy": "0.5"},
        {"rounds": [2]},
        {"seconds": {}},
        {"epsilon": "1"},
    ],
)
def test_summaries_with_figures_missing_or_of_another_type(run_folder, values):
    with damaged(run_folder, "summary.json", lambda data: data) as copy:
        summary = json.loads((copy / "summary.json").read_text())
        (copy / "summary.json").write_text(json.dumps({**summary, **values}))
        for subcommand in ("report", "evaluate"):
            code, said = command(subcommand, copy)
            assert code == 2, said
            assert "summary.json is damaged" in said
            assert next(iter(values)) in said


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
