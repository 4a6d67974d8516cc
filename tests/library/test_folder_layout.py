"""Parts and classes told from names alone: no file is made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instahide_fl.data.sources.folder_layout import find_layout
from instahide_fl.data.sources.picture_tree import PictureTree
from instahide_fl.errors import DataError


def tree_of(text):
    """Make a tree of folders: "train/cat train/dog test" with a picture in each."""
    folders = text.split()
    filled = [name for name in folders if not name.endswith("/")]
    return PictureTree(
        [f"{name}/1.png" if name != "." else "1.png" for name in filled],
        [name.rstrip("/") for name in folders if name.endswith("/")],
    )


def parts_of(layout):
    return {
        part: (folder.folder, " ".join(folder.classes))
        for part, folder in layout.parts.items()
    }


PAIRS = (
    "train/valid Training/Testing Train/Test TRAIN/TEST train/dev train/eval "
    "train/testing training/test training/validation seg_train/seg_test "
    "train_images/test_images train/val_images train2017/val2017 trainA/testA "
    "train-set/test-set trainset/testset"
)


@pytest.mark.parametrize("pair", PAIRS.split())
@pytest.mark.parametrize("wrapper", ["", "dataset/", "archive/data/"])
def test_parts_are_found_whatever_their_names(pair, wrapper):
    train, test = (wrapper + name for name in pair.split("/"))
    tree = tree_of(f"{train}/cat {train}/dog {test}/cat {test}/dog")
    expected = {"train": (train, "cat dog"), "test": (test, "cat dog")}
    assert parts_of(find_layout(tree)) == expected


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ("cat dog", {"all": ("", "cat dog")}),
        ("set/cat set/dog", {"all": ("set", "cat dog")}),
        ("a/b/c/cat a/b/c/dog/deep", {"all": ("a/b/c", "cat dog")}),
        ("cat", {"all": ("", "cat")}),
        ("cat/deep", {"all": ("", "cat")}),
        ("train/cat train/dog", {"all": ("train", "cat dog")}),
        ("train/cat/x train/cat/y", {"all": ("train", "cat")}),
        ("train/cat train/dog annotations/", {"all": ("train", "cat dog")}),
        ("cat dog/", {"all": ("", "cat dog")}),
        # Railway pictures, and a class with folders of its own.
        ("train tram bus", {"all": ("", "bus train tram")}),
        ("cat/x cat/y dog/z", {"all": ("", "cat dog")}),
        ("train_station test_tube", {"all": ("", "test_tube train_station")}),
        # The part's name again, or a name that says nothing.
        (
            "seg_train/seg_train/a seg_train/seg_train/b seg_test/seg_test/a",
            {
                "train": ("seg_train/seg_train", "a b"),
                "test": ("seg_test/seg_test", "a"),
            },
        ),
        (
            "train/images/a train/images/b test/images/b",
            {"train": ("train/images", "a b"), "test": ("test/images", "b")},
        ),
        # A part with labels goes before one without.
        (
            "train/a train/b test val/a val/b",
            {"train": ("train", "a b"), "test": ("val", "a b")},
        ),
        (
            "train/a train/b test/a test/b val/a val/b",
            {"train": ("train", "a b"), "test": ("test", "a b")},
        ),
        ("train/a train/b test", {"all": ("train", "a b")}),
        ("train/a train/b test/unknown val/", {"all": ("train", "a b")}),
        # One class only in a test part is a class.
        (
            "train/a train/b test/a/deep",
            {"train": ("train", "a b"), "test": ("test", "a")},
        ),
    ],
)
def test_layouts(folders, expected):
    if "val/" in folders.split():  # an empty part is an error, not a decision
        with pytest.raises(DataError, match="no images in val/"):
            find_layout(tree_of(folders))
        return
    assert parts_of(find_layout(tree_of(folders))) == expected


def test_what_is_not_used_is_said():
    layout = find_layout(tree_of("train/a train/b test val/a val/b extra/a extra/b"))
    assert layout.unused == ("extra", "test")
    assert "test/ holds 1 image without labels" in str(layout.warnings[0])
    assert "val/ is tested on" in str(layout.warnings[0])
    assert "is taken for a class" in str(find_layout(tree_of("a b test")).warnings[0])
    has_table = {"test"}.__contains__
    layout = find_layout(tree_of("train/a train/b test"), has_table=has_table)
    assert parts_of(layout)["test"] == ("test", "")


@pytest.mark.parametrize(
    ("folders", "match"),
    [
        (
            "train/cat train/dog unlabelled/cat unlabelled/dog",
            "unlabelled/ have the sam",
        ),
        (
            "val/cat val/dog test/cat test/dog",
            r"set data\.train-part and data\.test-pa",
        ),
        (
            "cat/images cat/masks dog/images dog/masks",
            r"cat/ and dog/ .*images, masks",
        ),
        (
            "x_train/a x_train/b y_train/a y_train/b test/a",
            r"x_train, y_train are named",
        ),
        ("train/cat train/dog extra", r"train/ is named like a part"),
        ("cat dog test/cat test/dog", r"test/ is named like a part"),
        ("train/cat train/dog test/", r"no images in test/"),
    ],
)
def test_parts_are_never_classes(folders, match):
    with pytest.raises(DataError, match=match):
        find_layout(tree_of(folders))


@pytest.mark.parametrize(
    ("folders", "settings", "expected"),
    [
        ("a/x a/y b/x b/y", "a b", {"train": ("a", "x y"), "test": ("b", "x y")}),
        ("w/a/x w/a/y w/b/x", "a b", {"train": ("w/a", "x y"), "test": ("w/b", "x")}),
        ("w/a/x w/a/y w/b/x", "w/a", {"all": ("w/a", "x y")}),
        ("a/x a/y test/x", "a", {"train": ("a", "x y"), "test": ("test", "x")}),
        ("a/x a/y b/x b/y", ".", {"all": ("", "a b")}),
        (
            "x y test/x test/y",
            ". test",
            {"train": ("", "x y"), "test": ("test", "x y")},
        ),
    ],
)
def test_settings_settle_it(folders, settings, expected):
    assert parts_of(find_layout(tree_of(folders), *settings.split())) == expected
    with pytest.raises(DataError, match=r"data\.train-part: there is no folder 'no'"):
        find_layout(tree_of(folders), "no")


ANIMALS = ("ant", "bee", "cat", "dog", "emu")
CLASSES = st.sets(st.sampled_from(ANIMALS), min_size=2)
WRAPPERS = st.lists(st.sampled_from(["dataset", "v2", "archive"]), max_size=3)


@given(CLASSES, WRAPPERS, st.sampled_from(PAIRS.split()), st.booleans(), st.data())
def test_every_set_with_parts_is_read_as_it_was_written(
    classes, wrappers, pair, is_divided, data
):
    names = sorted(classes)
    train, test = ("/".join([*wrappers, part]) for part in pair.split("/"))
    folders = [f"{train}/{name}" for name in names]
    expected = {"all": (train, " ".join(names))}
    if is_divided:
        tested = sorted(data.draw(st.sets(st.sampled_from(names), min_size=1)))
        folders += [f"{test}/{name}" for name in tested]
        expected = {
            "train": (train, " ".join(names)),
            "test": (test, " ".join(tested)),
        }
    layout = find_layout(tree_of(" ".join(data.draw(st.permutations(folders)))))
    assert parts_of(layout) == expected
    assert not layout.unused
    assert not layout.warnings
