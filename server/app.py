"""The Flower ServerApp: find the clients, train, evaluate, write the run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from instahide_fl.aggregation.server_optimizer import ServerOptimizer
from instahide_fl.config import Config
from instahide_fl.data.datasets import ImageDataset, load_dataset
from instahide_fl.data.partition import cached_partition, partition_to_json
from instahide_fl.defenses.accounting import PrivacyLoss
from instahide_fl.errors import DivergenceError, OutputError
from instahide_fl.files import write_text
from instahide_fl.models.arrays import get_arrays, shared_buffers
from instahide_fl.models.initial_weights import load_initial_weights
from instahide_fl.models.registry import build_model
from instahide_fl.provenance import (
    changed_since_start,
    describe_environment,
    imported_code_hash,
)
from instahide_fl.run_folder import (
    CONFIG,
    DATA_REPORT,
    PARTITION,
    PARTITION_PICTURE,
    PROVENANCE,
    SUMMARY,
    RunFolder,
    free_run_folder,
)
from instahide_fl.tracking.tracked import tracked_training
from instahide_fl.training.device import training_device
from server.cohort import Clients, find_clients
from server.evaluation import GlobalEvaluation, find_evaluator
from server.privacy import PrivacyLedger, privacy_summary
from server.recorder import Recorder
from server.strategy import RoundOutcome, Strategy

log = logging.getLogger("instahide_fl.server")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one experiment from its settings to its finished run folder."""
    # One thread, as on the clients: the same bits on every machine.
    torch.set_num_threads(1)
    config = Config.from_run_config(context.run_config)
    folder = _open_folder(config)
    try:
        _train(grid, config, folder)
    except Exception as error:
        folder.record_failure(error)
        raise


@dataclass(frozen=True)
class _Run:
    """What a run works with, from its first round to its last.

    Attributes:
        folder: The run folder.
        config: The run's settings.
        dataset: The server's data, whose test images it evaluates on.
        clients: The clients of the federation.
        evaluation: The evaluation of the global arrays.
        optimizer: The holder of the global arrays.
    """

    folder: RunFolder
    config: Config
    dataset: ImageDataset
    clients: Clients
    evaluation: GlobalEvaluation
    optimizer: ServerOptimizer


def _train(grid: Grid, config: Config, folder: RunFolder) -> None:
    """Train from the first round, or from a checkpoint, to the finished run folder."""
    dataset = load_dataset(config.data, config.seed, config.record.holdout_share)
    clients = find_clients(
        grid,
        config.partition.num_clients,
        config.train.timeout,
        dataset.image_shape,
    )
    config = config.with_values({"partition.num-clients": len(clients.nodes)})
    model = build_model(
        config.network, dataset.image_shape, dataset.train.num_classes, config.seed
    )
    weights, weights_sha256 = config.model.initial_weights, ""
    if weights:
        weights_sha256 = load_initial_weights(
            model, weights, sign_invariant=config.sign_invariant
        )
    optimizer = ServerOptimizer(get_arrays(model), config, shared_buffers(model).keys())
    evaluator = find_evaluator(grid, model, dataset, config, clients.pool_sha256)
    evaluation = GlobalEvaluation(evaluator, dataset, config)
    run = _Run(
        folder, config, dataset, clients, evaluation=evaluation, optimizer=optimizer
    )
    provenance = {
        "code_hash": imported_code_hash(),
        "pool_sha256": clients.pool_sha256,
        "dataset_digest": dataset.digest,
        "initial_weights_sha256": weights_sha256,
    }
    completed = _resume(run, provenance) if config.output.resume else 0
    if completed == 0:
        _describe_run(run, provenance)
    if dataset.report is not None:
        folder.write_json(DATA_REPORT, dataset.report.to_json())
    strategy = Strategy(
        config,
        optimizer,
        clients,
        dataset.train.statistics,
        Recorder.of(folder.path, config, dataset),
    )
    ledger = PrivacyLedger(config, clients)
    ledger.check_target()
    with tracked_training(folder, config, completed) as trackers:
        if completed == 0:
            trackers.log_results("partition", {}, [folder.path / PARTITION_PICTURE], 0)
        try:
            for number in range(completed + 1, config.train.rounds + 1):
                outcome = strategy.run_round(grid, number)
                epsilon = ledger.loss_after(number).epsilon
                trackers.log_round(_finish_round(run, number, outcome, epsilon))
        except DivergenceError as error:
            # Said here, where the message is recorded for whoever resumes the run.
            raise DivergenceError(f"{error}; {evaluation.keep_model(folder)}") from None
        _finish_run(run, ledger.loss_after(config.train.rounds, tight=True))


