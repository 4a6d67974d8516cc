"""Federated learning with InstaHide, and the measurement of what it hides."""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, which takes a while to import

if TYPE_CHECKING:
    from instahide_fl.config import Config, EncoderConfig
    from instahide_fl.data.pool import MixingPool
    from instahide_fl.encoding.encoder import InstaHideEncoder, MixupEncoder
    from instahide_fl.report.results import load_run, load_study
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
    "load_run",
    "load_study",
    "soft_cross_entropy",
]

_HOMES = {
    "Config": "config",
    "EncodedBatch": "types",
    "EncoderConfig": "config",
    "EncodingKey": "types",
    "InstaHideEncoder": "encoding.encoder",
    "MixingPool": "data.pool",
    "MixupEncoder": "encoding.encoder",
    "PrivateSplit": "types",
    "load_run": "report.results",
    "load_study": "report.results",
    "soft_cross_entropy": "training.losses",
}


def __getattr__(name: str) -> object:
    """Load a name when it is first used.

    Commands that need no PyTorch start without it, and so do processes that cut images.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
