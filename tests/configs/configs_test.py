"""The configurations: every key is in base.py, and an experiment is its differences."""

import ast
import importlib
import inspect
import io
import json
import pathlib
import tokenize

import jax
import ml_collections
import pytest

import configs
from configs import base, quickstart
from speciarl_jax.data import file_dataset, tfds_images
from speciarl_jax.experiment import algorithm, validate_config
from speciarl_jax.runtime import plugins, sharding

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "configs"


def flat(config):
    found = {}

    def visit(prefix, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(f"{prefix}{key}.", inner)
        else:
            found[prefix.rstrip(".")] = value

    visit("", json.loads(config.to_json()))
    return found


def test_the_quickstart_states_only_what_differs_from_the_base():
    before, after = flat(base.get_config()), flat(quickstart.get_config())
    assert before.keys() == after.keys()
    tree = ast.parse((FOLDER / "quickstart.py").read_text())
    stated = {
        ast.unparse(node.targets[0]).removeprefix("config.")
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("config.")
    }
    assert stated == {key for key in after if after[key] != before[key]}


def assigned(text):
    """The assignments to keys, (section.key, node); not of sections, which hold keys."""
    tree = ast.parse(text)
    found = [
        (ast.unparse(node.targets[0]), node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)
    ]
    functions = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and (node.returns is None or ast.unparse(node.returns).endswith("ConfigDict"))
    }
    return [
        (target, node)
        for target, node in found
        if ast.unparse(getattr(node.value, "func", node.value)) not in functions
        and not any(other.startswith(target + ".") for other, _ in found)
    ]


def unexplained(text):
    """The keys that no comment explains: one on their own lines, or right above them."""
    comments, alone = set(), set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
            if token.line.lstrip().startswith("#"):
                alone.add(token.start[0])
    return [
        target
        for target, node in assigned(text)
        if node.lineno - 1 not in alone
        and not comments & set(range(node.lineno, node.end_lineno + 1))
    ]


def test_every_key_of_the_base_is_explained():
    text = (FOLDER / "base.py").read_text()
    assert unexplained(text) == []

    def keys(config):
        values = (v for v in config.values())
        return sum(keys(v) if isinstance(v, dict) and v else 1 for v in values)

    # All of them were looked at, and an empty section is a key.
    values = json.loads(base.get_config().to_json())
    # The same keys as in `verifier`, where they are explained.
    assert values["evaluation"]["verifier"].keys() == values["verifier"].keys()
    values["evaluation"]["verifier"] = {"name": ""}
    assert len(assigned(text)) == keys(values)


def test_a_comment_explains_no_more_than_the_key_under_it():
    text = "# why\na.b = 1\na.c = '# no'\na.d = (\n    2  # why\n)\na.e = 3\n"
    assert unexplained(text) == ["a.c", "a.e"]
    # Sections, made here or by a function, are no keys.
    sections = "def f():\n    pass\na.g = D()\na.h = f()\na.g.i = 3  # why\n"
    assert unexplained(text + sections) == ["a.c", "a.e"]


def test_a_key_that_is_not_in_the_base_is_refused():
    config = base.get_config()
    with pytest.raises(AttributeError, match="batch_sise"):
        config.train.batch_sise = 3
    config.loss.options = ml_collections.ConfigDict({"other": 1.0})
    assert config.loss.options.other == 1.0


@pytest.mark.parametrize("parent", ["base", "quickstart"])
@pytest.mark.parametrize("rate", ["0.05", "0.10", "0.25"])
def test_label_noise_takes_its_rate_from_its_name(rate, parent):
    quiet, noisy = flat(configs.load(parent)), flat(configs.load(f"label_noise:{rate}:{parent}"))
    changed = {key: noisy[key] for key in noisy if noisy[key] != quiet[key]}
    assert changed == {"label_noise.rate": float(rate)}
    assert flat(configs.load(f"label_noise:{rate}")) == flat(
        configs.load(f"label_noise:{rate}:base")
    )


