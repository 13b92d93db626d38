"""Warns while a run trains about what spoils runs, and says which key of the configuration helps.

A warning comes when something has held for some steps in a row, and again at growing intervals.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from speciarl_jax.evaluation.remarks import HEALTH
from speciarl_jax.experiment.run import Run

# Steps from the first warning about something to the second; each further one comes twice as late.
_AGAIN = 10

# Bounds, beyond which something is wrong in nearly every run; docs/operations.md explains them.
_TRUNCATED = _UNPARSED = 0.5  # shares of the completions
_UNJUDGED = 0.1  # share of the completions
_FLAT = 0.999  # share of the groups
_SKIPPED = 0.1  # share of the images
_ONE_ANSWER, _MORE_THAN_LABEL = 0.7, 0.2  # shares of the answers
_LOWEST_ENTROPY, _HIGHEST_ENTROPY = 1e-3, 0.5  # nats a token; share of that of random tokens
_KL = 1.0  # nats a token
_SAMPLER_KL = 0.01  # nats a token
_CORRECTNESS = 0.1  # below that of the base

Row = Mapping[str, float]


class Facts(NamedTuple):
    """Holds what rules need to know of a run."""

    max_tokens: int  # of a completion
    end_ids: list[int]  # tokens that end one
    random_entropy: float  # nats a token, of a policy that says every token that it may alike
    images: int  # sampled at once
    reward: str  # names of modules
    verifier: str

    @classmethod
    def of(cls, run: Run) -> "Facts":
        """Takes the facts from a run."""
        config, dynamic = run.config, run.config.train.dynamic_sampling
        return cls(
            max_tokens=config.rollout.max_tokens,
            end_ids=list(run.end_ids),
            random_entropy=math.log(np.sum(~np.asarray(run.banned_V))),
            images=dynamic.batch_size if dynamic.max_rounds else config.train.batch_size,
            reward=config.reward.name,
            verifier=config.verifier.name,
        )


class Rule(NamedTuple):
    """Holds one thing that is watched.

    Attributes:
      reads: the metrics; the rule is silent where a row lacks one.
      holds: (facts, their values) -> whether it is so.
      says: what is wrong and how to mend it; a format of `facts` and the values.
      patience: steps in a row before the first warning.
    """

    reads: Sequence[str]
    holds: Callable[..., bool]
    says: str
    patience: int = 1

    def found(self, facts: Facts, row: Row) -> str:
        """Returns what to say about a row; empty if all is well."""
        values = [row[key] for key in self.reads]
        return self.says.format(*values, facts=facts) if self.holds(facts, *values) else ""


_CALMER = "lower config.optimizer.learning_rate, or raise config.loss.kl_coefficient"
_NO_SIGNAL = (
    "all completions of each group earn the same, so nothing is learned: raise "
    "config.rollout.temperature or config.rollout.num_rollouts, choose images that are neither too "
    "easy nor too hard (config.data), or set config.train.dynamic_sampling.max_rounds"
)
_UNJUDGED_SAYS = (
    "{0:.0%} of the completions have no verdict and teach nothing: look after the judge of "
    "config.verifier.name ({facts.verifier!r}: its server, or its min_probability)"
)
_REWARD_SAYS = (
    "the reward of {0:.1%} of the completions is not finite, and they teach nothing: mend "
    "speciarl_jax/rl/rewards/{facts.reward}.py (config.reward.name)"
)
ONE_ANSWER = Rule(
    ("verify/most_common_answer", "data/most_common_label"),
    lambda facts, answer, label: answer >= _ONE_ANSWER and answer > label + _MORE_THAN_LABEL,
    "{0:.0%} of the answers are one and the same, though no label has more than {1:.0%} of the "
    "images: look at rollout_samples.jsonl, train on more kinds of images (config.data), "
    f"{_CALMER}",
    patience=3,
)
RULES = {
    "truncated": Rule(
        ("rollout/truncated",),
        lambda facts, share: share >= _TRUNCATED,
        "{0:.0%} of the completions are cut off at config.rollout.max_tokens ({facts.max_tokens}): "
        "raise it, ask for less in the prompt (config.data.prompt), or check that the policy ends "
        "its turn with one of {facts.end_ids} (generation_config.json of the checkpoint)",
    ),
    "unparsed": Rule(
        ("verify/unparsed",),
        lambda facts, share: share >= _UNPARSED,
        "no answer can be read in {0:.0%} of the completions: ask for the tags in the prompt "
        "(config.data.prompt), ask for fewer (tags, an option of the verifier {facts.verifier!r}), "
        "or raise config.rollout.max_tokens ({facts.max_tokens}) if completions are cut off",
    ),
    # A small batch may have no signal by chance.
    "no_signal": Rule(
        ("reward/zero_std_groups",), lambda facts, share: share >= _FLAT, _NO_SIGNAL, patience=5
    ),
    "no_signal_sampled": Rule(
        ("sampled/groups_with_signal",),
        lambda facts, share: share <= 1 - _FLAT,
        _NO_SIGNAL,
        patience=5,
    ),
    "entropy_low": Rule(
        ("update/entropy",),
        lambda facts, entropy: entropy < _LOWEST_ENTROPY,
        "the entropy is {0:.1e} nats a token, so completions are all alike: start again from an "
        f"earlier checkpoint, and {_CALMER}",
        patience=3,
    ),
    "entropy_high": Rule(
        ("update/entropy",),
        lambda facts, entropy: entropy > _HIGHEST_ENTROPY * facts.random_entropy,
        "the entropy is {0:.2f} nats a token, and random tokens have {facts.random_entropy:.2f}: "
        "check config.model.path, lower config.optimizer.learning_rate, or lower "
        "config.rollout.temperature",
        patience=3,
    ),
    "kl": Rule(
        ("update/kl",),
        lambda facts, kl: kl > _KL,
        f"the policy is {{0:.2f}} nats a token from the base: {_CALMER}",
        patience=3,
    ),
    "sampler_apart": Rule(
        ("update/sampler_kl",),
        lambda facts, kl: kl > _SAMPLER_KL,
        "sampling and training give the same tokens other probabilities (KL {0:.3f} nats a token): "
        "set config.loss.tis_cap (with config.loss.old_logprobs 'recomputed'), switch "
        "config.rollout.merge_lora and int8 (config.rollout.decode_weights, kv_cache) off, or "
        "choose float32 as config.model.dtype",
        patience=3,
    ),
    "unjudged": Rule(("verify/unjudged",), lambda facts, share: share > _UNJUDGED, _UNJUDGED_SAYS),
    "unjudged_sampled": Rule(
        ("sampled/unjudged",), lambda facts, share: share > _UNJUDGED, _UNJUDGED_SAYS
    ),
    "one_answer": ONE_ANSWER,
    "reward_not_finite": Rule(("reward/not_finite",), lambda facts, share: share > 0, _REWARD_SAYS),
    "reward_not_finite_sampled": Rule(
        ("sampled/reward_not_finite",), lambda facts, share: share > 0, _REWARD_SAYS
    ),
    "gradient_not_finite": Rule(
        ("update/skipped",),
        lambda facts, share: share > 0,
        "the gradient is not finite, so the policy stays as it was: lower "
        "config.optimizer.learning_rate, or start again from an earlier checkpoint",
    ),
    "images_skipped": Rule(
        ("data/skipped",),
        lambda facts, count: count > _SKIPPED * facts.images,
        "{0:.0f} of {facts.images} images cannot be read; python -m speciarl_jax.tools.check_data "
        "lists them",
    ),
}
# What `config.train.max_skipped` such steps in a row end the run for.
REWARD_NOT_FINITE = ("reward_not_finite", "reward_not_finite_sampled")


@dataclasses.dataclass
class Watched:
    """What a checkpoint remembers of one thing that is watched; JSON-able."""

    in_a_row: int = 0
    warned: int = 0  # times
    next_step: int = 0  # of the next warning


class Health:
    """Watches the metrics of a run; all processes count, and the first one warns."""

    def __init__(self, facts: Facts, state: Mapping[str, Any] | None = None):
        """Begins, or goes on.

        Args:
          facts: of the run.
          state: of `get_state`; None at the beginning.
        """
        self._facts, state = facts, state or {}
        # Metrics of the first validation.
        self._first: dict[str, float] = dict(state.get("first", {}))
        self._watched = {name: Watched(**one) for name, one in state.get("watched", {}).items()}

    def get_state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps."""
        return {
            "first": self._first,
            "watched": {name: dataclasses.asdict(one) for name, one in self._watched.items()},
        }

    def after_step(self, step: int, row: Row) -> dict[str, float]:
        """Warns about what a step's metrics show.

        Args:
          step: its number.
          row: its metrics; rules whose metrics are missing are silent.

        Returns:
          health/NAME: steps in a row for which it has held.
        """
        found = {}
        for name, rule in RULES.items():
            if all(key in row for key in rule.reads):
                said = rule.found(self._facts, row)
                found[name] = self._note(name, step, said, rule.patience)
        odd = sorted(name for name, value in row.items() if not math.isfinite(value))
        said = f"not finite, so null in metrics.jsonl: {', '.join(odd)}" if odd else ""
        found["metrics_not_finite"] = self._note("metrics_not_finite", step, said)
        return {HEALTH + name: float(count) for name, count in found.items()}

    def after_validation(self, step: int, row: Row) -> dict[str, float]:
        """Warns where a set is answered less correctly than at first, or by one answer.

        Args:
          step: after which it was validated.
          row: validation/SET/MEASURE, and what else there is.
        """
        sets: dict[str, dict[str, float]] = {}
        for key, value in row.items():
            if key.startswith("validation/"):
                _, name, measure = key.split("/")
                sets.setdefault(name, {})[measure] = value
        fallen, constant = [], []
        for name, of in sets.items():
            now = of.get("correctness")
            first = None if now is None else self._first.setdefault(name, now)
            if first is not None and first - now > _CORRECTNESS:
                fallen.append(f"{name} from {first:.3f} to {now:.3f}")
            shares = [of.get("most_common_answer", 0.0), of.get("most_common_label", 0.0)]
            said = ONE_ANSWER.found(self._facts, dict(zip(ONE_ANSWER.reads, shares, strict=True)))
            constant += [f"{name}: {said}"] if said else []
        said = ""
        if fallen:
            said = (
                f"correctness in validation fell, {', '.join(fallen)}: {_CALMER}, or set "
                "config.train.max_correctness_drop, which ends such a run with its best checkpoint"
            )
        found = {
            "validation_fallen": self._note("validation_fallen", step, said),
            "validation_one_answer": self._note("validation_one_answer", step, "; ".join(constant)),
        }
        return {HEALTH + name: float(count) for name, count in found.items()}

    def in_a_row(self, name: str) -> int:
        """Returns for how many steps in a row something has held."""
        return self._watched.get(name, Watched()).in_a_row

    def _note(self, name: str, step: int, said: str, patience: int = 1) -> int:
        """Counts, and warns if it is time to; returns the count."""
        now = self._watched.setdefault(name, Watched())
        now.in_a_row = now.in_a_row + 1 if said else 0
        if said and now.in_a_row >= patience and step >= now.next_step:
            if jax.process_index() == 0:
                logging.warning("step %d, %s%s: %s", step, HEALTH, name, said)
            now.next_step = step + _AGAIN * 2**now.warned
            now.warned += 1
        return now.in_a_row
