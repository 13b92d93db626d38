"""Compiles a step for machines that need not be there, and says what it takes on each chip.

    pip install libtpu==0.0.52
    python -m speciarl_jax.tools.plan --config=configs/cub_v5e16.py --topology=v5e:4x4 --model=7b
    python -m speciarl_jax.tools.plan --config=configs/quickstart.py --topology=cpu:8
    python -m speciarl_jax.tools.plan --config=configs/cub_v5e16.py --topology=v5e:4x4 --model=7b \
        --bounds --config.rollout.kv_cache=int8

No accelerator, weights or images are needed. Nothing is run: memory and exchanges are those of
the compiled programs, FLOPs and bytes our own counts, and times lower bounds from the chips' peaks.
"""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import app, flags
from ml_collections import config_flags

from speciarl_jax.runtime import exit_codes
from speciarl_jax.tools.plan import chips, measure, programs, report, search

# CUB's photographs are at most 500 px a side, and a batch is padded to its largest.
_PIXELS = "500x500"


def read_pixels(text: str, config: ml_collections.ConfigDict) -> tuple[int, int]:
    """Height and width of "HEIGHTxWIDTH"; where it is empty, of the configuration's images.

    Raises:
      ValueError: it is neither.
    """
    if not text:
        drawn = config.data.options.get("image_size")
        text = f"{drawn}x{drawn}" if drawn else _PIXELS
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or not all(map(int, found.groups())):
        raise ValueError(f"--pixels={text} is no size; give HEIGHTxWIDTH, {_PIXELS} for instance")
    return int(found.group(1)), int(found.group(2))


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if len(argv) > 1 or given.config is None or not given.topology:
        raise app.UsageError("give --config=FILE and --topology=v5e:4x4, and flags only")
    about = {name: given[name].value for name in ("model", "pixels", "prompt_tokens")}
    if given.bounds:
        print(bounds(given.config, given.topology, **about))
        return
    record = make(
        given.config,
        given.topology,
        **about,
        only=tuple(given.programs),
        search_compiles=given.search_compiles if given.search else 0,
    )
    print(report.text(record))
    if given.json:
        pathlib.Path(given.json).write_text(json.dumps(record, indent=1) + "\n")


def make(
    config: ml_collections.ConfigDict,
    topology: str,
    *,
    model: str = "",
    pixels: str = "",
    prompt_tokens: int = 0,
    only: tuple[str, ...] = (),
    search_compiles: int = 0,
) -> dict[str, Any]:
    """Compiles the programs of a step, and returns what `--json` writes.

    Args:
      topology: as for `chips.devices`.
      model: a published size, or "" for the checkpoint of the configuration.
      pixels: HEIGHTxWIDTH of the largest image; "" for the default.
      prompt_tokens: of the text around an image; 0 for a guess from its length.
      only: names of programs; all when empty.
      search_compiles: settings of mesh and chunks to compile until one fits; 0 for this one only.

    Raises:
      ValueError: something does not fit together; says what, and how to mend it.
      ModuleNotFoundError: libtpu is not installed.
    """
    chip, devices, dimensions, sizes = _read(config, topology, model, pixels, prompt_tokens)

    def compile_(config):
        plan = programs.abstract(config, dimensions, sizes, devices)
        found = [measure.measure(plan, p, chip) for p in programs.programs(plan, only)]
        return report.record(plan, topology, found)

    if not search_compiles:
        return compile_(config)
    if chip is None:
        raise ValueError("--search needs chips with a limit of memory, v5e:4x4 for instance")
    return search.search(config, dimensions, sizes, chip, devices, compile_, search_compiles)


def bounds(
    config: ml_collections.ConfigDict,
    topology: str,
    *,
    model: str = "",
    pixels: str = "",
    prompt_tokens: int = 0,
) -> str:
    """Says what a step takes at least, by our counts alone; arguments and errors as for `make`.

    Nothing is compiled, so it takes seconds, and whether the step fits into memory stays open.

    Raises:
      ValueError: also for a topology without limits.
    """
    chip, devices, dimensions, sizes = _read(config, topology, model, pixels, prompt_tokens)
    if chip is None:
        raise ValueError("--bounds needs chips with limits, v5e:4x4 for instance")
    return report.bounds(programs.abstract(config, dimensions, sizes, devices), chip)


def _read(config, topology, model, pixels, prompt_tokens):
    """Returns the chip, its devices, the dimensions of the policy, and the sizes of a batch."""
    chip, devices = chips.devices(topology)
    dimensions = programs.model_config(model, config.model.path)
    sizes = programs.sizes_of(config, dimensions, read_pixels(pixels, config), prompt_tokens)
    return chip, devices, dimensions, sizes


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Configuration.", lock_config=True)
    flags.DEFINE_string("topology", None, "v5e:4x4, v5p:2x2x2, v6e:2x4, v4:2x2x2, cpu:8, ...")
    flags.DEFINE_string("model", "", "7b, qwen3_vl_4b, ...; empty: config.model.path.")
    flags.DEFINE_string("pixels", "", f"HEIGHTxWIDTH of the largest image; default {_PIXELS}.")
    flags.DEFINE_integer("prompt_tokens", 0, "Of the text around an image; 0 for a guess.")
    flags.DEFINE_list("programs", [], "Some of step, rollout, verify, update, evaluate.")
    flags.DEFINE_string("json", None, "File for the plan.")
    flags.DEFINE_bool("bounds", False, "Only our own bounds of the time; nothing is compiled.")
    flags.DEFINE_bool("search", False, "Look for a mesh and chunk sizes that fit.")
    flags.DEFINE_integer("search_compiles", 4, "Settings that --search compiles, at most.")


if __name__ == "__main__":
    define_flags()
    exit_codes.run_tool("plan", main)
