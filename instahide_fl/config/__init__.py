"""Every setting of a run.

`tables`, `training_tables` and `defense_table` say what each one means, `run` puts them
together and reads and writes them.
"""

from instahide_fl.config.defense_table import DefenseConfig
from instahide_fl.config.run import Config, Scalar, flatten_tables, parse_assignment
from instahide_fl.config.tables import (
    DataConfig,
    EncoderConfig,
    OutputConfig,
    PartitionConfig,
    PoolConfig,
    RecordConfig,
    ResourcesConfig,
    parse_rounds,
)
from instahide_fl.config.training_tables import (
    ModelConfig,
    SecureAggregationConfig,
    ServerConfig,
    TrainConfig,
)

__all__ = [
    "Config",
    "DataConfig",
    "DefenseConfig",
    "EncoderConfig",
    "ModelConfig",
    "OutputConfig",
    "PartitionConfig",
    "PoolConfig",
    "RecordConfig",
    "ResourcesConfig",
    "Scalar",
    "SecureAggregationConfig",
    "ServerConfig",
    "TrainConfig",
    "flatten_tables",
    "parse_assignment",
    "parse_rounds",
]
