"""The engines that runs train on, and the check of a run before it starts."""

from __future__ import annotations

from collections.abc import Callable

from instahide_fl.config import Config
from instahide_fl.data.federated_data import FederatedData, load_federated_data
from instahide_fl.encoding.encoder import build_encoder
from instahide_fl.encoding.fused import prepare
from instahide_fl.engine.flower import run_flower
from instahide_fl.engine.inline import run_inline
from instahide_fl.engine.ray.ray_grid import run_ray
from instahide_fl.errors import ConfigError
from instahide_fl.evaluation.batches import evaluation_encoder
from instahide_fl.models.initial_weights import load_initial_weights
from instahide_fl.models.normalization import check_single_image
from instahide_fl.models.registry import build_model
from instahide_fl.run_folder import RunFolder
from instahide_fl.tracking.tracked import check_tracking
from instahide_fl.training.device import training_device
from instahide_fl.training.local import smallest_batch

ENGINES: dict[str, Callable[[Config, RunFolder], None]] = {
    "inline": run_inline,
    "ray": run_ray,
    "flower": run_flower,
}
DEFAULT_ENGINE = "ray"


def check_run(config: Config) -> FederatedData:
    """Find a user's mistakes before anything is started or written.

    It also fills the cache, so that clients find data and pool ready.

    Args:
        config: The run's settings.

    Returns:
        The run's data and pool.

    Raises:
        ConfigError: Settings contradict each other, the data, or the machine.
        DataError: The data set is missing or unreadable.
        PoolError: The pool is missing, corrupt, or does not fit.
        OutputError: MLflow does not answer.
    """
    if config.partition.num_clients == 0:
        raise ConfigError(
            "partition.num-clients must be at least 1 here: 0 is for `flwr run`, which "
            "knows the number of SuperNodes"
        )
    training_device(config.resources)
    check_tracking(config)
    data = load_federated_data(config)
    if data.pool is not None:
        data.pool.verify()
    build_encoder(config.instahide, data.pool, data.augmentation)
    if config.evaluated_encodings:
        evaluation_encoder(config, data.pool, data.dataset)
    # Compiled once here, so that the workers find the loop instead of compiling it too.
    prepare()
    classes = data.dataset.train.num_classes
    model = build_model(config.network, data.dataset.image_shape, classes, config.seed)
    if config.model.initial_weights:
        load_initial_weights(
            model,
            config.model.initial_weights,
            sign_invariant=config.sign_invariant,
        )
    if any(smallest_batch(len(rows), config.train) == 1 for rows in data.partition):
        check_single_image(model, data.dataset.image_shape)
    return data
