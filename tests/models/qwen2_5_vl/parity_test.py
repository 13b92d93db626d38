"""Sweeps over random small models: the parts of Qwen2.5-VL against transformers in torch."""

import numpy as np
import parity
import pytest
import torch
from parity import QUICK, SEEDS, TOLERANCE, make_case, ours, relative_error, seed_params

pytestmark = pytest.mark.usefixtures("one_torch_thread")
sweep = pytest.mark.parametrize("seed", seed_params("qwen2_5_vl"))


@pytest.mark.parametrize("seeds", [SEEDS, QUICK["qwen2_5_vl"]], ids=["all", "quick"])
def test_the_sweep_draws_every_kind_of_encoder(seeds):
    drawn = [parity.drawn("qwen2_5_vl")[seed] for seed in seeds]
    visions = [config.vision for config, *_ in drawn]
    assert {v.window_units for v in visions} == {1, 2, 3, 4}
    full = [(len(v.full_attention_layers), v.depth) for v in visions]
    assert any(n == 0 for n, _ in full) and any(n == depth > 1 for n, depth in full)
    assert any(0 < n < depth for n, depth in full)
    odd = [
        any(
            side // 2 % config.vision.window_units for row in grids for grid in row for side in grid
        )
        for config, *_, grids in drawn
    ]
    assert sum(odd) >= len(drawn) / 2


@sweep
def test_vision_encoder(seed, record_error):
    case = make_case("qwen2_5_vl", seed)
    counts = [sum(h * w // 4 for h, w in row) for row in case.grids]
    got = [f[:count] for f, count in zip(ours("qwen2_5_vl", seed)["features"], counts, strict=True)]
    with torch.no_grad():
        visual, inputs = case.torch_model.model.visual, case.torch_inputs(case.batch)
        want = visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        want = want.pooler_output.numpy()
    error = relative_error(np.concatenate(got), want)
    record_error("qwen2_5_vl: vision encoder", error)
    assert error < TOLERANCE


@sweep
def test_merger(seed, record_error):
    case = make_case("qwen2_5_vl", seed)
    layout, width = case.batch.layout, case.config.vision.hidden_size
    index_BM = layout.token_index_BM
    rng = np.random.default_rng(seed)
    # Merged tokens in the processor's order, and where the encoder has them.
    x_BMkD = 3 * rng.normal(size=(*index_BM.shape, 4, width)).astype(np.float32)
    x_BUkD = np.zeros((len(index_BM), layout.patch_index_BS.shape[1] // 4, 4, width), np.float32)
    for b, index_M in enumerate(index_BM):
        x_BUkD[b, index_M[index_M >= 0]] = x_BMkD[b, index_M >= 0]
    got = case.policy.visual._merge(x_BUkD.reshape(len(index_BM), -1, width), layout)
    with torch.no_grad():
        merger = case.torch_model.model.visual.merger
        want = merger(torch.tensor(x_BMkD[index_BM >= 0]).flatten(0, 1)).numpy()
    error = relative_error(np.asarray(got)[index_BM >= 0], want)
    record_error("qwen2_5_vl: merger", error)
    assert error < TOLERANCE


@sweep
def test_decoder_layers(seed, record_error):
    """Keys and values of every layer and the final hidden states, of the same embeddings."""
    case, got = make_case("qwen2_5_vl", seed), ours("qwen2_5_vl", seed)
    mask_BP = case.batch.mask_BP
    with torch.no_grad():
        want = case.torch_model.model.language_model(
            inputs_embeds=torch.tensor(got["embedded"]),
            position_ids=torch.tensor(case.batch.positions_B3P.swapaxes(0, 1)).long(),
            attention_mask=torch.tensor(mask_BP).long(),
            use_cache=True,
        )
    pairs = [(got["hidden"], want.last_hidden_state.numpy())]
    for i, layer in enumerate(want.past_key_values.layers):
        # [B, G, P, K] to [B, P, G, K].
        pairs.append((got["keys"][i].swapaxes(1, 2), layer.keys.numpy().swapaxes(1, 2)))
        pairs.append((got["values"][i].swapaxes(1, 2), layer.values.numpy().swapaxes(1, 2)))
    assert len(pairs) == 1 + 2 * case.config.text.num_layers
    error = max(relative_error(a[mask_BP], b[mask_BP]) for a, b in pairs)
    record_error("qwen2_5_vl: keys, values and hidden states of the decoder", error)
    assert error < TOLERANCE


@sweep
def test_language_model_head(seed, record_error):
    case, got = make_case("qwen2_5_vl", seed), ours("qwen2_5_vl", seed)
    with torch.no_grad():
        want = case.torch_model.lm_head(torch.tensor(got["hidden"])).numpy()
    error = relative_error(got["logits"], want)
    record_error("qwen2_5_vl: language-model head", error)
    assert error < TOLERANCE
