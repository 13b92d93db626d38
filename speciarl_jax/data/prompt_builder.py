"""Builds what the policy reads from images: chat prompt, tokens, patches, layouts, positions."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jinja2
import numpy as np

from speciarl_jax.data import images as images_lib
from speciarl_jax.data import pipeline
from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.models import family
from speciarl_jax.models.image_tokens import Grid
from speciarl_jax.models.policy_config import PolicyConfig
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.runtime import multihost
from speciarl_jax.runtime.messages import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Prompt lengths of bucket sizes are multiples of this number of tokens.
PROMPT_MULTIPLE = 8
TEXTS = pathlib.Path(__file__).parent / "prompt_texts"
_MEND_TEMPLATE = (
    "put the chat_template.json or chat_template.jinja of the checkpoint beside the tokenizer"
)


def read_prompt(name_or_path: str) -> str:
    """Reads an instruction that ships with the package, or a user's own text file.

    Raises:
      ValueError: neither exists.
    """
    shipped = TEXTS / f"{name_or_path}.txt"
    path = shipped if shipped.exists() else pathlib.Path(name_or_path)
    if not path.is_file():
        names = sorted(p.stem for p in TEXTS.glob("*.txt"))
        raise ValueError(
            f"there is no prompt {name_or_path!r}; choose one of {names}, or give the path of a "
            "text file"
        )
    return path.read_text().strip()


def most_pixels(tokens: int, unit: int, aspect: int) -> int:
    """Computes the `max_pixels` with which no image takes more than `tokens` tokens; 0 for none.

    A thin image is at least one token wide, so it may take more tokens than its pixels suggest: up
    to sqrt(aspect * max_pixels / unit**2).

    Args:
      tokens: largest number of tokens of an image.
      unit: side of the square of pixels that becomes one token.
      aspect: largest ratio of the longer to the shorter side of an image.
    """
    tokens = max(tokens, 0)
    return (tokens if tokens >= aspect else tokens**2 // aspect) * unit**2


class BatchSizes(NamedTuple):
    """Sizes of a batch that decide which compiled program it needs."""

    slots: int  # of the vision encoder's sequence, in a row
    image_tokens: int  # M, tokens of all images of a row
    prompt_tokens: int  # P, tokens of a prompt


class PromptBuilder:
    """Turns images into a `PromptBatch`.

    All rows share one instruction. The largest row decides the shapes, so batches of images of one
    size have one shape. For images of many sizes, `bucket_growth` above 1 rounds the shapes up to
    bucket sizes, so that they need few compiled programs. Padding changes no result.
    """

    def __init__(
        self,
        config: PolicyConfig,
        tokenizer: "PreTrainedTokenizerBase",
        image_processor: Any,
        instruction: str,
        *,
        system: str = "",
        max_prompt_tokens: int = 2048,
        bucket_growth: float = 1.0,
    ):
        """Prepares the text around the images.

        Args:
          system: system message; "" for none.
          max_prompt_tokens: longer prompts are refused.
          bucket_growth: factor from one bucket size to the next; 1 for exact sizes.

        Raises:
          ValueError: the parts of the checkpoint do not fit each other, or an option is wrong.
        """
        for key, wanted in (
            ("patch_size", config.vision.patch_size),
            ("temporal_patch_size", config.vision.temporal_patch_size),
            ("merge_size", config.vision.spatial_merge_size),
        ):
            if (found := getattr(image_processor, key)) != wanted:
                raise ValueError(
                    f"the image processor has {key} {found}, the model's vision encoder {wanted}; "
                    "take preprocessor_config.json and config.json of one checkpoint"
                )
        if bucket_growth < 1:
            raise ValueError(
                f"config.data.bucket_growth is {bucket_growth}; sizes must grow (1.25, say), or be "
                "exact (1)"
            )
        self.config = config
        self._family = family.of(config)
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.max_prompt_tokens = max_prompt_tokens
        self.bucket_growth = bucket_growth
        self._instruction, self._system = instruction, system
        for key, words in (("prompt", instruction), ("system", system)):
            self._check_words(f"config.data.{key}", words)
        self._pad_id = tokenizer_lib.token_id(tokenizer, "<|endoftext|>")
        self._pieces: dict[int, list[list[int]]] = {}
        self.text = self._text(images=1)
        self.prompt_ids(1)  # raises if the chat template does not fit

    def prompt_ids(self, *image_tokens: int) -> list[int]:
        """Returns the tokens of a prompt.

        Args:
          *image_tokens: number of tokens of each image; none for text alone.

        Raises:
          ValueError: the chat template does not give each image one placeholder.
        """
        count = len(image_tokens)
        if count not in self._pieces:
            self._pieces[count] = self._cut(self._text(count), count)
        ids, *others = self._pieces[count]
        ids = list(ids)
        for tokens, piece in zip(image_tokens, others, strict=True):
            ids += [self.config.image_token_id] * tokens + piece
        return ids

    def __call__(self, examples: Sequence[Mapping[str, Any]], batch_size: int) -> PromptBatch:
        """Builds a batch; missing rows repeat the last example. They and skipped ones weigh 0.

        Args:
          examples: each has `image` (uint8 [height, width, 3], a list of such images, or an empty
            list for a row of text alone), `image_id` and `label_index`.
          batch_size: B, at least `len(examples)`.

        Returns:
          `PromptBatch` of numpy arrays.

        Raises:
          ValueError: no examples, more than `batch_size`, or a prompt that is too long.
        """
        if not 0 < len(examples) <= batch_size:
            raise ValueError(f"{len(examples)} examples do not make a batch of {batch_size}")
        missing = batch_size - len(examples)
        rows = [*examples, *[examples[-1]] * missing]
        weights = [not row.get("skipped") for row in examples] + [False] * missing
        grids, patches = self._read([row["image"] for row in rows])
        merged = self.config.vision.spatial_merge_size**2
        prompts = [self.prompt_ids(*(h * w // merged for h, w in row)) for row in grids]
        length = max(map(len, prompts))
        if length > self.max_prompt_tokens:
            raise ValueError(
                f"a prompt takes {length} tokens, config.data.max_prompt_tokens is "
                f"{self.max_prompt_tokens}; lower the image size (config.data.max_pixels) or "
                "raise the limit"
            )
        tokens_BP = np.full((batch_size, length), self._pad_id, np.int32)
        mask_BP = np.zeros((batch_size, length), bool)
        for row, ids in enumerate(prompts):
            tokens_BP[row, length - len(ids) :] = ids
            mask_BP[row, length - len(ids) :] = True
        positions_3BP, next_position_B = self._family.positions(
            tokens_BP, mask_BP, grids, self.config
        )
        batch = PromptBatch(
            patches_BSC=patches,
            layout=self._family.vision_layout(grids, self.config.vision),
            tokens_BP=tokens_BP,
            mask_BP=mask_BP,
            positions_B3P=np.swapaxes(positions_3BP, 0, 1),
            next_position_B=next_position_B,
            image_id_B=np.array([pipeline.draw_id(row) for row in rows], np.uint32),
            label_index_B=np.array([row["label_index"] for row in rows], np.int32),
            weight_B=np.array(weights, np.float32),
        )
        return enlarge(batch, self._bucket(grids, prompts), self._pad_id)

    def pad_to_largest_host(self, batch: PromptBatch) -> PromptBatch:
        """Pads this process's share of a batch to the largest share of all processes.

        All processes must call it together, from their main threads. With exact sizes
        (`bucket_growth` 1) all shares are equal already, and nothing is exchanged.
        """
        if jax.process_count() == 1 or self.bucket_growth == 1:
            return batch
        all_sizes = multihost.allgather([int(size) for size in batch_sizes(batch)])
        sizes = BatchSizes(*map(max, zip(*all_sizes, strict=True)))
        return enlarge(batch, sizes, self._pad_id)

    def _check_words(self, key: str, words: str) -> None:
        """Refuses placeholders of images and videos in the user's own words (ValueError)."""
        held = set(self.tokenizer(words, add_special_tokens=False)["input_ids"])
        if found := held & {self.config.image_token_id, self.config.video_token_id}:
            raise ValueError(
                f"{key} holds {self.tokenizer.convert_ids_to_tokens(sorted(found))}; leave it out: "
                "the chat template puts the image before the text, and videos are not read"
            )

    def _text(self, images: int) -> str:
        messages = [{"role": "system", "content": self._system}] if self._system else []
        content = [{"type": "image"}] * images + [{"type": "text", "text": self._instruction}]
        messages.append({"role": "user", "content": content})
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except (TypeError, jinja2.TemplateError) as error:
            raise ValueError(
                f"the chat template of {self.tokenizer.name_or_path} cannot write a prompt with "
                f"{images} image(s) ({first_line(error)}); {_MEND_TEMPLATE}"
            ) from error

    def _cut(self, text: str, images: int) -> list[list[int]]:
        """Splits the tokens of a text at its image placeholders."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        holes = [i for i, token in enumerate(ids) if token == self.config.image_token_id]
        if len(holes) != images:
            raise ValueError(
                f"the chat template puts {len(holes)} image placeholders into a prompt with "
                f"{images} image(s): {text!r}; {_MEND_TEMPLATE}"
            )
        starts, ends = [0, *(hole + 1 for hole in holes)], [*holes, len(ids)]
        return [ids[start:end] for start, end in zip(starts, ends, strict=True)]

    def _read(self, images: Sequence[Any]) -> tuple[list[list[Grid]], np.ndarray]:
        """Returns the grids of the images of each row, and their patches [B, S, C], zero-padded."""
        rows = [list(image) if isinstance(image, list | tuple) else [image] for image in images]
        vision, flat = self.config.vision, [image for row in rows for image in row]
        for pixels in flat:
            images_lib.check_pixels(pixels)
        thw, pixels = np.zeros((0, 3), int), np.zeros((0, vision.patch_dim), np.float32)
        if flat:
            found = self.image_processor(
                images=flat, input_data_format="channels_last", return_tensors="np"
            )
            thw, pixels = found["image_grid_thw"], found["pixel_values"].astype(np.float32)
        each = iter((int(h), int(w)) for _, h, w in thw)
        grids = [[next(each) for _ in row] for row in rows]
        counts = [sum(h * w for h, w in row) for row in grids]
        width = max([vision.spatial_merge_size**2, *counts])
        patches_BSC = np.zeros((len(rows), width, pixels.shape[1]), np.float32)
        for b, part in enumerate(np.split(pixels, np.cumsum(counts)[:-1])):
            patches_BSC[b, : len(part)] = part
        return grids, patches_BSC

    def _bucket(self, grids, prompts) -> BatchSizes:
        """Returns the bucket sizes of a batch; the prompt length follows from the image tokens."""
        growth, length = self.bucket_growth, max(map(len, prompts))
        slots, image_tokens = self._family.vision_sizes(grids, self.config.vision, growth)
        if growth > 1:
            unit = self.config.vision.spatial_merge_size**2
            text = max(
                len(ids) - sum(h * w for h, w in row) // unit
                for ids, row in zip(prompts, grids, strict=True)
            )
            length = -(-(text + image_tokens) // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
            length = min(length, self.max_prompt_tokens)
        return BatchSizes(slots, image_tokens, length)


def batch_sizes(batch: PromptBatch) -> BatchSizes:
    """Returns the sizes of a batch."""
    return BatchSizes(*batch.layout.sizes, batch.tokens_BP.shape[1])


def enlarge(batch: PromptBatch, sizes: BatchSizes, pad_id: int) -> PromptBatch:
    """Pads a batch to larger sizes; none of its features, logits or completions changes.

    Args:
      batch: batch of numpy arrays.
      sizes: sizes to pad to, at least those of the batch.

    Raises:
      ValueError: a size is smaller than that of the batch.
    """
    if sizes == (now := batch_sizes(batch)):
        return batch
    if min(np.subtract(sizes, now)) < 0:
        raise ValueError(f"a batch of {now} cannot be enlarged to {sizes}")
    per_token = batch.patches_BSC.shape[1] // now.image_tokens
    patches = (sizes.image_tokens - now.image_tokens) * per_token
    return batch.pad_left(sizes.prompt_tokens - now.prompt_tokens, pad_id, np.pad).replace(
        patches_BSC=np.pad(batch.patches_BSC, [(0, 0), (0, patches), (0, 0)]),
        layout=batch.layout.pad(sizes.slots, sizes.image_tokens),
    )
