"""Hugging Face image data sets: a local folder or file, or a name on the hub."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from instahide_fl.config import DataConfig
from instahide_fl.data.picture_archives import is_archive
from instahide_fl.data.picture_files import list_picture_files
from instahide_fl.data.picture_listing import PictureFiles
from instahide_fl.data.sources.base import (
    DatasetContent,
    DatasetSource,
    file_listing,
)
from instahide_fl.data.sources.hugging_face.configurations import (
    UNNAMED_PART,
    choose_configuration,
    read_configurations,
)
from instahide_fl.data.sources.hugging_face.content import PartTables, read_content
from instahide_fl.data.sources.hugging_face.hub import (
    fetch_tables,
    load_prepared,
    names_on_hub,
)
from instahide_fl.data.sources.hugging_face.local_files import (
    dataset_parts,
    is_saved_to_disk,
    is_stored_as_tables,
    list_tables,
    names_pictures,
    outside_files,
    saved_parts,
    table_parts,
)
from instahide_fl.data.sources.hugging_face.part_files import (
    TABLE_KINDS,
    is_table,
    select_tables,
)
from instahide_fl.data.sources.hugging_face.tables import Table, open_table
from instahide_fl.data.sources.image_folder import open_image_folder
from instahide_fl.data.sources.label_tables import (
    TABLE_SUFFIXES as LABEL_TABLE_SUFFIXES,
)
from instahide_fl.errors import DataError

READER_VERSION = 2  # raise it when the same files and settings give other rows


def open_hugging_face(reference: str, config: DataConfig) -> DatasetSource:
    """Return a Hugging Face data set.

    Args:
        reference: A local folder or table file, or a name on the hub.
        config: The table `[data]`.

    Raises:
        DataError: There is no such folder or file, or it holds no data set.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        return _open_folder(path, reference, config)
    if path.is_file():
        return _open_file(path, reference, config)
    if path.exists():
        raise DataError(
            f"data.dataset: hf:{reference} is neither a folder nor a regular file"
        )
    if _looks_like_path(reference):
        raise DataError(
            f"data.dataset: hf:{reference}: no such folder or file: give a folder or a "
            f"file of a data set, or a name on the hub as OWNER/NAME"
        )
    return DatasetSource(
        _identity(f"hub:{reference}", config), partial(_read_hub, reference, config)
    )


def _open_folder(folder: Path, reference: str, config: DataConfig) -> DatasetSource:
    place = f"hf:{reference}"
    listing = list_picture_files(folder)
    if is_saved_to_disk(folder):
        _refuse_configuration(config)
        return DatasetSource(
            _identity(listing.identity, config),
            lambda: read_content(place, saved_parts(folder), config),
        )
    if is_stored_as_tables(listing):
        names, _ = select_tables(list_tables(listing))
        tables = (open_table(folder / name, name) for name in names)
        return DatasetSource(
            _identity(listing.identity + outside_files(tables), config),
            lambda: _read_tables(place, listing, config),
        )
    if listing.names:
        return open_image_folder(str(_picture_folder(folder, config)), config)
    raise DataError(
        f"data.dataset: {place} holds neither pictures nor table files "
        f"({', '.join(TABLE_KINDS)}): give the folder that does"
    )


def _read_tables(
    place: str, listing: PictureFiles, config: DataConfig
) -> DatasetContent:
    parts, left_out = table_parts(listing, config.config)
    return read_content(place, parts, config, left_out, listing.names)


def _picture_folder(folder: Path, config: DataConfig) -> Path:
    """Return the folder with the pictures of the chosen configuration."""
    configurations = read_configurations(folder)
    if not configurations:
        _refuse_configuration(config)
        return folder
    chosen = choose_configuration(configurations, config.config)
    if not chosen.folder and len(configurations) > 1:
        raise DataError(
            f"data.config: the pictures of the configuration {chosen.name!r} lie among "
            f"those of others in {folder}: give a folder with its pictures alone"
        )
    return folder / chosen.folder


def _open_file(file: Path, reference: str, config: DataConfig) -> DatasetSource:
    if is_archive(file):
        raise DataError(
            f"data.dataset: hf:{reference} is an archive: give imagefolder:{reference} "
            f"if it holds folders of pictures, webdataset:{reference} if it is a .tar "
            f"of pictures with a file of the class beside each"
        )
    if not is_table(file.name):
        raise DataError(
            f"data.dataset: hf:{reference} is no table file ({', '.join(TABLE_KINDS)}) "
            f"and no folder: give one of these"
        )
    _refuse_configuration(config)
    files = file_listing(file.parent, [file])
    table = open_table(file, file.name)
    if names_pictures(table):
        if file.name.lower().endswith(LABEL_TABLE_SUFFIXES):
            return open_image_folder(str(file), config)
        files += list_picture_files(file.parent).identity + outside_files([table])

    def read() -> DatasetContent:
        parts = {UNNAMED_PART: PartTables(f"file {file.name}", open_tables)}
        return read_content(f"hf:{reference}", parts, config)

    def open_tables() -> list[Table]:
        return [open_table(file, file.name)]

    return DatasetSource(_identity(files, config), read)


def _read_hub(reference: str, config: DataConfig) -> DatasetContent:
    place = f"hf:{reference}"
    names_there = names_on_hub(reference)
    folder = fetch_tables(reference, names_there, config.config)
    listing = None if folder is None else list_picture_files(folder)
    if listing is not None and is_stored_as_tables(listing):
        return _read_tables(place, listing, config)
    loaded = load_prepared(reference, config.config, offline=names_there is None)
    return read_content(place, dataset_parts(loaded), config)


def _identity(listing: str, config: DataConfig) -> str:
    """Return a text that differs whenever other rows or columns may be read."""
    settings = (
        config.client_column,
        config.train_part,
        config.test_part,
        config.image_column,
        config.label_column,
        config.config,
    )
    return repr((READER_VERSION, listing, settings))


def _refuse_configuration(config: DataConfig) -> None:
    if config.config:
        choose_configuration([], config.config)


def _looks_like_path(reference: str) -> bool:
    return (
        reference.startswith(("/", ".", "~"))
        or reference.count("/") > 1
        or is_table(reference)
    )
