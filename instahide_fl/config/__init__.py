"""Every setting of a run.

The modules `data`, `encoding`, `training`, `defense` and `output` define the settings
and explain them; `config` puts their tables together, reads and writes them. A setting
has the same name in three places: TOML tables (`[instahide] num-mixed = 4`), the
command line (`--set instahide.num-mixed=4`) and Flower's flat run config
(`-c 'instahide.num-mixed=4'`).
"""

from instahide_fl.config.config import Config, Scalar, flatten_tables, parse_assignment
from instahide_fl.config.data import DataConfig, PartitionConfig, PoolConfig
from instahide_fl.config.defense import DefenseConfig
from instahide_fl.config.encoding import EncoderConfig
from instahide_fl.config.output import (
    OutputConfig,
    RecordConfig,
    ResourcesConfig,
    parse_rounds,
)
from instahide_fl.config.training import (
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
