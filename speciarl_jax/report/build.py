"""From a folder to its `report.html`: reads the files, finds the pictures, writes the page."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from etils import epath

from speciarl_jax import assemble
from speciarl_jax.data import pictures
from speciarl_jax.report import folder, page, palette, plots, thumbnails

THUMBNAIL_BYTES = 8_000_000


def write_page(workdir: epath.Path, thumbnail_bytes: int = THUMBNAIL_BYTES) -> epath.Path:
    """Writes `report.html` of a folder of `train` or `evaluate`.

    Args:
      workdir: the folder.
      thumbnail_bytes: that all evaluation pictures together may take; 0 for none.

    Returns:
      The path of the page.

    Raises:
      ValueError: the folder holds nothing to report on, or a damaged file.
    """
    content = folder.read(workdir)
    found = _thumbnails(content, thumbnail_bytes) if thumbnail_bytes else {}
    path = workdir / "report.html"
    path.write_text(page.render(content, found), encoding="utf-8")
    return path


def write_figures(workdir: epath.Path) -> list[epath.Path]:
    """Writes the figures of a folder of `train` or `evaluate` as PNG files to its `figures`.

    Raises:
      ValueError: as for `write_page`.
    """
    content = folder.read(workdir)
    keys = [folder.run_key(run) for run in content.metrics["runs"]]
    several = len({key[1:] for key in keys}) > 1
    names = [", ".join(key) if several else key[0] for key in keys]
    target = workdir / "figures"
    target.mkdir(parents=True, exist_ok=True)
    return plots.write_all(
        target,
        dict(zip(names, content.metrics["runs"], strict=True)),
        {content.name: content.history} if content.history else {},
    )


def _thumbnails(content: folder.Folder, budget: int) -> dict[int, str]:
    """image_id -> data URI, those first whose category changed; empty where they are gone."""
    if not (content.config and content.predictions):
        return {}
    config = ml_collections.ConfigDict(json.loads(json.dumps(content.config)))
    wanted = [row for row in content.predictions if row["data"] == config.data.name]
    try:
        source = assemble.open_source(config, config.evaluation.seed, **config.evaluation.options)
    except Exception as error:  # Data that moved must not cost the page.
        logging.warning("the report has no pictures: the data set cannot be opened (%s)", error)
        return {}
    return thumbnails.fitting(_read(source, wanted), _order(wanted), budget)


def _read(source: Any, wanted: Sequence[Mapping[str, Any]]) -> dict[int, np.ndarray]:
    """Small copies of the pictures that rows speak of, by image_id."""
    ids = {row["image_id"] for row in wanted}
    found, broken = {}, 0
    for index in range(len(source)):
        described = pictures.describe(source, index)
        name = described["image_id"]
        if name not in ids or name in found:
            continue
        try:
            row = source[index]
        except pictures.BrokenImageError:
            broken += 1
            continue
        if not row.get("left_out"):
            found[name] = thumbnails.shrink(np.asarray(row["image"]), thumbnails.SIDES[0])
    lost = len(ids - found.keys())
    if lost:
        logging.warning("the report lacks %d pictures, %d of them broken", lost, broken)
    return found


def _order(wanted: Sequence[Mapping[str, Any]]) -> list[int]:
    """The ids of pictures: those on which greedy answers differ in category, then the others."""
    verdicts: dict[int, set[str]] = {}
    for row in wanted:
        own = verdicts.setdefault(row["image_id"], set())
        if row["decoding"] == "greedy":
            own.add(row["categories"][0])
    known = palette.RANK.keys()
    return sorted(verdicts, key=lambda name: len(verdicts[name] & known) < 2)
