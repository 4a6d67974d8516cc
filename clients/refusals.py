"""What leaves of a real client's failure: a code, and never the text of an error."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from flwr.app import Context, Message

from clients.node import NAME, PARTITION
from clients.policy import FOLDER
from instahide_fl.deployment.policy import read_policy
from instahide_fl.errors import ConfigError, InstaHideError
from instahide_fl.wire.refusals import public_error

Handler: TypeAlias = Callable[[Message, Context], Message]

log = logging.getLogger("instahide_fl.client")


def without_details(handler: Handler) -> Handler:
    """Let a handler's errors reach the server as codes, if the client is a real one.

    The text, which may name files and folders, is written to the client's own log. Of
    simulated clients everything is known anyway.

    Args:
        handler: The function that answers a message.
    """

    @functools.wraps(handler)
    def answer(message: Message, context: Context) -> Message:
        if PARTITION in context.node_config:
            return handler(message, context)
        try:
            return handler(message, context)
        except (Exception, SystemExit) as error:
            if isinstance(error, InstaHideError):
                log.error("%s", error)
            else:
                log.exception("an error of this client's software or machine")
            # "from None": Flower prints what is raised, and causes with it.
            raise public_error(_client_name(context), error) from None

    return answer


def _client_name(context: Context) -> str:
    """Return the client's name, which the server knows; empty if it cannot be read."""
    if FOLDER not in context.node_config:
        return str(context.node_config.get(NAME, ""))
    try:
        return read_policy(Path(str(context.node_config[FOLDER]))).name
    except ConfigError:
        return ""
