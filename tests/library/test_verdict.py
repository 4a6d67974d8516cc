from __future__ import annotations

import pytest

from instahide_fl.audit.scoring.verdict import (
    FROM_WORST,
    LEAKS,
    NO_LEAK,
    NO_VERDICT,
    worst,
)
from instahide_fl.errors import AttackError


def test_a_method_is_judged_by_its_worst_row():
    assert worst(reversed(FROM_WORST)) == LEAKS
    assert worst([NO_LEAK, NO_VERDICT, NO_LEAK]) == NO_VERDICT
    with pytest.raises(AttackError, match="run one"):
        worst([])
