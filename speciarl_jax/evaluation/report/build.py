"""Makes the report of a folder: reads its files, finds its images, writes what people look at."""

import collections
from collections.abc import Mapping, Sequence, Set
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from etils import epath

from speciarl_jax.data import images, label_tree, thumbnails
from speciarl_jax.data.sources import open_source
from speciarl_jax.evaluation import predictions
from speciarl_jax.evaluation.report import figures, folder, markdown, page, page_data, palette
from speciarl_jax.runtime import jsonl
from speciarl_jax.verifiers.taxonomy import Taxonomy

# Verifiers that judge by the label tree of `config.verifier.options`.
_WITH_TREE = ("taxonomy", "cascade")


def write(workdir: epath.Path, thumbnail_bytes: int) -> list[epath.Path]:
    """`report.write`."""
    content = folder.read(workdir)
    text, html = workdir / "report.md", workdir / "report.html"
    sources = _sources(content)
    trees = _trees(content, sources)
    domains = _domains(sources, trees)
    jsonl.replace(text, markdown.render(content, domains))
    found = _thumbnails(content, sources, thumbnail_bytes) if thumbnail_bytes else {}
    jsonl.replace(html, page.render(content, found, trees, domains))
    runs = page.sorted_runs(content.metrics["runs"])
    names = page_data.names_of([folder.run_key(run) for run in runs])
    named = dict(zip(names, runs, strict=True))
    (workdir / "figures").mkdir(parents=True, exist_ok=True)
    drawn = figures.write_png(workdir / "figures", named, {content.name: content.history})
    return [text, html, *drawn]


def _sources(content: folder.Folder) -> dict[str, Any]:
    """Opens the images of each data set that was asked about, as far as they are still there."""
    found = {}
    for data in dict.fromkeys(row["data"] for row in content.predictions):
        try:
            if data not in content.configs:
                raise ValueError("no configuration is known")
            config = ml_collections.ConfigDict(content.configs[data])
            found[data] = open_source(config, config.evaluation.seed, **config.evaluation.options)
        except Exception as error:  # Data that moved must not cost the page.
            logging.warning("the report has no images of %s: it cannot be opened (%s)", data, error)
    return found


def _thumbnails(
    content: folder.Folder, sources: Mapping[str, Any], budget: int
) -> dict[tuple[str, int], str]:
    """Makes (data, image_id) -> data URI, without the images of data sets that are gone."""
    found = {}
    for data, source in sources.items():
        ids = {row["image_id"] for row in content.predictions if row["data"] == data}
        found |= {(data, name): image for name, image in _read(source, ids).items()}
    return thumbnails.fitting(found, _order(content.predictions), budget)


def _trees(content: folder.Folder, sources: Mapping[str, Any]) -> dict[str, Taxonomy]:
    """Reads the label tree of each data set whose verifier has one, as far as it can be found."""
    found = {}
    for data, source in sources.items():
        verifier = content.configs[data].get("verifier", {})
        if verifier.get("name") not in _WITH_TREE:
            continue
        options = verifier["options"]
        try:
            path = options["path"] or label_tree.path_of([source])
            found[data] = Taxonomy.from_file(path, max_words=options["max_words"])
        except Exception as error:  # A tree that moved must not cost the page either.
            logging.warning("the report gives no reasons for verdicts on %s (%s)", data, error)
    return found


def _domains(
    sources: Mapping[str, Any], trees: Mapping[str, Taxonomy]
) -> dict[str, dict[str, str]]:
    """Finds the group of each label in the label tree of its data set, whoever judges."""
    found = {}
    for data, source in sources.items():
        try:
            tree = trees[data].data if data in trees else label_tree.read(source)
        except Exception as error:
            logging.warning("the report does not know the domains of %s (%s)", data, error)
            continue
        if tree:
            found[data] = {name: leaf["generic"] for name, leaf in tree["leaves"].items()}
    return found


def _read(source: Any, ids: Set[int]) -> dict[int, np.ndarray]:
    """Reads images by image_id and shrinks them."""
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
    """Sorts (data, image_id): first images whose greedy answers differ in category."""
    verdicts = collections.defaultdict(set)
    for row in rows:
        greedy = row["decoding"] == predictions.GREEDY
        verdicts[row["data"], row["image_id"]].update(row["categories"] if greedy else ())
    return sorted(verdicts, key=lambda name: len(verdicts[name] & palette.RANK.keys()) < 2)
