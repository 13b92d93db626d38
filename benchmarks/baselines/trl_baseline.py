"""Compares our step with one of TRL's GRPOTrainer on the bench's images and model.

In an environment of its own, whose torch is the build for CPUs:

    python3 -m venv trl && trl/bin/pip install trl==1.16.0 torch==2.13.0 transformers==5.23.0 \
        peft==0.21.2 pillow datasets
    trl/bin/python benchmarks/baselines/trl_baseline.py --shape=short --python=.venv/bin/python

The dimensions are those of `SMALL` in benchmarks/workload.py, float32 and random
weights, in transformers' Qwen2.5-VL; LoRA of rank 16 on the decoder; B random images and prompts
of P tokens, N completions of T tokens. A step samples with `generate`, rewards and updates once, in
micro-batches of 32 completions. The first step is left out. Ours is measured before and after,
by `python -m benchmarks` with the interpreter --python.
Prints medians and their ratio.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time

import numpy as np
import ours
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.processing_utils import ProcessorMixin
from trl import GRPOConfig, GRPOTrainer

# images, rollouts, prompt, tokens, side of the image in merged tokens; as in
# `benchmarks`.
SHAPES = {"short": (16, 10, 98, 64, 4), "paper": (16, 10, 300, 96, 8)}
IMAGE, VIDEO, START, END, EOS, PAD = range(4090, 4096)
LINEARS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
TEXT = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1_000_000.0,
        "mrope_section": [8, 12, 12],
    },
}
VISION = {
    "depth": 4,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_heads": 4,
    "out_hidden_size": 256,
    "fullatt_block_indexes": [1, 3],
}
TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %} w4092 w4090 w4093 {% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def tokenizer_of():
    """Makes a tokenizer of the words w0 ... w4095, one token each."""
    words = models.WordLevel({f"w{i}": i for i in range(4096)}, unk_token="w0")
    inner = Tokenizer(words)
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=f"w{EOS}",
        pad_token=f"w{PAD}",
        chat_template=TEMPLATE,
        padding_side="left",
    )


class Processor(ProcessorMixin):
    """Turns images and words into inputs; transformers' own needs torchvision for video."""

    def __init__(self, image_processor, tokenizer):
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.chat_template = TEMPLATE
        self.image_token, self.image_token_id = f"w{IMAGE}", IMAGE

    def __call__(self, images=None, text=None, padding=False, return_tensors=None, **_):
        text = [text] if isinstance(text, str) else list(text)
        pixels = {}
        if images is not None:
            flat = [x for row in images for x in (row if isinstance(row, list) else [row])]
            pixels = dict(self.image_processor(images=flat, return_tensors="pt"))
            counts = iter((pixels["image_grid_thw"].prod(dim=1) // 4).tolist())
            text = [
                "".join(
                    piece if i == 0 else f"w{IMAGE} " * next(counts) + piece
                    for i, piece in enumerate(row.split(f"w{IMAGE} "))
                )
                for row in text
            ]
        found = self.tokenizer(text, padding=padding, return_tensors=return_tensors)
        ids = found["input_ids"]
        if isinstance(ids, torch.Tensor):
            kinds = (ids == IMAGE).int()
        else:
            kinds = [[int(i == IMAGE) for i in row] for row in ids]
        return transformers.BatchFeature({**found, "mm_token_type_ids": kinds, **pixels})

    def apply_chat_template(self, conversation, tokenize=False, return_dict=False, **_):
        single = isinstance(conversation[0], dict)
        rows = [conversation] if single else conversation
        text = self.tokenizer.apply_chat_template(rows, tokenize=False)
        if not tokenize:
            return text[0] if single else text
        parts = [[p for m in row for p in m["content"] if p["type"] == "image"] for row in rows]
        return self(images=[[p["image"] for p in row] for row in parts], text=text)

    def batch_decode(self, *args, **kwargs):
        return self.tokenizer.batch_decode(*args, **kwargs)

    def save_pretrained(self, *args, **kwargs):
        return []


def processor_of(side):
    """Makes a processor that keeps the size of images of `side` x `side` merged tokens."""
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as pil

    pixels = (28 * side) ** 2
    image_processor = pil.Qwen2VLImageProcessorPil(
        size={"shortest_edge": pixels, "longest_edge": pixels}, patch_size=14, merge_size=2
    )
    return Processor(image_processor, tokenizer_of())


def rows_of(shape):
    """Makes prompts of random words and a random image, P tokens in all."""
    images, _, prompt, _, side = shape
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(images):
        words = [f"w{i}" for i in rng.integers(0, IMAGE, prompt - side**2 - 2)]
        pixels = rng.integers(0, 256, (28 * side, 28 * side, 3), np.uint8)
        question = [{"type": "image"}, {"type": "text", "text": " ".join(words)}]
        rows.append(
            {
                "prompt": [{"role": "user", "content": question}],
                "image": Image.fromarray(pixels),
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="short", choices=sorted(SHAPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kl_coefficient", type=float, default=0.0)
    parser.add_argument("--micro_batch", type=int, default=32)
    parser.add_argument("--python", required=True, help="of an environment with speciarl_jax")
    parser.add_argument("--json", help="file for the medians")
    given = parser.parse_args()
    shape = images, rollouts, _, tokens, side = SHAPES[given.shape]
    before = ours.measure(
        given.python, given.shape, repeats=given.repeats, kl_coefficient=given.kl_coefficient
    )
    torch.manual_seed(0)
    config = transformers.Qwen2_5_VLConfig(
        text_config=TEXT,
        vision_config=VISION,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).float()
    model.config._name_or_path = "random"
    begun, lengths = [], []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            begun.append(time.perf_counter())

        on_train_end = on_step_begin

    def reward(completion_ids, **_):
        lengths.extend(map(len, completion_ids))
        return [float(sum(ids) % 6) for ids in completion_ids]

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=given.micro_batch,
                gradient_accumulation_steps=images * rollouts // given.micro_batch,
                num_generations=rollouts,
                max_completion_length=tokens,
                temperature=1.0,
                top_k=0,
                beta=given.kl_coefficient,
                learning_rate=3e-5,
                max_steps=given.repeats + 1,
                generation_kwargs={"min_new_tokens": tokens},
                gradient_checkpointing=False,
                use_cpu=True,
                bf16=False,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows_of(shape)),
            processing_class=processor_of(side),
            peft_config=LoraConfig(r=16, lora_alpha=16, target_modules=LINEARS),
            callbacks=[Clock()],
        )
        trainer.train()
    steps = np.diff(begun).tolist()
    row = {
        "shape": given.shape,
        "step_s": statistics.median(steps[1:]),
        "tokens": float(np.mean(lengths)),
        "all": steps,
    }
    after = ours.measure(
        given.python, given.shape, repeats=given.repeats, kl_coefficient=given.kl_coefficient
    )
    row["ours_step_s"] = statistics.mean((before["step_s"], after["step_s"]))
    row["step_ratio"] = row["step_s"] / row["ours_step_s"]
    print(json.dumps(row, indent=1))
    if given.json:
        pathlib.Path(given.json).write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
