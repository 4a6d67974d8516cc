"""The values that pass between the parts of the library."""

from instahide_fl.types.encodings import (
    AppliedAugmentation,
    EncodedBatch,
    EncodingKey,
    unpack_signs,
)
from instahide_fl.types.images import ChannelStatistics, MapDataset, PrivateSplit
from instahide_fl.types.updates import ClientUpdate, UpdateKind, client_sort_key

__all__ = [
    "AppliedAugmentation",
    "ChannelStatistics",
    "ClientUpdate",
    "EncodedBatch",
    "EncodingKey",
    "MapDataset",
    "PrivateSplit",
    "UpdateKind",
    "client_sort_key",
    "unpack_signs",
]
