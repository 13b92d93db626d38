"""Rebuilds the emoji sheets of the benchmark that ships, from public npm packages.

    pip install resvg-py
    python -m scripts.build_emoji --check       # compares with the sheets that ship
    python -m scripts.build_emoji --out emoji   # writes `<style>_64.png` and `index.json`
    python -m scripts.build_emoji               # overwrites those that ship

Needs npm and access to the npm registry. `resvg-py` draws the images; the package itself does not
need it.

It rebuilds the sheets, and the list of the emoji that each style has. With the versions below,
resvg-py 0.5.0 and pillow 13, the sheets are equal to those that ship, bit for bit. Other versions
may change a few pixels, so `--check` allows a small difference.

It does not rebuild the list of code points, which it reads from the `index.json` that ships, and
`taxonomy.json`, which was drafted from WordNet 3.1 and then curated by hand.
"""

import argparse
import importlib.util
import io
import json
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from PIL import Image

from speciarl_jax.data import emoji

VERSIONS = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
    "fluent-emoji": "1.2.7",
    "fluent-emoji-flat": "1.2.6",
    "openmoji": "1.2.29",
    "emojione": "1.2.3",
    "emojione-v1": "1.2.3",
    "fxemoji": "1.2.2",
}
# The pack that lists the slug of each code point; half of the others have an empty list. All but
# fxemoji use these slugs. fxemoji uses Unicode's names, which NAMES_PACKAGE lists.
SLUGS_OF = "noto"
NAMES_PACKAGE, NAMES_VERSION = "emoji-datasource-google", "16.0.0"

# An icon is drawn, cropped to its visible part, scaled, centred in a frame, and scaled to a cell.
DRAWN = 192  # longer side of the drawing, pixels
FITTED = 92  # longer side of the visible part in the frame, pixels
FRAME = 96  # side of the frame, pixels
VISIBLE = 8  # alpha above which a pixel is visible
COLOURS = 256  # of the palette
BOUND = 1.0  # largest mean absolute difference of a cell, of 255, colours premultiplied


def install(folder: pathlib.Path) -> pathlib.Path:
    """Installs the packages with npm and returns their `node_modules`.

    Raises:
      SystemExit: npm is missing or fails.
    """
    packages = [f"@iconify-json/{style}@{version}" for style, version in VERSIONS.items()]
    packages.append(f"{NAMES_PACKAGE}@{NAMES_VERSION}")
    (folder / "package.json").write_text('{"private": true}')
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", *packages]
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        raise SystemExit("npm is not on the path; install Node.js") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"npm install failed with exit code {error.returncode}") from None
    return folder / "node_modules"


def read_json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def plain(key: str) -> str:
    """Removes the variation selector from code points; packages do not agree on it."""
    return "-".join(part for part in key.lower().split("-") if part != "fe0f")


def icon_names(modules: pathlib.Path, keys: list[str]) -> dict[str, list[str]]:
    """Returns the names of each code point: the common slug, then names in fxemoji's form.

    Raises:
      SystemExit: a code point is in no list.
    """
    chars = read_json(modules / "@iconify-json" / SLUGS_OF / "chars.json")
    slugs = {plain(key): slug for key, slug in chars.items()}
    rows = read_json(modules / NAMES_PACKAGE / "emoji.json")
    names = {plain(row["unified"]): row for row in rows}
    missing = [key for key in keys if key not in slugs or key not in names]
    if missing:
        raise SystemExit(f"the packages list no emoji {missing}; mend VERSIONS or index.json")
    found = {}
    for key in keys:
        spelt = [slugs[key], names[key]["name"], *names[key]["short_names"]]
        flat = [re.sub("[^a-z0-9]", "", name.lower()) for name in spelt]
        found[key] = [slugs[key], *dict.fromkeys(flat)]
    return found


def find_icon(pack: dict[str, Any], names: list[str]) -> dict[str, Any] | None:
    """Returns the first icon of a pack with one of the names or an alias of it, or None."""
    aliases = pack.get("aliases", {})
    for name in names:
        while name in aliases:
            name = aliases[name]["parent"]
        if name in pack["icons"]:
            defaults = {"left": 0, "top": 0, "width": pack["width"], "height": pack["height"]}
            return {**defaults, **pack["icons"][name]}
    return None


