"""Makes the report of a folder anew: `report.md`, `report.html`, and the figures.

    python -m speciarl_jax.evaluation.report --workdir=runs/quickstart

The folder is one of `train` or `evaluate`. Its images are read from the data sets that it was
asked about; where they are gone, the page has placeholders.
"""

from collections.abc import Sequence

from absl import app, flags
from etils import epath

from speciarl_jax.evaluation import report
from speciarl_jax.runtime import exit_codes


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if len(argv) > 1 or not given.workdir:
        raise app.UsageError("give --workdir=FOLDER of a run, and flags only")
    if not epath.Path(given.workdir).is_dir():
        raise app.UsageError(f"--workdir={given.workdir} is no folder")
    for path in report.write(epath.Path(given.workdir), given.thumbnail_bytes):
        print(path)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run of train or evaluate.")
    flags.DEFINE_integer(
        "thumbnail_bytes",
        report.THUMBNAIL_BYTES,
        "Bytes that all thumbnails together may take in the page; 0 for none.",
        lower_bound=0,
    )
    exit_codes.run_tool("report", main)
