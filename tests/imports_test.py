"""The direction of imports: leaves do not know who calls them, and nothing goes in a circle."""

import ast
import pathlib

import pytest

PACKAGE = "speciarl_jax"
ROOT = pathlib.Path(__file__).resolve().parent.parent / PACKAGE

# What a room may import of the package outside its own folder. `None`: everything.
ALLOWED = {
    "models": set(),
    "losses": set(),
    "advantages": set(),
    "types": set(),
    "verify.category": set(),
    "verify": {"verify.category", "types"},
    # The judge on the devices is a model with a tokenizer of its own.
    "verify.flax_judge": {"verify", "models", "data.tokenizer"},
    "verify.verdict_scorer": {"verify", "models"},
    "verify.reencoding_judge": {"verify", "models"},
    "rewards": {"verify.category"},
    "rollout": {"models", "types"},
    # What a prompt looks like to the model (layouts, positions) is the model's own knowledge.
    # A mixture finds its parts by their names, and processes agree on the sizes of a batch.
    "data": {"types", "models", "lookup", "distributed"},
    "pretraining": {"data", "models"},
    "update": {"losses", "rollout", "types"},
    "metrics": {"verify.category"},
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def imports():
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


def within(name, room):
    return name == room or name.startswith(room + ".")


def test_every_room_that_is_named_here_exists():
    modules = imports().keys()
    for name in [*ALLOWED, *set().union(*ALLOWED.values())]:
        assert any(within(module, name) for module in modules), f"there is no {name}"


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_what_it_may(room):
    for module, names in imports().items():
        if not within(module, room) or (room == "verify" and module in ALLOWED):
            continue
        for name in names:
            allowed = within(name, room) or any(within(name, a) for a in ALLOWED[room])
            assert allowed, f"{module} may not import {name}"


def test_imports_are_acyclic():
    graph = imports()
    assert graph["train"] and graph["update"]  # the scan found what it is about
    done, active = set(), []

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
        holders |= {module} & {"sharding"} if "PartitionSpec" in names else set()
        if module != "sharding":
            assert "PartitionSpec" not in names, f"{module}: PartitionSpec belongs to sharding.py"
        leaf = module.split(".")[0] in {"models", "losses", "rewards", "rollout", "advantages"}
        # `hf` makes fresh weights: initialisation.
        leaf &= module != "models.qwen2_5_vl.hf"
        assert not (leaf and "jit" in names), f"{module}: jax.jit belongs to the entry points"
    assert holders == {"sharding"}
