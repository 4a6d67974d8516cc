"""Recognises the training and test part of a data set by the parts' names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from instahide_fl.errors import DataError

PartRole: TypeAlias = Literal["train", "test", "validation"]

_ROLES: dict[str, PartRole] = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluation": "validation",
}
_GLUED = ("", "set", "data", "split", "images", "imgs")  # trainset, testdata
_ROLES_OF_WORDS = {
    word + suffix: role for word, role in _ROLES.items() for suffix in _GLUED
} | {"trainval": "train"}
# Runs of capitals, or letters that may begin with a capital: trainA, seg_train
_WORD = re.compile(r"[A-Z]{2,}(?![a-z])|[A-Z]?[a-z]+|[A-Z]")


class ChosenParts(NamedTuple):
    """The parts of a data set that are used.

    Attributes:
        train: The name of the part to train on.
        test: The name of the part to test on; None if there is none.
        unused: The names of the other parts, in their order.
    """

    train: str
    test: str | None
    unused: tuple[str, ...]


def part_role(name: str) -> PartRole | None:
    """Return what a folder or a part of a data set holds, by its name.

    Case does not matter, and other words, letters or numbers may stand before or after:
    `seg_train`, `Testing`, `val_images`, `train2017`, `testA`.

    Args:
        name: The name of the folder or part, without its path.

    Returns:
        The role, or None for any other name. A part for training and validation
        (`trainval`) is one for training.
    """
    words = [word.lower() for word in _WORD.findall(name)]
    roles = {_ROLES_OF_WORDS[word] for word in words if word in _ROLES_OF_WORDS}
    if roles == {"train", "validation"}:
        return "train"
    return roles.pop() if len(roles) == 1 else None


def is_plain_part_name(name: str) -> bool:
    """Return whether a name is that of a part, with nothing before or after it."""
    return name.lower() in _ROLES


def role_template(name: str) -> str:
    """Return a part's name with a star for the word that tells its role.

    The parts of a set share it: `*_images` for `train_images` and `test_images`.

    Args:
        name: The name of a folder or part.
    """

    def without_role(match: re.Match[str]) -> str:
        word = match.group().lower()
        return "*" if word in _ROLES_OF_WORDS else word

    return re.sub(r"\d+", "0", _WORD.sub(without_role, name))


def choose_parts(
    names: Sequence[str], train_part: str = "", test_part: str = ""
) -> ChosenParts:
    """Choose the parts to train and to test on.

    A plain name (`test`) goes before one with a prefix or suffix (`test_a`), and a test
    part before a validation part. A sole part that is not recognised is trained on.

    Args:
        names: The names of all parts.
        train_part: The value of `data.train-part`; empty recognises the part.
        test_part: The value of `data.test-part`; empty recognises the part.

    Raises:
        DataError: A setting names no part, no part can be trained on, or several parts
            have an equal claim.
    """
    for setting, value in (("train-part", train_part), ("test-part", test_part)):
        if value and value not in names:
            raise DataError(
                f"data.{setting}: {value!r} is no part of the data set, choose of "
                f"{_listed(names)}"
            )
    train = train_part or find_train_part([n for n in names if n != test_part])
    test = test_part or find_test_part([name for name in names if name != train])
    if train == test:
        raise DataError(
            f"data.train-part and data.test-part both name {train!r}: choose two of "
            f"{_listed(names)}, or leave data.test-part empty"
        )
    unused = tuple(name for name in names if name not in (train, test))
    return ChosenParts(train, test, unused)


def find_train_part(names: Sequence[str]) -> str:
    """Return the part to train on, by its name.

    Args:
        names: The names of the parts.

    Raises:
        DataError: There is none, or several have an equal claim.
    """
    train = _best([name for name in names if part_role(name) == "train"], "train-part")
    if train is None and len(names) == 1 and part_role(names[0]) is None:
        return names[0]
    if train is None:
        raise DataError(
            f"data.train-part: no part is named like a training part, there is "
            f"{_listed(names)}: set data.train-part to the part to train on"
        )
    return train


def find_test_part(names: Sequence[str]) -> str | None:
    """Return the part to test on, by its name: a test part, or else one to validate.

    Args:
        names: The names of the parts.

    Raises:
        DataError: Several have an equal claim.
    """
    for role in ("test", "validation"):
        test = _best([name for name in names if part_role(name) == role], "test-part")
        if test is not None:
            return test
    return None


def _best(names: Sequence[str], setting: str) -> str | None:
    """Return the only name, or the only plain one among several."""
    plain = [name for name in names if is_plain_part_name(name)]
    candidates = plain or list(names)
    if len(candidates) > 1:
        raise DataError(
            f"data.{setting}: {_listed(candidates)} are named alike: set "
            f"data.{setting} to the part that is meant"
        )
    return candidates[0] if candidates else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
