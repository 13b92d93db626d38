"""From a folder to its report: reads the files, finds the images, writes what people look at."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from etils import epath

from speciarl_jax.data import images, thumbnails
from speciarl_jax.data.sources import open_source
from speciarl_jax.evaluation import predictions
from speciarl_jax.evaluation.report import figures, folder, markdown, page, palette

THUMBNAIL_BYTES = 8_000_000


def write(workdir: epath.Path, thumbnail_bytes: int = THUMBNAIL_BYTES) -> list[epath.Path]:
    """Writes `report.md`, `report.html` and `figures/*.png` of a folder of `train` or `evaluate`.

    Args:
      workdir: the folder, or a URL (gs://...).
      thumbnail_bytes: that all evaluation images of the page together may take; 0 for none.

    Returns:
      The paths of the files.

    Raises:
      ValueError: the folder holds nothing to report on, or a damaged file.
    """
    content = folder.read(workdir)
    text, html = workdir / "report.md", workdir / "report.html"
    text.write_text(markdown.render(content), encoding="utf-8")
    found = _thumbnails(content, thumbnail_bytes) if thumbnail_bytes else {}
    html.write_text(page.render(content, found), encoding="utf-8")
    return [text, html, *_write_figures(content, workdir / "figures")]


def _write_figures(content: folder.Folder, target: epath.Path) -> list[epath.Path]:
    keys = [folder.run_key(run) for run in content.metrics["runs"]]
    several = len({key[1:] for key in keys}) > 1
    names = [", ".join(key) if several else key[0] for key in keys]
    target.mkdir(parents=True, exist_ok=True)
    return figures.write_png(
        target,
        dict(zip(names, content.metrics["runs"], strict=True)),
        {content.name: content.history} if content.history else {},
    )


def _thumbnails(content: folder.Folder, budget: int) -> dict[tuple[str, int], str]:
    """(data, image_id) -> data URI, those first whose category changed; without those of data sets
    that are gone."""
    found = {}
    for data in dict.fromkeys(row["data"] for row in content.predictions):
        ids = {row["image_id"] for row in content.predictions if row["data"] == data}
        try:
            source = _source(content, data)
        except Exception as error:  # Data that moved must not cost the page.
            logging.warning("the report has no images of %s: it cannot be opened (%s)", data, error)
            continue
        found |= {(data, name): image for name, image in _read(source, ids).items()}
    return thumbnails.fitting(found, _order(content.predictions), budget)


def _source(content: folder.Folder, data: str) -> Any:
    """The images that a data set was asked about."""
    if data not in content.configs:
        raise ValueError("no configuration is known")
    config = ml_collections.ConfigDict(content.configs[data])
    return open_source(config, config.evaluation.seed, **config.evaluation.options)


def _read(source: Any, ids: Set[int]) -> dict[int, np.ndarray]:
    """Small copies of images by image_id."""
    found, broken = {}, 0
    for index in range(len(source)):
        described = images.describe(source, index)
        name = described["image_id"]
        if name not in ids or name in found:
            continue
        try:
            row = source[index]
        except images.BrokenImageError:
            broken += 1
            continue
        if not row.get("skipped"):
            found[name] = thumbnails.shrink(np.asarray(row["image"]), thumbnails.SIDES[0])
    lost = len(ids - found.keys())
    if lost:
        logging.warning("the report lacks %d images, %d of them broken", lost, broken)
    return found


def _order(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """(data, image_id): those on which greedy answers differ in category, then the others."""
    verdicts: dict[tuple[str, int], set[str]] = {}
    for row in rows:
        own = verdicts.setdefault((row["data"], row["image_id"]), set())
        if row["decoding"] == predictions.GREEDY:
            own.add(row["categories"][0])
    known = palette.RANK.keys()
    return sorted(verdicts, key=lambda name: len(verdicts[name] & known) < 2)
