"""From pictures to what the policy reads: chat prompt, tokens, patches, layouts, positions."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import AutoImageProcessor, PreTrainedTokenizerBase

from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.models.qwen2_5_vl import layout as layout_lib
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig
from speciarl_jax.types import PromptBatch

TEXTS = pathlib.Path(__file__).parent / "prompt_texts"


def read_prompt(name_or_path: str) -> str:
    """The instruction of a prompt that ships with the package, or of a user's own text file.

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


def load_image_processor(folder: str | pathlib.Path) -> Any:
    """The image processor of a checkpoint folder, in the variant that needs no torch.

    Raises:
      ValueError: the folder has no `preprocessor_config.json`.
    """
    if not (pathlib.Path(folder) / "preprocessor_config.json").exists():
        raise ValueError(f"{folder} holds no preprocessor_config.json")
    return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)


class PromptBuilder:
    """Turns pictures into a `PromptBatch` of fixed shape.

    One instruction serves all pictures. Every batch of pictures of one size has one shape, so it
    runs through one compiled program.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Any,
        instruction: str,
        *,
        system: str = "",
        max_prompt_tokens: int = 2048,
    ):
        """Prepares the text around a picture.

        Args:
          config: dimensions of the model.
          tokenizer: of the checkpoint; its chat template is used.
          image_processor: of the checkpoint.
          instruction: what the policy is asked about each picture.
          system: system message, left out when empty.
          max_prompt_tokens: longer prompts are refused.
        """
        if image_processor.patch_size != config.vision.patch_size:
            raise ValueError(
                f"preprocessor_config.json cuts patches of {image_processor.patch_size} px, the "
                f"model's vision tower reads {config.vision.patch_size} px"
            )
        self.config = config
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.max_prompt_tokens = max_prompt_tokens
        messages = [{"role": "system", "content": system}] if system else []
        content = [{"type": "image"}, {"type": "text", "text": instruction}]
        messages.append({"role": "user", "content": content})
        self.text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(self.text, add_special_tokens=False)["input_ids"]
        holes = [i for i, token in enumerate(ids) if token == config.image_token_id]
        if len(holes) != 1:
            raise ValueError(
                f"the chat template puts {len(holes)} image placeholders into a prompt with one "
                f"picture: {self.text!r}"
            )
        self._before, self._after = ids[: holes[0]], ids[holes[0] + 1 :]
        self._pad_id = tokenizer_lib.token_id(tokenizer, "<|endoftext|>")

    def prompt_ids(self, image_tokens: int) -> list[int]:
        """The tokens of a prompt whose picture takes `image_tokens` tokens."""
        return [*self._before, *[self.config.image_token_id] * image_tokens, *self._after]

    def __call__(self, examples: Sequence[Mapping[str, Any]], batch_size: int) -> PromptBatch:
        """Builds a batch; missing rows repeat the last example with weight 0.

        Args:
          examples: each with `image` (uint8 [height, width, 3]), `image_id` and `label_index`.
          batch_size: B, at least `len(examples)`.

        Returns:
          `PromptBatch` of numpy arrays.

        Raises:
          ValueError: no examples, more than `batch_size`, or a prompt that is too long.
        """
        if not 0 < len(examples) <= batch_size:
            raise ValueError(f"{len(examples)} examples do not make a batch of {batch_size}")
        rows = [*examples, *[examples[-1]] * (batch_size - len(examples))]
        pixels = self.image_processor(images=[row["image"] for row in rows], return_tensors="np")
        grids = [[(int(h), int(w))] for _, h, w in pixels["image_grid_thw"]]
        counts = [h * w for ((h, w),) in grids]
        patches_BSC = _pad_rows(
            np.split(pixels["pixel_values"].astype(np.float32), np.cumsum(counts)[:-1])
        )
        merged = self.config.vision.spatial_merge_size**2
        prompts = [self.prompt_ids(count // merged) for count in counts]
        length = max(map(len, prompts))
        if length > self.max_prompt_tokens:
            raise ValueError(
                f"a prompt takes {length} tokens, config.data.max_prompt_tokens is "
                f"{self.max_prompt_tokens}; lower the picture size (max_pixels) or raise the limit"
            )
        tokens_BP = np.full((batch_size, length), self._pad_id, np.int32)
        mask_BP = np.zeros((batch_size, length), bool)
        for row, ids in enumerate(prompts):
            tokens_BP[row, length - len(ids) :] = ids
            mask_BP[row, length - len(ids) :] = True
        positions_3BP, next_position_B = layout_lib.mrope_positions(
            tokens_BP, mask_BP, grids, self.config
        )
        return PromptBatch(
            patches_BSC=patches_BSC,
            layout=layout_lib.vision_layout(grids, self.config.vision),
            tokens_BP=tokens_BP,
            mask_BP=mask_BP,
            positions_B3P=np.swapaxes(positions_3BP, 0, 1),
            next_position_B=next_position_B,
            image_id_B=np.array([row["image_id"] for row in rows], np.uint32),
            label_index_B=np.array([row["label_index"] for row in rows], np.int32),
            weight_B=(np.arange(batch_size) < len(examples)).astype(np.float32),
        )


def _pad_rows(rows: Sequence[np.ndarray]) -> np.ndarray:
    longest = max(len(row) for row in rows)
    padded = np.zeros((len(rows), longest, rows[0].shape[1]), rows[0].dtype)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded
