"""Fetches data sets from the Hugging Face hub, or finds what was fetched before."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instahide_fl.data.sources.hugging_face.configurations import (
    README,
    read_configurations,
)
from instahide_fl.data.sources.hugging_face.part_files import (
    assign_files,
    select_tables,
)
from instahide_fl.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

HUB_TIMEOUT = 10  # seconds to find out whether the hub answers


def names_on_hub(reference: str) -> list[str] | None:
    """Return the names of a data set's files, None if the hub does not answer.

    Args:
        reference: The name of the data set on the hub.

    Raises:
        DataError: The hub refuses: no such data set, or not for this user.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        info = huggingface_hub.HfApi().dataset_info(reference, timeout=HUB_TIMEOUT)
    except (HfHubHTTPError, HFValidationError) as error:
        raise _cannot_load(reference, error) from None
    except Exception:  # of whichever network library this version is built on
        return None
    return [entry.rfilename for entry in info.siblings or ()]


def fetch_tables(
    reference: str, names: Sequence[str] | None, configuration_name: str
) -> Path | None:
    """Fetch the table files of a data set on the hub, of one configuration.

    They lie where Hugging Face's libraries keep what they download for the user.

    Args:
        reference: The name of the data set on the hub.
        names: The names of its files there; None if the hub does not answer, so that
            what was fetched before is used.
        configuration_name: The value of `data.config`.

    Returns:
        The folder with the files; None if the set is not stored as tables, or cannot be
        reached and was not fetched before.

    Raises:
        DataError: The hub refuses, or `data.config` is missing or wrong.
    """
    if names is None:
        return _snapshot(reference, local_files_only=True)
    tables, _ = select_tables(names)
    if not tables:
        return None
    folder = _snapshot(reference, allow_patterns=[README])
    configurations = read_configurations(folder) if folder else []
    parts = assign_files(tables, configurations, configuration_name)
    files = [glob.escape(name) for part in parts.values() for name in part]
    return _snapshot(reference, allow_patterns=[README, *files])


def load_prepared(
    reference: str, configuration_name: str, *, offline: bool
) -> dict[str, Dataset]:
    """Load a data set of any form with the `datasets` library, into its own cache.

    Args:
        reference: The name of the data set on the hub.
        configuration_name: The value of `data.config`.
        offline: Whether the hub does not answer, so that only what the library has
            prepared before is found.

    Returns:
        The parts by name.

    Raises:
        DataError: It cannot be loaded.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        with _offline() if offline else contextlib.nullcontext():
            loaded = datasets.load_dataset(reference, configuration_name or None)
    except Exception as error:
        raise _cannot_load(reference, error) from None
    return dict(loaded)


def _snapshot(reference: str, **options: Any) -> Path | None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = huggingface_hub.snapshot_download(
            reference, repo_type="dataset", **options
        )
    except LocalEntryNotFoundError:
        return None
    except Exception as error:
        raise _cannot_load(reference, error) from None
    return Path(folder)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Switch Hugging Face's libraries to offline mode.

    Otherwise they try for half a minute. They still find what they have downloaded
    before.
    """
    import datasets
    import huggingface_hub

    modules = [datasets.config, huggingface_hub.constants]
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _cannot_load(reference: str, error: Exception) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(
        f"data.dataset: cannot load hf:{reference} ({reason}): give a local folder of "
        f"a Hugging Face data set, or a name on the hub and a network"
    )