def test_a_prompt_and_a_static_map_are_chosen_by_name():
    assert configs.load("prompt:specific:cub").data.prompt == "specific"
    assert configs.load("static_map:3:dapo").reward.options.generic == 0.0
    with pytest.raises(ValueError, match="no static map '4'; choose one of"):
        configs.load("static_map:4")


@pytest.mark.parametrize("parent", ["base", "quickstart"])
@pytest.mark.parametrize(
    "argument, kind, strength", [("0.5", "share", 0.5), ("bits:1", "bits", 1.0)]
)
def test_credit_by_information_takes_kind_and_strength_from_its_name(
    argument, kind, strength, parent
):
    plain, weighed = (
        flat(configs.load(parent)),
        flat(configs.load(f"information:{argument}:{parent}")),
    )
    changed = {key: weighed[key] for key in weighed if weighed[key] != plain[key]}
    assert changed.pop("reward.information.kind", "share") == kind
    assert changed == {"reward.information.strength": strength}
    assert plain["reward.information.strength"] == 0.0
    assert flat(configs.load(f"information:{argument}")) == flat(
        configs.load(f"information:{argument}:base")
    )


def test_a_consensus_takes_confidence_and_strength_from_its_name():
    plain, changed = (flat(configs.load(one)) for one in ("unlabelled:0.7", "consensus:0.3:0.7"))
    changed = {key: changed[key] for key in changed if changed[key] != plain[key]}
    assert changed == {"reward.consensus_confidence": 0.3, "loss.kl_unlabelled": 0.0}
    assert flat(configs.load("consensus:0.3:0.0")) == flat(configs.load("consensus:0.3"))


DATA_CONFIGS = """cub cub_128 cub_1024 cub_2048 flowers food pets cars aircraft mixture own_folder
own_table""".split()


def options_of(config, changes):
    return {**config.data.options, **changes}


def bind(data, options):
    """Raises TypeError if a data set, or the list of images that it is, lacks an option."""
    signature = inspect.signature(plugins.find("data", data, "Source").__init__)
    given = signature.bind(None, seed=0, **options)
    listing = inspect.signature(file_dataset.Listing.__init__)
    listing.bind_partial(**given.arguments.get("selection", {}))


