"""A package imports only what stands left of it, and nothing goes in a circle."""

import ast
import functools
import pathlib

import pytest

PACKAGE = "speciarl_jax"
ROOT = pathlib.Path(__file__).resolve().parent.parent / PACKAGE

# package -> packages that it may import besides itself.
_MODELS = {"runtime", "models"}
_SAMPLING = _MODELS | {"data", "rollout"}
_RUN = _SAMPLING | {"verifiers", "rl", "experiment"}
ALLOWED = {
    "runtime": set(),
    "models": {"runtime"},
    "data": _MODELS,
    "rollout": _MODELS,
    "verifiers": _SAMPLING,
    "rl": _SAMPLING | {"verifiers"},
    "experiment": _SAMPLING | {"verifiers", "rl"},
    "evaluation": _RUN,
    "training": _RUN | {"evaluation"},
    "tools": _RUN | {"evaluation", "training"},
}
PROGRAMS = {"train", "evaluate", "predict"}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


@functools.cache
def imports():
    """Module -> the modules of the package that it imports, at its top or inside a function."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import; write the whole name"
                if (node.module or "").split(".")[0] == PACKAGE:
                    base = node.module.split(".")[1:]
                    for alias in node.names:
                        whole = [*base, alias.name]
                        is_module = ROOT.joinpath(*whole).is_dir() or (
                            ROOT.joinpath(*whole).with_suffix(".py").exists()
                        )
                        names.add(".".join(whole if is_module else base))
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == PACKAGE:
                        names.add(".".join(alias.name.split(".")[1:]))
        found[module_name(path)] = names - {""}
    return found


def package_of(module):
    return module.split(".")[0]


def test_the_package_consists_of_the_rooms_that_are_named_here():
    entries = {path.stem for path in ROOT.iterdir() if not path.name.startswith("__pycache__")}
    assert entries == ALLOWED.keys() | PROGRAMS | {"__init__", "__main__"}
    assert all((ROOT / name / "__init__.py").is_file() for name in ALLOWED)


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_what_it_may(package):
    modules = {m: names for m, names in imports().items() if package_of(m) == package}
    assert len(modules) > 1, f"there is no package {package}"
    for module, names in modules.items():
        for name in names:
            allowed = package_of(name) in ALLOWED[package] | {package}
            assert allowed, f"{module} may not import {name}"


def test_nothing_imports_a_program():
    for module, names in imports().items():
        if module != "__main__":
            assert not {package_of(name) for name in names} & PROGRAMS, module


def test_imports_are_acyclic():
    graph = imports()
    done, active = set(), []
    assert graph["train"] and graph["training.update"]  # the scan found what it is about

    def visit(module):
        assert module not in active, " -> ".join([*active, module])
        if module in done:
            return
        active.append(module)
        for name in sorted(graph.get(module, ())):
            visit(name)
        active.pop()
        done.add(module)

    for module in sorted(graph):
        visit(module)


def test_jit_and_partition_specs_stay_where_they_belong():
    holders = set()
    for path in sorted(ROOT.rglob("*.py")):
        names = {
            node.attr if isinstance(node, ast.Attribute) else node.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute | ast.alias)
        }
        module = module_name(path)
        if "PartitionSpec" in names:
            holders.add(module)
        leaf = package_of(module) in {"models", "rl", "rollout"}
        # Initialisation of fresh weights, and the cache, which runs the encoder by itself.
        leaf &= module not in {"models.checkpoints.hf_checkpoint", "models.vision_feature_cache"}
        assert not (leaf and "jit" in names), f"{module}: jax.jit belongs to the entry points"
    assert holders == {"runtime.sharding"}
