"""Loading takes little more memory than the weights; a process reads what its devices need."""

import json
import math
import socket

import jax.numpy as jnp
import pytest
from flax import nnx
from loading_program import weights
from safetensors.numpy import save_file

from speciarl_jax.models.checkpoints import hf_checkpoint
from speciarl_jax.models.decoder.text_config import TextConfig
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig, VisionConfig
from speciarl_jax.models.vision_language import VisionLanguageModel


def dimensions(hidden, layers, vocabulary):
    return ModelConfig(
        text=TextConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_layers=layers,
            num_heads=hidden // 16,
            num_kv_heads=hidden // 64,
            mrope_section=(2, 3, 3),
        ),
        vision=VisionConfig(
            depth=2,
            hidden_size=64,
            intermediate_size=96,
            num_heads=4,
            out_hidden_size=hidden,
            full_attention_layers=(1,),
        ),
        image_token_id=1,
        video_token_id=2,
        vision_start_token_id=3,
        vision_end_token_id=4,
        eos_token_id=(5,),
    )


def nested(name):
    """The name that newer writers give a tensor."""
    head, _, rest = name.partition(".")
    prefix = {"visual": "model.visual.", "model": "model.language_model."}.get(head)
    return prefix + rest if prefix else name


def write_checkpoint(folder, config, shard_bytes):
    """Writes shards one by one, with an index; returns the size of the largest file and of all."""
    model = nnx.eval_shape(
        lambda: VisionLanguageModel(config, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    )
    shapes, sizes = dict(nnx.to_flat_state(nnx.state(model))), []
    names, tensors, used, weight_map = hf_checkpoint.sources(config), {}, 0, {}
    # Sorted by name, a layer's tensors lie in other files than the next layer's: "10" before "2".
    wanted = {}
    for path, source in names.items():
        shape = shapes[path].shape[1:] if source.stacked else shapes[path].shape
        for name in source.names:
            wanted[name] = shape if source.layout == "same" else shape[::-1]

    def flush():
        file = f"model-{len(sizes) + 1:05}.safetensors"
        save_file(tensors, folder / file)
        weight_map.update({name: file for name in tensors})
        sizes.append(sum(tensor.nbytes for tensor in tensors.values()))
        tensors.clear()

    for name in sorted(wanted):
        used += math.prod(wanted[name]) * 2
        if tensors and used > shard_bytes:
            flush()
            used = math.prod(wanted[name]) * 2
        tensors[nested(name)] = weights(name, wanted[name])
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    return max(sizes), sum(sizes)


def result(process):
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    return json.loads(printed.splitlines()[-1])


@pytest.fixture
def program(start):
    def program(devices=1, **options):
        return start("tests/support/loading_program.py", json.dumps(options), devices=devices)

    return program


@pytest.mark.slow
@pytest.mark.parametrize("devices, mesh", [(1, (1, 1, 1)), (8, (1, 4, 2))])
def test_loading_and_saving_hold_about_one_file_beyond_the_weights(
    program, tmp_path, devices, mesh, capsys
):
    config = dimensions(hidden=2048, layers=17, vocabulary=40_000)
    file, whole = write_checkpoint(tmp_path, config, shard_bytes=350 * 10**6)
    assert whole > 2 * 10**9 and whole / file > 6
    out = tmp_path / "saved"
    found = result(
        program(
            devices, folder=str(tmp_path), mesh=mesh, check=True, save_to=str(out), shard_bytes=file
        )
    )
    assert found["read"] == whole
    # Norms have copies on some devices.
    assert whole <= found["parameters"] < 1.001 * whole
    assert found["equal"] == found["arrays"]
    with capsys.disabled():
        print(
            f"\n{devices} devices: {whole / 1e9:.2f} GB in files of {file / 1e9:.2f} GB; loading "
            f"took {found['seconds']:.1f} s and {(found['added'] - whole) / 1e9:.2f} GB beyond the "
            f"weights, saving {found['save_seconds']:.1f} s and {found['save_added'] / 1e9:.2f} GB"
        )
    # Here "devices" are host memory too, so the largest tensor counts on its way as well. The
    # largest parameter, all layers together, would take 0.57 GB.
    largest = 2 * config.text.vocab_size * config.text.hidden_size
    assert found["added"] - whole < 1.5 * file
    assert found["save_added"] < file + 2 * largest
    assert len(list(out.glob("model-*-of-*.safetensors"))) >= 6


def test_each_of_two_processes_reads_only_the_parts_of_its_devices(program, tmp_path):
    config = dimensions(hidden=64, layers=3, vocabulary=96)
    _, whole = write_checkpoint(tmp_path, config, shard_bytes=200_000)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    options = dict(folder=str(tmp_path), mesh=(1, 4, 1), processes=2, port=port)
    running = [program(2, process=process, **options) for process in range(2)]
    for found in map(result, running):
        # Two devices of four; copies on both of them, as of some norms, are read once.
        assert found["parameters"] >= found["read"]
        assert found["read"] < 0.55 * whole


def test_copies_of_a_part_are_read_once_for_all_devices(program, tmp_path):
    config = dimensions(hidden=64, layers=2, vocabulary=96)
    _, whole = write_checkpoint(tmp_path, config, shard_bytes=200_000)
    found = result(program(8, folder=str(tmp_path), mesh=(2, 2, 2), check=True))
    assert found["equal"] == found["arrays"]
    assert found["parameters"] > 1.9 * whole
    assert found["read"] == whole
