"""Federated learning with InstaHide, and the measurement of what it hides."""

from instahide_fl.config import Config, EncoderConfig
from instahide_fl.data.pool import MixingPool
from instahide_fl.encoding.encoder import InstaHideEncoder, MixupEncoder
from instahide_fl.training.losses import soft_cross_entropy
from instahide_fl.types import EncodedBatch, EncodingKey, PrivateSplit

__version__ = "0.1.0"

__all__ = [
    "Config",
    "EncodedBatch",
    "EncoderConfig",
    "EncodingKey",
    "InstaHideEncoder",
    "MixingPool",
    "MixupEncoder",
    "PrivateSplit",
    "__version__",
    "soft_cross_entropy",
]
