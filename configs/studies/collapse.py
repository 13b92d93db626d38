"""What makes the paper's reward collapse out of domain: one change at a time, one seed each.

python -m speciarl_jax.tools.study configs/studies/collapse.py --workdir=runs/collapse \
    --override=data.options.data_dir=DATA
"""

from speciarl_jax.tools.study import Row, Study

OWN = "configs/cifar100.py:narrow"
CHANGES = {
    "KL 0.1": {"loss.kl_coefficient": 0.1},
    "KL 1.0": {"loss.kl_coefficient": 1.0},
    "KL 0.1 in the reward": {"loss.kl_coefficient": 0.1, "loss.kl_in": "reward"},
    "entropy 0.01": {"loss.entropy_coefficient": 0.01},
    "rank 1": {"model.lora_rank": 1, "model.lora_alpha": 1.0},
    "300 images": {"data.options.subset": 300},
    "rate 4e-4": {"optimizer.learning_rate": 4e-4},
    "prompt specific": {"data.prompt": "specific"},
    "KL 1.0 to a moving reference": {"loss.kl_coefficient": 1.0, "loss.reference_decay": 0.9},
    "rank-aware credit 0.5": {"loss.rank_coefficient": 0.5},
    "Brier term 0.5": {"reward.brier_weight": 0.5},
}


# What the tree's levels are worth (TaxonRL, arXiv 2603.04380, pays by level).
LEVELS = {"reward.options.generic": 1 / 3, "reward.options.less_specific": 2 / 3}


def get_study() -> Study:
    """Returns the paper's reward on photographs of animals, and the same with single changes."""
    rate = {"optimizer.learning_rate": 1e-3}
    sides = ("in_domain", "out_of_domain")
    return Study(
        rows=(
            Row("base", OWN, train=False),
            Row("the paper's reward", OWN, rate),
            *(Row(name, OWN, rate | change) for name, change in CHANGES.items()),
            Row("reward by level", "configs/static_map.py:3:cifar100:narrow", rate | LEVELS),
        ),
        seeds=(0,),
        # Photographs that are not reported elsewhere.
        sets={side: {"split": "validation", "side": side, "subset": 1200} for side in sides},
        base="base",
        reference="the paper's reward",
    )
