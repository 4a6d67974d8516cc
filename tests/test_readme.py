"""What the README shows works as shown."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_pytorch_loop_runs_and_its_key_explains_the_batch():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    batch, key = names["batch"], names["key"]
    again = names["encoder"].apply_key(key, names["split"])
    assert (again.images == batch.images).all()
    assert names["loss"].item() > 0


def test_the_honest_sentence_and_the_picture_are_there():
    assert "InstaHide is broken as an encryption scheme" in README
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_make_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    for target in re.findall(r"^    make ([a-z-]+)", README + contributing, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
