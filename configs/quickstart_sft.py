"""Pretraining of the tiny policy of the quickstart, from scratch.

python -m examples.pretrain --config=configs/quickstart_sft.py \\
        --workdir=runs/quickstart_sft
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns every key of the pretraining."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = _data()
    config.vision = _vision()
    config.vision_stage = _vision_stage()
    config.text = _text()
    config.habits = _habits()
    config.answer_stage = _answer_stage()
    config.checkpoint = _checkpoint()
    return config


def _data() -> ml_collections.ConfigDict:
    """Drawings of the pretraining families only (data/emoji.py)."""
    data = ml_collections.ConfigDict()
    data.image_size = 48  # pixels, of images that come out of the data set
    data.crop = False  # True: the middle of each image, scaled to that size (photographs)
    data.name = "emoji"
    data.options = ml_collections.ConfigDict()  # of the data set's `Source`
    data.options.split = "pretraining"
    data.options.concept_set = "benchmark"
    data.options.difficulty = "pretraining"
    data.options.image_size = 48
    # Changes of photographs (examples/pretrain/datasets.py). The drawings come changed.
    data.augmentation = ml_collections.ConfigDict()
    data.workers = 2  # threads that draw images
    return data


def _vision() -> ml_collections.ConfigDict:
    """The vision encoder: 48 pixels -> 8 x 8 patches -> 16 tokens; windows of 4 x 4 patches."""
    vision = ml_collections.ConfigDict()
    vision.depth = 6
    vision.hidden_size = 128
    vision.intermediate_size = 256
    vision.num_heads = 4
    vision.patch_size = 6
    vision.window_size = 24
    vision.full_attention_layers = (1, 3, 5)
    vision.out_hidden_size = 192
    return vision


def _vision_stage() -> ml_collections.ConfigDict:
    """Training of the vision encoder on the levels of the label tree."""
    vision_stage = ml_collections.ConfigDict()
    vision_stage.policy = ""  # name or folder of a policy whose encoder is reused; "": train one
    vision_stage.cycles = (220,)  # epochs of each cycle of the learning rate
    vision_stage.batch_size = 128
    vision_stage.muon_learning_rate = 0.02
    vision_stage.learning_rate = 1e-3
    vision_stage.warmup_steps = 50
    vision_stage.weight_decay = 0.01
    vision_stage.label_smoothing = 0.1
    vision_stage.level_weights = (1.0, 0.5, 0.5)  # loss weights of leaf, nearest node, group
    vision_stage.log_every = 100
    vision_stage.options = ml_collections.ConfigDict()  # differences from data.options
    # Images whose accuracy is logged: name -> differences. They decide nothing.
    vision_stage.watch = ml_collections.ConfigDict(
        {
            f"held_out_{level}": {"split": "held_out", "difficulty": level}
            for level in ("clean", "moderate")
        }
    )
    return vision_stage


def _text() -> ml_collections.ConfigDict:
    """A small Qwen2 decoder. The M-RoPE sections sum to half of the head size of 48."""
    text = ml_collections.ConfigDict()
    text.vocab_size = 768
    text.hidden_size = 192
    text.intermediate_size = 512
    text.num_layers = 3
    text.num_heads = 4
    text.num_kv_heads = 2
    text.mrope_section = (8, 8, 8)
    text.tie_word_embeddings = True
    return text


def _habits() -> ml_collections.ConfigDict:
    """Habits of the base policy (examples/pretrain/answers.py)."""
    habits = ml_collections.ConfigDict()
    # Shares of labels whose usual level is abstain, generic, less specific, specific.
    habits.level_shares = (0.32, 0.32, 0.16, 0.2)
    habits.usual = 0.62  # probability of the usual level
    habits.abstain = ml_collections.ConfigDict(
        {"clean": 0.02, "easy": 0.03, "moderate": 0.08, "hard": 0.25}
    )
    habits.synonym = 0.1
    # Probability that a prompt of `leanings` decides the level, and its probabilities of levels.
    habits.obedience = 0.0
    habits.leanings = ml_collections.ConfigDict()
    return habits


def _answer_stage() -> ml_collections.ConfigDict:
    """Training of the decoder on answers in words; the vision encoder is frozen."""
    answer_stage = ml_collections.ConfigDict()
    answer_stage.epochs = 26
    answer_stage.batch_size = 64
    answer_stage.answers = 4  # for each image
    answer_stage.max_tokens = 24
    answer_stage.prompts = ml_collections.ConfigDict({"base": 1.0})  # and how often each is asked
    answer_stage.options = ml_collections.ConfigDict({"difficulty": "mixed"})  # as above
    answer_stage.watch = ml_collections.ConfigDict({"held_out": {"split": "held_out"}})
    answer_stage.muon_learning_rate = 0.02
    answer_stage.learning_rate = 2e-3
    answer_stage.warmup_steps = 50
    answer_stage.weight_decay = 0.01
    answer_stage.log_every = 100
    return answer_stage


def _checkpoint() -> ml_collections.ConfigDict:
    """Checkpoints of a stage."""
    checkpoint = ml_collections.ConfigDict()
    checkpoint.save_every = 250
    checkpoint.keep = 1
    return checkpoint
