"""TLS as Flower's clients do it."""

from __future__ import annotations

import ssl
from pathlib import Path


def client_context(authority: Path) -> ssl.SSLContext:
    """Return a context that trusts one authority, as far as Flower's clients do.

    Python 3.13 began to refuse certificates without the fields that RFC 5280 asks for
    (`ssl.VERIFY_X509_STRICT`), which gRPC accepts.

    Args:
        authority: its certificate.

    Raises:
        OSError: it cannot be read, or is no certificate.
    """
    context = ssl.create_default_context(cafile=str(authority))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
