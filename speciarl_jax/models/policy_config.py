"""What the dimensions of every family's policy hold, and how they are read from `config.json`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

from speciarl_jax.models.config_json import Section
from speciarl_jax.models.decoder.text_config import TextConfig, text_to_hf

_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Dimensions of a policy, and the tokens that join decoder and vision encoder.

    A family makes a subclass of it, which reads and writes its `config.json`.
    """

    model_type: ClassVar[str]  # in `config.json`; the name of the family's folder

    text: TextConfig
    # Dimensions of the family's encoder. Each has `patch_size`, `temporal_patch_size`,
    # `spatial_merge_size`, `patch_dim`, `out_hidden_size` and `feature_size`.
    vision: Any
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    eos_token_id: tuple[int, ...]  # tokens that end a completion; empty if the files name none

    def __post_init__(self):
        if self.vision.out_hidden_size != self.text.hidden_size:
            raise ValueError(
                f"the vision encoder puts out {self.vision.out_hidden_size} channels, the decoder "
                f"reads {self.text.hidden_size}; out_hidden_size must equal the text hidden_size"
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Reads a parsed `config.json`.

        Raises:
          ValueError: another architecture, a missing key, a value of the wrong kind, or an option
            that is not implemented.
        """
        raise NotImplementedError

    def to_hf(self) -> dict[str, Any]:
        """Returns the `config.json` that `transformers` and this package read back."""
        raise NotImplementedError

    @classmethod
    def _read(
        cls,
        config: Mapping[str, Any],
        text_of: Callable[[Section, Section], TextConfig],
        vision_of: Callable[[Section], Any],
    ) -> Self:
        """Reads what all families have; `text_of(text, root)` and `vision_of(vision)` the rest.

        The text part is nested (`text_config`) or flat. The end-of-sequence tokens are those of the
        root, then those that only the text part has.
        """
        if config.get("model_type") != cls.model_type:
            raise ValueError(
                f"config.json has model_type {config.get('model_type')!r}; this loader reads "
                f"{cls.model_type!r}"
            )
        root = Section(config)
        text = root if config.get("text_config") is None else root.section("text_config")
        try:
            return cls(
                text=text_of(text, root),
                vision=vision_of(Section(config["vision_config"], "vision_config")),
                eos_token_id=tuple(dict.fromkeys(end_tokens(root) + end_tokens(text))),
                **{key: root.whole(key, least=0) for key in _TOKENS},
            )
        except KeyError as error:
            raise ValueError(
                f"config.json lacks {error}; is it a checkpoint of {cls.model_type}?"
            ) from None

    def _written(
        self, architecture: str, text: Mapping[str, Any], vision: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Returns `config.json`, given what a family adds to the parts of text and vision."""
        shared = {
            "eos_token_id": one_or_all(self.eos_token_id),
            "tie_word_embeddings": self.text.tie_word_embeddings,
        }
        return {
            "architectures": [architecture],
            "model_type": self.model_type,
            **{key: getattr(self, key) for key in _TOKENS},
            **shared,
            "text_config": {
                "model_type": f"{self.model_type}_text",
                **text_to_hf(self.text),
                **shared,
                **text,
            },
            "vision_config": {"model_type": f"{self.model_type}_vision", **vision},
        }


def end_tokens(section: Section) -> tuple[int, ...]:
    """Reads `eos_token_id`: a token, a list of them, or nothing. ValueError: it is another kind."""
    value = section.get("eos_token_id")
    if value is None:
        return ()
    if isinstance(value, list | tuple):
        return section.wholes("eos_token_id")
    return (section.whole("eos_token_id", least=0),)


def one_or_all(tokens: tuple[int, ...]) -> int | list[int] | None:
    """Writes `eos_token_id` as files have it: one token, a list of several, or null."""
    return list(tokens) if len(tokens) > 1 else next(iter(tokens), None)
