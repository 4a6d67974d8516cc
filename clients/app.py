"""The Flower ClientApp: encode private images, train on the encodings, reply."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from clients.control_variates import move_control_variate, read_control_variate
from clients.exposures import (
    exposures_locked,
    open_rows,
    read_exposures,
    store_exposures,
    warn_of_exposures,
)
from clients.node import ClientNode, open_node, shared_trainer
from clients.records import read_query, read_round, reply_description, reply_update
from clients.refusals import without_details
from clients.round_checks import (
    check_budget,
    check_images,
    check_instruction,
    checked_arrays,
    count_update,
)
from clients.secure_aggregation import (
    answer_key_shares,
    answer_public_keys,
    answer_unmask,
    open_masking,
    reply_masked,
)
from instahide_fl.defenses.transforms import apply_transforms
from instahide_fl.encoding.exposures import CountingEncoder
from instahide_fl.errors import ProtocolError
from instahide_fl.flower.arrays import from_record
from instahide_fl.provenance import imported_code_hash
from instahide_fl.training.local import LocalTrainer, local_steps
from instahide_fl.training.scaffold import (
    control_variate_difference,
    gradient_correction,
    split_control_variates,
    with_control_variates,
)
from instahide_fl.transcript.truth import write_truth
from instahide_fl.types import ClientUpdate
from instahide_fl.wire.messages import ClientDescription, RoundInstruction
from instahide_fl.wire.refusals import refused
from instahide_fl.wire.secure_aggregation import KEY_SHARES, PUBLIC_KEYS, UNMASK

app = ClientApp()


@app.query()
@without_details
def describe(message: Message, context: Context) -> Message:
    """Tell the server which client this is, and what code and pool it uses."""
    node = open_node(context)
    channels, height, width = node.split.images.shape[1:]
    read_query(message).check_images(node.client, (channels, height, width))
    if not node.simulated:
        check_images(node, node.split)
        check_budget(node, node.config.train.rounds, len(node.split))
    description = ClientDescription(
        client=node.client,
        num_examples=len(node.split),
        imported_code_hash=imported_code_hash(),
        pool_sha256=node.pool.sha256 if node.pool else "",
    )
    return reply_description(message, description)


@app.train()
@without_details
def train(message: Message, context: Context) -> Message:
    """Compute one round's update."""
    # One thread: sums in another order would give other bits on another machine load,
    # and simulated clients run side by side anyway.
    torch.set_num_threads(1)
    node = open_node(context)
    instruction, record = read_round(message)
    _check_pool(node, instruction)
    if not node.simulated:
        check_instruction(node, context, instruction)
    shape = node.split.images.shape
    trainer = shared_trainer(
        node.config, (shape[1], shape[2], shape[3]), node.split.num_classes
    )
    if node.simulated:
        arrays = from_record(record)
    else:
        arrays = checked_arrays(node, record, trainer)
    masking = None
    if node.config.secure_aggregation.enabled:
        masking = open_masking(message, context, node, instruction, arrays)
    with exposures_locked(node, context):
        update = _update(node, context, instruction, arrays, trainer)
    if masking is not None:
        return reply_masked(message, node, update, masking)
    return reply_update(message, node.client, update, instruction.round)


def _update(
    node: ClientNode,
    context: Context,
    instruction: RoundInstruction,
    received: Mapping[str, Tensor],
    trainer: LocalTrainer,
) -> ClientUpdate:
    """Return the update of a round as it may leave, counted."""
    round_number = instruction.round
    exposures = read_exposures(node, context, round_number)
    limit = node.config.instahide.max_exposures
    beyond = exposures.beyond(limit)
    rows = open_rows(node, exposures)
    all_images = node.normalised_with(instruction.statistics)
    split = all_images if len(rows) == len(all_images) else all_images.subset(rows)
    if not node.simulated:
        check_images(node, split)
        check_budget(node, 1, len(split))
    arrays, server_control = split_control_variates(received)
    encoder = CountingEncoder(node.encoder(context), exposures, rows)
    recorder = node.recording_encoder(encoder, round_number)
    correction = None
    if server_control:
        client_control = read_control_variate(node, context, round_number)
        correction = gradient_correction(server_control, client_control)
    update = trainer.update(
        arrays,
        split.to(trainer.device),
        recorder or encoder,
        node.rng(round_number),
        learning_rate_factor=instruction.learning_rate_factor,
        correction=correction,
    )
    if server_control:
        rate = node.config.train.learning_rate * instruction.learning_rate_factor
        steps = local_steps(len(split), node.config.train)
        change = control_variate_difference(server_control, update.arrays, steps, rate)
        move_control_variate(node, context, round_number, change)
        update = replace(update, arrays=with_control_variates(update.arrays, change))
    update = _defended(node, round_number, update, trainer.buffers)
    if recorder:
        folder = Path(node.config.output.folder)
        write_truth(folder, recorder.truth(round_number, node.client, all_images))
    store_exposures(node, context, round_number, exposures)
    count_update(node, len(split))
    warn_of_exposures(node, round_number, beyond, exposures)
    # With DP-SGD the counters would tell the sizes of samples, which must not leave.
    if not node.config.defense.is_private:
        metrics = {**update.metrics, **exposures.summary(limit)}
        update = replace(update, metrics=metrics)
    return update


@app.query(PUBLIC_KEYS)
@without_details
def public_keys(message: Message, context: Context) -> Message:
    """Begin a round of secure aggregation."""
    return answer_public_keys(message, context, open_node(context))


@app.query(KEY_SHARES)
@without_details
def key_shares(message: Message, context: Context) -> Message:
    """Share this client's secrets among the round's clients."""
    return answer_key_shares(message, context, open_node(context))


@app.query(UNMASK)
@without_details
def unmask(message: Message, context: Context) -> Message:
    """Send the shares that take the masks off the sum."""
    return answer_unmask(message, context, open_node(context))


def _check_pool(node: ClientNode, instruction: RoundInstruction) -> None:
    """Check that this client's pool is the one that the run agreed on.

    Raises:
        ProtocolError: it is not.
    """
    pool_sha256 = node.pool.sha256 if node.pool else ""
    if pool_sha256 != instruction.pool_sha256:
        error = ProtocolError(
            f"client {node.client} holds the pool {pool_sha256[:12] or 'none'}, this "
            f"run agreed on {instruction.pool_sha256[:12] or 'none'}: copy the run's "
            f"pool to this client and set its path"
        )
        raise refused(error, "pool")


def _defended(
    node: ClientNode, round_number: int, update: ClientUpdate, buffers: Collection[str]
) -> ClientUpdate:
    """Return an update after the client's defences, as it may leave.

    The training loss is a figure about private images without noise: with differential
    privacy it stays here.
    """
    defense = node.config.defense
    if defense.transform_names:
        noise = node.noise_rng(round_number)
        arrays = apply_transforms(update.arrays, buffers, defense, noise)
        update = replace(update, arrays=arrays)
    if defense.is_private:
        metrics = {
            name: value
            for name, value in update.metrics.items()
            if name != "train_loss"
        }
        update = replace(update, metrics=metrics)
    return update
