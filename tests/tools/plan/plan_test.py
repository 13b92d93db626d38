"""A plan's numbers, beside hand arithmetic and what XLA says of the same program."""

import dataclasses
import json
import math
import re
import types

import jax
import pytest

from benchmarks.workload import SMALL
from configs import cub, quickstart
from speciarl_jax.models.qwen2_5_vl import presets
from speciarl_jax.tools.plan import __main__ as plan_program
from speciarl_jax.tools.plan import chips, cost, measure, programs, report, search
from speciarl_jax.training import steps

# One layer: XLA counts the body of a loop once.
MODEL = dataclasses.replace(
    SMALL,
    text=dataclasses.replace(SMALL.text, num_layers=1),
    vision=dataclasses.replace(SMALL.vision, depth=1, full_attention_layers=(0,)),
)
GIB = 2**30


def tiny_plan(model=MODEL, devices=None, **changes):
    """The quickstart's step on a small model; `changes` maps "section__key" to a value."""
    config = quickstart.get_config()
    values = {
        "model__lora_rank": 4,
        "model__scan_unroll": 1,
        "rollout__num_rollouts": 3,
        "rollout__max_tokens": 2,
        "rollout__num_compactions": 0,
        "rollout__merge_lora": False,
        "train__batch_size": 8,
        "train__mini_batches": 1,
        "train__micro_batches": 1,
        "train__remat": "full",
        "evaluation__batch_size": 8,
    }
    for name, value in (values | changes).items():
        section, key = name.split("__")
        config[section][key] = value
    sizes = programs.sizes_of(config, model, (56, 56), 20)
    devices = jax.devices()[:1] if devices is None else devices
    return programs.abstract(config, model, sizes, devices)


def lowered(made, name):
    [program] = programs.programs(made, (name,))
    return program


def product_flops(jaxpr):
    """Of all products of a traced program; the body of a `while` once, of branches the largest."""
    total = 0
    for eqn in jaxpr.eqns:
        inner = [
            getattr(x, "jaxpr", x)
            for value in eqn.params.values()
            for x in (value if isinstance(value, (tuple, list)) else [value])
            if hasattr(getattr(x, "jaxpr", x), "eqns")
        ]
        found = [product_flops(x) for x in inner]
        if eqn.primitive.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            length = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
            total += 2 * length * math.prod(eqn.outvars[0].aval.shape)
        elif eqn.primitive.name == "scan":
            total += eqn.params["length"] * sum(found)
        elif eqn.primitive.name == "cond":
            total += max(found)
        else:
            total += sum(found)
    return total


@pytest.mark.parametrize("name", ["rollout", "update"])
def test_flops_are_those_of_the_products_in_the_traced_program(name):
    made = tiny_plan()
    ours = sum(phase.flops for phase in cost.phases(made, name))
    function = getattr(steps.stages(made.run, made.optimizer), name)
    traced = jax.make_jaxpr(function)(*lowered(made, name).arguments)
    assert ours == pytest.approx(product_flops(traced.jaxpr), rel=0.1)


def test_parameters_and_optimizer_by_hand():
    made = tiny_plan(
        model=presets.CONFIGS["7B"], model__lora_rank=64, model__param_dtype="bfloat16"
    )
    bf16, adapters = 2, 161_480_704
    assert cost.shard_bytes(made.run.base) == presets_size("7B") * bf16
    assert cost.shard_bytes(made.state.lora) == adapters * 4
    # Two moments, and a counter or two.
    assert 0 <= cost.shard_bytes(made.state.opt_state) - 2 * adapters * 4 < 64


def presets_size(size):
    return {"7B": 8_292_166_656}[size]


def test_the_cache_by_hand():
    made = tiny_plan(
        model=presets.CONFIGS["7B"],
        model__dtype="bfloat16",
        rollout__max_tokens=2048,
        rollout__num_rollouts=10,
    )
    tokens = made.sizes.prompt_tokens + 10 * 2048
    assert cost.cache_bytes(made) == 8 * tokens * 57_344
    halved = tiny_plan(
        model=presets.CONFIGS["7B"],
        model__dtype="bfloat16",
        rollout__max_tokens=2048,
        rollout__num_rollouts=10,
        rollout__max_images_per_chunk=4,
    )
    assert cost.cache_bytes(halved) == 4 * tokens * 57_344


