"""Small runs in one process, for the tests of server and clients together."""

from __future__ import annotations

from instahide_fl.config import Config
from instahide_fl.engine.inline import run_inline
from instahide_fl.run_folder import RunFolder


def settings_over(base, **changes):
    """Settings over a base; of a keyword, __ stands for a dot and _ for a hyphen."""
    dotted = {key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()}
    return Config().with_values({**base, **dotted})


def start(path, config, resume=False):
    folder = RunFolder(path) if resume else RunFolder.create(path, config)
    output = {"output.folder": str(path), "output.resume": resume}
    run_inline(config.with_values(output), folder)
    return folder
