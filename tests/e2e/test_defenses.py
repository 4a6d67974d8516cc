"""Defences give the same bytes in every engine."""

from __future__ import annotations

import pytest

from instahide_fl.engine.inline import run_inline
from instahide_fl.engine.ray.ray_grid import run_ray
from tests.e2e.support import command_line, model_bytes, start

pytestmark = pytest.mark.slow

MEAN = {"server.aggregation": "mean"}
DP_SGD = {"defense.differential-privacy": "dp-sgd", "instahide.method": "none"}


@pytest.mark.parametrize(
    "changes",
    [
        {"defense.transforms": "prune, clip, noise"},
        DP_SGD,
        {"defense.differential-privacy": "central", **MEAN},
        {
            "defense.differential-privacy": "local",
            "defense.transforms": "sign",
            "train.mode": "update",
            **MEAN,
        },
    ],
)
def test_workers_that_add_up_updates_give_the_same_bytes(tmp_path, changes):
    inline = start(run_inline, tmp_path / "inline", **changes)
    parallel = start(run_ray, tmp_path / "ray", **changes, **{"resources.workers": 2})
    assert model_bytes(inline) == model_bytes(parallel)
    rows = [[r.get("epsilon") for r in one.metrics()] for one in (inline, parallel)]
    assert rows[0] == rows[1]


def test_flower_gives_the_same_bytes_and_the_same_epsilon(tmp_path):
    changes = {**DP_SGD, "defense.transforms": "prune"}
    folders = []
    for engine in ("inline", "flower"):
        done, folder = command_line(tmp_path / engine, engine, **changes)
        assert done.returncode == 0, done.stderr
        folders.append(folder)
    assert model_bytes(folders[0]) == model_bytes(folders[1])
    one, other = (folder.read_json("summary.json") for folder in folders)
    assert one["epsilon"] == other["epsilon"] > 0
