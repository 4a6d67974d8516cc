"""What a client has given away, over all runs: a file under a lock.

Flower runs each message in a process of its own, several at a time if the server asks
for it, and stores a node's state after the reply has left. So what must hold over
rounds and runs is not in that state: it is written here, and is on the disk before
anything leaves. A client that dies in between has counted what nobody received.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from instahide_fl.errors import OutputError, RoundError
from instahide_fl.files import atomic_file, explained
from instahide_fl.wire.refusals import refused

LEDGER_FILE = "ledger.json"
DAY = 86_400.0  # seconds
MAX_CLAIMS = 10_000  # used keys that are remembered: rounds' worth of a month
POLL_SECONDS = 0.2


@contextlib.contextmanager
def exclusive(path: Path, timeout: float) -> Iterator[None]:
    """Hold a lock that other processes of this client respect.

    It is released with the process that holds it, however that ends.

    Args:
        path: The lock's file, made if it is missing.
        timeout: Seconds to wait for it.

    Raises:
        OutputError: The file cannot be made, or its file system has no locks.
        RoundError: Another process held the lock all the time.
    """
    deadline = time.monotonic() + timeout
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        with explained(path):
            while not _locked(handle):
                if time.monotonic() > deadline:
                    error = RoundError(
                        f"another process of this client held {path} for {timeout:g} s"
                    )
                    raise refused(error, "busy")
                time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass
class ClientLedger:
    """The figures of one client.

    Attributes:
        updates: When each update of the last day left, in seconds since 1970.
        claims: Digests of one-time secrets that are used up, oldest first.
        noise: Noisy gradients or updates that have left: [noise multiplier, sampling
            rate, number] for each kind.
    """

    updates: list[float] = field(default_factory=list)
    claims: list[str] = field(default_factory=list)
    noise: list[tuple[float, float, int]] = field(default_factory=list)

    def updates_of_a_day(self) -> int:
        """Return how many updates have left within 24 hours.

        A clock that was put back makes none of them older.
        """
        begin = time.time() - DAY
        return sum(moment > begin for moment in self.updates)

    def add_update(self) -> None:
        """Count an update, and forget those of more than a day ago."""
        begin = time.time() - DAY
        self.updates = [moment for moment in self.updates if moment > begin]
        self.updates.append(time.time())

    def add_noise(self, multiplier: float, rate: float, steps: int) -> None:
        """Count noisy releases.

        Args:
            multiplier: Standard deviation of the noise over the norm of one part.
            rate: Probability that an image is in a sample, in (0, 1].
            steps: Number of releases.
        """
        counts = {(noise, share): count for noise, share, count in self.noise}
        counts[multiplier, rate] = counts.get((multiplier, rate), 0) + steps
        self.noise = [(noise, share, n) for (noise, share), n in counts.items()]

    def claim(self, digest: str) -> bool:
        """Use up a one-time secret; False if it is used up already."""
        if digest in self.claims:
            return False
        self.claims = [*self.claims[-MAX_CLAIMS + 1 :], digest]
        return True


def read_ledger(state: Path) -> ClientLedger:
    """Read a client's ledger; an empty one before its first round.

    Args:
        state: The folder of the client's state.

    Raises:
        OutputError: The file cannot be read, or is damaged.
    """
    path = state / LEDGER_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return ClientLedger(
            [float(moment) for moment in values["updates"]],
            [str(digest) for digest in values["claims"]],
            [(float(m), float(rate), int(n)) for m, rate, n in values["noise"]],
        )
    except FileNotFoundError:
        return ClientLedger()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"cannot read {path}: {error}: put back a copy; without it, nothing says "
            f"what this client has sent so far"
        ) from None


@contextlib.contextmanager
def changed_ledger(state: Path, timeout: float = 60.0) -> Iterator[ClientLedger]:
    """Change a client's ledger: it is on the disk when the block has ended.

    Args:
        state: The folder of the client's state.
        timeout: Seconds to wait for another process that changes it.

    Yields:
        The ledger, which is stored unless the block raises.

    Raises:
        OutputError: The file cannot be read or written.
        RoundError: Another process held the ledger all the time.
    """
    with exclusive(state / f"{LEDGER_FILE}.lock", timeout):
        ledger = read_ledger(state)
        yield ledger
        with atomic_file(state / LEDGER_FILE) as temporary:
            write_durably(temporary, json.dumps(asdict(ledger)).encode())


def write_durably(path: Path, content: bytes) -> None:
    """Write a file's content to the disk, past the operating system's memory.

    Args:
        path: The file.
        content: The bytes.
    """
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
