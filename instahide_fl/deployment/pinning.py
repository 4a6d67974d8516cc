"""Changes which code a client's settings allow, and leaves the rest of them alone."""

from __future__ import annotations

import re
from pathlib import Path

from instahide_fl.deployment.policy import CLIENT_FILE, read_policy
from instahide_fl.errors import ConfigError
from instahide_fl.files import write_text

_LINE = re.compile(r"^code-hash\s*=.*$", re.MULTILINE)


def pin_code(folder: Path, code_hash: str) -> tuple[str, str]:
    """Write a hash into a client's settings, comments kept.

    Args:
        folder: of the client.
        code_hash: sha256, hex.

    Returns:
        The hash before (empty for none) and after.

    Raises:
        ConfigError: the settings or the hash are not valid.
        OutputError: the file cannot be written.
    """
    code_hash = code_hash.lower()
    if not re.fullmatch(r"[0-9a-f]{64}", code_hash):
        raise ConfigError(
            f"a code hash has 64 hexadecimal digits, as instahide-fl deploy code-hash "
            f"prints it, got {code_hash!r}"
        )
    policy, path = read_policy(folder), folder / CLIENT_FILE
    text, line = path.read_text(encoding="utf-8"), f'code-hash = "{code_hash}"'
    # Before the first table, or it would be a setting of that table.
    changed = (
        _LINE.sub(line, text, count=1) if _LINE.search(text) else f"{line}\n{text}"
    )
    mode = path.stat().st_mode
    write_text(path, changed)
    path.chmod(mode)
    return policy.code_hash, read_policy(folder).code_hash
