"""Imports point one way, and the two apps meet only in the library."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]

# From the bottom up: a module may import its own layer and those before it.
LAYERS = [
    {"errors"},
    {"types", "config", "rng"},
    {"files", "tensor_files", "wire", "wire_masks", "provenance", "app_files"},
    {"data", "models", "run_folder"},
    {"study", "tracking"},
    {"encoding"},
    {"training", "aggregation", "defenses"},
    {"transcript", "metrics"},
    {"attacks"},
    {"report"},
    {"challenge"},
    {"deployment"},
    {"progress"},
    {"engine"},
    {"compare"},
    {"cli"},
]


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def layer_of(name):
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def python_files(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    return files


def test_imports_inside_the_library_never_point_upward():
    for path in python_files("instahide_fl"):
        own = path.relative_to(ROOT / "instahide_fl").parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for module in imported_modules(path):
            parts = module.split(".")
            if parts[0] == "instahide_fl" and len(parts) > 1:
                assert layer_of(parts[1]) <= layer_of(own), f"{path} imports {module}"


def test_only_the_apps_and_the_engines_know_flower_and_ray():
    for path in python_files("instahide_fl"):
        if "engine" in path.parts:
            continue
        roots = {module.split(".")[0] for module in imported_modules(path)}
        assert not roots & {"flwr", "ray", "clients", "server"}, path


def test_clients_and_server_meet_only_in_the_library():
    for folder, other in (("clients", "server"), ("server", "clients")):
        for path in python_files(folder):
            roots = {module.split(".")[0] for module in imported_modules(path)}
            assert other not in roots, path
    # Of the engines the apps know one thing: arrays that are not serialised in vain.
    for path in python_files("clients") + python_files("server"):
        engine = {name for name in imported_modules(path) if "engine" in name}
        assert engine <= {"instahide_fl.engine.arrays"}, path
