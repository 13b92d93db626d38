"""Reads the paper's data sets without TensorFlow; `speciarl_jax.tools.prepare_data` makes them.

Splits and sizes are those of TFDS. Two differ from the paper's, which follows CoOp: the test splits
of Flowers102 (6,149 here, 2,463 there) and Food101 (25,250 here, 30,300 there).
`split_file` takes CoOp's own list of images.
"""

import dataclasses
import functools
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from speciarl_jax.data import file_dataset, images

TREES = pathlib.Path(__file__).parent / "label_trees"


@dataclasses.dataclass(frozen=True)
class Published:
    """A data set as its authors published it.

    Attributes:
      builder: name and version of the TFDS builder.
      sizes: images of each split.
      classes: how many labels.
      name_feature: what names an image in TFDS.
      aliases: other names of splits.
      crop_bottom: rows of pixels at the lower edge that are no image.
      coop_test: images of CoOp's test split, where it is not the one of `sizes`.
    """

    builder: str
    sizes: Mapping[str, int]
    classes: int
    name_feature: str
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    crop_bottom: int = 0
    coop_test: int = 0


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
}


def make_builder(dataset: str, data_dir: str | None) -> Any:
    """The TFDS builder of one of `PUBLISHED`, writing and reading ArrayRecord.

    Raises:
      ValueError: an unknown data set.
    """
    import tensorflow_datasets as tfds

    if dataset not in PUBLISHED:
        raise ValueError(f"dataset is {dataset!r}; choose one of {sorted(PUBLISHED)}")
    if dataset == "fgvc_aircraft":
        # Importing it makes it known to TFDS.
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
        subset: int = 0,
        subset_seed: int = 0,
    ):
        """Opens the records; decodes no image.

        Args:
          dataset: one of `PUBLISHED`.
          split: of the data set, or of `split_file`.
          seed: changes nothing.
          data_dir: where it was prepared; "" for TFDS' own folder (~/tensorflow_datasets).
          check_sizes: refuse a split that has not as many images as were published, and a test
            split of `split_file` that has not as many as CoOp's.
          split_file: CoOp's list of images (`split_zhou_*.json`); "" for the splits of TFDS.
          subset: as for `file_dataset.choose_subset`.
          subset_seed: as for `file_dataset.choose_subset`.

        Raises:
          ValueError: it was not prepared, or does not hold what was published.
        """
        del seed
        builder = make_builder(dataset, data_dir)
        published = PUBLISHED[dataset]
        tree = _tree(dataset, builder)
        if split_file:
            wanted = _read_split_file(split_file, split)
            names = list(published.sizes)
        else:
            wanted, names = None, [published.aliases.get(split, split)]
        entries = []
        records = {}
        for name in names:
            records[name] = _open(builder, dataset, data_dir, name, check_sizes)
            rows = _index(builder, dataset, name, records[name])
            entries += _entries(tree, dataset, name, rows)
        if wanted is not None:
            entries = _pick(entries, wanted, split_file)
            if check_sizes and split == "test" and published.coop_test not in (0, len(entries)):
                raise ValueError(
                    f"{split_file} has {len(entries)} images in 'test', CoOp's of {dataset} "
                    f"{published.coop_test}; take the file from CoOp's own page, or set "
                    "config.data.options.check_sizes=False if it is meant to be another"
                )

        def read(entry: file_dataset.Entry) -> np.ndarray:
            name, row = entry.place
            record = records[name][row]
            image = images.decode(_bytes(record["image"]), f"{dataset} {entry.key!r}")
            return image[: len(image) - published.crop_bottom]

        super().__init__(
            entries,
            read,
            tree,
            name=dataset,
            subset=subset,
            subset_seed=subset_seed,
        )


def _tree(dataset: str, builder: Any) -> Mapping[str, Any]:
    if dataset != "fgvc_aircraft":
        return json.loads((TREES / f"{dataset}.json").read_text())
    from speciarl_jax.data import fgvc_aircraft

    return fgvc_aircraft.label_tree((builder.info.metadata or {}).get("lineage", {}))


