"""TLS that trusts what Flower's clients trust."""

from __future__ import annotations

import ssl
from pathlib import Path


def client_context(authority: Path) -> ssl.SSLContext:
    """Return a context that trusts one authority and is as lenient as Flower's clients.

    Python 3.13 began to refuse certificates without the fields that RFC 5280 asks for
    (`ssl.VERIFY_X509_STRICT`), which gRPC accepts.

    Args:
        authority: The authority's certificate.

    Raises:
        OSError: The file cannot be read, or is no certificate.
    """
    context = ssl.create_default_context(cafile=str(authority))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
