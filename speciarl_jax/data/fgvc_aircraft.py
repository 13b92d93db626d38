"""TFDS builder of FGVC-Aircraft (Maji et al., arXiv 1306.5151), which TFDS lacks.

10,000 photographs of 100 variants, each with its family and manufacturer.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

ARCHIVE = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz"
# In the order of variants.txt in the archive.
VARIANTS = (
    """
707-320|727-200|737-200|737-300|737-400|737-500|737-600|737-700|737-800|737-900|747-100|747-200
747-300|747-400|757-200|757-300|767-200|767-300|767-400|777-200|777-300|A300B4|A310|A318|A319|A320
A321|A330-200|A330-300|A340-200|A340-300|A340-500|A340-600|A380|ATR-42|ATR-72|An-12|BAE 146-200
BAE 146-300|BAE-125|Beechcraft 1900|Boeing 717|C-130|C-47|CRJ-200|CRJ-700|CRJ-900|Cessna 172
Cessna 208|Cessna 525|Cessna 560|Challenger 600|DC-10|DC-3|DC-6|DC-8|DC-9-30|DH-82|DHC-1|DHC-6
DHC-8-100|DHC-8-300|DR-400|Dornier 328|E-170|E-190|E-195|EMB-120|ERJ 135|ERJ 145|Embraer Legacy 600
Eurofighter Typhoon|F-16A/B|F/A-18|Falcon 2000|Falcon 900|Fokker 100|Fokker 50|Fokker 70
Global Express|Gulfstream IV|Gulfstream V|Hawk T1|Il-76|L-1011|MD-11|MD-80|MD-87|MD-90|Metroliner
Model B200|PA-28|SR-20|Saab 2000|Saab 340|Spitfire|Tornado|Tu-134|Tu-154|Yak-42
""".strip()
    .replace("\n", "|")
    .split("|")
)

_LEVELS = ("variant", "family", "manufacturer")
# TFDS split -> split of the archive.
_SPLITS = {"train": "train", "validation": "val", "test": "test"}


class FgvcAircraft(tfds.core.GeneratorBasedBuilder):
    """Images with variant (the label), family and manufacturer; needs no TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The archive of 2013."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=VARIANTS),
                    "family": tfds.features.Text(),
                    "manufacturer": tfds.features.Text(),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        data = dl_manager.download_and_extract(ARCHIVE) / "fgvc-aircraft-2013b" / "data"
        lists = {name: _read_lists(data, part) for name, part in _SPLITS.items()}
        known: dict[str, list[str]] = {}
        for found in lists.values():
            for variant, *above in found.values():
                if above != known.setdefault(variant, above):
                    raise ValueError(
                        f"{data}: variant {variant!r} has the family and manufacturer "
                        f"{known[variant]} in one place and {above} in another; download it again"
                    )
        return {name: self._generate_examples(data, found) for name, found in lists.items()}

    def _generate_examples(
        self, data: epath.Path, lists: Mapping[str, list[str]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for image, (variant, family, manufacturer) in lists.items():
            yield (
                image,
                {
                    "image": data / "images" / f"{image}.jpg",
                    "label": variant,
                    "family": family,
                    "manufacturer": manufacturer,
                    "file_name": f"{image}.jpg",
                },
            )


def _read_lists(data: epath.Path, part: str) -> dict[str, list[str]]:
    """Maps the image numbers of a part of the archive to variant, family and manufacturer."""
    found: dict[str, list[str]] = {}
    for level in _LEVELS:
        path = data / f"images_{level}_{part}.txt"
        if not path.exists():
            raise ValueError(f"{path} is missing; download the archive fgvc-aircraft-2013b again")
        for line in path.read_text().splitlines():
            image, space, name = line.partition(" ")
            if not (image.isdigit() and space and name.strip()):
                raise ValueError(f"{path}: the line {line!r} is no number and name")
            found.setdefault(image, []).append(name.strip())
    uneven = [image for image, names in found.items() if len(names) != len(_LEVELS)]
    if uneven:
        raise ValueError(
            f"{data}: image {uneven[0]} is not once in each of the lists of variants, families "
            f"and manufacturers of {part!r}; download the archive again"
        )
    return found
