"""Checks every image and label of a configuration before a run uses them.

    python -m speciarl_jax.tools.check_data --config=configs/own_folder.py \
        --config.data.options.path=FOLDER --out=runs/data_check

Prints counts, unreadable images, odd labels and duplicate images, and writes `data_check.md`,
`contact_sheet.png` and `label_tree.json`, the names that the taxonomy verifier knows. Add others to
it (`synonyms`, names in `ancestors`), and give it as config.verifier.options.path. Exits with 1 if
an image cannot be read or the labels do not fit the verifier.
"""

import collections
import concurrent.futures
import hashlib
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm import tqdm

from speciarl_jax.data import images, label_tree
from speciarl_jax.data.sources import open_source
from speciarl_jax.runtime import exit_codes
from speciarl_jax.verifiers import abstention, parsing
from speciarl_jax.verifiers.label_tree import word_forms
from speciarl_jax.verifiers.taxonomy import Taxonomy

_CELL, _CAPTION, _COLUMNS = 128, 16, 10  # pixels, pixels, images
_IMAGE = 120  # pixels, the longer side in its cell
_FEW = 5
_CATCH_ALL = {"background", "clutter", "misc", "miscellaneous", "mixed", "other", "others", "test"}
_LISTED = 20


class Findings:
    """Collects what is known about the images of one source, "training" or "evaluation"."""

    def __init__(self, name: str):
        self.name = name
        self.counts = collections.Counter()  # label -> readable images
        self.sizes: list[tuple[int, int]] = []  # width, height of readable images
        self.broken: dict[str, str] = {}  # key of a row -> error
        self.keys_of = collections.defaultdict(list)  # digest of the pixels -> keys of rows
        self.samples = collections.defaultdict(list)  # label -> small images
        self.label_of: dict[str, str] = {}  # key of a row -> label


def look(name: str, source: Sequence[Mapping[str, Any]], workers: int) -> Findings:
    """Reads every image of a source once, in `workers` threads; `name` is that of the result."""
    found = Findings(name)

    def read(index):
        try:
            row = {**source[index]}
        except images.BrokenImageError as error:
            return images.describe(source, index), None, None, error.reason
        pixels = row.pop("image")
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        small = Image.fromarray(pixels)
        small.thumbnail((_IMAGE, _IMAGE))
        return row | {"size": pixels.shape[1::-1]}, digest, small, None

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        results = tqdm(pool.map(read, range(len(source))), total=len(source), desc=name)
        for index, (row, digest, small, error) in enumerate(results):
            key = str(row.get("key", index))
            if error:
                found.broken[key] = error
                continue
            label = row["label"]
            found.counts[label] += 1
            found.sizes.append(row["size"])
            found.keys_of[digest].append(key)
            found.label_of[key] = label
            if len(found.samples[label]) < _COLUMNS:
                found.samples[label].append(small)
    return found


def odd_labels(counts: Mapping[str, int], max_words: int) -> list[tuple[str, str]]:
    """Finds labels that people would not use, each with the reason.

    Args:
      counts: label -> images.
      max_words: `config.verifier.options.max_words`.
    """
    odd, label_of = [], {}
    for label in sorted(counts):
        key = parsing.key(label).decode()
        reasons = {
            "has no letters": not re.search(r"[^\W\d_]", label),
            "has an underscore": "_" in label,
            "begins with a number": bool(re.match(r"\d.*[^\W\d_]", label)),
            "lists several things; a completion that does is wrong": "," in key,
            "offers several things; a completion that does is wrong": " or " in f" {key} ",
            f"has more than {max_words} words": len(key.split()) > max_words,
            "ends in a punctuation mark": re.search(r"[^\w)]$", label),
            "is a catch-all, not a thing": key in _CATCH_ALL,
            "means that there is no answer": abstention.text_abstains(label),
            f"has fewer than {_FEW} images": counts[label] < _FEW,
        }
        odd += [(label, reason) for reason, applies in reasons.items() if applies]
        forms = {key, *word_forms.plurals(key)}
        if same := [label_of[form] for form in forms if form in label_of]:
            odd.append((label, f"is {min(same)!r} but for case, marks or number"))
        for form in forms:
            label_of.setdefault(form, label)
    return odd


