"""The configurations that a Hugging Face data set declares in its README.md."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instahide_fl.errors import DataError

README = "README.md"
UNNAMED_PART = "all"  # of files that no name and no pattern assigns to a part


@dataclass(frozen=True)
class Configuration:
    """One of several data sets that share a folder.

    Attributes:
        name: The name, which `data.config` chooses.
        patterns: The patterns of file names of each part, relative to `folder`; of
            `UNNAMED_PART` alone if they tell no parts; None if there are none.
        folder: The folder that all files lie in; empty for the data set's own.
        is_default: Whether it is used where nothing is chosen.
    """

    name: str
    patterns: Mapping[str, Sequence[str]] | None = None
    folder: str = ""
    is_default: bool = False

    def covers(self, name: str) -> bool:
        """Return whether a file lies in the configuration's folder."""
        return not self.folder or name.startswith(f"{self.folder}/")

    def is_in_part(self, name: str, part: str) -> bool:
        """Return whether a file belongs to a part, by the patterns."""
        prefix = f"{self.folder}/" if self.folder else ""
        patterns = (self.patterns or {}).get(part, ())
        return any(_matches(prefix + pattern, name) for pattern in patterns)


def read_configurations(folder: Path) -> list[Configuration]:
    """Read the configurations that the README.md of a data set declares.

    Args:
        folder: The folder of the data set.

    Raises:
        DataError: The front matter of README.md is damaged.
    """
    try:
        return [_configuration(entry) for entry in _metadata(folder).get("configs", ())]
    except (AttributeError, KeyError, TypeError):
        raise _damaged(folder / README, "its configs have another shape") from None


def read_declared_features(folder: Path, name: str) -> Mapping[str, Any]:
    """Return the types of columns that README.md declares, names of classes above all.

    Args:
        folder: The folder of the data set.
        name: The configuration; empty for the only one or the default.

    Returns:
        The types by column; empty if none are declared, or none that are understood.
    """
    from datasets.info import DatasetInfosDict

    try:
        infos = DatasetInfosDict.from_dataset_card_data(_metadata(folder))
    except Exception:  # of types of later versions
        return {}
    names = [name] if name else ["default", *(infos if len(infos) == 1 else ())]
    info = next((infos[entry] for entry in names if entry in infos), None)
    return (info.features if info else None) or {}


def choose_configuration(
    configurations: Sequence[Configuration], name: str
) -> Configuration:
    """Choose the configuration that a setting names, the only one, or the default.

    Args:
        configurations: All configurations.
        name: The value of `data.config`; empty chooses without it.

    Raises:
        DataError: There is none of that name, or several have an equal claim.
    """
    names = ", ".join(configuration.name for configuration in configurations)
    if name:
        chosen = [entry for entry in configurations if entry.name == name]
    else:
        chosen = [entry for entry in configurations if entry.is_default]
        chosen = chosen or [e for e in configurations if e.name == "default"]
        chosen = chosen or list(configurations)
    if not chosen:
        raise DataError(
            f"data.config: the data set has no configuration {name!r}, only "
            f"{names}: choose one of them"
            if names
            else f"data.config: the data set has no configurations, got {name!r}: "
            f"leave it empty"
        )
    if len(chosen) > 1:
        raise DataError(
            f"data.config: the data set has several configurations, {names}: set "
            f"data.config to one of them"
        )
    return chosen[0]


def _metadata(folder: Path) -> dict[str, Any]:
    """Return the front matter of README.md; nothing if there is none."""
    from huggingface_hub import metadata_load

    file = folder / README
    try:
        return (metadata_load(file) if file.is_file() else None) or {}
    except Exception as error:  # of the YAML parser, or of the encoding
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _damaged(file, reason) from None


def _damaged(file: Path, reason: str) -> DataError:
    return DataError(
        f"data.dataset: the front matter of {file} cannot be read ({reason}): mend it "
        f"or remove it"
    )


def _configuration(entry: Mapping[str, Any]) -> Configuration:
    return Configuration(
        name=str(entry["config_name"]),
        patterns=_patterns(entry["data_files"]) if "data_files" in entry else None,
        folder=str(entry.get("data_dir") or "").strip("/").removeprefix("./"),
        is_default=bool(entry.get("default")),
    )


def _patterns(data_files: Any) -> dict[str, list[str]]:
    """Return the patterns of each part, of all the ways that they may be written."""
    if isinstance(data_files, Mapping):  # {part: patterns}
        return {str(part): _listed(paths) for part, paths in data_files.items()}
    entries = _listed(data_files)
    if all(isinstance(entry, Mapping) for entry in entries):
        return {str(entry["split"]): _listed(entry["path"]) for entry in entries}
    return {UNNAMED_PART: entries}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _matches(pattern: str, name: str) -> bool:
    from fsspec.utils import glob_translate

    return re.match(glob_translate(pattern.removeprefix("./")), name) is not None
