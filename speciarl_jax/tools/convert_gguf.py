"""Converts a text model in GGUF to a folder with safetensors, which `flax_judge` reads.

    python -m speciarl_jax.tools.convert_gguf --file=judge.gguf --out=judge

transformers reads the file: `pip install torch gguf` first. Quantized weights become the numbers
that they stand for, in float32 or --dtype; tokenizer and chat template come from the file too.
"""

import pathlib
from collections.abc import Sequence

from absl import app, flags

from speciarl_jax.models import safetensors_io
from speciarl_jax.runtime import exit_codes


def convert(file: pathlib.Path, out: pathlib.Path, dtype: str) -> None:
    """Writes weights, configuration and tokenizer of a GGUF file.

    Args:
      file: the GGUF file, of an architecture that transformers can read.
      out: folder that receives the files; made if it is missing.
      dtype: of the weights, as torch calls it.

    Raises:
      ValueError: the file is missing or no GGUF, or a package that reads it is.
    """
    if not file.is_file() or file.open("rb").read(4) != b"GGUF":
        raise ValueError(f"--file={file} is no GGUF file; give a whole one")
    try:
        import gguf  # noqa: F401
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ValueError(f"{error.name} is missing; pip install torch gguf") from None
    place = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=getattr(torch, dtype))
    # The weights are plain numbers now; transformers still refuses to write them as quantized.
    model.is_quantized = False
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(out)
    for path in out.glob("*.safetensors"):
        safetensors_io.obey_umask(path)
    AutoTokenizer.from_pretrained(**place).save_pretrained(out)


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if len(argv) > 1 or not (given.file and given.out):
        raise app.UsageError("give --file=FILE.gguf and --out=FOLDER, and flags only")
    convert(pathlib.Path(given.file), pathlib.Path(given.out), given.dtype)
    print(f"written: {given.out}")


if __name__ == "__main__":
    flags.DEFINE_string("file", None, "The GGUF file.")
    flags.DEFINE_string("out", None, "Folder for the safetensors.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Of the weights.")
    exit_codes.run_tool("convert_gguf", main)
