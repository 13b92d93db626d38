r"""Reads files of answers that another model gave.

A file has a line for each image (JSON Lines):

    {"path": "eagle/1.jpg", "answer": "bald eagle"}
    {"image_id": 1207959552, "response": "<think>...</think><answer>bald eagle</answer>"}
    {"name": "1.jpg", "answer": ["bald eagle", "eagle", "bird of prey"]}

`image_id` is that of `predictions.jsonl`; `path` or `name` is the image's `key` there, as far as it
is needed to tell the image from others. `answer` is the bare name, `response` all that was said.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from speciarl_jax.verifiers import parsing

_TAGS = (parsing.THINK_OPEN, parsing.THINK_CLOSE, parsing.ANSWER_OPEN, parsing.ANSWER_CLOSE)
_FORM = '{"path": "eagle/1.jpg", "answer": "bald eagle"}'
# Names of policies that mean something else.
_TAKEN = ("base", "trained", "best")


class Line(NamedTuple):
    """Answers about one image that is not found yet."""

    number: int  # of the line in the file, from 1
    image_id: int | str | None
    path: str | None
    responses: list[str]  # N whole responses


class File(NamedTuple):
    """A file of answers."""

    name: str  # of the policy in results
    path: str
    digest: str
    lines: list[Line]
    num_answers: int  # N answers an image


def read(specs: Sequence[str]) -> list[File]:
    """Reads the files that a command line names: FILE, or NAME=FILE.

    Raises:
      ValueError: a file is missing or damaged, or two files have one name; says how to mend it.
    """
    found = [_read(*_named(spec)) for spec in specs]
    names = [file.name for file in found]
    if len(set(names)) < len(names):
        raise ValueError(f"two files of --answers have one name in {names}; write NAME=FILE")
    return found


def _named(spec: str) -> tuple[str, epath.Path]:
    """Splits NAME=FILE; the name is the file's stem if none is given."""
    name, equals, place = spec.partition("=")
    path = epath.Path(spec)
    if not equals or path.exists():
        name = path.stem
    else:
        path = epath.Path(place)
    if not path.is_file():
        raise ValueError(
            f"--answers={spec}: there is no file {str(path)!r}; give FILE.jsonl or NAME=FILE.jsonl"
        )
    if not name or "/" in name or name in _TAKEN:
        raise ValueError(
            f"--answers={spec}: {name!r} cannot be the name of these answers in results; write "
            "NAME=FILE.jsonl, with a NAME that has no slash and is none of " + ", ".join(_TAKEN)
        )
    return name, path


def _read(name: str, path: epath.Path) -> File:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}); save it as UTF-8") from None
    lines = [
        _line(text_of_line, number, f"{path}, line {number}")
        for number, text_of_line in enumerate(text.split("\n"), 1)
        if text_of_line.strip()
    ]
    if not lines:
        raise ValueError(f"{path} has no line; write one for each image, such as {_FORM}")
    first, count = lines[0], len(lines[0].responses)
    for line in lines:
        if len(line.responses) != count:
            raise ValueError(
                f"{path}: line {line.number} has {len(line.responses)} answers and line "
                f"{first.number} has {count}; give the same number about every image"
            )
    if not any(parsing.ANSWER_OPEN in said for line in lines for said in line.responses):
        raise ValueError(
            f"{path}: no response holds {parsing.ANSWER_OPEN}, so none can be read; write bare "
            "names into the field 'answer' instead of 'response'"
        )
    return File(name, str(path), hashlib.sha256(content).hexdigest()[:32], lines, count)


def _line(text: str, number: int, where: str) -> Line:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: no JSON ({error}); write one object a line: {_FORM}") from None
    if not isinstance(row, dict):
        found = "a list" if isinstance(row, list) else type(row).__name__
        raise ValueError(f"{where}: {found} instead of an object; write one a line: {_FORM}")
    image_id = row.get("image_id")
    path = next((row[name] for name in ("path", "name") if row.get(name) is not None), None)
    if isinstance(image_id, float) and image_id.is_integer():  # as pandas writes it
        image_id = int(image_id)
    known = isinstance(image_id, int | str) and not isinstance(image_id, bool)
    if (image_id is not None and not known) or not isinstance(path, str | None):
        raise ValueError(
            f"{where}: 'image_id' is {short(image_id)} and 'path' or 'name' is {short(path)}; "
            "give a whole number or a path"
        )
    if image_id is None and path is None:
        raise ValueError(
            f"{where}: it does not say which image it is about; give 'image_id', 'path' or 'name' "
            f"beside the fields {sorted(row)}"
        )
    return Line(number, image_id, path, _responses(row, where))


def _responses(row: Mapping[str, Any], where: str) -> list[str]:
    """Returns the N whole responses of a line."""
    fields = [name for name in ("answer", "response") if name in row]
    if len(fields) != 1:
        raise ValueError(
            f"{where}: it has {'both' if fields else 'none'} of the fields 'answer' and "
            "'response'; give the bare name as 'answer', or all that was said as 'response'"
        )
    (field,) = fields
    said = row[field] if isinstance(row[field], list) else [row[field]]
    if not said or not all(isinstance(one, str) for one in said):
        raise ValueError(
            f"{where}: {field!r} is {short(row[field])}; give a text or a list of texts (an empty "
            "text if the model said nothing), or leave the line out"
        )
    if field == "response":
        return said
    for one in said:
        if any(tag in one for tag in _TAGS):
            raise ValueError(
                f"{where}: 'answer' holds tags ({short(one)}); give a whole response as 'response'"
            )
    # Thoughts are none, but there for verifiers that ask for them (`tags`).
    thought = parsing.THINK_OPEN + parsing.THINK_CLOSE
    return [f"{thought}{parsing.ANSWER_OPEN}{one}{parsing.ANSWER_CLOSE}" for one in said]


def short(value: Any, most: int = 60) -> str:
    """Writes a value for a message, cut to `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"
