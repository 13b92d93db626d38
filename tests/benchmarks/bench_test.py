"""The bench on a tiny policy: what it runs, counts and records. No times are compared."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as bench
from benchmarks import limits, workload

# 32 channels and two layers, so that a test compiles in seconds.
TINY = dataclasses.replace(
    workload.SMALL,
    text=dataclasses.replace(
        workload.SMALL.text,
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        mrope_section=(2, 1, 1),
    ),
    vision=dataclasses.replace(
        workload.SMALL.vision,
        depth=1,
        hidden_size=16,
        intermediate_size=16,
        num_heads=2,
        out_hidden_size=32,
        full_attention_layers=(0,),
    ),
    **{
        name: getattr(workload.SMALL, name) - 4000
        for name in (
            "image_token_id",
            "video_token_id",
            "vision_start_token_id",
            "vision_end_token_id",
        )
    },
    eos_token_id=tuple(token - 4000 for token in workload.SMALL.eos_token_id),
)
SHAPE = workload.Shape(
    images=4,
    rollouts=3,
    prompt=24,
    tokens=6,
    side=2,
    micro_batches=(1,),
    plain_micro_batches=(3, 6),
)
OPTIONS = workload.Options(lora_rank=4, scan_unroll=2, logprob_chunk=6, num_compactions=1)
FIELDS = (
    "shape shared rollout_tokens_per_s rollout_s update_s step_s compile_s peak_bytes "
    "gemm_flops_per_s update_useful_flops"
).split()


@functools.cache
def measured(shared):
    machine = limits.Machine(jnp.float32, 64, limits.Clock("wall"))
    policy = workload.random_policy(TINY, OPTIONS)
    measurement = bench.Measurement(workload.Workload(TINY, SHAPE, shared, OPTIONS, policy))
    measurement.repeat(machine)
    return measurement


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_a_record_has_the_promised_fields_and_every_completion_its_full_length(shared):
    found = measured(shared)
    row = found.row("tiny")
    assert list(row) == FIELDS and row["shape"] == "tiny" and row["shared"] is shared
    numbers = [row[name] for name in FIELDS[2:]]
    assert all(np.isfinite(numbers)) and min(numbers) > 0
    assert found.lengths_BN.tolist() == [[SHAPE.tokens] * 3] * 4
    assert found.workload.micro_batches in (
        SHAPE.micro_batches if shared else SHAPE.plain_micro_batches
    )
    np.testing.assert_allclose(row["rollout_tokens_per_s"] * row["rollout_s"], 72)
    text = bench.describe(row, found, 1e9)
    assert ("shared" if shared else "plain") in text and "% of GEMM" in text


@pytest.mark.slow
def test_the_plain_counterpart_runs_every_rollout_with_its_own_image():
    shared, plain = measured(True).workload, measured(False).workload
    assert plain.batch.patches_BSC.shape[0] == 3 * shared.batch.patches_BSC.shape[0] == 12
    np.testing.assert_array_equal(plain.batch.tokens_BP[::3], shared.batch.tokens_BP)
    assert len(np.unique(plain.batch.image_id_B)) == 12


@pytest.mark.slow
def test_useful_flops_are_nearly_what_the_compiler_counts():
    """Layers in a row and one chunk, so no loop hides a second turn from the compiler's count."""
    w = measured(True).workload
    features, rollout = jax.jit(w.rollout)(w.lora, w.base, w.batch)
    compiled = jax.jit(w.update).lower(w.state(), w.base, w.batch, features, rollout).compile()
    counted = compiled.cost_analysis()["flops"]
    useful = limits.update_useful_flops(TINY, SHAPE, OPTIONS, measured(True).lengths_BN)
    # The compiler also counts norms, exponentials, masked scores, the optimizer, and the last layer
    # of the prompts, which is not needed.
    assert 0.35 * counted < useful < counted, (useful, counted)


@pytest.mark.slow
def test_useful_flops_of_a_rollout_are_nearly_what_the_compiler_counts():
    """Layers in a row; the decoding loop's body is counted once, so one step of it is."""
    w = measured(True).workload
    one = dataclasses.replace(SHAPE, tokens=2)
    once = workload.Workload(TINY, one, True, OPTIONS, (w.graphdef, w.lora, w.base))
    compiled = jax.jit(once.rollout).lower(w.lora, w.base, w.batch).compile()
    useful = limits.rollout_useful_flops(TINY, one, OPTIONS, np.full((4, 3), 2))
    counted = compiled.cost_analysis()["flops"]
    # The compiler also counts norms, sampling, the merge of the adapters, and the last layer of the
    # prompts, which is not needed.
    assert 0.15 * counted < useful < counted, (useful, counted)


