"""What the dimensions of every family's policy hold, and how they are read from `config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from speciarl_jax.models.config_json import Section
from speciarl_jax.models.decoder.text_config import TextConfig, text_to_hf
from speciarl_jax.models.vision_config import VisionConfig

_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Dimensions of a policy, and the tokens that join decoder and vision encoder.

    A family makes a subclass of it, which says how its `config.json` differs. The tokens that are
    given here are those of Qwen's vocabulary.
    """

    model_type: ClassVar[str]  # in `config.json`; the name of the family's folder
    architecture: ClassVar[str]  # likewise, the class in transformers
    vision_type: ClassVar[type[VisionConfig]]

    text: TextConfig
    vision: VisionConfig  # of `vision_type`
    image_token_id: int = 151_655
    video_token_id: int = 151_656
    vision_start_token_id: int = 151_652
    vision_end_token_id: int = 151_653
    # Tokens that end a completion; empty if the files name none.
    eos_token_id: tuple[int, ...] = (151_645,)

    def __post_init__(self):
        if self.vision.out_hidden_size != self.text.hidden_size:
            raise ValueError(
                f"the vision encoder puts out {self.vision.out_hidden_size} channels, the decoder "
                f"reads {self.text.hidden_size}; out_hidden_size must equal the text hidden_size"
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Reads a parsed `config.json`, with the text part nested (`text_config`) or flat.

        Keys that a `vision_config` lacks, and tokens of images, have the defaults of transformers.
        The head is tied if the root or the text part says so. The end-of-sequence tokens are those
        of the root, then those that only the text part has.

        Raises:
          ValueError: another architecture, a missing key, a value of the wrong kind, or an option
            that is not implemented.
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
                text=cls._read_text(text, root),
                vision=cls.vision_type.from_hf(Section(config["vision_config"], "vision_config")),
                eos_token_id=tuple(dict.fromkeys(end_tokens(root) + end_tokens(text))),
                **{key: root.whole(key, getattr(cls, key), least=0) for key in _TOKENS},
            )
        except KeyError as error:
            raise ValueError(
                f"config.json lacks {error}; is it a checkpoint of {cls.model_type}?"
            ) from None

    @classmethod
    def _read_text(cls, text: Section, root: Section) -> TextConfig:
        """Reads the decoder's dimensions (`text_config.text_from_hf`)."""
        raise NotImplementedError

    def _own_text(self) -> dict[str, Any]:
        """Returns the keys of `text_config` that the family adds."""
        raise NotImplementedError

    def to_hf(self) -> dict[str, Any]:
        """Returns the `config.json` that `transformers` and this package read back."""
        shared = {
            "eos_token_id": one_or_all(self.eos_token_id),
            "tie_word_embeddings": self.text.tie_word_embeddings,
        }
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            **{key: getattr(self, key) for key in _TOKENS},
            **shared,
            "text_config": {
                "model_type": f"{self.model_type}_text",
                **text_to_hf(self.text),
                **shared,
                **self._own_text(),
            },
            "vision_config": {"model_type": f"{self.model_type}_vision", **self.vision.to_hf()},
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
