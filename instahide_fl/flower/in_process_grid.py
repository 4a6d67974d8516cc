"""A Grid inside this process, which runs clients without a SuperLink.

Flower's public API has the abstract `Grid` but no implementation that runs without a
SuperLink. What this relies on (flwr 1.41 and 1.42), checked by
tests/library/test_engine_grid.py:

- `TaskIdentity` must be set before a `Message` can be made;
- a message's id is set in its metadata's `__dict__` (Flower's own grids do the same);
- a message is copied by its argument `metadata`, and its records by way of `_data`;
- the number of `ErrorCode.CLIENT_APP_RAISED_EXCEPTION` is 2, and its text is the
  exception's as Flower's backends write it.

With a version that changes one of them the engines `inline` and `ray` stop in the first
round; deployments and the engine `flower` do not use this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import ClientAppException
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

RUN_ID = 1
SERVER_NODE_ID = 1
FIRST_CLIENT_NODE_ID = 1000
CLIENT_APP_RAISED = 2  # flwr.common.constant.ErrorCode.CLIENT_APP_RAISED_EXCEPTION

RunConfig = Mapping[str, bool | int | float | str]
NodeConfig = Mapping[str, bool | int | float | str]


def server_context(run_config: RunConfig) -> Context:
    """Return the context that a ServerApp is called with."""
    return Context(RUN_ID, SERVER_NODE_ID, {}, RecordDict(), dict(run_config))


def client_context(
    node_id: int, node: NodeConfig, state: RecordDict, run_config: RunConfig
) -> Context:
    """Return the context that a ClientApp is called with."""
    return Context(RUN_ID, node_id, dict(node), state, dict(run_config))


def simulated_nodes(count: int) -> list[NodeConfig]:
    """Return the node configs that Flower's simulation gives to `count` nodes."""
    return [{"partition-id": i, "num-partitions": count} for i in range(count)]


def become_server() -> None:
    """Let this process make messages, in the server's name."""
    TaskIdentity.task_id = TaskIdentity.run_id = RUN_ID
    TaskIdentity.node_id = SERVER_NODE_ID


def name_message(message: Message, message_id: str = "") -> str:
    """Give a message an id, which a SuperLink would do, and return it."""
    message.metadata.__dict__["_message_id"] = message_id or str(uuid4())
    return message.metadata.message_id


def copied_records(content: RecordDict) -> RecordDict:
    """Return the same records, so that changes to either leave the other alone.

    Arrays and values are shared: nobody writes to them. `copy.deepcopy` of a client's
    counters takes longer than adding its gradient to the others.
    """
    copied = RecordDict()
    copied.__dict__["_data"] = {name: rec.copy() for name, rec in content.items()}
    return copied


def run_client(client_app: ClientApp, message: Message, context: Context) -> Message:
    """Run a message's ClientApp, as Flower's backends do: an exception is a reply.

    The client cannot change the message's records. Its state is as before if it fails.

    Args:
        client_app: The app that the node runs.
        message: A message that has an id.
        context: The node's context; its state is replaced.
    """
    received = Message(  # type: ignore[call-overload]
        content=copied_records(message.content), metadata=message.metadata
    )
    state = copied_records(context.state)
    try:
        reply = client_app(message=received, context=context)
    except (Exception, SystemExit) as error:
        context.state = state
        wrapped = ClientAppException(_text(error))
        reason = f"{type(wrapped)}:<'{wrapped}'>"
        reply = Message(Error(CLIENT_APP_RAISED, reason), reply_to=message)
    name_message(reply)
    return reply


class SimulationGrid(Grid):
    """The base of grids without a SuperLink, which have a single run."""

    side_by_side = 1
    """How many clients compute at the same time."""

    def set_run(self, run: Run) -> None:
        """Do nothing: there is only one run."""

    @property
    def run(self) -> Run:
        """Not available, because runs are a SuperLink's."""
        raise NotImplementedError("a simulation has no run on a SuperLink")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message (Flower prefers the constructor)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


class InProcessGrid(SimulationGrid):
    """Runs each message's ClientApp at once, in this process, one after another.

    Args:
        client_app: The app that every node runs.
        nodes: The node config of each node.
        run_config: The run's settings, handed to every client.
    """

    def __init__(
        self,
        client_app: ClientApp,
        nodes: Iterable[NodeConfig],
        run_config: RunConfig,
    ) -> None:
        become_server()
        self._client_app = client_app
        self._replies: dict[str, Message] = {}
        self._contexts = {
            FIRST_CLIENT_NODE_ID + i: client_context(
                FIRST_CLIENT_NODE_ID + i, node, RecordDict(), run_config
            )
            for i, node in enumerate(nodes)
        }

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run the messages and store the replies; an exception is an error reply."""
        ids = []
        for message in messages:
            ids.append(name_message(message))
            self._replies[ids[-1]] = self._run(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull."""
        return self.pull_messages(self.push_messages(messages))

    def _run(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        return run_client(self._client_app, message, context)


def _text(error: BaseException) -> str:
    """Return an exception's text, or its kind where it has none (MemoryError)."""
    return str(error) or type(error).__name__
