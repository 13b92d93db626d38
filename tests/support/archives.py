"""Small archives in the official layout of each published data set, and a program that prepares
them with the real builders: `python archives.py FOLDER DATA NAME...`."""

import io
import json
import pathlib
import sys
import tarfile

import numpy as np
from PIL import Image
from scipy.io import savemat

from speciarl_jax.tools import prepare_data


def image(seed, height=36, width=52, kind="JPEG"):
    """An encoded image and its pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def mask(height=36, width=52):
    file = io.BytesIO()
    Image.fromarray(np.full((height, width), 2, np.uint8)).save(file, "PNG")
    return file.getvalue()


def tar(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            data = data.encode() if isinstance(data, str) else data
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def mat(path, **content):
    savemat(path, content)


def birds(folder):
    names = [
        "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg",
        "143.Caspian_Tern/Caspian_Tern_0001_2.jpg",
        "141.Artic_Tern/Artic_Tern_0005_7.jpg",
    ]
    split = [1, 1, 0]
    root = "CUB_200_2011/"
    files = {
        f"{root}images.txt": "".join(f"{i} {n}\n" for i, n in enumerate(names, 1)),
        f"{root}train_test_split.txt": "".join(f"{i} {s}\n" for i, s in enumerate(split, 1)),
        f"{root}bounding_boxes.txt": "".join(f"{i} 1.0 2.0 30.0 20.0\n" for i in (1, 2, 3)),
    }
    files |= {f"{root}images/{name}": image(i) for i, name in enumerate(names)}
    tar(folder / "CUB_200_2011.tgz", files)
    masks = {f"segmentations/{name[:-4]}.png": mask() for name in names}
    tar(folder / "segmentations.tgz", masks)
    return {
        "train": {"Black_Footed_Albatross_0046_18": (0, "Black-footed Albatross")}
        | {"Caspian_Tern_0001_2": (1, "Caspian Tern")},
        "test": {"Artic_Tern_0005_7": (2, "Arctic Tern")},
    }


def flowers(folder):
    # The published archive ends in .tgz and is not compressed.
    images = {f"jpg/image_{i:05}.jpg": image(i) for i in (1, 2, 3, 4)}
    tar(folder / "102flowers.tgz", images, mode="w")
    mat(folder / "imagelabels.mat", labels=np.array([[60, 77, 1, 60]], np.uint8))
    mat(
        folder / "setid.mat",
        trnid=np.array([[1, 2]], np.uint16),
        valid=np.array([[3]], np.uint16),
        tstid=np.array([[4]], np.uint16),
    )
    return {
        "train": {"image_00001": (1, "pink-yellow dahlia"), "image_00002": (2, "passion flower")},
        "validation": {"image_00003": (3, "pink primrose")},
        "test": {"image_00004": (4, "pink-yellow dahlia")},
    }


def food(folder):
    meta = {
        "train": {"apple_pie": ["apple_pie/1", "apple_pie/2"], "pho": ["pho/3"]},
        "test": {"apple_pie": ["apple_pie/4"]},
    }
    root = "food-101/"
    files = {f"{root}meta/{name}.json": json.dumps(value) for name, value in meta.items()}
    for name in ("apple_pie/1", "apple_pie/2", "pho/3", "apple_pie/4"):
        files[f"{root}images/{name}.jpg"] = image(int(name[-1]))
    tar(folder / "food-101.tar.gz", files)
    return {
        "train": {"apple_pie/1": (1, "apple pie"), "apple_pie/2": (2, "apple pie")}
        | {"pho/3": (3, "pho")},
        "test": {"apple_pie/4": (4, "apple pie")},
    }


def pets(folder):
    # One of those that the builder mends: no JPEG in spite of its name.
    kinds = {"Abyssinian_34": "PNG"}
    lists = {
        "trainval": "Abyssinian_34 1 1 1\nbeagle_7 5 2 1\n",
        "test": "german_shorthaired_2 15 2 10\n",
    }
    names = [line.split()[0] for text in lists.values() for line in text.splitlines()]
    images = {
        f"images/{name}.jpg": image(i, kind=kinds.get(name, "JPEG")) for i, name in enumerate(names)
    }
    tar(folder / "images.tar.gz", images)
    box = (
        "<annotation><size><width>52</width><height>36</height></size><object><bndbox>"
        "<xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object></annotation>"
    )
    files = {f"annotations/{name}.txt": text for name, text in lists.items()}
    files |= {f"annotations/trimaps/{name}.png": mask() for name in names}
    files |= {f"annotations/xmls/{name}.xml": box for name in names}
    tar(folder / "annotations.tar.gz", files)
    return {
        "train": {"Abyssinian_34": (None, "Abyssinian"), "beagle_7": (1, "Beagle")},
        "test": {"german_shorthaired_2": (2, "German Shorthaired Pointer")},
    }


def cars(folder):
    def annotations(rows):
        fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
        found = np.zeros((1, len(rows)), [(name, object) for name in fields])
        for i, (label, name) in enumerate(rows):
            found[0, i] = (1, 2, 30, 20, label, name)
        return found

    tar(folder / "cars_train.tgz", {f"cars_train/0000{i}.jpg": image(i) for i in (1, 2)})
    tar(folder / "cars_test.tgz", {"cars_test/00001.jpg": image(3)})
    file = io.BytesIO()
    mat(file, annotations=annotations([(1, "00001.jpg"), (196, "00002.jpg")]))
    tar(folder / "car_devkit.tgz", {"devkit/cars_train_annos.mat": file.getvalue()})
    rows = annotations([(39, "00001.jpg")])
    mat(folder / "cars_test_annos_withlabels.mat", annotations=rows)
    return {
        "train": {"00001": (1, "AM General Hummer SUV 2000")}
        | {"00002": (2, "smart fortwo Convertible 2012")},
        "test": {"00001": (3, "Bentley Continental Supersports Convertible 2012")},
    }


AIRCRAFT = {
    "train": [
        ("0034309", "737-200", "Boeing 737", "Boeing"),
        ("1025794", "F/A-18", "F/A-18", "McDonnell Douglas"),
    ],
    "val": [("3", "A320", "A320", "Airbus")],
    "test": [("4", "Eurofighter Typhoon", "Eurofighter Typhoon", "Eurofighter")],
}


def aircraft(folder):
    files, root = {}, "fgvc-aircraft-2013b/data/"
    for split, rows in AIRCRAFT.items():
        for k, level in enumerate(("variant", "family", "manufacturer"), 1):
            lines = "".join(f"{row[0]} {row[k]}\n" for row in rows)
            files[f"{root}images_{level}_{split}.txt"] = lines
        files |= {f"{root}images/{row[0]}.jpg": image(int(row[0]), 60, 52) for row in rows}
    tar(folder / "fgvc-aircraft-2013b.tar.gz", files)
    names = {"train": "train", "val": "validation", "test": "test"}
    return {
        names[split]: {row[0]: (int(row[0]), row[1]) for row in rows}
        for split, rows in AIRCRAFT.items()
    }


WRITERS = {
    "caltech_birds2011": birds,
    "oxford_flowers102": flowers,
    "food101": food,
    "oxford_iiit_pet": pets,
    "cars196": cars,
    "fgvc_aircraft": aircraft,
}
NO_TENSORFLOW = ("food101", "fgvc_aircraft")


def write(dataset, folder):
    """Writes the archives; returns split -> name -> (seed of the image, label)."""
    folder.mkdir(parents=True, exist_ok=True)
    return WRITERS[dataset](folder)


if __name__ == "__main__":
    archives, data = map(pathlib.Path, sys.argv[1:3])
    for dataset in sys.argv[3:]:
        print(prepare_data.prepare(dataset, str(data), str(archives / dataset)))
