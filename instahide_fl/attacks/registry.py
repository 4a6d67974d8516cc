"""The attacks, by name."""

from __future__ import annotations

from collections.abc import Mapping

from instahide_fl.attacks.base import Attack
from instahide_fl.attacks.batch_statistics import BatchStatistics
from instahide_fl.attacks.carlini.attack import Carlini
from instahide_fl.attacks.decode_encodings import DecodeEncodings
from instahide_fl.attacks.deep_leakage import DeepLeakage, ImprovedDeepLeakage
from instahide_fl.attacks.first_layer import FirstLayer
from instahide_fl.attacks.hard_labels import HardLabels
from instahide_fl.attacks.imprint import Imprint
from instahide_fl.attacks.inverting_gradients import InvertingGradients
from instahide_fl.attacks.key_replay.attack import KeyReplay
from instahide_fl.attacks.membership_encodings import MembershipEncodings
from instahide_fl.attacks.membership_updates.attack import MembershipUpdates
from instahide_fl.attacks.mixup_recovery.attack import MixupRecovery
from instahide_fl.attacks.pool_search.attack import PoolSearch
from instahide_fl.attacks.registered_decoding import RegisteredDecoding
from instahide_fl.attacks.soft_labels import SoftLabels
from instahide_fl.attacks.two_step import TwoStep
from instahide_fl.errors import ConfigError

ATTACKS: Mapping[str, type[Attack]] = {
    attack.name: attack
    for attack in (
        SoftLabels,
        HardLabels,
        FirstLayer,
        BatchStatistics,
        Imprint,
        DeepLeakage,
        ImprovedDeepLeakage,
        InvertingGradients,
        TwoStep,
        DecodeEncodings,
        MixupRecovery,
        RegisteredDecoding,
        KeyReplay,
        PoolSearch,
        Carlini,
        MembershipUpdates,
        MembershipEncodings,
    )
}


def build_attack(name: str, settings: Mapping[str, object]) -> Attack:
    """Return an attack with these settings.

    Args:
        name: The attack's name, a key of `ATTACKS`.
        settings: The values of settings by name, for instance {"iterations": 200};
            other settings have their defaults.

    Raises:
        ConfigError: there is no such attack or setting, or a value is not valid.
    """
    if name not in ATTACKS:
        raise ConfigError(f"--attack must be one of {', '.join(ATTACKS)}, got {name!r}")
    return ATTACKS[name](**settings)
