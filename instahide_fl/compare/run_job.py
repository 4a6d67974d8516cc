"""One run of a study, from its settings to its attacked audits.

It works in a process of its own, on one thread: several of them share a machine better
than one run that is spread over its cores.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import torch

from instahide_fl.attacks.registry import ATTACKS
from instahide_fl.audit.recorded_run import open_recorded_run
from instahide_fl.audit.run_attacks import SkippedAttack, build_attacks, run_attacks
from instahide_fl.audit.tracked_result import track_result
from instahide_fl.config import Config, Scalar
from instahide_fl.defenses.planned_privacy import with_target_epsilon
from instahide_fl.engine.inline import run_inline
from instahide_fl.engine.run import check_run
from instahide_fl.errors import AttackError
from instahide_fl.files import explained
from instahide_fl.run_folder import ATTACK_RESULTS, MODEL, PROVENANCE, RunFolder
from instahide_fl.study.folder import AUDIT_FILE, StudyFolder
from instahide_fl.study.plan import PlannedRun
from instahide_fl.study.settings import AuditConfig


def perform(study: Path, run: PlannedRun) -> float:
    """Do what is missing of a run.

    Args:
        study: The study's folder.
        run: The run of the study to make.

    Returns:
        The time that it took, in seconds.

    Raises:
        InstaHideError: the run failed; its folder notes why.
    """
    torch.set_num_threads(1)
    start, folders = time.perf_counter(), StudyFolder(study)
    trained = folders.run(run)
    if not trained.finished:
        _train(trained, run.config)
    for audit, config in folders.missing_audits(run):
        _audit(folders.audit(run, audit), trained, audit, config)
    return time.perf_counter() - start


def _train(folder: RunFolder, config: Config) -> None:
    """Train, from the newest checkpoint if there is one."""
    config = with_target_epsilon(config, check_run(config).sizes)
    resumed = folder.resumable
    if resumed:
        folder.clear_failure()
    else:
        with explained(folder.path):
            shutil.rmtree(folder.path, ignore_errors=True)
        RunFolder.create(folder.path, config)
        folder.write_json(PROVENANCE, {"command": "instahide-fl compare"})
    output: dict[str, Scalar] = {
        "output.folder": str(folder.path.absolute()),
        "output.resume": resumed,
    }
    run_inline(config.with_values(output), folder)


def _audit(
    folder: RunFolder, trained: RunFolder, audit: AuditConfig, config: Config
) -> None:
    """Attack the audit's short run, which is made first, or the training itself."""
    start = time.perf_counter()
    if config.defense.target_epsilon:
        # The noise is that of the whole run, not one for a run as short as this.
        noise = trained.config().defense.noise_multiplier
        config = config.with_values(
            {"defense.target-epsilon": 0.0, "defense.noise-multiplier": noise}
        )
    attacked = folder
    if audit.start == "training":
        attacked = trained
    elif not folder.finished:
        if audit.start == "trained":
            weights = str((trained.path / MODEL).absolute())
            config = config.with_values({"model.initial-weights": weights})
        with explained(folder.path):
            shutil.rmtree(folder.path, ignore_errors=True)
        _train(folder, config.resolved())
    skipped = _attack(attacked, folder, audit, config)
    folder.write_json(
        AUDIT_FILE,
        {
            "name": audit.name,
            "start": audit.start,
            "attacks": audit.attacks,
            "effort": audit.effort,
            "left_out": skipped,
            "seconds": time.perf_counter() - start,
        },
    )


def attack_settings(audit: AuditConfig) -> dict[str, dict[str, Scalar]]:
    """Return the settings of attacks: the audit's own, then those of its effort.

    Args:
        audit: An audit of a planned run.
    """
    own = audit.attack_settings
    if audit.effort != "quick":
        return own
    return {
        name: {**ATTACKS[name].quick, **own.get(name, {})} for name in audit.attacks
    }


def _attack(
    attacked: RunFolder, folder: RunFolder, audit: AuditConfig, config: Config
) -> dict[str, str]:
    """Make an audit's attacks, with results in its folder.

    Returns:
        Why some were skipped, by attack.
    """
    try:
        recorded = open_recorded_run(attacked.path)
    except AttackError as error:
        # Poisson samples may be empty, all of them.
        return dict.fromkeys(audit.attacks, str(error))
    attacks = build_attacks(
        audit.attacks,
        attack_settings(audit),
        config,
        audit.threat_model,
    )
    results = folder.path / ATTACK_RESULTS
    skipped: dict[str, str] = {}
    for outcome in run_attacks(recorded, attacks, config.seed, results):
        if isinstance(outcome, SkippedAttack):
            skipped[outcome.name] = str(outcome.error)
        else:
            track_result(outcome, folder)
    return skipped
