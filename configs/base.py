"""Every key of training and evaluation. An experiment is this file plus its differences.

The values are the paper's main experiment (arXiv 2603.03197): Qwen2.5-VL-7B, ten answers about each
image, GRPO with the best-prediction reward.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """The complete configuration; entry points accept no key that is not here."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # of adapters, order of images, augmentation and sampling
    # Folder of compiled programs, which later runs read instead of compiling; "" for none. Runs may
    # share it; machines whose processors differ may not.
    config.compilation_cache = ""
    config.model = _model()
    config.mesh = _mesh()
    config.data = _data()
    config.rollout = _rollout()
    config.verifier = _verifier()
    config.label_noise = _label_noise()
    config.reward = _reward()
    config.advantage = _advantage()
    config.loss = _loss()
    config.optimizer = _optimizer()
    config.train = _train()
    config.evaluation = _evaluation()
    config.checkpoint = _checkpoint()
    # A key that is not here is refused; `options` may be replaced as a whole.
    return config.lock()


def _model() -> ml_collections.ConfigDict:
    """The policy."""
    model = ml_collections.ConfigDict()
    # The policy: a checkpoint folder in the Hugging Face layout, or the name of one that ships with
    # the package ("emoji_tiny").
    model.path = config_dict.placeholder(str)
    model.dtype = "bfloat16"  # of matrix products
    model.param_dtype = "bfloat16"  # of the frozen weights; LoRA is float32
    # The frozen linear layers of the decoder: "param_dtype", as above, or "int8" with a scale for
    # each output channel, half of bfloat16's memory.
    model.base_weights = "param_dtype"
    model.lora_rank = 64  # of the adapters (LoRA) of every linear layer of the decoder
    model.lora_alpha = 32.0  # their product is scaled by lora_alpha / lora_rank
    model.scan_unroll = 1  # layers a turn of the loop over layers
    # Over whole sequences (prompts, images, answers that are learned from): "xla" makes arrays of
    # scores; "splash", the Pallas kernel for TPU, makes none (elsewhere it is interpreted, slowly),
    # nor does "cudnn" on GPUs (elsewhere XLA computes the same calls). "auto": splash on TPU, xla
    # elsewhere.
    model.attention = "auto"
    return model


def _mesh() -> ml_collections.ConfigDict:
    """Devices."""
    mesh = ml_collections.ConfigDict()
    # Devices: sizes of the mesh axes; their product is the number of devices. -1: what is left.
    mesh.data = 1  # the batch is cut, the weights are copied
    mesh.fsdp = -1  # the batch and the weights are cut
    mesh.tensor = 1  # heads and hidden units are cut
    return mesh


def _data() -> ml_collections.ConfigDict:
    """Images, labels and prompts."""
    data = ml_collections.ConfigDict()
    # Images and labels: the name is a module of `speciarl_jax/data`; the options are those of its
    # `Source`, but for the seed.
    data.name = "emoji"
    data.options = ml_collections.ConfigDict()
    data.options.split = "reinforcement"  # or "pretraining", "held_out": families of designers
    data.options.difficulty = "mixed"  # or "clean", "easy", "moderate", "hard"
    data.options.image_size = 48  # pixels
    data.options.concept_set = "benchmark"  # what most designers have drawn; or "all"
    data.options.domains = ()  # groups to keep; () for all
    data.options.views = 1  # differently augmented images of each drawing
    data.workers = 2  # threads that read and draw images
    # An image that cannot be read: "raise", or "skip": it is logged, counted (data/skipped),
    # and neither learned from nor scored.
    data.on_decode_error = "raise"
    # What the policy is asked: a prompt of `data/prompt_texts`, or the path of a text file.
    data.prompt = "base"
    data.system = ""  # system message; "" for none
    data.max_prompt_tokens = 2048  # image tokens included; a longer prompt is refused
    # Larger images are shrunk to so many pixels (28 x 28 of Qwen2.5-VL's are an image token);
    # None: the limit in the checkpoint's preprocessor_config.json.
    data.max_pixels = config_dict.placeholder(int)
    # Images of many sizes are padded to sizes of a series, each so many times the one
    # before, and so need a handful of compiled programs. 1: exact sizes, for images of one size.
    data.bucket_growth = 1.25
    # Features of images are kept, so that the frozen vision encoder need not run for an image that
    # was seen before: in the next epoch if nothing augments it, and in the next evaluation.
    data.vision_cache = ml_collections.ConfigDict()
    data.vision_cache.place = "none"  # or "host": in memory; or "disk": in `path`
    data.vision_cache.bytes = 8 * 2**30  # at most; in memory that of each process
    data.vision_cache.path = "runs/vision_cache"  # runs and processes may share it
    # 0: the encoder runs for the whole batch if one of its images is not known; otherwise for
    # unknown images only, so many at a time on each device that the batch is cut over, which
    # saves more. With 0 and batches of one shape the bits are those without the cache. The last
    # bits of features may differ that come from another shape (`bucket_growth`, or not 0 here).
    data.vision_cache.images_per_device = 0
    return data


