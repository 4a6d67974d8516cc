"""Every setting of a run.

`tables` says what each one means, `run` puts them together and reads and writes them.
"""

from instahide_fl.config.run import Config, Scalar, parse_assignment
from instahide_fl.config.tables import (
    DataConfig,
    EncoderConfig,
    ModelConfig,
    OutputConfig,
    PartitionConfig,
    PoolConfig,
    ResourcesConfig,
    ServerConfig,
    TrainConfig,
)

__all__ = [
    "Config",
    "DataConfig",
    "EncoderConfig",
    "ModelConfig",
    "OutputConfig",
    "PartitionConfig",
    "PoolConfig",
    "ResourcesConfig",
    "Scalar",
    "ServerConfig",
    "TrainConfig",
    "parse_assignment",
]
