r"""Names what is in images: one name each, as specific as the policy's answers agree on.

    python -m speciarl_jax.predict photos/ more/eagle.jpg --workdir=runs/quickstart
    python -m speciarl_jax.predict photos/ --model=emoji_tiny --json
    python -m speciarl_jax.predict photos/ --model=exports/merged --tree=birds.json

Samples several answers about each image. The name is the most specific one that --confidence of
the answers support (`speciarl_jax/evaluation/consensus.py`); the support of more general names is
printed, too. --workdir takes the trained policy of a run, --model a checkpoint folder or a policy
that ships. The label tree is --tree, or that of the configuration's data; without one, only equal
names support each other. Broken images are reported and skipped, and the exit status is then 1.
"""

import copy
import dataclasses
import hashlib
import itertools
import json
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from speciarl_jax.data import folder, image_processor, images, label_tree, prompt_builder
from speciarl_jax.evaluation import consensus
from speciarl_jax.experiment.make_verifier import verifier_options
from speciarl_jax.experiment.run import Run, open_sources, policy_run
from speciarl_jax.models import load_policy
from speciarl_jax.models.checkpoints import peft
from speciarl_jax.runtime import checkpoint, compilation_cache, compiler, exit_codes, sharding
from speciarl_jax.training import policy_sources
from speciarl_jax.verifiers.label_tree import schema

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
# Photographs have many sizes: sizes of prompts are rounded up to buckets, so that few programs are
# compiled.
_BUCKET_GROWTH = 1.25
# Larger photographs are shrunk to so many pixels (a token has 28 x 28), unless the configuration
# has a limit; and further where a prompt would be too long (`fit_images`).
_MAX_PIXELS = 1280 * 28 * 28


def find_images(places: Sequence[str]) -> tuple[list[str], list[str]]:
    """Lists the files to read, each once, and the reasons why folders have none.

    Args:
      places: files, whatever their endings, and folders, searched for files with endings of images.

    Raises:
      ValueError: a place is a URL.
    """
    found, wrong = [], []
    for place in places:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", place):
            raise ValueError(f"{place} is a URL; download the image and give the file")
        path = pathlib.Path(place)
        if not path.is_dir():
            found.append(str(path))
            continue
        try:
            names, others = folder.scan(path)
        except ValueError as error:
            wrong.append(str(error))
            continue
        found += [str(path / name) for name in names]
        if others:
            logging.warning("%s: %s", path, folder.describe_others(others)[0])
    return list(dict.fromkeys(found)), wrong


