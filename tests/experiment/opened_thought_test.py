"""Policies whose chat template opens the thought: what their completions cannot hold."""

import shutil

import pytest
import small_run

from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.experiment import validate_config
from speciarl_jax.experiment.run import prepare

OPENED = "<|im_start|>assistant\n<think>\n"


@pytest.mark.parametrize(
    "changes, section",
    [
        ({"verifier__name": "taxonomy"}, "options"),
        ({"verifier__name": "flax_judge"}, "flax_judge"),
        ({"verifier__name": "cascade"}, "options"),
        (
            {
                "verifier__name": "cascade",
                "verifier__options__tags": "answer",
                "verifier__cascade__judge": "http_judge",
            },
            "http_judge",
        ),
    ],
)
def test_a_verifier_that_wants_the_opening_tag_is_refused_by_its_key(changes, section):
    config = small_run.small_config("emoji_tiny", **changes)
    with pytest.raises(ValueError, match=f"config.verifier.{section}.tags 'think' none could be"):
        validate_config.check_opened_thought(config, OPENED)
    config.verifier[section].tags = "answer"
    validate_config.check_opened_thought(config, OPENED)


@pytest.mark.parametrize("prompt", ["assistant\n", "write <think></think> first\nassistant\n"])
def test_a_thought_that_the_policy_opens_itself_is_as_before(prompt):
    config = small_run.small_config("emoji_tiny")
    validate_config.check_opened_thought(config, prompt)
    # The same configuration and prompt, but for the tag at the end.
    with pytest.raises(ValueError, match="tags 'think' none could be"):
        validate_config.check_opened_thought(config, f"{prompt}<think>")


def test_a_target_of_supervised_training_may_not_open_it_again():
    changes = {"verifier__options__tags": "answer", "train__objective": "sft"}
    config = small_run.small_config("emoji_tiny", **changes)
    with pytest.raises(ValueError, match="config.train.target begins with it; take the tag off"):
        validate_config.check_opened_thought(config, OPENED)
    config.train.target = config.train.target.removeprefix("<think>")
    validate_config.check_opened_thought(config, OPENED)


def test_a_run_is_refused_before_it_starts(qwen3_folder, tmp_path):
    """With the ending of the template of a model that always thinks."""
    folder = tmp_path / "thinking"
    shutil.copytree(qwen3_folder, folder)
    template = tokenizer_lib.load(folder).chat_template
    opener = "<|im_start|>assistant\\n"  # as the template spells it
    assert template.count(opener) == 1
    (folder / "chat_template.jinja").write_text(template.replace(opener, f"{opener}<think>\\n"))
    with pytest.raises(ValueError, match="ends a prompt with <think>.*set it to 'answer'"):
        prepare(small_run.small_config(folder))
    run = prepare(small_run.small_config(folder, verifier__options__tags="answer"))
    assert run.builder.text.endswith("<think>\n")
