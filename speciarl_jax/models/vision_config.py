"""Dimensions that the vision encoders of all families have, and how `config.json` holds them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from speciarl_jax.models.config_json import Section


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Dimensions of a vision encoder; sizes are in patches or channels where no comment is.

    A family makes a subclass of it, which adds what is its own.
    """

    hidden_act: ClassVar[str]  # activation of the blocks, the only one that is implemented
    # Key of `vision_config`, which is the field's name -> what transformers takes where it is not.
    file_defaults: ClassVar[Mapping[str, int]]
    # Field that lists blocks -> its key.
    file_lists: ClassVar[Mapping[str, str]]

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    patch_size: int  # pixels
    temporal_patch_size: int = 2  # frames; a still image is repeated
    spatial_merge_size: int = 2  # patches a side that become one token
    in_channels: int = 3
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6

    def __post_init__(self):
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 4:
            raise ValueError(
                f"vision hidden_size {self.hidden_size} over {self.num_heads} heads must give a "
                "head size that is a multiple of 4 (two rotary axes)"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Number of values in a flattened patch: channels x frames x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def feature_size(self) -> int:
        """Number of values in the features of a merged token."""
        return self.out_hidden_size

    @classmethod
    def from_hf(cls, vision: Section) -> Self:
        """Reads `vision_config`; keys that it lacks have the defaults of transformers.

        Raises:
          ValueError: a value of the wrong kind, or an option that is not implemented.
        """
        if (named := vision.get("hidden_act", cls.hidden_act)) != cls.hidden_act:
            raise ValueError(
                f"vision hidden_act {named!r} is not implemented, only {cls.hidden_act!r}"
            )
        lists = {
            name: vision.wholes(key, getattr(cls, name)) for name, key in cls.file_lists.items()
        }
        return cls(
            **{key: vision.whole(key, default) for key, default in cls.file_defaults.items()},
            **lists,
            in_channels=vision.whole("in_channels" if "in_channels" in vision else "in_chans", 3),
            rope_theta=vision.section("rope_parameters").number("rope_theta", 10_000.0),
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns `vision_config`, without the name of a model."""
        return {
            **{key: getattr(self, key) for key in self.file_defaults},
            **{key: list(getattr(self, name)) for name, key in self.file_lists.items()},
            "in_channels": self.in_channels,
            "hidden_act": self.hidden_act,
            "rope_parameters": {"rope_type": "axial", "rope_theta": self.rope_theta},
        }
