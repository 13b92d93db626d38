"""SpeciaRL and its baselines on the embedded benchmark; half an hour on two CPU cores.

python -m speciarl_jax.tools.study configs/studies/quickstart.py --workdir=runs/study
"""

from speciarl_jax.tools.study import Row, Study


def get_study() -> Study:
    """Returns base, SpeciaRL, binary reward (RFT), SFT and a static map, with three seeds."""
    return Study(
        rows=(
            Row("base", "configs/quickstart.py", train=False, best_of=64),
            Row("SpeciaRL", "configs/quickstart.py"),
            Row("binary (RFT)", "configs/binary.py:quickstart"),
            Row("SFT", "configs/sft.py:quickstart"),
            Row("static map 1", "configs/static_map.py:1:quickstart"),
        ),
        seeds=(0, 1, 2),
        # Styles of drawing that no training sees: those of the quickstart, and the hardest of them.
        sets={"held_out": {}, "hard": {"difficulty": "hard"}},
        base="base",
        reference="SpeciaRL",
    )
