"""Draws the two images of the README from the folder of a quickstart run.

    bash launch/quickstart.sh
    python -m scripts.readme_images --workdir=runs/quickstart

`docs/images/report.png` shows the upper part of the run's `report.html` in Chromium, 1280 pixels
wide (`pip install playwright`, `apt-get install chromium`). `docs/images/answers.png` shows six
evaluation images with the answers of the base and of the trained policy: for each change of
category in `CHANGES`, the clearest image with that change. Two of the six did not become better.
"""

import argparse
import pathlib
import re
import shutil

import matplotlib.pyplot as plt
import ml_collections
from etils import epath
from PIL import Image

from speciarl_jax.data.sources import open_source
from speciarl_jax.evaluation.report import folder, palette

OUT = pathlib.Path(__file__).resolve().parent.parent / "docs" / "images"
WIDTH, HEIGHT = 1280, 1180  # pixels of the report
# Categories before and after.
CHANGES = (
    ("generic", "specific"),
    ("abstain", "specific"),
    ("generic", "less_specific"),
    ("wrong", "specific"),
    ("generic", "generic"),
    ("generic", "wrong"),
)
DIFFICULTIES = ("clean", "easy", "moderate", "hard")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def draw_report(page_path: pathlib.Path, out: pathlib.Path) -> None:
    """Saves a screenshot of the upper part of a report."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(page_path.resolve().as_uri())
        page.wait_for_timeout(1000)
        page.screenshot(path=out)
        browser.close()
    # Few colours are enough, and make a small file.
    Image.open(out).convert("RGB").quantize(128).save(out, optimize=True)


def choose(content: folder.Folder) -> list[tuple[dict, dict]]:
    """Returns the (base, trained) lines of an image for each of `CHANGES`; no two share a group."""
    lines = {run["policy"]: content.greedy(run) for run in content.metrics["runs"]}
    pairs = list(zip(lines["base"], lines["trained"], strict=True))
    # Clear images first: the reader should be able to judge the answers.
    pairs.sort(key=lambda pair: DIFFICULTIES.index(pair[0]["difficulty"]))
    chosen = []
    for change in CHANGES:
        used = {base["generic"] for base, _ in chosen}
        fitting = [p for p in pairs if tuple(line["categories"][0] for line in p) == change]
        fitting.sort(key=lambda pair: pair[0]["generic"] in used)
        chosen += fitting[:1]
    return chosen


def draw_answers(content: folder.Folder, out: pathlib.Path) -> None:
    """Draws the chosen images with their answers and categories."""
    config = ml_collections.ConfigDict(next(iter(content.configs.values())))
    source = open_source(config, config.evaluation.seed, **config.evaluation.options)
    chosen = choose(content)
    figure, axes = plt.subplots(1, len(chosen), figsize=(12.8, 3.4), dpi=100)
    for axis, lines in zip(axes, chosen, strict=True):
        axis.imshow(source[lines[0]["index"]]["image"], interpolation="nearest")
        axis.axis("off")
        axis.set_title(lines[0]["label"], fontsize=13, weight="bold")
        for height, name, line in zip((-0.16, -0.44), ("before", "after"), lines, strict=True):
            category = line["categories"][0]
            look = palette.CATEGORIES[category]
            said = _ANSWER.search(line["responses"][0])
            text = said.group(1).strip() if said else "(no answer)"
            axis.text(0, height, f"{name}: {text}", transform=axis.transAxes, fontsize=11)
            axis.text(
                0.015,
                height - 0.12,
                palette.name(category),
                transform=axis.transAxes,
                fontsize=9,
                color=look.on,
                bbox={"facecolor": look.colour, "edgecolor": "none", "boxstyle": "round,pad=0.3"},
            )
    figure.subplots_adjust(left=0.015, right=0.995, top=0.9, bottom=0.36, wspace=0.12)
    figure.savefig(out, facecolor="white")
    Image.open(out).convert("RGB").quantize(256).save(out, optimize=True)


def main() -> None:
    """Draws both images."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="of a quickstart run")
    parser.add_argument("--out", type=pathlib.Path, default=OUT, help="folder of the images")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    draw_report(args.workdir / "report.html", args.out / "report.png")
    draw_answers(folder.read(epath.Path(args.workdir)), args.out / "answers.png")


if __name__ == "__main__":
    main()
