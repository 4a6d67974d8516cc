"""Writes the reference from the code: every setting, every command."""

from __future__ import annotations

import ast
import inspect
import itertools
import types
import typing
from collections.abc import Iterator
from typing import Any

import typer
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from instahide_fl.cli import app
from instahide_fl.config import Config

SETTINGS, COMMANDS = "reference/settings.md", "reference/commands.md"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of settings and commands."""
    for path, content in ((SETTINGS, settings_page()), (COMMANDS, commands_page())):
        files.append(File.generated(config, path, content=content))
    return files


def settings_page() -> str:
    """Return a page with every setting: type, range, default, meaning."""
    lines = [
        "# Settings",
        "",
        "All settings of a run, in the tables of a settings file. On the command line: "
        "`--set TABLE.KEY=VALUE`.",
    ]
    tables = [Config, *_tables()]
    for table in tables:
        meanings = _docstrings(table)
        section = getattr(table, "section", "")
        lines += ["", f"## {f'[{section}]' if section else 'Above all tables'}", ""]
        lines += ["| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
        for name, field in table.model_fields.items():
            if not _is_table(field):
                row = [
                    f"`{field.alias or name}`",
                    _type(field),
                    f"`{_literal(field.get_default(call_default_factory=True))}`",
                    meanings.get(name, ""),
                ]
                lines.append(_row(*row))
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """Return a page with every command, its arguments and options."""
    lines = ["# Commands"]
    for path, command in _commands("instahide-fl", typer.main.get_command(app)):
        usage = " ".join(command.collect_usage_pieces(_context(command, path)))
        lines += ["", f"## `{path}`", "", inspect.cleandoc(command.help or ""), ""]
        lines += [f"    {path} {usage}", ""]
        rows = [
            record
            for parameter in command.get_params(_context(command, path))
            if (record := parameter.get_help_record(_context(command, path)))
        ]
        if rows:
            lines += ["| | |", "| --- | --- |"]
        lines += [_row(f"`{name}`", text) for name, text in rows]
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    """Return a row of a table; a bar in a cell is no border."""
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _tables() -> Iterator[type[BaseModel]]:
    for field in Config.model_fields.values():
        if _is_table(field):
            yield typing.cast(type[BaseModel], field.annotation)


def _is_table(field: FieldInfo) -> bool:
    kind = field.annotation
    return inspect.isclass(kind) and issubclass(kind, BaseModel)


def _docstrings(table: type[BaseModel]) -> dict[str, str]:
    """Return the text below each field in the source, by the field's name."""
    (body,) = ast.parse(inspect.getsource(table)).body
    texts: dict[str, str] = {}
    statements = typing.cast(ast.ClassDef, body).body
    for field, below in itertools.pairwise(statements):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            texts[field.target.id] = " ".join(str(below.value.value).split())
    return texts


def _type(field: FieldInfo) -> str:
    """Return the type of a field in words, with its limits."""
    limits = []
    for constraint in field.metadata:
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if (limit := getattr(constraint, name, None)) is not None:
                limits.append(f"{sign} {limit}")
    return ", ".join([_kind(field.annotation), *limits])


def _kind(annotation: Any) -> str:
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    if annotation in names:
        return names[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{_literal(value)}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(argument) for argument in arguments)
    if origin is typing.Annotated:
        return _kind(arguments[0])
    return str(getattr(annotation, "__name__", annotation))


def _literal(value: Any) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, subcommand in command.commands.items():
        yield from _commands(f"{path} {name}", subcommand)


def _context(command: Any, path: str) -> Any:
    return command.context_class(command, info_name=path)
