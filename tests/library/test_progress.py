from __future__ import annotations

import io

from rich.console import Console

from instahide_fl.config import Config
from instahide_fl.progress import RunProgress, steps_bar
from instahide_fl.run_folder import RunFolder


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


def test_the_seconds_of_a_round_leave_its_evaluation_out(tmp_path):
    shown = io.StringIO()
    folder = RunFolder.create(tmp_path / "run", Config())
    rows = [(1, 0.5, 0.0, None), (2, 20.5, 20.0, 0.25)]
    for number, seconds, evaluation, accuracy in rows:
        row = {"round": number, "seconds": seconds, "test_accuracy": accuracy}
        folder.append_metrics({**row, "evaluation_seconds": evaluation, "clients": 10})
    with RunProgress(folder, 2, Console(file=shown, width=200)):
        pass
    assert shown.getvalue() == (
        "round 2/2  accuracy 25.0%  0.50 s a round, 20 clients/s, evaluation 20.00 s\n"
    )
