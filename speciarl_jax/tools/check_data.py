"""Looks at every image and label of a configuration before a run does.

    python -m speciarl_jax.tools.check_data --config=configs/own_folder.py \
        --config.data.options.path=FOLDER --out=runs/data_check

Prints counts, unreadable images, odd labels and images that stand twice, and writes
`data_check.md` and `contact_sheet.png`. Exits with 1 if an image cannot be read or the labels do
not fit the verifier.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import config_flags
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm import tqdm

from speciarl_jax.data import images, label_tree
from speciarl_jax.data.sources import open_source
from speciarl_jax.runtime import exit_codes
from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.label_tree import word_forms
from speciarl_jax.verifiers.taxonomy import Taxonomy

_CELL, _CAPTION, _COLUMNS = 128, 16, 10  # pixels, pixels, images
_IMAGE = 120  # pixels, the longer side in its cell
_FEW = 5
_CATCH_ALL = {"background", "clutter", "misc", "miscellaneous", "mixed", "other", "others", "test"}
_LISTED = 20


@dataclasses.dataclass
class Findings:
    """What was seen in the images of one source.

    Attributes:
      name: "training" or "evaluation".
      counts: images of each label that can be read.
      sizes: (width, height) of each image that can be read.
      broken: key of a row -> error.
      hashes: digest of the pixels -> keys.
      samples: label -> small images of it.
    """

    name: str
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    broken: dict[str, str] = dataclasses.field(default_factory=dict)
    hashes: dict[str, list[str]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    samples: dict[str, list[Image.Image]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )


def look(name: str, source: Sequence[Mapping[str, Any]], workers: int) -> Findings:
    """Reads every image once.

    Args:
      name: of the result.
      source: random access to rows.
      workers: threads.
    """
    found = Findings(name)

    def read(index):
        try:
            row = source[index]
        except images.BrokenImageError as error:
            row = images.describe(source, index)
            return row, error.reason, None, None, None
        image = row["image"]
        digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
        small = Image.fromarray(image)
        size = small.size
        small.thumbnail((_IMAGE, _IMAGE))
        return row, None, digest, size, small

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        results = pool.map(read, range(len(source)))
        for index, (row, error, digest, size, small) in enumerate(
            tqdm(results, total=len(source), desc=name)
        ):
            key = str(row.get("key", index))
            if error:
                found.broken[key] = error
                continue
            label = row["label"]
            found.counts[label] += 1
            found.sizes.append(size)
            found.hashes[digest].append(key)
            if len(found.samples[label]) < _COLUMNS:
                found.samples[label].append(small)
    return found


def odd_labels(counts: Mapping[str, int], max_words: int) -> list[tuple[str, str]]:
    """Labels that a person would not say so, each with the reason.

    Args:
      counts: label -> images.
      max_words: `config.verifier.options.max_words`.
    """
    odd = []
    keys: dict[str, str] = {}
    for label in sorted(counts):
        key = parsing.key(label).decode()
        reasons = [
            reason
            for reason, found in (
                ("has no letters", not re.search(r"[^\W\d_]", label)),
                ("has an underscore", "_" in label),
                ("lists several things; an answer that does is wrong", "," in key),
                ("offers several things; an answer that does is wrong", " or " in f" {key} "),
                (f"has more than {max_words} words", len(key.split()) > max_words),
                ("ends in a mark", bool(re.search(r"[^\w)]$", label))),
                ("is a catch-all, not a thing", key in _CATCH_ALL),
                ("means that there is no answer", key in _abstentions()),
                (f"has fewer than {_FEW} images", counts[label] < _FEW),
            )
            if found
        ]
        for form in {key, *word_forms.plurals(key)}:
            if form in keys and keys[form] != label:
                reasons.append(f"is {keys[form]!r} but for case, marks or number")
                break
        for form in {key, *word_forms.plurals(key)}:
            keys.setdefault(form, label)
        odd += [(label, reason) for reason in reasons]
    return odd


def _abstentions() -> set[str]:
    return {parsing.key(text).decode("utf-8", "replace") for text in parsing.ABSTENTIONS}


def contact_sheet(found: Findings, path: pathlib.Path, rows: int = 12) -> None:
    """Writes a sheet of small images with their labels, spread over the labels.

    Args:
      found: of one source.
      path: of the PNG.
      rows: of the sheet.
    """
    labels = sorted(found.samples)
    chosen = [
        (label, found.samples[label][turn])
        for turn in range(_COLUMNS)
        for label in labels
        if turn < len(found.samples[label])
    ]
    step = max(1, len(labels) / (rows * _COLUMNS))
    if step > 1:
        chosen = [chosen[int(i * step)] for i in range(rows * _COLUMNS)]
    chosen = sorted(chosen[: rows * _COLUMNS], key=lambda pair: pair[0])
    height = -(-len(chosen) // _COLUMNS) * (_CELL + _CAPTION)
    sheet = Image.new("RGB", (_COLUMNS * _CELL, max(height, 1)), "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    for i, (label, small) in enumerate(chosen):
        x, y = i % _COLUMNS * _CELL, i // _COLUMNS * (_CELL + _CAPTION)
        # Small images are enlarged, pixel by pixel, so that they can be seen.
        small = ImageOps.contain(small, (_IMAGE, _IMAGE), Image.Resampling.NEAREST)
        left, top = x + (_CELL - small.width) // 2, y + (_CELL - small.height) // 2
        sheet.paste(small, (left, top))
        draw.rectangle((x + 2, y + 2, x + _CELL - 3, y + _CELL - 3), outline="lightgrey")
        draw.text((x + 2, y + _CELL), _caption(label, font), fill="black", font=font)
    sheet.save(path)


def _font() -> Any:
    """DejaVu, which has most alphabets, if it is installed; else Pillow's own, which has Latin."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", 11)
    except OSError:
        return ImageFont.load_default(11)


