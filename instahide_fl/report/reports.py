"""Reports of studies, of single runs, and of runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instahide_fl.errors import OutputError
from instahide_fl.report import sections
from instahide_fl.report.page import Report, save_report
from instahide_fl.report.results import (
    Run,
    Study,
    load_run,
    load_study,
    study_of_runs,
)
from instahide_fl.report.tuning_tables import unequal_notes
from instahide_fl.report.variants import study_variants
from instahide_fl.report.wording import BROKEN, verdict_lines
from instahide_fl.run_folder import CONFIG
from instahide_fl.study.folder import REPORT, STATE, StudyFolder


def write_report(paths: Sequence[Path], out: Path | None) -> Path:
    """Write the report of a study, of a run, or of several runs.

    Args:
        paths: One study folder, or one or more run folders.
        out: The HTML file; None puts it into the folder, or for several runs into the
            current one.

    Returns:
        The HTML file. Figures and tables of a study lie beside it, in a folder of the
        same name without the ending.

    Raises:
        OutputError: a folder is neither a study nor a run, a file in it is damaged, or
            `out` does not end in .html.
    """
    if out is not None and out.suffix != ".html":
        raise OutputError(f"--out must end in .html, got {out}")
    if len(paths) == 1 and (paths[0] / STATE).is_file():
        return _write_study_report(paths[0], out)
    runs = [load_run(_checked(path)) for path in paths]
    if len(runs) == 1:
        page = out or runs[0].path / REPORT
        save_report(report_of_run(runs[0]), page, None)
    else:
        page = out or Path(REPORT)
        save_report(report_of_runs(runs), page, None)
    return page


def _write_study_report(path: Path, out: Path | None) -> Path:
    page = out or StudyFolder(path).report
    save_report(report_of_study(load_study(path)), page, page.with_suffix(""))
    return page


def _checked(path: Path) -> Path:
    """Return a run's folder, or say what else it is."""
    if (path / STATE).is_file():
        raise OutputError(
            f"{path} is a study: report on it alone, or compare its runs: "
            f"{path / 'runs'}/..."
        )
    if not (path / CONFIG).is_file():
        raise OutputError(
            f"{path} is neither a study folder ({STATE}) nor a run folder ({CONFIG})"
        )
    return path


def report_of_study(study: Study) -> Report:
    """Put a study's report together."""
    variants = study_variants(study)
    return Report(
        title=study.title,
        question=study.description.get("question", "").strip(),
        verdict=verdict_lines(variants, unequal_notes(study)),
        warning=BROKEN,
        sections=(
            sections.data(study),
            sections.trade_offs(study, variants),
            sections.methods(study, variants),
            sections.tuning(study),
            sections.reconstructions(variants),
            sections.training(study, variants),
            sections.leakage(study, variants),
            sections.membership(variants),
            sections.adversaries(study),
            sections.stages(study, variants),
            sections.shortfalls(study, variants),
            sections.clients(study),
            sections.settings(study),
            sections.provenance(study),
        ),
        command=f"instahide-fl report {study.path}",
    )


def report_of_run(run: Run) -> Report:
    """Put the report of one run together."""
    study = study_of_runs([run])
    variants = study_variants(study)
    encoding = run.config.instahide.method
    return Report(
        title=f"Run {run.path.resolve().name}",
        question=f"{run.config.data.dataset}, method {encoding}.",
        verdict=verdict_lines(variants),
        warning=BROKEN,
        sections=(
            sections.data(study),
            sections.methods(study, variants),
            sections.training(study, variants),
            sections.leakage(study, variants),
            sections.membership(variants),
            sections.pictures(run),
            sections.adversaries(study),
            sections.stages(study, variants),
            sections.shortfalls(study, variants),
            sections.clients(study),
            sections.settings(study),
            sections.provenance(study),
        ),
        command=f"instahide-fl report {run.path}",
    )


def report_of_runs(runs: Sequence[Run]) -> Report:
    """Put runs beside each other: what differs in settings and in results.

    Args:
        runs: The runs to compare, two or more.
    """
    study = study_of_runs(runs)
    variants = study_variants(study)
    return Report(
        title=f"{len(runs)} runs side by side",
        question="",
        verdict=verdict_lines(variants),
        warning=BROKEN,
        sections=(
            sections.data(study),
            sections.settings(study),
            sections.methods(study, variants),
            sections.trade_offs(study, variants),
            sections.training(study, variants),
            sections.leakage(study, variants),
            sections.membership(variants),
            sections.reconstructions(variants),
            sections.adversaries(study),
            sections.stages(study, variants),
            sections.shortfalls(study, variants),
            sections.clients(study),
            sections.provenance(study),
        ),
        command="instahide-fl report " + " ".join(str(run.path) for run in runs),
    )
