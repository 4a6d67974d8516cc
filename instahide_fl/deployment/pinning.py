"""Change which code a client's settings allow, and nothing else in them."""

from __future__ import annotations

import re
from pathlib import Path

from instahide_fl.deployment.policy import CLIENT_FILE, read_policy
from instahide_fl.errors import ConfigError
from instahide_fl.files import write_text

_LINE = re.compile(r"^code-hash\s*=.*$", re.MULTILINE)


def pin_code(folder: Path, app_hash: str) -> tuple[str, str]:
    """Write an app hash into a client's settings, and leave comments as they are.

    Args:
        folder: The client's folder.
        app_hash: The app hash to pin, a sha256 in hexadecimal digits.

    Returns:
        The hash before (empty for none) and after.

    Raises:
        ConfigError: The settings or the hash are not valid.
        OutputError: The file cannot be written.
    """
    app_hash = app_hash.lower()
    if not re.fullmatch(r"[0-9a-f]{64}", app_hash):
        raise ConfigError(
            f"a code hash has 64 hexadecimal digits, as instahide-fl deploy code-hash "
            f"prints it, got {app_hash!r}"
        )
    policy, path = read_policy(folder), folder / CLIENT_FILE
    text, line = path.read_text(encoding="utf-8"), f'code-hash = "{app_hash}"'
    # Before the first table, or it would be a setting of that table.
    changed = (
        _LINE.sub(line, text, count=1) if _LINE.search(text) else f"{line}\n{text}"
    )
    mode = path.stat().st_mode
    write_text(path, changed)
    path.chmod(mode)
    return policy.code_hash, read_policy(folder).code_hash