def _caption(label: str, font: Any) -> str:
    """The label as far as it fits under an image; what the font cannot draw as a code point."""
    missing = bytes(font.getmask("\uffff"))
    text = "".join(
        c if c.isspace() or c.isascii() or bytes(font.getmask(c)) != missing else f"<{ord(c):x}>"
        for c in label
    )
    if font.getlength(text) <= _CELL - 4:
        return text
    while text and font.getlength(text + "...") > _CELL - 4:
        text = text[:-1]
    return text + "..."


def _listed(lines: Sequence[str]) -> list[str]:
    more = [f"- and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return [*lines[:_LISTED], *more]


def describe(found: Findings, max_words: int) -> list[str]:
    """Lines of the report about one source; `max_words` as for `odd_labels`."""
    readable = sum(found.counts.values())
    lines = [f"## {found.name}", ""]
    lines += [f"{readable} images of {len(found.counts)} labels; {len(found.broken)} unreadable."]
    if readable:
        per_label = sorted(found.counts.values())
        middle = per_label[len(per_label) // 2]
        widths, heights = np.array(found.sizes).T
        lines += [
            f"Images of a label: {per_label[0]} to {per_label[-1]}, median {middle}.",
            f"Width {widths.min()} to {widths.max()} px, height {heights.min()} to "
            f"{heights.max()} px, median {int(np.median(widths))} x {int(np.median(heights))}.",
        ]
    if found.broken:
        lines += ["", "Unreadable:", ""]
        lines += _listed([f"- {error}" for error in found.broken.values()])
    twice = [keys for keys in found.hashes.values() if len(keys) > 1]
    if twice:
        lines += ["", f"{len(twice)} images stand more than once:", ""]
        lines += _listed([f"- {' = '.join(keys)}" for keys in twice])
    odd = odd_labels(found.counts, max_words)
    if odd:
        lines += ["", "Odd labels:", ""]
        lines += _listed([f"- {label!r} {reason}" for label, reason in odd])
    return [*lines, ""]


def compare(training: Findings, evaluation: Findings) -> list[str]:
    """Lines of the report about what both sources share."""
    shared = set(training.hashes) & set(evaluation.hashes)
    new = sorted(set(evaluation.counts) - set(training.counts))
    lines = ["## Together", ""]
    lines += [f"{len(shared)} images of the evaluation are in training too."]
    lines += _listed([f"- {training.hashes[h][0]} = {evaluation.hashes[h][0]}" for h in shared])
    lines += [f"{len(new)} of {len(evaluation.counts)} evaluation labels are not in training."]
    return [*lines, ""]


def check_tree(sources: Sequence[Any], path: str, max_words: int) -> tuple[list[str], bool]:
    """Lines about the label tree, and whether the taxonomy verifier can use it.

    Args:
      sources: whose labels must be in it.
      path: `config.verifier.options.path`; "" for the sources' own.
      max_words: `config.verifier.options.max_words`.
    """
    lines = ["## Label tree", ""]
    try:
        tree = path or label_tree.path_of(sources)
        if tree is None:
            return [*lines, "There is none; the taxonomy verifier needs one.", ""], False
        taxonomy = Taxonomy.from_file(tree, max_words=max_words)
        for source in sources:
            for index in range(len(source)):
                taxonomy.leaf_index(images.describe(source, index)["label_id"])
    except ValueError as error:
        return [*lines, f"Unfit: {error}", ""], False
    levels = [len({category for category, _ in r.values()}) for r in taxonomy.relations]
    flat = sum(n < 3 for n in levels)
    lines += [
        f"{len(taxonomy.leaf_ids)} labels, {len(taxonomy.names)} names that an answer may have; "
        f"{flat} labels have nothing between themselves and their group."
    ]
    return [*lines, ""], True


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if len(argv) > 1 or not given.out or given.config is None:
        raise app.UsageError("give --config=FILE and --out=FOLDER, and flags only")
    config, out = given.config, pathlib.Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    with config.unlocked():
        config.data.on_decode_error = "raise"
    sources = [
        open_source(config, config.seed),
        open_source(config, config.evaluation.seed, **config.evaluation.options),
    ]
    found = [
        look(name, source, config.data.workers)
        for name, source in zip(("training", "evaluation"), sources, strict=True)
    ]
    options = config.verifier.options
    words = options.get("max_words", 8)
    tree, fits = check_tree(sources, options.get("path", ""), words)
    about = [line for one in found for line in describe(one, words)]
    lines = ["# Data", "", *about, *compare(*found), *tree]
    report = "\n".join(lines)
    (out / "data_check.md").write_text(report)
    contact_sheet(found[0], out / "contact_sheet.png")
    print(report)
    print(f"report: {out / 'data_check.md'}\nsheet:  {out / 'contact_sheet.png'}")
    if found[0].broken or found[1].broken or not fits and config.verifier.name == "taxonomy":
        sys.exit(1)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Configuration.", lock_config=True)
    flags.DEFINE_string("out", None, "Receives the report and the contact sheet.")
    exit_codes.run_tool("data_check", main)
