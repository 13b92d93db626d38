"""Sweeps over random small models: the encoder of Qwen3-VL against transformers in torch."""

import numpy as np
import parity
import pytest
import torch
from parity import QUICK, TOLERANCE, make_case, ours, relative_error, seed_params

pytestmark = pytest.mark.usefixtures("one_torch_thread")
sweep = pytest.mark.parametrize("seed", seed_params("qwen3_vl"))


def test_the_sweep_draws_every_kind_of_model():
    configs = [config for config, *_ in parity.drawn("qwen3_vl")]
    visions, texts = [c.vision for c in configs], [c.text for c in configs]
    assert {len(v.deepstack_layers) for v in visions} == {0, 1, 2, 3}
    assert {len(visions[seed].deepstack_layers) for seed in QUICK["qwen3_vl"]} == {2, 3}
    # Tables of positions that are smaller than the grids, and larger.
    sides = [v.position_side for v in visions]
    assert min(sides) < 4 and max(sides) > 14
    assert {t.head_dim_override is None for t in texts} == {True, False}
    assert {texts[seed].head_dim_override is None for seed in QUICK["qwen3_vl"]} == {True, False}


@sweep
def test_vision_encoder_and_deepstack(seed, record_error):
    case = make_case("qwen3_vl", seed)
    counts = [sum(h * w // 4 for h, w in row) for row in case.grids]
    features = ours("qwen3_vl", seed)["features"]
    got = np.concatenate([f[:count] for f, count in zip(features, counts, strict=True)])
    with torch.no_grad():
        visual, inputs = case.torch_model.model.visual, case.torch_inputs(case.batch)
        found = visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    want = [found.pooler_output, *found.deepstack_features]
    assert len(want) == 1 + len(case.config.vision.deepstack_layers)
    width = case.config.text.hidden_size
    for part, expected in zip(np.split(got, len(want), axis=-1), want, strict=True):
        assert part.shape[-1] == width
        error = relative_error(part, expected.numpy())
        record_error("qwen3_vl: vision encoder and DeepStack", error)
        assert error < TOLERANCE
    padding = [f[count:] for f, count in zip(features, counts, strict=True)]
    assert not np.concatenate(padding).any()
