from __future__ import annotations

import pytest

from instahide_fl.data.sources.part_names import choose_parts, part_role
from instahide_fl.errors import DataError


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("train", "train TRAIN Training seg_train train_images train2017 trainA "),
        ("train", "train-set trainset Train_1 trainval train_val dataTrain"),
        ("test", "test Test testing TESTING seg_test test_a testB test-set Testdata"),
        ("validation", "val VALID validation dev eval Evaluation val_images valid2"),
        (None, "trains strain restraint contest latest value devil medieval evaluate"),
        (None, "unlabelled train_test cat extra 2017 _"),
    ],
)
def test_parts_are_recognised_by_their_names(role, names):
    assert {name: part_role(name) for name in names.split()} == dict.fromkeys(
        names.split(), role
    )


@pytest.mark.parametrize(
    ("names", "settings", "expected"),
    [
        ("train valid", "", ("train", "valid", ())),
        ("test train val", "", ("train", "test", ("val",))),
        (
            "test test_a train train_extra",
            "",
            ("train", "test", ("test_a", "train_extra")),
        ),
        ("Training unlabelled", "", ("Training", None, ("unlabelled",))),
        ("full", "", ("full", None, ())),
        ("test train val", "train val", ("train", "val", ("test",))),
        ("train_a train_b", "train_b", ("train_b", None, ("train_a",))),
        ("one two", "one two", ("one", "two", ())),
    ],
)
def test_parts_are_chosen(names, settings, expected):
    assert choose_parts(names.split(), *settings.split()) == expected


@pytest.mark.parametrize(
    ("names", "settings", "match"),
    [
        ("train_a train_b test", "", r"train_a, train_b are .* set data\.train-part"),
        ("train testA testB", "", r"testA, testB are named alike: set data\.test-part"),
        ("train training", "", r"set data\.train-part"),
        ("test validation", "", r"no part is named like .* there is test, validation"),
        ("test", "", r"set data\.train-part"),
        ("train test", "Train", r"data\.train-part: 'Train' is no part .* train, test"),
        ("train test", "train train", "both name 'train'"),
    ],
)
def test_parts_that_are_not_certain_are_refused(names, settings, match):
    with pytest.raises(DataError, match=match):
        choose_parts(names.split(), *settings.split())
