"""Damaged files and strange values, drawn; what may be raised at them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from instahide_fl import cli
from instahide_fl.errors import InstaHideError


def examples(count):
    """Return hypothesis's settings: the same inputs in every run of the tests.

    `make test-all` draws ten times as many.
    """
    return settings(
        max_examples=count * (10 if os.environ.get("THOROUGH") else 1),
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