def test_what_decoding_reads_by_hand():
    text = MODEL.text
    kernels = text.hidden_size * (2 * 256 + 2 * 128) + 3 * text.hidden_size * text.intermediate_size
    outputs = 256 + 2 * 128 + text.hidden_size + 2 * text.intermediate_size + text.hidden_size
    others = text.hidden_size * 2 + 256 + 2 * 128  # norms and biases
    head = text.hidden_size * text.vocab_size
    changes = {"rollout__max_tokens": 9, "rollout__max_images_per_chunk": 4}
    made = tiny_plan(**changes)
    turns = 8 * 2
    want = {"weights": 4 * turns * (kernels + others + head)}
    want["caches"] = turns * cost.cache_bytes(made)
    assert cost.decode_reads(made) == want
    int8 = tiny_plan(**changes, rollout__decode_weights="int8", rollout__kv_cache="int8")
    want["weights"] = turns * (kernels + 4 * (outputs + others + head))
    want["caches"] = turns * 4 * (made.sizes.prompt_tokens + 3 * 9) * 2 * 2 * (64 + 4)
    assert cost.decode_reads(int8) == want


def test_bounds_say_what_limits_each_part(monkeypatch):
    chip = chips.CHIPS["v5e"]
    made = tiny_plan(rollout__max_tokens=9)
    lines = report.bounds(made, chip).splitlines()
    assert [line.split()[0] for line in lines] == ["vision", "prefill", "decode", "update", "KV"]
    assert "memory 0.0 s (weights 0.0 s, caches 0.0 s)" in lines[2]
    monkeypatch.setattr(chips, "devices", lambda topology: (None, jax.devices()))
    with pytest.raises(ValueError, match="--bounds needs chips with limits"):
        plan_program.bounds(made.run.config, "cpu:1")


def test_memory_is_what_xla_reports_and_its_arguments_what_we_count():
    made = tiny_plan()
    program = lowered(made, "update")
    found = measure.measure(made, program, None)
    memory = program.lower().compile().memory_analysis()
    want = memory.argument_size_in_bytes + memory.output_size_in_bytes
    want += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    want -= memory.alias_size_in_bytes
    assert found.per_chip_bytes == want + cost.shard_bytes(made.run.verifier)
    # The compiler leaves out arguments that no one reads: patches, and frozen vision weights.
    prompt = program.arguments[2].prompt
    unread = (prompt.patches_BSC, prompt.layout)
    vision = made.run.base["visual"]
    ours = cost.shard_bytes(program.arguments) - cost.shard_bytes((unread, vision))
    assert found.xla["argument_bytes"] == pytest.approx(ours, rel=0.02)
    assert found.fits is None and found.estimated_seconds is None
    assert sum(found.contributors.values()) == found.per_chip_bytes


def test_a_refusal_of_the_compiler_is_read():
    said = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (25.50G) exceeds available HBM (15.75G)."
    )
    assert measure.needed_bytes(said) == int(25.5 * GIB)
    used = "Ran out of memory in memory space hbm. Used 17.20G of 15.75G hbm."
    assert measure.needed_bytes(used) == int(17.2 * GIB)
    assert measure.needed_bytes("something else") == 0


def test_a_program_that_does_not_fit_comes_with_keys_to_change():
    made = tiny_plan()

    class TooLarge:
        def compile(self, options):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: temporaries (25.50G) exceeds available HBM (15.75G)"
            )

    program = dataclasses.replace(
        lowered(made, "update"), function=types.SimpleNamespace(lower=lambda *_: TooLarge())
    )
    found = measure.measure(made, program, chips.CHIPS["v5e"])
    assert found.fits is False and found.per_chip_bytes > 25 * GIB
    first = next(measure.advice(found))
    assert first["what"].startswith("batch, activations") and "micro_batches" in first["keys"]


def test_the_published_shape_of_an_image_and_prompt():
    config = cub.get_config()
    sizes = programs.sizes_of(config, presets.CONFIGS["7B"], (500, 500), 30)
    # 18 x 18 image tokens, a bucket size among multiples of 16, each a quarter more than the last.
    assert (sizes.height, sizes.width) == (36, 36)
    assert 324 <= sizes.image_tokens <= 1.25 * 324 + 16
    assert sizes.image_tokens + 30 <= sizes.prompt_tokens < sizes.image_tokens + 38
    with pytest.raises(ValueError, match="lower --pixels"):
        programs.sizes_of(config, presets.CONFIGS["7B"], (500, 500), 2000)


@pytest.mark.parametrize(
    "topology, said",
    [("v9:2x2", "v5e.*cpu:NUMBER"), ("v5e", "give one of"), ("cpu:none", "cpu:NUMBER")],
)
def test_an_unknown_topology_is_refused_with_those_there_are(topology, said):
    with pytest.raises(ValueError, match=said):
        chips.devices(topology)


def test_without_libtpu_a_tpu_topology_says_what_to_install(monkeypatch):
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install 'libtpu=="):
        chips.devices("v5e:2x2")


def test_a_size_that_is_no_size_is_refused():
    with pytest.raises(ValueError, match="HEIGHTxWIDTH"):
        plan_program.read_pixels("640", cub.get_config())
    assert plan_program.read_pixels("", cub.get_config()) == (500, 500)
    assert plan_program.read_pixels("", quickstart.get_config()) == (48, 48)