def _rollout() -> ml_collections.ConfigDict:
    """Sampling of answers."""
    rollout = ml_collections.ConfigDict()
    # Sampling of the answers that are learned from.
    rollout.num_rollouts = 10  # N, answers about each image
    rollout.max_tokens = 2048  # T, of one answer
    rollout.temperature = 1.0  # above 0
    rollout.top_p = 1.0  # share of the probability that is sampled from; 1: all of it
    # Decode with a copy of the decoder's linear layers to which the adapters are added, rounded to
    # param_dtype: fewer products a token, for the memory of the copy, which is that of these layers
    # (13 GB for the 7B model in bfloat16) and lives as long as the sampling. Not with int8 weights.
    # It pays where many tokens are decoded and the copy fits: without it each token takes two more,
    # narrow products a linear layer. For the 7B model on 16 chips of TPU v5e it would not fit.
    rollout.merge_lora = False
    # When the answers that go on fit into half of the places, they are moved together, with the
    # caches of their prompts, and a loop of half the size goes on; and so on, so many times. Halves
    # of the answers about an image come first, then halves of the images (greedy answers). Each
    # time is a loop to compile.
    rollout.num_compactions = 2
    # Memory: the answers about a batch are sampled in parts, one after the other, so that keys and
    # values of prompts and answers take at most so many bytes on a device (weights, and the copy of
    # `merge_lora`, come on top), and parts hold at most so many images (of all devices). 0: no
    # limit. No answer depends on it.
    rollout.cache_bytes = 0
    rollout.max_images_per_chunk = 0  # of all devices together
    return rollout


def _verifier() -> ml_collections.ConfigDict:
    """Who sorts the answers."""
    verifier = ml_collections.ConfigDict()
    # The verifier: a module of `speciarl_jax/verifiers` with a function `create`. Its options are
    # the section of its name or, where there is none, `options`.
    verifier.name = "taxonomy"
    # Share of a group that must have a verdict; a group with less leaves the update. An answer
    # without one might have been the best of its group, so below 1 such groups learn from a bar
    # that may be too low.
    verifier.min_judged_fraction = 1.0
    # A step, a round of dynamic sampling or an evaluation with a larger share of answers without a
    # verdict stops the run, which saves a checkpoint first.
    verifier.max_unjudged_fraction = 0.2
    # Parts of a batch that are sampled one after the other when the verifier is on the host: it
    # judges one while the next is sampled. It does nothing for a verifier inside the program.
    verifier.num_chunks = 1
    verifier.options = ml_collections.ConfigDict()
    verifier.options.path = ""  # label tree (JSON); "" for the data set's own
    verifier.options.require_think = True  # no <think>...</think>: unparsed
    verifier.options.max_words = 8  # of a label; a longer answer is wrong
    verifier.options.max_answer_bytes = 64  # of a label; a longer answer is wrong
    verifier.options.max_response_bytes = 4096  # a longer response is unparsed
    verifier.flax_judge = _flax_judge()
    verifier.http_judge = _http_judge()
    return verifier


def _flax_judge() -> ml_collections.ConfigDict:
    """A language model on the devices."""
    judge = ml_collections.ConfigDict()
    # Folder of a Qwen2, Qwen2.5 or Qwen3 text checkpoint; or "policy_base", the policy's own text
    # encoder without LoRA, at no extra memory.
    judge.weights = "policy_base"
    judge.path = ""  # label tree (JSON) or label names (text); "" for the data set's own tree
    judge.prompt = "v1"  # a prompt of `verifiers/judge/prompts`, or the path of a text file
    judge.require_think = True  # no <think>...</think>: unparsed
    judge.max_words = 8  # of a label; a longer answer is wrong
    judge.max_answer_bytes = 64  # likewise
    judge.max_response_bytes = 4096  # a longer response is unparsed
    judge.max_answer_tokens = 24  # of the judge's; a longer answer is wrong
    judge.rollouts_at_once = 1  # about each image, for memory
    # Where the judge has another vocabulary, answers are encoded anew on the host.
    judge.judge_batch_size = 64
    judge.min_probability = 0.0  # a verdict that is less probable counts as none
    return judge


