"""The base of every table of settings: strict types, and errors that help."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from instahide_fl.errors import ConfigError

Count: TypeAlias = Annotated[int, Field(ge=1)]
CountOrZero: TypeAlias = Annotated[int, Field(ge=0)]


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class Table(BaseModel):
    """A TOML table: immutable, strict about types, closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=_kebab,
        populate_by_name=True,
        protected_namespaces=(),
    )

    section: ClassVar[str] = ""
    """The name of the table in a settings file; empty for the file itself."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_explain(error, type(self))) from None


def _explain(error: ValidationError, table: type[Table]) -> str:
    """Explain the first problem in one sentence: setting, value, what is valid."""
    problem = error.errors()[0]
    if isinstance(cause := problem.get("ctx", {}).get("error"), ConfigError):
        return str(cause)  # of a table inside this one, already explained
    prefix = f"{table.section}." if table.section else ""
    if not problem["loc"]:
        return prefix + str(problem["ctx"]["error"])
    # What follows the key in the location is the branch of a union that was tried.
    key = _kebab(str(problem["loc"][0]))
    if problem["type"] == "extra_forbidden":
        return _unknown_key(prefix, key, list(map(_kebab, table.model_fields)))
    if problem["type"] == "missing":
        return f"{prefix}{key} is missing"
    rules = [
        _rule(other["msg"])
        for other in error.errors()
        if other["loc"][0] == problem["loc"][0]
    ]
    if problem["type"] == "model_type":
        rules = ["a table"]
    return f"{prefix}{key} must be {' or '.join(rules)}, got {problem['input']!r}"


def _rule(message: str) -> str:
    """Return what may follow "must be" in a message of Pydantic's or a validator's."""
    for prefix in ("Input should be ", "Value error, ", "must be "):
        message = message.removeprefix(prefix)
    return message


def _unknown_key(prefix: str, key: str, valid_keys: list[str]) -> str:
    close = difflib.get_close_matches(key, valid_keys, n=1, cutoff=0.6)
    hint = f"did you mean {prefix}{close[0]}? " if close else ""
    return f"unknown setting {prefix}{key}: {hint}known: {', '.join(valid_keys)}"