def _open(
    builder: Any, dataset: str, data_dir: str, split: str, check_sizes: bool
) -> Sequence[Mapping[str, Any]]:
    """The records of a split with their images encoded.

    Raises:
      ValueError: it was not prepared, in another format, or has another size than published.
    """
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
            f"{dataset} is not in {builder.data_dir} as ArrayRecord ({error}); prepare it once "
            f"with {again}"
        ) from error
    if check_sizes and len(records) != published.sizes[split]:
        raise ValueError(
            f"{dataset} in {builder.data_dir} has {len(records)} images in {split!r}, the "
            f"published set {published.sizes[split]}; delete it and run {again}, or set "
            "config.data.options.check_sizes=False if it is meant to be another"
        )
    return records


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else np.asarray(value).tobytes()


def _index(builder: Any, dataset: str, split: str, records: Sequence) -> list[list[Any]]:
    """[name, class number] of each record, kept beside the records.

    Raises:
      ValueError: the records do not fit what was published.
    """
    folder = pathlib.Path(builder.data_dir)
    shards = sorted((p.name, p.stat().st_size) for p in folder.glob(f"*-{split}.*"))
    path = folder / f"speciarl_index_{split}.json"
    try:
        kept = json.loads(path.read_text())
        if kept["shards"] == [list(shard) for shard in shards] and shards:
            return kept["rows"]
    except (OSError, ValueError, KeyError):
        pass
    feature = PUBLISHED[dataset].name_feature
    rows = []
    for number, record in enumerate(records):
        name = _text(record[feature]) if feature in record else ""
        rows.append([name or f"{split}/{number}", int(record["label"])])
        said = _text(record.get("label_name", ""))
        if dataset == "caltech_birds2011" and said:
            _check_bird(said, rows[-1])
    _keep(path, {"shards": shards, "rows": rows})
    return rows


@functools.cache
def _bird_names() -> list[str]:
    tree = json.loads((TREES / "caltech_birds2011.json").read_text())
    return [label_id.split("/")[1].lower() for label_id in tree["leaves"]]


def _check_bird(said: str, row: list[Any]) -> None:
    name, label = row
    if "." in name and _bird_names()[label] != said:
        raise ValueError(
            f"caltech_birds2011 {name!r} is of class {label + 1}, which is "
            f"{_bird_names()[label]!r}, but calls itself {said!r}; prepare the data set again"
        )


def _keep(path: pathlib.Path, content: Any) -> None:
    """Writes a file as a whole or, where the folder is not ours to write, not at all."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(content, file)
        os.replace(file.name, path)
    except OSError:
        pass


def _entries(
    tree: Mapping[str, Any], dataset: str, split: str, rows: Sequence[Sequence[Any]]
) -> list[file_dataset.Entry]:
    if dataset == "fgvc_aircraft":
        from speciarl_jax.data import fgvc_aircraft

        label_ids = [f"{dataset}/{variant}" for variant in fgvc_aircraft.VARIANTS]
    else:
        label_ids = list(tree["leaves"])
    if len(label_ids) != PUBLISHED[dataset].classes:
        raise ValueError(
            f"the label tree of {dataset} has {len(label_ids)} leaves, the data set "
            f"{PUBLISHED[dataset].classes} classes"
        )
    return [
        file_dataset.Entry(
            name, label_ids[label], tree["leaves"][label_ids[label]]["name"], (split, i)
        )
        for i, (name, label) in enumerate(rows)
    ]


def _read_split_file(path: str, split: str) -> list[str]:
    """The images of a split in CoOp's format: split -> [[file, class number, class name], ...].

    Raises:
      ValueError: the file is missing or damaged, or has no such split.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text())
        names = [str(row[0]) for row in content[split]]
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); set split_file") from None
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(
            f"{path} holds no split {split!r} as CoOp writes it ({error!r}); choose train, val or "
            "test, or take the file from CoOp's own page"
        ) from None
    return names


def _pick(
    entries: Sequence[file_dataset.Entry], names: Sequence[str], path: str
) -> list[file_dataset.Entry]:
    """The entries of the images that a split file names, in its order.

    Raises:
      ValueError: the file names an image that is not there.
    """
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
    """An image's name without folders above its class and without suffix."""
    return "/".join(name.split("/")[-2:]).rsplit(".jpg", 1)[0]
