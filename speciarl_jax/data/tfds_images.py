"""Reads published data sets without TensorFlow; `speciarl_jax.tools.prepare_data` writes them.

Splits and sizes are those of TFDS. The paper follows CoOp, whose test splits of Flowers102 (2,463
images; TFDS: 6,149) and Food101 (30,300; TFDS: 25,250) differ. `split_file` reads CoOp's own lists.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from speciarl_jax.data import file_dataset, images
from speciarl_jax.runtime import jsonl
from speciarl_jax.runtime.messages import first_line

TREES = pathlib.Path(__file__).parent / "label_trees"


@dataclasses.dataclass(frozen=True)
class Published:
    """A data set as its authors published it."""

    builder: str  # name and version of the TFDS builder
    sizes: Mapping[str, int]  # split -> number of images
    classes: int
    name_feature: str  # TFDS feature that holds an image's name
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    crop_bottom: int = 0  # rows of pixels at the lower edge that do not belong to the photograph
    coop_test: int = 0  # number of images of CoOp's test split, where it differs from `sizes`


PUBLISHED = {
    "caltech_birds2011": Published(
        "caltech_birds2011:0.2.0", {"train": 5994, "test": 5794}, 200, "image/filename"
    ),
    "oxford_flowers102": Published(
        "oxford_flowers102:2.1.1",
        {"train": 1020, "validation": 1020, "test": 6149},
        102,
        "file_name",
        coop_test=2463,
    ),
    # What the authors call test is TFDS' validation.
    "food101": Published(
        "food101:2.1.0",
        {"train": 75750, "validation": 25250},
        101,
        "id",
        {"test": "validation"},
        coop_test=30300,
    ),
    "oxford_iiit_pet": Published(
        "oxford_iiit_pet:4.0.0", {"train": 3680, "test": 3669}, 37, "file_name"
    ),
    "cars196": Published("cars196:2.1.0", {"train": 8144, "test": 8041}, 196, "id"),
    # The lowest 20 rows of each photograph are a banner with the photographer's name.
    "fgvc_aircraft": Published(
        "fgvc_aircraft:1.0.0",
        {"train": 3334, "validation": 3333, "test": 3333},
        100,
        "file_name",
        crop_bottom=20,
    ),
    "cifar100": Published("cifar100:3.0.2", {"train": 50_000, "test": 10_000}, 100, "id"),
}
# The data sets of arXiv 2603.03197.
PAPER = tuple(name for name in PUBLISHED if name != "cifar100")


def make_builder(dataset: str, data_dir: str | None) -> Any:
    """Returns the TFDS builder of one of `PUBLISHED`, which writes and reads ArrayRecord.

    Raises:
      ValueError: an unknown data set.
    """
    import tensorflow_datasets as tfds

    if dataset not in PUBLISHED:
        raise ValueError(f"dataset is {dataset!r}; choose one of {sorted(PUBLISHED)}")
    if dataset == "fgvc_aircraft":
        # The import registers the builder with TFDS.
        from speciarl_jax.data import fgvc_aircraft  # noqa: F401
    return tfds.builder(
        PUBLISHED[dataset].builder, data_dir=data_dir or None, file_format="array_record"
    )


class Source(file_dataset.Listing):
    """Random access to a split of a published data set."""

    def __init__(
        self,
        *,
        dataset: str,
        split: str,
        seed: int,
        data_dir: str = "",
        check_sizes: bool = True,
        split_file: str = "",
        **selection: Any,
    ):
        """Opens the records; decodes no image.

        Args:
          dataset: one of `PUBLISHED`.
          split: name of a split of the data set, or of `split_file`.
          seed: has no effect.
          data_dir: folder of prepared data sets; "" for TFDS' own (~/tensorflow_datasets).
          check_sizes: refuses a split that differs in size from the published one, and a test
            split of `split_file` that differs in size from CoOp's.
          split_file: CoOp's list of images (`split_zhou_*.json`); "" for the splits of TFDS.
          **selection: options of `file_dataset.Listing`, such as `subset`.

        Raises:
          ValueError: the data set was not prepared, or does not hold what was published.
        """
        del seed
        builder, published = make_builder(dataset, data_dir), PUBLISHED[dataset]
        tree = json.loads((TREES / f"{dataset}.json").read_text("utf-8"))
        label_ids = list(tree["leaves"])
        # The lists of CoOp may draw from all splits.
        names = list(published.sizes) if split_file else [published.aliases.get(split, split)]
        entries, records = [], {}
        for name in names:
            records[name] = _open(builder, dataset, data_dir, name, check_sizes)
            for i, (key, label) in enumerate(_index(builder, dataset, name, records[name], tree)):
                label_id = label_ids[label]
                label_name = tree["leaves"][label_id]["name"]
                entries.append(file_dataset.Entry(key, label_id, label_name, (name, i)))
        if split_file:
            entries = _pick(entries, _read_split_file(split_file, split), split_file)
            if check_sizes and split == "test" and published.coop_test not in (0, len(entries)):
                raise ValueError(
                    f"{split_file} has {len(entries)} images in 'test', CoOp's of {dataset} "
                    f"{published.coop_test}; take the file from CoOp's own page, or set "
                    "config.data.options.check_sizes=False if it is meant to be another"
                )

        def read(entry: file_dataset.Entry) -> np.ndarray:
            name, row = entry.place
            data = np.asarray(records[name][row]["image"]).tobytes()
            image = images.decode(data, f"{dataset} {entry.key!r}")
            return image[: len(image) - published.crop_bottom]

        super().__init__(
            entries, read, tree, name=dataset, content=lambda: _shards(builder), **selection
        )


def _shards(builder: Any) -> str:
    """Hashes the names, sizes and parts of the contents of the prepared records."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(builder.data_dir).glob("*.array_record*")):
        digest.update(path.name.encode() + file_dataset.digest(path))
    return digest.hexdigest()[:32]