def contact_sheet(found: Findings, path: pathlib.Path, rows: int = 12) -> None:
    """Writes a PNG of small images with their labels, spread over the labels.

    Args:
      rows: of the sheet, at most.
    """
    labels, cells = sorted(found.samples), rows * _COLUMNS
    chosen = [
        (label, found.samples[label][turn])
        for turn in range(_COLUMNS)
        for label in labels
        if turn < len(found.samples[label])
    ]
    if len(labels) > cells:
        chosen = [chosen[i * len(labels) // cells] for i in range(cells)]
    chosen = sorted(chosen[:cells], key=lambda pair: pair[0])
    height = -(-len(chosen) // _COLUMNS) * (_CELL + _CAPTION)
    sheet = Image.new("RGB", (_COLUMNS * _CELL, max(height, 1)), "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    for i, (label, small) in enumerate(chosen):
        x, y = i % _COLUMNS * _CELL, i // _COLUMNS * (_CELL + _CAPTION)
        # Small images are enlarged without smoothing.
        small = ImageOps.contain(small, (_IMAGE, _IMAGE), Image.Resampling.NEAREST)
        sheet.paste(small, (x + (_CELL - small.width) // 2, y + (_CELL - small.height) // 2))
        draw.rectangle((x + 2, y + 2, x + _CELL - 3, y + _CELL - 3), outline="lightgrey")
        draw.text((x + 2, y + _CELL), _caption(label, font), fill="black", font=font)
    sheet.save(path)


def _font() -> Any:
    """Loads DejaVu, which has most alphabets, or else Pillow's own font, which has Latin."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", 11)
    except OSError:
        return ImageFont.load_default(11)


def _caption(label: str, font: Any) -> str:
    """Cuts a label to the width of a cell; a letter that the font lacks becomes its code point."""
    missing = bytes(font.getmask("\uffff"))
    text = "".join(
        c if c.isspace() or c.isascii() or bytes(font.getmask(c)) != missing else f"<{ord(c):x}>"
        for c in label
    )
    whole = text
    while text and font.getlength(text + "..." * (text != whole)) > _CELL - 4:
        text = text[:-1]
    return text if text == whole else text + "..."


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    """Formats a list under a title; nothing if it is empty, and the first lines if it is long."""
    more = [f"- and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return ["", f"{title}:", "", *lines[:_LISTED], *more] if lines else []


def describe(found: Findings, max_words: int) -> list[str]:
    """Reports about one source; `max_words` as for `odd_labels`."""
    total, per_label = found.counts.total(), sorted(found.counts.values())
    lines = [f"## {found.name}", ""]
    lines += [f"{total} images of {len(per_label)} labels; {len(found.broken)} unreadable."]
    if total:
        widths, heights = np.array(found.sizes).T
        lines += [
            f"Images of a label: {per_label[0]} to {per_label[-1]}, median "
            f"{per_label[len(per_label) // 2]}.",
            f"Width {widths.min()} to {widths.max()} px, height {heights.min()} to "
            f"{heights.max()} px, median {int(np.median(widths))} x {int(np.median(heights))}.",
        ]
    twice = [
        f"- {' = '.join(keys)}{_contradiction(found, keys)}"
        for keys in found.keys_of.values()
        if len(keys) > 1
    ]
    twice.sort(key=lambda line: ", labels " not in line)
    odd = [f"- {label!r} {reason}" for label, reason in odd_labels(found.counts, max_words)]
    lines += _listed("Unreadable", [f"- {error}" for error in found.broken.values()])
    lines += _listed(f"{len(twice)} images occur more than once", twice)
    return [*lines, *_listed("Odd labels", odd), ""]


def _contradiction(found: Findings, keys: Sequence[str]) -> str:
    """Names the labels of equal images if they differ."""
    labels = sorted({found.label_of[key] for key in keys})
    return f", labels {' and '.join(map(repr, labels))}" if len(labels) > 1 else ""


def compare(training: Findings, evaluation: Findings) -> list[str]:
    """Reports about what both sources share."""
    shared = [digest for digest in training.keys_of if digest in evaluation.keys_of]
    pairs = [f"- {training.keys_of[d][0]} = {evaluation.keys_of[d][0]}" for d in shared]
    new = set(evaluation.counts) - set(training.counts)
    unasked = sorted(set(training.counts) - set(evaluation.counts))
    return [
        "## Together",
        "",
        f"{len(shared)} images of the evaluation are in training too.",
        f"{len(new)} of {len(evaluation.counts)} evaluation labels are not in training.",
        f"{len(unasked)} of {len(training.counts)} training labels have no evaluation image.",
        *_listed("In both", pairs),
        *_listed("Without an evaluation image", [f"- {label!r}" for label in unasked]),
        "",
    ]


def check_tree(sources: Sequence[Any], path: str, max_words: int) -> tuple[list[str], bool]:
    """Reports about the label tree, and returns whether the taxonomy verifier can use it.

    Args:
      sources: their labels must be in the tree.
      path: `config.verifier.options.path`; "" for the sources' own tree.
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
    groups = collections.Counter(leaf["generic"] for leaf in taxonomy.data["leaves"].values())
    listed = [f"{name!r} ({count})" for name, count in groups.most_common(_LISTED)]
    more = ["..."] * (len(groups) > _LISTED)
    lines += [
        f"Most general names, with the number of their labels: {', '.join([*listed, *more])}.",
        f"{len(taxonomy.leaf_ids)} labels, {len(taxonomy.names)} accepted names; "
        f"{flat} labels have nothing between themselves and their group.",
    ]
    return [*lines, ""], True


def check(config: ml_collections.ConfigDict, out: pathlib.Path) -> bool:
    """Writes report and contact sheet to `out`; returns whether a run can use the data."""
    sources = [
        open_source(config, config.seed),
        open_source(config, config.evaluation.seed, **config.evaluation.options),
    ]
    training, evaluation = (
        look(name, source, config.data.workers)
        for name, source in zip(("training", "evaluation"), sources, strict=True)
    )
    options = config.verifier.options
    words = options.get("max_words", 8)
    tree, fits = check_tree(sources, options.get("path", ""), words)
    if fits and not options.get("path", ""):
        own = pathlib.Path(label_tree.path_of(sources)).read_text(encoding="utf-8")
        (out / "label_tree.json").write_text(own, encoding="utf-8")
    about = [*describe(training, words), *describe(evaluation, words)]
    report = "\n".join(["# Data", "", *about, *compare(training, evaluation), *tree])
    (out / "data_check.md").write_text(report)
    contact_sheet(training, out / "contact_sheet.png")
    print(f"{report}\nreport: {out / 'data_check.md'}\nsheet:  {out / 'contact_sheet.png'}")
    usable = fits or config.verifier.name != "taxonomy"
    return usable and not training.broken and not evaluation.broken


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if len(argv) > 1 or not given.out or given.config is None:
        raise app.UsageError("give --config=FILE and --out=FOLDER, and flags only")
    config, out = given.config, pathlib.Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    with config.unlocked():
        config.data.on_decode_error = "raise"  # broken images are reported, not skipped
    if not check(config, out):
        sys.exit(1)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Configuration.", lock_config=True)
    flags.DEFINE_string("out", None, "Receives the report and the contact sheet.")
    exit_codes.run_tool("check_data", main)