def _http_judge() -> ml_collections.ConfigDict:
    """A language model behind an OpenAI-compatible server."""
    judge = ml_collections.ConfigDict()
    judge.path = ""  # label tree (JSON) or label names (text); "" for the data set's own tree
    judge.prompt = "v1"  # a prompt of `verifiers/judge/prompts`, or the path of a text file
    judge.model = ""  # what the server calls the judge
    judge.require_think = True  # no <think>...</think>: unparsed
    judge.max_words = 8  # of a label; a longer answer is wrong
    judge.max_answer_bytes = 96  # of a label
    # Verdicts are kept here: path of an SQLite file, redis://HOST:PORT/NUMBER, or "" for nowhere.
    judge.cache = "runs/verdicts.sqlite"
    judge.decoding = ml_collections.ConfigDict()
    judge.decoding.temperature = 0.0  # 0 is greedy
    judge.decoding.max_tokens = 32  # of a reply
    judge.decoding.seed = 0  # None: none is sent
    # How a server is asked to restrict replies: "json_schema", "choice" (vLLM), "none", or "auto".
    judge.decoding.structured = "auto"
    judge.decoding.extra_body = ml_collections.ConfigDict()  # further fields of a request
    judge.server = ml_collections.ConfigDict()
    judge.server.url = "http://127.0.0.1:8000/v1"  # of the OpenAI-compatible interface
    judge.server.api_key_env = ""  # environment variable that holds the key; "" for no key
    judge.server.concurrency = 64  # requests at once, of each process
    judge.server.timeout = 60.0  # seconds of an attempt
    judge.server.attempts = 10  # at a pair
    judge.server.backoff = 1.0  # seconds; doubles with each attempt, and jitter shortens it
    judge.server.max_backoff = 60.0  # seconds
    # Seconds without any verdict after which the waiting answers stay without one.
    judge.server.give_up_after = 600.0
    return judge


def _label_noise() -> ml_collections.ConfigDict:
    """Verdicts that are wrong on purpose."""
    label_noise = ml_collections.ConfigDict()
    # Verdicts that are wrong on purpose, for the study of robustness; evaluation has none.
    label_noise.rate = 0.0  # probability that a verdict moves one rank up or down
    label_noise.seed = 0  # which verdicts move
    return label_noise


def _reward() -> ml_collections.ConfigDict:
    """What an answer earns."""
    reward = ml_collections.ConfigDict()
    # The reward: a module of `speciarl_jax/rl/rewards` with a function `reward`.
    reward.name = "best_prediction"
    reward.options = ml_collections.ConfigDict()
    reward.options.mode = "all"  # or "single": only the first of the best answers
    reward.options.unparsed_reward = -1.0  # the format penalty
    # What the longest answer loses, rising over the last `overlong_buffer` tokens; 0 for none.
    reward.overlong_penalty = 0.0
    reward.overlong_buffer = 512  # tokens
    return reward


def _advantage() -> ml_collections.ConfigDict:
    """How answers of a group are compared."""
    advantage = ml_collections.ConfigDict()
    advantage.baseline = "mean"  # or "leave_one_out": of the other answers
    advantage.normalize_by_std = True  # divide by the group's standard deviation
    advantage.epsilon = 1e-6  # added to that deviation
    return advantage


def _loss() -> ml_collections.ConfigDict:
    """The policy loss."""
    loss = ml_collections.ConfigDict()
    # The policy loss: a module of `speciarl_jax/rl/losses` with a function `policy_loss`.
    loss.name = "grpo"
    loss.options = ml_collections.ConfigDict()
    loss.options.clip_low = 0.2  # how far the ratio may fall below 1
    loss.options.clip_high = 0.2  # how far it may rise above 1
    loss.options.dual_clip = 3.0  # bound of the ratio where the advantage is negative; above 1
    loss.options.log_ratio_clamp = 20.0  # bound of its logarithm, so that it stays finite
    # "token_mean", "sequence_mean", or "constant" with the option `length`
    # (losses/token_weights.py; losses/__init__.py lists what the methods use).
    loss.token_weights = "token_mean"
    loss.token_weights_options = ml_collections.ConfigDict()  # of that function
    loss.kl_coefficient = 0.01  # of the KL to the policy with LoRA off; 0 leaves it out
    loss.kl_estimator = "k3"  # or "k1" (in the reward only), "k2" (losses/kl.py)
    loss.kl_in = "loss"  # or "reward": summed over the answer, taken from its reward
    # What the ratio is taken against: the log-probabilities of the "rollout", or those "recomputed"
    # for the same weights, at the price of a forward pass if a step has several updates. Metrics
    # `update/sampler_*` say how far the two are apart.
    loss.old_logprobs = "rollout"
    # With "recomputed": bound of the importance weight that corrects for the sampler; 0 for none.
    loss.tis_cap = 0.0
    return loss


