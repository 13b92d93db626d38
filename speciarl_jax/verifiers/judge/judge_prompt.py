"""What a judge is asked, and how its reply is read.

Format of a prompt file (`prompts/*.txt`, or a user's own): plain text, UTF-8, with the hole
`{pair}` exactly once. It is replaced by one JSON object, `{"truth": "...", "prediction": "..."}`,
with both names in the form of `parsing.normalize`. All other braces stand for themselves. What
comes before the hole is the same for all pairs, so keep the hole last: a judge then reads that part
once. The text must ask for a reply of the form `{"verdict": "CLASS"}`, with one of the six classes
of `LABELS`. It is one message of the user, unless the first lines say otherwise:

    #: keys ground_truth prediction      the keys of the JSON object
    #: reply label                       asks for the bare class instead of JSON ("reply json")
    #: system                            the text up to the line `#: user` is the system message
    ...
    #: user

So prompts that were written for other programs can be used as they are. A prompt should say what
decides between two classes; the shipped ones take the lower one. Where two verdicts are equally
likely, `flax_judge` takes the lower one too.

A file is a version. To change a prompt, add a file: verdicts are cached by the text of the prompt.
"""

import dataclasses
import json
import pathlib
import re
from typing import Any

from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.category import Category

PROMPTS = pathlib.Path(__file__).parent / "prompts"
HOLE = "{pair}"

# What a judge calls the categories.
LABELS = {
    "wrong": Category.WRONG,
    "abstain": Category.ABSTAIN,
    "generic": Category.GENERIC,
    "less specific": Category.LESS_SPECIFIC,
    "specific": Category.SPECIFIC,
    "more specific": Category.MORE_SPECIFIC,
}

# The reply as a JSON schema, for servers that can hold a model to one.
REPLY_SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"type": "string", "enum": list(LABELS)}},
    "required": ["verdict"],
    "additionalProperties": False,
}


_KEYS = ("truth", "prediction")
_DIRECTIVE = "#:"
_FENCE = re.compile(r"```\w*\s(.*)```", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class JudgePrompt:
    """A prompt cut at its hole.

    Attributes:
      before: text before the pair; a prefix that all pairs share.
      after: text after the pair.
      system: the system message; "" for none.
      keys: of the true label and of the answer.
      bare: whether the reply is the bare class.
    """

    before: str
    after: str
    system: str = ""
    keys: tuple[str, str] = _KEYS
    bare: bool = False

    @property
    def text(self) -> str:
        """Everything that a verdict depends on; for a prompt without directives, its text."""
        user = self.before + HOLE + self.after
        if not self.system and self.keys == _KEYS and not self.bare:
            return user
        return json.dumps([self.system, user, self.keys, self.bare])

    def fill(self, truth: str, prediction: str) -> str:
        """The user's message about one pair; the names as they are, see `pair_json`."""
        return self.before + pair_json(truth, prediction, self.keys) + self.after

    def messages(self, truth: str, prediction: str) -> list[dict[str, str]]:
        """The whole chat about one pair."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.fill(truth, prediction)}]

    @property
    def replies(self) -> list[str]:
        """The replies that stand for the labels, in their order."""
        return list(LABELS) if self.bare else [reply(label) for label in LABELS]


def load(name_or_path: str) -> JudgePrompt:
    """A prompt that ships with the package, or a user's own file.

    Raises:
      ValueError: there is no such file, it does not have the hole exactly once, or a directive is
        unknown.
    """
    shipped = PROMPTS / f"{name_or_path}.txt"
    path = shipped if shipped.exists() else pathlib.Path(name_or_path)
    if not path.is_file():
        names = sorted(p.stem for p in PROMPTS.glob("*.txt"))
        raise ValueError(
            f"there is no judge prompt {name_or_path!r}; choose one of {names}, or give the path "
            "of a text file"
        )
    text, options = _directives(path, path.read_text(encoding="utf-8").strip())
    if text.count(HOLE) != 1:
        raise ValueError(
            f"{path} has {HOLE} {text.count(HOLE)} times; write it once, where the pair of names "
            "belongs (verifiers/judge/judge_prompt.py)"
        )
    before, after = text.split(HOLE)
    return JudgePrompt(before, after, **options)


def _directives(path: pathlib.Path, text: str) -> tuple[str, dict[str, Any]]:
    """Cuts the directives off a prompt; returns the user's text and what they say."""
    found: dict[str, Any] = {}
    while text.startswith(_DIRECTIVE):
        line, _, text = text.partition("\n")
        match line.removeprefix(_DIRECTIVE).split():
            case ["keys", truth, prediction] if truth != prediction:
                found["keys"] = (truth, prediction)
            case ["reply", "label" | "json" as form]:
                found["bare"] = form == "label"
            case ["system"] if f"\n{_DIRECTIVE} user\n" in text:
                system, text = text.split(f"\n{_DIRECTIVE} user\n", 1)
                found["system"] = system.strip()
            case _:
                raise ValueError(
                    f"{path}: {line!r} is no directive; write '#: keys TRUTH PREDICTION', "
                    "'#: reply label', or '#: system' with a line '#: user' behind it"
                )
        text = text.strip()
    return text, found


def pair_json(truth: str, prediction: str, keys: tuple[str, str] = _KEYS) -> str:
    """The pair as the judge sees it: both names normalised, as one line of JSON in ASCII quotes."""
    names = map(parsing.normalize, (truth, prediction))
    pair = dict(zip(keys, names, strict=True))
    # Text that is no valid Unicode is escaped, so that every pair can be sent.
    try:
        text = json.dumps(pair, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(pair)
    return text


def reply(label: str) -> str:
    """The reply that stands for a label, byte for byte as the shipped prompt shows it."""
    return json.dumps({"verdict": label})


def read_reply(text: str) -> Category | None:
    """Returns the category of a judge's reply, or None for anything but one of the six.

    A reply is a JSON object with the one key "verdict", once, or the bare label. Thoughts that end
    with `</think>`, a code fence, white space, capitals and a full stop are ignored.
    """
    text = text.rpartition("</think>")[2].strip()
    fenced = _FENCE.fullmatch(text)
    text = (fenced[1] if fenced else text).strip().removesuffix(".").lower()
    try:
        # Objects become lists of pairs: a key that comes twice is seen.
        found = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return LABELS.get(text)
    match found:
        case (("verdict", str(verdict)),) if isinstance(found, tuple):
            return LABELS.get(verdict)
    return None