def _open(
    builder: Any, dataset: str, data_dir: str, split: str, check_sizes: bool
) -> Sequence[Mapping[str, Any]]:
    """Opens the records of a split; their images stay encoded."""
    import tensorflow_datasets as tfds

    published = PUBLISHED[dataset]
    if split not in published.sizes:
        known = sorted({*published.sizes, *published.aliases})
        raise ValueError(f"{dataset} has no split {split!r}; choose one of {known}")
    again = f"python -m speciarl_jax.tools.prepare_data --dataset={dataset}"
    again += f" --data_dir={data_dir}" if data_dir else ""
    try:
        records = builder.as_data_source(
            split=split, decoders={"image": tfds.decode.SkipDecoding()}
        )
    except Exception as error:  # TFDS raises AssertionError, NotImplementedError and others.
        raise ValueError(
            f"{dataset} is not in {builder.data_dir} as ArrayRecord ({first_line(error)}); "
            f"prepare it once with {again}"
        ) from error
    if check_sizes and len(records) != published.sizes[split]:
        raise ValueError(
            f"{dataset} in {builder.data_dir} has {len(records)} images in {split!r}, the "
            f"published set {published.sizes[split]}; delete it and run {again}, or set "
            "config.data.options.check_sizes=False if it is meant to be another"
        )
    return records


def _index(
    builder: Any, dataset: str, split: str, records: Sequence, tree: Mapping[str, Any]
) -> list[list[Any]]:
    """Returns [name, class number] of each record; a file beside the records keeps the list."""
    folder = pathlib.Path(builder.data_dir)
    shards = sorted([p.name, p.stat().st_size] for p in folder.glob(f"*-{split}.*"))
    path = folder / f"speciarl_index_{split}.json"
    # A damaged index is made anew.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text())
        if kept["shards"] == shards and shards:
            return kept["rows"]
    feature, rows = PUBLISHED[dataset].name_feature, []
    for number, record in enumerate(records):
        name = _text(record.get(feature, "")) or f"{split}/{number}"
        rows.append([name, int(record["label"])])
        if dataset == "caltech_birds2011" and "label_name" in record and "." in name:
            found = _text(record["label_name"])
            wanted = list(tree["leaves"])[rows[-1][1]].split("/")[1].lower()
            if found and found != wanted:
                raise ValueError(
                    f"{dataset} {name!r} is of class {rows[-1][1] + 1}, which is {wanted!r}, but "
                    f"is labelled {found!r}; prepare the data set again"
                )
    # A folder that may not be written to goes without.
    with contextlib.suppress(OSError):
        jsonl.replace(path, json.dumps({"shards": shards, "rows": rows}))
    return rows


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _read_split_file(path: str, split: str) -> list[str]:
    """Reads the image names of a split; CoOp's files hold [file, class number, class name] rows."""
    try:
        content = json.loads(pathlib.Path(path).read_text())
        return [str(row[0]) for row in content[split]]
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); set split_file") from None
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(
            f"{path} holds no split {split!r} as CoOp writes it ({error!r}); choose train, val or "
            "test, or take the file from CoOp's own page"
        ) from None


def _pick(
    entries: Sequence[file_dataset.Entry], names: Sequence[str], path: str
) -> list[file_dataset.Entry]:
    """Returns the entries that a split file names, in its order."""
    by_name = {_stem(entry.key): entry for entry in entries}
    if len(by_name) < len(entries):
        raise ValueError(
            f"split_file={path!r}: images of this data set have the same name in several "
            "splits; use its own splits"
        )
    lost = [name for name in names if _stem(name) not in by_name]
    if lost:
        raise ValueError(
            f"{path} names {len(lost)} images that the data set has not ({lost[0]!r}); it "
            "belongs to another data set, or the data set was prepared without file names"
        )
    return [by_name[_stem(name)] for name in names]


def _stem(name: str) -> str:
    """Returns an image's name without suffix, and of its folders only the class's."""
    return "/".join(name.split("/")[-2:]).rsplit(".jpg", 1)[0]