def _optimizer() -> ml_collections.ConfigDict:
    """AdamW."""
    optimizer = ml_collections.ConfigDict()
    optimizer.learning_rate = 3e-5  # after the warm-up
    optimizer.warmup_steps = 0  # updates in which the rate rises to it; 0 for none
    optimizer.decay_steps = 0  # updates until a cosine has taken the rate to 0; 0: constant
    optimizer.weight_decay = 0.01  # decoupled, times the learning rate
    optimizer.b1 = 0.9  # decay of the first moment
    optimizer.b2 = 0.999  # decay of the second moment
    optimizer.epsilon = 1e-8  # added to the root of the second moment
    optimizer.max_grad_norm = 1.0  # a larger gradient is scaled down to this norm
    return optimizer


def _train() -> ml_collections.ConfigDict:
    """Steps and their parts."""
    train = ml_collections.ConfigDict()
    # "rl", or "sft": supervised training on `target`.
    train.objective = "rl"
    # The fields of the data set's rows stand in braces.
    train.target = "<think>This is an image of {label}.</think> <answer>{label}</answer>"
    train.steps = 165  # a step samples, verifies and updates
    train.batch_size = 256  # images a step
    train.mini_batches = 2  # optimizer updates a pass
    train.ppo_epochs = 1  # times that a step goes through its answers
    train.micro_batches = 1  # parts of a mini-batch, for memory; changes no number
    # Micro-batches are made of images whose longest answers are about as long, and their answers
    # cut to the narrowest that holds them of so many widths: T, half of T, a quarter, ... That
    # changes no number, and runs less padding where answers are much shorter than
    # `rollout.max_tokens`; each width is one more program to compile.
    train.num_length_buckets = 4
    train.logprob_chunk = 16  # answer positions a call of the language-model head
    # What the backward pass computes again, to save memory: "none"; "dots", all but the results of
    # the linear layers; or "full", whole layers.
    train.remat = "full"
    train.dynamic_sampling = ml_collections.ConfigDict()
    # Dynamic sampling (DAPO): a step samples rounds of so many images until `train.batch_size`
    # groups have rewards that differ, at most `max_rounds` times; 0 for none.
    train.dynamic_sampling.max_rounds = 0
    train.dynamic_sampling.batch_size = 768  # images a round
    # One compiled program for rollout, verify, reward and update; with a verifier on the host or
    # dynamic sampling there are always several.
    train.fused = True
    train.max_skipped = 5  # updates in a row that may fail (not finite) before the run stops
    train.log_every = 1  # steps
    # In the first step and every so many the answers about the first images of the batch are kept
    # for people to look at; 0: never.
    train.samples_every = 10  # steps
    train.num_logged_images = 4  # so many of them
    train.profile_steps = 3  # traced when asked for (speciarl_jax/runtime/profiler.py)
    return train


def _evaluation() -> ml_collections.ConfigDict:
    """Evaluation."""
    evaluation = ml_collections.ConfigDict()
    # Before and after training, and by `python -m speciarl_jax.evaluate`.
    evaluation.options = ml_collections.ConfigDict()  # what differs from data.options
    evaluation.options.split = "held_out"  # designers that no training sees
    evaluation.options.difficulty = "mixed"  # all levels
    evaluation.options.views = 1  # of each drawing
    # What `python -m speciarl_jax.evaluate` answers about instead of that: name -> `name` of a
    # module of `speciarl_jax/data` and `options` of its `Source`.
    evaluation.sets = ml_collections.ConfigDict()
    evaluation.batch_size = 256  # images a call
    evaluation.seed = 1  # of images and of sampling; the same for every training seed
    evaluation.best_of_batch_size = 16  # images a call of best-of-N
    evaluation.best_of_temperature = 0.6  # of its samples
    evaluation.best_of_top_p = 0.95  # likewise
    # What a correct answer adds to specificity. The paper does not state its weights.
    evaluation.weights = ml_collections.ConfigDict()
    evaluation.weights.generic = 1 / 3  # names the group of what is seen
    evaluation.weights.less_specific = 2 / 3  # something between group and label
    evaluation.weights.specific = 1.0  # the label
    evaluation.weights.more_specific = 1.0  # a kind of it
    return evaluation


def _checkpoint() -> ml_collections.ConfigDict:
    """Checkpoints."""
    checkpoint = ml_collections.ConfigDict()
    checkpoint.save_every = 10  # steps
    checkpoint.keep = 2  # of the latest
    # So many of the best stay besides, by the mean of a metric since the checkpoint before.
    checkpoint.keep_best = 0
    checkpoint.best_metric = "reward/mean"  # of metrics.jsonl
    checkpoint.best_mode = "max"  # or "min"
    return checkpoint