def test_of_prompts_the_last_layer_needs_only_keys_and_values():
    """One layer, which is the last; completions of one token, before which only prompts are run."""
    text = dataclasses.replace(TINY.text, num_layers=1)
    one, ones_BN = dataclasses.replace(TINY, text=text), np.ones((4, 3))
    hidden, kv, rank = text.hidden_size, text.num_kv_heads * text.head_dim, OPTIONS.lora_rank
    longer = dataclasses.replace(SHAPE, prompt=SHAPE.prompt + 1)

    def cost_of_a_token(count, kl_coefficient):
        options = dataclasses.replace(OPTIONS, kl_coefficient=kl_coefficient)
        return (count(one, longer, options, ones_BN) - count(one, SHAPE, options, ones_BN)) / 4

    kernels, down, up = 2 * hidden * kv, 2 * rank * hidden, 2 * rank * kv
    scores = 2 * text.num_heads * text.head_dim
    # Two products for each gradient that is needed; none flows back into the embeddings.
    update = 2 * (kernels + 2 * down + 3 * up + 3 * scores)
    assert cost_of_a_token(limits.update_useful_flops, 0) == update
    reference = 2 * (kernels + scores)
    assert cost_of_a_token(limits.update_useful_flops, 0.01) == update + reference
    assert cost_of_a_token(limits.rollout_useful_flops, 0) == reference + 2 * (down + up)


@pytest.mark.parametrize("backend, size", [("cpu", 2048), ("gpu", 8192), ("tpu", 8192)])
def test_the_rate_of_an_accelerator_is_that_of_large_matrices(monkeypatch, backend, size):
    monkeypatch.setattr(bench.jax, "default_backend", lambda: backend)
    assert bench.gemm_size() == size


def test_only_real_tokens_are_useful():
    lengths_BN = np.full((4, 3), SHAPE.tokens)
    shorter_BN = lengths_BN.copy()
    shorter_BN[0, 0] = 1
    for count in (limits.update_useful_flops, limits.rollout_useful_flops, limits.decode_bytes):
        assert count(TINY, SHAPE, OPTIONS, shorter_BN) < count(TINY, SHAPE, OPTIONS, lengths_BN)
    # Decoding ends with the longest completion.
    ended = limits.decode_bytes(TINY, SHAPE, OPTIONS, np.ones((4, 3)))
    assert ended == 0


@pytest.mark.slow
def test_the_command_writes_what_it_prints(start, tmp_path):
    path, out, traces = (tmp_path / name for name in ("config.json", "bench.json", "traces"))
    path.write_text(json.dumps(TINY.to_hf()))
    process = start(
        *(
            "-m",
            "benchmarks",
            f"--model={path}",
            "--shapes=short",
            "--repeats=1",
        ),
        *(f"--json={out}", f"--profile={traces}", "--mean_length=4", "--gemm_size=64"),
        *("--noplain", "--num_compactions=0"),
        quick=True,
    )
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    rows = json.loads(out.read_text())
    (row,) = rows
    assert list(row) == FIELDS and (row["shape"], row["shared"]) == ("short", True)
    assert f"update {row['update_s']:7.3f} s in 8 " in printed and "% of memory" in printed
    assert list(traces.glob("short-shared/**/*.xplane.pb"))


def test_completions_end_at_random_when_asked_to():
    allowed_V = workload.allowed_tokens(TINY, 5, 0)
    assert allowed_V.sum() == 5 and allowed_V[list(TINY.eos_token_id)].all()
    assert not workload.allowed_tokens(TINY, 0, 0)[TINY.image_token_id :].any()


def test_the_small_model_has_the_published_number_of_parameters():
    _, _, base = workload.random_policy(workload.SMALL, OPTIONS)
    assert round(sum(x.size for x in jax.tree.leaves(base)) / 1e6, 2) == 5.67


def test_unknown_models_are_refused():
    with pytest.raises(ValueError, match="--model=8B is neither one of .'small'"):
        workload.model_config("8B")


def test_a_plot_is_a_png(tmp_path):
    sweeps = {"rollouts": [(1, 2.0), (3, 2.5)], "tokens": [(8, 1.0), (16, 3.0), (32, 4.0)]}
    bench.plot(sweeps, "tiny", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_ratios_are_those_of_the_rows():
    shared = {"shape": "tiny", "step_s": 2.0, "gemm_flops_per_s": 100.0}
    said = bench.ratios([shared, shared | {"step_s": 5.0}], 50.0)
    assert "tiny: a step does 25% of" in said and "2.5 times as fast as without" in said
    assert "times" not in bench.ratios([shared], 50.0)
