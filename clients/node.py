"""The client that a node is: its name, images, pool and source of randomness.

Flower's node config names it. In a simulation it holds `partition-id`. A real client
sets `client-folder`, which holds its client.toml (`clients.policy`). Without such a
folder it sets `client-name`, and may set `dataset` and `pool`, the places of its data.
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
from instahide_fl.config.data import MAX_IMAGE_SIZE
from instahide_fl.data.augment import Augmentation
from instahide_fl.data.datasets import (
    augmentation_for,
    check_agreed_range,
    load_dataset,
)
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
from instahide_fl.deployment.limits import Limits
from instahide_fl.deployment.policy import ClientPolicy
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
from instahide_fl.wire.messages import MAX_IMAGES

PARTITION = "partition-id"
NUM_PARTITIONS = "num-partitions"
NAME = "client-name"
Settings: TypeAlias = tuple[tuple[str, bool | int | float | str], ...]
# Of a client that has no file for its limits, what no honest run goes beyond.
_WITHOUT_POLICY = Limits(
    min_batch_size=1,
    max_image_size=MAX_IMAGE_SIZE,
    max_statistics_factor=4.0,
    max_weight_ratio=float(MAX_IMAGES),
)
_SECRETS = "encoding-secret"  # a record in Context.state, which stays on the node


@dataclass(frozen=True)
class ClientNode:
    """One client, ready to train.

    Attributes:
        client: Stable key (`wire.messages.ClientDescription`).
        config: The run's settings.
        split: The client's private images.
        pool: The mixing pool; None if encodings use none.
        augmentation: Random changes to private images before mixing; None for none.
        simulated: Whether the client belongs to a simulation; else its images are real.
        state: The folder where a real client keeps what outlasts a run; None without.
        policy: The client.toml of a client with a folder; None without.
        seeded_as: The simulated client whose randomness a real one uses, in a rehearsal
            that its own settings allow; empty for none.
    """

    client: str
    config: Config
    split: PrivateSplit
    pool: MixingPool | None
    augmentation: Augmentation | None
    simulated: bool
    state: Path | None = None
    policy: ClientPolicy | None = None
    seeded_as: str = ""

    @property
    def limits(self) -> Limits:
        """What a run may ask of it; without a client.toml it has set few limits."""
        return self.policy.limits if self.policy else _WITHOUT_POLICY

    @property
    def data_key(self) -> str:
        """A digest that names its data set; empty without a client.toml."""
        return self.policy.data_key if self.policy else ""

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
        """Return an encoder that keeps this round's truth; None if it is not asked for.

        Args:
            encoder: The encoder whose batches and keys are kept.
            round_number: 1, 2, ...

        Raises:
            ConfigError: there is no folder to write the truth to.
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
        """The client in the name of seeded random streams."""
        return self.seeded_as or self.client

    def _fixed_streams(self, context: Context) -> Callable[[int], np.random.Generator]:
        if self.seeded:
            seed, client = self.config.seed, self._stream
            return lambda repeat: fixed_stream(seed, client, repeat)
        if _SECRETS not in context.state.config_records:
            context.state[_SECRETS] = ConfigRecord({"secret": new_secret()})
        secret = context.state.config_records[_SECRETS]["secret"]
        if not isinstance(secret, bytes):
            raise ConfigError(f"the node's state holds no valid {_SECRETS}")
        return lambda repeat: keyed_stream(secret, repeat)


def open_node(context: Context) -> ClientNode:
    """Open the client that the node config names, with its data.

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
    """Return this process's network, whose parameters each use overwrites.

    Raises:
        ConfigError: the settings ask for a GPU and there is none.
    """
    device = training_device(config.resources)
    model = build_model(config.network, image_shape, num_classes, config.seed)
    if config.defense.differential_privacy == "dp-sgd":
        return PrivateTrainer(model.to(device), config.train, config.defense)
    return LocalTrainer(model.to(device), config.train)


# Opening a client anew for each message would cost more than a small batch.
@lru_cache(maxsize=100_000)
def _simulated_client(settings: Settings, client: int, nodes: int) -> ClientNode:
    config = _with_federation_size(_read_config(settings), nodes)
    data = _shared_data(config)
    return ClientNode(
        client=str(client),
        config=config,
        split=data.split(client),
        pool=data.pool,
        augmentation=data.augmentation,
        simulated=True,
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
    # What the server holds out is its own: the client trains on all of its images.
    config = config.with_values({**changes, "data.validation-share": 0.0})
    _refuse_weakening(name, config)
    dataset = load_dataset(config.data)
    if dataset.report is not None:
        check_agreed_range(config.data, dataset.report.pixels)
    check_split_size(len(dataset.train), config.instahide.private_count)
    pool = load_pool(config, dataset.image_shape)
    augmentation = augmentation_for(config.data, dataset.image_shape)
    return ClientNode(
        client=name,
        config=config,
        split=dataset.train,
        pool=pool,
        augmentation=augmentation,
        simulated=False,
    )


def _deployed_client(folder: Path, config: Config) -> ClientNode:
    """Open a client by its own settings, which the run's have to respect."""
    policy = open_policy(folder, config)
    config = client_config(policy, folder, config)
    split = load_client_images(policy, folder, config).split
    if config.instahide.method != "none":
        check_split_size(len(split), config.instahide.private_count)
    channels, height, width = split.images.shape[1:]
    shape = (channels, height, width)
    seeded_as = "" if policy.seeded_client is None else str(policy.seeded_client)
    return ClientNode(
        client=policy.name,
        config=config,
        split=split,
        pool=load_pool(config, shape),
        augmentation=augmentation_for(config.data, shape),
        simulated=False,
        state=state_folder(folder),
        policy=policy,
        seeded_as=seeded_as,
    )


def _refuse_weakening(client: str, config: Config) -> None:
    """Refuse a run that would lay a real client's images open.

    Raises:
        ConfigError: it asks for what is meant for simulations.
    """
    record = config.record
    crafts = record.crafted != "none"
    for name, is_set in (("truth", record.truth), ("crafted", crafts)):
        if is_set:
            raise ConfigError(
                f"client {client} holds real images and refuses this run: "
                f"record.{name} is for simulations only"
            )


def _with_federation_size(config: Config, nodes: int) -> Config:
    """Set num-clients to the number of SuperNodes if it is 0."""
    num_clients = config.partition.num_clients
    if num_clients not in (0, nodes):
        raise ConfigError(
            f"partition.num-clients is {num_clients}, but the federation has {nodes} "
            f"SuperNodes: add --federation-config 'num-supernodes={num_clients}', or "
            f"set partition.num-clients = 0"
        )
    return (
        config if num_clients else config.with_values({"partition.num-clients": nodes})
    )


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
