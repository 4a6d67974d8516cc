"""The result of an attack, shown where the run's training was shown."""

from __future__ import annotations

from instahide_fl.audit.attack_result import AttackResult
from instahide_fl.run_folder import ATTACK_RESULTS, RunFolder
from instahide_fl.tracking.tracked import log_results


def track_result(result: AttackResult, folder: RunFolder) -> None:
    """Show a result where the run's training was shown, if anywhere.

    Args:
        result: The result of an attack, saved in the run's folder with its pictures.
        folder: The run's folder.

    Raises:
        ConfigError: a tracker's package is not installed any more.
        OutputError: a tracker cannot be written.
    """
    name, results = result.file_stem, folder.path / ATTACK_RESULTS
    figures = {}
    for truth, similarity in result.scores.similarities.items():
        ssim = similarity.attack.ssim
        figures[f"{truth}_ssim_mean"] = ssim.mean
        figures[f"{truth}_ssim_best"] = ssim.best
        if similarity.folded is not None:
            folded = similarity.folded.attack.ssim
            figures[f"{truth}_folded_ssim_mean"] = folded.mean
    if (membership := result.scores.membership) is not None:
        figures["membership_auc"] = membership.decided["auc"]
    pictures = [results / f"{name}.png", results / f"{name}-rounds.png"]
    files = [*pictures, results / f"{name}.json"]
    log_results(folder, f"{ATTACK_RESULTS}/{name}", figures, files)
