"""Views of an adversary, made without a run."""

from __future__ import annotations

import numpy as np
import torch

from instahide_fl.aggregation.reduction import tree_mean
from instahide_fl.aggregation.weights import weigh_by_images
from instahide_fl.config import Config
from instahide_fl.encoding.encoder import build_encoder
from instahide_fl.models.arrays import get_arrays
from instahide_fl.models.registry import build_model
from instahide_fl.training.local import local_update
from instahide_fl.transcript.recorded import RoundTranscript
from instahide_fl.transcript.threat_model import THREAT_MODELS
from instahide_fl.transcript.truth import RecordingEncoder
from instahide_fl.transcript.view import AdversaryView, Observation, step_sizes
from instahide_fl.types import PrivateSplit

SHAPE = (3, 12, 12)  # of the images of recorded rounds


def settings(method, batch_size, **changes):
    """Return the settings of a run with an mlp and one of four methods."""
    name, scope, mixed = {
        "none": ("none", "cross", 4),
        "mixup": ("mixup", "inside", 4),
        "mixup-cross": ("mixup", "cross", 4),
        "inside": ("instahide", "inside", 4),
        "cross": ("instahide", "cross", 6),
    }[method]
    values = {
        "instahide.method": name,
        "instahide.scope": scope,
        "instahide.num-mixed": mixed,
        "model.name": "mlp",
        "model.sign-invariant": False,  # encodings come back with their signs
        "train.batch-size": batch_size,
    }
    named = {key.replace("__", ".").replace("_", "-"): changes[key] for key in changes}
    return Config.from_run_config(values | named)


def observed_client(config, split, pool, craft=None):
    """Return what a malicious server sees of one client, and the truth."""
    shape = tuple(split.images.shape[1:])
    model = build_model(config.network, shape, split.num_classes, config.seed)
    arrays = get_arrays(model)
    if craft is not None:
        arrays = craft(arrays, config, shape, split.num_classes)
    encoder = RecordingEncoder(build_encoder(config.instahide, pool))
    rng = np.random.default_rng(0)
    sent = local_update(model, arrays, split, encoder, config.train, rng)
    observation = Observation(
        round=1,
        client="0",
        num_examples=sent.num_examples,
        learning_rate_factor=1.0,
        kind=sent.kind,
        parameters=arrays,
        update=sent.arrays,
        batch_sizes=step_sizes(config, sent.num_examples),
    )
    view = AdversaryView(
        THREAT_MODELS["malicious-server"],
        config,
        split.statistics,
        shape,
        split.num_classes,
        (observation,),
        (),
        pool if config.instahide.uses_pool else None,
    )
    return view, encoder.truth(1, "0", split)


def recorded_round(config, clients, size=4, number=1):
    """Return a round of clients with images of their own, and their truths."""
    rng = np.random.default_rng(number)
    model = build_model(config.network, SHAPE, 10, config.seed)
    arrays = get_arrays(model)
    updates, truths = {}, {}
    for client in map(str, range(clients)):
        own = np.random.default_rng(int(client))
        images = torch.from_numpy(own.integers(0, 256, (size, *SHAPE), np.uint8))
        targets = torch.from_numpy(own.integers(0, 10, size))
        split = PrivateSplit(images, targets, 10)
        encoder = RecordingEncoder(build_encoder(config.instahide, None))
        updates[client] = local_update(model, arrays, split, encoder, config.train, rng)
        truths[number, client] = encoder.truth(number, client, split)
    seen = RoundTranscript(
        number,
        arrays,
        updates,
        tree_mean(list(updates.values()), weigh_by_images),
        config.train.update_kind,
        split.statistics,
        SHAPE,
        10,
        1.0,
        "",
    )
    return seen, truths
