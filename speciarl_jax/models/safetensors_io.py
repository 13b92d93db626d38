"""Reading and writing safetensors checkpoints, one file or several with an index."""

import json
import pathlib
from collections.abc import Iterator, Mapping

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Reader:
    """The tensors of a checkpoint folder, each read from disk when it is asked for."""

    def __init__(self, folder: str | pathlib.Path):
        """Lists the tensors.

        Raises:
          ValueError: no safetensors there, a shard that is missing or damaged, a tensor that two
            shards hold, or an index that disagrees with its shards.
        """
        self.folder = pathlib.Path(folder)
        index = self.folder / INDEX
        if index.exists():
            promised = json.loads(index.read_text())["weight_map"]
            files = sorted(set(promised.values()))
        elif (self.folder / SINGLE).exists():
            promised, files = None, [SINGLE]
        else:
            raise ValueError(
                f"{self.folder} holds neither {SINGLE} nor {INDEX}; point the path at a checkpoint "
                "folder with safetensors weights"
            )
        self._files = {name: self._open(name) for name in files}
        self._file_of: dict[str, str] = {}
        for name, file in self._files.items():
            for tensor in file.keys():
                if tensor in self._file_of:
                    raise ValueError(
                        f"tensor {tensor!r} is in both {self._file_of[tensor]} and {name} of "
                        f"{self.folder}; delete the stray file"
                    )
                self._file_of[tensor] = name
        if promised is not None and promised != self._file_of:
            wrong = sorted(
                t for t in promised | self._file_of if promised.get(t) != self._file_of.get(t)
            )
            raise ValueError(f"{index} disagrees with its files about {wrong[:5]}")

    def _open(self, name: str):
        path = self.folder / name
        try:
            return safe_open(path, framework="numpy")
        except FileNotFoundError:
            raise ValueError(f"{path} is named in the index but missing; download it") from None
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); download it again") from None

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return tuple(self._files[self._file_of[name]].get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """A tensor in the dtype it was stored in (bfloat16 as `ml_dtypes.bfloat16`)."""
        return self._files[self._file_of[name]].get_tensor(name)


def write(folder: str | pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes `model.safetensors` with the metadata that `transformers` asks for."""
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(contiguous, pathlib.Path(folder) / SINGLE, metadata={"format": "pt"})
