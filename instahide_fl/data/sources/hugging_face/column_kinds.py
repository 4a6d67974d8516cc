"""Tells what the columns of a table hold, by their types and first values."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from instahide_fl.data.sources.base import BLOCK_IMAGES
from instahide_fl.data.sources.hugging_face.tables import Table

if TYPE_CHECKING:
    import pyarrow as pa

MAX_PATH = 4096  # letters of a text that may be the path of a file

PictureKind: TypeAlias = Literal["struct", "bytes", "path", "array"]
"""How a column stores pictures: a struct of bytes and path, the bytes of a picture
file, the path of one, or nested lists of pixels."""

LabelKind: TypeAlias = Literal["class", "integer", "float", "boolean", "text"]
"""How a column stores classes: numbers with declared names, or values."""


def picture_kind(table: Table, name: str) -> PictureKind | None:
    """Return how a column stores pictures, None if it stores none.

    Args:
        table: The table; of columns that may be pictures, the first rows are read.
        name: The column.
    """
    import pyarrow as pa

    column_type = table.schema.field(name).type
    types = pa.types
    if types.is_struct(column_type):
        return "struct" if _is_picture_struct(column_type) else None
    if is_binary(column_type):
        value = first_value(table, name)
        return "bytes" if value is not None and is_picture(value) else None
    if _is_text(column_type):
        value = first_value(table, name)
        is_file = value is not None and len(value) < MAX_PATH and "\n" not in value
        return "path" if is_file and (table.folder / value).is_file() else None
    if array_depth(column_type) is not None:
        value = first_value(table, name)
        return "array" if is_picture_shape(nested_shape(value)) else None
    return None


def label_kind(table: Table, name: str) -> LabelKind | None:
    """Return how a column stores classes, None if it cannot.

    Lists are judged by their items.

    Args:
        table: The table, of which no row is read.
        name: The column.
    """
    import pyarrow as pa

    if class_names(table, name) is not None:
        return "class"
    types = pa.types
    column_type = _item_type(table.schema.field(name).type)
    if types.is_integer(column_type):
        return "integer"
    if types.is_boolean(column_type):
        return "boolean"
    if types.is_floating(column_type):
        return "float"
    # A column without any value has no type.
    is_text = _is_text(column_type) or types.is_null(column_type)
    return "text" if is_text else None


def class_names(table: Table, name: str) -> list[str] | None:
    """Return the declared names of a column's classes, None if there are none.

    Names declared for a column of texts are not needed: the texts are the names.
    """
    import datasets
    import pyarrow as pa

    feature = table.features.get(name)
    if isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    is_number = pa.types.is_integer(_item_type(table.schema.field(name).type))
    if isinstance(feature, datasets.ClassLabel) and is_number:
        return [str(class_name) for class_name in feature.names]
    return None


def is_list(column_type: pa.DataType) -> bool:
    """Return whether a column holds lists."""
    import pyarrow as pa

    types = pa.types
    return bool(
        types.is_list(column_type)
        or types.is_large_list(column_type)
        or types.is_fixed_size_list(column_type)
    )


def is_binary(column_type: pa.DataType) -> bool:
    """Return whether a column holds bytes."""
    import pyarrow as pa

    types = pa.types
    return bool(
        types.is_binary(column_type)
        or types.is_large_binary(column_type)
        or types.is_binary_view(column_type)
    )


def array_depth(column_type: pa.DataType) -> int | None:
    """Return how deep the lists of numbers of a column are nested, if it holds such."""
    import pyarrow as pa

    column_type = storage_type(column_type)
    depth = 0
    while is_list(column_type):
        column_type = column_type.value_type
        depth += 1
    is_number = pa.types.is_integer(column_type) or pa.types.is_floating(column_type)
    return depth if depth and is_number else None


def storage_type(column_type: pa.DataType) -> pa.DataType:
    """Return the plain type of a column whose type is an extension."""
    import pyarrow as pa

    is_extension = isinstance(column_type, pa.BaseExtensionType)
    return column_type.storage_type if is_extension else column_type


def nested_shape(value: Any) -> tuple[int, ...]:
    """Return the shape of nested lists, by the first item of each."""
    shape: tuple[int, ...] = ()
    while isinstance(value, list) or (hasattr(value, "__array__") and value.ndim):
        shape = (*shape, len(value))
        if not len(value):
            break
        value = value[0]
    return shape


def is_picture_shape(shape: tuple[int, ...]) -> bool:
    """Return whether nested lists are surely [H,W], [H,W,1], [H,W,3] or [3,H,W]."""
    if len(shape) == 2:
        return min(shape) > 3
    if len(shape) != 3 or sorted(shape)[1] <= 4:
        return False
    return shape[2] in (1, 3) or shape[0] in (1, 3)


def is_picture(content: bytes) -> bool:
    """Return whether bytes are those of a picture file, by their beginning."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)):
            return True
    except Exception:  # decoders raise almost anything
        return False


def first_value(table: Table, name: str) -> Any:
    """Return the first value of a column that is not missing, among the first rows."""
    reader = table.open_column(name)
    try:
        values = reader.read(0, min(table.num_rows, BLOCK_IMAGES))
    finally:
        reader.close()
    for row in range(len(values)):
        value = values[row].as_py()
        if value is not None:
            return value
    return None


def _is_picture_struct(column_type: pa.DataType) -> bool:
    fields = [column_type.field(i) for i in range(column_type.num_fields)]
    if any(field.name == "bytes" and is_binary(field.type) for field in fields):
        return True
    names = {field.name for field in fields}
    return names == {"path"} or names == {"bytes", "path"}


def _is_text(column_type: pa.DataType) -> bool:
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(column_type):  # a category of pandas
        column_type = column_type.value_type
    return bool(
        types.is_string(column_type)
        or types.is_large_string(column_type)
        or types.is_string_view(column_type)
    )


def _item_type(column_type: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    column_type = storage_type(column_type)
    if is_list(column_type):
        column_type = column_type.value_type
    is_category = pa.types.is_dictionary(column_type)
    return column_type.value_type if is_category else column_type