def draw(icon: dict[str, Any]) -> Image.Image:
    """Draws the visible part of an icon, centred in a cell."""
    import resvg_py

    box = [icon[name] for name in ("left", "top", "width", "height")]
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{box[2]}" height="{box[3]}" viewBox="{" ".join(map(str, box))}">'
        f"{icon['body']}</svg>"
    )
    longer = "width" if box[2] >= box[3] else "height"
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, **{longer: DRAWN}))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    y, x = np.nonzero(np.asarray(image)[..., 3] > VISIBLE)
    image = image.crop((int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1))
    scale = FITTED / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    frame = Image.new("RGBA", (FRAME, FRAME))
    frame.paste(image, ((FRAME - width) // 2, (FRAME - height) // 2))
    return frame.resize((emoji.CELL, emoji.CELL), Image.Resampling.LANCZOS)


def build(modules: pathlib.Path, style: str, names: dict[str, list[str]], columns: int):
    """Draws the sheet of a style as a palette image; also tells which emoji of `names` it has."""
    folder = modules / "@iconify-json" / style
    # The size of icons that give none; 16 is the format's default.
    pack = {"width": 16, "height": 16, **read_json(folder / "icons.json")}
    # Only fxemoji joins words; in other packs such a name would be another image.
    icons = [
        find_icon(pack, spelt if style == "fxemoji" else spelt[:1]) for spelt in names.values()
    ]
    rows = -(-len(icons) // columns)
    sheet = Image.new("RGBA", (columns * emoji.CELL, rows * emoji.CELL))
    for i, icon in enumerate(icons):
        if icon is not None:
            sheet.paste(draw(icon), (i % columns * emoji.CELL, i // columns * emoji.CELL))
    # The only method built into pillow that keeps alpha.
    palette = sheet.quantize(COLOURS, method=Image.Quantize.FASTOCTREE)
    return palette, [icon is not None for icon in icons]


def cells(sheet: Image.Image, count: int, columns: int) -> np.ndarray:
    """Returns premultiplied cells, float32 [count, CELL, CELL, 4]."""
    rgba = np.asarray(sheet.convert("RGBA")).astype(np.float32)
    rgba = np.concatenate([rgba[..., :3] * rgba[..., 3:] / 255, rgba[..., 3:]], axis=-1)
    rgba = rgba.reshape(-1, emoji.CELL, columns, emoji.CELL, 4).swapaxes(1, 2)
    return rgba.reshape(-1, emoji.CELL, emoji.CELL, 4)[:count]


def compare(sheet: Image.Image, has: list[bool], style: str, index: dict[str, Any]) -> bool:
    """Prints the difference from the sheet that ships; returns whether all are within BOUND."""
    shipped_has = np.array(index["has"][style])
    with Image.open(emoji.ASSETS / f"{style}_64.png") as image:
        shipped = cells(image, len(has), index["cols"])
    rebuilt = cells(sheet, len(has), index["cols"])
    difference = np.abs(rebuilt - shipped).mean(axis=(1, 2, 3))[shipped_has]
    near, same = (difference < BOUND).mean(), (difference == 0).mean()
    others = int((shipped_has != np.array(has)).sum())
    print(
        f"{style:18} {shipped_has.sum():4} cells, {near:6.1%} within {BOUND}, {same:6.1%} equal, "
        f"largest difference {difference.max():.2f}, {others} emoji that only one of both has"
    )
    return bool(near == 1) and not others


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="compare with what ships")
    parser.add_argument("--out", type=pathlib.Path, help="where to write; the package by default")
    args = parser.parse_args()
    out = args.out or (None if args.check else emoji.ASSETS)
    if importlib.util.find_spec("resvg_py") is None:
        raise SystemExit("resvg-py is missing; run `pip install resvg-py`")
    index = read_json(emoji.ASSETS / "index.json")
    has, good = {}, True
    with tempfile.TemporaryDirectory() as folder:
        modules = install(pathlib.Path(folder))
        names = icon_names(modules, index["keys"])
        for style in sorted(VERSIONS):
            sheet, has[style] = build(modules, style, names, index["cols"])
            if args.check:
                good &= compare(sheet, has[style], style, index)
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                sheet.save(out / f"{style}_64.png", optimize=True)
    if out is not None:
        (out / "index.json").write_text(json.dumps({**index, "has": has}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
