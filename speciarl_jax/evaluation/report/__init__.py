"""The report of a run: tables and examples in Markdown, a page with everything, and figures."""

from etils import epath

from speciarl_jax.evaluation.report.folder import read_history
from speciarl_jax.evaluation.report.markdown import table

__all__ = ["THUMBNAIL_BYTES", "read_history", "table", "write"]

THUMBNAIL_BYTES = 8_000_000


def write(workdir: epath.Path, thumbnail_bytes: int = THUMBNAIL_BYTES) -> list[epath.Path]:
    """Writes `report.md`, `report.html` and `figures/*.png` of a folder; returns their paths.

    Args:
      workdir: the folder, or a URL (gs://...).
      thumbnail_bytes: limit for all evaluation images of the page together; 0: no images.

    Raises:
      ValueError: the folder holds nothing to report on, or a damaged file.
    """
    # It draws with matplotlib, which a run needs at its end alone.
    from speciarl_jax.evaluation.report import build

    return build.write(workdir, thumbnail_bytes)
