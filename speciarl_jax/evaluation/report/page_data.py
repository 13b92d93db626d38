"""The data of the page's script: images with their answers, and samples of training."""

import collections
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from speciarl_jax.evaluation.pairs import run_key
from speciarl_jax.evaluation.report import palette
from speciarl_jax.evaluation.report.markdown import short_answer
from speciarl_jax.runtime import plugins

_LONGEST = 800  # characters of a completion that are kept
_DISTINCT = 12  # different answers that are kept of a group of samples
_ROLLOUTS = 400  # images of training that are kept

# Categories by image and answer -> rewards by image and answer, None without a verdict.
Reward = Callable[[Sequence[Sequence[str]]], list[list[float | None]]]
# Row of predictions, response, category -> place among the reasons of the page, or None.
Reason = Callable[[Mapping[str, Any], str, str], int | None]


def visible(text: str) -> str:
    """Writes characters as code points that are invisible or change the direction of text."""

    def one(char):
        if char in "\n\t":
            return " "
        hidden = unicodedata.category(char) in ("Cf", "Cc", "Cs", "Co", "Zl", "Zp")
        return f"‹U+{ord(char):04X}›" if hidden else char

    return "".join(map(one, text))


def names_of(keys: Sequence[tuple[str, str, str]]) -> list[str]:
    """Names runs by their policies, and by data set and prompt where these differ."""
    _, sets, prompts = (set(part) for part in zip(*keys, strict=True)) if keys else ((),) * 3
    names = []
    for policy, data, prompt in keys:
        more = [data] * (len(sets) > 1) + [f"prompt {prompt}"] * (len(prompts) > 1)
        names.append(visible(" · ".join([policy, *more])))
    return names


def places_of(keys: Sequence[tuple[str, str, str]]) -> dict[tuple[str, str, str], int]:
    """Numbers the runs, by their keys, such that policy and prompt decide and data sets do not."""
    kinds = list(dict.fromkeys((policy, prompt) for policy, _, prompt in keys))
    return {key: kinds.index((key[0], key[2])) for key in keys}


def cut(text: str) -> str:
    """Makes a text `visible` and cuts it; says how many characters were left out."""
    shown = visible(text[:_LONGEST])
    left = len(text) - _LONGEST
    return f"{shown} … ({left} more characters)" if left > 0 else shown


def images(
    predictions: Sequence[Mapping[str, Any]],
    places: Mapping[tuple[str, str, str], int],
    thumbnails: Mapping[tuple[str, int], str],
    reward: Reward | None = None,
    reason: Reason | None = None,
) -> list[dict[str, Any]]:
    """Makes an entry for each image of each data set.

    Args:
      predictions: rows of `predictions.jsonl`.
      places: of `places_of`; rows of other runs are left out.
      thumbnails: (data, image_id) -> data URI.
      reward: of the samples; None where it is not known.
      reason: of the verdicts; None where no reasons are known.

    Returns:
      Dicts with `id`, `label`, `data`, `group` and `level` (of the difficulty) where known, `thumb`
      where there is one; `greedy`: place of the run -> [answer, whole response, category,
      reason]; `samples`: likewise -> {`of`: N, `answers`: [[answer, category, reward or None,
      how often, reason], ...], the most frequent first, `more`: how many are left out}.
    """
    sampled = [r for r in predictions if r["decoding"] != "greedy" and run_key(r) in places]
    categories = [row["categories"] for row in sampled]
    rewards = iter(reward(categories) if reward else [[None] * len(c) for c in categories])
    reason = reason or (lambda *_: None)
    found: dict[tuple, dict[str, Any]] = {}
    for row in predictions:
        number = places.get(run_key(row))
        if number is None:
            continue
        name = (row["data"], row["image_id"])
        if name not in found:
            found[name] = _described(row, thumbnails)
        if row["decoding"] == "greedy":
            response = row["responses"][0]
            answer = visible(short_answer(response, 120)) or "(nothing)"
            category = row["categories"][0]
            why = reason(row, response, category)
            found[name]["greedy"][number] = [answer, cut(response), category, why]
        else:
            found[name]["samples"][number] = _grouped(row, next(rewards), reason)
    return list(found.values())


def _described(row, thumbnails):
    entry = {"id": row["image_id"], "label": visible(row["label"]), "data": row["data"]}
    for key, name in (("generic", "group"), ("difficulty", "level")):
        if row.get(key):
            entry[name] = visible(str(row[key]))
    if (row["data"], row["image_id"]) in thumbnails:
        entry["thumb"] = thumbnails[row["data"], row["image_id"]]
    return entry | {"greedy": {}, "samples": {}}


def _grouped(row, rewards, reason):
    """Counts the different answers among samples."""
    given = zip(row["responses"], row["categories"], rewards, strict=True)
    counts = collections.Counter(
        (visible(short_answer(said, 120)), category, earned, reason(row, said, category))
        for said, category, earned in given
    )
    top = [[*what[:3], n, what[3]] for what, n in counts.most_common(_DISTINCT)]
    return {"of": len(row["responses"]), "answers": top, "more": len(counts) - len(top)}


def rollouts(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lists images of training with their answers: at most `_ROLLOUTS`, of evenly spread steps."""
    steps = sorted({row["step"] for row in samples})
    each = max(1, len(samples) // max(len(steps), 1))
    kept = set(steps[:: -(-len(steps) * each // _ROLLOUTS) or 1])
    return [
        {
            "step": row["step"],
            "id": row["image_id"],
            "label": visible(row["label"]),
            "level": visible(str(row.get("difficulty", ""))),
            "thumb": row.get("image", ""),
            "answers": [
                [visible(short_answer(said, 120)) or "(nothing)", cut(said), category, earned]
                for said, category, earned in zip(
                    row["responses"], row["categories"], row["rewards"], strict=True
                )
            ],
        }
        for row in samples
        if row["step"] in kept
    ]


def changes(
    entries: Sequence[Mapping[str, Any]], before: int, after: int
) -> dict[tuple[str, str], int]:
    """Counts images by (category before, category after) of the greedy answers to them.

    Args:
      entries: of `images`.
      before: place of the run.
      after: likewise.
    """
    pairs = (
        (entry["greedy"][before][2], entry["greedy"][after][2])
        for entry in entries
        if {before, after} <= entry["greedy"].keys()
    )
    return dict(collections.Counter(pairs))


def reward_of(configs: Mapping[str, Mapping[str, Any]]) -> Reward | None:
    """Finds the reward of the latest of `Folder.configs`; None where there is none."""
    if not configs:
        return None
    config = list(configs.values())[-1]
    function = plugins.find("rl.rewards", config["reward"]["name"], "reward")

    def reward(categories):
        # One call for all groups of one size.
        found: list[list[float | None]] = [[]] * len(categories)
        for size in set(map(len, categories)):
            places = [i for i, row in enumerate(categories) if len(row) == size]
            rows = [categories[i] for i in places]
            rank = [[palette.RANK.get(c, palette.RANK["unparsed"]) for c in row] for row in rows]
            valid = np.array([[c in palette.RANK for c in row] for row in rows])
            earned = function(np.array(rank), valid, **config["reward"]["options"])
            for i, *pair in zip(places, np.asarray(earned), valid, strict=True):
                found[i] = [float(e) if v else None for e, v in zip(*pair, strict=True)]
        return found

    return reward
