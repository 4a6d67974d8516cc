"""What this node is: which client, its images, its pool, its source of randomness.

Flower's node config tells. In a simulation it holds `partition-id`. A real client sets
`client-folder`, which holds its client.toml (`clients.policy`); without such a folder,
`client-name`, and it may set `dataset` and `pool`, the places of its own data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from flwr.app import ConfigRecord, Context

from clients.policy import FOLDER, open_policy
from instahide_fl.config import Config
from instahide_fl.data.augment import Augmentation
from instahide_fl.data.datasets import augmentation_for, load_dataset
from instahide_fl.data.federated_data import (
    FederatedData,
    check_split_size,
    load_federated_data,
    load_pool,
)
from instahide_fl.data.pool import MixingPool
from instahide_fl.deployment.client_data import (
    client_config,
    load_client_images,
    state_folder,
)
from instahide_fl.encoding.encoder import Encoder, FixedEncodings, build_encoder
from instahide_fl.errors import ConfigError
from instahide_fl.models.registry import build_model
from instahide_fl.rng import (
    client_stream,
    fixed_stream,
    keyed_stream,
    new_secret,
    operating_system_stream,
    stream,
)
from instahide_fl.training.device import room_for_images, training_device
from instahide_fl.training.local import LocalTrainer
from instahide_fl.training.private import PrivateTrainer
from instahide_fl.transcript.truth import RecordingEncoder
from instahide_fl.types import ChannelStatistics, PrivateSplit

PARTITION = "partition-id"
NUM_PARTITIONS = "num-partitions"
NAME = "client-name"
Settings: TypeAlias = tuple[tuple[str, bool | int | float | str], ...]
_SECRETS = "encoding-secret"  # a record in Context.state, which stays on the node


@dataclass(frozen=True)
class ClientNode:
    """One client, ready to train.

    Attributes:
        client: stable key, see `wire.ClientDescription`.
        config: the run's settings.
        split: the client's private images.
        pool: the mixing pool, if encodings use one.
        augmentation: of private images before mixing.
        simulated: whether it is one of a simulation; else its images are real.
        state: folder that a real client keeps what outlasts a run in; None without one.
        seeded_as: the simulated client whose randomness a real one takes, in a
            rehearsal that its own settings allow; empty for none.
    """

    client: str
    config: Config
    split: PrivateSplit
    pool: MixingPool | None
    augmentation: Augmentation | None
    simulated: bool
    state: Path | None = None
    seeded_as: str = ""

    @property
    def seeded(self) -> bool:
        """Whether its randomness repeats with the run's seed.

        A real client's never does, but in a rehearsal.
        """
        repeats = self.simulated or bool(self.seeded_as)
        return repeats and self.config.instahide.keys == "seeded"

    def rng(self, round_number: int) -> np.random.Generator:
        """Return the source of this round's batches and keys."""
        if self.seeded:
            return client_stream(self.config.seed, self._stream, round_number)
        return operating_system_stream()

    def noise_rng(self, round_number: int) -> np.random.Generator:
        """Return the source of this round's noise on the update."""
        if self.seeded:
            return stream(self.config.seed, "update-noise", self._stream, round_number)
        return operating_system_stream()

    def encoder(self, context: Context) -> Encoder:
        """Return the encoder that the settings name."""
        encoding = self.config.instahide
        encoder = build_encoder(encoding, self.pool, self.augmentation)
        if encoding.refresh == "epoch":
            return encoder
        return FixedEncodings(encoder, encoding.refresh, self._fixed_streams(context))

    def recording_encoder(
        self, encoder: Encoder, round_number: int
    ) -> RecordingEncoder | None:
        """Return an encoder that keeps this round's truth, where that is asked for.

        Args:
            encoder: does the work.
            round_number: 1, 2, ...

        Raises:
            ConfigError: there is no folder to write it to.
        """
        record = self.config.record
        if not (record.truth and record.includes_round(round_number)):
            return None
        if not self.config.output.folder:
            raise ConfigError(
                "record.truth needs a run folder that clients know: start the run with "
                "instahide-fl run, or set output.folder"
            )
        return RecordingEncoder(encoder)

    def normalised_with(self, statistics: ChannelStatistics) -> PrivateSplit:
        """Return the split with the constants that the run agreed on."""
        return self.split.normalised_with(statistics)

    @property
    def _stream(self) -> str:
        """The client that seeded randomness is named after."""
        return self.seeded_as or self.client

    def _fixed_streams(self, context: Context) -> Callable[[int], np.random.Generator]:
        if self.seeded:
            seed, client = self.config.seed, self._stream
            return lambda which: fixed_stream(seed, client, which)
        if _SECRETS not in context.state.config_records:
            context.state[_SECRETS] = ConfigRecord({"secret": new_secret()})
        secret = context.state.config_records[_SECRETS]["secret"]
        if not isinstance(secret, bytes):
            raise ConfigError(f"the node's state holds no valid {_SECRETS}")
        return lambda which: keyed_stream(secret, which)


