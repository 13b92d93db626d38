"""Your own folder in small: a tiny policy made for photographs of groceries, and four methods.

GROCERY is the folder `dataset` of a copy of github.com/marcusklasson/GroceryStoreDataset.

python -m examples.pretrain --config=configs/own_folder_sft.py --workdir=runs/grocery_sft \
    --config.data.options.path=GROCERY/train
python -m speciarl_jax.tools.study configs/studies/grocery.py:GROCERY --workdir=runs/grocery \
    --override=model.path=runs/grocery_sft/policy
"""

from speciarl_jax.tools.study import Row, Study

OWN = "own_folder:quickstart"


def get_study(folder: str = "GROCERY") -> Study:
    """Returns the base and four methods, trained on the half of `train` that made no policy."""
    return Study(
        rows=(
            Row("base", "configs/own_folder.py:quickstart", train=False, best_of=64),
            Row("SpeciaRL", "configs/own_folder.py:quickstart"),
            Row("SpeciaRL + information", f"configs/information.py:0.7:{OWN}"),
            Row("binary (RFT)", f"configs/binary.py:{OWN}"),
            Row("SFT", f"configs/sft.py:{OWN}"),
        ),
        seeds=(0, 1),
        sets={"test": {"path": f"{folder}/test", "part": "all"}},
        base="base",
        reference="SpeciaRL",
        overrides={
            "data.options.path": f"{folder}/train",
            "data.options.part": "held_out",
            "data.options.held_out_share": 0.5,
            # As the rows of the study of CIFAR-100 that were not searched for.
            "optimizer.learning_rate": 1e-3,
        },
    )
