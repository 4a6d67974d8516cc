"""Views of an adversary, made without a run."""

from __future__ import annotations

import numpy as np

from instahide_fl.config import Config
from instahide_fl.encoding.encoder import build_encoder
from instahide_fl.models.arrays import get_arrays
from instahide_fl.models.registry import build_model
from instahide_fl.training.local import local_update
from instahide_fl.transcript.threat_model import (
    THREAT_MODELS,
    AdversaryView,
    Observation,
    step_sizes,
)
from instahide_fl.transcript.truth import RecordingEncoder


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
        "train.batch-size": batch_size,
    }
    named = {key.replace("__", ".").replace("_", "-"): changes[key] for key in changes}
    return Config.from_run_config(values | named)


def observed_client(config, split, pool, craft=None):
    """Return what a malicious server sees of one client, and the truth."""
    shape = tuple(split.images.shape[1:])
    model = build_model(config.model, shape, split.num_classes, config.seed)
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
