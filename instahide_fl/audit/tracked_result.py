"""The result of an attack, shown where the run's training was shown."""

from __future__ import annotations

from instahide_fl.audit.attack_result import RESULTS, AttackResult
from instahide_fl.run_folder import RunFolder
from instahide_fl.tracking.tracked import log_results


def track_result(result: AttackResult, folder: RunFolder) -> None:
    """Show a result where the run's training was shown, if anywhere.

    Args:
        result: of an attack, saved in the run's folder with its pictures.
        folder: of the run.

    Raises:
        ConfigError: a tracker's package is not installed any more.
        OutputError: a tracker cannot be written.
    """
    name, place = result.file_stem, folder.path / RESULTS
    figures = {}
    for target in ("private", "encoding"):
        scores = getattr(result.scores, target)
        if scores is not None:
            ssim = scores.attack.ssim
            figures[f"{target}_ssim_mean"] = ssim.mean
            figures[f"{target}_ssim_best"] = ssim.best
    pictures = [place / f"{name}.png", place / f"{name}-rounds.png"]
    files = [*pictures, place / f"{name}.json"]
    log_results(folder, f"{RESULTS}/{name}", figures, files)
