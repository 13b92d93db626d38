"""TensorBoard files in `WORKDIR/tensorboard`, a folder or a bucket."""

from collections.abc import Mapping, Sequence

import tensorboardX
from etils import epath

from speciarl_jax.data import markdown_text
from speciarl_jax.runtime.metric_writer import Writer
from speciarl_jax.training.writers.sample import Sample
from speciarl_jax.training.writers.target import Target


def create(target: Target) -> Writer:
    """Opens the files of a run."""
    return TensorBoard(target.workdir, target.first_step)


class TensorBoard(Writer):
    """Writes scalars, images and tables of rollouts."""

    name = "TensorBoard"

    def __init__(self, workdir: epath.PathLike, first_step: int = 0):
        """Opens the files; what they hold of `first_step` and later is hidden from then on."""
        # A killed run must not lose rows that lie before its last checkpoint: flush often.
        # A file is named after the second in which it was opened: a restart within it would
        # overwrite the one before.
        self._board = tensorboardX.SummaryWriter(
            str(epath.Path(workdir) / "tensorboard"),
            purge_step=first_step,
            flush_secs=1,
            filename_suffix=f".step_{first_step}",
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def write_samples(self, step: int, samples: Sequence[Sample]) -> None:
        for place, sample in enumerate(samples):
            if sample.image is not None:
                name = f"rollout_images/{place}"
                self._board.add_image(name, sample.image, step, dataformats="HWC")
            self._board.add_text(f"rollout_samples/{place}", as_markdown(sample), step)

    def close(self) -> None:
        self._board.close()


def as_markdown(sample: Sample) -> str:
    """Writes a sample as a table in which nothing that the model said is markup."""
    lines = [
        f"**{markdown_text.escape(sample.label)}** (image {sample.image_id})",
        "",
        "| answer | category | reward |",
        "|---|---|---|",
    ]
    for said, category, reward in zip(
        sample.completions, sample.categories, sample.rewards, strict=True
    ):
        earned = "" if reward is None else f"{reward:g}"
        lines.append(f"| {markdown_text.escape(said)} | {category.replace('_', ' ')} | {earned} |")
    return "\n".join(lines)
