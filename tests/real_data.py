"""Where real data sets lie on this machine, for the few tests that read them.

The environment variable `INSTAHIDE_FL_TEST_DATA` names a folder that holds `cifar10/`
(parquet files as on the Hugging Face hub) and `imagenet-sample/` (a folder a class).
Without it those tests are skipped.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(os.environ.get("INSTAHIDE_FL_TEST_DATA", os.devnull))
CIFAR10 = FOLDER / "cifar10"
IMAGENET = FOLDER / "imagenet-sample"