def test_a_search_goes_to_smaller_parts_and_then_to_other_meshes(monkeypatch):
    monkeypatch.setattr(
        search,
        "_candidates",
        lambda *_: [
            (
                2.0,
                {
                    "mesh.data": 1,
                    "mesh.fsdp": 2,
                    "mesh.tensor": 1,
                    "rollout.max_images_per_chunk": 0,
                },
            ),
            (
                1.0,
                {
                    "mesh.data": 1,
                    "mesh.fsdp": 1,
                    "mesh.tensor": 2,
                    "rollout.max_images_per_chunk": 4,
                },
            ),
        ],
    )
    seen = []

    def compile_(config):
        seen.append((config.mesh.tensor, config.rollout.max_images_per_chunk))
        fits = config.mesh.tensor == 1
        return {"programs": [{"name": "rollout", "fits": fits}], "fits": fits}

    config = quickstart.get_config()
    found = search.search(config, None, None, None, None, compile_, 8)
    assert seen == [(2, 4), (2, 2), (2, 1), (1, 0)]
    assert found["fits"] and [s["outcome"] for s in found["search"]][-1] == "fits"
    assert len(search.search(config, None, None, None, None, compile_, 2)["search"]) == 2


@pytest.mark.slow
def test_the_command_line_writes_text_and_json(start, policy_folder, tmp_path):
    out = tmp_path / "plan.json"
    process = start(
        *(
            "-m",
            "speciarl_jax.tools.plan",
            "--config=configs/quickstart.py",
            "--topology=cpu:4",
        ),
        *(f"--json={out}", f"--config.model.path={policy_folder}", "--programs=verify"),
        *("--config.rollout.max_tokens=4", "--config.train.batch_size=8"),
        *("--config.evaluation.batch_size=8", "--config.train.micro_batches=1"),
        *("--config.train.mini_batches=1", "--config.data.options.image_size=24"),
    )
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    found = json.loads(out.read_text())
    assert found["chips"] == 4 and found["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    [verify] = found["programs"]
    assert verify["name"] == "verify" and verify["fits"] is None and verify["per_chip_bytes"] > 0
    assert {"flops", "bytes_accessed", "collectives", "estimated_seconds"} <= verify.keys()
    assert "cpu:4: 4 chips, mesh data 1 x fsdp 4 x tensor 1" in printed


@pytest.mark.slow
def test_products_of_decoding_read_int8_on_tpu():
    """Nothing that is kept in int8 is written in a wider dtype before it is used."""
    import libtpu  # noqa: F401  (launch/test.sh installs it; without it, this test fails)

    _, devices = chips.devices("v5e:2x2")
    model = dataclasses.replace(MODEL, text=dataclasses.replace(MODEL.text, num_layers=3))
    changes = {"rollout__decode_weights": "int8", "rollout__kv_cache": "int8"}
    changes |= {"model__dtype": "bfloat16", "model__param_dtype": "bfloat16"}
    made = tiny_plan(model, devices, mesh__data=4, mesh__fsdp=1, rollout__max_tokens=128, **changes)
    _, text = measure._compile(lowered(made, "rollout").lower())
    fused = [part for part in text.split("\n\n") if "convolution(" in part and "s8[" in part]
    # Seven kernels; keys and values of prompts and, in three numbers of columns, of completions.
    assert len(fused) >= 7 + 2 + 2 * 3
    width = MODEL.text.intermediate_size
    wide = rf"= (bf16|f32)\[(3,|1,)?{MODEL.text.hidden_size},{width}\]\S* (fusion|copy)\("
    written = [line for line in text.splitlines() if re.search(wide, line) and "while/" in line]
    assert not written, written


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_a_tiny_step_compiles_for_tpu(topology):
    import libtpu  # noqa: F401  (launch/test.sh installs it; without it, this test fails)

    chip, devices = chips.devices(topology)
    made = tiny_plan(devices=devices, mesh__fsdp=2, mesh__tensor=2, model__attention="auto")
    assert made.run.graphdef is not None
    found = measure.measure(made, lowered(made, "update"), chip)
    assert found.fits and not found.error
    assert 0 < found.per_chip_bytes < GIB and found.estimated_seconds > 0
    # Adapters' gradients are summed over what the batch is cut over.
    assert "all-reduce" in {c.kind for c in found.collectives}
    [phase] = cost.phases(made, "update")
    assert found.flops == phase.flops > 0 and found.bytes_accessed == phase.bytes > 0
    longer = max(phase.flops / chip.flops, phase.bytes / chip.memory_rate)
    assert math.isclose(found.bounds["update"], longer)
    longest = max(found.bounds["update"], found.bounds["links"])
    assert math.isclose(found.estimated_seconds, longest)
