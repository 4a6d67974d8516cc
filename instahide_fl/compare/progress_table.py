"""The table that shows a study while it is carried out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rich.table import Table

from instahide_fl.run_folder import RunFolder
from instahide_fl.study.folder import AUDIT_FILE, StudyFolder
from instahide_fl.study.plan import PlannedRun
from instahide_fl.study.trial_results import divergence
from instahide_fl.study.tuning import values_in_words


def progress_table(
    folder: StudyFolder,
    runs: Sequence[PlannedRun],
    running: Collection[str],
    failures: Mapping[str, str],
) -> Table:
    """Return a table with the state of each run.

    Args:
        folder: The study's folder.
        runs: The runs and trials to show.
        running: The names of the runs that are being carried out.
        failures: The reasons why runs failed, by name.
    """
    table = Table()
    for heading in ("method", "seed", "training", "accuracy", "audits"):
        table.add_column(heading)
    for run in runs:
        varied = f", {values_in_words(run.axes)}" if run.axes else ""
        trial = f", trial {run.trial}: {values_in_words(run.tuned)}"
        training, accuracy = _training(folder.run(run), run, running)
        table.add_row(
            f"{run.method}{varied}{trial if run.trial else ''}",
            str(run.seed),
            "failed" if run.name in failures else training,
            accuracy,
            _audits(folder, run),
            style="red" if run.name in failures else None,
        )
    return table


def _training(
    folder: RunFolder, run: PlannedRun, running: Collection[str]
) -> tuple[str, str]:
    rows = folder.metrics()
    # Of a trial nobody should look at the accuracy on test images.
    figure = "validation_accuracy" if run.trial else "test_accuracy"
    tested = [row[figure] for row in rows if row.get(figure) is not None]
    accuracy = f"{tested[-1]:.1%}" if tested else ""
    if folder.finished:
        # Whether a network is trained is told by test images, too.
        trained = bool(run.trial) or folder.summary().get("trained", True)
        return "done", accuracy if trained else f"{accuracy} (chance)"
    if run.name not in running:
        return "diverged" if run.trial and divergence(folder) else "waiting", accuracy
    last_round = int(rows[-1]["round"]) if rows else 0
    return f"round {last_round}/{run.config.train.rounds}", accuracy


def _audits(folder: StudyFolder, run: PlannedRun) -> str:
    finished = sum(
        (folder.audit(run, audit).path / AUDIT_FILE).is_file()
        for audit, _ in run.audits
    )
    return f"{finished}/{len(run.audits)}" if run.audits else ""
