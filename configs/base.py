"""Lists every key of training and evaluation; other configurations change some of them.

The values are those of the paper's main experiment (arXiv 2603.03197): Qwen2.5-VL-7B, ten rollouts
of each image, GRPO with the best-prediction reward.
"""

from typing import Any

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """Returns the complete configuration; programs accept no key that is not here."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # of adapters, order of images, augmentation and sampling
    # Where compiled programs are kept, so that later runs need not compile them: "user", a folder
    # for this kind of machine in ~/.cache, of at most 4 GiB; another folder, which machines with
    # different processors must not share; or "" for none.
    config.compilation_cache = "user"
    config.model = _model()
    config.mesh = _mesh()
    config.data = _data()
    config.rollout = _rollout()
    config.verifier = _verifier()
    # Verdicts that are wrong on purpose, to study robustness; never in evaluation.
    config.label_noise = ml_collections.ConfigDict()
    config.label_noise.rate = 0.0  # probability that a verdict moves one category up or down
    config.label_noise.seed = 0  # decides which verdicts move
    config.reward = _reward()
    # How the rewards of a group become advantages.
    config.advantage = ml_collections.ConfigDict()
    config.advantage.baseline = "mean"  # or "leave_one_out": mean of the other rollouts
    config.advantage.normalize_by_std = True  # divide by the standard deviation of `std_over`
    config.advantage.std_over = "group"  # or "batch": of all valid rollouts of the step
    config.advantage.epsilon = 1e-6  # added to that deviation
    config.loss = _loss()
    config.optimizer = _optimizer()
    config.train = _train()
    config.evaluation = _evaluation()
    config.checkpoint = _checkpoint()
    # Where metrics and rollouts go, beside metrics.jsonl and rollout_samples.jsonl.
    config.logging = ml_collections.ConfigDict()
    # Any of "tensorboard", "wandb" and "trackio" (pip install wandb, trackio); () for none.
    config.logging.writers = ("tensorboard",)
    config.logging.project = "speciarl"  # of W&B and Trackio; the run is called as the workdir
    config.logging.wandb_mode = "online"  # or "offline": files for `wandb sync`
    config.logging.dir = ""  # folder of W&B's files; "" for the workdir
    # Other keys are refused; a section `options` may be replaced as a whole.
    return config.lock()


def _model() -> ml_collections.ConfigDict:
    """The policy."""
    model = ml_collections.ConfigDict()
    # Checkpoint folder in the Hugging Face layout, or a policy that ships: "emoji_tiny".
    model.path = config_dict.placeholder(str)
    model.dtype = "bfloat16"  # of matrix products
    model.param_dtype = "bfloat16"  # of the frozen weights; LoRA is float32
    # Frozen linear layers of the decoder: "param_dtype"; or "int8", half the memory of bfloat16.
    model.base_weights = "param_dtype"
    model.lora_rank = 64  # of the adapters (LoRA) of every linear layer of the targets
    # What has adapters: the text "decoder"; the "merger" of image patches; the vision "encoder".
    # With one of the last two each update encodes its images anew, and neither data.vision_cache
    # nor dynamic sampling is possible.
    model.lora_targets = ("decoder",)
    model.lora_alpha = 32.0  # the product of an adapter is scaled by lora_alpha / lora_rank
    model.scan_unroll = 1  # layers in each iteration of the loop over layers
    # Attention over whole sequences (prompts, images, completions in the update). "xla" stores the
    # scores. "blocked" does not where a row has 512 tokens or more; it is made for CPUs. "splash",
    # the Pallas kernel for TPU, does not; elsewhere it is interpreted, slowly. "cudnn" does not on
    # GPUs; elsewhere XLA computes it. "auto": splash on TPU, blocked on CPU, or else xla.
    model.attention = "auto"
    return model


def _mesh() -> ml_collections.ConfigDict:
    """The mesh of devices."""
    mesh = ml_collections.ConfigDict()
    # Sizes of the mesh axes. Their product is the number of devices; -1 takes the remaining ones.
    mesh.data = 1  # the batch is split, the weights are replicated
    mesh.fsdp = -1  # the batch and the weights are split
    mesh.tensor = 1  # heads and hidden units are split
    return mesh


def _data() -> ml_collections.ConfigDict:
    """Images, labels and prompts."""
    data = ml_collections.ConfigDict()
    # Data set: a module of `speciarl_jax/data`, and the options of its `Source` except the seed.
    data.name = "emoji"
    data.options = ml_collections.ConfigDict()
    data.options.split = "reinforcement"  # or "pretraining", "held_out": families of styles
    data.options.difficulty = "mixed"  # or "clean", "easy", "moderate", "hard"
    data.options.image_size = 48  # pixels
    data.options.concept_set = "benchmark"  # things that most designers have drawn; or "all"
    data.options.domains = ()  # groups to keep; () for all
    data.options.views = 1  # number of differently augmented images of each drawing
    data.workers = 2  # threads that read and augment images
    # What happens if an image cannot be read: "raise" stops the run; "skip" logs and counts the
    # image (data/skipped), and neither trains on it nor scores it.
    data.on_decode_error = "raise"
    # Instruction to the policy: a prompt of `data/prompt_texts`, or the path of a text file.
    data.prompt = "base"
    data.system = ""  # system message; "" for none
    data.max_prompt_tokens = 2048  # image tokens included; a longer prompt is refused
    # Larger images are shrunk to this number of pixels (28 x 28 pixels are one image token of
    # Qwen2.5-VL). None: the limit in the checkpoint's preprocessor_config.json.
    data.max_pixels = config_dict.placeholder(int)
    # Most pixels of a decoded image, to limit memory. Larger JPEG and JPEG 2000 files are decoded
    # at a half or a quarter of their size; others count as broken. None: the limit of Pillow.
    data.max_decoded_pixels = 2**27
    # Images of many sizes are padded to bucket sizes, so that they need few compiled programs. This
    # is the factor from one bucket size to the next. 1: exact sizes, for images of one size.
    data.bucket_growth = 1.25
    # Keeps the features of images, so that the frozen vision encoder need not run again for the
    # same image: in the next epoch (if nothing augments it) and in the next evaluation.
    data.vision_cache = ml_collections.ConfigDict()
    data.vision_cache.place = "none"  # or "host": in memory; or "disk": in `path`
    data.vision_cache.bytes = 8 * 2**30  # upper limit; in memory, of each process
    data.vision_cache.path = "runs/vision_cache"  # runs and processes may share it
    # 0: the encoder runs for the whole batch if one of its images is not in the cache. Above 0: it
    # runs only for the images that are not, this number at a time on each device that holds a part
    # of the batch, which saves more. With 0 and batches of one shape the results are the same to
    # the bit as without the cache; features computed in another shape may differ in the last bits.
    data.vision_cache.images_per_device = 0
    return data


def _rollout() -> ml_collections.ConfigDict:
    """Sampling of rollouts for training."""
    rollout = ml_collections.ConfigDict()
    rollout.num_rollouts = 10  # N, rollouts of each image
    rollout.max_tokens = 2048  # T, tokens of a rollout
    rollout.temperature = 1.0  # above 0
    rollout.top_p = 1.0  # share of the probability mass to sample from; 1: all of it
    # Decodes with a copy of the decoder's linear layers that has the adapters added, rounded to
    # param_dtype: two narrow products less for each token and layer. The copy takes the memory of
    # these layers (13 GB for 7B in bfloat16) during sampling. Worth it if many tokens are decoded
    # and it fits; for 7B on 16 chips of TPU v5e it does not. Not possible with int8 weights.
    rollout.merge_lora = False
    # "int8" decodes with kernels rounded to int8, with a scale for each output, made anew for every
    # batch: half of what a token reads of the weights. "int8" for the cache keeps keys and values
    # with a scale for each token and head, in half the memory. Both are for sampling in training
    # alone, which then samples from a policy a little apart from the one that learns
    # (`update/sampler_kl`). The loss makes up for it: by its ratio if loss.old_logprobs is
    # "rollout", by loss.tis_cap if it is "recomputed".
    rollout.decode_weights = "param_dtype"  # or "int8"
    rollout.kv_cache = "dtype"  # or "int8"
    # Compactions of the decode slots. When the unfinished rollouts fit into half of the slots, they
    # are moved there with the caches of their prompts, and a loop of half the size goes on. This is
    # done at most `num_compactions` times: first the rollouts of each image are halved, then (with
    # greedy decoding) the images. Each compaction is one more loop to compile.
    rollout.num_compactions = 2
    # Memory: a batch is sampled in chunks, one after the other. `cache_bytes` limits the keys and
    # values of prompts and rollouts on a device (weights and the copy of `merge_lora` come on top),
    # `max_images_per_chunk` the images of a chunk. 0: no limit. No rollout depends on them.
    rollout.cache_bytes = 0
    rollout.max_images_per_chunk = 0  # on all devices together
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
    # What a response must hold: "think", <think>...</think> and then one <answer>...</answer>;
    # "answer", the latter alone; "first" reads the first <answer> with something in it, whatever
    # else is there. All other responses are unparsed.
    verifier.options.tags = "think"
    verifier.options.max_words = 8  # of a label; a longer answer is wrong
    verifier.options.max_answer_bytes = 64  # of a label; a longer answer is wrong
    verifier.options.max_response_bytes = 4096  # a longer response is unparsed
    # "cascade": a label tree (`options`), and a judge about what the tree does not know.
    verifier.cascade = ml_collections.ConfigDict()
    verifier.cascade.judge = ""  # "flax_judge" or "http_judge"; "" for the tree alone
    verifier.flax_judge = _flax_judge()
    verifier.http_judge = _http_judge()
    return verifier


def _flax_judge() -> ml_collections.ConfigDict:
    """A language model on the devices."""
    judge = ml_collections.ConfigDict()
    # Folder of a Qwen2, Qwen2.5 or Qwen3 text checkpoint; or "policy_base", the policy's own text
    # encoder without LoRA, at no extra memory.
    judge.weights = "policy_base"
    # Offsets against what a small judge says to everything: "content_free", a file of
    # speciarl_jax.tools.calibrate_judge, or "" for none.
    judge.calibration = ""
    judge.path = ""  # label tree (JSON) or label names (text); "" for the data set's own tree
    judge.prompt = "v2"  # a prompt of `verifiers/judge/prompts`, or the path of a text file
    judge.tags = "think"  # as in verifier.options
    judge.max_words = 8  # of a label; a longer answer is wrong
    judge.max_answer_bytes = 64  # likewise
    judge.max_response_bytes = 4096  # a longer response is unparsed
    judge.max_answer_tokens = 24  # of the judge's; a longer answer is wrong
    judge.rollouts_at_once = 1  # about each image, for memory
    # Where the judge has another vocabulary, answers are encoded anew on the host.
    judge.judge_batch_size = 64
    judge.min_probability = 0.0  # a verdict that is less probable counts as none
    return judge


def _optional(value: Any) -> config_dict.FieldReference:
    """Returns a value that the command line may set to None."""
    return config_dict.FieldReference(value, field_type=object)


def _http_judge() -> ml_collections.ConfigDict:
    """A language model behind an OpenAI-compatible server."""
    judge = ml_collections.ConfigDict()
    judge.path = ""  # label tree (JSON) or label names (text); "" for the data set's own tree
    judge.prompt = "v2"  # a prompt of `verifiers/judge/prompts`, or the path of a text file
    judge.model = ""  # what the server calls the judge
    # What tells the judge from others of that name, for the cache; None asks the server.
    judge.identity = config_dict.placeholder(str)
    judge.tags = "think"  # as in verifier.options
    judge.max_words = 8  # of a label; a longer answer is wrong
    judge.max_answer_bytes = 96  # of a label
    # Verdicts are kept here: path of an SQLite file, redis://HOST:PORT/NUMBER, or "" for nowhere.
    judge.cache = "runs/verdicts.sqlite"
    judge.decoding = ml_collections.ConfigDict()
    # Fields of a request; None: not sent. Hosted reasoning models want `max_completion_tokens`
    # (some thousands, for they think first), and None for the other three.
    judge.decoding.temperature = _optional(0.0)  # 0 is greedy
    judge.decoding.max_tokens = _optional(32)  # of a reply
    judge.decoding.max_completion_tokens = _optional(None)  # of a reply and the thoughts before it
    judge.decoding.seed = _optional(0)  # of its sampling
    # How a server is asked to restrict replies: "json_schema", "choice" (vLLM), "none", or "auto".
    judge.decoding.structured = "auto"
    judge.decoding.extra_body = ml_collections.ConfigDict()  # further fields of a request
    judge.server = ml_collections.ConfigDict()
    judge.server.url = "http://127.0.0.1:8000/v1"  # of the OpenAI-compatible interface
    judge.server.api_key_env = ""  # environment variable that holds the key; "" for no key
    judge.server.concurrency = 64  # requests at once, of each process
    judge.server.timeout = 60.0  # seconds of silence after which an attempt has failed
    judge.server.attempts = 100  # at a request; the waits between them grow to 8 seconds
    # Seconds without any verdict after which the waiting answers stay without one.
    judge.server.give_up_after = 600.0
    # Seconds for which a new run waits for a server that refuses connections. 0: it is refused.
    judge.server.start_timeout = 0.0
    return judge


def _reward() -> ml_collections.ConfigDict:
    """The reward."""
    reward = ml_collections.ConfigDict()
    # Name of a module of `speciarl_jax/rl/rewards` with a function `reward`.
    reward.name = "best_prediction"
    reward.options = ml_collections.ConfigDict()
    reward.options.mode = "all"  # or "single": only the first of the best rollouts earns 1
    reward.options.unparsed_reward = -1.0  # the format penalty
    # Credit by information: a positive reward is multiplied by 1 - strength * (1 - information). An
    # answer that is right for every training image has no information (rl/rewards/information.py).
    # Needs a label tree: config.verifier.name "taxonomy", or "cascade" with a judge in the program.
    reward.information = ml_collections.ConfigDict()
    reward.information.strength = 0.0  # 0: full credit everywhere; 1: none without information
    reward.information.kind = "share"  # of the training images that are ruled out; or "bits"
    # Images without a label (parts of a mixture with `labelled` False) are judged by what their own
    # rollouts agree on: the most specific name that this share of them supports takes the place of
    # the label (verifiers/group_consensus.py). Needs config.verifier.name "taxonomy". 0 for none.
    reward.consensus_confidence = 0.0
    # Penalty of a rollout of `max_tokens`; it rises linearly over the last `overlong_buffer`
    # tokens. 0 for none.
    reward.overlong_penalty = 0.0
    reward.overlong_buffer = 512  # tokens
    # Of the squared distance between the probability of a completion and whether it is rewarded,
    # which its reward loses (rl/rewards/brier.py). 0 for none.
    reward.brier_weight = 0.0
    return reward


def _loss() -> ml_collections.ConfigDict:
    """The policy loss."""
    loss = ml_collections.ConfigDict()
    # Name of a module of `speciarl_jax/rl/losses` with a function `policy_loss`.
    loss.name = "grpo"
    loss.options = ml_collections.ConfigDict()
    loss.options.clip_low = 0.2  # how far the ratio may fall below 1
    loss.options.clip_high = 0.2  # how far it may rise above 1
    loss.options.dual_clip = 3.0  # bound of the ratio if the advantage is negative; above 1
    loss.options.log_ratio_clamp = 20.0  # bound of the logarithm of the ratio, to keep it finite
    # "token_mean", "sequence_mean", or "constant" with the option `length`
    # (losses/token_weights.py; losses/__init__.py lists what the methods use).
    loss.token_weights = "token_mean"
    loss.token_weights_options = ml_collections.ConfigDict()  # of that function
    loss.kl_coefficient = 0.01  # of the KL to the policy with LoRA off; 0 leaves it out
    loss.kl_warmup_steps = 0  # updates in which it rises linearly from 0; 0: there at once
    loss.kl_decay_steps = 0  # updates until it has fallen linearly to 0 again; 0: it stays
    # Of the same KL about images without a label, parts of a mixture with `labelled` False
    # (data/mixture.py): what is learned here shall not change answers elsewhere. 0 leaves it out.
    loss.kl_unlabelled = 0.0
    # The reference policy. 1: the base (LoRA off), which stays. Below 1: adapters of its own, which
    # begin as the policy's. After each step they keep this share and take the rest from the policy.
    loss.reference_decay = 1.0
    loss.kl_estimator = "k3"  # or "k1" (in the reward only), "k2" (losses/kl.py)
    loss.kl_in = "loss"  # or "reward": summed over the rollout and subtracted from its reward
    # Denominator of the ratio: the log-probabilities of the "rollout", or those "recomputed" with
    # the same weights, which costs a forward pass if a step has several updates. The metrics
    # `update/sampler_*` measure how far the two are apart.
    loss.old_logprobs = "rollout"
    # With "recomputed": upper bound of the importance weight that corrects for the difference
    # between sampler and trainer; 0 for no correction.
    loss.tis_cap = 0.0
    # What that weight is computed of: each "token", or the whole rollout ("sequence").
    loss.tis_level = "token"
    # With "recomputed": what leaves the policy loss if the ratio of trainer to sampler lies outside
    # of [mismatch_low, mismatch_high]. "none"; each "token"; or rollouts, by the ratio of the whole
    # "sequence" or by the "geometric" mean over its tokens. KL and entropy keep them, and the
    # denominator counts them.
    loss.mismatch_mask = "none"
    loss.mismatch_low = 0.5  # least ratio; 0: no lower bound
    loss.mismatch_high = 5.0  # largest ratio; for "geometric" choose one near 1
    # Of the entropy of the distribution that tokens are sampled from, which the loss then rewards;
    # 0 leaves it out.
    loss.entropy_coefficient = 0.0
    # Of rank-aware credit: of two completions of a group the better one shall be the more probable
    # (losses/rank.py); 0 leaves it out.
    loss.rank_coefficient = 0.0
    return loss


def _optimizer() -> ml_collections.ConfigDict:
    """AdamW."""
    optimizer = ml_collections.ConfigDict()
    optimizer.learning_rate = 3e-5  # after the warm-up
    optimizer.warmup_steps = 0  # updates of linear warm-up; 0 for none
    optimizer.decay_steps = 0  # updates until the cosine decay reaches 0; 0: constant rate
    optimizer.weight_decay = 0.01  # decoupled; multiplied by the learning rate
    optimizer.b1 = 0.9  # decay of the first moment
    optimizer.b2 = 0.999  # decay of the second moment
    optimizer.epsilon = 1e-8  # added to the root of the second moment
    optimizer.max_grad_norm = 1.0  # a larger gradient is scaled down to this norm
    return optimizer


def _train() -> ml_collections.ConfigDict:
    """Training steps and their parts."""
    train = ml_collections.ConfigDict()
    # "rl", or "sft": supervised fine-tuning on `target`.
    train.objective = "rl"
    # Template of the completion to imitate; fields of the data set's rows are in braces.
    train.target = "<think>This is an image of {label}.</think> <answer>{label}</answer>"
    train.steps = 165  # a step samples, verifies and updates
    train.batch_size = 256  # images of a step
    train.mini_batches = 2  # optimizer updates in each PPO epoch
    train.ppo_epochs = 1  # number of times that a step trains on its rollouts
    train.micro_batches = 1  # parts of a mini-batch, to save memory; changes no result
    # Number of length buckets: T, T / 2, T / 4, ... Micro-batches hold images whose longest
    # rollouts are about as long as each other, padded to the smallest bucket that fits. Saves much
    # if rollouts are short; changes no result. Each bucket is one more program to compile.
    train.num_length_buckets = 4
    train.logprob_chunk = 16  # completion positions in each call of the language-model head
    # What the backward pass computes again to save memory: "none"; "dots": everything but the
    # results of the linear layers; or "full": whole layers.
    train.remat = "full"
    train.dynamic_sampling = ml_collections.ConfigDict()
    # Dynamic sampling (DAPO): a step samples rounds of images until `train.batch_size` groups have
    # rewards that differ, but at most `max_rounds` rounds; 0 turns it off.
    train.dynamic_sampling.max_rounds = 0
    train.dynamic_sampling.batch_size = 768  # images of a round
    # Compiles rollout, verify, reward and update into one program. With a verifier on the host or
    # with dynamic sampling there are always several programs.
    train.fused = True
    # 1: with a judge on the host, the batch of the next step is sampled while this one's is judged.
    # Its rollouts are then of the adapters before the last update (training/ahead.py). 0: in turn.
    train.ahead = 0
    train.max_skipped = 5  # the run stops after this many skipped (not finite) updates in a row
    train.log_every = 1  # steps
    # The first step and every `samples_every`-th log the rollouts of the first `num_logged_images`
    # images of the batch, for people to look at; 0: never.
    train.samples_every = 10  # steps
    train.num_logged_images = 4  # images
    # The run ends after so many validations without a better `checkpoint.best_metric`, which must
    # be one of validation; its trained policy is then the best checkpoint. 0: never.
    train.stop_after = 0  # validations
    # The promise is to be more specific, not less right: if a validation finds a share of correct
    # answers that lies below the base policy's by more than this, in any of its sets, a warning is
    # logged; the second such validation in a row ends the run. Checkpoints that fell so far are
    # never the best. 0: not watched.
    train.max_correctness_drop = 0.0  # of the share, 0 to 1
    train.profile_steps = 3  # steps of a trace that is asked for (speciarl_jax/runtime/profiler.py)
    return train


def _evaluation() -> ml_collections.ConfigDict:
    """Evaluation before and after training, and by `python -m speciarl_jax.evaluate`."""
    evaluation = ml_collections.ConfigDict()
    evaluation.options = ml_collections.ConfigDict()  # differences from data.options
    evaluation.options.split = "held_out"  # styles that no training sees
    evaluation.options.difficulty = "mixed"  # all levels
    evaluation.options.views = 1  # images of each drawing
    # Data sets that `python -m speciarl_jax.evaluate` uses instead: name -> `name` of a module of
    # `speciarl_jax/data` and `options` of its `Source`.
    evaluation.sets = ml_collections.ConfigDict()
    # By `train`. Many runs of one base need to evaluate it only once (speciarl_jax/tools/study).
    evaluation.before = True  # also the base policy, before the first step
    evaluation.in_training = "own"  # the images of `options`; or "sets", those of `sets`
    evaluation.report = True  # also write report.md, report.html and figures
    # Validation while training: before the first step, after every so many steps, and after the
    # last one. 0: none, only the evaluation before and after. A checkpoint is written each time.
    evaluation.every = 0  # steps
    evaluation.images = 256  # of each validation set, the same ones each time; 0: all
    # The sets of images that are validated: name -> differences from data.options and
    # evaluation.options; or `name` and `options` of another data set, as in `sets`. With none, the
    # evaluation images are validated, under the name of the data set. As a flag:
    #   --config.evaluation.validation_sets="{'animals': {'domains': ('animal',)}, 'all': {}}"
    evaluation.validation_sets = ml_collections.ConfigDict()
    # Who judges evaluations: before, while and after training, and in `speciarl_jax.evaluate`. The
    # keys are those of config.verifier, with the values of this file unless they are changed, too.
    evaluation.verifier = _verifier()
    evaluation.verifier.name = ""  # as in config.verifier; "": config.verifier judges evaluations
    evaluation.batch_size = 256  # images of a batch
    evaluation.seed = 1  # of images and of sampling; the same for every training seed
    evaluation.best_of_batch_size = 16  # images of a batch of best-of-N
    evaluation.best_of_temperature = 0.6  # of the samples of best-of-N
    evaluation.best_of_top_p = 0.95  # of the samples of best-of-N
    # Weight of each correct category in specificity; the paper does not state its own.
    evaluation.weights = ml_collections.ConfigDict()
    # "thirds", "authors" (1/5, 3/5, 1, 1, as in their released code), or "" for the four below.
    evaluation.weights.preset = ""
    evaluation.weights.generic = 1 / 3  # the group of the label
    evaluation.weights.less_specific = 2 / 3  # a name between group and label
    evaluation.weights.specific = 1.0  # the label
    evaluation.weights.more_specific = 1.0  # a kind of the label
    return evaluation


def _checkpoint() -> ml_collections.ConfigDict:
    """Checkpoints."""
    checkpoint = ml_collections.ConfigDict()
    checkpoint.save_every = 10  # steps
    checkpoint.keep = 2  # number of the latest checkpoints to keep
    checkpoint.keep_best = 0  # number of the best to keep as well, by `best_metric`
    # A metric of metrics.jsonl. Of a step's, the mean since the checkpoint before counts; one of
    # validation ("validation/NAME/hm", ".../correctness") counts as it is, where it was measured.
    checkpoint.best_metric = "reward/mean"
    checkpoint.best_mode = "max"  # or "min"
    return checkpoint
