"""The paper's table in small, on photographs; many hours on two CPU cores, to be resumed at will.

python -m speciarl_jax.tools.study configs/studies/cifar100.py:narrow --workdir=runs/narrow \
    --override=data.options.data_dir=DATA
"""

from configs import unlabelled
from speciarl_jax.tools.study import Row, Search, Study

PROMPTS = (
    *("specific", "calibrated", "elimination", "high_precision", "max_correctness"),
    "max_specificity",
)
RATE = "optimizer.learning_rate"
# The same number of trials for every method. Beside the rate, what a method has is searched.
RATES = {RATE: (2e-4, 4e-4, 1e-3, 1.75e-3)}
WITH_KL = {RATE: (4e-4, 1e-3), "loss.kl_coefficient": (0.01, 0.1)}
WITH_STRENGTH = {RATE: (4e-4, 1e-3), "reward.information.strength": (0.5, 0.7)}


def get_study(design: str = "broad") -> Study:
    """Returns the study of a design of `configs/cifar100.py`: "broad" or "narrow"."""
    own = f"cifar100:{design}"
    # Photographs that nobody trained on, of superclasses that reinforcement saw and of the others.
    sets = {
        "in_domain": {"split": "test", "side": "in_domain", "subset": 1000},
        "out_of_domain": {"split": "test", "side": "out_of_domain", "subset": 1500},
    }
    extra = ()
    if design == "narrow":
        extra = (
            Row("SpeciaRL + KL elsewhere", "configs/unlabelled.py:0.7", search=WITH_STRENGTH),
            # Rate, confidence and strength come from validation photographs of both sides: in
            # domain alone, the search above would choose strength 0.5, which collapses.
            Row("SpeciaRL + consensus elsewhere", "configs/consensus.py:0.3:0.7", {RATE: 1e-3}),
            # To compare with: the same images and settings, and labels of all images.
            Row(
                "SpeciaRL with labels elsewhere",
                "configs/unlabelled.py:labelled:0.7",
                {RATE: 1e-3},
            ),
        )
        # Of the others, those that no row has seen even without labels.
        superclasses = {"design": "", "superclasses": unlabelled.UNSEEN}
        sets["unseen"] = {"split": "test", "subset": 1000, **superclasses}
    return Study(
        rows=(
            Row("base", f"configs/cifar100.py:{design}", train=False, best_of=64),
            *(Row(f"prompt {p}", f"configs/prompt.py:{p}:{own}", train=False) for p in PROMPTS),
            Row("SFT", f"configs/sft.py:{own}", search=RATES),
            Row("binary (RFT)", f"configs/binary.py:{own}", search=WITH_KL),
            *(
                Row(f"static map {n}", f"configs/static_map.py:{n}:{own}", search=WITH_KL)
                for n in (1, 2, 3)
            ),
            Row("SpeciaRL", f"configs/cifar100.py:{design}", search=WITH_KL),
            Row("SpeciaRL + information", f"configs/information.py:0.7:{own}", search=WITH_KL),
            *extra,
            Row("SpeciaRL + bits", f"configs/information.py:bits:1.0:{own}", search=WITH_KL),
            Row("SpeciaRL (Dr.GRPO)", f"configs/dr_grpo.py:{own}", search=RATES),
            Row("SpeciaRL (DAPO)", f"configs/dapo_no_dynamic.py:{own}", search=RATES),
            Row("SpeciaRL (N = 5)", f"configs/n5.py:{own}", search=WITH_KL),
            Row("SpeciaRL (N = 15)", f"configs/n15.py:{own}", search=WITH_KL),
            Row(
                "SpeciaRL (10% wrong verdicts)",
                f"configs/label_noise.py:0.10:{own}",
                search=WITH_KL,
            ),
        ),
        seeds=(0, 1, 2, 3, 4),
        sets=sets,
        base="base",
        reference="SpeciaRL",
        # Of the domain that is trained on alone: the other is unknown while settings are chosen.
        search=Search(
            trials=4,
            images={"split": "validation", "side": "in_domain", "subset": 0},
            max_correctness_drop=0.01,
        ),
    )
