"""Every layout that docs/data.md accepts is read by the command beside it."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.library.pictures import write_hugging_face_folder, write_parquet
from tests.library.test_datasets import write_idx_files

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
COMMAND = re.compile(r"^\|.*`(instahide-fl data info [^`]+)` \|$", re.MULTILINE)
CLASSES = ("cat", "dog")
NEEDS_A_NETWORK = "hf:uoft-cs/cifar10"


def noise(count=12):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)


def write_classes(folder, start=0, count=6):
    """Save some pictures of noise in the folder of each class."""
    for number, pixels in enumerate(noise(40)[start : start + 2 * count]):
        path = folder / CLASSES[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def write_parts(folder, train, test):
    write_classes(folder / train)
    write_classes(folder / test, start=12, count=2)


def write_table(folder):
    """Save pictures in one folder, and tables of their classes."""
    folder.mkdir()
    rows = ["file_name,label"]
    for number, pixels in enumerate(noise()):
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{CLASSES[number % 2]}")
    for name in ("metadata.csv", "labels.csv"):
        (folder / name).write_text("\n".join(rows))


def write_zip():
    write_classes(Path("packed/pets"))
    shutil.make_archive("pets", "zip", "packed", "pets")


def write_saved():
    import datasets

    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(CLASSES)),
    }
    rows = {"image": list(map(Image.fromarray, noise())), "label": [0, 1] * 6}
    part = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    datasets.DatasetDict({"train": part}).save_to_disk("saved")


def write_shards():
    Path("shards").mkdir()
    for shard in range(2):
        with tarfile.open(f"shards/train-{shard:04}.tar", "w") as archive:
            for number, pixels in enumerate(noise(24)[shard * 12 : shard * 12 + 12]):
                picture = io.BytesIO()
                Image.fromarray(pixels).save(picture, "PNG")
                for suffix, content in (
                    ("png", picture.getvalue()),
                    ("cls", str(number % 2).encode()),
                ):
                    member = tarfile.TarInfo(f"{shard}-{number}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def write_configurations():
    for name in ("axial", "sagittal"):
        path = Path("brains", name, "train.parquet")
        write_parquet(path, noise(), [0, 1] * 6, CLASSES)


def write_x_rays():
    """Save the pictures of 12 bits that the page shows the report of."""
    rng = np.random.default_rng(0)
    for number in range(76):
        part, ill = (
            ("Training", number >= 30) if number < 60 else ("Testing", number > 67)
        )
        path = Path(
            "x-rays", part, "pneumonia" if ill else "healthy", f"{number:03}.png"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = rng.integers(200, 3900, (8, 8)).astype(np.uint16)
        Image.fromarray(np.kron(blocks, np.ones((8, 8), np.uint16))).save(path)
    copied = Path("x-rays/Training/healthy/003.png")
    shutil.copy(copied, "x-rays/Testing/healthy/060.png")
    hidden = Path("x-rays/Training/healthy/.ipynb_checkpoints")
    hidden.mkdir()
    shutil.copy(copied, hidden / "003-checkpoint.png")
    Path("x-rays/Training/notes.txt").write_text("scanned in 2024")


MAKERS = {
    "mnist-5k": lambda: None,
    "noise:1000x3x32x32": lambda: None,
    "fashion-mnist": lambda: write_idx_files(Path("fashion"), packed=True),
    "imagefolder:pets": lambda: write_classes(Path("pets")),
    "imagefolder:parts": lambda: write_parts(Path("parts"), "Training", "seg_test"),
    "imagefolder:folds": lambda: write_parts(Path("folds"), "a", "b"),
    "imagefolder:download": lambda: write_classes(Path("download/pets-v2/images")),
    "imagefolder:pets.zip": write_zip,
    "imagefolder:scans": lambda: write_table(Path("scans")),
    "imagefolder:scans/labels.csv": lambda: write_table(Path("scans")),
    "hf:digits": lambda: write_hugging_face_folder(Path("digits")),
    "hf:digits.parquet": lambda: write_parquet(
        Path("digits.parquet"), noise(), [0, 1] * 6, CLASSES
    ),
    "hf:saved": write_saved,
    "hf:brains": write_configurations,
    "webdataset:shards": write_shards,
    "webdataset:shards/train-{0000..0001}.tar": write_shards,
}


def documented():
    """Return the words of each command in the page's tables, by data set."""
    lines = map(shlex.split, COMMAND.findall(PAGE.read_text()))
    return {words[3]: words[1:] for words in lines}


def test_every_layout_has_a_command():
    assert documented().keys() == MAKERS.keys() | {NEEDS_A_NETWORK}


@pytest.mark.parametrize("dataset", MAKERS)
def test_a_documented_layout_is_read(command, own_cache, dataset):
    MAKERS[dataset]()
    code, out, err = command(*documented()[dataset], "--json")
    assert code == 0, err
    report = json.loads(out)
    assert min(report["parts"]["train"], report["parts"]["test"]) > 0
    if ":" in dataset and "noise" not in dataset:
        sizes = sorted(report["classes"].values())
        assert len(sizes) == 2
        assert sizes[0] >= 6
        other_tables = 1 if dataset.endswith(".csv") else 0
        assert report["left_out"] == other_tables


def test_the_report_that_the_page_shows_is_what_is_printed(command, own_cache):
    write_x_rays()
    page = PAGE.read_text().partition("## The data report")[2].partition("\n## ")[0]
    shown = [line[4:] for line in page.splitlines() if line.startswith("    ")]
    code, out, err = command("data", "info", "imagefolder:x-rays")
    assert code == 0, err
    printed = out.splitlines()
    assert [*printed[: len(shown) - 1], printed[-1]] == shown
