"""Tables of pictures in the ways that people store them."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from instahide_fl.config import DataConfig
from instahide_fl.data.sources.hugging_face.source import open_hugging_face

ROWS = 12
PIXELS = np.random.default_rng(0).integers(0, 256, (ROWS, 8, 8, 3), dtype=np.uint8)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def structs(count=ROWS):
    return [{"bytes": png(PIXELS[i % ROWS]), "path": None} for i in range(count)]


def write_table(path, classes=None, row_group_size=5, **columns):
    """Write columns as parquet or Arrow; `classes` declares the names of `label`."""
    table = pa.table(columns)
    if classes:
        features = {"label": {"names": list(classes), "_type": "ClassLabel"}}
        description = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": description})
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=row_group_size)
    else:
        writer = pa.ipc.new_file if path.stem == "file" else pa.ipc.new_stream
        with writer(path, table.schema) as out:
            out.write_table(table)


def write_rows(path, labels=(0, 1), classes=("cat", "dog"), **columns):
    """Write ROWS pictures with the labels over and over."""
    labels = [labels[i % len(labels)] for i in range(ROWS)]
    write_table(path, classes, image=structs(), label=labels, **columns)


def read(place, **settings):
    config = DataConfig(dataset=f"hf:{place}", **settings)
    return open_hugging_face(str(place), config).read()


def sentences(content):
    return [str(warning) for warning in content.findings.warnings]


def as_paths(folder):
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return [f"{i:02}.png" for i in range(ROWS)]


def origins(content):
    return {role: origin.split()[1] for role, origin in parts_from(content).items()}


def parts_from(content):
    return dict(content.findings.parts_from)
