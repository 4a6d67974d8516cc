"""The Flower ClientApp: encode private images, train on the encodings, reply."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.control_variates import move_control_variate, read_control_variate
from clients.exposures import (
    open_rows,
    read_exposures,
    store_exposures,
    warn_of_exposures,
)
from clients.node import ClientNode, open_node, shared_trainer
from clients.policy import check_model
from clients.records import read_round, reply_description, reply_update
from clients.secure_aggregation import (
    answer_key_shares,
    answer_public_keys,
    answer_unmask,
    reply_masked,
)
from instahide_fl.defenses.transforms import apply_transforms
from instahide_fl.encoding.exposures import CountingEncoder
from instahide_fl.errors import ProtocolError
from instahide_fl.provenance import imported_code_hash
from instahide_fl.training.local import local_steps
from instahide_fl.training.scaffold import (
    control_variate_difference,
    gradient_correction,
    split_control_variates,
    with_control_variates,
)
from instahide_fl.transcript.truth import write_truth
from instahide_fl.types import ClientUpdate
from instahide_fl.wire.messages import ClientDescription
from instahide_fl.wire.secure_aggregation import KEY_SHARES, PUBLIC_KEYS, UNMASK

app = ClientApp()


@app.query()
def describe(message: Message, context: Context) -> Message:
    """Tell the server which client this is, and what code and pool it uses."""
    node = open_node(context)
    description = ClientDescription(
        client=node.client,
        num_examples=len(node.split),
        imported_code_hash=imported_code_hash(),
        pool_sha256=node.pool.sha256 if node.pool else "",
    )
    return reply_description(message, description)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Compute one round's update."""
    # One thread: sums in another order would give other bits on another machine load,
    # and simulated clients run side by side anyway.
    torch.set_num_threads(1)
    node = open_node(context)
    instruction, received = read_round(message)
    held = node.pool.sha256 if node.pool else ""
    if held != instruction.pool_sha256:
        raise ProtocolError(
            f"client {node.client} holds the pool {held[:12] or 'none'}, this run "
            f"agreed on {instruction.pool_sha256[:12] or 'none'}: copy the run's pool "
            f"to this client and set its path"
        )
    exposures = read_exposures(node, context, instruction.round)
    limit = node.config.instahide.max_exposures
    beyond = exposures.beyond(limit)
    rows = open_rows(node, exposures)
    whole = node.normalised_with(instruction.statistics)
    split = whole if len(rows) == len(whole) else whole.subset(rows)
    shape = split.images.shape
    trainer = shared_trainer(
        node.config, (shape[1], shape[2], shape[3]), split.num_classes
    )
    arrays, control = split_control_variates(received)
    if not node.simulated:
        check_model(node.client, split, trainer.model, arrays)
    encoder = CountingEncoder(node.encoder(context), exposures, rows)
    recorder = node.recording_encoder(encoder, instruction.round)
    own = read_control_variate(node, context, instruction.round) if control else {}
    update = trainer.update(
        arrays,
        split.to(trainer.device),
        recorder or encoder,
        node.rng(instruction.round),
        instruction.learning_rate_factor,
        gradient_correction(control, own) if control else None,
    )
    if control:
        rate = node.config.train.learning_rate * instruction.learning_rate_factor
        steps = local_steps(len(split), node.config.train)
        moved = control_variate_difference(control, update.arrays, steps, rate)
        move_control_variate(node, context, instruction.round, moved)
        update = replace(update, arrays=with_control_variates(update.arrays, moved))
    update = _defended(node, instruction.round, update, trainer.buffers)
    if recorder:
        folder = Path(node.config.output.folder)
        write_truth(folder, recorder.truth(instruction.round, node.client, whole))
    store_exposures(node, context, instruction.round, exposures)
    warn_of_exposures(node, instruction.round, beyond, exposures)
    if not node.config.defense.is_private:  # whose samples have to stay unknown
        told = {**update.metrics, **exposures.summary(limit)}
        update = replace(update, metrics=told)
    if node.config.secure_aggregation.enabled:
        return reply_masked(message, context, node.client, update, node.config)
    return reply_update(message, node.client, update, instruction.round)


@app.query(PUBLIC_KEYS)
def public_keys(message: Message, context: Context) -> Message:
    """Begin a round of secure aggregation."""
    return answer_public_keys(message, context, open_node(context).client)


@app.query(KEY_SHARES)
def key_shares(message: Message, context: Context) -> Message:
    """Share this round's secrets among its clients."""
    node = open_node(context)
    return answer_key_shares(message, context, node.client, node.config)


@app.query(UNMASK)
def unmask(message: Message, context: Context) -> Message:
    """Help to take the masks off the sum."""
    node = open_node(context)
    return answer_unmask(message, context, node.client, node.config)


def _defended(
    node: ClientNode, round_number: int, update: ClientUpdate, buffers: Collection[str]
) -> ClientUpdate:
    """Return what is left of an update after the defences, which act before it leaves.

    The training loss is a figure about private images without noise: a client that was
    promised differential privacy keeps it.
    """
    defense = node.config.defense
    if defense.transform_names:
        noise = node.noise_rng(round_number)
        arrays = apply_transforms(update.arrays, buffers, defense, noise)
        update = replace(update, arrays=arrays)
    if defense.is_private:
        told = {n: x for n, x in update.metrics.items() if n != "train_loss"}
        update = replace(update, metrics=told)
    return update
