"""Makes the tiny policy of the quickstart from scratch.

python -m speciarl_jax.sft --config=configs/quickstart_sft.py --workdir=runs/quickstart_sft
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Every key of supervised training."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    # Pictures: drawings of the pretraining families only (data/emoji.py).
    config.data = ml_collections.ConfigDict()
    config.data.image_size = 48  # pixels
    config.data.concept_set = "benchmark"
    config.data.split = "pretraining"
    config.data.difficulty = "pretraining"
    config.data.workers = 2  # threads that draw and cut pictures
    # Where a held-out accuracy is taken while training; decides nothing.
    config.data.watch_split = "held_out"
    # The tower: 48 px -> 8 x 8 patches -> 16 tokens; windows of 4 x 4 patches.
    config.vision = ml_collections.ConfigDict()
    config.vision.depth = 6
    config.vision.hidden_size = 128
    config.vision.intermediate_size = 256
    config.vision.num_heads = 4
    config.vision.patch_size = 6
    config.vision.window_size = 24
    config.vision.full_attention_layers = (1, 3, 5)
    config.vision.out_hidden_size = 192
    # Supervision of the tower by the levels of the label tree.
    config.vision_stage = ml_collections.ConfigDict()
    config.vision_stage.policy = ""  # name or folder of one whose tower is taken as it is
    config.vision_stage.cycles = (220,)  # epochs of each fall of the learning rate
    config.vision_stage.batch_size = 128
    config.vision_stage.muon_learning_rate = 0.02
    config.vision_stage.learning_rate = 1e-3
    config.vision_stage.warmup_steps = 50
    config.vision_stage.weight_decay = 0.01
    config.vision_stage.label_smoothing = 0.1
    config.vision_stage.level_weights = (1.0, 0.5, 0.5)  # leaf, nearest node, group
    config.vision_stage.log_every = 100
    # The decoder: Qwen2's, small. Head size 48; an M-RoPE section sums to half of it.
    config.text = ml_collections.ConfigDict()
    config.text.vocab_size = 768
    config.text.hidden_size = 192
    config.text.intermediate_size = 512
    config.text.num_layers = 3
    config.text.num_heads = 4
    config.text.num_kv_heads = 2
    config.text.mrope_section = (8, 8, 8)
    config.text.tie_word_embeddings = True
    # How the base policy talks (pretraining/answers.py).
    config.habits = ml_collections.ConfigDict()
    # Usual level: abstain, generic, less specific, specific.
    config.habits.level_shares = (0.32, 0.32, 0.16, 0.2)
    config.habits.usual = 0.62
    config.habits.abstain = ml_collections.ConfigDict(
        {"clean": 0.02, "easy": 0.03, "moderate": 0.08, "hard": 0.25}
    )
    config.habits.synonym = 0.1
    # Supervision of the decoder by answers in words; the tower is frozen.
    config.answer_stage = ml_collections.ConfigDict()
    config.answer_stage.epochs = 26
    config.answer_stage.batch_size = 64
    config.answer_stage.answers = 4  # about each picture
    config.answer_stage.max_tokens = 24
    config.answer_stage.prompt = "base"
    config.answer_stage.difficulty = "mixed"
    config.answer_stage.muon_learning_rate = 0.02
    config.answer_stage.learning_rate = 2e-3
    config.answer_stage.warmup_steps = 50
    config.answer_stage.weight_decay = 0.01
    config.answer_stage.log_every = 100
    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.save_every = 250
    config.checkpoint.keep = 1
    return config