def _resume(run: _Run, provenance: Mapping[str, str]) -> int:
    """Restore the checkpoint and return its round; 0 if there is none yet.

    Raises:
        OutputError: the checkpoint, or what the run is made of, is another, or the
            checkpoint lies beyond the run's last round.
        ConfigError: the network saw signs, and does not any more, or the reverse.
    """
    folder, config = run.folder, run.config
    completed, tensors = folder.load_checkpoint()
    if completed == 0:
        return 0
    if completed > config.train.rounds:
        raise OutputError(
            f"--resume: the checkpoint is of round {completed}, train.rounds is "
            f"{config.train.rounds} in {folder.path / CONFIG}: put the number back"
        )
    folder.check_same_network(config)
    recorded = folder.read_json(PROVENANCE)
    for name, value in provenance.items():
        if recorded.get(name, value) == value:
            continue
        if name == "code_hash":
            log.warning("resumed with other code than the run was started with")
            continue
        subject = f"--resume: {_subject(name, config)} have"
        raise OutputError(changed_since_start(subject, str(recorded[name]), value))
    if config.train.control_variates and not run.clients.simulated:
        log.warning("clients' control variates start again at zero")
    run.optimizer.load_state(tensors, run.clients.simulated)
    return completed


def _subject(digest: str, config: Config) -> str:
    """Return what a digest in provenance.json is of."""
    return {
        "dataset_digest": _data_subject(config),
        "pool_sha256": f"the images of pool.source = {config.pool.source!r}",
        "initial_weights_sha256": f"the weights of model.initial-weights = "
        f"{config.model.initial_weights!r}",
    }[digest]


def _data_subject(config: Config) -> str:
    """Return what the digest of the data is of."""
    pictures = f"the pictures of data.dataset = {config.data.dataset!r}"
    shares = {
        "record.holdout-share": config.record.holdout_share,
        "data.validation-share": config.data.validation_share,
    }
    held_out = [f"{name} = {share:g}" for name, share in shares.items() if share]
    if not held_out:
        return pictures
    return f"{pictures}, or those held out ({', '.join(held_out)}),"


def _open_folder(config: Config) -> RunFolder:
    """Open the folder that `instahide-fl run` made, or make one under `flwr run`."""
    if config.output.folder:
        folder = RunFolder(Path(config.output.folder))
        if (folder.path / CONFIG).exists():
            return folder
        return RunFolder.create(folder.path, config)
    path = free_run_folder(Path.cwd() / "runs", config)
    folder = RunFolder.create(path, config)
    log.warning("the run's folder is %s", folder.path)
    return folder


def _describe_run(run: _Run, provenance: Mapping[str, str]) -> None:
    """Write settings, partition and provenance: all that is known before training."""
    folder, config = run.folder, run.config
    write_text(folder.path / CONFIG, config.resolved().to_toml())
    if all(client.isdecimal() for client in run.clients.nodes):
        _describe_partition(run)
    # What the command wrote when it started the run stays.
    started = folder.read_json(PROVENANCE)
    folder.write_json(
        PROVENANCE,
        {
            **started,
            **describe_environment(),
            **provenance,
            "seed": config.seed,
            "sign_invariant": config.sign_invariant,
            "device": training_device(config.resources),
            "clients": dict(run.clients.num_examples),
        },
    )


def _describe_partition(run: _Run) -> None:
    # Imported here: real clients have no partition to draw, and matplotlib is large.
    from instahide_fl.pictures.partition import save_partition_picture

    path, config, dataset = run.folder.path, run.config, run.dataset
    parts = cached_partition(dataset, config.partition, config.seed)
    text = partition_to_json(
        partition=parts,
        config=config.partition,
        seed=config.seed,
        client_ids=dataset.client_ids,
        held_out=dataset.held_out,
    )
    write_text(path / PARTITION, text)
    targets, names = dataset.train.targets, dataset.class_names
    save_partition_picture(path / PARTITION_PICTURE, parts, targets, names)