def open_node(context: Context) -> ClientNode:
    """Find out which client this is and open its data.

    Raises:
        ConfigError: the node config names no client, or contradicts the settings.
        DataError: the client's data set cannot be read.
        PoolError: the pool is missing, damaged, or does not fit.
    """
    settings = tuple(context.run_config.items())
    if PARTITION in context.node_config:
        partition = int(context.node_config[PARTITION])
        return _simulated_client(
            settings, partition, int(context.node_config[NUM_PARTITIONS])
        )
    config = _read_config(settings)
    if FOLDER in context.node_config:
        return _deployed_client(Path(str(context.node_config[FOLDER])), config)
    return _real_client(context, config)


@lru_cache(maxsize=1)
def shared_trainer(
    config: Config, image_shape: tuple[int, int, int], num_classes: int
) -> LocalTrainer:
    """Return this process's network; whoever uses it overwrites its parameters.

    Raises:
        ConfigError: the settings ask for a GPU and there is none.
    """
    device = training_device(config.resources)
    model = build_model(config.model, image_shape, num_classes, config.seed)
    if config.defense.differential_privacy == "dp-sgd":
        return PrivateTrainer(model.to(device), config.train, config.defense)
    return LocalTrainer(model.to(device), config.train)


# Opening a client anew for each message would cost more than a small batch.
@lru_cache(maxsize=100_000)
def _simulated_client(settings: Settings, client: int, nodes: int) -> ClientNode:
    config = _with_federation_size(_read_config(settings), nodes)
    data = _shared_data(config)
    return ClientNode(
        str(client), config, data.split(client), data.pool, data.augmentation, True
    )


def _real_client(context: Context, config: Config) -> ClientNode:
    name = str(context.node_config.get(NAME, ""))
    if not name:
        raise ConfigError(
            f"the node config must set {FOLDER} or {NAME} (a real client), or "
            f"{PARTITION} and {NUM_PARTITIONS} (a simulated one)"
        )
    if name.isdecimal():
        raise ConfigError(
            f"{NAME} must not be a number, which names a simulated client, got {name}"
        )
    changes = {
        setting: str(context.node_config[key])
        for key, setting in (("dataset", "data.dataset"), ("pool", "pool.source"))
        if key in context.node_config
    }
    config = config.with_values(changes)
    _refuse_weakening(name, config)
    dataset = load_dataset(config.data)
    check_split_size(len(dataset.train), config.instahide.private_count)
    pool = load_pool(config, dataset.image_shape)
    augmentation = augmentation_for(config.data, dataset.image_shape)
    return ClientNode(name, config, dataset.train, pool, augmentation, False)


def _deployed_client(folder: Path, config: Config) -> ClientNode:
    """Open a client by its own settings, which the run's have to respect."""
    policy = open_policy(folder, config)
    config = client_config(policy, folder, config)
    split = load_client_images(policy, folder, config)
    if config.instahide.method != "none":
        check_split_size(len(split), config.instahide.private_count)
    channels, height, width = split.images.shape[1:]
    shape = (channels, height, width)
    seeded = "" if policy.seeded_client is None else str(policy.seeded_client)
    return ClientNode(
        policy.name,
        config,
        split,
        load_pool(config, shape),
        augmentation_for(config.data, shape),
        simulated=False,
        state=state_folder(folder),
        seeded_as=seeded,
    )


def _refuse_weakening(client: str, config: Config) -> None:
    """Refuse a run that would lay a real client's images open.

    Raises:
        ConfigError: it asks for what is meant for simulations.
    """
    record = config.record
    for name, asked in (("truth", record.truth), ("crafted", record.crafted != "none")):
        if asked:
            raise ConfigError(
                f"client {client} holds real images and refuses this run: "
                f"record.{name} is for simulations only"
            )


def _with_federation_size(config: Config, nodes: int) -> Config:
    """Take the number of SuperNodes where the settings leave it open."""
    wanted = config.partition.num_clients
    if wanted not in (0, nodes):
        raise ConfigError(
            f"partition.num-clients is {wanted}, but the federation has {nodes} "
            f"SuperNodes: add --federation-config 'num-supernodes={wanted}', or set "
            f"partition.num-clients = 0"
        )
    return config if wanted else config.with_values({"partition.num-clients": nodes})


# Simulated clients share a process: the data set and the pool are mapped once, and
# parsing the settings again for each message would cost more than a small batch.
@lru_cache(maxsize=2)
def _shared_data(config: Config) -> FederatedData:
    data, device = load_federated_data(config), training_device(config.resources)
    if device == "cpu":
        return data
    return data.to(device, room_for_images(config.resources))


@lru_cache(maxsize=8)
def _read_config(settings: Settings) -> Config:
    return Config.from_run_config(dict(settings))
