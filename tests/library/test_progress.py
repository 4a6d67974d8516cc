from __future__ import annotations

import io

from rich.console import Console

from instahide_fl.progress import steps_bar


def test_off_a_terminal_long_work_says_now_and_then_how_far_it_is(monkeypatch):
    shown = io.StringIO()
    console = Console(file=shown)
    with steps_bar(console, "carlini") as advance:
        advance(1, 4)
    assert shown.getvalue() == ""
    monkeypatch.setattr("instahide_fl.progress.QUIET_SECONDS", -1.0)
    with steps_bar(console, "carlini") as advance:
        advance(1, 4)
    assert shown.getvalue() == "carlini: 25% after 0 s\n"