def _finish_round(
    run: _Run, number: int, outcome: RoundOutcome, epsilon: float | None
) -> dict[str, Any]:
    """Evaluate, log and checkpoint, each when it is due; return what was logged."""
    config = run.config
    last = number == config.train.rounds
    figures: dict[str, float] = {}
    start = time.perf_counter()
    if last or number % config.train.evaluate_every == 0:
        figures = run.evaluation.measure(number, run.optimizer.evaluated_arrays)
    elif number % config.train.checkpoint_every == 0:
        run.evaluation.check_finite(number, run.optimizer.model_arrays)
    evaluation_seconds = time.perf_counter() - start
    for client, reason in outcome.failures.items():
        log.warning("round %d: client %s failed: %s", number, client, reason)
    for client, multiple in outcome.large_updates.items():
        log.warning(
            "round %d: the update of client %s has %.3g times the median norm of the "
            "cohort (server.max-update-norm bounds it)",
            number,
            client,
            multiple,
        )
    row: dict[str, Any] = {
        "round": number,
        "test_accuracy": None,
        "test_loss": None,
        **figures,
        "train_loss": outcome.train_loss,
        "seconds": outcome.seconds + evaluation_seconds,
        "compute_seconds": outcome.compute_seconds,
        "transfer_seconds": outcome.transfer_seconds,
        "aggregation_seconds": outcome.aggregation_seconds,
        "evaluation_seconds": evaluation_seconds,
        "bytes_up": outcome.bytes_up,
        "bytes_down": outcome.bytes_down,
        "clients": len(outcome.contributions),
        "failures": len(outcome.failures),
        "failure_reasons": dict(outcome.failures),
        "exposures": dict(outcome.exposures),
        **run.evaluation.chance_figures(number, figures),
    }
    if config.defense.is_private:
        row["epsilon"] = epsilon
    run.folder.append_metrics(row)
    # After the log: resuming drops lines beyond the checkpoint, so none goes missing.
    if last or number % config.train.checkpoint_every == 0:
        run.folder.save_checkpoint(number, run.optimizer.state())
    return row


def _finish_run(run: _Run, privacy: PrivacyLoss) -> None:
    """Write the model and, last of all, the summary that marks the run as finished."""
    run.folder.save_model(run.optimizer.evaluated_arrays)
    rows = run.folder.metrics()
    exposures = rows[-1].get("exposures", {})
    if exposures.get("beyond"):
        log.warning(
            "%d images have been in more encodings than instahide.max-exposures",
            exposures["beyond"],
        )
    evaluated = [row for row in rows if row["test_accuracy"] is not None]
    best = max(evaluated, key=lambda row: float(row["test_accuracy"]))
    chance, final_accuracy = run.evaluation.chance, evaluated[-1]["test_accuracy"]
    run.folder.write_json(
        SUMMARY,
        {
            "rounds": len(rows),
            "evaluated": "ema" if run.config.server.ema else "model",
            "final_accuracy": final_accuracy,
            "final_loss": evaluated[-1]["test_loss"],
            "best_accuracy": best["test_accuracy"],
            "best_round": best["round"],
            "trained": chance.is_beaten_by(final_accuracy),
            "chance_bound": chance.bound,
            **_validation_summary(evaluated),
            **_encoded_summary(evaluated),
            "seconds": sum(row["seconds"] for row in rows),
            "bytes_up": sum(row["bytes_up"] for row in rows),
            "bytes_down": sum(row["bytes_down"] for row in rows),
            "failures": sum(row["failures"] for row in rows),
            "exposures": exposures,
            **privacy_summary(privacy),
        },
    )


def _validation_summary(evaluated: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return final and best validation figures; nothing without validation images.

    Args:
        evaluated: The lines of the rounds that were evaluated, oldest first.
    """
    rows = [row for row in evaluated if "validation_accuracy" in row]
    if not rows:
        return {}
    # The first of equals, as for the best accuracy on test images.
    best = max(rows, key=lambda row: float(row["validation_accuracy"]))
    return {
        "validation_accuracy": rows[-1]["validation_accuracy"],
        "validation_loss": rows[-1]["validation_loss"],
        "best_validation_accuracy": best["validation_accuracy"],
        "best_validation_round": best["round"],
        "test_accuracy_at_best_validation": best["test_accuracy"],
    }


def _encoded_summary(evaluated: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the final accuracy on encodings; nothing where none were evaluated.

    Args:
        evaluated: The lines of the rounds that were evaluated, oldest first.
    """
    last = evaluated[-1]
    if "test_accuracy_encoded" not in last:
        return {}
    return {"final_accuracy_encoded": last["test_accuracy_encoded"]}