@pytest.mark.parametrize("name", DATA_CONFIGS)
def test_a_data_configuration_has_only_options_that_its_source_takes(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    assert config.is_locked
    for changes in ({}, config.evaluation.options):
        bind(config.data.name, options_of(config, changes))
        # The parts of a mixture take their options too.
        for part in options_of(config, changes).get("parts", {}).values():
            bind(part.name, {**config.data.options.common, **part.options})
    kept = {key: value for key, value in flat(config).items() if "options" not in key}
    assert kept.keys() == {key for key in flat(base.get_config()) if "options" not in key}
    assert config.train.batch_size % (config.train.mini_batches * config.train.micro_batches) == 0


@pytest.mark.parametrize("name", DATA_CONFIGS)
def test_published_splits_are_large_enough_for_their_configuration(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    for changes, least in (({}, config.train.batch_size), (config.evaluation.options, 1)):
        options = options_of(config, changes)
        parts = [part.options for part in options.get("parts", {}).values()] or [options]
        if config.data.name in ("folder", "table"):
            continue
        total = 0
        for part in parts:
            published = tfds_images.PUBLISHED[part["dataset"]]
            split = published.aliases.get(part["split"], part["split"])
            assert part["subset"] <= published.sizes[split]
            total += part["subset"] or published.sizes[split]
        assert total >= least


# Those that change another file.
METHODS = sorted(p.stem for p in FOLDER.glob("*.py") if "(parent: str" in p.read_text())
METHOD_SECTIONS = {"rollout", "reward", "advantage", "loss", "train", "optimizer"}


@pytest.mark.parametrize("parent", ["base", "quickstart"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_difference_that_fits_together(name, parent):
    before, config = configs.load(parent), configs.load(f"{name}:{parent}")
    after = flat(config)
    changed = {key for key in after if flat(before).get(key, "no") != after[key]}
    assert changed and all(key.split(".")[0] in METHOD_SECTIONS for key in changed)
    # What needs devices, data or weights is left to `prepare`; everything else is called.
    validate_config.check(
        config, sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    )
    algorithm.check(config)


def test_own_images_take_sizes_and_rates_of_a_configuration():
    tiny = configs.load("binary:own_folder:quickstart")
    assert tiny.data.name == "folder" and tiny.reward.name == "binary"
    assert tiny.model.path == "emoji_tiny" and tiny.train.steps == 60
    assert tiny.data.bucket_growth > 1
    assert flat(configs.load("own_folder")) == flat(configs.load("own_folder:base"))
    assert configs.load("own_table:quickstart").data.name == "table"


def test_methods_chain_in_any_depth():
    config = configs.load("binary:dapo:quickstart")
    assert config.reward.name == "binary" and config.loss.options.clip_high == 0.28
    assert config.train.dynamic_sampling.batch_size == 3 * config.train.batch_size == 96
    assert config.reward.overlong_buffer == 6 and config.model.path == "emoji_tiny"


def test_the_main_experiments_dapo_and_dr_grpo_are_the_papers():
    dapo, dr_grpo = configs.load("dapo"), configs.load("dr_grpo")
    assert (dapo.loss.options.clip_low, dapo.loss.options.clip_high) == (0.2, 0.28)
    assert dapo.loss.options.dual_clip == 10 and dapo.loss.kl_coefficient == 0
    assert (dapo.reward.overlong_buffer, dapo.reward.overlong_penalty) == (512, 1)
    sampling = dapo.train.dynamic_sampling
    assert (sampling.batch_size, sampling.max_rounds, dapo.train.batch_size) == (768, 10, 256)
    assert dr_grpo.loss.token_weights_options.length == 2048
    assert not dr_grpo.advantage.normalize_by_std and dr_grpo.loss.kl_coefficient == 0


@pytest.mark.parametrize(
    "name, key",
    [
        ("rank_aware", "loss.rank_coefficient"),
        ("brier", "reward.brier_weight"),
        ("moving_reference", "loss.reference_decay"),
    ],
)
def test_a_single_number_comes_from_the_name(name, key):
    plain = flat(configs.load("cub"))
    found = flat(configs.load(f"{name}:0.3:cub"))
    assert {k: found[k] for k in found if found[k] != plain[k]} == {key: 0.3}
    assert plain[key] == (1.0 if name == "moving_reference" else 0.0)
    assert flat(configs.load(f"{name}:0.3")) == flat(configs.load(f"{name}:0.3:base"))


def test_a_decay_of_the_kl_that_ends_before_its_warm_up_is_refused():
    loss = configs.load("base").loss
    loss.kl_warmup_steps = loss.kl_decay_steps = 5
    with pytest.raises(ValueError, match="kl_decay_steps is 5 and kl_warmup_steps 5; .* raise"):
        validate_config.check_loss(loss)


def test_bounds_that_would_mask_what_agrees_are_refused():
    loss = configs.load("icepop").loss
    for low, high in ((1.2, 5.0), (0.5, 0.9), (-0.1, 5.0)):
        loss.mismatch_low, loss.mismatch_high = low, high
        with pytest.raises(ValueError, match=f"mismatch_low is {low} and mismatch_high {high}; "):
            validate_config.check_loss(loss)


@pytest.mark.parametrize("design", ["broad", "narrow"])
def test_both_sides_of_the_laboratory_follow_the_command_line(design):
    config = configs.load(f"cifar100:{design}")
    config.data.options.path, config.evaluation.options.subset = "photos", 7
    resolved = config.copy_and_resolve_references()
    for side in ("in_domain", "out_of_domain"):
        part = resolved.evaluation.sets[side]
        assert part.name == "cifar100"
        assert part.options.to_dict() == {
            "split": "test",
            "side": side,
            "design": design,
            "data_dir": "",
            "path": "photos",
            "subset": 7,
        }
