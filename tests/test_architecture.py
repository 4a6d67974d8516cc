"""The layout's rules: imports point one way, and some are forbidden."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]

# From the bottom up: a module may import its own layer and those before it.
LAYERS = [
    {"errors", "interrupts", "terminal"},
    {"types", "config", "rng"},
    {"environment", "files", "tensor_files", "wire", "provenance", "run_summary"},
    {"checkpoints"},
    {"private_folder", "end_orphans", "child_processes"},
    {"data", "models", "run_folder"},
    {"study", "tracking"},
    {"encoding"},
    {"training", "aggregation", "defenses"},
    {"transcript", "metrics"},
    {"pictures"},
    {"evaluation"},
    {"attacks"},
    {"audit"},
    {"report"},
    {"challenge"},
    {"flower"},
    {"deployment"},
    {"progress"},
    {"engine"},
    {"compare"},
    {"cli"},
    {"__main__"},
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


def imported_names(path):
    """Return modules and what is taken from them, which may be modules too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_module_is_imported_by_what_it_imports():
    graph = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): imported_names(path)
        for folder in ("instahide_fl", "clients", "server")
        for path in python_files(folder)
    }
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_attacks_never_see_the_truth():
    forbidden = ("instahide_fl.audit", "instahide_fl.transcript.truth")
    for path in python_files("instahide_fl/attacks"):
        for module in imported_modules(path):
            assert not module.startswith(forbidden), f"{path} imports {module}"


def test_a_server_starts_without_pictures_and_reports():
    forbidden = ("instahide_fl.report", "instahide_fl.pictures")
    for path in python_files("server"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                assert not node.module.startswith(forbidden), path


def test_only_the_apps_and_the_engines_packages_import_flower_and_ray():
    allowed = {"flwr": {"engine", "flower"}, "ray": {"engine"}}
    for path in python_files("instahide_fl"):
        package = path.relative_to(ROOT / "instahide_fl").parts[0]
        roots = {module.split(".")[0] for module in imported_modules(path)}
        assert not roots & {"clients", "server"}, path
        for framework, packages in allowed.items():
            assert framework not in roots or package in packages, path


def test_only_one_package_imports_what_flower_does_not_document():
    public = {"flwr.app", "flwr.clientapp", "flwr.serverapp"}
    for folder in ("instahide_fl", "clients", "server"):
        for path in python_files(folder):
            modules = {m for m in imported_modules(path) if m.startswith("flwr.")}
            assert modules <= public or "flower" in path.parts, path


def test_clients_and_server_meet_only_in_the_library():
    for folder, other in (("clients", "server"), ("server", "clients")):
        for path in python_files(folder):
            modules = set(imported_modules(path))
            assert other not in {module.split(".")[0] for module in modules}, path
            assert not any("instahide_fl.engine" in module for module in modules), path


def test_flower_sends_every_file_of_the_app_to_clients():
    """It leaves out what is named like a test, and says nothing."""
    for folder in ("instahide_fl", "clients", "server"):
        for path in python_files(folder):
            assert not path.name.endswith("_test.py"), path
            assert not path.name.startswith("test_"), path
