"""One run of a study, from its settings to its attacked audits.

It works in a process of its own, on one thread: several of them share a machine better
than one run that is spread over its cores.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import torch

from instahide_fl.attacks.base import ignore_progress
from instahide_fl.attacks.registry import build_attack
from instahide_fl.audit.attack_result import RESULTS, adversary_for, save_result
from instahide_fl.audit.pictures import save_attack_pictures
from instahide_fl.audit.recorded_run import open_recorded_run
from instahide_fl.audit.run_attacks import run_attack
from instahide_fl.audit.tracked_result import track_result
from instahide_fl.config import Config, Scalar
from instahide_fl.engine.inline import run_inline
from instahide_fl.engine.run import check_run
from instahide_fl.errors import AttackError, DataError, PoolError, ThreatModelError
from instahide_fl.files import explained
from instahide_fl.run_folder import MODEL, PROVENANCE, RunFolder
from instahide_fl.study.folder import AUDIT, StudyFolder
from instahide_fl.study.plan import PlannedRun
from instahide_fl.study.settings import AuditConfig


def perform(study: Path, run: PlannedRun) -> float:
    """Do what is missing of a run.

    Args:
        study: the study's folder.
        run: of the study.

    Returns:
        Seconds that it took.

    Raises:
        InstaHideError: it failed; the run's folder notes why.
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
    check_run(config)
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
    """Make the audit's short run and attack it."""
    start = time.perf_counter()
    if not folder.finished:
        if audit.start == "trained":
            weights = str((trained.path / MODEL).absolute())
            config = config.with_values({"model.initial-weights": weights})
        with explained(folder.path):
            shutil.rmtree(folder.path, ignore_errors=True)
        _train(folder, config.resolved())
    left_out = _attack(folder, audit, config)
    folder.write_json(
        AUDIT,
        {
            "name": audit.name,
            "start": audit.start,
            "attacks": audit.attacks,
            "left_out": left_out,
            "seconds": time.perf_counter() - start,
        },
    )


def _attack(folder: RunFolder, audit: AuditConfig, config: Config) -> dict[str, str]:
    """Make an audit's attacks; return why some could not be made, by attack."""
    try:
        recorded = open_recorded_run(folder.path)
    except AttackError as error:
        # Poisson samples may be empty, all of them.
        return dict.fromkeys(audit.attacks, str(error))
    left_out: dict[str, str] = {}
    for name in audit.attacks:
        attack = build_attack(name, audit.attack_settings.get(name, {}))
        adversary = adversary_for(attack, config, audit.threat_model)
        try:
            result = run_attack(
                recorded, attack, adversary, config.seed, ignore_progress
            )
        except (AttackError, DataError, PoolError, ThreatModelError) as error:
            left_out[name] = str(error)
            continue
        save_result(result, folder.path / RESULTS)
        save_attack_pictures(result, folder.path / RESULTS)
        track_result(result, folder)
    return left_out