def read_images(paths: Sequence[str], wrong: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields paths and rows for the prompt builder; appends to `wrong` why others are skipped.

    The image id is a hash of the pixels, so that samples do not depend on names and neighbours.
    """
    for path in paths:
        try:
            image = images.read(path)
        except images.BrokenImageError as error:
            wrong.append(error.reason)
            continue
        digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
        image_id = int.from_bytes(digest[:4], "big") >> 1
        yield path, {"image": image, "image_id": image_id, "label_index": 0}


class Predictor:
    """Samples answers about images; compiled once for each bucket size."""

    def __init__(self, run: Run, lora: Any, *, samples: int, batch_size: int, seed: int = 0):
        """Prepares the program.

        Args:
          run: policy; needs no verifier.
          samples: answers an image, at least 1.
          batch_size: images a call; must be divisible among the devices.

        Raises:
          ValueError: `samples` or `batch_size` does not fit.
        """
        if samples < 1:
            raise ValueError(f"--samples is {samples}; it must be at least 1")
        sharding.check_batch(run.mesh, "--batch_size", batch_size)
        self._run, self._lora = run, lora
        self.batch_size, self._key = batch_size, jax.random.key(seed)
        sampler = run.sampler(samples, run.config.rollout.max_tokens)

        def program(lora, base, batch, key, temperature, top_p):
            _, rollout = sampler(lora, base, batch, key, temperature, top_p)
            return rollout.tokens_BNT, rollout.mask_BNT

        self._program = jax.jit(program, out_shardings=sharding.batch_sharding(run.mesh))

    def __call__(self, rows: Sequence[dict[str, Any]]) -> list[list[str]]:
        """Samples whole responses about each of at most `batch_size` images."""
        run, options = self._run, self._run.config.evaluation
        batch = sharding.put_batch(run.mesh, run.builder(rows, self.batch_size))
        sampling = np.float32(options.best_of_temperature), np.float32(options.best_of_top_p)
        found = self._program(self._lora, run.base, batch, self._key, *sampling)
        tokens_BNT, mask_BNT = (np.asarray(x)[: len(rows)] for x in found)
        return run.answers(tokens_BNT, mask_BNT)


def predict(
    predictor: Predictor,
    paths: Sequence[str],
    tree: consensus.NameTree,
    confidence: float,
    wrong: list[str],
) -> Iterator[tuple[str, consensus.Choice]]:
    """Names each image that can be read, in order.

    Args:
      confidence: as for `consensus.choose`.
      wrong: receives the reasons why files are skipped.
    """
    images_read = read_images(paths, wrong)
    while batch := list(itertools.islice(images_read, predictor.batch_size)):
        responses = predictor([row for _, row in batch])
        for (path, _), said in zip(batch, responses, strict=True):
            yield path, consensus.choose(said, tree, confidence)


def as_json(path: str, choice: consensus.Choice) -> str:
    """Writes a line of JSON; `name` is null where no name has the confidence."""
    return json.dumps(
        {
            "image": path,
            "name": choice.name,
            "agreement": round(choice.agreement, 4),
            "path": [{"name": n, "agreement": round(a, 4)} for n, a in choice.path],
            "answers": {name: count for name, count in choice.answers.items() if name},
            "declined": choice.answers.get("", 0),
            "unread": choice.answers.get(None, 0),
        }
    )


def as_row(path: str, choice: consensus.Choice) -> str:
    """Writes a line for people; characters that cannot be printed are replaced."""
    way = ", ".join(f"{name} {support:.2f}" for name, support in choice.path)
    cells = (choice.name or "?", f"{choice.agreement:.2f}", path, f"({way or 'no name'})")
    text = f"{cells[0]:24}  {cells[1]}  {cells[2]}  {cells[3]}"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def read_tree(path: str | None, config: ml_collections.ConfigDict | None) -> consensus.NameTree:
    """Reads the label tree of a file, or of the data of a configuration; else an empty one.

    Raises:
      ValueError: the file has no label tree.
    """
    if not path and config is not None:
        path = verifier_options(config).get("path", "")
        path = path if str(path).endswith(".json") else ""
        try:
            path = path or label_tree.path_of(open_sources(config))
        except ValueError as error:
            logging.warning("there is no label tree, so only equal names count: %s", error)
    return consensus.NameTree(schema.read(path), str(path)) if path else consensus.NameTree()


def open_policy(given: Any) -> tuple[Run, Any, ml_collections.ConfigDict | None]:
    """Loads the policy that the flags ask for.

    Returns:
      The run, its adapters, and the configuration whose data have the label tree, if there is one.

    Raises:
      ValueError: there is no such policy.
    """
    if given.workdir:
        workdir = epath.Path(given.workdir)
        config = policy_sources.read_config(workdir)
        (policy,) = policy_sources.named([policy_sources.TRAINED], workdir, given.step)
        about = config
    else:
        shipped = given.model in load_policy.shipped()
        config, about = given.config, given.config
        if config is None:
            name = "quickstart.py" if shipped else "base.py"
            config = policy_sources.config_from_file(epath.Path(CONFIGS / name))
            # The data set of base.py is not that of a user's checkpoint.
            about = config if shipped else None
        policy = _on_base(policy_sources.of_path(given.model), given)
    with config.unlocked():
        config.model.update(policy.model)
        config.data.bucket_growth = max(config.data.bucket_growth, _BUCKET_GROWTH)
        config.data.max_pixels = given.max_pixels or config.data.max_pixels or _MAX_PIXELS
        config.rollout.max_tokens = given.max_tokens or config.rollout.max_tokens
        if given.prompt:
            config.data.prompt = given.prompt
    compilation_cache.enable(config.compilation_cache)
    run = policy_run(config, sharding.make_mesh(**config.mesh))
    return fit_images(run, given.max_pixels), policy.adapters(run), about


def _is_adapter(folder: str | None) -> bool:
    return bool(folder) and (pathlib.Path(folder) / peft.CONFIG).is_file()


def _on_base(policy: policy_sources.Policy, given: Any) -> policy_sources.Policy:
    """Returns an adapter's policy with the base that --base names, and others as they are.

    Raises:
      ValueError: the adapter has no base on this disk.
    """
    if not _is_adapter(given.model):
        return policy
    if given.base:
        model = {**policy.model, "path": str(load_policy.model_folder(given.base))}
        return dataclasses.replace(policy, model=model)
    if "path" not in policy.model and given.config is None:
        named = peft.read_adapter_config(given.model).base
        raise ValueError(
            f"the base {named!r} of the adapter {given.model} is no folder on this disk; give "
            "--base=FOLDER, the folder of its checkpoint"
        )
    return policy


def fit_images(run: Run, asked: int | None) -> Run:
    """Returns the run with images shrunk so far that `config.data.max_prompt_tokens` suffices.

    Args:
      asked: --max_pixels, or None.

    Raises:
      ValueError: --max_pixels is above what fits, or not even the smallest image fits.
    """
    data, processor = run.config.data, run.builder.image_processor
    unit = run.model_config.vision.patch_size * run.model_config.vision.spatial_merge_size
    text = len(run.builder.prompt_ids(0))
    most = prompt_builder.most_pixels(data.max_prompt_tokens - text, unit, images.MOST_ASPECT)
    why = (
        f"config.data.max_prompt_tokens is {data.max_prompt_tokens}, and the text of the prompt "
        f"takes {text} of them"
    )
    if most < (least := processor.size["shortest_edge"]):
        raise ValueError(f"{why}; that leaves too little for any image ({least} pixels)")
    if processor.size["longest_edge"] <= most:
        return run
    if asked:
        raise ValueError(f"--max_pixels is {asked}, and at most {most} fit: {why}")
    logging.warning("large images are shrunk to %d pixels: %s", most, why)
    builder = copy.copy(run.builder)
    place = load_policy.model_folder(run.config.model.path)
    builder.image_processor = image_processor.load(place, most)
    return dataclasses.replace(run, builder=builder)


def name_all(given: Any, paths: Sequence[str], wrong: list[str]) -> None:
    """Prints a line for each image that can be read, in the form that the flags ask for."""
    if given.base and not _is_adapter(given.model):
        raise ValueError(f"--base goes with a PEFT folder, and --model={given.model} is none")
    run, lora, config = open_policy(given)
    predictor = Predictor(
        run, lora, samples=given.samples, batch_size=given.batch_size, seed=given.seed
    )
    tree = read_tree(given.tree, config)
    show = as_json if given.json else as_row
    for path, choice in predict(predictor, paths, tree, given.confidence, wrong):
        print(show(path, choice), flush=True)


def main(argv: Sequence[str]) -> int:
    given = flags.FLAGS
    if len(argv) < 2 or bool(given.workdir) == bool(given.model):
        raise app.UsageError(
            "give images or folders, and either --workdir=FOLDER of a training run or "
            "--model=FOLDER of a checkpoint"
        )
    compiler.compile_quickly()
    if not logging.level_debug():
        logging.set_verbosity(logging.WARNING)
    checkpoint.quieten_orbax()
    if not 0 < given.confidence <= 1:
        raise ValueError(f"--confidence is {given.confidence}; it must be above 0 and at most 1")
    paths, wrong = find_images(argv[1:])
    try:
        if paths:
            name_all(given, paths, wrong)
    finally:
        # Broken files are reported even if an error ends the program.
        for reason in wrong:
            print(f"predict: {reason}; passed over", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Configuration that goes with --model.")
    flags.DEFINE_string("workdir", None, "Folder of a training run.")
    flags.DEFINE_integer("step", None, "Checkpoint of the run; the latest by default.")
    flags.DEFINE_string("model", None, "Checkpoint folder, PEFT folder, or emoji_tiny.")
    flags.DEFINE_string("base", None, "Folder of a PEFT folder's base, if it has moved.")
    flags.DEFINE_string(
        "tree", None, "Label tree (JSON, speciarl_jax/verifiers/label_tree/schema.py)."
    )
    flags.DEFINE_string("prompt", None, "Prompt; that of the configuration by default.")
    flags.DEFINE_float("confidence", 0.7, "Share of the answers that must support the name.")
    flags.DEFINE_integer("samples", 16, "Answers an image.")
    flags.DEFINE_integer("max_tokens", None, "Of an answer; that of the configuration by default.")
    flags.DEFINE_integer("max_pixels", None, "Larger images are shrunk to so many pixels.")
    flags.DEFINE_integer("batch_size", 8, "Images a batch.")
    flags.DEFINE_integer("seed", 0, "Of sampling.")
    flags.DEFINE_bool("json", False, "Print JSON lines.")
    exit_codes.run_tool("predict", main)
