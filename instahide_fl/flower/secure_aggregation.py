"""Flower's cryptography for secure aggregation, which Flower does not document.

Secret sharing (Shamir), encryption under a key that two clients agree on (ECDH), and
the packing of what one client sends to another. Clients of one run must have versions
of Flower whose packing is the same (1.41 and 1.42 are). A version without one of these
names stops every run at the import, secure aggregation or not.
"""

from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import (
    decrypt,
    encrypt,
    generate_shared_key,
)
from flwr.common.secure_aggregation.secaggplus_utils import (
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)

__all__ = [
    "bytes_to_private_key",
    "bytes_to_public_key",
    "combine_shares",
    "create_shares",
    "decrypt",
    "encrypt",
    "generate_key_pairs",
    "generate_shared_key",
    "private_key_to_bytes",
    "public_key_to_bytes",
    "share_keys_plaintext_concat",
    "share_keys_plaintext_separate",
]
