"""The paper's table in small, on photographs; many hours on two CPU cores, to be resumed at will.

python -m speciarl_jax.tools.study configs/studies/cifar100.py:narrow --workdir=runs/narrow \
    --override=data.options.data_dir=DATA
"""

from speciarl_jax.tools.study import Row, Search, Study

PROMPTS = (
    *("specific", "calibrated", "elimination", "high_precision", "max_correctness"),
    "max_specificity",
)
# The same number of trials for every method. KL is searched where a method has one.
WITH_KL = {"optimizer.learning_rate": (4e-4, 1.75e-3), "loss.kl_coefficient": (0.01, 0.1)}
RATES = {"optimizer.learning_rate": (2e-4, 4e-4, 8e-4, 1.75e-3)}


def get_study(design: str = "broad") -> Study:
    """Returns the study of a design of `configs/cifar100.py`: "broad" or "narrow"."""
    own = f"cifar100:{design}"
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
            Row("SpeciaRL + information", f"configs/information.py:1.0:{own}", search=WITH_KL),
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
        # Photographs that nobody saw, of superclasses that reinforcement saw and of the others.
        sets={
            side: {"split": "test", "side": side, "subset": 1500}
            for side in ("in_domain", "out_of_domain")
        },
        base="base",
        reference="SpeciaRL",
        # Of the domain that is trained on alone: the other is unknown while settings are chosen.
        search=Search(
            trials=4,
            images={"split": "validation", "side": "in_domain", "subset": 0},
            max_correctness_drop=0.01,
        ),
    )
